"""Imports and loading without garbage collection."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def long_lived() -> Iterator[None]:
    """For the start of a process: what is made inside stays until its end.

    The collector does not look through it again and again while it grows, which is an eighth of
    the time that torch takes to import, and never will afterwards. Whatever garbage there is
    stays too.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_enabled:
            gc.enable()
