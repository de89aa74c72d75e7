"""The demo is the first thing that a newcomer runs: it shows what it promises, and leaves nothing behind."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

DEMO = Path(__file__).parents[2] / "demo" / "demo.py"
DEMO_SECONDS = 300


@pytest.mark.timeout(DEMO_SECONDS + 30)
def test_the_demo_shows_what_it_promises(tmp_path: Path):
    """
    It exits 0; real text is streamed; six requests tell their waits; two loads, more without foreman. Six
    durable jobs are taken, followed to their end with two loads at most, and one is fetched.
    """
    # A setting of the caller's own must not get in the way.
    environment = os.environ | {"FOREMAN_ADDR": "nonsense", "TMPDIR": str(tmp_path)}
    demo = subprocess.run(
        [sys.executable, str(DEMO)],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=DEMO_SECONDS,
    )
    assert (demo.returncode, demo.stderr) == (0, "")
    text = demo.stdout
    answer = re.search(r"> Why is the sky blue\?[^\n]*\n(.*?)\n\nSix requests", text, re.DOTALL)
    assert answer is not None
    # It is sampled, and now and then as short as "It is blue."
    assert re.search(r"\w\w", answer[1])
    waits = re.findall(
        r"^  (smollm2\S*) +Name an? \w+\. +waited +([\d.]+) s, answered after", text, re.MULTILINE
    )
    assert [model for model, _ in waits] == ["smollm2", "smollm2-4k"] * 3
    seconds = [float(wait) for _, wait in waits]
    first, other = seconds[0::2], seconds[1::2]
    assert min(seconds) < 0.1
    assert max(first) < min(other) or max(other) < min(first)
    loads = [int(count) for count in re.findall(r"^  (\d+) loads?, ", text, re.MULTILINE)]
    assert loads[0] > 2 >= loads[1]
    check_jobs(text)
    assert list(tmp_path.iterdir()) == []


def check_jobs(text: str) -> None:
    """What is printed about the durable jobs."""
    jobs = re.findall(r"^  202  ([0-9A-Z]{26})  (smollm2\S*) ", text, re.MULTILINE)
    assert [model for _, model in jobs] == ["smollm2", "smollm2-4k"] * 3
    pictures = [
        line.split() for line in re.findall(r"^  ((?:(?:queued|running|succeeded) *){6})$", text, re.M)
    ]
    assert "queued" in pictures[0]
    assert all(picture.count("running") <= 1 for picture in pictures)
    assert pictures[-1] == ["succeeded"] * 6
    (loads,) = re.findall(r"^  (\d+) loads instead of 6$", text, re.MULTILINE)
    assert int(loads) <= 2
    assert re.search(rf"GET /jobs/{jobs[0][0]}: [1-8] tokens,$", text, re.MULTILINE)
    artifacts = re.findall(r"^  200  (\S+) +(\d+) bytes of", text, re.MULTILINE)
    assert [name for name, _ in artifacts] == ["response.json", "content.txt"]
    assert all(int(size) > 0 for _, size in artifacts)
