"""Ollama's rules for model names."""

import pytest

from foreman.target.names import canonical, is_cloud

FULL = "registry.ollama.ai/library/llama3.2:latest"


@pytest.mark.parametrize(
    ("name", "full"),
    [
        ("llama3.2", FULL),
        ("llama3.2:latest", FULL),
        ("LLaMa3.2:LATEST", FULL),
        ("library/llama3.2", FULL),
        ("registry.ollama.ai/library/llama3.2:latest", FULL),
        ("https://registry.ollama.ai/library/llama3.2:latest", FULL),
        ("  llama3.2 ", FULL),
        ("llama3.2:local", FULL),
        ("llama3.2:latest:Local", FULL),
        ("llama3.2:8b", "registry.ollama.ai/library/llama3.2:8b"),
        ("llama3.2:8b:local", "registry.ollama.ai/library/llama3.2:8b"),
        ("me/mine", "registry.ollama.ai/me/mine:latest"),
        ("hf.co/some/Model-GGUF:Q4_K_M", "hf.co/some/model-gguf:q4_k_m"),
        ("localhost:5000/me/mine", "localhost:5000/me/mine:latest"),
        ("localhost:5000/me/mine:1b", "localhost:5000/me/mine:1b"),
    ],
)
def test_canonical(name: str, full: str) -> None:
    """Every spelling of a name has one full form: defaults filled in, lower case, no ``:local``."""
    assert canonical(name) == full


@pytest.mark.parametrize("name", ["", ":", "/", "a/b/c/d/e", "x:", "\x00", "a b"])
def test_canonical_of_anything(name: str) -> None:
    """A name that Ollama would refuse gives a string of its own too, and no error."""
    assert canonical(name) != FULL


@pytest.mark.parametrize(
    ("name", "cloud"),
    [
        ("gpt-oss:120b-cloud", True),
        ("gpt-oss:120b-Cloud", True),
        ("kimi:cloud", True),
        ("kimi:CLOUD", True),
        ("me/kimi:cloud", True),
        ("kimi", False),
        ("kimi-cloud", False),
        ("cloud", False),
        ("kimi:8b", False),
        ("kimi:cloudy", False),
        ("host:5000/me/kimi-cloud", False),
        ("", False),
    ],
)
def test_is_cloud(name: str, cloud: bool) -> None:
    """Only the tag decides: ``cloud``, or an end of ``-cloud``, in any case of letters."""
    assert is_cloud(name) is cloud
