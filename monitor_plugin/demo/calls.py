"""The calls with which to try the demo: shown as curl commands, or made."""

from __future__ import annotations

import json
import shlex
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import NamedTuple

JSON = "application/json"


class Call(NamedTuple):
    """One call, and the status with which it is answered."""

    path: str
    body: dict[str, str] | None
    says_post: bool
    expected_status: int

    def curl(self, url: str) -> str:
        """The curl command that makes it."""
        command = "curl -X POST" if self.says_post else "curl"
        if self.body is None:
            return f"{command} {shlex.quote(url + self.path)}"
        body = shlex.quote(json.dumps(self.body))
        return f'{command} {url}{self.path} \\\n  -H "Content-Type: {JSON}" \\\n  -d {body}'


def calls() -> list[Call]:
    """The two documented commands, to the letter, and some more."""
    return [
        Call("/backend/monitor", {"model": "my-model"}, False, 200),
        Call("/v1/backend/monitor?model=org/busy%20model", None, False, 200),
        Call("/backend/monitor?model=no-status", None, False, 200),
        Call("/backend/shutdown", {"model": "my-model"}, True, 200),
        Call("/backend/monitor?model=my-model", None, False, 500),
    ]


def make_calls(url: str) -> Iterator[tuple[str, bool]]:
    """Make the calls.

    Yields:
        What to print, request and answer, and whether the answer's status was the expected one.
    """
    for call in calls():
        request = urllib.request.Request(url + call.path, headers={"Content-Type": JSON})
        if call.body is not None:
            request.data = json.dumps(call.body).encode()
        try:
            answer = urllib.request.urlopen(request, timeout=60)
        except urllib.error.HTTPError as error:
            answer = error
        with answer:
            lines = [f"$ {call.curl(url)}", f"HTTP {answer.status}"]
            lines += [f"{k}: {v}" for k, v in answer.headers.items() if k.startswith("X-Monitor-")]
            lines += [answer.read().decode(), ""]
            yield "\n".join(lines), answer.status == call.expected_status
