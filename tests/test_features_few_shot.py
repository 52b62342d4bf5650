"""Draws of a few examples: nested, of each class, and repeatable."""

import numpy as np
import pytest

from tljax.features.few_shot import draw_shots

LABELS = np.random.default_rng(0).integers(3, size=90)
CANDIDATES = np.arange(5, 85)


def test_each_class_is_drawn_as_often_and_fewer_are_among_more():
    drawn = draw_shots(LABELS, CANDIDATES, 3, (5, 1, 2), seed=7)
    assert list(drawn) == [5, 1, 2]
    for count, rows in drawn.items():
        assert np.bincount(LABELS[rows]).tolist() == [count] * 3
        assert set(rows) <= set(CANDIDATES)
        assert (np.diff(rows) > 0).all()
    assert set(drawn[1]) < set(drawn[2]) < set(drawn[5])


def test_the_seed_alone_determines_a_draw():
    first, again, other = (draw_shots(LABELS, CANDIDATES, 3, (4,), seed)[4] for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert first.tolist() != other.tolist()
    with_more = draw_shots(LABELS, CANDIDATES, 3, (4, 9), seed=1)
    np.testing.assert_array_equal(with_more[4], first)


def test_classes_that_are_too_small_are_named():
    with pytest.raises(ValueError, match=r"3 examples of each class wanted, but class 1 has 2, class 2 has 0"):
        draw_shots(np.array([0, 0, 0, 0, 1, 1, 2]), np.arange(6), 3, (1, 3), seed=0)
    with pytest.raises(ValueError, match=r"shots are \(0, 1\)"):
        draw_shots(LABELS, CANDIDATES, 3, (0, 1), seed=0)
