"""The messages that docs/how-to/troubleshooting.md quotes are those of the code."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "how-to" / "troubleshooting.md").read_text()


def texts_of_the_code() -> list[str]:
    """Return each text in the package and in hooks/, with `...` in place of each inserted value."""
    texts = []
    for path in [*(ROOT / "monitor_plugin").rglob("*.py"), *(ROOT / "hooks").glob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                texts.append("".join(map(piece_of, node.values)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                text = node.value.replace("%r", "'...'")
                texts.append(re.sub(r"%[.\d]*[sdfg]", "...", text))
    return texts


def piece_of(node: ast.expr) -> str:
    """Return a part of an f-string: its text, or `...` for an inserted value."""
    if isinstance(node, ast.FormattedValue):
        return "'...'" if node.conversion == ord("r") else "..."
    assert isinstance(node, ast.Constant)
    return str(node.value)


def test_troubleshooting_quotes_messages_of_the_code() -> None:
    """Each quoted message occurs in the code; `...` stands for inserted values or for the rest."""
    blocks = re.findall(r"^ *```text\n(.*?)^ *```$", PAGE, re.DOTALL | re.MULTILINE)
    quoted = [line.strip() for each in blocks for line in each.splitlines()]
    quoted += re.findall(r"^\| `([^`]+)` \|", PAGE, re.MULTILINE)
    assert len(quoted) > 80
    texts = texts_of_the_code()
    for message in quoted:
        pattern = ".*?".join(map(re.escape, message.split("...")))
        assert any(re.search(pattern, text) for text in texts), message
