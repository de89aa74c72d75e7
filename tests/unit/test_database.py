"""The file: made whole or not at all, upgraded with a backup, refused with one sentence."""

import errno
import os
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from foreman.errors import DatabaseRefused
from foreman.jobs import database
from foreman.jobs.database import APPLICATION_ID, BUSY_LOOK_MS, BUSY_LOOKS, open_pools, prepare
from foreman.jobs.model import Job, Pause, Status
from foreman.jobs.queries import load_queries, load_upgrades
from foreman.jobs.store import SqliteStore
from foreman.testing.store import compose_plainly

FIRST = "CREATE TABLE one (n INTEGER);\nCREATE TRIGGER t AFTER INSERT ON one BEGIN\n  SELECT 1;\nEND;"
SECOND = "CREATE TABLE two (n INTEGER);\nINSERT INTO two SELECT n FROM one;"


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "foreman.db")


def ask(path: str, sql: str) -> object:
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute(sql).fetchall()


def do(path: str, sql: str) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(sql)
        connection.commit()


def test_a_new_file_is_whole(path: str) -> None:
    """It bears its version and whose it is, gives pages back in steps, and nothing is left beside it."""
    prepare(path)
    assert ask(path, "PRAGMA user_version") == [(len(load_upgrades()),)]
    assert ask(path, "PRAGMA application_id") == [(APPLICATION_ID,)]
    assert ask(path, "PRAGMA auto_vacuum") == [(2,)]
    assert ask(path, "PRAGMA integrity_check") == [("ok",)]
    assert os.listdir(os.path.dirname(path)) == ["foreman.db"]
    prepare(path)


def test_an_interrupted_start_leaves_no_half_database(path: str) -> None:
    """A file under the temporary name is of a start that died, and an empty file is as good as none."""
    Path(f"{path}-new").write_bytes(b"half a data")
    Path(path).touch()
    prepare(path)
    assert ask(path, "PRAGMA integrity_check") == [("ok",)]
    assert os.listdir(os.path.dirname(path)) == ["foreman.db"]


def test_a_script_that_fails_makes_no_file(path: str) -> None:
    """Neither under its own name, nor with half of its tables."""
    with pytest.raises(DatabaseRefused):
        prepare(path, [FIRST, "CREATE TABLE two (n INTEGER);\nINSERT INTO nowhere VALUES (1);"])
    assert not os.path.exists(path)
    prepare(path, [FIRST, SECOND])
    assert ask(path, "SELECT count(*) FROM two") == [(0,)]


def test_an_upgrade_keeps_a_copy_of_what_was(path: str) -> None:
    """The rows are there afterwards, and the backup is a database of the old version."""
    prepare(path, [FIRST])
    do(path, "INSERT INTO one VALUES (7)")
    prepare(path, [FIRST, SECOND])
    assert ask(path, "SELECT n FROM two") == [(7,)]
    backup = f"{path}-backup-v1"
    assert ask(backup, "SELECT n FROM one") == [(7,)]
    assert ask(backup, "PRAGMA user_version") == [(1,)]
    assert sorted(os.listdir(os.path.dirname(path))) == ["foreman.db", "foreman.db-backup-v1"]


async def test_version_1_becomes_version_2(path: str) -> None:
    """Jobs are as they were, want all events of their webhook, and go on; nobody is told of the past."""
    from twisted.internet import reactor

    prepare(path, load_upgrades()[:1])
    waits, ended = "0" * 25 + "1", "0" * 25 + "2"
    for job_id, status in ((waits, "queued"), (ended, "failed")):
        do(
            path,
            "INSERT INTO job (id, status, endpoint, takes_turn, model, option_key, priority, metadata,"
            " max_attempts, on_interrupt, transcript, webhook_url, created_at, waiting_since, sequence)"
            f" VALUES ('{job_id}', '{status}', '/api/chat', 1, 'm', '', 0, '{{}}', 3, 'retry', 0,"
            " 'http://10.0.0.5/hook', 1, 1, 1)",
        )
        do(
            path,
            "INSERT INTO event (id, job_id, sequence, status, at, facts)"
            f" VALUES ('E{job_id}', '{job_id}', 1, 'queued', 1, '{{}}')",
        )
    prepare(path)
    assert ask(path, "PRAGMA user_version") == [(len(load_upgrades()),)]
    store = SqliteStore(path, open_pools(path, reactor), lambda: 9.0, compose_plainly)
    await store.open()
    job = await store.get(waits)
    assert isinstance(job, Job)
    assert (job.status, job.webhook_url, job.webhook_events) == (Status.QUEUED, "http://10.0.0.5/hook", None)
    assert await store.outbox.receivers() == {}
    await store.cancel(waits)
    (due,) = (await store.outbox.take("http://10.0.0.5:80", 9.0, 9, ())).due
    assert (due.delivery.job_id, due.delivery.sequence) == (waits, 2)
    assert len(await store.events(waits)) == 2
    await store.close()
    assert ask(f"{path}-backup-v1", "SELECT count(*) FROM job") == [(2,)]


async def test_version_3_becomes_version_4(path: str) -> None:
    """A pause that stands still stands."""
    from twisted.internet import reactor

    prepare(path, load_upgrades()[:3])
    do(path, "INSERT INTO pause (lane, since, until, unload) VALUES ('durable', 1, NULL, 1)")
    prepare(path)
    store = SqliteStore(path, open_pools(path, reactor), lambda: 9.0, compose_plainly)
    await store.open()
    assert await store.pauses() == [Pause("durable", 1.0, None, True)]
    await store.drop_pauses(["durable"])
    assert await store.pauses() == []
    assert await store.ended_pauses() == [Pause("durable", 1.0, 9.0, True)]
    await store.close()


