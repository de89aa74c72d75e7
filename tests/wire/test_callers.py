"""Callers on the wire: they take turns, they may lower themselves, and the target hears nothing of it."""

import json
import socket
from pathlib import Path

import pytest
from fronts import Bench, Front
from raw_client import RawClient, get, post
from streams import exchange
from twisted.internet.endpoints import TCP4ClientEndpoint, UNIXClientEndpoint, connectProtocol

from foreman.testing.replay import Recording, ReplayTarget

ANSWER = b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 13\r\n\r\n{"done":true}'


def ask(name: str, *headers: str) -> bytes:
    """A request that the target can tell from the others."""
    return post("/api/chat", {"model": "smol", "messages": [{"content": name}], "stream": False}, *headers)


def target_of(bench: Bench, *names: str) -> tuple[ReplayTarget, int]:
    """A target that answers these."""
    return bench.replay(*(Recording(name, ask(name), ANSWER) for name in names))


def order(target: ReplayTarget) -> list[str]:
    """The names, as the target got them."""
    return [json.loads(received.body)["messages"][0]["content"] for received in target.received]


async def send(front: Front, client: RawClient, request: bytes) -> None:
    """Send a request, and see it wait."""
    before = front.parts.turn.waiting
    client.send(request)
    await front.until(lambda: front.parts.turn.waiting == before + 1)


async def end(*clients: RawClient) -> None:
    """Take the answers, which are good, and close."""
    for client in clients:
        assert (await client.answer()).status == 200
        client.close()
        await client.closed()


async def test_a_caller_may_lower_its_request(bench: Bench):
    """By priority within its lane; in the durable lane behind who waits in the interactive one."""
    asked = {
        "batch, low": ("X-Foreman-Lane: durable", "X-Foreman-Priority: -1"),
        "batch": ("x-foreman-lane: Durable",),
        "lower": ("X-Foreman-Priority: -7",),
        "low": ("X-Foreman-Priority: -3",),
        "plain": (),
        "raised": ("X-Foreman-Priority: 9",),
        "nonsense": ("X-Foreman-Priority: urgent", "X-Foreman-Lane: fast"),
    }
    target, port = target_of(bench, "load", *asked)
    # A share of 1: the durable lane is owed nothing while the other has work.
    front = await bench.front(port, interactive_share="1")
    assert (await front.ask(ask("load"))).status == 200  # a lane whose model is loaded goes first
    clients = []
    async with front.parts.turn.take("HELD", None):
        for name, headers in asked.items():
            clients.append(await front.connect())
            await send(front, clients[-1], ask(name, *headers))
    await end(*clients)
    assert order(target)[1:] == ["plain", "raised", "nonsense", "low", "lower", "batch", "batch, low"]


async def test_a_lowered_request_leaves_with_its_connection(bench: Bench):
    """It is no durable job."""
    target, port = target_of(bench, "batch")
    front = await bench.front(port)
    async with front.parts.turn.take("HELD", None):
        client = await front.connect()
        await send(front, client, ask("batch", "X-Foreman-Lane: durable"))
        client.leave()
        await client.closed()
        await front.until(lambda: front.parts.turn.waiting == 0)
    assert not target.received


@pytest.mark.parametrize("path", ["/api/chat", "/api/version"])
async def test_headers_for_foreman_are_not_sent_on(bench: Bench, path: str):
    """Neither these two nor any other `X-Foreman-…`, whether the request takes a turn or not; others are."""
    headers = ("X-Foreman-Lane: durable", "x-foreman-priority: -1", "X-FOREMAN-Other: 1", "X-Foreign: 1")
    plain = exchange(path, False).request if path == "/api/chat" else get(path)
    target, port = bench.replay(Recording(path, plain, ANSWER))
    front = await bench.front(port)
    head, body = plain.split(b"\r\n\r\n", 1)
    got = await front.ask("\r\n".join([head.decode(), *headers, "", ""]).encode() + body)
    assert got.status == 200
    (received,) = target.received
    assert b"x-foreman" not in received.head.lower()
    assert received.header(b"x-foreign") == [b"1"]


def can_bind(address: str) -> bool:
    """Linux has the whole of 127.0.0.0/8 on its loopback; others have one address of it."""
    with socket.socket() as bound:
        try:
            bound.bind((address, 0))
        except OSError:
            return False
    return True


@pytest.mark.skipif(not can_bind("127.0.0.2"), reason="this machine's loopback has one address")
async def test_callers_take_turns_by_address(bench: Bench):
    """A script with many requests does not make a person wait for all of them."""
    names = [f"script {number}" for number in range(10)]
    target, port = target_of(bench, *names, "person")
    front = await bench.front(port)
    scripts = [await front.connect() for _ in names]
    person = RawClient(front.reactor)
    endpoint = TCP4ClientEndpoint(
        front.reactor, "127.0.0.1", front.port, timeout=5, bindAddress=("127.0.0.2", 0)
    )
    await connectProtocol(endpoint, person)
    async with front.parts.turn.take("HELD", None):
        for name, script in zip(names, scripts, strict=True):
            await send(front, script, ask(name))
        await send(front, person, ask("person"))
    await end(*scripts, person)
    assert order(target).index("person") <= 1
    assert [name for name in order(target) if name != "person"] == names


async def test_callers_on_a_unix_socket(bench: Bench, tmp_path: Path):
    """They have no address: they are one caller, and get their answers."""
    target, port = target_of(bench, "x")
    front = await bench.front(port)
    path = str(tmp_path / "foreman.sock")
    bench.ports.append(front.reactor.listenUNIX(path, front.parts.site))
    client = RawClient(front.reactor)
    await connectProtocol(UNIXClientEndpoint(front.reactor, path), client)
    client.send(ask("x"))
    await end(client)
    assert order(target) == ["x"]
