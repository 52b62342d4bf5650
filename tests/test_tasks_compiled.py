"""Compiled programs that are kept on disk: read, tidied, never in the way of a run."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

from tests.small_runs import make_config
from tljax.tasks import compiled, finetune
from tljax.tasks.compiled import count_events, keep_compiled
from tljax.tasks.execution import Execution
from tljax.tasks.running import run_task

SETTINGS = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")


@pytest.fixture(autouse=True)
def _no_cache():
    """That of the other tests counts as one which a user has configured."""
    before = {name: getattr(jax.config, name) for name in SETTINGS}
    jax.config.update("jax_compilation_cache_dir", None)
    compilation_cache.reset_cache()
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


def compute(factor=3.0):
    """Compile and run a program, new to this process but equal in every one."""
    result = jax.jit(lambda x: jnp.sin(x) * factor)(np.arange(8, dtype=np.float32))
    np.testing.assert_allclose(result, np.sin(np.arange(8)) * factor, rtol=1e-6)


def events_of(folder, run=compute, **settings):
    jax.clear_caches()
    with keep_compiled(folder, **settings), count_events() as events:
        run()
    return events["cache_hits"], events["cache_misses"]


def entries(folder):
    return sorted(folder.glob("*/*-cache"))


def test_the_second_time_programs_are_read(tmp_path):
    before = {name: getattr(jax.config, name) for name in SETTINGS}
    assert events_of(tmp_path) == (0, 1)
    assert len(entries(tmp_path)) == 1
    assert events_of(tmp_path) == (1, 0)
    assert {name: getattr(jax.config, name) for name in SETTINGS} == before
    # Neither is a cache left behind that JAX remembers.
    jax.clear_caches()
    with count_events() as events:
        compute(factor=4.0)
    assert not events["cache_hits"] + events["cache_misses"]
    # Nor does JAX remember that there was none.
    assert events_of(tmp_path) == (1, 0)
    assert len(entries(tmp_path)) == 1


def test_another_processor_or_version_reads_a_folder_of_its_own(tmp_path, monkeypatch):
    assert events_of(tmp_path) == (0, 1)
    monkeypatch.setattr(compiled, "_processor_features", lambda: "flags : sse2 avx512f")
    assert events_of(tmp_path) == (0, 1)
    monkeypatch.setattr(jax, "__version__", "0.9.9")
    assert events_of(tmp_path) == (0, 1)
    assert len({path.parent for path in entries(tmp_path)}) == 3


def test_a_cache_of_the_user_is_left_alone(tmp_path):
    with keep_compiled(tmp_path / "user"):
        before = {name: getattr(jax.config, name) for name in SETTINGS}
        assert events_of(tmp_path / "ours") == (0, 1)
        assert {name: getattr(jax.config, name) for name in SETTINGS} == before
    assert len(entries(tmp_path / "user")) == 1
    assert not (tmp_path / "ours").exists()


def test_a_cache_that_is_turned_off_stays_off(tmp_path):
    assert events_of(None) == (0, 0)
    jax.config.update("jax_enable_compilation_cache", False)
    try:
        assert events_of(tmp_path / "ours") == (0, 0)
    finally:
        jax.config.update("jax_enable_compilation_cache", True)
    assert not (tmp_path / "ours").exists()


def test_a_folder_that_cannot_be_made_stops_nothing(tmp_path, caplog):
    (tmp_path / "file").touch()
    caplog.set_level("INFO")
    assert events_of(tmp_path / "file" / "inside") == (0, 0)
    assert "no compiled programs are kept" in caplog.text


def test_what_is_in_a_folder_that_cannot_be_written_is_read(tmp_path, monkeypatch):
    assert events_of(tmp_path) == (0, 1)

    # Root, as whom tests may run, can write to any folder.
    def refuse(**_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(compiled.tempfile, "TemporaryFile", refuse)
    assert events_of(tmp_path) == (1, 0)
    assert events_of(tmp_path, lambda: compute(factor=5.0)) == (0, 0)
    assert len(entries(tmp_path)) == 1


@pytest.mark.parametrize("damage", [b"", None], ids=["empty", "cut short"])
@pytest.mark.filterwarnings("ignore:Error reading persistent compilation cache entry")
def test_a_damaged_program_is_compiled_again_once(tmp_path, damage):
    assert events_of(tmp_path) == (0, 1)
    (path,) = entries(tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2] if damage is None else damage)
    # It is in the way of the new one, so that the folder is emptied.
    assert events_of(tmp_path) == (0, 1)
    assert entries(tmp_path) == []
    assert events_of(tmp_path) == (0, 1)
    assert events_of(tmp_path) == (1, 0)


def test_the_oldest_programs_go_first(tmp_path):
    for number in range(3):
        events_of(tmp_path, lambda factor=2.0 + number: compute(factor=factor))
    oldest, middle, newest = sorted(entries(tmp_path), key=lambda path: path.stat().st_mtime_ns)
    for age, path in enumerate((newest, middle, oldest)):
        os.utime(path, (1e9 - age, 1e9 - age))
    limit = newest.stat().st_size + middle.stat().st_size
    assert events_of(tmp_path, lambda: None, limit_bytes=limit) == (0, 0)
    assert set(entries(tmp_path)) == {middle, newest}


SCRIPT = """
import sys
from pathlib import Path
from types import SimpleNamespace
import jax, jax.numpy as jnp
from tljax.tasks.compiled import keep_compiled
with keep_compiled(Path(sys.argv[1])):
    print("ready", flush=True)
    sys.stdin.readline()
    total = sum(jax.jit(lambda x: jnp.cos(x) * factor)(jnp.ones(4))[0] for factor in range(5))
