"""Norms that compute in float32 whatever dtype they are given, and give that dtype back.

NNX's own give the widest dtype of input, params and statistics: behind a BatchNorm, whose statistics are float32, a net
in bfloat16 would go on in float32. A mean in half precision would lose digits.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array

from tljax.models.kernels import PALLAS, Kernels, own_way


class BatchNorm(nnx.BatchNorm):
    """BatchNorm with torch's numbers, and the ReLU behind it where there is one.

    Flax counts torch's momentum of 0.1 from the other end. torch stores the unbiased variance of a batch and flax the
    biased one, which is nearer to what the batch itself was normalised by.

    Mean and variance come from one pass over the batch, as E[x^2] - E[x]^2 of differences from the running mean: of x
    itself that loses digits when the mean is large beside the spread.
    """

    def __init__(self, width: int, *, epsilon: float, rngs: nnx.Rngs):
        super().__init__(width, momentum=0.9, epsilon=epsilon, dtype=jnp.float32, rngs=rngs)

    def __call__(
        self, x: Array, use_running_average: bool | None = None, *, mask: Any = None, has_relu: bool = False,
        kernels: Kernels | None = None,
    ) -> Array:  # fmt: skip
        if use_running_average is None:
            raise ValueError(
                "BatchNorm is not told which statistics to take: wanted use_running_average=True for the running "
                "statistics, or False for those of the batch, which also moves the running ones"
            )
        if use_running_average:
            y = super().__call__(x, use_running_average, mask=mask)
        elif kernels is not None and own_way("batch_norm", kernels) == PALLAS and self.axis_name is None:
            return self._by_kernels(x, has_relu)
        else:
            y = self._by_batch(x.astype(jnp.float32))
        return (jax.nn.relu(y) if has_relu else y).astype(x.dtype)

    def _by_batch(self, x: Array) -> Array:
        near, over = jax.lax.stop_gradient(self.mean[...]), (None,) * (x.ndim - 1)
        difference, axes = x - near[over], tuple(range(x.ndim - 1))
        moments = jnp.stack([difference.mean(axes), jnp.square(difference).mean(axes)])
        if self.axis_name is not None:
            moments = jax.lax.pmean(moments, self.axis_name)
        mean, variance = near + moments[0], jnp.maximum(moments[1] - jnp.square(moments[0]), 0.0)
        self._move(mean, variance)
        assert self.scale is not None
        assert self.bias is not None
        factor = jax.lax.rsqrt(variance + self.epsilon) * self.scale[...].astype(jnp.float32)
        return (x - mean[over]) * factor[over] + self.bias[...].astype(jnp.float32)[over]

    def _by_kernels(self, x: Array, has_relu: bool) -> Array:
        from tljax.models.fused_batch_norm import batch_norm

        assert self.scale is not None
        assert self.bias is not None
        near = jax.lax.stop_gradient(self.mean[...])
        apply: Any = batch_norm
        y, mean, variance = apply(x, self.scale[...], self.bias[...], near, self.epsilon, has_relu)
        self._move(mean, variance)
        return y

    def _move(self, mean: Array, variance: Array) -> None:
        """Bring the running statistics nearer to those of a batch."""
        for running, of_batch in ((self.mean, mean), (self.var, variance)):
            running[...] = jax.lax.stop_gradient(self.momentum * running[...] + (1 - self.momentum) * of_batch)


class LayerNorm(nnx.LayerNorm):
    """LayerNorm without the fast variance."""

    def __init__(self, width: int, *, epsilon: float, rngs: nnx.Rngs):
        super().__init__(width, epsilon=epsilon, use_fast_variance=False, dtype=jnp.float32, rngs=rngs)

    def __call__(self, x: Array, *, mask: Any = None) -> Array:
        return super().__call__(x, mask=mask).astype(x.dtype)

    def beside(self, x: Array, *, kernels: Kernels) -> tuple[Array, Array]:
        """Return x, for a skip connection, and its norm."""
        if own_way("layer_norm", kernels) == PALLAS:
            from tljax.models.fused import skip_and_norm

            assert self.scale is not None
            assert self.bias is not None
            return skip_and_norm(x, self.scale[...], self.bias[...], self.epsilon)
        return x, self(x)
