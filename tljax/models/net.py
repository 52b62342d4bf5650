"""A model as an ordered list of named stages over flat dicts of arrays.

With `layout`, which it alone uses, this is the only module that turns NNX modules into dicts and back.
"""

import functools
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from tljax import paths
from tljax.models.architecture import Architecture
from tljax.models.attention import fill
from tljax.models.kernels import Kernels
from tljax.models.layout import Layout, flatten, layout_of
from tljax.models.noise import Noise, Regularise, stage_noises
from tljax.models.pooling import pool

HEAD = "head"
NORM = "norm"

Arrays = dict[str, Any]


@dataclass(frozen=True)
class Net:
    """A network without arrays: hashable, so that compiled functions may close over it.

    Params and statistics live outside, in flat dicts whose paths begin with the stage name, such as
    `"block_03/attn/query/kernel"`.
    """

    architecture: Architecture

    @property
    def stages(self) -> tuple[str, ...]:
        """Stage names in order of depth."""
        return self.architecture.stages

    @property
    def prefix_tokens(self) -> int:
        """Number of tokens before the patches."""
        return self.architecture.prefix_tokens

    @property
    def num_classes(self) -> int:
        """Number of classes of the head; 0 where it returns pooled features."""
        return self.architecture.num_classes

    @cached_property
    def _layouts(self) -> dict[str, Layout]:
        return {stage: layout_of(self.architecture, stage) for stage in self.stages}

    def stage_shapes(self, stage: str) -> dict[str, tuple[int, ...]]:
        """Return the shape of every param and statistic of one stage, without building the others."""
        layout = layout_of(self.architecture, stage)
        return {path: tuple(leaf.get_value().shape) for path, leaf in {**layout.params, **layout.stats}.items()}

    @cached_property
    def shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Shape and dtype of every param."""
        return {path: leaf.get_value() for layout in self._layouts.values() for path, leaf in layout.params.items()}

    @cached_property
    def stat_shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Shape and dtype of every running statistic."""
        return {path: leaf.get_value() for layout in self._layouts.values() for path, leaf in layout.stats.items()}

    def depth(self, stage: str | int) -> int:
        """Return the index of a stage given by name or index; `len(stages)` is past the end.

        Raises:
            ValueError: there is no such stage.
        """
        if isinstance(stage, str):
            if stage not in self.stages:
                raise ValueError(
                    f"no stage {stage!r}{paths.did_you_mean(stage, self.stages)}; stages are {', '.join(self.stages)}"
                )
            return self.stages.index(stage)
        if not 0 <= stage <= len(self.stages):
            raise ValueError(f"stage index {stage} is outside 0..{len(self.stages)}")
        return stage

    def init(self, key: jax.Array) -> tuple[Arrays, Arrays]:
        """Draw fresh params and statistics, each stage from its own fold of the key."""
        params: Arrays = {}
        stats: Arrays = {}
        for index, stage in enumerate(self.stages):
            module = self.architecture.build(stage, nnx.Rngs(jax.random.fold_in(key, index)))
            params |= flatten(stage, module, nnx.Param)
            stats |= flatten(stage, module, nnx.BatchStat)
        return params, stats

    def apply(
        self,
        params: Mapping[str, Any],
        stats: Mapping[str, Any],
        x: jax.Array,
        *,
        start: str | int = 0,
        stop: str | int | None = None,
        train_from: str | int | None = None,
        frozen: Collection[str] = (),
        whole: Collection[str] = (),
        freeze_statistics: bool = False,
        regularise: Regularise | None = None,
        keys: jax.Array | None = None,
        compute_dtype: str | None = None,
        use_remat: bool = False,
        kernels: Kernels | None = None,
        axis_name: str | None = None,
        gather: Callable[[Arrays], Arrays] | None = None,
    ) -> tuple[jax.Array, Arrays]:
        """Run the stages from `start` up to, not including, `stop`.

        Args:
            params: at least the params of the stages that run.
            stats: at least the statistics of the stages that run.
            x: normalised images [b h w c] when `start` is 0, else the output of the stage before `start`.
            start: first stage to run, by name or index.
            stop: stage to stop before; None runs to the end and returns class scores [b k].
            train_from: first stage in training mode; None runs all in inference mode, where running
                statistics are used and do not move.
            frozen: stages behind `train_from` that run in inference mode all the same.
            whole: stages in training mode that leave nothing out.
            freeze_statistics: running statistics are used in training mode too, and do not move; what `regularise`
                leaves out there, and `use_remat`, stay as they are.
            regularise: what the other stages in training mode leave out; None for nothing.
            keys: [b] one key an example, for `regularise`.
            compute_dtype: dtype of every layer but the head, such as "bfloat16"; None is that of params and images.
                Means, variances and softmax are taken in float32 all the same, statistics stay float32, and the head
                computes in float32.
            use_remat: compute the inside of each stage in training mode again in the backward pass, and keep only
                what goes from stage to stage.
            kernels: how the stages compute that have a choice; None for `Kernels()`, what suits the device.
            axis_name: mapped axis that the batch is spread over, under `jax.pmap`; BatchNorm in training mode uses the
                statistics of the whole batch there too.
            gather: brings the params of a stage together where they lie spread over devices, once they have the
                dtype to compute in.

        Returns:
            The output of the last stage that ran, and `stats`, those of the stages in training mode updated unless
            they are frozen.

        Raises:
            ValueError: an unknown stage, `start` after `stop`, or params or statistics of a stage that
                are missing, unknown or of the wrong shape; all in one message.
        """
        first = self.depth(start)
        last = len(self.stages) if stop is None else self.depth(stop)
        if first >= last:
            raise ValueError(f"nothing to run: start {start!r} is not before stop {stop!r}")
        training = len(self.stages) if train_from is None else self.depth(train_from)
        for stage in (*frozen, *whole):
            self.depth(stage)
        noises = stage_noises(self.architecture, regularise, keys)
        running = self.stages[first:last]
        self._check(running, params, stats)
        updated: Arrays = dict(stats)
        kernels, head_width, num_tokens = kernels or Kernels(), self.architecture.head_width, None
        for index, stage in enumerate(running, first):
            is_training = index >= training and stage not in frozen
            settings: dict[str, Any] = {"is_training": is_training and not freeze_statistics}
            if stage in self.architecture.kernel_stages:
                settings["kernels"] = kernels
            if stage in self.architecture.kernel_stages and head_width:
                if num_tokens is None:
                    # Once for all of them: to fill and cut in each costs more than the tokens.
                    num_tokens, x = x.shape[1], fill(x, kernels, compute_dtype or x.dtype, head_width)
                settings["num_tokens"] = num_tokens
            elif num_tokens is not None:
                x, num_tokens = x[:, :num_tokens], None
            run: Any = functools.partial(
                self._run, stage, settings=settings, compute_dtype=compute_dtype, axis_name=axis_name, gather=gather
            )
            if use_remat and is_training:
                run = jax.checkpoint(run)
            own = self._layouts[stage].choose(params, stats)
            x, moved = run(*own, x, noises.get(stage) if is_training and stage not in whole else None)
            updated |= moved
        return x if num_tokens is None else x[:, :num_tokens], updated

    def _run(
        self, stage: str, params: Arrays, stats: Arrays, x: jax.Array, noise: Noise | None, *,
        settings: Mapping[str, Any], compute_dtype: str | None, axis_name: str | None,
        gather: Callable[[Arrays], Arrays] | None,
    ) -> tuple[jax.Array, Arrays]:  # fmt: skip
        """Run one stage; return its output, and its new statistics where they move."""
        if compute_dtype is not None:
            dtype = jnp.dtype("float32" if stage == HEAD else compute_dtype)
            params, x = jax.tree.map(lambda array: array.astype(dtype), (params, x))
        if gather is not None:
            params = gather(params)
        module = self._layouts[stage].bind(params, stats)
        if axis_name is not None:
            module.set_attributes(nnx.BatchNorm, axis_name=axis_name, raise_if_not_found=False)
        # Only stages that draw, or choose, know the words.
        y = module(x, **settings, **({} if noise is None else {"noise": noise}))
        return y, flatten(stage, module, nnx.BatchStat) if settings["is_training"] else {}

    def pool(self, y: jax.Array, kind: str) -> jax.Array:
        """Reduce a stage's output to one vector an image.

        Args:
            y: tokens [b n d] or a feature map [b h w c]; features [b d] of a stage that pools are returned as they are.
            kind: "cls" (class token), "mean" or "max" (of patches or positions), "cls_mean" (class token and mean,
                concatenated), or "cls_distillation" (mean of these two tokens).

        Raises:
            ValueError: an unknown kind, or the class token of a network that has none.
        """
        return pool(y, kind, self.prefix_tokens)

    def _check(self, running: tuple[str, ...], params: Mapping[str, Any], stats: Mapping[str, Any]) -> None:
        problems = []
        for given, shapes in ((params, self.shapes), (stats, self.stat_shapes)):
            wanted = {path: leaf for path, leaf in shapes.items() if paths.stage_of(path) in running}
            present = {path: leaf for path, leaf in given.items() if paths.stage_of(path) in running}
            problems += paths.diff(present, wanted)
        if problems:
            raise ValueError(f"params do not fit stages {running[0]}..{running[-1]}:\n  " + "\n  ".join(problems))
