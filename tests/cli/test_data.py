"""From a table or pictures to a trained network and its answers, as a user would do it."""

from __future__ import annotations

import gzip
import json
import struct
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from PIL import Image

from samestep.run import train
from samestep.workloads import networks
from tests.cli.command import Command, Finished, refused

Call = Callable[..., Finished]

HEADER = "PassengerId,Survived,Pclass,Name,Sex,Age,Fare\n"


def passengers(num: int = 300, seed: int = 0) -> str:
    """A table like the Titanic's: women live, ages are missing, names and numbers tell nothing."""
    rng = np.random.default_rng(seed)
    lines = []
    for number in range(1, num + 1):
        sex = rng.choice(["male", "female"])
        age = "" if rng.random() < 0.2 else f"{rng.uniform(1, 70):.1f}"
        lives = int(rng.random() < (0.95 if sex == "female" else 0.05))
        lines.append(
            f'{number},{lives},{rng.integers(1, 4)},"Name {number}, Mx.",{sex},{age},{rng.uniform(5, 90):.2f}\n'
        )
    return HEADER + "".join(lines)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "titanic.csv").write_text(passengers())
    return tmp_path


@pytest.fixture
def call_here(call: Call, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Call:
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    return call


TRAIN = ("train", "--steps", "60", "--workers", "1", "--json")
TARGET = ("--target", "Survived")


def digest(finished: Finished) -> str:
    assert finished.code == 0, finished.stderr
    answer = json.loads(finished.stdout)
    assert answer["eval"]["accuracy"] > 0.8
    sha: str = answer["weights_sha256"]
    return sha


class TestTables:
    def test_a_pack_says_what_was_chosen_and_is_made_once(self, call_here: Call, folder: Path) -> None:
        finished = call_here("pack", "titanic.csv", "packed", *TARGET)
        assert finished.code == 0
        lines = finished.stdout.splitlines()
        assert lines[0].startswith("titanic.csv: ")
        assert lines[1:] == [
            "target Survived: 2 classes (0, 1)",
            "3 columns of numbers: Pclass, Age, Fare",
            "1 columns of categories: Sex (2)",
            "left out: PassengerId numbers the rows; Name has 300 different texts in 300 rows",
            "kept for evaluation: 0.1 of the rows, by a keyed hash of what they hold, split_seed 0",
        ]
        before = (folder / "packed" / "manifest.json").stat().st_mtime_ns
        again = call_here("pack", "titanic.csv", "packed", *TARGET)
        assert again.stdout.startswith("packed: titanic.csv has not changed since it was packed\n")
        assert (folder / "packed" / "manifest.json").stat().st_mtime_ns == before
        (folder / "titanic.csv").write_text(passengers(200))
        assert "not changed" not in call_here("pack", "titanic.csv", "packed", *TARGET).stdout

        shown = call_here("data", "show", "packed", "--rows", "2", "--check").stdout
        assert "missing values: Age " in shown
        assert "train-numbers.npy" in shown
        assert " female " in shown

    def test_of_several_ranks_only_the_first_writes_the_network(
        self, call_here: Call, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        undisturbed = train.run
        monkeypatch.setattr(train, "run", lambda *a, **k: replace(undisturbed(*a, **k), is_first=False))
        words = ("train", "--data", "titanic.csv", *TARGET, "--steps", "2", "--workers", "1", "--out")
        assert call_here(*words, "other").code == 0
        assert not (folder / "other" / networks.FILENAME).exists()
        monkeypatch.setattr(train, "run", undisturbed)
        assert call_here(*words, "first").code == 0
        assert (folder / "first" / networks.FILENAME).exists()

    def test_the_same_network_from_every_form_of_the_data(self, call_here: Call, folder: Path) -> None:
        text = (folder / "titanic.csv").read_text()
        (folder / "t.csv.gz").write_bytes(gzip.compress(text.encode()))
        (folder / "t.tsv").write_text(text.replace(", Mx.", " Mx.").replace('"', "").replace(",", "\t"))
        (folder / "latin.csv").write_bytes(text.replace("Mx", "Mé").encode("latin-1"))
        with zipfile.ZipFile(folder / "set.zip", "w") as archive:
            archive.writestr("deep/train.csv", text)
            archive.writestr("deep/test.csv", "no,table\n")
        assert call_here("pack", "titanic.csv", "packed", *TARGET).code == 0
        expected = digest(call_here(*TRAIN, "--data", "titanic.csv", *TARGET))
        assert digest(call_here(*TRAIN, "--data", "packed")) == expected
        assert digest(call_here(*TRAIN, "--data", "packed", *TARGET)) == expected
        for source in ("t.csv.gz", "t.tsv", "set.zip", "set.zip/deep/train.csv"):
            assert digest(call_here(*TRAIN, "--data", source, *TARGET)) == expected, source
        assert digest(call_here(*TRAIN, "--data", "latin.csv", "--encoding", "latin-1", *TARGET)) == expected
        assert digest(call_here(*TRAIN, "--data", "titanic.csv", "--split-seed", "1", *TARGET)) != expected

    @pytest.mark.processes
    def test_workers_answers_and_what_is_left(self, tmp_path: Path) -> None:
        command = Command(tmp_path)
        (tmp_path / "titanic.csv").write_text(passengers())
        words = ("train", "--data", "titanic.csv", *TARGET, "--steps", "200", "--json")
        one = command.run(*words, "--workers", "1")
        two = command.run(*words, "--workers", "2", "--out", "run")
        assert digest(one) == digest(two)
        (tmp_path / "new.csv").write_text("Sex,Fare,Age,Pclass\nfemale,30,,1\nmale,8.5,40,3\nfemale,20,17,2\n")
        finished = command.run("predict", "run", "--input", "new.csv")
        assert finished.code == 0, finished.stderr
        rows = [line.split(",") for line in finished.stdout.splitlines()]
        assert rows[0] == ["sample", "Survived", "probability"]
        assert [row[1] for row in rows[1:]] == ["1", "0", "1"]
        command.check_nothing_left()

    def test_a_value_is_learned_in_its_own_unit(self, call_here: Call, folder: Path) -> None:
        rng = np.random.default_rng(0)
        x = rng.normal(size=(400, 2))
        y = 1000 + 300 * x[:, 0] - 100 * x[:, 1]
        lines = [f"{a:.4f},{b:.4f},{value:.3f}" for (a, b), value in zip(x, y, strict=True)]
        (folder / "houses.csv").write_text("\n".join(["a,b,price", *lines]))
        words = ("train", "--data", "houses.csv", "--target", "price", "--steps", "400", "--workers", "1", "--json")
        finished = call_here(*words, "--out", "run")
        assert finished.code == 0, finished.stderr
        assert json.loads(finished.stdout)["eval"]["mae"] < 40
        (folder / "new.csv").write_text("a,b\n0,0\n1,0\n")
        prices = [
            float(line.split(",")[1]) for line in call_here("predict", "run", "--input", "new.csv").stdout.split()[1:]
        ]
        assert prices == pytest.approx([1000, 1300], abs=60)

    def test_a_table_of_its_own_to_evaluate_on(self, call_here: Call, folder: Path) -> None:
        (folder / "later.csv").write_text(passengers(100, seed=1).replace(",female,", ",unknown,", 1))
        finished = call_here("pack", "titanic.csv", "packed", *TARGET, "--evaluation", "later.csv")
        assert finished.stdout.startswith("titanic.csv: 300 train, 100 evaluation samples")
        codes = np.load(folder / "packed" / "evaluation-categories.npy")
        assert (codes == 0).sum() == 1
        line = "categories to evaluate on that training has not seen: Sex in 1 row (first: 'unknown')"
        assert line in finished.stdout.splitlines()
        words = ("train", "--data", "titanic.csv", *TARGET, "--evaluation", "later.csv", "--workers", "1")
        assert line in call_here(*words, "--steps", "2").stderr.splitlines()
        schema = json.loads((folder / "packed" / "manifest.json").read_bytes())["schema"]
        assert schema["left_out"]["PassengerId"] == "numbers the rows", "in training; those of the other table restart"
        assert [column["name"] for column in schema["numbers"]] == ["Pclass", "Age", "Fare"]

    def test_rows_without_target_are_dropped_and_counted(self, call_here: Call, folder: Path) -> None:
        (folder / "holes.csv").write_text("x,y\n" + "1,a\n2,b\n3,\n" * 20)
        words = ("pack", "holes.csv", "packed", "--target", "y", "--rows-without-target", "drop")
        finished = call_here(*words, "--evaluation-frac", "0")
        assert finished.code == 0, finished.stderr
        assert finished.stdout.startswith("holes.csv: 40 train samples")
        assert "20 rows without a target are left out" in finished.stdout
        assert json.loads((folder / "packed" / "manifest.json").read_bytes())["statistics"]["num_dropped"] == 20

    def test_rows_with_one_value_stay_together(self, call_here: Call, folder: Path) -> None:
        rows = [f"{number % 50},{number % 7},{number % 2}" for number in range(400)]
        (folder / "visits.csv").write_text("\n".join(["patient,x,y", *rows]))
        words = ("pack", "visits.csv", "packed", "--target", "y", "--kinds", "patient=category")
        finished = call_here(*words, "--split-by", "patient", "--evaluation-frac", "0.3")
        assert finished.code == 0, finished.stderr
        names = ["", *(str(number) for number in sorted(range(50), key=str))]
        parts = {
            part: {names[code] for code in np.load(folder / "packed" / f"{part}-categories.npy").flatten()}
            for part in ("train", "evaluation")
        }
        assert len(parts["train"]) > 20
        assert parts["evaluation"] <= {""}, "none of them was seen in training, so that they have no code"

    def test_a_pack_is_of_its_own_target(self, call_here: Call, folder: Path) -> None:
        assert call_here("pack", "titanic.csv", "packed", *TARGET).code == 0
        assert "packed was packed with target 'Survived' and not 'Sex'" in refused(
            call_here("train", "--data", "packed", "--target", "Sex", "--workers", "1")
        )

    def test_what_is_shown_of_a_pack(self, call_here: Call, folder: Path) -> None:
        assert call_here("pack", "titanic.csv", "packed", *TARGET, "--evaluation-frac", "0").code == 0
        lines = [line.split() for line in call_here("data", "show", "packed").stdout.splitlines()]
        lived = sum(line.split(",")[1] == "1" for line in passengers().splitlines()[1:])
        assert ["0", str(300 - lived)] in lines
        assert ["1", str(lived)] in lines

    def test_new_rows_need_the_columns(self, call_here: Call, folder: Path) -> None:
        finished = call_here(
            "train", "--data", "titanic.csv", *TARGET, "--steps", "3", "--workers", "1", "--out", "run"
        )
        assert finished.code == 0, finished.stderr
        (folder / "new.csv").write_text("Sex,Fare\nfemale,30\n")
        assert "new.csv lacks the columns Pclass, Age; it has Sex, Fare" in refused(
            call_here("predict", "run", "--input", "new.csv")
        )
        (folder / "new.csv").write_text("Sex,Fare,Age,Pclass\nfemale,30,inf,1\n")
        assert "Age is infinite" in refused(call_here("predict", "run", "--input", "new.csv"))

    def test_categories_in_new_rows_that_training_has_not_seen_are_counted(self, call_here: Call, folder: Path) -> None:
        words = ("train", "--data", "titanic.csv", *TARGET, "--steps", "2", "--workers", "1", "--out", "run")
        assert call_here(*words).code == 0
        rows = ["Sex,Fare,Age,Pclass", "female,30,,1", "other,8.5,40,3", ",9,40,3", "male,20,17,2"]
        (folder / "new.csv").write_text("\n".join(rows))
        finished = call_here("predict", "run", "--input", "new.csv")
        assert finished.stderr == ("new.csv: categories that training has not seen: Sex in 2 rows (first: 'other')\n")
        assert len(finished.stdout.splitlines()) == 5
        (folder / "new.csv").write_text("\n".join(rows[:2]))
        assert call_here("predict", "run", "--input", "new.csv").stderr == ""

    def test_a_table_without_a_header(self, call_here: Call, folder: Path) -> None:
        (folder / "bare.csv").write_text("red,yes\nblue,no\n" * 15)
        finished = call_here(
            "pack", "bare.csv", "packed", "--target", "column1", "--no-header", "--evaluation-frac", "0"
        )
        assert finished.stdout.startswith("bare.csv: 30 train samples"), finished.stderr

    def test_what_cannot_be_learned_or_judged_is_said(self, call_here: Call, folder: Path) -> None:
        (folder / "few.csv").write_text("x,y\n" + "1,a\n2,b\n" * 20)
        lines = call_here("pack", "few.csv", "packed", "--target", "y").stdout.splitlines()
        assert len([line for line in lines if line.startswith("no sample is kept for evaluation: take another")]) == 1
        (folder / "later.csv").write_text("x,y\n1,a\n2,c\n")
        words = ("pack", "few.csv", "packed", "--target", "y", "--evaluation", "later.csv")
        lines = call_here(*words).stdout.splitlines()
        assert "classes of y without a sample to train on: c" in lines
        assert not any("kept for evaluation" in line for line in lines)

    def test_training_prints_what_it_chose(self, call_here: Call, folder: Path) -> None:
        words = ("train", "--data", "titanic.csv", *TARGET, "--workers", "1", "--steps", "3", "--shuffle-block", "8")
        finished = call_here(*words)
        lines = finished.stderr.splitlines()
        assert "network: mlp, width 64, depth 2" in lines
        assert "loss: CrossEntropyLoss; evaluated by accuracy" in lines
        assert "optimiser: adamw, learning rate 0.002 (cosine), global batch 64, 3 steps" in lines
        assert "order: blocks of 8 samples" in lines
        assert any(line.startswith("waiting for data ") for line in finished.stdout.splitlines())
        finished = call_here(*words, "--optimizer", "sgd", "--lr", "0.5")
        assert "optimiser: sgd, learning rate 0.5 (constant), global batch 64, 3 steps" in finished.stderr.splitlines()


class TestPictures:
    @pytest.mark.processes
    def test_folders_of_pictures(self, call_here: Call, folder: Path) -> None:
        rng = np.random.default_rng(0)
        for number in range(120):
            name, light = ("bright", 170) if number % 2 else ("dark", 60)
            path = folder / "set" / name / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(light - 60, light + 60, (8, 8), np.uint8)).save(path)
        for model in ("cnn", "mlp"):
            words = ("train", "--data", "set", "--model", model, "--steps", "150", "--workers", "1", "--json")
            finished = call_here(*words, "--out", model)
            assert finished.code == 0, finished.stderr
            assert json.loads(finished.stdout)["eval"]["accuracy"] > 0.9
            answers = call_here("predict", model, "--input", "set/bright/1.png").stdout.splitlines()
            assert answers[1].split(",")[:2] == ["set/bright/1.png", "bright"]
        assert "8 × 8 pixels, grey" in finished.stderr


MISTAKES: list[tuple[tuple[str, ...], str]] = [
    (("train",), "give a WORKLOAD (see samestep workloads), or data to learn from with --data, and not both"),
    (("train", "digits-mlp", "--data", "titanic.csv"), "and not both"),
    (("train", "digits-mlp", "--target", "x"), "target: such settings go with --data, and digits-mlp brings its own"),
    (("train", "--data", "none.csv", *TARGET), "there is no file or folder none.csv"),
    (("train", "--data", "titanic.csv"), "which column is to be learned? Name it with target; there are PassengerId,"),
    (
        ("train", "--data", "titanic.csv", "--target", "Lived"),
        "the target 'Lived' is not a column; there are ",
    ),
    (("train", "--data", "titanic.csv", "--target", "Age"), "the target Age is missing in "),
    (("train", "--data", "titanic.csv", "--model", "cnn", *TARGET), "model cnn does not go with table; take mlp"),
    (("train", "--data", "titanic.csv", "--kinds", "Sex=text", *TARGET), "kinds: 'Sex=text' is not COLUMN=KIND"),
    (("train", "--data", "titanic.csv", "--split-by", "Ship", *TARGET), "the split_by 'Ship' is not a column"),
    (("train", "--data", "titanic.csv", "--evaluation-frac", "1.5", *TARGET), "evaluation_frac=1.5 is not in 0 .. 1"),
    (("train", "--data", "titanic.csv", "--picture-size", "8x8", *TARGET), "picture_size does not go with a table in"),
    (
        ("train", "--data", "titanic.csv", "--evaluation", "titanic.csv", "--split-seed", "1", *TARGET),
        "split_seed does not go with evaluation, which is a table of its own; leave one out",
    ),
    (("pack", "titanic.csv", "taken", *TARGET), "taken is there already and is no pack"),
    (("pack", "empty.csv", "packed", *TARGET), "empty.csv is empty"),
    (("pack", "infinite.csv", "packed", "--target", "y"), "row 2: x is infinite; take it as a missing value"),
    (
        ("pack", "whole.csv", "packed", "--target", "y", "--evaluation", "infinite.csv"),
        "row 2 of the evaluation table: x is infinite",
    ),
    (
        ("pack", "whole.csv", "packed", "--target", "y", "--evaluation", "holes.csv"),
        "the target y is missing in 1 of 7 rows (first in row 3 of the evaluation table)",
    ),
    (("pack", "late.csv", "packed", "--target", "y", "--rows-without-target", "drop"), "row 4: x is infinite"),
    (("pack", "infinite.parquet", "packed", "--target", "y"), "(missing inf,-inf in text files, null in others)"),
    (("pack", "train-images-idx3-ubyte", "packed"), "train-images-idx3-ubyte is an IDX file, of which pictures and"),
    (("pack", "taken", "packed"), "taken holds letter.txt: learn it symbol by symbol with text characters; or,"),
    (("pack", "one.csv", "packed", "--target", "y"), "the target y has one class only (1)"),
    (
        ("pack", "one.csv", "packed", "--target", "y", "--evaluation", "whole.csv"),
        "all 3 samples to train on are of the class 1: there is nothing to learn",
    ),
    (("pack", "numbered.csv", "packed", "--target", "y"), "no column is left to learn from: x numbers the rows"),
    (
        ("pack", "same.csv", "packed", "--target", "y", "--evaluation-frac", "0.999"),
        "with evaluation_frac 0.999 there are too few different",
    ),
    (
        ("pack", "titanic.csv", "packed", *TARGET, "--split-by", "Sex", "--evaluation-frac", "0.999"),
        "no row is left for training: split_by Sex has too few different values",
    ),
    (("pack", "empty.txt", "packed"), "the text has 0 symbols to train on"),
    (("pack", "empty.npy", "packed", "--target", "y"), "empty.npy"),
    (("pack", "cut.npy", "packed", "--target", "y"), "cut.npy"),
    (("pack", "empty.parquet", "packed", "--target", "y"), "empty.parquet"),
    (("pack", "headers.csv", "packed", "--target", "y"), "headers.csv has a header and no rows"),
    (("pack", "cut.csv.gz", "packed", "--target", "y"), "cut.csv.gz is damaged or cut short"),
    (("pack", "cut.zip", "packed", "--target", "y"), "cut.zip is damaged or cut short"),
    (("pack", "titanic.csv", "packed", "--encoding", "klingon", *TARGET), "encoding 'klingon' is not known"),
    (("data", "show", "taken"), "taken holds letter.txt: learn it symbol by symbol with text characters; or,"),
    (("data", "show", "none"), "there is no file or folder none"),
    (("data", "show", "titanic.csv"), "which column is to be learned? Name it with target; there are PassengerId,"),
    (
        ("predict", "taken", "--input", "titanic.csv"),
        "taken/network.json cannot be read (No such file or directory); is taken a run of train --data?",
    ),
]


@pytest.mark.parametrize(("words", "text"), MISTAKES)
def test_mistakes_are_one_line(call_here: Call, folder: Path, words: tuple[str, ...], text: str) -> None:
    (folder / "taken").mkdir()
    (folder / "taken" / "letter.txt").write_text("dear")
    (folder / "empty.csv").write_text("")
    (folder / "infinite.csv").write_text("x,y\n1,0\ninf,1\n2,0\n")
    pl.DataFrame({"x": [1.0, float("inf"), 2.0], "y": [0, 1, 0]}).write_parquet(folder / "infinite.parquet")
    (folder / "whole.csv").write_text("x,y\n1,0\n4,1\n2,0\n")
    (folder / "holes.csv").write_text("x,y\n1,0\n5,1\n2,\n7,1\n")
    (folder / "late.csv").write_text("x,y\n1,0\n5,1\n2,\ninf,1\n")
    (folder / "train-images-idx3-ubyte").write_bytes(bytes([0, 0, 8, 3, 255]))
    (folder / "one.csv").write_text("x,y\n1,1\n3,1\n2,1\n")
    for name in ("empty.txt", "empty.npy", "empty.parquet"):
        (folder / name).write_bytes(b"")
    np.save(folder / "whole.npy", np.arange(40.0).reshape(20, 2))
    (folder / "cut.npy").write_bytes((folder / "whole.npy").read_bytes()[:-100])
    (folder / "headers.csv").write_text("x,y\n")
    (folder / "numbered.csv").write_text("x,y\n" + "".join(f"{number},{number % 2}\n" for number in range(40)))
    (folder / "same.csv").write_text("x,y\n" + "1,1\n2,0\n" * 20)
    whole = gzip.compress(passengers().encode())
    (folder / "cut.csv.gz").write_bytes(whole[: len(whole) // 2])
    with zipfile.ZipFile(folder / "cut.zip", "w") as archive:
        archive.writestr("t.csv", passengers())
    (folder / "cut.zip").write_bytes((folder / "cut.zip").read_bytes()[:-40])
    finished = call_here(*words)
    assert finished.code == 2, finished.stderr
    assert text in finished.complaint
    assert not (folder / "packed").exists()
    assert not any(path.name.endswith(".part") for path in folder.rglob("*"))


@pytest.mark.processes
def test_what_is_shown_of_a_source_of_any_kind(call_here: Call, folder: Path) -> None:
    def shown(source: str, *words: str, rows: int = 2) -> list[str]:
        finished = call_here("data", "show", source, *words, "--rows", str(rows), "--check")
        assert finished.code == 0, finished.stderr
        return [" ".join(line.split()) for line in finished.stdout.splitlines() if line.strip()]

    (folder / "lives.csv").write_text("x,color,lives\n" + "1.5,red,yes\n2.5,,no\n3.5,blue,yes\n" * 20)
    assert shown("lives.csv", "--target", "lives", "--evaluation-frac", "0")[-2:] == ["yes 1.5 red", "no 2.5"]
    rows = [f"{10 + 0.5 * number},{'N' if number % 3 else 'S'}" for number in range(60)]
    (folder / "air.csv").write_text("\n".join(["pm,wind", *rows]))
    assert shown("air.csv", "--target", "pm", "--horizon", "2", "--window", "4")[-2:] == ["10 S", "10.5 N"]
    (folder / "song.txt").write_text("la li\n" * 40)
    assert shown("song.txt", "--window", "8")[-2:] == [r"'la li\nla'", r"' li\nla l'"]
    np.save(folder / "tokens.npy", np.arange(300, 500))
    assert shown("tokens.npy", "--window", "3")[-2:] == ["300 301 302", "303 304 305"]
    assert len(shown("tokens.npy", "--window", "100", rows=1)[-1]) == 100
    x = np.stack([np.full((3, 4, 5), number % 7, np.float32) for number in range(40)])
    np.savez(folder / "waves.npz", x=x, y=np.arange(40) % 7 / 2)
    assert shown("waves.npz", "--evaluation-frac", "0")[-2:] == ["0 3 × 4 × 5 0 0 0", "0.5 3 × 4 × 5 1 1 1"]
    for number in range(4):
        path = folder / "set" / ("light" if number % 2 else "dark") / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((6, 8), 10 + number, np.uint8)).save(path)
    assert shown("set", "--evaluation-frac", "0")[-2:] == ["dark 1 × 6 × 8 10 10 10", "dark 1 × 6 × 8 12 12 12"]
    assert [line for line in shown("set", "--evaluation-frac", "0", rows=0) if "6 × 8 10" in line] == []
    packs = {path.name.split("-")[0] for path in (folder / "cache" / "samestep" / "packs").iterdir()}
    assert packs == {"lives", "air", "song", "tokens", "waves", "set"}


def test_text_is_learned_symbol_by_symbol(call_here: Call, folder: Path) -> None:
    (folder / "song.txt").write_text("la li lu le lo. " * 400)
    for model in ("transformer", "lstm"):
        words = ("train", "--data", "song.txt", "--model", model, "--window", "20", "--width", "16", "--steps", "300")
        finished = call_here(*words, "--workers", "1", "--json", "--out", model)
        assert finished.code == 0, finished.stderr
        assert json.loads(finished.stdout)["eval"]["accuracy"] > 0.9
        (folder / "begin.txt").write_text("la li lu l\nlo. la l\n")
        answers = call_here("predict", model, "--input", "begin.txt").stdout.splitlines()
        assert [line.split(",")[1] for line in answers] == ["symbol", "e", "i"]
    assert "8 different characters, windows of 20" in finished.stderr


def test_new_samples_in_arrays(call_here: Call, folder: Path) -> None:
    """What was learned from arrays answers for arrays: rows of a table, pictures, and samples of any shape."""
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(200, 3)).astype(np.float32)
    np.save(folder / "rows.npy", np.column_stack([rows, rows[:, 0] > 0]))
    np.save(folder / "new-rows.npy", np.array([[2.0, 0, 0], [-2.0, 0, 0]], np.float32))
    is_bright = rng.integers(0, 2, 200)
    pixels = (rng.integers(0, 50, (200, 6, 6)) + 200 * is_bright[:, None, None]).astype(np.uint8)
    np.savez(folder / "pictures.npz", x=pixels, y=is_bright)
    np.savez(folder / "new-pictures.npz", x=np.stack([np.full((6, 6), 240, np.uint8), np.full((6, 6), 20, np.uint8)]))
    np.savez(folder / "waves.npz", x=pixels[..., None].astype(np.float32) / 255, y=is_bright)
    np.save(folder / "new-waves.npy", np.stack([np.full((6, 6, 1), 0.9), np.full((6, 6, 1), 0.1)]))
    for source, new, words in (
        ("rows.npy", "new-rows.npy", ("--target", "column3")),
        ("pictures.npz", "new-pictures.npz", ()),
        ("waves.npz", "new-waves.npy", ("--model", "mlp")),
    ):
        out = f"run-{source}"
        steps = ("--steps", "150", "--workers", "1", "--out", out)
        finished = call_here("train", "--data", source, *words, *steps)
        assert finished.code == 0, finished.stderr
        finished = call_here("predict", out, "--input", new)
        assert finished.code == 0, finished.stderr
        answers = [line.split(",")[1] for line in finished.stdout.splitlines()[1:]]
        assert answers in (["1", "0"], ["1.0", "0.0"], ["True", "False"])
    np.save(folder / "wide.npy", np.zeros((2, 6)))
    assert "wide.npy has 6 columns, and the network has learned from 4" in refused(
        call_here("predict", "run-rows.npy", "--input", "wide.npy")
    )
    assert "takes bytes of shape (samples, 6, 6, 1), not float32 of shape (2, 3)" in refused(
        call_here("predict", "run-pictures.npz", "--input", "new-rows.npy")
    )


def test_columns_of_an_array_keep_their_places_and_kinds(call_here: Call, folder: Path) -> None:
    """The target comes first and may be left out, one column tells nothing, and one holds categories."""
    rng = np.random.default_rng(0)
    kind, number = rng.integers(0, 3, 200), rng.normal(size=200)
    is_high = (kind == 1).astype(float)
    whole = np.column_stack([is_high, np.full(200, 5.0), kind, number])
    np.save(folder / "rows.npy", whole)
    words = ("train", "--data", "rows.npy", "--target", "column0", "--kinds", "column2=category", "--steps", "150")
    finished = call_here(*words, "--workers", "1", "--out", "run")
    assert finished.code == 0, finished.stderr
    np.save(folder / "whole.npy", whole[:20])
    np.savez(folder / "without.npz", x_train=whole[:, 1:], x_test=whole[:20, 1:])
    for new in ("whole.npy", "without.npz"):
        finished = call_here("predict", "run", "--input", new)
        assert finished.code == 0, finished.stderr
        answers = [float(line.split(",")[1]) for line in finished.stdout.splitlines()[1:]]
        assert answers == is_high[:20].tolist()


def test_new_pictures_in_an_idx_file(call_here: Call, folder: Path) -> None:
    rng = np.random.default_rng(0)
    (folder / "set").mkdir()
    for part, count in (("train", 120), ("t10k", 20)):
        is_bright = rng.integers(0, 2, count).astype(np.uint8)
        pixels = (rng.integers(0, 50, (count, 6, 6)) + 200 * is_bright[:, None, None]).astype(np.uint8)
        for name, values in ((f"{part}-images-idx3-ubyte", pixels), (f"{part}-labels-idx1-ubyte", is_bright)):
            head = struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape)
            (folder / "set" / name).write_bytes(head + values.tobytes())
    finished = call_here("train", "--data", "set", "--steps", "100", "--workers", "1", "--out", "run")
    assert finished.code == 0, finished.stderr
    finished = call_here("predict", "run", "--input", "set/t10k-images-idx3-ubyte")
    assert finished.code == 0, finished.stderr
    answers = [int(line.split(",")[1]) for line in finished.stdout.splitlines()[1:]]
    assert answers == is_bright.tolist()


