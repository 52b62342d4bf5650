"""The runs that train together: which may, and what each of them needs before the first step."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tljax import plain, rundir
from tljax.ablation.runs import Run
from tljax.data.splits import Split
from tljax.finetune.groups import FROZEN
from tljax.finetune.stacked import STRENGTHS, Recipe, numbers_of
from tljax.tasks import finetune
from tljax.tasks.caching import settle_caches
from tljax.tasks.evaluation import check_choice, check_evaluation
from tljax.tasks.execution import identity_of
from tljax.tasks.feed import locate_prefix
from tljax.tasks.inputs import Inputs, open_split
from tljax.tasks.plan import Plan, plan_phases
from tljax.tasks.relative import plan_run
from tljax.tasks.sections import call, select
from tljax.tasks.training import partition

# What runs that train together may have each for itself; all of a section where no key is named.
VARIED: Mapping[str, tuple[str, ...]] = {
    "seed": (),
    "schedule": (),
    "split": ("seed", "repeat"),
    "groups": ("rates", "layer_decay", "lowest_rate"),
    "optimizer": ("weight_decay",),
    "loss": ("label_smoothing",),
}


@dataclass(frozen=True, kw_only=True)
class Group:
    """Runs of a list that belong together.

    Args:
        runs: in the order of the list.
        why_alone: the reason why they cannot train together; None where they can.
    """

    runs: tuple[Run, ...]
    why_alone: str | None


def group(runs: Sequence[Run]) -> list[Group]:
    """Divide runs into those that can train together, by their configs alone; nothing is read.

    Runs of one group differ in `VARIED` and in the strengths of penalties. What only shows once the data are open,
    such as splits of other sizes, `run_together` finds.
    """
    found: dict[str, list[Run]] = {}
    alone: list[Group] = []
    for run in runs:
        reason = _why_alone(run)
        if reason is None:
            found.setdefault(plain.fingerprint(shared_part(run.config)), []).append(run)
        else:
            alone.append(Group(runs=(run,), why_alone=reason))
    nothing = "no other run differs from it only in what a program can take as a number"
    groups = [Group(runs=tuple(same), why_alone=None if len(same) > 1 else nothing) for same in found.values()]
    order = {id(run): place for place, run in enumerate(runs)}
    return sorted([*groups, *alone], key=lambda each: order[id(each.runs[0])])


def _why_alone(run: Run) -> str | None:
    """Say why a run cannot train with others, as far as its config tells; its mistakes are told where it runs."""
    config = run.config
    if run.task != finetune.NAME:
        return f"only {finetune.NAME} trains together, and this is {run.task}"
    if "phases" in config:
        return "it has phases"
    if "relative_gradients" in config:
        return "it follows relative gradients, which are measured for each run"
    if "finetune" not in config or "cache" not in config["finetune"]:
        return "its config says nothing of finetune.cache"
    if config["finetune"]["cache"] == "never":
        return "it trains from images, as finetune.cache is 'never'"
    return None


def shared_part(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a config has in common with those that it can train together with."""
    rest = copy.deepcopy(plain.as_read(config))
    for section, keys in VARIED.items():
        # Views that are drawn from the seed are stored once for each seed.
        if section == "seed" and rest.get("prefix", {}).get("bank") is not None:
            continue
        if not keys:
            rest.pop(section, None)
        for key in keys:
            rest.get(section, {}).pop(key, None)
    for settings in rest.get("penalties", {}).values():
        for key in STRENGTHS:
            settings.pop(key, None)
    return rest


@dataclass(frozen=True, kw_only=True)
class Member:
    """A run that trains together with others.

    Args:
        run: as it was given.
        config: what its task reads of the config.
        split: of the run.
        plan: of its one phase.
        decisions: of `settle_caches`.
        numbers: what it has for itself in the program.
    """

    run: Run
    config: dict[str, Any]
    split: Split
    plan: Plan
    decisions: list[dict[str, Any]]
    numbers: dict[str, Any]

    @property
    def workdir(self) -> Path:
        """Return its run directory."""
        return Path(self.run.workdir)

    @property
    def is_done(self) -> bool:
        """Return whether it has its results."""
        return (self.workdir / rundir.DONE).exists()

    @property
    def identity(self) -> dict[str, Any]:
        """Return the config that its run directory is compared by."""
        return identity_of(select(finetune.NAME, self.run.config))

    def note_plan(self) -> None:
        """Write what has been decided before the first step."""
        source, rows = self.plan.inputs.source, [partition(self.plan)]
        finetune.note_plan(self.workdir, source, self.split, rows, self.decisions, None)


