"""``twistd foreman``: options, and the way to the service."""

import os

from twisted.application.service import IService
from twisted.python.usage import Options as UsageOptions

from foreman.service import build_service


class Options(UsageOptions):
    """There are none: the settings are ``FOREMAN_*`` environment variables (docs/reference/settings.md)."""

    synopsis = "Usage: twistd [twistd options] foreman"
    longdesc = "A queue and a relay in front of one Ollama. Settings are FOREMAN_* environment variables."


def make_service(_options: Options | None = None) -> IService:
    """Build the daemon for the plugin, for ``foreman.tac`` and for ``foreman serve``."""
    # Late: `twistd --reactor=…` has to install its own first.
    from twisted.internet import reactor

    return build_service(reactor, os.environ)


# twistd looks for this name.
makeService = make_service  # noqa: N816
