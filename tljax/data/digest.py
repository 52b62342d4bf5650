"""Identity of a sequence of encoded images."""

import hashlib
from collections.abc import Callable

from rich.progress import track


class ImageDigest:
    """Hash of a sequence of encoded images: where one ends and the next begins counts too."""

    def __init__(self) -> None:
        self._digest = hashlib.blake2b(digest_size=16)

    def update(self, image: bytes) -> None:
        """Add the next image."""
        self._digest.update(len(image).to_bytes(8, "little"))
        self._digest.update(image)

    def hexdigest(self) -> str:
        """Return 32 hex digits for the images so far."""
        return self._digest.hexdigest()


def digest_images(name: str, count: int, read: Callable[[int], bytes]) -> str:
    """Hash the encoded images 0 to count - 1, reading every one.

    Args:
        name: of the data, for people.
        count: number of images.
        read: position -> encoded image.
    """
    digest = ImageDigest()
    for index in track(range(count), f"fingerprint of {name}", transient=True):
        digest.update(read(index))
    return digest.hexdigest()
