import errno
import os

import numpy as np
import pytest

from tljax import rundir


def test_a_failed_write_keeps_the_old_file_and_names_it(tmp_path, monkeypatch):
    path = tmp_path / "config.json"
    rundir.write_json(path, {"a": 1})

    def full(_descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"config\.json: No space left.*kept") as caught:
        rundir.write_json(path, {"a": 2})
    assert caught.value.errno == errno.ENOSPC
    assert rundir.read_json(path) == {"a": 1}
    assert os.listdir(tmp_path) == ["config.json"]


def test_metrics_that_cannot_be_written_are_named(tmp_path):
    with pytest.raises(OSError, match=r"cannot append to .*gone/metrics\.jsonl: No such file.*run again"):
        rundir.append_metrics(tmp_path / "gone" / "metrics.jsonl", {"step": 0})


def test_damaged_json_is_named(tmp_path):
    (tmp_path / "done.json").write_text("{")
    with pytest.raises(ValueError, match=r"done\.json is not valid JSON"):
        rundir.read_json(tmp_path / "done.json")


def test_metrics_survive_a_line_cut_short_and_a_resume_drops_what_it_repeats(tmp_path):
    path = tmp_path / "metrics.jsonl"
    for step in range(4):
        rundir.append_metrics(path, {"step": step, "loss": np.float32(step)})
    with open(path, "a") as file:
        file.write('{"step": 4, "lo')
    assert [record["step"] for record in rundir.read_metrics(path)] == [0, 1, 2, 3]
    rundir.keep_metrics_before(path, 2)
    assert rundir.read_metrics(path) == [{"step": 0, "loss": 0.0}, {"step": 1, "loss": 1.0}]
