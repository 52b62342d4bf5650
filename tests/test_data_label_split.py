"""Splits of multi-label data: disjoint, covering, every label in proportion, the same bits for the same seed."""

import numpy as np
import pytest

from tljax.data.label_split import PARTS, label_split

RNG = np.random.default_rng(0)
# From every second example to one in forty, in 200 combinations or so, and some examples without any.
LABELS = RNG.uniform(size=(400, 9)) < np.array([0.5, 0.4, 0.3, 0.2, 0.15, 0.1, 0.08, 0.05, 0.025])
FRACTIONS = [(0.25, 0.1), (0.2, 0.2), (0.3, 0.0), (0.0, 0.4)]


@pytest.mark.parametrize(("test_fraction", "val_fraction"), FRACTIONS)
def test_every_label_is_in_proportion(test_fraction, val_fraction):
    split = label_split(LABELS, 3, test_fraction, val_fraction)
    positions = [getattr(split, part) for part in PARTS]
    np.testing.assert_array_equal(np.sort(np.concatenate(positions)), np.arange(len(LABELS)))
    for indices, share in zip(positions, (1 - test_fraction - val_fraction, val_fraction, test_fraction), strict=True):
        # Random splits of these labels are off by 8 to 14 examples.
        off = np.abs(LABELS[indices].sum(axis=0) - share * LABELS.sum(axis=0))
        assert off.max() <= 1
        assert abs(len(indices) - share * len(LABELS)) <= 1
        assert share > 0 or not len(indices)


def test_one_label_an_example_is_the_usual_stratification():
    labels = np.eye(4, dtype=bool)[np.repeat([0, 1, 2, 3], [40, 20, 10, 10])]
    split = label_split(labels, 0, 0.2, 0.1)
    assert labels[split.train].sum(axis=0).tolist() == [28, 14, 7, 7]
    assert labels[split.val].sum(axis=0).tolist() == [4, 2, 1, 1]


def test_a_split_is_a_function_of_its_seed():
    first, again, other = (label_split(LABELS, seed, 0.2, 0.2) for seed in (1, 1, 2))
    for part in PARTS:
        np.testing.assert_array_equal(getattr(first, part), getattr(again, part))
        assert not np.array_equal(getattr(first, part), getattr(other, part))


def test_fractions_that_leave_nothing_are_refused():
    with pytest.raises(ValueError, match="wanted both >= 0 and their sum < 1"):
        label_split(LABELS, 0, 0.6, 0.4)
