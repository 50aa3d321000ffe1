"""What all tests share: every test that takes ``device`` runs on the CPU and, where there is one, on a GPU."""

import os

import pytest

CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
MOST_WORKERS = 8  # each takes up to 3 GB
# Workers of pytest-xdist share the cores, since threads that wait for a core spin. Children of the tests inherit it.
if workers := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "0")):
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, CORES // workers)))

import torch  # noqa: E402

DEVICES = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    return min(CORES, MOST_WORKERS)


@pytest.hookimpl(tryfirst=True)  # before -m chooses
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests marked ``slow`` run only where ``-m`` names that marker. Variants on a GPU are marked ``gpu``; tests
    marked so are skipped where there is no GPU."""
    if "slow" not in config.option.markexpr:
        slow = {item for item in items if item.get_closest_marker("slow")}
        config.hook.pytest_deselected(items=list(slow))
        items[:] = [item for item in items if item not in slow]
    for item in items:
        parameters = getattr(getattr(item, "callspec", None), "params", {})
        if parameters.get("device") == "cuda":
            item.add_marker(pytest.mark.gpu)
        elif item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a GPU"))


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(request.param)


@pytest.fixture(scope="session", autouse=True)
def cache_of_the_tests(tmp_path_factory: pytest.TempPathFactory):
    """Tests write no index into the cache of the user."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HMSA_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield
