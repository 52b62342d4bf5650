import dataclasses
import inspect
import json
import math
import re
import shutil
from pathlib import Path

import pytest

from tests.small_runs import make_config as small_config
from tests.study_runs import (
    FACTORS,
    accuracy_of,
    make_config,
    run_path,
    write_failure,
    write_json,
    write_run,
)
from tests.study_runs import (
    write_study as make_study,
)
from tljax import plain
from tljax.ablation import choice, grid
from tljax.ablation.choice import Validation, best, validation_value
from tljax.ablation.run_records import CURVE_POINTS, read_run
from tljax.ablation.study import read_study
from tljax.ablation.study_analysis import analyse, groups_of, over_group
from tljax.ablation.study_classes import compare_by, group_scores, recalls
from tljax.ablation.study_report import write_study_report
from tljax.tasks.studies import plan_runs, write_study

CELL = {"groups.freeze": "block_01", "schedule.learning_rate": 3e-4}
LABELS = ("block_01", "0.0003")


@pytest.fixture
def folder(tmp_path):
    return make_study(tmp_path / "depth")


def rewrite(path, name, **changes):
    value = json.loads((path / name).read_text())
    write_json(path / name, {**value, **changes})


def test_a_study_is_read_with_its_factors_cells_and_seeds(folder):
    study = read_study([folder])
    assert study.factors == {
        "groups.freeze": ["embed", "block_01", "block_03"], "schedule.learning_rate": ["0.0001", "0.0003", "0.001"],
    }  # fmt: skip
    assert study.cells[:4] == [("embed", "0.0001"), ("embed", "0.0003"), ("embed", "0.001"), ("block_01", "0.0001")]
    assert study.seeds == [(0,), (1,), (2,), (3,), (4,)]
    assert len(study.finished) == 45
    assert study.results("accuracy")[LABELS][(3,)] == accuracy_of(CELL, FACTORS, 3)
    assert (study.task, study.metric, study.baseline, study.notes) == ("finetune", "accuracy", None, [])


def test_runs_without_a_declaration_differ_in_their_factors(folder):
    """Fields that vary together are one factor; where files are, and the seed, are none."""
    (folder / "study.json").unlink()
    for path in (folder / "runs").iterdir():
        record = json.loads((path / "config.json").read_text())
        record["config"]["optimizer"] = {"name": "adamw" if record["config"]["groups"]["freeze"] == "embed" else "sgd"}
        rate = record["config"]["schedule"]["learning_rate"]
        record["config"]["finetune"]["epochs"] = round(rate * 1e4)
        write_json(path / "config.json", record)
    study = read_study([folder])
    together = "finetune.epochs & schedule.learning_rate"
    assert {name: set(levels) for name, levels in study.factors.items()} == {
        "groups.freeze": {"block_01", "block_03", "embed"},
        "optimizer.name": {"adamw", "sgd"},
        together: {"1, 0.0001", "3, 0.0003", "10, 0.001"},
    }
    assert study.factors[together] == ["1, 0.0001", "3, 0.0003", "10, 0.001"]
    assert len(study.cells) == 9


def test_repeats_of_a_split_count_as_seeds(tmp_path):
    for repeat in range(3):
        config = make_config({"groups.freeze": "embed", "split.repeat": repeat}, 0)
        write_run(tmp_path / f"run_{repeat}", config, 0.8 + 0.01 * repeat)
    study = read_study([tmp_path])
    assert study.results("accuracy") == {(): {(0, 0): 0.8, (0, 1): 0.81, (0, 2): 0.8 + 0.01 * 2}}


def test_numbers_of_one_value_are_one_level_and_true_is_not_one(tmp_path):
    for at, value in enumerate((1, 1.0, True, "1", None)):
        write_run(tmp_path / f"run_{at}", make_config({"loss.x": value}, at), 0.8)
    study = read_study([tmp_path])
    (levels,) = study.factors.values()
    assert sorted(levels) == ['"1"', "1.0", "none", "true"]
    assert study.results("accuracy")[("1.0",)] == {(0,): 0.8, (1,): 0.8}


def test_failed_runs_are_in_no_mean(folder):
    broken, diverged, empty, stopped = (run_path(folder, CELL, seed) for seed in range(4))
    shutil.rmtree(broken)
    write_failure(broken, make_config(CELL, 0), "out of memory")
    rewrite(diverged, "done.json", accuracy=math.nan)
    rewrite(empty, "done.json", accuracy=None)
    (stopped / "done.json").unlink()
    study = read_study([folder])
    states = {run.record.path.name: (run.state, run.error) for run in study.runs if run.cell == LABELS}
    assert states == {
        broken.name: ("failed", "out of memory"),
        diverged.name: ("failed", "finished with accuracy = nan"),
        empty.name: ("failed", "finished with accuracy = None"),
        stopped.name: ("unfinished", None),
        run_path(folder, CELL, 4).name: ("finished", None),
    }
    (row,) = [one for one in analyse(study).cells if one.cell == LABELS]
    assert row.test is not None
    assert (row.test.n, row.test.mean) == (1, accuracy_of(CELL, FACTORS, 4))
    assert (row.num_failed, row.num_unfinished) == (3, 1)


