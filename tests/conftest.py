"""Strict settings for every test: 8 CPU devices, no implicit promotion, checked shapes, no network."""

import gc
import os
import socket

os.environ["JAX_PLATFORMS"] = "cpu"
# Tests compile more than they compute.
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
os.environ["HF_HUB_OFFLINE"] = "1"

import jax
import pytest
from jaxtyping import install_import_hook

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

install_import_hook("tljax", "beartype.beartype")


def pytest_configure(config):
    """Compile what several tests or processes run once, however small it is, in processes that tests start too."""
    settings = {
        "jax_compilation_cache_dir": str(config.cache.mkdir("compiled")),
        "jax_persistent_cache_min_compile_time_secs": 0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    for name, value in settings.items():
        jax.config.update(name, value)
        os.environ[name.upper()] = str(value)


def pytest_collection_finish():
    """Leave what is imported out of garbage collections, which would look at it all again and find nothing."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _block_network(monkeypatch):
    """Refuse every connection that leaves this machine."""
    connect = socket.socket.connect

    def refuse(self, address):
        if self.family in (socket.AF_INET, socket.AF_INET6) and not str(address[0]).startswith(("127.", "::1")):
            raise OSError(f"tests have no network: connection to {address} refused")
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", refuse)
