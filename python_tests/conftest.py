"""Fixtures shared by all tests: every test that takes ``device`` runs on the CPU and, where there is one, on a GPU."""

import pytest
import torch

DEVICES = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(request.param)


@pytest.fixture(scope="session", autouse=True)
def cache_of_the_tests(tmp_path_factory: pytest.TempPathFactory):
    """Nothing that tests index is left in the cache of whoever runs them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HMSA_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield
