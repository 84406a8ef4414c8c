"""The page of a report: its sections in order, with its own style. It loads nothing and runs no script."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ulmfit.coloured import document, escaped
from ulmfit.report import cells, judgement, sections
from ulmfit.report.facts import Facts
from ulmfit.report.judged import Judged

STYLE = """
h4{font-size:.95rem;margin:1rem 0 .25rem}
.muted,small,figcaption{color:var(--muted)}small{display:block}
.skip{position:absolute;left:-99rem}.skip:focus{left:1rem;top:1rem;background:var(--back);padding:.5rem;z-index:1}
nav ul{display:flex;flex-wrap:wrap;gap:.25rem 1rem;list-style:none;padding:0;margin:.5rem 0 0}
nav a{display:inline-block;padding:.25rem 0}
article{border-top:3px solid var(--line);margin-top:2rem;padding-top:.5rem}article:first-of-type{border:0;margin:0;padding:0}
section{margin:0 0 1.75rem}section>h3{border-bottom:1px solid var(--line);padding-bottom:.25rem}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(8.5rem,1fr));gap:.75rem;list-style:none;padding:0;margin:1rem 0}
.tiles li{background:var(--card);border:1px solid var(--line);border-radius:.5rem;padding:.75rem}
.tiles b{display:block;font-size:1.5rem;line-height:1.2;font-variant-numeric:tabular-nums}.tiles span{display:block}
.verdict{font-weight:600}
.grid2{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,20rem),1fr));gap:1rem 2rem;align-items:start}
figure{margin:.5rem 0;max-width:24rem}figcaption{font-size:.9rem}
.chart{display:block;width:100%;height:auto;font:11px system-ui,sans-serif}.chart text{fill:var(--muted)}
.grid{stroke:var(--line);stroke-width:1}.stage{stroke:var(--muted);stroke-width:1;stroke-dasharray:3 3;fill:none}
.mark{fill:var(--text)}.line{fill:none;stroke-width:1.8;stroke-linejoin:round}
.bubble{fill:rgb(var(--for)/.55);stroke:var(--text);stroke-width:.8}
.s0{stroke:var(--c0)}.s1{stroke:var(--c1);stroke-dasharray:6 3}.s2{stroke:var(--c2);stroke-dasharray:2 3}
.s3{stroke:var(--c3);stroke-dasharray:8 3 2 3}.s4{stroke:var(--c4);stroke-dasharray:12 4}.s5{stroke:var(--c5);stroke-dasharray:1 4}
.dot{fill:var(--back);stroke-dasharray:none;stroke-width:1.6}
.legend{display:flex;flex-wrap:wrap;gap:.15rem 1rem;list-style:none;padding:0;margin:.25rem 0;font-size:.85rem}
.legend svg{width:26px;height:8px;margin-right:.4rem;vertical-align:middle}
:root{--c0:#0b62c4;--c1:#b85400;--c2:#1b7f4b;--c3:#8e3bb0;--c4:#a12b45;--c5:#4b5563}
@media(prefers-color-scheme:dark){:root{--c0:#6fb1ff;--c1:#ffa65c;--c2:#5fd39b;--c3:#d79bf2;--c4:#ff8fa6;--c5:#c0c8d2}}
.bars td:has(.bar){min-width:6.5rem}
@media(max-width:30rem){th,td{padding-right:.5rem}.bars td:has(.bar){min-width:4.5rem}}
.bar{display:block;height:.4rem;border-radius:.2rem;background:var(--line);margin-top:.2rem;overflow:hidden}
.bar i{display:block;height:100%;background:var(--c0)}.bar .f{background:rgb(var(--for))}
.matrix td{padding:0 1px 1px 0;border:0}.matrix th{padding-right:.5rem}
.heat{display:block;padding:.4rem .6rem;min-width:3rem;border-radius:.2rem}
@media(max-width:30rem){.matrix{font-size:.85rem}.matrix th{padding-right:.3rem}.heat{min-width:0;padding:.4rem .3rem}}
.heat.hit{background:rgb(var(--for)/var(--heat))}.heat.miss{background:rgb(var(--against)/var(--heat))}
.errors{padding-left:2rem}.errors li{margin:0 0 1rem}.errors p{margin:.25rem 0}
.commands dt{margin-top:.75rem}.commands dd{margin:0}.commands span{display:inline-block;max-width:100%}
pre{background:var(--card);border:1px solid var(--line);border-radius:.4rem;padding:.6rem;overflow-x:auto;margin:.25rem 0;
white-space:pre-wrap}code{font-family:ui-monospace,monospace;font-size:.9em}
details{margin:.5rem 0}summary{cursor:pointer;padding:.25rem 0}
footer{color:var(--muted);border-top:1px solid var(--line);margin-top:2rem;padding:1rem 0}
@media print{nav,.skip{display:none}article{break-before:page}article:first-of-type{break-before:auto}}
"""


def report_page(runs: Sequence[Facts], judged: Mapping[str, Judged | str], *, version: str) -> str:
    """The report as a page.

    Args:
        judged: by path of a run, what was read from model and data; a sentence where that was not possible. A run
            without a classifier has none.
    """
    names = [escaped(run.path) for run in runs]
    title = f"ulmfit report: {runs[0].path}" if len(runs) == 1 else f"ulmfit report: {len(runs)} runs"
    body = ['<a class="skip" href="#content">Skip to the content</a>']
    if len(runs) > 1:
        links = "".join(f'<li><a href="#run{place}">{name}</a></li>' for place, name in enumerate(names))
        body.append(f'<nav aria-label="Runs"><ul><li><a href="#compared">Compared</a></li>{links}</ul></nav>')
        body.append(
            f'<div id="content"></div><section id="compared"><h2>Compared</h2>{sections.comparison(runs, names)}</section>'
        )
    else:
        body.append('<div id="content"></div>')
    for place, (run, name) in enumerate(zip(runs, names, strict=True)):
        body.append(_run(run, name, place, judged.get(run.path), alone=len(runs) == 1))
    body.append(
        f"<footer>Written by ulmfit {escaped(version)} (<code>ulmfit report</code>). This page loads nothing.</footer>"
    )
    return document(title, "".join(body), STYLE)


def _run(facts: Facts, name: str, place: int, found: Judged | str | None, *, alone: bool) -> str:
    judged = found if isinstance(found, Judged) else None
    split, metrics = cells.scored_on(facts.main)
    labels = cells.labels_of(facts, metrics)
    fits = judged is not None and len(labels) == len(judged.parts[0].counts)
    parts: list[tuple[str, str]] = [("What it is for", sections.purpose(facts) + sections.tiles(facts, judged))]
    if judged is not None and fits:
        note = "<p><b>The data have changed since the training.</b></p>" * judged.changed
        parts.append(("Data", note + sections.data(facts, judged, labels)))
    parts.append(("Training", sections.curves(facts)))
    if facts.clf is not None:
        where = f" on the {cells.SPLITS[split]} texts" if split else ""
        by_class, matrix = judgement.classes(metrics, labels), judgement.confusion(metrics, labels)
        if by_class or matrix:
            parts.append((f"By class{where}", f'<div class="grid2"><div>{by_class}</div><div>{matrix}</div></div>'))
        parts.append(("Can the probabilities be trusted?", judgement.calibration(metrics, judged)))
    if isinstance(found, str):
        parts.append(("Worst errors, deciding words", f"<p>Not shown: {escaped(found)}.</p>"))
    if judged is not None and fits:
        parts.append(("Worst errors", judgement.errors(judged, labels, facts)))
        parts.append(("Words that decide", judgement.words(judged, labels)))
    parts.append(("Commands", sections.commands(facts)))
    parts = [(title, content) for title, content in parts if content]
    links = "".join(f'<li><a href="#run{place}-{at}">{title}</a></li>' for at, (title, _) in enumerate(parts))
    inner = "".join(
        f'<section id="run{place}-{at}"><h3>{title}</h3>{content}</section>'
        for at, (title, content) in enumerate(parts)
    )
    nav = f'<nav aria-label="Sections of {name}"><ul>{links}</ul></nav>'
    head = f"<h2>{name}</h2>" if not alone else '<h2 class="skip">The run</h2>'
    return f'<article id="run{place}">{head}{nav}{inner}</article>'
