"""`ulmfit predict` on many short rows: memory, rows a second, and whether a kill in the middle changes a byte.

    python benchmarks/predict_job.py --model runs/clf --rows 1000000 --output-dir /tmp/predict_job

It writes a .csv of short texts, predicts it once without a stop and once with a SIGKILL in the middle, and compares the
outputs. Peak memory is that of the process as the kernel counts it (VmHWM), also of a prediction of a hundredth of the
rows, which shows whether it grows. The output directory keeps what was done, so a stopped benchmark can be repeated.
"""

from __future__ import annotations

import argparse
import filecmp
import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

WORDS = (
    "the a this film story cast plot ending music camera good bad great awful dull bright slow quick fine poor is was "
    "feels looks never always often very quite rather not and but with of in for to me us all some most"
).split()


def write_rows(path: Path, rows: int) -> None:
    random.seed(0)
    with open(path, "w", encoding="utf-8") as file:
        file.write("id,text\n")
        for number in range(rows):
            text = " ".join(random.choices(WORDS, k=random.randint(3, 12)))
            file.write(f'{number},"{text}, {number % 1000}"\n')


def predict(model: str, data: Path, output: Path, kill_at: int | None = None) -> dict[str, float]:
    """Predict, or kill the process after so many rows. Returns seconds and peak memory in MiB."""
    words = [sys.executable, "-m", "ulmfit", "predict", "--model", model, "--data", str(data), "--output", str(output)]
    told = output.with_name(f"{output.name}.partial.json")
    began, peak = time.monotonic(), 0
    process = subprocess.Popen(words)
    while process.poll() is None:
        try:
            status = Path(f"/proc/{process.pid}/status").read_text()
            peak = max(peak, *(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")), 0)
            if kill_at is not None and told.exists() and json.loads(told.read_text())["rows"] >= kill_at:
                process.send_signal(signal.SIGKILL)
        except (OSError, ValueError):
            pass
        time.sleep(0.2)
    if process.returncode != (0 if kill_at is None else -signal.SIGKILL):
        raise SystemExit(f"predict ended with {process.returncode}")
    return {"seconds": round(time.monotonic() - began, 1), "MiB": round(peak / 1024)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--output-dir", type=Path, required=True)
    parser.add_argument("--format", default="csv", choices=["csv", "tsv", "jsonl", "parquet"])
    given = parser.parse_args()
    folder: Path = given.output_dir
    folder.mkdir(parents=True, exist_ok=True)
    rows, few = given.rows, max(1, given.rows // 100)
    for number, name in ((rows, "rows.csv"), (few, "few.csv")):
        if not (folder / name).exists():
            write_rows(folder / name, number)
    outputs = {name: folder / f"predicted-{name}.{given.format}" for name in ("few", "killed", "whole")}
    for output in outputs.values():
        output.unlink(missing_ok=True)
    report = {"rows": rows, "few": predict(given.model, folder / "few.csv", outputs["few"])}
    print(json.dumps(report), flush=True)
    report["killed"] = predict(given.model, folder / "rows.csv", outputs["killed"], kill_at=rows // 2)
    partial = json.loads(outputs["killed"].with_name(f"{outputs['killed'].name}.partial.json").read_text())
    report["killed after rows"] = partial["rows"]
    print(json.dumps(report), flush=True)
    report["gone on with"] = predict(given.model, folder / "rows.csv", outputs["killed"])
    print(json.dumps(report), flush=True)
    report["whole"] = predict(given.model, folder / "rows.csv", outputs["whole"])
    report["rows a second"] = round(rows / report["whole"]["seconds"])
    report["equal"] = filecmp.cmp(outputs["killed"], outputs["whole"], shallow=False)
    print(json.dumps(report, indent=1))
    raise SystemExit(0 if report["equal"] else 1)


if __name__ == "__main__":
    main()
