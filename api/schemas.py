"""What a request may say: types, ranges and names of every field, checked before anything else happens.

A field that is not listed is refused by its name. Fields under "accepted, no effect" change nothing about
the answer, or ask for what is done anyway.
"""

from typing import Annotated, Literal

from msgspec import Meta, Struct

from api.errors import bad_request

MAX_STOPS = 16
MAX_STOP_CHARS = 256
MAX_TOKEN_LISTS = 1024
MAX_BIASES = 1024
MAX_LOGPROBS = 20
MAX_TOOLS = 128
MAX_ANSWERS = 1024

Count = Annotated[int, Meta(ge=1, le=2**31 - 1)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
TokenId = Annotated[int, Meta(ge=0, le=2**31 - 1)]
Choices = Annotated[int, Meta(ge=1, le=4096)]
StopString = Annotated[str, Meta(min_length=1, max_length=MAX_STOP_CHARS)]
StopList = Annotated[list[StopString], Meta(max_length=MAX_STOPS)]
Logprobs = Annotated[int, Meta(ge=0, le=MAX_LOGPROBS)]
FunctionName = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
Biases = Annotated[
    dict[TokenId, Annotated[float, Meta(ge=-100, le=100)]],
    Meta(max_length=MAX_BIASES, extra_json_schema={"propertyNames": {"pattern": "^(0|[1-9][0-9]{0,9})$"}}),
]
Pattern = Annotated[str, Meta(min_length=1, max_length=65536)]
Answers = Annotated[
    list[Annotated[str, Meta(min_length=1, max_length=65536)]], Meta(min_length=1, max_length=MAX_ANSWERS)
]


class Strict(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of everything a client sends."""


class StreamOptions(Strict, frozen=True, kw_only=True):
    include_usage: bool = False
    continuous_usage_stats: bool = False
    include_obfuscation: bool | None = None  # accepted, no effect


class JsonSchema(Strict, frozen=True, kw_only=True):
    schema: dict[str, object]
    name: str = "response"
    description: str | None = None
    strict: bool | None = None


class ResponseFormat(Strict, frozen=True, kw_only=True):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class StructuredOutputs(Strict, frozen=True, kw_only=True):
    """What the answer has to fit: one of these. `json` is a schema."""

    json: dict[str, object] | Pattern | None = None
    regex: Pattern | None = None
    choice: Answers | None = None
    grammar: Pattern | None = None
    json_object: bool | None = None


class GenerationRequest(Strict, frozen=True, kw_only=True):
    """What completions and chat have in common."""

    model: str
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: Count | None = None
    n: Choices | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    top_k: Annotated[int, Meta(ge=-1, le=2**31 - 1)] | None = None  # 0 and, as elsewhere, -1: all tokens
    min_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    seed: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | None = None
    stop: StopString | StopList | None = None
    stop_token_ids: Annotated[list[TokenId], Meta(max_length=MAX_TOKEN_LISTS)] | None = None
    include_stop_str_in_output: bool | None = None
    skip_special_tokens: bool | None = None
    ignore_eos: bool | None = None
    min_tokens: Annotated[int, Meta(ge=0, le=2**31 - 1)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    repetition_penalty: Annotated[float, Meta(gt=0, le=10)] | None = None
    logit_bias: Biases | None = None
    prompt_logprobs: Logprobs | None = None
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: dict[str, object] | Pattern | None = None
    guided_regex: Pattern | None = None
    guided_choice: Answers | None = None
    guided_grammar: Pattern | None = None
    priority: Annotated[int, Meta(ge=-20, le=19)] | None = None  # a nice level: lower goes before
    latency_ms: Annotated[float, Meta(gt=0, le=60_000)] | None = None  # wished slice length
    tokens_per_s: Annotated[float, Meta(gt=0, le=10_000)] | None = None  # wished floor of the answer's speed
    cache_salt: Annotated[str, Meta(min_length=1, max_length=256)] | None = None
    user: str | None = None  # accepted, no effect, as are the following
    metadata: dict[str, object] | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    store: bool | None = None


class CompletionRequest(GenerationRequest, frozen=True, kw_only=True):
    prompt: str | list[str | int | list[int]]
    echo: bool | None = None
    logprobs: Logprobs | None = None
    best_of: Annotated[int, Meta(ge=1, le=1)] | None = None  # only what n alone means


class TextPart(Strict, frozen=True, kw_only=True):
    type: Literal["text"]
    text: str


class CalledFunction(Strict, frozen=True, kw_only=True):
    name: FunctionName
    arguments: str


class CalledTool(Strict, frozen=True, kw_only=True):
    id: str
    function: CalledFunction
    type: Literal["function"] = "function"
    index: int | None = None  # accepted, no effect: its place in a stream


class ChatTurn(Strict, frozen=True, kw_only=True):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart] | None = None
    name: str | None = None
    tool_calls: Annotated[list[CalledTool], Meta(max_length=MAX_TOOLS)] | None = None
    tool_call_id: str | None = None
    refusal: str | None = None  # accepted, no effect, as are the following: clients send answers back
    annotations: list[object] | None = None
    audio: None = None
    function_call: None = None

    @property
    def text(self) -> str:
        if isinstance(self.content, list):
            return "".join(part.text for part in self.content)
        return self.content or ""


class Function(Strict, frozen=True, kw_only=True):
    name: FunctionName
    description: str | None = None
    parameters: dict[str, object] | None = None
    strict: bool | None = None  # accepted, no effect: a call that is demanded always fits


class Tool(Strict, frozen=True, kw_only=True):
    type: Literal["function"]
    function: Function


class FunctionRef(Strict, frozen=True, kw_only=True):
    name: FunctionName


class NamedTool(Strict, frozen=True, kw_only=True):
    type: Literal["function"]
    function: FunctionRef


class ChatRequest(GenerationRequest, frozen=True, kw_only=True):
    messages: Annotated[list[ChatTurn], Meta(min_length=1)]
    chat_template_kwargs: dict[str, object] | None = None
    max_completion_tokens: Count | None = None
    logprobs: bool | None = None
    top_logprobs: Logprobs | None = None
    tools: Annotated[list[Tool], Meta(max_length=MAX_TOOLS)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None  # false: one call at most is given out


class ResponsePart(Strict, frozen=True, kw_only=True):
    type: Literal["input_text", "output_text", "text"]
    text: str
    annotations: list[object] | None = None  # accepted as our own answers have them, as are logprobs
    logprobs: list[object] | None = None


class ResponseItem(Strict, frozen=True, kw_only=True):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[ResponsePart]
    type: Literal["message"] = "message"
    id: str | None = None  # accepted, no effect
    status: str | None = None  # accepted, no effect
    phase: str | None = None  # accepted, no effect

    def turn(self) -> ChatTurn:
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return ChatTurn(role=self.role, content=text)


class TextFormat(Strict, frozen=True, kw_only=True):
    type: Literal["text", "json_object", "json_schema"]
    schema: dict[str, object] | None = None
    name: str = "response"
    description: str | None = None
    strict: bool | None = None


class TextOptions(Strict, frozen=True, kw_only=True):
    format: TextFormat | None = None


class ResponsesRequest(Strict, frozen=True, kw_only=True):
    """/v1/responses, as far as text goes: no tools, and nothing is stored."""

    model: str
    input: str | Annotated[list[ResponseItem], Meta(min_length=1)]
    instructions: str | None = None
    max_output_tokens: Count | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    text: TextOptions | None = None
    stream: bool | None = None
    truncation: Literal["disabled"] | None = None
    metadata: dict[str, object] | None = None
    store: bool | None = None  # accepted, no effect: nothing is kept
    user: str | None = None  # accepted, no effect

    def chat(self) -> ChatRequest:
        """The same as a chat request. Raises ApiError."""
        told = [] if self.instructions is None else [ChatTurn(role="system", content=self.instructions)]
        if isinstance(self.input, str):
            turns = [ChatTurn(role="user", content=self.input)]
        else:
            turns = [item.turn() for item in self.input]
        return ChatRequest(
            model=self.model,
            messages=told + turns,
            max_completion_tokens=self.max_output_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            stream=self.stream,
            response_format=self._response_format(),
        )

    def _response_format(self) -> ResponseFormat | None:
        wanted = self.text.format if self.text is not None else None
        if wanted is None:
            return None
        if wanted.type == "json_schema" and wanted.schema is None:
            raise bad_request("text.format.schema", "text.format.schema is required for this type")
        schema = None if wanted.schema is None else JsonSchema(schema=wanted.schema)
        return ResponseFormat(type=wanted.type, json_schema=schema)


class TokenizeRequest(Strict, frozen=True, kw_only=True):
    model: str
    prompt: str | None = None
    messages: Annotated[list[ChatTurn], Meta(min_length=1)] | None = None
    chat_template_kwargs: dict[str, object] | None = None
    add_special_tokens: bool = True
    return_token_strs: bool = False


class DetokenizeRequest(Strict, frozen=True, kw_only=True):
    model: str
    tokens: list[TokenId]
