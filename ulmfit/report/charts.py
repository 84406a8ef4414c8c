"""Charts as inline SVG. They take their colours from the page, so that they are right in light and dark."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from ulmfit.coloured import escaped

Point = tuple[float, float]
WIDTH, HEIGHT = 360, 230  # so that the letters of a chart are as large as those of the page on a phone
LEFT, RIGHT, TOP, BOTTOM = 46, 10, 14, 36
LETTER = 7.5  # width of a digit, at most: a label under the right end is moved only as far as it would leave the chart
_MOST_POINTS = 300


def line_chart(
    title: str,
    series: Sequence[tuple[str, Sequence[Point]]],
    *,
    stages: Sequence[tuple[float, str]] = (),
    marked: float | None = None,
) -> str:
    """A chart of values over steps, with a legend where there are several series.

    Args:
        series: names and points. Each has another colour and another dash, so that nobody has to tell colours apart.
        stages: first steps and names, as level lines.
        marked: a step that is marked on the axis: the one whose weights were kept.
    """
    series = [(name, _thinned(points)) for name, points in series if points]
    if not series:
        return ""
    xs = [x for _, points in series for x, _ in points]
    ys = [y for _, points in series for _, y in points]
    x_ticks, y_ticks = ticks(min(0.0, *xs), max(xs)), ticks(min(ys), max(ys))
    left, right = x_ticks[0], max(max(xs), x_ticks[0] + 1)
    low, high = min(y_ticks[0], min(ys)), max(y_ticks[-1], max(ys))

    def x_of(value: float) -> float:
        return LEFT + (value - left) / (right - left) * (WIDTH - LEFT - RIGHT)

    def y_of(value: float) -> float:
        return HEIGHT - BOTTOM - (value - low) / ((high - low) or 1) * (HEIGHT - TOP - BOTTOM)

    parts = [_axes(x_ticks, y_ticks, x_of, y_of, right)]
    for start, name in stages[1:]:
        parts.append(
            f'<line class="stage" x1="{x_of(start):.1f}" x2="{x_of(start):.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}">'
            f"<title>{escaped(name)}</title></line>"
        )
    if marked is not None and left <= marked <= right:
        x, y = x_of(marked), HEIGHT - BOTTOM
        parts.append(
            f'<path class="mark" d="M{x:.1f} {y}l-5 9h10z"><title>weights kept: step {marked:.0f}</title></path>'
        )
    for place, (_, points) in enumerate(series):
        path = "M" + "L".join(f"{x_of(x):.1f} {y_of(y):.1f}" for x, y in points)
        parts.append(f'<path class="line s{place % 6}" d="{path}"/>')
        if len(points) <= 30:
            parts += [
                f'<circle class="dot s{place % 6}" cx="{x_of(x):.1f}" cy="{y_of(y):.1f}" r="2.6"/>' for x, y in points
            ]
    last = "; ".join(f"{name} ends at {_short(points[-1][1])}" for name, points in series)
    return _figure(title, f"{title} over steps: {last}", "".join(parts), [name for name, _ in series])


def reliability_chart(bins: Sequence[tuple[float, float, int]], *, several: bool) -> str:
    """How often decisions of a confidence are right, beside the diagonal on which they should lie."""
    if not bins:
        return ""
    steps = [0.0, 0.25, 0.5, 0.75, 1.0]

    def x_of(value: float) -> float:
        return LEFT + value * (WIDTH - LEFT - RIGHT)

    def y_of(value: float) -> float:
        return HEIGHT - BOTTOM - value * (HEIGHT - TOP - BOTTOM)

    most = max(count for *_, count in bins)
    parts = [_axes(steps, steps, x_of, y_of, 1.0, percent=True)]
    parts.append(f'<path class="stage" d="M{x_of(0)} {y_of(0)}L{x_of(1)} {y_of(1)}"/>')
    parts += [
        f'<circle class="bubble" cx="{x_of(confidence):.1f}" cy="{y_of(right):.1f}" r="{2.5 + 8 * math.sqrt(count / most):.1f}">'
        f"<title>confidence {confidence:.1%}, right {right:.1%}, {count:,}</title></circle>"
        for confidence, right, count in bins
    ]
    title = (
        "Label is there (upwards) by its probability (across)"
        if several
        else "Right predictions (upwards) by confidence (across)"
    )
    told = "; ".join(f"{count:,} at {confidence:.0%}: {right:.0%}" for confidence, right, count in bins)
    return _figure(title, f"{title}: {told}", "".join(parts), [])


def bar(share: float, kind: str = "s0") -> str:
    """A level bar of a share of its cell. The figure stands beside it, so it is hidden from screen readers."""
    return f'<span class="bar" aria-hidden="true"><i class="{kind}" style="width:{100 * min(1.0, max(0.0, share)):.1f}%"></i></span>'


def ticks(low: float, high: float, number: int = 4) -> list[float]:
    """Round values from below `low` to `high` or above."""
    if not high - low > max(1e-9 * max(abs(low), abs(high)), 1e-300):  # level, but for the last bits
        high = low + (abs(low) or 1.0)
    raw = (high - low) / number
    size = 10 ** math.floor(math.log10(raw))
    step = next(size * factor for factor in (1, 2, 2.5, 5, 10) if size * factor >= raw * 0.999)
    first = math.floor(low / step + 1e-9)
    last = math.ceil(high / step - 1e-9)
    return [place * step for place in range(first, last + 1)]


def _axes(
    x_ticks: Sequence[float],
    y_ticks: Sequence[float],
    x_of: Callable[[float], float],
    y_of: Callable[[float], float],
    right: float,
    *,
    percent: bool = False,
) -> str:
    def show(value: float) -> str:
        return f"{value:.0%}" if percent else _short(value)

    parts = [
        f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y_of(value):.1f}" y2="{y_of(value):.1f}"/>'
        f'<text x="{LEFT - 6}" y="{y_of(value) + 4:.1f}" text-anchor="end">{show(value)}</text>'
        for value in y_ticks
    ]
    parts += [
        f'<text x="{min(x_of(value), WIDTH - len(show(value)) * LETTER / 2):.1f}" y="{HEIGHT - 10}" text-anchor="middle">'
        f"{show(value)}</text>"
        for value in x_ticks
        if value <= right * 1.0001
    ]
    return "".join(parts)


def _figure(title: str, told: str, content: str, legend: Sequence[str]) -> str:
    keys = "".join(
        f'<li><svg viewBox="0 0 26 8" aria-hidden="true"><path class="line s{place % 6}" d="M0 4h26"/></svg>{escaped(name)}</li>'
        for place, name in enumerate(legend)
    )
    listed = f'<ul class="legend">{keys}</ul>' if len(legend) > 1 else ""
    return (
        f'<figure><figcaption>{escaped(title)}</figcaption><svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{escaped(told)}">{content}</svg>{listed}</figure>'
    )


def _thinned(points: Sequence[Point]) -> list[Point]:
    """At most `_MOST_POINTS` points, each the mean of neighbours; the last one stays."""
    points = sorted(points)
    size = -(-len(points) // _MOST_POINTS)
    if size <= 1:
        return points
    groups = [points[start : start + size] for start in range(0, len(points), size)]
    return [(group[-1][0], sum(y for _, y in group) / len(group)) for group in groups]


def _short(value: float) -> str:
    if value and (abs(value) < 1e-3 or abs(value) >= 1e5):
        mantissa, _, exponent = f"{value:.1e}".partition("e")
        return f"{mantissa.removesuffix('.0')}e{int(exponent)}"
    return f"{value:.4g}"
