"""The model that a finished fine-tuning run, or a soup of such runs, left behind."""

from pathlib import Path

from tljax import rundir
from tljax.tasks.inputs import CLASSES
from tljax.tasks.tuned import load_tuned
from tljax.weights import Pretrained


def restore(workdir: str | Path) -> Pretrained:
    """Return the pretrained net of a run with the params and statistics that it ended with, to compute in float32.

    Args:
        workdir: of a finished fine-tuning run or soup.

    Raises:
        FileNotFoundError: the directory holds no finished run.
        ValueError: it is a run of another task, or the pretrained weights have changed since.
    """
    workdir = Path(workdir)
    for name in (rundir.CONFIG, rundir.DONE, CLASSES):
        if not (workdir / name).is_file():
            raise FileNotFoundError(
                f"{workdir} has no {name}: it is no finished run of `tljax finetune` or `tljax soup`; the runs of "
                "`tljax transfer` are in folders inside of its own"
            )
    config = rundir.read_json(workdir / rundir.CONFIG)["config"]
    return load_tuned(workdir, config, tuple(rundir.read_json(workdir / CLASSES)))
