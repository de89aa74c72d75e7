"""Advice: what the owner of the target could change, from what was measured. A pure function of it."""

from collections.abc import Mapping, Sequence

from attrs import frozen

from foreman.scheduler.key_texts import options_of
from foreman.scheduler.keys import ModelKey
from foreman.scheduler.swaps import Reload

LEAST_RELOADS = 10
"""Fewer in a day are not worth a word."""

_NUMBERS = {2: "two", 3: "three", 4: "four", 5: "five"}


@frozen
class Advice:
    """One piece of advice: a stable code, and a sentence for people."""

    code: str
    text: str


def advise(
    reloads: Sequence[Reload], swaps: int, strangers: Sequence[str], evicted_embedder: bool
) -> list[Advice]:
    """What there is to say.

    `reloads` and `swaps` are those of a day. `strangers` names the resident models that somebody else had the
    target load. `evicted_embedder`: foreman's own swaps throw the embedding model out again and again.
    """
    advice = [*_options(reloads)]
    for name in strangers:
        text = "a model is resident that foreman did not load: somebody uses the target directly"
        advice.append(Advice("target_used_directly", f"{text} ({name})"))
    if evicted_embedder and swaps >= LEAST_RELOADS:
        text = "the embedder is evicted by every swap: OLLAMA_MAX_LOADED_MODELS=2"
        advice.append(Advice("embedder_evicted", f"{text} at the target, if its memory holds both"))
    return advice


def _options(reloads: Sequence[Reload]) -> list[Advice]:
    """One for each model that was loaded again and again because its lines have different options."""
    by_weights: dict[frozenset[str], list[Reload]] = {}
    for reload in reloads:
        by_weights.setdefault(reload.before.weights, []).append(reload)
    advice = []
    for some in by_weights.values():
        if len(some) >= LEAST_RELOADS:
            keys = {key for reload in some for key in (reload.before, reload.swap.key)}
            seconds = sum(reload.swap.load_seconds or 0.0 for reload in some)
            lines = f"{_NUMBERS.get(len(keys), len(keys))} lines of {some[-1].swap.model}"
            text = f"{lines} differ only in {_differences(keys)}: {len(some)} reloads today, {_span(seconds)}"
            advice.append(Advice("options_differ", f"{text}; set one value"))
    return advice


def _differences(keys: set[ModelKey]) -> str:
    """`num_ctx (4096, 8192)`, and the other options that are not the same in all keys."""
    options: list[Mapping[str, int | bool]] = [options_of(key) for key in keys]
    parts = []
    for name in sorted({name for each in options for name in each}):
        values = {each.get(name) for each in options}
        if len(values) > 1:
            written = ", ".join(_written(name, value) for value in sorted(values, key=_rank))
            parts.append(f"{name} ({written})")
    return " and ".join(parts)


def _rank(value: int | bool | None) -> tuple[bool, int]:
    return (value is not None, value or 0)


def _written(name: str, value: int | bool | None) -> str:
    if value is None:
        return "true" if name == "shift" else "unset"
    return str(value).lower()


def _span(seconds: float) -> str:
    """In whole minutes, or in seconds when they are few."""
    number, unit = (round(seconds), "second") if seconds < 90 else (round(seconds / 60), "minute")
    return f"{number} {unit}{'' if number == 1 else 's'}"
