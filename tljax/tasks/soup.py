"""Soup: average the params of finished runs, or move along the line between two, and see how good that is.

Candidates are scored and tested in float32, in whatever their runs computed: runs may differ in that, and what
`tljax export` writes, which is what the numbers are to be of, computes in float32.
"""

import dataclasses
import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from tljax import plain, rundir
from tljax.ablation.charts import curve_chart
from tljax.ablation.picture import write_picture
from tljax.ablation.svg import span
from tljax.data.pipeline import ordered_batches
from tljax.data.sources import Source
from tljax.data.splits import Split, load_split, save_split
from tljax.devices import place
from tljax.finetune.averages import greedy_soup, interpolate, uniform_soup
from tljax.finetune.devices import make_eval_step, predict
from tljax.paths import did_you_mean
from tljax.tasks.calibrating import calibrate
from tljax.tasks.evaluation import as_probabilities, check_choice, check_evaluation, evaluate, main_metric
from tljax.tasks.facts import note_facts
from tljax.tasks.inputs import CLASSES, SPLIT, Inputs, open_split
from tljax.tasks.restore import restore
from tljax.tasks.running import run_task
from tljax.tasks.sections import call
from tljax.tasks.training import mesh_of
from tljax.tasks.tuned import TUNED, load_original, read_tuned, write_tuned
from tljax.weights import Pretrained

NAME = "soup"
PARTS = ("train", "val", "test")
KINDS = ("path", "uniform", "greedy")

log = logging.getLogger(__name__)

Arrays = dict[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Soup:
    """`config.soup`: which runs, and how they are joined.

    Args:
        runs: directories of finished fine-tuning runs of one net on one split. For "path" the first is where the line
            begins, such as a linear probe of the pretrained net, and the second where it ends.
        kind: "path" (WiSE-FT, arXiv:2109.01903), "uniform" or "greedy" (model soups, arXiv:2203.05482).
        alphas: shares of the second run along a path.
        batch_size: of the evaluation.
    """

    runs: Sequence[str]
    kind: str
    batch_size: int
    alphas: Sequence[float] = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)

    def __post_init__(self) -> None:
        """Refuse what cannot be joined."""
        if self.kind not in KINDS:
            raise ValueError(
                f"config.soup: no kind {self.kind!r}{did_you_mean(self.kind, KINDS)}; known: {', '.join(KINDS)}"
            )
        if len(self.runs) < 2 or (self.kind == "path" and len(self.runs) != 2):
            wanted = "two" if self.kind == "path" else "at least two"
            raise ValueError(f"config.soup: kind {self.kind!r} wants {wanted} runs, got {len(self.runs)}")
        if self.batch_size < 1 or self.batch_size % jax.device_count():
            raise ValueError(
                f"config.soup.batch_size is {self.batch_size}, wanted a multiple of the {jax.device_count()} devices"
            )
        if not self.alphas or not all(0 <= alpha <= 1 for alpha in self.alphas):
            raise ValueError(f"config.soup.alphas are {list(self.alphas)}, wanted numbers from 0 to 1")


def run(config: Mapping[str, Any], workdir: str | Path) -> dict[str, float]:
    """Join finished runs, choosing on the validation part and testing once; idempotent."""
    return run_task(NAME, work, config, workdir)


