"""One daemon for each database: an exclusive lock on the file beside it."""

import fcntl
import os


class LockHeldError(Exception):
    """Another process holds the lock."""


class FileLock:
    """
    ``flock`` on a file, held until the process ends, however it ends.

    ``flock`` and not ``lockf``: a POSIX record lock belongs to the process and is lost in the fork with
    which twistd becomes a daemon [tried]; this one belongs to the open file, and is inherited.
    """

    def __init__(self, path: str) -> None:
        """
        Take the lock. Raises LockHeldError when another process has it, OSError when the file cannot be made.
        """
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._descriptor)
            raise LockHeldError(path) from None

    def release(self) -> None:
        """Give the lock back."""
        os.close(self._descriptor)
