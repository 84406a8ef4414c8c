"""Who gets which seconds of the reproduction, and the clock that it goes by. No torch here: these rules are tested.

All seconds count from the command's start. The plan is made anew before each stage, with what is left and the pace of
the stage before. The rules, decided beforehand:

1. The classifier begins at `classifier_at` at the latest, whatever happened, and earlier if the language model is done.
2. The language model of IMDb gets one epoch of its head and two of all layers first, more of them only from what is left.
3. Wikipedia gets the rest, one epoch at most, and never less than LEAST_WIKIPEDIA of the time for language models: a slow
   machine reads fewer of its tokens, and then fewer epochs of IMDb.
4. A stage ends with its share. Its learning rate goes by steps or by the clock, whichever is ahead, so that it is
   annealed wherever the stage ends.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

LEAST_WIKIPEDIA = 0.35  # of the time for language models
HEAD_COST = 0.75  # an epoch of the head alone, in epochs of all layers: no backward pass through the LSTMs
LEAST_EPOCHS, MOST_EPOCHS = 2, 6  # of all layers on IMDb
PACE = 0.9  # of the measured rate: evaluations, checkpoints, logging
BETWEEN = 6.0  # seconds after a language model: it saves its weights and is evaluated
TO_KILL = 2.0  # seconds to end a process
AT_THE_END = 30.0  # seconds for the test reviews and the model in parts
STAGES = ("wikipedia", "imdb", "classifier")


@dataclass(frozen=True)
class Limits:
    """Seconds from the command's start: of the whole, and when the classifier begins."""

    whole: float = 495.0
    classifier_at: float = 370.0


@dataclass(frozen=True)
class Share:
    """What a stage may take: its end in seconds, and the most epochs of all layers (None: what the recipe says)."""

    end: float
    epochs: float | None = None


class Clock:
    """Seconds since `origin` (of time.time), times `speed`: a rehearsal lets it run faster."""

    def __init__(self, origin: float | None = None, speed: float = 1.0) -> None:
        self.origin, self.speed = time.time() if origin is None else origin, speed

    def now(self) -> float:
        return (time.time() - self.origin) * self.speed

    def wall(self, seconds: float) -> float:
        """Real seconds of so many of this clock."""
        return seconds / self.speed


def share(stage: str, now: float, rate: float, tokens: dict[str, int], limits: Limits) -> Share:
    """The share of a stage that begins now.

    Args:
        rate: tokens a second of the language model.
        tokens: of the stores wikipedia and imdb.
    """
    if stage == "classifier":
        return Share(max(now, limits.whole - AT_THE_END))
    pace = PACE * rate
    epoch = tokens.get("imdb", 0) / pace  # 0: its stage has failed
    least, most = (epoch * (HEAD_COST + epochs) for epochs in (LEAST_EPOCHS, MOST_EPOCHS))
    if stage == "wikipedia":
        window = max(0.0, limits.classifier_at - now - 2 * BETWEEN)
        seconds = min(tokens["wikipedia"] / pace, max(window - least, LEAST_WIKIPEDIA * window))
        return Share(now + seconds, 1.0)
    window = max(0.0, limits.classifier_at - now - BETWEEN)
    return Share(now + min(window, most), max(LEAST_EPOCHS, min(MOST_EPOCHS, int(window / epoch - HEAD_COST))))


def latest_ready(stage: str, limits: Limits) -> float:
    """When a stage that is not ready for its order is given up."""
    return limits.whole if stage == "classifier" else limits.classifier_at * (0.4 if stage == "wikipedia" else 0.9)


def latest_end(stage: str, given: Share, limits: Limits) -> float:
    """When a stage that has not ended is killed. The classifier's beginning is never moved."""
    if stage == "classifier":
        return limits.whole - 2.0
    last = limits.classifier_at - TO_KILL
    return last if stage == "imdb" else min(given.end + 3 * BETWEEN, last)


def progress(begun_at: float, steps: int, most_steps: int, spent: float, seconds: float) -> float:
    """How much of a cycle is over, 0 to 1: by steps or by seconds, whichever is ahead.

    Args:
        begun_at: progress when these steps and seconds began to count (0, or that of a checkpoint).
        most_steps: left when they began; seconds: likewise.
    """
    by_steps = steps / most_steps if most_steps else 1.0
    by_clock = spent / seconds if seconds > 0 else 1.0
    return min(1.0, begun_at + (1 - begun_at) * max(by_steps, by_clock))


def choose(rows: dict[str, list[dict]]) -> dict[str, object]:
    """What the reproduction goes by, from the rows of the probe so far: precision, loss, tokens_per_second, why.

    The first of bf16, fp16, fp32 in which both nets were right; the fused loss if that was right and the faster one;
    nothing where the probe did not come so far. The rate is that of the largest batch.
    """

    def right(net: str, precision: str, loss: str | None = None) -> bool | None:
        found = [
            row["right"]
            for row in rows.get("correctness", [])
            if row.get("net") == net
            and row["precision"] == precision
            and "right" in row
            and loss in (None, row["loss"])
        ]
        return any(found) if found else None

    for precision in ("bf16", "fp16", "fp32"):
        if right("lm", precision) is None or right("clf", precision) is False:
            continue
        measured = [row for row in rows.get("step", []) if row.get("precision") == precision and "tokens/s" in row]
        largest = max((row["batch"] for row in measured), default=0)
        paces = {row["loss"]: row["tokens/s"] for row in measured if row["batch"] == largest}
        losses = [loss for loss in ("fused", "plain") if right("lm", precision, loss)]
        if losses:
            loss = max(losses, key=lambda kind: (paces.get(kind, 0), kind == "fused"))
            why = f"{precision} and the {loss} loss were right" + ("" if paces else "; no rate was measured")
            return {"precision": precision, "loss": loss, "tokens_per_second": paces.get(loss), "why": why}
    return {"precision": None, "loss": None, "tokens_per_second": None, "why": "no precision was found right"}
