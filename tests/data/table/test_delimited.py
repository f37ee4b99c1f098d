"""Text files become tables: what is found out, what is read, and what is refused with the line named."""

from __future__ import annotations

import csv
from pathlib import Path

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from samestep.data.table import delimited, kinds
from samestep.data.table.delimited import Delimited, Reading
from samestep.errors import DataError, UsageError


def written(folder: Path, text: str, name: str = "t.csv") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def whole(path: Path, reading: Reading | None = None) -> pl.DataFrame:
    table = Delimited([path], reading or Reading())
    return pl.concat(list(table.chunks(table.names)))


class TestForm:
    @pytest.mark.parametrize("delimiter", [",", "\t", ";", "|"])
    def test_delimiter_is_found(self, tmp_path: Path, delimiter: str) -> None:
        path = written(tmp_path, "\n".join(delimiter.join(row) for row in ("ab", "1x", "2y", "3z")))
        form = Delimited([path], Reading()).form
        assert (form.delimiter, form.names, dict(form.kinds)) == (
            delimiter,
            ("a", "b"),
            {"a": "number", "b": "category"},
        )

    def test_decimal_commas_do_not_make_commas_delimiters(self, tmp_path: Path) -> None:
        path = written(tmp_path, "name;size\nx;1,5\ny;2,5\n")
        assert Delimited([path], Reading()).names == ("name", "size")
        path = written(tmp_path, "x;y\n0,5;u\n1,5;v\n")
        assert Delimited([path], Reading()).names == ("x", "y")

    @pytest.mark.parametrize(
        ("text", "names"),
        [
            ("1,2\n3,4\n", ("column0", "column1")),
            ("a,b\n3,4\n", ("a", "b")),
            ("a,a\n3,4\n", ("column0", "column1")),
            ("a, b\n3, 4\n", ("a", "b")),
            ("red,blue\nblue,red\n", ("red", "blue")),
        ],
    )
    def test_a_header_has_names(self, tmp_path: Path, text: str, names: tuple[str, ...]) -> None:
        assert Delimited([written(tmp_path, text)], Reading()).names == names

    def test_what_is_given_wins(self, tmp_path: Path) -> None:
        reading = Reading(delimiter=";", header=False, missing=("-",), kinds={"column0": "category"})
        form = Delimited([written(tmp_path, "1;-\n2;3\n")], reading).form
        assert dict(form.kinds) == {"column0": "category", "column1": "number"}

    def test_byte_order_mark_is_no_part_of_a_name(self, tmp_path: Path) -> None:
        path = tmp_path / "t.csv"
        path.write_bytes("a,b\n1,2\n".encode("utf-8-sig"))
        assert whole(path).columns == ["a", "b"]


