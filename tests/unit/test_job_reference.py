"""The reference of jobs in docs/reference/http.md has every field, and the example there is taken."""

import json
import re
from pathlib import Path

from web_jobs_bench import EVERY_FIELD, make_bench

from foreman.errors import InvalidFields
from foreman.jobs.submission import parse
from foreman.web import outlook
from foreman.web.problems import problem

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/reference/http.md").read_text("utf-8")


def section(heading: str) -> str:
    """From a heading of the third level to the next."""
    return PAGE.partition(f"\n### {heading}\n")[2].partition("\n##")[0]


def first_cells(text: str, heading: str) -> list[str]:
    """What stands between backticks in the first column of the table under this heading."""
    table = text.partition(f"| {heading} |")[2].partition("\n\n")[0]
    return [name for row in re.findall(r"^\|([^|]+)\|", table, re.M) for name in re.findall(r"`(\w+)`", row)]


def test_fields_of_job() -> None:
    """The table has them, the example uses each, and the sentence about an unknown one names them."""
    names = first_cells(section("Handing in a job"), "Field of `job`")
    example = re.findall(r"```json\n(.*?)```", section("Handing in a job"), re.S)[0]
    assert set(json.loads(example)["job"]) == set(names)
    now = 1_796_000_000.0  # the day before its run_at
    assert parse(example.encode(), "x", now).timeout == 600
    try:
        parse(b'{"model":"m","prompt":"p","job":{"x":1}}', "x", 0.0)
    except InvalidFields as error:
        detail = error.complaints[0]["detail"]
    assert detail.endswith(f"those are {', '.join(names)}")


def test_complaints() -> None:
    """The example of a refusal is one."""
    example = re.findall(r"```json\n(.*?)```", section("Handing in a job"), re.S)[2]
    try:
        parse(b'{"prompt":"p","job":{"priority":"high"}}', "x", 0.0)
    except InvalidFields as error:
        said = problem(error.status, error.code, str(error), error.members)
    assert json.loads(example) == json.loads(said)


def test_fields_of_a_job() -> None:
    """The table has each, and `result_url`, which is there at times only."""
    named = first_cells(section("Looking at a job"), "Field")
    assert sorted(named) == sorted([*EVERY_FIELD, "result_url"])


def test_receipt() -> None:
    """The example of a 202 has its fields, in their order."""
    example = json.loads(re.findall(r"```json\n(.*?)```", section("Handing in a job"), re.S)[1])
    with make_bench() as bench:
        reply = bench.ask("POST", "/jobs", {"model": "m", "prompt": "p"}).json
    assert list(example) == list(reply)
    assert list(example["urls"]) == list(reply["urls"])


def test_parameters_of_lists() -> None:
    """Those that foreman reads."""
    assert first_cells(section("Lists"), "Parameter") == ["status", "model", "limit", "after"]


def test_reasons_to_wait() -> None:
    """The table has those that the code gives, and the example has the data of its row."""
    section = PAGE.partition("\n#### Waiting\n")[2].partition("\n##")[0]
    source = (ROOT / "foreman/web/outlook.py").read_text("utf-8")
    held = (ROOT / "foreman/service.py").read_text("utf-8")
    given = {
        *re.findall(r'"reason": "(\w+)"', source),
        *re.findall(r'_until\("(\w+)"', source),
        *re.findall(r'Hold\("(\w+)"', held),
    }
    assert set(first_cells(section, "Reason")) == given
    example = json.loads(re.findall(r"```json\n(.*?)```", section, re.S)[0])
    shown = outlook._model_line("llama3.2", 3, 1, 78)
    assert (example, list(example)) == (shown, list(shown))


def test_fields_of_the_queue() -> None:
    """The table has each part, and the example every field of each part."""
    section = PAGE.partition("\n## The queue\n")[2].partition("\n## ")[0]
    example = json.loads(re.findall(r"```json\n(.*?)```", section, re.S)[0])
    with make_bench() as bench:
        report = bench.ask("GET", "/queue").json
    assert list(example) == list(report)
    table = section.partition("| Field of the queue |")[2].partition("\n\n")[0]
    assert re.findall(r"^\| `(\w+)` \|", table, re.M) == list(report)
    fields = {name for part in ("turn", "swaps") for name in example[part]}
    fields |= {name for part in ("lines", "resident") for name in example[part][0]}
    fields |= set(example["swaps"]["last"][0]) | set(example["advice"][0])
    assert {name for name in fields if f"`{name}`" not in table} == set()
    codes = set(re.findall(r'Advice\("(\w+)"', (ROOT / "foreman/scheduler/advice.py").read_text("utf-8")))
    assert set(first_cells(section, "Advice")) == codes
