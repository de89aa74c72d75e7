"""The SQLite file: made, upgraded and checked at start, then opened for one writer and a few readers."""

import os
import sqlite3
import sys
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from typing import Any, Protocol, TypeVar

from attrs import define, field
from twisted.enterprise import adbapi
from twisted.internet.defer import Deferred, execute
from twisted.python.failure import Failure

from foreman.errors import DatabaseFull, DatabaseRefused, DatabaseUnavailable
from foreman.jobs.queries import load_upgrades

T = TypeVar("T")

MEMORY = ":memory:"
APPLICATION_ID = 0x464F524D
"""``FORM``: says in the file's header whose database it is."""

_BUSY_MS = 5000
# The writer waits as long for another program's lock, but in short looks: a stop has a limit, and nothing
# ends a wait of SQLite's own, not even interrupt() [tried: 5.03 s].
BUSY_LOOK_MS = 50
BUSY_LOOKS = _BUSY_MS // BUSY_LOOK_MS
_LOG_LIMIT_BYTES = 64 * 1024 * 1024


class Pool(Protocol):
    """Runs functions with a connection, off the reactor's thread. ``adbapi.ConnectionPool`` is one."""

    def runWithConnection(self, func: Callable[..., Any], *args: Any) -> "Deferred[Any]": ...

    def close(self) -> None: ...


@define
class InlinePool:
    """One connection in the reactor's thread, for a database in memory: there is no disk to wait for."""

    _connection: sqlite3.Connection

    def runWithConnection(self, func: Callable[..., Any], *args: Any) -> "Deferred[Any]":
        """The result is there at once."""
        return execute(func, self._connection, *args)

    def close(self) -> None:
        """Forget everything."""
        self._connection.close()


@define
class Pools:
    """The one writer, and the readers beside it: one pool for both when the database is in memory."""

    writer: Pool
    readers: Pool = field()

    def close(self) -> None:
        """Waits for the threads: call it when nothing is under way."""
        if self.readers is not self.writer:
            self.readers.close()
        self.writer.close()


def open_pools(path: str, reactor: Any, readers: int = 3) -> Pools:
    """Open a prepared database. ``:memory:`` is made here: it lasts as long as its pool."""
    if path == MEMORY:
        connection = sqlite3.connect(MEMORY, isolation_level=None)
        _upgrade(connection, load_upgrades())
        _for_writing(connection)
        inline = InlinePool(connection)
        return Pools(inline, inline)
    return Pools(_pool(path, reactor, _for_writing, 1), _pool(path, reactor, _for_reading, readers))


def _pool(path: str, reactor: Any, opened: Callable[[Any], None], most: int) -> adbapi.ConnectionPool:
    return adbapi.ConnectionPool(
        "sqlite3",
        path,
        isolation_level=None,  # foreman begins and ends its transactions itself
        check_same_thread=False,  # adbapi closes them from the reactor's thread
        cp_min=1,
        cp_max=most,
        cp_openfun=opened,
        cp_noisy=False,
        cp_reactor=reactor,
    )


def _for_writing(connection: sqlite3.Connection) -> None:
    connection.row_factory = sqlite3.Row
    for pragma in (
        f"busy_timeout = {_BUSY_MS}",
        "journal_mode = WAL",
        "synchronous = FULL",  # a commit is on the disk, or it did not happen
        "foreign_keys = ON",
        f"journal_size_limit = {_LOG_LIMIT_BYTES}",
        "temp_store = MEMORY",
        # Debian's SQLite overwrites all that is freed, which made pruning 15 times as slow.
        "secure_delete = FAST",
        # From here on: what came before is not asked a second time.
        f"busy_timeout = {BUSY_LOOK_MS}",
    ):
        connection.execute(f"PRAGMA {pragma}").fetchall()
    if sys.platform == "darwin":
        # There fsync() leaves the data in the drive's cache.
        connection.execute("PRAGMA fullfsync = ON").fetchall()
        connection.execute("PRAGMA checkpoint_fullfsync = ON").fetchall()


def _for_reading(connection: sqlite3.Connection) -> None:
    connection.row_factory = sqlite3.Row
    connection.execute(f"PRAGMA busy_timeout = {_BUSY_MS}").fetchall()
    connection.execute("PRAGMA query_only = ON").fetchall()


def prepare(path: str, upgrades: Sequence[str] | None = None) -> None:
    """
    Make the database, or upgrade it, and close it again. Called before anything else has it open.

    A new file is built under a temporary name and renamed: a half-made database never bears the real one.
    An old one is first copied to ``<path>-backup-v<n>``, n being its version. Raises DatabaseRefused.
    """
    scripts = load_upgrades() if upgrades is None else upgrades
    if path == MEMORY:
        return
    folder = os.path.dirname(os.path.abspath(path))
    try:
        if not os.path.isdir(folder):
            raise DatabaseRefused(path, f"the folder {folder} does not exist")
        if os.path.isdir(path):
            raise DatabaseRefused(path, "it is a folder, not a file")
        # A log and its index stand beside the database.
        if not os.access(folder, os.W_OK):
            raise DatabaseRefused(path, f"the folder {folder} cannot be written")
        if not os.path.exists(path) or os.path.getsize(path) == 0:
            _make(path, folder, scripts)
        else:
            _check(path, folder, scripts)
    except OSError as why:
        raise DatabaseRefused(path, f"it cannot be written: {why.strerror}") from None
    except sqlite3.Error as why:
        raise DatabaseRefused(path, _refusal(why)) from None


