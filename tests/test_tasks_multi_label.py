"""Tables with many labels an image, and with soft labels, from images to what a finished run leaves behind."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.special import expit, log_softmax
from sklearn import metrics as sklearn_metrics
from sklearn.linear_model import LogisticRegression

from tests.small_runs import CLASSES, SIZE, make_config, metrics_of, write_model, write_pictures
from tljax.cli import main
from tljax.data.decode import decode_image
from tljax.data.sources import SOURCES, open_source
from tljax.data.splits import load_split
from tljax.plain import fingerprint
from tljax.tasks import finetune, inputs, probe, relative, soup, transfer
from tljax.tasks.card import write_card
from tljax.tasks.evaluation import check_choice, evaluate
from tljax.tasks.extract import open_features
from tljax.tasks.feed import open_feed
from tljax.tasks.few_shot import few_shot
from tljax.tasks.finished import open_finished
from tljax.tasks.inputs import make_split
from tljax.tasks.probe import read_features
from tljax.tasks.restore import restore

CONFIG = Path(__file__).parent.parent / "configs" / "table.py"
SMOOTHING = 0.2
TABLES = {
    "multi_label": {"path": "tags.csv", "kind": "multi_label", "label_column": "tags", "separator": "|"},
    "soft": {"path": "shares.csv", "kind": "soft", "label_columns": CLASSES},
}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Pictures whose tags are their brightness, or not, and their number; or shares of the classes."""
    folder = tmp_path_factory.mktemp("multi_label")
    files = sorted(path.relative_to(folder) for path in write_pictures(folder / "pictures").glob("*/*.png"))
    rng = np.random.default_rng(0)
    tags, shares = ["file,tags,site"], ["file,dark,light"]
    for index, file in enumerate(files):
        names = [file.parent.name] * (index % 5 > 0) + ["third"] * (index % 3 == 0) + ["rare"] * (index % 9 == 0)
        share = round(float(rng.beta(4, 1)), 3)
        of_dark = share if file.parent.name == "dark" else 1 - share
        tags.append(f"{file},{'|'.join(names)},{'north' if index % 2 else 'south'}")
        shares.append(f"{file},{of_dark:.3f},{1 - of_dark:.3f}")
    (folder / "tags.csv").write_text("\n".join(tags))
    (folder / "shares.csv").write_text("\n".join(shares))
    write_model(folder / "vit")
    return folder


def table_config(root, kind, **sections):
    name = "sigmoid" if kind == "multi_label" else "softmax"
    config = make_config(root, **{"model": {"head": {"init": "scaled"}}, "loss": {"name": name}, **sections})
    return {**config, "data": {"name": "table", "root": str(root), "file_column": "file", **TABLES[kind]}}


def config_of(workdir):
    config = json.loads((workdir / "config.json").read_text())["config"]
    config["split"]["strata"] = tuple(config["split"]["strata"])
    return config


def targets_of(source):
    assert source.targets is not None
    return source.targets


def scores_of(model, source, indices):
    images = np.stack([model.preprocess(decode_image(source[row]["image"], "")) for row in indices])
    x = model.preprocess.normalise(jnp.asarray(images))
    return np.asarray(model.net.apply(model.params, model.stats, x)[0], np.float64)


def assert_first_loss(config, workdir, loss):
    """The loss of the first step is that of the pretrained net on its batch, by hand."""
    opened = inputs.open_inputs(config)
    source, split = opened.source, load_split(workdir / "split.npz", opened.source)
    (plan,), _ = relative.plan_run(config, opened, split)
    batch = next(open_feed(plan).training(split.train, config["seed"], 0))
    np.testing.assert_array_equal(batch["label"], targets_of(source)[batch["index"]])
    scores = scores_of(opened.pretrained, source, batch["index"])
    assert np.ptp(scores) > 0.1
    (first,) = (record for record in metrics_of(workdir) if record.get("loss") and record["step"] == 0)
    wanted = loss(scores, targets_of(source)[batch["index"]].astype(np.float64))
    # The net in float32, and the batch in shares on 8 devices.
    assert first["loss"] == pytest.approx(wanted, rel=1e-5)
    return scores, targets_of(source)[batch["index"]], first


