"""One run in this process: the engine is watched, its state saved, and what came out written down."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from samestep.engine.breakdown import breakdown
from samestep.engine.crew import Crew
from samestep.engine.job import GROWN, KEPT, LAST_LOSS, Image
from samestep.engine.loop import EvaluationRecord, StepRecord
from samestep.engine.shared import Shared
from samestep.engine.solo import Solo
from samestep.errors import Interrupted, SamestepError, ToldElsewhere, WorkerError
from samestep.host.cores import num_cores
from samestep.host.limited import within
from samestep.optim.doubling import Growth
from samestep.run import checkpoint, critical_batch, final, growth, outcome, profile, ranks, stopping, usage
from samestep.run.config import Config
from samestep.run.evaluate import BestAndTarget
from samestep.run.loggers.logger import Guarded, Logger
from samestep.run.prepare import Prepared
from samestep.run.progress import Announcer, Progress
from samestep.run.record import Record
from samestep.run.weights import digest
from samestep.run.workload import Workload

_LAST_WORDS_S = 1.0
"""How long loggers may take where the process is left at once."""

Callback = Callable[[EvaluationRecord], bool | None]
"""Called in the caller's process after every evaluation; returning True stops the run at that step."""


@dataclass(frozen=True)
class Result:
    """What a run gives back.

    Args:
        model: The trained module, with parameters of its own.
        record: What happened.
        best_state: The `state_dict` at the best evaluation; None without evaluation data.
        is_first: Whether this process speaks for the run: of several ranks, the first does.
    """

    model: nn.Module
    record: Record
    best_state: dict[str, Tensor] | None
    is_first: bool = True


