"""Jobs of SLURM without SLURM: its commands are scripts that say what a test tells them to.

`make test-cluster` has the real one.
"""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests import stand_in
from tests.stand_in import starts, write_plan
from tljax import rundir
from tljax.ablation import slurm_follow, slurm_queue
from tljax.ablation.launch import launch
from tljax.ablation.runs import Run, log_tail, prepare
from tljax.ablation.slurm import Slurm
from tljax.ablation.slurm_queue import Queued

# Each call goes to calls.txt. squeue answers with queue_1.txt, then queue_2.txt and so on, the last again and again, in
# which NAME is the name of the latest job.
COMMAND = """#!/usr/bin/env bash
cd {folder}
echo "$(basename "$0") $*" >>calls.txt
case $(basename "$0") in
  sbatch)
    [ -e refuses ] && {{ echo "sbatch: error: invalid partition" >&2; exit 1; }}
    cp "$1" script.sh
    sed -n 's/.*--job-name=//p' script.sh >name.txt
    echo "Submitted batch job $(grep -c sbatch calls.txt)" ;;
  squeue)
    [ -e is_down ] && {{ echo "slurm_load_jobs error: Unable to contact slurm controller" >&2; exit 1; }}
    number=$(grep -c squeue calls.txt)
    while [ ! -e queue_$number.txt ] && [ $number -gt 0 ]; do number=$((number - 1)); done
    [ $number = 0 ] || sed "s/NAME/$(cat name.txt 2>/dev/null)/" queue_$number.txt ;;
  scontrol)
    # As SLURM ends a job that it queues again.
    kill -TERM $PPID ;;
esac
"""
RUN_JOB = f"""
import signal, sys
from tljax.ablation import slurm_job
slurm_job.PROGRAM, slurm_job._PATIENCE_S = {stand_in.__name__!r}, 20
# As submitit does.
signal.signal(signal.SIGTERM, lambda *_: None)
folder, limit, *arguments = sys.argv[1:]
slurm_job.run_job(arguments, folder, int(limit))
"""


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    folder = tmp_path / "slurm"
    folder.mkdir()
    for name in ("sbatch", "scontrol", "squeue", "srun"):
        (folder / name).write_text(COMMAND.format(folder=folder))
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder


def answer(cluster, *queues):
    """Let squeue say, call after call, what each list of lines says."""
    for number, lines in enumerate(queues):
        (cluster / f"queue_{number + 1}.txt").write_text("".join(f"{line}\n" for line in lines))


def calls(cluster, name):
    lines = (cluster / "calls.txt").read_text().splitlines()
    return [line for line in lines if line.split()[0] == name]


def find(run):
    done = Path(run.workdir, "done.json")
    return rundir.read_json(done) if done.exists() else None


def launch_all(root, names, *, wait=True, **slurm):
    runs = [Run(task="finetune", config={"seed": 0}, workdir=root / "runs" / name) for name in names]
    return launch(runs, Slurm(**{"timeout_min": 60, "poll_s": 0.0, **slurm}), find=find, wait=wait)


def states(outcomes):
    return [outcome.state for outcome in outcomes]


def test_the_script_asks_for_what_the_settings_say(tmp_path, cluster):
    outcomes = launch_all(
        tmp_path, "abc", wait=False, timeout_min=90, partition="gpu", tasks=8, nodes=2, gpus_per_task=1,
        cpus_per_task=6, memory_gb=1.5, max_parallel=2, account="vision", qos="long", constraint="h100",
        extra={"exclusive": True, "mail-type": "END"}, setup=("module load cuda", "echo hello"), signal_delay_s=60,
    )  # fmt: skip
    assert states(outcomes) == ["running"] * 3
    text = (cluster / "script.sh").read_text()
    options = sorted(line.removeprefix("#SBATCH --") for line in text.splitlines() if line.startswith("#SBATCH"))
    name = (cluster / "name.txt").read_text().strip()
    output = tmp_path / "runs" / "launch" / "submitit" / "%A_%a_0_log.out"
    assert options == [
        "account=vision", "array=0-2%2", "constraint=h100", "cpus-per-task=6", "exclusive", "gpus-per-node=4",
        f"job-name={name}", "mail-type=END", "mem=1536M", "nodes=2", "ntasks-per-node=4", "open-mode=append",
        f"output={output}", "partition=gpu", "qos=long", "requeue", "signal=TERM@60", "time=90", "wckey=submitit",
    ]  # fmt: skip
    assert text.index("module load cuda\necho hello") < text.index("srun ")
    assert name.startswith("finetune-")


