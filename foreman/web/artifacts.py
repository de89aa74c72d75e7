"""Raw artifacts: whole or in part, piece by piece from the store, at the pace of the client."""

import re
from enum import Enum

from attrs import define, field, frozen
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IPushProducer
from twisted.logger import Logger
from twisted.web.http import Request
from zope.interface import implementer

from foreman.errors import ArtifactNotFound, ForemanError, RangeNotSatisfiable
from foreman.jobs.interface import JobStore
from foreman.jobs.model import PIECE_BYTES, Artifact
from foreman.web.jobs import found, ulid

_ONE_RANGE = re.compile(r"bytes=[ \t]*(\d*)-(\d*)[ \t]*", re.ASCII | re.IGNORECASE)
_MOST_DIGITS = 18


@frozen
class Part:
    """The bytes from `start` up to `end`, which is not in it."""

    start: int
    end: int


class Range(Enum):
    """What a ``Range`` may be beside a `Part`."""

    WHOLE = "all of it: there is none, or one that is not understood"
    UNSATISFIABLE = "nothing of it is there"


def choose(header: str | None, size: int) -> Part | Range:
    """
    The part that ``Range: bytes=…`` asks for (RFC 9110 §14).

    Several ranges in one request are answered with the whole, as the RFC allows.
    """
    match = _ONE_RANGE.fullmatch(header or "")
    if match is None or max(map(len, match.groups())) > _MOST_DIGITS:
        return Range.WHOLE
    first, last = match.groups()
    if not first:
        if not last:
            return Range.WHOLE
        start = max(0, size - int(last))
        return Part(start, size) if start < size else Range.UNSATISFIABLE
    if last and int(last) < int(first):
        return Range.WHOLE
    start, end = int(first), min(size, int(last) + 1 if last else size)
    return Part(start, end) if start < size else Range.UNSATISFIABLE


def names(header: str | None, etag: str) -> bool:
    """Whether ``If-None-Match`` names this entity tag, or any; compared weakly (RFC 9110 §13.1.2)."""
    if header is None:
        return False
    tags = [tag.strip() for tag in header.split(",")]
    return "*" in tags or any(tag.removeprefix("W/") == etag for tag in tags)


@define(eq=False)
class Artifacts:
    """Serves them. In memory are one piece of each download, and what the client's socket holds."""

    _store: JobStore
    _log = Logger()

    async def serve(self, request: Request, job_id: str, name: str) -> None:
        """
        Write the head and the body; the caller ends the request.

        Raises JobNotFound, JobGone, ArtifactNotFound or RangeNotSatisfiable before anything is written.
        """
        key = ulid(job_id)
        artifact = await self._store.artifact(key, name)
        if artifact is None:
            raise ArtifactNotFound(found(job_id, await self._store.get(key)).job_id, name)
        etag = f'"{artifact.sha256}"'
        headers = request.responseHeaders
        headers.removeHeader(b"Server")
        headers.setRawHeaders(b"ETag", [etag.encode()])
        # The same name may hold something else after a retry.
        headers.setRawHeaders(b"Cache-Control", [b"no-cache"])
        headers.setRawHeaders(b"Accept-Ranges", [b"bytes"])
        if names(_header(request, b"if-none-match"), etag):
            request.setResponseCode(304)
            return
        headers.setRawHeaders(b"X-Content-Type-Options", [b"nosniff"])
        wanted: Part | Range = Range.WHOLE
        if _header(request, b"if-range") in (None, etag):
            wanted = choose(_header(request, b"range"), artifact.size)
        if wanted is Range.UNSATISFIABLE:
            headers.setRawHeaders(b"Content-Range", [f"bytes */{artifact.size}".encode()])
            raise RangeNotSatisfiable(artifact.size)
        headers.setRawHeaders(b"Content-Type", [artifact.content_type.encode()])
        headers.setRawHeaders(b"Content-Disposition", [f'inline; filename="{artifact.name}"'.encode()])
        part = wanted if isinstance(wanted, Part) else Part(0, artifact.size)
        if isinstance(wanted, Part):
            request.setResponseCode(206)
            span = f"bytes {part.start}-{part.end - 1}/{artifact.size}"
            headers.setRawHeaders(b"Content-Range", [span.encode()])
        headers.setRawHeaders(b"Content-Length", [b"%d" % (part.end - part.start)])
        if request.method != b"HEAD":
            await self._send(request, key, artifact, part)

    async def _send(self, request: Request, job_id: str, artifact: Artifact, part: Part) -> None:
        pace = _Pace()
        request.registerProducer(pace, True)
        try:
            for number in range(part.start // PIECE_BYTES, -(-part.end // PIECE_BYTES)):
                await pace.ready()
                piece = await self._store.piece(job_id, artifact.name, number)
                # Asked after the piece was read: it is of this artifact then, and not of a later run's.
                if piece is None or await self._store.artifact(job_id, artifact.name) != artifact:
                    _cut(request)
                    return
                offset = number * PIECE_BYTES
                request.write(piece[max(0, part.start - offset) : part.end - offset])
        except ForemanError as error:
            # The head is sent: nothing can be said to the client any more.
            self._log.warn("an artifact of job {id} breaks off: {why}", id=job_id, why=str(error))
            _cut(request)
        finally:
            # None: the client has left.
            if request.channel is not None:
                request.unregisterProducer()


@implementer(IPushProducer)
@define(eq=False)
class _Pace:
    """Whether the client takes more now."""

    _paused: bool = False
    _waiting: "Deferred[None] | None" = field(default=None, init=False)

    def ready(self) -> "Deferred[None]":
        """Fires when the client takes more; the route is cancelled when it leaves."""
        ready: Deferred[None] = Deferred()
        if self._paused:
            self._waiting = ready
        else:
            ready.callback(None)
        return ready

    def pauseProducing(self) -> None:
        self._paused = True

    def resumeProducing(self) -> None:
        self._paused = False
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            waiting.callback(None)

    def stopProducing(self) -> None:
        """The connection is gone: the route is cancelled by that."""


def _cut(request: Request) -> None:
    """Close before the end: the length that was promised is not reached, so the client notices."""
    if request.channel is not None:
        request.channel.loseConnection()


def _header(request: Request, name: bytes) -> str | None:
    values = request.requestHeaders.getRawHeaders(name)
    return ", ".join(value.decode("latin-1") for value in values) if values else None
