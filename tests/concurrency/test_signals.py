"""Signals end a command or reload its tokens, whenever they arrive."""

from __future__ import annotations

import os
import subprocess

import pytest

from ..support import Spawner

# Sends a signal at each line of Python during the wait, also in the handlers: SIGHUP a hundred
# times, then the signal that ends the wait.
CODE = """
import signal, sys
from monitor_plugin.concurrency.signals import Signals

signals = Signals()
left = 100

def send(frame, event, argument):
    global left
    left -= 1
    signal.raise_signal(signal.SIGHUP if left > 0 else getattr(signal, sys.argv[1]))
    return send

reloads = []
sys.settrace(send)
signals.wait(lambda: reloads.append(1))
sys.settrace(None)
print(len(reloads))
"""


@pytest.mark.parametrize("number", ["SIGTERM", "SIGINT"])
def test_signals_are_handled_whenever_they_arrive(number: str, spawner: Spawner) -> None:
    """Each SIGHUP reloads, and the other signals end the wait, before or during the wait."""
    environment = {**os.environ, "COVERAGE_PROCESS_START": ""}
    environment.pop("COVERAGE_PROCESS_CONFIG", None)
    process = spawner.python(CODE, number, stderr=subprocess.PIPE, env=environment)
    assert process.communicate(timeout=60) == ("99\n", "")


def test_signals_before_the_wait_are_queued(spawner: Spawner) -> None:
    """Signals that arrive before the wait are queued, and a thread may end the wait."""
    code = (
        "import signal, threading\nfrom monitor_plugin.concurrency.signals import Signals\n"
        "s = Signals()\n"
        "signal.raise_signal(signal.SIGHUP)\nthreading.Thread(target=s.end).start()\n"
        "s.wait(lambda: print('read again'))"
    )
    process = spawner.python(code)
    assert process.communicate(timeout=60)[0] == "read again\n"
    assert process.returncode == 0


def test_signal_that_another_thread_gets_ends_the_wait(spawner: Spawner) -> None:
    """The signal interrupts no call of the main thread, but ends its wait."""
    code = (
        "import signal, threading, time\nfrom monitor_plugin.concurrency.signals import Signals\n"
        "s = Signals()\n"
        "def send():\n"
        "    while s._waker is None: pass\n"
        "    time.sleep(0.1)\n"
        "    signal.pthread_kill(threading.get_ident(), signal.SIGTERM)\n"
        "threading.Thread(target=send).start()\n"
        "s.wait(lambda: None)"
    )
    process = spawner.python(code)
    assert process.wait(timeout=60) == 0