@pytest.fixture(scope="module")
def run(root, tmp_path_factory):
    """A run of the shipped config on a small net, whose head does not start at zero."""
    folder = tmp_path_factory.mktemp("shipped")
    text = CONFIG.read_text().replace("image_size=224", f"image_size={SIZE}, head=dict(init='scaled')")
    (folder / "table.py").write_text(text.replace('keep="best"', 'keep="best", drift_images=0'))
    workdir, cache = folder / "run", root / "cache"
    flags = {
        "cache_dir": cache, "model.name": f"file:{root / 'vit'}", "data.root": root,
        "data.path": "tags.csv", "data.label_column": "tags", "groups.freeze": 1, "augment.views": 1,
        "finetune.batch_size": 16, "finetune.epochs": 4, "finetune.evaluate_every": 4, "schedule.learning_rate": 1e-3,
        "prefix.dtype": "float32", "loss.label_smoothing": SMOOTHING,
    }  # fmt: skip
    call = ["finetune", f"--config={folder / 'table.py'}", f"--workdir={workdir}"]
    assert main([*call, *(f"--config.{name}={value}" for name, value in flags.items())]) == 0
    return workdir


def test_the_shipped_config_ends_with_the_best_mean_average_precision(root, run):
    config = config_of(run)
    source = inputs.open_data(config)
    assert source.class_names == ("dark", "light", "rare", "third")
    evaluated = [(record["val_mean_average_precision"], record["step"] + 1) for record in metrics_of(run)
                 if "loss" not in record]  # fmt: skip
    assert len(evaluated) > 1
    (record,) = json.loads((run / "evaluations.json").read_text())
    assert record["chosen"] == {"step": max(evaluated)[1]}
    with np.load(run / "predictions.npz") as file:
        indices, probabilities = file["index"], file["probabilities"]
    # The net that the run left gives them, each label for itself.
    scores = scores_of(restore(run), source, indices)
    np.testing.assert_allclose(probabilities, expit(scores), rtol=0, atol=2e-6)
    targets = targets_of(source)[indices]
    columns = zip(targets.T, probabilities.T, strict=True)
    precisions = [sklearn_metrics.average_precision_score(*column) for column in columns]
    done = json.loads((run / "done.json").read_text())
    assert done["mean_average_precision"] == pytest.approx(np.mean(precisions))
    assert done["subset_accuracy"] == sklearn_metrics.accuracy_score(targets, probabilities >= 0.5)
    of_classes = {name: (row["average_precision"], row["num_images"]) for name, row in record["by_class"].items()}
    counts = targets.sum(axis=0).tolist()
    assert of_classes == {
        name: pytest.approx((value, count))
        for name, value, count in zip(source.class_names, precisions, counts, strict=True)
    }
    assert "confusion" not in record


def test_the_temperature_is_that_of_each_label_on_its_own(root, run):
    found = json.loads((run / "calibration.json").read_text())
    assert found["kind"] == "sigmoid"
    source = inputs.open_data(config_of(run))
    split = load_split(run / "split.npz", source)

    def loss(part, temperature):
        scores, targets = scores_of(restore(run), source, part) / temperature, targets_of(source)[part]
        return (targets * np.logaddexp(0, -scores) + (1 - targets) * np.logaddexp(0, scores)).sum(axis=1).mean()

    best: Any = minimize_scalar(lambda log: loss(split.val, np.exp(log)), bounds=(-3, 3), method="bounded")
    assert found["temperature"] == pytest.approx(np.exp(best.x), rel=1e-3)
    assert found["test"]["after"]["log_loss"] == pytest.approx(loss(split.test, found["temperature"]), rel=1e-5)
    assert sum(part["count"] for part in found["test"]["before"]["bins"]) == 4 * len(split.test)
    assert open_finished(run).kind == "sigmoid"
    card = write_card(run)
    assert "| class | test images with it | average precision |" in card
    assert "images, without intervals." in card


