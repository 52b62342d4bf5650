"""A run of seconds: --config=tests/cluster/tiny.py:DIR, where DIR holds what `tests.small_runs` writes."""

from pathlib import Path

import ml_collections

from tests.small_runs import make_config

FINETUNE = {"epochs": 100, "checkpoint_every": 50}


def get_config(arg: str) -> ml_collections.ConfigDict:
    return ml_collections.ConfigDict(make_config(Path(arg), finetune=FINETUNE))
