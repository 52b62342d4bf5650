"""Every way an image file can be stored, and damaged."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from tljax.data.decode import decode_image


@pytest.fixture
def picture():
    rows, columns = np.mgrid[:24, :16]
    return np.stack([rows * 8, columns * 12, 255 - rows * 5], axis=-1).astype(np.uint8)


def encode(image, file_format, **options):
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def textured_jpeg(quality=90):
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    return encode(pixels, "JPEG", quality=quality)


def sixteen_bit_colour_png(picture):
    """Pillow cannot write one."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    height, width, _ = picture.shape
    rows = b"".join(b"\0" + (row.astype(">u2") * 257).tobytes() for row in picture)
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("file_format", ["PNG", "BMP", "TIFF", "WEBP"])
def test_lossless_formats_come_back_to_the_bit(picture, file_format):
    options = {"lossless": True} if file_format == "WEBP" else {}
    np.testing.assert_array_equal(decode_image(encode(picture, file_format, **options), "x"), picture)


def test_jpeg_has_the_pixels_of_pillow():
    data = textured_jpeg()
    np.testing.assert_array_equal(decode_image(data, "x"), np.asarray(Image.open(io.BytesIO(data))))


@pytest.mark.parametrize("file_format", ["PNG", "JPEG"])
def test_grey_becomes_three_equal_channels(picture, file_format):
    data = encode(picture[..., 0], file_format)
    grey = np.asarray(Image.open(io.BytesIO(data)))
    np.testing.assert_array_equal(decode_image(data, "x"), np.repeat(grey[..., None], 3, axis=-1))


def test_cmyk_jpeg_becomes_rgb(picture):
    decoded = decode_image(encode(Image.fromarray(picture).convert("CMYK"), "JPEG", quality=100), "x")
    assert np.abs(decoded.astype(int) - picture).max() <= 4  # loss of JPEG at quality 100


def test_palette_becomes_its_colours(picture):
    image = Image.fromarray(picture).quantize(7)
    np.testing.assert_array_equal(decode_image(encode(image, "PNG"), "x"), np.asarray(image.convert("RGB")))


def test_transparent_pixels_lie_on_white(picture):
    alpha = np.full((*picture.shape[:2], 1), 255, np.uint8)
    alpha[:5] = 0
    decoded = decode_image(encode(np.concatenate([picture, alpha], axis=-1), "PNG"), "x")
    assert (decoded[:5] == 255).all()
    np.testing.assert_array_equal(decoded[5:], picture[5:])


def test_transparent_palette_entry_lies_on_white():
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((1, 0), 1)
    decoded = decode_image(encode(image, "PNG", transparency=1), "x")
    np.testing.assert_array_equal(decoded, [[[10, 20, 30], [255, 255, 255]]])


# What a viewer shows for each value of the tag: EXIF 2.32 says where row 0 and column 0 are.
UPRIGHT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: a[::-1].swapaxes(0, 1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: a[:, ::-1].swapaxes(0, 1),
}


@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", list(UPRIGHT))
def test_exif_orientation_is_applied_once(picture, file_format, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if file_format == "WEBP" else {}
    plain = decode_image(encode(picture, file_format, **options), "x")
    turned = decode_image(encode(picture, file_format, exif=exif, **options), "x")
    np.testing.assert_array_equal(turned, UPRIGHT[orientation](plain))


def test_sixteen_bits_are_refused(picture):
    grey = encode(picture[..., 0].astype(np.uint16) * 200, "PNG")
    for data in (grey, sixteen_bit_colour_png(picture), encode(picture[..., 0].astype(np.float32), "TIFF")):
        with pytest.raises(ValueError, match=r"deep\.png.*more than 8 bits a channel"):
            decode_image(data, "deep.png")


def test_animation_is_refused(picture):
    data = encode(picture, "WEBP", save_all=True, append_images=[Image.fromarray(255 - picture)])
    with pytest.raises(ValueError, match=r"two\.webp: it has 2 frames, wanted 1"):
        decode_image(data, "two.webp")


def cut(data):
    return data[: len(data) // 2]


def half_zeroed(data):
    return cut(data) + bytes(len(data) - len(data) // 2)


@pytest.mark.parametrize("damage", [cut, half_zeroed])
@pytest.mark.parametrize("file_format", ["JPEG", "PNG"])
def test_damage_is_an_error_that_names_the_file(file_format, damage):
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    with pytest.raises(ValueError, match=r"cannot decode cats/1: .*; restore, convert or remove this file"):
        decode_image(damage(encode(pixels, file_format)), "cats/1")


def test_no_changed_byte_of_a_png_changes_pixels_in_silence(picture):
    data = encode(picture, "PNG")
    accepted = 0
    for position in range(len(data)):
        try:
            decoded = decode_image(data[:position] + bytes([data[position] ^ 0x55]) + data[position + 1 :], "x")
        except ValueError:
            continue
        accepted += 1
        np.testing.assert_array_equal(decoded, picture)
    assert accepted <= 8  # length and checksum of the end marker


@pytest.mark.parametrize("data", [b"", b"no image", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF89a" + bytes(20)])
def test_bytes_of_no_image_are_an_error(data):
    with pytest.raises(ValueError, match="cannot decode x"):
        decode_image(data, "x")
