"""Batches brought to the devices ahead of the step that uses them."""

import queue
import threading
import time
from collections.abc import Callable, Generator, Iterator
from typing import Any

BATCHES_AHEAD = 2


class Ahead(Iterator[Any]):
    """Batches that a thread reads and puts on the devices while steps run; a context, which ends the thread.

    A class because a thread and its reader share it.

    Args:
        batches: to read; closed at the end, where it is a generator.
        put: host batch -> device batch.

    Attributes:
        asked_s: when the latest batch was asked for, by the clock of `time.monotonic`.
        waited_s: seconds until it was there.
    """

    def __init__(self, batches: Iterator[Any], put: Callable[[Any], Any]):
        self.asked_s, self.waited_s = time.monotonic(), 0.0
        self._batches, self._put = batches, put
        self._ready: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()
        self._room = threading.Semaphore(BATCHES_AHEAD)
        self._is_closed = False
        self._thread = threading.Thread(target=self._run, name="batches to devices", daemon=True)
        self._thread.start()

    def __enter__(self) -> "Ahead":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __next__(self) -> Any:
        """Return the next batch.

        Raises:
            StopIteration: there are no more.
            Exception: what reading or putting raised, in the thread, at the turn of that batch.
        """
        self.asked_s = time.monotonic()
        batch, error = self._ready.get()
        self.waited_s = time.monotonic() - self.asked_s
        if error is not None:
            # For whoever asks again.
            self._ready.put((None, error))
            raise error
        self._room.release()
        return batch

    def close(self) -> None:
        """End the thread, and what it reads from; waits for the batch that it is at."""
        self._is_closed = True
        self._room.release()
        self._thread.join()

    def _run(self) -> None:
        try:
            while self._room.acquire() and not self._is_closed:
                self._ready.put((self._put(next(self._batches)), None))
        except BaseException as error:  # raised again by the reader
            self._ready.put((None, error))
        finally:
            if isinstance(self._batches, Generator):
                self._batches.close()
