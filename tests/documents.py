"""The pages of the documentation as what they tell a reader to do: files to save, code and commands to run."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tljax import bench, commands, launching, replaying, sweeping
from tljax.commands import COMMANDS
from tljax.tasks import TASKS

ROOT = Path(__file__).parents[1]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
# First words of what is a line for a shell, and no line of a config or a log.
PROGRAMS = ("tljax", ".venv/bin/tljax", "python", "make", "sed", "cat", ".", "find", "sbatch")
TASK_FLAGS = {"config", "workdir", "coordinator", "num_processes", "process_id", "traceback"}
WITH_CONFIG = ("launch", "sweep", "replay", "bench")


class Item(NamedTuple):
    """One thing to do: a "file" to save, "code" to run, or a "command"."""

    kind: str
    text: str
    name: str = ""


def items_of(page: Path) -> Iterator[Item]:
    """Return what a page tells to do, in order."""
    parts = re.split(r"^```(\w+)\n(.*?)^```$", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    texts, languages, blocks = parts[::3], [*parts[1::3], ""], [*parts[2::3], ""]
    for text, language, block in zip(texts, languages, blocks, strict=True):
        for line in re.findall(r"^    (\S.*)$", text, re.MULTILINE):
            if line.split()[0] in PROGRAMS:
                yield Item("command", re.split(r"\s{2,}#", line)[0])
        saved = re.findall(r"Save this as\s+`([^`]+)`:\s*\Z", text)
        if language == "python":
            yield Item("file", block, saved[0]) if saved else Item("code", block)


def calls_in_text(page: Path) -> list[str]:
    """Return the calls of tljax that stand in the text and tables of a page, patterns of calls among them."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    spans = [span.replace("\n", " ") for span in re.findall(r"`([^`]+)`", text)]
    return [found[0] for span in spans if (found := re.search(r"(?<![\w/])tljax [\w-].*", span))]


def is_pattern(call: str) -> bool:
    """Tell a call that shows what there is from one to give as it is."""
    return "..." in call or "[" in call


def flags_of(words: list[str]) -> set[str]:
    """Return the flags that a task or command has, as its own parser is told them.

    Args:
        words: its name, and the word behind it.
    """
    if words[0] in TASKS:
        return {*TASK_FLAGS, "notraceback"}
    seen: dict[str, type] = {}

    class Seen(Exception):  # noqa: N818
        pass

    def see(**kinds: type) -> None:
        seen.update(kinds)
        raise Seen

    with pytest.MonkeyPatch.context() as patch:
        for module in (commands, launching, sweeping, replaying, bench):
            patch.setattr(module, "make_flags", see)
        with pytest.raises(Seen):
            COMMANDS[words[0]][0](words)
    negated = {f"no{name}" for name, kind in seen.items() if kind is bool}
    return {*seen, *negated, *({"config"} if words[0] in WITH_CONFIG else ())}


def check_call(call: str) -> None:
    """Refuse a call of a task or command that there is not, or with a flag that it has not."""
    words = re.sub(r"[\[\]]", "", call.removeprefix("tljax ")).split()
    if words[0] in ("TASK", "COMMAND"):
        return
    assert words[0] in {*TASKS, *COMMANDS}, call
    given = {re.split(r"[=.]", word.removeprefix("--"))[0] for word in words if re.match(r"--\w", word)} - {"help"}
    behind = words[1] if len(words) > 1 and not words[1].startswith("-") else "data"
    assert given <= flags_of([words[0], behind]), call
