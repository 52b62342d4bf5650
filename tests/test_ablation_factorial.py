import json
import math
from pathlib import Path

import numpy as np
import pytest
import scipy.stats

from tljax.ablation.curves import band
from tljax.ablation.factorial import complete_blocks, interaction, main_effect

GOLDEN = json.loads((Path(__file__).parent / "golden" / "statistics.json").read_text())
LEVELS = GOLDEN["levels"]


def results_of(rows):
    found = {}
    for row in rows:
        cell = tuple(row[name] for name in LEVELS)
        found.setdefault(cell, {})[(row["seed"],)] = row["value"]
    return found


RESULTS = results_of(GOLDEN["rows"])


def values(**levels):
    """Of the runs at some levels, [seed other-cell]."""
    rows = [row for row in GOLDEN["rows"] if all(row[name] == level for name, level in levels.items())]
    return np.array([[row["value"] for row in rows if row["seed"] == seed] for seed in range(6)])


def test_main_effects_are_the_coefficients_of_a_linear_model():
    for name, reference, level in (("depth", "all", "half"), ("depth", "all", "head"), ("rate", "high", "low")):
        found = main_effect(LEVELS, RESULTS, name, reference)
        assert found is not None
        one = found.effects[level].difference
        assert one.mean == pytest.approx(GOLDEN["effects"][f"C({name})[T.{level}]"], rel=1e-9)
        # Seeds are what is repeated: cells are averaged within each.
        differences = (values(**{name: level}) - values(**{name: reference})).mean(axis=1)
        theirs = scipy.stats.ttest_1samp(differences, 0).confidence_interval()
        assert (one.low, one.high) == pytest.approx((theirs.low, theirs.high), rel=1e-9)
        num_cells = 12 // len(LEVELS[name])
        assert (found.num_complete, found.num_blocks, found.num_seeds) == (6 * num_cells, 6 * num_cells, 6)
        assert found.levels[level].mean == pytest.approx(values(**{name: level}).mean())
    assert set(found.levels) == {"high", "low"}


def test_interactions_are_the_coefficients_of_a_linear_model():
    found = interaction(LEVELS, RESULTS, "depth", "rate")
    assert found is not None
    for level in ("all", "half"):
        wanted = GOLDEN["interaction"][f"C(depth, Sum)[S.{level}]:C(rate, Sum)[S.high]"]
        assert found.contrasts[level, "high"].difference.mean == pytest.approx(wanted, rel=1e-9)
        assert found.contrasts[level, "low"].difference.mean == pytest.approx(-wanted, rel=1e-9)
    total = sum(one.difference.mean for one in found.contrasts.values())
    assert abs(total) < 1e-12
    # The interval of one contrast, from the values of each seed.
    both = values(depth="all", rate="high").mean(axis=1)
    added = values(depth="all").mean(axis=1) + values(rate="high").mean(axis=1) - values().mean(axis=1)
    theirs = scipy.stats.ttest_1samp(both - added, 0).confidence_interval()
    one = found.contrasts["all", "high"].difference
    assert (one.low, one.high) == pytest.approx((theirs.low, theirs.high), rel=1e-9)


def test_a_hole_in_the_grid_takes_its_block_out_and_no_more():
    results = {cell: dict(of_cell) for cell, of_cell in RESULTS.items()}
    # A hard block: one level of it failed. Counted in the other levels alone, it would pull them down.
    for depth in LEVELS["depth"]:
        results[depth, "high", "none"][(0,)] -= 0.5
    del results["head", "high", "none"][(0,)]
    found = main_effect(LEVELS, results, "depth", "all")
    assert found is not None
    assert (found.num_complete, found.num_blocks, found.num_seeds) == (23, 24, 6)
    # Three blocks are left of the first seed, four of the others.
    kept = np.ones((6, 4), bool)
    kept[0, 0] = False
    difference = values(depth="half") - values(depth="all")
    wanted = np.mean([row[use].mean() for row, use in zip(difference, kept, strict=True)])
    assert found.effects["half"].difference.mean == pytest.approx(wanted, rel=1e-9)
    both = interaction(LEVELS, results, "depth", "rate")
    assert both is not None
    assert (both.num_complete, both.num_blocks) == (11, 12)


def test_without_a_complete_block_there_is_no_effect():
    results = {cell: found for cell, found in RESULTS.items() if (cell[0] == "all") == (cell[1] == "high")}
    assert main_effect(LEVELS, results, "depth", "all") is None
    assert interaction(LEVELS, results, "depth", "rate") is None
    assert main_effect({"depth": ["all"]}, {("all",): {(0,): 1.0}}, "depth", "all") is None
    complete, num_blocks = complete_blocks(LEVELS, results, {"depth": LEVELS["depth"]})
    assert (complete, num_blocks) == ({}, 24)
    with pytest.raises(ValueError, match="'depth' has no level 'al'"):
        main_effect(LEVELS, RESULTS, "depth", "al")


def test_one_seed_has_effects_without_intervals():
    results = {cell: {(0,): found[(0,)]} for cell, found in RESULTS.items()}
    found = main_effect(LEVELS, results, "rate", "high")
    assert found is not None
    assert not found.effects["low"].difference.has_interval
    assert found.effects["low"].permutation.p == 1.0


def test_a_band_is_the_t_interval_at_each_step():
    curves = [{0: 0.1, 10: 0.4, 20: 0.6}, {0: 0.2, 10: 0.6, 20: math.nan}, {0: 0.3, 10: 0.5}]
    found = band(curves)
    assert found is not None
    # Two of three at step 20 have no value: the mean would leap to the one that has.
    assert found.steps == (0, 10)
    assert found.n == (3, 3)
    assert found.mean == pytest.approx((0.2, 0.5))
    theirs = scipy.stats.ttest_1samp([0.4, 0.6, 0.5], 0).confidence_interval()
    assert (found.low[1], found.high[1]) == pytest.approx((theirs.low, theirs.high))
    one = band([{0: 0.5}])
    assert one is not None
    assert math.isnan(one.low[0])
    assert band([]) is None
    assert band([{0: math.nan}]) is None
