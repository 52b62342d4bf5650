"""A sweep trains runs together by itself, in one child process, and its table is that of the runs apart."""

import json
import shutil
import signal
import sys
from pathlib import Path

import pytest

from tests import stand_in_together
from tests.small_runs import make_config, write_model, write_pictures
from tests.stand_in import ROOT
from tests.test_sweep import RATE
from tests.test_tasks_together import assert_same_bits, assert_same_run, stop
from tljax import cli, rundir
from tljax.ablation import local_pool
from tljax.ablation.grid import Study
from tljax.ablation.local_pool import LocalPool
from tljax.ablation.runs import DONE, PENDING
from tljax.tasks import finetune, together_chunk
from tljax.tasks.replay import read_config, replay_run
from tljax.tasks.studies import count_progress, plan_runs
from tljax.tasks.together import TOGETHER, run_together
from tljax.tasks.together_files import folder_of, found_group
from tljax.tasks.together_jobs import Together, describe_division, divide, launch_together

PROGRAM = (sys.executable, stand_in_together.__file__)
# `tljax`, which gets a signal when it has written steps of its runs so often, unless that has happened before.
SIGNALLED = f"""
import os, signal, sys
sys.path.insert(0, {str(ROOT)!r})
from pathlib import Path
from tljax import cli, rundir
append, counts, marker = rundir.append_all, iter(range(6)), Path({{marker!r}})

def append_and_die(path, records):
    append(path, records)
    if next(counts, None) is None and not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.{{name}})

rundir.append_all = append_and_die
sys.exit(cli.main(sys.argv[1:]))
"""
FILE = """
from pathlib import Path
from tests.test_sweep_together import small_study

def get_study():
    return small_study(Path({root!r}), **{changes!r})
"""


def small_study(root, **changes):
    recipe = {"epochs": 2, "checkpoint_every": 2, "evaluate_every": 4, "cache": "always"}
    settings = {
        "slug": "small", "title": "Small", "question": "Together?", "task": "finetune", "metric": "accuracy",
        "config": make_config(root, finetune=recipe, prefix={"dtype": "float32", "batch_size": 8}),
        "factors": {RATE: [0.01, 0.1]}, "seeds": [0, 1],
    }  # fmt: skip
    return Study(**{**settings, **changes})


def write_file(root, **changes):
    (root / "sweep.py").write_text(FILE.format(root=str(root), changes=changes))
    return root / "sweep.py"


def sweep(file, workdir, *flags):
    return cli.main(["sweep", str(file), f"--workdir={workdir}", *flags])


def commands_of(monkeypatch):
    """The tasks of the child processes that a sweep starts, in order."""
    found, start = [], local_pool._start

    def note(run, gpus):
        found.append(run.task)
        return start(run, gpus)

    monkeypatch.setattr(local_pool, "_start", note)
    return found


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep_together")
    write_pictures(folder / "pictures")
    write_model(folder / "vit")
    return folder


