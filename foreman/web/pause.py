"""Pausing lanes and resuming them over HTTP, and how a pause is shown."""

from collections.abc import Callable, Mapping
from typing import Any

from attrs import define

from foreman.errors import InvalidFields
from foreman.jobs.checks import Complaints, boolean, decoded, duration, one_of, shown
from foreman.quantities import format_moment
from foreman.scheduler.policy import Lane
from foreman.web.gate import Answer
from foreman.worker.pauses import Pauses

ALL = "all"
BODY_BYTES = 64 * 1024
_Checks = Mapping[str, Callable[[Any], Any]]
_LANE = one_of(*(lane.value for lane in Lane), ALL)
PAUSE_FIELDS: _Checks = {
    "lane": _LANE,
    "for": duration(zero=False),
    "unload": boolean,
    "now": boolean,
}
RESUME_FIELDS: _Checks = {"lane": _LANE}


@define(eq=False)
class Pausing:
    """Answers requests to pause and to resume; raises a ForemanError for the app's error table."""

    _pauses: Pauses

    async def pause(self, body: bytes) -> Answer:
        """``POST /queue/pause``: 200 with the pauses as they stand, when they are on disk."""
        asked = _read(body, PAUSE_FIELDS)
        await self._pauses.pause(
            _lanes(asked),
            asked.get("for"),
            unload=asked.get("unload", False),
            at_once=asked.get("now", False),
        )
        return self._answer()

    async def resume(self, body: bytes) -> Answer:
        """``POST /queue/resume``: 200 with what is paused still. A lane that is not paused stays so."""
        await self._pauses.resume(_lanes(_read(body, RESUME_FIELDS)))
        return self._answer()

    def _answer(self) -> Answer:
        return Answer.json(200, {"paused": paused(self._pauses)})


def paused(pauses: Pauses) -> dict[str, dict[str, Any]]:
    """The lanes that are paused, by their names."""
    word = None if pauses.unloading is None else pauses.unloading.value
    return {
        lane.value: {
            "since": format_moment(pause.since),
            "until": format_moment(pause.until),
            "unload": word if pause.unload else None,
        }
        for lane, pause in pauses.standing.items()
    }


def _lanes(asked: Mapping[str, Any]) -> list[Lane]:
    name = asked.get("lane", ALL)
    return list(Lane) if name == ALL else [Lane(name)]


def _read(body: bytes, checks: _Checks) -> dict[str, Any]:
    """What the body says; a field that is null, and an empty body, say nothing.

    Raises InvalidFields with every complaint at once.
    """
    complaints = Complaints()
    asked: dict[str, Any] = {}
    value = _object(body, complaints)
    for name, given in value.items():
        if name not in checks:
            complaints.add(f"is no field: those are {', '.join(checks)}", name)
        elif given is not None:
            try:
                asked[name] = checks[name](given)
            except ValueError as allowed:
                complaints.add(f"is {shown(given)}: {allowed}", name)
    if complaints.found:
        raise InvalidFields(complaints.found)
    return asked


def _object(body: bytes, complaints: Complaints) -> dict[str, Any]:
    if not body.strip():
        return {}
    if len(body) > BODY_BYTES:
        complaints.add(f"the body has {len(body)} bytes: at most {BODY_BYTES} are allowed")
        return {}
    value = decoded(body)
    if isinstance(value, dict):
        return value
    complaints.add("the body is no JSON object: it is written as {…}, or left out")
    return {}
