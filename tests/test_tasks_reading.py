"""What the report shows of the features, on small runs of a ViT and of a ResNet."""

import base64
import io
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image

from tests.small_runs import NUM_IMAGES, RESNET, make_config, write_model, write_pictures
from tljax.features import extract
from tljax.preprocess import Preprocess
from tljax.tasks import transfer
from tljax.tasks.extract import open_features
from tljax.tasks.inputs import Inputs, open_inputs
from tljax.tasks.patches import _as_seen, read_patches
from tljax.tasks.probe import read_features
from tljax.tasks.reading import Reading, _choose_queries, check_reading, read_features_for_report
from tljax.tasks.sections import call

READING = {
    "map_features": ("block_00+block_01",),
    "maps": ("pca", "tsne"),
    "max_images": 60,
    "perplexity": 5,
    "neighbour_features": "block_01",
    "num_queries": 4,
    "num_neighbours": 3,
    "patch_stage": "block_00",
}
TRANSFER = {
    "features": {
        "taps": ("block_00", "block_01"), "pooling": "cls_mean", "views": 1, "dtype": "float32", "batch_size": 8,
    },
    "probe": {"refit_on_val": True, "num_folds": 0, "knn": ("block_01",)},
    "knn": {"neighbours": (1,), "temperature": 0.07},
    "compare": {"kinds": ("stratified",), "probe_repeats": 1, "finetune_repeats": 0, "title": "Small"},
}  # fmt: skip
CNN = {
    "features": {"taps": ("layer1_00", "layer2_00"), "pooling": "mean"},
}


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("reading")
    write_pictures(folder / "pictures")
    write_model(folder / "vit")
    write_model(folder / "resnet", RESNET)
    return folder


def config_of(root: Path, **reading):
    config = make_config(root, **TRANSFER)
    return {**config, "reading": {**READING, **reading}}


def config_of_cnn(root: Path, **reading):
    config = config_of(
        root, map_features=("layer1_00",), neighbour_features="layer2_00", patch_stage="layer1_00", **reading
    )
    config["model"] = {"name": f"file:{root / 'resnet'}"}
    for name, changes in CNN.items():
        config[name] = {**config[name], **changes}
    return config


@pytest.fixture(scope="module")
def inputs(root) -> Inputs:
    return open_inputs(config_of(root))


@pytest.fixture(scope="module")
def finished(root) -> Path:
    transfer.run(config_of(root), root / "run")
    return root / "run"


def decode(data: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))


def test_the_report_of_a_run_shows_its_features(root, finished):
    page, text = (finished / "report.html").read_text(), (finished / "report.md").read_text()
    for title in ("PCA of blocks 1+2", "t-SNE of blocks 1+2", "60 of the 80 images", "like class token"):
        assert title in page
    assert len(re.findall('class="neighbours"', page)) == 4
    assert len(re.findall('class="pixels"', page)) == 4 * 3
    # The legend of the two classes and a point for each image in two maps.
    assert len(re.findall('class="point', page)) == 2 * (2 + 60)
    assert "reading the features" in page
    assert len(re.findall(r"^\| (dark|light)/\d+.png \| (dark|light) \| \W \| ", text, re.MULTILINE)) == 4
    assert "Images drawn at random, of the classes in turn." in page


def test_a_comparison_without_the_section_has_the_report_without_it(root, finished):
    before = (finished / "report.html").read_bytes()
    config = config_of(root)
    del config["reading"]
    transfer.run(config, finished)
    assert "Reading the features" not in (finished / "report.html").read_text()
    transfer.run(config_of(root), finished)
    pictures = re.compile(rb"<svg.*?</svg>", re.DOTALL)
    # The same maps to the bit, from the parts that were there.
    assert pictures.findall((finished / "report.html").read_bytes()) == pictures.findall(before)


def write_predictions(folder: Path, index: list[int], probability_of_light: list[float]) -> list[Path]:
    light = np.array(probability_of_light, np.float32)
    np.savez(folder / "predictions.npz", index=np.array(index), probabilities=np.stack([1 - light, light], axis=1))
    return [folder]


def test_first_mistakes_are_read_then_right_answers_of_each_class(inputs, tmp_path):
    # Images 0 to 39 are dark, the others light.
    wrong = {3: 0.7, 7: 0.9, 50: 0.2, 60: 0.45}
    right = {4: 0.1, 5: 0.4, 6: 0.3, 70: 0.6, 71: 0.8}
    tuned = write_predictions(tmp_path, [*wrong, *right], [*wrong.values(), *right.values()])
    # The surest mistakes; dark 6 and light 70 stand in the middle of 4, 6, 5 and, of two, behind it in 71, 70.
    assert _choose_queries(inputs, tuned, 6, 0) == {7: 1, 50: 0, 3: 1, 6: 0, 70: 1, 4: 0}
    assert list(_choose_queries(inputs, tuned, 5, 0)) == [7, 50, 6, 70, 4]
    assert list(_choose_queries(inputs, tuned, 100, 0)) == [7, 50, 3, 60, 6, 70, 4, 71, 5]
    assert list(_choose_queries(inputs, write_predictions(tmp_path, [3, 7], [0.7, 0.9]), 1, 0)) == [7]
    assert list(_choose_queries(inputs, write_predictions(tmp_path, [4, 5], [0.1, 0.4]), 4, 0)) == [5, 4]


