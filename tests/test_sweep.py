import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests import stand_in
from tests.small_runs import make_config, write_model, write_pictures
from tests.stand_in import ROOT, await_holds, expect_holds, starts, wait_until_free, write_plan
from tljax import cli, rundir
from tljax.ablation import local_pool
from tljax.ablation.grid import Study
from tljax.ablation.local_pool import LocalPool
from tljax.ablation.runs import Outcome, Run
from tljax.ablation.slurm import Slurm
from tljax.ablation.slurm_follow import LOST
from tljax.tasks.studies import count_progress, plan_runs, progress_of, run_study
from tljax.tasks.study_costs import count_runs, describe_costs
from tljax.tasks.study_results import cells_table, write_results

PROGRAM = (sys.executable, stand_in.__file__)
# `tljax`, whose runs are stand-ins.
SWEEPER = f"""
import sys
from tljax.ablation import local_pool
from tljax.cli import main
local_pool.PROGRAM = {PROGRAM!r}
sys.exit(main(sys.argv[1:]))
"""
RATE = "schedule.learning_rate"
FILE = """
from pathlib import Path
from tests.test_sweep import tiny_study

def get_study():
    return tiny_study(Path({root!r}), **{changes!r})
"""


@pytest.fixture
def stand_ins(monkeypatch):
    monkeypatch.setattr(local_pool, "PROGRAM", PROGRAM)


def tiny_study(root, sections=None, **changes):
    settings = {
        "slug": "tiny", "title": "Two rates", "question": "Which rate?", "task": "finetune", "metric": "accuracy",
        "config": make_config(root, **(sections or {})), "factors": {RATE: [0.1, 0.2]}, "seeds": [0, 1],
    }  # fmt: skip
    return Study(**{**settings, **changes})


def write_file(root, **changes):
    path = root / "sweep.py"
    path.write_text(FILE.format(root=str(root), changes=changes))
    return path


def names_of(study, workdir):
    return list(plan_runs(study, workdir).runs)


def plan_starts(study, workdir, **plans):
    """Say what the runs do, the first of them as run_0, and return their directories."""
    names = names_of(study, workdir)
    (workdir / "runs").mkdir(parents=True)
    write_plan(workdir / "runs", **{name: plans.get(f"run_{index}", "finish") for index, name in enumerate(names)})
    return [workdir / "runs" / name for name in names]


def sweep(file, workdir, *flags):
    return cli.main(["sweep", str(file), f"--workdir={workdir}", *flags])


def num_starts(paths):
    return [len(starts(path)) for path in paths]


def test_a_failed_run_stops_no_other_and_is_started_again_on_request_alone(tmp_path, stand_ins, capsys):
    file, study = write_file(tmp_path), tmp_path / "study"
    paths = plan_starts(tiny_study(tmp_path), study, run_1="fail, fail, finish")
    assert sweep(file, study, "--max_parallel=2") == 1
    error = rundir.read_json(paths[1] / "error.json")
    assert error["attempts"] == 1
    assert error["error"].startswith("exit status 2\n")
    assert "it did not work" in error["error"]
    out = capsys.readouterr().out
    assert "3 done, 1 failed" in out
    assert f"failed: {paths[1]}: it did not work" in out
    assert sweep(file, study) == 1
    assert num_starts(paths) == [1, 1, 1, 1]
    assert sweep(file, study, "--retry_failed") == 1
    assert rundir.read_json(paths[1] / "error.json")["attempts"] == 2
    assert sweep(file, study, "--retry_failed") == 0
    assert num_starts(paths) == [1, 3, 1, 1]
    assert not (paths[1] / "error.json").exists()
    assert f"report:  tljax report {study}" in capsys.readouterr().out


def test_failures_are_recorded_as_they_happen(tmp_path, stand_ins):
    """A sweep that is killed later has not forgotten them."""
    paths = plan_starts(tiny_study(tmp_path), tmp_path / "study", run_0="fail", run_1="hold, finish")
    holds = expect_holds(tmp_path / "study" / "runs", [paths[1].name])
    sweeper = start_sweeper(write_file(tmp_path), tmp_path / "study")
    await_holds(holds)
    assert (paths[0] / "error.json").exists()
    kill(sweeper, paths[1])
    assert start_sweeper(write_file(tmp_path), tmp_path / "study").wait(stand_in.ALARM_S) == 1
    assert num_starts(paths) == [1, 2, 1, 1]


