"""The forward pass of training: which stages run, in which mode, on which params."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from tljax import paths
from tljax.finetune.lora import add_lora, is_lora
from tljax.models.kernels import Kernels
from tljax.models.net import Net
from tljax.models.noise import Regularise

Arrays = dict[str, Any]
Gather = Callable[[Arrays], Arrays]


@dataclass(frozen=True, kw_only=True)
class Forward:
    """How a net runs in a training step; hashable.

    Args:
        net: the network.
        training: stages with a trained param. Their BatchNorm uses and moves the statistics of the batch, and they
            leave out what `regularise` draws.
        adapting: other stages whose BatchNorm uses and moves the statistics of the batch; nothing is left out of them.
        freeze_statistics: BatchNorm uses the statistics that it has, of all stages, and moves none; what `regularise`
            draws is drawn all the same.
        start: first stage to run.
        lora_scaling: factor on low-rank deltas among the params; None where there are none.
        regularise: what is left out at random.
        compute_dtype: see `Net.apply`.
        use_remat: see `Net.apply`.
        kernels: see `Net.apply`.
    """

    net: Net
    training: tuple[str, ...]
    adapting: tuple[str, ...] = ()
    freeze_statistics: bool = False
    start: str | int = 0
    lora_scaling: float | None = None
    regularise: Regularise | None = None
    compute_dtype: str | None = None
    use_remat: bool = False
    kernels: Kernels | None = None

    @property
    def in_training_mode(self) -> frozenset[str]:
        """Stages that are trained, or adapt."""
        return frozenset((*self.training, *self.adapting))

    @property
    def following(self) -> frozenset[str]:
        """Stages whose BatchNorm uses and moves the statistics of the batch."""
        return frozenset() if self.freeze_statistics else self.in_training_mode

    def assemble(self, *parts: Mapping[str, Any]) -> Arrays:
        """Join dicts of params that share no path, and add the low-rank deltas to their kernels."""
        params: Arrays = {}
        for part in parts:
            params = paths.merge(params, part)
        return params if self.lora_scaling is None else add_lora(params, scaling=self.lora_scaling)

    def run(
        self,
        params: Mapping[str, Any],
        stats: Mapping[str, Any],
        x: jax.Array,
        keys: jax.Array | None,
        *,
        taps: Collection[str] = (),
        axis_name: str | None = None,
        gather: Gather | None = None,
    ) -> tuple[jax.Array, Arrays, Arrays]:
        """Run to the scores.

        Args:
            params: assembled, of all stages that run.
            stats: of all stages that run.
            x: images, or what the stage before `start` put out.
            keys: one for each example.
            taps: stages whose outputs are wanted too.
            axis_name: see `Net.apply`.
            gather: see `Net.apply`.

        Returns:
            Scores [b k], all statistics, and {stage: output} of the taps.

        Raises:
            ValueError: a tap is before `start`, where nothing runs.
        """
        settings = {
            "train_from": min((self.net.depth(stage) for stage in self.in_training_mode), default=None),
            "frozen": [stage for stage in self.net.stages if stage not in self.in_training_mode],
            "whole": [stage for stage in self.adapting if stage not in self.training],
            "freeze_statistics": self.freeze_statistics,
            "regularise": self.regularise,
            "keys": keys,
            "compute_dtype": self.compute_dtype,
            "use_remat": self.use_remat,
            "kernels": self.kernels,
            "axis_name": axis_name,
            "gather": gather,
        }
        return self._run_with_taps(params, dict(stats), x, [*taps, self.net.stages[-1]], settings)

    def run_to_taps(
        self, params: Mapping[str, Any], stats: Mapping[str, Any], x: jax.Array, *, taps: Sequence[str],
        gather: Gather | None = None,
    ) -> Arrays:  # fmt: skip
        """Run in inference mode to the last of the taps; return {stage: output} of them."""
        settings = {"compute_dtype": self.compute_dtype, "kernels": self.kernels, "gather": gather}
        return self._run_with_taps(params, dict(stats), x, taps, settings)[2]

    def moves(self, path: str) -> bool:
        """Tell whether the statistic at this path moves."""
        stage = paths.stage_of(path)
        return stage in self.following and self.net.depth(stage) >= self.net.depth(self.start)

    def _run_with_taps(
        self, params: Mapping[str, Any], stats: Arrays, x: jax.Array, taps: Sequence[str], settings: Mapping[str, Any]
    ) -> tuple[jax.Array, Arrays, Arrays]:
        begin, outputs = self.net.depth(self.start), {}
        early = [tap for tap in taps if self.net.depth(tap) < begin]
        if early:
            raise ValueError(
                f"stages {', '.join(early)} are before {self.start!r}, in the stored prefix, and are not run: set "
                "finetune.cache to 'never', or choose later stages"
            )
        for stop in sorted({self.net.depth(tap) + 1 for tap in taps}):
            x, stats = self.net.apply(params, stats, x, start=begin, stop=stop, **settings)
            outputs[self.net.stages[stop - 1]] = x
            begin = stop
        return x, stats, {tap: outputs[tap] for tap in taps}


def trained_kernels(trained: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the paths of the params that the trained ones change: themselves, or the kernel of a low-rank delta.

    In the order of `trained`, each once: sums over them are then the same to the bit in every process.
    """
    return tuple(dict.fromkeys(path.rsplit("/", 1)[0] if is_lora(path) else path for path in trained))


def example_keys(key: jax.Array, size: int, axis_name: str | None) -> jax.Array:
    """Return a key for each example, by its place in the whole batch."""
    first = 0 if axis_name is None else jax.lax.axis_index(axis_name) * size
    return jax.vmap(jax.random.fold_in, (None, 0))(key, first + jnp.arange(size))
