"""What docs/ says about routes, errors and files is what the code does; no page leads nowhere."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from treq.testing import StubTreq

from foreman import errors
from foreman.errors import BodyTooLarge, DiskFull, ForemanError, Stopping, TargetUnreachable, Unauthorized
from foreman.settings import load, variables
from foreman.target import routes
from foreman.target.dialects import Dialect, error_body, last_words
from foreman.target.routes import ROUTES, Route
from foreman.web.app import App
from foreman.web.health import Health
from foreman.web.problems import problem

ROOT = Path(__file__).parents[2]
TARGET = "http://127.0.0.1:11434"
UNREACHABLE = TargetUnreachable(TARGET, "connection refused")
BROKE = "the target closed the connection in the middle of its answer"
# Paths below a prefix, and those that no table names: as the reference writes them, and one of each.
OTHERS = {
    "`/api/blobs/{digest}`": b"/api/blobs/sha256:0",
    "`/api/user/keys/{key}`": b"/api/user/keys/k",
    "`/v1/models/{model}`": b"/v1/models/m",
    "any other below `/v1/`": b"/v1/a/new/one",
    "`/debug/pprof` and below": b"/debug/pprof/heap",
    "everything else": b"/api/unknown",
}
# A path that is in no table has no methods that foreman knows; the row says for which the rule is.
METHODS_IN_WORDS: dict[str, list[str]] = {"any other below `/v1/`": ["POST"], "everything else": []}
SKIPPED_FOLDERS = {"build", "dist", "results", "__pycache__"}


def page(name: str) -> str:
    """The text of one page."""
    return (ROOT / "docs" / name).read_text("utf-8")


def rows(text: str, columns: int) -> list[list[str]]:
    """The cells of the body of every table with so many columns."""
    cells = [
        [cell.strip() for cell in line[1:-1].split(" |")]
        for line in text.splitlines()
        if line.startswith("| ") and line.endswith("|")
    ]
    return [row for row in cells if len(row) == columns and row[0] not in ("Path", "Code", "What")]


def section(text: str, heading: str) -> str:
    """From a heading of the second level to the next."""
    return text.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]


def notes(route: Route) -> set[str]:
    """What the column *Notes* says of a route."""
    said = {
        "models are read anew": route.changes_models,
        "no time limit": route.waits_for_ever,
        "no size limit": not route.bounded_body,
    }
    return {words for words, holds in said.items() if holds}


def as_in_code(route: Route) -> tuple[list[str], str, str, set[str]]:
    """Methods, handling, streaming and notes of a route."""
    return list(route.methods), route.handling.value, route.streaming.value, notes(route)


def test_http_reference_has_every_route_as_it_is() -> None:
    """One row for each route, in the order of the table in the code, with what foreman does."""
    shown = {}
    table = rows(section(page("reference/http.md"), "Relayed paths"), 5)
    for path, methods, handling, streams, remarks in table:
        known = {part.strip() for part in remarks.split(";")} & {
            "models are read anew",
            "no time limit",
            "no size limit",
        }
        shown[path] = ([part for part in methods.split(", ") if part], handling, streams, known)
    assert len(shown) == len(table)
    expected = {f"`{path.decode()}`": as_in_code(route) for path, route in ROUTES.items()}
    for words, example in OTHERS.items():
        in_code = as_in_code(routes.find(example))
        expected[words] = (METHODS_IN_WORDS.get(words, in_code[0]), *in_code[1:])
    assert shown == expected
    assert list(shown) == list(expected)


def test_http_reference_names_every_own_path_and_reason() -> None:
    """foreman's own paths are those that its app serves."""
    own = section(page("reference/http.md"), "foreman's own paths")
    served = {
        (rule.rule, ", ".join(sorted(rule.methods or (), reverse=True)))
        for rule in App.app.url_map.iter_rules()
    }
    assert {(path.strip("`"), methods) for path, methods, _ in rows(own, 3)} == served
    source = (ROOT / "foreman/service.py").read_text("utf-8")
    wired = set(re.findall(r'^ +"(\w+)": lambda: _', source, re.M))
    assert wired
    assert {reason.strip("`") for reason, _ in rows(own, 2) if reason != "Reason"} == wired


def all_errors() -> Iterator[type[ForemanError]]:
    """Every class of foreman's errors."""
    for value in vars(errors).values():
        if isinstance(value, type) and issubclass(value, ForemanError):
            yield value


def test_error_reference_has_every_code_with_its_status() -> None:
    """One row for each class, and none beyond them."""
    shown = [(row[0].strip("`"), int(row[1])) for row in rows(page("reference/errors.md"), 4)]
    assert sorted(shown) == sorted((error.code, error.status) for error in all_errors())


@pytest.mark.parametrize(
    "error",
    [
        UNREACHABLE,
        Stopping(),
        Unauthorized(),
        BodyTooLarge(load({"FOREMAN_OLLAMA_URL": TARGET}).body_limit, "FOREMAN_BODY_LIMIT"),
        DiskFull("/var/lib/foreman"),
    ],
    ids=lambda error: error.code,
)
def test_error_reference_shows_the_sentence(error: ForemanError) -> None:
    """The sentence in the row of a code is the one that callers see."""
    sentences = {row[0].strip("`"): row[3] for row in rows(page("reference/errors.md"), 4)}
    assert sentences[error.code] == str(error)


