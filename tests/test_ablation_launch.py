import dataclasses
import math
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests import stand_in
from tests.cluster import tiny
from tests.small_runs import make_config, write_model, write_pictures
from tests.stand_in import ROOT, await_holds, events, expect_holds, starts, wait_until_free, write_plan
from tljax import cli, launching, rundir
from tljax.ablation import local_pool
from tljax.ablation.launch import launch
from tljax.ablation.local_pool import LocalPool
from tljax.ablation.runs import Run, begin_log, log_tail, prepare
from tljax.ablation.slurm import Slurm
from tljax.arguments import parse_config
from tljax.launching import parse_seeds
from tljax.tasks.launching import find_results, launch_tasks, runs_of_seeds

PROGRAM = (sys.executable, stand_in.__file__)
# `tljax`, whose runs are stand-ins.
LAUNCHER = f"""
import signal, sys
from jax._src import xla_bridge
from tljax.ablation import local_pool
from tljax.cli import main
local_pool.PROGRAM = {PROGRAM!r}
# As in a terminal, also where the tests run in the background of a shell, which has it ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
status = main(sys.argv[1:])
assert not xla_bridge.backends_are_initialized(), "the launcher holds devices, which are for its runs"
sys.exit(status)
"""


@pytest.fixture
def stand_ins(monkeypatch):
    monkeypatch.setattr(local_pool, "PROGRAM", PROGRAM)


def find(run):
    done = Path(run.workdir, "done.json")
    return rundir.read_json(done) if done.exists() else None


def runs_in(root, names):
    return [Run(task="finetune", config={"seed": 0}, workdir=root / name) for name in names]


def launch_all(root, names, **pool):
    return launch(runs_in(root, names), LocalPool(**pool), find=find)


def states(outcomes):
    return [outcome.state for outcome in outcomes]


def printed(outcome):
    assert outcome.log is not None
    return log_tail(outcome.log)


def command(root, *flags, seeds="0,1"):
    config = f"--config=tests/cluster/tiny.py:{root}"
    return ["launch", "finetune", config, f"--workdir={root}", f"--seeds={seeds}", "--on=local", *flags]


def start_launcher(root, *flags):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    call = [sys.executable, "-c", LAUNCHER, *command(root, *flags)]
    return subprocess.Popen(call, cwd=ROOT, env=environment, start_new_session=True)


def test_as_many_run_at_a_time_as_the_pool_has_room_for(tmp_path, stand_ins):
    # Two that meet have to run together; all six would be there at once without a cap.
    write_plan(tmp_path, a="meet x", b="meet x", c="meet y", d="meet y", e="meet z", f="meet z")
    assert states(launch_all(tmp_path, "abcdef", max_parallel=2)) == ["done"] * 6
    active = most = 0
    for what, _ in events(tmp_path):
        active += 1 if what == "start" else -1
        most = max(most, active)
    assert most == 2


def test_a_run_that_fails_stops_no_other_and_shows_what_it_printed(tmp_path, stand_ins):
    write_plan(tmp_path, a="finish", b="fail", c="raise", d="finish")
    outcomes = launch_all(tmp_path, "abcd")
    assert states(outcomes) == ["done", "failed", "failed", "done"]
    assert [outcome.run.workdir for outcome in outcomes] == [tmp_path / name for name in "abcd"]
    assert outcomes[0].results == {"accuracy": 0.5}
    assert outcomes[1].detail == "exit status 2"
    assert printed(outcomes[1]).split("\n")[1:] == ["finetune b: fail", "it did not work"]
    assert printed(outcomes[2]).endswith("RuntimeError: something broke")
    assert [len(starts(tmp_path / name)) for name in "abcd"] == [1, 1, 1, 1]


def test_a_finished_run_is_not_started_and_a_failed_one_is(tmp_path, stand_ins):
    write_plan(tmp_path, a="finish", b="fail, finish")
    assert states(launch_all(tmp_path, "ab")) == ["done", "failed"]
    outcomes = launch_all(tmp_path, "ab")
    assert states(outcomes) == ["done", "done"]
    assert outcomes[0].results == {"accuracy": 0.5}
    assert [len(starts(tmp_path / name)) for name in "ab"] == [1, 2]
    assert states(launch_all(tmp_path, "ab")) == ["done", "done"]
    assert [len(starts(tmp_path / name)) for name in "ab"] == [1, 2]


