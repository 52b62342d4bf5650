"""The benchmark of the training step: what it measures, and that its numbers fit one another."""

import csv
import dataclasses
import json
import re
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from tljax import cli
from tljax.finetune.costs import forward_flops, stage_flops
from tljax.finetune.forward import Forward
from tljax.models import Net, architecture
from tljax.tasks import bench_train, peak
from tljax.tasks.bench_jobs import Job, Settings, last_third
from tljax.tasks.bench_train import prepare
from tljax.tasks.peak import peak_of


@pytest.mark.parametrize(
    ("name", "stage"),
    [
        ("vit_b16", "block_08"), ("vit_s16", "block_08"), ("vit_l16", "block_16"), ("resnet50", "layer4_00"),
        ("vgg16", "block5_conv1"), ("vgg11", "block5_conv1"),
    ],
)  # fmt: skip
def test_where_the_last_third_begins(name, stage):
    assert last_third(Net(architecture(name))) == stage


def test_kernels_are_compared_where_there_is_a_choice():
    settings = Settings(models=("vit_ti16", "vgg11"), rows=("all", "head"), kernels=("auto", "plain"))
    assert [(job.model, job.row, job.kernels) for job in settings.jobs()] == [
        ("vit_ti16", "all", "auto"), ("vit_ti16", "all", "plain"), ("vit_ti16", "head", "auto"),
        ("vit_ti16", "head", "plain"), ("vgg11", "all", "auto"), ("vgg11", "head", "auto"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--rows=al"], r"rows 'al' \(did you mean 'all'\?\), wanted some of all, last_third, head, cached"),
        (["--kernels=triton"], r"kernels 'triton', wanted some of auto, plain"),
        (["--dtype=float16"], r"dtype 'float16'.*, wanted some of float32, bfloat16"),
        (
            ["--steps=0", "--batch_size=12"],
            r"num_steps 0, wanted at least 1; batch_size 12, wanted a multiple of the 8",
        ),
        (["--model=vit_b61"], r"no architecture 'vit_b61' \(did you mean 'vit_b16'\?\)"),
        (["--to=rows.txt"], r"--to=rows.txt ends in '.txt', wanted .csv or .json"),
        (["large"], r"not understood: large"),
    ],
)
def test_what_cannot_be_measured_is_refused(capsys, flags, message):
    assert cli.main(["bench", "train", *flags]) == 2
    assert re.search(message, capsys.readouterr().err)


def test_unknown_benchmarks_are_refused(capsys):
    assert cli.main(["bench", "trian"]) == 2
    assert "no benchmark 'trian' (did you mean 'train'?)" in capsys.readouterr().err


@pytest.fixture
def tiny(monkeypatch):
    """Two networks that compile in a second."""
    vit = dataclasses.replace(architecture("vit_ti16"), depth=3, width=24, num_heads=3)
    monkeypatch.setattr("tljax.models.ARCHITECTURES", {"vit": vit})


def job(row, model="vit", dtype="float32"):
    return Job(model=model, row=row, kernels="auto", batch_size=8, dtype=dtype, image_size=32)


