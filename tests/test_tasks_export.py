"""What a finished run becomes: a calibration, a program that runs without tljax, and a card."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import jax
import numpy as np
import pytest
import yaml
from jax import export as jax_export
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

import tljax
from tests.small_runs import CLASSES, RESNET, SIZE, make_config, split_of, write_model, write_pictures
from tests.test_tasks_predict import read, scores_of
from tljax import plain, rundir
from tljax.cli import main
from tljax.metrics import bootstrap_intervals, classification_metrics
from tljax.tasks import card_limits, finetune, stablehlo
from tljax.tasks.card import gather, hub_header, write_card
from tljax.tasks.finished import open_finished
from tljax.tasks.restore import restore

# What JAX brings with it, and what it reads exported programs with.
_PACKAGES = ("jax", "jaxlib", "numpy", "scipy", "ml_dtypes", "opt_einsum", "flatbuffers")
_ALONE = """
import runpy, sys
sys.argv = sys.argv[1:]
found = runpy.run_path(sys.argv[0], run_name="__main__" if sys.argv[-1] != "load" else "example")
if sys.argv[-1] == "load":
    import numpy as np
    pictures = np.load(sys.argv[1])
    model, prepare = found["load"]("model.stablehlo"), found["load"]("prepare.stablehlo")
    np.save(sys.argv[2], np.asarray(model(prepare(pictures))))
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("export")
    write_pictures(folder / "pictures")
    write_model(folder / "vit")
    finetune.run(make_config(folder, schedule={"learning_rate": 0.3}), folder / "run")
    assert main(["export", str(folder / "run"), "--format=stablehlo", f"--to={folder / 'program'}"]) == 0
    return folder


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """Runs a script in a process that finds no other package than those."""
    folder = tmp_path_factory.mktemp("packages")
    for name in _PACKAGES:
        spec = importlib.util.find_spec(name)
        assert spec is not None
        assert spec.origin is not None
        (folder / name).symlink_to(Path(spec.origin).parent)
    environment = {**os.environ, "PYTHONPATH": str(folder)}

    def run(*arguments):
        # Without site-packages, and what installs tljax there.
        command = [sys.executable, "-S", "-c", _ALONE, *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=folder)
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout

    assert "No module named 'tljax'" in run_and_fail(environment, folder)
    return run


def run_and_fail(environment, folder):
    command = [sys.executable, "-S", "-c", "import tljax"]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=folder).stderr


def test_a_fresh_process_with_jax_alone_gives_the_same_probabilities(root, tmp_path, alone):
    predictor = tljax.Predictor.open(root / "run")
    # Of the size of the model, so that nothing is resized; and seven of them, a number that it has not seen.
    images = np.random.default_rng(0).integers(0, 256, (7, SIZE, SIZE, 3), np.uint8)
    np.save(tmp_path / "images.npy", images)
    alone(root / "program" / "example.py", tmp_path / "images.npy", tmp_path / "found.npy", "load")
    wanted = predictor(list(images)).probabilities
    np.testing.assert_allclose(np.load(tmp_path / "found.npy"), wanted, rtol=0, atol=1e-6)
    assert np.ptp(wanted[:, 0]) > 0.05

    # The example as it is shipped.
    lines = alone(root / "program" / "example.py").splitlines()
    assert float(re.fullmatch(r"largest difference .*: (\S+)", lines[0])[1]) <= 1e-6  # pyright: ignore
    assert len(lines) == 4
    lines = alone(root / "program" / "example.py", tmp_path / "images.npy").splitlines()
    assert [line.split()[0] for line in lines] == [CLASSES[index] for index in wanted.argmax(axis=1)]


def test_pictures_of_other_sizes_are_prepared_as_the_host_does(root):
    predictor = tljax.Predictor.open(root / "run")
    program, prepare = (load(root / "program" / name) for name in ("model.stablehlo", "prepare.stablehlo"))
    preprocess = restore(root / "run").preprocess
    for height, width in ((20, 24), (61, 33)):
        pictures = np.random.default_rng(height).integers(0, 256, (3, height, width, 3), np.uint8)
        prepared = np.asarray(prepare(pictures))
        wanted = np.stack([preprocess(picture) for picture in pictures])
        assert np.abs(prepared.astype(int) - wanted).max() <= 1
        found = np.asarray(program(prepared))
        # A level more or less in a few pixels.
        np.testing.assert_allclose(found, predictor(list(pictures)).probabilities, rtol=0, atol=2e-3)