def test_failures_are_tried_again_on_request_and_interruptions_always(tmp_path, stand_ins):
    write_plan(tmp_path, a="fail, fail, finish", b="fail", c="give way, give way, finish", d="give way")
    outcomes = launch_all(tmp_path, "abcd", retries=2, max_requeues=2, max_parallel=2)
    assert states(outcomes) == ["done", "failed", "done", "preempted"]
    assert [len(starts(tmp_path / name)) for name in "abcd"] == [3, 3, 3, 3]
    assert outcomes[3].detail == "interrupted 3 times, see max_requeues"


def test_a_killed_launcher_ends_its_runs_and_another_goes_on_with_them(tmp_path):
    write_plan(tmp_path, seed_0="hold, finish", seed_1="hold, finish")
    holds = expect_holds(tmp_path, ["seed_0", "seed_1"])
    launcher = start_launcher(tmp_path, "--max_parallel=2")
    await_holds(holds)
    launcher.kill()
    launcher.wait()
    for name in ("seed_0", "seed_1"):
        wait_until_free(tmp_path / name)
    # Not killed: they had the time to save.
    assert sorted(events(tmp_path)[2:]) == [["end", "seed_0"], ["end", "seed_1"]]
    again = start_launcher(tmp_path, "--max_parallel=2")
    assert again.wait(stand_in.ALARM_S) == 0
    assert [len(starts(tmp_path / name)) for name in ("seed_0", "seed_1")] == [2, 2]


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 85)])
def test_a_launcher_that_is_told_to_end_lets_its_runs_save(tmp_path, number, status):
    write_plan(tmp_path, seed_0="hold", seed_1="hold")
    holds = expect_holds(tmp_path, ["seed_0", "seed_1"])
    launcher = start_launcher(tmp_path, "--max_parallel=2")
    await_holds(holds)
    # As a terminal does with Ctrl-C.
    os.killpg(launcher.pid, number)
    assert launcher.wait(stand_in.ALARM_S) == status
    assert sorted(events(tmp_path)[2:]) == [["end", "seed_0"], ["end", "seed_1"]]
    assert not any(rundir.is_in_use(tmp_path / name) for name in ("seed_0", "seed_1"))


@pytest.mark.parametrize(("plan", "status", "num_starts"), [("hold, finish", 85, 2), ("linger, fail", 0, 1)])
def test_a_run_that_another_process_works_on_is_waited_for(tmp_path, plan, status, num_starts):
    write_plan(tmp_path, seed_0=plan, seed_1="hold, finish")
    holds = expect_holds(tmp_path, ["seed_0", "seed_1"])
    run = Run(task="finetune", config=make_config(tmp_path, finetune=tiny.FINETUNE), workdir=tmp_path / "seed_0")
    other = subprocess.Popen([*PROGRAM, *prepare(run)])
    await_holds({"seed_0": holds.pop("seed_0")})
    launcher = start_launcher(tmp_path)
    await_holds(holds)
    # With room for one it has passed over the first.
    assert starts(tmp_path / "seed_0") == [other.pid]
    for pid in (other.pid, *starts(tmp_path / "seed_1")):
        os.kill(pid, signal.SIGTERM)
    assert other.wait(stand_in.ALARM_S) == status
    assert launcher.wait(stand_in.ALARM_S) == 0
    assert [len(starts(tmp_path / name)) for name in ("seed_0", "seed_1")] == [num_starts, 2]


def test_a_second_launcher_is_kept_out(tmp_path, stand_ins):
    write_plan(tmp_path, a="finish")
    with (
        rundir.only_process(tmp_path / "a" / "launch"),
        pytest.raises(ValueError, match="another process works in .*launch"),
    ):
        launch_all(tmp_path, "a")
    assert states(launch_all(tmp_path, "a")) == ["done"]


def test_runs_share_the_gpus_without_sharing_one(tmp_path, monkeypatch):
    program = "import os; print(os.environ['CUDA_VISIBLE_DEVICES'])"
    monkeypatch.setattr(local_pool, "PROGRAM", (sys.executable, "-c", program))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
    outcomes = launch_all(tmp_path, "abcdef", max_parallel=2, gpus_per_run=2)
    assert {printed(outcome).split("\n")[1] for outcome in outcomes} == {"4,5", "6,7"}
    with pytest.raises(ValueError, match="3 runs at a time with 2 GPUs each want 6, and CUDA_VISIBLE_DEVICES names 4"):
        launch_all(tmp_path, "xyz", max_parallel=3, gpus_per_run=2)


