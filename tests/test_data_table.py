"""Tables of images: read by columns, refused with every reason."""

import pickle

import numpy as np
import pytest
from PIL import Image

from tljax.data.sources import Source, open_source
from tljax.data.table import open_table

FILES = ("b.png", "deep/a.png", "c.png")


@pytest.fixture
def root(tmp_path):
    (tmp_path / "pets/deep").mkdir(parents=True)
    for index, file in enumerate(FILES):
        Image.fromarray(np.full((4, 4, 3), index, np.uint8)).save(tmp_path / "pets" / file)
    return tmp_path / "pets"


def write(root, *rows, header="file,label,site,sure"):
    (root / "labels.csv").write_text("\n".join([header, *rows]) + "\n")


def read(root, **settings):
    return open_source("table", root, path="labels.csv", file_column="file", **settings)


def test_one_class_an_image(root):
    write(root, "b.png, dog ,x,1", "", "deep/a.png,cat,y,0.5", '"c.png",dog,"x",0')
    source = read(root, kind="single", label_column="label", weight_column="sure")
    assert isinstance(source, Source)
    assert (source.name, source.class_names, len(source)) == ("pets/labels", ("cat", "dog"), 3)
    assert source.labels.tolist() == [1, 0, 1]
    assert (source.targets, source.is_multi_label) == (None, False)
    assert source.weights.tolist() == [1.0, 0.5, 0.0]
    assert {name: column.tolist() for name, column in source.columns.items()} == {"site": ["x", "y", "x"]}
    assert [source[index]["name"] for index in range(3)] == list(FILES)
    assert source[1]["image"] == (root / "deep/a.png").read_bytes()
    copy = pickle.loads(pickle.dumps(source))
    assert (copy[2], copy.fingerprint) == (source[2], source.fingerprint)


def test_names_of_several_classes(root):
    # With the mark that spreadsheets write, and their line ends.
    text = "file;tags\r\nb.png;sea | sky\r\ndeep/a.png;\r\nc.png;ant\r\n"
    (root / "labels.csv").write_bytes(text.encode("utf-8-sig"))
    source = read(root, kind="multi_label", label_column="tags", separator="|", delimiter=";")
    assert source.class_names == ("ant", "sea", "sky")
    assert source.targets is not None
    np.testing.assert_array_equal(source.targets, np.array([[0, 1, 1], [0, 0, 0], [1, 0, 0]], np.float32))
    assert source.is_multi_label
    assert source.labels.tolist() == [-1, -1, -1]


def test_a_number_for_each_class(root):
    write(root, "b.png,1,0", "deep/a.png,0.25,1", "c.png,0,0", header="file,sky,ant")
    source = read(root, kind="multi_label", label_columns=("sky", "ant"))
    assert source.class_names == ("sky", "ant")
    assert source.targets is not None
    np.testing.assert_array_equal(source.targets, np.array([[1, 0], [0.25, 1], [0, 0]], np.float32))


def test_shares_of_the_classes_are_made_to_sum_to_one(root):
    write(root, "b.png,0.333,0.333,0.333", "deep/a.png,0.1,0.2,0.7", "c.png,0.5,0.5,0", header="file,x,y,z")
    source = read(root, kind="soft", label_columns=("x", "y", "z"))
    assert source.targets is not None
    np.testing.assert_allclose(source.targets[0], np.full(3, 1 / 3), rtol=1e-7)
    np.testing.assert_allclose(source.targets.sum(axis=1), 1, rtol=1e-7)
    # Of equals the first.
    assert source.labels.tolist() == [0, 2, 0]
    assert not source.is_multi_label


