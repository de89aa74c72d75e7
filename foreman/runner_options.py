"""Runner options: what of a request makes Ollama load a model anew when it changes.

They are written as a canonical text, so that SQL can group by it: JSON with sorted names, "" when there
are none. Equal texts mean the same to Ollama. A model's own parameters are written in the same way.
"""

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

RUNNER_OPTIONS = frozenset(
    {"num_ctx", "num_batch", "num_gpu", "main_gpu", "use_mmap", "num_thread", "draft_num_predict"}
)
"""The names as Ollama knows them: another spelling is ignored there."""

# Go decodes a number as a float64 and cuts it; beyond this the cut is undefined.
_MOST = 1 << 62
# Ollama raises a smaller num_ctx to 4, and takes every negative num_gpu for "as many layers as fit".
_LEAST = {"num_ctx": 4, "num_gpu": -1}

_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"))
_PARAMETER = re.compile(rf"^({'|'.join(sorted(RUNNER_OPTIONS))})[ \t]+(\S+)[ \t\r]*$", re.MULTILINE)


def of_request(options: object, shift: object) -> str:
    """The text for the values of a body's fields `options` and `shift`; None stands for null or no field.

    What Ollama refuses (a number of the wrong type) and what it ignores says nothing.
    """
    found: dict[str, int | bool] = {}
    if isinstance(options, dict):
        found = _read((name, options[name]) for name in RUNNER_OPTIONS & options.keys())
    if shift is False:
        found["shift"] = False
    return _text(found)


def of_model(parameters: str) -> str:
    """The text for a model's own parameters, as /api/show lists them: a name and a value in each line."""
    # A string stands in quotes with its line ends escaped, so it cannot look like another parameter.
    return _text(_read((name, _parameter(value)) for name, value in _PARAMETER.findall(parameters)))


def overlaid(own: str, asked: str) -> dict[str, int | bool]:
    """The effective options: a model's own text, overlaid by a request's."""
    return _parsed(own) | _parsed(asked)


def fields(text: str) -> dict[str, Any]:
    """What a request body says to have this text: the field `options`, `shift`, both or none of them."""
    options: dict[str, Any] = dict(_parsed(text))
    found = {"shift": options.pop("shift")} if "shift" in options else {}
    return {"options": options, **found} if options else found


def merged(values: Iterable[object]) -> dict[str, Any] | None:
    """A field `options` that comes more than once: Go reads each into the map it has, null empties it."""
    whole: dict[str, Any] | None = None
    for value in values:
        if value is None:
            whole = None
        elif isinstance(value, dict):
            whole = value if whole is None else whole | value
    return whole


def _read(options: Iterable[tuple[str, object]]) -> dict[str, int | bool]:
    """The options that Ollama takes, by name."""
    found: dict[str, int | bool] = {}
    for name, value in options:
        if name == "use_mmap":
            if isinstance(value, bool):
                found[name] = value
        elif isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < _MOST:
            found[name] = max(int(float(value)), _LEAST.get(name, -_MOST))
    return found


def _parameter(value: str) -> float | bool | None:
    # A number may be written as 1.048576e+06.
    if value in ("true", "false"):
        return value == "true"
    try:
        return float(value)
    except ValueError:
        return None


def _text(options: Mapping[str, int | bool]) -> str:
    return _ENCODER.encode(options) if options else ""


def _parsed(text: str) -> dict[str, int | bool]:
    parsed: dict[str, int | bool] = json.loads(text) if text else {}
    return parsed