class TestRows:
    def test_missing_values_times_and_padding(self, tmp_path: Path) -> None:
        text = "n, when, who\n1, 1970-01-02, a\nNA, 1970-01-03 12:00:00, ?\n 3, , b\n"
        table = whole(written(tmp_path, text))
        assert table["n"].to_list() == [1.0, None, 3.0]
        assert table["when"].to_list() == [1.0, 2.5, None]
        assert table["who"].to_list() == ["a", None, "b"]

    @pytest.mark.parametrize("end", ["\n", "\r\n"])
    def test_empty_lines_are_no_rows(self, tmp_path: Path, end: str) -> None:
        path = tmp_path / "t.csv"
        path.write_bytes(end.join(["a,b", "1,x", "", "2,y", ",", "", ""]).encode())
        assert whole(path).rows() == [(1.0, "x"), (2.0, "y")]
        path.write_bytes(end.join(["a,b", "1,x", ",", "2,y"]).encode())
        assert whole(path).rows() == [(1.0, "x"), (None, None), (2.0, "y")]

    @pytest.mark.parametrize("start", ["\n", "\n\n", "\r\n", "\ufeff\n"])
    def test_empty_lines_before_the_header_are_none_either(self, tmp_path: Path, start: str) -> None:
        path = tmp_path / "t.csv"
        path.write_bytes(f"{start}a,b\n1,x\n2,y\n".encode())
        assert whole(path).rows() == [(1.0, "x"), (2.0, "y")]
        path.write_bytes(f"{start}a,b\n1,x\n2\n".encode())
        with pytest.raises(DataError, match=rf"line {start.count(chr(10)) + 3}: 1 fields"):
            whole(path)

    def test_empty_lines_before_rows_without_a_header(self, tmp_path: Path) -> None:
        assert whole(written(tmp_path, "\n1,2\n3,4\n")).rows() == [(1.0, 2.0), (3.0, 4.0)]

    def test_an_empty_line_does_not_hide_a_short_one(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="line 4: 1 fields, and the table has 2 columns"):
            whole(written(tmp_path, "a,b\n1,2\n\n3\n4,5\n"))

    def test_numbers_in_quotes_are_numbers(self, tmp_path: Path) -> None:
        assert whole(written(tmp_path, 'a,b\n"1","x"\n"2.5","3"\n')).rows() == [(1.0, "x"), (2.5, "3")]

    def test_quotes_and_line_ends(self, tmp_path: Path) -> None:
        path = tmp_path / "t.csv"
        path.write_bytes(b'a,b\r\n1,"x,\ny"\r\n2,"say ""hi"""\r\n')
        assert whole(path)["b"].to_list() == ["x,\ny", 'say "hi"']

    def test_several_files_are_one_table(self, tmp_path: Path) -> None:
        paths = [written(tmp_path, f"a,b\n{n},x\n", f"{n}.csv") for n in range(3)]
        table = Delimited(paths, Reading())
        assert pl.concat(list(table.chunks(["a"])))["a"].to_list() == [0.0, 1.0, 2.0]
        paths.append(written(tmp_path, "a,c\n1,x\n", "other.csv"))
        with pytest.raises(DataError, match=r"other\.csv has the columns a, c and 0\.csv a, b"):
            Delimited(paths, Reading())

    @settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(
        rows=st.lists(
            st.tuples(
                st.one_of(st.none(), st.floats(allow_nan=False, allow_infinity=False, width=32)),
                st.text(st.characters(codec="utf-8", exclude_characters="\0\r\n\ufeff"), max_size=6),
            ),
            min_size=1,
            max_size=30,
        )
    )
    def test_what_a_writer_wrote_is_read(self, tmp_path: Path, rows: list[tuple[float | None, str]]) -> None:
        path = tmp_path / "t.csv"
        with open(path, "w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("number", "text"), *((n, text) for n, text in rows)])
        reading = Reading(delimiter=",", header=True, kinds={"number": "number", "text": "category"})
        table = Delimited([path], reading)
        found = pl.concat(list(table.chunks(table.names)))
        assert found["number"].to_list() == [n for n, _ in rows]
        padded = table.form.is_padded
        texts = [text.strip(kinds.PADDING) if padded else text for _, text in rows]
        assert found["text"].to_list() == [None if text in kinds.MISSING else text for text in texts]


class TestRefused:
    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("", "t.csv is empty"),
            ("\n\n", "t.csv is empty"),
            ("a,b\n", "t.csv has a header and no rows"),
            ("a,b,a\nx,y,z\n", "two columns are called 'a'"),
            ("a,b\n1,2\n3\n4,5\n", "t.csv line 3: 1 fields, and the table has 2 columns (a, b)"),
            ("a,b\n1,2\n3,4,5\n", "t.csv line 3: 3 fields, and the table has 2 columns (a, b)"),
            ('a,b\n1,"x,y"\n3\n', "t.csv line 3: 1 fields"),
            ('a,b\n1,"x\ny"\n3\n', "t.csv line 4: 1 fields"),
        ],
    )
    def test_one_line_names_the_line(self, tmp_path: Path, text: str, message: str) -> None:
        reading = Reading(header=True) if message.startswith("two") else Reading()
        with pytest.raises(DataError) as info:
            whole(written(tmp_path, text), reading)
        assert message in str(info.value)
        assert "\n" not in str(info.value)

    def test_a_text_far_down_in_a_column_of_numbers(self, tmp_path: Path) -> None:
        rows = "".join(f"{n},x\n" for n in range(20_000))
        path = written(tmp_path, f"a,b\n{rows}oops,y\n")
        with pytest.raises(DataError, match=r"t\.csv line 20,?002: a is 'oops'.*kinds a=category.*missing oops"):
            whole(path)
        assert whole(path, Reading(kinds={"a": "category"}))["a"][-1] == "oops"
        assert whole(path, Reading(missing=("oops",)))["a"][-1] is None

    def test_a_time_that_is_none(self, tmp_path: Path) -> None:
        path = written(tmp_path, "when,n\n2024-01-01,1\n2024-13-01,2\n")
        assert Delimited([path], Reading()).kinds["when"] == "category"
        rows = "".join("2024-01-01,1\n" for _ in range(12_000))
        path = written(tmp_path, f"when,n\n{rows}soon,2\n")
        with pytest.raises(
            DataError, match=r"t\.csv line 12002: when is 'soon', and the column holds times; .*when=cat"
        ):
            whole(path)

    @pytest.mark.parametrize(
        ("num_rows", "encoding", "where"),
        [
            (1, "latin-1", "line 3: byte 0xe9"),
            (100, "latin-1", "line 102: byte 0xe9"),
            (1, "utf-16", "line 1: byte 0xff"),
        ],
    )
    def test_another_encoding(
        self, num_rows: int, encoding: str, where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """In the first bytes, which are looked at, and far behind them."""
        monkeypatch.setattr(delimited, "_SNIFFED_BYTES", 64)
        rows = "".join(f"{n},x\n" for n in range(num_rows))
        path = tmp_path / "t.csv"
        path.write_bytes(f"a,b\n{rows}1,é\n".encode(encoding))
        with pytest.raises(DataError, match=rf"t\.csv {where} is not UTF-8; .* encoding {encoding}"):
            whole(path)

    def test_a_quote_that_is_not_closed(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"t\.csv line 3: a quote is opened and nowhere closed"):
            whole(written(tmp_path, 'a,b\n1,x\n2,"y\n3,z\n'), Reading(delimiter=",", header=True))

    def test_a_last_field_of_two_lines_is_not_to_blame_for_another_fault(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(delimited, "_SNIFFED_BYTES", 64)
        rows = "".join(f"{n},x\n" for n in range(100))
        path = tmp_path / "t.csv"
        path.write_bytes(f'a,b\n{rows}1,é\n2,"y\nz"\n'.encode("latin-1"))
        with pytest.raises(DataError, match=r"t\.csv line 102: byte 0xe9 is not UTF-8"):
            whole(path)

    def test_kinds_of_a_column_that_is_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="'c', which is not there; there are a, b"):
            Delimited([written(tmp_path, "a,b\n1,2\n")], Reading(kinds={"c": "number"}))

    @pytest.mark.parametrize("text", ["a", "a=", "=number", "a=integer"])
    def test_kinds_that_cannot_be_read(self, text: str) -> None:
        with pytest.raises(UsageError, match="is not COLUMN=KIND"):
            kinds.parse_given(text)
