"""The index of prefixes: which tokens lead to which context, as a tree whose edges are runs of tokens.

A node stands for all tokens from its root to its end; its owner has the pages of its own run. Runs begin at
page borders, so two children of a node differ in their first page, and that page, hashed, finds the child.
What is found is compared token by token: no two prompts are ever mistaken for each other. There is a root for
each place (a device) and salt (a tenant and its own), and nothing is found across roots. First pages are also
indexed by salt alone, so that one look tells the places where anything begins like a prompt.

Pure: what owners have of their pages, and for how long they keep it, is the store's business.
"""

from array import array
from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any, Generic, TypeVar

from msgspec import Struct

TOKEN_BYTES = 4

Owner = TypeVar("Owner")

_NOWHERE: Mapping[int, "PrefixNode[Any]"] = {}


def pack_tokens(ids: Sequence[int]) -> bytes:
    """Token ids, |id| < 2**31, in the form in which they are compared."""
    return array("i", ids).tobytes()


class PrefixNode(Struct, Generic[Owner], eq=False):
    """A run of tokens from position `start` on. Roots have neither tokens nor an owner."""

    start: int
    tokens: bytes
    owner: Owner | None = None
    parent: "PrefixNode[Owner] | None" = None
    num_children: int = 0  # found by their first page or not
    children: "dict[bytes, PrefixNode[Owner]]" = {}  # by their first page

    @property
    def end(self) -> int:
        """The position after its last token."""
        return self.start + len(self.tokens) // TOKEN_BYTES


class _Root(PrefixNode[Owner], eq=False, kw_only=True):
    """Where the prefixes with one salt in one place begin."""

    place: int
    salt: Hashable


