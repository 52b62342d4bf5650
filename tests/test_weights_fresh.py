"""Networks without pretraining."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

import tljax
from tests.finetuning import assert_same_bits
from tests.small_runs import RESNET, VIT
from tljax.models import ARCHITECTURES, Net
from tljax.preprocess import Preprocess
from tljax.weights.tables import LAYOUTS


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    """Architectures of a few stages under the names of large ones."""
    monkeypatch.setitem(ARCHITECTURES, "vit_ti16", VIT)
    monkeypatch.setitem(ARCHITECTURES, "resnet18", dataclasses.replace(RESNET, num_classes=0))


def test_a_name_and_a_seed_determine_every_param():
    first, again = (tljax.load("random:vit_ti16", num_classes=3, image_size=32) for _ in range(2))
    other = tljax.load("random:vit_ti16@1", num_classes=3, image_size=32)
    assert_same_bits(first.params, again.params)
    assert first.fingerprint() == again.fingerprint() != other.fingerprint()
    wanted = dataclasses.replace(VIT, num_classes=3, image_size=32)
    assert first.net == Net(wanted)
    assert set(first.report.fresh) == set(first.net.shapes)
    assert not first.report.used
    assert first.preprocess == Preprocess(size=32)
    assert isinstance(wanted, LAYOUTS[first.layout].family)
    images = jnp.asarray(np.random.default_rng(0).normal(size=(2, 32, 32, 3)), jnp.float32)
    scores, _ = first.net.apply(first.params, first.stats, images)
    np.testing.assert_array_equal(scores, 0)
    tokens, _ = first.net.apply(first.params, first.stats, images, stop="norm")
    assert np.isfinite(tokens).all()
    assert np.std(tokens) > 0.1


def test_networks_of_feature_maps_have_fresh_statistics_too():
    loaded = tljax.load(
        "random:resnet18", preprocess={"size": 64, "mean": [0.5] * 3, "std": [0.5] * 3}, dtype="bfloat16"
    )
    assert set(loaded.stats) == set(loaded.net.stat_shapes)
    assert {str(array.dtype) for array in loaded.params.values()} == {"bfloat16"}
    assert loaded.preprocess == Preprocess(size=64, mean=(0.5,) * 3, std=(0.5,) * 3)
    assert loaded.net.num_classes == 0


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("random:resnet19", {}, r"no architecture 'resnet19' \(did you mean 'resnet18'\?\)"),
        ("random:resnet18@x", {}, r"the seed is 'x', wanted a whole number: random:resnet18@1"),
        ("random:resnet18", {"layout": "hf-resnet", "revision": "main"}, "layout and revision cannot be chosen"),
    ],
)
def test_what_cannot_be_drawn_is_refused(name, options, message):
    with pytest.raises(ValueError, match=message):
        tljax.load(name, **options)
