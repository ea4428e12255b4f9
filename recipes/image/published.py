"""The hyper-parameters and the protocol of the paper's image experiments (arXiv 2310.20574), as published.

They are arTuRO's alone: those of the optimizers that the paper compares with are not known to us. Nor is how its rows
were split, its images standardised or its weights drawn: here a part of the training rows is held out, and weights are
drawn as torch's layers (the ResNets: as torchvision's) draw them.
"""

from __future__ import annotations

from dataclasses import dataclass

from recipes.text.errors import InputError

BATCH_SIZE = 255
#: Epochs of a run.
EPOCHS = {"fashion-mnist": 120, "cifar10": 160, "cifar100": 160}
#: Where the schedule changes, as shares of a run: epochs 60 and 90 of 120, 80 and 120 of 160.
MILESTONES = (0.5, 0.75)
#: What the bound ε is multiplied by at each milestone.
BOUND_FACTOR = 0.006


@dataclass(frozen=True)
class Values:
    """What differs between tasks; all else is a default of `arturo_core.Arturo.paper`.

    Args:
        kl_bound: ε in nats, before the first milestone.
        temperature: κ.
        measurement_noise: R, gradient units².
        process_noise: d.
        weight_decay: decoupled, multiplied by ε.
    """

    kl_bound: float
    temperature: float
    measurement_noise: float
    process_noise: float
    weight_decay: float


_FASHION = Values(0.0856746, 0.0586567, 2.81679, 0.0173930, 1.54034e-6)
_CIFAR_CNN = Values(0.00278750, 0.296786, 1.21975, 0.00245526, 0.0)

#: By data set and network.
VALUES = {
    ("fashion-mnist", "cnn"): _FASHION,
    ("fashion-mnist", "resnet18"): _FASHION,
    ("cifar10", "cnn"): _CIFAR_CNN,
    ("cifar100", "cnn"): _CIFAR_CNN,
    ("cifar10", "resnet34"): Values(0.00713292, 1.59735, 9.32844, 0.0893810, 7.02910e-4),
    ("cifar100", "resnet34"): Values(0.00723373, 1.67677, 4.82203, 0.00977875, 0.0),
}


def values(dataset: str, network: str) -> Values:
    """The published values of a task; InputError, naming those that exist, if there are none."""
    if (dataset, network) not in VALUES:
        networks = " and ".join(name for known, name in VALUES if known == dataset)
        raise InputError(
            f"nothing is published for {network} on {dataset}, only for {networks}: choose one of these with "
            "--network, or --setting default"
        )
    return VALUES[dataset, network]
