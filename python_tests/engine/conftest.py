"""What the tests of the engine share: runs that take seconds."""

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny tensors gain nothing from threads, and lose much when the cores are shared."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def miniature() -> tuple[str, ...]:
    """Flags of a run of a few seconds: 4 steps an epoch."""
    return (
        *("--size", "64x128", "--crop", "64x64", "--length", "8", "--val-length", "2", "--batch-size", "2"),
        *("--eval-scales", "0.5,1.0", "--log-every", "1", "--threads", "1", "--device", "cpu", "--pictures", "1"),
    )
