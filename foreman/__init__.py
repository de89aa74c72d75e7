"""foreman: a daemon in front of one Ollama."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("foreman")
except PackageNotFoundError:  # run from a checkout that was never installed
    __version__ = "0+unknown"
