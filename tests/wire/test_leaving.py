"""A client that leaves in the very moment in which foreman connects to the target."""

from pathlib import Path

import pytest
from intake_helpers import request, turn_of_the_reactor, wired

from foreman.target.endpoint import target_endpoint


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
@pytest.mark.parametrize("turns", range(5))
async def test_leaving_while_foreman_connects(turns: int, host: str, tmp_path: Path) -> None:
    """
    Whether the target's name is being resolved or its connection made: the turn is free, the target is not
    taken for unreachable, and nothing is logged (the fixture for all tests looks).
    """
    from twisted.internet import reactor

    async with wired(tmp_path) as foreman:
        port = foreman.parts.relay._url.rpartition(":")[2]
        foreman.parts.connections._endpoint = target_endpoint(reactor, f"http://{host}:{port}", 5)
        for _ in range(3):
            client = await foreman.connect()
            client.send(request("POST", "/api/generate", body=b'{"model":"alpha","prompt":"x"}'))
            while foreman.parts.turn.holder is None:
                await turn_of_the_reactor()
            for _ in range(turns):
                await turn_of_the_reactor()
            client.close()
            await client.gone()
            while foreman.parts.turn.holder is not None:
                await turn_of_the_reactor()
            assert foreman.parts.reachability.up
        answer = await foreman.ask("POST", "/api/generate", body=b'{"model":"alpha","prompt":"x"}')
        assert answer.status == 200
