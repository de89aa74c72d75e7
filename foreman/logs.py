"""Where the log goes when no twistd option says otherwise."""

import sys

from twisted.logger import ILogObserver, textFileLogObserver


def stderr_observer() -> ILogObserver:
    """One line an event on standard error; for ``twistd --logger=foreman.logs.stderr_observer``."""
    return textFileLogObserver(sys.stderr)
