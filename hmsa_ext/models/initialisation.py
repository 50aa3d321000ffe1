"""How networks begin when no weights are loaded."""

from collections.abc import Iterable

from torch import nn

PREDICTION_STD = 0.01


def initialise(modules: Iterable[nn.Module], predictions: Iterable[nn.Module]) -> None:
    """Draws the weights of ``modules`` for training from scratch; ``predictions`` are their last convolutions.

    Convolutions: He normal, fan-out, so that the variance of gradients keeps through ReLUs; biases 0; batch norm 1, 0.
    The last convolutions (to logits, to attention) are drawn from N(0, 0.01) instead: with so few outputs, fan-out
    would make the first logits large and the first attention 0 or 1, where the sigmoid passes no gradient. So training
    starts at a loss of about log(classes) and an attention of about 1/2.

    The published networks draw every trunk convolution from N(0, 0.001). That is meant to be overwritten by ImageNet
    weights; from scratch it trains poorly. Once weights are loaded, nothing depends on the initialisation.
    """
    for layer in (layer for module in modules for layer in module.modules()):
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        elif isinstance(layer, nn.BatchNorm2d):
            layer.reset_parameters()
    for layer in predictions:
        nn.init.normal_(layer.get_parameter("weight"), std=PREDICTION_STD)
