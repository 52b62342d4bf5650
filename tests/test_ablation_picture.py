"""A chart as a file of its own."""

import re
from xml.etree import ElementTree

import pytest

from tljax.ablation.charts import curve_chart
from tljax.ablation.picture import write_picture

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture
def picture(tmp_path):
    points = [(float(x), x * x / 10) for x in range(6)]
    chart = curve_chart('a < b & "c" > d', [points], 0, (0.0, 5.0), (0.0, 2.5), "x < y")
    write_picture(tmp_path / "chart.svg", chart)
    return (tmp_path / "chart.svg").read_text(), chart


def test_the_file_is_xml_that_says_what_it_shows(picture):
    root = ElementTree.fromstring(picture[0])
    assert root.tag == f"{SVG}svg"
    assert root.attrib["aria-label"] == 'a < b & "c" > d'
    assert [text.text for text in root.iter(f"{SVG}text")].count("x < y") == 1


def test_it_has_all_of_the_chart_and_a_page_of_16_pixels_more_on_each_side(picture):
    root, chart = ElementTree.fromstring(picture[0]), ElementTree.fromstring(picture[1])
    style, page, *shapes = list(root)
    assert (style.tag, page.tag) == (f"{SVG}style", f"{SVG}rect")
    assert [ElementTree.tostring(shape) for shape in shapes] == [ElementTree.tostring(shape) for shape in chart]
    x, y, width, height = (float(number) for number in root.attrib["viewBox"].split())
    _, _, inner_width, inner_height = (float(number) for number in chart.attrib["viewBox"].split())
    assert (x, y, width, height) == (-16, -16, inner_width + 32, inner_height + 32)
    assert (page.attrib["x"], page.attrib["y"], page.attrib["width"]) == ("-16", "-16", "100%")


def test_colours_come_with_it_in_light_and_dark(picture):
    root = ElementTree.fromstring(picture[0])
    style = root[0].text
    assert style is not None
    used = set(re.findall(r"var\((--[\w-]+)\)", picture[0]))
    assert used
    assert used <= set(re.findall(r"(--[\w-]+)\s*:", style))
    assert "prefers-color-scheme: dark" in style
    classes = {name for shape in root.iter() for name in shape.attrib.get("class", "").split()}
    assert {"thin", "s0", "grid", "small", "strong"} <= classes
    assert all(re.search(rf"\.{name}\b", style) for name in classes)
