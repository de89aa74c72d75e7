"""Estimates, as rows: what was measured outlives the process."""

import sqlite3
from collections.abc import Sequence

from attrs import asdict

from foreman.jobs.model import Estimate
from foreman.jobs.queries import changed, rows
from foreman.jobs.writer import Transaction

MOST_ESTIMATES = 2000


def put_estimates(estimates: Sequence[Estimate], now: float, transaction: Transaction) -> None:
    """Keep these, each in the place of an earlier one; all but the latest are forgotten."""
    for estimate in estimates:
        changed(transaction.connection, "estimate_put", {**asdict(estimate), "now": now})
    changed(transaction.connection, "estimates_forget", {"most": MOST_ESTIMATES})


def read_estimates(connection: sqlite3.Connection) -> list[Estimate]:
    """All of them, those that changed last at the end."""
    return [Estimate(*row) for row in rows(connection, "estimates")]
