"""The record of the reproduction, a line of JSON an event, and the table that is made of it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from gpu_plan import STAGES, Limits

NAMES = {"wikipedia": "language model of Wikipedia", "imdb": "the same on IMDb's texts", "classifier": "classifier"}


class Record:
    """Events of this start and of earlier ones. Each is written at once, and the file is copied to the output.

    Attributes:
        events: all of them, in order.
    """

    def __init__(self, work: Path, output: Path) -> None:
        work.mkdir(parents=True, exist_ok=True)
        self._path, self._copy = work / "results.jsonl", output / "results.jsonl"
        self.events: list[dict[str, Any]] = []
        for line in self._path.read_text().splitlines() if self._path.exists() else []:
            try:
                self.events.append(json.loads(line))
            except ValueError:  # cut off by a kill
                break
        self._path.write_text("".join(json.dumps(event) + "\n" for event in self.events))

    def add(self, event: dict[str, Any]) -> None:
        self.events.append(event)
        with open(self._path, "a") as file:
            file.write(json.dumps(event) + "\n")
        shutil.copyfile(self._path, self._copy)

    def finished(self) -> set[str]:
        """The stages that need not run again: they have their weights, the classifier its accuracy and model too."""
        needed = dict.fromkeys(STAGES, "weights") | {"classifier": "model"}
        return {name for name in STAGES if self._last(name, needed[name])}

    def accuracy(self) -> float | None:
        """On the test reviews."""
        scores = self._last("classifier", "scores")
        return scores["accuracy"] if scores else None

    def _last(self, stage: str, event: str) -> dict[str, Any] | None:
        return last(self.events, stage, event)


def last(events: list[dict[str, Any]], stage: str, event: str) -> dict[str, Any] | None:
    """The last event of this kind of a stage; None if there is none."""
    found = [one for one in events if one.get("stage") == stage and one["event"] == event]
    return found[-1] if found else None


def render(events: list[dict[str, Any]], limits: Limits) -> str:
    """The table, in Markdown."""
    start = [event for event in events if event["event"] == "start"]
    now = start[-1]
    lines = [
        f"{len(start)} start(s) of {now['seconds']:.0f} s, clock x {now['clock']:g}; {now['precision']}, loss {now['loss']}, "
        f"planned with {now['tokens_per_second']:,.0f} tokens/s",
        "",
        "| stage | weights from | from s | to s | may take until s | tokens | tokens/s | steps | result |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name in STAGES:
        lines.append("| " + " | ".join([NAMES[name], *_row(events, name)]) + " |")
    lines += ["", "| cycle | steps | of at most | s | of | rate at the end |", "|---|---|---|---|---|---|"]
    for event in events:
        if event["event"] == "cycle":
            cells = [
                f"{event['stage']}, {event['cycle']}",
                f"{event['steps']:,}",
                f"{event['of']:,}",
                f"{event['seconds']:g}",
            ]
            lines.append("| " + " | ".join([*cells, f"{event['given']:g}", f"{event['lr_at_the_end']:.1e}"]) + " |")
    told = [f"- at {e['at']:g} s: {e['stage']} {_trouble(e)}" for e in events if e["event"] in ("overrun", "failed")]
    told += [f"- {name}: {len(ready['missing'])} piece(s) did not travel" for name in STAGES
             if (ready := last(events, name, "ready")) and ready["missing"]]  # fmt: skip
    lines += ["", *told] if told else []
    scores, order = last(events, "classifier", "scores"), last(events, "classifier", "order")
    if scores and order:
        began = (
            f"the classifier began at {order['at']:.0f} s, at the latest it would have at {limits.classifier_at:.0f} s"
        )
        lines += ["", f"**{scores['accuracy']:.4f} of {scores['reviews']:,} test reviews**; {began}"]
    return "\n".join(lines) + "\n"


def _row(events: list[dict[str, Any]], name: str) -> list[str]:
    order, began, weights, scores = (last(events, name, kind) for kind in ("order", "began", "weights", "scores"))
    train = last(events, name, "train")
    ended = weights or last(events, name, "overrun") or last(events, name, "failed")
    read = weights or train
    return [
        began["weights"] if began else "not begun",
        f"{order['at']:.0f}" if order else "",
        f"{ended['at']:.0f}" if ended else "",
        f"{order['end']:.0f}" if order else "",
        f"{read['tokens']:,}" if read else "",
        f"{read['tokens_per_second']:,}" if read else "",
        f"{read['steps'] if read is weights else read['step']:,}" if read else "",
        _result(scores) if scores else ("none" if ended else ""),
    ]


def _result(scores: dict[str, Any]) -> str:
    if "perplexity" in scores:
        return f"perplexity {scores['perplexity']:.1f}, next word {scores['accuracy']:.3f}"
    return f"accuracy {scores['accuracy']:.4f}, loss {scores['loss']:.3f}" if scores else "nothing to score"


def _trouble(event: dict[str, Any]) -> str:
    if event["event"] == "overrun":
        return f"was killed, its time was up at {event['until']:g} s"
    return "failed: " + " ".join(event["log"].split())[-200:]
