"""Images small enough to stand in a page by the dozen."""

import base64
import io

import numpy as np
from PIL import Image

from tljax.data.decode import decode_image

# Pixels: as wide as in the page, or a little more.
_SIDE = 144
_QUALITY = 85


def thumbnail(data: bytes, name: str) -> str:
    """Encode an image file as a small JPEG in base64."""
    return encode_pixels(decode_image(data, name))


def encode_pixels(pixels: np.ndarray) -> str:
    """Encode RGB [h w 3] or grey [h w] bytes as a small JPEG in base64."""
    image = Image.fromarray(pixels)
    image.thumbnail((_SIDE, _SIDE))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=_QUALITY)
    return base64.b64encode(buffer.getvalue()).decode()
