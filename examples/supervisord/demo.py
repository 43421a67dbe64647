"""Runs supervisord with three models and the monitor, in the foreground, until Ctrl-C."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

from monitor_plugin import Settings
from monitor_plugin.demo.calls import calls

MODELS = ("my-model", "org/busy model", "no-status")
CONFIGURATION = Path(__file__).with_name("supervisord.conf")


def answers(url: str, model: str) -> bool:
    """Whether the monitor knows a model."""
    query = urllib.parse.urlencode({"model": model})
    try:
        with urllib.request.urlopen(f"{url}/backend/monitor?{query}", timeout=5):
            return True
    except urllib.error.HTTPError as error:
        return error.code in (401, 403)  # it wants a token, which is not ours to send
    except OSError:
        return False


def main() -> int:
    """Run it; the exit code is supervisord's."""
    settings = Settings.from_environment(os.environ)
    if settings.listen is None or settings.listen.startswith("unix:"):
        sys.exit("this demo listens on TCP: unset MONITOR_LISTEN, or set it to HOST:PORT")
    url = f"http://{settings.listen}"
    has_token = settings.token is not None or settings.token_file is not None
    programs = Path(sys.executable).parent
    environment = {**os.environ, "PATH": f"{programs}:{os.environ.get('PATH', os.defpath)}"}
    host = subprocess.Popen([programs / "supervisord", "-c", CONFIGURATION], env=environment)
    signal.signal(signal.SIGTERM, lambda number, frame: host.terminate())
    signal.signal(signal.SIGINT, lambda number, frame: None)  # the terminal sends it to both
    while host.poll() is None and not all(answers(url, model) for model in MODELS):
        time.sleep(0.2)
    if host.poll() is None:
        print(f"\nsupervisord runs {len(MODELS)} models; the monitor answers at {url}. Try:\n")
        for call in calls():
            print(call.curl(url, has_token))
        print(f"{programs}/supervisorctl -c {CONFIGURATION} status")
        print("\nCtrl-C ends all of it.", flush=True)
    return host.wait()


if __name__ == "__main__":
    sys.exit(main())
