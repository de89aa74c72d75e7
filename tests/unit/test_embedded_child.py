"""The parent's side: restarts with a backoff, the stop, and the child's words in the log."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from attrs import Factory, define
from twisted.internet.error import ProcessDone, ProcessExitedAlready, ProcessTerminated
from twisted.internet.interfaces import IProcessProtocol
from twisted.internet.task import Clock
from twisted.logger import LogEvent, Logger, LogLevel, formatEvent
from twisted.python.failure import Failure

from foreman.embedded.child import EmbeddedTarget, bind_embedded

KILLED = Failure(ProcessTerminated(signal=9))
ENDED = Failure(ProcessDone(0))


@define
class SpawnedProcess:
    """A process in name only."""

    protocol: IProcessProtocol
    arguments: list[str]
    env: dict[str, str]
    childFDs: dict[int, int | str]
    pid: int
    signals: list[str] = Factory(list)
    dead: bool = False

    def signalProcess(self, name: str) -> None:
        if self.dead:
            raise ProcessExitedAlready
        self.signals.append(name)

    def end(self, reason: Failure = KILLED) -> None:
        self.dead = True
        self.protocol.processEnded(reason)


class SpawningClock(Clock):
    """A clock that pretends to start processes."""

    def __init__(self) -> None:
        super().__init__()
        self.spawned: list[SpawnedProcess] = []
        self.failing = False

    def spawnProcess(self, protocol, executable, args, env, childFDs) -> SpawnedProcess:  # type: ignore[no-untyped-def]
        if self.failing:
            raise OSError("Resource temporarily unavailable")
        assert executable == sys.executable
        self.spawned.append(SpawnedProcess(protocol, args, env, childFDs, 1000 + len(self.spawned)))
        return self.spawned[-1]


@define
class Bench:
    clock: SpawningClock
    target: EmbeddedTarget
    events: list[LogEvent]

    def lines(self, level: LogLevel) -> list[str]:
        return [formatEvent(event) for event in self.events if event["log_level"] is level]


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    monkeypatch.setenv("FOREMAN_TOKEN", "secret")
    monkeypatch.setenv("HOME", "/home/somebody")
    events: list[LogEvent] = []
    clock = SpawningClock()
    listening = bind_embedded()
    target = EmbeddedTarget(clock, listening, Path("models"), Logger("test", observer=events.append))
    target.startService()
    yield Bench(clock, target, events)
    listening.close()


def test_the_child_is_executed_with_the_listening_socket(bench: Bench):
    """Descriptor 3 is the socket; standard input is a pipe from the parent."""
    (child,) = bench.clock.spawned
    assert child.childFDs == {0: "w", 1: "r", 2: "r", 3: bench.target._listening.fileno()}
    assert child.arguments == [
        sys.executable, "-P", "-m", "foreman.embedded", "--fd", "3", "--models", str(Path.cwd() / "models"),
    ]  # fmt: skip
    assert bench.target.pid == child.pid
    assert bench.target.url == f"http://127.0.0.1:{bench.target._listening.getsockname()[1]}"


def test_the_parent_never_loads_llama():
    """Its side and its checks import nothing native, whatever else the test run has imported."""
    code = "import sys, foreman.embedded.child, foreman.embedded.models; sys.exit('xllamacpp' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_child_gets_no_secret(bench: Bench):
    """foreman's settings stay with foreman; the rest goes on, and foreman is importable."""
    (child,) = bench.clock.spawned
    assert not [name for name in child.env if name.startswith("FOREMAN_")]
    assert child.env["HOME"] == "/home/somebody"
    root = Path(child.env["PYTHONPATH"].split(":")[0])
    assert (root / "foreman" / "embedded" / "__main__.py").is_file()


