"""Muon as it is meant to be used: hidden matrices by Muon, everything else by AdamW, as one optimizer."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.optim import AdamW, Muon

from recipes.benchmarks.joined import Joined


def hidden_matrices(model: nn.Module) -> list[nn.Parameter]:
    """The trainable matrices between input and output: no embeddings, no output layer, no convolutions.

    These are the weights of linear layers (LoRA's A and B are linear layers too) and attention's stacked projections.
    Of the linear layers the last is the output layer. Weights tied to an embedding are the embedding's.
    """
    modules = list(model.modules())
    embedded = {id(module.weight) for module in modules if isinstance(module, nn.Embedding)}
    linear = [module.weight for module in modules if isinstance(module, nn.Linear)]
    output = {id(linear[-1])} if linear else set()
    stacked = [module.in_proj_weight for module in modules if isinstance(module, nn.MultiheadAttention)]
    weights: list[Any] = [*linear, *stacked]
    candidates = {id(weight): weight for weight in weights if weight is not None}
    return [
        weight
        for key, weight in candidates.items()
        if weight.requires_grad and weight.dim() == 2 and key not in embedded | output
    ]


class MuonWithAdamW(Joined):
    """`torch.optim.Muon` for :func:`hidden_matrices` and fused AdamW for the rest, at one lr in AdamW's units."""

    def __init__(self, model: nn.Module, lr: float) -> None:
        hidden = hidden_matrices(model)
        chosen = {id(param) for param in hidden}
        rest = [param for param in model.parameters() if param.requires_grad and id(param) not in chosen]
        parts: list[torch.optim.Optimizer] = []
        if hidden:
            parts.append(Muon(hidden, lr=lr, adjust_lr_fn="match_rms_adamw"))
        if rest:
            parts.append(AdamW(rest, lr=lr, fused=True))
        super().__init__(*parts)
