"""The outputs of a run while it runs: files without a name beside the database, small ones in memory."""

from collections.abc import Callable, Iterable, Iterator
from hashlib import sha256
from tempfile import SpooledTemporaryFile

from attrs import define, field, frozen

from foreman.jobs.model import PIECE_BYTES, Artifact


@define(eq=False)
class Spooled:
    """Bytes that are written once and read often: up to one piece in memory, more in a file of `folder`.

    Raises OSError when the disk is full.
    """

    _folder: str
    size: int = field(default=0, init=False)
    _file: "SpooledTemporaryFile[bytes]" = field(init=False)

    def __attrs_post_init__(self) -> None:
        # The caller closes it: it lives as long as its run.
        self._file = SpooledTemporaryFile(max_size=PIECE_BYTES, dir=self._folder)  # noqa: SIM115

    def write(self, data: bytes) -> None:
        """Append."""
        self._file.write(data)
        self.size += len(data)

    def chunks(self) -> Iterator[bytes]:
        """What was written, in chunks of one piece. Nothing is written, or read elsewhere, meanwhile."""
        self._file.seek(0)
        while chunk := self._file.read(PIECE_BYTES):
            yield chunk

    def close(self) -> None:
        """Forget what was written."""
        self._file.close()


@frozen
class Draft:
    """An artifact that is not stored yet. `chunks` gives its bytes, as often as it is called."""

    name: str
    content_type: str
    chunks: Callable[[], Iterable[bytes]]
    size_hint: int

    @property
    def small(self) -> bool:
        """It most likely is one piece, which is written with the finish of its job."""
        return self.size_hint < PIECE_BYTES


@define(eq=False)
class Cut:
    """Cuts an artifact's bytes into its pieces, and knows its facts when all of them were taken."""

    draft: Draft
    _size: int = field(default=0, init=False)
    _digest: "sha256" = field(factory=sha256, init=False)  # type: ignore[valid-type]

    def pieces(self) -> Iterator[bytes]:
        """All of `PIECE_BYTES`, but the last may be smaller."""
        rest = bytearray()
        for chunk in self.draft.chunks():
            rest += chunk
            while len(rest) >= PIECE_BYTES:
                yield self._counted(bytes(rest[:PIECE_BYTES]))
                del rest[:PIECE_BYTES]
        if rest:
            yield self._counted(bytes(rest))

    def artifact(self) -> Artifact:
        """The facts, once `pieces` came to its end."""
        draft = self.draft
        return Artifact(draft.name, draft.content_type, self._size, self._digest.hexdigest())  # type: ignore[attr-defined]

    def _counted(self, piece: bytes) -> bytes:
        self._size += len(piece)
        self._digest.update(piece)  # type: ignore[attr-defined]
        return piece
