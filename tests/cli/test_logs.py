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
    """Also for a pipe; only `--raw` prints the text as the monitor gives it."""
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
    """With -n as many lines as there are."""
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


def test_follow_survives_restarts_and_says_what_is_missing(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A new backend, a gap, a monitor that fails for a while; a refusal ends the command."""
    answers: Iterator[tuple[int, Any]] = iter(
        (
            (200, part("one\ntw")),
            (200, part("o\r", 6)),
            (200, part("\nthree", 8)),
            failure("model_not_loaded", "model 'm' is not loaded"),
            failure("model_not_loaded", "model 'm' is not loaded"),
            (200, part("new\n", 0, pid=6)),
            (200, part("later\n", 100, pid=6, gap=True)),
            failure("forbidden", "the role", 403),
        )
    )
    with Scripted(lambda request: next(answers)) as scripted:
        assert main(["logs", "-f", "m", "--url", scripted.url]) == 1
        after = [each.query.get("after") for each in scripted.requests]
    output = capsys.readouterr()
    assert output.out == "one\ntwo\nthree\nnew\nlater\n"
    assert after == [None, "6", "8", "14", "14", "14", "4", "106"]
    assert output.err.splitlines() == [
        "monitor-plugin: model 'm' is not loaded: trying again",
        "monitor-plugin: the output of process 6 follows",
        "monitor-plugin: some output is missing",
        "monitor-plugin: the role",
    ]


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
    """With the usual exit codes, also with -f."""
    with Scripted(lambda request: answer) as scripted:
        for flags in ([], ["-f"]):
            assert main(["logs", *flags, "m", "--url", scripted.url]) == code
    assert capsys.readouterr().out == ""
