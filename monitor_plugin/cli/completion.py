"""`monitor-plugin completion`, and the answers to shells that complete a command line.

The names of models are free text, which click's own completion does not expect. Click's script for
bash does not quote: a name with a space would become two words, and `$(...)` in a name a command.
Bash replaces only the part of a word after its last `:`, `=` or `@`.
"""

from __future__ import annotations

import os
import re

import click
from click.shell_completion import (
    BashComplete,
    CompletionItem,
    FishComplete,
    ShellComplete,
    ZshComplete,
    add_completion_class,
    shell_complete,
    split_arg_string,
)

from .options import COMPLETION_VARIABLE, PROGRAM, preformatted

_EXAMPLES = """\
Examples:
  eval "$(monitor-plugin completion bash)"     # in ~/.bashrc
  eval "$(monitor-plugin completion zsh)"      # in ~/.zshrc, after compinit
  monitor-plugin completion fish | source      # in ~/.config/fish/config.fish"""
# COMP_WORD is the end of the line, as it was typed, which bash replaces by a completion.
_BASH = """\
%(complete_func)s() {
    local kind value
    COMPREPLY=()
    while IFS=, read -r kind value; do
        case $kind in
            plain) COMPREPLY+=("$value") ;;
            file) compopt -o default ;;
        esac
    done < <(COMP_LINE="${COMP_LINE:0:COMP_POINT}" COMP_WORD="$2" \\
        %(complete_var)s=bash_complete "$1" 2>/dev/null)
}

complete -o nosort -F %(complete_func)s %(prog_name)s
"""


@click.command(epilog=preformatted(_EXAMPLES))
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(context: click.Context, shell: str) -> int:
    """Print a script with which a shell completes commands, flags and names of loaded models."""
    return answer_shell(context.find_root().command, f"{shell}_source")


def answer_shell(program: click.Command, instruction: str) -> int:
    """Print a script (`bash_source`) or completions (`bash_complete`); returns the exit code."""
    for shell in (_Bash, _Zsh, _Fish):
        add_completion_class(shell)
    return shell_complete(program, {}, PROGRAM, COMPLETION_VARIABLE, instruction)


class _Bash(BashComplete):
    source_template = _BASH

    def complete(self) -> str:
        line, replaced = os.environ["COMP_LINE"], os.environ["COMP_WORD"]
        # The x makes sure that there is a last word; the word that is being typed may be empty.
        *words, word = split_arg_string(f"{line}x")
        before = line.removesuffix(replaced)
        quote = before[-1:] if before.endswith(("'", '"')) else ""
        word, end = word[:-1], split_arg_string(f"{quote}{replaced}x")[-1][:-1]
        items = self.get_completions(words[1:], word)
        if word.startswith("-"):
            word = word.partition("=")[2]  # the value of a flag
        unchanged = len(word.removesuffix(end))  # characters that bash does not replace
        lines = []
        for item in items:
            value = quoted(item.value[unchanged:], quote) if item.type == "plain" else ""
            if value is not None:
                lines.append(f"{item.type},{value}")
        return "\n".join(lines)


def quoted(text: str, quote: str) -> str | None:
    """Escape a text for bash, within an open quote or none (`""`); None if that is impossible."""
    if quote and not text.isprintable():
        return None
    if quote == "'":
        return None if "'" in text else text
    if quote == '"':
        return None if "!" in text else re.sub(r'([\\$`"])', r"\\\1", text)
    return re.sub(r"[^\w/.,+%-]", _escape, text)


def _escape(match: re.Match[str]) -> str:
    character = match[0]
    return f"\\{character}" if character.isprintable() else f"$'\\U{ord(character):08x}'"


class _Printable(ShellComplete):
    """Leaves out names with unprintable characters, which the shell would not escape."""

    def get_completions(self, args: list[str], incomplete: str) -> list[CompletionItem]:
        found = super().get_completions(args, incomplete)
        return [item for item in found if str(item.value).isprintable()]


class _Zsh(_Printable, ZshComplete):
    pass


class _Fish(_Printable, FishComplete):
    # Names may hold commas.
    source_template = FishComplete.source_template.replace('split ","', 'split -m 1 ","')
