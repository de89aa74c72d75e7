"""
What can be set, from ``FOREMAN_*`` environment variables and nowhere else.

Every entry here stands in ``.env.example`` and in ``docs/reference/settings.md``; a test compares the three.
"""

import difflib
from collections.abc import Callable, Mapping
from typing import Any, cast

import attrs
import environ
from environ.exceptions import MissingEnvValueError

from foreman import values
from foreman.allow import Allow, parse_allow
from foreman.hours import Hours, parse_hours

PREFIX = "FOREMAN"


class SettingsError(Exception):
    """
    One or more variables are wrong.

    `complaints` maps each variable's name to a sentence; `settings` holds the defaults in the place of
    what was wrong, so that a start can go on to find what else is wrong.
    """

    def __init__(self, complaints: Mapping[str, str], settings: "Settings") -> None:
        super().__init__("\n".join(complaints.values()))
        self.complaints = complaints
        self.settings = settings


class _BadValueError(Exception):
    """A converter refused the value of one variable."""

    def __init__(self, variable: str, sentence: str) -> None:
        super().__init__(sentence)
        self.variable = variable


def _var(
    name: str, default: str | None, parse: Callable[[str], Any], help_text: str, *, secret: bool = False
) -> Any:
    """
    One variable, required when its default is None.

    `parse` gets its text, and raises ValueError with what is allowed.
    """
    variable = f"{PREFIX}_{name}"

    def convert(text: str) -> Any:
        try:
            return parse(text)
        except ValueError as why:
            # A URL with a user's part is refused, and may hold a password.
            hidden = secret or "@" in text
            shown = "has a value that cannot be used" if hidden else f"is {text!r}"
            raise _BadValueError(variable, f"{variable} {shown}: {why}.") from None

    if default is None:
        return environ.var(converter=convert, name=variable, help=help_text)
    return environ.var(default, converter=convert, name=variable, help=help_text)


