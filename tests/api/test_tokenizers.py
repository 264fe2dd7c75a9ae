"""Tokenizers read from a folder, and chat templates."""

import asyncio
import json
import sys
from pathlib import Path

import msgspec
import pytest

from api.chat_template import ChatTemplate, ChatTemplateError, render_plain
from api.detokenize import full_text
from api.tokenizers import TextModels, load_text_model
from tests.api.fake_engine import CARD
from tests.api.harness import run, running_api
from tests.api.test_detokenize import byte_level

TEMPLATE = (
    "{{ bos_token }}{{ '[thinks]' if enable_thinking }}"
    "{% for message in messages %}[{{ message.role }}]{{ message.content }}{% endfor %}"
    "{% if messages[0].role == 'assistant' %}{{ raise_exception('the user begins') }}{% endif %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    byte_level().save(str(tmp_path / "tokenizer.json"))
    config = {"bos_token": {"content": "<s>"}, "eos_token": "</s>", "add_bos_token": True}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": TEMPLATE}))
    return tmp_path


def test_one_bos_only(folder: Path) -> None:
    model = load_text_model(msgspec.structs.replace(CARD, tokenizer=str(folder)))
    bos = byte_level().token_to_id("<s>")
    assert model.prefix == (bos,)
    assert model.encode("dog", add_prefix=True) == [bos, *model.encode("dog", add_prefix=False)]
    assert model.encode("<s>dog", add_prefix=True) == model.encode("dog", add_prefix=True)
    assert full_text(model.vocabulary, model.encode("naïve 🙂", add_prefix=True)) == "naïve 🙂"


def test_chat_through_the_models_template(folder: Path) -> None:
    async def test() -> None:
        card = msgspec.structs.replace(CARD, tokenizer=str(folder), vocab_size=402, is_chat=True)
        async with running_api(cards=[card], script=lambda spec: [5]) as api:
            answer = await api.chat("the dog", max_completion_tokens=1)
            assert answer.status == 200
            assert "x-fairslice-notice" not in answer.headers
            model = load_text_model(card)
            (spec,) = api.engine.submits[0].prompts
            assert spec.input_ids == model.encode("<s>[user]the dog[assistant]", add_prefix=False)
            assert (await api.chat("the dog", chat_template_kwargs={"enable_thinking": True})).status == 200
            (spec,) = api.engine.submits[1].prompts
            assert spec.input_ids == model.encode("<s>[thinks][user]the dog[assistant]", add_prefix=False)
            body = {"model": "fake", "messages": [{"role": "assistant", "content": "x"}]}
            refused = await api.post("/v1/chat/completions", body)
            assert refused.status == 400
            assert refused.json["error"]["param"] == "messages"
            assert "the user begins" in refused.json["error"]["message"]

    run(test())


def test_a_template_cannot_reach_outside() -> None:
    template = ChatTemplate("{{ ''.__class__.__mro__ }}", {})
    with pytest.raises(ChatTemplateError):
        template.render([])


def test_values_that_a_template_cannot_work_with_are_the_clients_error() -> None:
    template = ChatTemplate("{{ 1 // budget }}", {})
    assert template.render([], variables={"budget": 1}) == "1"
    for value in (0, "x", None, {}):
        with pytest.raises(ChatTemplateError):
            template.render([], variables={"budget": value})


def test_a_plain_transcript_and_its_notice() -> None:
    assert render_plain([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]) == (
        "System: Be brief.\nUser: Hi\nAssistant:"
    )

    async def test() -> None:
        async with running_api() as api:
            answer = await api.chat("hi")
            assert "base model" in answer.headers["x-fairslice-notice"]

    run(test())


def test_tokenizers_are_loaded_once(folder: Path) -> None:
    async def test() -> None:
        models = TextModels()
        card = msgspec.structs.replace(CARD, tokenizer=str(folder))
        first, second = await asyncio.gather(models.get(card), models.get(card))
        assert first is second

    run(test())


def test_a_missing_tokenizer_is_an_error_of_the_server(tmp_path: Path) -> None:
    async def test() -> None:
        (tmp_path / "tokenizer.json").write_text("{}")
        card = msgspec.structs.replace(CARD, tokenizer=str(tmp_path))
        async with running_api(cards=[card]) as api:
            answer = await api.complete()
            assert answer.status == 500
            assert answer.json["error"]["code"] == "tokenizer_error"

    run(test())


def test_tokenize_and_back() -> None:
    async def test() -> None:
        async with running_api() as api:
            answer = await api.post("/tokenize", {"model": "fake", "prompt": "hé", "return_token_strs": True})
            assert answer.json == {
                "count": 4,
                "max_model_len": 1000,
                "tokens": [256, 104, 195, 169],
                "token_strs": ["<bos>", "h", "bytes:\\xc3", "bytes:\\xa9"],
            }
            back = await api.post("/detokenize", {"model": "fake", "tokens": answer.json["tokens"]})
            assert back.json == {"prompt": "<bos>hé"}
            bad = await api.post("/detokenize", {"model": "fake", "tokens": [1, 300]})
            assert bad.json["error"]["param"] == "tokens[1]"

    run(test())


def test_the_api_does_not_import_torch() -> None:
    async def test() -> None:
        code = "import api.__main__, sys; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
        process = await asyncio.create_subprocess_exec(sys.executable, "-c", code)
        assert await process.wait() == 0

    run(test())
