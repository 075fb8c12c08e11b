"""Equal hashes mean equal prefixes, salts and adapters, and nothing else does."""

from hypothesis import given
from hypothesis import strategies as st

from loire.memory.hashing import extend_chain, root_hash

TOKENS = st.lists(st.integers(0, 3), max_size=20)


def chain(tokens: list[int], size: int = 4, root: bytes = b"") -> list[bytes]:
    result: list[bytes] = []
    extend_chain(result, root, tokens, size)
    return result


@given(TOKENS, TOKENS)
def test_blocks_are_equal_where_prefixes_are(a: list[int], b: list[int]) -> None:
    for index, (one, other) in enumerate(zip(chain(a), chain(b), strict=False)):
        end = 4 * (index + 1)
        assert (one == other) == (a[:end] == b[:end])


@given(TOKENS, st.integers(0, 20))
def test_a_chain_can_grow_in_parts(tokens: list[int], cut: int) -> None:
    parts = chain(tokens[:cut])
    extend_chain(parts, b"", tokens, 4)
    assert parts == chain(tokens)


WORDS = st.tuples(*(st.text("ab", max_size=3) for _ in range(3)))


@given(WORDS, WORDS)
def test_salts_adapters_and_what_computes_are_not_confused(
    one: tuple[str, str, str], other: tuple[str, str, str]
) -> None:
    assert (root_hash(*one) == root_hash(*other)) == (one == other)


def test_only_full_blocks_have_a_hash() -> None:
    assert [len(chain(list(range(n)))) for n in (0, 3, 4, 7, 8)] == [0, 0, 1, 1, 2]
    assert all(len(key) == 32 for key in chain(list(range(8))))
    assert chain([1, 2, 3, 4], root=root_hash("a")) != chain([1, 2, 3, 4], root=root_hash("b"))
