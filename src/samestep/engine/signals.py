"""The barrier: how ranks wait for each other, with a deadline and an eye on deaths.

A dissemination barrier (Hensgen, Finkel and Manber, "Two algorithms for barrier synchronization", 1988): in turn k
rank r signals rank r + 2^k and waits for rank r - 2^k. Every signal has one sender and one receiver, so counts can
never be mixed up. Where the C library has unnamed process-shared semaphores (Linux) a signal is one of them, inside
the shared memory; elsewhere it is a counter that its receiver polls.

A waiter first spins for a moment: waking a sleeping process costs more than most waits last. On a busy machine the
others wait for a core that spinning takes from them; so long waits shorten the spin, and short ones bring it back.
"""

from __future__ import annotations

import ctypes
import sys
import time
from collections.abc import Callable
from typing import Protocol

from torch import Tensor

from samestep.errors import WorkerError

SIGNAL_WORDS = 8
"""Size of a signal in 64-bit words: one cache line of its own."""

_LONGEST_SPIN_S = 1e-3
"""A wait that takes longer than this has something else than imbalance behind it."""

_SLICE_S = 0.01
"""How long a wait sleeps before it looks again whether the run goes on."""


class Signal(Protocol):
    """A count that one process raises and one other lowers."""

    def post(self) -> None: ...

    def try_take(self) -> bool: ...

    def wait(self, timeout_s: float) -> None:
        """Sleep until the count may be positive, or the time is over."""


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


class _SemaphoreLibrary:
    """The C library's unnamed semaphores; `PyDLL` calls keep the interpreter lock, for calls that never block."""

    def __init__(self) -> None:
        quick, blocking = ctypes.PyDLL(None), ctypes.CDLL(None)
        pointer = ctypes.c_void_p
        self.post = quick.sem_post
        self.post.argtypes = [pointer]
        self.try_wait = quick.sem_trywait
        self.try_wait.argtypes = [pointer]
        self.initialise = quick.sem_init
        self.initialise.argtypes = [pointer, ctypes.c_int, ctypes.c_uint]
        self.timed_wait = blocking.sem_timedwait
        self.timed_wait.argtypes = [pointer, ctypes.POINTER(_Timespec)]


_library = _SemaphoreLibrary() if sys.platform == "linux" else None


class _Semaphore:
    def __init__(self, words: Tensor, library: _SemaphoreLibrary) -> None:
        self._words = words  # keeps the memory mapped
        self._address = words.data_ptr()
        self._library = library

    def post(self) -> None:
        self._library.post(self._address)

    def try_take(self) -> bool:
        return bool(self._library.try_wait(self._address) == 0)

    def wait(self, timeout_s: float) -> None:
        # The deadline is on the wall clock, which may jump; short waits keep a jump harmless.
        nanoseconds = time.time_ns() + int(timeout_s * 1e9)
        deadline = _Timespec(nanoseconds // 10**9, nanoseconds % 10**9)
        if self._library.timed_wait(self._address, ctypes.byref(deadline)) == 0:
            self._library.post(self._address)  # `wait` only waits: the count is taken by `try_take`


class _Counter:
    """Word 0 counts posts and is written by the sender alone; takes are counted by the receiver, in private."""

    def __init__(self, words: Tensor) -> None:
        self._posts = words.numpy()
        self._taken = 0

    def post(self) -> None:
        self._posts[0] += 1

    def try_take(self) -> bool:
        if int(self._posts[0]) == self._taken:
            return False
        self._taken += 1
        return True

    def wait(self, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while int(self._posts[0]) == self._taken and time.monotonic() < deadline:
            time.sleep(5e-5)


def num_turns(world_size: int) -> int:
    """Turns of the barrier: the logarithm of the world size, rounded up."""
    return (world_size - 1).bit_length()


def reset(words: Tensor) -> None:
    """Make every signal zero again; nobody may be using them. `words` has shape (..., SIGNAL_WORDS)."""
    words.zero_()
    if _library is not None:
        for signal in words.view(-1, SIGNAL_WORDS):
            _library.initialise(signal.data_ptr(), 1, 0)


class Patience:
    """How one process waits for others: awake for a moment, then asleep, with a deadline and an eye on deaths.

    Args:
        has_own_core: Whether every process has a core of its own; only then does it help to stay awake.
        check: Called while waiting; raises when the run does not go on (a peer died, a stop was asked for).
        timeout_s: Longest wait before it gives up.
    """

    def __init__(self, *, has_own_core: bool, check: Callable[[], None], timeout_s: float) -> None:
        self._check = check
        self._timeout_s = timeout_s
        self._longest_spin_s = _LONGEST_SPIN_S if has_own_core else 0.0
        self._spin_s = self._longest_spin_s

    def take(self, signal: Signal, where: Callable[[], str]) -> None:
        """Wait for a signal and take it.

        Args:
            signal: Which.
            where: What is waited for, in words.

        Raises:
            WorkerError: It did not come in time.
        """
        if signal.try_take():
            return
        start = time.perf_counter()
        end = start + self._spin_s
        while time.perf_counter() < end:
            if signal.try_take():
                return
        self._sleep_for(signal, where)
        waited_s = time.perf_counter() - start
        if waited_s < self._longest_spin_s:
            self._spin_s = min(1.5 * waited_s, self._longest_spin_s)
        else:
            self._spin_s /= 2

    def _sleep_for(self, signal: Signal, where: Callable[[], str]) -> None:
        # Slices are counted, not the clock: a process that was stopped (Ctrl-Z) has not waited.
        slices_left = self._timeout_s / _SLICE_S
        while not signal.try_take():
            self._check()
            slices_left -= 1
            if slices_left < 0:
                raise WorkerError(
                    f"a worker waited {self._timeout_s:g} s for {where()}; "
                    "a microbatch takes longer than that (take a larger deadline_s), or a worker is stuck"
                )
            signal.wait(_SLICE_S)


class Barrier:
    """All ranks arrive, then all go on.

    Args:
        words: The signals' memory, shape (turns, ranks, SIGNAL_WORDS), int64.
        rank: This rank.
        world_size: How many ranks take part.
        patience: How it waits.
    """

    def __init__(self, words: Tensor, *, rank: int, world_size: int, patience: Patience) -> None:
        self._patience = patience
        turns = range(num_turns(world_size))
        signals = [[signal_in(words[turn, peer]) for peer in range(world_size)] for turn in turns]
        self._turns = [(signals[turn][(rank + (1 << turn)) % world_size], signals[turn][rank]) for turn in turns]
        self.num_waits = 0

    def wait(self) -> None:
        """Arrive, and wait for the others.

        Raises:
            WorkerError: A rank did not arrive in time.
        """
        for theirs, mine in self._turns:
            theirs.post()
            self._patience.take(mine, self._where)
        self.num_waits += 1

    def _where(self) -> str:
        return f"the others at barrier {self.num_waits}"


def signal_in(words: Tensor) -> Signal:
    """The signal that lies in some words, shape (SIGNAL_WORDS,)."""
    return _Semaphore(words, _library) if _library is not None else _Counter(words)
