"""One worker: the caller's own process, with its threads, switches and generators given back as they were."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from samestep.engine import allocator, numerics, randomness
from samestep.engine.device.host import Host
from samestep.engine.device.opening import open_device
from samestep.engine.device.seam import Device
from samestep.engine.events import Enter, Events, Phase, open_log, open_reader
from samestep.engine.exchange import Barriers
from samestep.engine.finite import NonFiniteSums, non_finite
from samestep.engine.job import Image, Job, run_regions
from samestep.engine.loop import Control, End, Listener, Loop, live_views
from samestep.engine.rank import Rank
from samestep.engine.snapshots import NUM_COPIES, Snapshots, read_best, snapshots_in, write_image
from samestep.errors import UsageError
from samestep.plan.pipeline import Team

_ABANDONABLE = frozenset({Phase.START, Phase.DATA, Phase.FORWARD, Phase.BACKWARD, Phase.EVALUATION})
"""Phases in which nothing that is kept is half-written."""


class Abandoned(BaseException):
    """The running step was abandoned; the state is that before it. No exception of what a person's code catches."""


@dataclass
class Solo:
    """Runs a job in this process.

    Args:
        job: What to do.
        image: The state to start from.
        listener: Hears of steps and evaluations.
        is_watched: Whether another thread may ask for a state while this one is inside a kernel (`abandoned`).
    """

    job: Job
    image: Image
    listener: Listener
    is_watched: bool = False
    _phase: Phase = Phase.START
    _is_running: bool = False
    _is_stopped: bool = False
    _log: Enter = field(init=False, repr=False)
    _loop: Loop | None = None
    _snapshots: Snapshots | None = None
    _live: dict[str, Tensor] = field(default_factory=dict)
    device_facts: dict[str, Any] | None = None
    _memory: Mapping[str, Tensor] = field(default_factory=dict)

    def run(self) -> End:
        """Run until the end.

        Raises:
            NonFiniteError: A loss or gradient is not finite.
        """
        device = open_device(self.job.device)
        self._prepare(device)
        exchange = Barriers(lambda: None, self._memory["control"], Control.VERDICT)
        rank = Rank(0, Team(1, 1), exchange, enter=timed(device, self.job, self._enter), device=device)
        with ExitStack() as stack:
            for context in surroundings(self.job, device):
                stack.enter_context(context)
            loop = self._loop = Loop(
                self.job,
                rank,
                self._memory,
                self._live,
                self.listener,
                tuple(self.image.decided.tolist()),
                self.image.step,
            )
            if self.image.step:
                loop.stepper.owned.restore(self.image.scalars)
            try:
                self._is_running = True
                if self._is_stopped:
                    raise Abandoned
                return loop.run()
            except NonFiniteSums as error:
                raise non_finite(error.step, [error.culprit] if error.culprit else []) from None
            except Abandoned:
                loop.report()
                return "stopped"
            except torch.OutOfMemoryError:
                raise UsageError(out_of_memory(device, self._phase)) from None
            finally:
                self._is_running = False
                self.device_facts = loop.stepper.device_facts()
                loop.stepper.close()

    def _prepare(self, device: Device) -> None:
        """Lay the state that the run starts from into memory."""
        job = self.job
        # The live state is something else meanwhile in a step of several rounds, and where averages are evaluated.
        is_moved = job.rule.most_rounds > 1 or job.local is not None or bool(job.update.averages)
        num_copies = NUM_COPIES if self.is_watched and is_moved else 0
        self._memory = device.memory(run_regions(job, 1, num_copies=num_copies))
        self._live = live_views(job, self._memory["live"])
        self._log = open_log(job.trace, self._memory["events"], 0).enter
        write_image(self.image, self._live, self._memory)
        if num_copies:
            self._snapshots = snapshots_in(job, self._memory)
            self._snapshots.begin(self.image)

    def stop(self) -> None:
        """Ask for an end, from a signal handler of this thread: at once where nothing is half-written."""
        self._is_stopped = True
        if self._memory:
            self._control[Control.STOP] = 1
        self._abandon_in(self._phase)

    def abandoned(self) -> Image | None:
        """The newest whole state, for another thread than this one, which is inside a kernel.

        It is the one before the running step, or the newest snapshot where the live state moves within a step. None
        while it is being written.
        """
        if self._loop is None:
            return self.image
        if not self._is_running:
            return None  # the state is what the run ended with, and about to be saved
        if self._snapshots is not None:
            return self._snapshots.newest()
        return self.current() if self._phase in _ABANDONABLE else None

    def answer(self, number: int, is_stopped: bool) -> None:
        """The callbacks' verdict on evaluation `number`."""
        self._control[Control.VERDICT] = 2 * number + is_stopped

    def current(self) -> Image:
        """The state as it is now, as views of the live memory; only between steps."""
        loop = self._loop
        assert loop is not None
        scalars = torch.zeros(len(self.job.update.scalars), dtype=torch.float64)
        if loop.step:
            loop.stepper.owned.write_scalars(scalars)
        decided = torch.tensor(loop.decided, dtype=torch.float64)
        live = {name: values.cpu() for name, values in self._live.items()}
        return Image(loop.step, live, scalars, decided, read_best(self._memory))

    def final(self) -> Image | None:
        """The state that the run ended with; None where it did not begin."""
        return self.current() if self._loop is not None else None

    def events(self) -> list[Events]:
        """What this one rank did, as far as its ring still holds it."""
        reader = open_reader(self.job.trace, self._memory["events"], 0) if self._memory else None
        return [reader.since(0)] if reader else []

    @property
    def _control(self) -> Tensor:
        return self._memory["control"]

    def _enter(self, phase: Phase, step: int) -> None:
        self._phase = phase
        self._log(phase, step)
        if self._is_stopped:  # it was heard of where something was half-written
            self._abandon_in(phase)

    def _abandon_in(self, phase: Phase) -> None:
        """Once: what is raised here passes through code that puts things back, in phases of its own."""
        if self._is_running and phase in _ABANDONABLE:
            self._is_running = False
            raise Abandoned


