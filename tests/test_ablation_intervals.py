import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.stats

from tljax.ablation import intervals
from tljax.ablation.intervals import bca_interval, percentile_interval, summarise, two_sample_interval

GOLDEN = json.loads((Path(__file__).parent / "golden" / "statistics.json").read_text())
SKEWED = np.random.default_rng(5).exponential(size=12)


def test_few_values_have_the_t_interval_of_statsmodels_and_scipy():
    values = GOLDEN["differences"]
    found = summarise(values)
    assert found is not None
    assert found.method == "t"
    assert (found.n, found.mean) == (6, pytest.approx(np.mean(values), rel=1e-12))
    assert (found.low, found.high) == pytest.approx(GOLDEN["interval"], rel=1e-9)
    other = scipy.stats.ttest_1samp(values, 0).confidence_interval(0.9)
    narrow = summarise(values, confidence=0.9)
    assert narrow is not None
    assert (narrow.low, narrow.high) == pytest.approx((other.low, other.high), rel=1e-12)
    assert found.sd == pytest.approx(np.std(values, ddof=1), rel=1e-12)


# A resample with the mean of the values themselves counts half in the bias; scipy counts it by its last bit.
@pytest.mark.parametrize(
    ("method", "ours", "tolerance"), [("percentile", percentile_interval, 1e-9), ("BCa", bca_interval, 2e-4)]
)
@pytest.mark.parametrize("confidence", [0.8, 0.95])
def test_the_plain_bootstrap_is_that_of_scipy_on_the_same_resamples(method, ours, tolerance, confidence):
    theirs = scipy.stats.bootstrap(
        (SKEWED,), np.mean, method=method, confidence_level=confidence, n_resamples=intervals.NUM_RESAMPLES,
        rng=np.random.default_rng(0),
    ).confidence_interval  # fmt: skip
    found = ours(SKEWED, confidence, is_expanded=False)
    assert found == pytest.approx((theirs.low, theirs.high), rel=tolerance)
    low, high = ours(SKEWED, confidence)
    assert low < found[0] < found[1] < high


def test_eight_values_are_bootstrapped_and_seven_are_not():
    assert intervals.LEAST_FOR_BOOTSTRAP == 8
    found = summarise(SKEWED[:8].tolist())
    assert found is not None
    assert (found.low, found.high, found.method) == (*bca_interval(SKEWED[:8]), "BCa bootstrap")
    fewer = summarise(SKEWED[:7].tolist())
    assert fewer is not None
    assert fewer.method == "t"
    # Of skewed values the bootstrap reaches further up than down.
    assert found.high - found.mean > 1.2 * (found.mean - found.low)
    assert summarise(SKEWED.tolist()) == summarise(SKEWED.tolist())


def test_one_value_equal_values_and_none():
    one = summarise([0.5])
    assert one is not None
    assert (one.mean, one.n, one.method, one.has_interval) == (0.5, 1, "none", False)
    assert math.isnan(one.low)
    assert math.isnan(one.sd)
    for n in (2, 7, 8, 20):
        # The mean of ten times 0.1 is not 0.1 in floating point.
        equal = summarise([0.1] * n)
        assert equal is not None
        assert (equal.mean, equal.low, equal.high, equal.sd, equal.n) == (0.1, 0.1, 0.1, 0.0, n)
        assert not equal.excludes_zero
    assert summarise([]) is None
    for wrong in (math.nan, math.inf):
        with pytest.raises(ValueError, match="leave failed runs out"):
            summarise([0.5, wrong])


def test_an_interval_of_two_samples_resamples_each_alone():
    first, second = np.array([0.0, 1.0]), np.array([10.0, 20.0, 30.0])
    low, high = two_sample_interval(first, second, lambda a, b: b.mean(axis=1) - a.mean(axis=1))
    # Resamples of two values are 0, 0.5 or 1 with 1, 2, 1 chances of 4; those of three are 10 to 30.
    assert (low, high) == (pytest.approx(10.0, abs=1.5), pytest.approx(29.5, abs=1.5))


def test_coverage_is_what_is_said():
    """400 data sets: the standard error of a coverage of 95% is 1.1%."""
    generator = np.random.default_rng(3)
    data = generator.normal(0.9, 0.02, (400, 10))
    ends = np.array([bca_interval(values) for values in data])
    plain = np.array([bca_interval(values, is_expanded=False) for values in data])

    def coverage(found):
        return ((found[:, 0] <= 0.9) & (found[:, 1] >= 0.9)).mean()

    assert 0.917 <= coverage(ends) <= 0.983
    # What is known of the plain one shows that this can fail.
    assert coverage(plain) < 0.917


@pytest.mark.slow
def test_coverage_of_the_experiment_is_repeated():
    folder = Path(__file__).parent.parent / "experiments" / "statistics"
    command = [sys.executable, str(folder / "coverage.py"), "--num_sets=500", "--print"]
    found = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    written = (folder / "coverage.csv").read_text().splitlines()
    assert found[0] == written[0]
    for ours, theirs in zip(found[1:], written[1:], strict=True):
        *names, coverage, _ = ours.split(",")
        *same, wanted, _ = theirs.split(",")
        assert names == same
        # Four standard errors of 500 sets.
        assert abs(float(coverage) - float(wanted)) < 4 * math.sqrt(float(wanted) * (1 - float(wanted)) / 500)
