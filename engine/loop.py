"""The engine: one asyncio loop between api processes and runners. It decides everything, computes nothing.

    python -m engine.loop [--config FILE]

This is the process that `python -m engine` supervises. Exit status 2: the configuration cannot be served,
and to start again would not help.
"""

import asyncio
import gc
import itertools
import logging
import secrets
import signal
import sys
import time
from typing import Any

import uvloop

from engine import watchdog
from engine.admission import Admission, Refusal
from engine.answers import Answers
from engine.config import Config, ConfigError, load_config
from engine.frontend import Frontend, SocketTaken
from engine.gpus import Gpus, NoGpus, NvmlGpus
from engine.lenders import Lenders
from engine.memory.regions import RegionError
from engine.messages import (
    Abort,
    Admitted,
    FromApi,
    GetLive,
    GetStats,
    Hello,
    Rejected,
    Resize,
    Submit,
    TokenDelta,
    Tokens,
)
from engine.model_host import CannotServe, ModelHost
from engine.pool_sizes import PoolSizes
from engine.process import check_memory, prepare_process
from engine.socket_folder import ensure_socket_folder
from engine.watch import Watch, free_memory_of

log = logging.getLogger("fairslice.engine")

INTEGRITY_CHECK_S = 60.0
TICK_S = 0.25
MAX_MESSAGE_TOKENS = 65_536  # in one message to an api; with twenty log-probabilities each, tens of MiB


class Failed(Exception):
    """Something happened that must not; the log says what."""


