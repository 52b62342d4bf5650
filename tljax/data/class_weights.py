"""Weights that let rare classes count for more."""

import numpy as np
from jaxtyping import Float32, Integer

from tljax.paths import did_you_mean

CLASS_WEIGHTS = ("inverse", "effective")


def class_weights(
    labels: Integer[np.ndarray, " n"], num_classes: int, *, kind: str, beta: float | None = None
) -> Float32[np.ndarray, " k"]:
    """Weigh classes against their frequency, so that the mean weight over the examples is 1.

    Args:
        labels: of the training examples, in [0, num_classes).
        num_classes: k.
        kind: "inverse" for `n / (k n_c)`, which gives every class the same total; "effective" in proportion to
            `(1 - beta) / (1 - beta ** n_c)`, between no weights (beta = 0) and "inverse" (beta towards 1).
        beta: of "effective", in [0, 1); None for "inverse". The paper tries 0.9, 0.99, 0.999 and 0.9999.

    Raises:
        ValueError: an unknown kind, a beta that is out of range or does not go with the kind, a label out of range,
            or a class without examples.

    Source:
        Cui et al. 2019, arXiv:1901.05555, eq. 4; there the weights sum to k over the classes.
    """
    if kind not in CLASS_WEIGHTS:
        near = did_you_mean(kind, CLASS_WEIGHTS)
        raise ValueError(f"no class weights {kind!r}{near}; known: {', '.join(CLASS_WEIGHTS)}")
    if (kind == "effective") != (beta is not None) or not 0.0 <= (beta or 0.0) < 1.0:
        raise ValueError(f"beta is {beta}, wanted 0 <= beta < 1 for 'effective' and None for 'inverse', got {kind!r}")
    outside = labels[(labels < 0) | (labels >= num_classes)]
    if len(outside):
        raise ValueError(f"{len(outside)} labels are not in 0..{num_classes - 1}, the first is {outside[0]}")
    counts = np.bincount(labels, minlength=num_classes)
    empty = np.flatnonzero(counts == 0).tolist()
    if empty:
        raise ValueError(
            f"classes {empty} of {num_classes} have no examples among the {len(labels)} to train on, so no weight; "
            "leave them out of the data, or change the split"
        )
    effective = counts if beta is None else (1.0 - beta**counts) / (1.0 - beta)
    return (len(labels) / np.sum(counts / effective) / effective).astype(np.float32)
