"""Runs a node of a cluster: a monitor with demo backends.

The settings are environment variables. Each argument is `MODEL` or `MODEL:SWITCHES`, and starts one
backend with these switches. The program prints the monitor's URL, and runs until its standard input
ends.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading

from monitor_plugin import Monitor, Settings


def main() -> None:
    """Run until standard input is closed."""
    with Monitor(Settings.from_environment(os.environ)) as monitor:
        for argument in sys.argv[1:]:
            model, _, switches = argument.partition(":")
            process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "monitor_plugin.demo.backend", "--end-with-parent"),
                    *("--addr", "127.0.0.1:0", "--weights-mib", "2", "--kv-cache-mib", "1"),
                    *switches.split(),
                ],
                stdout=subprocess.PIPE,
                text=True,
            )
            assert process.stdout is not None
            address = process.stdout.readline().split()[-1]
            monitor.hook.monitor_backend_spawned(model=model, pid=process.pid, address=address)
            threading.Thread(target=process.wait, daemon=True).start()
        print(monitor.url, flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main()
