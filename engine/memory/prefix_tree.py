"""The index of prefixes: which tokens lead to which context, as a tree whose edges are runs of tokens.

A node stands for all tokens from its root to its end; its owner has the pages of its own run. Runs begin at
page borders, so two children of a node differ in their first page, and that page, hashed, finds the child.
What is found is compared token by token: no two prompts are ever mistaken for each other. There is a root for
each salt (a tenant and its own), and nothing is found across salts. Below a root stand the *trunks*, one for
each first page and place (a device), so that one look tells the places where anything begins like a prompt;
below a trunk all is of its place.

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


class _Root(Struct, Generic[Owner], eq=False):
    """Where the prefixes with one salt begin."""

    salt: Hashable
    num_children: int = 0  # found by their first page or not
    trunks: "dict[bytes, dict[int, PrefixNode[Owner]]]" = {}  # by first page and place


class PrefixNode(Struct, Generic[Owner], eq=False):
    """A run of tokens from position `start` on."""

    start: int
    tokens: bytes
    owner: Owner
    place: int
    parent: "PrefixNode[Owner] | _Root[Owner] | None"  # None: taken out
    num_children: int = 0  # found by their first page or not
    children: "dict[bytes, PrefixNode[Owner]]" = {}  # by their first page

    @property
    def end(self) -> int:
        """The position after its last token."""
        return self.start + len(self.tokens) // TOKEN_BYTES


class PrefixTree(Generic[Owner]):
    """All prefixes of one model, in pages of `page_tokens`."""

    def __init__(self, page_tokens: int) -> None:
        self._page_tokens = page_tokens
        self._page_bytes = page_tokens * TOKEN_BYTES
        self._roots: dict[Hashable, _Root[Owner]] = {}  # by salt; each has something below it

    def trunks(self, salt: Hashable, tokens: bytes) -> Mapping[int, PrefixNode[Owner]]:
        """By place, the nodes that begin as `tokens` do, if these are a page at least."""
        root = self._roots.get(salt)
        return _NOWHERE if root is None else root.trunks.get(tokens[: self._page_bytes], _NOWHERE)

    def walk(self, trunk: PrefixNode[Owner], tokens: bytes) -> list[tuple[PrefixNode[Owner], int]]:
        """The nodes from `trunk` on that `tokens`, a whole prompt, go through, each with the position up to
        which they agree with it: all but the last to their ends."""
        path: list[tuple[PrefixNode[Owner], int]] = []
        node: PrefixNode[Owner] | None = trunk
        while node is not None:
            agreed = node.start + _num_common(node.tokens, tokens, node.start * TOKEN_BYTES)
            path.append((node, agreed))
            if agreed < node.end:
                break
            begin = agreed * TOKEN_BYTES
            node = node.children.get(tokens[begin : begin + self._page_bytes])
        return path

    def plant(self, place: int, salt: Hashable, tokens: bytes, owner: Owner) -> PrefixNode[Owner]:
        """A new trunk with the run `tokens`. It is not found if it has less than a page, or if another in
        this place begins with the same page."""
        root = self._roots.get(salt)
        if root is None:
            root = self._roots[salt] = _Root(salt)
        node = PrefixNode(0, tokens, owner, place, root)
        root.num_children += 1
        self._show(node)
        return node

    def attach(self, parent: PrefixNode[Owner], start: int, tokens: bytes, owner: Owner) -> PrefixNode[Owner]:
        """A new node below `parent`, at its end. As of `plant`, if it has less than a page or another child
        begins with the same page, it is not found."""
        assert start == parent.end
        node = PrefixNode(start, tokens, owner, parent.place, parent)
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
        upper = PrefixNode(node.start, node.tokens[:cut], owner, node.place, node.parent)
        if self.is_found(node):
            self._hide(node)
            self._show(upper)
        node.start, node.tokens, node.parent = position, node.tokens[cut:], upper
        upper.num_children = 1
        self._show(node)
        return upper

    def detach(self, node: PrefixNode[Owner]) -> None:
        """Take out a node that has no children."""
        assert not node.num_children
        self._hide(node)
        parent = node.parent
        assert parent is not None
        parent.num_children -= 1
        if isinstance(parent, _Root) and not parent.num_children:
            del self._roots[parent.salt]
        node.parent = None

    def is_found(self, node: PrefixNode[Owner]) -> bool:
        """Whether the node can be found by its first page."""
        page, parent = node.tokens[: self._page_bytes], node.parent
        assert parent is not None
        if isinstance(parent, _Root):
            return parent.trunks.get(page, _NOWHERE).get(node.place) is node
        return parent.children.get(page) is node

    def nodes(self) -> Iterator[PrefixNode[Owner]]:
        """All nodes that can be found, parents before children."""
        stack: list[PrefixNode[Owner]] = []
        for root in self._roots.values():
            for trunks in root.trunks.values():
                stack += trunks.values()
        while stack:
            node = stack.pop()
            yield node
            stack += node.children.values()

    def check_integrity(self) -> None:
        """Raise AssertionError if nodes and their places contradict each other."""
        for salt, root in self._roots.items():
            assert root.salt == salt
            assert 0 < root.num_children >= sum(map(len, root.trunks.values()))
            for page, trunks in root.trunks.items():
                assert trunks
                for place, node in trunks.items():
                    assert node.place == place
                    self._check_child(root, 0, page, node)
        for parent in self.nodes():
            assert len(parent.children) <= parent.num_children
            for page, node in parent.children.items():
                assert node.place == parent.place
                self._check_child(parent, parent.end, page, node)

    def _check_child(
        self, parent: PrefixNode[Owner] | _Root[Owner], start: int, page: bytes, node: PrefixNode[Owner]
    ) -> None:
        assert node.parent is parent
        assert node.start == start
        assert start % self._page_tokens == 0
        assert len(page) == self._page_bytes
        assert node.tokens.startswith(page)

    def _show(self, node: PrefixNode[Owner]) -> None:
        """Let the node be found, unless it has less than a page or another is found in its stead."""
        page, parent = node.tokens[: self._page_bytes], node.parent
        assert parent is not None
        if len(page) < self._page_bytes:
            return
        if isinstance(parent, _Root):
            trunks = parent.trunks.get(page)
            if trunks is None:
                parent.trunks[page] = {node.place: node}
            else:
                trunks.setdefault(node.place, node)
        else:
            parent.children.setdefault(page, node)

    def _hide(self, node: PrefixNode[Owner]) -> None:
        if not self.is_found(node):
            return
        page, parent = node.tokens[: self._page_bytes], node.parent
        if isinstance(parent, _Root):
            trunks = parent.trunks[page]
            del trunks[node.place]
            if not trunks:
                del parent.trunks[page]
        elif parent is not None:
            del parent.children[page]


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
