"""The ledger: is the durable lane owed some of the busy time in which both lanes had work?

It keeps one number, what the durable lane is owed. While both lanes have work, each busy second of the
interactive lane earns the durable one its share, and each busy second of its own costs the other's share. So
the number is above zero exactly when the durable lane had less than its share since it was last zero.

How far back it looks: no more is remembered than ten minutes (`share_window`) of such time can owe, but a job
that is longer counts in full, whichever lane it was of. A plain window over the last ten minutes forgets such
a job before it is paid back; with jobs of an hour the lanes then get half of the time each, whatever their
share, and lines start later than they may (simulated: 116 % of the bound, and 83 % this way).
"""

from attrs import define, field

from foreman.scheduler.policy import Lane, Limits


@define(eq=False)
class Ledger:
    """What the durable lane is owed, in seconds of busy time, loads included, while both lanes had work."""

    _limits: Limits
    _owed_seconds: float = field(default=0.0, init=False)

    def begin_run(self, lane: Lane) -> None:
        """A job of this lane gets the turn. What more its lane took than a window can owe is forgotten now.

        It is forgotten here and not as time goes by, so that the job itself counts in full.
        """
        share = self._limits.interactive_share
        # With a share of 0 or 1 nothing is ever paid back, and one second is as good as many.
        most = self._limits.share_window * share * (1 - share) or 1.0
        if lane is Lane.DURABLE:
            self._owed_seconds = max(self._owed_seconds, -most)
        else:
            self._owed_seconds = min(self._owed_seconds, most)

    def record(self, lane: Lane, seconds: float) -> None:
        """This lane was busy for so many seconds, while both lanes had work."""
        share = self._limits.interactive_share
        rate = 1 - share if lane is Lane.INTERACTIVE else -share
        self._owed_seconds += rate * seconds

    @property
    def owed_seconds(self) -> float:
        """What the durable lane is owed; below 0 the other one is."""
        return self._owed_seconds

    def owed_durable(self) -> bool:
        """The durable lane had less than its share. With nothing measured yet no lane is owed."""
        return self._owed_seconds > 0
