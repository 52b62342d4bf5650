"""A run of seconds: --config=tests/cluster/tiny.py:DIR, where DIR holds what `tests.small_runs` writes."""

from pathlib import Path

import ml_collections

from tests.small_runs import make_config


def get_config(arg: str) -> ml_collections.ConfigDict:
    return ml_collections.ConfigDict(make_config(Path(arg), finetune={"epochs": 100, "checkpoint_every": 50}))
