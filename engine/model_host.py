"""One served model: its runners, its pools, and the scheduler between them."""

import asyncio
import logging
import signal
from collections.abc import Callable, Iterator

import msgspec

from engine.config import Config, DeviceConfig, ModelConfig
from engine.lenders import Lenders, Region
from engine.mappings import Mappings
from engine.memory.lender import Owner
from engine.memory.placement import Links
from engine.memory.regions import RegionError
from engine.messages import (
    Fault,
    FromRunner,
    Loaded,
    Mapped,
    ModelCard,
    NoGrammars,
    Progress,
    Ready,
    Refused,
    Remapped,
    Report,
    SegmentsMade,
    Shutdown,
)
from engine.pools import HeldPool, PoolTable, PoolTooSmall
from engine.restarts import MAX_FAILED_STARTS, RunnerRestarts
from engine.runner_client import RunnerClient
from engine.runner_settings import load_message, max_batch, num_models_on
from engine.scheduler import Scheduler
from engine.scheduler_settings import make_scheduler
from engine.silence import LOOK_S, SILENT_S, Silence

log = logging.getLogger("fairslice.engine")


class CannotServe(Exception):
    """A model cannot be served as configured. One line for the operator."""


class ModelHost:
    """Starts the runners of a model and starts them again when they die; `on_change` is called when the
    model becomes ready or reports progress, `on_work` when the scheduler has something new to plan."""

    def __init__(
        self,
        config: Config,
        model: ModelConfig,
        pool_ids: Iterator[int],
        clock: Callable[[], int],
        on_change: Callable[[], None],
        on_work: Callable[[], None],
        lenders: Lenders,
        links: Links,
    ) -> None:
        self.name = model.served_name
        self.card: ModelCard | None = None
        self.scheduler: Scheduler | None = None
        self.progress = "starting"
        self.runners: dict[str, RunnerClient] = {}
        self._sent_before = 0  # messages to runners that others have replaced
        self._config = config
        self._model = model
        self._pool_ids = pool_ids
        self._clock = clock
        self._on_change = on_change
        self._on_work = on_work
        self._lenders = lenders
        self._links = links
        self._pools: PoolTable | None = None
        self._mappings: Mappings | None = None
        self._model_len = 0  # the longest context that the model, or its configuration, allows
        self._limits: dict[str, int] = {}  # the longest that each device can hold, of those that were loaded
        self._ready_since: dict[str, int] = {}  # devices whose runner works, in ns of the clock
        self._faults: dict[str, Fault] = {}  # by device, of runners that are about to end
        self._refusals: dict[str, str] = {}  # by device, why its runner says that it cannot serve
        self._grammars_problem: str | None = None
        self._devices = config.devices_of(model)

    @property
    def is_ready(self) -> bool:
        """Whether some runner can serve, and what is too long for all devices is known; a model that was
        ready keeps its queue while runners restart."""
        if self.card is None or self.scheduler is None:
            return False
        return self.card.max_model_len == self._model_len or len(self._limits) == len(self._devices)

    async def run(self) -> None:
        """Keep a runner on every device, until cancelled. Raises CannotServe."""
        try:
            async with asyncio.TaskGroup() as group:
                for device in self._devices:
                    group.create_task(self._keep_runner(device))
                group.create_task(self._end_silent())
        except* CannotServe as failures:
            raise failures.exceptions[0] from None
        finally:
            if self._pools is not None:
                self._pools.close()

    def send_plans(self) -> None:
        """Let the scheduler plan, and send what it decided."""
        if self.scheduler is None:
            return
        for device_name, plan in self.scheduler.plan(self._clock()):
            self.runners[device_name].send(plan)

    @property
    def is_recovering(self) -> bool:
        """Whether it is ready, but no runner works now."""
        return self.is_ready and not self._ready_since

    @property
    def messages_sent(self) -> int:
        """Messages to all runners since the start."""
        return self._sent_before + sum(runner.messages_sent for runner in self.runners.values())

    # ------------------------------------------------------------------ runners

    async def _keep_runner(self, device: DeviceConfig) -> None:
        restarts = RunnerRestarts(self._config.engine.restart_s)
        while True:
            runner = RunnerClient(device.name, lambda message: self._on_message(device, message))
            self._install(device, runner)
            status = await runner.run(load_message(self._config, self._model, device))
            ready_s, refusal = self._lose(device, status), self._refusals.pop(device.name, None)
            pause_s = restarts.next_pause_s(
                ready_s, was_refused=refusal is not None, others_serve=bool(self._ready_since)
            )
            if pause_s is None:
                if refusal is not None:
                    raise CannotServe(refusal)
                raise CannotServe(f"the runner of {device.name} failed to start {MAX_FAILED_STARTS} times")
            self.progress = f"the runner of {device.name} is being started again"
            if refusal is not None:
                log.warning("the runner of %s cannot serve any more: %s", device.name, refusal)
            log.warning(
                "the runner of %s ended with status %d; starting it again in %g s",
                device.name,
                status,
                pause_s,
            )
            self._on_change()
            await asyncio.sleep(pause_s)

    def _install(self, device: DeviceConfig, runner: RunnerClient) -> None:
        replaced = self.runners.get(device.name)
        if replaced is not None:
            self._sent_before += replaced.messages_sent
        self.runners[device.name] = runner

    def _lose(self, device: DeviceConfig, status: int) -> float | None:
        """A runner is gone. How long it had been ready; None: it never was."""
        now_ns, since_ns = self._clock(), self._ready_since.pop(device.name, None)
        fault = self._faults.pop(device.name, None)
        trusted = (fault is None or fault.pool_trusted) and self._has_kept_pool(device)
        if self._mappings is not None:
            self._mappings.lost(device.name)
        if self.scheduler is None:
            return None
        if since_ns is None:
            self.scheduler.start_failed(device.name)
            return None
        was_killed = fault is None and status == -signal.SIGKILL
        culprit = self.scheduler.runner_lost(device.name, now_ns, pool_trusted=trusted, was_killed=was_killed)
        if culprit is not None:
            log.error("the prompt %s is failed: %s", culprit.prompt_id, culprit.error)
        if not trusted:
            self._distrust(device)
        self._on_work()
        return (now_ns - since_ns) / 1e9

    async def _end_silent(self) -> None:
        """A runner that says nothing although prompts run there has failed like one that says so."""
        silence = Silence()
        while True:
            await asyncio.sleep(LOOK_S)
            states = self.scheduler.devices if self.scheduler is not None else {}
            for device in self._devices:
                state, runner = states.get(device.name), self.runners[device.name]
                is_busy = state is not None and state.is_up and bool(state.running)
                if silence.is_too_long(device.name, runner.messages_received, is_busy=is_busy):
                    reason = f"it has said nothing for {SILENT_S:.0f} s while prompts ran there"
                    self._on_fault(device, Fault(reason=reason, pool_trusted=False))
                    runner.kill()

    def _distrust(self, device: DeviceConfig) -> None:
        """Nobody is to use what it has in the device's pool: at once when a fault is reported, and once more
        what came there until the runner was gone."""
        self._lenders.distrust(f"{self.name}@{device.name}", self._clock())
        self._on_work()

    def _has_kept_pool(self, device: DeviceConfig) -> bool:
        held = self._pools.local.get(device.name) if self._pools is not None else None
        return held is not None and held.outlives_runners

    # ------------------------------------------------------------------ messages

    def _on_message(self, device: DeviceConfig, message: FromRunner) -> None:
        match message:
            case Report():
                assert self.scheduler is not None
                self.scheduler.on_report(device.name, message, self._clock())
                self._on_work()
            case Progress(stage=stage, fraction=fraction):
                self._show_progress(device, stage, fraction)
                self._on_change()
            case Loaded():
                self._attach(device, message)
            case NoGrammars(reason=reason):
                self._grammars_problem = reason
                self._complete_card()
                self._on_change()
            case Ready():
                self._on_ready(device, message)
            case Mapped():
                assert self._mappings is not None
                self._mappings.mapped(device.name, message)
                self._update_mappings()
            case Remapped():
                assert self._mappings is not None
                self._mappings.remapped(device.name, message)
                self._on_work()
            case SegmentsMade():
                assert self._mappings is not None
                self._mappings.made(device.name, message)
                self._on_work()
            case Refused(reason=reason):
                self._refusals[device.name] = reason
            case Fault():
                self._on_fault(device, message)

    def _on_fault(self, device: DeviceConfig, fault: Fault) -> None:
        log.error("the runner of %s failed: %s", device.name, fault.reason)
        self._faults[device.name] = fault
        if not fault.pool_trusted and device.name in self._ready_since:
            assert self.scheduler is not None
            self.scheduler.device_faulted(device.name, self._clock())
            self._distrust(device)

    def _show_progress(self, device: DeviceConfig, stage: str, fraction: float | None) -> None:
        """Nothing that takes long happens without a word: each stage is logged as it begins."""
        if fraction is None:
            log.info("%s on %s: %s", self.name, device.name, stage)
        self.progress = stage if fraction is None else f"{stage} ({fraction:.0%})"

    def _attach(self, device: DeviceConfig, loaded: Loaded) -> None:
        """The model's shape is known: lay out its pools if this is the first time, and hand them over."""
        runner = self.runners[device.name]
        try:
            if self._pools is None:
                self._pools = PoolTable(self._config, loaded.layout, self._pool_ids)
                self._mappings = Mappings(self._pools, self.runners)
            self._pools.add_local(device, num_models_on(self._config, device), loaded.free_bytes)
            self._limits[device.name] = self._pools.context_limit(
                device.name, self._model.max_model_len, loaded.card.max_model_len
            )
        except (RegionError, PoolTooSmall) as error:
            self._refusals[device.name] = str(error)
            runner.send(Shutdown())
            return
        self._model_len = loaded.card.max_model_len
        card = self.card or loaded.card
        self.card = msgspec.structs.replace(card, max_model_len=max(self._limits.values()))
        self._complete_card()
        assert self._mappings is not None
        self._mappings.start(device.name)
        if self.is_ready:
            self._on_change()  # longer contexts may be possible now

    def _complete_card(self) -> None:
        """Add to the card what a runner may find out before it or after it."""
        if self.card is not None and self._grammars_problem is not None:
            self.card = msgspec.structs.replace(self.card, grammars_problem=self._grammars_problem)

    def _on_ready(self, device: DeviceConfig, ready: Ready) -> None:
        """The runner can work: its device joins the scheduler, which is made with the first."""
        assert self._pools is not None
        assert self.card is not None
        held = self._pools.local[device.name]
        if held.spec.kind == "cuda" and not held.descriptors:
            held.descriptors += self.runners[device.name].receive_descriptors()
        assert self._mappings is not None
        self._mappings.ready(device.name, ready.unreachable)
        self._ready_since[device.name] = self._clock()
        if self.scheduler is None:
            self.scheduler = make_scheduler(
                self._config, self._pools.layout, self._pools.host.ledger, self._links, self._model_len
            )
            self._lenders.join(self.name, self.scheduler, self._mappings, self._on_region)
        self.scheduler.runner_up(device.name, held.ledger, max_batch(self._config, device), ready.cost)
        self._lend(device, held)
        self._update_mappings()
        log.info("%s is ready on %s after %.1f s", self.name, device.name, ready.load_s)
        self._on_change()
        self._on_work()

    def _lend(self, device: DeviceConfig, held: HeldPool) -> None:
        """Make the device's pool known, if others can map it: to lend what is not needed here, and to shrink
        if somebody wishes."""
        assert self._pools is not None
        assert self.scheduler is not None
        region = self._pools.region_of(self.name, device.name, self._limits[device.name])
        if region.name in self._lenders.regions or not held.descriptors:
            return
        num_bytes = region.num_bytes if device.lend is None else device.lend
        region.is_lent = num_bytes > 0
        reserve = round(self._config.memory.reserve * held.ledger.num_usable)
        owner = Owner(
            self.scheduler.store,
            held.ledger,
            keep_pages=max(reserve, device.keep // held.ledger.page_bytes),
            max_segments=num_bytes // region.segment_bytes,
        )
        self._lenders.add(region, owner)

    def _on_region(self, region: Region) -> None:
        """There is more memory to borrow."""
        assert self._pools is not None
        held = self._pools.add_borrowed(region)
        self._lenders.lending.connect(region.name, self.name, held.ledger)
        self._update_mappings()

    def _update_mappings(self) -> None:
        assert self._mappings is not None
        assert self.scheduler is not None
        self._mappings.update(set(self._ready_since), self.scheduler.store.placement)
        self._on_work()
