"""A small fine-tuning job for tests: random images, a new head, everything a pure function of the step."""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tljax import plain
from tljax.devices import make_mesh, place
from tljax.finetune import groups as grouping
from tljax.finetune import schedules
from tljax.finetune.devices import make_train_step
from tljax.finetune.forward import Forward
from tljax.finetune.optimizer import make_optimizer
from tljax.finetune.phases import Phase
from tljax.finetune.state import Fixed, TrainState, enter_phase, init_state
from tljax.finetune.step import originals, train_body
from tljax.models.net import Net
from tljax.preprocess import Preprocess

BATCH_SIZE = 8
SCHEDULE = schedules.warmup_cosine(learning_rate=1e-2, warmup_steps=2, num_steps=10)
ONE = make_mesh(jax.devices()[:1])


@dataclass(frozen=True, kw_only=True)
class Job:
    net: Net
    groups: grouping.Groups
    tx: Any
    preprocess: Preprocess
    params: dict[str, jax.Array]
    stats: dict[str, jax.Array]
    forward: Forward
    # Keyword arguments of the step.
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def body(self) -> functools.partial:
        return functools.partial(
            train_body, forward=self.forward, tx=self.tx, preprocess=self.preprocess, **self.settings
        )

    @property
    def averaged_stats(self) -> dict[str, jax.Array] | None:
        if "average_decay" not in self.settings:
            return None
        return {path: stat for path, stat in self.stats.items() if self.forward.moves(path)}

    def start(self) -> tuple[TrainState, Fixed]:
        trained, frozen = self.groups.split(self.params)
        state = init_state(trained, self.stats, self.tx, averaged_stats=self.averaged_stats)
        penalties = self.settings.get("penalties", ())
        original, original_stats = originals(self.forward, trained, penalties, self.params, self.stats)
        return state, Fixed(params=frozen, original=original, original_stats=original_stats)

    def place(self, mesh) -> tuple[TrainState, Fixed]:
        return place(self.start(), mesh)

    def enter(self, before: TrainState | None) -> TrainState:
        if before is None:
            return self.start()[0]
        return enter_phase(before, self.params, self.groups, self.tx, averaged_stats=self.averaged_stats)

    def open_fixed(self, state: TrainState) -> Fixed:
        fixed = self.start()[1]
        changed = {*state.trained, *state.settled}
        params = {path: value for path, value in self.params.items() if path not in changed}
        return place(dataclasses.replace(fixed, params=params), ONE)

    def frozen_hash(self, state: TrainState, fixed: Fixed) -> str:
        still = {path: stat for path, stat in state.stats.items() if not self.forward.moves(path)}
        return plain.fingerprint({**fixed.params, **state.settled, **still})

    def phase(self, num_steps: int, **changes: Any) -> Phase:
        settings: dict[str, Any] = {
            "num_steps": num_steps,
            "enter": self.enter,
            "open_fixed": self.open_fixed,
            "train_step": make_train_step(self.body, ONE),
            "batches": self.batches,
            "evaluate": None,
            "frozen_hash": self.frozen_hash,
            "learning_rate": SCHEDULE,
        }
        return Phase(**{**settings, **changes})

    def batches(self, start_step: int) -> Iterator[dict[str, np.ndarray]]:
        step = start_step
        while True:
            yield make_batch(step, self.preprocess.shape[0])
            step += 1


def make_job(
    net: Net,
    size: int,
    *,
    freeze: str | int | None = None,
    clip_norm: float | None = 0.5,
    rules: Sequence[tuple[str, str]] = (),
    stages_trained: Sequence[str] | None = None,
    only: str | None = None,
    deltas: dict[str, jax.Array] | None = None,
    forward: dict[str, Any] | None = None,
    **settings: Any,
) -> Job:
    rng = np.random.default_rng(17)
    # Not the net's own init: a head that starts at zero sends no gradient into the body.
    params = {
        path: jnp.asarray(rng.normal(float(path.endswith("scale")), 0.2, leaf.shape), leaf.dtype)
        for path, leaf in sorted(net.shapes.items())
    }
    stats = {path: jnp.asarray(rng.uniform(0.5, 1.5, leaf.shape), leaf.dtype) for path, leaf in net.stat_shapes.items()}
    params |= deltas or {}
    groups = grouping.make_groups(
        params, net.stages, freeze=freeze, stages_trained=stages_trained, only=only, rates={"body": 0.1}, rules=rules
    )
    return Job(
        net=net,
        groups=groups,
        tx=make_optimizer(groups, SCHEDULE, name="adamw", weight_decay=0.05, clip_norm=clip_norm),
        preprocess=Preprocess(size=size),
        params=params,
        stats=stats,
        forward=Forward(net=net, training=groups.trained_stages, **(forward or {})),
        settings=settings,
    )


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
