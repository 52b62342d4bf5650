import numpy as np
import pytest

from tljax import plain


def test_fingerprint_depends_on_content_and_nothing_else():
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    base = plain.fingerprint({"a": array, "b": [1, "x", None, 0.5]})
    assert plain.fingerprint({"b": [1, "x", None, 0.5], "a": np.asfortranarray(array)}) == base
    changed = [
        {"a": array.reshape(3, 2), "b": [1, "x", None, 0.5]},
        {"a": array.astype(np.float64), "b": [1, "x", None, 0.5]},
        {"a": array, "b": [1, "x", None, "0.5"]},
        {"a": array, "b": [1, ["x"], None, 0.5]},
        {"a": array, "b": [True, "x", None, 0.5]},
        {"a": -array, "b": [1, "x", None, 0.5]},
    ]
    assert len({base, *map(plain.fingerprint, changed)}) == 1 + len(changed)
    with pytest.raises(TypeError, match="cannot fingerprint a set"):
        plain.fingerprint({1, 2})


def test_differences_are_listed_by_name():
    saved = {"a": {"b": 1, "c": {}}, "d": [1, 2]}
    assert plain.differences(saved, plain.as_read({"a": {"b": 1, "c": {}}, "d": (1, 2)})) == []
    assert plain.differences(saved, {"a": {"b": 2}, "d": [1, 2], "e": None}) == [
        "a.b: 1 there, 2 now",
        "a.c: {} there, 'absent' now",
        "e: 'absent' there, None now",
    ]