def start_sweeper(file, workdir):
    call = [sys.executable, "-c", SWEEPER, "sweep", str(file), f"--workdir={workdir}"]
    return subprocess.Popen(call, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})


def kill(sweeper, running):
    sweeper.kill()
    sweeper.wait()
    wait_until_free(running)


def test_a_sweep_killed_in_every_run_ends_with_the_same_table(tmp_path):
    file, study = write_file(tmp_path), tiny_study(tmp_path)
    paths = plan_starts(study, tmp_path / "killed", **{f"run_{index}": "hold, finish" for index in range(2)})
    holds = expect_holds(tmp_path / "killed" / "runs", [path.name for path in paths[:2]])
    for path in paths[:2]:
        sweeper = start_sweeper(file, tmp_path / "killed")
        await_holds({path.name: holds[path.name]})
        kill(sweeper, path)
    assert start_sweeper(file, tmp_path / "killed").wait(stand_in.ALARM_S) == 0
    assert num_starts(paths) == [2, 2, 1, 1]
    plan_starts(study, tmp_path / "whole")
    assert start_sweeper(file, tmp_path / "whole").wait(stand_in.ALARM_S) == 0
    assert (tmp_path / "killed" / "results.csv").read_bytes() == (tmp_path / "whole" / "results.csv").read_bytes()


