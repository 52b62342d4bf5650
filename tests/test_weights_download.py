"""Files by address, from a server on this machine."""

import hashlib
import http.server
import threading

import pytest

from tljax.weights import download

CONTENT = bytes(range(256)) * 20
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, format, *args):
        pass

    def do_GET(self):
        if self.path == "/moved":
            self.send_response(302)
            self.send_header("Location", "http://example.org/weights")
            self.end_headers()
            return
        self.send_response(404 if self.path == "/gone" else 200)
        self.send_header("Content-Length", str(10**18 if self.path == "/huge" else len(CONTENT)))
        self.end_headers()
        self.wfile.write(CONTENT[:100] if self.path in ("/cut", "/huge") else CONTENT)
        self.close_connection = True


@pytest.fixture
def address(tmp_path, monkeypatch):
    monkeypatch.setenv("TLJAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("HF_HUB_OFFLINE")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def kept(tmp_path):
    return [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


def test_a_file_is_downloaded_once(address, tmp_path, monkeypatch):
    path = download.cached_file(f"{address}/weights/a.npz", SHA256[:8])
    assert path.read_bytes() == CONTENT
    assert kept(tmp_path) == [path]
    monkeypatch.setenv("TLJAX_OFFLINE", "1")
    assert download.cached_file(f"{address}/weights/a.npz", SHA256) == path
    with pytest.raises(ConnectionError, match=r"weights/b.npz is not in .*, and TLJAX_OFFLINE is set"):
        download.cached_file(f"{address}/weights/b.npz", "")


def test_another_content_than_was_published_is_not_kept(address, tmp_path):
    with pytest.raises(ValueError, match=f"has sha256 {SHA256}, and abcdef01 was published; what came is not kept"):
        download.cached_file(f"{address}/a.npz", "abcdef01")
    assert not kept(tmp_path)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gone", "gone answers 404 Not Found; try again"),
        ("cut", "cut broke off after 100 of 5,120 bytes|cannot download .*cut .*100 bytes read"),
        ("moved", "http://example.org is not encrypted"),
        ("huge", "huge has 1,000,000,000,000,000,000 bytes and .* has room for .*; make room"),
    ],
)
def test_what_goes_wrong_is_named_and_leaves_nothing(address, tmp_path, name, message):
    with pytest.raises((OSError, ValueError), match=message):
        download.cached_file(f"{address}/{name}", "")
    assert not kept(tmp_path)


def test_no_server_and_no_encryption(address):
    with pytest.raises(ConnectionError, match=r"cannot download http://127.0.0.1:1/x .*download it elsewhere"):
        download.cached_file("http://127.0.0.1:1/x", "")
    with pytest.raises(ValueError, match="http://example.org is not encrypted"):
        download.cached_file("http://example.org/x", "")
