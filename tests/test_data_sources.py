"""Image folders: listed in one order, refused with reasons, verified."""

import pickle
import shutil

import numpy as np
import pytest
from PIL import Image

from tljax.data.digest import ImageDigest
from tljax.data.folder import open_folder
from tljax.data.sources import Source, open_source, verify


def write_image(path, seed=0, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, **options)


@pytest.fixture
def root(tmp_path):
    for seed, file in enumerate(["dog/b.PNG", "dog/a.jpg", "cat/2.webp", "cat/10.png", "cat/1.jpeg"]):
        write_image(tmp_path / "pets" / file, seed)
    return tmp_path / "pets"


def test_folder_is_listed_by_class_and_name(root):
    source = open_source("folder", root)
    assert isinstance(source, Source)
    assert (source.name, source.class_names, len(source)) == ("pets", ("cat", "dog"), 5)
    names = ["cat/1.jpeg", "cat/10.png", "cat/2.webp", "dog/a.jpg", "dog/b.PNG"]
    assert [source[index]["name"] for index in range(5)] == names
    assert [source[index]["image"] for index in range(5)] == [(root / name).read_bytes() for name in names]
    np.testing.assert_array_equal(source.labels, np.array([0, 0, 0, 1, 1], np.int32))
    np.testing.assert_array_equal(source.weights, np.ones(5, np.float32))
    assert source.columns == {}


def test_source_survives_pickling(root):
    source = open_folder(root)
    copy = pickle.loads(pickle.dumps(source))
    assert (copy[3], copy.fingerprint) == (source[3], source.fingerprint)


def test_entries_that_are_no_images_are_left_out_aloud(root, caplog):
    (root / "cat/Thumbs.db").write_bytes(b"x")
    (root / "cat/.hidden.png").write_bytes(b"x")
    (root / "README.txt").write_text("x")
    shutil.copy(next((root / "cat").glob("*.[jp]*g")), root / "stray.png")
    assert len(open_folder(root)) == 5
    assert "1 entries in the class folders are not images" in caplog.text
    assert "1 images are in no class folder" in caplog.text


def test_fingerprint_is_of_content_and_order(root, tmp_path):
    before = open_folder(root).fingerprint
    (root / "cat/1.jpeg").rename(root / "cat/0.jpeg")
    assert open_folder(root).fingerprint == before
    (root / "cat/0.jpeg").rename(root / "cat/3.jpeg")
    moved = open_folder(root).fingerprint
    write_image(root / "cat/3.jpeg", seed=99)
    assert len({before, moved, open_folder(root).fingerprint}) == 3


def test_digest_sees_where_images_end():
    def digest(*images):
        whole = ImageDigest()
        for image in images:
            whole.update(image)
        return whole.hexdigest()

    assert digest(b"ab", b"c") != digest(b"a", b"bc")


def test_missing_root_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no folder .*nowhere; wanted one folder per class"):
        open_folder(tmp_path / "nowhere")


def test_root_without_class_folders_says_what_is_there(tmp_path):
    with pytest.raises(ValueError, match="no class folders but nothing"):
        open_folder(tmp_path)
    for number in range(7):
        write_image(tmp_path / f"{number}.png")
    with pytest.raises(ValueError, match=r"no class folders but 0\.png, .*4\.png, \.\.\. \(7 in all\)"):
        open_folder(tmp_path)


def test_every_class_without_images_says_what_is_there(root):
    (root / "emu").mkdir()
    write_image(root / "fox/deep/1.png")
    with pytest.raises(ValueError, match=r"(?s)without images.*emu has nothing\n  fox has deep/\nopen the folder"):
        open_folder(root)


def test_unknown_names_and_tasks_are_refused(root):
    with pytest.raises(ValueError, match=r"no data source 'foldr' \(did you mean 'folder'\?\); known: \['elpv', "):
        open_source("foldr", root)
    with pytest.raises(ValueError, match="got task 'binary', leave it out"):
        open_source("folder", root, task="binary")
    with pytest.raises(ValueError, match=r"none was named; known: \['binary', 'four_class'\]"):
        open_source("elpv", root)


def test_verify_finds_the_damaged_files_and_no_others(root):
    for file in ("cat/10.png", "dog/a.jpg"):
        data = (root / file).read_bytes()
        half = len(data) // 2
        (root / file).write_bytes(data[:half] + (bytes(half) if file.endswith("jpg") else b""))
    problems = verify(open_folder(root))
    assert [name for name, _ in problems] == ["cat/10.png", "dog/a.jpg"]
    for name, problem in problems:
        assert problem.startswith(f"cannot decode {name}: ")
