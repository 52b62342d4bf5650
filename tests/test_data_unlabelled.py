"""Images without labels: found, listed, read, and named where they cannot be."""

import io
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tljax.data.unlabelled import Given, find_images, spool, unlabelled_batches, unpack
from tljax.preprocess import Preprocess

PREPROCESS = Preprocess(size=8)


def pixels(seed, height=10, width=12):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def png(array, **options):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG", **options)
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path):
    """Images, some in folders, and much that is none."""
    for index, name in enumerate(["b.png", "a.PNG", "z/c.jpeg", "d/e/f.png", "d/a.png"]):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels(index)).save(tmp_path / name, "JPEG" if name.endswith("jpeg") else "PNG")
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / ".hidden.png").write_bytes(png(pixels(9)))
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache" / "x.png").write_bytes(png(pixels(9)))
    return tmp_path


def test_folders_are_searched_in_order(folder):
    (folder / "loop").symlink_to(folder)
    (folder / "y").symlink_to(folder / "d")
    found = [os.path.relpath(path, folder) for path in find_images(folder)]
    # Files first; a link to a folder is followed, a link back up is not.
    assert found == ["a.PNG", "b.png", "d/a.png", "d/e/f.png", "y/a.png", "y/e/f.png", "z/c.jpeg"]


def test_a_list_gives_back_every_path(tmp_path):
    rng = np.random.default_rng(0)
    # Longer than what is read at once, and names that are no text.
    names = [f"{index}/" + "n" * int(rng.integers(1, 9000)) for index in range(40)] + [os.fsdecode(b"\xff\n,.png"), "é"]
    files = spool(iter(names), tmp_path)
    assert files.count == 42
    assert [files.name(place) for place in files.places()] == names
    with pytest.raises(ValueError, match="there are no images"):
        spool([], tmp_path)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_batches_hold_the_images_and_what_is_wrong_with_the_others(folder, tmp_path_factory, num_workers):
    good = list(find_images(folder))
    (folder / "cut.png").write_bytes(png(pixels(1))[:-20])
    bad = [str(folder / "none.png"), str(folder / "notes.txt"), str(folder / "cut.png")]
    names = [*good[:2], *bad, *good[2:]]
    files = spool(names, tmp_path_factory.mktemp("list"))
    images, problems, places = [], [], []
    for batch in unlabelled_batches(files, PREPROCESS, 3, num_workers):
        found, wrong = unpack(batch["image"], PREPROCESS.shape)
        assert found.shape == (3, 8, 8, 3)
        images += list(found[batch["mask"]])
        problems += wrong[: int(batch["mask"].sum())]
        places += batch["place"][batch["mask"]].tolist()
    assert [files.name(place) for place in places] == names
    assert [index for index, problem in enumerate(problems) if problem is not None] == [2, 3, 4]
    assert "No such file" in problems[2]
    assert "notes.txt: no image of format JPEG" in problems[3]
    assert "cannot decode" in problems[4]
    for name, image in zip(names, images, strict=True):
        if name in bad:
            assert not image.any()
        else:
            with Image.open(name) as picture:
                np.testing.assert_array_equal(image, PREPROCESS(np.asarray(picture)))


def test_images_come_in_every_form(tmp_path):
    array = pixels(3)
    path = tmp_path / "x.png"
    path.write_bytes(png(array))
    rgba = np.dstack([array, np.full((10, 12), 128, np.uint8)])
    on_white = np.asarray(Image.alpha_composite(Image.new("RGBA", (12, 10), "white"), Image.fromarray(rgba)))[..., :3]
    given = Given(items=[path, str(path), png(array), Image.fromarray(array), array, array[..., 0],
                         Image.fromarray(rgba), Image.fromarray(array).convert("CMYK")])  # fmt: skip
    assert [given.name(place) for place in given.places()][:3] == [str(path), str(path), "image 2"]
    found = [given.read(place) for place in given.places()]
    for image in found[:5]:
        np.testing.assert_array_equal(image, array)
    np.testing.assert_array_equal(found[5], np.repeat(array[..., :1], 3, axis=2))
    np.testing.assert_array_equal(found[6], on_white)
    assert np.abs(found[7].astype(int) - array).max() <= 1


def test_pictures_that_files_may_not_hold_are_refused_too():
    deep = Image.fromarray(np.zeros((4, 4), np.uint16))
    with pytest.raises(ValueError, match="cannot use image 0: mode I;16 has more than 8 bits"):
        Given(items=[deep]).read(0)


@pytest.mark.parametrize(
    ("item", "words"),
    [
        (3, "number 1 is of type int"),
        (np.zeros((4, 4, 3)), r"number 1 is an array float64 \[4, 4, 3\]"),
        (np.zeros((4, 4, 4), np.uint8), r"number 1 is an array uint8 \[4, 4, 4\]"),
        (np.zeros((0, 4, 3), np.uint8), r"number 1 is an array uint8 \[0, 4, 3\]"),
    ],
)
def test_what_is_no_image_is_a_mistake_and_no_damage(item, words):
    with pytest.raises(TypeError, match=words):
        Given(items=[Path("x.png"), item])


def test_a_long_message_is_cut_to_the_room_of_an_image(tmp_path):
    files = spool([str(tmp_path / ("n" * 300 + ".png"))], tmp_path)
    (batch,) = unlabelled_batches(files, PREPROCESS, 2)
    _, problems = unpack(batch["image"], PREPROCESS.shape)
    assert problems[0] is not None
    assert len(problems[0].encode()) <= 8 * 8 * 3
    assert problems[1] is None
