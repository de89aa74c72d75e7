"""Assembling: in whatever chunks, the artifacts are those of Ollama's own `stream: false`."""

import base64
import json
import random
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest

from foreman.errors import BadResponse, IncompleteResponse, TargetSaid
from foreman.jobs.model import PIECE_BYTES
from foreman.worker.assemble import LINE_LIMIT_BYTES, StreamAssembly
from foreman.worker.embedding import EmbeddingAssembly
from foreman.worker.outputs import Cut

# Recorded from an Ollama v0.24, shortened: two answers to the same question with the same seed.
STAMP = "2026-11-23T17:00:59.325490257Z"
METRICS = (
    b'"total_duration":1540690454,"load_duration":383810413,"prompt_eval_count":16,'
    b'"prompt_eval_duration":277823631,"eval_count":24,"eval_duration":866254787'
)


def chat(part: str, rest: str = '"done":false') -> bytes:
    head = f'{{"model":"smol","created_at":"{STAMP}","message":{{"role":"assistant",'
    return (head + part + "}," + rest + "}\n").encode()


def generate(part: str, rest: str = '"done":false') -> bytes:
    return (f'{{"model":"smol","created_at":"{STAMP}",' + part + "," + rest + "}\n").encode()


END = '"done":true,"done_reason":"length",' + METRICS.decode()


class Bench:
    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.made: list[StreamAssembly] = []

    def assemble(
        self,
        stream: bytes,
        *,
        is_chat: bool = True,
        formatted: bool = False,
        transcript: bool = False,
        cut: int | None = None,
    ) -> dict[str, bytes]:
        assembly = self.make(is_chat, formatted, transcript)
        step = cut or len(stream) or 1
        for start in range(0, len(stream), step):
            assembly.receive(stream[start : start + step])
        assembly.end()
        return self.artifacts(assembly)

    def make(self, is_chat: bool = True, formatted: bool = False, transcript: bool = False) -> StreamAssembly:
        self.made.append(StreamAssembly(self.folder, is_chat, formatted, transcript))
        return self.made[-1]

    def artifacts(self, assembly: StreamAssembly) -> dict[str, bytes]:
        found = {}
        for draft in assembly.drafts():
            found[draft.name] = b"".join(Cut(draft).pieces())
        return found


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(str(tmp_path))
    yield made
    for assembly in made.made:
        assembly.close()


CHAT = chat('"content":"Thé"') + chat('"content":" \\"gentle\\"\\n"') + chat('"content":""', END)
CHAT_WHOLE = chat('"content":"Thé \\"gentle\\"\\n"', END).rstrip()
THINKING = (
    chat('"content":"","thinking":"The"')
    + chat('"content":"","thinking":" weather"')
    + chat('"content":"Rain"')
    + chat('"content":""', END)
)
CALL = '{"id":"call_1","function":{"index":%d,"name":"get","arguments":{"unit":"C","city":"Oslo"}}}'


@pytest.mark.parametrize("cut", [None, 1, 2, 3, 7, 100])
def test_a_chat_is_byte_for_byte_what_a_single_answer_would_be(bench: Bench, cut: int | None) -> None:
    """In any chunks: characters of several bytes and escapes are cut everywhere."""
    found = bench.assemble(CHAT, cut=cut)
    assert found == {"response.json": CHAT_WHOLE, "content.txt": 'Thé "gentle"\n'.encode()}


def test_thoughts_stand_after_the_content(bench: Bench) -> None:
    """They come before it, and Ollama writes them after it."""
    found = bench.assemble(THINKING)
    assert found["response.json"] == chat('"content":"Rain","thinking":"The weather"', END).rstrip()
    assert (found["content.txt"], found["thinking.txt"]) == (b"Rain", b"The weather")


def test_tool_calls_are_joined(bench: Bench) -> None:
    """Of all lines, in their order, each as it came."""
    stream = (
        chat(f'"content":"","tool_calls":[{CALL % 0},{CALL % 1}]')
        + chat(f'"content":"","tool_calls":[{CALL % 2}]')
        + chat('"content":""', END)
    )
    calls = f"[{CALL % 0},{CALL % 1},{CALL % 2}]"
    found = bench.assemble(stream)
    assert found["response.json"] == chat(f'"content":"","tool_calls":{calls}', END).rstrip()
    assert found["tool_calls.json"] == calls.encode()
    assert found["content.txt"] == b""


