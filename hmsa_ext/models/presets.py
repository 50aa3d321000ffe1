"""Networks with names: a class of networks with other defaults."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, TypeVar

from torch import nn

Network = TypeVar("Network", bound=nn.Module)


def preset(
    network: Callable[..., Network], module: str, name: str, text: str, **defaults: Any
) -> Callable[..., Network]:
    """A function ``(num_classes, *, ...) -> network`` whose other arguments are those of the class.

    ``help``, and whoever asks for its signature, sees each of them with its default.

    Args:
        network: a class whose arguments have the names ``trunk`` and ``num_classes``.
        module, name: where the function stands, and what it is called there.
        text: its documentation.
        defaults: of its arguments, where they are not those of the class; of the trunk in any case.
    """

    def build(num_classes: int, **options: Any) -> Network:
        return network(num_classes=num_classes, **{**defaults, **options})

    own = inspect.signature(network)
    shown = [own.parameters["num_classes"].replace(kind=inspect.Parameter.POSITIONAL_OR_KEYWORD)]
    for parameter in own.parameters.values():
        if parameter.name != "num_classes":
            default = defaults.get(parameter.name, parameter.default)
            shown.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY, default=default))
    function: Any = build
    function.__module__, function.__name__, function.__qualname__ = module, name, name
    function.__doc__ = text
    function.__signature__ = own.replace(parameters=shown, return_annotation=network)
    return function
