"""`load` as a user calls it: what it adapts and against which independent rule, what it asks for, what it refuses."""

import dataclasses
import json
import random
import shutil

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import tljax
from tests.golden import synthetic
from tests.test_weights_write import NAMES, SMALL_RESNET, SMALL_VGG, filled, small
from tljax.models import ARCHITECTURES, Net
from tljax.preprocess import Preprocess
from tljax.weights import recognise, resample, rules, write
from tljax.weights.stored import stored
from tljax.weights.tables import LAYOUTS

PREPROCESS = Preprocess(size=32, mean=(0.5,) * 3, std=(0.25,) * 3)
VIT = small("vit_ti16", depth=2)


def exported(folder, format, config, preprocess=PREPROCESS, names=NAMES):
    """Write random params in a published layout; return where, and the params and statistics."""
    params, stats = filled(config)
    write.export(
        folder, format=format, architecture=config, params=params, stats=stats, preprocess=preprocess, class_names=names
    )  # fmt: skip
    return f"file:{folder}", {**params, **stats}


@pytest.fixture(scope="module")
def vit(tmp_path_factory):
    return exported(tmp_path_factory.mktemp("vit"), "hf", VIT)


def scores(loaded, images):
    return np.asarray(loaded.net.apply(loaded.params, loaded.stats, images)[0])


def test_classes_of_the_old_head_keep_their_scores(vit):
    name, _ = vit
    images = jnp.asarray(synthetic.images(32, 32))
    whole, some = tljax.load(name), tljax.load(name, classes=("cat", "ant"))
    assert some.class_names == ("cat", "ant")
    assert some.net.architecture == dataclasses.replace(VIT, num_classes=2)
    np.testing.assert_allclose(scores(some, images), scores(whole, images)[:, [2, 0]], rtol=1e-6)
    assert not some.report.fresh
    with pytest.raises(ValueError, match=r"no class 'dog'; it has 3"):
        tljax.load(name, classes=("cat", "dog"))
    with pytest.raises(ValueError, match="not both"):
        tljax.load(name, classes=("cat",), num_classes=2)


def test_a_new_head_starts_at_the_class_priors(vit):
    name, _ = vit
    loaded = tljax.load(name, num_classes=4, head={"class_priors": [1.0, 1.0, 2.0, 4.0]})
    probabilities = jax.nn.softmax(scores(loaded, jnp.asarray(synthetic.images(32, 32))))
    np.testing.assert_allclose(probabilities, np.tile([0.125, 0.125, 0.25, 0.5], (2, 1)), rtol=1e-5)
    assert loaded.class_names is None
    with pytest.raises(ValueError, match="there are 3 class_priors for 4 classes"):
        tljax.load(name, num_classes=4, head={"class_priors": (1.0, 1.0, 2.0)})


def test_a_new_head_drops_the_layer_that_belongs_to_the_old_one(tmp_path):
    config = small("vit_ti16", depth=2, representation_width=24)
    name, _ = exported(tmp_path, "npz", dataclasses.replace(config, activation="gelu_tanh"))
    about = {"architecture": config, "preprocess": PREPROCESS}
    assert "pre_logits" in tljax.load(name, **about).net.stages
    loaded = tljax.load(name, num_classes=5, **about)
    assert "pre_logits" not in loaded.net.stages
    assert {"pre_logits/kernel", "pre_logits/bias"} <= set(loaded.report.ignored)
    assert loaded.params["head/linear/kernel"].shape == (192, 5)


def test_grey_images_score_as_the_same_grey_in_three_channels(vit, tmp_path):
    grey = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 1), np.uint8)
    resnet, _ = exported(tmp_path, "hf", SMALL_RESNET)
    for name in (vit[0], resnet):
        whole, one = tljax.load(name), tljax.load(name, in_channels=1)
        assert one.preprocess.shape == (32, 32, 1)
        wanted = scores(whole, whole.preprocess.normalise(jnp.asarray(grey).repeat(3, axis=-1)))
        got = scores(one, one.preprocess.normalise(jnp.asarray(grey)))
        np.testing.assert_allclose(got, wanted, atol=1e-5 * np.abs(wanted).max())


def test_six_channels_that_repeat_three_score_as_the_three(vit):
    images = jnp.asarray(synthetic.images(32, 32))
    six = tljax.load(vit[0], in_channels=6, preprocess={"size": 32, "mean": (0.5,) * 6, "std": (0.25,) * 6})
    wanted = scores(tljax.load(vit[0]), images)
    np.testing.assert_allclose(scores(six, jnp.concatenate([images, images], -1)), wanted, rtol=1e-4, atol=1e-4)


