"""Write the small files of torch and of its ONNX exporters that tests/test_formats*.py read.

    python -m tests.golden.make_torch_files    # needs torch and timm; writes beside this file

What the tests expect is in `values` and `onnx_values`, which need neither.
"""

import argparse
from pathlib import Path

import ml_dtypes
import numpy as np

from tests.golden import synthetic

FOLDER = Path(__file__).parent

IMAGE_SIZE, PATCH_SIZE = (8, 12), 4
WIDTH, DEPTH, HEADS, CLASSES = 12, 2, 2, 3


def values() -> dict[str, np.ndarray]:
    """Return the arrays of torch_zip.pth and torch_legacy.pth."""
    kernel = synthetic.array("kernel", (4, 3, 2, 5))
    long = np.arange(24, dtype=np.float32)
    return {
        "model.kernel": kernel,
        "model.transposed": kernel.transpose(2, 0, 3, 1),
        "model.slice": kernel[1:3, ::2, :, 1:4],
        "model.expanded": np.broadcast_to(long[5], (3, 2)),
        "model.shared_first": long[:12].reshape(3, 4),
        "model.shared_last": long[12:].reshape(4, 3),
        "model.parameter": synthetic.array("parameter", (7,)),
        "model.scalar": np.array(2.5, np.float32),
        "model.empty": np.zeros((0, 3), np.float32),
        "model.bfloat16": synthetic.array("bfloat16", (3, 5)).astype(ml_dtypes.bfloat16),
        "model.float16": synthetic.array("float16", (3, 5)).astype(np.float16),
        "model.float64": synthetic.array("float64", (3,)).astype(np.float64),
        "model.int64": np.arange(-3, 3),
        "model.uint8": np.arange(250, 256, dtype=np.uint8),
        "model.bool": np.array([True, False, True]),
        "optimizer.state.0.exp_avg": np.full((2, 2), 0.25, np.float32),
    }


def settings() -> dict[str, object]:
    """Return the plain values of the two files."""
    return {
        "optimizer.param_groups.0.lr": 0.1,
        "optimizer.param_groups.0.params.0": 0,
        "args.name": "vit",
        "args.seed": 3,
        "epoch": 7,
        "best": 0.5,
        "note": None,
    }


def onnx_values() -> dict[str, np.ndarray]:
    """Return the state dict of the exported ViT."""
    width, hidden, tokens = WIDTH, 4 * WIDTH, 1 + 2 * 3
    shapes = {
        "cls_token": (1, 1, width),
        "pos_embed": (1, tokens, width),
        "patch_embed.proj.weight": (width, 3, PATCH_SIZE, PATCH_SIZE),
        "patch_embed.proj.bias": (width,),
        "norm.weight": (width,),
        "norm.bias": (width,),
        "head.weight": (CLASSES, width),
        "head.bias": (CLASSES,),
    }
    for block in range(DEPTH):
        block_shapes = {
            "norm1.weight": (width,),
            "norm1.bias": (width,),
            "attn.qkv.weight": (3 * width, width),
            "attn.qkv.bias": (3 * width,),
            "attn.proj.weight": (width, width),
            "attn.proj.bias": (width,),
            "norm2.weight": (width,),
            "norm2.bias": (width,),
            "mlp.fc1.weight": (hidden, width),
            "mlp.fc1.bias": (hidden,),
            "mlp.fc2.weight": (width, hidden),
            "mlp.fc2.bias": (width,),
        }
        shapes |= {f"blocks.{block}.{name}": shape for name, shape in block_shapes.items()}
    return synthetic.arrays(shapes)


def write_torch() -> None:
    """Write what `values` and `settings` describe, in both formats of torch."""
    import torch

    kernel = torch.from_numpy(values()["model.kernel"])
    long = torch.arange(24, dtype=torch.float32)
    model = {key.removeprefix("model."): value for key, value in values().items() if key.startswith("model.")}
    tensors = {key: torch.from_numpy(value.copy()) for key, value in model.items() if value.dtype != ml_dtypes.bfloat16}
    views = {
        "kernel": kernel,
        "transposed": kernel.permute(2, 0, 3, 1),
        "slice": kernel[1:3, ::2, :, 1:4],
        "expanded": long[5].expand(3, 2),
        "shared_first": long[:12].reshape(3, 4),
        "shared_last": long[12:].reshape(4, 3),
        "parameter": torch.nn.Parameter(tensors["parameter"]),
        "bfloat16": torch.from_numpy(model["bfloat16"].view(np.int16)).view(torch.bfloat16),
    }
    checkpoint = {
        "model": tensors | views,
        "optimizer": {
            "state": {0: {"exp_avg": torch.full((2, 2), 0.25)}},
            "param_groups": [{"lr": 0.1, "params": [0]}],
        },
        "args": argparse.Namespace(name="vit", seed=3),
        "epoch": 7,
        "best": np.float64(0.5),
        "note": None,
    }
    torch.save(checkpoint, FOLDER / "torch_zip.pth")
    torch.save(checkpoint, FOLDER / "torch_protocol4.bin", pickle_protocol=4)
    torch.save(checkpoint, FOLDER / "torch_legacy.pth", _use_new_zipfile_serialization=False)
    newer = {
        "float8": torch.tensor([0.5, -2.0]).to(torch.float8_e4m3fn),
        "uint16": torch.tensor([7, 65535]).to(torch.uint16),
    }
    torch.save(newer, FOLDER / "torch_newer.pth")
    torch.serialization.set_crc32_options(False)
    torch.save({"weight": long}, FOLDER / "torch_no_checksum.pth")


def write_onnx() -> None:
    """Write one ViT through both exporters of torch; the new one keeps large arrays in a file of their own."""
    import timm
    import torch

    model = timm.models.VisionTransformer(
        img_size=IMAGE_SIZE, patch_size=PATCH_SIZE, embed_dim=WIDTH, depth=DEPTH, num_heads=HEADS, num_classes=CLASSES
    ).eval()
    model.load_state_dict({key: torch.from_numpy(value) for key, value in onnx_values().items()})
    images = torch.zeros(2, 3, *IMAGE_SIZE)
    torch.onnx.export(model, (images,), FOLDER / "torch_onnx_old.onnx", dynamo=False)
    # Of a fixed batch it would compute the class tokens beforehand.
    batch = {0: torch.export.Dim("batch")}
    path = FOLDER / "torch_onnx_new.onnx"
    program = torch.onnx.export(model, (images,), dynamo=True, dynamic_shapes=(batch,))
    program.save(path, external_data=True)
    _keep_scopes(path)


def _keep_scopes(path: Path) -> None:
    """Of what the exporter notes, keep the names of modules: not where its code lay."""
    import onnx

    exported = onnx.load(path, load_external_data=False)
    for item in (exported.graph, *exported.graph.node):
        kept = [entry for entry in item.metadata_props if entry.key.endswith("name_scopes")]
        del item.metadata_props[:]
        item.metadata_props.extend(kept)
    onnx.save(exported, path)


if __name__ == "__main__":
    write_torch()
    write_onnx()