def test_the_split_of_the_shipped_config_keeps_the_share_of_each_label(run):
    config = config_of(run)
    source = inputs.open_data(config)
    split = load_split(run / "split.npz", source)
    targets = targets_of(source)
    for part, share in (("train", 0.6), ("val", 0.2), ("test", 0.2)):
        got = targets[getattr(split, part)].sum(axis=0)
        assert np.abs(got - share * targets.sum(axis=0)).max() <= 1
    settings = {**config["split"], "strata": ("label", "site")}
    by_site = inputs.make_split(source, 0, **settings)
    assert abs((source.columns["site"][by_site.test] == "north").sum() - 8) <= 1
    grouped = inputs.make_split(source, 0, **{**settings, "kind": "grouped", "groups": "site"})
    assert len(np.unique(source.columns["site"][grouped.test])) <= 1


def test_the_first_loss_of_many_labels_is_that_of_its_definition(run):
    def loss(scores, targets):
        smoothed = (1 - SMOOTHING) * targets + SMOOTHING / 2
        return -np.mean(smoothed * np.log(expit(scores)) + (1 - smoothed) * np.log(expit(-scores)))

    scores, targets, first = assert_first_loss(config_of(run), run, loss)
    assert first["accuracy"] == pytest.approx(np.mean((scores >= 0) == (targets >= 0.5)))


def test_soft_labels_train_on_shares_and_are_tested_by_the_largest(root, tmp_path):
    config = table_config(root, "soft", finetune={"epochs": 1, "sampling": "class_balanced"}, augment={"views": 1})
    result = finetune.run(config, tmp_path / "run")
    assert_first_loss(config, tmp_path / "run", lambda scores, targets: -np.mean(
        np.sum(targets * log_softmax(scores, axis=1), axis=1)))  # fmt: skip
    source = inputs.open_data(config)
    with np.load(tmp_path / "run" / "predictions.npz") as file:
        indices, probabilities = file["index"], file["probabilities"].astype(np.float64)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-6)
    shares = targets_of(source)[indices]
    assert result["accuracy"] == np.mean(probabilities.argmax(axis=1) == shares.argmax(axis=1))
    assert result["log_loss"] == pytest.approx(-np.mean(np.sum(shares * np.log(probabilities), axis=1)), rel=1e-6)


def test_a_soup_of_one_run_is_that_run(root, run, tmp_path):
    config = config_of(run)
    config["soup"] = {"runs": [str(run), str(run)], "kind": "uniform", "batch_size": 16}
    result = soup.run(config, tmp_path / "soup")
    done = json.loads((run / "done.json").read_text())
    names = ("mean_average_precision", "roc_auc", "macro_f1", "subset_accuracy")
    assert [result[name] for name in names] == pytest.approx([done[name] for name in names], rel=1e-6)
    best = max(record["val_mean_average_precision"] for record in metrics_of(run) if "loss" not in record)
    assert result["val_mean_average_precision"] == pytest.approx(best, rel=1e-6)


@pytest.mark.parametrize(
    ("kind", "sections", "message"),
    [
        ("multi_label", {"loss": {"name": "softmax"}}, "has any number of classes; set it to 'sigmoid'"),
        ("soft", {"loss": {"name": "sigmoid"}}, "has one class; set it to 'softmax'"),
        ("multi_label", {"loss": {"name": "sigmoid", "class_weighting": "inverse"}}, "no class takes the place"),
        ("multi_label", {"finetune": {"sampling": "class_balanced"}}, "any number of them; set it to 'uniform'"),
        ("multi_label", {"data": {"root": "nowhere"}}, "no table"),
        ("multi_label", {"data": {"file_colum": "x"}}, r"config\.data: no key 'file_colum' \(did you mean"),
    ],
)
def test_what_does_not_go_with_the_labels_is_refused(root, tmp_path, kind, sections, message):
    data = sections.pop("data", {})
    config = table_config(root, kind, **sections)
    config["data"].update(data)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        finetune.run(config, tmp_path / "run")
    assert not (tmp_path / "run" / "split.npz").exists()


