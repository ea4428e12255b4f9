"""The model: a small one from scratch that reads bytes, or a pretrained one with its own tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from recipes.text.trial import check_length, load_model

SMALL = "small"
#: Of GPT-2's architecture, 0.4 M parameters with blocks of 128; so few that dropout would only slow it down.
SMALL_SHAPE: dict[str, Any] = {"n_layer": 3, "n_embd": 96, "n_head": 4}
NO_DROPOUT: dict[str, Any] = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}


class Bytes:
    """A tokenizer of bytes of UTF-8, with a 257th token for the end of a text."""

    eos_token_id = 256
    vocabulary = 257

    def __call__(self, texts: Sequence[str], add_special_tokens: bool = False) -> dict[str, list[list[int]]]:
        return {"input_ids": [list(text.encode()) for text in texts]}


def load_tokenizer(name: str, block: int) -> Any:
    """The tokenizer of a model.

    Raises:
        InputError: it cannot be loaded, or the model has fewer positions than a block has tokens.
    """
    from transformers import AutoConfig, AutoTokenizer

    if name == SMALL:
        return Bytes()
    check_length("--block", block, block, load_model(name, SMALL, lambda: AutoConfig.from_pretrained(name)))
    return load_model(name, SMALL, lambda: AutoTokenizer.from_pretrained(name))


def load(name: str, block: int) -> nn.Module:
    """A model for blocks of so many tokens; draws new weights from torch's generator.

    Raises:
        InputError: it cannot be loaded.
    """
    from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

    if name != SMALL:
        return load_model(name, SMALL, lambda: AutoModelForCausalLM.from_pretrained(name))
    config = GPT2Config(
        vocab_size=Bytes.vocabulary,
        n_positions=block,
        bos_token_id=Bytes.eos_token_id,
        eos_token_id=Bytes.eos_token_id,
        **SMALL_SHAPE,
        **NO_DROPOUT,
    )
    model = GPT2LMHeadModel(config)
    model.loss_type = "ForCausalLM"  # which its name does not tell; it would be the default, with a warning
    return model


def decay_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two groups: biases and normalisation layers do not decay. By name: shards of FSDP1 have lost their shape."""
    decayed: list[nn.Parameter] = []
    kept: list[nn.Parameter] = []
    for name, param in model.named_parameters():
        if param.requires_grad:
            exempt = name.endswith("bias") or any(part in name for part in ("norm", "ln_"))
            (kept if exempt else decayed).append(param)
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": kept, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]