def test_a_run_that_went_on_after_an_error_has_not_failed(folder):
    write_json(run_path(folder, CELL, 0) / "error.json", {"error": "killed", "attempts": 1})
    assert len(read_study([folder]).finished) == 45


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: shutil.copytree(run_path(folder, CELL, 1), folder / "twice"), "have the same factors and seed"),
        (lambda folder: rewrite(folder, "study.json", metric="acuracy"), "'acuracy' .did you mean 'accuracy'"),
        (
            lambda folder: rewrite(folder, "study.json", baseline={"groups.freeze": "embed"}),
            "lacks ..schedule.learning",
        ),
        (
            lambda folder: rewrite(folder, "study.json", baseline={**CELL, "schedule.learning_rate": 1}),
            "schedule.learning_rate is never 1; it is 0.0001",
        ),
        (lambda folder: rewrite(folder, "study.json", task="probe"), "no run of task 'probe'"),
        (lambda folder: (folder / "study.json").write_text('{"title": "x"}'), "lacks question, task, metric"),
        (lambda folder: shutil.rmtree(folder / "runs"), "no run directory in"),
    ],
)
def test_what_cannot_be_compared_is_refused(folder, change, message):
    change(folder)
    with pytest.raises(ValueError, match=message):
        read_study([folder])


def test_two_studies_or_two_tasks_are_refused(folder, tmp_path):
    other = make_study(tmp_path / "other", {"groups.freeze": ["embed"]}, seeds=[0])
    with pytest.raises(ValueError, match="are two studies"):
        read_study([folder, other])
    for path in (folder / "study.json", other / "study.json"):
        path.unlink()
    (run,) = (other / "runs").iterdir()
    rewrite(run, "config.json", task="probe")
    with pytest.raises(ValueError, match=r"several tasks \(45 of finetune, 1 of probe\); choose one with --task"):
        read_study([folder, other])
    assert len(read_study([folder, other], task="probe").runs) == 1


def test_more_than_the_seed_differing_in_a_cell_is_said(folder):
    path = run_path(folder, CELL, 2)
    record = json.loads((path / "config.json").read_text())
    record["config"]["finetune"]["epochs"] = 6
    write_json(path / "config.json", record)
    assert read_study([folder]).notes == [
        "Runs of one cell differ in more than their seed: finetune.epochs. Their spread holds that too."
    ]


def test_a_long_curve_is_read_in_part_with_its_last_step(tmp_path):
    write_run(tmp_path / "run", make_config({}, 0), 0.8, steps=1234)
    with open(tmp_path / "run" / "metrics.jsonl", "a") as file:
        file.write('{"loss": 0.1, "step": 12')
    record = read_run(tmp_path / "run")
    assert CURVE_POINTS * 0.9 <= len(record.losses) <= CURVE_POINTS
    assert max(record.losses) == 1233
    assert [row["step"] for row in record.validations] == list(range(9, 1234, 10))


def test_the_choice_cannot_see_test_results(folder):
    """What chooses takes validation results and nothing else, and they come from no file with test results."""
    assert list(inspect.signature(best).parameters) == ["validation"]
    assert [field.name for field in dataclasses.fields(Validation)] == ["metric", "values", "minimise"]
    with pytest.raises(ValueError, match="'accuracy': it is no validation metric"):
        Validation(metric="accuracy", values={})
    source = inspect.getsource(choice).split('"""', 2)[2]
    assert all(name not in source for name in ("done", "evaluation.", "predictions", "open(", "read_json"))
    before = read_study([folder])
    chosen = best(before.validation())
    assert chosen is not None
    # The test results turned upside down change what is measured, and not what is chosen.
    for path in (folder / "runs").iterdir():
        done = json.loads((path / "done.json").read_text())
        write_json(path / "done.json", {**done, "accuracy": 1 - done["accuracy"]})
    after = read_study([folder])
    assert after.results("accuracy") != before.results("accuracy")
    assert best(after.validation()) == chosen
    # Validation results turned upside down do.
    for path in (folder / "runs").iterdir():
        lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
        turned = [
            {**line, "val_accuracy": 1 - line["val_accuracy"]} if "val_accuracy" in line else line for line in lines
        ]
        (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in turned))
    other = best(read_study([folder]).validation())
    assert other is not None
    assert other.cell != chosen.cell