@dataclass
class Session:
    """One run in this process: watches the engine, saves its state, writes its record."""

    workload: Workload
    config: Config
    prepared: Prepared
    world_size: int
    callbacks: tuple[Callback, ...]
    progress: Progress
    announcer: Announcer
    start_s: float
    loggers: tuple[Logger, ...] = ()
    others: ranks.Ranks | None = None
    _engine: Any = None
    _signal: int | None = None
    _writer: Future[Any] | None = None
    _next_checkpoint_s: float = 0.0
    _next_estimate_s: float = 0.0
    _seen_steps: int = 0
    _is_marked: bool = False
    _stops_at: set[int] = field(default_factory=set)
    _numerics: dict[str, Any] = field(default_factory=dict)

    def run(self, crew: Crew | None, leave: Callable[[str, int], None] | None) -> Result:
        """Train to the end."""
        job = self.prepared.job
        self.record = Record(
            workload=self.workload.name,
            engine=self._engine_name,
            workers=self.world_size,
            config=self.config.as_dict(),
            numerics=job.switches.as_dict(),
            pairs=critical_batch.Pairs(
                every=job.noise_every,
                num_training_samples=job.batches.num_samples,
                num_microbatches=job.batches.num_microbatches,
            ),
        )
        if self.config.checkpoint is not None or self.config.out is not None or self.others is not None:
            self._numerics = self.record.numerics = self.prepared.numerics()
            self.record.code_sha256 = outcome.code_sha256(self.workload, job.model)
        for line in self.prepared.lines:
            self.notice(line)
        image = self._resume(self.prepared.image)
        num_here = self.world_size if self.others is None else self.others.place.local_size
        if num_here > num_cores():
            self.notice(f"warning: {num_here} workers share {num_cores()} cores; more workers than cores are slower")
        self._crew, self._peak = crew, usage.Peak(self._pids)
        self._log = Guarded(self.loggers, self.notice)
        image = self._start_engine(image, is_watched=leave is not None)
        self.record.first_step = self._seen_steps = image.step
        course = job.course(image.decided.tolist())
        self.record.growths = growth.growths_of(job, image)
        self.announcer.now(stretch="starting" if self.world_size > 1 else "training", workers=self.world_size)
        self.progress.start(self._opening(image.step), course.num_steps, image.step)
        self._next_checkpoint_s = time.monotonic() + self.config.checkpoint_every_s
        overdue = None if leave is None or not isinstance(self._engine, Solo) else partial(self._abandon, leave)
        with (
            ThreadPoolExecutor(1, thread_name_prefix="samestep-checkpoint") as self._pool,
            stopping.signals_to(self._on_signal, overdue),  # also where the end is saved, which is not left half-way
        ):
            try:
                with self._log:
                    self._log.start(
                        {"name": self.workload.name, "config": self.record.config, "first_step": image.step}
                    )
                    self.record.end = self._engine.run()
            except (WorkerError, ToldElsewhere):
                self._save_what_survived()
                raise
            finally:
                self._give_model_back()
            self._peak.look(is_last=True)
            self.record.peak_memory_bytes = self._peak.num_bytes
            return self._finish()

    @property
    def _engine_name(self) -> str:
        if self.others is not None:
            return "group"
        return "solo" if self.world_size == 1 else "shared"

    def _start_engine(self, image: Image, *, is_watched: bool) -> Image:
        """Make the engine; returns the state that it begins with."""
        job = self.prepared.job
        if self.others is not None:
            facts = ranks.facts(self.workload.name, job, self.config, self._numerics, self.prepared.image)
            self._engine, image, history = self.others.begin(
                job, image, self._history(image), facts, self, self._mark, self.notice
            )
            self._remember(history)
        elif self._crew is not None and self.world_size > 1:
            self._engine = Shared(job, image, self, self._crew, self.world_size)
        else:
            self._engine = Solo(job, image, self, is_watched)
        return image

    # What the engine tells.

    def steps(self, records: list[StepRecord]) -> None:
        self.announcer.now(stretch="training")
        fresh = [record for record in records if record.step >= self._seen_steps]  # the others are a replay
        if fresh and self.record.startup_s is None:
            self.record.startup_s = time.perf_counter() - self.start_s - sum(r.duration_s for r in records)
        self.record.steps.extend(fresh)
        for record in fresh:
            self._seen_steps = record.step + 1
            if record.pair is not None and self.record.pairs is not None:
                self.record.pairs.append(record.pair)
            if record.growth is not None:
                self._grow(record.growth)
        self._log.steps(fresh)
        self._peak.look()
        self._tell_critical_batch()
        self.progress.step(records[-1], self.record.samples_per_s)
        if self._engine_name != "shared":
            self.tick()

    def _grow(self, grown: Growth) -> None:
        self.record.growths = (*self.record.growths, grown)
        job = self.prepared.job
        self.notice(growth.sentence(job, grown))
        self.progress.grown(growth.course_of(job, self.record.growths).num_steps, grown.step)

    def evaluating(self, step: int) -> None:
        self.announcer.now(stretch="evaluating")

    def evaluated(self, record: EvaluationRecord, number: int) -> None:
        self.announcer.now(stretch="training")
        self._peak.look()
        is_new = not self.record.evaluations or record.step > self.record.evaluations[-1].step
        if is_new:
            # First: an evaluation counts as heard of when they have answered, and in a replay they are not asked again.
            wants_stop = [callback(record) for callback in self.callbacks]
            if any(wants_stop):
                self._stops_at.add(record.step)
            self.record.evaluations.append(record)
            self._log.evaluated(record)
            self.progress.evaluated(record)
        if self.callbacks:
            self._engine.answer(number, record.step in self._stops_at)

    def warn_unused(self, names: list[str]) -> None:
        shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
        self.notice(
            f"warning: no microbatch of the first step used {shown}; left as they are, as torch leaves grad=None"
        )

    def notice(self, text: str) -> None:
        self.record.notices.append(text)
        self.progress.line(text)

    def tick(self) -> None:
        """Save a checkpoint when it is time to, off the training thread; pass on what went wrong with the last."""
        num_missing = self._engine.num_missing if isinstance(self._engine, Shared) else 0
        is_saving = self._writer is not None and not self._writer.done()
        self.announcer.now(num_missing=num_missing, is_saving=is_saving)
        if self.config.checkpoint is None:
            return
        if self._writer is not None and self._writer.done():
            self._writer.result()
            self._writer = None
        is_due = self._is_marked if self.others is not None else time.monotonic() > self._next_checkpoint_s
        if is_due and self._writer is None:
            self._is_marked = False
            self._next_checkpoint_s = time.monotonic() + self.config.checkpoint_every_s
            image = self._engine.current()
            if self._engine_name == "solo":
                image = image.copied()
            self._writer = self._pool.submit(self._save, image)

    def _mark(self) -> None:
        """A snapshot counts: it is saved as soon as the one before it is."""
        self._is_marked = True
        self.tick()

    # Inside.

    def _opening(self, step: int) -> str:
        workers = "1 worker" if self.world_size == 1 else f"{self.world_size} workers"
        resumed = f", from step {step}" if step else ""
        return f"{self.workload.name}: {growth.outlook(self.prepared.job)} on {workers}{resumed}"

    def _resume(self, image: Image) -> Image:
        folder = self.config.checkpoint
        if folder is None or not self.config.resume:
            return image
        saved = checkpoint.read_newest(folder, self._numerics, Image.empty(self.prepared.job), self.notice)
        if saved is None:
            self.notice(f"no checkpoint in {folder} yet: starting from the beginning")
            return image
        self._remember(saved.history)
        self._judge_anew(saved.image, saved.history.get("judged"))
        return saved.image

    def _judge_anew(self, image: Image, judged: Mapping[str, Any] | None) -> None:
        """Where the target was another one: what was best, and whether the run is at its end, is asked again."""
        judge = self.prepared.job.judge
        if judged is None or not isinstance(judge, BestAndTarget) or judged == judge.as_dict():
            return
        if image.step in self._stops_at:
            return  # a callback has ended the run, whatever its target
        last = self.record.evaluations[-1].means if self.record.evaluations else None
        image.decided.copy_(torch.tensor(judge.taken_up(image.decided.tolist(), judged, last), dtype=torch.float64))
        text = "the target is another one: the run goes by it from here on"
        if judged["metric"] != judge.metric:
            text = f"the best state is that with the best {judge.metric} from here on; it was {judged['metric']}"
        self.notice(text)

    def _remember(self, history: Mapping[str, Any]) -> None:
        """Take up what was known beside the state (see `_history`)."""
        self.record.evaluations = [EvaluationRecord(**item) for item in history["evaluations"]]
        self._stops_at = set(history.get("stops_at", ()))

    def _on_signal(self, number: int) -> None:
        self._signal = number
        self._engine.stop()

    def _abandon(self, leave: Callable[[str, int], None], number: int) -> None:
        """Save the state before the step that the main thread is in, and leave; not where it is half-written."""
        image = self._engine.abandoned()
        if image is None:
            return
        text, code = stopping.sentence(number, image.step, self.config.checkpoint), 128 + number
        try:
            if self._writer is not None:
                self._writer.result()
            if self.config.checkpoint is not None:
                self._save(image)
            if self.prepared.job.trace is not None and self.config.profile is not None:
                profile.leave(self.prepared.job.trace, self.config.profile)
        except SamestepError as error:
            text, code = str(error), 2
        with suppress(TimeoutError):
            within(self._log.close, _LAST_WORDS_S)
        self.progress.stop()
        leave(text, code)

    def _save(self, image: Image) -> None:
        assert self.config.checkpoint is not None
        checkpoint.write(self.config.checkpoint, image, self._numerics, self._history(image))

    def _history(self, image: Image) -> dict[str, Any]:
        """What a run wants to remember beside its state."""
        judge = self.prepared.job.judge
        return {
            "evaluations": [asdict(record) for record in self.record.evaluations if record.step <= image.step],
            "stops_at": sorted(step for step in self._stops_at if step <= image.step),
            "judged": judge.as_dict() if isinstance(judge, BestAndTarget) else None,
        }

    def _save_what_survived(self) -> None:
        """Workers or another rank are lost: the newest snapshot is here, too, and may be what a run goes on from."""
        has_state = self._is_marked or (isinstance(self._engine, Shared) and self._engine.has_state)
        if self.config.checkpoint is None:
            return
        try:
            if self._writer is not None:
                self._writer.result()
            if has_state and (image := self._engine.current()).step > self.record.first_step:
                self._save(image)
        except SamestepError as error:  # what ends the run is told, too
            self.notice(str(error))

    def _give_model_back(self) -> None:
        """Whatever happened, the module ends with parameters of its own and the newest whole values."""
        image = self._engine.final()
        if image is None:
            return
        self._image = image
        final.load(self.prepared.job, image)

    def _pids(self) -> list[int]:
        """The run's processes on this machine."""
        if self.others is not None:
            return [os.getpid(), *self.others.pids_beside()]
        return [os.getpid(), *(worker.pid for worker in self._crew.workers)] if self._crew else [os.getpid()]

    def _tell_critical_batch(self) -> None:
        """Estimate the critical batch anew, at most once in five seconds, for the line that shows how the run goes."""
        if time.monotonic() < self._next_estimate_s or self.record.pairs is None:
            return
        self._next_estimate_s = time.monotonic() + 5.0
        text = critical_batch.short(self.record.pairs.noise_scale())
        if text is not None:
            self.progress.critical_batch(text)

    def _finish(self) -> Result:
        image, job = self._image, self.prepared.job
        self.announcer.now(stretch="saving", num_missing=0, is_saving=False)
        if self._writer is not None:
            self._writer.result()
        if self.config.checkpoint is not None:
            self._save(image)
        if self._signal is not None and self.record.end != "finished":
            if self.others is not None and not self.others.is_first:
                raise ToldElsewhere(128 + self._signal)
            raise Interrupted(stopping.sentence(self._signal, image.step, self.config.checkpoint), self._signal)
        record = self.record
        if self.others is not None:
            record.sent_bytes, record.sent_bytes_by_rank = dict(self._engine.wire.sent), self._engine.sent_by_rank
        record.device = self._engine.device_facts if job.device != "cpu" else None
        if record.device is not None and record.device["not_captured"] is not None and self.config.graphs == "auto":
            self.notice(f"the passes of microbatches are no graphs: {record.device['not_captured']}")
        if job.device == "cpu" or job.trace is not None:  # a device that is not waited for tells nothing of its times
            record.breakdown = breakdown(self._engine.events())
        record.num_samples = job.course(image.decided.tolist()).samples_before(image.step)
        record.growths = growth.growths_of(job, image)
        if job.gain is not None:
            self.notice(job.gain.sentence(tuple(image.decided[KEPT:GROWN].tolist()), image.step))
        record.last_loss = float(image.decided[LAST_LOSS]) if image.step else None
        record.weights_sha256 = digest(job.model)
        best = final.best_state(job, image)
        record.wall_s = time.perf_counter() - self.start_s
        if self.config.out is not None:
            outcome.write(self.config.out, record, self.config, job.model, best)
            outcome.complete(self.config.out, record, self.progress)
        return Result(job.model, record, best, self.others is None or self.others.is_first)