def test_what_is_not_said_is_left_to_the_cluster(tmp_path, cluster):
    launch_all(tmp_path, "a", wait=False)
    text = (cluster / "script.sh").read_text()
    options = {line.removeprefix("#SBATCH --").partition("=")[0] for line in text.splitlines() if "#SBATCH" in line}
    assert options == {
        "cpus-per-task", "job-name", "nodes", "ntasks-per-node", "open-mode", "output", "requeue", "signal", "time",
        "wckey",
    }  # fmt: skip


def test_a_second_launcher_finds_the_jobs_and_submits_only_what_is_lost(tmp_path, cluster):
    answer(cluster, [], ["NAME 1_0 RUNNING 0 None", "NAME 1_1 PENDING 0 Resources (or so)"])
    assert states(launch_all(tmp_path, "ab", wait=False)) == ["running", "pending"]
    (tmp_path / "runs" / "a" / "done.json").write_text('{"accuracy": 1.0}')
    outcomes = launch_all(tmp_path, "ab", wait=False)
    assert states(outcomes) == ["done", "pending"]
    assert outcomes[1].detail == "job 1_1 waits: Resources (or so)"
    assert len(calls(cluster, "sbatch")) == 1
    # Another user's job of the same name, or place, is not ours; nor is one of an earlier launch.
    answer(cluster, *[["other 1_1 RUNNING 0 None", "NAME 1_0 RUNNING 0 None"]] * 10)
    launch_all(tmp_path, "ab", wait=False)
    assert len(calls(cluster, "sbatch")) == 2


def test_a_launcher_killed_before_it_hears_of_its_job_finds_it(tmp_path, cluster, monkeypatch):
    answer(cluster, [], [])
    (cluster / "refuses").touch()
    with pytest.raises(ValueError, match="SLURM has not taken the job: .*invalid partition"):
        launch_all(tmp_path, "a", wait=False)
    # All that the launcher knows is on disk before sbatch is called.
    name = rundir.read_json(tmp_path / "runs" / "a" / "launch" / "job.json")["name"]
    answer(cluster, *[[f"{name} 7 RUNNING 0 None"]] * 5)
    outcomes = launch_all(tmp_path, "a", wait=False)
    assert (states(outcomes), outcomes[0].detail) == (["running"], "job 7 is RUNNING")
    assert len(calls(cluster, "sbatch")) == 1


@pytest.fixture
def followed(tmp_path, monkeypatch):
    """Returns a function that follows runs while the queue and their directories change as told, look by look.

    It takes the names of the runs, a list of (queue, files), the jobs of the queue by run and files that appear before
    it, and a list for what is told of ends: (how many looks are left, run, state).
    """

    def follow(names, looks, *, wait_min=1.0, retries=0, told=None):
        runs = [Run(task="finetune", config={}, workdir=tmp_path / name) for name in names]
        for index, run in enumerate(runs):
            run.folder.mkdir(parents=True)
            rundir.write_json(run.folder / "job.json", {"name": "job", "index": index})
        left = list(looks)
        submitted = []

        def look():
            queue, files = left.pop(0)
            for name, value in files.items():
                rundir.write_json(tmp_path / name, value)
            return {("job", names.index(name)): queued for name, queued in queue.items()}

        def submit(again):
            for run in again:
                (run.folder / "ended.json").unlink()
            submitted.append([Path(run.workdir).name for run in again])

        monkeypatch.setattr(slurm_follow, "read_queue_patiently", look)
        monkeypatch.setattr(slurm_follow, "sleep", lambda seconds: None)
        patience = slurm_follow.Patience(poll_s=1.0, wait_min=wait_min, retries=retries)

        def note(outcome):
            assert told is not None
            told.append((len(left), Path(outcome.run.workdir).name, outcome.state))

        outcomes = slurm_follow.follow(runs, find, submit, patience, None if told is None else note)
        assert not left, "it did not look so often"
        return outcomes, submitted

    return follow


