"""Images in Parquet files: columns, files, damaged files."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from search_spaces.errors import ConfigError
from workers import parquet_images
from workers.parquet_images import ParquetImages

EncodeImage = Callable[..., bytes]
WriteParquet = Callable[..., Path]


def _refused(patterns: Any, **columns: str) -> ConfigError:
    with pytest.raises(ConfigError) as raised:
        ParquetImages(patterns, "data.train", **columns)
    assert "\n" not in str(raised.value)
    return raised.value


class TestReading:
    def test_images_and_labels_of_all_files_in_sorted_order(
        self, tmp_path: Path, png: EncodeImage, write_parquet: WriteParquet
    ) -> None:
        write_parquet("b.parquet", [png(i) for i in range(10, 13)], [3, 4, 5])
        write_parquet("a.parquet", [png(i) for i in range(10)], [0, 1, 2, 3, 4, 5, 6, 7, 8, 9])
        images = ParquetImages(str(tmp_path / "*.parquet"), "data.train")
        assert len(images) == 13
        assert images.labels.tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 3, 4, 5]
        assert images.labels.dtype == "int64"
        for i in (12, 0, 9, 10, 4):
            image, label = images[i]
            assert image.tobytes() == Image.open(io.BytesIO(png(i))).tobytes()
            assert label == images.labels[i]

    @pytest.mark.parametrize("columns", [("img", "label"), ("image", "labels"), ("img", "fine_label")])
    @pytest.mark.parametrize("plain", [True, False])
    def test_usual_columns_are_found(
        self, png: EncodeImage, write_parquet: WriteParquet, columns: tuple[str, str], plain: bool
    ) -> None:
        path = write_parquet("a.parquet", [png(0)], [7], columns=columns, plain=plain)
        image, label = ParquetImages(str(path), "data.train")[0]
        assert (image.size, label) == ((6, 6), 7)

    def test_columns_by_name(self, png: EncodeImage, write_parquet: WriteParquet) -> None:
        path = write_parquet("a.parquet", [png(0)], [7], columns=("picture", "breed"))
        assert ParquetImages(str(path), "data.train", image_column="picture", label_column="breed")[0][1] == 7

    @pytest.mark.parametrize("kind", [pa.int8(), pa.uint8(), pa.int32(), pa.uint64()])
    def test_labels_of_any_integer_type(self, png: EncodeImage, write_parquet: WriteParquet, kind: pa.DataType) -> None:
        path = write_parquet("a.parquet", [png(0), png(1)], [0, 100], label_type=kind)
        assert ParquetImages(str(path), "data.train").labels.tolist() == [0, 100]

    def test_a_list_of_names_counts_each_file_once(self, png: EncodeImage, write_parquet: WriteParquet) -> None:
        path = str(write_parquet("a[1].parquet", [png(0)], [7]))
        assert len(ParquetImages([path, path], "data.train")) == 1

    def test_beyond_the_last_row(self, png: EncodeImage, write_parquet: WriteParquet) -> None:
        images = ParquetImages(str(write_parquet("a.parquet", [png(0)], [7])), "data.train")
        with pytest.raises(IndexError):
            images[1]

    def test_row_groups_make_room_for_each_other(
        self, png: EncodeImage, write_parquet: WriteParquet, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(parquet_images, "CACHE_BYTES", 1)
        path = write_parquet("a.parquet", [png(i) for i in range(10)], range(10), row_group_size=3)
        images = ParquetImages(str(path), "data.train")
        assert [images[i][1] for i in (0, 9, 3, 0)] == [0, 9, 3, 0]
        assert images[5][0].tobytes() == Image.open(io.BytesIO(png(5))).tobytes()
        assert len(images._cache) == 1

    def test_another_process_reads_the_files_itself(self, png: EncodeImage, write_parquet: WriteParquet) -> None:
        images = ParquetImages(str(write_parquet("a.parquet", [png(i) for i in range(9)], range(9))), "data.train")
        before = len(pickle.dumps(images))
        assert images[5][1] == 5
        sent = pickle.dumps(images)
        assert len(sent) == before
        assert pickle.loads(sent)[8][0].tobytes() == images[8][0].tobytes()


class TestFiles:
    def test_no_file_matches(self, tmp_path: Path) -> None:
        error = _refused(str(tmp_path / "train-*.parquet"))
        assert error.key == "data.train.parquet"
        assert "no file matches" in error.message
        assert "train-*.parquet" in error.message

    def test_no_pattern(self) -> None:
        assert "names no file" in _refused([]).message

    def test_no_parquet_file(self, tmp_path: Path) -> None:
        (tmp_path / "a.parquet").write_text("img,label\n")
        assert (
            f"{tmp_path / 'a.parquet'} is no Parquet file, or it is truncated"
            in _refused(str(tmp_path / "*.parquet")).message
        )

    @pytest.mark.parametrize("kept", [0.0, 0.2, 0.5, 0.99])
    def test_a_truncated_file(self, png: EncodeImage, write_parquet: WriteParquet, kept: float) -> None:
        path = write_parquet("a.parquet", [png(i) for i in range(8)], range(8))
        content = path.read_bytes()
        path.write_bytes(content[: int(len(content) * kept)])
        assert f"{path} is no Parquet file, or it is truncated" in _refused(str(path)).message

    def test_a_file_that_vanished_since(self, png: EncodeImage, write_parquet: WriteParquet) -> None:
        path = write_parquet("a.parquet", [png(0)], [7])
        images = ParquetImages(str(path), "data.train")
        path.unlink()
        with pytest.raises(ConfigError, match=r"a\.parquet cannot be read"):
            images[0]

    def test_no_rows(self, write_parquet: WriteParquet) -> None:
        path = write_parquet("a.parquet", [], [], label_type=pa.int64())
        assert "has no rows" in _refused(str(path)).message


class TestColumns:
    def test_no_label_column_lists_those_there_are(self, png: EncodeImage, write_parquet: WriteParquet) -> None:
        path = write_parquet("a.parquet", [png(0)], [7], columns=("img", "coarse"))
        message = _refused(str(path)).message
        assert "has no label column (label, labels, fine_label), only img, coarse" in message
        assert "label_column" in message

    def test_no_image_column(self, png: EncodeImage, write_parquet: WriteParquet) -> None:
        path = write_parquet("a.parquet", [png(0)], [7], columns=("photo", "label"))
        assert "has no image column (img, image), only photo, label" in _refused(str(path)).message

    def test_a_named_column_that_is_not_there(self, png: EncodeImage, write_parquet: WriteParquet) -> None:
        path = write_parquet("a.parquet", [png(0)], [7])
        error = _refused(str(path), label_column="labell")
        assert error.key == "data.train.label_column"
        assert "has no column 'labell'; did you mean 'label'?" in error.message

    def test_a_later_file_without_the_column(
        self, tmp_path: Path, png: EncodeImage, write_parquet: WriteParquet
    ) -> None:
        write_parquet("a.parquet", [png(0)], [7])
        write_parquet("b.parquet", [png(0)], [7], columns=("image", "label"))
        message = _refused(str(tmp_path / "*.parquet")).message
        assert "b.parquet has no column 'img', unlike the files before it" in message

    def test_images_that_are_no_bytes(self, tmp_path: Path) -> None:
        pq.write_table(pa.table({"img": [[1, 2], [3, 4]], "label": [0, 1]}), tmp_path / "a.parquet")
        message = _refused(str(tmp_path / "a.parquet")).message
        assert "column 'img' is list<" in message
        assert "expected bytes of PNG or JPEG" in message


class TestLabels:
    @pytest.mark.parametrize(("labels", "kind"), [(["cat", "dog"], "string"), ([0.0, 1.0], "double"), ([True], "bool")])
    def test_no_integers(self, png: EncodeImage, write_parquet: WriteParquet, labels: list[Any], kind: str) -> None:
        path = write_parquet("a.parquet", [png(0)] * len(labels), labels)
        message = _refused(str(path)).message
        assert f"column 'label' is {kind}; class labels must be integers from 0" in message

    def test_null(self, png: EncodeImage, write_parquet: WriteParquet) -> None:
        path = write_parquet("a.parquet", [png(i) for i in range(7)], [0, 1, 2, 3, 4, None, 6])
        assert f"{path} row 5: label is null" in _refused(str(path)).message

    def test_negative(self, png: EncodeImage, write_parquet: WriteParquet) -> None:
        path = write_parquet("a.parquet", [png(i) for i in range(3)], [0, 1, -1])
        assert f"{path} row 2: label is -1; class labels start at 0" in _refused(str(path)).message

    def test_too_large_for_64_bits(self, png: EncodeImage, write_parquet: WriteParquet) -> None:
        path = write_parquet("a.parquet", [png(0)], [2**64 - 1], label_type=pa.uint64())
        assert "column 'label' cannot be read" in _refused(str(path)).message


class TestImagesThatDoNotDecode:
    @pytest.mark.parametrize("damage", [lambda data: data[:-40], lambda data: b"no image", lambda data: b""])
    def test_file_and_row_are_named(
        self, tmp_path: Path, png: EncodeImage, write_parquet: WriteParquet, damage: Callable[[bytes], bytes]
    ) -> None:
        write_parquet("a.parquet", [png(0)], [0])
        write_parquet("b.parquet", [*(png(i) for i in range(5)), damage(png(5, 20, 20))], range(6))
        images = ParquetImages(str(tmp_path / "*.parquet"), "data.train")
        assert images[5][1] == 4
        with pytest.raises(ConfigError, match=r"^data\.train: .*b\.parquet row 5: the image does not decode \("):
            images[6]

    @pytest.mark.parametrize("plain", [True, False])
    def test_no_bytes(self, png: EncodeImage, write_parquet: WriteParquet, plain: bool) -> None:
        images = ParquetImages(str(write_parquet("a.parquet", [png(0), None], [0, 1], plain=plain)), "data.train")
        with pytest.raises(ConfigError, match=r"a\.parquet row 1: img has no bytes"):
            images[1]
