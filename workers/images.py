"""From a picture to the numbers that a network reads: decoded, resized, scaled to 0..1, normalised."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import IO

import numpy as np
import torch
from PIL import Image, ImageOps

from search_spaces.errors import ConfigError

__all__ = ["ImageToTensor", "open_image"]

EIGHT_BIT_MODES = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBX", "RGBa", "CMYK", "YCbCr", "LAB", "HSV")
"""PIL's modes that convert to 8-bit grey or colour without clipping (16- and 32-bit grey do not)."""


def open_image(file: str | IO[bytes]) -> Image.Image:
    """Decodes the whole image now, so that a truncated file fails here and not at its first use."""
    image: Image.Image
    with Image.open(file) as image:
        image.load()
    return image


class ImageToTensor:
    """Turns a PIL image into a float32 tensor `(C, H, W)`.

    With `normalize`, the number of its values decides the channels: 3 makes every image RGB, 1 makes it grey.
    Without, a grey image (mode L) keeps its one channel and any other becomes RGB.

    Args:
        normalize: {"mean": ..., "std": ...}, one value per channel, on the scale 0..1; None leaves 0..1.
        image_size: (height, width) in pixels: scaled to cover it, then its centre cut out; None keeps each size.
        key: config key of the data set, for messages.

    Raises:
        ConfigError: `normalize` or `image_size` with values that make no sense.
    """

    def __init__(
        self,
        normalize: Mapping[str, Sequence[float]] | None,
        image_size: tuple[int, int] | None,
        key: str,
    ) -> None:
        self._normalize = _mean_and_std(normalize, _beside(key, "normalize"))
        if image_size is not None and (len(image_size) != 2 or min(image_size) < 1):
            raise ConfigError(_beside(key, "image_size"), f"is {image_size}; expected a height and a width above 0")
        self._size = image_size

    def __call__(self, image: Image.Image) -> torch.Tensor:
        """The image as a tensor.

        Raises:
            ValueError: an image with more than 8 bits a channel.
        """
        image = image.convert(self._mode(image))
        if self._size is not None:
            height, width = self._size
            image = ImageOps.fit(image, (width, height), method=Image.Resampling.BILINEAR)
        pixels = torch.from_numpy(np.array(image, dtype=np.uint8))  # (H, W) or (H, W, 3)
        channels_first = pixels.unsqueeze(0) if pixels.dim() == 2 else pixels.permute(2, 0, 1)
        tensor = channels_first.to(torch.float32, memory_format=torch.contiguous_format).div_(255)
        if self._normalize is not None:
            mean, std = self._normalize
            tensor.sub_(mean).div_(std)
        return tensor

    def _mode(self, image: Image.Image) -> str:
        if image.mode not in EIGHT_BIT_MODES:
            raise ValueError(f"the image has mode {image.mode}, more than 8 bits a channel; save it with 8 bits")
        grey = image.mode == "L" if self._normalize is None else len(self._normalize[0]) == 1
        return "L" if grey else "RGB"


def _beside(key: str, name: str) -> str:
    """The config key `name` next to that of the source: `data.normalize` for `data.train`."""
    parent = key.rpartition(".")[0]
    return f"{parent}.{name}" if parent else name


def _mean_and_std(
    normalize: Mapping[str, Sequence[float]] | None, where: str
) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Both as `(C, 1, 1)` float32."""
    if normalize is None:
        return None
    if set(normalize) != {"mean", "std"}:
        raise ConfigError(where, f"has {sorted(normalize)}; expected mean and std")
    mean, std = (torch.tensor(list(normalize[name]), dtype=torch.float32) for name in ("mean", "std"))
    if len(mean) != len(std) or len(mean) not in (1, 3):
        raise ConfigError(
            where, f"has {len(mean)} means and {len(std)} stds; give 3 of each (RGB images) or 1 (grey images)"
        )
    if not (std > 0).all() or not torch.isfinite(torch.cat([mean, std])).all():
        raise ConfigError(where, "has a std that is not above 0, or a value that is not finite")
    return mean.view(-1, 1, 1), std.view(-1, 1, 1)
