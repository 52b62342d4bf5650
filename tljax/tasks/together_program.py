"""The program of a group of runs: what it reads, what it takes of memory, and how many runs fit into it."""

import logging
import math
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from tljax.data.sampling import ExampleStream
from tljax.features.store import memory_bytes
from tljax.finetune.devices import eval_body
from tljax.finetune.stacked import (
    MOST_STEPS,
    RUNS,
    bytes_of,
    make_predictor,
    make_program,
    one_run,
    put_runs,
    put_shared,
    runs_mesh,
    stack,
)
from tljax.finetune.state import Fixed, TrainState
from tljax.tasks.ahead import compile_step
from tljax.tasks.feed import Feed
from tljax.tasks.together_members import Member, recipe_of
from tljax.tasks.training import Result, enter_first, fixed_of

# What a device, or a machine without one, can be filled with, and what of that a stored prefix may take.
_SHARE, _STORE_SHARE = 0.5, 0.5

log = logging.getLogger(__name__)


def budget_bytes(budget_gb: float | None, num_sharing: int) -> int:
    """Return what the runs may take together: so much, or half of the memory of the device, or of the machine.

    Args:
        budget_gb: in units of 10^9 bytes; None for that half.
        num_sharing: processes that have a part each of that half.
    """
    if budget_gb is not None:
        return int(budget_gb * 1e9)
    stats = jax.local_devices()[0].memory_stats()
    limit = stats["bytes_limit"] if stats else memory_bytes()
    return int(_SHARE * limit / num_sharing)


class Program:
    """A compiled program for a number of runs, and the arrays that all of them read.

    A class because what is compiled and brought to the devices serves one chunk of a group after the other.

    Args:
        member: any of the runs.
        feed: of the stored prefix.
        num_runs: how many train side by side.
        is_resident: whether the stored prefix lies on the devices; else the batches come from the host, step by step.
    """

    def __init__(self, member: Member, feed: Feed, num_runs: int, *, is_resident: bool):
        assert feed.store is not None
        self.plan, self.store, self.num_runs, self.is_resident = member.plan, feed.store, num_runs, is_resident
        self.mesh = runs_mesh(num_runs)
        # Activations of many steps at once would fill the memory that they are kept out of.
        self.most_steps = MOST_STEPS if is_resident else 1
        state = jax.eval_shape(lambda: enter_first(self.plan))
        self.fixed: Fixed = put_shared(fixed_of(self.plan, state), self.mesh)
        # From shapes alone: so many states need not fit into memory.
        held = jax.tree.map(self._of_runs, (state, member.numbers))
        orders, count = self._orders([member] * num_runs, 0, 0), jnp.zeros((), jnp.int32)
        step = make_program(one_run(recipe_of(member)), self.mesh)
        self.compiled = compile_step(step, (*held, self.fixed, self._bank_shapes(), orders, count))

    def _of_runs(self, leaf: Any) -> jax.ShapeDtypeStruct:
        sharding = NamedSharding(self.mesh, P(RUNS))
        return jax.ShapeDtypeStruct((self.num_runs, *leaf.shape), leaf.dtype, sharding=sharding)

    @cached_property
    def needed_bytes(self) -> int:
        """What the compiled program takes at its peak, on all devices that share it, by the account of XLA."""
        step: Any = self.compiled.step
        found = step.memory_analysis()
        sizes = found.argument_size_in_bytes + found.output_size_in_bytes + found.temp_size_in_bytes
        return int(self.mesh.size * (sizes - found.alias_size_in_bytes))

    def describe(self) -> dict[str, Any]:
        """Return what a record of the run says of the program."""
        return {
            "runs": self.num_runs,
            "devices": self.mesh.size,
            "is_resident": self.is_resident,
            "needed_gb": self.needed_bytes / 1e9,
            "lower_s": self.compiled.lower_s,
            "compile_s": self.compiled.compile_s,
        }

    @cached_property
    def shared_bytes(self) -> int:
        """What of that does not depend on the number of runs."""
        return bytes_of((self.fixed, self._bank_shapes()))

    @cached_property
    def bank(self) -> dict[str, Any]:
        """What batches are taken from; see `stacked.take`."""
        source = self.plan.inputs.source
        bank: dict[str, Any] = {"label": source.labels if source.targets is None else source.targets}
        if self.is_resident:
            bank["activation"] = self.store.read(next(iter(self.store.arrays)))
        return put_shared(bank, self.mesh)

    def _bank_shapes(self) -> dict[str, Any]:
        source = self.plan.inputs.source
        label = source.labels if source.targets is None else source.targets
        shapes = {"label": jax.ShapeDtypeStruct(label.shape, label.dtype)}
        if self.is_resident:
            (row,) = self.store.arrays.values()
            shapes["activation"] = jax.ShapeDtypeStruct((self.store.num_rows, *row.shape), row.dtype)
        return jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(self.mesh, P())),
            shapes,
        )

    def initial(self, members: Sequence[Member]) -> TrainState:
        """Return the states of runs before their first step, stacked, on the devices."""
        return put_runs(stack([enter_first(member.plan) for member in members]), self.mesh)

    def advance(
        self, members: Sequence[Member], state: TrainState, numbers: Any, first: int, last: int
    ) -> tuple[TrainState, dict[str, np.ndarray]]:
        """Take the steps from `first` up to `last`; the state is donated.

        Returns:
            The states, and {metric: [steps runs]}.
        """
        count = jax.device_put(np.int32(last - first))
        orders = self._orders(members, first, last)
        state, found = self.compiled.step(state, numbers, self.fixed, self.bank, orders, count)
        return state, {name: values[: last - first] for name, values in jax.device_get(found).items()}

    def _orders(self, members: Sequence[Member], first: int, last: int) -> dict[str, Any]:
        """Say which images, and which of their views, the steps show to each run; filled up with the first of all."""
        size, most = self.plan.recipe.batch_size, self.most_steps
        index = np.zeros((most, len(members), size), np.int64)
        view = np.zeros_like(index)
        for place, member in enumerate(members):
            shown = self._stream(member).take(np.arange(first * size, last * size))
            index[: last - first, place], view[: last - first, place] = (part.reshape(-1, size) for part in shown)
        return put_runs(self._order(index, view), self.mesh, axis=1)

    def _stream(self, member: Member) -> ExampleStream:
        return ExampleStream(
            indices=member.split.train, labels=member.plan.inputs.source.labels, seed=member.plan.config["seed"],
            sampling=member.plan.recipe.sampling, views=self.store.ingredients["views"],
        )  # fmt: skip

    def _order(self, index: np.ndarray, view: np.ndarray) -> dict[str, np.ndarray]:
        row = index * self.store.ingredients["views"] + view
        order = {"index": index.astype(np.int32)}
        if self.is_resident:
            return {**order, "row": row.astype(np.int32)}
        found = self.store.rows(next(iter(self.store.arrays)), row.ravel())
        return {**order, "activation": found.reshape(*row.shape, *found.shape[1:])}

    def score(self, trained: Any, stats: Any, parts: Sequence[np.ndarray]) -> np.ndarray:
        """Return the scores [runs n k] that each run gives the images of its part, all parts of one length."""
        size, images = self.plan.recipe.batch_size, np.stack(parts)
        if not images.shape[1]:
            return np.zeros((len(parts), 0, self.plan.inputs.num_classes), np.float32)
        found = []
        for start in range(0, images.shape[1], size):
            places = np.minimum(np.arange(start, start + size), images.shape[1] - 1)
            index = images[:, places].astype(np.int64)
            order = put_runs(self._order(index, np.zeros_like(index)), self.mesh)
            found.append(jax.device_get(self._predictor(trained, stats, self.fixed, self.bank, order)))
        return np.concatenate(found, axis=1)[:, : images.shape[1]]

    def score_results(self, results: Sequence[Result], parts: Sequence[np.ndarray]) -> np.ndarray:
        """Return what `score` does, from results on the host."""
        trained, stats = (stack([getattr(result, name) for result in results]) for name in ("trained", "stats"))
        trained, stats = put_runs((trained, stats), self.mesh)
        return self.score(trained, stats, parts)

    @cached_property
    def _predictor(self) -> Any:
        forward = self.plan.forward
        evaluate = eval_body(
            forward.net, self.plan.inputs.pretrained.preprocess, start=forward.start,
            compute_dtype=forward.compute_dtype, kernels=forward.kernels,
            probabilities=lambda scores: scores,
        )  # fmt: skip
        return make_predictor(forward.assemble, evaluate)


