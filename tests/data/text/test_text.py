"""A text becomes the places of its symbols, the end of it kept apart, whatever the pieces it is read in."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from samestep.data import making
from samestep.data.pack.reader import Pack
from samestep.data.settings import DataSettings
from samestep.data.text import making as texts
from samestep.data.text.schema import Schema
from samestep.errors import DataError, UsageError

TEXT = "The quick brown fox, naïve as ever, jumps.\r\nOver 🦊 the lazy dog.\n" * 40


def packed(path: Path, **settings: Any) -> Pack:
    return making.ensure(str(path), path.with_name("packed"), DataSettings(**settings), lambda *told: None)[0]


def text_of(pack: Pack) -> tuple[str, ...]:
    schema = Schema.from_dict(pack.manifest.schema)
    codes = [pack.parts[part]["codes"].tensor.numpy() for part in ("train", "evaluation") if part in pack.parts]
    return tuple("".join(schema.symbols[code] for code in part) for part in codes)


@pytest.mark.parametrize("at_once", [1, 7, 1 << 20])
def test_characters(tmp_path: Path, at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(texts, "_AT_ONCE", at_once)
    (tmp_path / "t.txt").write_text(TEXT, encoding="utf-8", newline="")
    pack = packed(tmp_path / "t.txt")
    train, evaluation = text_of(pack)
    assert train + evaluation == TEXT
    assert len(evaluation) == round(len(TEXT) * 0.1)
    assert pack.parts["train"]["codes"].dtype == "uint8"
    assert Schema.from_dict(pack.manifest.schema).window == 64


def test_compressed_bytes_and_other_encodings(tmp_path: Path) -> None:
    (tmp_path / "t.txt.gz").write_bytes(gzip.compress(TEXT.encode()))
    assert "".join(text_of(packed(tmp_path / "t.txt.gz", window=5))) == TEXT
    (tmp_path / "b.bin").write_bytes(bytes(range(256)) * 3)
    pack = packed(tmp_path / "b.bin", text="bytes", window=5, evaluation_frac=0.0)
    assert pack.parts["train"]["codes"].tensor.tolist() == [*range(256)] * 3
    (tmp_path / "l.txt").write_bytes("é".encode("latin-1") * 100)
    with pytest.raises(DataError, match=r"l\.txt is not utf-8 .* encoding latin-1, or take text bytes"):
        packed(tmp_path / "l.txt")
    assert text_of(packed(tmp_path / "l.txt", encoding="latin-1")) == ("é" * 90, "é" * 10)


@given(st.text(st.characters(codec="utf-8"), min_size=1))
def test_codes_are_places_among_the_symbols(text: str) -> None:
    schema = Schema(symbols="".join(sorted(set(text))), are_bytes=False, window=3)
    assert "".join(schema.symbols[code] for code in schema.codes(text)) == text
    assert schema.codes(text).dtype == np.int64


def test_mistakes(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("short")
    with pytest.raises(DataError, match="the text has 5 symbols to train on, and one window needs 65"):
        packed(tmp_path / "t.txt")
    with pytest.raises(UsageError, match="window=0 is below 1"):
        packed(tmp_path / "t.txt", window=0)
    with pytest.raises(DataError, match=r"the symbol 'z' \(number 2\) is not among those learned from"):
        Schema(symbols="ab", are_bytes=False, window=3).codes("az")
