"""The command `tljax replay`: a run again, and whether it gives the same bits."""

from collections.abc import Sequence

from tljax.arguments import change_config, make_flags
from tljax.launching import UNFINISHED, until_told
from tljax.tasks.replay import Comparison, read_config, replay_run


def replay(arguments: Sequence[str]) -> int:
    """Run a finished run again: tljax replay DIR [--workdir=NEW] [--config.data.root=PATH] ...

    DIR is a run directory, which may have been copied from elsewhere; it is only read. The replay is in NEW, by default
    beside it as DIR.replay, and goes on where it was when the same command is given again. Paths that are others on
    this machine are given as --config.data.root=PATH and --config.cache_dir=PATH.

    A run that trained together with others does so again, with copies of itself in the places of the others.

    Compares metrics.jsonl by bytes, done.json but for its seconds, and the predictions by bits. The exit status is 0
    where all are the same, and 1 where they are not: it then says what was not the same before the first step, of the
    config, the inputs, versions, devices, processor and git state, and the first step and number that differ.
    """
    values = make_flags(workdir=str)
    rest = values(list(arguments), known_only=True)
    folders = [text for text in rest[1:] if not text.startswith("-")]
    if len(folders) != 1:
        raise ValueError(f"wanted one DIR, got {' '.join(folders) or 'none'}; `tljax replay --help` says more")
    original = folders[0].rstrip("/")
    config = change_config(read_config(original), [text for text in rest if text != folders[0]])
    workdir = values.workdir or f"{original}.replay"

    def work() -> int:
        found = replay_run(original, config, workdir)
        print(describe(found))
        return UNFINISHED if found.differences else 0

    return until_told(work)


def describe(found: Comparison) -> str:
    """Say how a replay compares with its run."""
    lines = []
    if found.causes:
        lines += ["not the same before the first step:", *(f"  {line}" for line in found.causes)]
    if found.differences:
        lines += ["not the same in the end:", *(f"  {line}" for line in found.differences)]
    else:
        lines.append(f"identical to the bit: {', '.join(found.compared)}")
    return "\n".join(lines)
