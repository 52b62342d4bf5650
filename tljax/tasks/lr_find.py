"""Find a learning rate: raise it from step to step, and see where the loss falls fastest and where it blows up."""

import dataclasses
import functools
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tljax import rundir
from tljax.ablation.charts import curve_chart
from tljax.ablation.picture import write_picture
from tljax.ablation.svg import span
from tljax.devices import place
from tljax.finetune.devices import make_train_step, put_inputs
from tljax.finetune.optimizer import make_optimizer
from tljax.finetune.schedules import make_schedules
from tljax.tasks.caching import settle_caches
from tljax.tasks.feed import open_once
from tljax.tasks.inputs import Inputs, open_split
from tljax.tasks.plan import Plan
from tljax.tasks.relative import plan_run
from tljax.tasks.running import run_task
from tljax.tasks.sections import call
from tljax.tasks.training import make_phases, mesh_of, step_body

NAME = "lr_find"
# Of the average of the losses; fastai's.
_SMOOTHING = 0.98
# Times the lowest smoothed loss: from there on nothing is learned of the rate. fastai's.
_BLOWN_UP = 4.0
# Shares of the sweep at its ends whose slopes do not count: the average has not settled, or has blown up.
_EDGE = 0.1

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sweep:
    """`config.lr_find`: rates from `lowest` to `highest`, at equal ratios.

    Args:
        lowest, highest: values of `config.schedule.learning_rate`: the rates of the steps are these, scaled by the
            batch size where the schedule says so, times the multipliers. A label with a rate of its own in
            `config.schedule.by_label` keeps its ratio to the others.
        num_steps: one batch each.
        phase: of the run whose partition, optimizer and data are used, in its state at the start of the run.
    """

    lowest: float
    highest: float
    num_steps: int
    phase: int = 0

    def __post_init__(self) -> None:
        """Refuse a sweep that goes nowhere."""
        if not 0 < self.lowest < self.highest or self.num_steps < 10:
            raise ValueError(
                f"config.lr_find: lowest {self.lowest}, highest {self.highest}, num_steps {self.num_steps}; wanted "
                "0 < lowest < highest and at least 10 steps"
            )

    def rate(self, step: Any) -> Any:
        """Return the rate at a step."""
        ratio = self.highest / self.lowest
        return self.lowest * ratio ** (step / (self.num_steps - 1))


def run(config: Mapping[str, Any], workdir: str | Path) -> dict[str, float]:
    """Sweep the learning rate and suggest one; idempotent."""
    return run_task(NAME, work, config, workdir)


def work(config: Mapping[str, Any], workdir: Path, inputs: Inputs) -> dict[str, float]:
    """Take the steps, and write the losses, the picture and the suggestion."""
    sweep = call("lr_find", config, Sweep)
    split = open_split(config, inputs.source, workdir)
    config, _ = settle_caches(config, inputs, split)
    plans, _ = plan_run(config, inputs, split)
    if not 0 <= sweep.phase < len(plans):
        raise ValueError(f"config.lr_find.phase is {sweep.phase}, and the run has {len(plans)} phases, from 0")
    plan = _with_sweep(plans[sweep.phase], sweep)
    (phase,) = make_phases([plan], open_once([plan]), split, config["seed"])
    mesh = mesh_of(config)
    state = place(phase.enter(None), mesh)
    fixed, train_step = phase.open_fixed(state), make_train_step(step_body(plan), mesh)
    losses: list[float] = []
    has_blown_up = False
    for step, batch in zip(range(sweep.num_steps), phase.batches(0), strict=False):
        state, metrics = train_step(state, fixed, put_inputs(batch, mesh))
        losses.append(float(metrics["loss"]))
        has_blown_up = is_blown_up(losses)
        if has_blown_up:
            log.info("stopped at rate %.3g, where the loss is %.3g", sweep.rate(step), losses[-1])
            break
    rates = [float(sweep.rate(step)) for step in range(len(losses))]
    found = suggest(rates, losses)
    # JSON has no NaN and no infinity.
    curves = {
        name: [value if math.isfinite(value) else None for value in values]
        for name, values in (("losses", losses), ("smoothed", smooth(losses)))
    }
    record = {"rates": rates, **curves, "has_blown_up": has_blown_up, **found}
    rundir.write_json(workdir / "lr_find.json", record)
    write_picture(workdir / "lr_find.svg", _chart(rates, losses, found["steepest"]))
    log.info("picture: %s", workdir / "lr_find.svg")
    return found


