"""How large the nets of the catalog are, and what an image costs: python -m tljax.weights.sizes writes sizes.json."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from tljax.devices import on_cpu
from tljax.models import Net, architecture
from tljax.models.kernels import PLAIN_FORMULAS
from tljax.rundir import read_json, write_bytes

_PATH = Path(__file__).with_name("sizes.json")


def key(name: str, image_size: int) -> str:
    """Return the name of an architecture at a size."""
    return f"{name}@{image_size}"


def sizes() -> dict[str, dict[str, float]]:
    """Return params, in millions, and GFLOPs a forward image, by `key`."""
    return read_json(_PATH)


def measure(name: str, image_size: int) -> dict[str, float]:
    """Count the params of the pretrained stages, and let XLA count the FLOPs of one image, a multiply-add as two."""
    config = architecture(name)
    if "image_size" in {item.name for item in dataclasses.fields(config)}:
        config = dataclasses.replace(config, image_size=image_size, **_partial(config, image_size))
    net = Net(config)
    flops = forward_flops(net, (image_size, image_size, config.in_channels))
    params = sum(leaf.size for leaf in net.shapes.values())
    return {"params_m": round(params / 1e6, 2), "gflops": round(flops / 1e9, 2)}


def forward_flops(net: Net, image_shape: tuple[int, ...], stop: str | int | None = None) -> float:
    """Return XLA's count of the FLOPs of one image up to, not including, a stage; a multiply-add is two."""
    image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)

    def run(params: Any, stats: Any, x: jax.Array) -> jax.Array:
        return net.apply(params, stats, x, stop=stop, kernels=PLAIN_FORMULAS)[0]

    with on_cpu():
        cost: Any = jax.jit(run).lower(net.shapes, net.stat_shapes, image).cost_analysis()
    return cost["flops"]


def _partial(config: Any, image_size: int) -> dict[str, bool]:
    return {"has_partial_patches": True} if image_size % config.patch_size else {}


def main() -> None:
    """Measure every net of the catalog that is not in the file yet."""
    from tljax.weights.catalog_entries import CATALOG

    known = sizes() if _PATH.exists() else {}
    for item in CATALOG.values():
        name = key(item.architecture, item.image_size)
        if name not in known:
            known[name] = measure(item.architecture, item.image_size)
            print(name, known[name], flush=True)
            write_bytes(_PATH, (json.dumps(known, indent=1, sort_keys=True) + "\n").encode())


if __name__ == "__main__":
    main()
