"""The HTTP calls of the demo, as curl commands or as real requests."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Iterator
from contextlib import closing
from typing import NamedTuple

from ..client import open_connection

JSON = "application/json"


class Call(NamedTuple):
    """An HTTP call, and its expected status; `shows_post`: curl gets `-X POST`."""

    path: str
    body: dict[str, str] | None
    shows_post: bool
    expected_status: int

    def curl(self, url: str, with_token: bool = False) -> str:
        """Return the call as a curl command, which reads a token from the shell's MONITOR_TOKEN."""
        command = ["curl -X POST" if self.shows_post else "curl"]
        if url.startswith("unix:"):
            command.append(f"--unix-socket {shlex.quote(url.removeprefix('unix:'))}")
            url = "http://localhost"
        command.append(url + self.path if self.body else shlex.quote(url + self.path))
        text = " ".join(command)
        if with_token:
            text += ' \\\n  -H "Authorization: Bearer $MONITOR_TOKEN"'
        if self.body:
            body = shlex.quote(json.dumps(self.body))
            text += f' \\\n  -H "Content-Type: {JSON}" \\\n  -d {body}'
        return text


def calls() -> list[Call]:
    """Return the two calls of LocalAI's documentation, and three more."""
    return [
        Call("/backend/monitor", {"model": "my-model"}, False, 200),
        Call("/v1/backend/monitor?model=org/busy%20model", None, False, 200),
        Call("/backend/monitor?model=no-status", None, False, 200),
        Call("/backend/shutdown", {"model": "my-model"}, True, 200),
        Call("/backend/monitor?model=my-model", None, False, 500),
    ]


def make_calls(
    url: str, token: str | None, which: Iterable[Call] | None = None
) -> Iterator[tuple[str, bool]]:
    """Make the calls `which`, by default those of `calls()`.

    Yields:
        The request and the response as text, and whether the status was the expected status.
    """
    headers = {"Content-Type": JSON}
    if token is not None:
        headers["Authorization"] = f"Bearer {token}"
    for call in calls() if which is None else which:
        with closing(open_connection(url, 60)) as connection:
            method = "GET" if call.body is None else "POST"
            body = None if call.body is None else json.dumps(call.body)
            connection.request(method, call.path, body, headers)
            response = connection.getresponse()
            lines = [f"$ {call.curl(url, token is not None)}", f"HTTP {response.status}"]
            lines += [
                f"{k}: {v}" for k, v in response.headers.items() if k.startswith("X-Monitor-")
            ]
            lines += [response.read().decode(), ""]
        yield "\n".join(lines), response.status == call.expected_status
