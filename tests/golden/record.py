"""Record what models of other projects compute: needs torch, timm, torchvision and transformers, which tljax does not.

    python -m tests.golden.record [CASE ...]    # writes tests/golden/parity/CASE.npz; without names, all cases
    python -m tests.golden.record --list

A recording holds no weights: `synthetic` makes them again from the keys. It holds the keys with their shapes, the
architecture in our terms, the reference's output at each stage, and the versions that made it.
"""

import importlib
import importlib.util
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from tests.golden import synthetic

FOLDER = Path(__file__).parent


@dataclass(frozen=True, kw_only=True)
class Case:
    """One model of another project, and where it agrees with ours.

    Args:
        layout: name of ours for its keys.
        family: of ours, such as "vit".
        architecture: keyword arguments of the family's config.
        image_size: height and width in pixels.
        model: a torch module in eval mode; None where `outputs` says all.
        taps: our stage to the path of the torch module whose output is that stage's, with what to do to it
            (see `channels_last`). The stage "head" is the model's own output unless it is tapped too.
        shapes, dtypes: of the published keys, where they are not those of `model.state_dict()`.
        load: puts the synthetic arrays into the model, where that is not `model.load_state_dict`.
        config: the project's own config file, as plain values, for tests of its readers.
        outputs: our stage to output, where the reference is not a torch module.
    """

    layout: str
    family: str
    architecture: Mapping[str, Any]
    image_size: tuple[int, int]
    model: Any = None
    taps: Mapping[str, tuple[str, Callable[[Any], Any]]] = field(default_factory=dict)
    shapes: Mapping[str, tuple[int, ...]] | None = None
    dtypes: Mapping[str, str] | None = None
    load: Callable[[Any, Mapping[str, np.ndarray]], None] | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    outputs: Callable[[Mapping[str, np.ndarray], np.ndarray], Mapping[str, np.ndarray]] | None = None


def channels_last(output: Any) -> Any:
    """Bring a feature map [b c h w] into our axes."""
    return output.permute(0, 2, 3, 1)


def as_is(output: Any) -> Any:
    """Take tokens or scores as they are."""
    return output


def cases() -> dict[str, Callable[[], Case]]:
    """Collect CASES, name to a function that returns a Case, of all modules cases_*.py."""
    found: dict[str, Callable[[], Case]] = {}
    for path in sorted(FOLDER.glob("cases_*.py")):
        found |= importlib.import_module(f"tests.golden.{path.stem}").CASES
    return found


def run(case: Case) -> dict[str, np.ndarray]:
    """Return the recording of a case."""
    shapes, dtypes = case.shapes, case.dtypes
    if shapes is None:
        state = case.model.state_dict()
        shapes = {key: tuple(value.shape) for key, value in state.items()}
        dtypes = {key: str(value.numpy().dtype) for key, value in state.items() if not value.is_floating_point()}
    arrays, images = synthetic.arrays(shapes, dtypes), synthetic.images(*case.image_size, _channels(case))
    outputs = _run_torch(case, arrays, images) if case.outputs is None else case.outputs(arrays, images)
    about = {
        "layout": case.layout, "family": case.family, "architecture": dict(case.architecture),
        "image_size": case.image_size, "channels": _channels(case), "config": dict(case.config),
        "shapes": {key: list(shape) for key, shape in shapes.items()}, "dtypes": dict(dtypes or {}),
        "versions": _versions(),
    }  # fmt: skip
    encoded = np.frombuffer(json.dumps(about).encode(), np.uint8)
    return {"about": encoded, **{f"stage:{name}": np.asarray(value, np.float32) for name, value in outputs.items()}}


def _channels(case: Case) -> int:
    return case.architecture.get("in_channels", 3)


def _run_torch(case: Case, arrays: Mapping[str, np.ndarray], images: np.ndarray) -> dict[str, np.ndarray]:
    import torch

    model = case.model.eval()
    if case.load is not None:
        case.load(model, arrays)
    else:
        model.load_state_dict({key: torch.from_numpy(value) for key, value in arrays.items()})
    outputs: dict[str, np.ndarray] = {}

    def hook(stage: str, change: Callable[[Any], Any]) -> Callable[..., None]:
        def keep(module: Any, inputs: Any, output: Any) -> None:
            del module, inputs
            output = output[0] if isinstance(output, tuple) else output
            outputs[stage] = change(output).detach().numpy().copy()

        return keep

    handles = [
        model.get_submodule(path).register_forward_hook(hook(stage, change))
        for stage, (path, change) in case.taps.items()
    ]
    with torch.no_grad():
        result = model(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))  # b h w c -> b c h w
    for handle in handles:
        handle.remove()
    result = getattr(result, "logits", result)
    if "head" not in outputs and hasattr(result, "detach"):
        outputs["head"] = result.detach().numpy()
    return outputs


def _versions() -> dict[str, str]:
    """Return the versions of what is installed here: Flax models want a transformers that has no torch beside it."""
    names = ("flax", "jax", "numpy", "timm", "torch", "torchvision", "transformers")
    return {name: metadata.version(name) for name in names if importlib.util.find_spec(name)}


def main(names: list[str]) -> None:
    """Record the named cases, or all."""
    known = cases()
    if names == ["--list"]:
        print("\n".join(known))
        return
    for name in names or known:
        recording = run(known[name]())
        path = FOLDER / "parity" / f"{name}.npz"
        np.savez_compressed(path, **recording)
        print(f"{name}: {path.stat().st_size:,} bytes, {', '.join(list(recording)[1:])}")


if __name__ == "__main__":
    main(sys.argv[1:])
