"""
The errors of foreman: one tree, each with a stable code and one sentence for a person.

`code` is part of the contract (``docs/reference/errors.md``): programs match on it.
"""

import math
from collections.abc import Mapping, Sequence

from foreman.quantities import format_moment


class ForemanError(Exception):
    """Something that foreman has to say to a person; ``str()`` is the sentence."""

    code = "internal_error"
    status = 500
    retry_after: int | None = None
    """In how many seconds it is worth trying again, where that is known: the header Retry-After."""

    @property
    def members(self) -> Mapping[str, object]:
        """What a program is told beside the sentence, on foreman's own paths."""
        return {}


class TargetUnreachable(ForemanError):
    """
    Nothing could be sent: refused, no such name, or no connection in time.

    No work was lost and none was done, so whatever was to be sent may be sent again.
    """

    code = "target_unreachable"
    status = 502

    def __init__(self, target_url: str, reason: str) -> None:
        super().__init__(f"foreman cannot reach the target {target_url}: {reason}")
        self.target_url = target_url
        self.reason = reason


class TargetFailed(ForemanError):
    """The target was reached, and broke off, answered what is not HTTP, or something unreadable."""

    code = "target_failed"
    status = 502


class TargetTimeout(TargetFailed):
    """A limit passed while the target was silent or at work; the sentence names its setting."""

    code = "target_timeout"
    status = 504


class ExecutionTimeout(TargetTimeout):
    """A generation was cut because it took longer than its limit in all."""

    code = "execution_timeout"


class TargetRefused(TargetFailed):
    """The target answered with a status other than 200; `target_body` is the beginning of what it said."""

    code = "target_refused"

    def __init__(self, target_status: int, target_body: str) -> None:
        super().__init__(f"the target answered with status {target_status}: {target_body}")
        self.target_status = target_status
        self.target_body = target_body


class BadResponse(TargetFailed):
    """The target answered something that is not Ollama's."""

    code = "bad_response"


class IncompleteResponse(TargetFailed):
    """The target's stream ended before its last line, the one with `done`."""

    code = "incomplete_response"

    def __init__(self) -> None:
        super().__init__("the target's answer ended without its last line, the one with done: true")


class TargetSaid(TargetFailed):
    """The target ended its stream with an error line; `target_body` is its text."""

    code = "target_error"

    def __init__(self, target_body: str) -> None:
        super().__init__(f"the target broke off with an error: {target_body}")
        self.target_body = target_body


class Stopping(ForemanError):
    """The daemon is about to stop, and starts nothing new."""

    code = "stopping"
    status = 503

    def __init__(self) -> None:
        super().__init__("foreman is stopping; send the request again in a moment")


class ServerBusy(ForemanError):
    """As many native requests wait as may do. The sentence is Ollama's own, which clients know."""

    code = "server_busy"
    status = 503

    def __init__(self) -> None:
        super().__init__("server busy, please try again.  maximum pending requests exceeded")


class LanePaused(ForemanError):
    """Somebody paused the lane. `until` is the end of that, None when nobody knows it; it is `now`."""

    code = "lane_paused"
    status = 503

    def __init__(self, lane: str, until: float | None, now: float) -> None:
        end = "it is resumed" if until is None else format_moment(until)
        super().__init__(f"the {lane} lane is paused until {end}; meanwhile jobs can be handed in at /jobs")
        self.retry_after = None if until is None else max(1, math.ceil(until - now))


class QueueFull(ForemanError):
    """As many durable jobs wait as may do."""

    code = "queue_full"
    status = 429
    retry_after = 30

    def __init__(self, limit: int) -> None:
        super().__init__(
            f"{limit} jobs wait already, the limit of FOREMAN_QUEUE_LIMIT: hand it in again in a while"
        )


class Unauthorized(ForemanError):
    """The request carried no credential, or a wrong one."""

    code = "unauthorized"
    status = 401

    def __init__(self) -> None:
        super().__init__(
            "unauthorized: send the token as 'Authorization: Bearer …', as 'x-api-key', "
            "or as the password of HTTP Basic"
        )


class BodyTooLarge(ForemanError):
    """The body is over its limit."""

    code = "body_too_large"
    status = 413

    def __init__(self, limit_bytes: int, setting: str) -> None:
        super().__init__(f"the request body is larger than {limit_bytes} bytes, the limit of {setting}")


class DiskFull(ForemanError):
    """There is no room to keep a request body while it is on its way."""

    code = "disk_full"
    status = 507

    def __init__(self, folder: str) -> None:
        super().__init__(f"there is no room for the request body in {folder}, beside FOREMAN_DB_PATH")


class DatabaseRefused(ForemanError):
    """The database cannot be used, and foreman does not start."""

    code = "database_refused"

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"FOREMAN_DB_PATH is {path!r}: {reason}.")


