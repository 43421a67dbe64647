"""`logs`: the end of a log, and following it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from monitor_plugin.api.schemas import LogAnswer
from monitor_plugin.cli import logs as logs_module
from monitor_plugin.cli import main

from .scripted import Request, Scripted, failure

HOSTILE = "a\tb\r\n\x1b]0;title\x07\x1b[2J\u202e\x9b31m\nprogress 1\rprogress 2\r\nend"


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MONITOR_URL", "MONITOR_TOKEN", "MONITOR_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(logs_module, "RETRY_SECONDS", 0.01)


def part(text: str, start: int = 0, **fields: Any) -> dict[str, Any]:
    size = len(text.encode())
    base = {"model": "m", "pid": 5, "stream": "stderr", "source": "file", "gap": False}
    return {
        **base,
        "text": text,
        "start": start,
        "next": start + size,
        "poll_after_seconds": 0.0,
        **fields,
    }


def test_control_characters_are_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    """A pipe gets escaped text too; only `--raw` prints the text of the monitor unchanged."""
    with Scripted(lambda request: (200, part(HOSTILE))) as scripted:
        assert main(["logs", "m", "--url", scripted.url]) == 0
        assert capsys.readouterr().out == (
            "a\tb\n\\x1b]0;title\\x07\\x1b[2J\\u202e\\x9b31m\nprogress 1\\rprogress 2\nend\n"
        )
        assert main(["logs", "--raw", "m", "--url", scripted.url]) == 0
        assert capsys.readouterr().out == HOSTILE
        request = scripted.requests[0]
    assert request.path == "/backend/log"
    assert request.query == {"model": "m", "stream": "stderr", "bytes": "65536"}


def test_options_are_sent(capsys: pytest.CaptureFixture[str]) -> None:
    """`--stream` and `--pid`."""
    with Scripted(lambda request: (200, part(""))) as scripted:
        command = ["logs", "--stream", "stdout", "--pid", "77", "m", "--url", scripted.url]
        assert main(command) == 0
        query = scripted.requests[0].query
    assert (query["stream"], query["pid"]) == ("stdout", "77")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(("count", "expected"), [("0", ""), ("2", "8\n9\n"), ("50", "0\n1\n2\n")])
def test_last_lines_are_printed(
    count: str, expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """`-n` prints so many lines, or all if there are fewer."""
    text = "".join(f"{number}\n" for number in range(10))
    with Scripted(lambda request: (200, part(text))) as scripted:
        assert main(["logs", "-n", count, "m", "--url", scripted.url]) == 0
    out = capsys.readouterr().out
    assert out.startswith(expected)
    assert len(out.splitlines()) == min(int(count), 10)


def test_more_bytes_are_requested_for_more_lines(capsys: pytest.CaptureFixture[str]) -> None:
    """A line whose beginning is missing is left out."""
    log = "".join(f"{number:099}\n" for number in range(5000))

    def answer(request: Request) -> tuple[int, Any]:
        size = int(request.query["bytes"])
        return 200, part(log[-size:], max(0, len(log) - size))

    with Scripted(answer) as scripted:
        assert main(["logs", "-n", "2000", "m", "--url", scripted.url]) == 0
        assert [each.query["bytes"] for each in scripted.requests] == ["65536", "262144"]
        lines = capsys.readouterr().out.splitlines()
        assert [int(line) for line in lines] == [*range(3000, 5000)]
        assert main(["logs", "m", "--url", scripted.url]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert {len(line) for line in lines} == {99}


def test_first_line_that_fills_the_answer_is_kept() -> None:
    """Nothing is printed otherwise of a log without line ends."""
    answer = LogAnswer(model="m", stream="stderr", source="file", text="x" * 10, start=5, next=15)
    assert logs_module.last_lines(answer, None) == ["x" * 10]


def test_follow_survives_failures_and_says_what_is_missing(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A gap, and a monitor that fails for a while; a refusal ends the command."""
    answers: Iterator[tuple[int, Any]] = iter(
        (
            (200, part("one\ntw")),
            (200, part("o\r", 6)),
            (200, part("\nthree", 8)),
            failure("model_not_loaded", "model 'm' is not loaded"),
            failure("model_not_loaded", "model 'm' is not loaded"),
            failure("log_unavailable", "there is no log", 404),
            (200, part("later\n", 100, gap=True)),
            failure("forbidden", "the role", 403),
        )
    )
    with Scripted(lambda request: next(answers)) as scripted:
        assert main(["logs", "-f", "m", "--url", scripted.url]) == 1
        after = [each.query.get("after") for each in scripted.requests]
    output = capsys.readouterr()
    assert output.out == "one\ntwo\nthree\nlater\n"
    assert after == [None, "6", "8", "14", "14", "14", "14", "106"]
    assert output.err.splitlines() == [
        "monitor-plugin: model 'm' is not loaded: trying again",
        "monitor-plugin: there is no log: trying again",
        "monitor-plugin: some output is missing",
        "monitor-plugin: the role",
    ]


