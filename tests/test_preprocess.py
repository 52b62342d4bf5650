import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from tests.golden.record import FOLDER
from tests.golden.synthetic import picture
from tljax.preprocess import IMAGENET_MEAN, IMAGENET_STD, Preprocess
from tljax.rundir import write_json
from tljax.weights import processors

SIZES = [(300, 300), (301, 457), (640, 333), (412, 206), (90, 31), (3, 200)]
with np.load(FOLDER / "preprocess.npz") as recording:
    TIMM = dict(recording)
TIMM_CONFIGS = json.loads(str(TIMM["configs"][0]))
TIMM_CASES = sorted(key.removesuffix(":pixels") for key in TIMM if key.endswith(":pixels"))
# Every class of processor that models of our families are published with, as their preprocessor_config.json has it.
PROCESSORS = {
    "vit": {"image_processor_type": "ViTImageProcessor", "size": {"height": 224, "width": 224}, "resample": 2,
            "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]},
    "old vit": {"feature_extractor_type": "ViTFeatureExtractor", "do_normalize": True, "do_resize": True,
                "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5], "resample": 2, "size": 224},
    "deit": {"image_processor_type": "DeiTImageProcessor", "size": {"height": 256, "width": 256},
             "crop_size": {"height": 224, "width": 224}, "resample": 3, "do_center_crop": True},
    "dinov2": {"image_processor_type": "BitImageProcessor", "size": {"shortest_edge": 256},
               "crop_size": {"height": 224, "width": 224}, "resample": 3, "do_center_crop": True, "do_resize": True,
               "do_rescale": True, "do_normalize": True, "image_mean": [0.485, 0.456, 0.406],
               "image_std": [0.229, 0.224, 0.225]},
    "bit": {"image_processor_type": "BitImageProcessor", "size": {"shortest_edge": 448}, "resample": 2,
            "crop_size": {"height": 447, "width": 447}, "do_center_crop": True, "do_resize": True,
            "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]},
    "resnet": {"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 224}, "crop_pct": 0.875,
               "resample": 3, "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]},
    "resnet at 384": {"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 384},
                      "crop_pct": 1.0, "resample": 3},
    "clip": {"feature_extractor_type": "CLIPFeatureExtractor", "crop_size": 224, "do_center_crop": True,
             "do_normalize": True, "do_resize": True, "image_mean": [0.48145466, 0.4578275, 0.40821073],
             "image_std": [0.26862954, 0.26130258, 0.27577711], "resample": 3, "size": 224},
    "siglip": {"image_processor_type": "SiglipImageProcessor", "size": {"height": 224, "width": 224}, "resample": 3,
               "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5], "do_resize": True, "do_rescale": True,
               "do_normalize": True},
    "not square": {"image_processor_type": "ViTImageProcessor", "size": {"height": 96, "width": 160}, "resample": 3},
}  # fmt: skip


def noise(height, width):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def assert_same_as_transformers(folder, preprocess, image):
    """The bytes are the same; of the floats, four units in the last place: the order of two divisions differs."""
    from transformers import AutoImageProcessor

    processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
    wanted = processor(Image.fromarray(image), return_tensors="np")["pixel_values"]
    wanted = wanted[0].transpose(1, 2, 0)  # c h w -> h w c
    pixels = preprocess(image)
    np.testing.assert_array_equal(pixels, np.rint((wanted * preprocess.std + preprocess.mean) * 255))
    got = preprocess.normalise(jnp.asarray(pixels[None]))
    np.testing.assert_allclose(got[0], wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize("name", PROCESSORS)
def test_every_processor_of_transformers(tmp_path, name, height, width):
    write_json(tmp_path / "preprocessor_config.json", PROCESSORS[name])
    assert_same_as_transformers(tmp_path, processors.read_preprocessor(tmp_path), noise(height, width))


@pytest.mark.parametrize(
    "preprocess",
    [
        Preprocess(size=224, resize=256, interpolation="bilinear"),
        Preprocess(size=(60, 90), resize=(70, 100), mean=(0.5, 0.4, 0.3)),
        Preprocess(size=(60, 90), interpolation="lanczos"),
    ],
)
def test_what_is_written_for_transformers_does_the_same_there(tmp_path, preprocess):
    write_json(tmp_path / "preprocessor_config.json", processors.preprocessor_config(preprocess))
    assert_same_as_transformers(tmp_path, preprocess, noise(301, 457))
    assert processors.read_preprocessor(tmp_path) == preprocess


@pytest.mark.parametrize("case", TIMM_CASES)
def test_every_transform_of_timm(case):
    name, size = case.split(":")
    preprocess = processors.from_pretrained_cfg(TIMM_CONFIGS[name])
    pixels = preprocess(picture(*map(int, size.split("x"))))
    np.testing.assert_array_equal(pixels, TIMM[f"{case}:pixels"])
    got = preprocess.normalise(jnp.asarray(pixels[None, :2]))[0]
    # Three units in the last place of the largest value: XLA divides by multiplying with an inverse.
    np.testing.assert_allclose(got, TIMM[f"{case}:floats"], rtol=0, atol=8e-7)


@pytest.mark.parametrize("name", TIMM_CONFIGS)
def test_what_is_written_for_timm_reads_back(name):
    preprocess = processors.from_pretrained_cfg(TIMM_CONFIGS[name])
    assert processors.from_pretrained_cfg(processors.pretrained_cfg(preprocess)) == preprocess


@pytest.mark.parametrize("resize", [224, 225, 235, 248, 249, 255, 256, 257, 280, 448])
def test_every_margin_can_be_said_as_a_share(resize):
    preprocess = Preprocess(size=224, resize=resize, crop_rounding="even")
    assert processors.from_pretrained_cfg(processors.pretrained_cfg(preprocess)) == preprocess


def test_what_cannot_be_done_is_named(tmp_path):
    with pytest.raises(ValueError, match="crop_mode 'border' at 224 x 224 is not supported"):
        processors.from_pretrained_cfg({"crop_mode": "border"})
    with pytest.raises(ValueError, match="interpolation 'random' is not supported"):
        processors.from_pretrained_cfg({"interpolation": "random"})
    with pytest.raises(ValueError, match="crop_mode 'center' at 96 x 128"):
        processors.from_pretrained_cfg({"input_size": [3, 96, 128]})
    write_json(tmp_path / "preprocessor_config.json", {**PROCESSORS["dinov2"], "do_center_crop": False})
    with pytest.raises(ValueError, match=r"preprocessor_config\.json: size .* with crop off is not supported"):
        processors.read_preprocessor(tmp_path)
    bgr = Preprocess(size=224, channel_order="bgr")
    for write in (processors.preprocessor_config, processors.pretrained_cfg):
        with pytest.raises(ValueError, match="this one wants bgr"):
            write(bgr)


def test_straight_to_the_square_is_pillow():
    image = noise(70, 50)
    wanted = np.asarray(Image.fromarray(image).resize((28, 28), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(Preprocess(size=28)(image), wanted)


def test_grey_and_reversed_channels():
    image = noise(70, 50)
    grey = Preprocess(size=28, mean=(0.5,), std=(0.5,))(image)
    wanted = np.asarray(Image.fromarray(image).convert("L").resize((28, 28), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(grey, wanted[:, :, None])
    reverse = Preprocess(size=28, channel_order="bgr")(image)
    np.testing.assert_array_equal(reverse[:, :, ::-1], Preprocess(size=28)(image))
    with pytest.raises(ValueError, match="the image has 3 channels and the model takes 4"):
        Preprocess(size=28, mean=(0.5,) * 4, std=(0.5,) * 4)(image)


def test_impossible_settings_are_refused():
    with pytest.raises(ValueError, match="cannot crop 224 pixels from a side of 200"):
        Preprocess(size=224, resize=200)
    with pytest.raises(ValueError, match=r"cannot crop \(60, 90\) pixels from a side of \(80, 80\)"):
        Preprocess(size=(60, 90), resize=(80, 80))
    with pytest.raises(ValueError, match=r"interpolation 'bicubik' is not known \(did you mean 'bicubic'"):
        Preprocess(size=224, interpolation="bicubik")
    with pytest.raises(ValueError, match="mean has 3 channels and std 1"):
        Preprocess(size=224, std=(0.5,))
    with pytest.raises(ValueError, match="size is 0, wanted pixels above 0"):
        Preprocess(size=0)


def test_a_description_keeps_its_content():
    """It is hashed: stored features and run directories of squares must find themselves again."""
    wanted = {"size": 224, "resize": 256, "interpolation": "bicubic", "mean": IMAGENET_MEAN, "std": IMAGENET_STD}
    preprocess = Preprocess(size=224, resize=256)
    assert preprocess.describe() == wanted
    assert Preprocess(size=(224, 224), resize=256) == preprocess
    assert dataclasses.replace(preprocess, crop_rounding="even").describe() == {**wanted, "crop_rounding": "even"}
