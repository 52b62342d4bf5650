import numpy as np
import pytest

from tljax.finetune.schedules import warmup_cosine


def test_warmup_then_half_a_cosine():
    schedule = warmup_cosine(learning_rate=0.3, warmup_steps=2, num_steps=10)
    warmup = [0.1, 0.2]
    cosine = [0.15 * (1 + np.cos(np.pi * step / 8)) for step in range(9)]
    got = [np.asarray(schedule(step)) for step in range(11)]
    np.testing.assert_allclose(got, warmup + cosine, atol=1e-7)  # float32


def test_without_warmup_it_begins_at_the_peak():
    assert warmup_cosine(learning_rate=0.3, warmup_steps=0, num_steps=4)(0) == pytest.approx(0.3)


@pytest.mark.parametrize("warmup_steps", [-1, 5, 6])
def test_the_warmup_must_end_within_the_run(warmup_steps):
    with pytest.raises(ValueError, match="warmup_steps < num_steps = 5"):
        warmup_cosine(learning_rate=0.1, warmup_steps=warmup_steps, num_steps=5)