class Engine:
    """Owns the models, the admission and the connections; everything happens in `_turn` and in the handlers
    that cause one.

    A turn or a handler that fails ends the engine: its books are not to be trusted any more, and its
    successor is given all that is open again.
    """

    def __init__(self, config: Config) -> None:
        self._config = config
        self._frontend = Frontend(config.queue.reconnect_s, self._on_message, self._on_api_gone)
        self._admission = Admission(config.queue, time.monotonic_ns)
        self._prompts: dict[str, ModelHost] = {}
        pool_ids = itertools.count(1)
        gpus: Gpus = NvmlGpus.open() if config.has_gpus else NoGpus()
        links = {**gpus.links(device.name for device in config.devices), **config.link_speeds}
        self._lenders = Lenders(config)
        self._pool_sizes = PoolSizes(self._lenders)
        self._watch = Watch(config, self._lenders, self._pool_sizes, free_memory_of(gpus), time.monotonic_ns)
        self._models = {
            model.served_name: ModelHost(
                config, model, pool_ids, time.monotonic_ns, self._announce, self._wake, self._lenders, links
            )
            for model in config.models
        }
        self._answers = Answers(
            secrets.token_hex(8), self._models, self._admission, self._lenders, self._pool_sizes
        )
        self._work = asyncio.Event()
        self._draining = False
        self._has_failed = False
        self._idle = asyncio.Event()

    async def run(self) -> None:
        """Serve until told to stop. Raises CannotServe, SocketTaken, Failed."""
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(self._on_exception)
        self._make_regions()
        gc.freeze()  # what is loaded by now stays: no collection need look at it again
        server = await self._frontend.listen(self._config.socket_path)
        try:
            async with asyncio.TaskGroup() as group:
                lives = (
                    *(host.run() for host in self._models.values()),
                    self._take_turns(),
                    self._tick(),
                    self._check_when_idle(),
                    self._lenders.make_gpu_regions(),
                    self._pool_sizes.run(),
                    self._watch.run(),
                )
                tasks = [group.create_task(life) for life in lives]
                for number in (signal.SIGTERM, signal.SIGINT):
                    loop.add_signal_handler(number, self._drain)
                await self._idle.wait()
                for task in tasks:
                    task.cancel()
        except* CannotServe as failures:
            raise failures.exceptions[0] from None
        finally:
            server.close()
            self._lenders.close()
        if self._has_failed:
            raise Failed

    def _on_exception(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """An exception came out of a timer or of a message's handling: our books may be wrong from here on.
        The engine that is started after us makes them anew."""
        loop.default_exception_handler(context)
        if "handle" in context or "protocol" in context:
            self._has_failed = True
            self._idle.set()

    # ------------------------------------------------------------------ the turn

    def _wake(self) -> None:
        """Something happened: have one turn for all that happens in this round of the loop."""
        self._work.set()

    async def _take_turns(self) -> None:
        while True:
            await self._work.wait()
            self._work.clear()
            self._turn()
            await asyncio.sleep(0)  # what the turn itself gave cause for comes after what arrived meanwhile

    def _turn(self) -> None:
        """Plan what can be planned, and send what was decided and what was sampled."""
        changes = self._lenders.lending.num_changes
        self._pool_sizes.tick()
        self._lenders.tick(time.monotonic_ns())
        for host in self._models.values():
            if host.scheduler is not None and host.scheduler.needs_plan:
                host.send_plans()
            self._send_tokens(host)
        if self._lenders.lending.num_changes != changes:
            self._wake()  # one model's plan may have given another something to do
        if self._draining and not self._admission.num_prompts:
            self._idle.set()

    def _send_tokens(self, host: ModelHost) -> None:
        if host.scheduler is None:
            return
        for api_id, deltas in host.scheduler.take_deltas().items():
            for part in in_parts(deltas):
                self._frontend.send(api_id, Tokens(deltas=part))
            for delta in deltas:
                if delta.ids:
                    self._admission.generated(delta.prompt_id, len(delta.ids))
                if delta.finish is not None:
                    self._release(delta.prompt_id)

    def _release(self, prompt_id: str) -> None:
        self._admission.release(prompt_id)
        del self._prompts[prompt_id]

    # ------------------------------------------------------------------ messages of api processes

    def _on_message(self, api_id: str, message: FromApi) -> None:
        match message:
            case Submit():
                self._submit(api_id, message)
            case Abort(prompt_ids=prompt_ids):
                for prompt_id in prompt_ids:
                    self._abort(prompt_id)
            case Hello():
                self._frontend.send(api_id, self._answers.welcome())
            case GetStats(serial=serial):
                self._frontend.send(api_id, self._answers.stats(serial))
            case GetLive(serial=serial, since_ns=since_ns):
                self._frontend.send(api_id, self._answers.live(serial, since_ns))
            case Resize():
                self._frontend.send(api_id, self._answers.resize(message))
        self._wake()

    def _submit(self, api_id: str, submit: Submit) -> None:
        try:
            host = self._host_for(submit)
            assert host.card is not None
            assert host.scheduler is not None
            self._admission.admit(submit, host.card.max_model_len)
        except Refusal as refusal:
            rejected = Rejected(
                request_id=submit.request_id,
                code=refusal.code,
                message=refusal.message,
                retry_after_s=refusal.retry_after_s,
                rates=self._admission.rates(submit.tenant),
            )
            self._frontend.send(api_id, rejected)
            return
        now_ns = time.monotonic_ns()
        for spec in submit.prompts:
            self._prompts[spec.prompt_id] = host
            host.scheduler.submit(api_id, submit, spec, now_ns)
        rates = self._admission.rates(submit.tenant)
        self._frontend.send(api_id, Admitted(request_id=submit.request_id, rates=rates))

    def _host_for(self, submit: Submit) -> ModelHost:
        host = self._models.get(submit.model)
        if host is None:
            raise Refusal("model_not_found", f"the model {submit.model!r} is not served here")
        if not host.is_ready:
            raise Refusal("model_loading", f"{submit.model} is not ready: {host.progress}", 5.0)
        if self._draining and not submit.resubmitted:
            raise Refusal("shutting_down", "the server is shutting down", 5.0)
        return host

    def _abort(self, prompt_id: str) -> None:
        host = self._prompts.get(prompt_id)
        if host is not None and host.scheduler is not None:
            host.scheduler.abort(prompt_id, time.monotonic_ns())
            self._release(prompt_id)

    def _on_api_gone(self, api_id: str) -> None:
        """An api process stayed away too long: nobody waits for its prompts."""
        for host in self._models.values():
            for prompt_id in host.scheduler.prompts_of(api_id) if host.scheduler is not None else ():
                self._abort(prompt_id)
        self._wake()

    # ------------------------------------------------------------------ state

    def _announce(self) -> None:
        self._frontend.broadcast(self._answers.welcome())

    def _drain(self) -> None:
        """Told to stop: accept nothing new, and stop when what is open is done or the time is over."""
        if self._draining:
            self._idle.set()
        self._draining = True
        asyncio.get_running_loop().call_later(self._config.server.drain_s, self._idle.set)
        self._wake()

    def _make_regions(self) -> None:
        try:
            self._lenders.make_regions()
        except RegionError as error:
            raise CannotServe(str(error)) from None

    async def _tick(self) -> None:
        """Memory is lent and comes back whether or not anything else happens."""
        watchdog.watch()
        while True:
            await asyncio.sleep(TICK_S)
            watchdog.feed()
            self._wake()

    async def _check_when_idle(self) -> None:
        """While nothing is open, look now and then whether all pages came back."""
        while True:
            await asyncio.sleep(INTEGRITY_CHECK_S)
            if not self._admission.num_prompts:
                self._admission.check_integrity()
                for host in self._models.values():
                    if host.scheduler is not None:
                        host.scheduler.check_integrity()
                self._lenders.lending.check_integrity()


def in_parts(deltas: list[TokenDelta]) -> list[list[TokenDelta]]:
    """For messages of a size that can be sent, whatever an api missed while it was away."""
    parts: list[list[TokenDelta]] = [[]]
    num_tokens = 0
    for delta in deltas:
        size = len(delta.ids) + len(delta.prompt_logprobs or ())
        if parts[-1] and num_tokens + size > MAX_MESSAGE_TOKENS:
            parts.append([])
            num_tokens = 0
        parts[-1].append(delta)
        num_tokens += size
    return parts


def main() -> int:
    """Run the engine as `sys.argv` says. Returns the exit status."""
    prepare_process()
    logging.basicConfig(level=logging.INFO, format="%(levelname).1s %(name)s: %(message)s")
    path = sys.argv[2] if sys.argv[1:2] == ["--config"] else None
    try:
        config = load_config(path)
        check_memory(config)
        ensure_socket_folder(config)
        uvloop.run(Engine(config).run())
    except (ConfigError, CannotServe, SocketTaken) as error:
        print(f"fairslice: {error}", file=sys.stderr)
        return 2
    except Failed:
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
