"""When a process that waits for a message looks for it without sleeping.

To wake a process that sleeps takes as long as a short call, and the calls of a program that waits
for each follow each other closely. So a worker that has answered, and a driver thread that has
asked, first look for a moment. As with mutexes that adapt, what became of that decides about the
next time: each look in vain doubles the number of waits that begin asleep, so a process that is
called now and then just sleeps. A look ends at once when somebody else wants the processor.
"""

import os
import time
from collections.abc import Callable

Events = list[tuple[int, int]]
"""What ``poll`` and ``epoll`` return."""

_SPIN_S = 150e-6
"""How long a look lasts."""
_RUDE_S = 30e-6
"""Who offers the processor and gets it back later than this has taken it from somebody."""
_LATE_S = 300e-6
"""A message found later than this would have come sooner to a process that slept."""
_MAX_SKIPPED = 256


class Spin:
    """What one process has seen of its looks.

    >>> spin = Spin()
    >>> spin.is_due(), spin.note(1.0), spin.is_due(), spin.is_due()
    (True, None, False, True)
    """

    def __init__(self) -> None:
        self._num_skipped = self._num_left = 0

    def is_due(self) -> bool:
        """Return whether to look this time."""
        if not self._num_left:
            return True
        self._num_left -= 1
        return False

    @staticmethod
    def is_over(*, spent_s: float, yielded_s: float) -> bool:
        """Return whether a look that has found nothing ends.

        Args:
            spent_s: How long it has lasted.
            yielded_s: How long the processor, when it was offered to others last, was away.
        """
        return spent_s > _SPIN_S or yielded_s > _RUDE_S

    def note(self, spent_s: float, *, is_caught: bool = False) -> None:
        """A look has ended after so long, with a message or in vain."""
        is_good = is_caught and spent_s < _LATE_S
        self._num_skipped = 0 if is_good else min(2 * self._num_skipped or 1, _MAX_SKIPPED)
        self._num_left = self._num_skipped


def look_out(spin: Spin, poll: Callable[[float], Events]) -> Events:
    """Return what ``poll(0.0)`` finds soon, or nothing: then sleep."""
    if not spin.is_due():
        return []
    began_s = last_s = now_s = time.perf_counter()
    while not (events := poll(0.0)):
        if spin.is_over(spent_s=now_s - began_s, yielded_s=now_s - last_s):
            break
        os.sched_yield()
        last_s, now_s = now_s, time.perf_counter()
    spin.note(now_s - began_s, is_caught=bool(events))
    return events
