"""Which examples train, validate and test: by strata, or by whole groups."""

import io
import os
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int, Shaped

from tljax.data.sources import Source
from tljax.rundir import write_bytes

Fold = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True, kw_only=True, eq=False)
class Split:
    """Three disjoint sets of positions in a source, each sorted.

    Raises:
        ValueError: a position is in twice.
    """

    train: Int[np.ndarray, " train"]
    val: Int[np.ndarray, " val"]
    test: Int[np.ndarray, " test"]

    def __post_init__(self) -> None:
        for part in ("train", "val", "test"):
            object.__setattr__(self, part, np.sort(np.asarray(getattr(self, part), np.int64)))
        positions, counts = np.unique(np.concatenate([self.train, self.val, self.test]), return_counts=True)
        if (counts > 1).any():
            raise ValueError(
                f"{(counts > 1).sum()} examples are twice in the split, the first is {positions[counts > 1][0]}"
            )


def hashed_seed(seed: int, use: str) -> int:
    """Derive the seed of one use of randomness from the seed of the run.

    Neighbouring run seeds, and different uses of one run seed, give unrelated streams.
    """
    return int(np.random.SeedSequence([seed, *use.encode()]).generate_state(1)[0])


def combine_strata(*columns: Shaped[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
    """Number the combinations of values that occur in the columns, such as (label, cell type)."""
    codes = np.stack([np.unique(column, return_inverse=True)[1] for column in columns])
    return np.unique(codes, axis=1, return_inverse=True)[1].reshape(-1)


def stratified_split(strata: Shaped[np.ndarray, " n"], seed: int, test_fraction: float, val_fraction: float) -> Split:
    """Split at random with the same proportions in every stratum, to within one example.

    Args:
        strata: per example, anything that can be sorted; see `combine_strata` for several columns.
        seed: the run's seed.
        test_fraction: share of all examples; may be 0.
        val_fraction: the same; train takes the rest.

    Raises:
        ValueError: the fractions are negative or leave nothing to train on.
    """
    check_fractions(test_fraction, val_fraction)
    members = _shuffled_members(strata, seed, "split")
    sizes = np.array([len(member) for member in members])
    tests = _apportion(sizes, test_fraction, sizes)
    vals = _apportion(sizes, val_fraction, sizes - tests)
    parts = [np.split(member, [test, test + val]) for member, test, val in zip(members, tests, vals, strict=True)]
    test, val, train = (np.concatenate(part) for part in zip(*parts, strict=True))
    return Split(train=train, val=val, test=test)


def check_fractions(test_fraction: float, val_fraction: float) -> None:
    """Refuse shares of the examples that no split can have.

    Raises:
        ValueError: they are negative or leave nothing to train on.
    """
    if min(test_fraction, val_fraction) < 0 or test_fraction + val_fraction >= 1:
        raise ValueError(
            f"test_fraction {test_fraction} and val_fraction {val_fraction}: wanted both >= 0 and their sum < 1"
        )


def grouped_split(
    groups: Shaped[np.ndarray, " n"],
    strata: Shaped[np.ndarray, " n"],
    seed: int,
    test_fraction: float,
    val_fraction: float,
) -> Split:
    """Split so that no group is in two parts.

    Args:
        groups: per example, the id of what must stay whole, such as the module a cell was cut from.
        strata: per example; one value per group, such as its cell type. Proportions of groups are kept.
        seed: the run's seed.
        test_fraction: share of all groups; may be 0.
        val_fraction: the same; train takes the rest.

    Raises:
        ValueError: a group has two strata, or the fractions leave nothing to train on.
    """
    membership, group_strata = _group_strata(groups, strata)
    split = stratified_split(group_strata, seed, test_fraction, val_fraction)
    return Split(
        train=np.flatnonzero(np.isin(membership, split.train)),
        val=np.flatnonzero(np.isin(membership, split.val)),
        test=np.flatnonzero(np.isin(membership, split.test)),
    )


def k_folds(
    indices: Int[np.ndarray, " n"],
    strata: Shaped[np.ndarray, " n"],
    k: int,
    seed: int,
    *,
    groups: Shaped[np.ndarray, " n"] | None = None,
) -> list[Fold]:
    """Deal examples, or whole groups, into k folds for cross-validation.

    Args:
        indices: positions in the source, such as `split.train`.
        strata: aligned with `indices`; the counts of a stratum in two folds differ by at most one example
            (or one group). All zeros asks for no stratification.
        k: number of folds.
        seed: the run's seed.
        groups: aligned with `indices`; given, every group is held out whole.

    Returns:
        k pairs (train, held out) of sorted positions in the source; the held-out parts cover `indices`.

    Raises:
        ValueError: k is below 2 or above the number of examples (or groups), or a group has two strata.
    """
    membership, unit_strata = (np.arange(len(indices)), strata) if groups is None else _group_strata(groups, strata)
    if not 2 <= k <= len(unit_strata):
        raise ValueError(f"k is {k}, wanted 2 to {len(unit_strata)}, the number of things to deal into folds")
    dealt = np.concatenate(_shuffled_members(unit_strata, seed, "folds"))
    held_out = [np.isin(membership, dealt[fold::k]) for fold in range(k)]
    return [(np.sort(indices[~held]), np.sort(indices[held])) for held in held_out]


def save_split(path: str | os.PathLike, split: Split, source: Source) -> None:
    """Write a split with the identity of the source that it indexes."""
    buffer = io.BytesIO()
    np.savez(
        buffer,
        train=split.train,
        val=split.val,
        test=split.test,
        n=len(source),
        fingerprint=source.fingerprint,
    )
    write_bytes(path, buffer.getvalue())


def keep_split(path: str | os.PathLike, split: Split, source: Source) -> None:
    """Put a split where a run looks for its own.

    Raises:
        ValueError: there is another one.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        save_split(path, split, source)
    held = load_split(path, source)
    if not all(np.array_equal(getattr(held, part), getattr(split, part)) for part in ("train", "val", "test")):
        raise ValueError(f"{path} is another split; use another run directory")


def load_split(path: str | os.PathLike, source: Source) -> Split:
    """Read a split that `save_split` wrote.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, or was made for other images or another order of them.
    """
    try:
        # Not from the path: numpy leaves a damaged file open.
        with np.load(io.BytesIO(Path(path).read_bytes())) as file:
            arrays = {key: file[key] for key in ("train", "val", "test", "n", "fingerprint")}
    except (KeyError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is no saved split ({error}); remove it and make the split again") from error
    got, wanted = (int(arrays["n"]), str(arrays["fingerprint"])), (len(source), source.fingerprint)
    if got != wanted:
        raise ValueError(
            f"the split in {path} is of {got[0]} examples with fingerprint {got[1]}, but source {source.name!r} "
            f"has {wanted[0]} with {wanted[1]}; open the source it was made for, or make the split again"
        )
    return Split(train=arrays["train"], val=arrays["val"], test=arrays["test"])


def load_fixed_splits(path: str | os.PathLike, n: int) -> list[Split]:
    """Read published train and test splits from the arrays train_0, test_0, train_1, ... of a .npz file.

    Args:
        path: the file.
        n: number of examples that every split must cover.

    Raises:
        ValueError: the keys are others, or a split does not cover the examples.
    """
    with np.load(Path(path)) as file:
        arrays = {key: file[key].astype(np.int64) for key in file}
    count = len(arrays) // 2
    wanted = {f"{part}_{number}" for part in ("train", "test") for number in range(count)}
    if set(arrays) != wanted or not wanted:
        raise ValueError(f"{path} holds {sorted(arrays)}, wanted train_0, test_0, train_1, test_1, ...")
    splits = []
    for number in range(count):
        train, test = arrays[f"train_{number}"], arrays[f"test_{number}"]
        if not np.array_equal(np.sort(np.concatenate([train, test])), np.arange(n)):
            raise ValueError(f"split {number} of {path} does not cover the positions 0 to {n - 1} once each")
        splits.append(Split(train=train, val=np.empty(0, np.int64), test=test))
    return splits


def _shuffled_members(strata: np.ndarray, seed: int, use: str) -> list[np.ndarray]:
    """Return the positions of each stratum in random order."""
    generator = np.random.default_rng(hashed_seed(seed, use))
    return [generator.permutation(np.flatnonzero(strata == value)) for value in np.unique(strata)]


def _apportion(sizes: np.ndarray, fraction: float, room: np.ndarray) -> np.ndarray:
    """Take a fraction of every stratum, and of the whole, by largest remainder and never more than `room`."""
    exact = sizes * fraction
    counts = np.floor(exact).astype(np.int64)
    missing = round(float(exact.sum())) - counts.sum()
    by_remainder = np.argsort(counts - exact, kind="stable")
    takers = by_remainder[(counts < room)[by_remainder]][:missing]
    counts[takers] += 1
    return counts


def _group_strata(groups: np.ndarray, strata: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the group number of each example and the stratum of each group."""
    names, first, membership = np.unique(groups, return_index=True, return_inverse=True)
    group_strata = strata[first]
    mixed = np.unique(membership[group_strata[membership] != strata])
    if len(mixed):
        raise ValueError(f"{len(mixed)} groups have more than one stratum, the first is {names[mixed[0]]!r}")
    return membership, group_strata
