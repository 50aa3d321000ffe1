"""The table of losses, losses of somebody else, and the settings of the loss."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from hmsa_ext import losses, settings
from hmsa_ext.losses import (
    LOSSES,
    Loss,
    LossSettings,
    MultiScaleLoss,
    bootstrapped_cross_entropy,
    cross_entropy,
    find_loss,
)
from hmsa_ext.models import ScaleOutputs
from hmsa_ext.settings import SettingError


def case(classes: int = 5) -> tuple[ScaleOutputs, Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = [torch.randn(2, classes, *size, generator=generator, requires_grad=True) for size in ((6, 8), (3, 4))]
    aux = [torch.randn(2, classes, *size, generator=generator, requires_grad=True) for size in ((6, 8), (3, 4))]
    attention = [torch.rand(2, 1, 3, 4, generator=generator, requires_grad=True)]
    target = torch.randint(0, classes, (2, 24, 32), generator=generator)
    return ScaleOutputs(logits, attention, aux, (1.0, 0.5), (24, 32)), target


@pytest.mark.parametrize("name", LOSSES)
def test_every_entry_is_a_loss(name: str):
    outputs, target = case()
    loss = MultiScaleLoss(name, scale_weight=0.1)(outputs, target)
    assert loss.dim() == 0
    assert loss.isfinite()
    loss.backward()
    if LOSSES[name].class_weights:
        even = MultiScaleLoss(name, scale_weight=0.1, class_weight=torch.full((5,), 2.0))(outputs, target)
        if name == "ce":
            torch.testing.assert_close(even, loss)  # the mean is over the sum of the weights
        assert even.isfinite()
    else:
        with pytest.raises(ValueError, match=f"class_weight: expected None, since the main loss {name} takes none"):
            MultiScaleLoss(name, class_weight=torch.ones(5))
    assert LOSSES[name].help


def test_bootstrapped_is_the_hardest_pixels_fused_and_all_pixels_elsewhere():
    outputs, target = case()
    attention, scales = outputs.attention, outputs.scales
    expected = bootstrapped_cross_entropy(outputs.logits, attention, scales, target)
    expected = expected + 0.4 * cross_entropy(outputs.aux or [], attention, scales, target)
    torch.testing.assert_close(MultiScaleLoss("bootstrapped")(outputs, target), expected)


MINE = '''
"""A loss of one's own."""
import hmsa_ext

def sharp(logits, attention, scales, target, *, ignore_index=255):
    """Cross-entropy of doubled logits.

    More."""
    return hmsa_ext.fuse_scales_cross_entropy([2 * z for z in logits], attention, scales, target,
                                              ignore_index=ignore_index)

def weighted(logits, attention, scales, target, *, weight=None, ignore_index=255):
    return hmsa_ext.fuse_scales_cross_entropy(logits, attention, scales, target, weight=weight,
                                              ignore_index=ignore_index)
'''


def test_a_loss_file_of_ones_own_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    Path("my_loss.py").write_text(MINE)
    outputs, target = case()
    doubled = ScaleOutputs(
        [2 * z for z in outputs.logits], outputs.attention, [2 * z for z in outputs.aux or []], (1.0, 0.5), (24, 32)
    )
    criterion = MultiScaleLoss("my_loss:sharp")
    torch.testing.assert_close(criterion(outputs, target), MultiScaleLoss()(doubled, target))
    assert criterion.main == "my_loss:sharp"
    assert find_loss("my_loss:sharp").help == "Cross-entropy of doubled logits."
    assert not LossSettings("my_loss:sharp").functions.class_weights
    weight = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])
    assert LossSettings("my_loss:weighted").functions.class_weights
    torch.testing.assert_close(
        MultiScaleLoss("my_loss:weighted", class_weight=weight)(outputs, target),
        MultiScaleLoss("ce", class_weight=weight)(outputs, target),
    )
    with pytest.raises(ValueError, match="class_weight: expected None, since the main loss my_loss:sharp takes none"):
        MultiScaleLoss("my_loss:sharp", class_weight=weight)


def test_functions_and_entries_stand_for_themselves():
    outputs, target = case()
    expected = MultiScaleLoss()(outputs, target)
    assert torch.equal(MultiScaleLoss(cross_entropy)(outputs, target), expected)
    assert torch.equal(MultiScaleLoss(Loss(cross_entropy, cross_entropy, True, "mine"))(outputs, target), expected)


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        ("absent", f"loss: got 'absent', expected one of {', '.join(LOSSES)}, or package.module:object"),
        ("hmsa_ext:__version__", "loss: got 'hmsa_ext:__version__', expected a function"),
        (MultiScaleLoss, "loss: got .*MultiScaleLoss.*, expected a function"),
    ],
)
def test_what_is_no_loss_is_named(loss, message: str):
    with pytest.raises(SettingError, match=message):
        find_loss(loss)


def test_settings_have_flat_names_help_and_checks():
    options = settings.options(LossSettings())
    assert [option.flag for option in options] == ["loss", "aux-weight", "scale-weight", "class-balance"]
    assert all(option.help for option in options)
    for name in LOSSES:
        assert name in options[0].help
    for change in ({"loss": "absent"}, {"aux_weight": -1}, {"scale_weight": float("nan")}, {"class_balance": -0.1}):
        (name,) = change
        with pytest.raises(SettingError, match=f"{name}: got .*, expected "):
            settings.replace(LossSettings(), change)
    changed = settings.replace(LossSettings(), {"loss": "rmi", "aux_weight": "0.1"})
    assert changed.functions is LOSSES["rmi"]
    assert settings.to_dict(changed) == {"loss": "rmi", "aux_weight": 0.1, "scale_weight": 0.05, "class_balance": 0.25}
    assert set(losses.__all__) <= set(dir(losses))
