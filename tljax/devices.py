"""The devices of a run as a mesh: which arrays each of them holds, and how those come and go."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

DATA, FSDP = MESH_AXES = ("data", "fsdp")
# An array of fewer numbers is not worth the message that gathers it.
MIN_SHARDED_SIZE = 2**12


def make_mesh(devices: Sequence[Any], *, fsdp: int = 1) -> Mesh:
    """Arrange devices for data parallelism.

    Args:
        devices: of all processes, those of one process beside each other, as `jax.devices()` lists them.
        fsdp: number of devices that hold one copy of the params together; 1 gives each a copy of its own.

    Raises:
        ValueError: `fsdp` does not divide the number of devices.
    """
    if fsdp < 1 or len(devices) % fsdp:
        raise ValueError(
            f"config.execution.fsdp is {fsdp}, which does not divide the {len(devices)} devices; wanted one of "
            + ", ".join(str(size) for size in range(1, len(devices) + 1) if len(devices) % size == 0)
        )
    return Mesh(np.asarray(devices).reshape(-1, fsdp), MESH_AXES)


@contextlib.contextmanager
def on_cpu() -> Iterator[None]:
    """Lower programs for this machine's CPU, whatever else it has, in the block of this.

    Of programs for CPUs alone XLA counts the FLOPs before it compiles them; for GPUs it hides what it gives to cuDNN.

    Raises:
        ValueError: JAX was told to leave CPUs out.
    """
    try:
        cpu = jax.local_devices(backend="cpu")[0]
    except RuntimeError as error:
        config: Any = jax.config
        raise ValueError(
            "FLOPs are counted of a program for CPUs, which JAX leaves out here; set "
            f"JAX_PLATFORMS={config.jax_platforms},cpu, or leave it unset"
        ) from error
    with jax.default_device(cpu):
        yield


def replicated(mesh: Mesh) -> NamedSharding:
    """Return the sharding of arrays of which every device has a copy."""
    return NamedSharding(mesh, P())


def spread(mesh: Mesh) -> NamedSharding:
    """Return the sharding of batches, whose rows all devices share."""
    return NamedSharding(mesh, P(MESH_AXES))


def sharding_of(shape: Sequence[int], mesh: Mesh) -> NamedSharding:
    """Return how an array of params, or of what an optimizer keeps for them, lies on the devices.

    A function of the shape, so that moments and averages lie where their params do: the last of the longest axes that
    `fsdp` divides is cut; an array without one, or a small one, is replicated.
    """
    parts = mesh.shape[FSDP]
    axes = [axis for axis, length in enumerate(shape) if length % parts == 0]
    if parts == 1 or not axes or np.prod(shape) < MIN_SHARDED_SIZE:
        return replicated(mesh)
    cut = max(axes, key=lambda axis: (shape[axis], axis))
    return NamedSharding(mesh, P(*(FSDP if axis == cut else None for axis in range(cut + 1))))


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Copy a tree of arrays to every device of the mesh.

    Always a copy: a step donates its state, which would otherwise delete the caller's arrays.
    """
    return jax.tree.map(lambda leaf: place_as(leaf, replicated(mesh)), tree)


def place(tree: Any, mesh: Mesh) -> Any:
    """Copy a tree of params, or of what belongs to them, to the devices as `sharding_of` says; always a copy."""
    return jax.tree.map(lambda leaf: place_as(leaf, sharding_of(leaf.shape, mesh)), tree)


def shapes_on(tree: Any, mesh: Mesh) -> Any:
    """Return the shapes, dtypes and places of the arrays that `place` gives, from the arrays or their shapes."""
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding_of(leaf.shape, mesh)), tree
    )


def keep_placed(tree: Any, mesh: Mesh) -> Any:
    """Inside of a compiled function: let arrays lie as `sharding_of` says."""
    return jax.tree.map(lambda leaf: jax.lax.with_sharding_constraint(leaf, sharding_of(leaf.shape, mesh)), tree)


def make_gather(mesh: Mesh) -> Callable[[Any], Any] | None:
    """Return what brings params together where a stage uses them, inside of a compiled function; None for a no-op.

    Its gradient goes the other way: each device keeps the sum of its part alone. Without it the compiler is free to
    move the activations in place of the params.
    """
    if mesh.shape[FSDP] == 1:
        return None

    @jax.custom_vjp
    def gather(x: jax.Array) -> jax.Array:
        return jax.lax.with_sharding_constraint(x, replicated(mesh))

    def backward(_: None, grad: jax.Array) -> tuple[jax.Array]:
        return (jax.lax.with_sharding_constraint(grad, sharding_of(grad.shape, mesh)),)

    gather.defvjp(lambda x: (gather(x), None), backward)
    return lambda tree: jax.tree.map(gather, tree)


def put_batch(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Bring the rows of a batch that this process has read to its devices; the rows of all processes are the batch."""
    return {name: jax.make_array_from_process_local_data(spread(mesh), rows) for name, rows in batch.items()}


def fetch(tree: Any) -> Any:
    """Return a tree of arrays as numpy arrays, in every process the whole of each; a copy.

    All processes must call it.
    """
    return jax.tree.map(_fetch, tree)


def place_as(leaf: Any, sharding: Any) -> jax.Array:
    """Copy an array to the devices of a sharding, which may belong to several processes."""
    if sharding.is_fully_addressable or not getattr(leaf, "is_fully_addressable", True):
        # device_put shares the array of a device that holds it already, `may_alias=False` or not.
        return jax.device_put(jnp.array(leaf, copy=True), sharding)
    # device_put would compare it with that of each other process.
    host = np.array(leaf)
    return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])


def _fetch(leaf: Any) -> np.ndarray:
    if isinstance(leaf, jax.Array) and not (leaf.is_fully_addressable or leaf.is_fully_replicated):
        whole = NamedSharding(leaf.sharding.mesh, P())  # pyright: ignore[reportAttributeAccessIssue]
        leaf = jax.jit(lambda array: array, out_shardings=whole)(leaf)
    # Of a copy: an array keeps what it once gave to the host, and would give that again.
    return np.array(jnp.array(leaf))
