"""The warning about images that are not normalised."""

import warnings

import pytest
import torch

from hmsa_ext.models import hrnet_small_ocr
from hmsa_ext.normalisation import MEAN, STD, FirstLook


def picture() -> torch.Tensor:
    return torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def normalised(images: torch.Tensor) -> torch.Tensor:
    return (images - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


@pytest.mark.parametrize(("factor", "found"), [(1, "0 to 1"), (255, "0 to 255")])
def test_other_ranges_are_warned_of_once_per_network(device, factor: float, found: str):
    model = hrnet_small_ocr(3).to(device).eval()
    images = (picture() * factor).to(device)
    with torch.no_grad():
        with pytest.warns(UserWarning, match=f"look like {found}; expected RGB normalised"):
            model(images)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            model(images)


@pytest.mark.parametrize("images", [normalised(picture()), torch.zeros(1, 3, 8, 8), torch.ones(1, 3, 8, 8)])
def test_normalised_and_constant_images_are_fine(images: torch.Tensor):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        FirstLook()(images)


def test_images_without_values_are_not_looked_at():
    look = FirstLook()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        look(torch.empty(1, 3, 8, 8, device="meta"))
        look(torch.empty(0, 3, 8, 8))
        torch.vmap(look, out_dims=None)(picture())
    with pytest.warns(UserWarning, match="look like 0 to 1"):
        look(picture())


def test_a_compiled_network_does_not_look():
    look = FirstLook()

    def step(images: torch.Tensor) -> torch.Tensor:
        look(images)
        return images + 1

    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        torch.compile(step, fullgraph=True, backend="eager")(picture())