def test_a_killed_run_is_no_failed_one(tmp_path, monkeypatch):
    monkeypatch.setattr(local_pool, "PROGRAM", (sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"))
    planned = plan_runs(tiny_study(tmp_path), tmp_path / "study")
    outcomes = run_study(planned, tmp_path / "study", LocalPool(max_parallel=4))
    assert {outcome.detail for outcome in outcomes} == {"signal SIGKILL"}
    assert count_progress(planned)["failed"] == 0

    def lose(runs, where, *, wait, ended):
        outcomes = [Outcome(run=run, state="failed", detail=LOST) for run in runs]
        for outcome in outcomes:
            ended(outcome)
        return outcomes

    assert len(run_study(planned, tmp_path / "study", Slurm(timeout_min=60), launcher=lose)) == 4
    assert count_progress(planned)["failed"] == 0


def test_a_job_that_failed_while_no_sweep_ran_is_recorded_by_the_next(tmp_path, stand_ins):
    planned = plan_runs(tiny_study(tmp_path), tmp_path / "study")
    paths = plan_starts(tiny_study(tmp_path), tmp_path / "study")
    for path, status in zip(paths, (2, 85), strict=False):
        (path / "launch").mkdir(parents=True)
        rundir.write_json(path / "launch" / "ended.json", {"process": 0, "status": status, "reason": f"ended {status}"})
    (paths[0] / "launch" / "log.txt").write_text("== started at once\ntljax: no file\n")
    # Made, and not written yet.
    (paths[2] / "launch").mkdir(parents=True)
    (paths[2] / "launch" / "ended.json").touch()
    assert count_progress(planned)["failed"] == 1
    started = []

    def start(runs, where, *, wait, ended):
        started.extend(Path(run.workdir) for run in runs)
        return []

    run_study(planned, tmp_path / "study", Slurm(timeout_min=60, retries=2), launcher=start)
    assert started == paths[1:]
    assert rundir.read_json(paths[0] / "error.json") == {"error": "ended 2\ntljax: no file", "attempts": 1}
    run_study(planned, tmp_path / "study", LocalPool(), retry_failed=True)
    assert num_starts(paths) == [1, 0, 0, 0]
    # A later start of its own has nothing of what an earlier job had to say.
    assert not (paths[0] / "launch" / "ended.json").exists()


def test_a_second_sweep_of_a_study_says_so(tmp_path, capsys):
    with rundir.only_process(tmp_path / "study"):
        assert sweep(write_file(tmp_path), tmp_path / "study") == 2
    assert f"another process works in {tmp_path / 'study'}" in capsys.readouterr().err


def test_configs_that_compute_the_same_are_one_run_in_two_cells(tmp_path, stand_ins, capsys):
    levels = {"prefix.dtype": ["float16", "float32"], RATE: [0.1, 0.2]}
    study = tiny_study(tmp_path, sections={"prefix": {"batch_size": 8}}, factors=levels, seeds=[3])
    planned = plan_runs(study, tmp_path / "study")
    assert [place[3] for place in planned.places] == [*planned.runs] * 2
    plan_starts(study, tmp_path / "study")
    run_study(planned, tmp_path / "study", LocalPool(max_parallel=2))
    rows = write_results(planned, tmp_path / "study").read_text().splitlines()
    assert rows[0] == "prefix.dtype,schedule.learning_rate,seed,run,accuracy"
    assert [row.split(",")[:3] for row in rows[1:]] == [
        ["float16", "0.1", "3"], ["float16", "0.2", "3"], ["float32", "0.1", "3"], ["float32", "0.2", "3"],
    ]  # fmt: skip
    assert cells_table(planned).splitlines()[1].split() == ["float16", "0.1", "0.5000", "-", "1"]


def test_studies_that_share_a_store_do_a_run_once(tmp_path, stand_ins):
    """Also where one of them says what the other leaves to its default."""
    first = tiny_study(tmp_path, seeds=[0])
    second = tiny_study(tmp_path, sections={"finetune": {"keep": "last"}}, seeds=[0], factors={RATE: [0.2, 0.3]})
    store = tmp_path / "store"
    store.mkdir()
    names = [*names_of(first, store), *names_of(second, store)]
    assert len(set(names)) == 3
    write_plan(store, **dict.fromkeys(names, "finish"))
    for name, study in (("a", first), ("b", second)):
        run_study(plan_runs(study, tmp_path / name, store), tmp_path / name, LocalPool())
        planned = plan_runs(study, tmp_path / name, store)
        assert count_progress(planned)["done"] == 2
        assert len(write_results(planned, tmp_path / name).read_text().splitlines()) == 3
    assert [len(starts(store / name)) for name in dict.fromkeys(names)] == [1, 1, 1]
    assert (tmp_path / "b" / "runs" / names[1]).resolve() == store / names[1]
    # The links are enough to find them again.
    assert count_progress(plan_runs(second, tmp_path / "b"))["done"] == 2


def test_a_study_is_described_for_those_who_read_it(tmp_path, stand_ins):
    levels = {"head": {"groups.freeze": "head", "mix": {"mixup_alpha": 0.1}}, "more": {"groups.freeze": "block_01"}}
    study = tiny_study(tmp_path, factors={"depth": levels}, baseline={"depth": "head"}, seeds=[5])
    planned = plan_runs(study, tmp_path / "study")
    plan_starts(study, tmp_path / "study")
    run_study(planned, tmp_path / "study", LocalPool(max_parallel=2))
    said = rundir.read_json(tmp_path / "study" / "study.json")
    assert said["factors"] == {"groups.freeze": ["head", "block_01"]}
    assert said["baseline"] == {"groups.freeze": "head"}
    assert {key: said[key] for key in ("slug", "task", "metric", "seeds")} == {
        "slug": "tiny", "task": "finetune", "metric": "accuracy", "seeds": [5],
    }  # fmt: skip
    for cell in said["cells"]:
        config = rundir.read_json(tmp_path / "study" / cell["runs"]["5"] / "config.json")["config"]
        assert config["groups"]["freeze"] == levels[cell["values"]["depth"]]["groups.freeze"]
        assert config["seed"] == 5
        assert ("mix" in config) == (cell["values"]["depth"] == "head")


def test_mistakes_are_found_before_anything_runs(tmp_path, capsys):
    file = write_file(tmp_path, factors={RATE: [0.1], "finetune.epochs": [1, 0]})
    assert sweep(file, tmp_path / "study") == 2
    assert "schedule.learning_rate=0.1, finetune.epochs=0: config.finetune: epochs is 0" in capsys.readouterr().err
    assert sweep(write_file(tmp_path, factors={"finetune.epoch": [1]}), tmp_path / "study") == 2
    assert "no config field 'finetune.epoch' (did you mean 'epochs'?)" in capsys.readouterr().err
    assert sweep(write_file(tmp_path), tmp_path / "study", "--config.finetune.epoch=3") == 2
    assert "epoch" in capsys.readouterr().err
    assert sweep(write_file(tmp_path), tmp_path / "study", "--max_paralel=3") == 2
    assert "max_paralel" in capsys.readouterr().err
    broken = tmp_path / "broken.py"
    broken.write_text("def get_study():\n    return 1 / 0\n")
    assert sweep(broken, tmp_path / "study") == 2
    assert f"{broken}, line 2: ZeroDivisionError" in capsys.readouterr().err
    broken.write_text("def get_study():\n    return 1\n")
    assert sweep(broken, tmp_path / "study") == 2
    assert "returns a int, wanted a tljax.ablation.grid.Study" in capsys.readouterr().err
    assert not (tmp_path / "study").exists()


def test_a_plan_says_what_is_left_and_starts_nothing(tmp_path, stand_ins, capsys):
    write_pictures(tmp_path / "pictures")
    write_model(tmp_path / "vit")
    file, workdir = write_file(tmp_path), tmp_path / "study"
    assert sweep(file, workdir, "--plan", "--config.finetune.epochs=2") == 0
    out = capsys.readouterr().out
    assert "runs     4: 2 cells x 2 seeds\n" in out
    assert "4 to do" in out
    assert "by XLA's count" in out
    assert "a lower bound" in out
    assert not workdir.exists()
    planned = plan_runs(tiny_study(tmp_path), workdir)
    for seconds, run in zip((10.0, 30.0), list(planned.runs.values())[:2], strict=True):
        Path(run.workdir).mkdir(parents=True)
        rundir.write_json(Path(run.workdir) / "config.json", {"task": "finetune", "config": run.config})
        rundir.write_json(Path(run.workdir) / "done.json", {"accuracy": 1.0, "seconds": seconds})
    # Each of the two that are left differs from one of these in its rate, from the other in its seed too.
    assert any(line.startswith("seconds  40 for 2 runs") for line in describe_costs(planned))


def test_flops_are_counted_from_where_the_steps_begin(tmp_path):
    write_pictures(tmp_path / "pictures")
    write_model(tmp_path / "vit")
    images = make_config(tmp_path, finetune={"epochs": 2, "evaluate_every": 1000})
    stored = {**images, "prefix": {"dtype": "float32", "batch_size": 8}}
    stored["finetune"] = {**images["finetune"], "cache": "always"}
    configs = [images, {**images, "seed": 1}, {**stored, "augment": {"views": 2}}, stored]
    runs = [Run(task="finetune", config=config, workdir=tmp_path / "run") for config in configs]
    one, other, twice, once = count_runs(runs)
    assert one is other
    assert not one.stores
    [(prefix, size)], [(prefix_twice, size_twice)] = once.stores.values(), twice.stores.values()
    assert (prefix_twice, size_twice) == (2 * prefix, 2 * size)
    # 4 steps an epoch of 8 images, one validation and the test, each of 24: what they skip is the prefix.
    shown = 2 * 32 + 24 + 24
    assert one.flops - once.flops == pytest.approx(prefix / 80 * shown, rel=0.01)


def test_an_unfinished_directory_counts_as_half_finished(tmp_path):
    run = next(iter(plan_runs(tiny_study(tmp_path), tmp_path / "study").runs.values()))
    assert progress_of(run) == "to do"
    Path(run.workdir, "checkpoints").mkdir(parents=True)
    Path(run.workdir, "checkpoints", "5").touch()
    assert progress_of(run) == "half-finished"
    rundir.write_json(Path(run.workdir) / "error.json", {"error": "x", "attempts": 1})
    assert progress_of(run) == "failed"
    with rundir.only_process(run.workdir):
        assert progress_of(run) == "running"
    shutil.rmtree(run.workdir)


def test_an_error_record_is_no_work(tmp_path):
    rundir.write_json(tmp_path / "error.json", {"error": "x", "attempts": 1})
    assert not rundir.has_work(tmp_path)
