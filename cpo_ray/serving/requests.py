"""Validate requests: the routes, fields and bounds that reach an engine. Everything else is refused with a 4xx.

The fields here are useful and were tested not to harm an engine. Other fields that vLLM accepts (`prompt_embeds`,
`structured_outputs`, priorities, ...) are refused.
"""

import json
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from cpo_ray.config import LimitsConfig

LONGEST_CONTEXT = 2**24  # tokens, more than any model has; bounds the numbers before the model's own limit is checked
PARTS = 256  # of one message

Number = Annotated[float, Field(allow_inf_nan=False)]
TokenId = Annotated[int, Field(ge=0, lt=2**31)]
Text = Annotated[str, Field(max_length=2**24)]
Prompt = Annotated[str, Field(min_length=1, max_length=2**24)]
ShortText = Annotated[str, Field(min_length=1, max_length=256)]


class RequestRefusedError(Exception):
    """A refused request: HTTP status, reason, and the field at fault, if any."""

    def __init__(self, status: int, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.param = status, message, param


class _StrictModel(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class StreamOptions(_StrictModel):
    """Options of a streamed answer, as in OpenAI's API."""

    include_usage: bool = False


class Decoding(_StrictModel):
    """The fields that completions and chat have in common."""

    model: ShortText
    max_tokens: Annotated[int, Field(ge=1, le=LONGEST_CONTEXT)] | None = None
    n: Annotated[int, Field(ge=1)] = 1
    temperature: Annotated[Number, Field(ge=0, le=100)] | None = None
    top_p: Annotated[Number, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, lt=2**31)] | None = None
    min_p: Annotated[Number, Field(ge=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=0, lt=2**62)] | None = None
    stop: ShortText | Annotated[list[ShortText], Field(max_length=16)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    presence_penalty: Annotated[Number, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[Number, Field(ge=-2, le=2)] | None = None
    repetition_penalty: Annotated[Number, Field(ge=0.01, le=10)] | None = None
    no_repeat_ngram_size: Annotated[int, Field(ge=1, le=LONGEST_CONTEXT)] | None = None
    use_beam_search: bool = False
    length_penalty: Annotated[Number, Field(ge=-10, le=10)] = 1.0
    stop_token_ids: Annotated[list[TokenId], Field(max_length=64)] | None = None
    allowed_token_ids: Annotated[list[TokenId], Field(min_length=1, max_length=4096)] | None = None
    logit_bias: Annotated[dict[str, Annotated[Number, Field(ge=-100, le=100)]], Field(max_length=1024)] | None = None
    min_tokens: Annotated[int, Field(ge=0, le=LONGEST_CONTEXT)] = 0
    ignore_eos: bool = False
    include_stop_str_in_output: bool = False
    skip_special_tokens: bool = True
    return_token_ids: bool | None = None
    user: Annotated[str, Field(max_length=256)] | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options needs stream: true")
        if self.use_beam_search and self.stream:
            raise ValueError("use_beam_search cannot stream")
        if self.use_beam_search and self.no_repeat_ngram_size is not None:
            raise ValueError("use_beam_search cannot be combined with no_repeat_ngram_size")
        if self.n > 1 and self.temperature == 0 and not self.use_beam_search:
            raise ValueError("n above 1 needs a temperature above 0: greedy answers are all the same")
        if any(not (key.isascii() and key.isdigit() and len(key) <= 10) for key in self.logit_bias or ()):
            raise ValueError("logit_bias maps token ids to numbers")
        return self

    @property
    def prompts(self) -> int:
        """Number of prompts."""
        return 1

    @property
    def longest_answer(self) -> int | None:
        """Maximum number of tokens per answer; None for as many as fit."""
        return self.max_tokens

    @property
    def token_ids(self) -> set[int]:
        """All token ids in the request."""
        return {*(self.stop_token_ids or ()), *(self.allowed_token_ids or ()), *map(int, self.logit_bias or ())}


class Completion(Decoding):
    """POST /v1/completions."""

    prompt: (
        Prompt  # not empty: vLLM refuses that, for a streamed answer only after its 200
        | Annotated[list[TokenId], Field(min_length=1)]
        | Annotated[list[Prompt], Field(min_length=1)]
        | Annotated[list[Annotated[list[TokenId], Field(min_length=1)]], Field(min_length=1)]
    )
    echo: bool | None = None
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    add_special_tokens: bool = True

    @property
    def prompts(self) -> int:
        """Number of prompts, each a text or a list of token ids."""
        return 1 if isinstance(self.prompt, str) or isinstance(self.prompt[0], int) else len(self.prompt)

    @property
    def longest_answer(self) -> int:
        """Maximum number of tokens per answer; OpenAI's default is 16."""
        return self.max_tokens or 16

    @property
    def token_ids(self) -> set[int]:
        """All token ids in the request, prompts included."""
        ids = super().token_ids
        for part in self.prompt if isinstance(self.prompt, list) else ():
            if isinstance(part, int):
                ids.add(part)
            elif isinstance(part, list):
                ids.update(part)
        return ids


class TextPart(_StrictModel):
    """One part of a message's content."""

    type: Literal["text"]
    text: Text


class ChatMessage(_StrictModel):
    """One message of a conversation, text only: a text, or text parts, which are joined by line feeds as vLLM joins them."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Text
    name: ShortText | None = None
    type: Annotated[Literal["text"] | None, Field(exclude=True)] = None  # some clients send it; it says nothing new

    @field_validator("content", mode="before")
    @classmethod
    def _join_parts(cls, content: Any) -> Any:
        if not isinstance(content, list):
            return content
        if not 1 <= len(content) <= PARTS:
            raise ValueError(f"a list holds 1 to {PARTS} parts; this one has {len(content) or 'no part'}")
        return "\n".join(_read_part(number, part) for number, part in enumerate(content))


def _read_part(number: int, part: Any) -> str:
    """The text of one part. Raises ValueError, which names the part and not its content."""
    kind = part.get("type") if isinstance(part, dict) else None
    if isinstance(kind, str) and kind != "text":
        raise ValueError(f"part {number} has the type {kind[:40]!r}, but only text parts are read")
    try:
        return TextPart.model_validate(part).text
    except ValidationError as error:
        raise ValueError(f"part {number} is not a text part: {_explain(error).message[:100]}") from None


class Chat(Decoding):
    """POST /v1/chat/completions."""

    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=256)]
    max_completion_tokens: Annotated[int, Field(ge=1, le=LONGEST_CONTEXT)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None

    @property
    def longest_answer(self) -> int | None:
        """Maximum number of tokens per answer, under either name."""
        return self.max_completion_tokens or self.max_tokens


ROUTES: dict[str, type[Decoding]] = {"/v1/completions": Completion, "/v1/chat/completions": Chat}


def read_request(route: str, body: bytes, limits: LimitsConfig, vocabularies: dict[str, int], context: int) -> Decoding:
    """Validate the body of a request to one of ROUTES.

    `vocabularies`: model name -> vocabulary size; `context`: tokens, prompt and answer together. Raises RequestRefusedError:
    404 for a model that is not served, otherwise 400.
    """
    try:
        request = ROUTES[route].model_validate_json(body)
    except ValidationError as error:
        raise _explain(error) from None
    if request.model not in vocabularies:
        raise RequestRefusedError(
            404, f"the model {request.model!r} is not served; available: {', '.join(vocabularies)}", "model"
        )
    answer = min(request.longest_answer or context, context)
    for value, limit, what, param in (
        (request.prompts, limits.prompts, "prompts", "prompt"),
        (request.n, limits.samples, "n", "n"),
        (request.prompts * request.n * answer, limits.tokens, "prompts * n * max_tokens", "max_tokens"),
    ):
        if value > limit:
            raise RequestRefusedError(400, f"{what} is {value}, but the limit of this endpoint is {limit}", param)
    size = vocabularies[request.model]
    if max(request.token_ids, default=0) >= size:
        raise RequestRefusedError(
            400, f"token id {max(request.token_ids)} is outside the vocabulary of {size}", "prompt"
        )
    return request


def write_request(request: Decoding) -> bytes:
    """Encode the fields that the request set, so that the engine reads exactly what was validated.

    Nulls are omitted: vLLM reads `max_tokens: null` as "as many as fit", which was not counted against the limit.
    `no_repeat_ngram_size`, which vLLM does not have, becomes an argument of our logits processor.
    """
    if request.no_repeat_ngram_size is None:
        return request.model_dump_json(exclude_unset=True, exclude_none=True).encode()
    fields = request.model_dump(mode="json", exclude_unset=True, exclude_none=True)
    fields["vllm_xargs"] = {"no_repeat_ngram_size": fields.pop("no_repeat_ngram_size")}
    return json.dumps(fields).encode()


def _explain(error: ValidationError) -> RequestRefusedError:
    """The first error, without the value, which can be long and must not be logged."""
    first: Any = error.errors(include_input=False, include_url=False, include_context=False)[0]
    param = ".".join(str(part) for part in first["loc"])
    return RequestRefusedError(400, f"{param}: {first['msg']}" if param else str(first["msg"]), param or None)
