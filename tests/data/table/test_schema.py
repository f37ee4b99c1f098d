"""What a table's columns are taken for, and that statistics come from the training part alone."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
import polars as pl
import pytest

from samestep.data.table import choice, gather, schema
from samestep.data.table.raw import Raw, Rows
from samestep.data.table.schema import Schema
from samestep.data.target import Classes, Value
from samestep.errors import DataError, UsageError


def rows_of(raw: Raw) -> Rows:
    return raw.take(np.arange(raw.num_rows))


def raw_of(**columns: Sequence[object]) -> Raw:
    numbers = [name for name, values in columns.items() if not any(isinstance(value, str) for value in values)]
    frame = pl.DataFrame(
        {
            name: pl.Series(values, dtype=pl.Float64 if name in numbers else pl.String)
            for name, values in columns.items()
        }
    )
    return gather.in_memory([frame], numbers, [name for name in columns if name not in numbers])


def everything(raw: Raw) -> np.ndarray:
    return np.ones(raw.num_rows, np.bool_)


def fitted(raw: Raw) -> Schema:
    return schema.fit(raw, everything(raw), "y", left_out=choice.left_out(raw, "y"))


Y = [0, 1, 0, 1, 1, 0]


class TestFit:
    def test_kinds_of_columns(self) -> None:
        raw = raw_of(
            x=[1, 2.5, 3, 4, 9, 6], gap=[1, None, 3, 4, 5, 2], same=[7] * 6, id=list(range(11, 17)), none=[None] * 6,
            color=["r", "g", None, "r", "b", "g"], one=["a"] * 6, y=Y,
        )  # fmt: skip
        found = fitted(raw)
        assert [(column.name, column.has_missing) for column in found.columns.numbers] == [("x", False), ("gap", True)]
        assert [(column.name, column.values, column.num_codes) for column in found.columns.categories] == [
            ("color", ("b", "g", "r"), 5)
        ]
        assert found.columns.left_out == {
            "same": "has one value only",
            "id": "numbers the rows",
            "none": "holds no value",
            "one": "has one value only",
        }
        assert found.target == Classes(name="y", values=("0", "1"), is_numeric=True)
        assert found.columns.num_inputs == 3
        assert Schema.from_dict(json.loads(json.dumps(found.as_dict()))) == found

    def test_flags(self) -> None:
        raw = raw_of(flag=[0, 1, 0, 0, 1, None], tens=[0, 10, 0, 0, 10, 0], x=[0, 0.5, 1, 1, 0, 1], y=Y)
        assert {column.name: column.is_flag for column in fitted(raw).columns.numbers} == {
            "flag": True, "tens": False, "x": False,
        }  # fmt: skip

    def test_texts_that_nearly_all_differ_are_no_category(self) -> None:
        raw = raw_of(x=list(range(0, 80, 2)), name=[f"name {n}" for n in range(40)], y=[n % 2 for n in range(40)])
        found = fitted(raw)
        assert found.columns.left_out["name"] == "has 40 different texts in 40 rows"

    def test_only_training_rows_count(self) -> None:
        rng = np.random.default_rng(0)
        x = rng.normal(5, 3, 100_000)
        is_training = rng.random(len(x)) < 0.7
        raw = raw_of(x=x.tolist(), y=(x > 5).astype(float).tolist())
        other = raw_of(x=np.where(is_training, x, 1e9).tolist(), y=(x > 5).astype(float).tolist())
        found = schema.fit(raw, is_training, "y")
        assert schema.fit(other, is_training, "y").columns.numbers == found.columns.numbers
        assert found.columns.numbers[0].mean == pytest.approx(x[is_training].mean(), rel=1e-12)
        assert found.columns.numbers[0].deviation == pytest.approx(x[is_training].std(), rel=1e-12)
        assert schema.fit(raw, ~is_training, "y").columns.numbers != found.columns.numbers

    @pytest.mark.parametrize(
        ("target", "task", "expected"),
        [
            ([1, 2, 3, 1, 2, 3], None, Classes(name="t", values=("1", "2", "3"), is_numeric=True)),
            (["b", "a", "b", "a", "b", "a"], None, Classes(name="t", values=("a", "b"), is_numeric=False)),
            ([1, 3, 1, 3, 1, 3], "value", Value(name="t", mean=2.0, deviation=1.0)),
            ([0.5, 1.5, 0.5, 1.5, 0.5, 1.5], None, Value(name="t", mean=1.0, deviation=0.5)),
        ],
    )
    def test_task(self, target: list[object], task: schema.Task | None, expected: object) -> None:
        raw = raw_of(x=[3, 1, 4, 1, 5, 9], t=target)
        assert schema.fit(raw, everything(raw), "t", task=task).target == expected

    @pytest.mark.parametrize(
        ("target", "task", "error", "message"),
        [
            ([1, None, 0, 1, None, 1], None, DataError, "the target t is missing in 2 of 6 rows (first in row 2)"),
            (
                ["a", None, "b", "a", "b", "a"],
                None,
                DataError,
                "the target t is missing in 1 of 6 rows (first in row 2)",
            ),
            ([1] * 6, None, DataError, "the target t has one class only (1)"),
            (["a"] * 6, None, DataError, "the target t has one class only (a)"),
            ([1.5] * 6, None, DataError, "the target t is 1.5 in every row"),
            (["a", "b"] * 3, "value", UsageError, "the target t holds texts"),
        ],
    )
    def test_targets_that_cannot_be_learned(
        self, target: list[object], task: schema.Task | None, error: type[Exception], message: str
    ) -> None:
        raw = raw_of(x=[3, 1, 4, 1, 5, 9], t=target)
        with pytest.raises(error) as info:
            schema.fit(raw, everything(raw), "t", task=task)
        assert message in str(info.value)

    def test_nothing_to_learn_from(self) -> None:
        raw = raw_of(id=[1, 2, 3], y=[0, 1, 0])
        with pytest.raises(DataError, match=r"no column is left to learn from: id numbers the rows"):
            fitted(raw)


class TestEncode:
    def test_numbers_marks_codes_and_targets(self) -> None:
        raw = raw_of(x=[1, 3, None, 1, 3, 2], color=["r", None, "g", "r", "g", "r"], y=["no", "yes"] * 3)
        found = schema.fit(raw, everything(raw), "y")
        rows = schema.encode(found.columns, raw, rows_of(raw))
        deviation = np.std([1, 3, 1, 3, 2])
        x, marks = np.array([-1.0, 1, 0, -1, 1, 0]) / deviation, np.array([0, 0, 1, 0, 0, 0])
        np.testing.assert_allclose(rows.numbers, np.stack([x, marks], axis=1), rtol=1e-6)
        assert rows.numbers.dtype == np.float32
        assert rows.codes.tolist() == [[2], [3], [1], [2], [1], [2]]
        assert schema.encode_target(found.target, raw, rows_of(raw)).tolist() == [0, 1] * 3

    def test_what_training_has_not_seen(self) -> None:
        raw = raw_of(x=[1, 2, 3.5, 4], color=["r", "g", "r", "g"], y=[0, 1, 0, 1])
        found = schema.fit(raw, everything(raw), "y")
        new = gather.in_memory(
            [pl.DataFrame({"x": [None, 2.0], "color": ["violet", None]}, schema={"x": pl.Float64, "color": pl.String})],
            ["x"], ["color"],
        )  # fmt: skip
        rows = schema.encode(found.columns, new, rows_of(new))
        assert rows.codes.tolist() == [[0], [0]]
        assert rows.numbers[0, 0] == 0.0

    def test_codes_do_not_depend_on_the_order_of_rows(self) -> None:
        colors = ["r", "g", "b", "r"]
        one, other = raw_of(c=colors, y=[0, 1, 0, 1]), raw_of(c=colors[::-1], y=[1, 0, 1, 0])
        first = schema.encode(schema.fit(one, everything(one), "y").columns, one, rows_of(one)).codes
        second = schema.encode(schema.fit(other, everything(other), "y").columns, other, rows_of(other)).codes
        np.testing.assert_array_equal(first, second[::-1])

    def test_a_value_is_standardised(self) -> None:
        raw = raw_of(x=[3, 1, 4, 1], y=[0.5, 1.5, 2.5, 3.5])
        found = schema.fit(raw, everything(raw), "y")
        target = schema.encode_target(found.target, raw, rows_of(raw))[:, 0]
        assert isinstance(found.target, Value)
        np.testing.assert_allclose(target * found.target.deviation + found.target.mean, [0.5, 1.5, 2.5, 3.5], rtol=1e-6)