def test_a_text_is_continued_as_it_was_read(call_here: Call, folder: Path) -> None:
    (folder / "song.txt").write_bytes("là lì lù lè lò. ".encode("latin-1") * 100)
    words = ("train", "--data", "song.txt", "--encoding", "latin-1", "--window", "20", "--width", "16", "--steps", "3")
    finished = call_here(*words, "--workers", "1", "--out", "run")
    assert finished.code == 0, finished.stderr
    (folder / "begin.txt").write_bytes("là lì".encode("latin-1"))
    (folder / "begin.txt.gz").write_bytes(gzip.compress("là lì".encode("latin-1")))
    plain, packed = (call_here("predict", "run", "--input", name) for name in ("begin.txt", "begin.txt.gz"))
    assert plain.code == 0, plain.stderr
    assert plain.stdout == packed.stdout
    (folder / "other.txt").write_text("là lì")
    assert "is not among those learned from" in refused(call_here("predict", "run", "--input", "other.txt"))
    assert "there is no file or folder nowhere.txt" in refused(call_here("predict", "run", "--input", "nowhere.txt"))


def test_a_text_that_is_no_text_is_not_continued(call_here: Call, folder: Path) -> None:
    (folder / "song.txt").write_text("la li lu le lo. " * 100)
    words = ("train", "--data", "song.txt", "--window", "20", "--width", "16", "--steps", "3", "--workers", "1")
    assert call_here(*words, "--out", "run").code == 0
    (folder / "begin.txt").write_bytes("là".encode("latin-1"))
    assert "begin.txt is not utf-8" in refused(call_here("predict", "run", "--input", "begin.txt"))


