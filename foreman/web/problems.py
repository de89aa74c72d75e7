"""Errors on foreman's own paths: RFC 9457 ``application/problem+json`` with a stable ``code``."""

import json
from collections.abc import Mapping
from http import HTTPStatus

from foreman.errors import ForemanError
from foreman.target import dialects

PROBLEM_JSON = b"application/problem+json"


def problem(status: int, code: str, detail: str, members: Mapping[str, object] | None = None) -> bytes:
    """The body of one problem; `members` are further ones of its own."""
    title = HTTPStatus(status).phrase
    own = {"type": "about:blank", "title": title, "status": status, "code": code, "detail": detail}
    return json.dumps({**own, **(members or {})}, separators=(",", ":")).encode()


def error_answer(path: bytes, own: bool, error: ForemanError) -> tuple[bytes, bytes]:
    """Content type and body of an error in the dialect of its path."""
    if own:
        return PROBLEM_JSON, problem(error.status, error.code, str(error), error.members)
    dialect = dialects.of_path(path)
    content_type = b"application/json"
    if dialect is dialects.Dialect.OLLAMA:
        content_type += b"; charset=utf-8"
    return content_type, dialects.error_body(dialect, error.status, error.code, str(error))