class DatabaseFull(ForemanError):
    """There is no room for what was to be written. Nothing of it was kept."""

    code = "database_full"
    status = 507

    def __init__(self, path: str) -> None:
        super().__init__(f"the disk of FOREMAN_DB_PATH, {path!r}, is full: nothing was written")


class DatabaseUnavailable(ForemanError):
    """The database cannot be read or written now. What was to be written was not kept."""

    code = "database_unavailable"
    status = 503

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"the database of FOREMAN_DB_PATH, {path!r}, cannot be used now: {reason}")


class JobUnfinished(ForemanError):
    """The job waits or runs, and what was asked for is for jobs that have ended."""

    code = "job_unfinished"
    status = 409

    def __init__(self, job_id: str, status: str, action: str) -> None:
        super().__init__(f"job {job_id} is {status}; only an ended job can be {action}; cancel it first")


class BadCursor(ForemanError):
    """The text given as `after` is not the cursor of a page."""

    code = "bad_cursor"
    status = 422

    def __init__(self, cursor: str) -> None:
        super().__init__(f"after is {cursor!r}, which is not a cursor: give the `next` of an earlier page")


class NotJson(ForemanError):
    """A body that is not JSON; `reason` says where."""

    code = "not_json"
    status = 400

    def __init__(self, reason: str) -> None:
        super().__init__(f"the body is not JSON: {reason}")


class NotAnObject(ForemanError):
    """A body that is JSON, and no object."""

    code = "not_an_object"
    status = 400

    def __init__(self) -> None:
        super().__init__("the body is not a JSON object: a job is written as {…}")


class InvalidFields(ForemanError):
    """Some fields of a body cannot be used. Each complaint has a `pointer` (RFC 6901) and a `detail`."""

    code = "invalid_fields"
    status = 422

    def __init__(self, complaints: Sequence[Mapping[str, str]]) -> None:
        super().__init__(_summary("field", "pointer", complaints))
        self.complaints = tuple(complaints)

    @property
    def members(self) -> Mapping[str, object]:
        return {"errors": self.complaints}


class InvalidParameters(ForemanError):
    """Some parameters of a query cannot be used. Each complaint has a `parameter` and a `detail`."""

    code = "invalid_parameters"
    status = 422

    def __init__(self, complaints: Sequence[Mapping[str, str]]) -> None:
        super().__init__(_summary("parameter", "parameter", complaints))
        self.complaints = tuple(complaints)

    @property
    def members(self) -> Mapping[str, object]:
        return {"errors": self.complaints}


class ModelNotFound(ForemanError):
    """The target does not have the model, and the job has no time to wait for it."""

    code = "model_not_found"
    status = 404

    def __init__(self, model: str) -> None:
        super().__init__(
            f"model {model!r} is not installed at the target: pull it, or say in job.start_within "
            "how long the job may wait for it"
        )


class JobNotFound(ForemanError):
    """There is no such job, or it is too long ago."""

    code = "job_not_found"
    status = 404

    def __init__(self, job_id: str) -> None:
        super().__init__(f"there is no job {job_id!r}")


class JobGone(ForemanError):
    """The job has ended, and was deleted or is past its retention; `tombstone` is what is left of it."""

    code = "job_gone"
    status = 410

    def __init__(self, job_id: str, tombstone: Mapping[str, object]) -> None:
        super().__init__(f"job {job_id} has ended, and its content was removed")
        self.tombstone = tombstone

    @property
    def members(self) -> Mapping[str, object]:
        return {"job": self.tombstone}


class ArtifactNotFound(ForemanError):
    """The job has no such artifact, or not yet."""

    code = "artifact_not_found"
    status = 404

    def __init__(self, job_id: str, name: str) -> None:
        super().__init__(f"job {job_id} has no artifact {name!r}")


class DeliveryNotFound(ForemanError):
    """The job has no such event, or nobody was to be told of it, or it was pruned."""

    code = "delivery_not_found"
    status = 404

    def __init__(self, job_id: str, event_id: str) -> None:
        super().__init__(f"job {job_id} has no delivery of an event {event_id!r}")


class DeliveryUnderWay(ForemanError):
    """An attempt at this delivery is on the wire; what comes of it is not known yet."""

    code = "delivery_under_way"
    status = 409

    def __init__(self, event_id: str) -> None:
        super().__init__(f"event {event_id} is being sent at this moment: see what comes of it first")


class RangeNotSatisfiable(ForemanError):
    """The range that was asked for begins behind the end."""

    code = "range_not_satisfiable"
    status = 416

    def __init__(self, size: int) -> None:
        super().__init__(f"the artifact has {size} bytes, and none of the range that was asked for")


def _summary(what: str, key: str, complaints: Sequence[Mapping[str, str]]) -> str:
    if len(complaints) == 1:
        place = complaints[0][key]
        return f"{place + ' ' if place else ''}{complaints[0]['detail']}"
    return f"{len(complaints)} {what}s cannot be used; errors names each"