def test_other_image_sizes_resample_the_positions_of_patches_alone(vit):
    name, values = vit
    loaded = tljax.load(name, image_size=(48, 80))
    assert loaded.net.architecture == dataclasses.replace(VIT, image_size=(48, 80))
    assert loaded.preprocess.size == (48, 80)
    positions = values["embed/pos_embed"]
    assert positions.shape == (1, 1 + 4, 192)
    assert loaded.params["embed/pos_embed"].shape == (1, 1 + 3 * 5, 192)
    np.testing.assert_array_equal(loaded.params["embed/pos_embed"][:, :1], positions[:, :1])
    method = LAYOUTS[loaded.layout].positions
    wanted = resample.resample_positions(positions, (2, 2), (3, 5), 1, method)
    np.testing.assert_array_equal(loaded.params["embed/pos_embed"], wanted)
    same = {path for path, value in loaded.params.items() if np.array_equal(value, values[path])}
    assert set(loaded.params) - same == {"embed/pos_embed"}
    assert scores(loaded, jnp.asarray(synthetic.images(48, 80))).shape == (2, 3)


@pytest.mark.parametrize("config", [small("deit_ti16_distilled", depth=2), small("dinov2_vits14_reg", depth=2)])
def test_extra_tokens_stay_what_they_are_at_another_size(config, tmp_path):
    name, values = exported(tmp_path, "hf", config)
    loaded = tljax.load(name, image_size=4 * config.patch_size)
    kept = config.positioned_prefix_tokens
    np.testing.assert_array_equal(loaded.params["embed/pos_embed"][:, :kept], values["embed/pos_embed"][:, :kept])
    tokens = [path for path in values if path.endswith(("cls_token", "distillation_token", "registers"))]
    assert len(tokens) == 2
    for path in tokens:
        np.testing.assert_array_equal(loaded.params[path], values[path])


def test_another_patch_size_keeps_the_embedding_of_enlarged_images(vit, tmp_path):
    """FlexiViT's rule (arXiv:2212.08013, section 3.4): patches enlarged with the images give the same tokens."""
    name, _ = vit
    whole, double = tljax.load(name), tljax.load(name, patch_size=32, image_size=64)
    small_images = synthetic.images(32, 32)
    matrix = np.asarray(resample.antialiased_cubic(16, 32), np.float64)
    large = np.einsum("ai,bhiwjc,dj->bhawdc", matrix, small_images.reshape(2, 2, 16, 2, 16, 3), matrix)
    large = jnp.asarray(large.reshape(2, 64, 64, 3), jnp.float32)  # b h a w d c -> b (h a) (w d) c
    wanted, _ = whole.net.apply(whole.params, whole.stats, jnp.asarray(small_images), stop=1)
    got, _ = double.net.apply(double.params, double.stats, large, stop=1)
    np.testing.assert_allclose(got, wanted, atol=1e-4 * float(jnp.abs(wanted).max()))
    with pytest.raises(ValueError, match="a ResNetConfig has no patch_size; it has depths"):
        tljax.load(exported(tmp_path, "hf", SMALL_RESNET)[0], patch_size=8)


def test_half_precision_leaves_statistics_whole(tmp_path):
    name, values = exported(tmp_path, "hf", SMALL_RESNET)
    loaded = tljax.load(name, dtype="bfloat16")
    assert {value.dtype for value in loaded.params.values()} == {jnp.dtype(jnp.bfloat16)}
    for path, value in loaded.stats.items():
        np.testing.assert_array_equal(value, values[path])
    rounded = values["stem/conv/kernel"].astype(ml_dtypes.bfloat16)
    np.testing.assert_array_equal(np.asarray(loaded.params["stem/conv/kernel"]), rounded)


def test_params_stay_when_the_file_goes(vit, tmp_path):
    """Arrays are copies: overwriting the file after the load must not reach them."""
    copied = tmp_path / "model"
    shutil.copytree(vit[0].removeprefix("file:"), copied)
    loaded = tljax.load(f"file:{copied}")
    before = loaded.fingerprint()
    size = (copied / "model.safetensors").stat().st_size
    with open(copied / "model.safetensors", "r+b") as file:
        file.write(b"\0" * size)
    assert loaded.fingerprint() == before


def test_shapes_that_fit_several_architectures_ask_for_one(monkeypatch):
    """OpenAI's CLIP and OpenCLIP's have the same params and differ in the activation, which no file of params tells."""
    few = {name: ARCHITECTURES[name] for name in ("vit_b32", "clip_vitb32", "clip_vitb32_gelu")}
    monkeypatch.setattr(recognise, "ARCHITECTURES", few)
    layout = LAYOUTS["timm-vit"]
    config = dataclasses.replace(ARCHITECTURES["clip_vitb32"], num_classes=512, has_head_bias=False)
    thin = {path: np.zeros(leaf.shape, np.int8) for path, leaf in Net(config).shapes.items()}
    arrays = {key: stored(value) for key, value in rules.invert(thin, layout, config).items()}
    with pytest.raises(ValueError, match="fits several architectures.*choose one with architecture=") as caught:
        recognise.recognise_architecture(arrays, layout, "model.safetensors")
    assert "same shapes: clip_vitb32, clip_vitb32_gelu;" in str(caught.value)