def job(state="RUNNING", restarts=0, reason="None"):
    return Queued(job_id="1_0", state=state, restarts=restarts, reason=reason)


def ended(status, process=0):
    return {"process": process, "status": status, "reason": f"status {status}"}


def test_runs_are_followed_to_their_ends(followed, caplog):
    everything, told = {name: job() for name in "abcd"}, []
    with caplog.at_level("INFO"):
        outcomes, _ = followed(
            "abcd",
            [
                ({"a": job("PENDING"), "b": job("CONFIGURING"), "c": job("PENDING", 2, "BeginTime"), "d": job()}, {}),
                (everything, {}),
                # A process has ended, and its job not yet.
                (everything, {"b/launch/ended.json": ended(2, process=1), "d/launch/ended.json": ended(85)}),
                ({"c": job("COMPLETING")}, {"a/done.json": {"accuracy": 1.0}}),
                ({}, {}), ({}, {}), ({}, {}),
            ],
            told=told,
        )  # fmt: skip
    # At once, and once.
    assert told == [(3, "a", "done"), (3, "b", "failed"), (3, "d", "preempted"), (0, "c", "failed")]
    assert states(outcomes) == ["done", "failed", "failed", "preempted"]
    assert outcomes[0].results == {"accuracy": 1.0}
    assert outcomes[1].detail == "status 2"
    assert outcomes[1].log.name == "log_1.txt"
    assert outcomes[2].detail.startswith("the job has ended without results: a process lost")
    assert caplog.messages == [
        "1 pending, 1 preempted, 2 running", "4 running", "1 done, 1 failed, 1 preempted, 1 running",
        "1 done, 2 failed, 1 preempted",
    ]  # fmt: skip


def test_results_that_come_late_count(followed):
    outcomes, _ = followed("a", [({"a": job()}, {}), ({}, {}), ({}, {}), ({}, {"a/done.json": {"accuracy": 1.0}})])
    assert states(outcomes) == ["done"]


def test_a_failed_run_is_submitted_again_on_request_only(followed):
    end = {"b/launch/ended.json": ended(2)}
    both = {"a": job(), "b": job()}
    looks, told = [({"a": job()}, end), (both, {}), ({}, {**end, "a/done.json": {"accuracy": 1.0}})], []
    outcomes, submitted = followed("ab", looks, retries=1, told=told)
    assert told == [(0, "a", "done"), (0, "b", "failed")]
    assert states(outcomes) == ["done", "failed"]
    assert submitted == [["b"]]


def test_waiting_has_an_end(followed):
    outcomes, _ = followed("a", [({"a": job("PENDING", 0, "Priority")}, {})], wait_min=0.0)
    assert (states(outcomes), outcomes[0].detail) == (["pending"], "job 1_0 waits: Priority")


def test_slurm_that_does_not_answer_is_asked_again_for_a_while(tmp_path, cluster, monkeypatch):
    (cluster / "is_down").touch()
    sleeps = []

    def sleep(seconds):
        sleeps.append(seconds)
        if len(sleeps) == 3:
            (cluster / "is_down").unlink()

    monkeypatch.setattr(slurm_queue, "sleep", sleep)
    assert slurm_queue.read_queue_patiently() == {}
    assert len(sleeps) == 3
    (cluster / "is_down").touch()
    monkeypatch.setattr(slurm_queue, "_LOST_S", -1)
    with pytest.raises(OSError, match="squeue .* failed: slurm_load_jobs error: Unable to contact slurm controller"):
        slurm_queue.read_queue_patiently()
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(OSError, match="there is no squeue here; start from a machine of the cluster"):
        slurm_queue.read_queue()