def test_a_run_is_no_process_of_the_job_that_its_launcher_is_in(tmp_path, monkeypatch):
    program = "import os, sys; sys.exit(any(name.startswith(('SLURM', 'OMPI')) for name in os.environ))"
    monkeypatch.setattr(local_pool, "PROGRAM", (sys.executable, "-c", program))
    for name in ("SLURM_NTASKS", "SLURM_PROCID", "OMPI_COMM_WORLD_SIZE"):
        monkeypatch.setenv(name, "2")
    assert launch_all(tmp_path, "a")[0].detail == "ended without results, exit status 0"


def test_the_end_of_a_log_is_the_error_of_the_last_start(tmp_path):
    log = tmp_path / "log.txt"
    assert log_tail(log) == ""
    begin_log(log)
    with open(log, "a") as file:
        file.write("tljax: an old error\n")
    begin_log(log)
    with open(log, "a") as file:
        file.write("".join(f"line {number}\n" for number in range(30)) + "step 1\rstep 2\rstep 3\n\n")
    assert log_tail(log).split("\n") == [*(f"line {number}" for number in range(19, 30)), "step 3"]
    with open(log, "a") as file:
        file.write("tljax: no room\n  make some\n" + "more\n" * 30)
    assert log_tail(log).split("\n") == ["tljax: no room", "  make some", *["more"] * 10]


def test_the_config_of_a_run_is_to_the_bit_the_one_given(tmp_path):
    values = {
        "seed": 3, "a": {}, "rate": 0.1 + 0.2, "far": math.inf, "text": "it's \"so\"\n" * 30, "none": None,
        "taps": ("x", ("y", 1)), "phases": [{"epochs": 1}, {"epochs": 2}], "on": True,
    }  # fmt: skip
    _, config, workdir = prepare(Run(task="probe", config=values, workdir=tmp_path / "run"))
    assert parse_config(["probe", config]) == values
    assert workdir == f"--workdir={tmp_path / 'run'}"
    assert not rundir.has_work(tmp_path / "run")
    for value in (object(), tmp_path, {1: 2}, {"a.b": 1}, [float, 1]):
        with pytest.raises(ValueError, match="config.here"):
            prepare(Run(task="probe", config={"here": value}, workdir=tmp_path / "other"))


def test_what_cannot_be_launched_is_refused_before_anything_starts(tmp_path, stand_ins):
    config = make_config(tmp_path)
    run = Run(task="finetune", config=config, workdir=tmp_path / "run")
    pool = LocalPool()
    (tmp_path / "run").mkdir()
    rundir.write_json(tmp_path / "run" / "config.json", {"task": "finetune", "config": {**config, "seed": 9}})
    rundir.write_json(tmp_path / "run" / "done.json", {})
    other = dataclasses.replace(run, workdir=tmp_path / "other")
    with pytest.raises(ValueError, match="two runs have the workdir .*\n.*holds a run of another config.*\n.*seed: 9"):
        launch_tasks([other, other, run], pool)
    with pytest.raises(ValueError, match="no key 'sed' .did you mean 'seed'"):
        launch_tasks([dataclasses.replace(other, config={**config, "sed": 1})], pool)
    with pytest.raises(ValueError, match="no task 'explain' that leaves results; wanted one of extract, finetune"):
        launch_tasks([dataclasses.replace(other, task="explain")], pool)
    with pytest.raises(ValueError, match="a local pool ends with its launcher"):
        launch_tasks([other], pool, wait=False)
    with pytest.raises(ValueError, match="2 tasks of SLURM would train together, and probe runs in one process"):
        launch_tasks([dataclasses.replace(other, task="probe")], Slurm(timeout_min=60, tasks=2))
    assert not (tmp_path / "other").exists()


def test_how_a_run_is_executed_does_not_make_it_another(tmp_path):
    config = make_config(tmp_path)
    run = Run(task="finetune", config={**config, "execution": {"fsdp": 2}}, workdir=tmp_path)
    rundir.write_json(tmp_path / "config.json", {"task": "finetune", "config": config})
    rundir.write_json(tmp_path / "done.json", {"accuracy": 1.0})
    assert find_results(run) == {"accuracy": 1.0}


