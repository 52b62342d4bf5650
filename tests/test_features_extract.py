import dataclasses
import errno
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from tests.kill import finish, kill_and_finish
from tests.toy import TINY_VIT, tiny_vit, toy_conv
from tljax import plain
from tljax.data.augment import Augment, dihedral
from tljax.data.bank import Bank
from tljax.data.decode import decode_image
from tljax.data.folder import ImageFolder, open_folder
from tljax.features import extract, feature_spec, open_store, writing
from tljax.features.store import FeatureStore
from tljax.models import Net
from tljax.preprocess import Preprocess

TAPS = ("block_00", "block_02", "block_03")
NET = tiny_vit()
PREPROCESS = Preprocess(size=16)
NUM_IMAGES = 22
BATCH_SIZE = 4


def draw_arrays(net: Net, scale: float = 0.3) -> tuple[dict, dict]:
    """Params and statistics far from a fresh net's, where blocks hardly change their input."""
    rng = np.random.default_rng(0)
    params = {path: (scale * rng.normal(size=leaf.shape)).astype(np.float32) for path, leaf in net.shapes.items()}
    stats = {path: rng.uniform(0.5, 2, leaf.shape).astype(np.float32) for path, leaf in net.stat_shapes.items()}
    return params, stats


def write_images(root: Path, num_images: int, side: int = 20) -> ImageFolder:
    rng = np.random.default_rng(0)
    for index in range(num_images):
        path = root / f"class_{2 * index // num_images}" / f"{index:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (side, side, 3), np.uint8)).save(path)
    return open_folder(root)


@dataclass(kw_only=True)
class Recorded:
    """A source that notes which images are read."""

    source: ImageFolder
    reads: list[int] = field(default_factory=list)

    def __getattr__(self, name):
        return getattr(self.source, name)

    def __len__(self):
        return len(self.source)

    def __getitem__(self, index):
        self.reads.append(int(index))
        return self.source[index]


@pytest.fixture
def source(tmp_path) -> Recorded:
    return Recorded(source=write_images(tmp_path / "images", NUM_IMAGES))


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch):
    monkeypatch.setattr(writing, "BATCHES_PER_SHARD", 2)


def run(source, directory, net=NET, *, preprocess=PREPROCESS, scale=0.3, taps=TAPS, **options) -> FeatureStore:
    params, stats = draw_arrays(net, scale)
    return extract(
        net, params, stats, source, preprocess, directory, taps=taps, **{"batch_size": BATCH_SIZE, **options}
    )


def content(store: FeatureStore) -> dict[str, bytes]:
    assert store.verify() == []
    return {name: store.read(name).tobytes() for name in store.arrays}


def pixels(source, view: int) -> jax.Array:
    images = [PREPROCESS(decode_image(source[index]["image"], "test")) for index in range(len(source))]
    return PREPROCESS.normalise(jnp.asarray(np.stack([dihedral(image, view) for image in images])))


@pytest.mark.parametrize("views", [1, 3])
def test_features_are_the_normed_and_pooled_output_of_each_tap(tmp_path, source, views):
    params, stats = draw_arrays(NET)

    @jax.jit
    def wanted(images):
        outputs = [NET.apply(params, stats, images, stop=NET.depth(tap) + 1)[0] for tap in TAPS]
        return [NET.pool(NET.apply(params, stats, y, start="norm", stop="head")[0], "cls_mean") for y in outputs]

    store = run(source, tmp_path / "store", views=views, dtype="float32")
    assert list(store.arrays) == list(TAPS)
    assert store.num_rows == NUM_IMAGES * views
    for view in range(views):
        for tap, features in zip(TAPS, wanted(pixels(source, view)), strict=True):
            # Batches of another size, so sums in another order.
            np.testing.assert_allclose(store.read(tap)[view::views], features, atol=1e-5)


