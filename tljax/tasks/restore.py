"""The model that a finished fine-tuning run left behind."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from tljax import rundir
from tljax.finetune.checkpoint import Checkpoints
from tljax.finetune.groups import make_groups, make_optimizer
from tljax.finetune.step import init_state, make_mesh, replicate
from tljax.paths import merge
from tljax.plain import differences
from tljax.tasks import finetune
from tljax.tasks.sections import call
from tljax.weights import Pretrained, load


def restore(workdir: str | Path) -> Pretrained:
    """Return the pretrained net of a run with the params and statistics that its training ended with.

    Args:
        workdir: of a finished fine-tuning run.

    Raises:
        FileNotFoundError: the directory holds no finished run.
        ValueError: it is a run of another task, or the pretrained weights have changed since.
    """
    workdir = Path(workdir)
    for name in (rundir.CONFIG, rundir.DONE, finetune.CLASSES):
        if not (workdir / name).is_file():
            raise FileNotFoundError(
                f"{workdir} has no {name}: it is no finished run of `tljax finetune`; the runs of `tljax transfer` are "
                "in folders inside of its own"
            )
    stored = rundir.read_json(workdir / rundir.CONFIG)
    config, class_names = stored["config"], tuple(rundir.read_json(workdir / finetune.CLASSES))
    pretrained = call("model", config, load, num_classes=len(class_names))
    was = rundir.read_json(workdir / rundir.INPUTS)["params"]
    if was != pretrained.fingerprint():
        raise ValueError(
            f"the weights {pretrained.name!r} are not those that {workdir} was trained from: "
            f"{'; '.join(differences({'params': was}, {'params': pretrained.fingerprint()}))}"
        )
    params, stats = _trained(config, pretrained, workdir)
    return dataclasses.replace(pretrained, params=params, stats=stats, class_names=class_names)


def _trained(
    config: Mapping[str, Any], pretrained: Pretrained, workdir: Path
) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
    groups = call("groups", config, make_groups, pretrained.params, pretrained.net.stages)
    # What it does to the params does not matter here, only what it keeps.
    optimizer = call("optimizer", config, make_optimizer, groups, lambda step: 0.0)
    trained, frozen = groups.split(pretrained.params)
    state = replicate(init_state(trained, pretrained.stats, optimizer), make_mesh(jax.devices()))
    with Checkpoints(workdir / "checkpoints", config) as checkpoints:
        state = checkpoints.restore(state)
    return merge(dict(state.trained), frozen), dict(state.stats)
