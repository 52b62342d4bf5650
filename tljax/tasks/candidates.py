"""What a selection compares: stages of models, each with its features and what it costs."""

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from tljax import plain, rundir
from tljax.data.sources import Source
from tljax.features.store import FeatureStore
from tljax.models.net import HEAD
from tljax.paths import stage_of
from tljax.tasks.evaluation import check_single_label
from tljax.tasks.extract import cached_features
from tljax.tasks.inputs import Inputs, open_data
from tljax.tasks.sections import call
from tljax.weights import Pretrained, load
from tljax.weights.sizes import forward_flops

# In the folder of a store: what running all images took.
SECONDS = "seconds.json"


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One of `config.candidates`: stages of one model, whose features come from one pass.

    Args:
        model: keyword arguments of `load`, but for the classes.
        taps: stages by depth, each of which is compared.
        pooling: of their outputs; see `features.extract.extract`.
        label: what tables call the model; None takes its name.
    """

    model: Mapping[str, Any]
    taps: Sequence[str]
    pooling: str
    label: str | None = None

    @property
    def title(self) -> str:
        """What tables call the model."""
        return self.model["name"] if self.label is None else self.label


@dataclass(frozen=True, kw_only=True)
class Candidates:
    """Data and candidates of a selection, the models loaded: all are in memory at once."""

    source: Source
    models: Sequence[tuple[Candidate, Pretrained]]

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What the names in the config stand for."""
        found = [Inputs(source=self.source, pretrained=pretrained).identity for _, pretrained in self.models]
        own = [{key: one[key] for key in ("params", "net", "preprocess")} for one in found]
        return {"images": found[0]["images"], "labels": found[0]["labels"], "candidates": dict(enumerate(own))}

    @cached_property
    def names(self) -> list[list[str]]:
        """What to call each stage of each model: no more than tells it from the others."""
        short = [[f"{one.title} {tap}" for tap in one.taps] for one, _ in self.models]
        full = [
            [f"{name} {one.pooling} {pretrained.preprocess.size} px" for name in names]
            for names, (one, pretrained) in zip(short, self.models, strict=True)
        ]
        times = Counter(name for names in short for name in names)
        return [
            [name if times[name] == 1 else longer for name, longer in zip(*pair, strict=True)]
            for pair in zip(short, full, strict=True)
        ]


def open_candidates(config: Mapping[str, Any], *, with_heads: bool) -> Candidates:
    """Open `config.data` and load every model of `config.candidates`.

    Args:
        config: the whole config.
        with_heads: keep the heads of the sources, whose scores LEEP wants.

    Raises:
        ValueError: a section does not fit, or two candidates are the same.
    """
    source = open_data(config)
    check_single_label(source, "`tljax select`")
    if not config["candidates"]:
        raise ValueError("config.candidates is empty; list dict(model=dict(name=...), taps=(...), pooling=...)")
    num_classes = None if with_heads else len(source.class_names)
    loaded: dict[str, Pretrained] = {}
    models = []
    for index, section in enumerate(config["candidates"]):
        name = f"candidates[{index}]"
        candidate = call(name, {name: section}, Candidate)
        key = plain.fingerprint(plain.as_read(candidate.model))
        if key not in loaded:
            loaded[key] = call(f"{name}.model", {f"{name}.model": candidate.model}, load, num_classes=num_classes)
        models.append((candidate, loaded[key]))
    found = Candidates(source=source, models=models)
    times = Counter(name for names in found.names for name in names)
    twice = [name for name, count in times.items() if count > 1]
    if twice:
        raise ValueError(f"config.candidates: {', '.join(twice)} is there more than once; remove it, or give a label")
    return found


@dataclass(frozen=True, kw_only=True)
class Features:
    """The features of one candidate model.

    Args:
        store: an array for each stage, and "head" where the model has a source head and LEEP is wanted.
        seconds: that making them took, compiling included; None where they were there and nothing says.
    """

    store: FeatureStore
    seconds: float | None


def candidate_features(
    candidate: Candidate, pretrained: Pretrained, source: Source, root: Path, *, with_head: bool, **settings: Any
) -> Features:
    """Return the features of all stages of one candidate from one pass, computing what the store lacks.

    Args:
        candidate: which stages.
        pretrained: the model.
        source: the data.
        root: folder of stores.
        with_head: keep the scores of the source's head too, if there is one.
        settings: "dtype" and "batch_size" of `cached_features`.
    """
    has_head = with_head and pretrained.net.num_classes > 0
    taps = (*candidate.taps, HEAD) if has_head else tuple(candidate.taps)
    inputs = Inputs(source=source, pretrained=pretrained)
    started = time.monotonic()
    # Of one view: nothing is drawn from the seed.
    store = cached_features(inputs, root, seed=0, taps=taps, pooling=candidate.pooling, views=1, **settings)
    elapsed, path = time.monotonic() - started, store.directory / SECONDS
    if store.share_reused < 1:
        # A part may have been there.
        rundir.write_json(path, {"seconds": elapsed / (1 - store.share_reused)})
    return Features(store=store, seconds=rundir.read_json(path)["seconds"] if path.exists() else None)


def stage_cost(pretrained: Pretrained, tap: str) -> dict[str, float]:
    """Return millions of params and GFLOPs of one image, up to and with a stage."""
    net = pretrained.net
    stop = net.depth(tap) + 1
    params = sum(
        leaf.size for stage in net.stages[:stop] for path, leaf in net.shapes.items() if stage_of(path) == stage
    )
    return {"params_m": params / 1e6, "gflops": forward_flops(net, pretrained.preprocess.shape, stop) / 1e9}