def test_without_submitit_the_error_says_how_to_get_it(tmp_path, cluster, monkeypatch):
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(ImportError, match=r"pip install 'tljax\[cluster\]'"):
        launch_all(tmp_path, "a")


def run_job(root, name, *, process=0, restarts=0, limit=5):
    """Do what SLURM does on a node; return the exit status."""
    arguments = prepare(Run(task="finetune", config={}, workdir=root / name))
    environment = {
        **os.environ, "PYTHONPATH": str(stand_in.ROOT), "SLURM_JOB_ID": "7", "SLURM_PROCID": str(process),
        "SLURM_RESTART_COUNT": str(restarts),
    }  # fmt: skip
    command = [sys.executable, "-c", RUN_JOB, str(root / name / "launch"), str(limit), *arguments]
    return subprocess.run(command, env=environment, cwd=root, check=False, stderr=subprocess.DEVNULL).returncode


def test_a_job_is_requeued_when_it_was_interrupted(tmp_path, cluster):
    write_plan(tmp_path, a="give way, finish")
    answer(cluster, ["RUNNING"])
    # Ended from outside, as by SLURM: an exit status would make of the job one that is over.
    assert run_job(tmp_path, "a") == -signal.SIGTERM
    assert calls(cluster, "scontrol") == ["scontrol requeue 7"]
    assert not (tmp_path / "a" / "launch" / "ended.json").exists()
    assert run_job(tmp_path, "a", restarts=1) == 0
    assert (tmp_path / "a" / "done.json").exists()
    assert len(calls(cluster, "scontrol")) == 1
    log = (tmp_path / "a" / "launch" / "log.txt").read_text()
    assert log.count("== started at ") == 2
    assert "told to end\n" in log


def test_a_job_that_is_cancelled_stays_so(tmp_path, cluster):
    write_plan(tmp_path, a="give way")
    answer(cluster, ["COMPLETING"])
    assert run_job(tmp_path, "a") == 1
    note = rundir.read_json(tmp_path / "a" / "launch" / "ended.json")
    assert note["status"] == 85
    assert "not requeued: SLURM ends the job for good, which is COMPLETING" in note["reason"]
    assert calls(cluster, "scontrol") == []


def test_a_job_is_requeued_a_number_of_times(tmp_path, cluster):
    write_plan(tmp_path, a="give way")
    assert run_job(tmp_path, "a", restarts=6, limit=5) == 1
    assert starts(tmp_path / "a") == []
    note = rundir.read_json(tmp_path / "a" / "launch" / "ended.json")
    assert note == {"process": 0, "status": 85, "reason": "interrupted 6 times, see max_requeues"}


def test_a_job_that_fails_says_so_where_the_launcher_looks(tmp_path, cluster):
    write_plan(tmp_path, a="fail, raise")
    assert run_job(tmp_path, "a", process=3) == 1
    note = rundir.read_json(tmp_path / "a" / "launch" / "ended.json")
    assert note == {"process": 3, "status": 2, "reason": "exit status 2"}
    assert log_tail(tmp_path / "a" / "launch" / "log_3.txt").endswith("finetune a: fail\nit did not work")
    # The first process that ends is the one to look at; a new start of process 0 begins anew.
    assert run_job(tmp_path, "a", process=1) == 1
    assert rundir.read_json(tmp_path / "a" / "launch" / "ended.json") == note
    assert run_job(tmp_path, "a", process=0) == 1
    note = rundir.read_json(tmp_path / "a" / "launch" / "ended.json")
    assert note == {"process": 0, "status": 1, "reason": "exit status 1"}
    assert log_tail(tmp_path / "a" / "launch" / "log.txt").endswith("RuntimeError: something broke")