@pytest.fixture(scope="module")
def whole(root):
    """A finished study, and the tasks of the processes that it took."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        commands = commands_of(patch)
        assert sweep(write_file(root), root / "whole", "--max_parallel=2") == 0
    return root / "whole", commands


def test_one_process_trains_all_runs_of_a_study(root, whole, tmp_path):
    study, commands = whole
    assert commands == ["together"]
    runs = list(plan_runs(small_study(root), study).runs.values())
    facts = [rundir.read_json(Path(run.workdir) / "env.json")[-1][TOGETHER] for run in runs]
    assert [(each["place"], each["runs"]) for each in facts] == [(place, 4) for place in range(4)]
    assert {rundir.read_json(Path(run.workdir) / "done.json")["share_reused"] for run in runs} == {0.0}
    for run in runs[3:]:
        alone = finetune.run(run.config, tmp_path / Path(run.workdir).name)
        assert_same_run(Path(run.workdir), tmp_path / Path(run.workdir).name, rtol=1e-5)
        # The prefix that the child has stored.
        assert alone["share_reused"] == 1.0
    assert sweep(root / "sweep.py", study) == 0
    assert commands == ["together"]


@pytest.mark.slow
def test_a_child_that_is_told_to_end_saves_and_goes_on(root, whole, tmp_path, monkeypatch):
    code = SIGNALLED.format(marker=str(tmp_path / "told"), name="SIGTERM")
    monkeypatch.setattr(local_pool, "PROGRAM", (sys.executable, "-c", code))
    commands = commands_of(monkeypatch)
    assert sweep(write_file(root), root / "told") == 0
    assert commands == ["together"] * 2
    assert (root / "told" / "results.csv").read_bytes() == (whole[0] / "results.csv").read_bytes()


@pytest.mark.slow
def test_a_sweep_whose_child_is_killed_ends_with_the_same_table(root, whole, tmp_path, monkeypatch):
    code = SIGNALLED.format(marker=str(tmp_path / "killed"), name="SIGKILL")
    monkeypatch.setattr(local_pool, "PROGRAM", (sys.executable, "-c", code))
    commands = commands_of(monkeypatch)
    file, study = write_file(root), root / "killed"
    assert sweep(file, study) == 1
    planned = plan_runs(small_study(root), study)
    assert count_progress(planned) == {"done": 0, "running": 0, "half-finished": 4, "failed": 0, "to do": 0}
    assert sweep(file, study) == 0
    assert commands == ["together"] * 2
    assert (study / "results.csv").read_bytes() == (whole[0] / "results.csv").read_bytes()
    for run in planned.runs.values():
        assert_same_bits(Path(run.workdir), whole[0] / "runs" / Path(run.workdir).name)
        assert folder_of(run) is None


def test_a_replay_of_a_run_that_trained_with_others_gives_its_bits(root, whole):
    name = list(plan_runs(small_study(root), whole[0]).runs)[2]
    run = whole[0] / "runs" / name
    again = run.with_name("again")
    found = replay_run(run, read_config(run), again)
    assert found.differences == ()
    assert found.causes == ()
    facts = rundir.read_json(again / "env.json")[-1][TOGETHER]
    assert (facts["place"], facts["runs"]) == (2, 4)
    assert not (run.parent / ".together").exists()
    # Alone its sums are in another order, and the record says so.
    starts = rundir.read_json(again / "env.json")
    del starts[-1][TOGETHER]
    rundir.write_json(again / "env.json", starts)
    assert any("together" in line for line in replay_run(run, read_config(run), again).causes)


def plan_ends(root, study, **plans):
    """Say how runs end, the first of them as run_0, and return their names."""
    (study / "runs").mkdir(parents=True)
    names = list(plan_runs(small_study(root), study).runs)
    plan = {names[int(name[4:])] if name != "job" else name: end for name, end in plans.items()}
    rundir.write_json(study / "runs" / stand_in_together.PLAN, plan)
    return names


def starts_of(study, names):
    """The processes: the task of each and the numbers of its runs."""
    rows = map(json.loads, (study / "runs" / stand_in_together.STARTS).read_text().splitlines())
    return [(task, sorted(map(names.index, runs))) for task, runs in rows]


@pytest.fixture
def stand_ins(monkeypatch):
    monkeypatch.setattr(local_pool, "PROGRAM", PROGRAM)


def test_a_member_that_fails_is_recorded_apart_and_one_that_cannot_runs_alone(root, stand_ins, tmp_path, capsys):
    study = tmp_path / "study"
    names = plan_ends(root, study, run_1="failed", run_3="pending")
    file = write_file(root)
    assert sweep(file, study) == 1
    assert starts_of(study, names) == [("together", [0, 1, 2, 3]), ("finetune", [3])]
    assert rundir.read_json(study / "runs" / names[1] / "error.json") == {"error": "it is failed", "attempts": 1}
    assert "3 done, 1 failed" in capsys.readouterr().out
    assert sweep(file, study) == 1
    assert len(starts_of(study, names)) == 2
    assert sweep(file, study, "--retry_failed") == 0
    assert starts_of(study, names)[2:] == [("finetune", [1])]
    assert not list((study / "runs").glob("*/error.json"))


def test_a_job_that_fails_fails_its_unfinished_runs_alone(root, stand_ins, tmp_path):
    names = plan_ends(root, tmp_path / "study", run_2="failed", run_3="failed", job=3)
    file = write_file(root)
    assert sweep(file, tmp_path / "study") == 1
    for name in names[2:]:
        error = rundir.read_json(tmp_path / "study" / "runs" / name / "error.json")
        assert error["error"].startswith("exit status 3\n")
        assert "it did not work" in error["error"]
    assert count_progress(plan_runs(small_study(root), tmp_path / "study"))["done"] == 2
    assert sweep(file, tmp_path / "study", "--retry_failed") == 0
    # What has failed takes no other with it again.
    assert starts_of(tmp_path / "study", names)[1:] == [("finetune", [2]), ("finetune", [3])]


def test_a_job_that_is_killed_has_failed_no_run(root, stand_ins, tmp_path):
    names = plan_ends(root, tmp_path / "study", run_0="pending", run_3="failed", job=-signal.SIGKILL)
    planned = plan_runs(small_study(root), tmp_path / "study")
    assert sweep(write_file(root), tmp_path / "study") == 1
    assert count_progress(planned)["failed"] == 0
    assert count_progress(planned)["done"] == 2
    rundir.write_json(tmp_path / "study" / "runs" / "plan.json", {})
    assert sweep(root / "sweep.py", tmp_path / "study") == 0
    assert starts_of(tmp_path / "study", names)[1:] == [("together", [0, 3])]


def test_what_cannot_train_together_has_processes_of_its_own(root, stand_ins, tmp_path, capsys):
    levels = {"low": {RATE: 0.01}, "high": {RATE: 0.1}, "images": {"finetune.cache": "never"}}
    file = write_file(root, factors={"way": levels})
    (tmp_path / "study" / "runs").mkdir(parents=True)
    rundir.write_json(tmp_path / "study" / "runs" / "plan.json", {})
    planned = plan_runs(small_study(root, factors={"way": levels}), tmp_path / "study")
    names = list(planned.runs)
    assert sweep(file, tmp_path / "study", "--plan") == 0
    out = capsys.readouterr().out
    assert "together 4 in one process, as they differ in numbers alone\n" in out
    assert "alone    2, as it trains from images, as finetune.cache is 'never'\n" in out
    assert describe_division(list(planned.runs.values()), Together(choice="never")) == []
    assert sweep(file, tmp_path / "study", "--max_parallel=3", "--together_gb=2") == 0
    wanted = [("finetune", [4]), ("finetune", [5]), ("together", [0, 1, 2, 3])]
    assert sorted(starts_of(tmp_path / "study", names)) == wanted
    [job] = (tmp_path / "study" / "runs" / "launch").glob("together_*")
    assert "'budget_gb': 2.0" in (job / "launch" / "config.py").read_text()
    assert "'num_sharing': 3" in (job / "launch" / "config.py").read_text()
    for name in names[1:3]:
        shutil.rmtree(tmp_path / "study" / "runs" / name)
    assert sweep(file, tmp_path / "study") == 0
    assert starts_of(tmp_path / "study", names)[3:] == [("together", [1, 2])]


def test_together_can_be_turned_off(root, stand_ins, tmp_path, capsys):
    names = plan_ends(root, tmp_path / "study")
    file = write_file(root)
    assert sweep(file, tmp_path / "study", "--together=always") == 2
    assert "together is 'always', wanted 'auto' or 'never'" in capsys.readouterr().err
    assert sweep(file, tmp_path / "study", "--together_gb=0") == 2
    assert sweep(file, tmp_path / "study", "--on=slurm", "--timeout_min=9", "--together_gb=1") == 2
    assert "--together and --together_gb are for --on=local" in capsys.readouterr().err
    assert sweep(file, tmp_path / "study", "--together=never") == 0
    assert starts_of(tmp_path / "study", names) == [("finetune", [place]) for place in range(4)]


def test_runs_that_have_begun_together_begin_again_alone_where_that_is_wanted(root, stand_ins, tmp_path):
    names = plan_ends(root, tmp_path / "study")
    runs = list(plan_runs(small_study(root), tmp_path / "study").runs.values())
    for run in runs:
        Path(run.workdir).mkdir()
    found_group(runs[:2])
    # Also the last one that is left of a group, and one that has failed in it.
    rundir.write_json(Path(runs[0].workdir) / "error.json", {"error": "x", "attempts": 1})
    assert [each.why_alone for each in divide(runs[:1])] == [None]
    with rundir.only_process(runs[1].workdir), pytest.raises(ValueError, match="another process works in"):
        launch_together(runs, LocalPool(), together=Together(choice="never"))
    outcomes = launch_together(runs, LocalPool(max_parallel=4), together=Together(choice="never"))
    assert [outcome.state for outcome in outcomes] == [DONE] * 4
    assert {task for task, _ in starts_of(tmp_path / "study", names)} == {"finetune"}
    assert [folder_of(run) for run in runs] == [None] * 4


def test_a_run_in_which_another_process_works_is_left_to_it(root, tmp_path):
    run = next(iter(plan_runs(small_study(root), tmp_path / "study").runs.values()))
    with rundir.only_process(run.workdir):
        [outcome] = run_together([run])
    assert (outcome.state, outcome.detail) == (PENDING, "another process works in its directory")


@pytest.mark.slow
def test_a_member_that_is_finished_is_not_written_again(whole, root, tmp_path):
    """As by a kill between the results of two members."""
    runs = list(plan_runs(small_study(root), tmp_path / "study").runs.values())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(together_chunk, "_conclude", stop)
        with pytest.raises(KeyboardInterrupt):
            run_together(runs)
    finished = Path(runs[1].workdir)
    rundir.write_json(finished / "done.json", {"accuracy": 0.5})
    before = {path: path.stat().st_mtime_ns for path in finished.glob("[!.]*")}
    assert [outcome.state for outcome in run_together(runs)] == [DONE] * 4
    assert before == {path: path.stat().st_mtime_ns for path in finished.glob("[!.]*")}
    for run in (runs[0], runs[2]):
        assert_same_bits(Path(run.workdir), whole[0] / "runs" / Path(run.workdir).name)
