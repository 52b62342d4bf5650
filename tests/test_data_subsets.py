import numpy as np
import pytest

from tests.small_runs import make_config, write_pictures
from tljax.data.sources import open_source
from tljax.data.splits import stratified_split
from tljax.data.subsets import hold_out, keep_only, limit_train
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


def test_what_is_held_out_is_tested_on_alone():
    is_held_out = STRATA == "b"
    found = hold_out(SPLIT, is_held_out)
    assert {*STRATA[found.test].tolist()} == {"b"}
    assert {*STRATA[found.train].tolist()} == {*STRATA[found.val].tolist()} == {"a", "c"}
    # Each part keeps what it had of its kind, so that a run that is tested on all kinds can be compared.
    for part in ("train", "val", "test"):
        had, left = getattr(SPLIT, part), getattr(found, part)
        assert {*left.tolist()} == {index for index in had.tolist() if is_held_out[index] == (part == "test")}


def test_one_kind_alone_stays_in_the_parts_that_it_has():
    is_kept = STRATA == "b"
    found = keep_only(SPLIT, is_kept)
    for part in ("train", "val", "test"):
        had, left = getattr(SPLIT, part), getattr(found, part)
        assert left.tolist() == [index for index in had.tolist() if is_kept[index]]
        assert 0 < len(left) < len(had)


def sites(tmp_path):
    """Return pictures of three sites, "1" to "3", and half of them taken by night."""
    write_pictures(tmp_path / "pictures")
    files = [path.relative_to(tmp_path) for path in sorted(tmp_path.glob("pictures/*/*.png"))]
    rows = [f"{file},{file.parent.name},{at % 3 + 1},{at % 2}" for at, file in enumerate(files)]
    (tmp_path / "table.csv").write_text("\n".join(["file,what,site,is_night", *rows]) + "\n")
    return open_source("table", tmp_path, path="table.csv", file_column="file", kind="single", label_column="what")


@pytest.mark.parametrize("kind", ["stratified", "grouped"])
def test_a_config_holds_out_values_of_columns(tmp_path, kind):
    source = sites(tmp_path)
    settings = {**make_config(tmp_path)["split"], "kind": kind, "groups": "site" if kind == "grouped" else None}
    settings |= {"strata": ("label", "site"), "test_fraction": 0.34, "val_fraction": 0.33}
    split = make_split(source, 0, **settings, held_out={"is_night": ("1",)})
    whole = make_split(source, 0, **settings)
    is_night = source.columns["is_night"] == "1"
    assert len(split.test) > 0
    assert is_night[split.test].all()
    assert not is_night[np.concatenate([split.train, split.val])].any()
    assert {*split.test.tolist()} <= {*whole.test.tolist()}
    if kind == "stratified":
        either = make_split(source, 0, **settings, held_out={"is_night": ("1",), "site": ("2", "3")}, train_limit=5)
        by_day = either.test[~is_night[either.test]]
        assert {*source.columns["site"][by_day].tolist()} == {"2", "3"}
        assert len(either.train) == 5
        assert {*source.columns["site"][either.train].tolist()} == {"1"}


@pytest.mark.parametrize("kind", ["stratified", "grouped"])
def test_a_config_takes_examples_with_values_of_columns_alone(tmp_path, kind):
    source = sites(tmp_path)
    settings = {**make_config(tmp_path)["split"], "kind": kind, "groups": "site" if kind == "grouped" else None}
    settings |= {"strata": ("label", "site"), "test_fraction": 0.34, "val_fraction": 0.33}
    whole = make_split(source, 0, **settings)
    # Of whole sites, those to train and test on: without either it would be an error.
    kept = ("1", "2") if kind == "stratified" else (*np.unique(source.columns["site"][[*whole.train, *whole.test]]),)
    wanted = (source.columns["is_night"] == "1") & np.isin(source.columns["site"], kept)
    split = make_split(source, 0, **settings, only={"is_night": ("1",), "site": kept})
    for part in ("train", "val", "test"):
        had = getattr(whole, part)
        assert getattr(split, part).tolist() == had[wanted[had]].tolist()
    assert {*source.columns["site"][np.concatenate([split.train, split.val, split.test])].tolist()} == {*kept}
    if kind == "stratified":
        # Trained on one site and tested on another, by night; a limit is of those that are left.
        both = make_split(
            source, 0, **settings, only={"is_night": ("1",), "site": ("1", "2")}, held_out={"site": ("2",)},
            train_limit=3,
        )  # fmt: skip
        assert {*source.columns["site"][both.train].tolist()} == {"1"}
        assert {*source.columns["site"][both.test].tolist()} == {"2"}
        assert len(both.train) == 3
        assert {*both.train.tolist()} <= {*split.train.tolist()}
        folds = make_folds(source, split.train, 2, 0, **settings, only={"site": ("1", "2")})
        assert sorted(np.concatenate([dealt for _, dealt in folds]).tolist()) == split.train.tolist()


@pytest.mark.parametrize("key", ["held_out", "only"])
@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"size": ("1",)}, r"has no column 'size' \(did you mean 'site'\?\)"),
        ({"site": ("1", "4")}, "no example has the 'site' '4'; known: 1, 2, 3"),
        ({"site": (1,)}, "no example has the 'site' 1"),
    ],
)
def test_what_there_is_not_to_choose_by_is_named(tmp_path, key, values, message):
    with pytest.raises(ValueError, match=message) as caught:
        make_split(sites(tmp_path), 0, **make_config(tmp_path)["split"], **{key: values})
    assert "column" in str(caught.value) or f"config.split.{key}:" in str(caught.value)


@pytest.mark.parametrize(
    ("held_out", "changes", "message"),
    [
        (
            {"site": ("2",)},
            {"only": {"site": ("2",)}},
            r"held_out=\{'site': \('2',\)\} and only=\{'site': \('2',\)\} leaves no images to train on",
        ),
        ({"is_night": ("0", "1")}, {}, r"held_out=\{'is_night': \('0', '1'\)\} leaves no images to train on, of 80"),
        # Not that there are too few for the limit.
        ({"site": ("1", "2", "3")}, {"train_limit": 5}, "leaves no images to train on"),
        ({"site": ("3",)}, {"test_fraction": 0.0}, "leaves no images to test on, of 80; .* raise test_fraction"),
    ],
)
def test_holding_out_everything_or_nothing_says_what_was_held_out(tmp_path, held_out, changes, message):
    settings = {**make_config(tmp_path)["split"], **changes, "held_out": held_out}
    with pytest.raises(ValueError, match=message):
        make_split(sites(tmp_path), 0, **settings)
