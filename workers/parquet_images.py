"""Images in Parquet files, in the layout of the Hugging Face hub: a column of encoded images, a column of labels."""

from __future__ import annotations

import glob
import io
import os
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from search_spaces.errors import ConfigError
from search_spaces.registry import nearest
from workers.causes import cause
from workers.images import open_image

__all__ = ["ParquetImages"]

IMAGE_COLUMNS = ("img", "image")
LABEL_COLUMNS = ("label", "labels", "fine_label")
CACHE_BYTES = 1 << 30
"""Encoded images kept in memory (1 GiB): all of CIFAR-10; of an ImageNet, the row groups read last."""


@dataclass(frozen=True)
class _RowGroup:
    """Some consecutive rows of a file, which Parquet reads together; `start` is the first one's row in the file."""

    file: str
    index: int
    start: int
    rows: int


class ParquetImages:
    """Pairs (PIL image, label), read from Parquet files in sorted order of their names.

    All labels are read at once; images when they are asked for, a row group at a time.

    Args:
        patterns: file names or glob patterns (`~` and `**` work).
        key: config key of the data set, for messages.
        image_column: struct {bytes, path} or plain bytes; None takes `img` or `image`.
        label_column: integers from 0; None takes `label`, `labels` or `fine_label`.

    Attributes:
        labels: `(N,)` int64.

    Raises:
        ConfigError: no such file, not Parquet or truncated, no such column, or labels that are no class labels.
    """

    def __init__(
        self,
        patterns: str | Sequence[str],
        key: str,
        *,
        image_column: str | None = None,
        label_column: str | None = None,
    ) -> None:
        self._key = key
        files = _matching_files(patterns, f"{key}.parquet")
        schema = _open(files[0], key).schema_arrow
        self._image_column = _choose(image_column, IMAGE_COLUMNS, "image", schema, files[0], key)
        label_column = _choose(label_column, LABEL_COLUMNS, "label", schema, files[0], key)
        self._groups: list[_RowGroup] = []
        labels = []
        for file in files:
            parquet = _open(file, key)
            _check_columns(parquet.schema_arrow, self._image_column, label_column, file, key)
            labels.append(_read_labels(parquet, label_column, file, key))
            self._groups.extend(_row_groups(parquet, file))
        self.labels: NDArray[np.int64] = np.concatenate(labels)
        if not len(self.labels):
            raise ConfigError(key, f"{files[0]} has no rows")
        self._starts = [0, *np.cumsum([group.rows for group in self._groups]).tolist()]
        self._cache: OrderedDict[int, pa.ChunkedArray] = OrderedDict()

    def __len__(self) -> int:
        """Number of rows in all files."""
        return len(self.labels)

    def __getitem__(self, i: int) -> tuple[Image.Image, int]:
        """The decoded image and the label of row `i`, counted through all files.

        Raises:
            ConfigError: the image does not decode (its file and row are named).
        """
        if not 0 <= i < len(self):
            raise IndexError(f"row {i} of {len(self)}")
        number = bisect_right(self._starts, i) - 1
        group = self._groups[number]
        row = i - self._starts[number]
        encoded = self._images_of(number)[row].as_py()
        if encoded is None:
            raise ConfigError(self._key, f"{group.file} row {group.start + row}: {self._image_column} has no bytes")
        try:
            return open_image(io.BytesIO(encoded)), int(self.labels[i])
        except Exception as error:  # PIL's decoders raise many types on damaged bytes
            raise ConfigError(
                self._key, f"{group.file} row {group.start + row}: the image does not decode ({cause(error)})"
            ) from error

    def __getstate__(self) -> dict[str, object]:
        """Without the images in memory, which another process reads for itself."""
        return {**self.__dict__, "_cache": OrderedDict()}

    def _images_of(self, number: int) -> pa.ChunkedArray:
        """Encoded images of a row group; the group used longest ago makes room for it."""
        if number in self._cache:
            self._cache.move_to_end(number)
            return self._cache[number]
        group = self._groups[number]
        try:
            table = pq.ParquetFile(group.file).read_row_group(group.index, columns=[self._image_column])
        except (pa.ArrowException, OSError) as error:
            raise ConfigError(self._key, f"{group.file} cannot be read, it may be damaged ({cause(error)})") from error
        column = table.column(self._image_column)
        self._cache[number] = pc.struct_field(column, "bytes") if pa.types.is_struct(column.type) else column
        while len(self._cache) > 1 and sum(one.nbytes for one in self._cache.values()) > CACHE_BYTES:
            self._cache.popitem(last=False)
        return self._cache[number]


