"""Threads for foreign work are kept for the next, and known while they have some."""

import threading

from loire.base.foreign_threads import ForeignThreads, end_process


def test_an_idle_thread_is_used_again_and_ends_nothing() -> None:
    threads, ran, done = ForeignThreads("some", most_idle=1), [], threading.Semaphore(0)
    gate = threading.Event()

    def work() -> None:
        ran.append(threading.current_thread())
        done.release()

    def slow() -> None:
        work()
        gate.wait()

    for _ in range(3):
        threads.start(work)
        done.acquire()
        while not threads._num_idle:
            pass
    assert len(set(ran)) == 1
    threads.start(slow)
    threads.start(slow)
    for _ in range(2):
        done.acquire()
    assert len(set(ran)) == 2, "nobody waits for work that others have"
    gate.set()
    while all(thread.is_alive() for thread in ran):
        pass
    assert threads._num_idle == 1
    assert end_process(3) == 3
