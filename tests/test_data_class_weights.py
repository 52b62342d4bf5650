"""Class weights: the formulas of their papers, and refusals that name what does not fit."""

import numpy as np
import pytest

from tljax.data.class_weights import class_weights

LABELS = np.array([0, 2, 1, 1, 0], np.int32)


def test_inverse_weights_give_every_class_the_same_total():
    labels = np.array([0] * 6 + [1] * 3 + [2], np.int32)
    weights = class_weights(labels, 3, kind="inverse")
    assert weights.dtype == np.float32
    np.testing.assert_allclose(weights, [10 / 18, 10 / 9, 10 / 3], rtol=1e-6)  # n / (k n_c)
    np.testing.assert_allclose(weights[labels].mean(), 1, rtol=1e-6)


@pytest.mark.parametrize("beta", [0.0, 0.9, 0.9999])
def test_effective_weights_are_those_of_the_paper(beta):
    labels = np.array([0] * 60 + [1] * 3 + [2], np.int64)
    # Cui et al., Proposition 1 by its sum: E_n = sum_j beta^(j - 1); eq. 4: weights in proportion to 1 / E_n.
    shares = np.array([1 / sum(beta**power for power in range(count)) for count in (60, 3, 1)])
    weights = class_weights(labels, 3, kind="effective", beta=beta)
    np.testing.assert_allclose(weights / weights[2], shares / shares[2], rtol=1e-6)
    np.testing.assert_allclose(weights[labels].mean(), 1, rtol=1e-6)


def test_classes_that_cannot_be_weighed_are_named():
    labels = np.array([0, 2, 2, 5])
    with pytest.raises(ValueError, match=r"classes \[1, 3, 4\] of 6 have no examples among the 4"):
        class_weights(labels, 6, kind="inverse")
    with pytest.raises(ValueError, match=r"1 labels are not in 0\.\.4, the first is 5"):
        class_weights(labels, 5, kind="inverse")
    with pytest.raises(ValueError, match=r"no class weights 'inverted' \(did you mean 'inverse'\?\)"):
        class_weights(labels, 6, kind="inverted")


@pytest.mark.parametrize(("kind", "beta"), [("effective", None), ("effective", 1.0), ("inverse", 0.9)])
def test_beta_goes_with_effective_weights(kind, beta):
    with pytest.raises(ValueError, match=f"beta is {beta}, wanted .* got '{kind}'"):
        class_weights(LABELS, 3, kind=kind, beta=beta)