def load(path):
    return jax_export.deserialize(bytearray(path.read_bytes())).call


def test_one_file_is_for_all_platforms_and_says_what_is_inside(root):
    exported = jax_export.deserialize(bytearray((root / "program" / "model.stablehlo").read_bytes()))
    assert exported.platforms == ("cpu", "cuda", "rocm", "tpu")
    (image,), (probability,) = exported.in_avals, exported.out_avals
    assert (str(image.dtype), image.shape[1:]) == ("uint8", (SIZE, SIZE, 3))
    assert (str(probability.dtype), probability.shape[1:]) == ("float32", (2,))
    assert not isinstance(image.shape[0], int)
    # Kernels of one platform are custom calls.
    calls = set(re.findall(r"custom_call @([\w.]+)", exported.mlir_module()))
    assert calls <= {"shape_assertion"}
    assert json.loads((root / "program" / "labels.json").read_text()) == list(CLASSES)
    told = json.loads((root / "program" / "preprocess.json").read_text())
    assert told["input"] == {"dtype": "uint8", "shape": ["b", SIZE, SIZE, 3], "channels": "rgb"}
    assert told["temperature"] == json.loads((root / "run" / "calibration.json").read_text())["temperature"]
    assert told["preprocess"] == plain.as_read(restore(root / "run").preprocess.describe())


def test_kernels_of_a_gpu_do_not_leak_into_the_program(root, tmp_path, monkeypatch):
    """Where the device would have them chosen."""
    monkeypatch.setattr("tljax.models.kernels.platform", lambda: "cuda")
    model = open_finished(root / "run")
    monkeypatch.setattr(stablehlo, "_check", lambda *_: None)
    stablehlo.write_stablehlo(tmp_path / "program", model)
    text = jax_export.deserialize(bytearray((tmp_path / "program" / "model.stablehlo").read_bytes())).mlir_module()
    wanted = jax_export.deserialize(bytearray((root / "program" / "model.stablehlo").read_bytes())).mlir_module()
    assert strip(text) == strip(wanted)


def strip(text):
    """Leave out where in the source each operation comes from."""
    return [line for line in re.sub(r"loc\(.*|#loc.*", "", text).splitlines() if line.strip()]


def test_too_large_and_wrong_programs_are_refused(root, tmp_path, monkeypatch):
    model = open_finished(root / "run")
    with monkeypatch.context() as patch:
        patch.setattr(stablehlo, "_MOST_BYTES", 1000)
        with pytest.raises(ValueError, match="a StableHLO file holds 0.00; load the model with dtype='bfloat16'"):
            stablehlo.write_stablehlo(tmp_path / "large", model)
    assert not (tmp_path / "large").exists()
    predict = stablehlo._predict

    def hotter(model, kernels):
        return predict(model, kernels) if kernels is None else lambda x: 0.99 * predict(model, kernels)(x)

    monkeypatch.setattr(stablehlo, "_predict", hotter)
    with pytest.raises(RuntimeError, match="differ from the model's by"):
        stablehlo.write_stablehlo(tmp_path / "wrong", model)
    assert not (tmp_path / "wrong" / "model.stablehlo").exists()


def test_running_statistics_and_grey_images_are_inside_too(tmp_path):
    write_model(tmp_path / "resnet", architecture=RESNET, seed=1)
    grey = {"in_channels": 1, "preprocess": {"size": 12, "resize": 14, "mean": (0.4,), "std": (0.3,)}}
    model = open_finished(f"file:{tmp_path / 'resnet'}")
    pretrained = tljax.load(f"file:{tmp_path / 'resnet'}", **grey)
    model = type(model)(**{**vars(model), "pretrained": pretrained})
    stablehlo.write_stablehlo(tmp_path / "program", model)
    pictures = np.random.default_rng(0).integers(0, 256, (2, 30, 19, 3), np.uint8)
    prepared = load(tmp_path / "program" / "prepare.stablehlo")(pictures)
    assert prepared.shape == (2, 12, 12, 1)
    found = load(tmp_path / "program" / "model.stablehlo")(prepared)
    wanted = tljax.Predictor(model=model)(list(pictures)).probabilities
    np.testing.assert_allclose(np.asarray(found), wanted, rtol=0, atol=5e-3)