def test_keys_that_fit_several_layouts_ask_for_one(tmp_path):
    arrays = {}
    for format, config in (("torchvision", SMALL_VGG), ("torchvision", SMALL_RESNET)):
        exported(tmp_path / "one", format, config)
        arrays |= load_file(next((tmp_path / "one").glob("*.safetensors")))
    save_file(arrays, tmp_path / "both.safetensors")
    with pytest.raises(ValueError, match=r"both\.safetensors fits several layouts: .*; choose one with layout="):
        tljax.load(f"file:{tmp_path}/both.safetensors", preprocess=PREPROCESS)
    with pytest.raises(ValueError, match=r"both\.safetensors: \d+ mismatches with layout 'torchvision-vgg'"):
        tljax.load(
            f"file:{tmp_path}/both.safetensors",
            layout="torchvision-vgg",
            architecture=SMALL_VGG,
            preprocess=PREPROCESS,
        )
    with pytest.raises(ValueError, match=r"both\.safetensors: this is no checkpoint of layout 'hf-dinov2'"):
        tljax.load(f"file:{tmp_path}/both.safetensors", layout="hf-dinov2")
    with pytest.raises(ValueError, match="no layout 'torchvison-vgg'.*did you mean 'torchvision-vgg'"):
        tljax.load(f"file:{tmp_path}/both.safetensors", layout="torchvison-vgg")


def test_a_file_that_does_not_say_how_images_are_prepared_asks(tmp_path):
    name, _ = exported(tmp_path, "torchvision", small("resnet18"))
    with pytest.raises(ValueError, match=r"does not say how its images.*preprocess=.*resnet18\.torchvision_v1"):
        tljax.load(name)
    given = {"size": 64, "resize": 72, "interpolation": "bilinear"}
    assert tljax.load(name, preprocess=given).preprocess == Preprocess(**given)


def test_every_renamed_key_and_wrong_dtype_is_named_with_the_file(tmp_path):
    """45 models of three layouts, with keys renamed, arrays of whole numbers, and arrays cut, at random."""
    sources = {
        "hf": (20, small("dinov2_vits14", depth=1, patch_size=16, image_size=32)),
        "timm": (5, small("resnet18")),
        "torchvision": (20, SMALL_VGG),
    }
    rng = random.Random(0)
    for format, (count, config) in sources.items():
        folder = tmp_path / format
        name, _ = exported(folder, format, config)
        path = folder / "model.safetensors"
        original = load_file(path)
        layout = tljax.load(name, architecture=config, preprocess=PREPROCESS).layout
        wanted = [key for key in original if not key.endswith(("num_batches_tracked", "mask_token"))]
        for _ in range(count):
            arrays, chosen = dict(original), rng.sample(wanted, 3)
            renamed, whole, cut = chosen
            new = "".join(rng.choice("abcxyz._") for _ in range(rng.randint(1, 12)))
            arrays[new] = arrays.pop(renamed)
            arrays[whole] = arrays[whole].astype(np.int32)
            arrays[cut] = arrays[cut].reshape(-1)[:-1].copy()
            save_file(arrays, path)
            with pytest.raises(ValueError) as caught:  # noqa: PT011  what it says follows
                tljax.load(name, architecture=config, layout=layout, preprocess=PREPROCESS)
            message = str(caught.value)
            assert str(path) in message
            if "mismatches" in message:  # else one of the keys that tell the layout was renamed
                for key in (new, whole, cut):
                    assert repr(key.removeprefix(LAYOUTS[layout].prefix(arrays) or "")) in message, (key, message)
            else:
                assert renamed.endswith(LAYOUTS[layout].anchors), message


def test_damage_in_one_shard_is_named_with_the_shard(vit, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(vit[0].removeprefix("file:"), folder)
    arrays = load_file(folder / "model.safetensors")
    where = {key: f"model-0000{index % 3 + 1}-of-00003.safetensors" for index, key in enumerate(sorted(arrays))}
    for shard in sorted(set(where.values())):
        save_file({key: array for key, array in arrays.items() if where[key] == shard}, folder / shard)
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    assert tljax.load(f"file:{folder}").fingerprint() == tljax.load(vit[0]).fingerprint()
    shard = folder / "model-00002-of-00003.safetensors"
    shard.write_bytes(shard.read_bytes()[:-8])
    with pytest.raises(ValueError, match="model-00002-of-00003.safetensors"):
        tljax.load(f"file:{folder}")