class PrefixTree(Generic[Owner]):
    """All prefixes of one model, in pages of `page_tokens`."""

    def __init__(self, page_tokens: int) -> None:
        self._page_tokens = page_tokens
        self._page_bytes = page_tokens * TOKEN_BYTES
        self._roots: dict[tuple[int, Hashable], _Root[Owner]] = {}
        self._places: dict[tuple[Hashable, bytes], dict[int, _Root[Owner]]] = {}  # by salt and first page

    def root(self, place: int, salt: Hashable) -> PrefixNode[Owner]:
        """The root for something to be attached to; it goes with the last node below it."""
        root = self._roots.get((place, salt))
        if root is None:
            root = self._roots[place, salt] = _Root(0, b"", place=place, salt=salt)
        return root

    def roots(self, salt: Hashable, tokens: bytes) -> Mapping[int, PrefixNode[Owner]]:
        """By place, the roots below which something begins as `tokens` do."""
        return self._places.get((salt, tokens[: self._page_bytes]), _NOWHERE)

    def walk(self, node: PrefixNode[Owner], tokens: bytes) -> list[tuple[PrefixNode[Owner], int]]:
        """The nodes below `node` that `tokens`, a whole prompt, go through, each with the position up to
        which they agree with it: all but the last to their ends, and that one in its first page at least."""
        path: list[tuple[PrefixNode[Owner], int]] = []
        while True:
            begin = node.end * TOKEN_BYTES
            child = node.children.get(tokens[begin : begin + self._page_bytes])
            if child is None:
                return path
            agreed = child.start + _num_common(child.tokens, tokens, begin)
            path.append((child, agreed))
            if agreed < child.end:
                return path
            node = child

    def attach(self, parent: PrefixNode[Owner], start: int, tokens: bytes, owner: Owner) -> PrefixNode[Owner]:
        """A new node below `parent` with the run `tokens`. It is not found if it has less than a page, or if
        another child begins with the same page."""
        assert start == parent.end
        return self._add(parent, start, tokens, owner)

    def plant(self, place: int, salt: Hashable, tokens: bytes, owner: Owner) -> PrefixNode[Owner]:
        """`attach` to the root of this place and salt."""
        return self._add(self.root(place, salt), 0, tokens, owner)

    def _add(self, parent: PrefixNode[Owner], start: int, tokens: bytes, owner: Owner) -> PrefixNode[Owner]:
        node = PrefixNode(start, tokens, owner, parent)
        parent.num_children += 1
        self._show(node)
        return node

    def extend(self, node: PrefixNode[Owner], tokens: bytes) -> None:
        """The node's run is `tokens` now: longer, or cut short. It has no children."""
        assert not node.num_children
        if tokens[: self._page_bytes] == node.tokens[: self._page_bytes] and self.is_found(node):
            node.tokens = tokens  # it is found as before
            return
        self._hide(node)
        node.tokens = tokens
        self._show(node)

    def split(self, node: PrefixNode[Owner], position: int, owner: Owner) -> PrefixNode[Owner]:
        """Give what the node has before `position`, a page border in it or its end, to a new node above it,
        with `owner`. Returns that."""
        assert node.start < position <= node.end
        assert position % self._page_tokens == 0
        assert node.parent is not None
        cut = (position - node.start) * TOKEN_BYTES
        upper = PrefixNode(node.start, node.tokens[:cut], owner, node.parent)
        if self.is_found(node):
            node.parent.children[node.tokens[: self._page_bytes]] = upper  # and in the same places
        node.start, node.tokens, node.parent = position, node.tokens[cut:], upper
        upper.num_children = 1
        self._show(node)
        return upper

    def detach(self, node: PrefixNode[Owner]) -> None:
        """Take out a node that has no children."""
        assert not node.num_children
        assert node.parent is not None
        self._hide(node)
        node.parent.num_children -= 1
        if isinstance(node.parent, _Root) and not node.parent.num_children:
            del self._roots[node.parent.place, node.parent.salt]
        node.parent = None

    def is_found(self, node: PrefixNode[Owner]) -> bool:
        """Whether `walk` can find the node from its parent."""
        assert node.parent is not None
        return node.parent.children.get(node.tokens[: self._page_bytes]) is node

    def nodes(self) -> Iterator[PrefixNode[Owner]]:
        """All nodes that can be found, parents before children."""
        stack: list[PrefixNode[Owner]] = list(self._roots.values())
        while stack:
            node = stack.pop()
            if node.owner is not None:
                yield node
            stack += node.children.values()

    def check_integrity(self) -> None:
        """Raise AssertionError if nodes and their places contradict each other."""
        for parent in (*self._roots.values(), *self.nodes()):
            assert len(parent.children) <= parent.num_children
            for key, node in parent.children.items():
                assert node.parent is parent
                assert node.start == parent.end
                assert node.start % self._page_tokens == 0
                assert len(key) == self._page_bytes
                assert node.tokens.startswith(key)
        assert all(root.num_children for root in self._roots.values())
        pages = {
            (root.salt, page, place) for (place, _), root in self._roots.items() for page in root.children
        }
        assert pages == {(*key, place) for key, places in self._places.items() for place in places}
        assert all(self._places.values())

    def _show(self, node: PrefixNode[Owner]) -> None:
        parent, page = node.parent, node.tokens[: self._page_bytes]
        assert parent is not None
        if len(page) < self._page_bytes or page in parent.children:
            return
        parent.children[page] = node
        if isinstance(parent, _Root):
            key = (parent.salt, page)
            places = self._places.get(key)
            if places is None:
                self._places[key] = {parent.place: parent}
            else:
                places[parent.place] = parent

    def _hide(self, node: PrefixNode[Owner]) -> None:
        parent, page = node.parent, node.tokens[: self._page_bytes]
        assert parent is not None
        if not self.is_found(node):
            return
        del parent.children[page]
        if isinstance(parent, _Root):
            places = self._places[parent.salt, page]
            del places[parent.place]
            if not places:
                del self._places[parent.salt, page]


def _num_common(run: bytes, tokens: bytes, begin: int) -> int:
    """How many leading tokens of `run` are equal to those of `tokens` from byte `begin` on."""
    if tokens.startswith(run, begin):
        return len(run) // TOKEN_BYTES
    low, high = 0, min(len(run), len(tokens) - begin) // TOKEN_BYTES  # `low` agree
    while low < high:
        middle = (low + high + 1) // 2
        if tokens.startswith(run[low * TOKEN_BYTES : middle * TOKEN_BYTES], begin + low * TOKEN_BYTES):
            low = middle
        else:
            high = middle - 1
    return low
