"""Several numbers of workers against one, and against a peer; and what the command says of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace

import pytest

from samestep.cli.main import main
from samestep.errors import UsageError
from samestep.measure.against.habits import Habits, usual
from samestep.measure.verify import Verdict, default_workers, verify
from samestep.run.config import NumericSettings
from samestep.run.progress import Silent
from samestep.workloads import catalog
from tests.measure.against.test_causes import counts, noisy

MLP = ("verify", "digits-mlp", "--width", "16", "--steps", "5", "--workers", "1")
CNN = ("verify", "digits-cnn", "--width", "4", "--steps", "5")


class TestWorkers:
    def verify(self, noise: Callable[[], object], *workers: int) -> Verdict:
        return verify(lambda: noisy(noise), NumericSettings(steps=3, global_batch=8), workers, Silent())

    def test_same(self) -> None:
        verdict = self.verify(lambda: None, 1, 1)
        assert verdict.is_same
        assert verdict.is_passed
        assert verdict.first is None
        assert verdict.cause == ()
        assert len({trained.sha256 for trained in verdict.trained}) == 1

    def test_different(self) -> None:
        verdict = self.verify(counts(), 1, 1)
        assert not verdict.is_same
        assert not verdict.is_passed
        assert verdict.first is not None
        assert verdict.first[1].tensor == "layer.weight"
        (cause,) = verdict.cause
        assert "another answer" in cause

    def test_nothing_to_compare(self) -> None:
        with pytest.raises(UsageError, match="at least one number of workers"):
            self.verify(lambda: None)

    def test_default(self) -> None:
        assert (default_workers(None), default_workers("torch"), default_workers("ddp")) == ((1, 2), (1,), (1,))


class TestPeer:
    def verify(self, habits: Habits | None = None, *workers: int) -> Verdict:
        settings = NumericSettings(steps=5)
        build = lambda: catalog.build("digits-cnn", width=4)  # noqa: E731
        return verify(build, settings, workers or (1,), Silent(), peer="torch", habits=habits)

    def test_rounding_passes(self) -> None:
        verdict = self.verify()
        assert verdict.against is not None
        assert verdict.is_same
        assert verdict.is_passed
        assert verdict.cause == ()

    def test_more_than_rounding_does_not(self) -> None:
        verdict = self.verify(replace(usual("torch"), order="DistributedSampler"))
        assert verdict.is_same, "which is about numbers of workers"
        assert not verdict.is_passed
        (cause,) = verdict.cause
        assert cause.startswith("order")

    def test_an_unkeyed_draw_is_named_once(self) -> None:
        """Two numbers of workers differ for it, and the peer does."""
        settings = NumericSettings(steps=3, global_batch=8)
        verdict = verify(lambda: noisy(counts()), settings, (1, 1), Silent(), peer="torch")
        assert not verdict.is_passed
        assert len(verdict.cause) == 1
        assert verdict.against is not None
        assert verdict.against.cause == verdict.cause

    @pytest.mark.processes
    def test_with_workers(self) -> None:
        verdict = self.verify(None, 1, 2)
        assert [trained.workers for trained in verdict.trained] == [1, 2]
        assert verdict.differences == {2: ()}
        assert verdict.is_passed


class TestCommand:
    def run(self, capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
        capsys.readouterr()
        code = main(words)
        return code, capsys.readouterr().out

    def test_against_torch(self, capsys: pytest.CaptureFixture[str]) -> None:
        code, text = self.run(capsys, *CNN, "--against", "torch")
        assert code == 0
        assert "explained by rounding: yes" in text
        assert "same bits" not in text, "there is one number of workers only"
        assert "cause" not in text
        (row,) = [line.split() for line in text.splitlines() if "0.weight" in line]
        assert row[3:] == [row[3], "of", "36"]
        assert 0 < float(row[1]) < 1e-5

    def test_more_than_rounding(self, capsys: pytest.CaptureFixture[str]) -> None:
        code, text = self.run(capsys, *MLP, "--against", "torch")
        assert code == 1
        assert "explained by rounding: no" in text
        assert "cause: dropout: torch draws" in text

    def test_json(self, capsys: pytest.CaptureFixture[str]) -> None:
        code, text = self.run(capsys, *MLP, "--against", "torch", "--json")
        verdict = json.loads(text)
        assert code == 1
        assert (verdict["is_same"], verdict["is_passed"]) == (True, False)
        assert verdict["against"]["peer"] == "torch"
        assert verdict["against"]["relative"] > verdict["against"]["bound"]
        assert {"tensor", "largest", "relative", "num_different"} <= set(verdict["against"]["differences"][0])
        assert len(verdict["cause"]) == 1
        code, text = self.run(capsys, *MLP, "--json")
        assert (code, json.loads(text)["against"], json.loads(text)["cause"]) == (0, None, [])

    @pytest.mark.processes
    def test_against_ddp(self, capsys: pytest.CaptureFixture[str]) -> None:
        code, text = self.run(capsys, *CNN, "--against", "ddp")
        assert code == 0
        assert "against DDP: after 5 steps" in text

    def test_unknown_peer(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main([*MLP, "--against", "horovod"]) == 2
        assert "--against" in capsys.readouterr().err
