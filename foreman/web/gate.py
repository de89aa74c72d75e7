"""
What is decided about a request when its head is complete, before a byte of its body is stored.

In Ollama's order: Origin, then Host; then the token, then the body's size.
"""

from collections.abc import Sequence

import msgspec
from attrs import define, frozen
from twisted.web.http_headers import Headers

from foreman.errors import BodyTooLarge, ForemanError, Unauthorized
from foreman.target import routes
from foreman.web.auth import authorized, challenge
from foreman.web.origins import Headers as HeaderList
from foreman.web.origins import Origins, host_allowed, same_origin
from foreman.web.problems import error_answer


@frozen
class Answer:
    """A whole answer of foreman's own."""

    status: int
    headers: HeaderList
    body: bytes = b""

    @classmethod
    def json(cls, status: int, value: object, headers: Sequence[tuple[bytes, bytes]] = ()) -> "Answer":
        """What is true at this moment only, as JSON."""
        given = [(b"Content-Type", b"application/json"), (b"Cache-Control", b"no-store"), *headers]
        return cls(status, given, msgspec.json.encode(value))


@frozen
class Verdict:
    """
    What is to be done with a request: an `answer` ends it, None lets it in.

    `headers` are carried by its answer in either case; `body_limit` is in bytes.
    """

    answer: Answer | None
    headers: HeaderList
    body_limit: int | None = None


@define
class Gate:
    """The rules for all requests. `own_paths` holds the first segments of foreman's own paths.

    The limits of bodies are in bytes; None for jobs is the one of all others.
    """

    _origins: Origins
    _token: str
    _body_limit: int
    _own_paths: frozenset[bytes]
    # Set when the listener is bound to loopback, where a foreign Host means DNS rebinding.
    checks_host: bool = False
    _job_body_limit: int | None = None

    def is_own(self, path: bytes) -> bool:
        """Whether foreman itself answers this path."""
        return _first_segment(path) in self._own_paths

    def body_setting(self, path: bytes) -> str:
        """The name of the setting that limits bodies to this path."""
        return self._body_limit_of(path)[1]

    def _body_limit_of(self, path: bytes) -> tuple[int | None, str]:
        if self.is_own(path) and _first_segment(path) == b"jobs" and self._job_body_limit is not None:
            return self._job_body_limit, "FOREMAN_JOB_BODY_LIMIT"
        limit = self._body_limit if self.is_own(path) or routes.find(path).bounded_body else None
        return limit, "FOREMAN_BODY_LIMIT"

    def judge(self, method: bytes, path: bytes, headers: Headers, length: int | None) -> Verdict:
        """`length` is the body's declared length in bytes, None when it is chunked."""
        own = self.is_own(path)
        host = (headers.getRawHeaders(b"host") or [b""])[0]
        extra: HeaderList = []
        origin = (headers.getRawHeaders(b"origin") or [b""])[0]
        if origin and not same_origin(origin, host):
            if not self._origins.allows(origin.decode("latin-1")):
                return Verdict(Answer(403, []), extra)
            if method == b"OPTIONS":
                return Verdict(Answer(204, self._origins.preflight_headers(origin, path, own)), extra)
            extra = self._origins.answer_headers(origin, own)
        if self.checks_host and not host_allowed(host.decode("latin-1")):
            return Verdict(Answer(403, []), [])
        if path != b"/healthz" and not authorized(headers, self._token):
            extra.append((b"WWW-Authenticate", challenge(headers)))
            return Verdict(self.error(path, Unauthorized()), extra)
        limit, setting = self._body_limit_of(path)
        if limit is not None and length is not None and length > limit:
            return Verdict(self.error(path, BodyTooLarge(limit, setting)), extra)
        return Verdict(None, extra, limit)

    def error(self, path: bytes, error: ForemanError) -> Answer:
        """An error in the dialect of the path."""
        content_type, body = error_answer(path, self.is_own(path), error)
        return Answer(error.status, [(b"Content-Type", content_type)], body)


def _first_segment(path: bytes) -> bytes:
    return path[1:].partition(b"/")[0]
