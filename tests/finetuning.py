"""A small fine-tuning job for tests: random images, a new head, everything a pure function of the step."""

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tljax.finetune import groups as grouping
from tljax.finetune import schedules
from tljax.finetune import step as stepping
from tljax.models.net import Net
from tljax.preprocess import Preprocess

BATCH_SIZE = 8
SCHEDULE = schedules.warmup_cosine(learning_rate=1e-2, warmup_steps=2, num_steps=10)


@dataclass(frozen=True, kw_only=True)
class Job:
    net: Net
    groups: grouping.Groups
    tx: Any
    preprocess: Preprocess
    params: dict[str, jax.Array]
    stats: dict[str, jax.Array]

    @property
    def body(self) -> functools.partial:
        return functools.partial(
            stepping.train_body,
            net=self.net,
            tx=self.tx,
            preprocess=self.preprocess,
            train_from=self.groups.train_from,
        )

    def start(self) -> tuple[stepping.TrainState, dict[str, jax.Array]]:
        trained, frozen = self.groups.split(self.params)
        return stepping.init_state(trained, self.stats, self.tx), frozen

    def place(self, mesh) -> tuple[stepping.TrainState, dict[str, jax.Array]]:
        return stepping.replicate(self.start(), mesh)

    def batches(self, start_step: int) -> Iterator[dict[str, np.ndarray]]:
        step = start_step
        while True:
            yield make_batch(step, self.preprocess.shape[0])
            step += 1


def make_job(
    net: Net, size: int, *, freeze: str | int, clip_norm: float | None = 0.5, rules: Sequence[tuple[str, str]] = ()
) -> Job:
    rng = np.random.default_rng(17)
    # Not the net's own init: a head that starts at zero sends no gradient into the body.
    params = {
        path: jnp.asarray(rng.normal(float(path.endswith("scale")), 0.2, leaf.shape), leaf.dtype)
        for path, leaf in sorted(net.shapes.items())
    }
    stats = {path: jnp.asarray(rng.uniform(0.5, 1.5, leaf.shape), leaf.dtype) for path, leaf in net.stat_shapes.items()}
    groups = grouping.make_groups(params, net.stages, freeze=freeze, rates={"body": 0.1}, rules=rules)
    tx = grouping.make_optimizer(groups, SCHEDULE, weight_decay=0.05, clip_norm=clip_norm)
    return Job(net=net, groups=groups, tx=tx, preprocess=Preprocess(size=size), params=params, stats=stats)


def make_batch(step: int, size: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng([17, step])
    return {
        "image": rng.integers(0, 256, (BATCH_SIZE, size, size, 3), np.uint8),
        "label": rng.integers(0, 2, BATCH_SIZE).astype(np.int32),
        "weight": rng.uniform(0.3, 1.0, BATCH_SIZE).astype(np.float32),
    }


def assert_same_bits(got: Any, wanted: Any) -> None:
    assert jax.tree.structure(got) == jax.tree.structure(wanted)
    for (path, one), other in zip(jax.tree.leaves_with_path(got), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_array_equal(np.asarray(one), np.asarray(other), err_msg=jax.tree_util.keystr(path))
