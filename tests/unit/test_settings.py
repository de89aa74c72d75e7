"""Settings: what is read, what is refused and in which words, and what is never printed."""

import attrs
import pytest
from twisted.internet.endpoints import serverFromString
from twisted.internet.testing import MemoryReactor

from foreman.settings import Settings, SettingsError, load, unknown, variables

_URL = {"FOREMAN_OLLAMA_URL": "http://127.0.0.1:11434"}


def complaints(**given: str) -> dict[str, str]:
    """What `load` says about these, each given without its prefix."""
    with pytest.raises(SettingsError) as caught:
        load({**_URL, **{f"FOREMAN_{name}": text for name, text in given.items()}})
    return dict(caught.value.complaints)


def read(**given: str) -> Settings:
    """The settings from these, each given without its prefix."""
    return load({**_URL, **{f"FOREMAN_{name}": text for name, text in given.items()}})


def test_defaults() -> None:
    """Only the URL is needed; all else has the default that the design names."""
    assert attrs.asdict(load(_URL)) == {
        "addr": (r"tcp:8080:interface=\:\:", "tcp:8080"),
        "ollama_url": "http://127.0.0.1:11434",
        "ollama_token": "",
        "token": "",
        "embed_model": "",
        "db_path": "foreman.db",
        "poll_interval": 30.0,
        "webhook_secret": "",
        "webhook_secret_previous": "",
        "webhook_url": "",
        "webhook_allow": {"public": True, "local": True, "networks": (), "names": frozenset()},
        "webhook_ca": "",
        "webhook_backoff": (5.0, 30.0, 120.0, 600.0, 3600.0),
        "webhook_concurrency": 64,
        "webhook_connect_timeout": 5.0,
        "webhook_timeout": 15.0,
        "public_url": "",
        "origins": (),
        "connect_timeout": 5.0,
        "first_byte_timeout": 900.0,
        "silence_timeout": 300.0,
        "run_timeout": 3600.0,
        "target_wait": 10.0,
        "poll_timeout": 10.0,
        "idle_timeout": 60.0,
        "stop_grace": 8.0,
        "body_limit": 256 << 20,
        "job_body_limit": 64 << 20,
        "disk_reserve": 64 << 20,
        "relay_buffer": 8 << 20,
        "interactive_max_wait": 5.0,
        "durable_max_wait": 3600.0,
        "interactive_visit": 30.0,
        "durable_visit": 600.0,
        "interactive_share": 0.8,
        "parallel": 1,
        "interactive_limit": 512,
        "durable_hours": {"ranges": ()},
        "queue_limit": 100_000,
        "queue_headers_after": 60.0,
        "retain_succeeded": 86400.0,
        "retain_failed": 604800.0,
        "retain_deliveries": 1209600.0,
        "max_interruptions": 10,
        "embedded_models": "",
    }


def test_every_default_is_a_value_that_may_be_given() -> None:
    """A default copied out of the reference is accepted, and changes nothing."""
    given = {name: default for name, default, _ in variables() if default}
    assert load({**_URL, **given}) == load(_URL)


def test_the_eight_that_are_fixed_come_first() -> None:
    """The order of the reference begins with the settings that do not change."""
    assert [name for name, _, _ in variables()][:8] == [
        "FOREMAN_ADDR",
        "FOREMAN_OLLAMA_URL",
        "FOREMAN_OLLAMA_TOKEN",
        "FOREMAN_TOKEN",
        "FOREMAN_EMBED_MODEL",
        "FOREMAN_DB_PATH",
        "FOREMAN_POLL_INTERVAL",
        "FOREMAN_WEBHOOK_SECRET",
    ]


@pytest.mark.parametrize(
    ("text", "endpoints"),
    [
        (":8080", (r"tcp:8080:interface=\:\:", "tcp:8080")),
        (":0", (r"tcp:0:interface=\:\:", "tcp:0")),
        ("127.0.0.1:8080", ("tcp:8080:interface=127.0.0.1",)),
        ("0.0.0.0:8080", ("tcp:8080:interface=0.0.0.0",)),
        ("localhost:8080", ("tcp:8080:interface=127.0.0.1",)),
        ("[::1]:8080", (r"tcp:8080:interface=\:\:1",)),
        ("[::]:8080", (r"tcp:8080:interface=\:\:",)),
        ("tcp:8080", ("tcp:8080",)),
        ("tcp:8080:interface=127.0.0.1", ("tcp:8080:interface=127.0.0.1",)),
        ("unix:/run/foreman.sock", ("unix:/run/foreman.sock",)),
    ],
)
def test_address(text: str, endpoints: tuple[str, ...]) -> None:
    """An address is written as in Go, or is an endpoint string; Twisted understands what comes out."""
    assert read(ADDR=text).addr == endpoints
    for endpoint in endpoints:
        serverFromString(MemoryReactor(), endpoint)


