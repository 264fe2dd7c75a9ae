"""The context store as prompts see it that may share prefixes."""

from collections.abc import Hashable, Mapping
from itertools import islice

from engine.memory.context import Context
from engine.memory.prefix_search import NOWHERE, Prefix
from engine.memory.store_base import StoreBase
from engine.messages import Move

CACHE_MIRROR_FREE = 0.25  # cached contexts are copied out while less than this part of a pool is free, ...
CACHE_MIRROR_BATCH = 4  # ... so many at a time


class PrefixStore(StoreBase):
    """A store whose contexts may begin where others end, and stay when their prompts have ended. Without
    `shares_prefixes`, each is a prompt's own."""

    def find_prefixes(self, salt: Hashable, tokens: bytes) -> Mapping[int, Prefix]:
        """How much of a prompt is computed, by the pool of each device where something begins as it does, of
        prompts with the same salt. `tokens` (`prefix_tree.pack_tokens`) are the prompt's; the last is always
        computed."""
        return NOWHERE if self._prefixes is None else self._prefixes.search.find(salt, tokens)

    def join(self, context: Context, pool_id: int, salt: Hashable, tokens: bytes, prefix: Prefix) -> Context:
        """The prompt of an empty context goes on from a prefix that was just found on this device, and can be
        found itself. Returns the context that is the prompt's from now on."""
        assert context.node is None
        if self._prefixes is None:
            return context
        return self._prefixes.join(context, pool_id, salt, tokens, prefix)

    def part(self, context: Context, tokens: bytes) -> Context:
        """Undo `join`: there was no room. Returns an empty context for the prompt."""
        if self._prefixes is None or context.node is None:
            return context
        if context.computed > context.start:  # it was taken over
            self._prefixes.retire(context, tokens)
            return self.open()
        self._prefixes.leave(context)
        return context

    def retire(self, context: Context, tokens: bytes) -> None:
        """The prompt has ended; `tokens` are all of it and of its answer. Others that begin alike may use
        what it computed, while there is room."""
        if self._prefixes is None or context.node is None:
            self.close(context)
        else:
            self._prefixes.retire(context, tokens)

    def mirror_cached(self, pool_id: int) -> list[Move]:
        """Copy out some cached contexts, if their room will soon be wanted and there is some in the tiers;
        move some that are in good tiers to worse ones, if their room will be wanted there."""
        moves = self._demotion.start(pool_id) if self._demotion is not None else []
        if self._wants_cached_mirrors(pool_id):
            dirty = list(islice(self._local.cached_dirty(pool_id), CACHE_MIRROR_BATCH))
            moves += self._copying.mirror(dirty, whole=True)
        return moves

    def _wants_cached_mirrors(self, pool_id: int) -> bool:
        pool = self._local.pools[pool_id]
        return self._prefixes is not None and pool.num_free < pool.num_usable * CACHE_MIRROR_FREE

    def num_cached_pages(self) -> dict[int, int]:
        """Pages of contexts that no prompt needs, by pool, of those that have some."""
        counts: dict[int, int] = {}
        for context in self._prefixes.cached if self._prefixes is not None else ():
            for group in context.groups:
                for extent in (*group.local.extents, *group.mirror.extents):
                    pool_id = extent.segment.pool.pool_id
                    counts[pool_id] = counts.get(pool_id, 0) + len(extent.pages)
        return counts

    def forget(self, context: Context) -> None:
        """Give up all of a context that is idle, so that its ancestors need not be kept for it."""
        assert self._prefixes is not None
        self._losses.count(context.computed)
        self._prefixes.leave(context)

    def abandon(self, context: Context) -> None:
        """Nothing of a context that does not grow is to be trusted. Prompts that continue it and cannot begin
        again at once, as they run or move, have been closed."""
        if self._prefixes is not None and not context.is_closing:
            self._prefixes.abandon(context)
