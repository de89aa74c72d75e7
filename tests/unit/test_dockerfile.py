"""The image: what its Dockerfile must keep saying. `tests/process` runs its health check."""

import ast
import configparser
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def steps() -> list[tuple[str, str]]:
    """Instructions and their arguments, in order; continued lines are joined."""
    text = (ROOT / "Dockerfile").read_text()
    lines = re.sub(r"\\\n\s*", "", re.sub(r"^#.*\n", "", text, flags=re.MULTILINE)).splitlines()
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in lines if line)]


def only(steps: list[tuple[str, str]], word: str) -> str:
    """The argument of an instruction that is there once."""
    (rest,) = [rest for name, rest in steps if name == word]
    return rest


def position(steps: list[tuple[str, str]], text: str) -> int:
    """Where the one step with this text stands."""
    (number,) = [number for number, (_, rest) in enumerate(steps) if text in rest]
    return number


def test_runs_as_twistd_itself(steps: list[tuple[str, str]]) -> None:
    """Exec form, so that twistd gets the signal; in the foreground; no pid file, which a kill would leave."""
    command = json.loads(only(steps, "CMD"))
    assert command[0] == "twistd"
    assert command[-1] == "foreman"
    assert {"-n", "--pidfile=", "--logger=foreman.logs.stderr_observer"} == set(command[1:-1])
    assert "ENTRYPOINT" not in [word for word, _ in steps]
    assert only(steps, "STOPSIGNAL") == "SIGTERM"


def test_does_not_run_as_root(steps: list[tuple[str, str]]) -> None:
    """By number, which Kubernetes can check, and the same that owns /data; no step comes after it."""
    uid, gid = only(steps, "USER").split(":")
    assert int(uid) == int(gid) > 0
    (made,) = [rest for word, rest in steps if word == "RUN" and "useradd" in rest]
    assert f"--uid {uid} --user-group " in made
    assert "--owner=foreman --group=foreman" in made
    assert made.endswith(" /data")
    assert [word for word, _ in steps[steps.index(("USER", f"{uid}:{gid}")) :]] == [
        "USER",
        "STOPSIGNAL",
        "HEALTHCHECK",
        "CMD",
    ]


def test_keeps_its_database_on_the_volume(steps: list[tuple[str, str]]) -> None:
    """/data is the volume, made and owned before it is one; the port is the default of FOREMAN_ADDR."""
    assert only(steps, "VOLUME") == "/data"
    assert only(steps, "ENV") == "FOREMAN_DB_PATH=/data/foreman.db"
    assert position(steps, "useradd") < steps.index(("VOLUME", "/data"))
    assert only(steps, "EXPOSE") == "8080"


def test_dependencies_have_a_layer_of_their_own(steps: list[tuple[str, str]]) -> None:
    """They are installed before any code is copied, and not again with the code."""
    dependencies = position(steps, "-r requirements.txt")
    code = position(steps, "--no-deps .")
    copied = {rest: number for number, (word, rest) in enumerate(steps) if word == "COPY"}
    assert [source for source, number in copied.items() if number < dependencies] == ["setup.cfg ./"]
    assert dependencies < copied["foreman foreman"] < code
    assert dependencies < copied["twisted twisted"] < code


def test_the_plugin_cache_is_warm(steps: list[tuple[str, str]]) -> None:
    """twistd has listed its plugins, as root: the daemon's user could not write the list."""
    code = position(steps, "--no-deps .")
    assert steps[code][1].endswith("&& twistd --help > /dev/null")
    assert code < position(steps, "10001:10001")


def test_requirements_are_those_of_the_package(
    steps: list[tuple[str, str]], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The line that reads them from setup.cfg finds each one, and no comment."""
    match = re.search(
        r'python -c "([^"]+)" > requirements.txt', steps[position(steps, "-r requirements.txt")][1]
    )
    assert match is not None
    monkeypatch.chdir(ROOT)
    exec(match[1], {})
    found = capsys.readouterr().out.split("\n")
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    assert [line for line in found if line] == parser["options"]["install_requires"].strip().split("\n")
    assert not [line for line in found if "#" in line]
    assert "Twisted[tls] >= 26.10" in found


def test_what_is_copied_is_sent_and_exists(steps: list[tuple[str, str]]) -> None:
    """`.dockerignore` lets through what is copied and nothing else."""
    copied = {name for word, rest in steps if word == "COPY" for name in rest.split()[:-1]}
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if not line.startswith("#")]
    assert lines[0] == "*"
    assert {line.removeprefix("!") for line in lines if line.startswith("!")} == copied
    assert all((ROOT / name).exists() for name in copied)
    assert {"**/__pycache__", "**/dropin.cache"} <= set(lines)


def test_the_package_holds_the_sql() -> None:
    """The image has an installed foreman: setuptools leaves out each file that is not named."""
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    named = parser["options.package_data"]["foreman"].split()
    files = {path.relative_to(ROOT / "foreman") for path in (ROOT / "foreman").rglob("*") if path.is_file()}
    data = {path for path in files if path.suffix not in (".py", ".pyc")}
    packed = {path for path in data if any(path.match(pattern) for pattern in named)}
    assert data
    assert packed == data


def test_the_health_check_is_python_without_a_shell(steps: list[tuple[str, str]]) -> None:
    """The image has no curl; the check gives up before Docker does, and asks no proxy."""
    options, _, command = only(steps, "HEALTHCHECK").partition("CMD ")
    program, flag, code = json.loads(command)
    assert (program, flag) == ("python", "-c")
    ast.parse(code)
    assert "http://127.0.0.1:8080/healthz" in code
    assert "ProxyHandler({})" in code
    limits = [
        re.search(pattern, text)
        for pattern, text in ((r"timeout=(\d+)s", options), (r"timeout=(\d+)\)", code))
    ]
    docker, python = (int(match[1]) for match in limits if match is not None)
    assert python < docker