def test_all_that_is_wrong_with_the_rows_is_named_at_once(root):
    rows = ("b.png,0.5,0.5,1", "nowhere.png,0.5,0.4,1", "deep/../b.png,1.5,nan,-1", "c.png,,0.2,inf")
    write(root, *rows, header="file,x,y,sure")
    with pytest.raises(ValueError, match=r"labels\.csv:\n") as caught:
        read(root, kind="soft", label_columns=("x", "y"), weight_column="sure")
    problems = [line.strip() for line in str(caught.value).splitlines()[1:]]
    assert problems == [
        f"line 3: no file 'nowhere.png' in {root}",
        "line 4: file 'deep/../b.png' is that of line 2 too",
        "line 4: column 'x' is '1.5', wanted a number from 0 to 1",
        "line 4: column 'y' is 'nan', wanted a number from 0 to 1",
        "line 5: column 'x' is '', wanted a number from 0 to 1",
        "line 3: shares of the classes sum to 0.9, wanted 1, or kind 'multi_label'",
        "line 4: column 'sure' is '-1', wanted a finite number of at least 0",
        "line 5: column 'sure' is 'inf', wanted a finite number of at least 0",
    ]


def test_class_names_must_be_there_and_once(root):
    write(root, "b.png,", "deep/a.png,cat", header="file,label")
    with pytest.raises(ValueError, match="line 2: column 'label' has an empty class name in ''"):
        read(root, kind="single", label_column="label")
    write(root, "b.png,cat||dog", "deep/a.png,cat|cat", header="file,label")
    with pytest.raises(ValueError, match=r"(?s)empty class name in 'cat\|\|dog'.*line 3: .*twice in 'cat\|cat'"):
        read(root, kind="multi_label", label_column="label", separator="|")


def test_many_problems_are_counted(root):
    write(root, *(f"{index}.png,x" for index in range(25)), header="file,label")
    with pytest.raises(ValueError, match=r"(?s)no file '19\.png'.*\n  and 5 more$"):
        read(root, kind="single", label_column="label")


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("fil,label,site,sure", r"no column 'file' \(did you mean 'fil'\?\)\n  the columns are 'fil', 'label', "),
        ("file,site,label,site", "column 'site' is there 2 times"),
        ("file,label,site", "line 2: 4 cells, wanted 3"),
    ],
)
def test_a_header_that_does_not_fit_is_named(root, header, message):
    write(root, "b.png,dog,x,1", header=header)
    with pytest.raises(ValueError, match=message):
        read(root, kind="single", label_column="label")


def test_columns_have_one_use_and_no_reserved_name(root):
    write(root, "b.png,dog,x,1")
    with pytest.raises(ValueError, match="column 'site' is named for two uses"):
        read(root, kind="single", label_column="site", weight_column="site")
    with pytest.raises(ValueError, match="column 'label' is not used, and splits call the labels so; rename it"):
        read(root, kind="single", label_column="site")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "singel", "label_column": "x"}, r"no kind 'singel' \(did you mean 'single'\?\)"),
        ({"kind": "single", "label_columns": ("x",)}, "'single' wants label_column, and none of the others; got"),
        ({"kind": "soft", "label_column": "x"}, "'soft' wants label_columns, and"),
        ({"kind": "multi_label", "label_column": "x"}, "wants label_columns, or label_column and separator, and"),
        ({"kind": "soft", "label_columns": ("x", "y", "x")}, "label_columns names x more than once"),
    ],
)
def test_a_kind_wants_its_own_columns(root, settings, message):
    write(root, "b.png,dog,x,1")
    with pytest.raises(ValueError, match=message):
        read(root, **settings)


def test_a_file_that_is_no_table_is_named(root):
    with pytest.raises(FileNotFoundError, match=r"no table .*labels\.csv; give config\.data\.path"):
        open_table(root, path="labels.csv", file_column="file", kind="single", label_column="label")
    write(root)
    with pytest.raises(ValueError, match="has 1 rows, wanted a header and a row for each image"):
        read(root, kind="single", label_column="label")
    for damage in (b'file,label\nb.png,"dog', b"file,label\nb.png,\xff"):
        (root / "labels.csv").write_bytes(damage)
        with pytest.raises(ValueError, match=r"is no CSV file in UTF-8: .*save the table as one"):
            read(root, kind="single", label_column="label")
