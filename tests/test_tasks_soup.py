"""Averages of finished runs, chosen on the validation part and tested once."""

import dataclasses
import json
import shutil
from xml.etree import ElementTree

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

import tljax
from tests.small_runs import apply_net, make_config, metrics_of, split_of, write_model, write_pictures
from tljax import rundir
from tljax.cli import main
from tljax.data.sources import open_source
from tljax.paths import stage_of
from tljax.tasks import finetune, running, soup
from tljax.tasks.inputs import open_split
from tljax.tasks.restore import restore

RUNS = ("probe", "tuned", "lora")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A linear probe, a run with the last block, and one with low-rank deltas."""
    folder = tmp_path_factory.mktemp("soup")
    write_pictures(folder / "pictures")
    write_model(folder / "vit")
    lora = {"rules": "attention", "rank": 2, "alpha": 4.0}
    sections = ({"groups": {"freeze": "head"}}, {}, {"groups": {"freeze": "head"}, "lora": lora})
    for name, changes in zip(RUNS, sections, strict=True):
        finetune.run(make_config(folder, **changes), folder / name)
    return folder


def soup_config(root, runs, kind, **more):
    changes = {"soup": {"runs": [str(root / run) for run in runs], "kind": kind, "batch_size": 16, **more}}
    return make_config(root, **changes)


def arrays_of(root, run):
    model = restore(root / run)
    return {path: np.asarray(value, np.float64) for path, value in {**model.params, **model.stats}.items()}


def accuracy(root, arrays, part):
    """Of params that were averaged in float64."""
    model = restore(root / "probe")
    params = {path: jnp.asarray(arrays[path], jnp.float32) for path in model.params}
    source, split = split_of(root, root / "probe")
    indices = getattr(split, part)
    probabilities = apply_net(dataclasses.replace(model, params=params), source, indices)
    return float(np.mean(probabilities.argmax(axis=1) == source.labels[indices]))


def test_the_ends_of_a_path_are_the_runs_themselves(root, tmp_path):
    for alpha, run in ((0.0, "probe"), (1.0, "tuned")):
        result = soup.run(soup_config(root, ("probe", "tuned"), "path", alphas=[alpha]), tmp_path / run)
        done = json.loads((root / run / "done.json").read_text())
        names = ("accuracy", "balanced_accuracy", "macro_f1", "roc_auc")
        assert [result[name] for name in names] == pytest.approx([done[name] for name in names], rel=1e-6)
        (last,) = [record for record in metrics_of(root / run) if "loss" not in record]
        assert result["val_accuracy"] == last["val_accuracy"]
        assert result[f"val_accuracy/{root / run}"] == last["val_accuracy"]
        model, saved = restore(root / run), restore(tmp_path / run)
        assert all(np.array_equal(saved.params[path], value) for path, value in model.params.items())
        # What is as it was is not in the file.
        tuned = load_file(tmp_path / run / "tuned.safetensors")
        assert {stage_of(path) for path in tuned} == ({"head"} if run == "probe" else {"block_01", "norm", "head"})


def test_a_path_is_chosen_on_the_validation_part_and_tested_once(root, tmp_path, monkeypatch):
    seen = []
    predict = soup._Kitchen.predict

    def watching(self, arrays, indices):
        seen.append(indices)
        return predict(self, arrays, indices)

    monkeypatch.setattr(soup._Kitchen, "predict", watching)
    alphas = [0.0, 0.25, 0.5, 0.75, 1.0]
    config = soup_config(root, ("probe", "tuned"), "path", alphas=alphas)
    result = soup.run(config, tmp_path / "run")
    _, split = split_of(root, root / "probe")
    tested = [indices for indices in seen if not np.array_equal(indices, split.val)]
    assert len(tested) == 1
    np.testing.assert_array_equal(tested[0], split.test)

    kept = json.loads((tmp_path / "run" / "soup.json").read_text())
    first, second = arrays_of(root, "probe"), arrays_of(root, "tuned")
    # Wortsman et al. 2022, arXiv:2109.01903, equation 2.
    lines = {
        f"{alpha:g}": {path: (1 - alpha) * first[path] + alpha * second[path] for path in first} for alpha in alphas
    }
    assert kept["val_accuracy"] == {name: pytest.approx(accuracy(root, line, "val")) for name, line in lines.items()}
    assert kept["val_accuracy"][kept["chosen"]] == max(kept["val_accuracy"].values()) == result["val_accuracy"]
    assert result["accuracy"] == pytest.approx(accuracy(root, lines[kept["chosen"]], "test"))
    saved = restore(tmp_path / "run").params
    assert set(saved) == set(first)
    for path, value in lines[kept["chosen"]].items():
        np.testing.assert_allclose(saved[path], value, rtol=0, atol=1e-6)
    picture = ElementTree.parse(tmp_path / "run" / "soup.svg").getroot()
    (line,) = picture.iter("{http://www.w3.org/2000/svg}polyline")
    assert len(line.attrib["points"].split()) == len(alphas)

    monkeypatch.setattr(running, "open_inputs", None)
    assert soup.run(config, tmp_path / "run") == result


def test_a_uniform_soup_is_the_mean_with_the_deltas_merged(root, tmp_path):
    result = soup.run(soup_config(root, RUNS, "uniform"), tmp_path / "run")
    ingredients = [arrays_of(root, run) for run in RUNS]
    mean = {path: np.mean([one[path] for one in ingredients], axis=0) for path in ingredients[0]}
    saved = restore(tmp_path / "run").params
    assert set(saved) == set(mean)
    for path, value in mean.items():
        np.testing.assert_array_equal(saved[path], value.astype(np.float32))
    kernel = "block_01/attn/query/kernel"
    assert len({one[kernel].tobytes() for one in ingredients}) == 3
    assert result["accuracy"] == pytest.approx(accuracy(root, mean, "test"))

    # It leaves as a fine-tuned run does.
    assert main(["export", str(tmp_path / "run"), "--format=hf", f"--to={tmp_path / 'out'}"]) == 0
    exported = tljax.load(f"file:{tmp_path / 'out'}")
    assert exported.class_names == ("dark", "light")
    assert all(np.array_equal(exported.params[path], value) for path, value in saved.items())


def test_runs_of_other_seeds_share_the_split_of_one_seed_and_make_a_soup(root, tmp_path):
    base = make_config(root, split={"seed": 7})
    source = open_source("folder", str(root / "pictures"))
    one, other = (open_split({**base, "seed": seed}, source, tmp_path) for seed in (1, 2))
    own = open_split(make_config(root, seed=7), source, tmp_path)
    for part in ("train", "val", "test"):
        np.testing.assert_array_equal(getattr(one, part), getattr(other, part))
        np.testing.assert_array_equal(getattr(one, part), getattr(own, part))
    assert not np.array_equal(open_split(make_config(root), source, tmp_path).test, own.test)

    # The runs of this module have seed 0.
    config = {**soup_config(root, ("probe", "tuned"), "uniform"), "seed": 5}
    config["split"] = {**config["split"], "seed": 0}
    assert soup.run(config, tmp_path / "run")["accuracy"] > 0


def test_a_greedy_soup_keeps_what_does_not_lower_the_validation_accuracy(root, tmp_path):
    result = soup.run(soup_config(root, RUNS, "greedy"), tmp_path / "run")
    ingredients = [arrays_of(root, run) for run in RUNS]

    def score(chosen):
        mean = {path: np.mean([ingredients[index][path] for index in chosen], axis=0) for path in ingredients[0]}
        return accuracy(root, mean, "val")

    # Wortsman et al. 2022, arXiv:2203.05482, recipe 1.
    order = sorted(range(3), key=lambda index: -score([index]))
    kept = order[:1]
    for index in order[1:]:
        kept = [*kept, index] if score([*kept, index]) >= score(kept) else kept
    chosen = json.loads((tmp_path / "run" / "soup.json").read_text())["chosen"]
    assert chosen == "greedy of " + ", ".join(str(root / RUNS[index]) for index in kept)
    assert result["val_accuracy"] == pytest.approx(score(kept))
    assert result["val_accuracy"] >= max(result[f"val_accuracy/{root / run}"] for run in RUNS)


def changed_run(root, folder, name, content):
    """A copy of the tuned run with another file."""
    shutil.copytree(root / "tuned", folder, ignore=shutil.ignore_patterns("checkpoints"))
    (folder / name).write_bytes(content)
    return folder


def test_runs_that_are_not_alike_are_refused(root, tmp_path):
    classes = changed_run(root, tmp_path / "classes", "classes.json", b'["dark", "bright"]')
    model = {"name": f"file:{write_model(tmp_path / 'other', seed=3)}"}
    with pytest.raises(ValueError, match=r"the weights 'file:.*other' are not those that .*probe was trained from"):
        soup.run({**soup_config(root, ("probe", "tuned"), "path"), "model": model}, tmp_path / "run")
    cases = [
        ({"split": {"repeat": 1}}, "tuned", "tuned: has other train and val and test images than this soup"),
        ({"seed": 1}, "tuned", "set split and seed to those of the run"),
        ({}, classes, r"classes: classes are \('dark', 'bright'\), those of the data \('dark', 'light'\)"),
    ]
    for changes, run, message in cases:
        config = {**soup_config(root, ("probe", run), "path"), **make_config(root, **changes)}
        config["soup"] = soup_config(root, ("probe", run), "path")["soup"]
        with pytest.raises(ValueError, match=f"(?s)the runs of a soup must be alike:.*{message}"):
            soup.run(config, tmp_path / "run")
        assert not rundir.has_work(tmp_path / "run")


@pytest.mark.parametrize(
    ("kind", "runs", "more", "message"),
    [
        ("pth", RUNS[:2], {}, r"no kind 'pth' \(did you mean 'path'\?\)"),
        ("path", RUNS, {}, "kind 'path' wants two runs, got 3"),
        ("uniform", RUNS[:1], {}, "wants at least two runs, got 1"),
        ("path", RUNS[:2], {"alphas": [0.5, 1.5]}, "wanted numbers from 0 to 1"),
        ("path", RUNS[:2], {"batch_size": 12}, "batch_size is 12, wanted a multiple of the 8 devices"),
    ],
)
def test_a_recipe_that_cannot_be_is_refused(root, tmp_path, kind, runs, more, message):
    with pytest.raises(ValueError, match=message):
        soup.run(soup_config(root, runs, kind, **more), tmp_path / "run")
    assert not rundir.has_work(tmp_path / "run")


def test_a_soup_wants_a_validation_part_and_finished_runs(root, tmp_path):
    config = soup_config(root, RUNS[:2], "path")
    config["split"]["val_fraction"] = 0.0
    with pytest.raises(ValueError, match=r"chosen on the validation part.*set split\.val_fraction"):
        soup.run(config, tmp_path / "run")
    with pytest.raises(FileNotFoundError, match=r"has no config\.json: it is no finished run"):
        soup.run(soup_config(root, ("probe", "nothing"), "path"), tmp_path / "run")
