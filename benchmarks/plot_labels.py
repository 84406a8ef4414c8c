"""The curve over labels of low_shot.py as a picture: mean accuracy and the standard deviation over the draws.

    python benchmarks/plot_labels.py WORK/results.jsonl [MORE/results.jsonl ...] --output docs/low-shot.svg

Several files are joined; of a figure that stands in more than one, the last counts. What is not measured is not drawn.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

# Name, colour and marker of each system, in the order of the legend; ours in blue and green, drawn thick.
SYSTEMS = {
    "fit": ("ours, three and n-grams: ulmfit fit", "#08306b", "o"),
    "pseudo": ("ours, learning from three of ours", "#54278f", "P"),
    "distilled": ("TF-IDF, learning from three of ours", "#6baed6", "d"),
    "mean": ("ours, three with reviews without a label", "#2171b5", "*"),
    "semi": ("ours, one with reviews without a label", "#08519c", "h"),
    "supervised": ("ours, labelled reviews only", "#3182bd", "s"),
    "english": ("ours, English model as it comes", "#31a354", "D"),
    "scratch": ("ours, no language model", "#74c476", "v"),
    "minilm": ("MiniLM embeddings + logistic regression", "#d94801", "^"),
    "nbsvm": ("NB-SVM", "#7f2704", "x"),
    "tfidf": ("TF-IDF + logistic regression", "#636363", "+"),
    "fasttext": ("fastText", "#bdbdbd", "."),
}


def read(files: list[Path]) -> dict[str, dict[int, list[float]]]:
    """Accuracies by system and number of labels, one a draw."""
    found: dict[tuple[str, int, int], float] = {}
    for file in files:
        for line in file.read_text().splitlines():
            row = json.loads(line)
            found[row["system"], row["labels"], row["draw"]] = row["accuracy"]
    curves: dict[str, dict[int, list[float]]] = {}
    for (system, labels, _), accuracy in sorted(found.items()):
        curves.setdefault(system, {}).setdefault(labels, []).append(accuracy)
    return curves


def draw(curves: dict[str, dict[int, list[float]]], output: Path) -> None:
    """Write the picture; the same figures give the same bytes."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    matplotlib.rcParams["svg.hashsalt"] = "ulmfit"
    matplotlib.rcParams["svg.fonttype"] = "none"  # text stays text: smaller, and a reader can search it
    figure = Figure(figsize=(9.5, 4.2), layout="constrained")
    FigureCanvasSVG(figure)
    axes = figure.subplots()
    numbers = sorted({number for points in curves.values() for number in points})
    for system, (name, colour, marker) in SYSTEMS.items():
        points = curves.get(system, {})
        if not points:
            continue
        mean = [statistics.mean(scores) for scores in points.values()]
        spread = [statistics.stdev(scores) if len(scores) > 1 else 0.0 for scores in points.values()]
        thick = 2.2 if name.startswith("ours") else 1.2
        axes.errorbar(list(points), mean, spread, label=name, color=colour, marker=marker, linewidth=thick, capsize=3)
    axes.set_xscale("log")
    axes.set_xticks(numbers, [f"{number:,}" for number in numbers])
    axes.minorticks_off()
    axes.set_xlabel("labelled reviews of IMDb")
    axes.set_ylabel("accuracy on 5,000 test reviews")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper", fontsize="small")
    figure.savefig(output, metadata={"Date": None})


def main() -> None:
    """Read, draw, and say what is in the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path, nargs="+")
    parser.add_argument("--output", type=Path, default=Path("docs/low-shot.svg"))
    options = parser.parse_args()
    curves = read(options.results)
    if unknown := sorted(set(curves) - set(SYSTEMS)):
        raise SystemExit(f"no name, colour and marker for {', '.join(unknown)}; add them to SYSTEMS")
    draw(curves, options.output)
    for system, points in curves.items():
        print(f"{system}: {', '.join(f'{len(scores)} draws of {number:,}' for number, scores in points.items())}")


if __name__ == "__main__":
    main()
