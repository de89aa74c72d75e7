"""A job as JSON: what ``POST /jobs``, ``GET /jobs`` and ``GET /jobs/{id}`` show of it."""

import base64
from collections.abc import Mapping
from typing import Any

import msgspec
from attrs import asdict, frozen

from foreman.jobs.delivery import WebhookState
from foreman.jobs.model import PIECE_BYTES, RESULT, Artifact, AttemptError, Job, Status, Tombstone
from foreman.quantities import format_moment
from foreman.urls import JobUrls
from foreman.web.outlook import Outlook
from foreman.worker.attempt import Progress

INLINE_BYTES = PIECE_BYTES
"""The largest artifact whose content is shown with its job: 262,144 bytes, one piece of the store."""

_LONGEST_POLL_SECONDS = 30


def poll_seconds(queue_position: int | None) -> int:
    """How long to wait before asking again: a second for each job ahead, up to half a minute."""
    return min(max(queue_position or 1, 1), _LONGEST_POLL_SECONDS)


@frozen
class Views:
    """Jobs as they are shown. `urls` is where the outside finds them."""

    urls: JobUrls

    def receipt(self, job: Job, queue_position: int | None) -> dict[str, Any]:
        """What is said when a job was taken."""
        return {
            "job_id": job.job_id,
            "status": job.status.value,
            "queue_position": queue_position,
            "created_at": format_moment(job.created_at),
            "urls": self.urls.of(job.job_id),
        }

    def entry(self, job: Job, progress: Progress | None, webhook: WebhookState | None) -> dict[str, Any]:
        """A job in a list."""
        return {**_head(job), **_state(job, progress), **self._end(job, webhook, {})}

    def whole(
        self,
        job: Job,
        outlook: Outlook,
        progress: Progress | None,
        webhook: WebhookState | None,
        contents: Mapping[str, bytes],
    ) -> dict[str, Any]:
        """
        A job with its result.

        `contents` holds the small artifacts that could be read, by their names; `webhook` is None when there
        is no delivery of its events.
        """
        result = next((one for one in job.artifacts if one.name == RESULT), None)
        content = contents.get(RESULT)
        shown: dict[str, Any] = {
            **_head(job),
            "queue_position": outlook.queue_position,
            "eta_seconds": outlook.eta_seconds,
            "waiting_for": outlook.waiting_for,
            **_state(job, progress),
            # As it was stored, byte for byte: numbers are not read and written again.
            "result": None if content is None else msgspec.Raw(content),
        }
        if result is not None and content is None:
            shown["result_url"] = self.urls.artifact(job.job_id, RESULT)
        return {**shown, **self._end(job, webhook, contents)}

    def _end(self, job: Job, webhook: WebhookState | None, contents: Mapping[str, bytes]) -> dict[str, Any]:
        return {
            "error": None if job.error is None else _error(job.error),
            "errors": [_error(error) for error in job.errors],
            "artifacts": [
                {
                    **_artifact(artifact, contents.get(artifact.name)),
                    "url": self.urls.artifact(job.job_id, artifact.name),
                }
                for artifact in job.artifacts
            ],
            "metadata": dict(job.metadata),
            "webhook": _webhook(job, webhook),
            "urls": self.urls.of(job.job_id),
        }


def gravestone(tombstone: Tombstone) -> dict[str, Any]:
    """What is left of a job."""
    return {
        "job_id": tombstone.job_id,
        "status": tombstone.status.value,
        "created_at": format_moment(tombstone.created_at),
        "finished_at": format_moment(tombstone.finished_at),
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
        "created_at": format_moment(job.created_at),
        "run_at": format_moment(job.run_at),
        "start_deadline": format_moment(job.start_deadline),
        "not_before": format_moment(job.not_before),
        "started_at": format_moment(job.started_at),
        "finished_at": format_moment(job.finished_at),
        "cancel_requested_at": format_moment(job.cancel_requested_at),
    }


def _state(job: Job, progress: Progress | None) -> dict[str, Any]:
    running = job.status is Status.RUNNING and progress is not None
    return {
        "progress": asdict(progress) if running and progress is not None else None,
        "metrics": None if job.metrics is None else asdict(job.metrics),
    }


def _webhook(job: Job, state: WebhookState | None) -> dict[str, Any] | None:
    if job.webhook_url is None and state is None:
        return None
    return {
        "url": job.webhook_url,
        "events": None if job.webhook_events is None else list(job.webhook_events),
        "state": None if state is None else state.state.value,
        "last_status": None if state is None else state.last_status,
        "attempts": 0 if state is None else state.attempts,
    }


def _error(error: AttemptError) -> dict[str, Any]:
    return {**asdict(error), "at": format_moment(error.at)}


def _artifact(artifact: Artifact, content: bytes | None) -> dict[str, Any]:
    shown = asdict(artifact)
    if content is not None:
        try:
            shown |= {"encoding": "utf-8", "content": content.decode("utf-8")}
        except UnicodeDecodeError:
            shown |= {"encoding": "base64", "content": base64.b64encode(content).decode("ascii")}
    return shown
