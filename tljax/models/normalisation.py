"""Norms that compute in float32 whatever dtype they are given, and give that dtype back.

NNX's own give the widest dtype of input, params and statistics: behind a BatchNorm, whose statistics are float32, a net
in bfloat16 would go on in float32. A mean in half precision would lose digits.
"""

from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array

from tljax.models.fused import layer_norm
from tljax.models.kernels import PALLAS, PLAIN


class BatchNorm(nnx.BatchNorm):
    """BatchNorm with torch's numbers; flax counts the momentum of 0.1 from the other end.

    torch stores the unbiased variance of a batch and flax the biased one, which is nearer to what the batch itself was
    normalised by. The fast variance, E[x^2] - E[x]^2, loses digits when the mean is large beside the spread.
    """

    def __init__(self, width: int, *, epsilon: float, rngs: nnx.Rngs):
        super().__init__(
            width, momentum=0.9, epsilon=epsilon, use_fast_variance=False, dtype=jnp.float32, rngs=rngs
        )  # fmt: skip

    def __call__(self, x: Array, use_running_average: bool | None = None, *, mask: Any = None) -> Array:
        return super().__call__(x, use_running_average, mask=mask).astype(x.dtype)


class LayerNorm(nnx.LayerNorm):
    """LayerNorm without the fast variance."""

    def __init__(self, width: int, *, epsilon: float, rngs: nnx.Rngs):
        super().__init__(width, epsilon=epsilon, use_fast_variance=False, dtype=jnp.float32, rngs=rngs)

    def __call__(self, x: Array, *, mask: Any = None, way: str = PLAIN) -> Array:
        if way == PALLAS:
            assert self.scale is not None
            assert self.bias is not None
            return layer_norm(x, self.scale[...], self.bias[...], self.epsilon)
        return super().__call__(x, mask=mask).astype(x.dtype)