def test_the_temperature_of_a_run_is_that_of_its_validation_images(root):
    source, split = split_of(root, root / "run")
    found = json.loads((root / "run" / "calibration.json").read_text())

    def loss(part, temperature):
        indices = getattr(split, part)
        scores = scores_of(root, [read(root / "pictures" / source[index]["name"]) for index in indices])
        return -log_softmax(scores / temperature, axis=1)[np.arange(len(indices)), source.labels[indices]].mean()

    best = minimize_scalar(lambda log: loss("val", np.exp(log)), bounds=(-3, 3), method="bounded")
    assert found["temperature"] == pytest.approx(np.exp(best.x), rel=1e-4)  # pyright: ignore
    for part in ("val", "test"):
        assert found[part]["num_images"] == len(getattr(split, part))
        assert found[part]["before"]["log_loss"] == pytest.approx(loss(part, 1.0), rel=1e-5)
        assert found[part]["after"]["log_loss"] == pytest.approx(loss(part, found["temperature"]), rel=1e-5)
    assert found["val"]["after"]["log_loss"] < found["val"]["before"]["log_loss"]
    picture = ElementTree.parse(root / "run" / "reliability.svg").getroot()
    svg = "{http://www.w3.org/2000/svg}"
    points = sum(len(line.attrib["points"].split()) for line in picture.iter(f"{svg}polyline"))
    assert points == sum(len(found["test"][when]["bins"]) for when in ("before", "after"))


def test_the_test_images_have_no_part_in_the_temperature(root, tmp_path, monkeypatch):
    """A run whose test labels are all wrong has the same."""
    from tljax.tasks import calibrating

    targets_of = calibrating.targets_of
    _, split = split_of(root, root / "run")

    def wrong(source, indices):
        right = targets_of(source, indices)
        return right if np.array_equal(indices, split.val) else right[:, ::-1]

    monkeypatch.setattr(calibrating, "targets_of", wrong)
    finetune.run(make_config(root, schedule={"learning_rate": 0.3}), tmp_path / "run")
    before, after = (json.loads((run / "calibration.json").read_text()) for run in (root / "run", tmp_path / "run"))
    assert (after["temperature"], after["val"]) == (before["temperature"], before["val"])
    assert after["test"] != before["test"]


def test_without_validation_images_a_run_stays_as_it_is_and_says_so(root, tmp_path, capsys):
    finetune.run(make_config(root, split={"val_fraction": 0.0}), tmp_path / "run")
    found = json.loads((tmp_path / "run" / "calibration.json").read_text())
    assert found["temperature"] is None
    assert "val" not in found
    assert "after" not in found["test"]
    model = open_finished(tmp_path / "run")
    assert model.temperature == 1.0
    assert model.describe_calibration() == (
        "not calibrated: the split has no validation images; set split.val_fraction"
    )
    card = write_card(tmp_path / "run")
    assert "Not calibrated: the split has no validation images" in card
    assert "- There were no validation images, so nothing could be chosen" in card


def test_the_card_says_what_the_records_say(root):
    run = root / "run"
    card = write_card(run)
    records = {name: json.loads((run / f"{name}.json").read_text())
               for name in ("inputs", "done", "calibration", "facts", "partition")}  # fmt: skip
    (record,) = json.loads((run / "evaluations.json").read_text())
    metrics = record["metrics"]
    low, high = bootstrap_intervals(np.array(record["confusion"]))["accuracy"]
    found = records["calibration"]
    for text in (
        "# vit, fine-tuned on pictures",
        f"| hash of the params before | {records['inputs']['params']} |",
        f"| hash of the images | {records['inputs']['images']} |",
        "| training | 32 | 16 | 16 |",
        "| test | 24 | 12 | 12 |",
        "| 0 | block_00 | frozen | 3312 | 0 | 0 |",
        "| 0 | head | head | 66 | 0.3 | 0.01 |",
        '"schedule": {"learning_rate": 0.3, "name": "cosine", "warmup_fraction": 0.1}',
        f"| accuracy | {metrics['accuracy']:.3f} | {low:.3f} to {high:.3f} |",
        f"| roc_auc | {metrics['roc_auc']:.3f} | not recorded |",
        f"| dark | {record['confusion'][0][0]} | {record['confusion'][0][1]} |",
        f"temperature of {found['temperature']:.4f}",
        f"| test, calibration error, bins of equal width | {found['test']['before']['ece']:.4f} | "
        f"{found['test']['after']['ece']:.4f} |",
        f"jax {jax.__version__}",
        f"- 24 test images leave the accuracy uncertain between {low:.3f} and {high:.3f};",
        "- Fewer than 25 test images have the class: dark (12), light (12).",
        "- The split kept no groups together",
        "- The licence of the images is not in the records: not stated.",
    ):
        assert text in card, text
    # Where the run was made is nobody's business.
    assert str(root) not in card
    assert "\n\n\n" not in card


