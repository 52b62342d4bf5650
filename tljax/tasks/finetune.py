"""Fine-tune: frozen early stages, late stages at a low rate, a new head at a higher one."""

import functools
import io
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

from tljax import plain, rundir
from tljax.data.splits import Split, save_split
from tljax.finetune.groups import Groups, format_partition, make_groups, make_optimizer, partition_table
from tljax.finetune.loop import fit
from tljax.finetune.schedules import warmup_cosine
from tljax.finetune.step import (
    TrainState,
    init_state,
    make_eval_step,
    make_mesh,
    make_train_step,
    predict,
    replicate,
    train_body,
)
from tljax.models.net import Net
from tljax.paths import merge, stage_of
from tljax.tasks.feed import Feed, open_feed
from tljax.tasks.inputs import SPLIT, Inputs, check_evaluation, evaluate, open_split
from tljax.tasks.running import run_task
from tljax.tasks.sections import call

NAME = "finetune"
# In the run directory.
CLASSES = "classes.json"

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """`config.finetune`: how long, how fast, how often.

    Args:
        epochs: passes over the training images.
        batch_size: images a step, over all devices.
        learning_rate: peak; `config.groups.rates` multiplies it per label.
        warmup_fraction: share of the steps in which the rate rises.
        views: augmented views an image, out of the 8 flips and quarter turns; 1 is no augmentation.
        use_prefix_cache: compute the activations of the frozen prefix once and train on them.
        checkpoint_every: steps between checkpoints.
        evaluate_every: steps between evaluations on the validation part.
    """

    epochs: int
    batch_size: int
    learning_rate: float
    warmup_fraction: float
    views: int
    use_prefix_cache: bool
    checkpoint_every: int
    evaluate_every: int

    def __post_init__(self) -> None:
        """Refuse numbers that no run can have."""
        counts = ("epochs", "batch_size", "views", "checkpoint_every", "evaluate_every")
        wrong = [f"{name} is {getattr(self, name)}" for name in counts if getattr(self, name) < 1]
        if wrong:
            raise ValueError(f"config.finetune: {', '.join(wrong)}; wanted at least 1")
        if self.batch_size % jax.device_count():
            raise ValueError(
                f"config.finetune.batch_size is {self.batch_size}, which {jax.device_count()} devices cannot share "
                f"evenly; wanted a multiple of {jax.device_count()}"
            )

    def num_steps(self, num_images: int) -> int:
        """Length of the run; images that do not fill a last batch come first in the next epoch.

        Raises:
            ValueError: the images do not fill one batch.
        """
        num_steps = self.epochs * num_images // self.batch_size
        if num_steps < 1:
            raise ValueError(
                f"config.finetune: {self.epochs} epochs of {num_images} training images do not fill one batch of "
                f"{self.batch_size}; lower batch_size"
            )
        return num_steps


def run(config: Mapping[str, Any], workdir: str | Path) -> dict[str, float]:
    """Fine-tune on one split and test; idempotent and resumable."""
    return run_task(NAME, work, config, workdir)


