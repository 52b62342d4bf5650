import base64
import io
import re
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from tests.test_ablation_report import Balance, make_data, render
from tljax.ablation.heat_chart import heat_chart
from tljax.ablation.scatter_chart import MAX_CLASSES, scatter_chart

SVG = "{http://www.w3.org/2000/svg}"
RNG = np.random.default_rng(0)


def points_of(chart):
    """[(class of the style sheet, shape, tooltip)] of all markers, the legend first."""
    found = ElementTree.fromstring(chart).findall(f"{SVG}path")
    return [(one.attrib["class"], re.sub(r"[-\d. ]+", "", one.attrib["d"]), one[0].text) for one in found]


def make_scatter(num_classes, num_points=60):
    classes = [index % num_classes for index in range(num_points)]
    names = [f"<{index}>.png" for index in range(num_points)]
    points = RNG.normal(size=(num_points, 2)).tolist()
    return scatter_chart("PCA", points, classes, [f"class {one}" for one in range(num_classes)], names, ("a", "b"))


def test_every_class_of_sixteen_has_a_marker_of_its_own():
    found = points_of(make_scatter(MAX_CLASSES))
    legend, points = found[:MAX_CLASSES], found[MAX_CLASSES:]
    assert len({(style, shape) for style, shape, _ in legend}) == MAX_CLASSES
    assert len(points) == 60
    assert points[17] == (*legend[1][:2], "<17>.png, class 1")


def test_of_more_classes_the_rarest_share_a_marker():
    found = points_of(make_scatter(20, num_points=50))
    legend, points = found[:MAX_CLASSES], found[MAX_CLASSES:]
    assert len(points) == 50
    # Of 50 points in 20 classes, the first 10 classes have three and the others two.
    assert [style == "point rest" for style, _, _ in points] == [index % 20 >= 15 for index in range(50)]
    assert legend[-1][2] == "5 others"


def test_a_map_has_one_scale_and_stays_in_its_frame():
    corners = [(0, 0), (30, 0), (0, 10), (30, 10)]
    chart = scatter_chart("t-SNE", corners, [0] * 4, ["only"], ["a"] * 4, ("", ""))
    markers = re.findall(r'<path class="point s0" d="M([\d.]+) ([\d.]+)a', chart)[1:]
    (x0, y0), (x1, y1), (x2, y2), _ = [(float(x), float(y)) for x, y in markers]
    assert y0 == y1
    assert x0 == x2
    assert y0 > y2  # upwards
    assert (x1 - x0) / (y0 - y2) == pytest.approx(3, abs=0.01)
    frame = ElementTree.fromstring(chart).find(f"{SVG}rect")
    assert frame is not None
    top, height = float(frame.attrib["y"]), float(frame.attrib["height"])
    assert top < y2 < y0 < top + height
    scatter_chart("one place", [(1, 1), (1, 1)], [0, 0], ["only"], ["a", "b"], ("", ""))


def decode(image):
    kind, data = image.attrib["href"].split(";base64,")
    assert kind == "data:image/png"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))


def test_colours_go_from_the_lowest_cosine_to_the_highest_of_the_others():
    whole = [[0.1, 0.2, 0.3], [0.4, 0.5, 0.1]]
    cosines = [[0.2, 1.0, 0.6], [0.4, 0.3, 0.2]]
    patches = [{"letter": "A", "place": [0, 1], "cosines": cosines}]
    picture = ElementTree.fromstring(heat_chart("an image", "", ("mean", whole), patches))
    heat = [decode(one) for one in picture.findall(f"{SVG}image") if one.attrib["class"] == "pixels"]
    assert [one.shape for one in heat] == [(2, 3, 3)] * 2
    low, high = [0x44, 0x01, 0x54], [0xFD, 0xE7, 0x25]
    assert heat[0][0, 0].tolist() == heat[0][1, 2].tolist() == low
    assert heat[0][1, 1].tolist() == high
    # The patch itself has cosine 1, and the highest of the others the same colour.
    assert heat[1][0, 0].tolist() == low
    assert heat[1][0, 1].tolist() == heat[1][0, 2].tolist() == high
    assert heat[1][1, 0].tolist() == [0x21, 0x90, 0x8D]  # the middle of viridis
    printed = [one.text for one in picture.findall(f"{SVG}text")]
    assert printed == ["an image", "image", "A", "like mean", "0.10", "0.50", "like A", "0.20", "0.60"]


def test_equal_cosines_and_a_single_patch_can_be_drawn():
    for grid in ([[0.5, 0.5]], [[1.0]]):
        patches = [{"letter": "A", "place": [0, 0], "cosines": grid}]
        ElementTree.fromstring(heat_chart("flat", "", ("class token", grid), patches))


def make_reading():
    image = {"jpeg": "aGVhdA==", "name": "light/a<b>.png", "truth": "light"}
    found = [{**image, "name": "dark/c.png", "truth": "dark", "cosine": 0.9876}]
    grid = [[0.1, 0.2], [0.3, 0.4]]
    patch = {"letter": "A", "place": [1, 1], "cosines": grid}
    points = {"features": "block 12", "points": [[0.0, 0.0], [1.0, 2.0], [2.0, 1.0]]}
    return {
        "maps": [
            {"kind": "pca", "explained": [0.645, 0.11], **points},
            {"kind": "tsne", "perplexity": 30, **points},
        ],
        "labels": [0, 1, 1],
        "names": ["a", "b", "c"],
        "neighbours": {"features": "block 12", "rows": [{**image, "predicted": "dark", "found": found}]},
        "patches": {
            "stage": "block_08", "whole": "class token", "size": [2, 2],
            "rows": [{**image, "to_whole": grid, "patches": [patch]}],
        },
        "has_predictions": True,
    }  # fmt: skip


def test_the_report_shows_maps_neighbours_and_patches(tmp_path):
    data = make_data()
    html, markdown = render(data, tmp_path)
    without = len(re.findall("<svg", html))
    assert "Reading the features" not in html + markdown
    html, markdown = render({**data, "reading": make_reading()}, tmp_path)
    parser = Balance()
    parser.feed(html)
    assert (parser.problems, parser.open) == ([], [])
    assert len(re.findall("<svg", html)) == without + 3
    for text in ("PCA of block 12", "1st direction: 64% of the variance", "t-SNE of block 12", "3 of the 2,624 images"):
        assert text in html
    assert 'title="light/a&lt;b&gt;.png">a&lt;b&gt;.png<br>true: light' in html
    assert '<span class="failed">dark</span> 0.988' in html
    assert "block_08, a grid of 2 by 2. A is the patch most like the class token" in html
    assert "- PCA of block 12: the first two directions have 64.5% and 11.0% of the variance of 3 images" in markdown
    assert "| light/a&lt;b&gt;.png | light | dark | dark/c.png, dark, 0.988 |" in markdown
    assert "url(" not in html
    bare = {**make_reading(), "maps": [], "patches": None}
    bare["neighbours"]["rows"][0]["predicted"] = None
    html, _ = render({**data, "reading": bare}, tmp_path)
    assert len(re.findall("<svg", html)) == without
    assert "<h3>Maps" not in html
    assert "<h3>Patches" not in html
