"""Figures: confusion matrix, calibration curve, learning-rate finder.

matplotlib is imported when the first figure is drawn, because it takes half a second. pyplot is not used: it has a state
of its own (a backend, open figures), which belongs to the user's notebook.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ulmfit.excerpts import cut

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.figure import Figure

MOST_CELLS = 20  # classes up to which the confusion matrix has numbers in its cells
MOST_NAMES = 60  # classes up to which they are named on the axes
LONGEST_NAME = 24  # characters
LARGEST = 12.0  # inches
_DPI = 100


def pixels(figure: Figure) -> np.ndarray:
    """The figure as an image, uint8 [height, width, 4] (RGBA)."""
    import numpy as np
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba()).copy()


def png(figure: Figure) -> bytes:
    """The figure as the content of a PNG file."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    file = io.BytesIO()
    FigureCanvasAgg(figure).print_png(file)
    return file.getvalue()


def confusion_figure(rows: Sequence[Sequence[int]], names: Sequence[Any]) -> Figure:
    """A confusion matrix. The colour is the share of the row's documents, so that rare classes are seen too.

    Args:
        rows: numbers of documents. Row: true class, column: predicted class.
        names: of the classes; cut where they are long.
    """
    classes = len(rows)
    side = min(LARGEST, max(4.4, 2.2 + 0.55 * classes))
    figure = _figure(side + 0.4, side)
    axes = figure.add_subplot(xlabel="predicted", ylabel="true")
    shares = [[count / max(1, sum(row)) for count in row] for row in rows]
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, ax=axes, fraction=0.046, pad=0.04, label="share of the true class")
    if classes <= MOST_NAMES:
        shown = [cut(str(name), LONGEST_NAME) for name in names]
        size = 10.0 if classes <= MOST_CELLS else 7.0
        axes.set_xticks(range(classes), _plain(shown), rotation=45, ha="right", rotation_mode="anchor", fontsize=size)
        axes.set_yticks(range(classes), _plain(shown), fontsize=size)
    if classes <= MOST_CELLS:
        for i, row in enumerate(rows):
            for j, count in enumerate(row):
                color = "white" if shares[i][j] > 0.7 else "black"  # from there on white has more contrast
                axes.text(j, i, f"{count:,}", ha="center", va="center", color=color, fontsize=9)
    right = sum(rows[i][i] for i in range(classes))
    axes.set_title(f"{right:,} of {sum(map(sum, rows)):,} right", fontsize=11)
    return figure


def calibration_figure(bins: Sequence[Mapping[str, Any]], error: float) -> Figure:
    """A reliability diagram: how often predictions of a confidence are right, and how many there are of it.

    Args:
        bins: of `training.calibration.bin_table`.
        error: the expected calibration error.
    """
    figure = _figure(4.8, 5.2)
    grid = figure.add_gridspec(2, 1, height_ratios=(3, 1))
    width, total = 1 / len(bins), sum(part["number"] for part in bins)
    middles = [(i + 0.5) * width for i in range(len(bins))]
    axes = figure.add_subplot(grid[0], xlim=(0, 1), ylim=(0, 1), ylabel="share of right predictions")
    axes.plot([0, 1], [0, 1], color="0.6", linestyle="--", linewidth=1, label="as often right as it says")
    filled = [part for part in bins if part["number"]]
    sizes = [15 + 120 * part["number"] / max(1, total) for part in filled]
    confidences, accuracies = ([part[name] for part in filled] for name in ("confidence", "accuracy"))
    axes.plot(confidences, accuracies, color="tab:blue", linewidth=1.2)
    # Not clipped: the largest disc is often in the corner, where all is right and sure.
    axes.scatter(confidences, accuracies, s=sizes, color="tab:blue", label="this model", zorder=3, clip_on=False)
    axes.legend(loc="upper left", fontsize=9, frameon=False)
    axes.set_title(f"expected calibration error {error:.3f}", fontsize=11)
    below = figure.add_subplot(
        grid[1], xlim=(0, 1), xlabel="confidence (probability of the prediction)", ylabel="texts"
    )
    below.bar(middles, [part["number"] for part in bins], width=0.9 * width, color="tab:blue", alpha=0.6)
    return figure


def finder_figure(
    rates: Sequence[float], losses: Sequence[float], suggestions: Mapping[str, float], *, title: str, shown: slice
) -> Figure:
    """The curve of a range test, with the suggested rates marked.

    Args:
        rates: learning rates of the tested stage.
        losses: smoothed.
        suggestions: by rule, rates on the same axis.
        shown: the points that are drawn. The others, the first and those of the divergence, would hide the rest.
    """
    figure = _figure(7.0, 4.4)
    axes = figure.add_subplot(xlabel="learning rate", ylabel="loss (smoothed)", xscale="log")
    axes.plot(rates[shown], losses[shown], color="tab:blue", linewidth=1.6)
    colours = ("tab:red", "tab:green", "tab:orange", "tab:purple", "tab:brown")
    for (rule, rate), colour in zip(suggestions.items(), colours, strict=False):
        nearest = min(range(len(rates)), key=lambda k: abs(rates[k] - rate))
        axes.plot(rate, losses[nearest], "o", color=colour, label=f"{rule} {rate:.1e}", zorder=3)
    axes.grid(alpha=0.25)
    axes.set_title(title, fontsize=11)
    if suggestions:
        axes.legend(fontsize=9, frameon=False)
    return figure


def _figure(width: float, height: float) -> Figure:
    """An empty figure of this many inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=_DPI, layout="constrained", facecolor="white")


def _plain(names: Sequence[str]) -> list[str]:
    """The names as matplotlib shows them unchanged: between two dollar signs it would read formulas."""
    return [name.replace("$", r"\$") for name in names]
