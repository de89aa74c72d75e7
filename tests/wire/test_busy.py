"""The bounded queue of native requests: how many may wait, and what the others are told."""

from collections import Counter

import pytest
from fronts import Bench
from raw_client import post
from streams import PATHS, exchange, sentence_of
from turn_rig import reactor
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.task import deferLater

BUSY = "server busy, please try again.  maximum pending requests exceeded"


@pytest.mark.parametrize("stream", [True, False])
async def test_exactly_as_many_wait_as_may(bench: Bench, stream: bool):
    """Of 100 at once 20 wait; the others get Ollama's own words with 503, each in the dialect of its path."""
    exchanges = [exchange(path, stream) for path in PATHS]
    target, port = bench.replay(*exchanges)
    front = await bench.front(port, interactive_limit="20")
    turn = front.parts.turn
    async with turn.take("HELD", None):
        clients = await gatherResults(
            [Deferred.fromCoroutine(front.connect()) for _ in range(100)], consumeErrors=True
        )
        for number, client in enumerate(clients):
            client.send(exchanges[number % len(PATHS)].request)
        await front.until(lambda: sum(bool(client._pieces) for client in clients) >= 80)
        await deferLater(reactor, 0.05)
        refused = [number for number, client in enumerate(clients) if client._pieces]
        assert len(refused) == 80
        assert turn.waiting == 20
        for number in refused:
            path = PATHS[number % len(PATHS)]
            got = await clients[number].answer()
            assert (got.status, sentence_of(path, got.json)) == (503, BUSY)
            assert len(got.header(b"X-Foreman-Job-Id") or b"") == 26
            assert int(got.header(b"X-Foreman-Queue-Ms") or b"-1") < 50  # it did not wait
        assert not target.received
        # Who leaves makes room for one, and for no more.
        last = next(number for number in range(100) if number not in refused)
        clients[last].leave()
        await clients[last].closed()
        await front.until(lambda: turn.waiting == 19)
        late = [await front.connect() for _ in range(2)]
        for client in late:
            client.send(exchanges[0].request)
        await front.until(lambda: any(client._pieces for client in late))
        assert turn.waiting == 20
    statuses: Counter[int] = Counter()
    for client in (*late, *(clients[number] for number in range(100) if number not in {*refused, last})):
        statuses[(await client.answer()).status] += 1
    assert statuses == {200: 20, 503: 1}
    assert len(target.received) == 20
    assert turn.free
    for client in (*late, *clients):
        client.close()
        await client.closed()


async def test_what_can_start_at_once_is_never_refused(bench: Bench):
    """With a limit of 0 nobody may wait, and a free turn is still anybody's; the load form counts as well."""
    good = exchange("/api/chat", True)
    load = post("/api/generate", {"model": "smol"})
    _, port = bench.replay(good)
    front = await bench.front(port, interactive_limit="0")
    for _ in range(2):
        assert (await front.ask(good.request)).status == 200
        async with front.parts.turn.take("HELD", None):
            for request in (good.request, load):
                got = await front.ask(request)
                assert (got.status, got.json) == (503, {"error": BUSY})


async def test_a_lowered_request_counts_as_well(bench: Bench):
    """It waits on its connection, whatever its lane."""
    good = exchange("/api/chat", True)
    lowered = good.request.replace(b"\r\n", b"\r\nX-Foreman-Lane: durable\r\n", 1)
    _, port = bench.replay(good)
    front = await bench.front(port, interactive_limit="1")
    async with front.parts.turn.take("HELD", None):
        client = await front.connect()
        client.send(lowered)
        await front.until(lambda: front.parts.turn.waiting == 1)
        for request in (good.request, lowered):
            assert (await front.ask(request)).json == {"error": BUSY}
    assert (await client.answer()).status == 200
    client.close()
    await client.closed()
