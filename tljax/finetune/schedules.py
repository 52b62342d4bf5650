"""Learning rates as pure functions of the step."""

import optax


def warmup_cosine(*, learning_rate: float, warmup_steps: int, num_steps: int) -> optax.Schedule:
    """Rise linearly to `learning_rate`, then fall to 0 along half a cosine.

    The rate of step 0 is `learning_rate / (warmup_steps + 1)`: a step at rate 0 would be wasted. It
    would be 0 for the first time at step `num_steps`, which is not taken.

    Args:
        learning_rate: the peak, reached at step `warmup_steps`.
        warmup_steps: 0 begins at the peak.
        num_steps: of the whole run.

    Raises:
        ValueError: the warm-up does not end before the run does.

    Source:
        Loshchilov and Hutter 2017, arXiv:1608.03983, equation 5, without restarts.
    """
    if not 0 <= warmup_steps < num_steps:
        raise ValueError(f"warmup_steps is {warmup_steps}, wanted 0 <= warmup_steps < num_steps = {num_steps}")
    cosine = optax.cosine_decay_schedule(learning_rate, num_steps - warmup_steps)
    if warmup_steps == 0:
        return cosine
    warmup = optax.linear_schedule(learning_rate / (warmup_steps + 1), learning_rate, warmup_steps)
    return optax.join_schedules([warmup, cosine], [warmup_steps])
