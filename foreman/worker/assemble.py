"""A stream of Ollama's lines becomes a job's artifacts, in bounded memory."""

import base64
import binascii
from collections.abc import Iterator, Sequence
from typing import Protocol

import msgspec
from attrs import define, field, frozen

from foreman.errors import BadResponse, IncompleteResponse, TargetSaid
from foreman.jobs.model import RESULT
from foreman.worker.composing import (
    ABSENT,
    ARRAYS,
    CHAT_ORDER,
    GENERATE_ORDER,
    MESSAGE_ORDER,
    OBJECTS,
    Fields,
    decode,
    error_text,
    is_null,
    plain,
    write_array,
    write_object,
    write_string,
)
from foreman.worker.outputs import Draft, Spooled

LINE_LIMIT_BYTES = 32 * 1024 * 1024
"""The longest line that is read: an image is one line of some MiB."""

JSON = "application/json"
TEXT = "text/plain; charset=utf-8"


@frozen
class Facts:
    """What the answer's last line says about the work. Durations are in nanoseconds."""

    load_duration: int | None = None
    prompt_eval_count: int | None = None
    eval_count: int | None = None
    eval_duration: int | None = None


class Assembly(Protocol):
    """Takes an answer as it comes, and gives its artifacts."""

    phase: str
    """What the run does, for people: `starting`, `thinking`, `generating`, `embedding`."""

    tokens: int
    """How many pieces of text came so far."""

    complete: bool
    """The answer's last line came."""

    facts: Facts

    def receive(self, data: bytes) -> None:
        """The next bytes. Raises BadResponse or TargetSaid."""

    def end(self) -> None:
        """No more comes. Raises IncompleteResponse when the last line is missing, or as `receive` does."""

    def drafts(self) -> Sequence[Draft]:
        """The artifacts; of an answer that is not complete, those that hold something."""

    def close(self) -> None:
        """Forget everything."""


@frozen
class _Message:
    content: str | None = None
    thinking: str | None = None
    tool_calls: msgspec.Raw = ABSENT
    images: list[str] | None = None


@frozen
class Line:
    """What is read of one line."""

    message: _Message | None = None
    response: str | None = None
    thinking: str | None = None
    tool_calls: msgspec.Raw = ABSENT
    logprobs: msgspec.Raw = ABSENT
    image: str | None = None
    done: bool = False
    error: msgspec.Raw = ABSENT
    load_duration: int | None = None
    prompt_eval_count: int | None = None
    eval_count: int | None = None
    eval_duration: int | None = None


LINES = msgspec.json.Decoder(Line)


