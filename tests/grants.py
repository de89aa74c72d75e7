"""Grants as a turn would have made them, for those who are told of them."""

from twisted.internet.task import Clock

from foreman.scheduler.grant import Grant
from foreman.scheduler.keys import ModelKey, Wanted
from foreman.scheduler.policy import Lane, Why


def make_grant(
    clock: Clock,
    key: ModelKey,
    *,
    lane: Lane = Lane.INTERACTIVE,
    model: str = "m",
    swap: bool = False,
    settling: bool = False,
    waited_seconds: float = 0.0,
    job_id: str = "job",
) -> Grant:
    """One that is granted now."""
    return Grant(
        job_id,
        lane,
        key,
        Why.HEAD,
        swap,
        settling,
        waited_seconds,
        clock.seconds(),
        lambda grant: setattr(grant, "answered_at", clock.seconds()),
        Wanted(model),
    )