def test_several_poolings_come_from_one_pass(tmp_path, source):
    kinds = ("cls", "mean", "cls_mean", "max", "grid")
    store = run(source, tmp_path / "all", taps=("block_00", "block_02"), pooling=kinds, dtype="float32")
    assert list(store.arrays) == [f"{tap}.{kind}" for tap in ("block_00", "block_02") for kind in sorted(kinds)]
    params, stats = draw_arrays(NET)
    for tap in ("block_00", "block_02"):
        grid = store.read(f"{tap}.grid")
        normed = np.asarray(NET.apply(params, stats, jnp.asarray(grid), start="norm", stop="head")[0])
        wanted = {"cls": normed[:, 0], "mean": normed[:, 1:].mean(axis=1), "max": normed[:, 1:].max(axis=1)}
        wanted["cls_mean"] = np.concatenate([wanted["cls"], wanted["mean"]], axis=1)
        for kind, features in wanted.items():
            np.testing.assert_allclose(store.read(f"{tap}.{kind}"), features, atol=1e-5)
    some = {"block_00": "grid", "block_02": ("max", "cls")}
    store = run(source, tmp_path / "some", taps=("block_00", "block_02"), pooling=some, dtype="float32")
    assert [tuple(row.shape) for row in store.arrays.values()] == [(17, 16), (16,), (16,)]
    assert list(store.arrays) == ["block_00", "block_02.cls", "block_02.max"]


def test_one_pooling_in_other_words_is_the_same_store(source):
    given = (NET, *draw_arrays(NET), source, PREPROCESS)
    words: tuple[Any, ...] = ("max", ("max",), dict.fromkeys(TAPS, "max"), {tap: ["max"] for tap in TAPS})
    first, *others = (feature_spec(*given, taps=TAPS, pooling=pooling) for pooling in words)
    assert first["pooling"] == "max"
    assert others == [first] * 3


@pytest.mark.parametrize("net", [NET, toy_conv()], ids=["vit", "conv"])
def test_one_device_makes_the_bits_of_eight(tmp_path, source, net, monkeypatch):
    options = {"taps": net.stages[1:2], "pooling": ("mean", "grid"), "views": 2, "dtype": "float32", "batch_size": 3}
    eight = run(source, tmp_path / "eight", net, **options)
    monkeypatch.setattr(jax, "local_devices", lambda: jax.devices()[:1])
    assert content(run(source, tmp_path / "one", net, **options)) == content(eight)


def test_a_bank_holds_the_image_and_fixed_changes_of_it(tmp_path, source):
    augment = Augment(views=8, crop_scale=(0.2, 1.0), trivial_augment=True, erasing_probability=0.5)
    options = {"taps": ("block_00",), "pooling": "grid", "dtype": "float32"}
    store = run(source, tmp_path / "bank", views=3, augment=augment, seed=5, **options)
    plain = run(source, tmp_path / "plain", **options).read("block_00")
    rows = store.read("block_00").reshape(NUM_IMAGES, 3, -1)
    np.testing.assert_array_equal(rows[:, 0], plain.reshape(NUM_IMAGES, -1))
    # Not all 66: a translation by 16 pixels or more leaves black only.
    assert len({row.tobytes() for row in rows.reshape(NUM_IMAGES * 3, -1)}) > 55
    params, stats = draw_arrays(NET)
    bank = Bank(views=3, augment=augment, seed=5)
    shown = np.stack([bank.show(decode_image(source[i]["image"], ""), i, PREPROCESS)[2] for i in range(NUM_IMAGES)])
    wanted, _ = NET.apply(params, stats, PREPROCESS.normalise(jnp.asarray(shown)), stop="block_01")
    # Batches of another size, so sums in another order.
    np.testing.assert_allclose(rows[:, 2], np.asarray(wanted).reshape(NUM_IMAGES, -1), atol=1e-5)
    for change, named in (({"seed": 6}, "seed: 5 there, 6 now"), ({"views": 4}, "views: 3 there, 4 now")):
        with pytest.raises(ValueError, match=named):
            run(source, tmp_path / "bank", **{"views": 3, "augment": augment, "seed": 5, **options, **change})


def test_scores_of_the_head_come_with_the_features(tmp_path, source):
    params, stats = draw_arrays(NET)
    store = run(source, tmp_path / "store", taps=(*TAPS, "head"), dtype="float32")
    scores, _ = jax.jit(lambda x: NET.apply(params, stats, x))(pixels(source, 0))
    np.testing.assert_allclose(store.read("head"), scores, atol=1e-4)
    alone = run(source, tmp_path / "alone", dtype="float32")
    np.testing.assert_allclose(store.read(TAPS[-1]), alone.read(TAPS[-1]), atol=1e-6)
    assert store.ingredients["params"] != alone.ingredients["params"]


