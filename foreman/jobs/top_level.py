"""The top level of a JSON object, as spans of its bytes: so a field can be taken out, and the rest stays."""

import json
import re
from collections.abc import Container, Mapping
from typing import Any, NoReturn

import msgspec
from attrs import define, frozen

from foreman.errors import NotAnObject, NotJson

MOST_FIELDS = 10_000
_RAW_OBJECT = msgspec.json.Decoder(dict[str, msgspec.Raw])
# The standard library's scanner holds the reactor for about 10 ms a MiB; what needs it is rarely big.
_TOLERANT_LIMIT_BYTES = 8 << 20
_SPACE = re.compile(rb"[ \t\r\n]*+")
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)
_BARE = re.compile(rb'[^\[{"][^,}\] \t\r\n]*+')  # a number, true, false, null


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON")


# Latin-1 makes each byte one character: the places found are those of the bytes, and what is not UTF-8,
# which Go reads too, stands inside strings only.
_SCANNER = json.JSONDecoder(parse_int=str, parse_float=str, parse_constant=_refuse)


@frozen
class Member:
    """One field: its key, and where the key begins, where the value begins, and where it ends."""

    key: str
    start: int
    value: int
    end: int


@frozen
class TopLevel:
    """An object, which begins at `start` of `body` and ends at `end`."""

    body: bytes
    start: int
    end: int
    members: tuple[Member, ...]

    def last(self, name: str) -> bytes | None:
        """
        The value of a field, None when it is not there or null.

        As Go's decoder, Ollama's, reads it: keys match in any case, the last one wins, and null changes
        nothing [tried on v0.24].
        """
        for member in reversed(self.members):
            if fold(member.key) == name:
                value = self.body[member.value : member.end]
                if value != b"null":
                    return value
        return None

    def without(self, names: Container[str]) -> bytes:
        """The object less the fields of these names, in any case; all other bytes as they were."""
        kept = [member for member in self.members if fold(member.key) not in names]
        if len(kept) == len(self.members):
            return self.body[self.start : self.end]
        following = {
            member.start: after.start for member, after in zip(self.members, self.members[1:], strict=False)
        }
        pieces = [self.body[self.start : self.members[0].start]]
        for member in kept:
            # A field brings along the comma that follows it, but the last one.
            until = member.end if member is kept[-1] else following[member.start]
            pieces.append(self.body[member.start : until])
        pieces.append(self.body[self.members[-1].end : self.end])
        return b"".join(pieces)


def read(body: bytes) -> TopLevel:
    """
    The fields of an object. What follows it is passed over, as Go's decoder does.

    Raises NotJson or NotAnObject.
    """
    try:
        try:
            values = _RAW_OBJECT.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError) as why:
            # What msgspec refuses and Ollama accepts: bytes after the object, lone surrogates.
            return _Walk(body, {}, _checked(body, why)).object()
        return _Walk(body, values).object()
    except RecursionError:
        raise NotJson("it is nested too deeply") from None


def fold(key: str) -> str:
    """Go's folding of names: case, and the long s (the Kelvin sign is lower-cased to k by str.lower)."""
    return key.lower().replace("ſ", "s")


def decode(value: bytes) -> Any:
    """A value as Python has it, without lone surrogates. Raises ValueError or RecursionError."""
    return _cleaned(json.loads(value.decode("utf-8", "replace"), parse_constant=_refuse))


def _cleaned(value: Any) -> Any:
    """A lone surrogate is U+FFFD to Go; and no database, log or answer could take it."""
    match value:
        case str():
            return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        case dict():
            return {_cleaned(key): _cleaned(item) for key, item in value.items()}
        case list():
            return [_cleaned(item) for item in value]
        case _:
            return value


def _checked(body: bytes, why: Exception) -> str:
    """A body that msgspec refused because of `why`, in latin-1: it is JSON all the same, and an object."""
    if len(body) > _TOLERANT_LIMIT_BYTES:
        raise NotAnObject() if isinstance(why, msgspec.ValidationError) else NotJson(str(why))
    text = body.decode("latin-1")
    try:
        value, _ = _SCANNER.raw_decode(text, _skip_space(body, 0))
    except ValueError as where:
        raise NotJson(str(where)) from None
    if not isinstance(value, dict):
        raise NotAnObject()
    return text


def _skip_space(body: bytes, at: int) -> int:
    match = _SPACE.match(body, at)
    return at if match is None else match.end()


@define
class _Walk:
    """A walk over the top level of a body that is known to be JSON.

    `values` are its values as msgspec found them, of two equal keys the last one; `text` is the body in
    latin-1, once somebody has made it.
    """

    body: bytes
    values: Mapping[str, msgspec.Raw]
    text: str | None = None

    def object(self) -> TopLevel:
        body = self.body
        start = _skip_space(body, 0)
        at = _skip_space(body, start + 1)
        members: list[Member] = []
        while body[at : at + 1] != b"}":
            if len(members) == MOST_FIELDS:
                raise NotJson(f"its object has more than {MOST_FIELDS} fields")
            member = self.member(at)
            members.append(member)
            at = _skip_space(body, member.end)
            if body[at : at + 1] == b",":
                at = _skip_space(body, at + 1)
        return TopLevel(body, start, at + 1, tuple(members))

    def member(self, start: int) -> Member:
        match = _STRING.match(self.body, start)
        assert match is not None  # a key
        key: str = json.loads(match[0].decode("utf-8", "replace"))
        value = _skip_space(self.body, _skip_space(self.body, match.end()) + 1)
        return Member(key, start, value, self.end_of(key, value))

    def end_of(self, key: str, at: int) -> int:
        found = self.values.get(key)
        if found is not None:
            # A jump over megabytes of images. Of a key that comes twice, this may be the other value.
            view = memoryview(found)
            end = at + len(view)
            if self.body.startswith(view, at) and self.body[_skip_space(self.body, end)] in b",}":
                return end
        for simple in (_STRING, _BARE):
            match = simple.match(self.body, at)
            if match is not None:
                return match.end()
        if self.text is None and len(self.body) > _TOLERANT_LIMIT_BYTES:
            raise NotJson(f"{key!r} comes twice")
        if self.text is None:
            self.text = self.body.decode("latin-1")
        _, end = _SCANNER.raw_decode(self.text, at)
        return end
