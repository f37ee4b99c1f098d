"""What a rank loads: its microbatches step by step, ahead of the computation where that pays."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from itertools import chain, groupby

from samestep.data.columns import Batch
from samestep.data.feed import Feed
from samestep.data.prefetch import Prefetch
from samestep.engine import residence
from samestep.engine.device.host import Host
from samestep.engine.device.seam import Device
from samestep.engine.job import Job
from samestep.host.cores import num_cores
from samestep.plan import rounds
from samestep.plan.batch import Microbatch
from samestep.plan.course import Course

_WORTH_A_THREAD_BYTES = 1 << 16
"""What a rank loads in a step, at least, for a thread to load it: to hand a batch over costs, too."""

_REMEMBERED_STEPS = 1 << 10
"""Whose microbatches are remembered: those that are gathered together, ahead of the computation."""


class Loading:
    """Loads microbatches for one rank.

    The first rounds of the steps are read as one stream, so that what is small is gathered over several steps at once.
    Another step than the next one, or one that was left half-read, starts the stream anew.

    Args:
        job: Of which data.
        world_size: Number of ranks, or of replicas where each is a few ranks that load the same.
        rank: Which one.
        num_busy: Ranks that compute, where they are more.
        device: Where the batches are to be.
        stop: The step before which it ends; default: the end of the run.

    Attributes:
        course: What every step holds; see `follow`.
        microbatches: Of a step, in order; cut once for all who ask.
        own: Those of them that this rank computes.
    """

    def __init__(
        self,
        job: Job,
        world_size: int,
        rank: int,
        num_busy: int | None = None,
        device: Device | None = None,
        stop: int | None = None,
    ) -> None:
        self._job, self._world_size, self._rank = job, world_size, rank
        self._num_busy, self._stop = num_busy or world_size, stop
        self._device = device or Host()
        self._go_along(Course(start=job.batches, length=job.num_steps))
        self._feed = residence.feed_on(self._device, job.samples, job.order)
        self._has_thread = self._is_worth_a_thread()
        self._stream: Iterator[Batch] = iter(())
        self._thread: Prefetch | None = None
        self._expected = -1

    @property
    def may_draw(self) -> bool:
        """Whether loading a microbatch may draw random numbers, which have to be keyed by it."""
        return self._feed.may_draw

    @property
    def is_resident(self) -> bool:
        """Whether all data lie on the device."""
        return self._feed.is_resident

    def follow(self, course: Course) -> None:
        """Go on along another course; what was loaded ahead may not be what it holds."""
        self.close()
        self._go_along(course)

    def _go_along(self, course: Course) -> None:
        self.course = course
        self.microbatches: Callable[[int], tuple[Microbatch, ...]] = lru_cache(_REMEMBERED_STEPS)(course.microbatches)
        self.own: Callable[[int], tuple[Microbatch, ...]] = lru_cache(_REMEMBERED_STEPS)(self._find_own)

    def num_samples_of(self, step: int) -> int:
        """How many samples a step holds."""
        microbatches = self.microbatches(step)
        return microbatches[-1].stop - microbatches[0].start

    def batches(self, step: int, number: int) -> Iterator[Batch]:
        """The microbatches of a step's round."""
        return self._from_stream(step) if number == 0 else self._at_once(step, self.own(step))

    def again(self, step: int, microbatch: Microbatch) -> Iterator[Batch]:
        """A microbatch of a step alone."""
        return self._at_once(step, [microbatch])

    def close(self) -> None:
        """Stop what is loaded ahead."""
        if self._thread is not None:
            self._thread.close()
        self._stream, self._thread, self._expected = iter(()), None, -1

    def _at_once(self, step: int, microbatches: Iterable[Microbatch]) -> Iterator[Batch]:
        found = self._feed.batches(self._epoch(step), microbatches)
        return found if self.is_resident else map(self._device.placed, found)

    def _from_stream(self, step: int) -> Iterator[Batch]:
        if step != self._expected:
            self.close()
            self._stream = self._from(step)
            if not (self.is_resident or self.may_draw):
                self._stream = map(self._device.staged, self._stream)
            if self._has_thread:
                self._stream = self._thread = Prefetch(self._stream)
            if not self.is_resident:  # what draws when it is loaded is loaded just in time
                place = self._device.placed
                self._stream = map(place, self._stream) if self.may_draw else self._device.ahead(self._stream)
        self._expected = -1  # until this step has been read to its end
        num_left = len(self.own(step))
        while num_left:
            num_left -= 1
            batch = next(self._stream)
            if not num_left:
                self._expected = step + 1
            yield batch

    def _from(self, step: int) -> Iterator[Batch]:
        """This rank's microbatches of all steps from one on."""
        feed = Feed(self._job.samples, self._job.order) if self._has_thread else self._feed
        stop = self.course.num_steps if self._stop is None else self._stop
        for epoch, steps in groupby(range(step, stop), key=self._epoch):
            yield from feed.batches(epoch, chain.from_iterable(map(self.own, steps)))

    def _find_own(self, step: int) -> tuple[Microbatch, ...]:
        return rounds.own(self.microbatches(step), self._world_size, self._rank)

    def _epoch(self, step: int) -> int:
        return self.course.span(step).epoch

    def _is_worth_a_thread(self) -> bool:
        """Whether a thread pays: a core is free for it, or it waits for a disk in the place of the computation."""
        size = self._feed.num_bytes_per_sample
        if size is None or self.is_resident:
            return False
        if not self._device.is_host:
            return True
        has_free_core = num_cores() > self._num_busy * self._job.switches.intra_op_threads
        share_bytes = size * self.num_samples_of(0) // self._world_size
        return self._feed.reads_blocks or (has_free_core and share_bytes >= _WORTH_A_THREAD_BYTES)
