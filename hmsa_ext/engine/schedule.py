"""Optimizer, learning rate and moving average of the weights."""

import torch
from torch import Tensor, nn

from hmsa_ext.engine.settings import Optimisation


def learning_rate(step: int, *, steps: int, base: float, exponent: float = 1.0, warmup: int = 0) -> float:
    """Learning rate of step ``step`` (from 0) of ``steps``.

    ``base * (1 - step / steps) ** exponent``, times ``(step + 1) / warmup`` while that is below 1. A pure function of
    the step, so that a resumed run needs no scheduler state.
    """
    rate = base * (1.0 - min(step, steps) / steps) ** exponent
    return rate * min(1.0, (step + 1) / warmup) if warmup else rate


def build_optimizer(model: nn.Module, optimisation: Optimisation) -> torch.optim.Optimizer:
    """SGD or AdamW over all parameters in one group, weight decay on all, as in the published recipes."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    if optimisation.optimizer == "adamw":
        betas = (optimisation.momentum, 0.999)
        return torch.optim.AdamW(parameters, lr=optimisation.lr, betas=betas, weight_decay=optimisation.weight_decay)
    return torch.optim.SGD(
        parameters, lr=optimisation.lr, momentum=optimisation.momentum, weight_decay=optimisation.weight_decay
    )


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Gives every parameter group the same learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate


@torch.no_grad()
def update_average(average: dict[str, Tensor], model: nn.Module, decay: float) -> None:
    """Moves the averaged weights towards the model's: ``average = decay * average + (1 - decay) * weights``.

    Batch-norm statistics are averaged like weights; counters are copied.
    """
    for name, value in model.state_dict().items():
        if value.is_floating_point():
            average[name].lerp_(value, 1.0 - decay)
        else:
            average[name].copy_(value)