def test_a_time_series_is_known_ahead(call_here: Call, folder: Path) -> None:
    lines = ["n,wave", *(f"{n},{np.sin(n / 5) * 10 + 50:.4f}" for n in range(600))]
    (folder / "wave.csv").write_text("\n".join(lines))
    words = ("train", "--data", "wave.csv", "--target", "wave", "--horizon", "4", "--window", "12", "--width", "16")
    for model in ("lstm", "mlp"):
        finished = call_here(*words, "--model", model, "--steps", "300", "--workers", "1", "--json", "--out", model)
        assert finished.code == 0, finished.stderr
        assert json.loads(finished.stdout)["eval"]["mae"] < 1.0
        rows = call_here("predict", model, "--input", "wave.csv").stdout.splitlines()
        number, value = rows[1].split(",")
        assert (rows[0], number) == ("sample,wave", "603")
        assert float(value) == pytest.approx(np.sin(603 / 5) * 10 + 50, abs=2.0)


def test_every_series_is_known_ahead(call_here: Call, folder: Path) -> None:
    height = {"north": 50, "south": -50}
    lines = [f"{where},{n},{height[where] + n % 2}" for n in range(200) for where in height]
    (folder / "tides.csv").write_text("\n".join(["where,n,tide", *lines]))
    words = ("train", "--data", "tides.csv", "--target", "tide", "--horizon", "1", "--window", "4", "--series", "where")
    finished = call_here(*words, "--model", "mlp", "--width", "16", "--steps", "200", "--workers", "1", "--out", "run")
    assert finished.code == 0, finished.stderr
    rows = [line.split(",") for line in call_here("predict", "run", "--input", "tides.csv").stdout.splitlines()]
    assert [name for name, _ in rows] == ["sample", "north 200", "south 200"]
    assert [float(value) for _, value in rows[1:]] == pytest.approx([50, -50], abs=5)


