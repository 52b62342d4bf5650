import jax
import pytest

from tljax import paths

PATHS = ["block_00/attn/query/kernel", "block_00/norm1/scale", "block_01/norm1/scale", "head/linear/kernel"]


def test_first_matching_rule_wins_on_the_whole_path():
    got = paths.match([(r".*/scale", "norm"), (r"block_.*", "body"), (r"head/.*", "head")], PATHS)
    assert got == dict(zip(PATHS, ["body", "norm", "norm", "head"], strict=True))


def test_every_problem_of_a_rule_set_is_in_one_error():
    rules = [(r"block_.*", 1), (r".*/scale", 2), (r"block", 3), (r"haed/.*", 4)]
    with pytest.raises(ValueError, match="rules and paths") as caught:
        paths.match(rules, PATHS)
    message = str(caught.value)
    assert "no rule matches 'head/linear/kernel'" in message
    assert r"rule '.*/scale' never wins: earlier rules took all its 2 paths" in message
    assert "rule 'block' matches nothing" in message  # a search instead of a full match would have hit
    assert "rule 'haed/.*' matches nothing" in message


def test_partition_and_merge_are_inverse():
    values = {path: index for index, path in enumerate(PATHS)}
    first, second = paths.partition(values, lambda path: path.startswith("head"))
    assert list(first) == ["head/linear/kernel"]
    assert paths.merge(first, second) == values
    with pytest.raises(ValueError, match="head/linear/kernel"):
        paths.merge(values, first)


def test_diff_lists_missing_unwanted_and_misshapen_with_the_nearest_name():
    shape = jax.ShapeDtypeStruct
    got = {"norm/scal": shape((4,), "float32"), "norm/bias": shape((5,), "float32")}
    wanted = {"norm/scale": shape((4,), "float32"), "norm/bias": shape((4,), "float32")}
    assert paths.diff(got, wanted) == [
        "missing 'norm/scale' (4,) (did you mean 'norm/scal'?)",
        "not wanted 'norm/scal' (4,) (did you mean 'norm/scale'?)",
        "shape of 'norm/bias' is (5,), wanted (4,)",
    ]


def test_rename_reads_in_both_directions():
    source, target = "encoder.layer.{layer}.mlp.{linear}.bias", "block_{layer:02d}/mlp/{linear}/bias"
    for number, padded in ((0, "00"), (7, "07"), (11, "11"), (123, "123")):
        key, path = f"encoder.layer.{number}.mlp.fc1.bias", f"block_{padded}/mlp/fc1/bias"
        assert paths.rename(key, source, target) == path
        assert paths.rename(path, target, source) == key


@pytest.mark.parametrize("key", ["encoder.layer.07.norm", "encoder.layer.7.normal", "xencoder.layer.7.norm"])
def test_rename_refuses_what_would_not_come_back(key):
    assert paths.rename(key, "encoder.layer.{layer}.norm", "block_{layer:02d}") is None