def out_of_memory(device: Device, phase: Phase) -> str:
    """What to do where memory is not enough for something else than a microbatch's pass."""
    return (
        f"the memory of {device.name} is not enough (in the phase {phase.text}): take a larger microbatch, for fewer "
        "partial sums, an optimizer with less state, or a smaller network"
    )


def surroundings(job: Job, device: Device) -> list[AbstractContextManager[object]]:
    """What the steps of a job run in, in a process that goes on afterwards as if nothing had been."""
    return [
        allocator.freed_kept(),
        clean(device),
        numerics.applied(job.switches),
        device.settled(),
        randomness.preserved(device.generators),
        training_mode(job),
        moved(job, device),
    ]


def timed(device: Device, job: Job, enter: Enter) -> Enter:
    """Told of phases; where somebody wants to see how long each takes, the device is waited for at its end."""
    if device.is_host or job.trace is None:
        return enter

    def waiting(phase: Phase, step: int) -> None:
        device.synchronise()
        enter(phase, step)

    return waiting


@contextmanager
def clean(device: Device) -> Iterator[None]:
    """Leave the caller's autocast, `no_grad` and inference mode outside: no worker would inherit them."""
    on_host, on_device = (each.autocast(enabled=False) for each in (Host(), device))
    with torch.inference_mode(mode=False), torch.enable_grad(), on_host, on_device:
        yield


@contextmanager
def moved(job: Job, device: Device) -> Iterator[None]:
    """Have the module's frozen parameters and constant buffers on the device."""
    if device.is_host:
        yield
        return
    job.model.to(device.where)
    try:
        yield
    finally:
        job.model.to("cpu")


@contextmanager
def training_mode(job: Job) -> Iterator[None]:
    """Give the job's modules their training modes back."""
    modes = [(module, module.training) for module in job.model.modules()]
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
