"""A text becomes the places of its symbols, the end of it kept apart, whatever the pieces it is read in."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
import torch
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
    return tuple("".join(schema.symbol(code) for code in part) for part in codes)


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
    (tmp_path / "l.txt").write_bytes("éà".encode("latin-1") * 50)
    with pytest.raises(DataError, match=r"l\.txt is not utf-8 .* encoding latin-1, or take text bytes"):
        packed(tmp_path / "l.txt")
    assert text_of(packed(tmp_path / "l.txt", encoding="latin-1")) == ("éà" * 45, "éà" * 5)


@given(st.text(st.characters(codec="utf-8"), min_size=1))
def test_codes_are_places_among_the_symbols(text: str) -> None:
    schema = Schema(unit="characters", numbers=tuple(sorted(map(ord, set(text)))), window=3)
    assert "".join(schema.symbol(code) for code in schema.codes(text)) == text
    assert schema.codes(text).dtype == np.int64


def test_mistakes(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("short")
    with pytest.raises(DataError, match="the text has 5 symbols to train on, and one window needs 65"):
        packed(tmp_path / "t.txt")
    (tmp_path / "same.txt").write_text("a" * 100)
    with pytest.raises(DataError, match=r"the text is one symbol \(number 97\), 100 times"):
        packed(tmp_path / "same.txt")
    with pytest.raises(UsageError, match="window=0 is below 1"):
        packed(tmp_path / "t.txt", window=0)
    with pytest.raises(DataError, match=r"the symbol 'z' \(number 2\) is not among those learned from"):
        Schema(unit="characters", numbers=(97, 98), window=3).codes("az")
    with pytest.raises(UsageError, match="text bytes does not go with a tokenizer"):
        packed(tmp_path / "t.txt", text="bytes", tokenizer=str(tmp_path / "t.txt"))


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    """A tokenizer of the kind that language models have, learned from the text."""
    learned = tokenizers.Tokenizer(tokenizers.models.BPE())
    learned.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    learned.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    learned.train_from_iterator([TEXT], trainer)
    learned.save(str(tmp_path / "tokenizer.json"))
    return tmp_path / "tokenizer.json"


class TestTokens:
    @pytest.mark.parametrize("at_once", [50, 1 << 20])
    def test_a_tokenizer_cuts_the_text(
        self, tmp_path: Path, tokenizer: Path, at_once: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(texts, "_AT_ONCE", at_once)
        (tmp_path / "t.txt").write_text(TEXT, encoding="utf-8", newline="")
        pack = packed(tmp_path / "t.txt", tokenizer=str(tokenizer), window=5, evaluation_frac=0.0)
        schema = Schema.from_dict(pack.manifest.schema)
        codes = pack.parts["train"]["codes"].tensor
        library = tokenizers.Tokenizer.from_file(str(tokenizer))
        expected = library.encode(TEXT).ids
        assert [schema.numbers[code] for code in codes.tolist()] == expected
        assert len(expected) < len(TEXT) / 2
        tokenizer.unlink()  # it is not needed any more
        numbers = [schema.numbers[code] for code in schema.codes("The lazy dog")]
        assert numbers == library.encode("The lazy dog").ids
        assert "".join(map(schema.symbol, schema.codes("The lazy dog"))) == "The lazy dog"

    def test_another_tokenizer_is_another_pack(self, tmp_path: Path, tokenizer: Path) -> None:
        (tmp_path / "t.txt").write_text(TEXT, encoding="utf-8")

        def make() -> bool:
            settings = DataSettings(tokenizer=str(tokenizer))
            return making.ensure(str(tmp_path / "t.txt"), tmp_path / "packed", settings, lambda *told: None)[1]

        assert (make(), make()) == (True, False)
        tokenizer.write_text(tokenizer.read_text() + "\n")
        assert make()

    def test_tokens_that_are_given(self, tmp_path: Path) -> None:
        numbers = np.random.default_rng(0).choice([3, 70_000, 5], 200)
        np.save(tmp_path / "t.npy", numbers)
        of_file = packed(tmp_path / "t.npy", window=8)
        of_memory = making.of_memory(
            torch.from_numpy(numbers), tmp_path / "memory", DataSettings(window=8), lambda *told: None
        )
        for pack in (of_file, of_memory):
            schema = Schema.from_dict(pack.manifest.schema)
            assert (schema.unit, schema.numbers) == ("tokens", (3, 5, 70_000))
            codes = [*pack.parts["train"]["codes"].tensor.tolist(), *pack.parts["evaluation"]["codes"].tensor.tolist()]
            assert [schema.numbers[code] for code in codes] == numbers.tolist()
        assert schema.codes("70000 3").tolist() == [2, 0]
        assert schema.symbol(2) == "70000"

    def test_mistakes(self, tmp_path: Path) -> None:
        (tmp_path / "t.txt").write_text(TEXT, encoding="utf-8")
        with pytest.raises(DataError, match=r"there is no file or folder .*none\.json"):
            packed(tmp_path / "t.txt", tokenizer=str(tmp_path / "none.json"))
        with pytest.raises(DataError, match=r"t\.txt is no tokenizer\.json \("):
            packed(tmp_path / "t.txt", tokenizer=str(tmp_path / "t.txt"))
        np.save(tmp_path / "t.npy", np.arange(-1, 200))
        with pytest.raises(DataError, match=r"from 0 to 2³² - 1, and there are -1 to 199"):
            packed(tmp_path / "t.npy")
        with pytest.raises(UsageError, match="encoding does not go with numbers of tokens"):
            packed(tmp_path / "t.npy", encoding="utf-8")
        schema = Schema(unit="tokens", numbers=(1, 2), window=3)
        with pytest.raises(DataError, match="trained on numbers of tokens: give such, with spaces"):
            schema.codes("a b")
        with pytest.raises(DataError, match=r"the symbol '3' \(number 2\) is not among those learned from"):
            schema.codes("1 3")
