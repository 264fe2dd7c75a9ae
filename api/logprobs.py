"""Log probabilities in the forms that the endpoints give them."""

from collections.abc import Sequence

from api.choices import Choice, Piece
from api.detokenize import Vocabulary
from engine.messages import TokenLogprobs

Entry = tuple[int, TokenLogprobs | None]


def token_name(vocabulary: Vocabulary, token_id: int) -> str:
    """The token as text; bytes that are no text by themselves as `bytes:\\xe4`."""
    data = vocabulary.shown_bytes(token_id)
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def entries(choice: Choice, piece: Piece) -> list[Entry]:
    """The tokens of a piece with what the engine reported of them."""
    span = slice(piece.first, piece.first + len(piece.offsets))
    ids, values = choice.prompt.output_ids[span], choice.prompt.logprobs[span]
    return list(zip(ids, values, strict=True))


def chat_logprobs(vocabulary: Vocabulary, tokens: Sequence[Entry]) -> dict[str, object]:
    """`choices[].logprobs` of chat."""

    def one(token_id: int, logprob: float) -> dict[str, object]:
        data = vocabulary.shown_bytes(token_id)
        return {
            "token": token_name(vocabulary, token_id),
            "logprob": logprob,
            "bytes": list(data),
        }

    content = [
        one(token_id, value.logprob) | {"top_logprobs": [one(*alternative) for alternative in value.top]}
        for token_id, value in tokens
        if value is not None
    ]
    return {"content": content, "refusal": None}


def completion_logprobs(
    vocabulary: Vocabulary, tokens: Sequence[Entry], offsets: Sequence[int]
) -> dict[str, object]:
    """`choices[].logprobs` of completions. The first token of an echoed prompt has no probability. The token
    itself is always among the alternatives, beyond their number if need be."""

    def top(chosen: int, value: TokenLogprobs | None) -> dict[str, float] | None:
        if value is None:
            return None
        ranked = {token_name(vocabulary, token_id): logprob for token_id, logprob in value.top}
        return ranked | {token_name(vocabulary, chosen): value.logprob}

    return {
        "tokens": [token_name(vocabulary, token_id) for token_id, _ in tokens],
        "token_logprobs": [None if value is None else value.logprob for _, value in tokens],
        "top_logprobs": [top(token_id, value) for token_id, value in tokens],
        "text_offset": list(offsets),
    }


def prompt_logprobs(
    vocabulary: Vocabulary, ids: Sequence[int], values: Sequence[TokenLogprobs | None]
) -> list[dict[str, object] | None]:
    """`choices[].prompt_logprobs`: for each token a table by token id, as vLLM gives it."""
    rows: list[dict[str, object] | None] = []
    for token_id, value in zip(ids, values, strict=True):
        if value is None:
            rows.append(None)
            continue
        ranked = {other: (logprob, rank) for rank, (other, logprob) in enumerate(value.top, 1)}
        ranked[token_id] = (value.logprob, value.rank)
        rows.append(
            {
                str(other): {
                    "logprob": logprob,
                    "rank": rank,
                    "decoded_token": token_name(vocabulary, other),
                }
                for other, (logprob, rank) in ranked.items()
            }
        )
    return rows
