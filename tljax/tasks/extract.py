"""Extract: run the images to chosen stages once and store the features."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tljax import plain, processes, rundir
from tljax.data.augment import Augment
from tljax.features.extract import extract, feature_spec
from tljax.features.store import FeatureStore
from tljax.features.taps import Pooling
from tljax.tasks.inputs import Inputs
from tljax.tasks.running import run_task
from tljax.tasks.sections import call

NAME = "extract"

log = logging.getLogger(__name__)


def run(config: Mapping[str, Any], workdir: str | Path) -> dict[str, float]:
    """Extract features into the cache; idempotent and resumable."""
    return run_task(NAME, work, config, workdir)


def work(config: Mapping[str, Any], workdir: Path, inputs: Inputs) -> dict[str, float]:
    """Extract what the cache lacks, and see that the params are what they were."""
    before = inputs.identity["params"]
    store = open_features(config, inputs)
    after = inputs.pretrained.fingerprint()
    if before != after:
        raise RuntimeError(f"extraction changed params: hash {before} before, {after} after; please report this")
    log.info("features in %s; backbone hash %s before and after", store.directory, after)
    facts = {"store": str(store.directory), "hash_before": before, "hash_after": after}
    processes.on_first(lambda: rundir.write_json(workdir / "extract.json", facts))
    return {"num_rows": float(store.num_rows), "share_reused": store.share_reused}


def open_features(config: Mapping[str, Any], inputs: Inputs) -> FeatureStore:
    """Return the complete store of `config.features`, computing what it lacks."""
    root = Path(config["cache_dir"]) / "features"
    return call("features", config, cached_features, inputs, root, seed=config["seed"])


def cached_features(
    inputs: Inputs,
    root: Path,
    *,
    seed: int,
    taps: Sequence[str],
    pooling: Pooling,
    views: int,
    dtype: str,
    batch_size: int,
    augment: Mapping[str, Any] | None = None,
) -> FeatureStore:
    """Return the complete store of features, in a folder of `root` named by all that determines them.

    The keywords are those of `features.extract.extract`, with the fields of `Augment` for `augment`.
    """
    pretrained = inputs.pretrained
    what = (pretrained.net, pretrained.params, pretrained.stats, inputs.source, pretrained.preprocess)
    changes = None if augment is None else call("augment", {"augment": augment}, Augment)
    settings: dict[str, Any] = {
        "taps": taps, "pooling": pooling, "views": views, "augment": changes, "seed": seed, "dtype": dtype,
    }  # fmt: skip
    folder = root / plain.fingerprint(feature_spec(*what, **settings))[:16]
    return extract(*what, folder, **settings, batch_size=batch_size)
