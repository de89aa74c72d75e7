"""foreman does not start on a database that it cannot use: exit code 2, and one sentence that says why."""

import os
import shutil
import sqlite3
import subprocess
from contextlib import closing
from pathlib import Path

import pytest
from processes import PATIENCE_SECONDS, command, environment, get, started

from foreman.jobs.database import prepare
from foreman.jobs.queries import load_upgrades

KNOWN = len(load_upgrades())


def refusal(folder: Path, database: str) -> str:
    """What foreman says before it ends with 2: one line, without its name and the variable."""
    # Root may write everything; without this capability it is bound by the bits as anybody is.
    prefix = ["setpriv", "--bounding-set=-dac_override"] if os.geteuid() == 0 else []
    run = subprocess.run(
        [*prefix, *command("twistd -n foreman", folder)],
        cwd=folder,
        env=environment(folder, DB_PATH=database),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=PATIENCE_SECONDS,
        check=False,
        encoding="utf-8",
    )
    assert run.returncode == 2, run
    assert "Traceback" not in run.stdout + run.stderr
    (line,) = run.stderr.splitlines()
    beginning = f"foreman: FOREMAN_DB_PATH is {database!r}: "
    assert line.startswith(beginning)
    return line.removeprefix(beginning)


def test_a_newer_version(tmp_path: Path) -> None:
    """Only the newer foreman knows how to read it; nothing is changed, and no copy is made."""
    path = tmp_path / "foreman.db"
    prepare(str(path))
    with closing(sqlite3.connect(path)) as database:
        database.execute(f"PRAGMA user_version = {KNOWN + 1}")
    before = path.read_bytes()
    assert refusal(tmp_path, str(path)) == (
        f"a newer foreman wrote it (its version is {KNOWN + 1}, this one knows {KNOWN})."
    )
    assert path.read_bytes() == before
    assert not list(tmp_path.glob("*backup*"))


@pytest.mark.parametrize("text", [b"Dear diary,\n", b"x" * 8192], ids=["short", "long"])
def test_not_a_database(text: bytes, tmp_path: Path) -> None:
    """A mistyped path must not cost anybody a file."""
    path = tmp_path / "notes.txt"
    path.write_bytes(text)
    assert refusal(tmp_path, str(path)) == "it is not a SQLite database."
    assert path.read_bytes() == text


def test_a_database_of_another_program(tmp_path: Path) -> None:
    """Nor a database: foreman's bear its mark."""
    path = tmp_path / "photos.db"
    with closing(sqlite3.connect(path)) as database:
        database.execute("CREATE TABLE photo (n INTEGER)")
    before = path.read_bytes()
    assert refusal(tmp_path, str(path)) == "it is a SQLite database, but not foreman's."
    assert path.read_bytes() == before


def test_a_damaged_database(tmp_path: Path) -> None:
    """One whose schema can no longer be read."""
    path = tmp_path / "foreman.db"
    prepare(str(path))
    whole = path.read_bytes()
    path.write_bytes(whole[:100] + b"\xff" * (len(whole) - 100))
    assert refusal(tmp_path, str(path)) == "it is damaged."


def test_a_folder(tmp_path: Path) -> None:
    """The path of the folder instead of the file's."""
    path = tmp_path / "data"
    path.mkdir()
    assert refusal(tmp_path, str(path)) == "it is a folder, not a file."


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    """foreman makes no folders: a mistyped one would be found too late."""
    path = tmp_path / "nowhere" / "foreman.db"
    assert refusal(tmp_path, str(path)) == f"{path}.lock cannot be written: No such file or directory."


needs_setpriv = pytest.mark.skipif(
    os.geteuid() == 0 and shutil.which("setpriv") is None, reason="root may write everything"
)


@needs_setpriv
def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    """Not even its lock can be made."""
    folder = tmp_path / "data"
    folder.mkdir()
    folder.chmod(0o555)
    path = folder / "foreman.db"
    assert refusal(tmp_path, str(path)) == f"{path}.lock cannot be written: Permission denied."


@needs_setpriv
def test_a_file_that_cannot_be_written(tmp_path: Path) -> None:
    """It could be read, and no job could be taken."""
    path = tmp_path / "foreman.db"
    prepare(str(path))
    path.chmod(0o444)
    assert refusal(tmp_path, str(path)) == "it cannot be written."


def test_a_database_in_use(tmp_path: Path) -> None:
    """The second daemon is refused by name of the path, and the first one goes on."""
    second = tmp_path / "second"
    second.mkdir()
    database = str(tmp_path / "foreman.db")
    with started("twistd -n foreman", tmp_path) as daemon:
        assert refusal(second, database) == f"another foreman is using it ({database}.lock is locked)."
        assert get(daemon.port, "/healthz").startswith(b"HTTP/1.1 200 OK")


def test_after_a_refusal_the_right_database_is_taken(tmp_path: Path) -> None:
    """A lock that was left by a refused start holds up nobody."""
    path = tmp_path / "foreman.db"
    path.write_bytes(b"x" * 8192)
    refusal(tmp_path, str(path))
    path.unlink()
    with started("twistd -n foreman", tmp_path):
        pass