@pytest.mark.parametrize(
    "text", ["8080", "gpu.lan:8080", "[::g]:8080", "::1:8080", "127.0.0.1", "127.0.0.1:", ":x", "/run/x.sock"]
)
def test_address_refused(text: str) -> None:
    """What is no address is refused with the forms that are allowed."""
    sentence = complaints(ADDR=text)["FOREMAN_ADDR"]
    assert sentence.startswith(f"FOREMAN_ADDR is {text!r}: an address is :8080, ")


def test_address_with_a_port_that_is_none() -> None:
    """A port has 16 bits."""
    assert complaints(ADDR=":65536")["FOREMAN_ADDR"] == (
        "FOREMAN_ADDR is ':65536': a port is a number from 0 to 65535."
    )


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("http://127.0.0.1:11434", "http://127.0.0.1:11434"),
        ("http://127.0.0.1:11434/", "http://127.0.0.1:11434"),
        ("http://[::1]:11434", "http://[::1]:11434"),
        ("https://gpu.lan/ollama", "https://gpu.lan/ollama"),
        ("https://gpu.lan/ollama/", "https://gpu.lan/ollama"),
        ("embedded:", "embedded:"),
    ],
)
def test_target_url(text: str, url: str) -> None:
    """The target is an http or https URL, with a path if need be, or the embedded one."""
    assert read(OLLAMA_URL=text).ollama_url == url


@pytest.mark.parametrize(
    "text",
    [
        "127.0.0.1:11434",
        "localhost:11434",
        "ftp://gpu.lan",
        "http://",
        "http:///x",
        "http://gpu.lan:0",
        "http://gpu.lan:99999",
        "http://gpu.lan:port",
        "http://[::1",
        "http://gpu.lan/?a=b",
        "http://gpu.lan/#x",
        "http://gpu lan",
        "http://gpü.lan",
        "embedded",
        "embedded://",
    ],
)
def test_target_url_refused(text: str) -> None:
    """Anything else is refused with the forms that are allowed."""
    sentence = complaints(OLLAMA_URL=text)["FOREMAN_OLLAMA_URL"]
    assert sentence.startswith(
        f"FOREMAN_OLLAMA_URL is {text!r}: the target is written as in http://127.0.0.1"
    )


@pytest.mark.parametrize("environment", [{}, {"FOREMAN_OLLAMA_URL": ""}])
def test_target_url_missing(environment: dict[str, str]) -> None:
    """Without a target nothing starts; an empty value counts as not set."""
    with pytest.raises(SettingsError) as caught:
        load(environment)
    assert caught.value.complaints == {
        "FOREMAN_OLLAMA_URL": (
            "FOREMAN_OLLAMA_URL is not set: name your Ollama, such as http://127.0.0.1:11434."
        )
    }


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("POLL_INTERVAL", "30", "a duration is written as in 250ms, 30s or 1h30m."),
        ("POLL_INTERVAL", "0s", "it must be more than zero."),
        ("CONNECT_TIMEOUT", "-5s", "it must be more than zero."),
        ("RUN_TIMEOUT", "-1h", "it must not be negative."),
        ("STOP_GRACE", "soon", "a duration is written as in 250ms, 30s or 1h30m."),
        ("BODY_LIMIT", "-1", "a size is a number of bytes, or written as in 64KiB, 8MiB or 2GiB."),
        ("BODY_LIMIT", "0", "it must be more than zero."),
        ("INTERACTIVE_SHARE", "1.1", "a share is a number from 0 to 1."),
        ("INTERACTIVE_SHARE", "nan", "a share is a number from 0 to 1."),
        ("INTERACTIVE_SHARE", "most", "a share is a number from 0 to 1."),
        ("QUEUE_LIMIT", "0", "it is a whole number from 1 to 100000000."),
        ("QUEUE_LIMIT", "many", "it is a whole number from 1 to 100000000."),
        ("QUEUE_LIMIT", "1000000000", "it is a whole number from 1 to 100000000."),
        (
            "DURABLE_HOURS",
            "nights",
            "times of day are written as in 22:00-07:00, several with commas between.",
        ),
    ],
)
def test_refusal_names_variable_value_and_what_is_allowed(name: str, text: str, sentence: str) -> None:
    """One sentence: which variable, which value, what is allowed."""
    assert complaints(**{name: text}) == {f"FOREMAN_{name}": f"FOREMAN_{name} is {text!r}: {sentence}"}