def test_a_generation_keeps_the_context_of_its_last_line(bench: Bench) -> None:
    """`thinking` after `response`; what is in the last line only passes as it came."""
    end = '"done":true,"done_reason":"stop","context":[1, 2,3],' + METRICS.decode()
    stream = (
        generate('"response":"","thinking":"Hm"')
        + generate('"response":"The"')
        + generate('"response":" end"')
        + generate('"response":""', end)
    )
    found = bench.assemble(stream, is_chat=False)
    assert found["response.json"] == generate('"response":"The end","thinking":"Hm"', end).rstrip()


def test_logprobs_are_joined_before_the_durations(bench: Bench) -> None:
    """The place that Ollama gives them in a chat; in a generation they are the last."""
    one, two = '{"token":"a","logprob":-0.1}', '{"token":"b","logprob":-0.2}'
    stream = chat('"content":"a"', f'"done":false,"logprobs":[{one}]')
    stream += chat('"content":"b"', f'"done":false,"logprobs":[{two}]') + chat('"content":""', END)
    response = bench.assemble(stream)["response.json"].decode()
    assert f'"done_reason":"length","logprobs":[{one},{two}],"total_duration"' in response
    stream = generate('"response":"a"', f'"done":false,"logprobs":[{one}]') + generate('"response":""', END)
    assert bench.assemble(stream, is_chat=False)["response.json"].endswith(f',"logprobs":[{one}]}}'.encode())


def test_a_load_is_no_stream(bench: Bench) -> None:
    """One object without a newline."""
    line = generate('"response":""', '"done":true,"done_reason":"load"').rstrip()
    assert bench.assemble(line, is_chat=False) == {"response.json": line, "content.txt": b""}


def test_unknown_keys_pass(bench: Bench) -> None:
    """A newer Ollama may have more, in the answer and in the message."""
    found = bench.assemble(chat('"content":"x","mood":{"a":1}', END[:-1] + '7,"new":[null]'))
    response = json.loads(found["response.json"])
    assert (response["message"]["mood"], response["new"]) == ({"a": 1}, [None])


@pytest.mark.parametrize("message", ["null", None])
def test_a_last_line_without_a_message(bench: Bench, message: str | None) -> None:
    """What came before it is the answer."""
    last = "{" + (f'"message":{message},' if message else "") + END + "}\n"
    found = bench.assemble(chat('"content":"Rain"') + last.encode())
    assert json.loads(found["response.json"])["message"] == {"role": "assistant", "content": "Rain"}
    assert found["content.txt"] == b"Rain"


def test_images(bench: Bench) -> None:
    """Each is a file; progress lines before it count for nothing."""
    data = random.Random(1).randbytes(1000)
    text = base64.b64encode(data).decode()
    stream = generate('"completed":1,"total":2', '"done":false') + generate(
        f'"image":"{text}"', '"done":true'
    )
    found = bench.assemble(stream, is_chat=False)
    assert found["image-0.png"] == data
    two = base64.b64encode(b"two").decode()
    found = bench.assemble(chat(f'"content":"","images":["{text}","{two}"]', END))
    assert (found["image-0.png"], found["image-1.png"]) == (data, b"two")
    with pytest.raises(BadResponse, match="base64"):
        bench.assemble(generate('"image":"***"', '"done":true'), is_chat=False)


def test_the_transcript_is_every_byte(bench: Bench) -> None:
    """Also what follows the last line."""
    stream = CHAT + b"\n \n"
    assert bench.assemble(stream, transcript=True, cut=5)["transcript.ndjson"] == stream


def test_what_was_there_before_it_broke(bench: Bench) -> None:
    """Texts so far, and no response."""
    assembly = bench.make()
    assembly.receive(THINKING[: THINKING.index(b'"content":"Rain"')])
    with pytest.raises(IncompleteResponse):
        assembly.end()
    assert bench.artifacts(assembly) == {"thinking.txt": b"The weather"}


