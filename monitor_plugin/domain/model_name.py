"""What may be a model's name, from hosts and from clients alike."""

from __future__ import annotations

import unicodedata

from .errors import InvalidRequest

MAX_NAME_BYTES = 255


def fault_in_model_name(model: object) -> str | None:
    """Say what is wrong with a model's name; None when nothing is.

    A name is free text: slashes, spaces, colons and any script are fine.
    """
    if not isinstance(model, str):
        return f"the model's name must be a string, not {type(model).__name__}"
    if not model:
        return "the model's name is empty"
    try:
        size = len(model.encode())
    except UnicodeEncodeError:
        return "the model's name is not valid Unicode (it holds a lone surrogate)"
    if size > MAX_NAME_BYTES:
        return f"the model's name takes {size} bytes of UTF-8; at most {MAX_NAME_BYTES} are allowed"
    if any(unicodedata.category(character) == "Cc" for character in model):
        return f"the model's name {model!r} holds a control character"
    return None


def validate_model_name(model: object) -> str:
    """Pass a model's name through.

    Raises:
        InvalidRequest: it cannot be one.
    """
    if fault := fault_in_model_name(model):
        raise InvalidRequest(fault)
    assert isinstance(model, str)
    return str.__str__(model)  # of an enumeration's member, say, its text alone
