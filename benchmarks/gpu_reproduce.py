"""From prepared token ids to the accuracy on IMDb's test reviews in one command of at most 500 seconds.

    python benchmarks/gpu_reproduce.py --packed packed/reproduction /tmp/packed --probe probe.json --output OUT
    python benchmarks/gpu_reproduce.py ... --sizes tiny --clock 3 --threads 1                # rehearsal on a CPU

A language model of Wikipedia, the same on IMDb's texts, a classifier, 25,000 test reviews. gpu_plan.py says who gets
which seconds. Every stage is a process of its own that is ready before its turn, so that one that hangs or fails can be
killed and the next one goes on with what it left. What happens is written to WORK/results.jsonl and OUTPUT/results.jsonl
at once, and OUTPUT/table.md is made anew after each stage. Killed, the same command goes on where it was, with the
seconds that it is given then. Gates, decided beforehand, are read from the probe's file: precision, loss, pace.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import signal
import sys
import time
from pathlib import Path
from typing import Any

import gpu_plan
from gpu_child import Child
from gpu_plan import STAGES, Clock, Limits
from gpu_table import Record, last, render

HERE = Path(__file__).resolve().parent
UNKNOWN = {"precision": "bf16", "loss": "plain", "tokens_per_second": 300_000}  # without a probe: cautious


class Stage(Child):
    """The process of a stage. `given_up`: its end was told already."""

    def __init__(self, name: str, given: dict[str, Any]) -> None:
        self.name, self.given_up = name, False
        folder = Path(given["work"], name)
        folder.mkdir(parents=True, exist_ok=True)
        super().__init__([sys.executable, str(HERE / "gpu_stage.py"), name, json.dumps(given)], log=folder / "log.txt")


class Reproduction:
    """One start of the command."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.clock = options, Clock(speed=options.clock)
        self.limits = Limits(options.seconds, options.seconds * 370 / 495)
        self.work, self.output = Path(options.work), Path(options.output)
        self.output.mkdir(parents=True, exist_ok=True)
        self.record = Record(self.work, self.output)
        self.gates = UNKNOWN | (_read(options.probe) if options.probe else {})
        self.tokens: dict[str, int] = {}
        self.stages: dict[str, Stage] = {}

    def run(self) -> bool:
        """Whether there is an accuracy at the end."""
        what = {"sizes": self.options.sizes, "packing": _digest(self.options.packed)}
        if any(event[key] != what[key] for event in self.record.events if event["event"] == "start" for key in what):
            sys.exit(f"{self.work} holds another reproduction; name another folder by --work")
        done = self.record.finished()
        self.tell("start", seconds=self.limits.whole, clock=self.clock.speed, done=sorted(done), **what, **self.gates)
        given = {
            "work": str(self.work), "output": str(self.output), "sizes": self.options.sizes, "threads": self.options.threads,
            "packed": self.options.packed, "origin": self.clock.origin, "speed": self.clock.speed,
        }  # fmt: skip
        waiting = STAGES[1 + max((STAGES.index(name) for name in done), default=-1) :]
        self.stages = {name: Stage(name, given) for name in waiting}
        try:
            for name in waiting:
                self._stage(name)
                self._show()
        finally:
            for stage in self.stages.values():
                stage.close()
            self.tell("over", state="done" if self.record.accuracy() is not None else "no accuracy")
            print(self._show(), flush=True)
        return self.record.accuracy() is not None

    def _stage(self, name: str) -> None:
        stage = self.stages[name]
        latest = gpu_plan.latest_ready(name, self.limits)
        if not self._wait(stage, "ready", latest):
            return
        for one in self.stages.values():  # the sizes of what is ready decide the shares
            with_it = name == "wikipedia" and one.name == "imdb"
            if one is stage or (with_it and self._wait(one, "ready", latest, kill=False)):
                self.tokens[one.name] = one.seen["ready"]["tokens"]
        share = gpu_plan.share(name, self.clock.now(), self._rate(), self.tokens, self.limits)
        latest = gpu_plan.latest_end(name, share, self.limits)
        before = [str(self.work / earlier) for earlier in reversed(STAGES[: STAGES.index(name)])]
        self.tell("order", stage=name, end=round(share.end, 1), latest=round(latest, 1), epochs=share.epochs)
        order = {name: self.gates[name] for name in ("precision", "loss")}
        order |= {"end": share.end, "epochs": share.epochs, "from": before}
        if self.options.stall and self.options.stall[0] == name:
            order["stall"] = float(self.options.stall[1])
        stage.send(order)
        self._wait(stage, "end", latest)

    def _rate(self) -> float:
        """Tokens in a second of the clock: as Wikipedia's stage reached them, else as the probe did."""
        reached = (last(self.record.events, "wikipedia", "weights") or {}).get("tokens_per_second")
        return (reached or self.gates["tokens_per_second"]) / self.clock.speed  # 0: there was no time for a step

    def _wait(self, stage: Stage, event: str, until: float, *, kill: bool = True) -> bool:
        """Record a stage's events until this one has come. False if it has ended or its time is up: then it is killed."""
        while event not in stage.seen:
            try:
                found = stage.next(self.clock.wall(until - self.clock.now()))
            except TimeoutError:
                if not kill:
                    return False
                self.tell("overrun", stage=stage.name, until=round(until, 1), waited_for=event)
                stage.close()
                stage.given_up = True
                return False
            if found is None:
                if not stage.given_up:
                    self.tell("failed", stage=stage.name, log=_tail(self.work / stage.name / "log.txt"))
                    stage.given_up = True
                return False
            self.tell(stage=stage.name, **found)
        return True

    def tell(self, event: str, **what: Any) -> None:
        self.record.add({"at": round(self.clock.now(), 1), "event": event} | what)

    def _show(self) -> str:
        text = render(self.record.events, self.limits)
        (self.output / "table.md").write_text(text)
        return text


