"""What every test on SLURM needs: an environment for its jobs, pictures and weights, and an empty queue behind it."""

import pytest

from tests.cluster.jobs import DEVICES, ROOT, slurm, wait_for
from tests.small_runs import write_model, write_pictures


@pytest.fixture(scope="module", autouse=True)
def environment(tmp_path_factory):
    """What the jobs inherit: two devices a process, and compiled programs of other runs."""
    settings = {
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={DEVICES} --xla_backend_optimization_level=0",
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path_factory.mktemp("compiled")),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "PYTHONPATH": str(ROOT),
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in settings.items():
            patch.setenv(name, value)
        yield


@pytest.fixture(autouse=True)
def empty_queue():
    """Leave nothing to the next test, above all no run that is held."""
    yield
    slurm("scancel", "--me")
    wait_for("jobs did not end", lambda: not slurm("squeue", "--noheader"))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cluster")
    write_pictures(folder / "pictures")
    write_model(folder / "vit")
    return folder