@pytest.mark.parametrize(
    ("stream", "kind", "says"),
    [
        (b"<html>\n", BadResponse, "<html>"),
        (b"[]\n", BadResponse, "Expected `object`"),
        (b'{"message":{"content":1}}\n', BadResponse, "Expected `str"),
        (b'{"message":{"content":"\xff"}}\n', BadResponse, "not Ollama's"),
        (b'{"message":{"content":"\\ud800"}}\n', BadResponse, "not Ollama's"),
        (b'{"a":' + b"[" * 100_000 + b"\n", BadResponse, "not Ollama's"),
        (b'{"error":"out of memory"}\n', TargetSaid, "out of memory"),
        (b'{"error":"out of memory"}', TargetSaid, "out of memory"),
        (CHAT[:-3], IncompleteResponse, "done: true"),
        (b"", IncompleteResponse, "done: true"),
    ],
)
def test_bad_streams(bench: Bench, stream: bytes, kind: type[Exception], says: str) -> None:
    """Each is named for what it is."""
    with pytest.raises(kind, match=says):
        bench.assemble(stream)


def test_a_line_without_end(bench: Bench) -> None:
    """It is given up at a limit, not when memory is."""
    assembly = bench.make()
    with pytest.raises(BadResponse, match="longer than"):
        for _ in range(LINE_LIMIT_BYTES // (1 << 20) + 1):
            assembly.receive(b"x" * (1 << 20))


@pytest.mark.parametrize("size", [PIECE_BYTES - 1, PIECE_BYTES, PIECE_BYTES + 1, 3 * PIECE_BYTES])
def test_pieces_are_cut_exactly(bench: Bench, size: int) -> None:
    """All but the last are full."""
    assembly = bench.make()
    assembly.receive(chat('"content":"' + "x" * size + '"', END))
    assembly.end()
    draft = assembly.drafts()[1]
    cut = Cut(draft)
    pieces = list(cut.pieces())
    assert [len(piece) for piece in pieces[:-1]] == [PIECE_BYTES] * (len(pieces) - 1)
    assert (cut.artifact().size, cut.artifact().pieces) == (size, len(pieces))
    assert draft.small == (size < PIECE_BYTES)


def test_fifty_megabytes_in_bounded_memory(bench: Bench) -> None:
    """Text, thoughts and the answer that holds both: none is ever whole in memory."""
    assembly = bench.make()
    part = "é" * 50_000
    tracemalloc.start()
    try:
        for kind in ("thinking", "content"):
            line = chat(f'"{kind}":"{part}"')
            for _ in range(250):
                assembly.receive(line)
        assembly.receive(chat('"content":""', END))
        assembly.end()
        sizes = {draft.name: sum(map(len, Cut(draft).pieces())) for draft in assembly.drafts()}
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert sizes["content.txt"] == sizes["thinking.txt"] == 25_000_000
    assert sizes["response.json"] > 50_000_000
    assert peak < 6_000_000


def test_embeddings() -> None:
    """The answer as it came, and its numbers alone."""
    answer = b'{"model":"m","embeddings":[[0.1,-2e-3]],"load_duration":5,"prompt_eval_count":2}'
    assembly = EmbeddingAssembly()
    for start in range(0, len(answer), 7):
        assembly.receive(answer[start : start + 7])
    assembly.end()
    found = {draft.name: b"".join(Cut(draft).pieces()) for draft in assembly.drafts()}
    assert found == {"response.json": answer, "embeddings.json": b"[[0.1,-2e-3]]"}
    assert (assembly.facts.load_duration, assembly.facts.prompt_eval_count) == (5, 2)


@pytest.mark.parametrize("answer", [b"", b"{", b"[]", b'{"model":"m"}'])
def test_bad_embeddings(answer: bytes) -> None:
    """No artifact is made of them."""
    assembly = EmbeddingAssembly()
    assembly.receive(answer)
    with pytest.raises(BadResponse):
        assembly.end()
    assert assembly.drafts() == []
