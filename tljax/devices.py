"""The devices of this machine as a mesh, which batches are spread over."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

MESH_AXES = ("data", "fsdp")


def make_mesh(devices: Sequence[Any]) -> Mesh:
    """Arrange devices for data parallelism."""
    return Mesh(np.asarray(devices).reshape(-1, 1), MESH_AXES)


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Copy a tree of arrays to every device of the mesh.

    Always a copy: a step donates its state, which would otherwise delete the caller's arrays.
    """
    # device_put shares the array of a device that holds it already, `may_alias=False` or not.
    copies = jax.tree.map(lambda leaf: jnp.array(leaf, copy=True), tree)
    return jax.device_put(copies, NamedSharding(mesh, P()))
