"""The header of a GGUF file: what a model says about itself, without loading its weights.

Source of the layout: the GGUF specification, versions 2 and 3 (little-endian; magic, version, counts,
key-values, tensor infos). The header of a small model is about 2 MB, most of it the vocabulary, and reads in
about 0.05 s.
"""

import mmap
import struct
from math import prod
from pathlib import Path

from attrs import frozen

MAGIC = b"GGUF"

STRING, ARRAY = 8, 9

SCALARS = {
    0: struct.Struct("<B"),
    1: struct.Struct("<b"),
    2: struct.Struct("<H"),
    3: struct.Struct("<h"),
    4: struct.Struct("<I"),
    5: struct.Struct("<i"),
    6: struct.Struct("<f"),
    7: struct.Struct("<?"),
    10: struct.Struct("<Q"),
    11: struct.Struct("<q"),
    12: struct.Struct("<d"),
}

# general.file_type, as llama.cpp numbers it, to the word that Ollama shows as quantization_level.
QUANTIZATIONS = {
    0: "F32",
    1: "F16",
    2: "Q4_0",
    3: "Q4_1",
    7: "Q8_0",
    8: "Q5_0",
    9: "Q5_1",
    10: "Q2_K",
    11: "Q3_K_S",
    12: "Q3_K_M",
    13: "Q3_K_L",
    14: "Q4_K_S",
    15: "Q4_K_M",
    16: "Q5_K_S",
    17: "Q5_K_M",
    18: "Q6_K",
    32: "BF16",
}

Value = str | int | float | bool | None


class GgufError(ValueError):
    """The file is not a GGUF file that can be read; the message says why."""


@frozen
class Header:
    """What the header says. Arrays (the vocabulary) are None, as Ollama shows them without `verbose`."""

    values: dict[str, Value]
    parameter_count: int

    @property
    def family(self) -> str:
        """The architecture, `llama` for example."""
        return str(self.values.get("general.architecture", "unknown"))

    @property
    def quantization(self) -> str:
        """The quantization in llama.cpp's words, `Q4_1` for example."""
        return QUANTIZATIONS.get(self._int("general.file_type", -1), "unknown")

    @property
    def parameter_size(self) -> str:
        """The parameter count as Ollama writes it: `134.52M`, `1.24B`."""
        millions = self.parameter_count / 1e6
        return f"{millions / 1e3:.2f}B" if millions >= 1e3 else f"{millions:.2f}M"

    @property
    def trained_context(self) -> int | None:
        """The context length in tokens that the model was trained for, if it says so."""
        return self._int(f"{self.family}.context_length", 0) or None

    def _int(self, key: str, default: int) -> int:
        value = self.values.get(key)
        return value if isinstance(value, int) else default


def read_header(path: Path) -> Header:
    """Read the header of the file at `path`. Raises GgufError, or OSError when the file cannot be opened."""
    with path.open("rb") as file:
        if file.read(4) != MAGIC:
            raise GgufError(f"{path} is not a GGUF file: it does not begin with the letters GGUF")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            try:
                return _Reader(data).header()
            except (struct.error, KeyError, UnicodeDecodeError) as error:
                # The error's own text can carry the whole string that it choked on.
                kind = type(error).__name__
                raise GgufError(f"{path} has a broken GGUF header: {kind}") from None


class _Reader:
    def __init__(self, data: mmap.mmap) -> None:
        self._data = data
        self._at = len(MAGIC)

    def header(self) -> Header:
        self._scalar(4)
        tensors = int(self._scalar(10))
        values = {}
        for _ in range(int(self._scalar(10))):
            key = self._string()
            values[key] = self._value(int(self._scalar(4)))
        return Header(values, sum(self._tensor_size() for _ in range(tensors)))

    def _scalar(self, kind: int) -> int | float | bool:
        layout = SCALARS[kind]
        (value,) = layout.unpack_from(self._data, self._at)
        self._at += layout.size
        return value  # type: ignore[no-any-return]

    def _string(self) -> str:
        length = int(self._scalar(10))
        text = self._data[self._at : self._at + length].decode("utf-8")
        self._at += length
        return text

    def _value(self, kind: int) -> Value:
        if kind == STRING:
            return self._string()
        if kind == ARRAY:
            self._skip_array()
            return None
        return self._scalar(kind)

    def _skip_array(self) -> None:
        kind, count = int(self._scalar(4)), int(self._scalar(10))
        if kind in SCALARS:
            self._at += SCALARS[kind].size * count
            return
        for _ in range(count):
            if kind == ARRAY:
                self._skip_array()
            else:
                length = int(self._scalar(10))
                self._at += length

    def _tensor_size(self) -> int:
        self._string()
        shape = [int(self._scalar(10)) for _ in range(int(self._scalar(4)))]
        self._scalar(4)
        self._scalar(10)
        return prod(shape)