def test_error_reference_shows_sentences_of_the_code() -> None:
    """The sentences of time limits are put together while a request runs: their words are in the source."""
    source = (ROOT / "foreman/target/exchange.py").read_text("utf-8")
    shown = page("reference/errors.md")
    for words in re.findall(r'f"(the [^"{]+)\{limit\}(, the limit of \w+)"', source):
        assert re.search(re.escape(words[0]) + r"\w+" + re.escape(words[1]), shown), words
    for variable in re.findall(r"FOREMAN_\w+_TIMEOUT", source):
        assert variable in shown
    assert f'"{BROKE}"' in (ROOT / "foreman/target/connection.py").read_text("utf-8")
    assert BROKE in shown


def test_error_reference_shows_the_codes_of_own_paths() -> None:
    """What Klein refuses has its codes too."""
    nobody: Any = None  # no job is asked
    client = StubTreq(App(Health({}), nobody, nobody, nobody, nobody, nobody).resource())
    seen = set()
    for method, path in (("GET", "/healthz/x"), ("POST", "/healthz")):
        texts: list[str] = []
        client.request(method, f"http://foreman{path}").addCallback(client.text_content).addCallback(
            texts.append
        )
        body = json.loads(texts[0])  # nothing in memory takes time
        seen.add((body["code"], str(body["status"])))
    assert {(code.strip("`"), status) for code, status, _ in rows(page("reference/errors.md"), 3)} == seen


def blocks(kind: str, text: str) -> list[str]:
    """The contents of the code blocks of one kind."""
    return re.findall(rf"^```{kind}\n(.*?)^```", text, re.M | re.S)


def test_error_reference_shows_the_shape_of_each_dialect() -> None:
    """Byte for byte, in the order Ollama, OpenAI, Anthropic, foreman's own."""
    status, code, sentence = UNREACHABLE.status, UNREACHABLE.code, str(UNREACHABLE)
    expected = [
        error_body(dialect, status, code, sentence).decode()
        for dialect in (Dialect.OLLAMA, Dialect.OPENAI, Dialect.ANTHROPIC)
    ]
    expected.append(problem(status, code, sentence).decode())
    shown = blocks("json", section(page("reference/errors.md"), "Shapes"))
    assert [block.rstrip("\n") for block in shown] == expected
    assert error_body(Dialect.RESPONSES, status, code, sentence).decode() == expected[1]


def test_error_reference_shows_the_last_words_of_each_dialect() -> None:
    """Byte for byte, less the empty line that ends an event."""
    expected = []
    for dialect in (Dialect.OLLAMA, Dialect.OPENAI, Dialect.RESPONSES, Dialect.ANTHROPIC):
        kind = b"application/x-ndjson" if dialect is Dialect.OLLAMA else b"text/event-stream"
        words = last_words(dialect, kind, 502, "target_failed", BROKE, after_newline=True)
        expected.append(words.decode().rstrip("\n") + "\n")
    assert blocks("text", section(page("reference/errors.md"), "Last words of a stream")) == expected


def files() -> list[Path]:
    """Every file of the repository, less what tools leave there."""
    found = []
    for path in sorted(ROOT.rglob("*")):
        parts = path.relative_to(ROOT).parts
        # A hidden folder is a tool's; hidden files in the root are ours.
        hidden = any(part.startswith(".") and part != ".ci" for part in parts[:-1])
        left = SKIPPED_FOLDERS.intersection(parts) or any(part.endswith(".egg-info") for part in parts)
        if path.is_file() and not hidden and not left and path.suffix not in (".pyc", ".lock", ".cache"):
            found.append(path)
    return found


def test_no_file_names_a_developers_machine() -> None:
    """A path of one machine is of use to nobody else."""
    # Written in halves, so that this file is not found.
    private = [b"/" + name for name in (b"work/", b"root/", b"tmp/venv")]
    places = {
        str(path.relative_to(ROOT)): words.decode()
        for path in files()
        for words in private
        if words in path.read_bytes()
    }
    assert not places


def pages() -> list[Path]:
    """Every page for people."""
    return [path for path in files() if path.suffix == ".md" and path.parts[-2] != "golden"]


def anchors(text: str) -> set[str]:
    """What GitHub makes of the headings."""
    headings = re.findall(r"^#+ (.+)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_links_lead_somewhere() -> None:
    """A link to a file finds it, and its part after # is one of the headings there."""
    broken = []
    for path in pages():
        for link in re.findall(r"\]\(([^)\s]+)\)", path.read_text("utf-8")):
            if link.startswith(("https://", "http://")):
                continue
            name, _, anchor = link.partition("#")
            file = (path.parent / name).resolve() if name else path
            if not file.is_file() or (anchor and anchor not in anchors(file.read_text("utf-8"))):
                broken.append(f"{path.relative_to(ROOT)}: {link}")
    assert pages()
    assert not broken


def test_pages_name_only_settings_that_exist() -> None:
    """A variable with a slip of the pen would be searched for in vain."""
    names = {name for name, _, _ in variables()}
    for path in pages():
        for mentioned in re.findall(r"FOREMAN_[A-Z_]*[A-Z](?![A-Z_*])", path.read_text("utf-8")):
            assert mentioned in names, f"{path.relative_to(ROOT)} names {mentioned}"


def test_each_decision_is_in_the_index() -> None:
    """The index of decisions has every page but the template, under its own title."""
    index = page("adr/README.md")
    for path in sorted((ROOT / "docs/adr").glob("[0-9]*.md")):
        number = path.name[:4]
        title = path.read_text("utf-8").partition("\n")[0]
        assert re.fullmatch(rf"# {number}\. .+", title), path.name
        if number != "0000":
            assert f"| [{number}]({path.name}) | {title.partition('. ')[2]} |" in index
