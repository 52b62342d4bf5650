"""Encoded image files to arrays, with damage reported instead of decoded."""

import io
import re
import struct
from importlib import metadata

import numpy as np
import simplejpeg
from jaxtyping import UInt8
from PIL import ExifTags, Image, UnidentifiedImageError

IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")

# Raised when the pixels of a file would differ though its bytes and the versions of the libraries do not.
_VERSION = 1
_JPEG_MAGIC = b"\xff\xd8\xff"
# What Pillow may open: its other plugins include some that start foreign programs.
_FORMATS = ("BMP", "PNG", "TIFF", "WEBP")
# Pillow's raw modes of 16-bit channels; "BGR;16" is the 5-6-5 packing of BMP.
_SIXTEEN_BITS = re.compile(r"(?<!BGR);16")
# EXIF 2.32, tag 0x0112 (Orientation): what undoes each way a camera can have been held.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# What simplejpeg and Pillow's plugins raise; TypeError is a TIFF without its dimensions.
_DAMAGE = (ValueError, OSError, SyntaxError, EOFError, TypeError, struct.error, Image.DecompressionBombError)


def decode_image(data: bytes, name: str) -> UInt8[np.ndarray, "height width 3"]:
    """Decode one image file to upright RGB.

    Greyscale and palette images become RGB, transparent pixels are laid on white, the EXIF orientation is
    applied. JPEG is decoded strictly and the checksums of PNG are verified; BMP, TIFF and WebP carry none,
    so a changed byte in their pixels goes unseen.

    Args:
        data: the bytes of a JPEG, PNG, BMP, TIFF or WebP file.
        name: what to call the image in errors.

    Raises:
        ValueError: the file is damaged, of another format, animated, or deeper than 8 bits a channel.
    """
    try:
        image, orientation = _open_jpeg(data) if data.startswith(_JPEG_MAGIC) else _open_other(data)
    except _DAMAGE as error:
        # Pillow's own words name an address in memory, which no two runs share.
        is_unknown = isinstance(error, UnidentifiedImageError)
        reason = f"no image of format {', '.join(('JPEG', *_FORMATS))}" if is_unknown else error
        reason = reason if data else "the file is empty"
        raise ValueError(f"cannot decode {name}: {reason}; restore, convert or remove this file") from error
    return _upright(image, orientation)


def convert_picture(picture: Image.Image, name: str) -> UInt8[np.ndarray, "height width 3"]:
    """Turn a picture of Pillow's into upright RGB, as `decode_image` does with the same in a file.

    Raises:
        ValueError: it cannot be read, is animated, or deeper than 8 bits a channel.
    """
    try:
        return _upright(*_as_rgb(picture))
    except _DAMAGE as error:
        raise ValueError(f"cannot use {name}: {error}; convert it first") from error


def _upright(image: Image.Image | np.ndarray, orientation: int) -> np.ndarray:
    if orientation in _UPRIGHT:
        image = Image.fromarray(np.asarray(image)).transpose(_UPRIGHT[orientation])
    return np.asarray(image)


def describe_decoder() -> dict[str, str]:
    """Return what the pixels of a file depend on beside its bytes, as plain values."""
    libraries = {name: metadata.version(name) for name in ("pillow", "simplejpeg")}
    return {"version": str(_VERSION), **libraries}


def _open_jpeg(data: bytes) -> tuple[np.ndarray, int]:
    """Decode with simplejpeg: Pillow returns wrong pixels for damaged files without a word."""
    pixels = simplejpeg.decode_jpeg(data, colorspace="RGB", strict=True)
    header = Image.open(io.BytesIO(data), formats=("JPEG",))
    return pixels, _orientation(header)


def _open_other(data: bytes) -> tuple[Image.Image, int]:
    """Decode with Pillow."""
    # Loading skips the checksums of PNG; verifying reads them and leaves the image unusable.
    Image.open(io.BytesIO(data), formats=_FORMATS).verify()
    return _as_rgb(Image.open(io.BytesIO(data), formats=_FORMATS))


def _as_rgb(image: Image.Image) -> tuple[Image.Image, int]:
    frames = getattr(image, "n_frames", 1)
    if frames != 1:
        raise ValueError(f"it has {frames} frames, wanted 1")
    if _SIXTEEN_BITS.search(str(getattr(image, "tile", ""))) or image.mode.startswith(("I", "F")):
        raise ValueError(f"mode {image.mode} has more than 8 bits a channel, and how to scale them is not known")
    image.load()
    # Only now: loading a TIFF turns it upright and drops the tag.
    orientation = _orientation(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB"), orientation


def _orientation(image: Image.Image) -> int:
    return image.getexif().get(ExifTags.Base.Orientation, 1)
