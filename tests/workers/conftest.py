"""What a user may hand over, made for real in a temporary directory: images, Parquet files, modules of their own."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import settings
from PIL import Image

# The first call of an operator loads libraries: a deadline per example would only measure that.
settings.register_profile("rankray", deadline=None, max_examples=60)
settings.load_profile("rankray")
# Small networks gain nothing from more threads, and lose much where other tests run beside these.
torch.set_num_threads(1)

EncodeImage = Callable[..., bytes]
WriteParquet = Callable[..., Path]
WriteModule = Callable[[str, str], None]


@pytest.fixture
def png() -> EncodeImage:
    """Encodes an image of random pixels: `png(number, height, width, mode)`; the number is the seed."""

    def encode(number: int = 0, height: int = 6, width: int = 6, mode: str = "RGB") -> bytes:
        shape = (height, width, 3) if mode == "RGB" else (height, width)
        pixels = np.random.default_rng(number).integers(0, 256, shape, dtype=np.uint8)
        file = io.BytesIO()
        Image.fromarray(pixels).convert(mode).save(file, "PNG")
        return file.getvalue()

    return encode


@pytest.fixture
def write_parquet(tmp_path: Path) -> WriteParquet:
    """Writes images and labels as the Hugging Face hub does: `{bytes, path}` and an integer."""

    def write(
        name: str,
        images: Sequence[bytes | None],
        labels: Sequence[Any],
        *,
        columns: tuple[str, str] = ("img", "label"),
        plain: bool = False,
        label_type: pa.DataType | None = None,
        row_group_size: int = 4,
    ) -> Path:
        column: list[Any] = list(images) if plain else [{"bytes": one, "path": None} for one in images]
        kind = pa.binary() if plain else pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        table = pa.table({columns[0]: pa.array(column, kind), columns[1]: pa.array(list(labels), label_type)})
        pq.write_table(table, tmp_path / name, row_group_size=row_group_size)
        return tmp_path / name

    return write


@pytest.fixture
def write_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> WriteModule:
    """Writes a user's own Python file into the current directory (a temporary one) and forgets it afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))

    def write(name: str, text: str) -> None:
        (tmp_path / f"{name}.py").write_text(text)
        monkeypatch.delitem(sys.modules, name, raising=False)

    return write


@pytest.fixture
def cifar10() -> Path:
    """The folder with CIFAR-10 in Parquet and the pretrained ResNets, which is not part of the project."""
    root = os.environ.get("RANKRAY_DATA")
    if not root:
        pytest.skip("RANKRAY_DATA is not set: no CIFAR-10 and no pretrained ResNets")
    return Path(root) / "cifar10"
