"""Model keys as texts: a short one for people, and a whole one that can be read back."""

import json
from hashlib import sha256

from foreman.scheduler.keys import UNKNOWN, ModelKey

_NAME = "name:"


def shown(key: ModelKey) -> str:
    """A short text that differs where keys do: what stands for the weights, then the options that were set.

    A model that is not installed has its name, a body that nobody could read the word `unknown`.
    """
    if key == UNKNOWN:
        return "unknown"
    options = [f"{name}={_value(value)}" for name, value in options_of(key).items()]
    return " ".join((_weights(key.weights), *options))


def options_of(key: ModelKey) -> dict[str, int | bool]:
    """The options that were set, by the model or by the request; `shift` only when it is off."""
    options = dict(key.options)
    if key.num_ctx is not None:
        options["num_ctx"] = key.num_ctx
    if not key.shift:
        options["shift"] = False
    return options


def dumped(key: ModelKey) -> str:
    """The whole key as JSON; equal keys have equal texts."""
    return json.dumps([sorted(key.weights), key.options, key.num_ctx, key.shift], separators=(",", ":"))


def parsed(text: str) -> ModelKey:
    """The key of such a text. Raises ValueError for another one."""
    try:
        weights, options, num_ctx, shift = json.loads(text)
        return ModelKey(frozenset(weights), tuple((name, value) for name, value in options), num_ctx, shift)
    except (TypeError, ValueError):
        raise ValueError(f"{text!r} is no model key") from None


def _weights(weights: frozenset[str]) -> str:
    names = sorted(weights)
    if len(names) == 1 and names[0].startswith(_NAME):
        return names[0].removeprefix(_NAME)
    return sha256("\n".join(names).encode()).hexdigest()[:12]


def _value(value: int | bool) -> str:
    return str(value).lower()