def _with_sweep(plan: Plan, sweep: Sweep) -> Plan:
    schedules = {label: functools.partial(_scaled, sweep, factor) for label, factor in _factors(plan).items()}
    optimizer = call("optimizer", plan.config, make_optimizer, plan.groups, schedules)
    return dataclasses.replace(plan, schedules=schedules, optimizer=optimizer, num_steps=sweep.num_steps)


def _scaled(sweep: Sweep, factor: float, step: Any) -> Any:
    return factor * sweep.rate(step)


def _factors(plan: Plan) -> dict[str, float]:
    """Return for each label its highest rate over `config.schedule.learning_rate`."""
    section = plan.config["schedule"]
    flat = {"name": "constant", "warmup_fraction": 0.0, "arguments": None}
    by_label = {label: {**settings, **flat} for label, settings in (section.get("by_label") or {}).items()}
    labels, batch_size = tuple(plan.schedules), plan.recipe.batch_size
    constants = make_schedules(1, labels, **{**section, **flat, "by_label": by_label}, batch_size=batch_size)
    return {label: np.asarray(schedule(0)).item() / section["learning_rate"] for label, schedule in constants.items()}


def smooth(losses: list[float]) -> list[float]:
    """Return the exponential moving average of losses, its start corrected as Adam's is."""
    smoothed, average = [], 0.0
    for count, loss in enumerate(losses, 1):
        average = _SMOOTHING * average + (1 - _SMOOTHING) * loss
        smoothed.append(average / (1 - _SMOOTHING**count))
    return smoothed


def is_blown_up(losses: list[float]) -> bool:
    """Tell whether the loss has left for good."""
    smoothed = smooth(losses)
    return not math.isfinite(losses[-1]) or smoothed[-1] > _BLOWN_UP * min(smoothed)


def suggest(rates: list[float], losses: list[float]) -> dict[str, float]:
    """Return rates to start from.

    Returns:
        "steepest", where the smoothed loss falls fastest per decade; "lowest_loss", the rate of the lowest smoothed
        loss, and "tenth", a tenth of it, which is the safer one: the rate of the minimum itself is too high.

    Raises:
        ValueError: the loss blew up before there was anything to see.

    Source:
        Smith 2017, arXiv:1506.01186, section 3.3; fastai's `lr_find` for the two suggestions.
    """
    smoothed = np.asarray([value for value in smooth(losses) if math.isfinite(value)])
    if len(smoothed) < 5:
        raise ValueError(f"the loss blew up after {len(losses)} steps, at rate {rates[-1]:.3g}; lower lr_find.lowest")
    decades = np.log10(np.asarray(rates[: len(smoothed)]))
    edge = max(1, int(_EDGE * len(smoothed)))
    lowest = int(np.argmin(smoothed[edge:])) + edge
    slopes = np.gradient(smoothed, decades)
    steepest = int(np.argmin(slopes[edge : max(lowest, edge + 1)])) + edge
    return {"steepest": rates[steepest], "tenth": rates[lowest] / 10, "lowest_loss": rates[lowest]}


def _chart(rates: list[float], losses: list[float], steepest: float) -> str:
    smoothed = smooth(losses)
    points = [(math.log10(rate), value) for rate, value in zip(rates, smoothed, strict=True) if math.isfinite(value)]
    title = f"smoothed loss while the learning rate rises; steepest at {steepest:.2g}"
    domains = ((points[0][0], points[-1][0]), span([value for _, value in points]))
    return curve_chart(title, [points], 0, *domains, "learning rate, power of 10")
