"""Loading peaks below 1.3 times the file, in resident memory, whatever holds it."""

import subprocess
import sys
import zipfile

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.golden.make_torch_files import FOLDER

WIDTH, DEPTH = 768, 11

# In a process of its own: the peak of this one is behind us.
SCRIPT = """
import sys
from pathlib import Path
import jax, jax.numpy as jnp
from tljax.weights.read import read_checkpoint

def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))

jnp.zeros(3).block_until_ready()
before = peak()
arrays = {}
for key, stored in read_checkpoint(Path(sys.argv[1])).arrays.items():
    arrays[key] = jnp.array(stored.read(), copy=True)
jax.block_until_ready(arrays)
print(sum(array.nbytes for array in arrays.values()), peak() - before)
"""


def vit_arrays():
    """Return 312 MB in the shapes of a ViT-B, of random bits so that no page is shared or packed."""
    shapes = {"pos_embed": (1, 197, WIDTH)}
    for block in range(DEPTH):
        shapes |= {
            f"blocks.{block}.norm1.weight": (WIDTH,),
            f"blocks.{block}.attn.qkv.weight": (3 * WIDTH, WIDTH),
            f"blocks.{block}.attn.proj.weight": (WIDTH, WIDTH),
            f"blocks.{block}.mlp.fc1.weight": (4 * WIDTH, WIDTH),
            f"blocks.{block}.mlp.fc2.weight": (WIDTH, 4 * WIDTH),
        }
    rng = np.random.default_rng(0)
    return {key: rng.random(shape, np.float32) for key, shape in shapes.items()}


def write_torch(path, arrays):
    """Write what torch.save writes: a pickle of views of storages, by hand because torch is not here."""
    text = lambda value: b"X" + len(value).to_bytes(4, "little") + value.encode()  # noqa: E731
    number = lambda value: b"J" + value.to_bytes(4, "little")  # noqa: E731
    numbers = lambda values: b"(" + b"".join(map(number, values)) + b"t"  # noqa: E731
    content = b"\x80\x02}("
    with zipfile.ZipFile(path, "w") as file:
        for index, (key, array) in enumerate(arrays.items()):
            file.writestr(f"model/data/{index}", array.data.cast("B"))
            kind = text("storage") + b"ctorch\nFloatStorage\n" + text(str(index)) + text("cpu") + number(array.size)
            strides = [stride // array.itemsize for stride in array.strides]
            view = b"(" + kind + b"tQ" + number(0) + numbers(array.shape) + numbers(strides) + b"\x89N"
            content += text(key) + b"ctorch._utils\n_rebuild_tensor_v2\n(" + view + b"tR"
        file.writestr("model/data.pkl", content + b"u.")


@pytest.mark.parametrize("name", ["model.safetensors", "model.pth", "model.npz"])
def test_peak_of_resident_memory(tmp_path, name):
    path, arrays = tmp_path / name, vit_arrays()
    if name == "model.safetensors":
        save_file(arrays, path)
    elif name == "model.pth":
        write_torch(path, arrays)
    else:
        np.savez(path, allow_pickle=False, **arrays)
    total = sum(array.nbytes for array in arrays.values())
    assert total >= 300_000_000
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT, path], capture_output=True, text=True, check=True, cwd=FOLDER.parents[1]
    )
    loaded, growth = map(int, result.stdout.split())
    assert loaded == total
    assert growth >= total  # the measure itself: the arrays are in this memory
    assert growth <= 1.3 * path.stat().st_size
