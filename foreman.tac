"""``twistd -ny foreman.tac``: the same daemon as ``twistd -n foreman``."""

from twisted.application.service import Application

from foreman.tap import make_service

application = Application("foreman")
make_service().setServiceParent(application)
