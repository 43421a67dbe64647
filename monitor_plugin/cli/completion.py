"""Shell completion: click's, where names are free text, and so must be quoted for the shell.

Click's own script for bash puts values into the line as they are: a model's name with a space would
become two words, and one with `$(...)` a command. And bash completes only what follows the last
`:`, `=` or `@` of a word, of which names are full.
"""

from __future__ import annotations

import argparse
import os
import re
from typing import NamedTuple

import click
from click.shell_completion import (
    BashComplete,
    CompletionItem,
    FishComplete,
    ShellComplete,
    ZshComplete,
)

_PLAIN = re.compile(r"[\w/.,+%-]", re.ASCII)
_PART = re.compile(
    r"""
      (?P<space>[ \t\n]+)
    | '(?P<single>[^']*)(?:'|$)
    | "(?P<double>(?:[^"\\$`]|\\.)*)(?:"|\\?$)
    | \\(?P<escaped>.|$)
    | (?P<plain>[^'"\\$`;|&<>()])
    """,
    re.VERBOSE | re.DOTALL,
)
_LINE, _BREAKS = "COMP_LINE", "COMP_BREAKS"
_BASH = """\
%(complete_func)s() {
    local kind value
    COMPREPLY=()
    while IFS=, read -r kind value; do
        case $kind in
            plain) COMPREPLY+=("$value") ;;
            file) compopt -o default ;;
        esac
    done < <(COMP_LINE="${COMP_LINE:0:COMP_POINT}" COMP_BREAKS="$COMP_WORDBREAKS" \\
        %(complete_var)s=bash_complete "$1" 2>/dev/null)
}

complete -o nosort -F %(complete_func)s %(prog_name)s
"""


class Typed(NamedTuple):
    """A command line, up to the cursor.

    Attributes:
        words: those that are complete, unquoted.
        word: the one that is being typed, unquoted.
        quote: the quote that is open in it; empty where none is.
        kept: how many of its characters bash leaves alone; it replaces what follows.
    """

    words: list[str]
    word: str
    quote: str
    kept: int


def parse_line(line: str, breaks: str) -> Typed | None:
    """Take a line of bash apart; None where it does more than quoting, and is better left alone.

    Args:
        line: what stands before the cursor.
        breaks: the characters after which bash begins a new word to complete (COMP_WORDBREAKS).
    """
    words: list[str] = []
    word, quote, kept, state = "", "", 0, "none"
    at = 0
    while at < len(line):
        part = _PART.match(line, at)
        if part is None:
            return None
        at = part.end()
        kind = part.lastgroup
        if kind == "space":
            words += [word] if state != "none" else []
            word, kept, state = "", 0, "none"
            continue
        if kind in ("single", "double"):
            text = part[kind]
            closed = part.end() > part.end(kind) and line[at - 1] == line[part.start()]
            quote, state = ("", "closed") if closed else (line[part.start()], "open")
            kept = len(word)
            word += re.sub(r'\\([$`"\\])', r"\1", text) if kind == "double" else text
            continue
        state = "open" if state == "none" else state
        word += part[kind or 0]
        if kind == "plain" and part[0] in breaks:
            kept = len(word)
    # What bash does after a quote that is closed is not worth knowing.
    return None if state == "closed" else Typed(words, word, quote, kept)


def quoted(text: str, quote: str) -> str | None:
    """Write a text so that bash reads it back, within an open quote; None where that cannot be."""
    if quote and not text.isprintable():
        return None
    if quote == "'":
        return None if "'" in text else text
    if quote == '"':
        return None if "!" in text else re.sub(r'([\\$`"])', r"\\\1", text)
    return "".join(map(_quoted, text))


def _quoted(character: str) -> str:
    if not character.isprintable():
        return f"$'\\U{ord(character):08x}'"
    if _PLAIN.match(character) or ord(character) > 127:
        return character
    return "\\" + character


class _Bash(BashComplete):
    source_template = _BASH

    def complete(self) -> str:
        typed = parse_line(os.environ[_LINE], os.environ.get(_BREAKS, ""))
        if typed is None:
            return ""
        kept = typed.kept
        if typed.word.startswith("-") and "=" in typed.word:  # completed is what follows it
            kept = max(0, kept - typed.word.index("=") - 1)
        lines = []
        for item in self.get_completions(typed.words[1:], typed.word):
            value = quoted(item.value[kept:], typed.quote) if item.type == "plain" else ""
            if value is not None:
                lines.append(f"{item.type},{value}")
        return "\n".join(lines)


class _Printable(ShellComplete):
    """Leaves out names that the shell would send to the terminal as they are."""

    def get_completions(self, args: list[str], incomplete: str) -> list[CompletionItem]:
        found = super().get_completions(args, incomplete)
        return [item for item in found if str(item.value).isprintable()]


class _Zsh(_Printable, ZshComplete):
    pass


class _Fish(_Printable, FishComplete):
    # Names may hold commas.
    source_template = FishComplete.source_template.replace('split ","', 'split -m 1 ","')


_CLASSES: dict[str, type[ShellComplete]] = {"bash": _Bash, "zsh": _Zsh, "fish": _Fish}
SHELLS = tuple(_CLASSES)


def script(program: click.Group, name: str, shell: str) -> str:
    """Give what a shell is to read."""
    return answer(program, name, f"{shell}_source")


def answer(program: click.Group, name: str, instruction: str) -> str:
    """Answer a shell that asks in click's way: `bash_source` for its script, or `bash_complete`."""
    shell, _, what = instruction.partition("_")
    if shell not in _CLASSES:
        return ""
    variable = f"_{name.replace('-', '_').upper()}_COMPLETE"
    completion = _CLASSES[shell](program, {}, name, variable)
    return completion.source() if what == "source" else completion.complete()


def with_commands_of(parser: argparse.ArgumentParser, program: click.Group) -> click.Group:
    """Make a group that completes argparse's commands and flags too; it runs none of them."""
    group = click.Group(params=_parameters_of(parser))
    for action in parser._actions:  # argparse shows its parts in no other way
        if isinstance(action, argparse._SubParsersAction):
            for name, command in action.choices.items():
                group.add_command(click.Command(name, params=_parameters_of(command)))
    for name, command in program.commands.items():
        group.add_command(command, name)
    return group


def _parameters_of(parser: argparse.ArgumentParser) -> list[click.Parameter]:
    return [
        click.Option(
            [*action.option_strings, f"argument_{number}"],
            is_flag=action.nargs == 0,
            multiple=action.nargs != 0,
            type=click.Path() if action.dest.endswith(("_file", "_dir")) else None,
            help=action.help if action.help != argparse.SUPPRESS else None,
            hidden=action.help == argparse.SUPPRESS,
        )
        for number, action in enumerate(parser._actions)
        if action.option_strings and "--help" not in action.option_strings
    ]
