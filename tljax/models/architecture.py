"""What a family of networks has to say of itself."""

from typing import Protocol, runtime_checkable

from flax import nnx


@runtime_checkable
class Architecture(Protocol):
    """A hashable description of a network, from which its stages are built."""

    @property
    def stages(self) -> tuple[str, ...]:
        """Stage names in order of depth, sorted as text within a family of stages; the last is "head"."""
        ...

    @property
    def prefix_tokens(self) -> int:
        """Number of tokens before the patches (class, registers); 0 for networks of feature maps."""
        ...

    @property
    def num_classes(self) -> int:
        """Number of classes of the head; 0 where it returns pooled features."""
        ...

    @property
    def branch_stages(self) -> tuple[str, ...]:
        """Stages with residual branches, in order of depth: those that stochastic depth is for."""
        ...

    @property
    def dropout_stages(self) -> tuple[str, ...]:
        """Stages that drop units."""
        ...

    @property
    def kernel_stages(self) -> tuple[str, ...]:
        """Stages that choose between ways to compute the same thing."""
        ...

    @property
    def head_width(self) -> int:
        """Channels of an attention head in `kernel_stages`, which read tokens then; 0 where they have no heads."""
        ...

    def build(self, stage: str, rngs: nnx.Rngs) -> nnx.Module:
        """Return the module of one stage.

        It is called as `module(x, is_training=...)`, with `noise=Noise(...)` if it is one of those that draw, and with
        `kernels=Kernels(...)` if it is one of `kernel_stages`, and then with `num_tokens=...` too if they have heads.
        `is_training` is for BatchNorm alone: what there is to draw is drawn wherever `noise` comes.
        """
        ...