def work(config: Mapping[str, Any], workdir: Path, inputs: Inputs) -> dict[str, float]:
    """Score the candidates on the validation part, and test the one that is chosen."""
    soup = call("soup", config, Soup)
    call("evaluate", config, check_evaluation, inputs.source)
    split = open_split(config, inputs.source, workdir)
    if not len(split.val):
        raise ValueError("a soup is chosen on the validation part, and the split has none; set split.val_fraction")
    check_choice(inputs.source, split.val)
    models = [restore(run) for run in soup.runs]
    _check_alike(soup.runs, models, inputs.source, split)
    kitchen = _Kitchen(model=models[0], inputs=inputs, batch_size=soup.batch_size, mesh=mesh_of(config))
    original = load_original(Path(soup.runs[0]), config, inputs.num_classes)
    ingredients = [{**model.params, **model.stats} for model in models]
    if soup.kind == "path":
        first, second = ingredients
        candidates = {f"{alpha:g}": interpolate(first, second, alpha) for alpha in soup.alphas}
    elif soup.kind == "uniform":
        candidates = {"uniform": uniform_soup(ingredients)}
    else:
        best, kept = greedy_soup(ingredients, lambda arrays: kitchen.score(arrays, split.val))
        candidates = {"greedy of " + ", ".join(soup.runs[index] for index in kept): best}
    scores = {name: kitchen.score(arrays, split.val) for name, arrays in candidates.items()}
    metric = main_metric(inputs.source)
    chosen = max(scores, key=lambda name: scores[name])
    of_val, of_test = (kitchen.predict(candidates[chosen], part) for part in (split.val, split.test))
    probabilities = as_probabilities(inputs.source, of_test[1])
    record = call("evaluate", config, evaluate, inputs.source, of_test[0], probabilities)
    calibrate(workdir, inputs.source, of_val, of_test)
    note_facts(workdir, inputs, split)
    rundir.write_json(workdir / "soup.json", {f"val_{metric}": scores, "chosen": chosen, **record})
    save_split(workdir / SPLIT, split, inputs.source)
    rundir.write_json(workdir / CLASSES, list(inputs.source.class_names))
    _save(workdir, candidates[chosen], original)
    if soup.kind == "path":
        points = [(float(alpha), scores[f"{alpha:g}"]) for alpha in soup.alphas]
        title = f"validation {metric.replace('_', ' ')} from the first run to the second"
        domains = ((0.0, 1.0), span([score for _, score in points]))
        write_picture(workdir / "soup.svg", curve_chart(title, [points], 0, *domains, "share of the second run"))
    log.info("chosen on the validation part: %s", chosen)
    alone = {f"val_{metric}/{run}": kitchen.score(arrays, split.val)
             for run, arrays in zip(soup.runs, ingredients, strict=True)}  # fmt: skip
    return {**record["metrics"], f"val_{metric}": scores[chosen], **alone}


def _save(workdir: Path, arrays: Arrays, original: Pretrained) -> None:
    """Write what differs from the pretrained net, as a fine-tuning run does."""
    before = {**original.params, **original.stats}
    changed = {path: value for path, value in arrays.items() if not np.array_equal(value, before[path])}
    write_tuned(workdir, {path: np.asarray(value) for path, value in changed.items()}, original, None)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Kitchen:
    """Evaluates params and statistics of one net."""

    model: Pretrained
    inputs: Inputs
    batch_size: int
    mesh: Mesh

    @functools.cached_property
    def eval_step(self) -> Callable[..., jax.Array]:
        """The scores, compiled once for all candidates."""
        return make_eval_step(self.model.net, self.model.preprocess, self.mesh, probabilities=lambda scores: scores)

    def predict(self, arrays: Arrays, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        net, preprocess = self.model.net, self.model.preprocess
        params, stats = ({path: arrays[path] for path in paths} for paths in (net.shapes, net.stat_shapes))
        batches = ordered_batches(self.inputs.source, indices, preprocess, self.batch_size)
        params, stats = place((params, stats), self.mesh)
        return predict(self.eval_step, params, stats, batches, self.mesh)

    def score(self, arrays: Arrays, indices: np.ndarray) -> float:
        found, scores = self.predict(arrays, indices)
        source = self.inputs.source
        return evaluate(source, found, as_probabilities(source, scores))["metrics"][main_metric(source)]


def _check_alike(runs: Sequence[str], models: Sequence[Pretrained], source: Source, split: Split) -> None:
    """Refuse runs whose params do not mean the same, or that were trained on what others are tested on."""
    started = [read_tuned(Path(run) / TUNED)[0]["pretrained"] for run in runs]
    problems = []
    for run, model, start in zip(runs, models, started, strict=True):
        problems += [f"{run}: {text}" for text in plain.differences(_settings(models[0]), _settings(model))]
        if start != started[0]:
            problems.append(f"{run}: was trained from the params {start}, {runs[0]} from {started[0]}")
        if model.class_names != tuple(source.class_names):
            problems.append(f"{run}: classes are {model.class_names}, those of the data {tuple(source.class_names)}")
        own = load_split(Path(run) / SPLIT, source)
        parts = [part for part in PARTS if not np.array_equal(getattr(own, part), getattr(split, part))]
        if parts:
            problems.append(
                f"{run}: has other {' and '.join(parts)} images than this soup; set split and seed to those of the "
                "run, and train runs that differ in seed with one config.split.seed"
            )
    if problems:
        raise ValueError("the runs of a soup must be alike:\n  " + "\n  ".join(problems))


def _settings(model: Pretrained) -> dict[str, Any]:
    architecture: Any = model.net.architecture
    return {"net": dataclasses.asdict(architecture), "preprocess": model.preprocess.describe()}
