"""Gradients of whole networks against finite differences."""

import torch
from torch import Tensor, nn


def check_gradients(model: nn.Module, images: Tensor) -> None:
    """Checks the gradients of ``images`` and of all parameters that the outputs (tensors) depend on, in float64."""
    generator = torch.Generator().manual_seed(0)
    model = model.double()
    with torch.no_grad():
        for name, value in model.state_dict().items():
            # Batch norms begin with biases of 0: dead channels would sit exactly on the kink of the ReLU.
            if value.dim() == 1:
                noise = torch.rand(value.shape, generator=generator, dtype=torch.float64)
                value.copy_(noise + 0.5 if name.endswith(("weight", "var")) else noise - 0.5)
    inputs = images.double().requires_grad_()
    names = [name for name, _ in model.named_parameters()]
    used = torch.autograd.grad([x.sum() for x in model(inputs)], list(model.parameters()), allow_unused=True)
    names = [name for name, gradient in zip(names, used, strict=True) if gradient is not None]
    buffers = dict(model.named_buffers())

    def outputs(images: Tensor, *parameters: Tensor) -> tuple[Tensor, ...]:
        # Copies, since training changes the running statistics.
        state = dict(zip(names, parameters, strict=True)) | {name: value.clone() for name, value in buffers.items()}
        return torch.func.functional_call(model, state, (images,))

    parameters = [model.get_parameter(name) for name in names]
    assert torch.autograd.gradcheck(outputs, (inputs, *parameters), fast_mode=True, rtol=1e-4)