@environ.config(prefix=PREFIX, frozen=True)
class Settings:
    """Every setting, parsed: durations in seconds, sizes in bytes."""

    addr: tuple[str, ...] = _var("ADDR", ":8080", values.endpoints, "Where foreman listens.")
    ollama_url: str = _var(
        "OLLAMA_URL",
        None,
        values.target_url,
        "The target: the one Ollama. `embedded:` starts the built-in one.",
    )
    ollama_token: str = _var(
        "OLLAMA_TOKEN", "", values.token, "Bearer token that foreman sends to the target.", secret=True
    )
    token: str = _var("TOKEN", "", values.token, "Bearer token that callers must present.", secret=True)
    embed_model: str = _var("EMBED_MODEL", "", values.anything, "Embedding model that is kept resident.")
    db_path: str = _var(
        "DB_PATH",
        "foreman.db",
        values.anything,
        "SQLite database. Its lock stands beside it, and large request bodies while they are on their way.",
    )
    poll_interval: float = _var(
        "POLL_INTERVAL", "30s", values.duration(), "How often the target's models are read."
    )
    webhook_secret: str = _var(
        "WEBHOOK_SECRET", "", values.webhook_secret, "HMAC key that signs webhooks.", secret=True
    )

    webhook_secret_previous: str = _var(
        "WEBHOOK_SECRET_PREVIOUS",
        "",
        values.webhook_secret,
        "The key that was used before: while receivers change over, webhooks bear its signature too.",
        secret=True,
    )
    webhook_url: str = _var(
        "WEBHOOK_URL",
        "",
        values.receiver_url,
        "Where the owner is told of jobs without a URL of their own that failed or expired, "
        "and of foreman being degraded.",
    )
    webhook_allow: Allow = _var(
        "WEBHOOK_ALLOW",
        "lan",
        parse_allow,
        "Where webhooks may go: `lan`, `public`, or networks and host names with commas between.",
    )
    webhook_ca: str = _var(
        "WEBHOOK_CA",
        "",
        values.anything,
        "File with certificates (PEM) of more authorities that receivers may have.",
    )
    webhook_backoff: tuple[float, ...] = _var(
        "WEBHOOK_BACKOFF",
        "5s,30s,2m,10m,1h",
        values.backoff,
        "How long to wait before each of the five retries.",
    )
    webhook_concurrency: int = _var(
        "WEBHOOK_CONCURRENCY", "64", values.from_1_to(1000), "How many webhooks may be on their way at once."
    )
    webhook_connect_timeout: float = _var(
        "WEBHOOK_CONNECT_TIMEOUT", "5s", values.duration(), "How long a connection to a receiver may take."
    )
    webhook_timeout: float = _var(
        "WEBHOOK_TIMEOUT", "15s", values.duration(), "How long one attempt at a receiver may take in all."
    )
    public_url: str = _var(
        "PUBLIC_URL",
        "",
        values.public_url,
        "What the URLs of jobs begin with; without it they are absolute paths.",
    )
    origins: tuple[str, ...] = _var(
        "ORIGINS",
        "",
        values.origins,
        "More browser origins that may call, with commas between; `*` stands for anything. "
        "Ollama's own defaults (localhost, app://, …) always may.",
    )
    connect_timeout: float = _var(
        "CONNECT_TIMEOUT", "5s", values.duration(), "How long a connection to the target may take."
    )
    first_byte_timeout: float = _var(
        "FIRST_BYTE_TIMEOUT",
        "15m",
        values.duration(),
        "How long a streamed answer may take to begin, and a load before it to end.",
    )
    silence_timeout: float = _var(
        "SILENCE_TIMEOUT",
        "5m",
        values.duration(),
        "How long a streamed answer may be silent once it has begun.",
    )
    run_timeout: float = _var(
        "RUN_TIMEOUT",
        "1h",
        values.duration(0),
        "How long one generation may take in all; `0` is without end.",
    )
    target_wait: float = _var(
        "TARGET_WAIT",
        "10s",
        values.duration(0),
        "How long a caller waits for a target that cannot be reached.",
    )
    poll_timeout: float = _var(
        "POLL_TIMEOUT",
        "10s",
        values.duration(),
        "How long one question of foreman's own to the target may take.",
    )
    idle_timeout: float = _var(
        "IDLE_TIMEOUT",
        "60s",
        values.duration(),
        "How long a caller may take to send a request's head, or be silent inside its body.",
    )
    stop_grace: float = _var(
        "STOP_GRACE", "8s", values.duration(0), "How long what runs may go on after SIGTERM or Ctrl-C."
    )
    body_limit: int = _var(
        "BODY_LIMIT", "256MiB", values.size, "Largest body of a native request, blobs excepted."
    )
    job_body_limit: int = _var(
        "JOB_BODY_LIMIT", "64MiB", values.size, "Largest body of a request to foreman's own /jobs."
    )
    disk_reserve: int = _var(
        "DISK_RESERVE", "64MiB", values.size, "Free disk that request bodies on their way never use."
    )
    relay_buffer: int = _var(
        "RELAY_BUFFER",
        "8MiB",
        values.size,
        "How far a caller may fall behind its generation before it is cut off.",
    )
    interactive_max_wait: float = _var(
        "INTERACTIVE_MAX_WAIT",
        "5s",
        values.duration(0),
        "After this wait a line of native requests is overdue.",
    )
    durable_max_wait: float = _var(
        "DURABLE_MAX_WAIT", "1h", values.duration(0), "After this wait a line of durable jobs is overdue."
    )
    interactive_visit: float = _var(
        "INTERACTIVE_VISIT",
        "30s",
        values.duration(0),
        "How long one model keeps the turn while native requests for another are overdue.",
    )
    durable_visit: float = _var(
        "DURABLE_VISIT",
        "10m",
        values.duration(0),
        "How long one model keeps the turn while durable jobs for another are overdue.",
    )
    interactive_share: float = _var(
        "INTERACTIVE_SHARE",
        "0.8",
        values.share,
        "Share of busy time that native requests may take while durable jobs wait.",
    )
    parallel: int = _var(
        "PARALLEL", "1", values.from_1_to(64), "How many generations on one model run at once."
    )
    interactive_limit: int = _var(
        "INTERACTIVE_LIMIT", "512", values.count, "How many native requests may wait for the turn."
    )
    durable_hours: Hours = _var(
        "DURABLE_HOURS",
        "",
        parse_hours,
        "The times of day, such as `22:00-07:00`, at which durable jobs may start; empty is always.",
    )
    queue_limit: int = _var(
        "QUEUE_LIMIT", "100000", values.from_1_to(100_000_000), "How many durable jobs may wait."
    )
    queue_headers_after: float = _var(
        "QUEUE_HEADERS_AFTER",
        "60s",
        values.duration(0),
        "After this wait in the queue a stream gets its headers, and a byte every 15 s; `0` is never.",
    )
    retain_succeeded: float = _var(
        "RETAIN_SUCCEEDED",
        "24h",
        values.duration(0),
        "How long a job that succeeded is kept with its results.",
    )
    retain_failed: float = _var(
        "RETAIN_FAILED", "168h", values.duration(0), "How long a job that ended otherwise is kept."
    )
    retain_deliveries: float = _var(
        "RETAIN_DELIVERIES",
        "336h",
        values.duration(0),
        "How long the log of a webhook is kept after its end.",
    )
    max_interruptions: int = _var(
        "MAX_INTERRUPTIONS", "10", values.count, "How often foreman may die or be stopped under one job."
    )
    embedded_models: str = _var(
        "EMBEDDED_MODELS",
        "",
        values.anything,
        "Folder with *.gguf files that the embedded target offers as well.",
    )


