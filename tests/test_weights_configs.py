"""Config files of transformers to architectures and back, on the configs of the recorded models."""

import dataclasses

import pytest

from tests.golden.compare import CASES, opened, read
from tljax.models import FAMILIES
from tljax.weights import configs_vit
from tljax.weights.folder import MODEL_TYPES
from tljax.weights.recognise import fitted
from tljax.weights.tables import resnet, resnetv2

CONFIGS = [name for name in CASES if read(name)[0]["config"]]


def architecture(about):
    settings = {key: tuple(value) if isinstance(value, list) else value for key, value in about["architecture"].items()}
    return FAMILIES[about["family"]](**settings)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_gives_the_architecture_of_its_model(name):
    about, _ = read(name)
    *_, mapped = opened(name)
    described = MODEL_TYPES[about["config"]["model_type"]](about["config"], about["shapes"])
    assert fitted(described, mapped) == architecture(about)


@pytest.mark.parametrize("name", [name for name in CONFIGS if "flax" not in name])
def test_an_architecture_comes_back_from_its_config(name):
    """Keys as export writes them; classes are counted from the weights."""
    ours = architecture(read(name)[0])
    write = {"resnet": resnet.to_hugging_face, "resnetv2": resnetv2.to_hugging_face, "vit": configs_vit.to_hugging_face}
    config = write[read(name)[0]["family"]](ours)
    keys = read(name)[0]["shapes"]
    again = MODEL_TYPES[config["model_type"]](config, keys)
    assert dataclasses.replace(again, num_classes=ours.num_classes) == ours


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("vit_hf", {"qkv_bias": False}, "qkv_bias = False"),
        ("vit_hf", {"hidden_act": "relu"}, "hidden_act = 'relu'"),
        ("vit_hf_dinov2", {"apply_layernorm": False}, "apply_layernorm = False"),
        ("resnet_hf_basic", {"hidden_act": "gelu"}, "hidden_act = 'gelu'"),
        ("resnet_hf_basic", {"layer_type": "odd"}, "layer_type = 'odd'"),
        ("resnetv2_hugging_face", {"layer_type": "bottleneck"}, "layer_type = 'bottleneck'"),
    ],
)
def test_switches_that_the_nets_lack_are_named(name, change, message):
    about, _ = read(name)
    config = {**about["config"], **change}
    with pytest.raises(ValueError, match=f"model_type '{config['model_type']}': not supported: .*{message}"):
        MODEL_TYPES[config["model_type"]](config, about["shapes"])


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("vit_hf", {"is_norm_after_pooling": True, "pooling": "mean"}, "pools by cls, this by mean; it normalises"),
        ("vit_hf", {"representation_width": 8}, "no tanh layer"),
        ("vit_hf", {"num_registers": 2}, "it has no registers"),
        ("vit_hf_clip", {"has_head_bias": True}, "its projection has no bias.*Export to timm"),
        ("vit_hf_siglip", {"num_classes": 3}, "pools by mean, this by attention"),
        ("resnet_hf_bottleneck", {"groups": 2}, "no groups and widened bottlenecks"),
    ],
)
def test_nets_that_transformers_lacks_are_refused_with_the_reason(name, change, message):
    about, _ = read(name)
    write = {"resnet": resnet.to_hugging_face, "vit": configs_vit.to_hugging_face}[about["family"]]
    with pytest.raises(ValueError, match=message):
        write(dataclasses.replace(architecture(about), **change))
