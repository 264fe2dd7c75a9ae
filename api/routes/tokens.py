"""POST /tokenize and /detokenize, as vLLM has them."""

from starlette.requests import Request
from starlette.responses import Response

from api.detokenize import full_text
from api.errors import bad_request
from api.logprobs import token_name
from api.prompts import render_chat
from api.reader import Reader
from api.routes.models import json_response
from api.schemas import DetokenizeRequest, TokenizeRequest
from api.services import read_body, services_of

TOKENIZE = Reader(TokenizeRequest)
DETOKENIZE = Reader(DetokenizeRequest)


async def tokenize(request: Request) -> Response:
    """The ids that a prompt, or a conversation, is served as."""
    services = services_of(request)
    services.tenant_of(request)
    body = await read_body(request, TOKENIZE)
    if (body.prompt is None) == (body.messages is None):
        raise bad_request("prompt", "give either prompt or messages")
    card, model = await services.find_model(body.model)
    if body.messages is not None:
        text, add_prefix = render_chat(body.messages, [], body.chat_template_kwargs, model)
    else:
        text, add_prefix = body.prompt or "", body.add_special_tokens
    (ids,) = await model.encode_all([text], add_prefix=add_prefix)
    names = [token_name(model.vocabulary, token_id) for token_id in ids] if body.return_token_strs else None
    return json_response(
        {"count": len(ids), "max_model_len": card.max_model_len, "tokens": ids, "token_strs": names}
    )


async def detokenize(request: Request) -> Response:
    """The text of ids; special tokens are spelled out."""
    services = services_of(request)
    services.tenant_of(request)
    body = await read_body(request, DETOKENIZE)
    card, model = await services.find_model(body.model)
    for index, token_id in enumerate(body.tokens):
        if token_id >= card.vocab_size:
            param = f"tokens[{index}]"
            message = f"{param}: {token_id} is not in the vocabulary of {card.vocab_size} tokens"
            raise bad_request(param, message)
    return json_response({"prompt": full_text(model.vocabulary, body.tokens, spell_special=True)})
