"""A job as JSON: what ``POST /jobs``, ``GET /jobs`` and ``GET /jobs/{id}`` show of it."""

import base64
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

import msgspec
from attrs import asdict, frozen

from foreman.jobs.model import PIECE_BYTES, Artifact, AttemptError, Job, Status, Tombstone
from foreman.worker.attempt import Progress

INLINE_BYTES = PIECE_BYTES
"""The largest artifact whose content is shown with its job: 262,144 bytes, one piece of the store."""

RESULT = "response.json"
_LONGEST_POLL_SECONDS = 30


@frozen
class Outlook:
    """Where a waiting job stands: its place in its line (1 is next), and what it waits for."""

    queue_position: int | None = None
    waiting_for: str | None = None


def moment(seconds: float | None) -> str | None:
    """RFC 3339 in UTC with milliseconds."""
    if seconds is None:
        return None
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def path(job_id: str) -> str:
    """The path of a job."""
    return f"/jobs/{job_id}"


def artifact_path(job_id: str, name: str) -> str:
    """The path of one artifact."""
    return f"{path(job_id)}/artifacts/{quote(name, safe='')}"


def poll_seconds(queue_position: int | None) -> int:
    """How long to wait before asking again: a second for each job ahead, up to half a minute."""
    return min(max(queue_position or 1, 1), _LONGEST_POLL_SECONDS)


def receipt(job: Job, queue_position: int | None) -> dict[str, Any]:
    """What is said when a job was taken."""
    return {
        "job_id": job.job_id,
        "status": job.status.value,
        "queue_position": queue_position,
        "created_at": moment(job.created_at),
        "urls": _urls(job.job_id),
    }


def entry(job: Job, progress: Progress | None) -> dict[str, Any]:
    """A job in a list."""
    return {**_head(job), **_state(job, progress), **_end(job, {})}


def whole(
    job: Job, outlook: Outlook, progress: Progress | None, contents: Mapping[str, bytes]
) -> dict[str, Any]:
    """A job with its result. `contents` holds the small artifacts that could be read, by their names."""
    result = next((one for one in job.artifacts if one.name == RESULT), None)
    content = contents.get(RESULT)
    shown: dict[str, Any] = {
        **_head(job),
        "queue_position": outlook.queue_position,
        "eta_seconds": None,
        "waiting_for": outlook.waiting_for,
        **_state(job, progress),
        # As it was stored, byte for byte: numbers are not read and written again.
        "result": None if content is None else msgspec.Raw(content),
    }
    if result is not None and content is None:
        shown["result_url"] = artifact_path(job.job_id, RESULT)
    return {**shown, **_end(job, contents)}


def gravestone(tombstone: Tombstone) -> dict[str, Any]:
    """What is left of a job."""
    return {
        "job_id": tombstone.job_id,
        "status": tombstone.status.value,
        "created_at": moment(tombstone.created_at),
        "finished_at": moment(tombstone.finished_at),
    }


def _head(job: Job) -> dict[str, Any]:
    return {
        "job_id": job.job_id,
        "status": job.status.value,
        "endpoint": job.endpoint,
        "model": job.model,
        "priority": job.priority,
        "attempt": job.attempt,
        "max_attempts": job.max_attempts,
        "interruptions": job.interruptions,
        "created_at": moment(job.created_at),
        "run_at": moment(job.run_at),
        "start_deadline": moment(job.start_deadline),
        "not_before": moment(job.not_before),
        "started_at": moment(job.started_at),
        "finished_at": moment(job.finished_at),
        "cancel_requested_at": moment(job.cancel_requested_at),
    }


def _state(job: Job, progress: Progress | None) -> dict[str, Any]:
    running = job.status is Status.RUNNING and progress is not None
    return {
        "progress": asdict(progress) if running and progress is not None else None,
        "metrics": None if job.metrics is None else asdict(job.metrics),
    }


def _end(job: Job, contents: Mapping[str, bytes]) -> dict[str, Any]:
    return {
        "error": None if job.error is None else _error(job.error),
        "errors": [_error(error) for error in job.errors],
        "artifacts": [_artifact(job, artifact, contents.get(artifact.name)) for artifact in job.artifacts],
        "metadata": dict(job.metadata),
        "webhook": None if job.webhook_url is None else {"url": job.webhook_url},
        "urls": _urls(job.job_id),
    }


def _error(error: AttemptError) -> dict[str, Any]:
    return {**asdict(error), "at": moment(error.at)}


def _artifact(job: Job, artifact: Artifact, content: bytes | None) -> dict[str, Any]:
    shown = {**asdict(artifact), "url": artifact_path(job.job_id, artifact.name)}
    if content is not None:
        try:
            shown |= {"encoding": "utf-8", "content": content.decode("utf-8")}
        except UnicodeDecodeError:
            shown |= {"encoding": "base64", "content": base64.b64encode(content).decode("ascii")}
    return shown


def _urls(job_id: str) -> dict[str, str]:
    here = path(job_id)
    return {"self": here, "cancel": f"{here}/cancel", "retry": f"{here}/retry"}
