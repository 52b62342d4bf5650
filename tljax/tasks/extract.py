"""Extract: run the images to chosen stages once and store the features."""

import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tljax import rundir
from tljax.features.extract import extract, feature_spec
from tljax.features.store import FeatureStore
from tljax.tasks.inputs import Inputs, open_inputs
from tljax.tasks.sections import call

NAME = "extract"

log = logging.getLogger(__name__)


def run(config: Mapping[str, Any], workdir: str | Path) -> dict[str, float]:
    """Extract features into the cache; idempotent and resumable."""
    found = rundir.begin(workdir, NAME, config)
    return found if found is not None else work(config, Path(workdir), open_inputs(config))


def work(config: Mapping[str, Any], workdir: Path, inputs: Inputs) -> dict[str, float]:
    """Do what is left to do in a run directory that `rundir.begin` opened."""
    started = time.monotonic()
    before = inputs.pretrained.fingerprint()
    store = open_features(config, inputs)
    after = inputs.pretrained.fingerprint()
    if before != after:
        raise RuntimeError(f"extraction changed params: hash {before} before, {after} after; please report this")
    log.info("features in %s; backbone hash %s before and after", store.directory, after)
    facts = {"store": str(store.directory), "hash_before": before, "hash_after": after}
    rundir.write_json(workdir / "extract.json", facts)
    result = {"num_images": float(store.num_rows), "seconds": time.monotonic() - started}
    rundir.write_json(workdir / rundir.DONE, result)
    return result


def open_features(config: Mapping[str, Any], inputs: Inputs) -> FeatureStore:
    """Return the complete store of `config.features`, computing what it lacks."""
    return call("features", config, cached_features, inputs, Path(config["cache_dir"]) / "features")


def cached_features(
    inputs: Inputs,
    root: Path,
    *,
    taps: Sequence[str],
    pooling: str,
    views: int,
    dtype: str,
    batch_size: int,
) -> FeatureStore:
    """Return the complete store of features, in a folder of `root` named by all that determines them.

    The keywords are those of `features.extract.extract`.
    """
    pretrained = inputs.pretrained
    what = (pretrained.net, pretrained.params, pretrained.stats, inputs.source, pretrained.preprocess)
    settings = {"taps": taps, "pooling": pooling, "views": views, "dtype": dtype}
    folder = root / rundir.fingerprint(feature_spec(*what, **settings))[:16]
    return extract(*what, folder, **settings, batch_size=batch_size)
