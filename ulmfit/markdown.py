"""Names and texts of users in pages of Markdown: TensorBoard's texts and model cards."""

from __future__ import annotations

import re
from typing import Any


def as_markdown(value: Any) -> str:
    """Markdown that shows a value in one line, unchanged otherwise. No part of it is read as HTML, link or emphasis."""
    text = " ".join(str(value).split()).replace("&", "&amp;").replace("<", "&lt;")
    return re.sub(r"([\\`*_{}\[\]()#+!|>])", r"\\\1", text)