def test_a_child_that_dies_is_restarted_with_a_backoff(bench: Bench):
    """Half a second, doubling, at most ten."""
    for seconds in (0.5, 1, 2, 4, 8, 10, 10):
        count = len(bench.clock.spawned)
        bench.clock.spawned[-1].end()
        assert bench.target.pid is None
        bench.clock.advance(seconds - 0.01)
        assert len(bench.clock.spawned) == count
        bench.clock.advance(0.02)
        assert len(bench.clock.spawned) == count + 1
    assert len(bench.lines(LogLevel.warn)) == 7
    assert "signal 9" in bench.lines(LogLevel.warn)[0]


def test_the_backoff_begins_anew_after_a_good_life(bench: Bench):
    """A child that lived 30 s was well."""
    for _ in range(4):
        bench.clock.spawned[-1].end()
        bench.clock.advance(10)
    bench.clock.advance(30)
    count = len(bench.clock.spawned)
    bench.clock.spawned[-1].end()
    bench.clock.advance(0.5)
    assert len(bench.clock.spawned) == count + 1


def test_a_child_that_cannot_be_started_is_tried_again(bench: Bench):
    """The machine may be out of processes for a moment."""
    bench.clock.failing = True
    bench.clock.spawned[-1].end()
    bench.clock.advance(0.5)
    bench.clock.failing = False
    assert bench.target.pid is None
    bench.clock.advance(1)
    assert bench.target.pid is not None
    assert "Resource temporarily unavailable" in bench.lines(LogLevel.warn)[-1]


def test_stop_asks_and_then_waits(bench: Bench):
    """SIGTERM; the Deferred fires when the child is gone, and the socket is closed then."""
    stopped = bench.target.stopService()
    (child,) = bench.clock.spawned
    bench.clock.advance(1)
    assert (child.signals, stopped.called) == (["TERM"], False)
    child.end(ENDED)
    assert stopped.called
    assert bench.target._listening.fileno() == -1
    bench.clock.advance(60)
    assert (child.signals, len(bench.clock.spawned)) == (["TERM"], 1)
    assert bench.clock.getDelayedCalls() == []


def test_stop_kills_what_does_not_go(bench: Bench):
    """SIGKILL after the limit."""
    stopped = bench.target.stopService()
    (child,) = bench.clock.spawned
    bench.clock.advance(3)
    assert (child.signals, stopped.called) == (["TERM", "KILL"], False)
    child.end()
    assert stopped.called


def test_stop_while_the_child_is_down_starts_no_other(bench: Bench):
    """The restart that was planned is given up."""
    bench.clock.spawned[-1].end()
    assert bench.target.stopService().called
    bench.clock.advance(60)
    assert len(bench.clock.spawned) == 1


def test_stop_of_a_child_that_died_this_moment(bench: Bench):
    """Its end is not reported yet, and it takes no signal any more: the Deferred waits for the report."""
    (child,) = bench.clock.spawned
    child.dead = True
    stopped = bench.target.stopService()
    assert not stopped.called
    child.end(ENDED)
    assert stopped.called


def test_the_childs_own_log_keeps_its_level_and_llamas_noise_is_debug(bench: Bench):
    """Lines that arrive in pieces are put together; a line without a level is told all the same."""
    protocol = bench.clock.spawned[-1].protocol
    protocol.childDataReceived(1, b"warn disk is sl")
    protocol.childDataReceived(2, b"llama noise\n")
    protocol.childDataReceived(1, b"ow\nodd line\nerror broken\n")
    assert bench.lines(LogLevel.warn) == ["embedded: disk is slow"]
    assert "embedded: odd line" in bench.lines(LogLevel.info)
    assert bench.lines(LogLevel.error) == ["embedded: broken"]
    assert bench.lines(LogLevel.debug) == ["embedded: llama noise"]


def test_a_dying_childs_last_words_are_told(bench: Bench):
    """An abort in native code or a failed import speaks on standard error, which is debug level otherwise."""
    child = bench.clock.spawned[-1]
    child.protocol.childDataReceived(2, b"".join(b"line %d\n" % number for number in range(40)))
    child.protocol.childDataReceived(2, b"no module named x")
    child.end()
    told = bench.lines(LogLevel.warn)[1:]
    assert len(told) == 20
    assert told[-1] == "embedded: no module named x"
