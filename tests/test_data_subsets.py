import numpy as np
import pytest

from tests.small_runs import make_config, write_pictures
from tljax.data.sources import open_source
from tljax.data.splits import stratified_split
from tljax.data.subsets import limit_train
from tljax.tasks.inputs import make_folds, make_split

STRATA = np.random.default_rng(0).permutation(np.repeat(["a", "b", "c"], [500, 233, 67]))
SPLIT = stratified_split(STRATA, 0, 0.25, 0.15)


def test_smaller_subsets_are_in_larger_ones_and_keep_the_proportions():
    whole = limit_train(SPLIT, STRATA, 7, len(SPLIT.train))
    np.testing.assert_array_equal(whole.train, SPLIT.train)
    shares = [np.mean(STRATA[SPLIT.train] == name) for name in "abc"]
    before: set[int] = set()
    for limit in (1, 2, 10, 11, 50, 200, 399):
        found = limit_train(SPLIT, STRATA, 7, limit)
        assert len(found.train) == limit
        assert before < {*found.train.tolist()} <= {*SPLIT.train.tolist()}
        before = {*found.train.tolist()}
        counts = [np.sum(STRATA[found.train] == name) for name in "abc"]
        assert all(abs(count - share * limit) <= 1.5 for count, share in zip(counts, shares, strict=True))
        for part in ("val", "test"):
            np.testing.assert_array_equal(getattr(found, part), getattr(SPLIT, part))


def test_which_are_kept_is_a_matter_of_the_seed():
    first, again, other = (limit_train(SPLIT, STRATA, seed, 40).train for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert len({*first.tolist()} & {*other.tolist()}) < 20


@pytest.mark.parametrize("limit", [0, -1, len(SPLIT.train) + 1])
def test_what_there_is_not_is_refused(limit):
    with pytest.raises(ValueError, match=f"train_limit is {limit}, wanted 1 to {len(SPLIT.train)}"):
        limit_train(SPLIT, STRATA, 0, limit)


def test_a_config_limits_the_training_part_alone(tmp_path):
    write_pictures(tmp_path / "pictures")
    source = open_source("folder", str(tmp_path / "pictures"))
    settings = make_config(tmp_path)["split"]
    whole, few = make_split(source, 0, **settings), make_split(source, 0, **settings, train_limit=6)
    assert np.bincount(source.labels[few.train]).tolist() == [3, 3]
    assert {*few.train.tolist()} < {*whole.train.tolist()}
    np.testing.assert_array_equal(few.test, whole.test)
    folds = make_folds(source, few.train, 2, 0, **settings, train_limit=6)
    assert sorted(np.concatenate([held_out for _, held_out in folds]).tolist()) == few.train.tolist()