def test_a_card_says_what_was_held_out():
    split = {"kind": "stratified", "held_out": {"site": ["3", "4"], "is_night": [True]}}
    first, *_ = card_limits._of_the_split({"config": {"split": split}, "facts": None})
    assert first.startswith("It was tested on images with site 3, 4 and is_night True alone")
    split = {"kind": "stratified", "only": {"site": ["3", "4"]}}
    first, *_ = card_limits._of_the_split({"config": {"split": split}, "facts": None})
    assert first == "It has seen images with site 3, 4 alone, in training, calibration and test."
    assert len([*card_limits._of_the_split({"config": {"split": {"kind": "stratified"}}, "facts": None})]) == 1


def test_what_was_not_recorded_is_said_to_be_missing(root, tmp_path):
    for name in ("config.json", "done.json", "classes.json"):
        (tmp_path / name).write_bytes((root / "run" / name).read_bytes())
    card = write_card(tmp_path)
    for text in (
        "| licence of the weights | not recorded |",
        "| hash of the images | not recorded |",
        "How many images each part has: not recorded.",
        "Which stages were trained: not recorded.",
        "Results on test images: not recorded.",
        "- The records hold no test: nothing is known of how good it is.",
        "- Its probabilities are not calibrated.",
        "- The licences of weights and images are not recorded.",
    ):
        assert text in card, text
    (tmp_path / "done.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"has no done.json: it is no finished run"):
        write_card(tmp_path)


def test_names_of_classes_and_groups_do_not_break_tables(root, tmp_path):
    for path in (root / "run").glob("*.json"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    rundir.write_json(tmp_path / "classes.json", ["a|b", "c\nd"])
    card = write_card(tmp_path)
    assert r"| a\|b | 12 |" in card
    assert "| c d | 12 |" in card


def test_the_hub_reads_the_header(root, tmp_path, capsys):
    assert main(["export", str(root / "run"), "--format=hf", f"--to={tmp_path / 'hf'}"]) == 0
    text = (tmp_path / "hf" / "README.md").read_text()
    _, header, card = text.split("---\n", 2)
    assert card.strip() == write_card(root / "run").strip()
    known = yaml.safe_load(header)
    assert known["library_name"] == "transformers"
    assert "license" not in known
    (result,) = known["model-index"][0]["results"]
    values = {row["type"]: row["value"] for row in result["metrics"]}
    assert values["accuracy"] == pytest.approx(gather(root / "run")["record"]["metrics"]["accuracy"], abs=1e-4)
    # It is still a folder that loads.
    assert tljax.load(f"file:{tmp_path / 'hf'}").class_names == CLASSES
    assert main(["card", str(root / "run")]) == 0
    assert capsys.readouterr().out.endswith(write_card(root / "run"))


def test_the_header_names_a_model_of_the_hub_and_its_licence(root, tmp_path):
    for path in (root / "run").glob("*.json"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    config = rundir.read_json(tmp_path / "config.json")
    config["config"]["model"]["name"] = "hf:facebook/dinov2-small"
    rundir.write_json(tmp_path / "config.json", config)
    facts = rundir.read_json(tmp_path / "facts.json")
    facts["weights"]["licence"] = "apache-2.0"
    rundir.write_json(tmp_path / "facts.json", facts)
    known = yaml.safe_load(hub_header(tmp_path).split("---\n")[1])
    assert (known["base_model"], known["license"]) == ("facebook/dinov2-small", "apache-2.0")


def test_intervals_from_a_confusion_are_those_of_drawing_images():
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2], (60, 30, 10))
    guesses = np.where(rng.random(100) < 0.7, labels, rng.integers(0, 3, 100))
    confusion = np.zeros((3, 3), int)
    np.add.at(confusion, (labels, guesses), 1)
    found = bootstrap_intervals(confusion)
    drawn = {name: [] for name in found}
    for _ in range(2000):
        rows = rng.integers(0, 100, 100)
        metrics = classification_metrics(np.eye(3)[guesses[rows]], labels[rows], np.ones(100))
        for name, values in drawn.items():
            values.append(metrics[name])
    for name, values in drawn.items():
        wanted = np.quantile(values, (0.025, 0.975))
        # Two sets of draws: an end is known to about a fiftieth of the standard deviation.
        assert found[name] == pytest.approx(tuple(wanted), abs=0.15 * float(np.std(values)))
    assert bootstrap_intervals(confusion) == found
