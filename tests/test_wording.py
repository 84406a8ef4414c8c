"""Every user's mistake is told in one way: lower case, no full stop, "what is wrong; the cure"."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import ulmfit

PACKAGE = Path(ulmfit.__file__).parent
# A sentence may begin with the name of an option, of a file or a column (a placeholder), or with one of these.
NAMES = ("ZeRO",)
CURES = re.compile(r"; |cure|column .* its columns are ", re.IGNORECASE)


def text_of(node: ast.expr) -> str | None:
    """A message with `{expression}` for what is filled in; None for a message made elsewhere."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        parts = (part if isinstance(part, ast.Constant) else None for part in node.values)
        sources = (ast.unparse(part.value) if isinstance(part, ast.FormattedValue) else "" for part in node.values)
        return "".join(
            str(part.value) if part else "{" + source + "}" for part, source in zip(parts, sources, strict=True)
        )
    return None


def messages() -> list[tuple[str, str]]:
    """Place and text of each message of a UserError; `need(condition, message)` raises one too."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("UserError", "need"):
                text = text_of(node.args[node.func.id == "need"])
                if text is not None:
                    found.append((f"{path.relative_to(PACKAGE)}:{node.lineno}", text))
    return found


def faults(text: str) -> list[str]:
    """What is wrong with the wording of a message."""
    found = []
    if text[0].isupper() and not text.startswith(NAMES):
        found.append("begins with a capital")
    if text.endswith((".", "!")):
        found.append("ends with a full stop")
    if re.search(r"[.!] [A-Z]", text):
        found.append("is more than a sentence")
    if not CURES.search(text) and not text.endswith(": {error}"):
        found.append("has no cure behind a semicolon")
    return found


def test_user_errors_have_one_style():
    found = messages()
    assert len(found) > 150  # it finds them
    wrong = [f"{place} {', '.join(faults(text))}: {text}" for place, text in found if faults(text)]
    assert not wrong, "\n" + "\n".join(wrong)


@pytest.mark.parametrize(
    "text",
    [
        "The file is gone; give another",
        "the file is gone; give another.",
        "the file is gone",
        "it is gone. Give another; x",
    ],
)
def test_another_style_is_seen(text):
    assert faults(text)


def test_the_style_itself_passes():
    assert not faults("--data {data} does not exist; check the path") and not faults("{path} is gone; {_CURE}")
