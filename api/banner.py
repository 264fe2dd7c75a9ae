"""What is printed once the first model is ready."""

from engine.messages import ModelCard


def banner(card: ModelCard, host: str, port: int, *, needs_key: bool = False) -> str:
    """The model, its licence notice and cache, the address, and a command that works there."""
    shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    address = f"http://{shown}:{port}"
    lines = [f"{card.name} is ready ({card.architecture}, {card.dtype}, context {card.max_model_len})"]
    if card.cached_at is not None:
        lines.append(f"  cached at {card.cached_at}")
    if card.licence_notice is not None:
        lines.append(f"  {card.licence_notice}")
    return "\n".join([*lines, f"  serving on {address}", "", "Try it:", _example(card, address, needs_key)])


def _example(card: ModelCard, address: str, needs_key: bool) -> str:
    """Chat for a model that can, a completion for one that only continues text."""
    path, ask = "/v1/completions", '"prompt": "The capital of France is", "max_tokens": 32'
    if card.is_chat:
        path, ask = "/v1/chat/completions", '"messages": [{"role": "user", "content": "Who are you?"}]'
    body = f'{{"model": "{card.name}", {ask}, "stream": true}}'
    key = " -H 'authorization: Bearer KEY'" if needs_key else ""
    return f"  curl -N {address}{path} -H 'content-type: application/json'{key} -d '{body}'"
