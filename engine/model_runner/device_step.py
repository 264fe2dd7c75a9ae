"""A step of a model on a device with paged kernels: inputs, forward pass, next tokens.

Nothing here waits for the device, except for rows that need their own past (penalties, grammars) and for the
log-probabilities of a prompt.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from transformers import PreTrainedModel

from engine.memory.page import PageLayout
from engine.model_runner.batch import StepRow
from engine.model_runner.compiling import Forward, compiled
from engine.model_runner.kernels.attention import PagedKernels
from engine.model_runner.kernels.invariant_linear import invariant_product
from engine.model_runner.kernels.invariant_step import InvariantKernels
from engine.model_runner.kernels.linear import LinearProduct
from engine.model_runner.kernels.prefill import TILE_FIELDS, tile_tokens, tiles_of
from engine.model_runner.kernels.rotate import rotate
from engine.model_runner.kernels.step_buffers import StepBuffers, StepLimits
from engine.model_runner.likeliest import likeliest
from engine.model_runner.rotary import rotate_by, rotate_once
from engine.model_runner.sampler import sample
from engine.model_runner.shared_linear import share_linears
from engine.model_runner.slot_state import SlotState, upload
from engine.model_runner.step_plan import MAX_GRAPH_CHUNKS, Ints, MixedShape, StepPlan

_TRACED_TOKENS, _TRACED_LOGITS = 24, 5  # sizes of the traced call: different, or they would be taken for one


@dataclass(frozen=True, slots=True)
class StepOptions:
    """`deterministic`: every token is rounded in the same way, whatever else is in the batch."""

    max_batch: int
    max_step_tokens: int
    max_model_len: int
    compile: bool = True
    deterministic: bool = False


class DeviceStep:
    """Buffers and forward pass of one model over one pool; see `CudaExecutor`.

    `tokens` int64 and `logits` `[rows, vocab]` hold what the last decode step left.
    """

    def __init__(
        self, model: PreTrainedModel, layout: PageLayout, pool: torch.Tensor, options: StepOptions
    ) -> None:
        text = model.config.get_text_config()
        limits = StepLimits(
            options.max_batch, options.max_step_tokens, layout.num_pages(options.max_model_len) + 1
        )
        self.device = pool.device
        self.limits = limits
        heads = text.num_attention_heads
        self.paged: StepBuffers = (
            InvariantKernels(pool, layout, heads, limits, options.max_model_len)
            if options.deterministic
            else PagedKernels(pool, layout, heads, limits)
        )
        self.state = SlotState(self.paged.tables)
        self.tokens = torch.zeros(limits.rows, dtype=torch.int64, device=self.device)
        num_logits = limits.rows + MAX_GRAPH_CHUNKS
        self.logits = torch.zeros(num_logits, text.vocab_size, dtype=model.dtype, device=self.device)
        self._ids = torch.zeros(limits.tokens, dtype=torch.int64, device=self.device)
        self._keep = torch.zeros(limits.rows + limits.tokens, dtype=torch.int64, device=self.device)
        self._rows = torch.arange(limits.rows, device=self.device)
        self._tile_tokens = tile_tokens(heads // layout.kv_heads)
        self._forward = _make_forward(model, self.paged, options)

    def send_decode(self, rows: Sequence[StepRow], size: int) -> None:
        """Slots and positions of a decode step padded to `size` rows."""
        count = len(rows)
        columns = np.zeros((2, size), dtype=np.int64)
        columns[0, :count] = [step.row.slot for step in rows]
        columns[0, count:] = self.state.padding_slot
        columns[1, :count] = [step.start for step in rows]
        _send(columns[0], self.paged.slots)
        _send(columns[1], self.paged.positions)

    def decode_greedy(self, size: int) -> None:
        """Decode the rows in `paged.slots`; their likeliest tokens become `tokens` and their last tokens."""
        tokens = likeliest(self._decode(size))
        self.state.last_tokens.index_copy_(0, self.paged.slots[:size], tokens)
        self.tokens[:size].copy_(tokens)

    def decode_logits(self, size: int) -> None:
        """Decode the rows in `paged.slots` as far as their `logits`."""
        self.logits[:size].copy_(self._decode(size))

    def send_mixed(self, plan: StepPlan, shape: MixedShape | None = None) -> int:
        """Inputs of a step of any kind; of `shape`, to which it was padded. Returns its number of tiles."""
        assert len(plan.positions) <= self.limits.tokens, "more tokens in a step than its buffers hold"
        _send(self._slots_of_tokens(plan), self.paged.slots)
        _send(plan.positions, self.paged.positions)
        _send(plan.ids, self._ids)
        _send(plan.keep, self._keep)
        tiles = tiles_of(plan.chunks, self._tile_tokens)
        num_tiles = len(tiles) if shape is None else shape.num_tiles(self._tile_tokens)
        if num_tiles:
            padded = np.zeros((num_tiles, TILE_FIELDS), dtype=np.int32)  # a tile of no tokens does nothing
            padded[: len(tiles)] = np.array(tiles, dtype=np.int32).reshape(-1, TILE_FIELDS)
            _send(padded, self.paged.tiles)
        return num_tiles

    def mixed(self, plan: StepPlan) -> torch.Tensor:
        """Logits `[keep, vocab]` of a step of any kind."""
        num_tiles = self.send_mixed(plan)
        return self._mixed(plan.num_decoding, len(plan.positions), num_tiles, len(plan.keep))

    def mixed_logits(self, shape: MixedShape) -> None:
        """Run what `send_mixed` sent as far as its `logits`."""
        num_tiles = shape.num_tiles(self._tile_tokens)
        found = self._mixed(shape.decoding, shape.tokens, num_tiles, shape.logits)
        self.logits[: shape.logits].copy_(found)

    def _mixed(self, num_decoding: int, num_tokens: int, num_tiles: int, num_logits: int) -> torch.Tensor:
        if num_decoding:
            slots = self.paged.slots[:num_decoding]
            self._ids[:num_decoding] = self.state.last_tokens.index_select(0, slots)
        self.paged.plan(num_decoding, num_tiles)
        return self._run(self._ids[:num_tokens], self.paged.positions[:num_tokens], self._keep[:num_logits])

    def draw(self, logits: torch.Tensor, rows: Sequence[StepRow]) -> torch.Tensor:
        """Tokens of `rows` from their `logits`, by the parameters that the device has for their slots."""
        if all(step.row.sampling.temperature == 0 for step in rows):
            return likeliest(logits)
        columns = [[step.row.slot for step in rows], [step.start + step.count for step in rows]]
        slots, positions = upload(np.array(columns, dtype=np.int64), self.device)
        return sample(logits.float(), self.state.draw(rows, slots, positions))

    def remember(self, rows: Sequence[StepRow], tokens: torch.Tensor) -> None:
        """What `rows` sampled is what they feed next."""
        slots = upload(np.array([step.row.slot for step in rows], dtype=np.int64), self.device)
        self.state.last_tokens.index_copy_(0, slots, tokens)

    def trace(self) -> None:
        """Compile, if so configured, for any number of tokens; the step touches only the scrap page."""
        num_tokens = min(_TRACED_TOKENS, self.limits.tokens)
        padding = self.state.padding_slot
        plan = StepPlan(
            order=(),
            num_decoding=1,
            slots=np.array([padding], dtype=np.int64),
            positions=np.zeros(num_tokens, dtype=np.int64),
            ids=np.zeros(num_tokens, dtype=np.int64),
            chunks=((1, num_tokens - 1, 0, padding),),
            sampled=(),
            keep=np.zeros(_TRACED_LOGITS, dtype=np.int64),
            prompt_logits={},
        )
        self.mixed(plan)

    def _slots_of_tokens(self, plan: StepPlan) -> Ints:
        """Slots of all tokens of a step; padding writes to the scrap page."""
        slots = np.full(len(plan.positions), self.state.padding_slot, dtype=np.int64)
        slots[: plan.num_decoding] = plan.slots
        for first, count, _, slot in plan.chunks:
            slots[first : first + count] = slot
        return slots

    def _decode(self, size: int) -> torch.Tensor:
        ids = self.state.last_tokens.index_select(0, self.paged.slots[:size])
        self.paged.plan(size, 0)
        return self._run(ids, self.paged.positions[:size], self._rows[:size])

    def _run(self, ids: torch.Tensor, positions: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
        return self._forward(ids.unsqueeze(0), positions.unsqueeze(0), keep)


def _make_forward(model: PreTrainedModel, paged: StepBuffers, options: StepOptions) -> Forward:
    def forward(ids: torch.Tensor, positions: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
        output = model(
            input_ids=ids, position_ids=positions, use_cache=False, logits_to_keep=keep, paged=paged
        )
        logits: torch.Tensor = output.logits[0]
        return logits

    device = paged.pool.device
    if options.deterministic:
        share_linears(model, invariant_product)
    elif options.compile:
        share_linears(model, LinearProduct(device))
    if not options.compile:
        return forward
    rotate_once(model)
    rotate_by(model, rotate, device)
    return compiled(forward, device, deterministic=options.deterministic)


def _send(array: np.ndarray[tuple[int, ...], np.dtype[np.generic]], target: torch.Tensor) -> None:
    """Write an array to the start of a buffer on the device, without waiting for the device."""
    tensor = torch.from_numpy(array)
    if target.is_cuda:
        tensor = tensor.pin_memory()
    target[: len(array)].copy_(tensor, non_blocking=True)