def test_without_fine_tuning_images_of_each_class_in_turn_are_read(inputs):
    found = _choose_queries(inputs, [], 5, 0)
    assert [inputs.source.labels[row] for row in found] == [0, 1, 0, 1, 0]
    assert set(found.values()) == {None}
    assert list(found) == list(_choose_queries(inputs, [], 5, 0))
    assert list(found) != list(_choose_queries(inputs, [], 5, 1))
    assert len(_choose_queries(inputs, [], 500, 0)) == NUM_IMAGES


def test_patches_are_those_of_the_stored_grid(inputs, tmp_path):
    """The stage's output as `extract` stores it, and cosines in float64."""
    pretrained, rows = inputs.pretrained, [2, 50]
    what = (pretrained.net, pretrained.params, pretrained.stats, inputs.source, pretrained.preprocess)
    store = extract(*what, tmp_path / "grid", taps=("block_00",), pooling="grid", dtype="float32", batch_size=8)
    tokens = store.read("block_00")[rows].astype(np.float64)
    unit = tokens / np.linalg.norm(tokens, axis=-1, keepdims=True)
    found = read_patches(inputs, "block_00", rows)
    assert (found["stage"], found["whole"], found["size"]) == ("block_00", "class token", [4, 4])
    for row, image in zip(unit, found["rows"], strict=True):
        class_token, patches = row[0], row[1:].reshape(4, 4, -1)
        assert_allclose(image["to_whole"], patches @ class_token, rtol=0, atol=1e-5)
        first, second = image["patches"]
        assert (first["letter"], second["letter"], second["place"]) == ("A", "B", [2, 2])
        assert np.ravel_multi_index(first["place"], (4, 4)) == (patches @ class_token).argmax()
        for patch in (first, second):
            assert_allclose(patch["cosines"], patches @ patches[tuple(patch["place"])], rtol=0, atol=1e-5)
    assert decode(found["rows"][0]["jpeg"]).shape == (16, 16, 3)


def test_images_are_read_as_they_are_where_the_store_has_more_views(root, inputs):
    config = config_of(root)
    once = open_features(config, inputs).read("block_01")
    store = open_features({**config, "features": {**config["features"], "views": 3}}, inputs)
    assert store.num_rows == 3 * NUM_IMAGES
    assert_array_equal(read_features(store, "block_01"), once)


def test_a_convolutional_net_is_read_by_places(root):
    config = config_of_cnn(root)
    inputs, reading = open_inputs(config), call("reading", config, Reading)
    check_reading(reading, config, inputs)
    found = read_features_for_report(reading, config, inputs, [])
    patches = found["patches"]
    assert (patches["whole"], patches["size"], len(patches["rows"])) == ("mean", [4, 4], 4)
    assert [one["features"] for one in found["maps"]] == ["block 1", "block 1"]
    with pytest.raises(ValueError, match="'head': an output of shape .* has no patches; name a stage before"):
        check_reading(Reading(**{**config["reading"], "patch_stage": "head"}), config, inputs)


def test_what_a_net_sees_is_shown_in_the_colours_of_the_page():
    image = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    assert_array_equal(_as_seen(Preprocess(size=2, channel_order="bgr"), image), image[..., ::-1])
    assert_array_equal(_as_seen(Preprocess(size=2), image), image)
    grey = Preprocess(size=2, mean=(0.5,), std=(0.5,))
    assert _as_seen(grey, image[..., :1]).shape == (2, 2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"maps": ("psa",)}, r"no map 'psa' \(did you mean 'pca'\?\)"),
        ({"num_queries": 0, "max_images": 1}, "max_images is 1, wanted at least 2; num_queries is 0,"),
        ({"map_features": ("block_1", "head")}, r"no features 'block_1' \(did you mean .*, 'head'"),
        ({"neighbour_features": "norm"}, "no features 'norm'"),
        ({"num_neighbours": 80}, "num_neighbours is 80, wanted 1 to 79"),
        ({"perplexity": 20}, "t-SNE of 60 rows at perplexity 20"),
        ({"patch_stage": "head"}, "config.reading.patch_stage 'head': an output of shape"),
        ({"patch_stage": "blok_00"}, "no stage 'blok_00'"),
    ],
)
def test_mistakes_are_found_before_anything_is_computed(root, tmp_path, monkeypatch, changes, message):
    monkeypatch.setattr("tljax.tasks.transfer.run_task", None)
    config = config_of(root, **changes)
    with pytest.raises(ValueError, match=message):
        transfer.work(config, tmp_path, open_inputs(config))


def test_without_scikit_learn_the_message_says_what_to_install(root, inputs, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.manifold", None)
    config = config_of(root)
    with pytest.raises(ImportError, match="pip install"):
        check_reading(call("reading", config, Reading), config, inputs)
    config = config_of(root, maps=("pca",))
    check_reading(call("reading", config, Reading), config, inputs)


def test_features_of_several_poolings_are_named_by_both(root, inputs):
    named = {"map_features": ("block_00.max",), "neighbour_features": "block_01.mean"}
    config = config_of(root, **named)
    config["features"]["pooling"] = ("mean", "max")
    check_reading(Reading(**config["reading"]), config, inputs)
    with pytest.raises(ValueError, match=r"no features 'block_01'.*config.features has .*'block_01.max'"):
        check_reading(Reading(**{**config["reading"], "neighbour_features": "block_01"}), config, inputs)
