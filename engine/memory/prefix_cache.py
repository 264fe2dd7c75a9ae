"""The prefix cache: prompts that begin alike share pages, and contexts of prompts that ended stay on.

Sharing is by ancestry. Where a new prompt leaves what an earlier one computed, the earlier context is split:
its pages up to there become a context of their own that does not grow any more, the *parent* of both. So a
page has one holder as ever, and what is counted by reference are contexts: by the prompts that need them, and
by the running ones that use them. A context that no prompt needs is cached: it gives way before anything that
a prompt needs does, the least recently used first, and children before their parents.

What may be found is asked for by device: a context is in the index of the device where it runs or ran last.
"""

from collections.abc import Callable, Collection, Hashable, Iterable

from engine.memory.cached_contexts import CachedContexts
from engine.memory.context import Context
from engine.memory.local_copies import LocalCopies
from engine.memory.losses import Losses
from engine.memory.mirrors import Mirrors
from engine.memory.page import PageLayout
from engine.memory.pool import PagePool
from engine.memory.prefix_search import Prefix, PrefixSearch, is_taken_over
from engine.memory.prefix_tree import TOKEN_BYTES, PrefixTree


class PrefixCache:
    """The index, and which contexts are cached. `running`, `open_context` and `close_context` are the
    store's."""

    def __init__(
        self,
        layout: PageLayout,
        local: LocalCopies,
        mirrors: Mirrors,
        losses: Losses,
        running: dict[Context, None],
        open_context: Callable[[], Context],
        close_context: Callable[[Context], None],
    ) -> None:
        self._page_tokens = layout.page_tokens
        self._local = local
        self._mirrors = mirrors
        self._losses = losses
        self._running = running
        self._open_context = open_context
        self._close_context = close_context
        self._tree: PrefixTree[Context] = PrefixTree(layout.page_tokens)
        self.search = PrefixSearch(layout, self._tree)
        self.cached = CachedContexts()
        local.cache = losses.cache = self

    # ------------------------------------------------------------------ prompts come and go

    def join(self, context: Context, pool_id: int, salt: Hashable, tokens: bytes, prefix: Prefix) -> Context:
        """The prompt of `context`, which is empty, goes on from `prefix`, just found, on the device of this
        pool. Returns the context that is the prompt's from now on."""
        parent = prefix.context
        if parent is not None and is_taken_over(parent, prefix.end):
            self._close_context(context)
            return self._take_over(parent, tokens)
        context.salt, context.indexed_at = salt, pool_id
        if parent is None:
            context.node = self._tree.plant(pool_id, salt, tokens, context)
            return context
        if parent.is_growing or prefix.end < parent.computed:
            parent = self._split(parent, prefix.end)
        assert parent.node is not None
        self._adopt(parent, context)
        own = tokens[prefix.end * TOKEN_BYTES :]
        context.node = self._tree.attach(parent.node, prefix.end, own, context)
        return context

    def _take_over(self, context: Context, tokens: bytes) -> Context:
        assert context.node is not None
        self._tree.extend(context.node, tokens[context.start * TOKEN_BYTES :])
        self._need(context)
        context.is_growing = True
        return context

    def _adopt(self, parent: Context, child: Context) -> None:
        self._need(parent)
        parent.children[child] = None
        child.parent = parent
        child.begin_at(parent.computed)

    def _need(self, context: Context) -> None:
        """One prompt more needs the context and its ancestors."""
        for each in (context, *context.ancestors()):
            each.num_prompts += 1
            self._remove(each)

    def _need_no_more(self, context: Context) -> None:
        """A prompt less does."""
        for each in (context, *context.ancestors()):
            each.num_prompts -= 1
            if each.is_cached:
                self._touch(each)

    def _touch(self, context: Context) -> None:
        """A cached context has been used just now."""
        self._local.requeue(context)
        self.cached.use(context)

    def _remove(self, context: Context) -> None:
        """The context is not cached any more, if it was."""
        if context in self.cached:
            self.cached.discard(context)
            self._local.requeue(context)

    def _split(self, context: Context, position: int) -> Context:
        """Give what the context has before `position`, a page border, to a parent of its own."""
        assert not context.moves_in_flight
        assert context.node is not None
        upper = self._open_context()
        upper.node = self._tree.split(context.node, position, upper)
        upper.salt, upper.indexed_at = context.salt, context.indexed_at
        upper.parent, upper.start, upper.computed = context.parent, context.start, position
        if upper.parent is not None:
            del upper.parent.children[context]
            upper.parent.children[upper] = None
        upper.children[context] = None
        context.parent, context.start = upper, position
        upper.is_growing = False
        upper.num_prompts = context.num_prompts
        upper.num_users = int(context.is_running) if context.is_growing else context.num_users
        border = position // self._page_tokens
        upper.mirrored = upper.mirror_target = min(context.mirrored, position)
        context.mirrored = context.mirror_target = max(context.mirrored, position)
        for group, above in zip(context.groups, upper.groups, strict=True):
            above.live_from = min(group.live_from, border)
            group.live_from = max(group.live_from, border)
            group.local.give_before(border, above.local, upper)
            group.mirror.give_before(border, above.mirror, upper)
        if context.is_running:
            upper.is_running = True
            self._running[upper] = None
        self._local.divide(context, upper)
        if upper.is_cached:
            self._touch(upper)
        self.cached.refile(context)
        if not context.is_growing and not self._tree.is_found(context.node):
            self._close_context(context)  # less than a page is left
        return upper

    def move(self, context: Context, pool_id: int) -> None:
        """A context without a family goes to the device of this pool."""
        if context.node is None:
            return
        assert not context.has_family
        context.indexed_at = pool_id
        tokens = context.node.tokens
        self._tree.detach(context.node)
        context.node = self._tree.plant(pool_id, context.salt, tokens, context)

    def leave(self, context: Context) -> None:
        """A prompt's context that does not run and has nothing of its own forgets its ancestors: it is
        empty."""
        assert context.is_growing
        assert not context.is_running
        assert not context.moves_in_flight
        self._losses.release_all(context)
        self._take_out(context)
        self._unlink(context)
        context.begin_at(0)

    def close(self, context: Context) -> None:
        """The context, which has no children, is not to be found any more. Its ancestors are its own until it
        does not run."""
        self._remove(context)
        self._take_out(context)
        if context.num_prompts:
            self._need_no_more(context)
        if not context.is_running:
            self._unlink(context)

    def _take_out(self, context: Context) -> None:
        if context.node is not None:
            self._tree.detach(context.node)
            context.node = context.indexed_at = None

    def _unlink(self, context: Context) -> None:
        parent = context.parent
        if parent is not None:
            del parent.children[context]
            context.parent = None
            if context.is_growing and context.num_prompts:
                self._need_no_more(parent)

    def retire(self, context: Context, tokens: bytes) -> None:
        """The prompt has ended; `tokens` are all of it and of its answer. Its context is cached, once it does
        not run any more."""
        assert context.node is not None
        self._tree.extend(context.node, tokens[context.start * TOKEN_BYTES :])
        self._need_no_more(context)
        if not context.is_running:
            self._rest(context)

    def stopped(self, context: Context) -> None:
        """The context does not run any more."""
        if context.is_closing:
            self._unlink(context)
        elif context.is_growing and not context.num_prompts:
            self._rest(context)

    def _rest(self, context: Context) -> None:
        """A retired context does not grow any more: it is cached, if something of it can be found."""
        node = context.node
        assert node is not None
        is_useful = self.search.border(context.computed) > context.start
        if is_useful:
            own = (context.computed - context.start) * TOKEN_BYTES
            self._tree.extend(node, node.tokens[:own])
        if not is_useful or not self._tree.is_found(node):
            self._close_context(context)
            return
        context.is_growing = False
        for each in (context, *context.ancestors()):
            if each.is_cached:
                self._touch(each)

    # ------------------------------------------------------------------ giving way

    def give_way(self, context: Context, count: int) -> None:
        """Free `count` local pages of a cached context, or all if it has fewer: what is mirrored sleeps on in
        the tiers, of the rest the end is lost."""
        before, clean = context.num_local, context.num_clean_pages
        if context.is_dirty:
            num_groups = sum([group.local.num_pages > 0 for group in context.groups])
            last = max(clean, context.num_valid_pages - -(-count // num_groups))
            self._losses.forget_from(context, last * self._page_tokens)
            self._local.recount(context)
        short = count - before + context.num_local
        if short > 0 and context.num_local and not context.is_closing:
            self._local.evict(context, short)
        self.cached.refile(context)

    def make_room_in_tiers(self, home: int, count: int, asker: Context) -> bool:
        """Have room for `count` mirrored pages of a context at `home`, by giving up cached ones. If that is
        cached too, only such as are longer unused and in the tiers alone: what is local may be mirrored
        again, and so on for ever."""
        short = self._mirrors.num_short(home, count)
        if short > 0:
            pools = [pool_id for pools in self._mirrors.placement.classes(home) for pool_id in pools]
            self._give_up(pools, short, asker)
        return self._mirrors.has_room(home, count)

    def make_room_in(self, pool: PagePool, count: int, asker: Context) -> bool:
        """The same for `count` pages in this tier."""
        if count > pool.num_free:
            self._give_up((pool.pool_id,), count - pool.num_free, asker)
        return count <= pool.num_free

    def _give_up(self, pools: Collection[int], count: int, asker: Context) -> None:
        """Free `count` pages in these tiers, if what may go has so many."""
        for victim in self.cached.oldest_with(count, pools, asker if asker.is_cached else None):
            if victim in self.cached and not self._losses.drop_mirror(victim):
                self._discard(victim)

    def _discard(self, context: Context) -> None:
        """Give up a cached context and all that continue it."""
        for each in (*reversed(context.descendants()), context):
            self._close_context(each)

    def shortened(self, context: Context) -> None:
        """Positions of the context are gone: those that continued it begin again."""
        if context.is_growing:
            return
        self._let_begin_again(context)
        if self.search.border(context.computed) <= context.start:
            self._close_context(context)
        else:
            assert context.node is not None
            own = (context.computed - context.start) * TOKEN_BYTES
            self._tree.extend(context.node, context.node.tokens[:own])

    def abandon(self, context: Context) -> None:
        """Give up a context that does not grow, and what continues it."""
        self._let_begin_again(context)
        self._close_context(context)

    def _let_begin_again(self, context: Context) -> None:
        for each in reversed(context.descendants()):
            if not each.is_growing:
                self._close_context(each)
            elif not each.is_closing:
                self._losses.count(each.computed)
                self.leave(each)

    # ------------------------------------------------------------------ state

    def check_integrity(self, contexts: Iterable[Context]) -> None:
        """Raise AssertionError if the index, the families and the counts contradict each other."""
        self._tree.check_integrity()
        known = list(contexts)
        assert set(self.cached) == {context for context in known if context.is_cached}
        self.cached.check_integrity()
        nodes = {node.owner: node for node in self._tree.nodes()}
        for context in known:
            node = context.node
            assert node is None or node.owner is context
            assert node is None or node.start == context.start
            if not context.is_growing and not context.is_closing:
                assert node is not None
                assert nodes[context] is node
                assert node.end == context.computed
                own = [child for child in context.children if child.num_prompts or not child.is_closing]
                assert context.num_prompts == sum(child.num_prompts for child in own)
