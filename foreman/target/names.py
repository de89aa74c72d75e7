"""Ollama's rules for model names.

A name is ``[[host/]namespace/]model[:tag]``, compared without regard to case. A last tag of ``local``
or ``cloud`` is no tag of the model: it says where the model runs.
"""

DEFAULT_HOST = "registry.ollama.ai"
DEFAULT_NAMESPACE = "library"
DEFAULT_TAG = "latest"


def canonical(name: str) -> str:
    """Return the full lower-case spelling ``host/namespace/model:tag`` of a model's name.

    Two names mean the same model exactly when their canonical names are equal. A name that Ollama would
    refuse gives some string that equals no installed model's.
    """
    bare = name.strip().lower()
    before, colon, tag = bare.rpartition(":")
    if colon and tag.strip() == "local":
        bare = before
        before, colon, tag = bare.rpartition(":")
    # A colon before the last slash belongs to the host's port.
    if not colon or "/" in tag:
        before, tag = bare, DEFAULT_TAG
    host_and_namespace, _, model = before.rpartition("/")
    host, _, namespace = host_and_namespace.rpartition("/")
    host = host.partition("://")[2] or host
    return f"{host or DEFAULT_HOST}/{namespace or DEFAULT_NAMESPACE}/{model}:{tag or DEFAULT_TAG}"


def is_cloud(name: str) -> bool:
    """Say whether a name asks for a model in Ollama's cloud, which does not use the local GPU."""
    _, colon, tag = name.rpartition(":")
    tag = tag.strip().lower()
    return bool(colon) and "/" not in tag and (tag == "cloud" or tag.endswith("-cloud"))
