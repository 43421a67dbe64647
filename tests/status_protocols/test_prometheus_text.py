"""The samples are those that prometheus_client's parser gives."""

from __future__ import annotations

import math
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from monitor_plugin.status_protocols.prometheus_text import (
    Sample,
    has_metrics,
    parse_samples,
    parse_values,
)
from monitor_plugin.status_protocols.protocol import Answer

NAMES = ("vllm:num", "vllm:num_total", "vllm:num_created", "tgi_queue_size", "other")
NUMBERS = ("+Inf", "-Inf", "NaN", "Inf", "1e+06", "1E-3", "-0", "3.", ".5", "8.128902e+06")
LABEL_NAMES = st.from_regex(r"[a-zA-Z_][a-zA-Z0-9_]{0,5}", fullmatch=True)
LABELS = st.dictionaries(
    LABEL_NAMES, st.text(st.characters(exclude_categories=["Cs"]), max_size=10), max_size=3
)
VALUES = st.sampled_from(NUMBERS) | st.floats().map(repr) | st.integers().map(str)
LINES = st.tuples(st.sampled_from(NAMES), LABELS, VALUES, st.sampled_from(["", " 1796079087000"]))


def line_of(name: str, labels: dict[str, str], value: str, time_stamp: str) -> str:
    escaped = {
        label: text.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
        for label, text in labels.items()
    }
    inside = ",".join(f'{label}="{text}"' for label, text in escaped.items())
    return f"{name}{{{inside}}} {value}{time_stamp}" if inside else f"{name} {value}{time_stamp}"


def comparable(labels: dict[str, str], value: float) -> tuple[object, object]:
    # prometheus_client gives integers where it can, which may have more digits than a float.
    return tuple(sorted(labels.items())), "nan" if math.isnan(value) else float(value)


@pytest.mark.once
@given(st.lists(LINES | st.sampled_from(["", "# HELP tgi_queue_size x", "# TYPE other gauge"])))
def test_samples_are_those_of_prometheus_client(lines: list[object]) -> None:
    """With any labels, escapes, values, time stamps, and twice the same labels."""
    text = "\n".join(each if isinstance(each, str) else line_of(*each) for each in lines)  # type: ignore[misc]
    expected: dict[str, dict[object, object]] = {name: {} for name in NAMES}
    for family in text_string_to_metric_families(text + "\n"):
        for sample in family.samples:
            labels, value = comparable(sample.labels, sample.value)
            expected[sample.name][labels] = value
    found: dict[str, dict[object, object]] = {
        name: dict(comparable(dict(each.labels), each.value) for each in samples)
        for name, samples in parse_samples(text, NAMES).items()
    }
    assert found == expected


@pytest.mark.parametrize(
    "line",
    [
        "up",
        "up ",
        "up one",
        "up 1_000",
        "up{a} 1",
        'up{a="b} 1',
        'up{a="b" c="d"} 1',
        'up{a="b"',
        'up{a="b"}',
        'up{a="b"}1 2 3',
        "up{ 1",
        "up_total 1",
        "updated 1",
        " up 1",
        "#up 1",
        'up{a="' + "b" * 20_000 + '"} 1',
    ],
)
def test_malformed_line_is_no_sample(line: str) -> None:
    assert parse_samples(line + "\nup 2", ["up"]) == {"up": [Sample({}, 2)]}
    assert parse_samples(line, ["up"]) == {"up": []}


def test_last_one_of_samples_with_the_same_labels_counts() -> None:
    text = 'up{a="1",b="2"} 1\nup{b="2",a="1"} 7\nup{a="2"} 1\n'
    assert parse_values(text, ["up", "down"]) == {"up": [7, 1], "down": []}


@pytest.mark.once
@pytest.mark.parametrize("piece", ['up{a="\\', 'up{a="b",', "up{", "up ", 'up{a="b"} 1 ', "up\n"])
def test_page_of_4_mib_is_parsed_in_linear_time(piece: str) -> None:
    """One line, or many."""
    began = time.process_time()
    for text in (
        piece * (2**22 // len(piece)),
        (piece * 1000 + "\n") * (2**22 // 1000 // len(piece)),
    ):
        assert len(parse_values(text, ["up"])["up"]) <= 1
    assert time.process_time() - began < 20


def test_page_with_too_many_lines_has_no_samples() -> None:
    line = 'up{a="%d"} 1\n'
    text = "".join(line % number for number in range(10_000))
    assert len(parse_values(text, ["up"])["up"]) == 10_000
    assert parse_values(text + line, ["up"])["up"] == []


def test_page_has_metrics_with_a_prefix() -> None:
    def has(text: str, content_type: str = "text/plain", status: int = 200) -> bool:
        return has_metrics(Answer("/metrics", status, content_type, text.encode()), "up:")

    assert has("up:x 1")
    assert has("# TYPE up:x gauge\nup:x 1")
    assert not has("# TYPE up:x gauge")
    assert not has("up:x 1", "text/html")
    assert not has("up:x 1", status=404)
