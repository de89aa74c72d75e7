"""foreman's own paths, on Klein."""

import json
from typing import Any, cast

from klein import Klein
from klein.resource import KleinResource
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.iweb import IRequest
from twisted.web.server import Request
from werkzeug.exceptions import HTTPException

from foreman.errors import ForemanError
from foreman.web.artifacts import Artifacts
from foreman.web.deliveries import Deliveries
from foreman.web.gate import Answer
from foreman.web.health import Health
from foreman.web.jobs import Jobs
from foreman.web.pause import Pausing
from foreman.web.problems import PROBLEM_JSON, problem
from foreman.web.queue import QueueReport


class App:
    """The routes that foreman answers itself."""

    app = Klein()
    # Else werkzeug answers `/jobs//x` with a redirection.
    app.url_map.merge_slashes = False
    # The first segments of its paths: what the gate calls foreman's own.
    own_paths = frozenset({b"healthz", b"jobs", b"queue"})
    _log = Logger()

    def __init__(
        self,
        health: Health,
        jobs: Jobs,
        artifacts: Artifacts,
        deliveries: Deliveries,
        pausing: Pausing,
        queue: QueueReport,
    ) -> None:
        self._health = health
        self._jobs = jobs
        self._artifacts = artifacts
        self._deliveries = deliveries
        self._pausing = pausing
        self._queue = queue

    def resource(self) -> KleinResource:
        """The tree for the listener."""
        return _Routes(self.app)

    @app.route("/healthz", methods=["GET", "HEAD"])
    def healthz(self, request: Request) -> bytes:
        """Always 200 while the daemon serves; `degraded` says whether all is well."""
        request.setHeader(b"Cache-Control", b"no-store")
        body = json.dumps(self._health.report(), separators=(",", ":")).encode()
        return _answer(request, 200, b"application/json", body)

    @app.route("/jobs", methods=["POST"])
    async def submit_job(self, request: Request) -> bytes:
        """Keep a job. Any Content-Type is JSON, as for Ollama."""
        return _send(request, await self._jobs.submit(cast(Any, request.content).read()))

    @app.route("/jobs", methods=["GET"])
    async def list_jobs(self, request: Request) -> bytes:
        """Jobs, newest first. Of a parameter that is given twice the last one counts."""
        query = {
            name.decode("utf-8", "replace"): values[-1].decode("utf-8", "replace")
            for name, values in (request.args or {}).items()
        }
        return _send(request, await self._jobs.list(query))

    @app.route("/jobs/<job_id>", methods=["GET"])
    async def show_job(self, request: Request, job_id: str) -> bytes:
        """One job."""
        return _send(request, await self._jobs.show(job_id))

    @app.route("/jobs/<job_id>", methods=["DELETE"])
    async def delete_job(self, request: Request, job_id: str) -> bytes:
        """Remove an ended job."""
        return _send(request, await self._jobs.delete(job_id))

    @app.route("/jobs/<job_id>/cancel", methods=["POST"])
    async def cancel_job(self, request: Request, job_id: str) -> bytes:
        """Cancel a job that has not ended."""
        return _send(request, await self._jobs.cancel(job_id))

    @app.route("/jobs/<job_id>/retry", methods=["POST"])
    async def retry_job(self, request: Request, job_id: str) -> bytes:
        """Run an ended job again."""
        return _send(request, await self._jobs.retry(job_id))

    @app.route("/jobs/<job_id>/artifacts/<name>", methods=["GET"])
    async def artifact(self, request: Request, job_id: str, name: str) -> None:
        """One output of a job, raw."""
        await self._artifacts.serve(request, job_id, name)

    @app.route("/jobs/<job_id>/deliveries", methods=["GET"])
    async def list_deliveries(self, request: Request, job_id: str) -> bytes:
        """The webhooks of a job, and what became of each attempt."""
        return _send(request, await self._deliveries.list(job_id))

    @app.route("/jobs/<job_id>/deliveries/<event_id>/redeliver", methods=["POST"])
    async def redeliver(self, request: Request, job_id: str, event_id: str) -> bytes:
        """Send one of them again."""
        return _send(request, await self._deliveries.redeliver(job_id, event_id))

    @app.route("/queue", methods=["GET"])
    def show_queue(self, request: Request) -> bytes:
        """Who has the turn, who waits, what is loaded, what swaps cost."""
        return _send(request, self._queue.show())

    @app.route("/queue/pause", methods=["POST"])
    async def pause(self, request: Request) -> bytes:
        """Hold lanes back."""
        return _send(request, await self._pausing.pause(cast(Any, request.content).read()))

    @app.route("/queue/resume", methods=["POST"])
    async def resume(self, request: Request) -> bytes:
        """Let them go on."""
        return _send(request, await self._pausing.resume(cast(Any, request.content).read()))

    @app.handle_errors(ForemanError)
    def refused(self, request: IRequest, failure: Failure) -> bytes:
        """What foreman has to say: every error knows its status and code."""
        error = cast(ForemanError, failure.value)
        body = problem(error.status, error.code, str(error), error.members)
        if error.retry_after is not None:
            request.setHeader(b"Retry-After", b"%d" % error.retry_after)
        return _answer(request, error.status, PROBLEM_JSON, body)

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


class _Routes(KleinResource):
    """Klein's router, but for paths that are not UTF-8: it would log an error for each of them."""

    def render(self, request: Any) -> Any:
        """Bytes, or NOT_DONE_YET."""
        try:
            b"/".join(request.postpath).decode("utf-8")
        except UnicodeDecodeError:
            path = request.path.decode("latin-1")
            return _answer(request, 404, PROBLEM_JSON, problem(404, "not_found", f"foreman has no {path}"))
        return super().render(request)


def _send(request: Request, answer: Answer) -> bytes:
    for name, value in answer.headers:
        request.setHeader(name, value)
    if answer.status == 204:
        request.setResponseCode(204)
        request.responseHeaders.removeHeader(b"Server")
        return b""
    (content_type,) = request.responseHeaders.getRawHeaders(b"Content-Type") or [b""]
    return _answer(request, answer.status, content_type, answer.body)


def _answer(request: IRequest, status: int, content_type: bytes, body: bytes) -> bytes:
    request.setResponseCode(status)
    request.setHeader(b"Content-Type", content_type)
    request.setHeader(b"Content-Length", b"%d" % len(body))
    # twisted.web's own; the target's answers have none either.
    request.responseHeaders.removeHeader(b"Server")
    return body
