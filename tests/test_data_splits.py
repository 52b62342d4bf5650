"""Splits: disjoint, covering, proportional, whole groups, the same bits for the same seed."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from tljax.data.splits import (
    Split,
    combine_strata,
    grouped_split,
    hashed_seed,
    k_folds,
    load_fixed_splits,
    load_split,
    save_split,
    stratified_split,
)

PARTS = ("train", "val", "test")
STRATA = np.random.default_rng(0).permutation(np.repeat(["a", "b", "c", "d", "e"], [500, 233, 61, 7, 1]))
# 44 groups of different sizes, the first 18 of one stratum.
GROUPS = np.repeat(np.arange(44), 40 + np.arange(44))
GROUP_STRATA = np.where(GROUPS < 18, "mono", "poly")
FRACTIONS = [(0.25, 0.1), (0.25, 0.0), (0.0, 0.2), (0.333, 0.333), (0.6, 0.39)]


@dataclass(frozen=True)
class EmptySource:
    """A source of nothing but its identity."""

    n: int
    fingerprint: str
    name: str = "s"
    licence: str = ""
    class_names: tuple[str, ...] = ()
    labels: Any = None
    targets: Any = None
    is_multi_label: bool = False
    weights: Any = None
    columns: Any = None

    def __len__(self):
        return self.n

    def __getitem__(self, index):
        raise IndexError(index)


def bits(split):
    return tuple(getattr(split, part).tobytes() for part in PARTS)


def assert_covers(split, n):
    parts = [getattr(split, part) for part in PARTS]
    for part in parts:
        assert part.dtype == np.int64
        np.testing.assert_array_equal(part, np.sort(part))
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(n))


@pytest.mark.parametrize(("test_fraction", "val_fraction"), FRACTIONS)
def test_stratified_split_keeps_proportions_to_one_example(test_fraction, val_fraction):
    split = stratified_split(STRATA, 0, test_fraction, val_fraction)
    assert_covers(split, len(STRATA))
    assert len(split.test) == round(len(STRATA) * test_fraction)
    assert len(split.val) == round(len(STRATA) * val_fraction)
    for stratum in np.unique(STRATA):
        size = np.count_nonzero(np.equal(STRATA, stratum))
        assert abs(np.sum(STRATA[split.test] == stratum) - size * test_fraction) <= 1
        assert abs(np.sum(STRATA[split.val] == stratum) - size * val_fraction) <= 1


def test_strata_too_small_to_divide_go_to_all_parts():
    split = stratified_split(np.arange(10), 0, 0.5, 0.4)
    assert [len(getattr(split, part)) for part in PARTS] == [1, 4, 5]


@pytest.mark.parametrize(("test_fraction", "val_fraction"), FRACTIONS)
def test_grouped_split_keeps_groups_whole_and_proportions_of_groups(test_fraction, val_fraction):
    split = grouped_split(GROUPS, GROUP_STRATA, 0, test_fraction, val_fraction)
    assert_covers(split, len(GROUPS))
    groups = {part: np.unique(GROUPS[getattr(split, part)]) for part in PARTS}
    assert sum(map(len, groups.values())) == 44
    for part, fraction in (("test", test_fraction), ("val", val_fraction)):
        mono = np.sum(groups[part] < 18)
        assert abs(mono - 18 * fraction) <= 1
        assert abs(len(groups[part]) - mono - 26 * fraction) <= 1


def test_same_seed_same_bits_and_other_seeds_differ():
    for split in (
        lambda seed: stratified_split(STRATA, seed, 0.25, 0.1),
        lambda seed: grouped_split(GROUPS, GROUP_STRATA, seed, 0.25, 0.1),
    ):
        assert bits(split(3)) == bits(split(3))
        assert len({bits(split(seed)) for seed in range(10)}) == 10


def test_fractions_that_leave_nothing_are_refused():
    with pytest.raises(ValueError, match=r"test_fraction 0\.5 and val_fraction 0\.5: wanted both >= 0"):
        stratified_split(STRATA, 0, 0.5, 0.5)
    with pytest.raises(ValueError, match=r"val_fraction -0\.1"):
        stratified_split(STRATA, 0, 0.5, -0.1)


def test_group_of_two_strata_is_refused():
    with pytest.raises(ValueError, match=r"1 groups have more than one stratum, the first is .*7"):
        grouped_split(np.array([5, 5, 7, 7]), np.array([0, 0, 0, 1]), 0, 0.25, 0.0)


def test_split_with_an_example_twice_is_refused():
    with pytest.raises(ValueError, match="2 examples are twice in the split, the first is 1"):
        Split(train=np.array([2, 1]), val=np.array([1, 3]), test=np.array([4, 2]))


def test_combined_strata_number_the_combinations_that_occur():
    labels, types = np.array([1, 0, 1, 1, 0]), np.array(["p", "m", "m", "p", "m"])
    np.testing.assert_array_equal(combine_strata(labels, types), [2, 0, 1, 2, 0])
    np.testing.assert_array_equal(combine_strata(types), [1, 0, 0, 1, 0])


def test_folds_cover_and_balance_the_strata():
    indices = np.random.default_rng(1).permutation(2000)[: len(STRATA)]
    folds = k_folds(indices, STRATA, 5, 0)
    np.testing.assert_array_equal(np.sort(np.concatenate([held for _, held in folds])), np.sort(indices))
    stratum_of = dict(zip(indices, STRATA, strict=True))
    counts = np.array([[sum(stratum_of[i] == name for i in held) for name in "abcde"] for _, held in folds])
    assert np.ptp(counts, axis=0).max() <= 1
    assert np.ptp(counts.sum(axis=1)) <= 1
    for train, held in folds:
        np.testing.assert_array_equal(np.sort(np.concatenate([train, held])), np.sort(indices))


def test_grouped_folds_hold_groups_out_whole():
    indices = np.arange(len(GROUPS)) + 100
    folds = k_folds(indices, GROUP_STRATA, 4, 0, groups=GROUPS)
    np.testing.assert_array_equal(np.sort(np.concatenate([held for _, held in folds])), indices)
    for train, held in folds:
        assert not set(GROUPS[train - 100]) & set(GROUPS[held - 100])
        held_groups = np.unique(GROUPS[held - 100])
        assert len(held_groups) == 11
        assert 4 <= np.sum(held_groups < 18) <= 5


def test_folds_follow_the_seed():
    def held(seed):
        return [part.tobytes() for _, part in k_folds(np.arange(len(STRATA)), STRATA, 5, seed)]

    assert held(3) == held(3)
    assert not set(held(3)) & set(held(4))


@pytest.mark.parametrize(("k", "groups"), [(1, None), (5, None), (3, np.array([0, 0, 1, 1]))])
def test_impossible_number_of_folds_is_refused(k, groups):
    with pytest.raises(ValueError, match=f"k is {k}, wanted 2 to"):
        k_folds(np.arange(4), np.zeros(4), k, 0, groups=groups)


def test_hashed_seeds_differ_by_seed_and_by_use():
    assert len({hashed_seed(seed, use) for seed in range(50) for use in ("split", "folds", "shuffle")}) == 150


def test_saved_split_comes_back_and_only_for_its_source(tmp_path):
    split = stratified_split(STRATA, 0, 0.25, 0.1)
    save_split(tmp_path / "split.npz", split, EmptySource(802, "f"))
    assert bits(load_split(tmp_path / "split.npz", EmptySource(802, "f"))) == bits(split)
    for other in (EmptySource(5, "f"), EmptySource(802, "g")):
        with pytest.raises(ValueError, match="fingerprint f, but source 's' has"):
            load_split(tmp_path / "split.npz", other)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut", b"text"])
def test_damaged_split_file_is_named(tmp_path, content):
    (tmp_path / "split.npz").write_bytes(content)
    with pytest.raises(ValueError, match=r"split\.npz is no saved split"):
        load_split(tmp_path / "split.npz", EmptySource(1, "f"))


def test_fixed_splits_are_read_and_checked(tmp_path):
    path = tmp_path / "fixed.npz"
    arrays = {"train_0": [2, 0], "test_0": [1, 3], "train_1": [3, 1], "test_1": [0, 2]}
    np.savez(path, allow_pickle=False, **{key: np.array(value, np.int16) for key, value in arrays.items()})
    first, second = load_fixed_splits(path, 4)
    assert [part.tolist() for part in (first.train, first.val, first.test)] == [[0, 2], [], [1, 3]]
    assert [part.tolist() for part in (second.train, second.val, second.test)] == [[1, 3], [], [0, 2]]
    with pytest.raises(ValueError, match="split 0 of .* does not cover the positions 0 to 4"):
        load_fixed_splits(path, 5)
    np.savez(path, train_0=np.array([0]), val_0=np.array([1]))
    with pytest.raises(ValueError, match=r"holds \['train_0', 'val_0'\], wanted train_0, test_0"):
        load_fixed_splits(path, 2)
