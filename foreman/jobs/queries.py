"""The named queries of ``sql/``: each begins with a line ``-- name: …``, and ends where the next begins."""

import re
import sqlite3
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

_NAME = re.compile(r"^-- name: (\w+)$", re.MULTILINE)
_UPGRADE = re.compile(r"upgrade_(\d{3})\.sql")


def load_queries(*rooms: str) -> dict[str, str]:
    """The queries of ``sql/<room>.sql``, by name. Raises ValueError when two have one name."""
    queries: dict[str, str] = {}
    for room in rooms:
        _, *parts = _NAME.split(_read(f"{room}.sql"))
        for name, text in zip(parts[::2], parts[1::2], strict=True):
            if name in queries:
                raise ValueError(f"two queries are named {name}")
            queries[name] = text.strip().removesuffix(";")
    return queries


def load_upgrades() -> list[str]:
    """The scripts that make a schema of version n from one of version n - 1, from version 1 on."""
    names = sorted(entry.name for entry in (files(__package__) / "sql").iterdir())
    return [_read(name) for name in names if _UPGRADE.fullmatch(name)]


def _read(name: str) -> str:
    return (files(__package__) / "sql" / name).read_text(encoding="utf-8")


QUERIES = load_queries("job", "line", "payload", "event", "delivery", "retention", "pause", "estimate")


def rows(connection: sqlite3.Connection, name: str, values: Mapping[str, Any] | None = None) -> list[Any]:
    """
    Run a named query, and fetch all of its rows.

    Always all: a statement that is still being read and is run again gives wrong rows, as Python keeps
    prepared statements by their text (cpython#118172); and an open read would keep the log from being reset.
    """
    return connection.execute(QUERIES[name], values or {}).fetchall()


def changed(connection: sqlite3.Connection, name: str, values: Mapping[str, Any] | None = None) -> int:
    """Run a named query that changes rows. How many it changed."""
    return connection.execute(QUERIES[name], values or {}).rowcount
