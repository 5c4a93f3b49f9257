"""When a process that waits for a message looks for it without sleeping. No I/O.

To wake a process that sleeps takes as long as a short call, and the calls of a program that waits
for each follow each other closely. So a worker that has answered, and a driver thread that has
asked, first look for a moment. As with mutexes that adapt, what became of that decides about the
next time: each look in vain doubles the number of waits that begin asleep, so a process that is
called now and then just sleeps.

Between two glances the processor is offered to others. When it is away for a while somebody else
wants it, and the look ends. When it is away for longer than any call takes, the machine is busy:
looks become rare, and frequent again only by and by. When it is away for about as long as a call
takes and the message is there then, whoever wrote it runs on the same processor: two that could
work at once take turns. The kernel may leave them so for long, for each is gone before it counts;
so the worker moves.
"""

_LOOK_S = 150e-6
"""How long a look lasts."""
_AWAY_S = 30e-6
"""Who offers the processor and gets it back later than this has taken it from somebody."""
_LATE_S = 300e-6
"""A message found later than this would have come sooner to a process that slept; and who has the
processor for longer is at work, and would have to be waited for each time."""
_MAX_SKIPPED = 256
_CAUTION = 8
"""How many waits begin asleep when the machine is found busy; four times as many if it still is."""
_FEW, _MANY = 2, 1024


class Spin:
    """What one process has seen of its looks.

    >>> spin = Spin()
    >>> spin.is_due(), spin.note(200e-6, away_s=0.0, is_caught=False)
    (True, None)
    >>> spin.is_due(), spin.is_due()
    (False, True)
    """

    def __init__(self) -> None:
        self._num_skipped = self._num_left = 0
        self._min_skipped = 0
        """What is left of the caution after the machine was found busy."""
        self._num_shared, self._max_shared = 0, _FEW

    def is_due(self) -> bool:
        """Return whether to look this time."""
        if not self._num_left:
            return True
        self._num_left -= 1
        return False

    @staticmethod
    def is_over(spent_s: float, *, away_s: float) -> bool:
        """Return whether a look that has found nothing ends.

        Args:
            spent_s: How long it has lasted.
            away_s: How long the processor was away when it was offered last.
        """
        return spent_s > _LOOK_S or away_s > _AWAY_S

    def note(self, spent_s: float, *, away_s: float, is_caught: bool) -> None:
        """A look has ended, with a message or in vain; times as of `is_over`."""
        if away_s > _LATE_S:
            self._min_skipped = min(4 * self._min_skipped or _CAUTION, _MAX_SKIPPED)
            self._num_skipped = max(self._num_skipped, self._min_skipped)
        elif not is_caught or spent_s > _LATE_S:
            self._num_skipped = min(2 * self._num_skipped or 1, _MAX_SKIPPED)
        else:
            self._min_skipped //= 2
            self._num_skipped = self._min_skipped
            self._note_neighbour(away_s)
        self._num_left = self._num_skipped

    def _note_neighbour(self, away_s: float) -> None:
        """A message was caught: did whoever wrote it need this processor?"""
        if away_s > _AWAY_S:
            self._num_shared += 1
        else:
            self._num_shared, self._max_shared = 0, max(_FEW, self._max_shared - 1)

    def must_move(self) -> bool:
        """Return whether to go to another processor, away from who writes to this process.

        Each time it takes twice as much to be told so again; every message that then comes from
        elsewhere takes one off.
        """
        if self._num_shared < self._max_shared:
            return False
        self._num_shared, self._max_shared = 0, min(2 * self._max_shared, _MANY)
        return True