@define(eq=False)
class StreamAssembly:
    """Of `/api/chat` and `/api/generate`.

    Ollama itself puts a `stream: false` answer together in the same way: texts, thoughts, tool calls and
    logprobs are joined, everything else is that of the last line.

    :ivar _chat: the text stands in `message`.
    :ivar _formatted: the request had a `format`, so its text is JSON.
    :ivar _transcript: the stream itself is kept, too.
    """

    _folder: str
    _chat: bool
    _formatted: bool
    _transcript: bool
    phase: str = field(default="starting", init=False)
    tokens: int = field(default=0, init=False)
    complete: bool = field(default=False, init=False)
    facts: Facts = field(factory=Facts, init=False)
    _parts: dict[str, Spooled] = field(factory=dict, init=False)
    _images: list[Spooled] = field(factory=list, init=False)
    _rest: list[bytes] = field(factory=list, init=False)  # of a line whose end has not come
    _rest_bytes: int = field(default=0, init=False)
    _last: dict[str, msgspec.Raw] = field(factory=dict, init=False)

    def receive(self, data: bytes) -> None:
        """Take the next bytes, however the lines were cut."""
        if self._transcript:
            self._part("transcript").write(data)
        start = 0
        while (end := data.find(b"\n", start)) >= 0:
            self._take(b"".join([*self._rest, data[start:end]]))
            self._rest.clear()
            self._rest_bytes = 0
            start = end + 1
        if start < len(data):
            self._rest.append(data[start:])
            self._rest_bytes += len(data) - start
            if self._rest_bytes > LINE_LIMIT_BYTES:
                raise BadResponse(f"a line of the target's answer is longer than {LINE_LIMIT_BYTES} bytes")

    def end(self) -> None:
        """Take what is left as a line: an answer that is no stream ends without a newline."""
        rest, self._rest = b"".join(self._rest), []
        try:
            self._take(rest)
        except BadResponse:
            raise IncompleteResponse() from None  # a line that was cut
        if not self.complete:
            raise IncompleteResponse()

    def drafts(self) -> list[Draft]:
        """What there is now."""
        text = ("content.json", JSON) if self._formatted else ("content.txt", TEXT)
        drafts = []
        if self.complete:
            self._part("content")
            size = 1024 + sum(part.size for part in self._parts.values())
            drafts.append(Draft(RESULT, JSON, self._response, size))
        kinds = {"content": text, "thinking": ("thinking.txt", TEXT)}
        kinds["transcript"] = ("transcript.ndjson", "application/x-ndjson")
        for kind, (name, content_type) in kinds.items():
            part = self._parts.get(kind)
            if part is not None:
                drafts.append(Draft(name, content_type, part.chunks, part.size))
        if calls := self._parts.get("tool_calls"):
            drafts.append(Draft("tool_calls.json", JSON, lambda: write_array(calls), calls.size + 2))
        for number, image in enumerate(self._images):
            drafts.append(Draft(f"image-{number}.png", "image/png", image.chunks, image.size))
        return drafts

    def close(self) -> None:
        """Close the files."""
        for part in (*self._parts.values(), *self._images):
            part.close()

    def _take(self, text: bytes) -> None:
        if self.complete or not text.strip():
            return
        line = decode(LINES, text)
        if not is_null(line.error):
            raise TargetSaid(error_text(line.error))
        message = line.message or _Message()
        content, thinking = (
            (message.content, message.thinking) if self._chat else (line.response, line.thinking)
        )
        self._add("thinking", thinking)
        self._add("content", content)
        self._add_all("tool_calls", message.tool_calls if self._chat else line.tool_calls)
        self._add_all("logprobs", line.logprobs)
        for image in [*(message.images or ()), *([line.image] if line.image else ())]:
            self._add_image(image)
        if content or thinking:
            self.phase = "generating" if content else "thinking"
            self.tokens += 1
        if line.done:
            self.complete = True
            self._last = decode(OBJECTS, text)
            self.facts = Facts(
                line.load_duration, line.prompt_eval_count, line.eval_count, line.eval_duration
            )

    def _part(self, kind: str) -> Spooled:
        if kind not in self._parts:
            self._parts[kind] = Spooled(self._folder)
        return self._parts[kind]

    def _add(self, kind: str, text: str | None) -> None:
        if text:
            self._part(kind).write(text.encode())

    def _add_all(self, kind: str, array: msgspec.Raw) -> None:
        """Join arrays: what stands between their brackets."""
        for item in () if is_null(array) else decode(ARRAYS, array):
            part = self._part(kind)
            part.write(b"," + bytes(item) if part.size else bytes(item))

    def _add_image(self, text: str) -> None:
        try:
            data = base64.b64decode(text, validate=True)
        except (binascii.Error, ValueError) as error:
            raise BadResponse("an image of the target's answer is not base64") from error
        image = Spooled(self._folder)
        self._images.append(image)
        image.write(data)

    def _response(self) -> Iterator[bytes]:
        """The object that `stream: false` would have returned."""
        fields: Fields = plain(self._last)
        logprobs = self._parts.get("logprobs")
        if logprobs is not None:
            fields["logprobs"] = lambda: write_array(logprobs)
        if self._chat:
            raw = self._last.get("message", ABSENT)
            message = plain({} if is_null(raw) else decode(OBJECTS, raw))
            message.setdefault("role", lambda: (b'"assistant"',))
            self._join(message, "content")
            fields["message"] = lambda: write_object(message, MESSAGE_ORDER)
            return write_object(fields, CHAT_ORDER)
        self._join(fields, "response")
        return write_object(fields, GENERATE_ORDER)

    def _join(self, fields: Fields, text: str) -> None:
        """Put the joined parts into the place of those of the last line."""
        content, thinking = self._part("content"), self._parts.get("thinking")
        fields[text] = lambda: write_string(content)
        fields.pop("thinking", None)
        if thinking is not None:
            fields["thinking"] = lambda: write_string(thinking)
        calls = self._parts.get("tool_calls")
        if calls is not None:
            fields["tool_calls"] = lambda: write_array(calls)
