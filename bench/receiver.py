"""
A receiver of webhooks that costs next to nothing.

Run as ``python -m bench.receiver``; prints its port. ``GET /arrivals`` gives the moment of the first byte of
each event, in epoch seconds, by its id.
"""

import asyncio
import json
import re
import time

ARRIVED: dict[str, float] = {}
_ID = re.compile(rb"webhook-id: (\w+)", re.IGNORECASE)
_LENGTH = re.compile(rb"content-length: (\d+)", re.IGNORECASE)


class _Connection(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Nothing has come yet."""
        self._transport, self._data, self._began = transport, b"", 0.0

    def data_received(self, data: bytes) -> None:
        """A part of a request."""
        if not self._data:
            self._began = time.time()
        self._data += data
        head, end, rest = self._data.partition(b"\r\n\r\n")
        length = _LENGTH.search(head)
        if not end or len(rest) < (int(length[1]) if length else 0):
            return
        self._data = b""
        found = _ID.search(head)
        if found:
            ARRIVED.setdefault(found[1].decode(), self._began)
            self._transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        else:
            body = json.dumps(ARRIVED).encode()
            self._transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)


async def _main() -> None:
    server = await asyncio.get_running_loop().create_server(_Connection, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(_main())
