"""What the engine is told of how a request is to be answered."""

from engine.config import ServerConfig
from engine.messages import Sampling
from tests.api.harness import Api, run, running_api


def sampling_of(api: Api) -> Sampling:
    """Of the request that came last."""
    return api.engine.submits[-1].prompts[0].sampling


def test_only_an_answer_that_nobody_bounds_is_open_ended() -> None:
    async def test() -> None:
        async with running_api() as api:
            await api.chat()
            assert sampling_of(api).is_open_ended
            assert sampling_of(api).max_tokens > 900
            await api.chat(max_tokens=999)
            assert not sampling_of(api).is_open_ended
            await api.complete()
            assert (sampling_of(api).is_open_ended, sampling_of(api).max_tokens) == (False, 16)
        async with running_api(server=ServerConfig(port=0, default_max_tokens=50)) as api:
            await api.chat()
            assert (sampling_of(api).is_open_ended, sampling_of(api).max_tokens) == (False, 50)

    run(test())
