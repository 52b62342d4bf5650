"""The input of a run: settings that change its speed and no number, what the meter writes, and the bench."""

import json
import logging

import numpy as np
import pytest

from tests.small_runs import VIT, make_config, metrics_of, write_model, write_pictures
from tljax import rundir
from tljax.cli import main
from tljax.data.prefetch import Ahead
from tljax.data.workers import num_cores
from tljax.finetune.waiting import WaitingMeter
from tljax.tasks import finetune, input_speeds
from tljax.tasks.execution import Execution
from tljax.tasks.input_advice import Findings, advise

CROPS = {"views": 2, "crop_scale": (0.3, 1.0)}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("input")
    write_pictures(folder / "pictures")
    write_model(folder / "vit", VIT)
    return folder


@pytest.fixture(scope="module")
def plain(root):
    """A run as it is without any setting."""
    workdir = root / "plain"
    finetune.run(make_config(root, augment=CROPS), workdir)
    return workdir


def predictions(workdir):
    with np.load(workdir / "predictions.npz") as file:
        return file["probabilities"]


@pytest.mark.parametrize(
    "execution", [{"num_workers": 2}, {"image_cache_gb": 1.0}, {"num_workers": 2, "image_cache_gb": 1.0}]
)
def test_workers_and_the_cache_change_no_bit_of_a_run(root, plain, tmp_path, execution):
    finetune.run(make_config(root, augment=CROPS, execution=execution), tmp_path / "run")
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == (plain / "metrics.jsonl").read_bytes()
    np.testing.assert_array_equal(predictions(tmp_path / "run"), predictions(plain))
    if "image_cache_gb" in execution:
        folders = list((root / "cache" / "images").iterdir())
        # Decoded for crops, prepared for evaluation.
        assert len(folders) == 2
        assert {json.loads((folder / "meta.json").read_text())["source"] for folder in folders} == {"pictures"}


def test_the_wait_for_data_is_written_apart_from_the_metrics(plain):
    steps = [record["step"] for record in metrics_of(plain) if "loss" in record]
    timing = rundir.read_metrics(plain / "timing.jsonl")
    assert [record["step"] for record in timing] == steps
    assert all(record["waited_s"] >= 0 and 0 <= record["share"] <= 1 for record in timing)
    assert not any("waited_s" in record for record in metrics_of(plain))


def test_settings_that_no_machine_has_are_named():
    with pytest.raises(ValueError, match=r"config.execution: num_workers is 4096, wanted 0 to \d+"):
        Execution(num_workers=4096)
    with pytest.raises(ValueError, match=r"config.execution: image_cache_gb is -1.0, wanted at least 0"):
        Execution(image_cache_gb=-1.0)


class Clock:
    """Time that tests move."""

    def __init__(self, monkeypatch):
        self.now = 100.0
        for module in ("tljax.data.prefetch", "tljax.finetune.waiting"):
            monkeypatch.setattr(f"{module}.time.monotonic", lambda: self.now)


@pytest.mark.parametrize(("waits_s", "is_advised"), [(0.05, False), (1.0, True)])
def test_the_meter_adds_up_waits_and_steps_but_not_the_first(monkeypatch, tmp_path, caplog, waits_s, is_advised):
    clock = Clock(monkeypatch)
    meter = WaitingMeter(tmp_path / "timing.jsonl")
    with Ahead(iter(range(4)), lambda batch: batch) as ahead, caplog.at_level(logging.INFO, "tljax"):
        for step in range(4):
            next(ahead)
            ahead.waited_s = waits_s
            # The first step compiles. What comes between steps, as evaluations, is nobody's time.
            clock.now += 60.0 if step == 0 else waits_s + 1.0
            meter.note(step, ahead, 16)
            clock.now += 1000.0
        meter.report()
    assert meter.share == pytest.approx(waits_s / (waits_s + 1))
    assert [record["waited_s"] for record in rundir.read_metrics(tmp_path / "timing.jsonl")] == [waits_s] * 4
    (message,) = [record.getMessage() for record in caplog.records]
    assert message.startswith(f"{16 / (waits_s + 1):.1f} images/s in 4 steps, {100 * waits_s / (waits_s + 1):.1f} %")
    assert ("tljax bench data" in message) == is_advised


