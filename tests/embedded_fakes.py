"""A scripted engine and a made-up model: the embedded target without llama.cpp."""

import struct
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from attrs import Factory, define
from twisted.internet.defer import Deferred, succeed

from foreman.embedded.engine import Embeddings, Finish, Sampling
from foreman.embedded.gguf import Header
from foreman.embedded.models import EmbeddedModel

FINISH = Finish(reason="stop", prompt_tokens=7, prompt_seconds=0.5, tokens=2, seconds=0.25)


def made_up_model(name: str, weights: str = "w1", num_ctx: int = 2048) -> EmbeddedModel:
    """A model whose weights are a word."""
    header = Header(
        {"general.architecture": "llama", "general.file_type": 3, "llama.context_length": 8192}, 134515008
    )
    modified_at = datetime(2026, 1, 1, tzinfo=UTC)
    return EmbeddedModel(name, Path("/models") / weights, num_ctx, weights, header, 1000, modified_at)


@define(eq=False)
class ScriptedEngine:
    """Answers `words` at once; with `held`, each piece of work waits until the test fires it."""

    words: Sequence[str] = ("Hel", "lo")
    held: bool = False
    log: list[str] = Factory(list)
    """What was asked, in order: `load w1 2048`, `chat`, …"""
    pending: list[Deferred[Any]] = Factory(list)
    """The work that waits, oldest first; cancelled ones stay."""
    cancelled: int = 0

    def load(self, weights: Path, num_ctx: int) -> Deferred[None]:
        return self._work(f"load {weights.name} {num_ctx}", None)

    def unload(self) -> Deferred[None]:
        return self._work("unload", None)

    def chat(
        self, messages: Sequence[Mapping[str, str]], sampling: Sampling, on_text: Callable[[str], None]
    ) -> Deferred[Finish]:
        return self._say("chat", on_text)

    def complete(self, prompt: str, sampling: Sampling, on_text: Callable[[str], None]) -> Deferred[Finish]:
        return self._say("complete", on_text)

    def embed(self, texts: Sequence[str]) -> Deferred[Embeddings]:
        return self._work("embed", Embeddings([[0.6, 0.8] for _ in texts], len(texts)))

    def _say(self, what: str, on_text: Callable[[str], None]) -> Deferred[Finish]:
        for word in self.words:
            on_text(word)
        return self._work(what, FINISH)

    def _work(self, what: str, result: Any) -> Deferred[Any]:
        self.log.append(what)
        if not self.held:
            return succeed(result)
        work: Deferred[Any] = Deferred(self._cancel)
        self.pending.append(work)
        return work

    def _cancel(self, work: Deferred[Any]) -> None:
        self.cancelled += 1


def gguf_bytes(architecture: str = "llama", context_length: int = 4096) -> bytes:
    """A small whole GGUF header: four values, an array, and one tensor of 2 x 3."""

    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value.encode())) + value.encode()

    values = [
        text("general.architecture") + struct.pack("<I", 8) + text(architecture),
        text("general.file_type") + struct.pack("<II", 4, 7),
        text(f"{architecture}.context_length") + struct.pack("<II", 4, context_length),
        text("tokenizer.ggml.tokens") + struct.pack("<IIQ", 9, 8, 2) + text("a") + text("bé"),
        text("tokenizer.ggml.scores") + struct.pack("<IIQ", 9, 6, 2) + struct.pack("<ff", 1.0, 2.0),
        text("tokenizer.ggml.add_bos_token") + struct.pack("<I?", 7, True),
    ]
    tensor = text("token_embd.weight") + struct.pack("<IQQIQ", 2, 2, 3, 0, 0)
    return b"GGUF" + struct.pack("<IQQ", 3, 1, len(values)) + b"".join(values) + tensor
