"""A sender of webhooks without a network: it notes what is sent, and answers when a test says so."""

from collections.abc import Sequence

from attrs import define, field, frozen
from twisted.internet.defer import Deferred

from foreman.webhooks.sender import Outcome

SILENCE = Outcome(None, None, "timeout", "the receiver was silent", None, b"", 15_000, None)
"""What comes of a receiver that does not answer."""


def answer(status: int, response: bytes = b"", retry_after: bytes | None = None) -> Outcome:
    """What comes of a receiver that answers at once."""
    return Outcome("10.0.0.5", status, None, f"it answered {status}", retry_after, response, 1, None)


@frozen
class Post:
    """One attempt. `headers` are by their names in lower case."""

    url: str
    headers: dict[str, str]
    body: bytes
    _done: "Deferred[Outcome]"

    def end(self, outcome: Outcome) -> None:
        """The attempt ends like this."""
        self._done.callback(outcome)


@define(eq=False)
class ScriptedSender:
    """Each attempt ends at once with `outcome`; while that is None, each waits for its `Post.end`."""

    outcome: Outcome | None = None
    posts: list[Post] = field(factory=list)
    open: list[Post] = field(factory=list)

    async def send(self, url: str, headers: Sequence[tuple[bytes, bytes]], body: bytes) -> Outcome:
        """One attempt."""
        done: Deferred[Outcome] = Deferred()
        named = {name.decode().lower(): value.decode() for name, value in headers}
        post = Post(url, named, body, done)
        self.posts.append(post)
        self.open.append(post)
        if self.outcome is not None:
            post.end(self.outcome)
        try:
            return await done
        finally:
            self.open.remove(post)
