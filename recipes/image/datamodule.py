"""The images as a LightningDataModule; augmentation and standardisation happen on the device."""

from __future__ import annotations

from typing import Any

import lightning
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader

from recipes.image.data import AUGMENTED, Images, Order, Part, Rows, generator

#: Pixels that a crop may be off the centre, in each direction.
MARGIN = 4
HELD_OUT_BATCH = 500


class ImageData(lightning.LightningDataModule):
    """Batches of (images, classes): (rows, channels, side, side) standardised floats, (rows,) int64.

    Args:
        images: the data set.
        batch_size: rows of a training batch.
        seed: of the order of the batches, and of crops and flips. Neither reads nor moves torch's own generator.
    """

    def __init__(self, images: Images, batch_size: int, seed: int) -> None:
        super().__init__()
        self.images, self.seed = images, seed
        self.order = Order(len(images.parts["train"][1]), batch_size, seed)

    def train_dataloader(self) -> DataLoader[Part]:
        return self._loader("train", self.order)

    def val_dataloader(self) -> DataLoader[Part]:
        return self._loader("validation", self._in_file_order("validation"))

    def test_dataloader(self) -> DataLoader[Part]:
        return self._loader("test", self._in_file_order("test"))

    def _in_file_order(self, part: str) -> list[Tensor]:
        return list(torch.split(torch.arange(len(self.images.parts[part][1])), HELD_OUT_BATCH))

    def _loader(self, part: str, batches: Any) -> DataLoader[Part]:
        # A loader without a generator draws from torch's, which dropout uses: resumed runs make one loader more.
        return DataLoader(Rows(self.images.parts[part]), sampler=batches, batch_size=None, generator=torch.Generator())

    def on_after_batch_transfer(self, batch: Part, dataloader_idx: int) -> Part:
        """Standardise, and crop and flip the training images, by random numbers that follow from seed and step."""
        pixels, classes = batch
        if self.trainer is not None and self.trainer.training and self.images.name in AUGMENTED:
            pixels = crop_and_flip(pixels, generator("crop and flip", self.seed, self.trainer.global_step))
        return self.standardised(pixels), classes

    def standardised(self, pixels: Tensor) -> Tensor:
        """Pixels, uint8, as floats of mean 0 and variance 1 in every channel of the training part."""
        mean, deviation = (
            values.to(pixels.device)[:, None, None] for values in (self.images.mean, self.images.deviation)
        )
        return (pixels.float() - mean) / deviation


def crop_and_flip(pixels: Tensor, random: torch.Generator) -> Tensor:
    """Each image shifted by up to MARGIN pixels in both directions, black where it ends, and half of them mirrored.

    Args:
        pixels: (rows, channels, side, side), any dtype.
        random: a generator on the CPU.
    """
    rows, _, height, width = pixels.shape
    offsets = torch.randint(2 * MARGIN + 1, (2, rows, 1), generator=random)
    mirrored = torch.rand(rows, generator=random) < 0.5
    below = offsets[0] + torch.arange(height)
    across = offsets[1] + torch.arange(width)
    across = torch.where(mirrored[:, None], across.flip(1), across)
    padded = functional.pad(pixels, (MARGIN,) * 4)
    index = [values.to(pixels.device) for values in (torch.arange(rows), below, across)]
    chosen = padded[index[0][:, None, None], :, index[1][:, :, None], index[2][:, None, :]]
    return chosen.permute(0, 3, 1, 2).contiguous()
