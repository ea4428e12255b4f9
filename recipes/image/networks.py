"""Networks for images of 28 × 28 in grey and of 32 × 32 in colour.

The convolutional ones are of the paper (arXiv 2310.20574). Its ResNets are torchvision's; here they come from
`transformers`, whose basic ResNets have the same layers, and which, unlike torchvision, needs no build that matches
torch's. Like torchvision's they start with a 7 × 7 convolution of stride 2 and a max-pooling.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn

from recipes.text.errors import InputError

NETWORKS = ("cnn", "resnet18", "resnet34")
RESNET_DEPTHS = {"resnet18": [2, 2, 2, 2], "resnet34": [3, 4, 6, 3]}  # residual blocks of each stage


class Shape(NamedTuple):
    """What a network takes and gives: images (channels, side, side), logits (classes,)."""

    channels: int
    side: int
    classes: int


def build(name: str, shape: Shape) -> nn.Module:
    """A new network that maps images (rows, channels, side, side), standardised floats, to logits (rows, classes).

    Args:
        name: one of NETWORKS. "cnn" is the paper's for the size of the images.
        shape: of images and classes.

    Raises:
        InputError: there is no such network for these images, or a package that it needs is missing.
    """
    if name in RESNET_DEPTHS:
        return ResNet(RESNET_DEPTHS[name], shape)
    if name == "cnn" and (shape.channels, shape.side) == (1, 28):
        return small_cnn(shape.classes)
    if name == "cnn" and (shape.channels, shape.side) == (3, 32):
        return cifar_cnn(shape.classes)
    raise InputError(f"there is no network {name!r} for images of shape {tuple(shape[:2])}: {', '.join(NETWORKS)}")


def small_cnn(classes: int = 10) -> nn.Module:
    """The paper's CNN for Fashion-MNIST (390,410 parameters with ten classes): no padding, max-pooling twice."""
    return nn.Sequential(
        nn.Conv2d(1, 32, 3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(64, 128, 3),
        nn.ReLU(),
        *_head(1152, classes),
    )


def _head(features: int, classes: int) -> list[nn.Module]:
    return [
        nn.Flatten(),
        nn.Dropout(0.2),
        nn.Linear(features, 256),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Linear(256, classes),
    ]


def cifar_cnn(classes: int = 10) -> nn.Module:
    """The paper's four convolutions for CIFAR (653,386 parameters with ten classes).

    Pooling, head and dropout are not known to us; they continue the smaller network's: max-pooling after every
    convolution, 1024-256-classes.
    """
    convolutions: list[nn.Module] = []
    for inputs, outputs in ((3, 32), (32, 64), (64, 128), (128, 256)):
        convolutions += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(
        *convolutions,
        *_head(1024, classes),
    )


class ResNet(nn.Module):
    """A ResNet of basic blocks (He et al. 2015), widths 64, 128, 256 and 512.

    Args:
        depths: residual blocks of each of the four stages.
        shape: of images and classes; images of any side.
    """

    def __init__(self, depths: list[int], shape: Shape) -> None:
        super().__init__()
        try:
            from transformers import ResNetConfig, ResNetForImageClassification
        except ImportError as error:
            raise InputError(
                f"the ResNets come from transformers, which is missing ({error}); run: pip install transformers, or "
                "choose --network cnn"
            ) from error
        configuration = ResNetConfig(
            num_channels=shape.channels,
            embedding_size=64,
            hidden_sizes=[64, 128, 256, 512],
            depths=depths,
            layer_type="basic",
        )
        configuration.num_labels = shape.classes
        self.network = ResNetForImageClassification(configuration)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (rows, classes) of images (rows, channels, side, side)."""
        logits: Tensor = self.network(images).logits
        return logits