print(float(total))
"""


def test_processes_share_a_folder_at_the_same_time(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(Path(compiled.__file__).parents[2])}
    # That of the other tests.
    del environment["JAX_COMPILATION_CACHE_DIR"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    both = [subprocess.Popen([sys.executable, "-c", SCRIPT, str(tmp_path)], env=environment, **pipes) for _ in range(2)]
    for process in both:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    # Both have opened the folder.
    for process in both:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    outs = [process.communicate()[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert outs[0] == outs[1]
    assert float(outs[0]) == pytest.approx(10 * np.cos(1.0), rel=1e-6)


def test_a_run_keeps_its_programs_beside_its_directory(tmp_path):
    assert Execution().compiled_folder(tmp_path / "runs" / "one") == tmp_path / "runs" / ".compiled"
    assert Execution(compiled_dir="/cache").compiled_folder(tmp_path) == Path("/cache")
    assert Execution(compiled_dir=None).compiled_folder(tmp_path) is None


def test_a_task_reads_what_another_run_has_compiled(tmp_path):
    def work(config, workdir, inputs):
        with count_events() as events:
            compute()
        return {"hits": float(events["cache_hits"]), "misses": float(events["cache_misses"])}

    def run(workdir, **execution):
        jax.clear_caches()
        config = make_config(tmp_path, execution=execution)
        result = run_task(finetune.NAME, work, config, workdir, opens=lambda _: SimpleNamespace(identity={}))
        return result["hits"], result["misses"]

    assert run(tmp_path / "runs" / "one") == (0, 1)
    assert run(tmp_path / "runs" / "two") == (1, 0)
    assert run(tmp_path / "others" / "one") == (0, 1)
    assert run(tmp_path / "others" / "two", compiled_dir=str(tmp_path / "runs" / ".compiled")) == (1, 0)
    assert run(tmp_path / "runs" / "three", compiled_dir=None) == (0, 0)
    assert sorted(path.parent.parent for path in tmp_path.rglob("*-cache")) == [
        tmp_path / "others" / ".compiled", tmp_path / "runs" / ".compiled",
    ]  # fmt: skip
