"""The settings of a hook file: environment variables `MONITOR_HOOK_<STEM>_<SETTING>`.

For example::

    settings = HookSettings(__name__)  # in idle_stop.py: MONITOR_HOOK_IDLE_STOP_...
    limits = settings.get("SECONDS", per_model(seconds), "seconds over 0, as 3600", {})

An invalid value prevents the monitor from starting; the error says what to write instead.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from typing import NamedTuple, TypeVar

from ..domain.byte_sizes import format_bytes
from ..domain.errors import SettingsError
from ..hookspecs import HOOK_FILE_PREFIX

T = TypeVar("T")
D = TypeVar("D")

_UNITS = {"": 1, "B": 1} | {
    unit: factor**power
    for power, letter in enumerate("KMGT", start=1)
    for unit, factor in ((f"{letter}B", 1000), (f"{letter}iB", 1024))
}
_SIZE = re.compile(r"(\d{1,18}(?:\.\d+)?)\s*([KMGT]i?B|B|)", re.ASCII)
_NEVER = ("none", "never")


class HookSettings:
    """Reads the settings of the hook file whose `__name__` is `module_name`.

    Attributes:
        stem: the name of the file, without `.py`.
    """

    def __init__(self, module_name: str, environ: Mapping[str, str] | None = None) -> None:
        stem = module_name.removeprefix(HOOK_FILE_PREFIX)
        if stem == module_name:  # not a hook file, but a module of a package
            stem = module_name.rpartition(".")[2]
        self.stem = stem
        stem = re.sub(r"\W", "_", stem, flags=re.ASCII)
        self._prefix = f"MONITOR_HOOK_{stem.upper()}_"
        self._environ = os.environ if environ is None else environ

    def variable(self, name: str) -> str:
        """Return the name of a setting's environment variable."""
        return self._prefix + name

    def get(
        self, name: str, parse: Callable[[str], T], wanted: str, default: D, *, hide: bool = False
    ) -> T | D:
        """Read a setting. An empty value counts as not set.

        Args:
            name: the setting, in capitals.
            parse: converts the text to the value, or raises ValueError.
            wanted: for the error message: the expected value, with units and an example.
            default: the value of a setting that is not set.
            hide: leave the value, which may contain a secret, out of the error message.

        Raises:
            SettingsError: the value is invalid.
        """
        text = self._environ.get(self.variable(name), "").strip()
        if not text:
            return default
        try:
            return parse(text)
        except ValueError as error:
            raise self.error(name, f"{error}; write {wanted}", None if hide else text) from None

    def secret(self, name: str) -> str | None:
        """Read a secret from the file of the setting NAME_FILE, or else from the setting NAME.

        Raises:
            SettingsError: the file cannot be read or is empty. The message omits the secret.
        """
        path = self._environ.get(self.variable(f"{name}_FILE"), "")
        if not path:
            return self._environ.get(self.variable(name)) or None
        try:
            with open(path, encoding="utf-8") as file:
                text = file.read().strip()
        except (OSError, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
            message = f"{why}; write the path of a file that contains the secret"
            raise self.error(f"{name}_FILE", message, path) from None
        if not text:
            raise self.error(f"{name}_FILE", "the file is empty; write the secret into it", path)
        return text

    def error(self, name: str, message: str, text: str | None = None) -> SettingsError:
        """Make the error of a setting, which shows the value only if `text` is given."""
        variable = self.variable(name)
        shown = variable if text is None else f"{variable}={text!r}"
        return SettingsError(variable, f"{shown}: {message}")


def seconds(text: str) -> float:
    """Parse a finite number of seconds above 0."""
    value = float(text)
    if not 0 < value < math.inf:
        raise ValueError("it must be over 0, and finite")
    return value


def size(text: str) -> int:
    """Parse bytes: `8GiB`, `500 MB`, `1073741824`."""
    match = _SIZE.fullmatch(text)
    value = int(float(match[1]) * _UNITS[match[2]]) if match else 0
    if value < 1:
        raise ValueError("it is not a number of bytes")
    return value


def size_text(amount: float) -> str:
    """Format bytes with four significant digits: `8.25 GiB`."""
    return format_bytes(amount, ".4g")


def count(text: str) -> int:
    """Parse an integer of at least 1."""
    if not (text.isascii() and text.isdigit()) or int(text) < 1:
        raise ValueError("it must be an integer of at least 1")
    return int(text)


def patterns(text: str) -> tuple[str, ...]:
    """Parse shell patterns (`*`, `?` and `[...]`) with commas between them: `llama-*,embed`."""
    found = tuple(each.strip() for each in text.split(","))
    if not all(found):
        raise ValueError("there is an empty pattern")
    return found


def yes_or_no(text: str) -> bool:
    """Parse `yes` or `no`."""
    if text not in ("yes", "no"):
        raise ValueError("it is neither yes nor no")
    return text == "yes"


def one_of(*words: str) -> Callable[[str], str]:
    """Make a parser that accepts only these words."""

    def parse(text: str) -> str:
        if text not in words:
            raise ValueError(f"it is none of {', '.join(words)}")
        return text

    return parse


class Limit(NamedTuple):
    """A limit, and the pattern that matched the model."""

    pattern: str
    value: float


class Limits:
    """Limits by model: the first matching pattern counts.

    Args:
        rules: limits by shell pattern (`*`, `?` and `[...]`); None means no limit.
    """

    def __init__(self, rules: Mapping[str, float | None]) -> None:
        self._rules = dict(rules)

    def of(self, model: str) -> Limit | None:
        """Return the limit of a model; None for no limit."""
        for pattern, value in self._rules.items():
            if fnmatchcase(model, pattern):
                return None if value is None else Limit(pattern, value)
        return None

    def least(self) -> float | None:
        """Return the smallest limit; None if no model has a limit."""
        return min((each for each in self._rules.values() if each is not None), default=None)


def per_model(parse: Callable[[str], float]) -> Callable[[str], Limits]:
    """Make a parser of limits by model: `PATTERN=LIMIT,...`.

    LIMIT alone means `*=LIMIT`; the limits `none` and `never` mean no limit.
    """

    def parse_rules(text: str) -> Limits:
        rules: dict[str, float | None] = {}
        for part in text.split(","):
            pattern, equals, value = (each.strip() for each in part.rpartition("="))
            if equals and not pattern:
                raise ValueError(f"in {part.strip()!r}: there is no pattern before the =")
            pattern = pattern or "*"
            try:
                limit = None if value in _NEVER else parse(value)
            except ValueError as error:
                raise ValueError(f"in {part.strip()!r}: {error}") from None
            if pattern in rules:
                raise ValueError(f"there are two limits for {pattern!r}")
            rules[pattern] = limit
        return Limits(rules)

    return parse_rules
