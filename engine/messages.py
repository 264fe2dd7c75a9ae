"""Every message that crosses a process border, in both directions.

    api  <->  engine      one Unix socket; tools of an operator connect to it as an api does
    engine  <->  runner   one socket pair per runner, and a second one for descriptors

Messages are msgspec structs in MessagePack, framed by `engine.wire`. The `type` tag of a struct is its
class name. Four unions at the end of the file say who may send what to whom; a decoder accepts nothing else.

Times are integer nanoseconds, sizes bytes. A position is the index of a token in its context, from 0.
"""

from array import array
from enum import StrEnum
from typing import TYPE_CHECKING, TypeAlias

from msgspec import Struct

from engine.memory.page import PageLayout

if TYPE_CHECKING:
    PageList: TypeAlias = array[int]
else:
    PageList = array  # cannot be subscripted before Python 3.12
"""Numbers of pages, of type code 'i'; on the wire as they are in memory."""


class Message(Struct, frozen=True, tag=True, kw_only=True, omit_defaults=True):
    """Base of everything that is sent on its own."""


class Part(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Base of everything that is sent inside a message."""


class FinishReason(StrEnum):
    """Why a prompt ended. Every accepted prompt ends with one of these."""

    STOP = "stop"  # sampled one of its stop tokens
    LENGTH = "length"  # reached max_tokens
    ABORT = "abort"  # the api asked for it, or its api process stayed away too long
    ERROR = "error"  # could not be served; `TokenDelta.error` says why


class GrammarKind(StrEnum):
    """Languages in which a grammar may be written (llguidance's)."""

    JSON_SCHEMA = "json_schema"
    REGEX = "regex"
    LARK = "lark"


class Grammar(Part, frozen=True, kw_only=True):
    """A constraint on the text that is sampled."""

    kind: GrammarKind
    source: str


BAD_GRAMMAR = "the grammar cannot be used"  # how the error of a prompt begins whose grammar is to blame
NO_GRAMMARS = "this model's tokenizer has no grammars"


class Sampling(Part, frozen=True, kw_only=True):
    """How the tokens of one prompt are chosen, and when it ends.

    The random number for the token at a position depends on `seed` and that position alone, so that neither
    the rest of the batch nor a preemption changes what is sampled. `temperature` 0 is greedy.
    """

    max_tokens: int
    is_open_ended: bool = False  # the client set no max_tokens: it is all that the context has left
    seed: int = 0  # 0 <= seed < 2**63
    min_tokens: int = 0  # stop tokens are not sampled before this many
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0  # 0: all tokens
    min_p: float = 0.0
    stop_token_ids: tuple[int, ...] = ()
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: dict[int, float] = {}
    logprobs: int | None = None  # alternatives reported beside the sampled token; None: no logprobs at all
    prompt_logprobs: int | None = None
    grammar: Grammar | None = None


class TokenLogprobs(Part, frozen=True, kw_only=True):
    """Natural-log probabilities of one token and of the likeliest alternatives at its position."""

    logprob: float
    rank: int  # 1: the likeliest
    top: list[tuple[int, float]] = []  # (token id, logprob), likeliest first


class ModelCard(Part, frozen=True, kw_only=True):
    """What a runner found out about the model it loaded."""

    name: str
    architecture: str
    source: str  # the path, or what stood for it in the config
    tokenizer: str | None  # a folder for AutoTokenizer, or None: the built-in byte tokenizer
    vocab_size: int
    max_model_len: int
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]
    loaded_s: int  # Unix time
    sampling_defaults: dict[str, float] = {}  # temperature, top_p, top_k, ... of generation_config
    dtype: str = "float32"
    is_chat: bool = False  # the tokenizer has a chat template
    licence_notice: str | None = None
    cached_at: str | None = None
    grammars_problem: str | None = None  # why no answer can be held to a grammar, if so


# ------------------------------------------------------------------ api -> engine


class Hello(Message, frozen=True, kw_only=True):
    """First message of an api process on every connection. `api_id` is the process's own and outlives it."""

    api_id: str


class PromptSpec(Part, frozen=True, kw_only=True):
    """One prompt of a request. On a resubmission `output_ids` holds every token the api received, and
    `service_ns` the GPU time that the engine had charged by then."""

    prompt_id: str
    input_ids: list[int]
    sampling: Sampling
    output_ids: list[int] = []
    service_ns: int = 0


class TenantLimits(Part, frozen=True, kw_only=True):
    """What one tenant may have at a time, and per minute; None: no limit. The engine keeps them, so that
    they hold over all api processes; the latest request's limits are in force."""

    max_prompts: int | None = None  # accepted and not finished
    max_tokens: int | None = None  # context lengths of those, summed, as `engine.admission` counts them
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None  # of prompts and answers together


class RateState(Part, frozen=True, kw_only=True):
    """What is left of one limit per minute, and when it will be whole again."""

    limit: int
    remaining: int
    reset_s: float


class Submit(Message, frozen=True, kw_only=True):
    """Serve a request: all its prompts, or none (`Rejected`).

    Idempotent by prompt id: for a prompt that the engine still has, it replays the tokens after
    `output_ids` and goes on; for one that it does not know (it was restarted), it admits the prompt anew and
    continues after `output_ids`. An api resubmits every open request after each reconnection.
    """

    request_id: str
    model: str
    prompts: list[PromptSpec]
    tenant: str = "default"
    weight: float = 1.0  # of the tenant
    nice: int = 0  # of the prompts within the tenant, -20..19
    latency_ns: int | None = None  # wished slice length (eevdf): shorter asks for lower latency
    tokens_per_s: float | None = None  # wished floor; None: everybody's
    cache_salt: str = ""
    limits: TenantLimits | None = None
    resubmitted: bool = False  # never turned away by a queue bound: it was accepted before


class Abort(Message, frozen=True, kw_only=True):
    """End these prompts at once; nothing more is sent for them."""

    prompt_ids: list[str]


class GetStats(Message, frozen=True, kw_only=True):
    """Ask for a `Stats`."""

    serial: int


class GetLive(Message, frozen=True, kw_only=True):
    """Ask for a `Live`, with the slices that ended after `since_ns` of the engine's clock."""

    serial: int
    since_ns: int = 0


class Resize(Message, frozen=True, kw_only=True):
    """Have the pools of a device take `num_bytes` in all, and give the rest of their memory back to other
    programs; answered with `Resizing` at once, the rest happens by and by."""

    serial: int
    device: str
    num_bytes: int


# ------------------------------------------------------------------ engine -> api


class Resizing(Message, frozen=True, kw_only=True):
    """Answer to `Resize`: what the pools will have, in whole segments; or why it cannot be."""

    serial: int
    num_bytes: int = 0
    error: str | None = None


class Welcome(Message, frozen=True, kw_only=True):
    """Answer to `Hello`, and sent again whenever a model becomes ready or goes away, or its last runner."""

    engine_id: str
    ready: list[ModelCard]
    loading: dict[str, str] = {}  # model name -> what it is doing
    recovering: dict[str, str] = {}  # likewise, of those that are ready but have no runner at the moment


class Admitted(Message, frozen=True, kw_only=True):
    """`rates` has the tenant's limits per minute by what they count: "requests", "tokens"."""

    request_id: str
    rates: dict[str, RateState] = {}


class Rejected(Message, frozen=True, kw_only=True):
    """The request was not accepted; nothing of it is kept. `code` is an OpenAI error code."""

    request_id: str
    code: str
    message: str
    retry_after_s: float | None = None
    rates: dict[str, RateState] = {}


class TokenDelta(Part, frozen=True, kw_only=True):
    """New tokens of one prompt. `start` is the index of the first in the prompt's output: the api drops
    what it already has, so nothing is ever shown twice."""

    prompt_id: str
    start: int
    ids: list[int] = []
    finish: FinishReason | None = None
    service_ns: int = 0
    cached_tokens: int = 0
    logprobs: list[TokenLogprobs] | None = None
    prompt_logprobs: list[TokenLogprobs | None] | None = None
    error: str | None = None


class Tokens(Message, frozen=True, kw_only=True):
    """All that one step brought for one api connection."""

    deltas: list[TokenDelta]


class Sample(Part, frozen=True, kw_only=True):
    """One value of a metric. `kind` is counter, gauge or histogram; a histogram carries buckets."""

    name: str
    help: str
    kind: str
    value: float = 0.0
    labels: dict[str, str] = {}
    buckets: list[tuple[str, float]] = []  # (upper bound, cumulative count)


class Stats(Message, frozen=True, kw_only=True):
    """`status` is a snapshot for people (devices, queues, tiers); `samples` are for Prometheus."""

    serial: int
    samples: list[Sample]
    status: dict[str, object] = {}


class SliceFate(StrEnum):
    """How a slice ended, as a timeline shows it."""

    EXTENDED = "extended"  # the prompt's next slice followed at once
    PREEMPTED = "preempted"  # the prompt waits again, or its runner died
    STOP = "stop"  # the prompt ended with it: see FinishReason
    LENGTH = "length"
    ABORT = "abort"
    ERROR = "error"


class LivePart(Struct, frozen=True, kw_only=True):
    """Base of the parts of `Live`, which the api passes on as JSON: every field is there."""


class SliceRecord(LivePart, frozen=True, kw_only=True):
    """One slice on a timeline; times are of the engine's monotonic clock. `prompt` is a serial number,
    `slot` a row of the device's timeline. Up to `first_token_ns` the slice was prefill, if it is not None.
    A slice in force has neither `end_ns` nor `fate`."""

    prompt: int
    tenant: str
    device: str
    slot: int
    arrival_ns: int  # of the prompt
    start_ns: int
    first_token_ns: int | None
    end_ns: int | None
    prefilled: int  # prompt positions computed
    sampled: int  # tokens
    fate: SliceFate | None


class LiveDevice(LivePart, frozen=True, kw_only=True):
    """A device that serves, now. Pages are of its own pool: those of contexts that run, of contexts that wait
    (`clean` of them also have a mirror) and free ones. Counts of time are totals."""

    name: str
    is_up: bool
    num_running: int
    max_batch: int
    step_ns: int
    busy_ns: int
    idle_ns: int
    num_steps: int
    pages_running: int
    pages_idle: int
    pages_clean: int
    pages_free: int


class LiveTier(LivePart, frozen=True, kw_only=True):
    """Where mirrors live: the memory that a device lends, or the host's."""

    place: str  # a device, or "host"
    pages_used: int
    pages: int


class LivePath(LivePart, frozen=True, kw_only=True):
    """Moves from one place to another, in all."""

    src: str
    dst: str
    num_bytes: int
    move_ns: int


class LiveTenant(LivePart, frozen=True, kw_only=True):
    """A tenant's prompts and the GPU time charged to it so far. `weight` is None while it has no prompt."""

    name: str
    weight: float | None
    service_ns: int
    num_running: int
    num_waiting: int


class LiveModel(LivePart, frozen=True, kw_only=True):
    """One model, now; one that loads has `stage` in words and nothing more."""

    name: str
    stage: str | None
    page_bytes: int
    devices: list[LiveDevice]
    tiers: list[LiveTier]
    paths: list[LivePath]
    tenants: list[LiveTenant]
    output_tokens: int
    computed_tokens: int
    recomputed_tokens: int
    num_slices: int
    num_preemptions: int
    move_wait_ns: int
    ended: list[SliceRecord]
    in_force: list[SliceRecord]


class LiveLender(LivePart, frozen=True, kw_only=True):
    """Memory to borrow, in segments; `own_segments` are in use by the model that runs there, None if none
    does."""

    name: str
    device: str
    segment_bytes: int
    num_segments: int
    own_segments: int | None
    on_offer: int
    recalled: int
    leased: dict[str, int]  # by borrowing model


class Live(Message, frozen=True, kw_only=True):
    """What happens now, for the page that shows it."""

    serial: int
    engine_id: str
    now_ns: int
    models: list[LiveModel]
    lenders: list[LiveLender]


# ------------------------------------------------------------------ engine -> runner


class PoolSpec(Part, frozen=True, kw_only=True):
    """A pool of equal pages: `num_pages * page_bytes` bytes from the start of a memory region.

    `region` says where in the descriptors that came with the message its own is; `kind` is 'cpu' (shared
    memory), 'host' (shared memory, pinned by runners that have a GPU) or 'cuda' (driver allocations).
    Page 0 of a runner's local pool is never given to a context: padding writes go there. A 'cuda' pool is in
    segments of `segment_bytes` (the last may be shorter) behind descriptors `region` and on, one each.
    `region_bytes` is the size of all the region, where the pool does not fill it with whole pages. Segments
    that are `missing` have no memory now, and no descriptor.
    """

    pool: int
    kind: str
    device: str
    num_pages: int
    page_bytes: int
    region: int | None = None
    segment_bytes: int = 2**28
    region_bytes: int | None = None
    missing: list[int] = []


class LinkSpec(Part, frozen=True, kw_only=True):
    """A simulated link for CPU stand-ins: a move from `src` to `dst` takes at least
    `delay_s + bytes / bytes_per_s` seconds."""

    src: int
    dst: int
    delay_s: float = 0.0
    bytes_per_s: float | None = None


class Load(Message, frozen=True, kw_only=True):
    """First message to a runner: the model to load and the device to load it on."""

    model: str  # served name
    source: str | None  # path, 'dummy:PATH', or None: the embedded default
    device: str
    dtype: str | None
    page_tokens: int
    max_model_len: int | None
    max_batch: int
    max_step_tokens: int
    part_tokens: int | None = None  # least part of prompts whose slice is `in_parts`; None: as others
    threads: int | None = None
    seed: int = 0
    deterministic: bool = False
    cache_dir: str | None = None


class Attach(Message, frozen=True, kw_only=True):
    """Pools to map. `local` is this runner's own; descriptors travel on the descriptor socket, in the
    order of `PoolSpec.region`. A 'cuda' local pool without a descriptor is to be made by the runner, which
    sends its descriptors back before `Ready`. Once the runner is ready, more pools may follow in another
    `Attach`, which is answered with `Mapped`."""

    local: int
    pools: list[PoolSpec]
    links: list[LinkSpec] = []


class Unmap(Message, frozen=True, kw_only=True):
    """Nothing is in these segments of a pool any more, and nothing will touch them: let go of their memory.
    Answered with `Remapped`."""

    pool: int
    segments: list[int]


class Remap(Message, frozen=True, kw_only=True):
    """These segments of a pool have memory again: map it. A descriptor for each travels on the descriptor
    socket. Answered with `Remapped`."""

    pool: int
    segments: list[int]


class MakeSegments(Message, frozen=True, kw_only=True):
    """Make memory for these segments of the runner's local pool. Descriptors are sent back before the answer,
    `SegmentsMade`."""

    segments: list[int]


class Slice(Part, frozen=True, kw_only=True):
    """A prompt's turn on the device.

    The runner computes `ids` (positions `start` and on) and then samples until `max_new` tokens are out, a
    stop token is sampled, or it is told to end. `pages[g]` is the page table of layer group g in the local
    pool: entry i holds positions `i * page_tokens` and on; pages wholly before a sliding window are 0. It
    covers everything the slice may write. The slice starts when slice `after` has ended and all moves in
    `wait_moves` are complete.
    """

    slice_id: int
    start: int
    ids: list[int]
    pages: list[PageList]
    max_new: int
    num_prompt: int  # positions below this are the prompt's; output token k is at num_prompt + k
    sampling: Sampling
    history: list[int] = []  # all ids before `start`; only if penalties or a grammar need them
    after: int | None = None
    wait_moves: list[int] = []
    in_parts: bool = False  # others wait for a place: `ids` are computed in parts beside rows that decode


class Extension(Part, frozen=True, kw_only=True):
    """The next slice of a prompt that goes on running: same state, `pages` appended to each group's table,
    `max_new` more tokens. `slice_id` takes over from slice `extends` when that is used up."""

    slice_id: int
    extends: int
    pages: list[PageList]
    max_new: int


class Move(Part, frozen=True, kw_only=True):
    """Copy whole pages: `src_pages[i]` of `src_pool` to `dst_pages[i]` of `dst_pool`.

    The engine orders it: a source page is never written by a step in flight, except for positions that
    nobody reads from the copy; a destination page is not in use until the `MoveEnd`.
    """

    move_id: int
    src_pool: int
    dst_pool: int
    src_pages: PageList
    dst_pages: PageList
    urgent: bool = False  # a slice waits for it: before mirrors


class Plan(Message, frozen=True, kw_only=True):
    """Work for a runner: slices to add, extend and end, and pages to move. Applied between two steps.

    `ends` stop at the next step boundary and keep their state; `cancels` are thrown away (the prompt is
    gone): nothing more is reported of them but their end.
    """

    slices: list[Slice] = []
    extensions: list[Extension] = []
    ends: list[int] = []
    cancels: list[int] = []
    moves: list[Move] = []


class Shutdown(Message, frozen=True, kw_only=True):
    """Finish the step in flight and exit."""


# ------------------------------------------------------------------ runner -> engine


class Progress(Message, frozen=True, kw_only=True):
    """Loading goes on: `stage` in words, `fraction` from 0 to 1 where it is known."""

    stage: str
    fraction: float | None = None


class Loaded(Message, frozen=True, kw_only=True):
    """The model is in memory; pools may be attached. `free_bytes` is what the device has left for pages."""

    card: ModelCard
    layout: PageLayout
    free_bytes: int | None


class Ready(Message, frozen=True, kw_only=True):
    """Pools are mapped, the self-test passed, kernels are warm. `local_pages` counts page 0. `unreachable`
    are pools that this device cannot move pages to or from, and why."""

    local_pages: int
    load_s: float
    cost: "CostModel"
    unreachable: dict[int, str] = {}


class NoGrammars(Message, frozen=True, kw_only=True):
    """The card's `grammars_problem`, where it is found out later than the rest: reading a large tokenizer for
    grammars takes seconds. May come at any time after `Load`."""

    reason: str


class Mapped(Message, frozen=True, kw_only=True):
    """Answer to an `Attach` that came after `Ready`: the pools that moves may use from now on, and those that
    this device cannot reach, with the reason."""

    pools: list[int]
    unreachable: dict[int, str] = {}


class Remapped(Message, frozen=True, kw_only=True):
    """Answer to `Unmap` and `Remap`: it is done."""

    pool: int


class SegmentsMade(Message, frozen=True, kw_only=True):
    """Answer to `MakeSegments`: a descriptor for each has been sent, or none, and why."""

    pool: int
    segments: list[int]
    error: str | None = None


class CostModel(Part, frozen=True, kw_only=True):
    """What a step costs, fitted on the machine: fixed + per decoded row + per prefilled token + per token of
    context read, all in nanoseconds; less what prefill hides of the fixed part.

    Reading the weights and computing prefill overlap: of `overlap_ns` at most, o p / (o + p) is saved where
    prefill takes p, as of two resources of which one waits for the other (docs/benchmarks.md, "Prompts in
    parts", has the fit).
    """

    step_ns: float = 0.0
    decode_ns: float = 1.0
    prefill_ns: float = 1.0
    context_ns: float = 0.0
    overlap_ns: float = 0.0


class Refused(Message, frozen=True, kw_only=True):
    """The runner cannot serve what it was told to; one line for a person. The engine stops."""

    reason: str


class Step(Part, frozen=True, kw_only=True):
    """One step, as columns with one entry per row of the batch.

    `tokens[i]` is what row i sampled, None for a row still in prefill. `computed[i]` positions of its context
    are now valid; `fed[i]` of them are this step's.
    """

    step_ns: int  # GPU time of the step
    idle_ns: int  # time the device stood idle before it although work was queued
    slice_ids: list[int]
    fed: list[int]
    computed: list[int]
    tokens: list[int | None]
    logprobs: dict[int, TokenLogprobs] = {}  # by row
    prompt_logprobs: dict[int, list[TokenLogprobs | None]] = {}


class EndReason(StrEnum):
    """Why a slice ended."""

    USED = "used"  # sampled max_new tokens
    STOP = "stop"  # sampled a stop token
    LENGTH = "length"  # the prompt reached its max_tokens
    ENDED = "ended"  # the engine asked
    CANCELLED = "cancelled"  # the engine asked, and wants nothing of it
    FAILED = "failed"  # `error` says why; only this prompt is affected


class SliceEnd(Part, frozen=True, kw_only=True):
    slice_id: int
    computed: int
    reason: EndReason
    error: str | None = None


class MoveEnd(Part, frozen=True, kw_only=True):
    """All bytes of the move are at their destination. `wait_ns` is how long compute stood still for it."""

    move_id: int
    duration_ns: int
    wait_ns: int = 0


class Report(Message, frozen=True, kw_only=True):
    """What happened since the last report, in order: steps, then slice ends, then moves."""

    steps: list[Step] = []
    ends: list[SliceEnd] = []
    moves: list[MoveEnd] = []


class Fault(Message, frozen=True, kw_only=True):
    """The runner is about to exit. `pool_trusted` is false after a device fault."""

    reason: str
    pool_trusted: bool


FromApi = Hello | Submit | Abort | GetStats | GetLive | Resize
ToApi = Welcome | Admitted | Rejected | Tokens | Stats | Live | Resizing
ToRunner = Load | Attach | Unmap | Remap | MakeSegments | Plan | Shutdown
FromRunner = (
    Progress | Loaded | NoGrammars | Ready | Mapped | Remapped | SegmentsMade | Refused | Report | Fault
)
