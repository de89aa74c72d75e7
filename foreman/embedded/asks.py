"""Requests for work, read from their JSON bodies: chat, generate and embed."""

from collections.abc import Mapping
from typing import Any

from attrs import frozen

from foreman.embedded.engine import Sampling
from foreman.embedded.keep_alive import KeepAliveError, parse_keep_alive
from foreman.embedded.wire import OllamaError, decode, go_kind

# Without a num_predict of its own a request gets this many tokens: a model of 135M may never stop by itself.
DEFAULT_NUM_PREDICT = 256

GO_TYPES: dict[type, str] = {
    str: "string",
    bool: "bool",
    list: "[]api.Message",
    dict: "map[string]interface {}",
}

OPTION_TYPES: dict[str, tuple[type | tuple[type, ...], str]] = {
    "num_ctx": ((int, float), "integer"),
    "num_predict": ((int, float), "integer"),
    "seed": ((int, float), "integer"),
    "top_k": ((int, float), "integer"),
    "temperature": ((int, float), "float32"),
    "top_p": ((int, float), "float32"),
    "stop": (list, "array"),
}


@frozen
class Options:
    """The options that the embedded target honours; others are ignored, as Ollama ignores unknown ones."""

    num_ctx: int | None
    sampling: Sampling


@frozen
class Ask:
    """One request for the model. Exactly one of `messages`, `prompt` and `inputs` is given."""

    model: str
    """As the caller spelled it: the answer echoes it."""
    stream: bool
    keep_alive: float | None
    options: Mapping[str, Any]
    format: Any = None
    messages: tuple[Mapping[str, str], ...] | None = None
    prompt: str | None = None
    """A raw prompt, without a template."""
    inputs: tuple[str, ...] | None = None
    wants: tuple[str, ...] = ()
    """Abilities that the request needs: `tools`, `insert`, `thinking`."""

    @property
    def empty(self) -> bool:
        """Nothing to work on: the form that loads or unloads the model."""
        return not (self.messages or self.prompt or self.inputs)


def read_chat(body: bytes) -> Ask:
    """A body of `POST /api/chat`. Raises OllamaError."""
    fields = _Fields("ChatRequest", decode(body))
    messages = []
    for message in fields.get("messages", list) or []:
        entry = _Fields("Message", {key.lower(): value for key, value in _object(message).items()})
        messages.append({"role": entry.get("role", str) or "", "content": entry.get("content", str) or ""})
    return fields.ask(messages=tuple(messages))


def read_generate(body: bytes) -> Ask:
    """A body of `POST /api/generate`. Raises OllamaError.

    The prompt goes through the model's template as one user message, after `system` if that is given; with
    `raw` it goes in as it is.
    """
    fields = _Fields("GenerateRequest", decode(body))
    prompt, system = fields.get("prompt", str) or "", fields.get("system", str)
    if fields.get("raw", bool):
        return fields.ask(prompt=prompt)
    messages = [{"role": "system", "content": system}] if system else []
    return fields.ask(messages=(*messages, {"role": "user", "content": prompt}) if prompt else ())


def read_embed(body: bytes) -> Ask:
    """A body of `POST /api/embed`. Raises OllamaError."""
    fields = _Fields("EmbedRequest", decode(body))
    given = fields.values.get("input")
    inputs = [given] if isinstance(given, str) else given if given is not None else []
    if not isinstance(inputs, list) or not all(isinstance(text, str) for text in inputs):
        raise OllamaError(400, "invalid input type")
    return fields.ask(inputs=tuple(text for text in inputs if text or len(inputs) > 1))


def read_options(ask: Ask) -> Options:
    """The options of a request. Raises OllamaError 500 for a wrong type, as Ollama does when it loads."""
    for name, (kind, words) in OPTION_TYPES.items():
        value = ask.options.get(name)
        if value is not None and (not isinstance(value, kind) or isinstance(value, bool)):
            raise OllamaError(500, f'option "{name}" must be of type {words}')
    options: dict[str, Any] = {
        # Ollama takes 2048.0 for 2048, and cuts what is between two whole numbers.
        name: int(ask.options[name]) if words == "integer" else ask.options[name]
        for name, (_, words) in OPTION_TYPES.items()
        if ask.options.get(name) is not None
    }
    num_ctx = options.pop("num_ctx", None)
    num_predict = options.pop("num_predict", DEFAULT_NUM_PREDICT)
    stop = tuple(text for text in options.pop("stop", ()) if isinstance(text, str))
    return Options(
        num_ctx,
        Sampling(
            max_tokens=num_predict if num_predict > 0 else -1,
            stop=stop,
            response_format=_response_format(ask.format),
            **options,
        ),
    )


@frozen
class _Fields:
    """The top level of a body, with Go's complaints about wrong types."""

    struct: str
    values: Mapping[str, Any]

    def get(self, name: str, kind: type) -> Any:
        value = self.values.get(name)
        if value is not None and not isinstance(value, kind):
            raise OllamaError(
                400,
                f"json: cannot unmarshal {go_kind(value)} into Go struct field "
                f"{self.struct}.{name} of type {GO_TYPES[kind]}",
            )
        return value

    def ask(self, **work: Any) -> Ask:
        try:
            keep_alive = parse_keep_alive(self.values.get("keep_alive"))
        except KeepAliveError as error:
            raise OllamaError(400, str(error)) from None
        stream = self.get("stream", bool)
        needs = {"tools": "tools", "suffix": "insert", "think": "thinking"}
        return Ask(
            model=self.get("model", str) or "",
            stream=True if stream is None else stream,
            keep_alive=keep_alive,
            options=self.get("options", dict) or {},
            format=self.values.get("format"),
            wants=tuple(ability for name, ability in needs.items() if self.values.get(name)),
            **work,
        )


def _object(value: Any) -> Mapping[str, Any]:
    if isinstance(value, dict):
        return value
    raise OllamaError(
        400,
        f"json: cannot unmarshal {go_kind(value)} into Go struct field "
        "ChatRequest.messages of type api.Message",
    )


def _response_format(given: Any) -> Mapping[str, Any] | None:
    """Ollama's `format` in OpenAI's words. Raises OllamaError 500."""
    if given in (None, ""):
        return None
    if given == "json":
        return {"type": "json_object"}
    if isinstance(given, dict):
        return {"type": "json_schema", "json_schema": {"schema": given}}
    raise OllamaError(500, f'invalid format: {given!r}; expected "json" or a valid JSON Schema object')