def can_be_resident(feed: Feed, budget: int) -> bool:
    """Tell whether a stored prefix leaves enough of the memory to the runs when it lies there too."""
    assert feed.store is not None
    return feed.store.num_bytes <= _STORE_SHARE * budget


def fit_program(members: Sequence[Member], feed: Feed, budget: int, most_runs: int | None) -> Program:
    """Compile a program for as many of the runs as fit into memory; the rest then takes its turn after them.

    Args:
        members: all of them.
        feed: of the stored prefix.
        budget: what the program may take, in bytes.
        most_runs: that may train side by side, whatever fits; None for all.

    Raises:
        MemoryError: one run alone does not fit.
    """
    width, is_resident = _even(len(members), most_runs or len(members)), can_be_resident(feed, budget)
    while True:
        program = Program(members[0], feed, width, is_resident=is_resident)
        needed, shared = program.needed_bytes, program.shared_bytes
        log.info(
            "%d of %d runs in one program: %.3g GB of %.3g GB, %.3g of it shared; stored prefix %s; compiled in %.1f s",
            width, len(members), needed / 1e9, budget / 1e9, shared / 1e9,
            "on the device" if is_resident else "on the host", program.compiled.compile_s,
        )  # fmt: skip
        if needed <= budget:
            return program
        if width == 1:
            raise MemoryError(f"one run takes {needed / 1e9:.3g} GB, and the budget is {budget / 1e9:.3g} GB")
        fitting = int((budget - shared) / max(1, (needed - shared) / width))
        width = _even(len(members), min(width - 1, max(1, fitting)))


def _even(num_runs: int, most: int) -> int:
    """Return the size of equal chunks of runs, as far as they can be equal: chunks of one size share one program."""
    return math.ceil(num_runs / math.ceil(num_runs / most))
