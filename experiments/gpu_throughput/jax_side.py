"""The JAX side: the rows of `tljax bench train`."""

import gc

import jax
from worker import serve

from tljax.tasks.bench_jobs import Job
from tljax.tasks.bench_train import prepare


def _prepare(row):
    gc.collect()
    prepared = prepare(Job(**row))

    def report():
        return {
            "gflops_per_image": prepared.gflops,
            "memory_gb": prepared.memory_bytes / 1e9,
            "compile_s": prepared.lower_s + prepared.compile_s,
        }

    return prepared.run, report


if __name__ == "__main__":
    serve(_prepare, {"device": jax.devices()[0].device_kind, "versions": f"jax {jax.__version__}"})
