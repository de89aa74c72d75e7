"""Pauses of lanes, as rows: they outlive the process."""

import sqlite3
from collections.abc import Collection, Sequence

from attrs import asdict

from foreman.jobs.model import Pause
from foreman.jobs.queries import changed, rows
from foreman.jobs.writer import Transaction


def put_pauses(pauses: Sequence[Pause], transaction: Transaction) -> None:
    """Keep these, each in the place of an earlier one of its lane."""
    for pause in pauses:
        changed(transaction.connection, "pause_put", asdict(pause))


def drop_pauses(lanes: Collection[str], transaction: Transaction) -> None:
    """Forget those of these lanes."""
    for lane in lanes:
        changed(transaction.connection, "pause_drop", {"lane": lane})


def read_pauses(now: float, connection: sqlite3.Connection) -> list[Pause]:
    """Those that are not over at the moment `now`."""
    return [
        Pause(lane, since, until, bool(unload))
        for lane, since, until, unload in rows(connection, "pauses", {"now": now})
    ]
