"""Where large request bodies are kept while they are on their way: nameless files beside the database."""

import os
from tempfile import TemporaryFile
from typing import IO, cast

from attrs import frozen


@frozen
class Spool:
    """`folder` is the database's; `reserve_bytes` of its disk are never used."""

    folder: str
    reserve_bytes: int

    def has_room(self, size_bytes: int) -> bool:
        """Whether the disk has room for that much beyond the reserve."""
        disk = os.statvfs(self.folder)
        return disk.f_bavail * disk.f_frsize >= size_bytes + self.reserve_bytes

    def open(self) -> IO[bytes]:
        """A file without a name, so that a crash leaves nothing behind."""
        return cast(IO[bytes], TemporaryFile(dir=self.folder))
