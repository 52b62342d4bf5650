"""What the pages say of tasks, files, names and papers is what the code has."""

import re
import runpy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.documents import PAGES, ROOT, flags_of
from tljax.commands import COMMANDS
from tljax.models import ARCHITECTURES, Net
from tljax.tasks import TASKS
from tljax.tasks.section_checks import check_config
from tljax.tasks.sections import EXECUTION, sections_read, select
from tljax.tasks.soup import Soup
from tljax.weights.rules import invert
from tljax.weights.tables import LAYOUTS

DOCS = ROOT / "docs"
PAPER = re.compile(r"arXiv:(\d{4}\.\d{4,5})")
# Where the fine-tuning methods have theirs.
METHODS = ROOT / "experiments" / "method_costs" / "methods.py"


def sections_of(page):
    """{heading: text} of the second level."""
    parts = re.split(r"^## (.+)$", page.read_text(), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def said(text, word):
    """The names in back quotes behind a word at the start of a line, up to the end of the sentence."""
    found = re.search(rf"^{word} (.*?)\.\n", text, re.MULTILINE | re.DOTALL)
    return re.findall(r"`(\w+)`", found[1]) if found else []


SECTIONS = {name: text for name, text in sections_of(DOCS / "tasks.md").items() if name != "What holds for all tasks"}


def test_every_task_and_command_has_its_section_in_order():
    assert sorted(SECTIONS) == sorted({*TASKS, *COMMANDS})


@pytest.mark.parametrize("task", TASKS)
def test_sections_of_the_config_are_those_that_a_task_reads(task):
    needs, may_have = said(SECTIONS[task], "Needs"), said(SECTIONS[task], "May have")
    assert sorted([*needs, *may_have, EXECUTION]) == sorted(set(sections_read(task)))
    select(task, {name: {} for name in needs})
    for name in needs:
        with pytest.raises(ValueError, match=f"key '{name}' is missing"):
            select(task, {other: {} for other in sections_read(task) if other != name})


# `sweep` alone starts `together`, with the two flags of every task.
@pytest.mark.parametrize("command", [name for name in COMMANDS if name != "together"])
def test_every_flag_of_a_command_is_in_its_section(command):
    flags = flags_of([command, "data"]) | (flags_of([command, "train"]) if command == "bench" else set())
    named = set(re.findall(r"--(\w+)", SECTIONS[command]))
    # Those of places are with `launch`.
    places = flags_of(["launch", "data"]) if command == "sweep" else set()
    assert named <= flags
    assert {flag for flag in flags if not flag.startswith("no")} - places <= named | {"config"}


def test_papers_of_the_code_are_on_the_page_and_no_others():
    files = [*(ROOT / "tljax").rglob("*.py"), METHODS]
    in_code = {paper for file in files for paper in PAPER.findall(file.read_text())}
    in_code |= set(re.findall(r'"(\d{4}\.\d{4,5})"', METHODS.read_text()))
    assert set(PAPER.findall((DOCS / "citations.md").read_text())) == in_code
    assert len(in_code) > 60


def test_a_paper_is_named_in_the_code_of_its_row_and_tests_are_of_that_code():
    own = set(re.findall(r'"(\d{4}\.\d{4,5})"', METHODS.read_text()))
    rows = [line for line in (DOCS / "citations.md").read_text().splitlines() if "`tljax/" in line]
    assert len(rows) > 60
    for row in rows:
        files = [ROOT / name for name in re.findall(r"`(\w+/[\w/]+\.py)`", row)]
        code = [file for file in files if file.is_relative_to(ROOT / "tljax")]
        tests = [file for file in files if file.is_relative_to(ROOT / "tests")]
        assert code, row
        assert tests, row
        text = "".join(file.read_text() for file in code)
        assert set(PAPER.findall(row)) <= {*PAPER.findall(text), *own}, row
        assert all("def test_" in file.read_text() for file in tests), row


def check_lines(lines):
    config = runpy.run_path(str(ROOT / "configs" / "images.py"))["get_config"]()
    for line in lines:
        exec(line, {"config": config})
    for task in ("probe", "finetune", "lr_find"):
        check_config(task, config.to_dict())
    if "soup" in config:
        Soup(**config.soup.to_dict())


def test_config_lines_beside_papers_are_accepted():
    cells = re.findall(r"\| (`config\.[^|]+) \|", (DOCS / "citations.md").read_text())
    assert len(cells) > 12
    for cell in cells:
        check_lines(line.strip("`") for line in cell.split("<br>"))


def test_config_lines_in_the_text_are_accepted():
    lines = []
    for page in PAGES:
        # Tables of methods are planned as a whole, by `tests/test_docs_methods.py`.
        text = re.sub(r"^\|.*$", "", page.read_text(), flags=re.MULTILINE)
        lines += re.findall(r"`(config\.[\w.]+ = dict\([^`]*)`", text)
        lines += re.findall(r"^ {4}(config\..*)$", text, re.MULTILINE)
    lines = [line.replace("\n", " ") for line in lines if "=..." not in line]
    assert len(lines) >= 10
    for line in lines:
        check_lines([line])


def torch_names(architecture, layout):
    """{key: the paths it holds}, by writing a number of its own into each param and statistic."""
    net = Net(architecture)
    shapes = {**net.shapes, **net.stat_shapes}
    values = {path: np.full(leaf.shape, index, np.float32) for index, (path, leaf) in enumerate(shapes.items())}
    paths = dict(enumerate(shapes))
    arrays = invert(values, LAYOUTS[layout], architecture)
    return {key: [paths[int(one)] for one in dict.fromkeys(array.ravel())] for key, array in arrays.items()}


def test_names_on_the_page_for_others_are_those_of_the_layouts():
    narrow = {"widths": (2, 4, 6, 8), "stem_width": 2}
    vit = torch_names(replace(ARCHITECTURES["vit_ti16"], num_classes=3, width=12), "timm-vit")
    resnet = torch_names(replace(ARCHITECTURES["resnet18"], num_classes=3, **narrow), "torchvision-resnet")
    table = sections_of(DOCS / "from_pytorch.md")["Names"]
    rows = [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("| `")]
    assert len(rows) == 11
    for theirs, ours in rows:
        for key in re.findall(r"`([^`]+)`", theirs):
            assert {**vit, **resnet}[key] == re.findall(r"`([^`]+)`", ours), key


def test_links_lead_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\((?!https?:)([^)]+)\)", page.read_text()):
            path, _, heading = target.partition("#")
            file = (page.parent / path) if path else page
            assert file.exists(), f"{page.name}: {target}"
            headings = re.findall(r"^#+ (.+)$", file.read_text(), re.MULTILINE) if heading else []
            assert not heading or heading in {re.sub(r"\W+", "-", text.lower()).strip("-") for text in headings}, target


def test_every_page_is_named_in_the_readme():
    readme = (ROOT / "README.md").read_text()
    assert [page.name for page in PAGES if page.parent == DOCS and f"docs/{page.name}" not in readme] == []


def test_files_that_tasks_write_are_written_somewhere_in_the_code():
    code = "".join(file.read_text() for file in (ROOT / "tljax").rglob("*.py"))
    named = set(re.findall(r"`([\w.]+\.(?:jsonl?|npz|md|html|svg|safetensors))`", (DOCS / "tasks.md").read_text()))
    assert len(named) > 25
    assert [name for name in named if f'"{Path(name).name}"' not in code] == []
