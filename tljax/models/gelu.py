"""The exact GELU at the price of one exponential, and its derivative at that of the same.

XLA computes the error function by long rational polynomials, in the forward pass and again in the backward pass.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array

# Abramowitz and Stegun 1964, formula 7.1.26: |error of erf| < 1.5e-7.
_P = 0.3275911
_COEFFICIENTS = (0.254829592, -0.284496736, 1.421413741, -1.453152027, 1.061405429)
# exp(-x**2 / 2) is 0 in float32 from there on, and x times 0 stays 0 where x is infinite.
_FAR = 15.0


@jax.custom_vjp
def gelu(x: Array) -> Array:
    """Return x times the normal distribution function of x, computed in float32.

    The backward pass computes its factor anew from x, which is all that is saved. The limits at the infinities are
    those of the function: 0 and infinity.
    """
    return gelu_value(x.astype(jnp.float32)).astype(x.dtype)


def gelu_value(x: Array) -> Array:
    """Return what `gelu` does, of float32 and without a backward pass of its own, which Pallas would not take."""
    return jnp.maximum(x, -_FAR) * normal_cdf(x)


def gelu_derivative(x: Array) -> Array:
    """Return the derivative of `gelu`, in float32."""
    wide = x.astype(jnp.float32)
    return normal_cdf(wide) + jnp.clip(wide, -_FAR, _FAR) * _normal_pdf(wide)


@jax.custom_jvp
def normal_cdf(x: Array) -> Array:
    """Return the distribution function of the normal distribution, to 1e-7; x is float32."""
    distance = jnp.abs(x)
    t = 1.0 / (1.0 + (_P / math.sqrt(2.0)) * distance)
    polynomial = jnp.zeros_like(t)
    for coefficient in reversed(_COEFFICIENTS):
        polynomial = (polynomial + coefficient) * t
    tail = 0.5 * polynomial * _bell(x)
    return jnp.where(x < 0, tail, 1.0 - tail)


# Not that of the polynomial, which is nearly as good, but for the kink of |x| at 0.
@normal_cdf.defjvp
def _normal_cdf_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (x,), (dx,) = primals, tangents
    return normal_cdf(x), _normal_pdf(x) * dx


def _normal_pdf(x: Array) -> Array:
    return _bell(x) * (1.0 / math.sqrt(2.0 * math.pi))


def _bell(x: Array) -> Array:
    near = jnp.clip(x, -_FAR, _FAR)
    return jnp.exp(-0.5 * near * near)


def _forward(x: Array) -> tuple[Array, Array]:
    return gelu(x), x


def _backward(x: Array, cotangent: Array) -> tuple[Array]:
    return ((cotangent.astype(jnp.float32) * gelu_derivative(x)).astype(x.dtype),)


gelu.defvjp(_forward, _backward)
