"""A model as StableHLO: a program from bytes of pixels to probabilities that JAX runs without tljax."""

import functools
import io
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import export

from tljax import rundir
from tljax.models.kernels import PLAIN_FORMULAS, Kernels
from tljax.resizing import FILTERS, prepare
from tljax.tasks.finished import Finished

MODEL, PREPARE, LABELS, PREPROCESS = "model.stablehlo", "prepare.stablehlo", "labels.json", "preprocess.json"
CHECK, EXAMPLE = "check.npz", "example.py"
PLATFORMS = ("cpu", "cuda", "rocm", "tpu")

# Serialized programs are flatbuffers, whose places are signed numbers of 32 bits; the program itself takes little.
_MOST_BYTES = 2**31 - 2**26
_NUM_CHECKED = 3


def write_stablehlo(folder: Path, model: Finished) -> None:
    """Write a program with its params inside, what goes into it and comes out of it, and an example that runs it.

    Args:
        folder: made if it is not there.
        model: normalisation, temperature and softmax or sigmoid are inside of the program.

    Raises:
        ValueError: the params do not fit into such a file.
        RuntimeError: the file does not compute what the model does.
    """
    size = sum(array.nbytes for array in (*model.pretrained.params.values(), *model.pretrained.stats.values()))
    if size > _MOST_BYTES:
        raise ValueError(
            f"the params take {size / 1e9:.2f} GB and a StableHLO file holds {_MOST_BYTES / 1e9:.2f}; load the model "
            "with dtype='bfloat16', or export it in another format"
        )
    program, preparation = _programs(model)
    preprocess = model.pretrained.preprocess
    images = np.random.default_rng(0).integers(0, 256, (_NUM_CHECKED, *preprocess.shape), np.uint8)
    probabilities = np.asarray(jax.jit(_predict(model, None))(images))
    folder.mkdir(parents=True, exist_ok=True)
    rundir.write_json(folder / LABELS, list(model.class_names))
    rundir.write_json(folder / PREPROCESS, _description(model))
    text = resources.files("tljax.tasks").joinpath("stablehlo_example.py.jinja").read_text()
    rundir.write_bytes(folder / EXAMPLE, text.encode())
    buffer = io.BytesIO()
    np.savez(buffer, images=images, probabilities=probabilities)
    rundir.write_bytes(folder / CHECK, buffer.getvalue())
    if preparation is not None:
        rundir.write_bytes(folder / PREPARE, bytes(preparation.serialize()))
    # Last: a folder with a model is complete.
    with rundir.replacing(folder / MODEL) as path:
        path.write_bytes(program.serialize())
        _check(path, images, probabilities)


def _programs(model: Finished) -> tuple[export.Exported, export.Exported | None]:
    """Export the model, and what prepares images of any size for it, where Pillow can be followed."""
    preprocess = model.pretrained.preprocess
    batch, height, width = export.symbolic_shape("b, h, w")
    prepared = jax.ShapeDtypeStruct((batch, *preprocess.shape), np.uint8)
    # Kernels of one platform would not be found on the others.
    program = _export(_predict(model, PLAIN_FORMULAS), prepared)
    if preprocess.interpolation not in FILTERS:
        return program, None
    pictures = jax.ShapeDtypeStruct((batch, height, width, 3), np.uint8)
    return program, _export(functools.partial(prepare, preprocess=preprocess), pictures)


def _export(function: Callable[..., jax.Array], shape: jax.ShapeDtypeStruct) -> export.Exported:
    return export.export(jax.jit(function), platforms=PLATFORMS)(shape)


def _predict(model: Finished, kernels: Kernels | None) -> Callable[[jax.Array], jax.Array]:
    pretrained = model.pretrained

    def predict(images: jax.Array) -> jax.Array:
        x = pretrained.preprocess.normalise(images)
        scores, _ = pretrained.net.apply(pretrained.params, pretrained.stats, x, kernels=kernels)
        return model.probabilities(scores)

    return predict


def _description(model: Finished) -> dict[str, Any]:
    """Say what goes in, what is done inside of which file, and what comes out."""
    preprocess = model.pretrained.preprocess
    has_preparation = preprocess.interpolation in FILTERS
    return {
        "input": {"dtype": "uint8", "shape": ["b", *preprocess.shape], "channels": preprocess.channel_order},
        "output": {"dtype": "float32", "shape": ["b", len(model.class_names)], "kind": model.kind},
        "temperature": model.temperature,
        "calibration": model.describe_calibration(),
        "inside of " + MODEL: ["divide by 255", "subtract mean", "divide by std", "net", "temperature", model.kind],
        "inside of " + PREPARE if has_preparation else "before, by Pillow": ["resize", "crop"],
        "preprocess": preprocess.describe(),
        "platforms": list(PLATFORMS),
    }


def _check(path: Path, images: np.ndarray, wanted: np.ndarray) -> None:
    """Run what was written, and compare."""
    found = np.asarray(export.deserialize(bytearray(path.read_bytes())).call(images))
    difference = float(np.abs(found - wanted).max())
    # On GPUs and TPUs products are taken in fewer bits, and other kernels round otherwise.
    most = 1e-6 if jax.default_backend() == "cpu" else 1e-2
    if not difference <= most:
        raise RuntimeError(
            f"{MODEL} gives probabilities that differ from the model's by {difference:.1e}, wanted {most:.0e} at most; "
            "please report this"
        )
