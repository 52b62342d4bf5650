"""Commands that are no runs: they write nothing but what they are told to."""

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from absl import flags

from tljax.ablation.study import read_study
from tljax.ablation.study_report import FORMATS, write_study_report
from tljax.arguments import make_flags
from tljax.bench import bench
from tljax.features.describe import describe_store
from tljax.features.export import export_store
from tljax.features.store import open_store
from tljax.launching import launch
from tljax.replaying import replay
from tljax.sweeping import sweep
from tljax.tasks.card import write_card
from tljax.tasks.export import export_model
from tljax.tasks.predict import predict_files
from tljax.tasks.prediction_files import STDOUT
from tljax.together import together
from tljax.weights.catalog import entries
from tljax.weights.describe import describe
from tljax.weights.sizes import key, sizes
from tljax.weights.source import open_source

_COLUMNS = ("name", "params M", "GFLOPs", "input", "layout", "source", "licence")


def models(arguments: Sequence[str]) -> int:
    """List the catalog: tljax models [PATTERN].

    PATTERN is a shell pattern, as 'resnet50.*', or a part of a name. Params are those without a classifier; GFLOPs are
    XLA's count for one image forward, a multiply-add as two.
    """
    values = make_flags()
    pattern = _positional(values, arguments, "PATTERN", least=0) or "*"
    known = sizes()
    rows: list[Sequence[str]] = [_COLUMNS]
    for name, item in entries(pattern).items():
        size = known[key(item.architecture, item.image_size)]
        source = item.source.rpartition("/")[2] if item.source.startswith("https:") else item.source
        numbers = (f"{size['params_m']:.1f}", f"{size['gflops']:.1f}", f"{item.image_size}")
        rows.append((name, *numbers, item.layout, source, item.licence))
    print(_table(rows))
    return 0


def inspect(arguments: Sequence[str]) -> int:
    """Say what weights are, building no array: tljax inspect FILE_OR_NAME [--num_classes=N] [--image_size=S] ...

    FILE_OR_NAME is a file, a folder, or a name as tljax.load takes it. --layout and --architecture choose where the
    file fits several; --num_classes and --image_size show what a new head and another size would change.
    """
    values = make_flags(num_classes=int, image_size=int, layout=str, architecture=str, revision=str)
    name = _positional(values, arguments, "FILE_OR_NAME")
    source = open_source(
        name if _is_name(name) else f"file:{name}", layout=values.layout, architecture=values.architecture,
        revision=values.revision,
    )  # fmt: skip
    print(describe(source, num_classes=values.num_classes, image_size=values.image_size))
    return 0


def export(arguments: Sequence[str]) -> int:
    """Write a model for others: tljax export RUN_OR_NAME --format=stablehlo|hf|timm|torchvision|npz --to=DIR.

    RUN_OR_NAME is the directory of a finished `tljax finetune` or `tljax soup`, or a name as tljax.load takes it.
    stablehlo is a program, from images to calibrated probabilities, that JAX runs without tljax; the others are the
    layouts of other projects.
    """
    values = make_flags(format=str, to=str)
    source = _positional(values, arguments, "RUN_OR_NAME")
    missing = [f"--{name}" for name in ("format", "to") if not values[name].value]
    if missing:
        raise ValueError(f"{' and '.join(missing)} missing: tljax export RUN_OR_NAME --format=FORMAT --to=DIR")
    print(export_model(source, format=values.format, to=values.to))
    return 0


def predict(arguments: Sequence[str]) -> int:
    """Predict image files: tljax predict RUN_OR_NAME IMAGES... [--to=FILE.csv|FILE.json] [--top=K] ...

    RUN_OR_NAME is the directory of a finished `tljax finetune` or `tljax soup`, whose probabilities are calibrated on
    its validation images, or a name as tljax.load takes it. IMAGES are files, folders (all images below them), or `-`
    for paths on standard input, one a line. Results go to standard output, or to --to; bad images are named on
    standard error, and in FILE.bad.csv or in the part "bad" of the JSON. --top=K writes the K most probable classes in
    place of all, --batch_size images are computed together, --num_workers processes decode.

    Ends with 0 where all images were predicted, 3 where some could not be, and 2 where nothing could be done.
    """
    values = make_flags(to=str, top=int, batch_size=int, num_workers=int)
    source, *images = values(list(arguments))[1:] or [""]
    if not images:
        raise ValueError("wanted RUN_OR_NAME and IMAGES; `tljax predict --help` says more")
    given = {"batch_size": values.batch_size, "num_workers": values.num_workers}
    settings = {name: value for name, value in given.items() if value is not None}
    return predict_files(
        source, images, to=values.to or STDOUT, top=values.top, lines=map(os.fsdecode, sys.stdin.buffer),
        settings=settings,
    )  # fmt: skip


