"""
A 202 outlives a power cut: what was written and not synced is lost, and no promise is among it.

`synced.c`, compiled here and preloaded into foreman, keeps a copy of each file as of its last sync: what the
strictest disk would show after the cut.
"""

import os
import shutil
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest
from load import Books, Callers, Life, Target, free_port, wait_until_all_ended, wrong_jobs
from processes import until

SOURCE = Path(__file__).with_name("synced.c")
CUTS = 3
LIFE_SECONDS = 1.5
ROWS = 20


@pytest.fixture(scope="module")
def preloaded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The compiled library; no test without a compiler, or where nothing can be preloaded."""
    compiler = next((found for name in ("cc", "gcc", "clang") if (found := shutil.which(name))), None)
    if compiler is None:
        pytest.skip("there is no C compiler")
    if sys.platform != "linux":
        pytest.skip("syncs are intercepted on Linux only")
    library = tmp_path_factory.mktemp("synced") / "synced.so"
    command = [compiler, "-shared", "-fPIC", "-O1", "-Wall", "-o", str(library), str(SOURCE), "-ldl"]
    subprocess.run([*command, "-lpthread"], check=True, timeout=60)
    return library


def intercepted(library: Path, folder: Path, copy: Path) -> dict[str, str]:
    """The variables that make a process keep its synced files of `folder` in `copy`."""
    copy.mkdir()
    return {"LD_PRELOAD": str(library), "SYNCED_FOLDER": str(folder), "SYNCED_COPY": str(copy)}


def already_synced(folder: Path, copy: Path) -> None:
    """What has been on the disk since before this life."""
    files = [path for path in folder.iterdir() if path.is_file()]
    for path in files:
        shutil.copy(path, copy / str(path.stat().st_ino))
    (copy / "names").write_text("".join(f"{path.stat().st_ino} {path.name}\n" for path in files))


def after_the_cut(copy: Path, folder: Path) -> Path:
    """The folder as it is found when the power is back."""
    folder.mkdir()
    names = copy / "names"
    for line in names.read_text().splitlines() if names.exists() else ():
        inode, _, name = line.partition(" ")
        # SQLite makes its index of the log anew, and never syncs it.
        if not name.endswith("-shm"):
            content = copy / inode
            (folder / name).write_bytes(content.read_bytes() if content.exists() else b"")
    return folder


@pytest.mark.timeout(180)
def test_every_acknowledged_job_is_there_after_a_power_cut(preloaded: Path, tmp_path: Path) -> None:
    """Several times in a row, in the middle of submissions and runs; then all are done, each once."""
    port = free_port()
    folder = tmp_path / "life-0"
    folder.mkdir()
    acknowledged: dict[str, str] = {}
    with Target() as target:
        target.pace(0.002)
        for number in range(1, CUTS + 1):
            copy = tmp_path / f"synced-{number}"
            preload = intercepted(preloaded, folder, copy)
            already_synced(folder, copy)
            life = Life.begin(folder, port, target.url, **preload)
            try:
                with Callers(port, 0.02) as callers:
                    time.sleep(LIFE_SECONDS)
                    until(lambda callers=callers: len(callers.acknowledged) > 10, "jobs are acknowledged")
                    # Not at a quiet moment: the callers go on until they find nobody.
                    life.kill()
            finally:
                life.kill()
            assert len(callers.acknowledged) > 10
            assert callers.failures == []
            acknowledged |= callers.acknowledged
            folder = after_the_cut(copy, tmp_path / f"life-{number}")
            books = Books.read(folder, tmp_path / "scratch")
            assert books.integrity == "ok"
            assert books.missing(list(acknowledged)) == []
            assert books.finished_twice() == []
        life = Life.begin(folder, port, target.url)
        try:
            wait_until_all_ended(port, 90)
            assert wrong_jobs(port, acknowledged) == []
        finally:
            life.kill()
    books = Books.read(folder, tmp_path / "scratch")
    assert books.finished_twice() == []
    assert books.unfinished() == []


@pytest.mark.parametrize(("synchronous", "kept"), [("FULL", ROWS), ("NORMAL", 0), ("OFF", 0)])
def test_the_cut_takes_what_was_not_synced(
    synchronous: str, kept: int, preloaded: Path, tmp_path: Path
) -> None:
    """The test above can fail: rows that SQLite committed without a sync are gone, others are not."""
    folder, copy = tmp_path / "life", tmp_path / "synced"
    folder.mkdir()
    program = f"""
import os, sqlite3
database = sqlite3.connect("foreman.db", isolation_level=None)
database.execute("PRAGMA synchronous = FULL")
database.execute("PRAGMA journal_mode = WAL").fetchall()
database.execute("CREATE TABLE one (n INTEGER)")
database.execute("PRAGMA synchronous = {synchronous}")
for n in range({ROWS}):
    database.execute("INSERT INTO one VALUES (?)", (n,))
os._exit(0)  # closing it would sync
"""
    subprocess.run(
        [sys.executable, "-c", program],
        cwd=folder,
        env=os.environ | intercepted(preloaded, folder, copy),
        check=True,
        timeout=60,
    )
    found = after_the_cut(copy, tmp_path / "after")
    with closing(sqlite3.connect(found / "foreman.db")) as database:
        assert database.execute("SELECT count(*) FROM one").fetchall() == [(kept,)]
