"""The forward and backward pass of one training step."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from hmsa_ext.engine.device import arithmetic


def forward_backward(
    network: nn.Module,
    criterion: nn.Module,
    optimizer: torch.optim.Optimizer,
    images: Tensor,
    labels: Tensor,
    scales: Sequence[float],
    *,
    dtype: torch.dtype,
) -> Tensor:
    """Gradients of the loss of images [B, 3, H, W] and labels [B, H, W] in the parameters; returns the loss, detached.

    The gradients of the step before go first: nothing needs them, and they would live through the forward pass.

    Args:
        network: called with ``images`` and ``scales``; gives :class:`hmsa_ext.models.ScaleOutputs`.
        criterion: the loss of these outputs and the labels.
        optimizer: of the parameters; it makes no step here.
        scales: of the training.
        dtype: of the network's arithmetic: see :func:`hmsa_ext.engine.device.arithmetic`.
    """
    optimizer.zero_grad(set_to_none=True)
    with arithmetic(images.device, dtype):
        outputs = network(images, scales=scales)
    loss = criterion(outputs, labels)
    del outputs
    loss.backward()
    return loss.detach()
