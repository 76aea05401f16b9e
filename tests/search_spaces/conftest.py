"""What the ground floor's property tests draw from: small convolutions of every geometry that torch allows."""

from __future__ import annotations

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from torch import nn

# The first call of an operator loads libraries: a deadline per example would only measure that.
settings.register_profile("rankray", deadline=None, max_examples=40)
settings.load_profile("rankray")

Drawn = tuple[nn.Conv2d, torch.Tensor]


@st.composite
def _drawn_convolutions(draw: st.DrawFn) -> Drawn:
    """A float32 `Conv2d` with random weights, and a batch of two inputs that it can take."""
    pair = st.tuples(st.integers(1, 4), st.integers(1, 4))
    kernel = draw(pair)
    dilation = draw(st.tuples(st.integers(1, 2), st.integers(1, 2)))
    padding = draw(st.one_of(st.sampled_from(["same", "valid"]), st.tuples(st.integers(0, 3), st.integers(0, 3))))
    stride = (1, 1) if padding == "same" else draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    torch.manual_seed(draw(st.integers(0, 2**16)))
    convolution = nn.Conv2d(
        draw(st.integers(1, 4)),
        draw(st.integers(1, 5)),
        kernel,
        stride,
        padding,
        dilation,
        bias=draw(st.booleans()),
        padding_mode=draw(st.sampled_from(["zeros", "reflect", "replicate", "circular"])),
    )
    # At least the kernel's extent, and more than any padding: reflection needs that.
    extents = [step * (width - 1) + 1 for step, width in zip(dilation, kernel, strict=True)]
    height, width = (max(extent, 4) + draw(st.integers(0, 4)) for extent in extents)
    return convolution, torch.randn(2, convolution.in_channels, height, width)


@pytest.fixture(scope="session")
def convolutions() -> st.SearchStrategy[Drawn]:
    """A strategy of (convolution, inputs)."""
    return _drawn_convolutions()