@pytest.mark.usefixtures("tiny")
def test_steps_are_real_steps_of_the_trained_part(monkeypatch):
    states = []
    place = bench_train.place
    monkeypatch.setattr(bench_train, "place", lambda tree, mesh: states.append(tree) or place(tree, mesh))
    prepared = {row: prepare(job(row)) for row in ("all", "last_third", "head", "cached")}
    trained = [{path.split("/")[0] for path in tree.trained} for tree in states if hasattr(tree, "trained")]
    assert trained[0] == {"embed", "block_00", "block_01", "block_02", "norm", "head"}
    assert trained[1] == trained[3] == {"block_02", "norm", "head"}
    assert trained[2] == {"head"}
    fixed = [{path.split("/")[0] for path in tree.params} for tree in states if hasattr(tree, "params")]
    # What is stored is not computed.
    assert fixed[1:] == [
        {"embed", "block_00", "block_01"},
        {"embed", "block_00", "block_01", "block_02", "norm"},
        set(),
    ]
    # XLA's count before it optimises: 3 forward passes where all is trained, 3 - 2p with a prefix that holds p.
    net = job("all").net
    forward = forward_flops(Forward(net=net, training=()), 1, (32, 32, 3))
    by_stage = stage_flops(net, 1, (32, 32, 3))
    share = sum(by_stage[stage] for stage in ("embed", "block_00", "block_01")) / sum(by_stage.values())
    costs = {row: 1e9 * one.gflops / forward for row, one in prepared.items()}
    assert costs["all"] == pytest.approx(3, rel=0.2)
    assert costs["last_third"] - costs["cached"] == pytest.approx(share, rel=0.1)
    # A fresh head is zero; what it learns shows that steps were taken.
    assert prepared["head"].run(2) > 0
    bytes_of_params = sum(4 * leaf.size for leaf in jax.tree.leaves(net.shapes))
    # Params, and two moments of them.
    assert prepared["all"].memory_bytes > 3 * bytes_of_params
    assert prepared["head"].memory_bytes < prepared["all"].memory_bytes


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("kind", ["json", "csv"])
def test_the_table_and_the_file_hold_the_same(tmp_path, capsys, monkeypatch, kind):
    monkeypatch.setattr(bench_train, "prepare", lambda job: fake_prepared(0.5 if job.row == "all" else 0.25))
    monkeypatch.setattr(bench_train, "peak_of", lambda device, dtype: peak.Peak(flops_per_s=1e12, source="data sheet"))
    target = tmp_path / f"rows.{kind}"
    flags = ["--model=vit", "--rows=all,head", "--batch_size=8", "--rounds=3", "--steps=2", f"--to={target}"]
    assert cli.main(["bench", "train", *flags]) == 0
    rows = json.loads(target.read_text()) if kind == "json" else list(csv.DictReader(target.read_text().splitlines()))
    # Steps of 0.5, 1.0 and 1.5 s: 16, 8 and 5.3 images a second, at 50 GFLOP each.
    first = {name: float(rows[0][name]) for name in ("images_per_s", "images_per_s_median", "tflops_per_s")}
    assert first == {"images_per_s": 16.0, "images_per_s_median": 8.0, "tflops_per_s": 0.8}
    assert float(rows[0]["share_of_peak"]) == 0.8
    assert (rows[0]["memory_source"], float(rows[0]["memory_gb"])) == ("program", 3.0)
    out = capsys.readouterr().out.splitlines()
    assert out[1].split() == ["vit", "all", "auto", "16.0", "8.0", "0.8", "80.0%", "3.00*", "3.0"]
    assert out[2].split()[3] == "32.0"
    assert "peak 1 TFLOP/s (data sheet)" in out[3]


def fake_prepared(step_s):
    rounds = iter([9.0, step_s, 2 * step_s, 3 * step_s])
    return bench_train.Prepared(
        run=lambda num_steps: num_steps * next(rounds), gflops=50.0, memory_bytes=3 * 10**9, lower_s=1.0, compile_s=2.0
    )


def test_memory_is_the_devices_where_a_row_needs_more_than_those_before(monkeypatch):
    seen = iter([100, 5 * 10**9, 5 * 10**9, 5 * 10**9])
    monkeypatch.setattr(bench_train, "_peak_bytes", lambda: next(seen))
    monkeypatch.setattr(bench_train, "prepare", lambda job: fake_prepared(1.0))
    one = peak.Peak(flops_per_s=1e12, source="measured")
    rows = [bench_train.measure(job("all", "vit_ti16"), one, num_steps=1, num_rounds=1) for _ in range(2)]
    assert [(row["memory_gb"], row["memory_source"]) for row in rows] == [(5.0, "device"), (3.0, "program")]


def test_peaks_are_those_of_the_data_sheet_or_measured(monkeypatch):
    chip = SimpleNamespace(device_kind="NVIDIA H100 80GB HBM3", platform="gpu")
    assert peak_of(chip, "bfloat16") == peak.Peak(flops_per_s=989.4e12, source="data sheet")
    monkeypatch.setattr(peak, "_measure", lambda device, dtype: {"float32": 7.0, "bfloat16": 8.0}[dtype])
    assert peak_of(chip, "float32") == peak.Peak(flops_per_s=7.0, source="measured")
    other = SimpleNamespace(device_kind="NVIDIA H1000", platform="gpu")
    assert peak_of(other, "bfloat16") == peak.Peak(flops_per_s=8.0, source="measured")


def test_a_measured_peak_counts_the_product(monkeypatch):
    monkeypatch.setattr(peak, "_SIDES", {"cpu": 64})
    times = iter(np.repeat(np.arange(10.0), 1))
    monkeypatch.setattr(peak.time, "perf_counter", lambda: next(times))
    assert peak_of(jax.devices()[0], "float32").flops_per_s == 2 * 64**3
