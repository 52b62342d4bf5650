"""Patches of single images: which of them a stage of the pretrained net finds alike."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tljax.data.decode import decode_image
from tljax.features.similarity import patch_similarity, split_tokens
from tljax.models.net import Arrays, Net
from tljax.preprocess import Preprocess
from tljax.tasks.inputs import Inputs
from tljax.tasks.thumbnails import encode_pixels


def check_patches(inputs: Inputs, stage: str) -> None:
    """Find out whether the output of a stage has places; runs nothing.

    Raises:
        ValueError: there is no such stage, or its output is one vector an image.
    """
    pretrained = inputs.pretrained
    net, preprocess = pretrained.net, pretrained.preprocess
    net.depth(stage)
    images = jax.ShapeDtypeStruct((1, *preprocess.shape), jnp.uint8)
    shape = jax.eval_shape(
        functools.partial(_run, net, stage, preprocess), pretrained.params, pretrained.stats, images
    ).shape[1:]
    try:
        split_tokens(np.broadcast_to(np.float32(0), shape), net.prefix_tokens, preprocess.shape[:2])
    except ValueError as error:
        raise ValueError(f"config.reading.patch_stage {stage!r}: {error}; or None to leave the patches out") from error


def read_patches(inputs: Inputs, stage: str, rows: Sequence[int]) -> dict[str, Any]:
    """Compare the patches of some images.

    Patch A is the one most like the class token, or like the mean of all patches in a net without one, and B that at
    the centre.

    Args:
        inputs: data and pretrained net.
        stage: whose output is divided into patches, as the next stage takes it.
        rows: positions of the images in the source.

    Returns:
        "stage", "whole" (what A is most like), "size" [height, width] of the grid, and "rows": for each image its
        name, the picture that the net sees, and the cosines of every patch with the whole, with A and with B.
    """
    pretrained, source = inputs.pretrained, inputs.source
    net, preprocess = pretrained.net, pretrained.preprocess
    examples = [source[row] for row in rows]
    images = np.stack([preprocess(decode_image(one["image"], one["name"])) for one in examples])
    outputs = np.asarray(
        _run(net, stage, preprocess, pretrained.params, pretrained.stats, jnp.asarray(images)), np.float32
    )
    has_class_token = outputs.ndim == 3 and net.prefix_tokens > 0
    shown = []
    size: tuple[int, ...] = ()
    for row, example, image, output in zip(rows, examples, images, outputs, strict=True):
        grid, class_token = split_tokens(output, net.prefix_tokens, preprocess.shape[:2])
        size = grid.shape[:2]
        shown.append(
            {
                "name": example["name"],
                "truth": source.class_names[source.labels[row]],
                "jpeg": encode_pixels(_as_seen(preprocess, image)),
                **_compare(grid, grid.mean(axis=(0, 1)) if class_token is None else class_token),
            }
        )
    return {"stage": stage, "whole": "class token" if has_class_token else "mean", "size": list(size), "rows": shown}


def _compare(grid: np.ndarray, whole: np.ndarray) -> dict[str, Any]:
    """Return the cosines with the whole, and the places of A and B with the cosines with them."""
    to_whole = patch_similarity(grid, whole)
    places = {
        "A": tuple(int(place) for place in np.unravel_index(to_whole.argmax(), to_whole.shape)),
        "B": (grid.shape[0] // 2, grid.shape[1] // 2),
    }
    return {
        "to_whole": to_whole.tolist(),
        "patches": [
            {"letter": letter, "place": list(place), "cosines": patch_similarity(grid, grid[place]).tolist()}
            for letter, place in places.items()
        ],
    }


def _as_seen(preprocess: Preprocess, image: np.ndarray) -> np.ndarray:
    """Return what the net sees in the colours of a page."""
    if image.shape[-1] == 1:
        return image[..., 0]
    return image if preprocess.channel_order == "rgb" else np.ascontiguousarray(image[..., ::-1])


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _run(net: Net, stage: str, preprocess: Preprocess, params: Arrays, stats: Arrays, images: jax.Array) -> jax.Array:
    y, _ = net.apply(params, stats, preprocess.normalise(images), stop=net.depth(stage) + 1)
    return y
