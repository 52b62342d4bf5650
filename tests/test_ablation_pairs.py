import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats

from tljax.ablation import pairs
from tljax.ablation.comparison import as_family, compare
from tljax.ablation.pairs import (
    cliffs_delta,
    cohens_dz,
    holm,
    minimum_detectable_difference,
    probability_of_improvement,
    sign_flip_test,
    wilcoxon_p,
)

GOLDEN = json.loads((Path(__file__).parent / "golden" / "statistics.json").read_text())
DIFFERENCES = np.array(GOLDEN["differences"])


@pytest.mark.parametrize("n", [1, 2, 6, 13, 16])
def test_sign_flips_up_to_sixteen_are_exact_as_in_scipy(n):
    values = np.random.default_rng(n).normal(0.4, 1, n)
    found = sign_flip_test(values)
    if n > 1:
        theirs = scipy.stats.permutation_test((values,), np.mean, permutation_type="samples", n_resamples=2**n)
        assert found.p == pytest.approx(theirs.pvalue, rel=1e-12)
    assert (found.n, found.is_exact, found.error, found.least) == (n, True, 0.0, 2 / 2**n)
    assert found.p * 2**n == round(found.p * 2**n)


def test_flips_are_counted_by_hand():
    # Sums of +-1 +-2 +-3: 6 and -6 alone are as far from 0 as 6; 0 is as near as can be.
    assert sign_flip_test(np.array([1.0, 2.0, 3.0])).p == 2 / 8
    assert sign_flip_test(np.array([1.0, 2.0, -3.0])).p == 1.0
    assert sign_flip_test(np.zeros(4)).p == 1.0
    # Sums in another order differ in the last bit; all flips of one sign are as far as the sum found.
    tenths = np.full(10, 0.1)
    assert sign_flip_test(tenths).p == 2 / 2**10
    with pytest.raises(ValueError, match="no differences"):
        sign_flip_test(np.array([]))


def test_more_than_sixteen_pairs_draw_flips_and_say_how_sure_that_is(monkeypatch):
    values = np.random.default_rng(1).normal(0.2, 1, 17)
    found = sign_flip_test(values)
    assert not found.is_exact
    monkeypatch.setattr(pairs, "MOST_FOR_EXACT", 17)
    exact = sign_flip_test(values)
    assert exact.is_exact
    assert 0.01 < exact.p < 0.3
    assert abs(found.p - exact.p) < 4 * found.error
    assert found.error == pytest.approx(math.sqrt(exact.p * (1 - exact.p) / 65535), rel=0.1)
    monkeypatch.undo()
    # The flip found counts as one, so that p is never 0.
    assert sign_flip_test(np.full(40, 1.0)).p == 1 / 65536 == sign_flip_test(np.full(40, 1.0)).least


def test_wilcoxon_is_that_of_scipy_and_undefined_where_all_are_level():
    assert wilcoxon_p(DIFFERENCES) == scipy.stats.wilcoxon(DIFFERENCES)[1]
    # Six pairs by hand: the ranks of the one negative difference are 1, and of 64 sums 4 are as small or as large.
    assert wilcoxon_p(DIFFERENCES) == pytest.approx(4 / 64)
    assert wilcoxon_p(np.zeros(5)) is None
    assert wilcoxon_p(np.array([0.0, 0.1, 0.1, 0.2, -0.3])) is not None


def test_holm_is_that_of_statsmodels():
    assert holm(GOLDEN["p_values"]) == pytest.approx(GOLDEN["holm"], rel=1e-12)
    assert holm([0.04]) == [0.04]
    assert holm([]) == []
    assert holm([0.9, 0.8]) == [1.0, 1.0]


def test_effect_sizes_by_hand():
    test: Any = scipy.stats.ttest_1samp(DIFFERENCES, 0)
    assert cohens_dz(DIFFERENCES) == pytest.approx(test.statistic / math.sqrt(6))
    assert cohens_dz(np.full(5, 0.1)) is None
    assert cohens_dz(np.array([0.3])) is None
    first, second = np.array([1.0, 2.0, 2.0]), np.array([0.0, 2.0, 5.0, 5.0])
    above = sum(int(a > b) - int(a < b) for a, b in itertools.product(first, second))
    assert cliffs_delta(first, second) == pytest.approx(above / 12)
    # Mann and Whitney's U counts level pairs half.
    u = scipy.stats.mannwhitneyu(first, second).statistic
    assert probability_of_improvement(first, second) == pytest.approx(u / 12)


@pytest.mark.parametrize("n", [2, 3, 5, 10, 30])
def test_the_detectable_difference_is_that_of_statsmodels(n):
    # Of statsmodels' solver, and of scipy's noncentral t, 5 digits hold.
    wanted = GOLDEN["detectable"][str(n)]
    assert minimum_detectable_difference(0.02, n) == pytest.approx(0.02 * wanted, rel=1e-5)


def test_the_detectable_difference_is_detected_that_often():
    difference = minimum_detectable_difference(1.0, 6)
    assert difference is not None
    data = np.random.default_rng(0).normal(difference, 1, (4000, 6))
    share = (np.asarray(scipy.stats.ttest_1samp(data, 0, axis=1)[1]) < 0.05).mean()
    assert abs(share - 0.8) < 4 * math.sqrt(0.16 / 4000)
    assert minimum_detectable_difference(1.0, 1) is None
    assert minimum_detectable_difference(0.0, 5) == 0.0
    strict = minimum_detectable_difference(1.0, 6, level=0.01)
    assert strict is not None
    assert strict > 1.3 * difference


def test_a_comparison_is_of_the_seeds_that_both_have():
    ours = {(0,): 0.9, (1,): 0.8, (2,): 0.7, (5,): 0.1}
    theirs = {(2,): 0.6, (1,): 0.75, (0,): 0.83, (9,): 1.0}
    found = compare(ours, theirs)
    assert found is not None
    assert found.difference.mean == pytest.approx((0.07 + 0.05 + 0.1) / 3)
    assert (found.difference.n, found.num_left_out) == (3, 2)
    assert found.permutation.p == 2 / 8
    # Of the nine pairs 0.9, 0.8, 0.7 against 0.83, 0.75, 0.6 the first is above in 3, 2 and 1.
    assert found.improvement.mean == pytest.approx(6 / 9)
    assert found.improvement.low < 6 / 9 < found.improvement.high
    assert compare(ours, {(7,): 1.0}) is None
    single = compare(ours, {(5,): 0.2})
    assert single is not None
    assert (single.difference.has_interval, single.detectable, single.d_z) == (False, None, None)
    assert single.permutation.p == 1.0
    assert not single.is_shown


def test_nothing_is_shown_without_both_the_interval_and_the_adjusted_test():
    seeds = [(seed,) for seed in range(7)]
    base = {seed: 0.4 + 0.07 * at for at, seed in enumerate(seeds)}
    above = {seed: base[seed] + 0.05 + 0.001 * at for at, seed in enumerate(seeds)}
    found = compare(above, base)
    assert found is not None
    assert found.permutation.p == 2 / 128
    assert found.is_shown
    family = as_family([found, None, found, found, found])
    assert family[1] is None
    assert [one.adjusted_p for one in family if one] == [8 / 128] * 4
    assert not any(one.is_shown for one in family if one)
    # Equal differences, but for the last bit, are those of few test images: no certainty.
    level = compare({seed: value + 0.05 for seed, value in base.items()}, base)
    assert level is not None
    assert len({value + 0.05 - value for value in base.values()}) > 1
    assert (level.difference.sd, level.d_z, level.is_shown) == (0.0, None, False)
