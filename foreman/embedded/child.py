"""The parent's side of the embedded target: a child process that is started, watched, restarted and stopped.

The parent binds the port and keeps the socket; the child is handed its descriptor. So a child that was killed
comes back on the same port, and connections made meanwhile wait in the socket's backlog.
"""

import os
import socket
import sys
from collections import deque
from pathlib import Path
from typing import cast

from attrs import Factory, define, field
from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.error import ProcessExitedAlready
from twisted.internet.interfaces import IDelayedCall, IProcessTransport, IReactorProcess, IReactorTime
from twisted.internet.protocol import ProcessProtocol
from twisted.logger import InvalidLogLevelError, Logger, LogLevel
from twisted.python.failure import Failure

import foreman

FIRST_BACKOFF_SECONDS = 0.5
LONGEST_BACKOFF_SECONDS = 10.0
# A child that lived this long was well: the next backoff starts from the beginning.
WELL_SECONDS = 30.0

# The child's descriptor of the listening socket.
LISTENING_FD = 3
STDOUT, STDERR = 1, 2

# Lines of the child's standard error that are told when it dies.
LAST_WORDS = 20
LONGEST_LINE_BYTES = 8192


class IReactor(IReactorProcess, IReactorTime):
    """What the embedded target needs of a reactor."""


def bind_embedded() -> socket.socket:
    """A listening socket on a free port of 127.0.0.1, for `EmbeddedTarget`. Call it before any fork."""
    listening = socket.create_server(("127.0.0.1", 0), backlog=128)
    listening.setblocking(False)
    # Should it have the very number that the child is to get, it is not duplicated and must survive the exec.
    listening.set_inheritable(True)
    return listening


@define(eq=False, slots=False)
class EmbeddedTarget(Service):
    """Keeps one child process running that serves the socket.

    Stopping it ends it for good: it closes the socket.
    """

    _reactor: IReactor
    _listening: socket.socket
    _models_folder: Path | None
    _log: Logger
    _stop_seconds: float = 3.0
    """How long SIGTERM may take before SIGKILL."""
    _process: IProcessTransport | None = field(init=False, default=None)
    _started_at: float = field(init=False, default=0.0)
    _backoff: float = field(init=False, default=FIRST_BACKOFF_SECONDS)
    _restart: IDelayedCall | None = field(init=False, default=None)
    _gone: "Deferred[None] | None" = field(init=False, default=None)

    @property
    def url(self) -> str:
        """Where it serves, `http://127.0.0.1:41234`."""
        host, port = self._listening.getsockname()
        return f"http://{host}:{port}"

    @property
    def pid(self) -> int | None:
        """The child's process id, or None while there is none."""
        return None if self._process is None else cast(int | None, self._process.pid)

    def startService(self) -> None:
        """Start the child."""
        super().startService()
        self._spawn()

    def stopService(self) -> "Deferred[None]":
        """End the child: SIGTERM, and SIGKILL after the limit. Fires when it is gone."""
        super().stopService()
        if self._restart is not None:
            self._restart.cancel()
            self._restart = None
        self._gone = Deferred()
        gone = self._gone.addCallback(lambda _: self._listening.close())
        if self._process is None:
            self._gone.callback(None)
        else:
            self._signal("TERM")
            kill = self._reactor.callLater(self._stop_seconds, self._signal, "KILL")
            gone.addCallback(lambda _: kill.cancel() if kill.active() else None)
        return gone

    def child_ended(self, reason: Failure, last_words: list[str]) -> None:
        """The child is gone: start another after a while, unless it was stopped."""
        self._process = None
        if self._gone is not None:
            self._gone.callback(None)
            return
        if self._reactor.seconds() - self._started_at >= WELL_SECONDS:
            self._backoff = FIRST_BACKOFF_SECONDS
        self._log.warn(
            "the embedded target ended: {reason} Starting it again in {seconds} s.",
            reason=reason.getErrorMessage(),
            seconds=self._backoff,
        )
        for line in last_words:
            self._log.warn("embedded: {line}", line=line)
        self._restart = self._reactor.callLater(self._backoff, self._spawn)
        self._backoff = min(self._backoff * 2, LONGEST_BACKOFF_SECONDS)

    def _spawn(self) -> None:
        self._restart = None
        self._started_at = self._reactor.seconds()
        arguments = [sys.executable, "-P", "-m", "foreman.embedded", "--fd", str(LISTENING_FD)]
        if self._models_folder is not None:
            arguments += ["--models", str(self._models_folder.absolute())]
        child = _Child(self, self._log)
        try:
            self._process = self._reactor.spawnProcess(
                child,
                sys.executable,
                arguments,
                env=_environment(),
                childFDs={0: "w", STDOUT: "r", STDERR: "r", LISTENING_FD: self._listening.fileno()},
            )
        except OSError:
            self.child_ended(Failure(), [])
            return
        self._log.info("the embedded target is starting at {url}, pid {pid}", url=self.url, pid=self.pid)

    def _signal(self, name: str) -> None:
        if self._process is not None:
            try:
                self._process.signalProcess(name)
            except ProcessExitedAlready:
                return  # child_ended follows.


@define(eq=False, slots=False)
class _Child(ProcessProtocol):
    """Logs the child's output: its own log at its own level, llama.cpp's noise at debug level."""

    _target: EmbeddedTarget
    _log: Logger
    _partial: dict[int, bytes] = field(init=False, default=Factory(dict))
    _last_words: deque[str] = field(init=False, default=Factory(lambda: deque(maxlen=LAST_WORDS)))

    def childDataReceived(self, childFD: int, data: bytes) -> None:
        *lines, rest = (self._partial.get(childFD, b"") + data).split(b"\n")
        self._partial[childFD] = rest[-LONGEST_LINE_BYTES:]
        for line in lines:
            self._tell(childFD, line[:LONGEST_LINE_BYTES].decode("utf-8", "replace"))

    def processEnded(self, reason: Failure) -> None:
        for descriptor, rest in self._partial.items():
            if rest:
                self._tell(descriptor, rest.decode("utf-8", "replace"))
        self._target.child_ended(reason, list(self._last_words))

    def _tell(self, childFD: int, line: str) -> None:
        if childFD == STDERR:
            self._last_words.append(line)
            self._log.debug("embedded: {line}", line=line)
            return
        name, _, text = line.partition(" ")
        try:
            level = LogLevel.levelWithName(name)
        except InvalidLogLevelError:
            level, text = LogLevel.info, line
        self._log.emit(level, "embedded: {line}", line=text)


def _environment() -> dict[str, str]:
    """The parent's environment without foreman's settings (they hold secrets), and with foreman importable.

    Where the parent found foreman by its working directory, a daemon in another one would not find it again.
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith("FOREMAN_")}
    ours = str(Path(foreman.__path__[0]).resolve().parent)
    inherited = environment.get("PYTHONPATH")
    return environment | {
        "PYTHONPATH": f"{ours}{os.pathsep}{inherited}" if inherited else ours,
        # An abort in llama.cpp is to end the process at once, not to call a debugger first.
        "GGML_NO_BACKTRACE": "1",
    }
