"""Validates the names of models, from hosts and from clients alike."""

from __future__ import annotations

import unicodedata

from .errors import InvalidRequest

MAX_NAME_BYTES = 255


def validate_model_name(model: object) -> str:
    """Return a model's name, as a plain `str` also where it is of a subclass.

    A name is free text: slashes, spaces, colons and any script are allowed.

    Raises:
        InvalidRequest: it is not a string, is empty, is not valid Unicode, takes more than
            MAX_NAME_BYTES in UTF-8, or holds a control character.
    """
    if not isinstance(model, str):
        raise InvalidRequest(f"the model's name must be a string, not {type(model).__name__}")
    if not model:
        raise InvalidRequest("the model's name is empty")
    try:
        size = len(model.encode())
    except UnicodeEncodeError:
        raise InvalidRequest(
            "the model's name is not valid Unicode (it holds a lone surrogate)"
        ) from None
    if size > MAX_NAME_BYTES:
        raise InvalidRequest(
            f"the model's name takes {size} bytes of UTF-8; at most {MAX_NAME_BYTES} are allowed"
        )
    if any(unicodedata.category(character) == "Cc" for character in model):
        raise InvalidRequest(f"the model's name {model!r} holds a control character")
    return str.__str__(model)