def card(arguments: Sequence[str]) -> int:
    """Print the model card of a finished run, from its own records: tljax card RUN."""
    print(write_card(Path(_positional(make_flags(), arguments, "RUN"))), end="")
    return 0


def features(arguments: Sequence[str]) -> int:
    """Say what a feature store holds: tljax features DIR [--verify] [--export=npy|safetensors --to=DIR].

    DIR is the folder of a store, as `tljax extract` names it. --verify reads every byte and compares it with the
    checksums; --export writes the arrays for other programs, into a new folder.
    """
    values = make_flags(verify=bool, export=str, to=str)
    store = open_store(_positional(values, arguments, "DIR"))
    if (values.export is None) != (values.to is None):
        raise ValueError("--export and --to go together: tljax features DIR --export=npy|safetensors --to=DIR")
    print(describe_store(store))
    if values.verify:
        damaged = store.verify()
        if damaged:
            raise ValueError(
                f"{len(damaged)} files of {store.directory} do not hold what was written: {', '.join(damaged)}; delete "
                "them and extract again, which makes their shards only"
            )
        print(f"verified  {store.num_shards * len(store.arrays)} files hold what was written")
    if values.export is not None:
        for path in export_store(store, values.to, format=values.export):
            print(path)
    return 0


def report(arguments: Sequence[str]) -> int:
    """Compare the runs of a study: tljax report DIR... [--to=DIR] [--metric=NAME] [--task=NAME] [--format=html,md,...].

    DIR is the folder of a study, with its study.json, or one with run directories somewhere below it: what is compared
    then are the config fields in which they differ. --metric is a name in done.json (default: that of the study, or
    accuracy). --task chooses where there are runs of several tasks. --format is any of html, md, latex and csv, all of
    them where it is not given, and --to where they are written (default: DIR/report). docs/report.md says what the
    numbers mean.
    """
    values = make_flags(to=str, metric=str, task=str, format=str)
    directories = values(list(arguments))[1:]
    if not directories:
        raise ValueError("no DIR given: tljax report DIR... [--to=DIR]")
    if len(directories) > 1 and values.to is None:
        raise ValueError("several DIRs are compared; say where the report goes with --to=DIR")
    study = read_study(directories, metric=values.metric, task=values.task)
    formats = FORMATS if values.format is None else values.format.split(",")
    paths, summary = write_study_report(study, values.to or Path(directories[0], "report"), formats)
    print(f"{summary}\n\nreport: {paths[0]}")
    return 0


COMMANDS: dict[str, tuple[Callable[[Sequence[str]], int], str]] = {
    "launch": (launch, "run a task, or many, in a pool of processes here or as jobs of SLURM, and go on with them"),
    "sweep": (sweep, "plan or run a study: a grid of config fields and seeds, resumable, failures apart"),
    "together": (together, "what `tljax sweep` starts for runs that train in one program"),
    "replay": (replay, "run the config of a run directory again, and say whether it gives the same bits"),
    "models": (models, "list published weights: params, GFLOPs, input size, layout, source, licence"),
    "inspect": (inspect, "say what a file of weights is: layout, stages, shapes, what would be fresh or ignored"),
    "features": (features, "say what a feature store holds, compare it with its checksums, write it as npy"),
    "bench": (bench, "measure the input of a config, or the training step, on this machine"),
    "report": (report, "compare the runs of a study, or any runs: intervals, effects, charts and tables"),
    "export": (export, "write a fine-tuned run as StableHLO, for transformers, timm, torchvision or as npz"),
    "predict": (predict, "predict image files with a finished run, calibrated, the bad ones named"),
    "card": (card, "print the model card of a finished run, from its own records"),
}


def _positional(values: flags.FlagValues, arguments: Sequence[str], name: str, *, least: int = 1) -> str:
    """Parse the arguments, and return the one that is no flag."""
    rest = values(list(arguments))[1:]
    if not least <= len(rest) <= 1:
        raise ValueError(f"wanted one {name}, got {' '.join(rest) or 'none'}; `tljax {arguments[0]} --help` says more")
    return rest[0] if rest else ""


def _is_name(text: str) -> bool:
    """Tell a name from a path: names of the catalog have no folder, and no file of that name is here."""
    return text.startswith(("hf:", "timm:", "file:")) or not (Path(text).exists() or "/" in text)


def _table(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    is_number = [column in (1, 2, 3) for column in range(len(widths))]
    lines = []
    for row in rows:
        cells = (
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(row, widths, is_number, strict=True)
        )
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
