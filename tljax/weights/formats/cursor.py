"""A place in a file, for formats that are read from one thing to the next."""

from io import BufferedIOBase

from tljax.weights.formats.weight_file import DAMAGED, check_range

_MAX_READ_BYTES = 1 << 18
_CHARACTERS_PER_ITEM = 16


class Cursor:
    """A place in a part of a file, from which nothing outside of the part can be read.

    It is also a stream, for `pickletools`.

    Args:
        stream: the open file.
        start: where the part begins.
        stop: where it ends.
        max_items: how many items may be counted.
    """

    def __init__(self, stream: BufferedIOBase, start: int, stop: int, max_items: int):
        self._stream = stream
        self._items_left = max_items
        self.position = start
        self.stop = stop
        stream.seek(start)

    def take(self, count: int) -> bytes:
        """Read exactly `count` bytes.

        Raises:
            ValueError: the part ends before.
        """
        check_range(self.position, count, self.stop)
        data = self._stream.read(count)
        self.position += len(data)
        if len(data) < count:
            raise ValueError(f"it ends at byte {self.position:,}; {DAMAGED}")
        return data

    def skip(self, count: int) -> int:
        """Pass over `count` bytes and return where they begin.

        Raises:
            ValueError: the part ends before.
        """
        check_range(self.position, count, self.stop)
        start = self.position
        self.move(start + count)
        return start

    def move(self, position: int) -> None:
        """Go to another place in the part.

        Raises:
            ValueError: it is not in the part.
        """
        check_range(position, 0, self.stop)
        self.position = position
        self._stream.seek(position)

    def count(self, *, items: int = 1, characters: int = 0) -> None:
        """Count things that were found, which a text makes larger.

        Raises:
            ValueError: there is more than arrays of such a file can be made of.
        """
        self._items_left -= items + characters // _CHARACTERS_PER_ITEM
        if self._items_left < 0:
            raise ValueError(f"it has too many small parts for a file of weights of its size; {DAMAGED}")

    def read(self, count: int) -> bytes:
        """Read at most `count` bytes, and at most 256 KiB: a longer text belongs to no file of weights."""
        data = self._stream.read(min(count, _MAX_READ_BYTES, self.stop - self.position))
        self.position += len(data)
        return data

    def readline(self) -> bytes:
        """Read to the next end of a line, of at most 256 KiB."""
        data = self._stream.readline(min(_MAX_READ_BYTES, self.stop - self.position))
        self.position += len(data)
        return data

    def tell(self) -> int:
        """Return the position in the file."""
        return self.position
