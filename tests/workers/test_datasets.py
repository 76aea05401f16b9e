"""Sources of data that a config may name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from search_spaces.errors import ConfigError
from workers.datasets import check_labels, open_dataset
from workers.splits import collect

EncodeImage = Callable[..., bytes]
WriteParquet = Callable[..., Path]
WriteModule = Callable[[str, str], None]
HALF = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}


def _open(source: dict[str, Any], **settings: Any) -> Any:
    return open_dataset(source, settings.get("normalize"), settings.get("image_size"), "data.train")


def _refused(source: dict[str, Any]) -> ConfigError:
    with pytest.raises(ConfigError) as raised:
        _open(source)
    assert "\n" not in str(raised.value)
    return raised.value


@pytest.fixture
def image_folder(tmp_path: Path, png: EncodeImage) -> Path:
    """Two images of each of two classes."""
    for name, number in (("cat/a", 0), ("cat/b", 1), ("dog/a", 2), ("dog/b", 3)):
        path = tmp_path / "images" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(number))
    return tmp_path / "images"


class TestParquet:
    def test_tensors_with_labels(self, png: EncodeImage, write_parquet: WriteParquet) -> None:
        path = write_parquet("a.parquet", [png(i) for i in range(6)], [0, 1, 2, 0, 1, 2])
        dataset = _open({"parquet": str(path)}, normalize=HALF, image_size=(4, 5))
        image, label = dataset[4]
        assert (image.shape, image.dtype, label) == ((3, 4, 5), torch.float32, 1)
        assert image.min() < 0
        assert dataset.labels.tolist() == [0, 1, 2, 0, 1, 2]
        assert sum(1 for _ in dataset) == len(dataset) == 6

    def test_columns_by_name(self, png: EncodeImage, write_parquet: WriteParquet) -> None:
        path = write_parquet("a.parquet", [png(0, mode="L")], [4], columns=("x", "y"))
        dataset = _open({"parquet": [str(path)], "image_column": "x", "label_column": "y"})
        assert (dataset[0][0].shape, dataset[0][1]) == ((1, 6, 6), 4)

    def test_images_of_different_sizes_need_image_size(self, png: EncodeImage, write_parquet: WriteParquet) -> None:
        source = {"parquet": str(write_parquet("a.parquet", [png(0), png(1, height=9)], [0, 1]))}
        with pytest.raises(ConfigError, match=r"sample 0 is 3 x 6 x 6, of sample 1 3 x 9 x 6: .*set data\.image_size"):
            collect(_open(source), None)
        assert len(collect(_open(source, image_size=(6, 6)), None)) == 2

    def test_grey_among_colour_needs_normalize(self, png: EncodeImage, write_parquet: WriteParquet) -> None:
        source = {"parquet": str(write_parquet("a.parquet", [png(0), png(1, mode="L")], [0, 1]))}
        with pytest.raises(ConfigError, match="grey and colour images"):
            collect(_open(source), None)
        assert collect(_open(source, normalize=HALF), None).inputs.shape == (2, 3, 6, 6)  # type: ignore[union-attr]

    def test_cifar10(self, cifar10: Path) -> None:
        dataset = _open({"parquet": str(cifar10 / "train-*.parquet")})
        assert np.bincount(dataset.labels).tolist() == [5000] * 10
        assert dataset[49_999][0].shape == (3, 32, 32)


class TestTorchvision:
    def test_a_data_set_with_arguments(self) -> None:
        source = {"torchvision": "FakeData", "arguments": {"size": 5, "image_size": [3, 8, 8], "num_classes": 4}}
        dataset = _open(source, normalize=HALF)
        assert len(dataset) == 5
        assert dataset[0][0].shape == (3, 8, 8)
        assert dataset.labels is None
        assert collect(dataset, None).labels.max() < 4

    @pytest.mark.parametrize("download", [{}, {"download": False}])
    def test_missing_on_disk(self, tmp_path: Path, download: dict[str, bool]) -> None:
        error = _refused({"torchvision": "CIFAR10", "root": str(tmp_path), "arguments": {"train": False}, **download})
        assert error.key == "data.train.torchvision"
        assert f"CIFAR10 is not in {tmp_path}" in error.message
        assert "say download: true" in error.message

    def test_an_unknown_name(self) -> None:
        message = _refused({"torchvision": "CIFAR01", "root": "."}).message
        assert "torchvision has no data set 'CIFAR01'; did you mean 'CIFAR1" in message

    def test_wrong_arguments(self) -> None:
        message = _refused({"torchvision": "FakeData", "arguments": {"sizes": 5}}).message
        assert "FakeData(sizes=5) raised TypeError: " in message


class TestImageFolder:
    def test_a_folder_of_folders(self, image_folder: Path) -> None:
        dataset = _open({"image_folder": str(image_folder)})
        assert dataset.labels.tolist() == [0, 0, 1, 1]
        assert (dataset[2][0].shape, dataset[2][1]) == ((3, 6, 6), 1)

    def test_no_folder(self, tmp_path: Path) -> None:
        error = _refused({"image_folder": str(tmp_path / "none")})
        assert error.key == "data.train.image_folder"
        assert "is no folder" in error.message

    def test_an_empty_folder(self, tmp_path: Path) -> None:
        assert "is empty, or a class in it is" in _refused({"image_folder": str(tmp_path)}).message

    def test_an_empty_class(self, image_folder: Path) -> None:
        (image_folder / "bird").mkdir()
        assert "bird" in _refused({"image_folder": str(image_folder)}).message

    def test_an_image_that_does_not_decode(self, image_folder: Path) -> None:
        path = image_folder / "dog" / "a.png"
        path.write_bytes(path.read_bytes()[:50])
        dataset = _open({"image_folder": str(image_folder)})
        with pytest.raises(ConfigError, match=r"^data\.train: sample 2 \(.*dog/a\.png\) cannot be read: "):
            dataset[2]


class TestImportPath:
    def test_the_digits(self) -> None:
        dataset = _open({"dataset": "workers.datasets:digits", "arguments": {"split": "test"}}, normalize=HALF)
        assert len(dataset) == len(dataset.labels) == 360
        image, _ = dataset[0]
        assert image.min() == 0  # a tensor is used as it is, not normalised

    def test_a_users_list_of_dicts(self, write_module: WriteModule) -> None:
        write_module("mydata_dicts", "def make(n):\n    return [{'ids': [i, i], 'labels': i % 2} for i in range(n)]\n")
        dataset = _open({"dataset": "mydata_dicts:make", "arguments": {"n": 4}})
        assert dataset.labels is None
        batch = collect(dataset, [3, 0])
        assert batch.inputs["ids"].tolist() == [[3, 3], [0, 0]]  # type: ignore[index]
        assert batch.labels.tolist() == [1, 0]

    @pytest.mark.parametrize("sample", ["(image, 1)", "{'pixel_values': image, 'labels': 1}"])
    def test_pil_images_become_tensors(self, write_module: WriteModule, sample: str) -> None:
        write_module(
            "mydata_images",
            f"from PIL import Image\nimage = Image.new('RGB', (4, 4))\ndef make():\n    return [{sample}] * 2\n",
        )
        inputs = collect(_open({"dataset": "mydata_images:make"}, normalize=HALF), None).inputs
        pixels = inputs["pixel_values"] if isinstance(inputs, dict) else inputs
        assert torch.equal(pixels, torch.full((2, 3, 4, 4), -1.0))

    @pytest.mark.parametrize("name", ["labels", "targets", "_labels"])
    def test_labels_that_the_data_set_tells(self, write_module: WriteModule, name: str) -> None:
        write_module(
            "mydata_labels",
            f"class Make(list):\n    {name} = [1, 0]\n"
            "    def __init__(self):\n        super().__init__([(0.0, 1), (0.0, 0)])\n",
        )
        assert _open({"dataset": "mydata_labels:Make"}).labels.tolist() == [1, 0]

    @pytest.mark.parametrize("labels", ["[1]", "['a', 'b']", "[[1, 2], [3, 4]]", "[0.5, 1.0]", "lambda self: 1"])
    def test_labels_that_are_no_class_labels_are_not_taken_for_them(
        self, write_module: WriteModule, labels: str
    ) -> None:
        write_module(
            "mydata_odd",
            f"class Make(list):\n    labels = {labels}\n"
            "    def __init__(self):\n        super().__init__([(0.0, 1), (0.0, 0)])\n",
        )
        assert _open({"dataset": "mydata_odd:Make"}).labels is None

    def test_a_result_that_is_no_data_set(self) -> None:
        error = _refused({"dataset": "math:sqrt", "arguments": {}})
        assert error.key == "data.train.dataset"
        assert (
            "returned float; it must return a MapStyleDataset"
            in _refused({"dataset": "builtins:float", "arguments": {}}).message
        )

    def test_wrong_arguments(self) -> None:
        message = _refused({"dataset": "workers.datasets:digits", "arguments": {"split": "val"}}).message
        assert "workers.datasets:digits(split='val') raised ValueError: split must be 'train' or 'test'" in message

    def test_no_samples(self) -> None:
        assert "the data set has no samples" in _refused({"dataset": "builtins:list"}).message

    def test_a_sample_that_raises(self, write_module: WriteModule) -> None:
        write_module(
            "mydata_bad",
            "class Make(list):\n    def __len__(self):\n        return 2\n"
            "    def __getitem__(self, i):\n        return 1 / 0\n",
        )
        dataset = _open({"dataset": "mydata_bad:Make"})
        with pytest.raises(ConfigError, match=r"^data\.train: sample 1 cannot be read: ZeroDivisionError"):
            dataset[1]


class TestSource:
    @pytest.mark.parametrize(
        ("source", "key", "said"),
        [
            ({}, "data.train", "is empty; known: dataset, image_folder, parquet, torchvision"),
            ({"parkuet": "x"}, "data.train", "has no source, only 'parkuet'; did you mean 'parquet'?"),
            ({"root": "x"}, "data.train", "has no source, only 'root'"),
            ({"parquet": "x", "image_folder": "y"}, "data.train", "several sources (parquet, image_folder); keep one"),
            (
                {"parquet": "x", "label_colum": "y"},
                "data.train.label_colum",
                "no key of a parquet source; did you mean 'label_column'?",
            ),
            ({"image_folder": "x", "root": "y"}, "data.train.root", "no key of a image_folder source"),
        ],
    )
    def test_keys(self, source: dict[str, Any], key: str, said: str) -> None:
        error = _refused(source)
        assert error.key == key
        assert said in error.message

    @pytest.mark.parametrize("i", [2, -1])
    def test_numbers_beyond_the_samples(self, write_module: WriteModule, i: int) -> None:
        write_module("mydata_two", "def make():\n    return [(0.0, 0), (1.0, 1)]\n")
        with pytest.raises(IndexError):
            _open({"dataset": "mydata_two:make"})[i]


class TestCheckLabels:
    @pytest.mark.parametrize("labels", [[0, 9], [], [[1, 2], [3, 4]]])
    def test_labels_that_fit(self, labels: list[Any]) -> None:
        check_labels(torch.tensor(labels, dtype=torch.int64), 10, "data.train")

    @pytest.mark.parametrize(("labels", "found"), [([0, 10], "0 to 10"), ([-1, 3], "-1 to 3"), ([7, 99], "7 to 99")])
    @pytest.mark.parametrize("kind", [np.array, torch.tensor])
    def test_labels_outside_say_the_range_found(self, kind: Any, labels: list[int], found: str) -> None:
        with pytest.raises(ConfigError) as raised:
            check_labels(kind(labels), 10, "data.train")
        assert f"labels run from {found}, but the model has 10 classes (0 to 9)" in raised.value.message

    def test_labels_of_a_data_set(self, png: EncodeImage, write_parquet: WriteParquet) -> None:
        dataset = _open({"parquet": str(write_parquet("a.parquet", [png(0), png(1)], [0, 5]))})
        check_labels(dataset.labels, 6, "data.train")
        with pytest.raises(ConfigError, match="labels run from 0 to 5, but the model has 5 classes"):
            check_labels(dataset.labels, 5, "data.train")

    def test_labels_that_are_no_integers(self) -> None:
        with pytest.raises(ConfigError, match="labels are float32; class labels must be integers"):
            check_labels(torch.zeros(1), 10, "data.train")
