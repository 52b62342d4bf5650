"""Small runs of the tasks for tests: a ViT of two blocks and a ResNet, on pictures of two classes that overlap."""

import contextlib
import copy
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.compilation_cache import compilation_cache
from PIL import Image

from tests.toy import TINY_VIT
from tljax.data.decode import decode_image
from tljax.data.sources import open_source
from tljax.data.splits import Split, load_split
from tljax.models import Net
from tljax.models.resnet import ResNetConfig
from tljax.preprocess import Preprocess
from tljax.weights.write import export

VIT = dataclasses.replace(TINY_VIT, depth=2)
RESNET = ResNetConfig(depths=(1, 1), widths=(8, 16), stem_width=8, is_bottleneck=False, num_classes=2)
SIZE = 16
CLASSES = ("dark", "light")
NUM_IMAGES = 80


@contextlib.contextmanager
def remembering(folder: Path) -> Iterator[None]:
    """Keep compiled programs: runs of the same steps then compile them once."""
    settings = {
        "jax_compilation_cache_dir": str(folder),
        "jax_persistent_cache_min_compile_time_secs": 0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: getattr(jax.config, name) for name in settings}
    for name, value in settings.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


def write_pictures(folder: Path) -> Path:
    """Two classes of grey noise, whose brightness overlaps."""
    rng = np.random.default_rng(0)
    for name, brightness in zip(CLASSES, (112, 142), strict=True):
        (folder / name).mkdir(parents=True)
        for index in range(NUM_IMAGES // 2):
            level = rng.normal(brightness, 20)
            noise = rng.normal(level, 40, (20, 24, 3)).clip(0, 255).astype(np.uint8)
            Image.fromarray(noise).save(folder / name / f"{index:02d}.png")
    return folder


def write_model(folder: Path, architecture: Any = VIT, seed: int = 0, *, is_far: bool = True) -> Path:
    """A pretrained net, which is a random one, in the layout of transformers."""
    net = Net(architecture)
    params, stats = net.init(jax.random.key(seed))
    rng = np.random.default_rng(seed)
    if is_far:
        # Statistics that no batch would give, so that one that is used in place of the other shows.
        stats = {path: jnp.asarray(rng.uniform(0.5, 1.5, stat.shape), jnp.float32) for path, stat in stats.items()}
    export(folder, format="hf", architecture=architecture, params=params, stats=stats, preprocess=Preprocess(size=SIZE))
    return folder


def make_config(root: Path, **sections: Any) -> dict[str, Any]:
    """The config of a run on `root`/pictures with the net in `root`/vit.

    Args:
        root: folder with both.
        sections: keys that are added to, or take the place of, those of a section; None leaves a section out; what is
            no dict takes the place of the whole.
    """
    config: dict[str, Any] = {
        "seed": 0,
        "cache_dir": str(root / "cache"),
        "model": {"name": f"file:{root / 'vit'}"},
        "data": {"name": "folder", "root": str(root / "pictures")},
        "split": {"kind": "stratified", "repeat": 0, "test_fraction": 0.3, "val_fraction": 0.3},
        "evaluate": {},
        "groups": {"freeze": "block_01", "rates": {"body": 0.5}},
        "augment": {},
        "optimizer": {"name": "sgd", "weight_decay": 0.01, "clip_norm": 1.0, "arguments": {"momentum": 0.9}},
        "schedule": {"name": "cosine", "learning_rate": 0.1, "warmup_fraction": 0.1},
        "loss": {"name": "softmax"},
        "finetune": {
            "epochs": 3, "batch_size": 8, "cache": "never", "checkpoint_every": 100, "evaluate_every": 100,
            "drift_images": 0,
        },
    }  # fmt: skip
    for name, changes in sections.items():
        if changes is None:
            del config[name]
        elif isinstance(changes, dict):
            config[name] = {**config.get(name, {}), **changes}
        else:
            config[name] = changes
    return copy.deepcopy(config)


def metrics_of(workdir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def split_of(root: Path, workdir: Path) -> tuple[Any, Split]:
    source = open_source("folder", str(root / "pictures"))
    return source, load_split(workdir / "split.npz", source)


def apply_net(pretrained: Any, source: Any, indices: Any) -> np.ndarray:
    """Probabilities of images, without a task."""
    images = np.stack([pretrained.preprocess(decode_image(source[row]["image"], "")) for row in indices])
    x = pretrained.preprocess.normalise(jnp.asarray(images))
    scores, _ = pretrained.net.apply(pretrained.params, pretrained.stats, x)
    return np.asarray(jax.nn.softmax(scores))
