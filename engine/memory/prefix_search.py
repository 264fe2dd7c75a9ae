"""What of a prompt is computed already, and where."""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass

from engine.memory.context import Context
from engine.memory.page import PageLayout
from engine.memory.prefix_tree import TOKEN_BYTES, PrefixNode, PrefixTree

MAX_GENERATIONS = 64  # contexts that one may go through: what is done with it costs by each of them


@dataclass(frozen=True, slots=True)
class Prefix:
    """What of a prompt is computed: positions before `end`, in `context` (None: nothing) and its ancestors.

    `num_coming` more tokens are being computed, or on the move, and will be there soon.
    """

    context: Context | None = None
    end: int = 0
    num_coming: int = 0


NOTHING = Prefix()
NOWHERE: Mapping[int, Prefix] = {}


class PrefixSearch:
    """Looks prompts up in the index. Changes nothing."""

    def __init__(self, layout: PageLayout, tree: PrefixTree[Context]) -> None:
        self._page_tokens = layout.page_tokens
        self._layout = layout
        self._tree = tree
        self._windowed = layout.windowed()

    def find(self, salt: Hashable, tokens: bytes) -> Mapping[int, Prefix]:
        """How much of a prompt devices have, by pool, where it is anything. `tokens` are all of it; the last
        is not looked for."""
        trunks = self._tree.trunks(salt, tokens)
        if not trunks:
            return NOWHERE
        tokens = tokens[:-TOKEN_BYTES]
        return {pool_id: self._best(trunk, tokens) for pool_id, trunk in trunks.items()}

    def _best(self, trunk: PrefixNode[Context], tokens: bytes) -> Prefix:
        """The most that there is from this trunk on."""
        best: Context | None = None
        end = agreed = 0
        is_coming = False
        for node, agreed in self._tree.walk(trunk, tokens)[:MAX_GENERATIONS]:
            context = node.owner
            usable = min(agreed, context.computed)
            border = agreed if is_taken_over(context, agreed) else self.border(usable)
            if border > node.start and self._can_begin_at(context, border):
                best, end = context, border
            is_coming = self._is_coming(context, border, agreed)
            if usable < node.end:
                break
        return Prefix(best, end, max(0, self.border(agreed) - end) if is_coming else 0)

    def _is_coming(self, context: Context, border: int, agreed: int) -> bool:
        """Whether more of the context may be had soon: once it is computed, if windows do not move past it
        meanwhile, or once it has stopped moving."""
        if context.computed < agreed:
            return context.is_running and not self._windowed
        return context.moves_in_flight > 0 and self._has_windows(context, border)

    def border(self, position: int) -> int:
        """The last page border that is not after this position."""
        return position - position % self._page_tokens

    def _can_begin_at(self, context: Context, position: int) -> bool:
        """Whether another can begin there: it is, or can be made, the end of a context, and those up to there
        have what the windows need."""
        has_to_be_split = context.is_growing or position < context.computed
        return not (has_to_be_split and context.moves_in_flight) and self._has_windows(context, position)

    def _has_windows(self, context: Context, position: int) -> bool:
        """Whether a context and those it continues have what a token at `position` reads in every window."""
        for group in self._windowed:
            first = self._layout.first_live_page(group, position)
            for each in (context, *context.ancestors()):
                start = each.start // self._page_tokens
                if each.groups[group].live_from > max(first, start):
                    return False
                if start <= first:
                    break
        return True


def is_taken_over(context: Context, agreed: int) -> bool:
    """Whether a prompt that agrees up to this position can go on with the context itself."""
    return context.is_cached and not context.children and agreed == context.computed
