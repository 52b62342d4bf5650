"""Fine-tuning: freeze early stages, train the rest at a rate for each group of params.

groups = make_groups(params, net.stages, freeze="block_10", rates={"body": 0.1})
tx = make_optimizer(groups, schedule, name="adamw", weight_decay=0.05, clip_norm=1.0)
trained, frozen = groups.split(params)
forward = Forward(net=net, training=groups.trained_stages)
body = functools.partial(train_body, forward=forward, tx=tx, preprocess=preprocess)
state, fixed = replicate((init_state(trained, stats, tx), Fixed(params=frozen)), mesh)
step = make_train_step(body, mesh)
state, metrics = step(state, fixed, batch)
"""

from tljax.devices import make_mesh, replicate
from tljax.finetune.devices import make_eval_step, make_pmap_step, make_train_step, predict
from tljax.finetune.forward import Forward
from tljax.finetune.groups import Groups, format_partition, make_groups, partition_table
from tljax.finetune.loop import fit
from tljax.finetune.optimizer import make_optimizer
from tljax.finetune.phases import Phase
from tljax.finetune.schedules import warmup_cosine
from tljax.finetune.state import Fixed, TrainState, enter_phase, init_state
from tljax.finetune.step import train_body

__all__ = [
    "Fixed",
    "Forward",
    "Groups",
    "Phase",
    "TrainState",
    "enter_phase",
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