def open_members(runs: Sequence[Run], inputs: Inputs) -> tuple[list[Member], dict[int, str]]:
    """Plan runs of one group.

    Args:
        runs: of one `Group`, none of them finished.
        inputs: of all of them.

    Returns:
        The members, and {place among the runs: why that run cannot train with the first member}.
    """
    members, refused = [], {}
    for place, run in enumerate(runs):
        first = members[0] if members else None
        try:
            member = _open_member(run, inputs, first)
        except ValueError as error:
            # Alone it says so again, and fails for itself.
            refused[place] = str(error)
            continue
        problem = _why_not_with(member, first or member)
        if problem is None:
            members.append(member)
        else:
            refused[place] = problem
    return members, refused


def _open_member(run: Run, inputs: Inputs, first: Member | None) -> Member:
    config, workdir, source = select(finetune.NAME, run.config), Path(run.workdir), inputs.source
    call("evaluate", config, check_evaluation, source)
    split = open_split(config, source, workdir)
    if first is None:
        settled, decisions = settle_caches(config, inputs, split, workdir)
        # Traces the step, which is the same for all.
        (plan,) = plan_run(settled, inputs, split).plans
    else:
        cache = {"cache": first.plan.config["finetune"]["cache"]}
        settled, decisions = {**config, "finetune": {**config["finetune"], **cache}}, first.decisions
        (plan,) = plan_phases(settled, inputs, source.labels[split.train])
    if plan.recipe.keep == "best":
        check_choice(source, split.val)
    return Member(run=run, config=settled, split=split, plan=plan, decisions=decisions, numbers=_numbers(plan))


def _numbers(plan: Plan) -> dict[str, Any]:
    loss: Any = plan.objective["loss"]
    trained = [path for path in plan.groups.labels if plan.groups.is_trained(path)]
    return numbers_of(
        seed=plan.config["seed"],
        schedules=plan.schedules,
        num_steps=plan.num_steps,
        multipliers={path: plan.groups.multiplier(path) for path in trained},
        weight_decay=plan.config["optimizer"]["weight_decay"],
        label_smoothing=loss.keywords["label_smoothing"],
        penalties=plan.penalties,
        class_weights=plan.objective["class_weights"],
    )


def _why_not_with(member: Member, first: Member) -> str | None:
    """Say what keeps two runs of one group from one program, now that the data are open."""
    plans = member.plan, first.plan
    if member.plan.bank is None:
        return "it trains from images, which is estimated to cost less"
    if member.plan.num_steps != first.plan.num_steps:
        return f"it has {member.plan.num_steps} steps, and {first.run.workdir} has {first.plan.num_steps}"
    for name in ("train", "val", "test"):
        sizes = [len(getattr(each.split, name)) for each in (member, first)]
        if sizes[0] != sizes[1]:
            return f"its split has {sizes[0]} {name} images, and that of {first.run.workdir} has {sizes[1]}"
    if plans[0].groups.labels != plans[1].groups.labels:
        return f"it trains other params, or under other labels, than {first.run.workdir}"
    if locate_prefix(plans[0]).folder != locate_prefix(plans[1]).folder:
        return f"it has another stored prefix than {first.run.workdir}"
    frozen = [path for path, label in plans[0].groups.labels.items() if label == FROZEN]
    if not all(_is_same(plans[0].initial[path], plans[1].initial[path]) for path in frozen):
        return f"what it freezes begins with other values than in {first.run.workdir}"
    return None


def _is_same(one: Any, other: Any) -> bool:
    return one is other or np.array_equal(one, other)


def recipe_of(member: Member) -> Recipe:
    """Return what a member has in common with the others."""
    plan, rest = member.plan, dict(member.plan.objective)
    loss: Any = rest.pop("loss")
    for name in ("seed", "class_weights"):
        del rest[name]
    optimizer = {name: value for name, value in plan.config["optimizer"].items() if name != "weight_decay"}
    return Recipe(
        forward=plan.forward,
        preprocess=plan.inputs.pretrained.preprocess,
        labels=plan.groups.labels,
        optimizer=optimizer,
        penalties=plan.penalties,
        loss=loss.func,
        objective=rest,
    )
