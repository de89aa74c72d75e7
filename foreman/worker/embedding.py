"""An answer with embeddings becomes a job's artifacts."""

from attrs import define, field

from foreman.errors import BadResponse, TargetSaid
from foreman.jobs.model import RESULT
from foreman.worker.assemble import JSON, LINES, Facts
from foreman.worker.composing import OBJECTS, decode, error_text
from foreman.worker.outputs import Draft

EMBEDDINGS_LIMIT_BYTES = 64 * 1024 * 1024
"""The longest answer with embeddings that is read: 1,000 of 4,096 numbers are under 50 MiB."""


@define(eq=False)
class EmbeddingAssembly:
    """Of `/api/embed` and `/api/embeddings`: one answer, kept whole until its end."""

    phase: str = field(default="starting", init=False)
    tokens: int = field(default=0, init=False)
    complete: bool = field(default=False, init=False)
    facts: Facts = field(factory=Facts, init=False)
    _chunks: list[bytes] = field(factory=list, init=False)
    _size: int = field(default=0, init=False)
    _embeddings: bytes = field(default=b"", init=False)

    def receive(self, data: bytes) -> None:
        """Keep it."""
        self.phase = "embedding"
        self._chunks.append(data)
        self._size += len(data)
        if self._size > EMBEDDINGS_LIMIT_BYTES:
            raise BadResponse(f"the target's answer is longer than {EMBEDDINGS_LIMIT_BYTES} bytes")

    def end(self) -> None:
        """Read it."""
        text = b"".join(self._chunks)
        self._chunks = [text]
        fields = decode(OBJECTS, text)
        if "error" in fields:
            raise TargetSaid(error_text(fields["error"]))
        found = fields.get("embeddings", fields.get("embedding"))
        if found is None:
            raise BadResponse("the target's answer holds no embeddings")
        line = decode(LINES, text)
        self.facts = Facts(line.load_duration, line.prompt_eval_count)
        self._embeddings = bytes(found)
        self.complete = True

    def drafts(self) -> list[Draft]:
        """Nothing before it is complete."""
        if not self.complete:
            return []
        return [
            Draft(RESULT, JSON, lambda: self._chunks, self._size),
            Draft("embeddings.json", JSON, lambda: (self._embeddings,), len(self._embeddings)),
        ]

    def close(self) -> None:
        """Forget it."""
        self._chunks, self._embeddings = [], b""
