"""How far fine-tuning took a net from where it started, stage by stage: in its params, and in what they compute."""

import functools
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Num

from tljax.models.net import Net
from tljax.paths import did_you_mean, diff, stage_of

Arrays = dict[str, Any]


def drift(
    before: Mapping[str, Any], after: Mapping[str, Any], stages: Sequence[str], *, leave_out: Collection[str] = ()
) -> list[dict[str, Any]]:
    """Measure how far the params of each stage moved, in float64 on the host.

    Args:
        before: params, such as the pretrained ones.
        after: params; those whose path only one of the two has are not compared.
        stages: of the network, in order of depth.
        leave_out: paths not to compare: those of a fresh head, whose start means nothing.

    Returns:
        A row for each stage with params to compare: "stage", "relative_l2" (`||after - before|| / ||before||`),
        "cosine" (of the angle between after and before) and "num_params" (numbers compared). A stage that was all
        zeros has a relative_l2 of infinity, or 0 if it still is; a cosine with zeros is 0, or 1 if both are zeros.

    Raises:
        ValueError: a shape that changed, a path of no stage, or one to leave out that is in neither, all in one
            message; or a param that is not finite.
    """
    shared = [path for path in before if path in after and path not in leave_out]
    _check(before, after, shared, stages, leave_out)
    rows = []
    for stage in stages:
        chosen = [path for path in shared if stage_of(path) == stage]
        if chosen:
            moments = np.sum([_moments(path, before[path], after[path]) for path in chosen], axis=0)
            num_params = sum(math.prod(before[path].shape) for path in chosen)
            rows.append({"stage": stage, **_compare(*map(float, moments)), "num_params": num_params})
    return rows


def _check(
    before: Mapping[str, Any],
    after: Mapping[str, Any],
    shared: Sequence[str],
    stages: Sequence[str],
    leave_out: Collection[str],
) -> None:
    problems = diff({path: after[path] for path in shared}, {path: before[path] for path in shared})
    known = {*before, *after}
    problems += [f"to leave out {path!r}: no such path{did_you_mean(path, known)}" for path in set(leave_out) - known]
    strangers = {stage_of(path) for path in shared} - set(stages)
    problems += [f"{name!r} is no stage{did_you_mean(name, stages)}" for name in strangers]
    if problems:
        raise ValueError("cannot compare the params before and after:\n  " + "\n  ".join(sorted(problems)))


def _moments(path: str, before: Any, after: Any) -> np.ndarray:
    """Return the squared norms of the difference, of before and of after, and the product of the last two."""
    start, end = (np.asarray(values).astype(np.float64).ravel() for values in (before, after))
    for name, values in (("before", start), ("after", end)):
        if not np.isfinite(values).all():
            raise ValueError(
                f"{path!r} {name} is not finite in {np.sum(~np.isfinite(values))} of {len(values)} numbers"
            )
    return np.array([np.sum((end - start) ** 2), start @ start, end @ end, start @ end])


def _compare(moved: float, start: float, end: float, product: float) -> dict[str, float]:
    if start == 0:
        is_same = end == 0
        return {"relative_l2": 0.0 if is_same else math.inf, "cosine": 1.0 if is_same else 0.0}
    # Rounding can lead past 1.
    cosine = product / (math.sqrt(start) * math.sqrt(end)) if end else 0.0
    return {"relative_l2": math.sqrt(moved / start), "cosine": min(1.0, max(-1.0, cosine))}


