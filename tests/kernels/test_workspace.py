import errno
import gc
import mmap
import threading
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from loire.kernels.native import workspace
from loire.kernels.native.workspace import LARGE_BYTES, MOST_UNUSED, Workspace

LARGE = LARGE_BYTES // 4  # elements of float32
HUGE_PAGE = 2 << 20


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 4 * LARGE)), max_size=40))
@settings(deadline=None, max_examples=30)
def test_no_memory_is_lent_twice(steps: list[tuple[int, int]]) -> None:
    space = Workspace()
    space.reserve(3 * HUGE_PAGE)
    alive: dict[int, tuple[torch.Tensor, float]] = {}
    for number, (place, size) in enumerate(steps):
        alive.pop(place, None)
        tensor = space.empty((size,), torch.float32)
        assert tensor.shape == (size,)
        assert tensor.is_contiguous()
        tensor.fill_(float(number))
        alive[place] = tensor, float(number)
        for other, value in alive.values():
            assert other[0] == other[-1] == value


def test_memory_is_used_again_when_the_last_view_of_it_is_gone() -> None:
    space = Workspace()
    tensor = space.empty((LARGE,), torch.float32)
    address, view = tensor.data_ptr(), tensor.view(2, -1)[1]
    del tensor
    assert space.free_bytes == 0
    assert space.empty((LARGE,), torch.float32).data_ptr() != address
    del view
    gc.collect()
    kept = [space.empty((LARGE,), torch.float32) for _ in range(2)]
    assert address in {tensor.data_ptr() for tensor in kept}


def test_reserved_memory_is_cut_and_put_together_again() -> None:
    space = Workspace()
    space.reserve(4 * HUGE_PAGE)
    for _ in range(2):
        whole = space.empty((4 * HUGE_PAGE,), torch.uint8)
        begin, end = whole.data_ptr(), whole.data_ptr() + whole.nbytes
        del whole
        parts = [space.empty((HUGE_PAGE,), torch.uint8) for _ in range(4)]
        assert [part.data_ptr() for part in parts] == list(range(begin, end, HUGE_PAGE))
        assert space.free_bytes == 0
        del parts[1], parts[1]  # the gap between the others
        assert space.empty((2 * HUGE_PAGE,), torch.uint8).data_ptr() == begin + HUGE_PAGE
        del parts
    assert space.free_bytes == 4 * HUGE_PAGE


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_shapes_and_dtypes(dtype: torch.dtype) -> None:
    space = Workspace()
    for shape in ((), (0, 7), (3, 5), (7, 2 * LARGE), (2, 3, LARGE)):
        tensor = space.empty(shape, dtype)
        assert tensor.shape == shape
        assert tensor.dtype is dtype


def test_little_is_kept_for_later() -> None:
    space = Workspace()
    tensors = [space.empty((LARGE,), torch.float32) for _ in range(3 * MOST_UNUSED)]
    del tensors
    assert space.free_bytes == MOST_UNUSED * HUGE_PAGE


def test_a_tensor_may_outlive_its_workspace_and_end_on_another_thread() -> None:
    tensors = [Workspace().empty((LARGE,), torch.float32).fill_(3.0)]
    gc.collect()
    assert tensors[0].sum() == 3.0 * LARGE
    thread = threading.Thread(target=tensors.clear)
    thread.start()
    thread.join()


def test_what_comes_back_while_memory_is_taken_is_not_lent_twice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As on another thread, or by a collection."""
    space = Workspace()
    space.reserve(4 * HUGE_PAGE)
    dropped = [space.empty((HUGE_PAGE,), torch.uint8) for _ in range(2)]

    def sorted_later(gaps: Any) -> list[Any]:
        result = sorted(gaps)
        dropped.clear()
        return result

    monkeypatch.setattr(workspace, "sorted", sorted_later, raising=False)
    del dropped[0]
    taken = [space.empty((HUGE_PAGE,), torch.uint8) for _ in range(4)]
    assert len({tensor.data_ptr() for tensor in taken}) == 4


def test_a_kernel_without_huge_pages_is_no_obstacle(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some are built so, of small AArch64 machines above all."""

    class Refusing(mmap.mmap):
        def madvise(self, *_: int) -> None:
            raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(workspace.mmap, "mmap", Refusing)
    assert Workspace().empty((LARGE,), torch.float32).fill_(1.0).sum() == LARGE
