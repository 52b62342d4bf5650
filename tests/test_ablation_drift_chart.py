import math
import re
from xml.etree import ElementTree

import pytest

from tljax.ablation.drift_chart import drift_chart

SVG = "{http://www.w3.org/2000/svg}"
STAGES = ("embed", "block_00", "block_01", "pool", "norm", "head")
DRIFTS = [
    {"stage": "embed", "relative_l2": 0.0, "cosine": 1.0, "num_params": 10},
    {"stage": "block_00", "relative_l2": 0.012, "cosine": 0.99, "num_params": 10},
    {"stage": "block_01", "relative_l2": 0.04, "cosine": 0.98, "num_params": 10},
    {"stage": "norm", "relative_l2": math.inf, "cosine": 0.0, "num_params": 10},
]
SIMILARITIES = {"embed": 1.0, "block_00": 0.75, "block_01": 0.5, "pool": 0.25, "norm": math.nan}


def draw(**changes):
    given = {"drifts": DRIFTS, "similarities": SIMILARITIES, "stages": STAGES, **changes}
    return ElementTree.fromstring(drift_chart("Drift of <ViT-S> & co", **given))


def texts(picture):
    return {element.text: (float(element.get("x")), float(element.get("y"))) for element in picture.iter(f"{SVG}text")}


def markers(picture, series):
    """Return {stage: centre} of the markers of a series: discs of the first, diamonds of the second."""
    found = {}
    for element in picture.iter():
        (title,) = element.findall(f"{SVG}title") or [None]
        if title is None or not title.text or element.get("class") != f"fill s{series}":
            continue
        place = re.match(r"M([\d.]+) ([\d.]+)", element.get("d", ""))
        # The path of a diamond begins 5 above its centre.
        centre = (float(place[1]), float(place[2]) + 5) if place else (element.get("cx"), element.get("cy"))
        found[title.text.split(":")[0]] = tuple(map(float, centre))
    return found


def whiskers(picture, series):
    ends = ("x1", "x2", "y1", "y2")
    lines = [one for one in picture.iter(f"{SVG}line") if one.get("class") == f"whisker s{series}"]
    return [tuple(float(one.get(end)) for end in ends) for one in lines]


def test_marks_sit_where_the_numbers_say():
    picture = draw()
    moved, similar = markers(picture, 0), markers(picture, 1)
    assert list(moved) == ["embed", "block_00", "block_01"]
    assert list(similar) == ["embed", "block_00", "block_01", "pool"]
    # Two stages fix the scale, the others must lie on it.
    zero, unit = moved["embed"][0], (moved["block_01"][0] - moved["embed"][0]) / 0.04
    assert unit > 0
    assert moved["block_00"][0] == pytest.approx(zero + 0.012 * unit, abs=0.11)  # pixels have one decimal
    one, unit = similar["embed"][0], (similar["embed"][0] - similar["block_01"][0]) / 0.5
    assert unit > 0
    for stage in similar:
        assert similar[stage][0] == pytest.approx(one - (1 - SIMILARITIES[stage]) * unit, abs=0.11)
    # The numbers on the axes are centred below their lines.
    ticks = [one for one in picture.iter(f"{SVG}text") if one.get("text-anchor") == "middle"]
    placed = [(one.text, float(one.get("x", "nan"))) for one in ticks]
    assert [name for name, _ in placed] == ["0", "0.02", "0.04", "0", "0.5", "1"]
    wanted = [zero, zero + (moved["block_01"][0] - zero) / 2, moved["block_01"][0], one - unit, one - unit / 2, one]
    assert [x for _, x in placed] == pytest.approx(wanted, abs=0.11)


def test_lines_lead_from_where_nothing_changed():
    picture = draw()
    for series in (0, 1):
        placed = markers(picture, series)
        lines = whiskers(picture, series)
        assert len(lines) == len(placed)
        for (x, y), (start, stop, y1, y2) in zip(placed.values(), lines, strict=True):
            assert (stop, y1, y2) == (x, y, y)
            assert start == placed["embed"][0]


def test_stages_run_from_top_to_bottom_and_those_without_values_are_not_there():
    picture = draw()
    labels = texts(picture)
    heights = [labels[stage][1] for stage in STAGES[:-1]]
    assert heights == sorted(set(heights))
    assert "head" not in labels
    for series in (0, 1):
        assert all(y + 4 == labels[stage][1] for stage, (_, y) in markers(picture, series).items())


def test_values_are_printed_whether_they_can_be_drawn_or_not():
    picture = draw()
    printed = texts(picture)
    assert {"0.012", "0.04", "∞", "1.000", "0.750", "0.500", "0.250", "undefined"} <= set(printed)
    assert printed["∞"][1] == printed["undefined"][1] == printed["norm"][1]
    assert not re.search(r"nan|inf", ElementTree.tostring(picture, encoding="unicode"))


def test_the_picture_holds_all_it_draws_and_says_what_it_shows():
    picture = draw()
    assert picture.get("aria-label") == "Drift of <ViT-S> & co"
    _, _, width, height = map(float, picture.get("viewBox", "").split())
    for element in picture.iter():
        for name, end in (("x", width), ("x1", width), ("x2", width), ("y", height), ("y1", height), ("y2", height)):
            assert 0 <= float(element.get(name, 0)) <= end


def test_nothing_but_the_style_sheet_has_colours():
    assert not re.search(r"#[0-9a-f]{3}|rgb|style=", ElementTree.tostring(draw(), encoding="unicode"))


@pytest.mark.parametrize(("drifts", "similarities"), [(DRIFTS[:1], {}), ([], {"embed": 1.0})])
def test_either_half_may_be_empty_and_nothing_may_have_moved(drifts, similarities):
    picture = draw(drifts=drifts, similarities=similarities)
    assert len(markers(picture, 0)) == len(drifts)
    assert len(markers(picture, 1)) == len(similarities)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"similarities": {"blok_00": 1.0}}, r"got values of 'blok_00' \(did you mean 'block_00'\?\), no stages"),
        ({"drifts": [], "similarities": {}}, "got no values; stages are embed, block_00"),
    ],
)
def test_what_cannot_be_drawn_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        draw(**changes)
