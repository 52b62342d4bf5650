"""Worker processes: the same bits, no devices, and an end in every case."""

import multiprocessing
import os
import select
import signal
import threading
from functools import partial
from itertools import islice

import numpy as np
import pytest
from jax._src import xla_bridge

from tests.kill import dies
from tljax.data.loading import BATCHES_AHEAD, Order, Row, load_in_threads
from tljax.data.workers import BATCHES_LENT, check_num_workers, load_in_workers

TIMEOUT_S = 60
CORES = len(os.sched_getaffinity(0))


def orders(count, *, size=40):
    """Batches whose rows count on, so that any mix-up of places shows; up to 3 rows at the end are padding."""
    for number in range(count):
        places = np.arange(number * size, (number + 1) * size)
        rows = np.stack([places, places * 7, places % 5], axis=1)
        yield Order(rows, np.arange(size) < size - padding(number), {"place": places})


def padding(number):
    return number * 5 % 4


def picture(row):
    return np.array([[row.place % 251, row.position % 241], [row.view, 1]], np.uint8)


def load(count, function=picture, **options):
    return load_in_workers(orders(count, **options), function, Row(0, 0, 0), num_workers=2)


def expected(batch):
    places = batch["place"]
    wanted = np.stack([picture(Row(*row)) for row in zip(places, places * 7, places % 5, strict=True)])
    wanted[len(wanted) - padding(places[0] // len(places)) :] = 0
    return wanted


def failing(row, error):
    # In different tickets of one batch.
    if row.place % 40 in (17, 33) and row.place > 80:
        raise error(f"image {row.place} is damaged")
    return picture(row)


def dying(row):
    if row.place == 90:
        os.kill(os.getpid(), signal.SIGKILL)
    return picture(row)


def process_id(row):
    return np.frombuffer(np.int64(os.getpid()).tobytes(), np.uint8)


def signalled(row):
    """Send what terminals and clusters send to all processes of a job."""
    if multiprocessing.parent_process() is not None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
    return picture(row)


def has_devices(row):
    return np.array([xla_bridge.backends_are_initialized()], np.uint8)


def lost():
    raise AttributeError("not there")


class NotThere:
    """What cannot be unpickled."""

    def __reduce__(self):
        return (lost, ())

    def __call__(self, row):
        return picture(row)


class BadError(Exception):
    """One that does not survive pickling."""

    def __init__(self, text):
        super().__init__(text)
        self.lock = threading.Lock()


def test_rows_are_where_they_belong():
    batches = list(load(30))
    assert len(batches) == 30
    for number, batch in enumerate(batches):
        assert batch["place"][0] == number * 40
        np.testing.assert_array_equal(batch["image"], expected(batch))


@pytest.mark.parametrize("kept", [slice(None), slice(30, 31)])
def test_what_a_reader_keeps_stays_as_it_is(kept):
    """Memory is used again, but not while anything refers to it, a part of a batch included."""
    wanted, held = [], []
    for batch in load(BATCHES_AHEAD + 3 * BATCHES_LENT):
        wanted.append(expected(batch)[kept])
        held.append(batch["image"][kept])
    for part, right in zip(held, wanted, strict=True):
        np.testing.assert_array_equal(part, right)


def test_a_reader_that_keeps_nothing_costs_no_copy():
    """All batches then lie in the places that there are."""
    addresses = set()
    for batch in load(40):
        addresses.add(batch["image"].ctypes.data)
        del batch
    assert len(addresses) <= BATCHES_AHEAD + BATCHES_LENT


@pytest.mark.parametrize("run", [load, lambda count, function: load_in_threads(orders(count), function, Row(0, 0, 0))])
def test_an_error_comes_at_its_batch_and_is_the_first_of_it(run):
    stream = run(9, partial(failing, error=ValueError))
    batches = [next(stream), next(stream)]
    np.testing.assert_array_equal(batches[1]["image"], expected(batches[1]))
    with pytest.raises(ValueError, match="image 97 is damaged"):
        next(stream)


def test_an_error_says_where_it_was_raised():
    with pytest.raises(ValueError, match="image 97") as caught:
        list(load(9, partial(failing, error=ValueError)))
    assert "in failing" in caught.value.__notes__[0]
    with pytest.raises(RuntimeError, match="BadError: image 97 is damaged"):
        list(load(9, partial(failing, error=BadError)))


def test_a_worker_that_dies_is_an_error():
    with pytest.raises(ChildProcessError, match="worker process .* died with exit code -9"):
        list(load(9, dying))


def test_workers_outlive_the_signals_that_a_whole_job_gets():
    for batch in load(2, signalled):
        np.testing.assert_array_equal(batch["image"], expected(batch))


def test_workers_start_no_devices():
    assert not np.concatenate([batch["image"] for batch in load(2, has_devices)]).any()


def workers_of(stream):
    images = np.concatenate([batch["image"][:-3] for batch in islice(stream, 2)])
    return set(images.view(np.int64).reshape(-1).tolist())


def has_ended(process):
    try:
        descriptor = os.pidfd_open(process)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([descriptor], [], [], TIMEOUT_S)[0])
    finally:
        os.close(descriptor)


def test_workers_end_with_their_stream():
    stream = load(9, process_id)
    workers = workers_of(stream)
    assert 1 <= len(workers - {os.getpid()}) <= 2
    stream.close()
    assert all(has_ended(process) for process in workers - {os.getpid()})


def read_and_die(ready, path):
    # Never closed: the process has no time to.
    stream = load(1000, process_id)
    path.write_text(" ".join(map(str, workers_of(stream) - {os.getpid()})))
    ready()
    os.kill(os.getpid(), signal.SIGKILL)


def read_and_leave(ready, path, kept):
    kept.append(load(1000, process_id))
    path.write_text(" ".join(map(str, workers_of(kept[0]) - {os.getpid()})))
    ready()


@pytest.mark.parametrize(("job", "is_killed"), [(read_and_die, True), (partial(read_and_leave, kept=[]), False)])
def test_workers_end_with_the_process_that_reads(tmp_path, job, is_killed):
    assert dies(job, tmp_path / "workers") == is_killed
    workers = [int(word) for word in (tmp_path / "workers").read_text().split()]
    assert workers
    assert all(has_ended(process) for process in workers)


def test_what_cannot_be_sent_is_an_error():
    with pytest.raises(ValueError, match="cannot be sent to worker processes: .*; make it of classes and functions"):
        list(load(2, lambda row: picture(row)))
    with pytest.raises(ValueError, match="a worker process cannot unpickle .*not there; .*set num_workers to 0"):
        list(load(2, NotThere()))


def test_a_number_of_workers_that_cannot_help_is_refused():
    check_num_workers(0)
    check_num_workers(CORES)
    for number in (-1, CORES + 1):
        with pytest.raises(ValueError, match=f"num_workers is {number}, wanted 0 to {CORES}: this process may use"):
            check_num_workers(number)
