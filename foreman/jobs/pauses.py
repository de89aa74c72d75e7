"""Pauses of lanes, as rows: they outlive the process. Those that are over are kept for a week."""

import sqlite3
from collections.abc import Collection, Sequence

from attrs import asdict

from foreman.jobs.model import Pause
from foreman.jobs.queries import changed, rows
from foreman.jobs.writer import Transaction

_KEPT_SECONDS = 7 * 24 * 3600.0
# A waiting clock remembers as many.
_MOST_ENDED = 1000


def put_pauses(pauses: Sequence[Pause], transaction: Transaction) -> None:
    """Keep these, each in the place of an earlier one of its lane, which is over."""
    for pause in pauses:
        changed(transaction.connection, "pause_replace", {"lane": pause.lane, "since": pause.since})
        changed(transaction.connection, "pause_put", asdict(pause))
        changed(transaction.connection, "pauses_forget", {"before": pause.since - _KEPT_SECONDS})


def drop_pauses(lanes: Collection[str], now: float, transaction: Transaction) -> None:
    """Those of these lanes are over at the moment `now`."""
    for lane in lanes:
        changed(transaction.connection, "pause_end", {"lane": lane, "now": now})


def read_pauses(now: float, connection: sqlite3.Connection) -> list[Pause]:
    """Those that are not over at the moment `now`."""
    return [
        Pause(lane, since, until, bool(unload))
        for lane, since, until, unload in rows(connection, "pauses", {"now": now})
    ]


def read_ended_pauses(now: float, connection: sqlite3.Connection) -> list[Pause]:
    """Those that were over in the week before `now`, each until its true end; the latest of them."""
    values = {"now": now, "after": now - _KEPT_SECONDS, "limit": _MOST_ENDED}
    return [
        Pause(lane, since, until, bool(unload))
        for lane, since, until, unload in rows(connection, "pauses_ended", values)
    ]
