"""foreman's own paths, on Klein."""

import json
from typing import cast

from klein import Klein
from klein.resource import KleinResource
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.iweb import IRequest
from werkzeug.exceptions import HTTPException

from foreman.web.health import Health
from foreman.web.problems import PROBLEM_JSON, problem


class App:
    """The routes that foreman answers itself."""

    app = Klein()
    # The first segments of its paths: what the gate calls foreman's own.
    own_paths = frozenset({b"healthz"})
    _log = Logger()

    def __init__(self, health: Health) -> None:
        self._health = health

    def resource(self) -> KleinResource:
        """The tree for the listener."""
        return self.app.resource()

    @app.route("/healthz", methods=["GET", "HEAD"])
    def healthz(self, request: IRequest) -> bytes:
        """Always 200 while the daemon serves; `degraded` says whether all is well."""
        request.setHeader(b"Cache-Control", b"no-store")
        body = json.dumps(self._health.report(), separators=(",", ":")).encode()
        return _answer(request, 200, b"application/json", body)

    @app.handle_errors(HTTPException)
    def http_error(self, request: IRequest, failure: Failure) -> bytes:
        """No such path, or no such method."""
        error = cast(HTTPException, failure.value)
        status = error.code or 500
        allowed = getattr(error, "valid_methods", None)
        if allowed:
            request.setHeader(b"Allow", ", ".join(sorted(allowed)).encode())
        code = {404: "not_found", 405: "method_not_allowed"}.get(status, "http_error")
        path, method = request.path.decode("latin-1"), request.method.decode("latin-1")
        detail = f"foreman has no {path}" if status == 404 else f"{path} does not take {method}"
        return _answer(request, status, PROBLEM_JSON, problem(status, code, detail))

    @app.handle_errors(Exception)
    def unexpected(self, request: IRequest, failure: Failure) -> bytes:
        """A fault of foreman's own: the log has the traceback, the caller a code."""
        self._log.failure("a request to {path} failed inside foreman", failure, path=request.path)
        body = problem(500, "internal_error", "something went wrong inside foreman; its log says what")
        return _answer(request, 500, PROBLEM_JSON, body)


def _answer(request: IRequest, status: int, content_type: bytes, body: bytes) -> bytes:
    request.setResponseCode(status)
    request.setHeader(b"Content-Type", content_type)
    request.setHeader(b"Content-Length", b"%d" % len(body))
    # twisted.web's own; the target's answers have none either.
    request.responseHeaders.removeHeader(b"Server")
    return body
