"""The system's resolver, in threads of its own."""

import socket
from collections.abc import Callable, Sequence
from functools import partial
from threading import Thread
from typing import Any

from attrs import define, field
from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThreadPool
from twisted.python.failure import Failure
from twisted.python.threadpool import ThreadPool

InThread = Callable[[Callable[[str], Sequence[str]], str], "Deferred[Sequence[str]]"]
"""Calls a function in a thread."""


class _Daemon(Thread):
    """A thread that nobody waits for at the end."""

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, daemon=True, **named)


def look_up_threads(reactor: Any, most: int) -> InThread:
    """
    Threads of their own for names.

    A look-up cannot be stopped: with dead name servers it holds its thread for half a minute. In the
    reactor's threads the target's name would wait for it, and so would the end of the process.
    """
    pool = ThreadPool(0, most, "names")
    pool.threadFactory = _Daemon
    pool.start()
    return partial(deferToThreadPool, reactor, pool)


def addresses_of(host: str) -> Sequence[str]:
    """The addresses in the system's order. Raises OSError, or UnicodeError for what no name can be."""
    found = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


@define(eq=False)
class Resolver:
    """The system's resolver. Whoever asks for a name that is being looked up waits for the same answer."""

    _in_thread: InThread
    _waiting: "dict[str, list[Deferred[Sequence[str]]]]" = field(factory=dict, init=False)

    def __call__(self, host: str) -> "Deferred[Sequence[str]]":
        """The addresses in the system's order. Fails as `addresses_of` does."""
        answer: Deferred[Sequence[str]] = Deferred()
        if host in self._waiting:
            self._waiting[host].append(answer)
        else:
            self._waiting[host] = [answer]
            self._in_thread(addresses_of, host).addBoth(self._found, host)
        return answer

    def _found(self, found: "Sequence[str] | Failure", host: str) -> None:
        for answer in self._waiting.pop(host):
            if not answer.called:
                answer.callback(found) if not isinstance(found, Failure) else answer.errback(found)