@pytest.fixture(scope="module")
def opened(root):
    return inputs.open_inputs(table_config(root, "multi_label"))


def test_the_report_and_few_shots_are_of_one_class_an_image(root, opened, tmp_path):
    with pytest.raises(ValueError, match=r"is multi-label, and `tljax transfer` takes one class an image"):
        transfer.work({"probe": {}}, tmp_path, opened)
    split = make_split(opened.source, 0, **table_config(root, "multi_label")["split"])
    with pytest.raises(ValueError, match=r"is multi-label, and config.few_shot takes one class an image"):
        few_shot({}, opened, split, {"knn": ("block_00",)}, lambda name: np.empty(0), shots=(1,), draws=2, method="knn")


def test_probes_give_each_label_a_probability(root, tmp_path):
    taps, strengths = ("block_00", "block_01"), (1.0, 0.1, 0.01)
    config = table_config(
        root, "multi_label", logistic={"strengths": strengths}, knn={"neighbours": (3, 9), "temperature": 0.07},
        features={"taps": taps, "pooling": "mean", "views": 1, "dtype": "float32", "batch_size": 16},
        probe={"refit_on_val": True, "num_folds": 0, "logistic": ("block_01",), "knn": ("block_01",)},
    )  # fmt: skip
    result = probe.run(config, tmp_path / "run")
    opened = inputs.open_inputs(config)
    split = load_split(tmp_path / "run" / "split.npz", opened.source)
    features = read_features(open_features(config, opened), "block_01")
    targets = targets_of(opened.source)
    records = {one["method"]: one for one in json.loads((tmp_path / "run" / "evaluations.json").read_text())}
    train = np.sort(np.concatenate([split.train, split.val]))
    # On z and with the mean over images, scikit-learn's C is 1 / (strength n).
    strength = records["logistic"]["chosen"]["strength"]
    mean, scale = features[train].mean(axis=0), features[train].std(axis=0)
    z, asked = (features[train] - mean) / scale, (features[split.test] - mean) / scale
    of_labels = [
        LogisticRegression(C=1 / (strength * len(train)), tol=1e-8, max_iter=10_000).fit(z, targets[train, label])
        for label in range(targets.shape[1])
    ]
    wanted = np.stack([one.predict_proba(asked)[:, 1] for one in of_labels], axis=1)
    precision = sklearn_metrics.average_precision_score(targets[split.test], wanted, average="macro")
    assert result["logistic/block 2/mean_average_precision"] == pytest.approx(precision, abs=1e-3)
    assert set(records["knn"]["by_class"]) == set(opened.source.class_names)


def test_nothing_is_chosen_by_labels_that_no_image_has(opened):
    none = np.flatnonzero(~opened.source.targets.any(axis=1))
    with pytest.raises(ValueError, match=f"none of the {len(none)} validation images has a label"):
        check_choice(opened.source, none)
    scores = evaluate(opened.source, none, np.full((len(none), 4), 0.2), group_by="site")
    assert set(scores["by_group"]) == {"north", "south"}
    assert scores["by_class"]["rare"] == {"average_precision": None, "num_images": 0}


def test_the_identity_of_a_run_is_of_its_targets_too(opened, root):
    targets = opened.source.targets.copy()
    targets[3, 2] = 0.75
    other = dataclasses.replace(opened, source=dataclasses.replace(opened.source, targets=targets))
    before, after = opened.identity, other.identity
    assert {name for name in before if before[name] != after[name]} == {"labels"}
    # What it has always been where there are none.
    folder = open_source("folder", root / "pictures")
    plain = dataclasses.replace(opened, source=folder)
    assert plain.identity["labels"] == fingerprint([list(CLASSES), folder.labels, folder.weights, {}])


def test_data_without_a_name_is_refused(root):
    config = table_config(root, "soft")
    del config["data"]["name"]
    with pytest.raises(ValueError, match=r"config\.data: key 'name' is missing, .*'table'"):
        inputs.open_data(config)
    assert set(SOURCES) == {"elpv", "folder", "table"}