def test_all_complaints_come_at_once() -> None:
    """Whoever fixes one must not have to start again to hear of the next."""
    with pytest.raises(SettingsError) as caught:
        load({"FOREMAN_POLL_INTERVAL": "x", "FOREMAN_ADDR": "x", "FOREMAN_BODY_LIMIT": "x"})
    assert set(caught.value.complaints) == {
        "FOREMAN_OLLAMA_URL",
        "FOREMAN_POLL_INTERVAL",
        "FOREMAN_ADDR",
        "FOREMAN_BODY_LIMIT",
    }
    # So that the start can go on and find what else is wrong.
    assert caught.value.settings.poll_interval == 30.0


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("TOKEN", "geheim is it"),
        ("OLLAMA_TOKEN", "geheim\n"),
        ("WEBHOOK_SECRET", "whsec_geheim!"),
        ("OLLAMA_URL", "http://me:geheim@gpu.lan"),
    ],
)
def test_a_secret_is_never_printed(name: str, text: str) -> None:
    """A secret's value stands in no complaint, and neither does a URL that holds a password."""
    (sentence,) = complaints(**{name: text}).values()
    assert sentence.startswith(f"FOREMAN_{name} has a value that cannot be used: ")
    assert "geheim" not in sentence


@pytest.mark.parametrize("text", ["whsec_", "whsec_a", "whsec_Z2V-", "whsec_Z2VoZWlt=", "whsec_Z2Vo ZWlt"])
def test_webhook_secret_that_no_library_would_read_alike(text: str) -> None:
    """It stops the start, and is not printed."""
    sentence = complaints(WEBHOOK_SECRET=text)["FOREMAN_WEBHOOK_SECRET"]
    assert "must be base64" in sentence
    assert text not in sentence.replace("whsec_ must", "")


def test_previous_webhook_secret_alone() -> None:
    """It would sign as the current one."""
    said = complaints(WEBHOOK_SECRET_PREVIOUS="old")
    assert "FOREMAN_WEBHOOK_SECRET is not set" in said["FOREMAN_WEBHOOK_SECRET"]
    assert read(WEBHOOK_SECRET="new", WEBHOOK_SECRET_PREVIOUS="old").webhook_secret_previous == "old"


def test_webhook_settings() -> None:
    """Each is refused with what is allowed."""
    for name, text, allowed in (
        ("WEBHOOK_BACKOFF", "5s,30s", "five durations"),
        ("WEBHOOK_BACKOFF", "5s,30s,2m,10m,1", "five durations"),
        ("WEBHOOK_CONCURRENCY", "0", "from 1 to 1000"),
        ("WEBHOOK_ALLOW", "10.0.0.1/8", "lan, public, or a list"),
        ("WEBHOOK_URL", "ftp://x/", "http or https URL"),
        ("PUBLIC_URL", "https://x/?a", "without a query"),
    ):
        assert allowed in complaints(**{name: text})[f"FOREMAN_{name}"]
    assert read(PUBLIC_URL="https://foreman.example/").public_url == "https://foreman.example"
    assert read(WEBHOOK_BACKOFF="1s, 2s,3s,4s,5s").webhook_backoff == (1.0, 2.0, 3.0, 4.0, 5.0)


def test_webhook_secret_in_either_form() -> None:
    """A plain secret, or ``whsec_`` and base64."""
    assert read(WEBHOOK_SECRET="whsec_Z2VoZWlt").webhook_secret == "whsec_Z2VoZWlt"
    assert read(WEBHOOK_SECRET="schön geheim").webhook_secret == "schön geheim"


def test_origins_are_a_list() -> None:
    """Origins stand between commas; blanks around them do not count."""
    assert read(ORIGINS=" https://a.example , http://*.lan ,,").origins == (
        "https://a.example",
        "http://*.lan",
    )


def test_unknown_variables_are_named_with_a_near_match() -> None:
    """A slip of the pen is worth a word; variables of others are none of our business."""
    environment = {
        **_URL,
        "FOREMAN_OLAMA_TOKEN": "x",
        "FOREMAN_XYZZY": "y",
        "PATH": "/bin",
        "OLLAMA_HOST": "h",
    }
    assert unknown(environment) == [
        "FOREMAN_OLAMA_TOKEN is not a setting; did you mean FOREMAN_OLLAMA_TOKEN?",
        "FOREMAN_XYZZY is not a setting.",
    ]


def test_durable_hours() -> None:
    """In minutes of the day."""
    assert read(DURABLE_HOURS="22:00-07:00").durable_hours.ranges == ((1320, 420),)