def test_without_validation_nothing_is_best(folder):
    for path in (folder / "runs").iterdir():
        lines = [line for line in (path / "metrics.jsonl").read_text().splitlines() if "val_" not in line]
        (path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    found = analyse(read_study([folder]))
    assert (found.choice, found.pivot, found.comparisons) == (None, None, [])


def test_only_cells_with_all_seeds_can_be_chosen_and_equals_go_by_order():
    values = {("a",): {(0,): 0.9, (1,): 0.7}, ("b",): {(0,): 0.95}, ("c",): {(0,): 0.7, (1,): 0.9}}
    found = best(Validation(metric="val_accuracy", values=values))
    assert found is not None
    assert (found.cell, found.num_incomplete, len(found.ranking)) == (("a",), 1, 2)
    losses = {("a",): {(0,): 0.9}, ("b",): {(0,): 0.8}}
    lowest = best(Validation(metric="val_log_loss", values=losses, minimise=True))
    assert lowest is not None
    assert lowest.cell == ("b",)
    with pytest.raises(ValueError, match="leave failed runs out"):
        Validation(metric="val_accuracy", values={("a",): {(0,): math.nan}})


def test_validation_is_of_the_params_that_the_run_kept():
    rows = [
        {"step": 9, "val_accuracy": 0.8, "val_log_loss": 0.5},
        {"step": 19, "val_accuracy": 0.9, "val_log_loss": 0.6},
        {"step": 29, "val_accuracy": 0.9, "val_log_loss": 0.7},
        {"step": 39, "val_accuracy": 0.7, "val_log_loss": 0.4},
    ]
    assert validation_value(rows, "val_accuracy", keeps_best=False) == 0.7
    assert validation_value(rows, "val_accuracy", keeps_best=True) == 0.9
    # Of equals the latest, as the checkpoints keep it.
    assert validation_value(rows, "val_log_loss", keeps_best=True) == 0.7
    assert validation_value(rows, "val_roc_auc", keeps_best=True) is None


def test_groups_are_cells_where_they_are_few_and_levels_where_they_are_many(folder, tmp_path):
    pictures = groups_of(analyse(read_study([folder])))
    assert [[group.name for group in groups] for groups in pictures] == list(
        map(list, read_study([folder]).factors.values())
    )
    # 15 runs at a level, of 5 seeds: those of one seed are averaged first.
    found = over_group(pictures[0][0], "accuracy")
    assert found is not None
    assert found.n == 5
    small = make_study(tmp_path / "small", {"groups.freeze": ["embed", "block_01"]}, seeds=range(2))
    (groups,) = groups_of(analyse(read_study([small])))
    assert [group.name for group in groups] == ["embed", "block_01"]


def test_the_second_on_validation_is_what_the_best_is_compared_with(folder):
    found = analyse(read_study([folder]))
    assert found.choice is not None
    assert [cell for cell, _ in found.comparisons] == [found.choice.cell]
    assert found.pivot == found.choice.ranking[1][0]
    rewrite(folder, "study.json", baseline=CELL)
    against = analyse(read_study([folder]))
    assert against.pivot == LABELS
    assert len(against.comparisons) == 8
    # The reference of each factor is the level of the baseline.
    assert [effect.reference for effect in against.effects] == list(LABELS)


@pytest.fixture
def named(tmp_path):
    """A study that names its runs, some of a shared store: one of two cells, one not begun, one that failed at once."""
    levels = {"all": ("embed", 1e-3), "late": ("block_03", 1e-4), "late again": ("block_03", 1e-4)}
    folder, store = tmp_path / "named", tmp_path / "store"
    (folder / "runs").mkdir(parents=True)
    cells = []
    for label, (depth, rate) in levels.items():
        runs = {}
        for seed in range(4):
            name = f"{depth}_{seed}"
            runs[str(seed)] = f"runs/{name}"
            if not (store / name).exists() and name not in ("embed_0", "embed_1"):
                config = make_config({"groups.freeze": depth, "schedule.learning_rate": rate}, seed)
                write_run(store / name, config, 0.8 + 0.01 * seed + 0.05 * (depth != "embed"))
                (folder / "runs" / name).symlink_to(store / name)
        cells.append({"values": {"recipe": label}, "runs": runs})
    (folder / "runs" / "embed_1").mkdir()
    write_json(folder / "runs" / "embed_1" / "error.json", {"error": "no such model", "attempts": 1})
    said = {
        "title": "Recipes", "question": "Which?", "task": "finetune", "metric": "accuracy", "seeds": [0, 1, 2, 3],
        "factors": {"schedule.learning_rate": [1e-3, 1e-4, 1e-4]},
        "baseline": {"schedule.learning_rate": 1e-3}, "baseline_cell": {"recipe": "all"}, "cells": cells,
    }  # fmt: skip
    write_json(folder / "study.json", said)
    return folder


def test_a_study_that_names_its_runs_is_read_by_these_names(named, tmp_path):
    study = read_study([named])
    assert study.factors == {"recipe": ["all", "late", "late again"]}
    assert study.baseline == ("all",)
    results = study.results("accuracy")
    assert results[("late",)] == results[("late again",)] == {(seed,): 0.8 + 0.01 * seed + 0.05 for seed in range(4)}
    assert list(results[("all",)]) == [(2,), (3,)]
    states = [run.state for run in study.runs if run.cell == ("all",)]
    assert states == ["unfinished", "failed", "finished", "finished"]
    assert study.notes == []
    paths, summary = write_study_report(study, tmp_path / "report")
    # Twelve places, of eight runs.
    assert (
        "3 cells (levels: 3 of recipe) with 4 seeds: 8 runs of finetune, 6 finished, 1 failed, 1 unfinished." in summary
    )
    page = paths[0].read_text()
    assert page.count('href="../named/runs/') == 12 - 1 + 1
    assert "no such model" in page
    # Nor is a run counted, or named as failed, for each of its places.
    assert re.findall(r"<p>(\d+) runs?: Python", page) == ["6"]
    with pytest.raises(ValueError, match="names its runs; report it without other folders"):
        read_study([named, tmp_path / "store"])
    with pytest.raises(ValueError, match="is of task 'finetune', got --task=probe"):
        read_study([named], task="probe")
    rewrite(named, "study.json", baseline_cell=None)
    with pytest.raises(ValueError, match="has no level of recipe; `tljax sweep` writes it anew"):
        read_study([named])
    # Without the declaration the configs say what differs, and the run that never had one is not there.
    (named / "study.json").unlink()
    assert len(read_study([named]).runs) == 6


def test_links_in_a_ring_end(tmp_path):
    write_run(tmp_path / "runs" / "one", make_config({}, 0), 0.8)
    (tmp_path / "runs" / "back").symlink_to(tmp_path)
    assert len(read_study([tmp_path]).runs) == 1


def test_what_a_sweep_writes_is_what_the_report_reads(tmp_path):
    """A level may be a label of several fields, which no run writes down."""
    depths = {"late": {"groups.freeze": "block_01"}, "head": {"groups.freeze": "head", "groups.rates": {"head": 1.0}}}
    declared = grid.Study(
        slug="swept", title="Swept", question="How deep?", task="finetune", config=small_config(tmp_path), seeds=[0, 1],
        factors={"depth": depths, "schedule.learning_rate": [0.1, 0.2]}, metric="accuracy",
        baseline={"depth": "head", "schedule.learning_rate": 0.1},
    )  # fmt: skip
    planned = plan_runs(declared, tmp_path / "swept")
    write_study(planned, tmp_path / "swept")
    for cell, place in zip(planned.cells, planned.places, strict=True):
        for seed, name in place.items():
            accuracy = 0.8 + 0.1 * (cell["depth"] == "late") + 0.01 * seed
            write_run(Path(planned.runs[name].workdir), plain.as_read(planned.runs[name].config), accuracy)
    study = read_study([tmp_path / "swept"])
    assert study.factors == {"depth": ["late", "head"], "schedule.learning_rate": ["0.1", "0.2"]}
    assert study.baseline == ("head", "0.1")
    assert study.results("accuracy") == {
        (depth, rate): {(seed,): 0.8 + 0.1 * (depth == "late") + 0.01 * seed for seed in (0, 1)}
        for depth in ("late", "head")
        for rate in ("0.1", "0.2")
    }
    assert study.notes == []


def test_shares_by_class_and_by_group_lie_between_0_and_1(tmp_path):
    """The interval of three seeds near 1 reaches beyond."""
    for depth, accuracies in {"embed": [0.99, 0.99, 0.9], "head": [0.05, 0.01, 0.03]}.items():
        for seed, accuracy in enumerate(accuracies):
            write_run(tmp_path / f"{depth}_{seed}", make_config({"groups.freeze": depth}, seed), accuracy)
    study = read_study([tmp_path])
    for scores, name in ((recalls, "recall"), (group_scores("accuracy"), "accuracy")):
        rows = compare_by(study, (("embed",), ("head",)), scores, name)
        assert [ours.high for _, ours, _, _ in rows] == [1.0] * len(rows)
        assert [theirs.low for _, _, theirs, _ in rows] == [0.0] * len(rows)
        assert len(rows) == (3 if name == "recall" else 2)
