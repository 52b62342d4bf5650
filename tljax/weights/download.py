"""Files by their address, for weights that are on no hub: cached, checked, and whole or not there."""

import hashlib
import http.client
import logging
import os
import shutil
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

from rich.progress import Progress

from tljax.rundir import replacing

_TIMEOUT_S = 20.0
_CHUNK_BYTES = 1 << 20
_OFFLINE = ("HF_HUB_OFFLINE", "TLJAX_OFFLINE")

log = logging.getLogger(__name__)


def cache_folder() -> Path:
    """Return the folder of downloaded files: TLJAX_CACHE, or the user's cache."""
    given = os.environ.get("TLJAX_CACHE")
    return Path(given).expanduser() if given else Path.home() / ".cache" / "tljax"


def cached_file(url: str, sha256: str) -> Path:
    """Return the local copy of a file, downloading it when the cache lacks it.

    Args:
        url: "https://" address; "http://" only of this machine.
        sha256: of the file, or its first digits; "" where none is published.

    Raises:
        ConnectionError: the address cannot be reached, answers with an error, breaks off, or the environment says to
            stay offline.
        OSError: the cache cannot be written.
        ValueError: the file has another hash than was published, or the address is not encrypted.
    """
    parts = urllib.parse.urlsplit(url)
    _check_scheme(parts.scheme, parts.hostname)
    path = cache_folder() / "files" / (parts.hostname or "") / parts.path.strip("/")
    if path.is_file():
        return path
    offline = [name for name in _OFFLINE if os.environ.get(name, "").lower() not in ("", "0", "false")]
    if offline:
        raise ConnectionError(f"{url} is not in {cache_folder()}, and {offline[0]} is set; unset it to download")
    path.parent.mkdir(parents=True, exist_ok=True)
    log.info("downloading %s", url)
    with replacing(path) as temporary:
        _download(url, temporary)
        found = _sha256(temporary)
        if not found.startswith(sha256):
            raise ValueError(f"{url} has sha256 {found}, and {sha256} was published; what came is not kept")
    return path


def _check_scheme(scheme: str, host: str | None) -> None:
    if scheme != "https" and not (scheme == "http" and host in ("127.0.0.1", "localhost")):
        raise ValueError(f"{scheme}://{host} is not encrypted; weights are downloaded over https")


class _SafeRedirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects to encrypted addresses only."""

    def redirect_request(self, req, fp, code, msg, headers, newurl):
        parts = urllib.parse.urlsplit(newurl)
        _check_scheme(parts.scheme, parts.hostname)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _download(url: str, path: Path) -> None:
    """Write what an address answers to a file, all of it or an error."""
    fix = "try again when it can be reached, or download it elsewhere and load 'file:PATH'"
    try:
        with urllib.request.build_opener(_SafeRedirects).open(url, timeout=_TIMEOUT_S) as answer:
            expected = int(answer.headers.get("Content-Length") or 0)
            free = shutil.disk_usage(path.parent).free
            if expected > free:
                raise OSError(f"{url} has {expected:,} bytes and {path.parent} has room for {free:,}; make room")
            received = _copy(answer, path, expected)
    except urllib.error.HTTPError as error:
        raise ConnectionError(f"{url} answers {error.code} {error.reason}; {fix}") from error
    except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as error:
        reason = getattr(error, "reason", None) or error
        raise ConnectionError(f"cannot download {url} ({reason}); {fix}") from error
    if expected and received != expected:
        raise ConnectionError(f"{url} broke off after {received:,} of {expected:,} bytes; {fix}")


def _copy(answer: http.client.HTTPResponse, path: Path, expected: int) -> int:
    received = 0
    with path.open("wb") as file, Progress(transient=True) as progress:
        bar = progress.add_task("downloading", total=expected or None)
        while chunk := answer.read(_CHUNK_BYTES):
            file.write(chunk)
            received += len(chunk)
            progress.update(bar, completed=received)
    return received


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
