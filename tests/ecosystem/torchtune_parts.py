"""What a config of torchtune names by dotted paths beside the optimizer: a tokenizer and rows."""

from __future__ import annotations

from typing import Any

import torch

LENGTH, ROWS, BATCH = 8, 32, 8


class Tokenizer:
    pad_id = 0


class Counting(torch.utils.data.Dataset):
    """Rows that count upwards from a random number."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.starts = torch.randint(1, 16, (ROWS,), generator=torch.Generator().manual_seed(0)).tolist()

    def __len__(self) -> int:
        return ROWS

    def __getitem__(self, index: int) -> dict[str, Any]:
        tokens = list(range(self.starts[index], self.starts[index] + LENGTH))
        return {"tokens": tokens, "labels": tokens}
