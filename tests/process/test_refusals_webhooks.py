"""foreman does not start with webhook settings that it cannot use: exit code 2, and a sentence for each."""

import subprocess
from pathlib import Path

from processes import PATIENCE_SECONDS, command, environment


def test_every_complaint_in_one_go(tmp_path: Path) -> None:
    """A file without certificates, a secret that is not base64, an unknown network: no secret is printed."""
    text = tmp_path / "ca.pem"
    text.write_text("Dear diary,\n")
    given = {
        "WEBHOOK_CA": str(text),
        "WEBHOOK_SECRET": "whsec_geheim!",
        "WEBHOOK_ALLOW": "10.0.0.1/8",
        "WEBHOOK_BACKOFF": "5s",
        "WEBHOOK_URL": "http://169.254.169.254/latest",
    }
    run = subprocess.run(
        command("twistd -n foreman", tmp_path),
        cwd=tmp_path,
        env=environment(tmp_path, **given),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=PATIENCE_SECONDS,
        check=False,
        encoding="utf-8",
    )
    assert run.returncode == 2, run
    said = run.stderr.splitlines()
    assert len(said) == len(given), said
    for name in given:
        assert any(line.startswith(f"foreman: FOREMAN_{name} ") for line in said), name
    assert "geheim" not in run.stderr
    assert "holds no certificate" in run.stderr


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    """It is named, with the reason."""
    run = subprocess.run(
        command("twistd -n foreman", tmp_path),
        cwd=tmp_path,
        env=environment(tmp_path, WEBHOOK_CA=str(tmp_path / "none.pem")),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=PATIENCE_SECONDS,
        check=False,
        encoding="utf-8",
    )
    assert run.returncode == 2, run
    assert "none.pem cannot be read: No such file or directory" in run.stderr