@pytest.mark.parametrize("log", ["wal", "delete"])
def test_an_upgrade_interrupted_midway_is_begun_again(path: str, log: str) -> None:
    """Until its commit the old version is whole; a backup that was made half is made anew."""
    prepare(path, [FIRST])
    ask(path, f"PRAGMA journal_mode = {log}")
    do(path, "INSERT INTO one VALUES (7)")
    Path(f"{path}-backup-v1-new").write_bytes(b"half")
    with pytest.raises(DatabaseRefused, match="no such table: nowhere"):
        prepare(path, [FIRST, f"{SECOND}\nINSERT INTO nowhere VALUES (1);"])
    assert ask(path, "PRAGMA user_version") == [(1,)]
    assert ask(path, "SELECT name FROM sqlite_schema WHERE name = 'two'") == []
    prepare(path, [FIRST, SECOND])
    assert ask(path, "SELECT n FROM two") == [(7,)]
    assert ask(f"{path}-backup-v1", "SELECT n FROM one") == [(7,)]


def test_a_process_that_dies_in_an_upgrade_leaves_the_old_version(path: str) -> None:
    """A copy of the files, taken while the transaction is open, opens as it was before it."""
    prepare(path, [FIRST])
    ask(path, "PRAGMA journal_mode = WAL")
    copy = f"{path}-copy"

    def dies(connection: sqlite3.Connection, scripts: object) -> None:
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("CREATE TABLE two (n INTEGER)")
        connection.execute("PRAGMA cache_size = 1")
        connection.execute("INSERT INTO two VALUES (zeroblob(1000000))")  # spills into the log
        assert os.path.getsize(f"{path}-wal") > 500_000
        for ending in ("", "-wal"):
            Path(copy + ending).write_bytes(Path(path + ending).read_bytes())
        connection.execute("ROLLBACK")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(database, "_upgrade", dies)
        prepare(path, [FIRST, SECOND])
    assert ask(copy, "PRAGMA user_version") == [(1,)]
    prepare(copy, [FIRST, SECOND])
    assert ask(copy, "SELECT count(*) FROM two") == [(0,)]


def test_a_newer_version_is_refused(path: str) -> None:
    """And left as it is."""
    prepare(path)
    do(path, "PRAGMA user_version = 99")
    before = Path(path).read_bytes()
    with pytest.raises(DatabaseRefused) as refused:
        prepare(path)
    known = len(load_upgrades())
    assert str(refused.value) == (
        f"FOREMAN_DB_PATH is {path!r}: a newer foreman wrote it (its version is 99, this one knows {known})."
    )
    assert Path(path).read_bytes() == before


def test_what_is_no_database_is_refused(path: str) -> None:
    """A text file, or another program's database, is not written to."""
    Path(path).write_text("Dear diary, " * 1000)
    with pytest.raises(DatabaseRefused, match=r"foreman\.db': it is not a SQLite database\.$"):
        prepare(path)
    assert Path(path).read_text().startswith("Dear diary")
    os.unlink(path)
    do(path, "CREATE TABLE theirs (n INTEGER)")
    before = Path(path).read_bytes()
    with pytest.raises(DatabaseRefused, match="it is a SQLite database, but not foreman's"):
        prepare(path)
    assert Path(path).read_bytes() == before


def test_paths_that_cannot_be(tmp_path: Path) -> None:
    """The sentence names the variable, the path and the reason."""
    with pytest.raises(DatabaseRefused, match=r"^FOREMAN_DB_PATH is '.*': it is a folder, not a file\.$"):
        prepare(str(tmp_path))
    missing = tmp_path / "nowhere"
    with pytest.raises(DatabaseRefused, match=f"the folder {missing} does not exist"):
        prepare(str(missing / "foreman.db"))


def test_a_folder_that_cannot_be_written(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The log stands beside the database, so its folder must be writable; root may write everywhere."""
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(DatabaseRefused, match=r"the folder .* cannot be written\.$"):
        prepare(path)


def test_a_full_disk_at_the_start(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error of the system's is told in its words."""

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DatabaseRefused, match=r"it cannot be written: No space left on device\.$"):
        prepare(path)
    assert not os.path.exists(path)


def test_a_database_that_is_locked(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a shell that somebody left open in a transaction, for example."""
    monkeypatch.setattr(database, "_BUSY_MS", 10)
    prepare(path)
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(DatabaseRefused, match=r"another program has it locked\.$"):
            prepare(path)


async def test_every_connection_is_as_durable_as_it_must_be(path: str) -> None:
    """The writer syncs each commit to a log; readers cannot write."""
    from twisted.internet import reactor

    prepare(path)
    pools = open_pools(path, reactor)

    def pragmas(connection: sqlite3.Connection) -> dict[str, object]:
        names = ("journal_mode", "synchronous", "foreign_keys", "busy_timeout", "query_only")
        return {name: connection.execute(f"PRAGMA {name}").fetchall()[0][0] for name in names}

    writing = await pools.writer.runWithConnection(pragmas)
    reading = await pools.readers.runWithConnection(pragmas)
    pools.close()
    assert writing == {
        "journal_mode": "wal",
        "synchronous": 2,
        "foreign_keys": 1,
        "busy_timeout": BUSY_LOOK_MS,  # the writer itself looks as often as makes 5 s
        "query_only": 0,
    }
    assert BUSY_LOOK_MS * BUSY_LOOKS == 5000
    assert (reading["query_only"], reading["busy_timeout"]) == (1, 5000)


def test_two_queries_of_one_name() -> None:
    """One of them would never run."""
    with pytest.raises(ValueError, match="two queries are named open_epoch"):
        load_queries("job", "job")
