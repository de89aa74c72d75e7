"""
A sign of life for a client that waits for a stream: its head, and then now and then a byte.

Clients on Node give up after 300 s without a head (undici), and gateways after 60 to 100 s of silence. The
head comes late, because once it is out an answer has no status of its own any more.
"""

from attrs import define, field
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.web.http import Request, datetimeToString

from foreman.errors import ForemanError
from foreman.target.caller import break_off
from foreman.target.dialects import Dialect, idle_words, last_words, stream_type

BEAT_SECONDS = 15.0


@define(eq=False)
class Heartbeat:
    """
    The signs of life on one request: a head after `after` seconds (0: never), and a beat every 15 s.

    `begun` is whether the head is out: then the answer is a stream with status 200, whatever comes.
    """

    _clock: IReactorTime
    _request: Request
    _dialect: Dialect
    _after: float
    begun: bool = field(default=False, init=False)
    _timer: IDelayedCall | None = field(default=None, init=False)

    @property
    def content_type(self) -> bytes:
        """What the head says, or would say, of the body."""
        return stream_type(self._dialect)

    def start(self) -> None:
        """The client begins to wait."""
        if self._after:
            self._timer = self._clock.callLater(self._after, self._begin)

    def stop(self) -> None:
        """No head and no beat from now on. Called again it does nothing."""
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()

    def end(self, error: ForemanError) -> None:
        """Say `error` as the last words of the stream, and close the connection without the stream's end."""
        self.stop()
        words = last_words(
            self._dialect, self.content_type, error.status, error.code, str(error), after_newline=True
        )
        break_off(self._request, words)

    def _begin(self) -> None:
        self.begun = True
        request, headers = self._request, self._request.responseHeaders
        request.setResponseCode(200)
        headers.setRawHeaders(b"Content-Type", [self.content_type])
        headers.setRawHeaders(b"Date", [datetimeToString()])
        # As the relay does it with the streams of the target.
        headers.setRawHeaders(b"X-Accel-Buffering", [b"no"])
        request.write(b"")
        self._timer = self._clock.callLater(BEAT_SECONDS, self._beat)

    def _beat(self) -> None:
        self._request.write(idle_words(self._dialect))
        self._timer = self._clock.callLater(BEAT_SECONDS, self._beat)
