"""Batches ahead of the step: in order, no more than asked for, errors and ends passed on."""

import threading
import traceback
from itertools import count

import pytest

from tljax.data.prefetch import BATCHES_AHEAD, Ahead

TIMEOUT_S = 60


def double(batch):
    return 2 * batch


def test_batches_come_in_order_and_end():
    with Ahead(iter(range(7)), double) as ahead:
        assert list(ahead) == [2 * number for number in range(7)]
        # For whoever asks again.
        assert next(ahead, None) is None


def test_so_many_are_ready_before_they_are_asked_for_and_no_more():
    put, full = [], threading.Event()

    def note(batch):
        put.append(batch)
        if len(put) == BATCHES_AHEAD + 3:
            full.set()
        return batch

    ahead = Ahead(count(), note)
    for _ in range(3):
        next(ahead)
    assert full.wait(TIMEOUT_S)
    ahead.close()
    assert put == list(range(BATCHES_AHEAD + 3))


def test_work_is_done_in_another_thread():
    with Ahead(count(), lambda batch: threading.get_ident()) as ahead:
        assert next(ahead) != threading.get_ident()


@pytest.mark.parametrize("where", ["batches", "put"])
def test_an_error_comes_at_its_turn_with_the_place_it_comes_from(where):
    def batches():
        yield from range(3)
        if where == "batches":
            damaged(3)
        yield 3

    def damaged(batch):
        raise OSError("the disk is gone")

    with Ahead(batches(), damaged if where == "put" else double) as ahead:
        if where == "batches":
            assert [next(ahead) for _ in range(3)] == [0, 2, 4]
        with pytest.raises(OSError, match="the disk is gone") as caught:
            next(ahead)
        assert "in damaged" in "".join(traceback.format_tb(caught.value.__traceback__))
        with pytest.raises(OSError, match="the disk is gone"):
            next(ahead)


def test_closing_ends_the_thread_and_the_stream():
    closed = threading.Event()

    def batches():
        try:
            yield from count()
        finally:
            closed.set()

    before = threading.active_count()
    with Ahead(batches(), double) as ahead:
        next(ahead)
        assert threading.active_count() == before + 1
    assert closed.is_set()
    assert threading.active_count() == before
    ahead.close()


def test_the_wait_for_a_batch_is_timed(monkeypatch):
    with Ahead(iter([1]), double) as ahead:
        times = iter([10.0, 12.5])
        monkeypatch.setattr("tljax.data.prefetch.time.monotonic", lambda: next(times))
        next(ahead)
    assert (ahead.asked_s, ahead.waited_s) == (10.0, 2.5)
