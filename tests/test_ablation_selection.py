"""Which candidate is taken, and how scores rank them, against scipy and by hand."""

import dataclasses
import math
import re
from xml.etree import ElementTree

import numpy as np
import pytest
from scipy.stats import kendalltau, spearmanr

from tljax.ablation.picture import write_picture
from tljax.ablation.selection import (
    Scored,
    best_of,
    gap,
    kendall,
    level_with_best,
    rank_correlations,
    recommended,
    score_agreement,
    spearman,
)
from tljax.ablation.selection_chart import selection_chart
from tljax.ablation.selection_text import candidates_table, ranks_table, recommendation

SVG = "{http://www.w3.org/2000/svg}"


def make(name, accuracies, gflops=1.0, **scores):
    return Scored(
        name=name, model=name.split()[0], accuracies=tuple(accuracies), scores=scores, width=8, params_m=1.0,
        gflops=gflops, seconds=None,
    )  # fmt: skip


DEEP = make("vit block_11", (0.90, 0.80, 0.85), 12.0, logme=-0.3, leep=-0.5)
# Nearly as good on average, and on each fold either better or worse by as much.
CHEAP = make("vit block_05", (0.88, 0.83, 0.83), 6.0, logme=-0.2)
# Not much worse, but on every fold.
STEADY = make("vgg conv5", (0.88, 0.78, 0.83), 3.0, logme=-0.4, leep=-0.4)
RANDOM = make("random block_11", (0.70, 0.66, 0.70), 12.0, logme=-0.5, leep=-0.6)
FOUR = [DEEP, CHEAP, STEADY, RANDOM]


def test_candidates_are_level_by_paired_differences():
    assert best_of(FOUR) is DEEP
    assert DEEP.mean == pytest.approx(0.85)
    assert DEEP.standard_error == pytest.approx(np.std([0.90, 0.80, 0.85], ddof=1) / np.sqrt(3))
    differences = np.array([0.02, -0.03, 0.02])
    assert gap(CHEAP, DEEP) == pytest.approx((differences.mean(), differences.std(ddof=1) / np.sqrt(3)))
    # STEADY lies within the best one's own error, but is below it over every fold.
    assert DEEP.mean - STEADY.mean < DEEP.standard_error
    assert level_with_best(FOUR) == [DEEP, CHEAP]
    assert recommended(FOUR) is CHEAP
    assert recommended([DEEP, STEADY]) is DEEP


@pytest.mark.parametrize("has_ties", [False, True])
def test_rank_correlations_are_those_of_scipy(has_ties):
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(2, 6, 9))
    if has_ties:
        first, second = np.round(first), np.round(second)
    for row in range(6):
        wanted = spearmanr(first[row], second[row])[0], kendalltau(first[row], second[row])[0]
        assert (spearman(first, second)[row], kendall(first, second)[row]) == pytest.approx(wanted)
    assert math.isnan(spearman(np.ones(4), np.arange(4.0)))
    assert math.isnan(kendall(np.ones(4), np.arange(4.0)))


def test_intervals_come_from_resampled_candidates_where_there_are_enough():
    few = rank_correlations(FOUR, 0)
    assert few["logme"].n == 4
    assert few["logme"].spearman == pytest.approx(spearmanr([3, 4, 2, 1], [4, 3, 2, 1])[0])
    assert math.isnan(few["logme"].spearman_low)
    assert few["leep"].n == 3
    rng = np.random.default_rng(1)
    many = [make(f"m s{i}", (0.5 + i / 50,) * 2, logme=i + rng.normal(0, 2)) for i in range(12)]
    found = rank_correlations(many, 0)["logme"]
    assert -1 <= found.spearman_low < found.spearman < found.spearman_high <= 1
    assert -1 <= found.kendall_low < found.kendall < found.kendall_high <= 1
    values = np.array([[one.scores["logme"], one.mean] for one in many])
    drawn = [values[rng.integers(0, 12, 12)].T for _ in range(400)]
    ends = np.nanpercentile([spearmanr(*one)[0] for one in drawn], (2.5, 97.5))
    assert (found.spearman_low, found.spearman_high) == pytest.approx(tuple(ends), abs=0.1)
    agreement = score_agreement(FOUR)
    assert agreement["logme"]["logme"] == agreement["leep"]["leep"] == 1
    assert agreement["logme"]["leep"] == pytest.approx(spearmanr([-0.3, -0.4, -0.5], [-0.5, -0.4, -0.6])[0])


def test_words_say_what_is_taken_and_what_that_rests_on():
    said = recommendation(FOUR, num_images=300, held_out="whole groups of 'block'")
    assert said.startswith("Take vit block_05: accuracy 0.8467 ± 0.0167 (standard error), 6.00 GFLOPs an image.")
    assert "vit block_11 has the highest mean, 0.8500, and is ahead by 0.0033 ± 0.0167" in said
    assert "over 3 folds of 300 images that hold out whole groups of 'block'" in said
    assert "With 4 candidates, rank correlations of scores say little." in said
    alone = recommendation([DEEP, STEADY], num_images=300, held_out="images")
    assert "It is the best, and no other is within one standard error" in alone
    twin = dataclasses.replace(DEEP, name="vit twin", gflops=13.0)
    both = recommendation([DEEP, twin], num_images=300, held_out="images")
    assert both.startswith("Take vit block_11")
    assert "Within one standard error of the best as well: vit twin." in both


def cells(table):
    return [re.split(r"\s*\|\s*", line.strip("| ")) for line in table.splitlines()]


def test_tables_have_a_dash_for_what_is_not_there():
    rows = cells(candidates_table(FOUR))
    assert rows[0][:3] == ["#", "candidate", "features"]
    assert rows[0][-2:] == ["LogME", "LEEP"]
    assert rows[3] == ["2", "vit block_05", "8", "1.0", "6.00", "-", "0.8467 ± 0.0167", "-0.2000", "-"]
    rows = [
        re.split(r"\s*\|\s*", line.strip("| ")) for line in ranks_table(FOUR, rank_correlations(FOUR, 0)).splitlines()
    ]
    assert rows[2] == ["LogME", "0.80", "0.67", "4", "vit block_05", "0.0033 ± 0.0167"]
    # LEEP would take another, and that is what it would lose.
    assert rows[3][3:] == ["3", "vgg conv5", "0.0200 ± 0.0000"]


def test_the_picture_has_every_candidate_in_every_panel(tmp_path):
    chart = selection_chart("Models for cells", FOUR, rank_correlations(FOUR, 0), CHEAP)
    write_picture(tmp_path / "select.svg", chart)
    root = ElementTree.parse(tmp_path / "select.svg").getroot()
    texts = [text.text for text in root.iter(f"{SVG}text")]
    assert texts.count("4") == 4  # its row, cost, LogME, LEEP
    assert texts.count("2") == 3  # no LEEP
    bold = [text.text for text in root.iter(f"{SVG}text") if text.attrib["class"] == "strong"]
    assert "vit block_05" in bold
    assert "vit block_11" not in bold
    assert any(text and text.startswith("LogME (rank correlation 0.80)") for text in texts)
    places = [(float(text.attrib["x"]), float(text.attrib["y"])) for text in root.iter(f"{SVG}text")]
    _, _, width, height = (float(number) for number in root.attrib["viewBox"].split())
    assert all(0 <= x <= width and 0 <= y <= height for x, y in places)
