"""The demo is the first thing that a newcomer runs: it shows what it promises, and leaves nothing behind."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

DEMO = Path(__file__).parents[2] / "demo" / "demo.py"
DEMO_SECONDS = 120


@pytest.mark.timeout(DEMO_SECONDS + 30)
def test_the_demo_shows_text_waits_and_two_loads(tmp_path: Path):
    """It exits 0; real text is streamed; six requests tell their waits; two loads, more without foreman."""
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
    assert len(answer[1].split()) > 5
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
    assert list(tmp_path.iterdir()) == []
