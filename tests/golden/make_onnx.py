"""Export small nets with the weights of `synthetic` as ONNX: python -m tests.golden.make_onnx.

Needs torch, timm, onnx and onnxscript. torch has two exporters; the older one goes through TorchScript (dynamo=False).
"""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.golden import synthetic

FOLDER = Path(__file__).parent / "onnx"
IMAGE_SIZE = (24, 40)


def _vit() -> Any:
    from timm.models.vision_transformer import VisionTransformer

    return VisionTransformer(
        embed_dim=16, num_heads=2, patch_size=8, img_size=IMAGE_SIZE, depth=2, num_classes=5, init_values=1e-5
    )


def _resnet() -> Any:
    """torchvision's keys; its own net cannot be as narrow."""
    from timm.models.resnet import BasicBlock, ResNet

    return ResNet(BasicBlock, layers=(1, 1, 1, 1), channels=(4, 8, 12, 16), num_classes=5, in_chans=1)


def _export(name: str, model: Any, channels: int, settings: Mapping[str, Any]) -> None:
    import torch

    state = model.state_dict()
    arrays = synthetic.arrays(
        {key: tuple(value.shape) for key, value in state.items()},
        {key: "int64" for key, value in state.items() if not value.is_floating_point()},
    )
    model.load_state_dict({key: torch.from_numpy(value) for key, value in arrays.items()})
    path = FOLDER / f"{name}.onnx"
    images = torch.zeros(2, channels, *IMAGE_SIZE)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(model.eval(), (images,), path, **settings)
    _keep_names(path)
    print(f"{path.name}: {path.stat().st_size:,} bytes")


def _keep_names(path: Path) -> None:
    """Of what the newer exporter notes, keep the names of modules: not where its code lay on this machine."""
    import onnx

    model = onnx.load(path)
    graphs = [model.graph, *model.functions]
    for item in [*graphs, *(node for graph in graphs for node in graph.node)]:
        kept = [entry for entry in item.metadata_props if entry.key.endswith("name_scopes")]
        del item.metadata_props[:]
        item.metadata_props.extend(kept)
    onnx.save(model, path)


def main() -> None:
    """Write one file for each way of exporting that leaves other names behind."""
    import torch
    from torch.onnx import TrainingMode

    FOLDER.mkdir(exist_ok=True)
    batch = {"dynamic_shapes": ({0: torch.export.Dim("batch")},)}
    new = {"dynamo": True, "external_data": False, "verbose": False}
    _export("vit_torchscript", _vit(), 3, {"dynamo": False})
    _export("vit_dynamo", _vit(), 3, {**new, **batch})
    # With a fixed batch the exporter computes what does not depend on the images.
    _export("vit_dynamo_fixed_batch", _vit(), 3, new)
    _export(
        "resnet_torchscript", _resnet(), 1,
        {"dynamo": False, "training": TrainingMode.PRESERVE, "do_constant_folding": False},
    )  # fmt: skip
    _export("resnet_dynamo", _resnet(), 1, {**new, **batch, "optimize": False})
    # As they are exported for inference: the statistics are multiplied into the convolutions.
    _export("resnet_torchscript_folded", _resnet(), 1, {"dynamo": False})
    _export("resnet_dynamo_folded", _resnet(), 1, {**new, **batch})


if __name__ == "__main__":
    main()
