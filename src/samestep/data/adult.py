"""Tables of mixed columns: numbers are standardised, categories become codes, both fitted on the training part."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from samestep.data import sources
from samestep.errors import DataError

_ADULT_COLUMNS = (
    "age", "workclass", "fnlwgt", "education", "education-num", "marital-status", "occupation", "relationship",
    "race", "sex", "capital-gain", "capital-loss", "hours-per-week", "native-country",
)  # fmt: skip

ADULT_NUMERIC = ("age", "fnlwgt", "education-num", "capital-gain", "capital-loss", "hours-per-week")

ADULT_CARDINALITIES = {
    "workclass": 10, "education": 17, "marital-status": 8, "occupation": 16, "relationship": 7, "race": 6, "sex": 3,
    "native-country": 43,
}  # fmt: skip
"""Codes of each categorical column of the official training part: its values, '?' among them, and 0 for unseen."""

ADULT_CLASSES = ("<=50K", ">50K")


@dataclass(frozen=True)
class RawTable:
    """A table as read.

    Args:
        numeric: Shape (n, number of numeric columns), float64.
        categorical: The values of each categorical column, shape (n, number of them), strings.
        labels: Classes, shape (n,), int64.
    """

    numeric: npt.NDArray[np.float64]
    categorical: npt.NDArray[np.str_]
    labels: npt.NDArray[np.int64]


@dataclass(frozen=True)
class Table:
    """A table as a network takes it.

    Args:
        numeric: Standardised, shape (n, number of numeric columns), float32.
        categorical: Codes from 0 (unseen) up, shape (n, number of categorical columns), int64.
        labels: Classes, shape (n,), int64.
    """

    numeric: npt.NDArray[np.float32]
    categorical: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int64]


@dataclass(frozen=True)
class Encoding:
    """How numbers are standardised and categories coded: ``(x - mean) / deviation``, 1 + place among the known values.

    Args:
        means: Per numeric column.
        deviations: Standard deviation per numeric column; 1 where a column is constant.
        categories: The known values of each categorical column, sorted.
    """

    means: npt.NDArray[np.float64]
    deviations: npt.NDArray[np.float64]
    categories: tuple[npt.NDArray[np.str_], ...]

    @classmethod
    def fit(cls, table: RawTable) -> Encoding:
        """The encoding that belongs to a (training) table."""
        deviations = table.numeric.std(axis=0)
        return cls(
            table.numeric.mean(axis=0),
            np.where(deviations == 0.0, 1.0, deviations),
            tuple(np.unique(column) for column in table.categorical.T),
        )

    @property
    def cardinalities(self) -> tuple[int, ...]:
        """Codes per categorical column, 0 for unseen values among them."""
        return tuple(1 + len(known) for known in self.categories)

    def encode(self, table: RawTable) -> Table:
        """The table in this encoding.

        Example:
            >>> raw = RawTable(np.array([[1.0], [3.0]]), np.array([["b"], ["a"]]), np.array([0, 1]))
            >>> Encoding.fit(raw).encode(raw).categorical.tolist()
            [[2], [1]]
        """
        numeric = ((table.numeric - self.means) / self.deviations).astype(np.float32)
        columns = zip(table.categorical.T, self.categories, strict=True)
        codes = np.stack([_codes(column, known) for column, known in columns], axis=1)
        return Table(numeric, codes, table.labels)


@dataclass(frozen=True)
class Adult:
    """The Adult census data: who earns more than 50,000 dollars a year.

    Args:
        train: 32,561 rows.
        evaluation: 16,281 rows, encoded with the statistics and categories of the training part.
        cardinalities: Codes per categorical column.
    """

    train: Table
    evaluation: Table
    cardinalities: tuple[int, ...]


def adult() -> Adult:
    """Read UCI's Adult: 6 numeric and 8 categorical columns; '?' (missing) is a category of its own.

    Raises:
        DataError: A file is missing, damaged, or a line is not a row of Adult.

    References:
        Kohavi, "Scaling up the accuracy of naive-Bayes classifiers: a decision-tree hybrid", 1996.
    """
    training = read_adult(sources.find("adult", "adult.data.gz"))
    encoding = Encoding.fit(training)
    evaluation = read_adult(sources.find("adult", "adult.test.gz"))
    return Adult(encoding.encode(training), encoding.encode(evaluation), encoding.cardinalities)


def read_adult(path: Path) -> RawTable:
    """One file of Adult. A comment line (``|...``) and the dot after a test label are left out.

    Raises:
        DataError: The file is damaged, empty, or a line is not a row of Adult; the one line says which.
    """
    numeric: list[list[float]] = []
    categorical: list[list[str]] = []
    labels: list[int] = []
    for number, line in enumerate(sources.read_text(path).splitlines(), start=1):
        if not line.strip() or line.startswith("|"):
            continue
        try:
            *values, label = (value.strip() for value in line.split(","))
            fields = dict(zip(_ADULT_COLUMNS, values, strict=True))
            numeric.append([float(fields[name]) for name in ADULT_NUMERIC])
            categorical.append([fields[name] for name in ADULT_CARDINALITIES])
            labels.append(ADULT_CLASSES.index(label.removesuffix(".")))
        except ValueError as error:
            raise DataError(f"{path}: line {number} is not a row of Adult ({error})") from error
    if not labels:
        raise DataError(f"{path}: holds no rows")
    return RawTable(np.array(numeric), np.array(categorical), np.array(labels))


def _codes(column: npt.NDArray[np.str_], known: npt.NDArray[np.str_]) -> npt.NDArray[np.int64]:
    """1 + the place of each value among the (sorted) known ones, 0 for one that is not among them."""
    places = np.searchsorted(known, column).clip(max=len(known) - 1)
    codes: npt.NDArray[np.int64] = np.where(known[places] == column, places + 1, 0)
    return codes