class Replaced:
    """A monitor, of which one backend ends and another one starts after the first request.

    Args:
        first: what the first backend has written at the first request.
        rest: what it writes before it ends.
        new: the file of the second backend.
        source: `file`; `host` for a host's log that goes on; `bytes` for one without offsets.
    """

    def __init__(self, first: str, rest: str, new: str, source: str) -> None:
        self._old = first
        self._after = {5: first + rest, 6: new}
        self._source = source
        self._requests = 0

    def answer(self, request: Request) -> tuple[int, Any]:
        self._requests += 1
        if self._requests == 1:
            return 200, part(self._old, source=self._source)
        if self._requests == (6 if self._source == "file" else 3):
            return failure("forbidden", "the end", 403)
        pid = int(request.query.get("pid", 6))
        text, after = self._after[pid], int(request.query["after"])
        if self._source == "bytes":
            return 200, part(text, 1000, pid=pid, gap=after < 1000, source="host")
        has_gap = after > len(text)
        start = 0 if has_gap else after
        return 200, part(text[start:], start, pid=pid, gap=has_gap, source=self._source)


@pytest.mark.parametrize(
    ("first", "rest", "new", "source", "expected"),
    [
        ("a\nb\n", "c\n", "a\nb\nc\nd\n", "file", "a\nb\nc\n|d\n"),  # one file, appended to
        ("a\nb\n", "c\n", "A\nB\nC\nD\n", "file", "a\nb\nc\n|A\nB\nC\nD\n"),  # another file
        ("a\nb\n", "c\n", "A\n", "file", "a\nb\nc\n|A\n"),  # another one, which is shorter
        ("a\nb\n", "", "A\nB\n", "file", "a\nb\n|A\nB\n"),  # another one, of the same size
        ("", "", "A\n", "file", "|A\n"),
        ("a\nb\n", "", "a\nb\nc\n", "host", "a\nb\n|c\n"),  # a host's log goes on
        ("a\nb\n", "", "0\na\nb\nc\n", "bytes", "a\nb\n|c\n"),  # without offsets
        ("a\nb\n", "", "c\n", "bytes", "a\nb\n|c\n"),
    ],
)
def test_follow_goes_on_with_the_next_backend(
    first: str, rest: str, new: str, source: str, expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The rest of the old log, then the new one: nothing is lost, and nothing is printed twice."""
    with Scripted(Replaced(first, rest, new, source).answer) as scripted:
        assert main(["logs", "-f", "m", "--url", scripted.url]) == 1
    output = capsys.readouterr()
    assert output.out == expected.replace("|", "")
    assert "monitor-plugin: the output of process 6 follows\n" in output.err


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (failure("model_not_loaded"), 4),
        (failure("forbidden", code=403), 1),
        (failure("not_found", code=404), 1),
    ],
)
def test_first_failure_ends_the_command(
    answer: tuple[int, Any], code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """The exit codes are the usual ones, also with `-f`."""
    with Scripted(lambda request: answer) as scripted:
        for flags in ([], ["-f"]):
            assert main(["logs", *flags, "m", "--url", scripted.url]) == code
    assert capsys.readouterr().out == ""
