"""Raw artifacts over HTTP: whole, in part, on a condition."""

import hashlib
import json
from collections.abc import Iterator

import pytest
from web_jobs_bench import Bench, make_bench

from foreman import errors
from foreman.errors import ForemanError
from foreman.jobs.model import PIECE_BYTES
from foreman.web.artifacts import Part, Range, choose
from foreman.web.problems import error_answer


@pytest.fixture
def bench() -> Iterator[Bench]:
    with make_bench() as bench:
        yield bench


DIGITS = b"0123456789"


@pytest.fixture
def digits(bench: Bench) -> str:
    """The path of ten bytes."""
    job_id = bench.submit()
    bench.run(job_id, {"content.txt": DIGITS})
    return f"/jobs/{job_id}/artifacts/content.txt"


ETAG = f'"{hashlib.sha256(DIGITS).hexdigest()}"'


def test_artifact(bench: Bench, digits: str) -> None:
    """With its type, its tag, and what keeps a browser from guessing."""
    reply = bench.ask("GET", digits)
    assert (reply.status, reply.body) == (200, DIGITS)
    assert reply.header("content-type") == "text/plain; charset=utf-8"
    assert reply.length == 10
    assert reply.header("etag") == ETAG
    assert reply.header("accept-ranges") == "bytes"
    assert reply.header("x-content-type-options") == "nosniff"
    assert reply.header("content-disposition") == 'inline; filename="content.txt"'
    assert reply.header("cache-control") == "no-cache"
    assert reply.header("server") is None


