"""Reading, predicting and writing at the same time: threads decode ahead and encode behind the network."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from hmsa_ext.data import DataError
from hmsa_ext.models import InputError

Job = TypeVar("Job")
AHEAD = 2
"""Jobs beyond the number of threads that are read before the network wants them, or wait to be written."""
SKIPPED = (DataError, InputError)
"""Errors of one image, which the others do not suffer from."""


@dataclass
class Seconds:
    """Time that the parts of the work took; they run beside each other, so the sum exceeds the time that passed."""

    read: float = 0.0
    predict: float = 0.0
    write: float = 0.0
    waited: float = 0.0
    """That the network waited for a picture to read or to write."""


@dataclass
class Done(Generic[Job]):
    """A job that was written, or could not be: ``error`` then says why."""

    job: Job
    error: Exception | None = None


@dataclass
class _Pending:
    job: Any
    future: Future[Any] = field(repr=False)


def work(
    jobs: Iterable[Job],
    read: Callable[[Job], Any],
    predict: Callable[[Job, Any], Any],
    write: Callable[[Job, Any], None],
    *,
    readers: int,
    writers: int,
    seconds: Seconds | None = None,
) -> Generator[Done[Job], None, None]:
    """Does each job in three parts and yields it when all are done, in order.

    ``read`` and ``write`` run in threads, ``predict`` in this one. At most ``readers + 2`` jobs are read ahead, and as
    many wait to be written: memory is bounded whatever the number of jobs. With one reader the jobs are read one after
    the other in their order, and with one writer written so, as a video needs it.

    A job whose reading, predicting or writing raises DataError or InputError is yielded with that error, and the next
    goes on. Any other error ends the work, after what was begun to write is written. Whoever may leave the loop early
    closes the iterator (``contextlib.closing``): the threads end then.
    """
    spent = Seconds() if seconds is None else seconds
    source = iter(jobs)
    reading: deque[_Pending] = deque()
    writing: deque[_Pending] = deque()
    reader, writer = ThreadPoolExecutor(readers, "read"), ThreadPoolExecutor(writers, "write")
    adding = threading.Lock()

    def timed_read(job: Job) -> Any:
        begin = time.perf_counter()
        try:
            return read(job)
        finally:
            with adding:
                spent.read += time.perf_counter() - begin

    def timed_write(job: Job, result: Any) -> None:
        begin = time.perf_counter()
        try:
            write(job, result)
        finally:
            with adding:
                spent.write += time.perf_counter() - begin

    def refill() -> None:
        while len(reading) < readers + AHEAD:
            try:
                job = next(source)
            except StopIteration:
                return
            reading.append(_Pending(job, reader.submit(timed_read, job)))

    def finished(limit: int) -> Iterator[Done[Job]]:
        while writing and (len(writing) > limit or writing[0].future.done()):
            pending = writing.popleft()
            begin = time.perf_counter()
            error = _result_or_error(pending.future)
            spent.waited += time.perf_counter() - begin
            yield Done(pending.job, error if isinstance(error, Exception) else None)

    try:
        refill()
        while reading:
            pending = reading.popleft()
            begin = time.perf_counter()
            found = _result_or_error(pending.future)
            spent.waited += time.perf_counter() - begin
            refill()
            if not isinstance(found, Exception):
                begin = time.perf_counter()
                try:
                    found = predict(pending.job, found)
                except SKIPPED as error:
                    found = error
                spent.predict += time.perf_counter() - begin
            if isinstance(found, Exception):
                writing.append(_Pending(pending.job, _failed(found)))
            else:
                writing.append(_Pending(pending.job, writer.submit(timed_write, pending.job, found)))
            del found
            yield from finished(writers + AHEAD)
        yield from finished(0)
    finally:
        reader.shutdown(wait=True, cancel_futures=True)
        writer.shutdown(wait=True)


def _result_or_error(future: Future[Any]) -> Any:
    try:
        return future.result()
    except SKIPPED as error:
        return error


def _failed(error: Exception) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_exception(error)
    return future
