import math
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from tljax.ablation.curves import band
from tljax.ablation.run_records import RunRecord
from tljax.ablation.stats import Estimate
from tljax.ablation.study_charts import band_chart, cost_chart, dense_chart, grid_chart
from tljax.ablation.study_classes import class_names, group_scores, recalls


def estimate(mean, half=0.02, n=4):
    return Estimate(mean=mean, low=mean - half, high=mean + half, n=n)


def shapes(text):
    """The shapes of a picture, none of them outside of it."""
    picture = ElementTree.fromstring(text)
    _, _, width, height = map(float, picture.attrib["viewBox"].split())
    for shape in picture.iter():
        for names, limit in ((("x", "x1", "x2", "cx"), width), (("y", "y1", "y2", "cy"), height)):
            for name in names:
                assert 0 <= float(shape.attrib.get(name, 0)) <= limit, shape.attrib
    assert "nan" not in text
    assert "inf" not in text
    return [shape for shape in picture.iter() if shape is not picture]


def texts(text):
    return [shape.text for shape in shapes(text) if shape.tag.endswith("}text")]


def test_many_cells_have_a_mark_and_a_tooltip_each_and_headings_where_there_is_room():
    rows = [(f"level {at // 50}", f"cell {at}", estimate(0.5 + 0.001 * at)) for at in range(300)]
    text = dense_chart("accuracy", [*rows, ("last", "lone <one>", estimate(0.9, math.nan, n=1))], ("baseline", 0.55))
    marks = [shape for shape in shapes(text) if shape.tag.endswith("}circle")]
    assert len(marks) == 301
    titles = [mark[0].text for mark in marks]
    assert titles[7] == "cell 7: 0.507, 95% interval 0.487 to 0.527, n = 4"
    assert titles[-1] == "lone <one>: 0.9, n = 1, no interval"
    assert [found for found in texts(text) if found.startswith("level")] == [f"level {at}" for at in range(6)]
    # The baseline is a vertical line at its value: between those of 0.5 and 0.6.
    xs = [float(mark.attrib["cx"]) for mark in marks]
    (line,) = [shape for shape in shapes(text) if shape.attrib.get("class") == "baseline"]
    assert float(line.attrib["x1"]) == pytest.approx((xs[0] + xs[100]) / 2, abs=0.2)


def test_costs_over_a_wide_range_stand_on_a_logarithmic_axis():
    points = [(f"cell {at}", 10.0**at, estimate(0.8 + 0.01 * at), 0) for at in range(4)]
    text = cost_chart("accuracy against time", "time (s)", points, [])
    assert "time (s), logarithmic" in texts(text)
    assert {"1", "10", "100", "1,000"} <= set(texts(text))
    marks = [float(shape.attrib["cx"]) for shape in shapes(text) if shape.tag.endswith("}circle")]
    assert np.diff(marks) == pytest.approx(np.diff(marks).mean(), abs=0.2)
    narrow = cost_chart(
        "accuracy", "time (s)", [("a", 10.0, estimate(0.8), 0), ("b", 12.0, estimate(0.9), 1)], ["x", "y"]
    )
    assert "time (s)" in texts(narrow)
    assert {"x", "y"} <= set(texts(narrow))
    free = cost_chart("accuracy", "params", [("a", 0.0, estimate(0.8), 0), ("b", 1e9, estimate(0.9), 0)], [])
    assert "params" in texts(free)


def test_two_factors_show_the_interval_where_it_has_room_and_a_hole_stays_empty():
    means = {("a", "x"): estimate(0.8), ("a", "y"): estimate(0.9), ("b", "x"): estimate(0.7, n=1)}
    text = grid_chart("accuracy", ("rows", "columns"), (["a", "b"], ["x", "y"]), means)
    assert "0.780 to 0.820" in texts(text)
    assert "n = 1" in texts(text)
    assert len([shape for shape in shapes(text) if shape.tag.endswith("}rect")]) == 3
    columns = [f"c{at}" for at in range(10)]
    narrow = grid_chart("accuracy", ("r", "c"), (["a"], columns), {("a", one): estimate(0.8) for one in columns})
    assert "0.780 to 0.820" not in texts(narrow)
    assert texts(narrow).count("0.800") == 10


def test_bands_of_one_seed_have_a_line_and_no_shade_and_the_fifth_is_dashed():
    one, two = band([{0: 0.5, 10: 0.7}]), band([{0: 0.5, 10: 0.7}, {0: 0.6, 10: 0.9}])
    point = band([{10: 0.7}])
    assert one
    assert two
    assert point
    text = band_chart("val_accuracy", {"one": one, "two": two, "point": point, "d": two, "e": two}, "step")
    assert len([shape for shape in shapes(text) if shape.tag.endswith("}polygon")]) == 3
    lines = [shape.attrib["class"] for shape in shapes(text) if shape.tag.endswith("}polyline")]
    assert lines == ["line s0", "line s1", "line s2", "line s3", "line s0 dashed"]
    assert {"one", "two", "point", "d", "e"} <= set(texts(text))


def record(**evaluation):
    return RunRecord(
        path=Path("run"), task="finetune", config={}, done={}, error=None, attempts=None, validations=[], losses={},
        evaluation=evaluation, stages=[], class_names=[], environment={},
    )  # fmt: skip


def test_classes_are_scored_by_recall_or_by_average_precision():
    single = record(confusion=[[3, 1], [0, 0]])
    assert class_names([single]) == ["class 0", "class 1"]
    # A class without test images has no recall.
    assert recalls(single) == {"class 0": 0.75}
    many = record(by_class={"cat": {"average_precision": 0.5}, "dog": {"average_precision": None}})
    assert recalls(many) == {"cat": 0.5}
    groups = record(
        by_group={"mono": {"accuracy": 0.9, "roc_auc": math.nan}, "poly": {"accuracy": 0.8, "roc_auc": 0.7}}
    )
    assert group_scores("accuracy")(groups) == {"mono": 0.9, "poly": 0.8}
    assert group_scores("roc_auc")(groups) == {"poly": 0.7}
    assert group_scores("accuracy")(record()) == {}
    assert recalls(record()) == {}
