"""Fine-tuning: freeze early stages, train the rest at a rate for each group of params.

groups = make_groups(params, net.stages, freeze="block_10", rates={"body": 0.1})
tx = make_optimizer(groups, schedule, weight_decay=0.05, clip_norm=1.0)
trained, frozen = groups.split(params)
body = functools.partial(train_body, net=net, tx=tx, preprocess=preprocess, train_from=groups.train_from)
state, frozen = replicate((init_state(trained, stats, tx), frozen), mesh)
state = fit(state, frozen, make_train_step(body, mesh), batches, ...)
"""

from tljax.finetune.groups import Groups, format_partition, make_groups, make_optimizer, partition_table
from tljax.finetune.loop import fit
from tljax.finetune.schedules import warmup_cosine
from tljax.finetune.step import (
    TrainState,
    init_state,
    make_eval_step,
    make_mesh,
    make_pmap_step,
    make_train_step,
    predict,
    replicate,
    train_body,
)

__all__ = [
    "Groups",
    "TrainState",
    "fit",
    "format_partition",
    "init_state",
    "make_eval_step",
    "make_groups",
    "make_mesh",
    "make_optimizer",
    "make_pmap_step",
    "make_train_step",
    "partition_table",
    "predict",
    "replicate",
    "train_body",
    "warmup_cosine",
]