def test_the_bench_measures_every_part(root, tmp_path, capsys):
    config = make_config(root, augment=CROPS)
    file = tmp_path / "config.py"
    file.write_text(f"import ml_collections\n\ndef get_config():\n    return ml_collections.ConfigDict({config!r})\n")
    call = [
        "bench",
        "data",
        f"--config={file}",
        "--seconds=0.02",
        "--num_workers=0,1",
        "--config.finetune.batch_size=8",
    ]
    assert main(call) == 0
    table, advice = capsys.readouterr().out.strip().split("\n\n")
    header, *lines = table.splitlines()
    assert header.split() == ["part", "processes", "images/s", "ms", "an", "image"]
    rates = {line[: header.index("processes")].strip() + line.split()[-3]: float(line.split()[-2]) for line in lines}
    names = ["read1", "decode1", "preprocess1", "augment1", "batch1", "transfer1"]
    names += ["limit: read and decode alone1", "limit: read, decode, augment1"]
    kinds = ("whole", "whole, empty cache", "whole, full cache")
    assert [name.replace("workers", "") for name in list(rates)[:8]] == names
    assert len(rates) == 8 + 2 * len(kinds)
    assert all(rate > 0 for rate in rates.values())
    assert "whole / limit of decoding in 1 processes: " in advice
    assert "slowest part: " in advice
    # What it measured the cache with is gone.
    assert not list((root / "cache").glob("bench-*"))


def test_the_bench_says_what_it_cannot_understand(capsys):
    assert main(["bench"]) == 2
    assert main(["bench", "dat"]) == 2
    assert "no benchmark 'dat' (did you mean 'data'?); known: data" in capsys.readouterr().err
    file = "--config=configs/images.py"
    assert main(["bench", "data", file, "--num_workers=0,two"]) == 2
    assert "--num_workers is '0,two', wanted whole numbers" in capsys.readouterr().err
    assert main(["bench", "data", file, f"--num_workers={num_cores() + 1}"]) == 2
    assert f"num_workers is {num_cores() + 1}, wanted 0 to" in capsys.readouterr().err
    assert main(["bench", "data", file, "--seconds=0"]) == 2
    assert "--seconds is 0" in capsys.readouterr().err


def test_a_rate_is_actions_by_time(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(input_speeds.time, "perf_counter", lambda: now[0])
    seen = []

    def action(item):
        seen.append(item)
        now[0] += 0.25

    assert input_speeds.rate_of(action, [1, 2, 3], 2.0) == pytest.approx(4.0)
    # The first is not timed.
    assert seen == [1, 1, 2, 3, 1, 2, 3, 1, 2]


FINDINGS = Findings(
    parts={"read": 9000.0, "decode": 1000.0, "preprocess": 3000.0, "augment": 3000.0, "batch": 9e4, "transfer": 9e4},
    decode_limit=2000.0,
    work_limit=1500.0,
    whole={0: 700.0, 1: 750.0, 2: 1450.0},
    cold={0: 700.0, 2: 1400.0},
    warm={0: 700.0, 2: 1500.0},
    num_processes=2,
    num_cores=2,
    execution=Execution(num_workers=2),
    short_side=375,
    wanted_side=224,
    cache_gb=3.0,
    free_gb=100.0,
    is_stored=False,
)


def changed(**values):
    return "\n".join(advise(Findings(**{**vars(FINDINGS), **values})))


def test_advice_follows_from_the_figures():
    fine = changed()
    assert "whole / limit of decoding in 2 processes: 0.72; / limit of all work on an image: 0.97" in fine
    assert "slowest part: decode, 1.00 ms an image" in fine
    assert "change: nothing: the input gives 1450 images/s" in fine
    assert "change: execution.num_workers=2: 1450 images/s in place of 700" in changed(execution=Execution())
    # As fast as two.
    assert "num_workers=0" in changed(whole={0: 1400.0, 1: 700.0, 2: 1450.0}, execution=Execution(num_workers=1))
    cached = changed(warm={0: 700.0, 2: 5800.0})
    assert "change: execution.image_cache_gb=3.2: 4.0 times as many images/s from the second epoch on" in cached
    assert "nothing" not in cached
    assert "image_cache_gb" not in changed(warm={2: 5800.0}, execution=Execution(num_workers=2, image_cache_gb=4.0))
    assert "has 1 GB left, so put cache_dir on another" in changed(warm={2: 5800.0}, free_gb=1.0)
    assert "store smaller images: their short side is 1200 pixels and the model sees 224" in changed(short_side=1200)
    slow = {**FINDINGS.parts, "read": 50.0}
    assert "change: copy the data to a local disk" in changed(parts=slow)
    assert "resizing costs most" in changed(parts={**FINDINGS.parts, "augment": 300.0})
    assert "stored prefix" in changed(is_stored=True)
