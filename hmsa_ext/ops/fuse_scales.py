"""``hmsa::fuse_scales``: the public Python function, and the declaration of the op and its backward.

The kernels, the schema and the checks are in ``csrc/ops/fuse_scales.cpp``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import Tensor

from hmsa_ext.ops import arguments, chain, reference, registration
from hmsa_ext.ops.schema import Arguments

_NAME = "fuse_scales"


@arguments.documented()
def fuse_scales(
    logits: Iterable[Tensor],
    attention: Iterable[Tensor],
    scales: Iterable[float],
    size: Sequence[int],
    *,
    align_corners: bool = False,
) -> Tensor:
    """Fuse the predictions of several scales by the attention between neighbours, at full resolution.

    With L and A the logits and attention of a scale resized (bilinear) to its own grid ``floor(size * scale)``, from
    the largest scale down (Tao, Sapra, Catanzaro 2020, eq. 1, chained)::

        first scale   P = L
        s >= 1        P = A * L + (1 - A) * resize(P -> grid of s)
        s <  1        P = resize(A * L -> size) + (1 - resize(A -> size)) * P

    Args:
        {chain}
        {size}
        {align_corners}

    Returns:
        [B, C, H, W] in the dtype of the inputs and the memory format of the logits at scale 1.0. Arithmetic is in
        float32 (float64 for float64). Only the inputs are saved for backward; both directions are deterministic.

    Raises:
        {errors}

    >>> low, high = torch.randn(1, 19, 16, 32), torch.randn(1, 19, 32, 64)
    >>> alpha = torch.sigmoid(torch.randn(1, 1, 16, 32))
    >>> fuse_scales([low, high], [alpha], [0.5, 1.0], (128, 256)).shape
    torch.Size([1, 19, 128, 256])
    """
    inputs = chain.sorted_chain(_NAME, logits, attention, scales, align_corners)
    size = arguments.sides(_NAME, "size", size)
    if inputs.has_kernels(_NAME):
        return inputs.call(_op, size)
    chain.check(_NAME, inputs, size)
    return inputs.call(reference.fuse_scales, size)


# ---- declarations -----------------------------------------------------------------------------------------------


def _fake(a: Arguments) -> Tensor:
    chain.check(_NAME, a, a.size)
    like = a.logits[chain.unit(a.scales)]
    return chain.empty_like_format(like, (like.shape[0], like.shape[1], *a.size))


def _fake_backward(a: Arguments) -> tuple[list[Tensor], list[Tensor]]:
    chain.check(_NAME, a, a.grad.shape[2:])
    return chain.fake_gradients(a)


def _flops(a: Arguments) -> int:
    return chain.chain_flops(a.logits, a.attention, a.scales, a.size)


def _backward_flops(a: Arguments) -> int:
    """The adjoint; with attention, P_before is computed again: the chain but its last scale."""
    size = a.grad[2:]
    adjoint = chain.adjoint_flops(a.logits, a.attention, a.scales, size)
    if len(a.scales) > 1:
        adjoint += chain.chain_flops(a.logits[:-1], a.attention[:-1], a.scales[:-1], size)
    return adjoint


registration.declare(
    "_fuse_scales_backward",
    fake=_fake_backward,
    derivative=registration.NoSecond(of=_NAME),
    vmap=registration.fold("grad", "logits", "attention"),
    flops=_backward_flops,
)
_op = registration.declare(
    _NAME,
    fake=_fake,
    derivative=registration.Reverse("_fuse_scales_backward"),
    autocast=registration.promote,
    vmap=registration.fold("logits", "attention"),
    flops=_flops,
    doc=fuse_scales.__doc__,
)
