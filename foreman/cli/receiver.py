"""A receiver of webhooks that checks their signatures, and says what arrives."""

import json
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

from attrs import define, field
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Request

from foreman.webhooks.signature import Verifier, WrongSignature

_SIGNATURES = ("webhook-signature", "x-foreman-signature")
_REMEMBERED = 10_000
_SHOWN_BYTES = 200


@define(eq=False, slots=False)
class Receiver(Resource):
    """
    Takes a POST to any path, and calls `say` with a line about it, and with its JSON.

    Without a verifier, signatures are not checked; with one, what is not signed is refused with 401, as what
    is signed wrongly. The first `failures_left` that are not refused get 500 all the same. Each answer waits
    for `delay` seconds. `wall_clock` gives epoch seconds.
    """

    isLeaf = True  # noqa: N815

    _clock: IReactorTime
    _verifier: Verifier | None
    _wall_clock: Callable[[], float]
    _say: Callable[[str], None]
    _failures_left: int = 0
    _delay: float = 0.0
    _shows_json: bool = True
    _seen: dict[str, None] = field(factory=dict, init=False)  # ids, oldest first
    _received: int = field(default=0, init=False)
    _refused: int = field(default=0, init=False)
    _log = Logger()

    def __attrs_pre_init__(self) -> None:
        super().__init__()

    @property
    def summary(self) -> str:
        """How much has arrived."""
        return (
            f"{self._received} received, {self._refused} of them refused, {len(self._seen)} different events"
        )

    def render_POST(self, request: Request) -> int:
        """Take one webhook."""
        taking = Deferred.fromCoroutine(self._take(request))
        request.notifyFinish().addErrback(lambda _: taking.cancel())
        taking.addErrback(_left)
        taking.addErrback(lambda failure: self._log.failure("the receiver failed", failure))
        return NOT_DONE_YET

    async def _take(self, request: Request) -> None:
        headers = {
            name.decode("latin-1").lower(): values[-1].decode("latin-1")
            for name, values in request.requestHeaders.getAllRawHeaders()
        }
        body = request.content.read() if request.content is not None else b""
        self._received += 1
        wrong, word = self._judge(headers, body)
        status = 204
        if wrong:
            self._refused += 1
            status = 401
        else:
            word += self._remember(headers)
            if self._failures_left > 0:
                self._failures_left -= 1
                status, word = 500, f"{word}, failing as asked"
        self._tell(headers, body, word, status)
        if self._delay:
            await deferLater(self._clock, self._delay)
        request.setResponseCode(status)
        if status != 204:
            request.setHeader(b"content-type", b"text/plain; charset=utf-8")
            request.write(f"{word}\n".encode())
        request.finish()

    def _judge(self, headers: Mapping[str, str], body: bytes) -> tuple[bool, str]:
        """Whether it is refused, and what its signatures are."""
        signed = any(headers.get(name) for name in _SIGNATURES)
        if self._verifier is None:
            return False, "signature not checked" if signed else "unsigned"
        if not signed:
            return True, "UNSIGNED"
        try:
            self._verifier.verify(headers, body, self._wall_clock())
        except WrongSignature as why:
            return True, f"WRONG signature: {why}"
        return False, "verified"

    def _remember(self, headers: Mapping[str, str]) -> str:
        event_id = headers.get("webhook-id", "")
        again = event_id in self._seen
        if event_id:
            self._seen[event_id] = None
        if len(self._seen) > _REMEMBERED:
            del self._seen[next(iter(self._seen))]
        return ", seen before" if again else ""

    def _tell(self, headers: Mapping[str, str], body: bytes, word: str, status: int) -> None:
        try:
            event = json.loads(body)
        except (ValueError, RecursionError):
            event = None
        whole = _object(event)
        data = _object(whole.get("data"))
        line = "  ".join(
            (
                f"{datetime.fromtimestamp(self._wall_clock()):%H:%M:%S}",
                f"{whole.get('type') or headers.get('x-foreman-event') or '-'!s:<16}",
                f"job {data.get('job_id') or '-'}",
                f"sequence {data.get('sequence') or '-'}",
                f"attempt {headers.get('x-foreman-attempt', '-')}",
                f"{word}, answered {status}",
            )
        )
        self._say(visible(line))
        if self._shows_json:
            shown = f"not JSON: {body[:_SHOWN_BYTES]!r}" if event is None else _indented(event)
            self._say(shown)


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _indented(event: Any) -> str:
    lines = json.dumps(event, indent=2, ensure_ascii=False).split("\n")
    return "\n".join(f"    {visible(line)}" for line in lines)


def visible(text: str) -> str:
    """Without what a terminal would obey: anybody may have sent it."""
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape", "replace").decode("ascii")
        for letter in text
    )


def _left(failure: Failure) -> None:
    """The sender did not wait for its answer."""
    failure.trap(CancelledError)
