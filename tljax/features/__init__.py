"""Features: computed once, kept on disk, read as often as wanted."""

from tljax.features.extract import extract, feature_spec
from tljax.features.prefix import build_prefix, prefix_batches, prefix_spec
from tljax.features.store import FeatureStore, open_store

__all__ = [
    "FeatureStore",
    "build_prefix",
    "extract",
    "feature_spec",
    "open_store",
    "prefix_batches",
    "prefix_spec",
]