def _read(path: str) -> dict[str, Any]:
    """What the probe chose. A probe that did not come so far is no obstacle."""
    try:
        found = json.loads(Path(path).read_text())
        return {name: found[name] for name in UNKNOWN if found.get(name) is not None}
    except (OSError, ValueError) as error:
        print(f"{path}: {error}; going on without the probe", file=sys.stderr)
        return {}


def _digest(folders: list[str]) -> str:
    """Of the listing of the pieces. The stages check them, which takes torch's packages."""
    texts = [path.read_bytes() for folder in folders if (path := Path(folder, "packed.json")).is_file()]
    if not texts:
        sys.exit(f"{' and '.join(folders)}: no packed.json is there; copy a folder of pieces first")
    return hashlib.sha256(texts[0]).hexdigest()[:16]


def _tail(path: Path) -> str:
    return path.read_text(errors="replace").strip()[-600:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--packed", nargs="+", required=True, help="folders with pieces; those that are not there are left out"
    )
    parser.add_argument("--probe", help="the probe.json of gpu.py (default: cautious values)")
    parser.add_argument("--output", required=True, help="results, table, logits and the model in parts")
    parser.add_argument(
        "--work", default="/tmp/ulmfit-reproduction", help="what need not come back: stores, checkpoints"
    )
    parser.add_argument("--seconds", type=float, default=Limits.whole, help="of the whole (default: 495)")
    parser.add_argument("--sizes", default="base", choices=("base", "tiny"), help="tiny: a rehearsal")
    parser.add_argument("--clock", type=float, default=1.0, help="how many seconds of the plan pass in a real one")
    parser.add_argument("--threads", type=int, help="CPU threads of a stage (default: torch's)")
    parser.add_argument("--stall", nargs=2, metavar=("STAGE", "SECONDS"), help="rehearses a stage that hangs")
    options = parser.parse_args()
    begun = time.monotonic()

    def leave(*_: Any) -> None:
        sys.exit("stopped; the same command goes on")

    signal.signal(signal.SIGTERM, leave)
    reached = Reproduction(options).run()
    print(f"{time.monotonic() - begun:.0f} s")
    sys.exit(0 if reached else 1)


if __name__ == "__main__":
    main()
