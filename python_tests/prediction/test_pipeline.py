"""The work goes on in order with few jobs in memory, and ends cleanly whatever happens."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from hmsa_ext.data import DataError
from hmsa_ext.models import InputError
from hmsa_ext.prediction.pipeline import AHEAD, Done, Seconds, work


def same(job: int) -> int:
    return job


def passing(job: int, found: Any) -> Any:
    return found


def nothing(job: int, result: Any) -> None:
    pass


def failing_at(number: int, error: BaseException) -> Callable[..., Any]:
    def part(job: int, found: Any = None) -> Any:
        if job == number:
            raise error
        return found

    return part


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) <= before


@pytest.mark.parametrize(("readers", "writers"), [(1, 1), (4, 3)])
def test_jobs_are_done_in_order_each_with_its_own(readers: int, writers: int) -> None:
    written: dict[int, Any] = {}

    def read(job: int) -> int:
        time.sleep(0.002 * (job % 3))
        return job * 10

    def write(job: int, result: Any) -> None:
        time.sleep(0.002 * (-job % 3))
        written[job] = result

    done = list(work(range(30), read, lambda job, found: (job, found + 1), write, readers=readers, writers=writers))
    assert done == [Done(k) for k in range(30)]
    assert written == {k: (k, 10 * k + 1) for k in range(30)}


def test_without_jobs_nothing_is_done() -> None:
    assert list(work([], same, passing, nothing, readers=2, writers=2)) == []


def test_one_reader_and_one_writer_keep_the_order() -> None:
    calls: list[tuple[str, int]] = []

    def read(job: int) -> int:
        calls.append(("read", job))
        time.sleep(0.001 * (job % 4))
        return job

    def write(job: int, result: Any) -> None:
        time.sleep(0.001 * (-job % 4))
        calls.append(("write", job))

    list(work(range(20), read, passing, write, readers=1, writers=1))
    for part in ("read", "write"):
        assert [job for what, job in calls if what == part] == list(range(20))


class Counted:
    """Counts how many of its kind are alive."""

    alive = most = 0
    lock = threading.Lock()

    def __init__(self) -> None:
        with Counted.lock:
            Counted.alive += 1
            Counted.most = max(Counted.most, Counted.alive)

    def __del__(self) -> None:
        with Counted.lock:
            Counted.alive -= 1


@pytest.mark.parametrize("slow", ["read", "predict", "write"])
def test_few_jobs_are_in_memory_at_a_time(slow: str) -> None:
    readers, writers = 2, 3
    Counted.alive = Counted.most = 0

    def part(name: str) -> None:
        time.sleep(0.002 if name == slow else 0)

    def read(job: int) -> Counted:
        part("read")
        return Counted()

    def predict(job: int, found: Counted) -> Counted:
        part("predict")
        return found

    for _ in work(range(100), read, predict, lambda job, result: part("write"), readers=readers, writers=writers):
        pass
    # Read ahead, one in the network, waiting to be written with one that was just handed over.
    assert Counted.most <= (readers + AHEAD) + 1 + (writers + AHEAD) + 1
    assert Counted.alive == 0


def test_jobs_are_asked_for_as_they_are_needed() -> None:
    asked = 0

    def jobs() -> Iterator[int]:
        nonlocal asked
        for k in range(1000):
            asked += 1
            yield k

    working = work(jobs(), same, passing, nothing, readers=2, writers=2)
    next(working)
    working.close()
    assert asked < 20


@pytest.mark.parametrize("error", [DataError("damaged"), InputError("too small")])
@pytest.mark.parametrize("part", ["read", "predict", "write"])
def test_an_error_of_one_job_is_told_and_the_others_go_on(part: str, error: Exception) -> None:
    written: list[int] = []
    parts: dict[str, Any] = {"read": same, "predict": passing, "write": lambda job, result: written.append(job)}
    parts[part] = failing_at(3, error)
    done = list(work(range(8), parts["read"], parts["predict"], parts["write"], readers=2, writers=1))
    assert [one.job for one in done] == list(range(8))
    assert [one.error for one in done] == [None] * 3 + [error] + [None] * 4
    if part != "write":
        assert written == [0, 1, 2, 4, 5, 6, 7]


@pytest.mark.parametrize("error", [OSError("full"), ValueError("a bug"), KeyboardInterrupt()], ids=repr)
@pytest.mark.parametrize("part", ["read", "predict", "write"])
def test_any_other_error_ends_the_work_after_what_was_begun_is_written(part: str, error: BaseException) -> None:
    predicted: list[int] = []
    written: list[int] = []

    def predict(job: int, found: Any) -> Any:
        if part == "predict":
            failing_at(5, error)(job)
        predicted.append(job)

    def write(job: int, result: Any) -> None:
        time.sleep(0.003)
        if part == "write":
            failing_at(5, error)(job)
        written.append(job)

    read = failing_at(5, error) if part == "read" else same
    with pytest.raises(type(error)) as raised:
        list(work(range(100), read, predict, write, readers=2, writers=1))
    assert raised.value is error
    assert len(predicted) < 20
    assert written == [job for job in predicted if part != "write" or job != 5]


def test_whoever_leaves_the_loop_ends_the_threads() -> None:
    written: list[int] = []
    working = work(range(100), same, passing, lambda job, result: written.append(job), readers=2, writers=2)
    with contextlib.suppress(RuntimeError), contextlib.closing(working):
        for done in working:
            if done.job == 4:
                raise RuntimeError
    assert set(range(5)) <= set(written)
    assert len(written) < 20


def test_the_time_of_each_part_is_counted() -> None:
    seconds = Seconds()

    def slowly(length: float) -> Callable[..., Any]:
        return lambda *given: time.sleep(length)

    parts = slowly(0.02), slowly(0.01), slowly(0.015)
    list(work(range(6), *parts, readers=2, writers=2, seconds=seconds))
    assert seconds.read >= 6 * 0.02
    assert seconds.predict >= 6 * 0.01
    assert seconds.write >= 6 * 0.015
    assert seconds.waited > 0