def test_features_of_a_net_without_tokens_or_norm(tmp_path, source):
    net = toy_conv()
    params, stats = draw_arrays(net)
    store = run(source, tmp_path / "store", net, taps=("layer_0", "layer_1"), pooling="mean", dtype="float32")
    y, _ = net.apply(params, stats, pixels(source, 0), stop="head")
    np.testing.assert_allclose(store.read("layer_1"), jnp.mean(y, axis=(1, 2)), atol=1e-5)
    with pytest.raises(ValueError, match="use 'mean' or 'max'"):
        run(source, tmp_path / "class_token", net, taps=("layer_0",))


def test_smaller_dtypes_are_the_rounded_features(tmp_path, source):
    exact = run(source, tmp_path / "float32", dtype="float32")
    for dtype in ("float16", "bfloat16"):
        rounded = run(source, tmp_path / dtype, dtype=dtype)
        for tap in TAPS:
            assert rounded.read(tap).tobytes() == exact.read(tap).astype(jnp.dtype(dtype)).tobytes()


def test_each_stage_runs_once(tmp_path, source, monkeypatch):
    ran = []
    apply = Net.apply

    def recorded(self, params, stats, x, *, start=0, stop=None, train_from=None):
        ran.extend(self.stages[self.depth(start) : self.depth(stop)])
        assert train_from is None
        return apply(self, params, stats, x, start=start, stop=stop)

    monkeypatch.setattr(Net, "apply", recorded)
    # A size of its own, so that no other test has compiled it.
    run(source, tmp_path / "store", batch_size=11)
    # Traced once, for the shapes; the compilation takes that trace.
    assert ran == ["embed", "block_00", "norm", "block_01", "block_02", "norm", "block_03", "norm"]
    assert sorted(source.reads) == list(range(NUM_IMAGES))


def test_a_complete_store_is_reused_without_an_image_or_a_trace(tmp_path, source, monkeypatch, caplog):
    first = content(run(source, tmp_path / "store"))
    source.reads.clear()
    monkeypatch.setattr(jax, "eval_shape", lambda *_: pytest.fail("the net was traced"))
    monkeypatch.setattr(Net, "apply", lambda *_, **__: pytest.fail("the net was run"))
    with caplog.at_level("INFO"):
        again = run(source, tmp_path / "store", batch_size=7)
    assert "reusing 22 rows of block_00, block_02, block_03" in caplog.text
    assert content(again) == first
    assert source.reads == []


def test_a_damaged_shard_is_made_again_to_the_same_bits_and_nothing_else(tmp_path, source):
    first = content(run(source, tmp_path / "store"))
    source.reads.clear()
    os.truncate(tmp_path / "store" / "block_02.00001.npy", 140)
    assert content(run(source, tmp_path / "store")) == first
    assert sorted(source.reads) == list(range(8, 16))


def test_after_a_full_disk_the_next_call_goes_on(tmp_path, source, monkeypatch):
    first = content(run(source, tmp_path / "whole"))
    replace = os.replace

    def full(origin, target):
        if Path(target).name == "block_02.00001.npy":
            raise OSError(errno.ENOSPC, "No space left on device")
        replace(origin, target)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match=r"cannot write .*block_02.00001.npy: No space left"):
        run(source, tmp_path / "store")
    monkeypatch.setattr(os, "replace", replace)
    assert open_store(tmp_path / "store").missing_shards() == [1, 2]
    source.reads.clear()
    assert content(run(source, tmp_path / "store")) == first
    assert sorted(source.reads) == list(range(8, NUM_IMAGES))


def test_an_overflow_names_the_dtype_that_holds_it(tmp_path, source):
    options = {"scale": 30.0, "pooling": "grid", "taps": ("block_02",)}
    with pytest.raises(ValueError, match=r"'block_02' in shard 0 .* beyond float16; extract with dtype='float32'"):
        run(source, tmp_path / "float16", **options)
    large = run(source, tmp_path / "float32", dtype="float32", **options).read("block_02")
    assert np.abs(large).max() > np.finfo(np.float16).max


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"scale": 0.4}, "params"),
        ({"preprocess": Preprocess(size=16, interpolation="bilinear")}, "preprocess.interpolation"),
        ({"net": Net(dataclasses.replace(TINY_VIT, num_heads=4))}, "net.num_heads"),
        ({"dtype": "float32"}, "dtype"),
        ({"views": 2}, "views"),
    ],
)
def test_features_of_something_else_are_refused(tmp_path, source, change, named):
    run(source, tmp_path / "store")
    with pytest.raises(ValueError, match="made from something else") as caught:
        run(source, tmp_path / "store", **change)
    (difference,) = str(caught.value).splitlines()[1:]
    assert difference.startswith(f"  {named}: ")


