"""Shapes of a learning rate over a run: pure functions of the step.

All take the rate, the number of steps of a linear warm-up and that of the whole run, and say for themselves what else.
"""

from collections.abc import Callable, Sequence

import jax.numpy as jnp
import optax


def constant(*, learning_rate: float, warmup_steps: int, num_steps: int) -> optax.Schedule:
    """Rise linearly to `learning_rate` and stay there."""
    _check_warmup(warmup_steps, num_steps)
    return _warmed(optax.constant_schedule(learning_rate), learning_rate, warmup_steps)


def cosine(
    *, learning_rate: float, warmup_steps: int, num_steps: int, final_fraction: float = 0.0
) -> optax.Schedule:  # fmt: skip
    """Rise linearly to `learning_rate`, then fall along half a cosine.

    The rate of step 0 is `learning_rate / (warmup_steps + 1)`: a step at rate 0 would be wasted. It would be
    `final_fraction * learning_rate` for the first time at step `num_steps`, which is not taken.

    Args:
        learning_rate: the peak, reached at step `warmup_steps`.
        warmup_steps: 0 begins at the peak.
        num_steps: of the whole run.
        final_fraction: of the peak, in [0, 1].

    Raises:
        ValueError: the warm-up does not end before the run does, or a number is out of range.

    Source:
        Loshchilov and Hutter 2017, arXiv:1608.03983, equation 5, without restarts.
    """
    _check_warmup(warmup_steps, num_steps)
    _check_final(final_fraction)
    fall = _half_cosine(learning_rate, num_steps - warmup_steps, final_fraction)
    return _warmed(fall, learning_rate, warmup_steps)


def linear(
    *, learning_rate: float, warmup_steps: int, num_steps: int, final_fraction: float = 0.0
) -> optax.Schedule:  # fmt: skip
    """Rise linearly to `learning_rate`, then fall along a line; the ends are those of `cosine`."""
    _check_warmup(warmup_steps, num_steps)
    _check_final(final_fraction)
    fall = optax.linear_schedule(learning_rate, final_fraction * learning_rate, num_steps - warmup_steps)
    return _warmed(fall, learning_rate, warmup_steps)


def staircase(
    *,
    learning_rate: float,
    warmup_steps: int,
    num_steps: int,
    boundaries: Sequence[float] = (0.5, 0.75),
    factor: float = 0.1,
) -> optax.Schedule:
    """Rise linearly to `learning_rate`, then multiply the rate by `factor` at each boundary.

    Args:
        learning_rate: until the first boundary.
        warmup_steps: 0 begins at the full rate; the warm-up ends before the first boundary.
        num_steps: of the whole run.
        boundaries: rising shares of the whole run, warm-up included, in (0, 1).
        factor: in (0, 1).

    Raises:
        ValueError: a number is out of range, or a boundary lies in the warm-up.
    """
    _check_warmup(warmup_steps, num_steps)
    _check_inside("factor", factor)
    if not boundaries or sorted({*boundaries}) != [*boundaries] or not 0 < boundaries[0] <= boundaries[-1] < 1:
        raise ValueError(f"boundaries are {list(boundaries)}, wanted rising shares of the run, 0 < share < 1")
    steps = [round(share * num_steps) for share in boundaries]
    if steps[0] < warmup_steps:
        raise ValueError(f"the first boundary is step {steps[0]}, before the end of the warm-up at {warmup_steps}")
    rates = [learning_rate * factor**count for count in range(len(steps) + 1)]
    stairs = optax.join_schedules([optax.constant_schedule(rate) for rate in rates], steps)
    return _warmed(lambda step: stairs(step + warmup_steps), learning_rate, warmup_steps)


