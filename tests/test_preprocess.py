import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from tljax.preprocess import IMAGENET_MEAN, IMAGENET_STD, Preprocess


@pytest.mark.parametrize(("height", "width"), [(300, 300), (301, 457), (640, 333), (412, 206)])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_equals_the_processor_of_transformers(tmp_path, height, width, interpolation):
    """Shortest edge, centre crop, rescale and normalise, as facebook/dinov2-small's preprocessor_config.json."""
    from transformers import AutoImageProcessor

    from tljax.rundir import write_json
    from tljax.weights.hugging_face import _preprocessor_config

    preprocess = Preprocess(size=224, resize=256, interpolation=interpolation)
    write_json(tmp_path / "preprocessor_config.json", _preprocessor_config(preprocess))
    processor = AutoImageProcessor.from_pretrained(tmp_path, backend="pil")
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    wanted = processor(Image.fromarray(image), return_tensors="np")["pixel_values"]
    wanted = wanted[0].transpose(1, 2, 0)  # c h w -> h w c
    image_bytes = preprocess(image)
    np.testing.assert_array_equal(image_bytes, np.rint((wanted * IMAGENET_STD + IMAGENET_MEAN) * 255))
    # Four units in the last place of the largest value: the order of two divisions differs.
    got = preprocess.normalise(jnp.asarray(image_bytes[None]))
    np.testing.assert_allclose(got[0], wanted, rtol=0, atol=1e-6)


def test_straight_to_the_square_is_pillow():
    image = np.random.default_rng(0).integers(0, 256, (70, 50, 3), dtype=np.uint8)
    wanted = np.asarray(Image.fromarray(image).resize((28, 28), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(Preprocess(size=28)(image), wanted)


def test_impossible_settings_are_refused():
    with pytest.raises(ValueError, match="cannot crop 224 pixels from a side of 200"):
        Preprocess(size=224, resize=200)
    with pytest.raises(ValueError, match="'lanczos' is not known"):
        Preprocess(size=224, interpolation="lanczos")