def test_other_images_are_refused(tmp_path, source):
    run(source, tmp_path / "store")
    fewer = write_images(tmp_path / "fewer", NUM_IMAGES - 1)
    with pytest.raises(ValueError, match=r"data: '.*' there"):
        run(fewer, tmp_path / "store")


def test_the_spec_leaves_out_what_cannot_change_the_features(source):
    params, stats = draw_arrays(NET)

    def spec(changes, net=NET, taps=TAPS[:2]):
        return feature_spec(net, {**params, **changes}, stats, source, PREPROCESS, taps=taps)

    before = spec({})
    more_classes = Net(dataclasses.replace(TINY_VIT, num_classes=5))
    head = {"head/linear/bias": np.ones(5, np.float32), "block_03/norm1/bias": np.ones(16, np.float32)}
    assert spec(head, more_classes) == spec({})
    assert plain.fingerprint(spec({}, taps=TAPS)) != plain.fingerprint(spec({}))
    assert spec({"norm/bias": np.ones(16, np.float32)})["params"] != spec({})["params"]
    with jax.default_matmul_precision("highest"):
        assert plain.fingerprint(spec({})) != plain.fingerprint(before)
    # Running statistics count as params do.
    conv = toy_conv()
    params, stats = draw_arrays(conv)
    name = next(path for path in stats if path.startswith("layer_0"))
    specs = [
        feature_spec(conv, params, given, source, PREPROCESS, taps=("layer_0",), pooling="mean")
        for given in (stats, {**stats, name: stats[name] + 1})
    ]
    assert specs[0]["stats"] != specs[1]["stats"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"taps": ("block_02", "block_00")}, "wanted one or more stages in order of depth"),
        ({"taps": ()}, "wanted one or more stages"),
        ({"taps": ("blok_02",)}, "did you mean 'block_0"),
        ({"taps": ("norm",)}, "the last tap can be 'block_03'"),
        ({"taps": ("norm", "head")}, "after stage 'norm'; the last tap can be 'block_03'"),
        ({"taps": ("head",), "pooling": "grid"}, "the last tap can be 'norm'"),
        ({"dtype": "float61"}, "did you mean 'float16'"),
        ({"views": 9}, "wanted 1 to 8"),
        ({"pooling": "maximum"}, "pooling 'maximum' is not known"),
        ({"pooling": ()}, "wanted one or more kinds"),
        ({"pooling": ("max", "max")}, "wanted one or more kinds, each once"),
        ({"pooling": {"block_00": "max"}}, "'block_02' is not both"),
        ({"augment": Augment(crop_scale=(0.5, 1.0))}, "leaves none for augment; wanted 2 or more"),
    ],
)
def test_wrong_arguments_are_named_before_anything_is_written(tmp_path, source, options, message):
    with pytest.raises(ValueError, match=message):
        run(source, tmp_path / "store", **options)
    assert not (tmp_path / "store").exists()


def extract_to(ready: Callable[[], None], directory: Path, images: Path) -> None:
    """Extract in a process of its own, which is ready when it begins to write."""
    write = FeatureStore.write

    def write_and_tell(self, shard, arrays):
        ready()
        write(self, shard, arrays)

    # The process ends with the job, so these need no undoing.
    FeatureStore.write = write_and_tell
    writing.BATCHES_PER_SHARD = 1
    jax.config.update("jax_compilation_cache_dir", str(images.parent / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.local_devices = lambda: jax.devices()[:1]
    # Small, as every process traces it.
    net = Net(dataclasses.replace(TINY_VIT, depth=1, use_layer_scale=False))
    run(open_folder(images), directory, net, taps=("embed", "block_00"), views=2)


@pytest.mark.parametrize("kills", [5, pytest.param(20, marks=pytest.mark.slow)])
def test_extraction_killed_at_many_moments_completes_to_the_same_bits(tmp_path, kills):
    images = tmp_path / "images"
    write_images(images, 64, side=300)
    duration_s = finish(extract_to, tmp_path / "whole", images)
    store = tmp_path / "killed"
    # In steps so small that all of them end before the work does.
    num_killed = kill_and_finish(extract_to, store, images, kills=kills, within_s=duration_s / (kills + 4), seed=0)
    assert num_killed > 0
    assert content(open_store(store)) == content(open_store(tmp_path / "whole"))
    assert not list(store.glob(".*"))
