"""A container engine and its client: the client asks the daemon to serve, and waits.

    python docker.py daemon SOCKET
    python docker.py run SOCKET COMMAND...

The daemon runs each command in a session of its own, also after its client has ended.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys

role, path, *command = sys.argv[1:]
engine = socket.socket(socket.AF_UNIX)
if role == "run":
    engine.connect(path)
    engine.sendall(json.dumps(command).encode() + b"\n")
    print("ready", engine.recv(100).decode(), flush=True)
    engine.recv(1)
else:
    engine.bind(path)
    engine.listen()
    print("ready", flush=True)
    while True:
        client, _ = engine.accept()
        line = client.makefile().readline()
        container = subprocess.Popen(
            json.loads(line), stdout=subprocess.PIPE, start_new_session=True
        )
        assert container.stdout
        container.stdout.readline()
        client.sendall(str(container.pid).encode())