def one_cycle(
    *,
    learning_rate: float,
    warmup_steps: int,
    num_steps: int,
    peak_fraction: float = 0.25,
    start_divisor: float = 25.0,
    end_divisor: float = 1e5,
) -> optax.Schedule:
    """Rise along half a cosine to `learning_rate`, then fall along another.

    Args:
        learning_rate: the peak.
        warmup_steps: 0: the rise is the warm-up.
        num_steps: of the whole run.
        peak_fraction: share of the run, in (0, 1), after which the peak is reached, rounded to a step.
        start_divisor: the rate of step 0 is the peak divided by it; at least 1.
        end_divisor: likewise of step `num_steps`, which is not taken.

    Raises:
        ValueError: there is a warm-up besides, or a number is out of range.

    Source:
        Smith 2018, arXiv:1803.09820, with the cosines and the divisors of fastai/callback/schedule.py,
        `fit_one_cycle`. Momentum does not move the other way, as it does there.
    """
    if warmup_steps:
        raise ValueError(f"one_cycle rises by itself, and warmup_steps is {warmup_steps}; set warmup_fraction to 0")
    _check_warmup(warmup_steps, num_steps)
    _check_inside("peak_fraction", peak_fraction)
    for name, divisor in (("start_divisor", start_divisor), ("end_divisor", end_divisor)):
        if not divisor >= 1:
            raise ValueError(f"{name} is {divisor}, wanted at least 1")
    peak_step = round(peak_fraction * num_steps)
    # A run of a few steps may end before the fall begins.
    fall = _half_cosine(learning_rate, max(num_steps - peak_step, 1), 1 / end_divisor)
    if peak_step == 0:
        return fall
    # The rise is the fall from the peak to the start, backwards.
    mirrored = _half_cosine(learning_rate, peak_step, 1 / start_divisor)
    return optax.join_schedules([lambda step: mirrored(peak_step - step), fall], [peak_step])


def warmup_stable_decay(
    *,
    learning_rate: float,
    warmup_steps: int,
    num_steps: int,
    decay_fraction: float = 0.2,
    final_fraction: float = 0.0,
) -> optax.Schedule:
    """Rise linearly to `learning_rate`, stay there, and fall along a line at the end.

    Args:
        learning_rate: between warm-up and decay.
        warmup_steps: 0 begins at the full rate.
        num_steps: of the whole run.
        decay_fraction: share of the run, in (0, 1), that the fall takes, rounded to steps.
        final_fraction: of the rate, in [0, 1], at step `num_steps`, which is not taken.

    Raises:
        ValueError: warm-up and decay overlap, or a number is out of range.

    Source:
        WSD of Hu et al. 2024, arXiv:2404.06395, section 4. The form of the decay is left open there; a line is the
        usual one (Haegele et al. 2024, arXiv:2405.18392).
    """
    _check_warmup(warmup_steps, num_steps)
    _check_inside("decay_fraction", decay_fraction)
    _check_final(final_fraction)
    decay_steps = round(decay_fraction * num_steps)
    if warmup_steps + decay_steps > num_steps:
        raise ValueError(
            f"{warmup_steps} steps of warm-up and {decay_steps} of decay do not fit into {num_steps} steps"
        )
    begin = num_steps - decay_steps - warmup_steps
    fall = optax.linear_schedule(learning_rate, final_fraction * learning_rate, decay_steps, begin)
    return _warmed(fall, learning_rate, warmup_steps)


SCHEDULES: dict[str, Callable[..., optax.Schedule]] = {
    "constant": constant,
    "cosine": cosine,
    "linear": linear,
    "step": staircase,
    "one_cycle": one_cycle,
    "wsd": warmup_stable_decay,
}


def _half_cosine(learning_rate: float, num_steps: int, final_fraction: float) -> optax.Schedule:
    schedule = optax.cosine_decay_schedule(learning_rate, num_steps, alpha=final_fraction)
    # It takes the smaller of the step and a float, which strict dtype promotion refuses of integers.
    return lambda step: schedule(jnp.asarray(step, jnp.float32))


def _warmed(schedule: optax.Schedule, learning_rate: float, warmup_steps: int) -> optax.Schedule:
    """Put a linear rise in front of a schedule; the rate of step 0 is `learning_rate / (warmup_steps + 1)`."""
    if warmup_steps == 0:
        return schedule
    warmup = optax.linear_schedule(learning_rate / (warmup_steps + 1), learning_rate, warmup_steps)
    return optax.join_schedules([warmup, schedule], [warmup_steps])


def _check_warmup(warmup_steps: int, num_steps: int) -> None:
    if not 0 <= warmup_steps < num_steps:
        raise ValueError(f"warmup_steps is {warmup_steps}, wanted 0 <= warmup_steps < num_steps = {num_steps}")


def _check_inside(name: str, value: float) -> None:
    if not 0 < value < 1:
        raise ValueError(f"{name} is {value}, wanted 0 < {name} < 1")


def _check_final(value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"final_fraction is {value}, wanted 0 <= final_fraction <= 1")
