"""The child: `python -m foreman.embedded --fd 3 [--models FOLDER]`.

It serves the listening socket that its parent left open as descriptor `--fd`, logs to standard output, and
leaves standard error to llama.cpp. It ends with its parent: its standard input is a pipe from there, and the
end of that pipe ends the process, whatever it is doing.
"""

import faulthandler
import os
import socket
import sys
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from twisted.internet.interfaces import IReadDescriptor
from twisted.logger import ILogObserver, LogEvent, Logger, LogLevel, formatEvent, globalLogBeginner
from twisted.python.failure import Failure
from zope.interface import implementer

from foreman.embedded.engine import Engine
from foreman.embedded.models import find_models
from foreman.embedded.server import EmbeddedServer
from foreman.embedded.slot import Slot

STDIN, STDOUT = 0, 1

log = Logger()


@implementer(ILogObserver)
class LineLog:
    """Writes each event to standard output as lines of `LEVEL text`, which the parent reads back."""

    def __call__(self, event: LogEvent) -> None:
        level: LogLevel = event.get("log_level", LogLevel.info)
        failure = event.get("log_failure")
        trace = failure.getTraceback() if isinstance(failure, Failure) else ""
        for line in f"{formatEvent(event)}\n{trace}".splitlines():
            if line.strip():
                os.write(STDOUT, f"{level.name} {line}\n".encode("utf-8", "replace"))


@implementer(IReadDescriptor)
class ParentWatch:
    """Ends the process when the parent is gone, even by kill -9: the pipe on standard input then ends.

    The engine's thread cannot be interrupted, so nothing less than `os._exit` will do.
    """

    def fileno(self) -> int:
        """The descriptor to watch."""
        return STDIN

    def doRead(self) -> None:
        """Something came, or the end did."""
        if not os.read(STDIN, 1024):
            os._exit(0)

    def connectionLost(self, reason: Failure) -> None:
        """The end came without a byte, which epoll tells here; or the reactor stops, which is an end too."""
        os._exit(0)

    def logPrefix(self) -> str:
        """The name in the reactor's own messages."""
        return "ParentWatch"


def main() -> None:
    """Serve until the parent ends or sends SIGTERM."""
    from twisted.internet import reactor as installed

    # Its stub promises less than every reactor on a POSIX system can do.
    reactor: Any = installed

    parser = ArgumentParser(prog="python -m foreman.embedded")
    parser.add_argument("--fd", type=int, required=True)
    parser.add_argument("--models", type=Path, default=None)
    arguments = parser.parse_args()

    # Ctrl-C in a terminal signals the whole group. It is meant for the parent, which lets requests end first.
    os.setsid()
    globalLogBeginner.beginLoggingTo([LineLog()], redirectStandardIO=False)
    faulthandler.enable(sys.stderr)
    models = find_models(arguments.models)
    # One core is left to foreman and its clients: llama.cpp's threads spin while they wait for each other. On
    # two cores that were busy otherwise, one thread made 45 tokens/s and two made 17; on idle ones 70 and 90.
    engine = Engine(reactor, threads=max(1, (os.cpu_count() or 1) - 1))
    server = EmbeddedServer(reactor, models, engine, Slot(reactor, engine))
    reactor.adoptStreamPort(arguments.fd, socket.AF_INET, server.site())
    os.close(arguments.fd)
    reactor.addReader(ParentWatch())
    engine.start()
    log.info("serving {names}", names=", ".join(models))
    reactor.run()
    # The thread may be in the middle of a generation; a normal exit would wait for it.
    os._exit(0)


if __name__ == "__main__":
    main()
