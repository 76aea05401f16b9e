"""Data sets: whatever the user's config names as a source, opened as samples that a network reads."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import Dataset

from search_spaces.errors import ConfigError
from search_spaces.registry import nearest
from workers.causes import cause
from workers.digits import digits
from workers.images import ImageToTensor, open_image
from workers.import_path import build
from workers.parquet_images import ParquetImages

__all__ = ["MapStyleDataset", "PreparedDataset", "check_labels", "digits", "open_dataset"]

Source = Mapping[str, Any]

OPTIONS: dict[str, tuple[str, ...]] = {
    "parquet": ("image_column", "label_column"),
    "torchvision": ("root", "download", "arguments"),
    "image_folder": (),
    "dataset": ("arguments",),
}
"""Kinds of source, each with the keys that may stand beside it."""


@runtime_checkable
class MapStyleDataset(Protocol):
    """Anything with a length whose samples are read by their number."""

    def __len__(self) -> int:
        """Number of samples."""

    def __getitem__(self, i: int) -> Any:
        """Sample number `i`."""


class PreparedDataset(Dataset[Any]):
    """Samples of any map-style data set, their images turned into tensors.

    A pair (PIL image, label) becomes (float32 `(C, H, W)`, label), and so do PIL images in a dict; anything else is
    passed on as it is.

    Attributes:
        labels: `(N,)` int64, known without reading a sample; None where only the samples themselves have them.
    """

    def __init__(self, samples: MapStyleDataset, to_tensor: ImageToTensor, key: str) -> None:
        self._samples = samples
        self._to_tensor = to_tensor
        self._key = key
        self.labels = _known_labels(samples)

    def __len__(self) -> int:
        """Number of samples."""
        return len(self._samples)

    def __getitem__(self, i: int) -> Any:
        """Sample number `i`.

        Raises:
            ConfigError: it cannot be read.
        """
        if not 0 <= i < len(self):
            raise IndexError(f"sample {i} of {len(self)}")
        try:
            return self._with_tensors(self._samples[int(i)])
        except ConfigError:
            raise
        except Exception as error:  # the user's own data set may raise anything
            raise ConfigError(self._key, f"sample {i}{self._file_of(i)} cannot be read: {cause(error)}") from error

    def _with_tensors(self, sample: Any) -> Any:
        if isinstance(sample, tuple | list) and len(sample) == 2 and isinstance(sample[0], Image.Image):
            return self._to_tensor(sample[0]), sample[1]
        if isinstance(sample, Mapping):
            return {
                name: self._to_tensor(value) if isinstance(value, Image.Image) else value
                for name, value in sample.items()
            }
        return sample

    def _file_of(self, i: int) -> str:
        """The file of a sample, where the data set tells (torchvision's folders do)."""
        files = getattr(self._samples, "samples", None)
        entry = files[i] if isinstance(files, list) and i < len(files) else None
        return f" ({entry[0]})" if isinstance(entry, tuple) and isinstance(entry[0], str) else ""


def open_dataset(
    source: Source,
    normalize: Mapping[str, Sequence[float]] | None,
    image_size: tuple[int, int] | None,
    key: str,
) -> PreparedDataset:
    """Opens a data set.

    Args:
        source: exactly one of
            `{parquet: pattern or list, image_column: img, label_column: label}` (columns found if not named),
            `{torchvision: CIFAR10, root: ..., download: false, arguments: {train: false}}`,
            `{image_folder: path}` with one folder per class,
            `{dataset: "package.module:callable", arguments: {...}}`, whose result has a length and samples.
        normalize: {"mean", "std"} per channel, for images; see `ImageToTensor`.
        image_size: (height, width) in pixels that images are brought to, or None.
        key: config key of the source (`data.train`), for messages.

    Raises:
        ConfigError: a source that cannot be opened.
    """
    to_tensor = ImageToTensor(normalize, image_size, key)
    samples = _open_source(_kind(source, key), source, key)
    if not len(samples):
        raise ConfigError(key, "the data set has no samples")
    return PreparedDataset(samples, to_tensor, key)


def check_labels(labels: NDArray[np.int64] | torch.Tensor, num_classes: int, key: str) -> None:
    """Labels must name outputs of the model.

    Args:
        labels: integers of any shape: a data set's, or a batch's where the data set does not tell them.
        num_classes: outputs of the model.
        key: config key of the data set, for messages.

    Raises:
        ConfigError: a label outside 0 .. num_classes - 1, or labels that are no integers.
    """
    values = np.asarray(labels.cpu() if isinstance(labels, torch.Tensor) else labels)
    if not np.issubdtype(values.dtype, np.integer):
        raise ConfigError(key, f"labels are {values.dtype}; class labels must be integers")
    if values.size and (values.min() < 0 or values.max() >= num_classes):
        raise ConfigError(
            key,
            f"labels run from {values.min()} to {values.max()}, but the model has {num_classes} classes "
            f"(0 to {num_classes - 1}); take a model with enough classes, or the right label column; a sweep moves a "
            "network to other classes with model.new_classes",
        )


def _kind(source: Source, key: str) -> str:
    """Which of the sources it is; every key beside it must belong to it."""
    kinds = [name for name in source if name in OPTIONS]
    if not kinds:
        found = f"has no source, only {', '.join(map(repr, source))}" if source else "is empty"
        raise ConfigError(key, found + nearest(str(next(iter(source), "")), list(OPTIONS)))
    if len(kinds) > 1:
        raise ConfigError(key, f"names several sources ({', '.join(kinds)}); keep one")
    known = [kinds[0], *OPTIONS[kinds[0]]]
    for name in source:
        if name not in known:
            raise ConfigError(f"{key}.{name}", f"no key of a {kinds[0]} source{nearest(str(name), known)}")
    return kinds[0]


def _open_source(kind: str, source: Source, key: str) -> MapStyleDataset:
    if kind == "parquet":
        return ParquetImages(
            source["parquet"],
            key,
            image_column=source.get("image_column"),
            label_column=source.get("label_column"),
        )
    if kind == "torchvision":
        return _open_torchvision(source, key)
    if kind == "image_folder":
        return _open_image_folder(source["image_folder"], f"{key}.image_folder")
    arguments = source.get("arguments") or {}
    built: MapStyleDataset = build(source["dataset"], arguments, f"{key}.dataset", expected=MapStyleDataset)
    return built


def _open_torchvision(source: Source, key: str) -> MapStyleDataset:
    """One of torchvision's own data sets; `root` and `download` go to it if they are given."""
    import torchvision.datasets  # here, because importing torchvision takes a second

    name = source["torchvision"]
    where = f"{key}.torchvision"
    if name not in torchvision.datasets.__all__:
        raise ConfigError(
            where, f"torchvision has no data set {name!r}{nearest(name, list(torchvision.datasets.__all__))}"
        )
    arguments = dict(source.get("arguments") or {})
    if "root" in source:
        arguments["root"] = os.path.expanduser(source["root"])
    if source.get("download"):
        arguments["download"] = True
    try:
        opened = getattr(torchvision.datasets, name)(**arguments)
    except (RuntimeError, FileNotFoundError) as error:
        if source.get("download"):
            raise ConfigError(where, f"{name} could not be downloaded ({cause(error)})") from error
        raise ConfigError(
            where, f"{name} is not in {arguments.get('root')} ({cause(error)}); give its root, or say download: true"
        ) from error
    except Exception as error:  # wrong arguments, no network, ...: torchvision raises all kinds
        shown = ", ".join(f"{one}={value!r}" for one, value in arguments.items())
        raise ConfigError(where, f"{name}({shown}) raised {cause(error)}") from error
    if not isinstance(opened, MapStyleDataset):
        raise ConfigError(where, f"{name} cannot be read sample by sample; take a data set of images with labels")
    return opened


def _open_image_folder(path: str, key: str) -> MapStyleDataset:
    from torchvision.datasets import ImageFolder  # here, because importing torchvision takes a second

    path = os.path.expanduser(path)
    if not os.path.isdir(path):
        raise ConfigError(key, f"{path} is no folder; give one that has a folder of images for each class")
    try:
        folder: MapStyleDataset = ImageFolder(path, loader=open_image)
    except (FileNotFoundError, OSError) as error:
        raise ConfigError(
            key, f"{path} is empty, or a class in it is ({cause(error)}); expected class/image.png in it"
        ) from error
    return folder


def _known_labels(samples: MapStyleDataset) -> NDArray[np.int64] | None:
    """Class labels that a data set tells as a list (ours and torchvision's do), one integer a sample."""
    for name in ("labels", "targets", "_labels"):
        found = getattr(samples, name, None)
        if found is None or callable(found):
            continue
        try:
            values = np.asarray(found)
        except (TypeError, ValueError, RuntimeError):
            continue
        if values.shape == (len(samples),) and np.issubdtype(values.dtype, np.integer):
            return values.astype(np.int64)
    return None