def test_head(bench: Bench, digits: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same head, and no body, which is not even read; of a part too."""
    whole = bench.ask("GET", digits)
    monkeypatch.delattr(type(bench.store), "piece")
    head = bench.ask("HEAD", digits)
    assert (head.status, head.body) == (200, b"")
    for name in ("content-type", "etag", "accept-ranges", "content-disposition"):
        assert head.header(name) == whole.header(name)
    assert bench.ask("HEAD", digits, range="bytes=1-2").header("content-range") == "bytes 1-2/10"


@pytest.mark.parametrize(
    ("wanted", "body", "span"),
    [
        ("bytes=0-0", b"0", "bytes 0-0/10"),
        ("bytes=2-4", b"234", "bytes 2-4/10"),
        ("Bytes=7-", b"789", "bytes 7-9/10"),
        ("bytes=7-100", b"789", "bytes 7-9/10"),
        ("bytes=-3", b"789", "bytes 7-9/10"),
        ("bytes=-30", DIGITS, "bytes 0-9/10"),
    ],
)
def test_range(bench: Bench, digits: str, wanted: str, body: bytes, span: str) -> None:
    """206 with the part."""
    reply = bench.ask("GET", digits, range=wanted)
    assert (reply.status, reply.body, reply.header("content-range")) == (206, body, span)
    assert reply.length == len(body)


@pytest.mark.parametrize("wanted", ["bytes=10-", "bytes=10-20", "bytes=-0"])
def test_range_that_is_not_there(bench: Bench, digits: str, wanted: str) -> None:
    """416 says how long it is."""
    reply = bench.ask("GET", digits, range=wanted)
    assert (reply.status, reply.problem["code"]) == (416, "range_not_satisfiable")
    assert reply.header("content-range") == "bytes */10"


@pytest.mark.parametrize(
    "wanted",
    ["bytes=4-2", "bytes=-", "bytes=a-b", "lines=1-2", "bytes=0-1,3-4", "", "bytes=" + "9" * 5000 + "-"],
)
def test_range_that_is_not_understood(bench: Bench, digits: str, wanted: str) -> None:
    """The whole: a server may ignore any Range."""
    assert bench.ask("GET", digits, range=wanted).status == 200


def test_if_range(bench: Bench, digits: str) -> None:
    """A part only of what the client has begun to read."""
    assert bench.ask("GET", digits, range="bytes=1-2", if_range=ETAG).status == 206
    for other in ('"other"', f"W/{ETAG}", "Wed, 21 Oct 2015 07:28:00 GMT"):
        assert bench.ask("GET", digits, range="bytes=1-2", if_range=other).status == 200


def test_if_none_match(bench: Bench, digits: str) -> None:
    """304 for what the client has, before any range."""
    for tags in (ETAG, f"W/{ETAG}", f'"a", {ETAG}', "*"):
        reply = bench.ask("GET", digits, if_none_match=tags, range="bytes=99-")
        assert (reply.status, reply.body, reply.header("etag")) == (304, b"", ETAG)
    assert bench.ask("HEAD", digits, if_none_match=ETAG).status == 304
    for tags in ('"a"', ETAG.strip('"'), ""):
        assert bench.ask("GET", digits, if_none_match=tags).status == 200


def test_artifact_that_is_not_there(bench: Bench, digits: str) -> None:
    """404: another name; and no artifact is seen before its job has ended."""
    reply = bench.ask("GET", digits.replace("content", "thinking"))
    assert (reply.status, reply.problem["code"]) == (404, "artifact_not_found")
    job_id = bench.submit()
    claimed = bench.claim(job_id)
    bench.wait(bench.store.put_artifact_piece(claimed.fence, "content.txt", 0, b"x"))
    assert bench.ask("GET", f"/jobs/{job_id}/artifacts/content.txt").problem["code"] == "artifact_not_found"


def test_empty_artifact(bench: Bench) -> None:
    """No piece, no part."""
    job_id = bench.submit()
    bench.run(job_id, {"content.txt": b""})
    path = f"/jobs/{job_id}/artifacts/content.txt"
    assert (bench.ask("GET", path).status, bench.ask("GET", path).body) == (200, b"")
    assert bench.ask("GET", path, range="bytes=0-").status == 416


LARGE = b"".join(b"%09d\n" % n for n in range(80_000))  # 800,000 bytes: 4 pieces


@pytest.mark.parametrize(
    ("first", "last"),
    [
        (0, 799_999),
        (PIECE_BYTES - 1, PIECE_BYTES),
        (PIECE_BYTES, 2 * PIECE_BYTES - 1),
        (PIECE_BYTES + 5, 3 * PIECE_BYTES + 5),
        (799_999, 799_999),
        (PIECE_BYTES - 1, PIECE_BYTES - 1),
    ],
)
def test_parts_across_pieces(bench: Bench, first: int, last: int) -> None:
    """A part begins and ends where it was asked for, wherever the store cuts."""
    job_id = bench.submit()
    bench.run(job_id, {"transcript.ndjson": LARGE})
    path = f"/jobs/{job_id}/artifacts/transcript.ndjson"
    assert bench.ask("GET", path).body == LARGE
    assert bench.ask("GET", path, range=f"bytes={first}-{last}").body == LARGE[first : last + 1]


def test_choose_never_leaves_the_artifact() -> None:
    """Whatever is asked for."""
    for size in (0, 1, 10):
        for first in ("", "0", "1", "9", "10", "11"):
            for last in ("", "0", "1", "9", "10", "11"):
                chosen = choose(f"bytes={first}-{last}", size)
                assert isinstance(chosen, Range) or 0 <= chosen.start < chosen.end <= size
    assert choose(None, 10) is Range.WHOLE
    assert choose("bytes = 1-2", 10) is Range.WHOLE
    assert choose("bytes= 1-2 ", 10) == Part(1, 3)


def test_every_error_is_a_problem() -> None:
    """Each class has a status that HTTP knows, and can be said as JSON."""
    given: list[ForemanError] = [
        errors.InvalidFields([{"pointer": "/a", "detail": "is wrong"}]),
        errors.InvalidParameters([]),
        errors.JobGone("x", {"job_id": "x"}),
        errors.RangeNotSatisfiable(3),
    ]
    for error in given:
        kind, body = error_answer(b"/jobs", True, error)
        members = json.loads(body)
        assert kind == b"application/problem+json"
        assert (members["status"], members["code"]) == (error.status, error.code)
        assert set(error.members) <= set(members)