def test_kinds_are_those_of_training_in_every_format(call_here: Call, folder: Path) -> None:
    lines = [f"{10 * (n % 3)},{'high' if n % 3 == 1 else 'low'}" for n in range(90)]
    (folder / "zip.csv").write_text("\n".join(["zip,price", *lines]))
    words = ("train", "--data", "zip.csv", "--target", "price", "--kinds", "zip=category", "--workers", "1")
    assert call_here(*words, "--steps", "200", "--out", "run").code == 0
    pl.DataFrame({"zip": [0, 10, 20, 30]}).write_parquet(folder / "new.parquet")
    (folder / "new.csv").write_text("zip\n0\n10\n20\n30\n")
    answers = [call_here("predict", "run", "--input", name).stdout for name in ("new.parquet", "new.csv")]
    assert answers[0] == answers[1]
    assert [line.split(",")[1] for line in answers[0].splitlines()[1:4]] == ["low", "high", "low"]


@pytest.mark.processes
def test_data_alone_can_be_verified(call_here: Call) -> None:
    finished = call_here("verify", "--data", "titanic.csv", *TARGET, "--workers", "1,2", "--steps", "5", "--json")
    assert finished.code == 0, finished.stderr
    assert json.loads(finished.stdout)["is_same"]


def test_a_damaged_pack_is_made_anew(call_here: Call, folder: Path) -> None:
    assert call_here("pack", "titanic.csv", "packed", *TARGET).code == 0
    path = folder / "packed" / "train-numbers.npy"
    whole = path.read_bytes()
    path.write_bytes(whole[:-8])
    assert "is damaged: it has" in call_here("data", "show", "packed").complaint
    assert call_here("pack", "titanic.csv", "packed", *TARGET).code == 0
    assert path.read_bytes() == whole
