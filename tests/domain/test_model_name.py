from __future__ import annotations

import unicodedata
from contextlib import nullcontext

import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitor_plugin import InvalidRequest
from monitor_plugin.domain.model_name import (
    MAX_NAME_BYTES,
    validate_model_name,
)


@pytest.mark.parametrize(
    "model",
    [
        "llama",
        "org/model:7b q4",
        "模型",
        "модель",
        "🦙",
        " ",
        "..",
        "a'b\"c\\",
        "a" * 255,
        "é" * 127,
    ],
)
def test_free_text_is_a_model_name(model: str) -> None:
    """Slashes, spaces, colons and any script are fine, up to 255 bytes of UTF-8."""
    assert validate_model_name(model) == model


@pytest.mark.parametrize(
    ("model", "fault"),
    [
        (None, "the model's name must be a string, not NoneType"),
        (7, "the model's name must be a string, not int"),
        (b"llama", "the model's name must be a string, not bytes"),
        (["llama"], "the model's name must be a string, not list"),
        ("", "the model's name is empty"),
        ("\ud800", "the model's name is not valid Unicode (it holds a lone surrogate)"),
        ("a" * 256, "the model's name takes 256 bytes of UTF-8; at most 255 are allowed"),
        ("é" * 128, "the model's name takes 256 bytes of UTF-8; at most 255 are allowed"),
        ("a\nb", "the model's name 'a\\nb' holds a control character"),
        ("a\x00", "the model's name 'a\\x00' holds a control character"),
        ("\x7f", "the model's name '\\x7f' holds a control character"),
        ("\x85", "the model's name '\\x85' holds a control character"),
    ],
)
def test_an_invalid_model_name_raises_what_is_wrong(model: object, fault: str) -> None:
    """An InvalidRequest says which rule the name breaks."""
    with pytest.raises(InvalidRequest) as caught:
        validate_model_name(model)
    assert str(caught.value) == fault


@given(st.text(alphabet=st.characters(), max_size=300))
def test_model_name_is_valid_exactly_by_the_rules(model: str) -> None:
    """A text is a name if it is not empty, is Unicode, fits, and holds no control character."""
    categories = {unicodedata.category(character) for character in model}
    size = len(model.encode(errors="surrogatepass"))
    valid = 0 < size <= MAX_NAME_BYTES and not categories & {"Cc", "Cs"}
    with nullcontext() if valid else pytest.raises(InvalidRequest):
        assert validate_model_name(model) == model