def _make(path: str, folder: str, scripts: Sequence[str]) -> None:
    temporary = f"{path}-new"
    with suppress(FileNotFoundError):
        os.unlink(temporary)  # of a start that was interrupted
    with closing(sqlite3.connect(temporary, isolation_level=None)) as connection:
        _upgrade(connection, scripts)
    _rename(temporary, path, folder)


def _check(path: str, folder: str, scripts: Sequence[str]) -> None:
    """Check an existing file, and upgrade it if it is older."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute(f"PRAGMA busy_timeout = {_BUSY_MS}").fetchall()
        ((tables,),) = connection.execute("SELECT count(*) FROM sqlite_schema").fetchall()
        ((application,),) = connection.execute("PRAGMA application_id").fetchall()
        ((version,),) = connection.execute("PRAGMA user_version").fetchall()
        if application != APPLICATION_ID or not tables:
            raise DatabaseRefused(path, "it is a SQLite database, but not foreman's")
        if version > len(scripts):
            raise DatabaseRefused(
                path,
                f"a newer foreman wrote it (its version is {version}, this one knows {len(scripts)})",
            )
        # A read-only file opens well; only a write tells. The page is rewritten as it is.
        connection.execute("BEGIN IMMEDIATE")
        connection.execute(f"PRAGMA user_version = {version}")
        connection.execute("COMMIT")
        if version < len(scripts):
            _back_up(connection, f"{path}-backup-v{version}", folder)
            _upgrade(connection, scripts)


def _back_up(connection: sqlite3.Connection, copy: str, folder: str) -> None:
    temporary = f"{copy}-new"
    with suppress(FileNotFoundError):
        os.unlink(temporary)
    with closing(sqlite3.connect(temporary)) as target:
        connection.backup(target)
    _rename(temporary, copy, folder)


def _rename(temporary: str, path: str, folder: str) -> None:
    """Give a finished file its name; both the content and the name are on the disk afterwards."""
    for name, flags in ((temporary, os.O_RDWR), (folder, os.O_RDONLY)):
        if name == folder:
            os.replace(temporary, path)
        descriptor = os.open(name, flags)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _upgrade(connection: sqlite3.Connection, scripts: Sequence[str]) -> None:
    """Bring the schema to the last version, one transaction for each version: it is whole at every moment."""
    ((version,),) = connection.execute("PRAGMA user_version").fetchall()
    if version == 0:
        connection.execute("PRAGMA auto_vacuum = INCREMENTAL")  # only before the first table is made
    for number, script in enumerate(scripts[version:], version + 1):
        connection.execute("BEGIN IMMEDIATE")
        try:
            for statement in _statements(script):
                connection.execute(statement)
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version = {number}")
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise


def _statements(script: str) -> list[str]:
    """The statements of a script. ``executescript`` would commit the transaction that is open."""
    statements, lines = [], ""
    for line in script.splitlines(keepends=True):
        lines += line
        if sqlite3.complete_statement(lines):
            statements.append(lines)
            lines = ""
    return statements


def _refusal(error: sqlite3.Error) -> str:
    match getattr(error, "sqlite_errorname", "").split("_")[1:2]:
        case ["NOTADB"]:
            return "it is not a SQLite database"
        case ["READONLY"] | ["CANTOPEN"] | ["PERM"]:
            return "it cannot be written"
        case ["BUSY"] | ["LOCKED"]:
            return "another program has it locked"
        case ["FULL"]:
            return "its disk is full"
        case ["CORRUPT"]:
            return "it is damaged"
    return f"it cannot be used: {error}"


def is_busy(error: sqlite3.Error) -> bool:
    """Another program has the database locked."""
    return getattr(error, "sqlite_errorname", "").startswith("SQLITE_BUSY")


def explained(failure: Failure, path: str) -> Failure:
    """The failure of foreman's that says what SQLite's means; another failure as it is."""
    name = getattr(failure.value, "sqlite_errorname", "")
    if name == "SQLITE_FULL":
        return Failure(DatabaseFull(path))
    # Anything that names a mistake of foreman's own (a constraint, a misuse) stays what it is.
    if name.split("_")[1:2] in (["BUSY"], ["CANTOPEN"], ["CORRUPT"], ["IOERR"], ["LOCKED"], ["READONLY"]):
        return Failure(DatabaseUnavailable(path, str(failure.value)))
    return failure
