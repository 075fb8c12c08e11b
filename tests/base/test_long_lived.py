"""Starting without garbage collection."""

import gc
import weakref
from collections.abc import Iterator

import pytest

from loire.base.long_lived import long_lived


@pytest.fixture(autouse=True, scope="module")
def freeze_again() -> Iterator[None]:
    """What was frozen before the tests."""
    yield
    gc.freeze()


class Ring:
    """Refers to itself, so that only the collector can free it."""

    def __init__(self) -> None:
        self.itself = self


def test_nothing_is_collected_inside_and_what_was_made_there_never_is() -> None:
    assert gc.isenabled()
    try:
        with long_lived():
            assert not gc.isenabled()
            inside = weakref.ref(Ring())
        assert gc.isenabled()
        outside = weakref.ref(Ring())
        gc.collect()
        assert inside() is not None
        assert outside() is None
    finally:
        gc.unfreeze()
    gc.collect()
    assert inside() is None


def test_a_failure_does_not_leave_collection_off() -> None:
    try:
        with pytest.raises(ZeroDivisionError), long_lived():
            raise ZeroDivisionError
        assert gc.isenabled()
    finally:
        gc.unfreeze()