def variables() -> list[tuple[str, str | None, str]]:
    """Name, default (None: required) and help of every variable, in the order of the reference."""
    fields: tuple[attrs.Attribute[Any], ...] = attrs.fields(cast(type[attrs.AttrsInstance], Settings))
    entries = [field.metadata["environ_config"] for field in fields]
    return [
        (entry.name, entry.default if isinstance(entry.default, str) else None, entry.help)
        for entry in entries
    ]


def load(environment: Mapping[str, str]) -> Settings:
    """
    Read the settings; an empty value counts as not set.

    Raises SettingsError with a sentence for every variable that is wrong or missing.
    """
    given = {name: text for name, text in environment.items() if text}
    complaints: dict[str, str] = {}
    while True:
        try:
            settings: Settings = environ.to_config(Settings, given)
            break
        except _BadValueError as bad:
            complaints[bad.variable] = str(bad)
            given.pop(bad.variable)
        except MissingEnvValueError as missing:
            (variable,) = missing.args
            complaints.setdefault(
                variable, f"{variable} is not set: name your Ollama, such as http://127.0.0.1:11434."
            )
            given[variable] = values.EMBEDDED_URL
    if settings.webhook_secret_previous and not settings.webhook_secret:
        complaints.setdefault(
            "FOREMAN_WEBHOOK_SECRET",
            "FOREMAN_WEBHOOK_SECRET is not set, and FOREMAN_WEBHOOK_SECRET_PREVIOUS is; name the new one.",
        )
    if complaints:
        raise SettingsError(complaints, settings)
    return settings


def unknown(environment: Mapping[str, str]) -> list[str]:
    """A sentence for each ``FOREMAN_*`` variable that is no setting: most often a slip of the pen."""
    # Without the prefix, which is alike in all.
    names = [name.removeprefix(f"{PREFIX}_") for name, _, _ in variables()]
    sentences = []
    for given in sorted(environment):
        rest = given.removeprefix(f"{PREFIX}_")
        if rest != given and rest not in names:
            near = difflib.get_close_matches(rest, names, n=1)
            hint = f"; did you mean {PREFIX}_{near[0]}?" if near else "."
            sentences.append(f"{given} is not a setting{hint}")
    return sentences
