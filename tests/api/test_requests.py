"""Bodies and queries: parsed strictly, whatever bytes a client sends."""

from __future__ import annotations

import json
from urllib.parse import quote, quote_plus, urlencode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitor_plugin import InvalidRequest
from monitor_plugin.api.requests import MonitorBody, ShutdownBody, parse_body, parse_query

TEXT = st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=20)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'{"model": "m"}', ShutdownBody("m")),
        (b'{"model": "m", "force": true}', ShutdownBody("m", True)),
        (b'{"model": "m", "force": false, "other": [1, {"a": null}]}', ShutdownBody("m")),
        (b' \r\n\t{"model": "a\\/b \\u00fc"} ', ShutdownBody("a/b ü")),
        ('{"model": "模型 🦙"}'.encode(), ShutdownBody("模型 🦙")),
        (b'{"model": "\\ud83e\\udd99"}', ShutdownBody("🦙")),
    ],
)
def test_a_body_is_decoded(body: bytes, expected: ShutdownBody) -> None:
    """Known fields are taken, unknown ones ignored, and `force` is false unless given."""
    assert parse_body(body, ShutdownBody) == expected
    assert parse_body(body, MonitorBody) == MonitorBody(expected.model)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", 'the body is empty; send JSON: {"model": "NAME"}'),
        (b" ", "the body is not JSON: "),
        (b"model=m", "the body is not JSON: "),
        (b'{"model": "m"', "the body is not JSON: "),
        (b'{"model": "m"} x', "the body is not JSON: "),
        (b"{'model': 'm'}", "the body is not JSON: "),
        (b'{"model": "\xff"}', "the body is not JSON: "),
        (b'{"model": "\\ud800"}', "the body is not JSON: "),
        (b'{"model": "m", "force": NaN}', "the body is not JSON: "),
        (b'{"model": "m", "x": ' + b"[" * 50_000 + b"]" * 50_000 + b"}", "the body is not JSON: "),
        (b"null", "the body does not fit: "),
        (b'"m"', "the body does not fit: "),
        (b'["m"]', "the body does not fit: "),
        (b"{}", "the body does not fit: "),
        (b'{"Model": "m"}', "the body does not fit: "),
        (b'{"model": null}', "the body does not fit: "),
        (b'{"model": 7}', "the body does not fit: "),
        (b'{"model": "m", "force": 1}', "the body does not fit: "),
        (b'{"model": "m", "force": "true"}', "the body does not fit: "),
        (b'{"model": "m", "force": null}', "the body does not fit: "),
    ],
    ids=lambda value: repr(value[:24]),
)
def test_a_bad_body_is_refused_with_what_is_wrong(body: bytes, said: str) -> None:
    """A body that is empty, no JSON, no object or of wrong types raises InvalidRequest."""
    with pytest.raises(InvalidRequest) as caught:
        parse_body(body, ShutdownBody)
    assert str(caught.value).startswith(said)


@given(st.binary(max_size=60))
def test_any_bytes_are_decoded_or_refused(body: bytes) -> None:
    """No bytes raise anything but InvalidRequest."""
    try:
        parsed = parse_body(body, ShutdownBody)
    except InvalidRequest:
        return
    assert isinstance(parsed.model, str)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)  # which JSON has not
    | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(TEXT | st.sampled_from(["model", "force"]), JSON, max_size=4))
def test_a_json_object_fits_by_its_types(fields: dict[str, object]) -> None:
    """An object is taken exactly if `model` is a string and `force`, if given, a boolean."""
    fields.pop("pid", None)
    fits = isinstance(fields.get("model"), str) and isinstance(fields.get("force", False), bool)
    body = json.dumps(fields).encode()
    if fits:
        assert parse_body(body, ShutdownBody) == ShutdownBody(
            str(fields["model"]), fields.get("force") is True
        )
    else:
        with pytest.raises(InvalidRequest):
            parse_body(body, ShutdownBody)


@pytest.mark.parametrize(
    ("query", "parameters"),
    [
        ("", {}),
        ("&&", {}),
        ("model=llama", {"model": "llama"}),
        ("model=a%2Fb+c%3A1&x=y", {"model": "a/b c:1", "x": "y"}),
        ("model=a=b", {"model": "a=b"}),
        ("model=a;b", {"model": "a;b"}),
        ("model=", {"model": ""}),
        ("model", {"model": ""}),
        ("=m", {"": "m"}),
        ("%6Dodel=m", {"model": "m"}),
        ("model=%2B", {"model": "+"}),
        ("model=%", {"model": "%"}),
        ("model=%zz", {"model": "%zz"}),
        ("model=%C3%BC", {"model": "ü"}),
        ("model=\xc3\xbc", {"model": "ü"}),
        ("model=%00", {"model": "\0"}),
    ],
)
def test_a_query_is_parsed(query: str, parameters: dict[str, str]) -> None:
    """Parameters are unquoted as forms are, a raw byte counting as itself, and none is dropped."""
    assert parse_query(query) == parameters


@pytest.mark.parametrize("query", ["model=%FF", "model=\xff", "%FF=m", "model=%C3", "a=%ED%A0%80"])
def test_a_query_that_is_not_utf8_is_refused(query: str) -> None:
    """Bytes that are not UTF-8 are refused, not replaced, wherever they stand."""
    with pytest.raises(InvalidRequest, match=r"^the query is not valid UTF-8$"):
        parse_query(query)


@pytest.mark.parametrize("query", ["model=a&model=b", "model=a&model=a", "model&mod%65l="])
def test_a_parameter_that_is_given_twice_is_refused(query: str) -> None:
    """Of two values none is chosen in silence."""
    with pytest.raises(InvalidRequest, match=r"^the query gives 'model' more than once$"):
        parse_query(query)


@given(st.dictionaries(TEXT, TEXT, max_size=4), st.booleans())
def test_a_query_survives_encoding(parameters: dict[str, str], plus: bool) -> None:
    """Whatever a client encodes, with `+` or `%20` for a space, comes out as it was."""
    query = urlencode(parameters, quote_via=quote_plus if plus else quote)
    assert parse_query(query) == parameters


@given(st.binary(max_size=40))
def test_any_query_is_parsed_or_refused(raw: bytes) -> None:
    """No bytes raise anything but InvalidRequest, and what comes out is Unicode."""
    try:
        parameters = parse_query(raw.decode("latin-1"))
    except InvalidRequest:
        return
    for name, value in parameters.items():
        assert name.encode() is not None
        assert value.encode() is not None
