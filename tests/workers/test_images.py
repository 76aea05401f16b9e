"""From a picture to a tensor."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, UnidentifiedImageError

from search_spaces.errors import ConfigError
from workers.images import ImageToTensor, open_image

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
GREY = {"mean": (0.5,), "std": (0.5,)}


def _colour(height: int = 2, width: int = 3) -> Image.Image:
    pixels = np.arange(height * width * 3, dtype=np.uint8).reshape(height, width, 3)
    return Image.fromarray(pixels)


def _plain(**settings: Any) -> ImageToTensor:
    return ImageToTensor(settings.get("normalize"), settings.get("image_size"), "data.train")


class TestValues:
    def test_pixels_become_channels_first_from_0_to_1(self) -> None:
        tensor = _plain()(_colour())
        assert tensor.dtype == torch.float32
        assert tensor.shape == (3, 2, 3)
        assert tensor.is_contiguous()
        assert tensor[1, 1, 2].item() == pytest.approx(16 / 255)

    def test_normalised_by_channel(self) -> None:
        tensor = _plain(normalize=IMAGENET)(Image.new("RGB", (2, 2), (255, 0, 51)))
        expected = [(1 - 0.485) / 0.229, (0 - 0.456) / 0.224, (0.2 - 0.406) / 0.225]
        assert tensor[:, 0, 0].tolist() == pytest.approx(expected, abs=1e-6)

    def test_it_equals_torchvision(self) -> None:
        from torchvision.transforms import v2

        theirs = v2.Compose(
            [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(IMAGENET["mean"], IMAGENET["std"])]
        )
        image = _colour(8, 8)
        assert torch.allclose(_plain(normalize=IMAGENET)(image), theirs(image), atol=1e-6)


class TestChannels:
    @pytest.mark.parametrize(
        ("mode", "channels"), [("L", 1), ("RGB", 3), ("RGBA", 3), ("P", 3), ("CMYK", 3), ("1", 3), ("LA", 3)]
    )
    def test_without_normalisation_only_mode_l_stays_grey(self, mode: str, channels: int) -> None:
        assert _plain()(_colour().convert("L" if mode == "LA" else "RGB").convert(mode)).shape[0] == channels

    @pytest.mark.parametrize("mode", ["L", "RGB", "P"])
    @pytest.mark.parametrize(("normalize", "channels"), [(IMAGENET, 3), (GREY, 1)])
    def test_normalisation_decides_so_that_grey_images_among_colour_ones_fit(
        self, mode: str, normalize: dict[str, Any], channels: int
    ) -> None:
        assert _plain(normalize=normalize)(_colour().convert(mode)).shape[0] == channels

    @pytest.mark.parametrize("mode", ["I;16", "I", "F"])
    def test_more_than_8_bits_are_not_clipped_silently(self, mode: str) -> None:
        with pytest.raises(ValueError, match="more than 8 bits a channel"):
            _plain()(Image.new(mode, (2, 2)))


class TestSize:
    @given(*[st.integers(1, 30)] * 4)
    def test_every_image_gets_the_size_asked_for(self, height: int, width: int, to_height: int, to_width: int) -> None:
        tensor = _plain(image_size=(to_height, to_width))(Image.new("RGB", (width, height), (255, 0, 0)))
        assert tensor.shape == (3, to_height, to_width)
        assert tensor[0].min().item() == 1  # no border was filled in

    def test_an_image_of_that_size_is_left_alone(self) -> None:
        assert torch.equal(_plain(image_size=(2, 3))(_colour()), _plain()(_colour()))

    def test_the_centre_is_cut_out(self) -> None:
        wide = Image.new("RGB", (6, 2), (0, 0, 0))
        wide.paste((255, 255, 255), (2, 0, 4, 2))
        assert torch.equal(_plain(image_size=(2, 2))(wide), torch.ones(3, 2, 2))


class TestSettings:
    @pytest.mark.parametrize(
        ("normalize", "said"),
        [
            ({"mean": (0.5,)}, "has ['mean']; expected mean and std"),
            ({"mean": (0.5,) * 3, "std": (0.5,)}, "has 3 means and 1 stds"),
            ({"mean": (0.5,) * 2, "std": (0.5,) * 2}, "give 3 of each (RGB images) or 1 (grey images)"),
            ({"mean": (0.5,), "std": (0.0,)}, "std that is not above 0"),
            ({"mean": (float("nan"),), "std": (1.0,)}, "not finite"),
        ],
    )
    def test_normalisation_that_makes_no_sense(self, normalize: dict[str, Any], said: str) -> None:
        with pytest.raises(ConfigError) as raised:
            _plain(normalize=normalize)
        assert raised.value.key == "data.normalize"
        assert said in raised.value.message

    def test_a_size_that_makes_no_sense(self) -> None:
        with pytest.raises(ConfigError, match=r"^data\.image_size: is \(0, 4\); expected a height and a width"):
            _plain(image_size=(0, 4))


class TestOpenImage:
    def test_it_decodes_at_once(self) -> None:
        file = io.BytesIO()
        _colour(40, 40).save(file, "PNG")
        assert open_image(io.BytesIO(file.getvalue())).getpixel((1, 0)) == (3, 4, 5)
        with pytest.raises((OSError, SyntaxError)):
            open_image(io.BytesIO(file.getvalue()[:-30]))

    def test_no_image(self) -> None:
        with pytest.raises(UnidentifiedImageError):
            open_image(io.BytesIO(b"text"))
