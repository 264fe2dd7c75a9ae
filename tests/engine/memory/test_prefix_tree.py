"""The index of prefixes, against a plain list of all prompts that were put into it."""

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from engine.memory.prefix_tree import PrefixNode, PrefixTree, pack_tokens

PAGE = 2
PROMPTS = st.lists(st.integers(0, 2), max_size=14)
SALTS = st.sampled_from(["", "a"])


def grow(tree: PrefixTree[str], salt: str, ids: list[int], owner: str) -> PrefixNode[str]:
    """Put a prompt in as the store does: below what it shares in whole pages with others."""
    tokens, above = pack_tokens(ids), None
    for found, agreed in find(tree, salt, tokens):
        border = agreed - agreed % PAGE
        if border <= found.start:
            break
        above = found if border == found.end else tree.split(found, border, f"above {owner}")
    if above is None:
        return tree.plant(1, salt, tokens, owner)
    return tree.attach(above, above.end, tokens[len(pack_tokens(ids[: above.end])) :], owner)


def find(tree: PrefixTree[str], salt: str, tokens: bytes) -> list[tuple[PrefixNode[str], int]]:
    trunk = tree.trunks(salt, tokens).get(1)
    return tree.walk(trunk, tokens) if trunk is not None else []


def run_of(node: PrefixNode[str]) -> bytes:
    return (run_of(node.parent) if isinstance(node.parent, PrefixNode) else b"") + node.tokens


def num_shared(one: list[int], other: list[int]) -> int:
    return next(
        (i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other))
    )


class Prefixes(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.tree: PrefixTree[str] = PrefixTree(PAGE)
        self.leaves: list[tuple[str, list[int], PrefixNode[str]]] = []

    @rule(salt=SALTS, ids=PROMPTS)
    def add(self, salt, ids):
        self.leaves.append((salt, ids, grow(self.tree, salt, ids, f"prompt {len(self.leaves)}")))

    @rule(which=st.integers(0, 100))
    def remove(self, which):
        gone = [leaf for leaf in self.leaves if not leaf[2].num_children]
        if gone:
            leaf = gone[which % len(gone)]
            self.leaves.remove(leaf)
            node, kept = leaf[2], [other[2] for other in self.leaves]
            while isinstance(node, PrefixNode) and not node.num_children and node not in kept:
                parent = node.parent
                self.tree.detach(node)
                node = parent

    @rule(which=st.integers(0, 100), more=PROMPTS)
    def extend(self, which, more):
        """A prompt goes on; one that another beginning with the same page hides stays hidden."""
        ends = [leaf for leaf in self.leaves if not leaf[2].num_children and self.tree.is_found(leaf[2])]
        if ends:
            leaf = ends[which % len(ends)]
            leaf[1].extend(more)
            self.tree.extend(leaf[2], pack_tokens(leaf[1][leaf[2].start :]))

    @rule(salt=SALTS, ids=PROMPTS)
    def look_up(self, salt, ids):
        tokens = pack_tokens(ids)
        path = find(self.tree, salt, tokens)
        agreed = path[-1][1] if path else 0
        if path:
            node = path[-1][0]
            assert run_of(node).startswith(tokens[: len(pack_tokens(ids[:agreed]))])
            assert all(end == above.end for above, end in path[:-1])
        others = [other for key, other, _ in self.leaves if key == salt]
        longest = max((num_shared(ids, other) for other in others), default=0)
        assert agreed <= longest
        assert agreed >= longest - longest % PAGE

    @invariant()
    def agrees(self):
        self.tree.check_integrity()
        for _, ids, node in self.leaves:
            assert run_of(node) == pack_tokens(ids)


TestPrefixes = Prefixes.TestCase


@given(PROMPTS, PROMPTS)
def test_nothing_is_found_across_salts(ids, other):
    tree: PrefixTree[str] = PrefixTree(PAGE)
    grow(tree, "one tenant", ids, "x")
    assert tree.trunks("another", pack_tokens(other)) == {}


def test_a_prompt_is_looked_up_in_all_places_at_once():
    tree: PrefixTree[str] = PrefixTree(PAGE)
    nodes = [tree.plant(place, "x", pack_tokens([1, 2, place]), "") for place in (1, 2)]
    tree.plant(3, "x", pack_tokens([3, 2]), "")
    trunks = tree.trunks("x", pack_tokens([1, 2, 2]))
    assert trunks == {1: nodes[0], 2: nodes[1]}
    assert [tree.walk(trunks[place], pack_tokens([1, 2, 2])) for place in (1, 2)] == [
        [(nodes[0], 2)],
        [(nodes[1], 3)],
    ]
    tree.detach(nodes[0])
    tree.check_integrity()
    assert set(tree.trunks("x", pack_tokens([1, 2]))) == {2}
    assert tree.trunks("x", pack_tokens([1])) == {}


def test_the_second_prompt_of_a_kind_is_found_once_the_first_has_gone():
    tree: PrefixTree[str] = PrefixTree(PAGE)
    tokens = pack_tokens([1, 2, 3, 4])
    first = tree.plant(1, "", tokens, "first")
    second = tree.plant(1, "", tokens, "second")
    assert find(tree, "", tokens) == [(first, 4)]
    assert not tree.is_found(second)
    tree.detach(first)
    tree.extend(second, tokens)
    assert find(tree, "", tokens) == [(second, 4)]


def test_a_node_may_be_split_at_its_end():
    tree: PrefixTree[str] = PrefixTree(PAGE)
    node = tree.plant(1, "", pack_tokens([1, 2, 3, 4]), "a")
    upper = tree.split(node, 4, "b")
    assert (node.start, node.tokens, node.parent) == (4, b"", upper)
    assert find(tree, "", pack_tokens([1, 2, 3, 4, 5, 6])) == [(upper, 4)]


def test_what_ends_in_its_first_page_is_not_found():
    tree: PrefixTree[str] = PrefixTree(PAGE)
    short = tree.plant(1, "", pack_tokens([1]), "short")
    assert find(tree, "", pack_tokens([1, 2])) == []
    tree.extend(short, pack_tokens([1, 2, 3]))
    assert find(tree, "", pack_tokens([1, 2, 4])) == [(short, 2)]
    tree.detach(short)
    assert list(tree.nodes()) == []
    tree.check_integrity()
