"""The download path against a hub on this machine: a small server with the answers that the hub's library asks for."""

import hashlib
import http.server
import json
import threading
import time
from pathlib import Path

import huggingface_hub.constants
import jax
import numpy as np
import pytest

import tljax
from tests.toy import TINY_VIT
from tljax.models import Net
from tljax.preprocess import Preprocess
from tljax.weights import hub
from tljax.weights.folder import PROCESSOR
from tljax.weights.write import write_model_folder

COMMIT = "c" * 40
NAME = "hf:owner/tiny"


class Hub:
    """A hub with one repository of files; `mood` says how it behaves.

    Moods: "well"; "silent" accepts and does not answer; "cut" breaks off in the middle of the weights; "down" answers
    with an error of its own.
    """

    def __init__(self, files: dict[str, bytes]):
        self.files = files
        self.mood = "well"
        self.is_over = threading.Event()
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"

    def close(self) -> None:
        self.is_over.set()
        self.server.shutdown()
        self.server.server_close()


def _handler(hub: Hub) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, format, *args):
            pass

        def do_HEAD(self):
            self.do_GET()

        def do_GET(self):
            if hub.mood == "silent":
                hub.is_over.wait(60)
                self.close_connection = True
                return
            parts = self.path.split("?")[0].strip("/").split("/")
            if hub.mood == "down":
                self.answer(503, b"{}")
            elif parts[:2] == ["api", "models"] and parts[2:4] != ["owner", "tiny"]:
                self.answer(404, b'{"error": "Repository not found"}', {"X-Error-Code": "RepoNotFound"})
            elif parts[4:5] == ["tree"]:
                tree = [
                    {"type": "file", "path": path, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                    for path, content in hub.files.items()
                ]
                self.answer(200, json.dumps(tree).encode())
            elif parts[0] == "api":
                self.answer(
                    200,
                    json.dumps(
                        {"id": "owner/tiny", "sha": COMMIT, "siblings": [{"rfilename": name} for name in hub.files]}
                    ).encode(),
                )
            else:
                self.send_file(parts[-1])

        def send_file(self, name):
            content = hub.files[name]
            headers = {"ETag": hashlib.sha1(content).hexdigest(), "X-Repo-Commit": COMMIT}
            if hub.mood == "cut" and name.endswith(".safetensors") and self.command == "GET":
                self.answer(200, content[: len(content) // 2], headers, length=len(content))
            else:
                self.answer(200, content, headers)

        def answer(self, status, content, headers=None, length=None):
            self.send_response(status)
            self.send_header("Content-Length", str(length or len(content)))
            for key, value in (headers or {}).items():
                self.send_header(key, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)
            self.close_connection = True

    return Handler


@pytest.fixture
def weights(tmp_path):
    params, _ = Net(TINY_VIT).init(jax.random.key(3))
    write_model_folder(tmp_path / "model", TINY_VIT, params, Preprocess(size=16))
    return params, {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()}


@pytest.fixture
def server(weights, tmp_path, monkeypatch):
    started = Hub(weights[1])
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "ENDPOINT", started.endpoint)
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace("https://huggingface.co", started.endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    yield started
    started.close()


def snapshot(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "models--owner--tiny" / "snapshots" / COMMIT


def test_download_then_cache_without_a_network(server, weights, capfd):
    loaded = tljax.load(NAME)
    assert "Fetching 3 files" in capfd.readouterr().err  # the progress bar
    assert loaded.description == f"{NAME} at commit {COMMIT}"
    for path, value in weights[0].items():
        np.testing.assert_array_equal(loaded.params[path], value)
    server.mood = "down"
    assert tljax.load(NAME).fingerprint() == loaded.fingerprint()
    assert tljax.load(NAME, revision=COMMIT).fingerprint() == loaded.fingerprint()


def test_a_download_that_breaks_off_is_explained_and_goes_on(server, tmp_path):
    server.mood = "cut"
    with pytest.raises(ConnectionError, match="cannot reach.*hf:owner/tiny.*What has arrived is kept"):
        tljax.load(NAME)
    # Settings without weights are no copy to use.
    assert (snapshot(tmp_path) / "config.json").exists()
    server.mood = "down"
    with pytest.raises(ConnectionError, match="file:DIR"):
        tljax.load(NAME)
    server.mood = "well"
    tljax.load(NAME)


def test_a_cached_copy_without_a_shard_is_downloaded_again(server, weights, tmp_path, monkeypatch):
    single = weights[1].pop("model.safetensors")
    shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    index = {"weight_map": {"first": shards[0], "second": shards[1]}}
    weights[1].update({"model.safetensors.index.json": json.dumps(index).encode()})
    weights[1].update(dict.fromkeys(shards, single))
    folder = hub.hub_folder("owner/tiny", None)
    (folder / shards[1]).unlink()
    # An older release of the library leaves no list of the files that belong to a snapshot.
    for listing in (tmp_path / "cache" / "models--owner--tiny").glob("trees/*"):
        listing.unlink()
    monkeypatch.setattr("huggingface_hub._tree_cache._IN_MEMORY_TREE_CACHE", {})
    assert hub.hub_folder("owner/tiny", None) == folder
    assert (folder / shards[1]).read_bytes() == single


def test_a_server_that_does_not_answer_is_given_up_in_time(server, monkeypatch):
    assert hub._CONNECT_TIMEOUT_S < 10
    monkeypatch.setattr(hub, "_CONNECT_TIMEOUT_S", 1.0)
    server.mood = "silent"
    start = time.monotonic()
    with pytest.raises(ConnectionError, match="cannot reach.*(no answer in 1 s|timed out)"):
        tljax.load(NAME)
    assert time.monotonic() - start < 10


def test_a_repository_that_is_not_there_is_named(server):
    with pytest.raises(ValueError, match="the hub refuses hf:owner/tyni at revision main"):
        tljax.load("hf:owner/tyni")


def test_weights_come_in_one_format_of_several(server, weights):
    weights[1]["pytorch_model.bin"] = weights[1]["flax_model.msgpack"] = b"not asked for"
    folder = hub.hub_folder("owner/tiny", None)
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors", PROCESSOR]
    tljax.load(NAME)


def test_a_repository_with_another_format_only(server, weights):
    """Told by its content: the name promises torch."""
    weights[1]["pytorch_model.bin"] = weights[1].pop("model.safetensors")
    tljax.load(NAME)


def test_a_repository_without_weights_is_named(server, weights):
    weights[1].pop("model.safetensors")
    with pytest.raises(ValueError, match=f"hf:owner/tiny at {COMMIT} came without model.safetensors"):
        tljax.load(NAME)


def test_names_of_timm_are_those_of_its_repositories(server):
    with pytest.raises(ValueError, match="the hub refuses hf:timm/vit_tiny_patch16_224.augreg_in21k at revision main"):
        tljax.load("timm:vit_tiny_patch16_224.augreg_in21k")