def test_seeds_are_runs_of_their_own():
    run = Run(task="finetune", config={"seed": 0, "a": 1}, workdir="runs/x")
    first, second = runs_of_seeds(run, parse_seeds("7,3"))
    assert (first.config, first.workdir) == ({"seed": 7, "a": 1}, "runs/x/seed_7")
    assert (second.config, second.workdir) == ({"seed": 3, "a": 1}, "runs/x/seed_3")
    assert parse_seeds("0-3,8, 10-11") == [0, 1, 2, 3, 8, 10, 11]
    for text in ("", "a", "3-", "-3", "1,1", "0-4,2", "4-2", "1,,2"):
        with pytest.raises(ValueError, match=f"--seeds={text}"):
            parse_seeds(text)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "wanted a TASK first"),
        (["--on=local", "finetune"], "wanted a TASK first"),
        (["finetune"], "--workdir and --on missing"),
        (["finetune", "--workdir=x", "--on=locl"], "--on=locl, wanted local or slurm (did you mean 'local'?)"),
        (["finetune", "--workdir=x", "--on=local", "--partition=a"], "--partition is not for --on=local"),
        (["finetune", "--workdir=x", "--on=slurm"], "--timeout_min is missing"),
        (["finetune", "--workdir=x", "--on=local", "--max_parallel=0"], "max_parallel is 0, wanted at least 1"),
        (["finetune", "--workdir=x", "--on=local"], "--config is missing: tljax launch finetune --config=FILE"),
        (["finetune", "--workdir=x", "--on=local", "--max_paralel=2", "--config=no.py"], "max_paralel"),
        (["finetune", "--workdir=x", "--on=slurm", "--timeout_min=9", "--tasks=3", "--nodes=2"], "3 tasks cannot be"),
        (
            ["finetune", "--workdir=x", "--on=slurm", "--timeout_min=9", "--tasks=2", "--gpus_per_task=2"],
            "wanted gpus_per_task=1 and tasks=4",
        ),
        (["finetune", "--workdir=x", "--on=slurm", "--timeout_min=2"], "raise timeout_min, or lower signal_delay_s"),
    ],
)
def test_mistakes_in_a_call_are_named(flags, message, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["launch", *flags]) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_launch_explains_itself_and_every_flag(capsys):
    assert cli.main(["launch", "--help"]) == 0
    text = capsys.readouterr().out
    for field in (*dataclasses.fields(LocalPool), *dataclasses.fields(Slurm)):
        assert f"--{field.name}" in text


def test_the_commands_of_the_document_are_understood(tmp_path, monkeypatch):
    calls = re.findall(r"`(tljax launch [^`]*--on=[^`]*)`", (ROOT / "docs" / "cluster.md").read_text())
    assert len(calls) == 2
    launched = []
    monkeypatch.setattr(launching, "launch_tasks", lambda runs, where, wait: launched.append((runs, where)) or [])
    monkeypatch.setattr(launching, "table", lambda outcomes: "")
    monkeypatch.chdir(ROOT)
    for call in calls:
        config = f"--config=tests/cluster/tiny.py:{tmp_path}"
        assert cli.main(call.replace("--config=FILE", config).split()[1:]) == 0
    assert [len(runs) for runs, _ in launched] == [8, 8]
    assert [where for _, where in launched] == [LocalPool(max_parallel=4), Slurm(timeout_min=240, gpus_per_task=1)]


def test_the_command_runs_seeds_and_says_how_each_ended(tmp_path, capsys, monkeypatch):
    """The one test here of runs that are real."""
    write_pictures(tmp_path / "pictures")
    write_model(tmp_path / "vit")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    features = {"taps": ["block_01"], "pooling": "cls", "views": 1, "dtype": "float32", "batch_size": 8}
    config = make_config(tmp_path, features=features)
    (tmp_path / "mine.py").write_text(
        f"import ml_collections\ndef get_config():\n    return ml_collections.ConfigDict({config})\n"
    )
    call = ["launch", "extract", f"--config={tmp_path / 'mine.py'}", f"--workdir={tmp_path / 'runs'}", "--on=local"]
    call += ["--seeds=0-1", "--max_parallel=2"]
    bad = tmp_path / "runs" / "seed_1"
    bad.mkdir(parents=True)
    rundir.write_json(bad / "inputs.json", {"images": "others"})
    (bad / "metrics.jsonl").touch()
    assert cli.main(call) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["seed_0  done", "seed_1  failed     exit status 2"]
    assert f"seed_1: the end of {bad / 'launch' / 'log.txt'}" in lines
    assert any("the inputs of the run in" in line for line in lines)
    assert find_results(Run(task="extract", config=config, workdir=tmp_path / "runs" / "seed_0"))
    before = (tmp_path / "runs" / "seed_0" / "done.json").stat().st_mtime_ns
    (bad / "metrics.jsonl").unlink()
    assert cli.main(call) == 0
    assert capsys.readouterr().out.splitlines() == ["seed_0  done", "seed_1  done"]
    assert (tmp_path / "runs" / "seed_0" / "done.json").stat().st_mtime_ns == before
