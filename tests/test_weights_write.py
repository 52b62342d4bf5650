"""Out to every format and back in: the same bits, the same net, the same preprocessing, the same classes."""

import dataclasses
import errno

import numpy as np
import pytest
from safetensors import safe_open

import tljax
from tests.golden import synthetic
from tljax.models import ARCHITECTURES, Net
from tljax.models.resnet import ResNetConfig
from tljax.models.vgg import VggConfig
from tljax.preprocess import Preprocess
from tljax.weights import recognise, write
from tljax.weights.tables import LAYOUTS

NAMES = ("ant", "bee", "cat")
SMALL_RESNET = ResNetConfig(depths=(1, 1), widths=(16, 32), stem_width=8, num_classes=3)
SMALL_VGG = VggConfig(convolutions=(1, 2), widths=(8, 16), hidden_width=12, use_norm=True, num_classes=3)


def small(name, **changes):
    """Return an architecture of the registry at a small size with three classes."""
    config = ARCHITECTURES[name]
    if hasattr(config, "patch_size"):
        changes = {"image_size": 2 * config.patch_size, **changes}
    return dataclasses.replace(config, num_classes=3, **changes)


# What timm and npz can say is of the registry, whose smallest nets are these.
CASES = {
    "hf vit": ("hf", small("vit_ti16", depth=2)),
    "hf deit": ("hf", small("deit_ti16_distilled", depth=2)),
    "hf deit, class token": ("hf", small("deit_ti16_distilled", depth=2, pooling="cls")),
    "hf dinov2": ("hf", small("dinov2_vits14", depth=2, image_size=(28, 42))),
    "hf dinov2 registers": ("hf", small("dinov2_vits14_reg", depth=2)),
    "hf clip": ("hf", small("clip_vitb32", depth=1, has_head_bias=False)),
    "hf siglip": ("hf", dataclasses.replace(small("siglip_vitb16", depth=1, pooling="mean"))),
    "hf siglip, pool": ("hf", dataclasses.replace(small("siglip_vitb16", depth=1), num_classes=0)),
    "hf resnet": ("hf", SMALL_RESNET),
    "hf bit": ("hf", small("bit_r50x1")),
    "timm vit": ("timm", small("vit_ti16")),
    "timm deit": ("timm", small("deit_ti16_distilled")),
    "timm resnet": ("timm", small("resnet18", in_channels=1)),
    "timm bit": ("timm", small("bit_r50x1")),
    "torchvision resnet": ("torchvision", SMALL_RESNET),
    "torchvision vgg": ("torchvision", SMALL_VGG),
    "npz vit": ("npz", small("vit_ti16", activation="gelu_tanh")),
    "npz siglip": ("npz", dataclasses.replace(small("siglip_vitb16", depth=1), num_classes=3)),
    "npz bit": ("npz", small("bit_r50x1", weight_epsilon=1e-10)),
}


def filled(config):
    net = Net(config)
    values = {path: synthetic.array(path, leaf.shape) for path, leaf in {**net.shapes, **net.stat_shapes}.items()}
    return {path: values[path] for path in net.shapes}, {path: values[path] for path in net.stat_shapes}


def preprocess_for(config):
    size = getattr(config, "image_size", 32)
    channels = config.in_channels
    return Preprocess(size=size, mean=(0.5,) * channels, std=(0.25,) * channels, crop_rounding="even")


@pytest.mark.parametrize("case", CASES)
def test_what_goes_out_comes_back(tmp_path, case):
    format, config = CASES[case]
    params, stats = filled(config)
    preprocess = preprocess_for(config)
    names = NAMES if config.num_classes else None
    write.export(
        tmp_path, format=format, architecture=config, params=params, stats=stats, preprocess=preprocess,
        class_names=names,
    )  # fmt: skip
    # These two formats have no config file.
    bare = {"architecture": config, "preprocess": preprocess} if format in ("torchvision", "npz") else {}
    loaded = tljax.load(f"file:{tmp_path}", **bare)
    assert loaded.net.architecture == config
    assert loaded.class_names == (None if bare else names)
    assert dataclasses.replace(loaded.preprocess, crop_rounding="even") == preprocess
    for path, value in {**params, **stats}.items():
        np.testing.assert_array_equal({**loaded.params, **loaded.stats}[path], value, err_msg=path)
    extras = {"embeddings.mask_token"} if "dinov2" in case else set()
    assert {key for key in loaded.report.ignored if not key.endswith("num_batches_tracked")} == extras


