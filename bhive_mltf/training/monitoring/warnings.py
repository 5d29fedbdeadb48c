"""Signs that a training is not well, from numbers that are on the host anyway. They warn, and change nothing."""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Iterable, Iterator
from typing import TypeVar

from bhive_mltf.interface import Batch

WINDOW = 200  # steps that a loss is compared with
LEAST = 50  # of them, before anything is said
DEVIATIONS = 8.0  # from the median, in robust standard deviations
FACTOR = 1.5  # over the median, at least
QUIET_STEPS = 1000  # between two such warnings
STALLED_SHARE = 0.3  # of the time, spent waiting for the loader
STALLED_SECONDS = 60.0  # in a row
FULL_GPU = 256  # jets of a rank; below, a GPU waits for the starts of its kernels
_ROBUST = 1.4826  # standard deviations of a normal distribution in its median absolute deviation

_Item = TypeVar("_Item", bound=Batch)


class LossSpikes:
    """A loss far above those before it.

    The loss of a step is a spike when it lies above the median of the last 200 steps by more than 8 times 1.4826 times
    their median absolute deviation, and above 1.5 times that median. Nothing is said before 50 steps are known, and
    not again within 1000.
    """

    def __init__(self) -> None:
        self._window: deque[float] = deque(maxlen=WINDOW)
        self._silent_until = 0
        self.number = 0
        """Spikes so far."""

    def see(self, first_step: int, losses: Iterable[float]) -> str | None:
        """Take the losses of steps in a row; a warning, or None."""
        warning = None
        for step, loss in enumerate(losses, first_step):
            median = self._limit(loss)
            if median is not None:
                self.number += 1
                if step >= self._silent_until:
                    self._silent_until = step + QUIET_STEPS
                    warning = (
                        f"the loss jumped to {loss:.4g} at step {step}, over a median of {median:.4g}: if it does not "
                        "come back, go on from an earlier epoch (--resume-epoch) in a version with a smaller learning "
                        "rate or with --clip-norm"
                    )
            self._window.append(loss)
        return warning

    def _limit(self, loss: float) -> float | None:
        """The median if `loss` is a spike over it."""
        if len(self._window) < LEAST:
            return None
        median = statistics.median(self._window)
        deviation = _ROBUST * statistics.median(abs(one - median) for one in self._window)
        return median if loss > max(median + DEVIATIONS * deviation, FACTOR * median) else None


def few_jets(batch_size: int, ranks: int) -> str | None:
    """A warning for GPUs that get few jets each, or None."""
    own = batch_size // ranks
    if own >= FULL_GPU:
        return None
    return (
        f"each of the {ranks} ranks gets {own} jets of a batch of {batch_size}, too few to fill a GPU: from about "
        f"{FULL_GPU} on its speed is that of the card; take a larger --batch-size, or fewer ranks"
    )


class LoaderWaits:
    """How long a training waits for its loader."""

    def __init__(self) -> None:
        self._waited = 0.0
        self._stalled = 0.0
        self._told = False

    def over(self, batches: Iterable[_Item]) -> Iterator[_Item]:
        """The same batches, with a look at the clock around each."""
        source = iter(batches)
        while True:
            asked = time.monotonic()
            batch = next(source, None)
            self._waited += time.monotonic() - asked
            if batch is None:
                return
            yield batch
            # its memory is used again as soon as nobody holds it
            del batch

    def take(self) -> float:
        """Seconds waited since the last call."""
        waited, self._waited = self._waited, 0.0
        return waited

    def see(self, waited: float, seconds: float, n_threads: int) -> str | None:
        """Take an interval of the training; a warning, once, when it has waited too long for a while."""
        self._stalled = self._stalled + seconds if waited > STALLED_SHARE * seconds else 0.0
        if self._told or self._stalled < STALLED_SECONDS:
            return None
        self._told = True
        advice = "more loader workers" if n_threads else "loader workers"
        return (
            f"the training has waited for its loader for {waited / seconds:.0%} of the time: give it {advice} "
            f"(--n-threads, now {n_threads} per rank; 'bhive-mltf loader-benchmark' measures what they bring), or a "
            "faster disk"
        )
