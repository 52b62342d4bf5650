"""From a finished run to the probabilities of new images, good and bad ones."""

import csv
import dataclasses
import io
import json
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from scipy.special import expit, softmax

import tljax
from tests import kill
from tests.small_runs import CLASSES, make_config, split_of, write_model, write_pictures
from tljax.cli import main
from tljax.data.decode import decode_image
from tljax.tasks import finetune
from tljax.tasks.finished import open_finished
from tljax.tasks.predict import SOME_BAD
from tljax.tasks.restore import restore

# Float32 in batches of another size.
ATOL = 1e-6


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A run, with a temperature that is not 1."""
    folder = tmp_path_factory.mktemp("predict")
    write_pictures(folder / "pictures")
    write_model(folder / "vit")
    finetune.run(make_config(folder, schedule={"learning_rate": 0.3}), folder / "run")
    return folder


@pytest.fixture(scope="module")
def temperature(root):
    found = json.loads((root / "run" / "calibration.json").read_text())["temperature"]
    assert abs(found - 1) > 0.05
    return found


def scores_of(root, arrays):
    """Of images as they are, by the net that the run left."""
    model = restore(root / "run")
    x = model.preprocess.normalise(jnp.asarray(np.stack([model.preprocess(array) for array in arrays])))
    return np.asarray(model.net.apply(model.params, model.stats, x)[0], np.float64)


def read(path):
    return decode_image(Path(path).read_bytes(), str(path))


def pictures(root):
    return sorted((root / "pictures").glob("*/*.png"))


def table(path):
    with open(path, newline="") as file:
        return list(csv.reader(file))


def test_probabilities_are_those_of_the_net_at_its_temperature(root, temperature):
    predictor = tljax.Predictor.open(root / "run", batch_size=16)
    files = pictures(root)[:37]
    wanted = softmax(scores_of(root, [read(file) for file in files]) / temperature, axis=1)
    found = predictor(files)
    np.testing.assert_allclose(found.probabilities, wanted, rtol=0, atol=ATOL)
    assert found.names == list(map(str, files))
    assert found.problems == {}
    assert found.class_names == CLASSES
    assert found.labels == [CLASSES[index] for index in wanted.argmax(axis=1)]
    (second, first) = found.top(2)[0][::-1]
    assert first[1] == pytest.approx(wanted[0].max(), abs=ATOL)
    assert second[1] == pytest.approx(wanted[0].min(), abs=ATOL)
    assert len(found.top(1)[0]) == 1
    assert predictor([]).probabilities.shape == (0, 2)


def test_images_in_every_form_have_one_answer_and_bad_ones_are_named(root):
    predictor = tljax.Predictor.open(root / "run")
    file = pictures(root)[0]
    array = read(file)
    items = [file, file.read_bytes(), b"", array, "none.png", Image.fromarray(array), file.read_bytes()[:-30]]
    found = predictor(items)
    good = [0, 1, 3, 5]
    np.testing.assert_array_equal(found.probabilities[good], found.probabilities[[0] * 4])
    assert sorted(found.problems) == [2, 4, 6]
    assert "image 2: the file is empty" in found.problems[2]
    assert np.isnan(found.probabilities[sorted(found.problems)]).all()
    assert [label is None for label in found.labels] == [index not in good for index in range(7)]
    assert [len(row) for row in found.top(2)] == [2, 2, 0, 2, 0, 2, 0]


def test_many_labels_are_judged_each_on_its_own(root, tmp_path, monkeypatch, capfd):
    model = dataclasses.replace(open_finished(root / "run"), kind="sigmoid", temperature=2.5)
    files = pictures(root)[:9]
    wanted = expit(scores_of(root, [read(file) for file in files]) / 2.5)
    found = tljax.Predictor(model=model)(files)
    np.testing.assert_allclose(found.probabilities, wanted, rtol=0, atol=ATOL)
    labels = [[name for name, p in zip(CLASSES, row, strict=True) if p >= 0.5] for row in wanted]
    assert found.labels == labels
    monkeypatch.setattr("tljax.tasks.predictor.open_finished", lambda source: model)
    assert main(["predict", "run", *map(str, files), f"--to={tmp_path / 'x.csv'}"]) == 0
    header, *rows = table(tmp_path / "x.csv")
    assert header == ["path", "labels", "p(dark)", "p(light)"]
    assert [row[1] for row in rows] == ["|".join(names) for names in labels]
    assert main(["predict", "run", *map(str, files), "--top=1"]) == 0
    header, *rows = csv.reader(io.StringIO(capfd.readouterr().out))
    assert header == ["path", "labels", "class_1", "probability_1"]
    assert [row[2] for row in rows] == [CLASSES[index] for index in wanted.argmax(axis=1)]


def make_images(folder, good, bad):
    """Links to a few images, some of which are bad, at known places."""
    sources, damaged = folder / "sources", folder / "damaged"
    sources.mkdir(parents=True)
    damaged.mkdir()
    rng = np.random.default_rng(0)
    for index in range(16):
        Image.fromarray(rng.integers(0, 256, (18, 20, 3), np.uint8)).save(sources / f"{index}.png")
    whole = (sources / "0.png").read_bytes()
    animated = [Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)) for _ in range(2)]
    animated[0].save(damaged / "4.png", save_all=True, append_images=animated[1:])
    for name, content in {"0.png": whole[:-40], "1.png": b"", "2.png": b"no image", "3.png": b"BM" + whole}.items():
        (damaged / name).write_bytes(content)
    images = folder / "images"
    images.mkdir()
    places = sorted(rng.choice(good + bad, bad, replace=False).tolist())
    for index in range(good + bad):
        source = damaged / f"{index % 5}.png" if index in places else sources / f"{index % 16}.png"
        (images / f"{index:05d}.png").hardlink_to(source)
    return images, places


@pytest.mark.parametrize("num_workers", [0, 1])
def test_the_good_are_predicted_and_the_bad_are_listed(root, tmp_path, temperature, num_workers, capfd):
    images, places = make_images(tmp_path, 120, 9)
    to = tmp_path / "found.csv"
    call = ["predict", str(root / "run"), str(images), f"--to={to}", "--batch_size=16", f"--num_workers={num_workers}"]
    assert main(call) == SOME_BAD == 3
    error = capfd.readouterr().err
    assert "9 of 129 images could not be used, the others are predicted" in error
    assert f"calibrated at temperature {temperature:.3f}" in error
    header, *rows = table(to)
    assert header == ["path", "class", "probability", "p(dark)", "p(light)"]
    good = [index for index in range(129) if index not in places]
    assert [row[0] for row in rows] == [str(images / f"{index:05d}.png") for index in good]
    wanted = softmax(scores_of(root, [read(row[0]) for row in rows]) / temperature, axis=1)
    np.testing.assert_allclose(np.array([row[3:] for row in rows], float), wanted, rtol=0, atol=ATOL)
    assert [row[1] for row in rows] == [CLASSES[index] for index in wanted.argmax(axis=1)]
    assert [row[2] for row in rows] == [max(row[3:], key=float) for row in rows]
    header, *bad = table(tmp_path / "found.bad.csv")
    assert header == ["path", "reason"]
    assert [row[0] for row in bad] == [str(images / f"{index:05d}.png") for index in places]
    reasons = ("cannot decode", "the file is empty", "no image of format", "cannot decode", "it has 2 frames")
    for index, (path, reason) in zip(places, bad, strict=True):
        assert reasons[index % 5] in reason
        assert f"bad image {path}: {reason}" in error
    # A second call without bad images leaves no list of them.
    assert main(["predict", str(root / "run"), rows[0][0], f"--to={to}"]) == 0
    assert table(to)[1:] == rows[:1]
    assert not (tmp_path / "found.bad.csv").exists()


def test_json_holds_all_in_one(root, tmp_path, temperature, capfd):
    images, places = make_images(tmp_path, 5, 2)
    files = [*map(str, sorted(images.iterdir())), "no\nsuch.png"]
    assert main(["predict", str(root / "run"), *files, f"--to={tmp_path / 'x.json'}", "--top=1"]) == SOME_BAD
    found = json.loads((tmp_path / "x.json").read_text())
    assert (found["class_names"], found["kind"], found["temperature"]) == (list(CLASSES), "softmax", temperature)
    assert [row["path"] for row in found["bad"]] == [files[index] for index in places] + ["no\nsuch.png"]
    assert [row["path"] for row in found["predictions"]] == [
        name for name in files[:-1] if name not in {row["path"] for row in found["bad"]}
    ]
    for row in found["predictions"]:
        assert row["probabilities"] == {row["class"]: row["probability"]}
        assert row["probability"] >= 0.5
    # All good: an empty list.
    good = found["predictions"][0]["path"]
    assert main(["predict", str(root / "run"), good, f"--to={tmp_path / 'x.json'}"]) == 0
    assert json.loads((tmp_path / "x.json").read_text())["bad"] == []
    capfd.readouterr()


def test_paths_come_from_standard_input(root, monkeypatch, capfd):
    files = [str(path) for path in pictures(root)[:3]]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("\n".join([files[0], "", *files[1:]]).encode())))
    assert main(["predict", str(root / "run"), "-", files[0]]) == 0
    header, *rows = csv.reader(io.StringIO(capfd.readouterr().out))
    assert header[:3] == ["path", "class", "probability"]
    assert [row[0] for row in rows] == [*files, files[0]]
    assert rows[0] == rows[3]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "wanted RUN_OR_NAME and IMAGES"),
        (["{run}"], "wanted RUN_OR_NAME and IMAGES"),
        (["{run}", "{run}"], "has no images in it"),
        (["{run}", "none.png"], "none of the 1 images could be used, so nothing is written"),
        (["{run}", "{image}", "--to=x.txt"], "is no file .csv or .json"),
        (["{run}", "{image}", "--to=no/such/x.csv"], "there is no folder"),
        (["{run}", "{image}", "--top=0"], "--top=0, wanted at least 1"),
        (["{run}", "{image}", "--batch_size=0"], "batch_size is 0"),
        (["{run}", "{image}", "--num_workers=999"], "num_workers is 999"),
        (["{root}/pictures", "{image}"], "pictures"),
    ],
)
def test_where_nothing_can_be_done_nothing_is_written(root, tmp_path, monkeypatch, arguments, words, capfd):
    monkeypatch.chdir(tmp_path)
    places = {"run": root / "run", "root": root, "image": pictures(root)[0]}
    if len(arguments) > 1 and not arguments[-1].startswith("--to"):
        arguments = [*arguments, "--to=x.csv"]
    assert main(["predict", *(argument.format(**places) for argument in arguments)]) == 2
    assert words in capfd.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_was_never_calibrated_says_how_to_mend_that(root, tmp_path, capfd):
    copy = tmp_path / "run"
    copy.mkdir()
    for name in ("config.json", "env.json", "done.json", "classes.json", "tuned.safetensors"):
        (copy / name).write_bytes((root / "run" / name).read_bytes())
    assert main(["predict", str(copy), str(pictures(root)[0])]) == 2
    assert "has no calibration.json: the run was made before" in capfd.readouterr().err


def test_published_weights_predict_by_name(root, capfd):
    assert main(["predict", f"file:{root / 'vit'}", str(pictures(root)[0])]) == 0
    out, error = capfd.readouterr()
    assert "not calibrated: published weights" in error
    assert out.splitlines()[0] == "path,class,probability,p(LABEL_0),p(LABEL_1)"


def predict_job(ready, run, images, to):
    ready()
    assert main(["predict", run, images, f"--to={to}", "--batch_size=8"]) == SOME_BAD


def test_a_killed_prediction_leaves_what_was_there_and_can_be_repeated(root, tmp_path):
    images, _ = make_images(tmp_path, 60, 3)
    wanted, to = tmp_path / "wanted.csv", tmp_path / "out" / "found.csv"
    predict_job(lambda: None, str(root / "run"), str(images), wanted)
    to.parent.mkdir()
    to.write_text("before")
    kill.kill_and_finish(predict_job, str(root / "run"), str(images), to, kills=2, within_s=0.2, seed=0)
    assert to.read_bytes() == wanted.read_bytes()
    assert (to.parent / "found.bad.csv").read_bytes() == (tmp_path / "wanted.bad.csv").read_bytes()


def test_the_test_part_of_a_run_is_predicted_as_the_run_did(root, temperature):
    """With the temperature taken back."""
    source, split = split_of(root, root / "run")
    with np.load(root / "run" / "predictions.npz") as file:
        before = dict(zip(file["index"].tolist(), file["probabilities"], strict=True))
    found = tljax.Predictor.open(root / "run")([source[index]["image"] for index in split.test])
    hot = found.probabilities.astype(np.float64) ** temperature
    np.testing.assert_allclose(
        hot / hot.sum(axis=1, keepdims=True), [before[index] for index in split.test.tolist()], rtol=0, atol=1e-5
    )


def test_every_command_of_the_page_runs(root, tmp_path, monkeypatch, capfd):
    page = (Path(__file__).parents[1] / "docs" / "predict.md").read_text()
    (tmp_path / "RUN").symlink_to(root / "run")
    shutil.copytree(root / "pictures", tmp_path / "IMAGES")
    (tmp_path / "photo.png").write_bytes(pictures(root)[0].read_bytes())
    monkeypatch.chdir(tmp_path)
    # A new process would take seconds; the commands are those of this one.
    for line in re.findall(r"^    (\S.*)$", page, re.MULTILINE):
        first, *rest = line.split(" | ")
        program, *arguments = shlex.split(rest[0] if rest else first)
        if rest:
            piped = subprocess.run(first, shell=True, capture_output=True, check=True, cwd=tmp_path).stdout
            monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(piped)))
        if program == "tljax":
            assert main(arguments) == 0, line
        else:
            monkeypatch.setattr(sys, "argv", arguments)
            runpy.run_path(arguments[0], run_name="__main__")
    capfd.readouterr()
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    names = {}
    exec(code, names)
    assert len(names["found"].labels) == 2
    assert len(table("found.csv")) == 81
    assert len(json.loads(Path("found.json").read_text())["predictions"]) == 81
    assert {path.name for path in Path("program").iterdir()} >= set(re.findall(r"`(\w+\.(?:stablehlo|npz))`", page))


_MEASURE = """
import resource, sys
from tljax.cli import main
status = main(sys.argv[1:])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
sys.exit(status)
"""


@pytest.mark.slow
def test_ten_thousand_images_take_the_memory_of_one_thousand(root, tmp_path):
    peaks = {}
    for good, bad in ((980, 20), (9980, 20)):
        images, places = make_images(tmp_path / str(good), good, bad)
        to = tmp_path / f"{good}.csv"
        done = subprocess.run(
            [sys.executable, "-c", _MEASURE, "predict", str(root / "run"), str(images), f"--to={to}"],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == SOME_BAD, done.stderr[-2000:]
        assert len(table(to)) == good + 1
        assert [Path(row[0]).stem for row in table(to.with_suffix(".bad.csv"))[1:]] == [f"{i:05d}" for i in places]
        peaks[good] = int(done.stdout) * (1024 if sys.platform != "darwin" else 1)
    # 9,000 images as bytes of pixels alone would be 7 MB; all that they need beside that, several times as much.
    assert peaks[9980] - peaks[980] < 2**24