def test_every_layout_that_can_be_written_is():
    written = {write.PUBLISHERS[format][type(config)](config).layout for format, config in CASES.values()}
    read_only = set(LAYOUTS) - written
    # The authors' own files and those of Flax and Keras are read, and not written; timm's smallest VGG is too large.
    assert all(
        name.startswith(("hf-flax-", "meta-", "keras", "hed-", "big-vision-scanned", "timm-vgg")) for name in read_only
    )


def test_a_lone_npz_of_google_computes_what_google_computes(tmp_path, monkeypatch):
    """The registry's ViT has timm's GELU, and its BiT timm's epsilon; files of Google mean Google's."""
    few = {name: ARCHITECTURES[name] for name in ("vit_ti16", "vit_s16", "bit_r50x1", "bit_r101x1")}
    monkeypatch.setattr(recognise, "ARCHITECTURES", few)
    for name, field, wanted in (("vit_ti16", "activation", "gelu_tanh"), ("bit_r50x1", "weight_epsilon", 1e-10)):
        config = small(name)
        params, stats = filled(config)
        folder = tmp_path / name
        write.export(
            folder, format="npz", architecture=config, params=params, stats=stats, preprocess=preprocess_for(config)
        )  # fmt: skip
        for choice in (None, name):
            loaded = tljax.load(
                f"file:{folder}/model.npz", preprocess=preprocess_for(config), architecture=choice
            )  # fmt: skip
            assert getattr(loaded.net.architecture, field) == wanted


def test_half_precision_goes_out_as_it_is(tmp_path):
    import ml_dtypes

    params, stats = filled(SMALL_RESNET)
    params = {path: value.astype(ml_dtypes.bfloat16) for path, value in params.items()}
    write.export(
        tmp_path, format="hf", architecture=SMALL_RESNET, params=params, stats=stats, preprocess=Preprocess(size=32)
    )  # fmt: skip
    with safe_open(tmp_path / "model.safetensors", "numpy") as file:
        assert file.get_slice("classifier.1.weight").get_dtype() == "BF16"
    loaded = tljax.load(f"file:{tmp_path}", dtype="bfloat16")
    assert all(np.array_equal(loaded.params[path], value) for path, value in params.items())


@pytest.mark.parametrize(
    ("format", "config", "message"),
    [
        ("hf", SMALL_VGG, "format 'hf' has no VggConfig; those that do: timm, torchvision"),
        ("hf", small("resnext50_32x4d"), "no groups and widened bottlenecks"),
        ("hf", small("clip_vitb32"), "its projection has no bias.*Export to timm"),
        ("timm", SMALL_RESNET, "timm has no net like this one; the nearest, .*, has depths"),
        ("timm", small("dinov2_vits14"), "cls_mean"),
        ("npz", small("dinov2_vits14"), "use_layer_scale=True"),
        ("torchvision", small("vit_ti16"), "format 'torchvision' has no VitConfig"),
        ("onnx", SMALL_VGG, "no export format 'onnx'"),
    ],
)
def test_what_a_format_cannot_say_is_refused_before_anything_is_written(tmp_path, format, config, message):
    with pytest.raises(ValueError, match=message):
        write.export(
            tmp_path / "out", format=format, architecture=config, params={}, stats={}, preprocess=Preprocess(size=32)
        )  # fmt: skip
    assert not (tmp_path / "out").exists()


def test_names_must_be_one_a_class(tmp_path):
    params, stats = filled(SMALL_RESNET)
    with pytest.raises(ValueError, match="2 class names for 3 classes"):
        write.export(
            tmp_path, format="hf", architecture=SMALL_RESNET, params=params, stats=stats,
            preprocess=Preprocess(size=32), class_names=NAMES[:2],
        )  # fmt: skip


def test_a_full_disk_leaves_what_was_there(tmp_path, monkeypatch):
    params, stats = filled(SMALL_RESNET)
    call = {"architecture": SMALL_RESNET, "params": params, "stats": stats, "preprocess": Preprocess(size=32)}
    write.export(tmp_path, format="hf", **call)
    before = (tmp_path / "model.safetensors").read_bytes()

    def fill(*args, **settings):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(write, "save_file", fill)
    with pytest.raises(OSError, match=r"cannot write .*model\.safetensors: No space left on device; the earlier file"):
        write.export(tmp_path, format="hf", **call)
    assert (tmp_path / "model.safetensors").read_bytes() == before
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
