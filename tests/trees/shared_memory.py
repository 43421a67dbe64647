"""Starts two `multiprocessing` workers; the launcher and each worker hold shared memory.

    python shared_memory.py METHOD NAME [deaf]

Prints the PIDs of the workers. METHOD is a start method (`spawn`, `forkserver`). The segments are
/dev/shm/NAME-0, NAME-1 and so on, which Python's resource trackers remove after a normal end. With
`deaf`, the launcher and the workers ignore SIGTERM.
"""

from __future__ import annotations

import multiprocessing
import signal
import sys
from multiprocessing.shared_memory import SharedMemory
from multiprocessing.synchronize import Semaphore


def hold(name: str, deaf: bool, running: Semaphore) -> None:
    if deaf:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    segment = SharedMemory(name, create=True, size=1 << 20)
    running.release()
    while segment:
        signal.pause()


def main() -> None:
    method, name, *options = sys.argv[1:]
    deaf = options == ["deaf"]
    context = multiprocessing.get_context(method)
    running = context.Semaphore(0)
    workers = [
        context.Process(target=hold, args=(f"{name}-{number}", deaf, running))  # type: ignore[attr-defined]
        for number in (1, 2)
    ]
    for worker in workers:
        worker.start()
    for _ in workers:
        running.acquire()
    print("ready", *(worker.pid for worker in workers), flush=True)
    hold(f"{name}-0", deaf, running)


if __name__ == "__main__":
    main()
