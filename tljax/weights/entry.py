"""What the catalog says of one set of published weights."""

import dataclasses
import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from tljax.preprocess import Preprocess
from tljax.weights.download import cached_file
from tljax.weights.read import read_checkpoint
from tljax.weights.stored import Checkpoint, Stored


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One set of published weights.

    Args:
        architecture: name in `tljax.models.ARCHITECTURES`.
        source: "hf:OWNER/NAME" or "timm:NAME" on the hub, which says its preprocessing itself; an
            "https://" address of a file; or "package:NAME/FILE" in an installed package.
        layout: of the file; of a repository on the hub, which may hold several, that of its usual one.
        preprocess: what the weights want done to images, where the source does not say it.
        description: what they are, for reports.
        licence: of the weights.
        image_size: side in pixels at which they are used as published.
        install: command that installs the package.
        sha256: of the file, or the first digits of it, where published.
        rearrange: brings the arrays into the keys of the layout, where no rename can.
    """

    architecture: str
    source: str
    layout: str
    preprocess: Preprocess | None = None
    description: str
    licence: str
    image_size: int
    install: str = ""
    sha256: str = ""
    rearrange: Callable[[Mapping[str, Stored]], Mapping[str, Stored]] | None = None

    def open(self) -> Checkpoint:
        """Find the file of a "package:" or "https://" source, and read its header.

        Raises:
            ImportError: the package is not installed.
            FileNotFoundError: this release of it has no such file.
            ConnectionError: the address cannot be reached and the cache lacks the file.
            ValueError: the file is damaged.
        """
        if self.source.startswith("https://"):
            path = cached_file(self.source, self.sha256)
        else:
            package, _, name = self.source.removeprefix("package:").partition("/")
            path = packaged_file(package, name, self.install)
        checkpoint = read_checkpoint(path)
        if self.rearrange is None:
            return checkpoint
        return dataclasses.replace(checkpoint, arrays=self.rearrange(checkpoint.arrays))


def packaged_file(package: str, name: str, install: str) -> Path:
    """Locate a data file of an installed package without importing the package.

    Raises:
        ImportError: the package is not installed; the message gives the command `install`.
        FileNotFoundError: this release of the package has no such file.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise ImportError(f"the weights are in the package {package}, which is not installed: {install}")
    path = Path(spec.origin).parent / name
    if not path.is_file():
        raise FileNotFoundError(f"the installed {package} has no {name}: {install}")
    return path
