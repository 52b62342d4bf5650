"""Against the other projects themselves, where they are installed: `make parity`."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import tljax
from tests.golden import record, synthetic
from tljax.models import Net, architecture
from tljax.preprocess import Preprocess
from tljax.weights.write import export

pytestmark = pytest.mark.parity

RECORDINGS = sorted(path.stem for path in (record.FOLDER / "parity").glob("*.npz"))
NAMES = [f"class {index}" for index in range(7)]
PREPROCESS = Preprocess(size=64, resize=73, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
# Format to architectures that it can express.
EXPORTED = {
    "hf": ["vit_ti16", "deit_ti16_distilled", "dinov2_vits14", "dinov2_vits14_reg", "resnet18", "resnet50",
           "bit_r50x1"],
    "timm": ["vit_ti16", "deit_ti16_distilled", "dinov2_vits14", "clip_vitb32", "resnet18", "resnext50_32x4d",
             "wide_resnet50_2", "bit_r50x1", "vgg11", "vgg11_bn"],
    "torchvision": ["resnet18", "resnet50", "resnext50_32x4d", "wide_resnet50_2", "vgg11", "vgg11_bn"],
    "npz": ["vit_ti16", "bit_r50x1"],
}  # fmt: skip
# Where the two projects differ: timm classifies the class token of DINOv2, and slides the classifier of a VGG.
CHANGES = {
    ("timm", "dinov2_vits14"): {"pooling": "cls"},
    ("timm", "vgg11"): {"is_head_convolutional": True},
    ("timm", "vgg11_bn"): {"is_head_convolutional": True},
}
PAIRS = [(format, name) for format, names in EXPORTED.items() for name in names]


def made_without_torch(name):
    with np.load(record.FOLDER / "parity" / f"{name}.npz") as file:
        return "torch" not in json.loads(bytes(file["about"]))["versions"]


@pytest.mark.parametrize("name", [name for name in RECORDINGS if not made_without_torch(name)])
def test_recordings_come_out_again(name):
    """Within 2e-6 of the largest value: other versions of torch may add in another order."""
    again = record.run(record.cases()[name]())
    with np.load(record.FOLDER / "parity" / f"{name}.npz") as file:
        recorded = dict(file)
    assert set(again) == set(recorded)
    for key in set(recorded) - {"about"}:
        np.testing.assert_allclose(again[key], recorded[key], rtol=0, atol=2e-6 * np.abs(recorded[key]).max())


def small(name, **changes):
    """Return an architecture of the registry with 7 classes, at a small size, and random params and statistics."""
    config = dataclasses.replace(architecture(name), num_classes=7, **changes)
    side = 64
    if hasattr(config, "patch_size"):
        side = 4 * config.patch_size
        config = dataclasses.replace(config, image_size=side)
    net = Net(config)
    values = {path: synthetic.array(path, leaf.shape) for path, leaf in {**net.shapes, **net.stat_shapes}.items()}
    params = {path: values[path] for path in net.shapes}
    return (
        net,
        params,
        {path: values[path] for path in net.stat_shapes},
        dataclasses.replace(PREPROCESS, size=side, resize=side + 9),
    )


def picture():
    rng = np.random.default_rng(0)
    return Image.fromarray(rng.integers(0, 256, (97, 80, 3), dtype=np.uint8))


@pytest.mark.parametrize(("format", "name"), PAIRS)
def test_an_exported_model_gives_the_same_scores_elsewhere(tmp_path, format, name):
    net, params, stats, preprocess = small(name, **CHANGES.get((format, name), {}))
    export(
        tmp_path, format=format, architecture=net.architecture, params=params, stats=stats, preprocess=preprocess,
        class_names=NAMES,
    )  # fmt: skip
    images = preprocess(np.asarray(picture()))[None]
    ours, _ = net.apply(
        jax.tree.map(jnp.asarray, params), jax.tree.map(jnp.asarray, stats), preprocess.normalise(jnp.asarray(images))
    )
    theirs = RUN[format](tmp_path, name, np.asarray(preprocess.normalise(jnp.asarray(images))))
    np.testing.assert_allclose(theirs, np.asarray(ours), rtol=0, atol=1e-5 * np.abs(ours).max())


def scores(model, images):
    import torch

    with torch.no_grad():
        out = model.eval()(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))  # b h w c -> b c h w
    return getattr(out, "logits", out).numpy()


def run_transformers(folder, name, images):
    """Load with the strictness that the library's own loading report gives; check labels and pixels too."""
    from transformers import AutoImageProcessor, AutoModelForImageClassification
    from transformers.models.deit import DeiTForImageClassificationWithTeacher

    kind = DeiTForImageClassificationWithTeacher if "distilled" in name else AutoModelForImageClassification
    model, info = kind.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert not info["mismatched_keys"]
    assert [model.config.id2label[index] for index in range(7)] == NAMES
    processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
    pixels = processor(picture(), return_tensors="np")["pixel_values"].transpose(0, 2, 3, 1)  # b c h w -> b h w c
    np.testing.assert_allclose(pixels, images, rtol=0, atol=1e-6)
    return scores(model, images)


def run_timm(folder, name, images):
    import timm

    model = timm.create_model(f"local-dir:{folder}", pretrained=True)
    data = timm.data.resolve_data_config(model.pretrained_cfg)
    transform = timm.data.create_transform(**data)
    pixels = transform(picture()).numpy().transpose(1, 2, 0)  # c h w -> h w c
    np.testing.assert_allclose(pixels, images[0], rtol=0, atol=1e-6)
    return scores(model, images)


def run_torchvision(folder, name, images):
    import torchvision
    from safetensors.torch import load_file

    model = getattr(torchvision.models, name)(num_classes=7)
    model.load_state_dict(load_file(folder / "model.safetensors"))
    return scores(model, images)


def run_npz(folder, name, images):
    import timm

    names = {"vit_ti16": "vit_tiny_patch16_224", "bit_r50x1": "resnetv2_50x1_bit"}
    size = {"img_size": images.shape[1]} if name.startswith("vit") else {}
    model = timm.create_model(names[name], num_classes=7, **size)
    model.load_pretrained(str(folder / "model.npz"))
    return scores(model, images)


RUN = {"hf": run_transformers, "timm": run_timm, "torchvision": run_torchvision, "npz": run_npz}


@pytest.mark.parametrize("name", ["vit_ti16", "resnet18", "bit_r50x1"])
def test_models_that_timm_saves_load_here(tmp_path, name):
    """timm writes the folder as it would push it to the hub."""
    import timm
    from timm.models import save_for_hf

    theirs = {"vit_ti16": "vit_tiny_patch16_224", "resnet18": "resnet18", "bit_r50x1": "resnetv2_50x1_bit"}[name]
    model = timm.create_model(theirs, num_classes=7)
    save_for_hf(model, str(tmp_path), safe_serialization=True)
    loaded = tljax.load(f"file:{tmp_path}")
    images = synthetic.images(loaded.preprocess.shape[0], loaded.preprocess.shape[1], batch=1)
    ours, _ = loaded.net.apply(loaded.params, loaded.stats, jnp.asarray(images))
    wanted = scores(model, images)
    np.testing.assert_allclose(np.asarray(ours), wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())
