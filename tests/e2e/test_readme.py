"""The console examples of the README and the quickstart, run as they stand against a real daemon."""

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from attrs import frozen

ROOT = Path(__file__).parents[2]
PAGES = ("README.md", "docs/quickstart.md")
ADDRESS_SHOWN = "127.0.0.1:8080"
START_SECONDS = 30
EXAMPLE_SECONDS = 50
STOP_SECONDS = 9


@frozen
class Example:
    """One console block: the lines after ``$ ``, and what they are to print; ``…`` stands for anything."""

    page: str
    script: str
    output: str


def examples() -> list[Example]:
    """Every block of every page."""
    found = []
    for page in PAGES:
        for block in re.findall(r"^```console\n(.*?)^```", (ROOT / page).read_text("utf-8"), re.M | re.S):
            lines = block.splitlines()
            script = [line[2:] for line in lines if line.startswith("$ ")]
            output = [line for line in lines if not line.startswith("$ ")]
            found.append(Example(page, "\n".join(script), "\n".join(output)))
    return found


def pattern(output: str) -> str:
    """What is shown, as a regular expression; an empty line at the end of an answer is not shown."""
    return ".*?".join(re.escape(part) for part in output.split("…")) + r"\n*"


def is_well(address: str) -> bool:
    """Whether /healthz says so."""
    with urllib.request.urlopen(f"http://{address}/healthz", timeout=10) as answer:
        return json.load(answer) == {"status": "ok", "degraded": False}


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Host and port of a `foreman serve` on the embedded target."""
    folder = tmp_path_factory.mktemp("readme")
    log = folder / "foreman.log"
    environment = {name: text for name, text in os.environ.items() if not name.startswith("FOREMAN_")}
    environment |= {
        "FOREMAN_ADDR": "127.0.0.1:0",
        "FOREMAN_OLLAMA_URL": "embedded:",
        "FOREMAN_DB_PATH": str(folder / "foreman.db"),
    }
    command = [str(Path(sys.executable).with_name("foreman")), "serve"]
    with log.open("wb") as out:
        process = subprocess.Popen(command, env=environment, cwd=folder, stdout=out, stderr=out)
    try:
        found = None
        until = time.monotonic() + START_SECONDS
        # The models are read a moment after the child serves; before that /healthz is not all well.
        while found is None or not is_well(found[1]):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < until, log.read_text()
            found = re.search(r"foreman \S+ listens on (\S+),", log.read_text())
            time.sleep(0.05)
        yield found[1]
        process.terminate()
        assert process.wait(STOP_SECONDS) in (0, -signal.SIGTERM), log.read_text()
        assert "Traceback" not in log.read_text()
    finally:
        process.kill()
        process.wait()


def test_the_pages_have_examples() -> None:
    """A block whose mark has a slip of the pen would never run."""
    pages = [example.page for example in examples()]
    assert pages.count("README.md") >= 6
    assert pages.count("docs/quickstart.md") >= 2
    for page in PAGES:
        marks = set(re.findall(r"^```(\S+)", (ROOT / page).read_text("utf-8"), re.M))
        assert marks <= {"console", "sh", "text"}, page


@pytest.mark.parametrize("example", examples(), ids=lambda example: example.script[:60])
def test_example(address: str, tmp_path: Path, example: Example) -> None:
    """Each command of a block succeeds, and together they print what the page shows."""
    script = "set -e\n" + example.script.replace(ADDRESS_SHOWN, address)
    ran = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=EXAMPLE_SECONDS
    )
    assert ran.returncode == 0, ran.stderr
    printed = ran.stdout.replace("\r\n", "\n").replace(address, ADDRESS_SHOWN)
    assert re.fullmatch(pattern(example.output), printed, re.S), printed
