"""Contexts that have pages in a local pool and do not run: who may give way, and how much that would free."""

from engine.memory.context import Context


class IdleQueue:
    """Idle longest first; evictions begin there. A context knows the queue that it is in (`idle_in`).
    `changed` learns of the pool, `pool_id`, whenever a count may have changed."""

    __slots__ = ("changed", "contexts", "dirty", "evictable", "in_motion", "pool_id")

    def __init__(self, pool_id: int, changed: set[int]) -> None:
        self.pool_id = pool_id
        self.changed = changed
        self.contexts: dict[Context, None] = {}
        self.dirty: dict[Context, None] = {}  # not mirrored, nor being mirrored
        self.evictable = 0  # pages that can be dropped without losing anything that a prompt needs
        self.in_motion = 0  # pages of contexts that have moves in flight

    def add(self, context: Context, evictable: int) -> None:
        """The context, which has so many evictable pages, comes last, or stays where it is here."""
        assert context.idle_in is None or context.idle_in is self
        context.idle_in = self
        self.contexts[context] = None
        self.recount(context, evictable)

    def recount(self, context: Context, evictable: int) -> None:
        """Bring the counts up to date after a change to a context that is here."""
        in_motion = context.num_local if context.moves_in_flight else 0
        if context.mirrored < context.computed and not in_motion:
            self.dirty[context] = None
        else:
            self.dirty.pop(context, None)
        self.evictable += evictable - context.evictable
        self.in_motion += in_motion - context.in_motion
        context.evictable, context.in_motion = evictable, in_motion
        self.changed.add(self.pool_id)

    def remove(self, context: Context) -> None:
        """The context is not idle any more, or has no local copy."""
        context.idle_in = None
        del self.contexts[context]
        self.dirty.pop(context, None)
        self.evictable -= context.evictable
        self.in_motion -= context.in_motion
        context.evictable = context.in_motion = 0
        self.changed.add(self.pool_id)

    def check_integrity(self) -> None:
        """Counts agree with the contexts. Raises AssertionError."""
        assert self.evictable == sum(context.evictable for context in self.contexts)
        assert self.in_motion == sum(context.in_motion for context in self.contexts)
        assert all(context.idle_in is self for context in self.contexts)
        assert set(self.dirty) == {c for c in self.contexts if c.is_dirty and not c.moves_in_flight}