def work(config: Mapping[str, Any], workdir: Path, inputs: Inputs) -> dict[str, float]:
    """Train from the latest checkpoint on, and test."""
    recipe = call("finetune", config, Recipe)
    pretrained, source = inputs.pretrained, inputs.source
    call("evaluate", config, check_evaluation, source)
    split = open_split(config, source, workdir)
    groups = call("groups", config, make_groups, pretrained.params, pretrained.net.stages)
    num_steps = recipe.num_steps(len(split.train))
    schedule = warmup_cosine(
        learning_rate=recipe.learning_rate,
        warmup_steps=round(recipe.warmup_fraction * num_steps),
        num_steps=num_steps,
    )
    optimizer = call("optimizer", config, make_optimizer, groups, schedule)
    partition = partition_table(
        groups,
        pretrained.params,
        learning_rate=recipe.learning_rate,
        weight_decay=config["optimizer"]["weight_decay"],
    )
    log.info("%s", format_partition(partition))
    feed = open_feed(
        config,
        inputs,
        train_from=groups.train_from,
        batch_size=recipe.batch_size,
        views=recipe.views,
        use_prefix_cache=recipe.use_prefix_cache,
    )
    # After all that a mistake in the config can stop, which leaves the directory free for the mended one.
    save_split(workdir / SPLIT, split, source)
    rundir.write_json(workdir / "partition.json", partition)
    rundir.write_json(workdir / CLASSES, list(source.class_names))
    state, frozen = _train(config, recipe, groups, optimizer, schedule, inputs, split, feed, workdir)
    params = merge(jax.device_get(state.trained), jax.device_get(frozen))
    before, after = (_frozen_hash(groups, values) for values in (pretrained.params, params))
    if before != after:
        raise RuntimeError(f"frozen params moved: hash {before} before, {after} after; please report this")

    eval_step = make_eval_step(pretrained.net, pretrained.preprocess, _mesh(), start=feed.start)
    running = _of_running_stages(pretrained.net, params, feed.start)
    indices, probabilities = predict(eval_step, running, state.stats, feed.ordered(split.test))
    record = {
        "method": NAME,
        "features": f"from {groups.train_from}",
        "depth": None,
        "chosen": {},
        **call("evaluate", config, evaluate, source, indices, probabilities),
    }
    _save_predictions(workdir / "predictions.npz", indices, probabilities)
    rundir.write_json(workdir / "evaluations.json", [record])
    reused = {} if feed.store is None else {"share_reused": feed.store.share_reused}
    return {**record["metrics"], "num_trained": float(sum(value.size for value in state.trained.values())), **reused}


def _train(
    config: Mapping[str, Any],
    recipe: Recipe,
    groups: Groups,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    inputs: Inputs,
    split: Split,
    feed: Feed,
    workdir: Path,
) -> tuple[TrainState, dict[str, Any]]:
    """Train to the last step; return the state and the frozen params, all of them."""
    pretrained, source, mesh = inputs.pretrained, inputs.source, _mesh()
    trained, frozen = groups.split(pretrained.params)
    body = functools.partial(
        train_body,
        net=pretrained.net,
        tx=optimizer,
        preprocess=pretrained.preprocess,
        train_from=groups.train_from,
        start=feed.start,
    )
    eval_step = make_eval_step(pretrained.net, pretrained.preprocess, mesh, start=feed.start)
    # Stages before the start are not run, and their params stay on the host.
    running = replicate(_of_running_stages(pretrained.net, frozen, feed.start), mesh)

    def validate(state: TrainState) -> dict[str, float]:
        params = merge(state.trained, running)
        indices, probabilities = predict(eval_step, params, state.stats, feed.ordered(split.val))
        metrics = evaluate(source, indices, probabilities)["metrics"]
        return {f"val_{name}": value for name, value in metrics.items()}

    state = fit(
        replicate(init_state(trained, pretrained.stats, optimizer), mesh),
        running,
        make_train_step(body, mesh),
        lambda step: feed.training(split.train, config["seed"], step),
        num_steps=recipe.num_steps(len(split.train)),
        schedule=schedule,
        config=config,
        checkpoint_dir=workdir / "checkpoints",
        checkpoint_every=recipe.checkpoint_every,
        metrics_path=workdir / rundir.METRICS,
        evaluate=validate if len(split.val) else None,
        evaluate_every=recipe.evaluate_every,
    )
    return state, {**frozen, **running}


def _mesh() -> jax.sharding.Mesh:
    return make_mesh(jax.devices())


def _of_running_stages(net: Net, params: Mapping[str, Any], start: str | int) -> dict[str, Any]:
    first = net.depth(start)
    return {path: value for path, value in params.items() if net.depth(stage_of(path)) >= first}


def _frozen_hash(groups: Groups, params: Mapping[str, Any]) -> str:
    return plain.fingerprint({path: value for path, value in params.items() if not groups.is_trained(path)})


def _save_predictions(path: Path, indices: np.ndarray, probabilities: np.ndarray) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, index=indices, probabilities=probabilities)
    rundir.write_bytes(path, buffer.getvalue())