def _matching_files(patterns: str | Sequence[str], key: str) -> list[str]:
    """Files that the patterns name, each once, sorted."""
    files: set[str] = set()
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        expanded = os.path.expanduser(pattern)
        # A name may itself hold brackets, which glob would take for a choice of letters.
        matches = [expanded] if os.path.isfile(expanded) else glob.glob(expanded, recursive=True)
        matches = [file for file in matches if os.path.isfile(file)]
        if not matches:
            raise ConfigError(
                key, f"no file matches {pattern!r} (in {os.getcwd()}); give a path or a pattern like *.parquet"
            )
        files.update(matches)
    if not files:
        raise ConfigError(key, "names no file; give a path or a pattern like data/*.parquet")
    return sorted(files)


def _open(file: str, key: str) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(file)
    except (pa.ArrowException, OSError) as error:
        raise ConfigError(key, f"{file} is no Parquet file, or it is truncated ({cause(error)})") from error


def _choose(asked: str | None, usual: Sequence[str], what: str, schema: pa.Schema, file: str, key: str) -> str:
    """The column asked for, or the first of the usual ones that is there."""
    if asked is not None:
        if asked not in schema.names:
            raise ConfigError(f"{key}.{what}_column", f"{file} has no column {asked!r}{nearest(asked, schema.names)}")
        return asked
    found = next((name for name in usual if name in schema.names), None)
    if found is None:
        raise ConfigError(
            key,
            f"{file} has no {what} column ({', '.join(usual)}), only {', '.join(schema.names)}; "
            f"name the right one with {what}_column",
        )
    return found


def _check_columns(schema: pa.Schema, image_column: str, label_column: str, file: str, key: str) -> None:
    """Both columns are there, with types that can be images and class labels."""
    for column in (image_column, label_column):
        if column not in schema.names:
            raise ConfigError(key, f"{file} has no column {column!r}, unlike the files before it")
    images = schema.field(image_column).type
    if pa.types.is_struct(images) and images.get_field_index("bytes") >= 0:
        images = images.field("bytes").type
    if not (pa.types.is_binary(images) or pa.types.is_large_binary(images) or pa.types.is_binary_view(images)):
        raise ConfigError(
            key, f"{file}: column {image_column!r} is {images}; expected bytes of PNG or JPEG, or {{bytes, path}}"
        )
    labels = schema.field(label_column).type
    if not pa.types.is_integer(labels):
        raise ConfigError(key, f"{file}: column {label_column!r} is {labels}; class labels must be integers from 0")


def _read_labels(parquet: pq.ParquetFile, column: str, file: str, key: str) -> NDArray[np.int64]:
    """All labels of a file; none is null or negative."""
    try:
        labels = parquet.read(columns=[column]).column(column)
        if labels.null_count:
            row = pc.index(pc.is_null(labels), True).as_py()
            raise ConfigError(key, f"{file} row {row}: {column} is null; every image needs a class label")
        values: NDArray[np.int64] = labels.cast(pa.int64()).to_numpy()
    except (pa.ArrowException, OSError) as error:
        raise ConfigError(key, f"{file}: column {column!r} cannot be read ({cause(error)})") from error
    if len(values) and values.min() < 0:
        row = int(np.argmax(values < 0))
        raise ConfigError(key, f"{file} row {row}: {column} is {values[row]}; class labels start at 0")
    return values


def _row_groups(parquet: pq.ParquetFile, file: str) -> list[_RowGroup]:
    groups = []
    start = 0
    for index in range(parquet.metadata.num_row_groups):
        rows = parquet.metadata.row_group(index).num_rows
        groups.append(_RowGroup(file, index, start, rows))
        start += rows
    return groups
