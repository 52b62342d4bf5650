"""The solver behind `logistic`: L-BFGS in the eigenbasis of the features, in float32, compiled once for all strengths.

Rotating the features does not change the objective, and in the eigenbasis of their covariance its curvature is nearly
diagonal: about mean p (1 - p) * eigenvalue + strength. With that diagonal as its first guess L-BFGS needs few steps.
A step costs two products with the data: along the search direction the scores are linear, so the trials of the line
search need none.

Source: Nocedal and Wright, Numerical Optimization (2006), algorithm 7.4.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

_PAIRS = 10
_MAX_STEPS = 2000
_MAX_TRIALS = 20
# A line search ends where the slope has fallen to this share of what it was.
_SLOPE = 0.1
# The curvature of a class without examples is taken no smaller than this share of the largest: its true one vanishes.
_LEAST_CURVATURE = 1e-4
# An objective below counts as this much, so that a fit to a single class ends.
_LEAST_OBJECTIVE = 1e-7


class Problem(NamedTuple):
    """Examples in the basis of `rotate`; padding has weight 0, the weights sum to 1."""

    design: Float[Array, "n columns"]  # rotated features, and a column of ones
    eigenvalues: Float[Array, " columns"]
    is_true: Bool[Array, "n k"]
    weights: Float[Array, " n"]


class _State(NamedTuple):
    params: Array  # columns c: the last row is the intercepts; c is 1 for two classes, else k
    margins: Array  # n k: score of a class - score of the true class
    objective: Array
    gradient: Array  # columns c
    inverse: Array  # columns c: diagonal guess of the inverse curvature
    moves: Array  # pairs columns c: the last steps, oldest first; 0 where there is none yet
    turns: Array  # pairs columns c: the change of the gradient over them
    num_steps: Array
    can_descend: Array


@jax.jit
def rotate(
    z: Float[Array, "n d"], weights: Float[Array, " n"]
) -> tuple[Float[Array, "n columns"], Float[Array, "d r"], Float[Array, " columns"]]:
    """Turn features into the eigenbasis of their covariance.

    Returns:
        The rotated features with a column of ones; the rotation, with r = min(n, d); the eigenvalues and 1.
    """
    n, d = z.shape
    # With few examples, first to the space that they span: the n by n Gram matrix would lose half the digits.
    span = jnp.linalg.qr(z.T)[0] if n < d else None
    inside = z if span is None else z @ span
    eigenvalues, rotation = jnp.linalg.eigh(inside.T @ (weights[:, None] * inside))
    design = jnp.concatenate([inside @ rotation, jnp.ones((n, 1), z.dtype)], axis=1)
    eigenvalues = jnp.concatenate([jnp.maximum(eigenvalues, 0), jnp.ones(1, z.dtype)])
    return design, rotation if span is None else span @ rotation, eigenvalues


@jax.jit
def solve(
    problem: Problem,
    params: Float[Array, "columns c"],
    guess: Float[Array, "columns c"],
    strength: Float[Array, ""],
    tolerance: Float[Array, ""],
) -> tuple[Float[Array, "columns c"], Float[Array, ""]]:
    """Minimise mean cross-entropy + strength / 2 * the squared params without the intercepts.

    Args:
        problem: the examples.
        params: to start from.
        guess: to start from where the objective is lower there.
        strength: of the penalty.
        tolerance: of the share below, where to stop.

    Returns:
        The params; the share of the objective that can still be gained, by half the squared preconditioned gradient.
    """
    penalties = jnp.full_like(params, strength).at[-1].set(0)

    def is_open(state: _State) -> Array:
        return (_gain(state) > tolerance) & state.can_descend & (state.num_steps < _MAX_STEPS)

    start = _begin(problem, penalties, params, guess)
    state = jax.lax.while_loop(is_open, lambda state: _advance(problem, penalties, state), start)
    return state.params, _gain(state)


@jax.jit
def solve_each(
    problem: Problem,
    params: Float[Array, "columns k"],
    guess: Float[Array, "columns k"],
    strength: Float[Array, ""],
    tolerance: Float[Array, ""],
) -> tuple[Float[Array, "columns k"], Float[Array, " k"]]:
    """Solve as many problems of two classes on the same features: each column of `is_true` against its opposite."""

    def solve_one(is_true: Array, params: Array, guess: Array) -> tuple[Array, Array]:
        against = problem._replace(is_true=jnp.stack([~is_true, is_true], axis=1))
        solved, gain = solve(against, params[:, None], guess[:, None], strength, tolerance)
        return solved[:, 0], gain

    return jax.vmap(solve_one, in_axes=1, out_axes=(1, 0))(problem.is_true, params, guess)


def _begin(problem: Problem, penalties: Array, params: Array, guess: Array) -> _State:
    """Start from the guess where it has the lower objective, else, and where it has none, from the params."""
    starts = jnp.stack([params, guess])
    margins = jax.vmap(lambda start: _margins(problem, start))(starts)
    losses = jax.vmap(lambda margin: _losses(problem, margin)[0])(margins)
    objectives = losses @ problem.weights + 0.5 * jnp.sum(penalties[None] * starts**2, axis=(1, 2))
    is_guess = objectives[1] < objectives[0]
    params, margins = (jnp.where(is_guess, pair[1], pair[0]) for pair in (starts, margins))
    objective, gradient, inverse = _evaluate(problem, penalties, params, margins)
    empty = jnp.zeros((_PAIRS, *params.shape), params.dtype)
    return _State(params, margins, objective, gradient, inverse, empty, empty, jnp.int32(0), jnp.bool_(True))


def _advance(problem: Problem, penalties: Array, state: _State) -> _State:
    """Take a step of L-BFGS."""
    direction = -_precondition(state)
    slope = jnp.vdot(direction, state.gradient)
    change = _margins(problem, direction)
    length = _line_search(problem, penalties, state, direction, change)
    params = state.params + length * direction
    margins = state.margins + length * change
    objective, gradient, inverse = _evaluate(problem, penalties, params, margins)
    return _State(
        params=params,
        margins=margins,
        objective=objective,
        gradient=gradient,
        inverse=inverse,
        moves=jnp.concatenate([state.moves[1:], length * direction[None]]),
        turns=jnp.concatenate([state.turns[1:], (gradient - state.gradient)[None]]),
        num_steps=state.num_steps + 1,
        can_descend=(slope < 0) & (length > 0),
    )


def _gain(state: _State) -> Array:
    gain = 0.5 * jnp.vdot(state.gradient, state.inverse * state.gradient)
    return gain / jnp.maximum(state.objective, _LEAST_OBJECTIVE)


def _margins(problem: Problem, params: Array) -> Array:
    scores = problem.design @ params
    if scores.shape[1] < problem.is_true.shape[1]:  # two classes: the first one's score is 0
        scores = jnp.pad(scores, ((0, 0), (1, 0)))
    return scores - jnp.sum(scores, axis=1, keepdims=True, where=problem.is_true)


def _losses(problem: Problem, margins: Array) -> tuple[Array, Array]:
    """Return cross-entropies [n], and probabilities [n k] with a 0 for the true class.

    Leaving the true class out keeps the digits of examples that are fitted almost perfectly.
    """
    top = jnp.max(margins, axis=1, keepdims=True)
    powers = jnp.where(problem.is_true, 0.0, jnp.exp(margins - top))
    others = jnp.sum(powers, axis=1, keepdims=True)
    losses = top + jnp.log1p(others + jnp.expm1(-top))
    return losses[:, 0], powers / (others + jnp.exp(-top))


def _evaluate(problem: Problem, penalties: Array, params: Array, margins: Array) -> tuple[Array, Array, Array]:
    """Return the objective, its gradient and the diagonal guess of the inverse curvature."""
    losses, wrong = _losses(problem, margins)
    residual = jnp.where(problem.is_true, -jnp.sum(wrong, axis=1, keepdims=True), wrong)[:, -params.shape[1] :]
    objective = problem.weights @ losses + 0.5 * jnp.vdot(penalties, params**2)
    gradient = problem.design.T @ (problem.weights[:, None] * residual) + penalties * params
    spread = problem.weights @ (jnp.abs(residual) * (1 - jnp.abs(residual)))  # c: mean p (1 - p)
    spread = jnp.maximum(spread, _LEAST_CURVATURE * jnp.max(spread))
    curvature = problem.eigenvalues[:, None] * spread[None] + penalties
    return objective, gradient, 1 / jnp.maximum(curvature, jnp.finfo(params.dtype).tiny)


def _precondition(state: _State) -> Array:
    """Multiply the gradient by the L-BFGS guess of the inverse curvature."""
    products = jnp.sum(state.moves * state.turns, axis=(1, 2))
    # A pair that is empty, or lost in rounding, is left out.
    inverse_products = jnp.where(products > 0, 1 / jnp.where(products > 0, products, 1), 0)

    def backward(vector: Array, pair: tuple[Array, Array, Array]) -> tuple[Array, Array]:
        move, turn, inverse_product = pair
        share = inverse_product * jnp.vdot(move, vector)
        return vector - share * turn, share

    def forward(vector: Array, pair: tuple[Array, Array, Array, Array]) -> tuple[Array, None]:
        move, turn, inverse_product, share = pair
        return vector + (share - inverse_product * jnp.vdot(turn, vector)) * move, None

    pairs = (state.moves, state.turns, inverse_products)
    vector, shares = jax.lax.scan(backward, state.gradient, pairs, reverse=True)
    turn = state.turns[-1]
    turned = jnp.vdot(turn, state.inverse * turn)
    scale = jnp.where((products[-1] > 0) & (turned > 0), products[-1] / jnp.where(turned > 0, turned, 1), 1)
    return jax.lax.scan(forward, scale * state.inverse * vector, (*pairs, shares))[0]


def _line_search(problem: Problem, penalties: Array, state: _State, direction: Array, change: Array) -> Array:
    """Find a length where the slope nearly vanishes, by Newton's method kept inside a bracket.

    It looks at slopes alone: close to the optimum the objective does not change any more in float32.
    """
    offset = jnp.vdot(penalties * direction, state.params)
    growth = jnp.vdot(penalties * direction, direction)

    def slopes(length: Array) -> tuple[Array, Array]:
        """Return the first and second derivative of the objective along the direction."""
        wrong = _losses(problem, state.margins + length * change)[1]
        mean = jnp.sum(wrong * change, axis=1)
        variance = jnp.sum(wrong * change**2, axis=1) - mean**2
        return problem.weights @ mean + offset + length * growth, problem.weights @ variance + growth

    enough = _SLOPE * jnp.abs(jnp.vdot(state.gradient, direction))

    def is_open(search: tuple[Array, ...]) -> Array:
        _, _, _, slope, _, trials = search
        return (jnp.abs(slope) > enough) & (trials < _MAX_TRIALS)

    def refine(search: tuple[Array, ...]) -> tuple[Array, ...]:
        length, low, high, slope, curvature, trials = search
        low, high = jnp.where(slope < 0, length, low), jnp.where(slope < 0, high, length)
        newton = length - slope / curvature
        middle = jnp.where(jnp.isinf(high), 4 * length, 0.5 * (low + high))
        length = jnp.where((newton > low) & (newton < jnp.minimum(high, 4 * length)), newton, middle)
        return length, low, high, *slopes(length), trials + 1

    one = jnp.ones((), change.dtype)
    start = (one, 0 * one, one / 0, *slopes(one), jnp.int32(0))
    return jax.lax.while_loop(is_open, refine, start)[0]
