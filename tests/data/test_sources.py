"""Data are found, read exactly, and refused in one line where they are missing or damaged."""

from __future__ import annotations

import gzip
import os
import struct
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

from samestep.data import adult, idx, images, sources, texts
from samestep.errors import DataError

ROW = "39, State-gov, 77516, Bachelors, 13, Never-married, Adm-clerical, Not-in-family, White, Male, 2174, 0, 40, Cuba"


def idx_bytes(values: npt.NDArray[np.uint8]) -> bytes:
    """An IDX file of bytes, unpacked."""
    return struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape) + values.tobytes()


@pytest.fixture
def real_data() -> None:
    """Skips where the machine has no real data."""
    if not os.environ.get("SAMESTEP_DATA"):
        pytest.skip("needs SAMESTEP_DATA")


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """The folder that the environment names and that in the cache, both for "mnist" and empty."""
    monkeypatch.setenv("SAMESTEP_DATA", str(tmp_path / "named"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folders = tmp_path / "named" / "mnist", tmp_path / "cache" / "samestep" / "data" / "mnist"
    for folder in folders:
        folder.mkdir(parents=True)
    return folders


def one_line(info: pytest.ExceptionInfo[DataError]) -> str:
    """The message, which must be one line."""
    message = str(info.value)
    assert "\n" not in message
    return message


class TestFind:
    def test_the_named_folder_comes_before_the_cache(self, places: tuple[Path, Path]) -> None:
        named, cached = places
        (cached / "x.gz").write_bytes(b"")
        assert sources.find("mnist", "x.gz") == cached / "x.gz"
        (named / "x.gz").write_bytes(b"")
        assert sources.find("mnist", "x.gz") == named / "x.gz"

    def test_an_unpacked_file_is_found(self, places: tuple[Path, Path]) -> None:
        (places[1] / "x").write_bytes(b"")
        assert sources.find("mnist", "x.gz") == places[1] / "x"

    def test_a_missing_file_names_both_places_and_the_origin(self, places: tuple[Path, Path]) -> None:
        with pytest.raises(DataError, match=r"x\.gz") as info:
            sources.find("mnist", "x.gz")
        message = one_line(info)
        assert all(str(place) in message for place in places)
        assert "kaggle: hojjatk/mnist-dataset" in message

    def test_the_variable_is_named_where_it_is_not_set(
        self, places: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("SAMESTEP_DATA")
        with pytest.raises(DataError, match=r"SAMESTEP_DATA is not set") as info:
            sources.find("mnist", "x.gz")
        assert str(places[1]) in one_line(info)


class TestIdx:
    @pytest.mark.parametrize("is_packed", [True, False])
    def test_values_come_back(self, tmp_path: Path, is_packed: bool) -> None:
        values = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
        content = idx_bytes(values)
        path = tmp_path / "values"
        path.write_bytes(gzip.compress(content) if is_packed else content)
        assert np.array_equal(idx.read(path, num_dims=3), values)

    def test_every_cut_of_a_packed_file_is_refused(self, tmp_path: Path) -> None:
        content = gzip.compress(idx_bytes(np.arange(6, dtype=np.uint8)))
        path = tmp_path / "values.gz"
        for length in range(len(content)):
            path.write_bytes(content[:length])
            with pytest.raises(DataError) as info:
                idx.read(path, num_dims=1)
            assert str(path) in one_line(info)

    @pytest.mark.parametrize("change", [0, 12, 20, -5])
    def test_a_flipped_byte_of_a_packed_file_is_refused(self, tmp_path: Path, change: int) -> None:
        content = bytearray(gzip.compress(idx_bytes(np.arange(200, dtype=np.uint8))))
        content[change] ^= 0xFF
        path = tmp_path / "values.gz"
        path.write_bytes(content)
        with pytest.raises(DataError) as info:
            idx.read(path, num_dims=1)
        assert str(path) in one_line(info)

    @pytest.mark.parametrize(
        ("content", "rule"),
        [
            (b"", "starts with 0x, "),
            (idx_bytes(np.zeros((2, 2), np.uint8)), "starts with 0x00000802, .* with 0x00000801"),
            (b"\0\0\x08\x01\0", "ends inside its header, after 5 of 8 bytes"),
            (idx_bytes(np.zeros(5, np.uint8))[:-1], "12 bytes, and 5 values need 13"),
            (idx_bytes(np.zeros(5, np.uint8)) + b"\0", "14 bytes, and 5 values need 13"),
        ],
    )
    def test_a_wrong_file_is_refused(self, tmp_path: Path, content: bytes, rule: str) -> None:
        path = tmp_path / "values"
        path.write_bytes(content)
        with pytest.raises(DataError, match=rule) as info:
            idx.read(path, num_dims=1)
        assert str(path) in one_line(info)


class TestImages:
    def test_digits_are_those_of_scikit_learn(self) -> None:
        datasets = pytest.importorskip("sklearn.datasets")
        theirs = datasets.load_digits()
        training, evaluation = images.digits()
        assert np.array_equal(np.concatenate((training.images, evaluation.images)), theirs.images)
        assert np.array_equal(np.concatenate((training.labels, evaluation.labels)), theirs.target)

    def test_digits_are_gathered_in_zero_to_one(self) -> None:
        data = images.dataset("digits", shape=(1, 8, 8))
        (column,) = data.train.inputs
        rows = column.gather(torch.arange(data.train.num_samples))
        assert rows.shape == (1618, 1, 8, 8)
        assert rows.dtype == torch.float32
        assert (rows.min().item(), rows.max().item()) == (0.0, 1.0)

    @pytest.mark.usefixtures("real_data")
    @pytest.mark.parametrize(("folder", "class_counts"), [("mnist", (5421, 6742)), ("fashion-mnist", (6000, 6000))])
    def test_official_data(self, folder: str, class_counts: tuple[int, int]) -> None:
        training, evaluation = images.mnist_like(folder)
        assert training.images.shape == (60_000, 28, 28)
        assert evaluation.images.shape == (10_000, 28, 28)
        counts = np.bincount(training.labels)
        assert (len(counts), counts.min(), counts.max()) == (10, *class_counts)
        assert set(evaluation.labels) == set(range(10))
        assert training.labels.dtype == np.int64

    @pytest.mark.parametrize(
        ("pictures", "labels", "rule"),
        [
            (np.zeros((2, 28, 28), np.uint8), np.zeros(3, np.uint8), "2 pictures .* 3 labels"),
            (np.zeros((2, 8, 8), np.uint8), np.zeros(2, np.uint8), "8 × 8, expected 28 × 28"),
            (np.zeros((2, 28, 28), np.uint8), np.array([0, 10], np.uint8), "a label is 10"),
        ],
    )
    def test_parts_that_do_not_fit_are_refused(
        self,
        places: tuple[Path, Path],
        pictures: npt.NDArray[np.uint8],
        labels: npt.NDArray[np.uint8],
        rule: str,
    ) -> None:
        (places[0] / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx_bytes(pictures)))
        (places[0] / "train-labels-idx1-ubyte").write_bytes(idx_bytes(labels))
        with pytest.raises(DataError, match=rule) as info:
            images.mnist_like("mnist")
        assert str(places[0]) in one_line(info)


class TestTables:
    def test_comment_dot_and_missing_value(self, tmp_path: Path) -> None:
        path = tmp_path / "adult.test"
        path.write_text(f"|1x3 Cross validator\n{ROW}, <=50K.\n{ROW.replace('State-gov', '?')}, >50K.\n\n")
        raw = adult.read_adult(path)
        assert raw.labels.tolist() == [0, 1]
        assert raw.categorical[:, 0].tolist() == ["State-gov", "?"]
        assert raw.numeric.tolist() == [[39, 77516, 13, 2174, 0, 40]] * 2

    @pytest.mark.parametrize("line", [ROW, f"{ROW}, maybe", f"{ROW.replace('39', 'old')}, >50K", f"{ROW}, 1, >50K"])
    def test_a_line_that_is_no_row_is_named(self, tmp_path: Path, line: str) -> None:
        path = tmp_path / "adult.data"
        path.write_text(f"{ROW}, <=50K\n{line}\n")
        with pytest.raises(DataError, match=r"adult.data: line 2 is not a row of Adult") as info:
            adult.read_adult(path)
        one_line(info)

    @pytest.mark.parametrize(("content", "rule"), [(b"\n", "holds no rows"), (b"\xff, 1", "byte 0 is not UTF-8")])
    def test_an_empty_or_binary_file_is_refused(self, tmp_path: Path, content: bytes, rule: str) -> None:
        path = tmp_path / "adult.data"
        path.write_bytes(content)
        with pytest.raises(DataError, match=rule):
            adult.read_adult(path)

    def test_statistics_and_categories_come_from_training_only(self) -> None:
        training = adult.RawTable(np.array([[0.0, 5], [2, 5]]), np.array([["a"], ["c"]]), np.array([0, 1]))
        other = adult.RawTable(np.array([[10.0, 6]] * 4), np.array([list("abcd")]).T, np.zeros(4, np.int64))
        encoding = adult.Encoding.fit(training)
        assert encoding.cardinalities == (3,)
        assert encoding.encode(training).numeric.tolist() == [[-1, 0], [1, 0]]
        encoded = encoding.encode(other)
        assert encoded.numeric[0].tolist() == [9, 1]
        assert encoded.categorical[:, 0].tolist() == [1, 0, 2, 0]

    def test_the_evaluation_part_is_coded_as_the_training_part(self, places: tuple[Path, Path]) -> None:
        folder = places[0].parent / "adult"
        folder.mkdir()
        other = ROW.replace("39", "41").replace("Cuba", "?")
        (folder / "adult.data").write_text(f"{ROW}, <=50K\n{other}, >50K\n")
        (folder / "adult.test").write_text(f"{ROW.replace('39', '50').replace('Cuba', 'Japan')}, >50K.\n")
        data = adult.adult()
        assert data.cardinalities == (2, 2, 2, 2, 2, 2, 2, 3)
        assert data.train.numeric[:, 0].tolist() == [-1, 1]
        assert data.evaluation.numeric[0].tolist() == [10, 0, 0, 0, 0, 0]
        assert data.train.categorical[:, -1].tolist() == [2, 1]
        assert data.evaluation.categorical[0].tolist() == [1] * 7 + [0]

    @pytest.mark.usefixtures("real_data")
    def test_official_adult(self) -> None:
        data = adult.adult()
        assert data.train.numeric.shape == (32_561, 6)
        assert data.evaluation.categorical.shape == (16_281, 8)
        assert data.train.numeric.dtype == np.float32
        assert data.train.categorical.dtype == np.int64
        assert data.cardinalities == tuple(adult.ADULT_CARDINALITIES.values())
        assert (data.train.labels.sum(), data.evaluation.labels.sum()) == (7_841, 3_846)
        np.testing.assert_allclose(data.train.numeric.mean(axis=0, dtype=np.float64), 0, atol=1e-5)
        np.testing.assert_allclose(data.train.numeric.std(axis=0, dtype=np.float64), 1, atol=1e-5)
        assert np.abs(data.evaluation.numeric.mean(axis=0)).max() > 1e-3
        for table in (data.train, data.evaluation):
            assert (table.categorical < np.array(data.cardinalities)).all()
        assert data.train.categorical.min() == 1


class TestTexts:
    def test_codes_decode_to_the_text(self) -> None:
        text = texts.Text.encode("ça va, 日本?")
        assert text.decode(text.codes) == "ça va, 日本?"
        assert list(text.symbols) == sorted(set("ça va, 日本?"))

    @pytest.mark.usefixtures("real_data")
    def test_official_text(self) -> None:
        text = texts.tiny_shakespeare()
        assert (len(text.codes), len(text.symbols)) == (1_115_394, 65)
        assert text.decode(text.codes[:14]) == "First Citizen:"
