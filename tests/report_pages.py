"""The structure of a page of the report, and scores that such a page shows."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import numpy as np

from ulmfit.explanation import Explanation, Word
from ulmfit.report.judged import Judged, Part, Wrong

EMPTY = {"meta", "link", "br", "img", "input", "hr"}


class Page(HTMLParser):
    """The structure of a page: what a browser or a screen reader would stumble over is in `faults`."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text, self.open, self.faults = text, [], []
        self.ids, self.links, self.tags, self.levels, self.shown = [], [], [], [], []
        self.feed(text)
        self.close()
        self.faults += [f"{tag} is not closed" for tag in self.open]
        self.faults += [f"two elements have the id {name}" for name in {n for n in self.ids if self.ids.count(n) > 1}]
        self.faults += [f"#{link} leads nowhere" for link in self.links if link not in self.ids]

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.tags.append(tag)
        if tag not in EMPTY:
            self.open.append(tag)
        if "id" in given:
            self.ids.append(given["id"])
        for name in given:
            if name.startswith("on") or name in ("src", "srcset", "action", "background", "poster"):
                self.faults.append(f"{tag} has {name}")
        if "href" in given:
            target = given["href"]
            if target.startswith("#"):
                self.links.append(target[1:])
            elif not (tag == "link" and target == "data:,"):
                self.faults.append(f"{tag} leads to {target}")
        if given.get("role") == "img" and not given.get("aria-label"):
            self.faults.append(f"{tag} has no name")
        if "wide" in (given.get("class") or "").split() and given.get("tabindex") != "0":
            self.faults.append("a part that scrolls cannot be reached by keyboard")
        if re.fullmatch("h[1-6]", tag):
            if self.levels and int(tag[1]) > self.levels[-1] + 1:
                self.faults.append(f"{tag} follows h{self.levels[-1]}")
            self.levels.append(int(tag[1]))
        if tag in ("script", "iframe", "object", "embed", "img", "form", "base"):
            self.faults.append(f"there is a {tag}")

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.faults.append(f"{tag} ends what it did not begin")

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in EMPTY:
            self.open.pop()

    def handle_data(self, data):
        if self.open[-1:] != ["style"]:
            self.shown.append(data)


def judged(facts, text="An <b>awful</b> film", label="<i>neg</i>"):
    words = tuple(Word(m[0], *m.span(), 1.0) for m in re.finditer(r"\S+", text))
    found = Explanation(text, label, 0, 0.9, label, words)
    part = Part("valid", 12, np.array([6, 6]), 20.0, 40)
    wrong = Wrong(7, 2.3, (1,), (0,), np.array([0.9, 0.1]), found)
    return Judged([part], "valid", 12, 1, [wrong], [(0.6, 0.5, 8), (0.9, 1.0, 4)], {0: [(text, 1.0, 3)]}, 12)