def linear_cka(x: Num[np.ndarray, "n d"], y: Num[np.ndarray, "m c"]) -> float:
    """Compare two sets of features of the same examples: 1 where one is a rotation of the other, scaled and shifted.

    `||Y^T X||^2 / (||X^T X|| ||Y^T Y||)` for centred X and Y and Frobenius norms, in float64.

    Args:
        x: features, a row for each example.
        y: other features of the same examples, in the same order.

    Returns:
        A similarity from 0 to 1; NaN where one side gives all examples the same features, which has no meaning.

    Raises:
        ValueError: other numbers of examples, fewer than 2, or features that are not finite.

    Source:
        Kornblith et al. 2019, arXiv:1905.00414, linear CKA: equation 4 with equation 1, in feature space or, where
        there are fewer examples than features, in the equal form `<X X^T, Y Y^T>` in example space. It is biased
        upwards when examples are few beside the features, so compare values of one number of examples only.
    """
    if len(x) != len(y) or len(x) < 2:
        raise ValueError(f"features of {len(x)} and {len(y)} examples; wanted two or more, the same for both")
    broken = [int(np.sum(~np.isfinite(side).all(axis=1))) for side in (x, y)]
    if any(broken):
        raise ValueError(f"features of {broken[0]} and {broken[1]} of {len(x)} examples are not finite")
    x, y = _centred(x), _centred(y)
    if len(x) < max(x.shape[1], y.shape[1]):
        of_x, of_y = x @ x.T, y @ y.T
        cross = np.sum(of_x * of_y)
    else:
        of_x, of_y = x.T @ x, y.T @ y
        cross = np.sum((y.T @ x) ** 2)
    size = np.linalg.norm(of_x) * np.linalg.norm(of_y)
    return float(min(1.0, cross / size)) if size else math.nan


def _centred(features: np.ndarray) -> np.ndarray:
    exact = features.astype(np.float64)
    # The first row is taken off first, so that a feature that never varies becomes 0 and not what rounding left.
    exact = exact - exact[:1]
    return exact - exact.mean(axis=0, keepdims=True)


def stage_cka(
    net: Net,
    before: tuple[Mapping[str, Any], Mapping[str, Any]],
    after: tuple[Mapping[str, Any], Mapping[str, Any]],
    batches: Iterable[Any],
    *,
    start: str | int = 0,
) -> dict[str, float]:
    """Compare what each stage computes before and after, on the same images, by `linear_cka`.

    The outputs of each stage are averaged over positions, those of a ViT over its patches; all examples are kept
    until the end, with one vector for each net and stage.

    Args:
        net: to run in inference mode.
        before: (params, stats), such as the pretrained ones.
        after: (params, stats), such as the fine-tuned ones.
        batches: normalised images [b h w c] when `start` is 0, else outputs of the stage before `start` [b ...]; or
            pairs (such an array, mask [b] that is False for the rows that fill up a batch). One size compiles once.
        start: first stage to run; the stages before it are the same in both nets.

    Returns:
        {stage: similarity} from `start` to the last stage before the head; see `linear_cka` on NaN.

    Raises:
        ValueError: fewer than 2 examples, no stage to compare, or as `Net.apply`.
    """
    running = net.stages[net.depth(start) : -1]
    if not running:
        raise ValueError(f"no stage to compare from {start!r} on: wanted one before {net.stages[-1]!r}")
    # To the device once, and without the head: its shape may differ, and would compile anew.
    sides = [tuple(jax.device_put(_of_stages(values, running)) for values in side) for side in (before, after)]
    kept: list[list[list[np.ndarray]]] = [[[] for _ in running] for _ in sides]
    for batch in batches:
        x, mask = batch if isinstance(batch, tuple) else (batch, np.ones(len(batch), bool))
        for side, columns in zip(sides, kept, strict=True):
            outputs = _pooled_outputs(net, net.depth(start), *side, x)
            for column, output in zip(columns, outputs, strict=True):
                column.append(np.asarray(output)[np.asarray(mask)])
    if not kept[0][0]:
        raise ValueError("no batches to compare on")
    pairs = zip(*kept, strict=True)
    return {stage: linear_cka(*map(np.concatenate, pair)) for stage, pair in zip(running, pairs, strict=True)}


def _of_stages(values: Mapping[str, Any], stages: Sequence[str]) -> Arrays:
    return {path: value for path, value in values.items() if stage_of(path) in stages}


@functools.partial(jax.jit, static_argnums=(0, 1))
def _pooled_outputs(net: Net, start: int, params: Arrays, stats: Arrays, x: jax.Array) -> tuple[jax.Array, ...]:
    """Run each stage but the head once, and average its output over positions."""
    outputs = []
    for depth in range(start, len(net.stages) - 1):
        x, _ = net.apply(params, stats, x, start=depth, stop=depth + 1)
        outputs.append(net.pool(x, "mean"))
    return tuple(outputs)
