"""The sections of a report on what a run is: its purpose, data, curves and commands, and several runs side by side.

Each is a piece of HTML. Every text of the user's goes through `escaped`.
"""

from __future__ import annotations

from collections.abc import Sequence

from ulmfit.coloured import escaped
from ulmfit.excerpts import listed
from ulmfit.report.cells import MOST_CLASSES, SCORES, SPLITS, labels_of, percent, score, scored_on, table
from ulmfit.report.charts import bar, line_chart
from ulmfit.report.facts import Facts, Training, differing, number
from ulmfit.report.judged import Judged, Part


def purpose(facts: Facts) -> str:
    """What the model does, for which texts, and what its figures do not tell."""
    if facts.clf is None:
        what = "A language model of the texts of the corpus: the start of a classifier (<code>ulmfit train-clf --encoder</code>)."
    else:
        split, metrics = scored_on(facts.clf)
        labels = labels_of(facts, metrics)
        some = ", ".join(f"<b>{label}</b>" for label in labels[:12]) + (
            f" and {len(labels) - 12} more" if len(labels) > 12 else ""
        )
        several = "thresholds" in metrics
        kind = f"any of {len(labels)} labels" if several else f"one of {len(labels)} classes"
        what = f"Gives each text {kind}: {some}." if labels else "Gives each text a class."
        if facts.averaged > 1 or facts.ngrams:
            networks = f"{facts.averaged} classifiers" if facts.averaged > 1 else "a classifier"
            linear = f" and, with a share of {facts.ngrams:.0%}, a linear classifier of words and pairs of words"
            if facts.taught:
                linear += f", which has learned what they say of {facts.taught:,} texts without a label too"
            what += f" Its probabilities are the mean of {networks}{linear * bool(facts.ngrams)}."
    column = facts.main.resolved.get("text_column")
    read = f", column <code>{escaped(listed(str(column).split(',')))}</code>" if column else ""
    unfinished = f'<p class="verdict">{escaped(facts.unfinished)}.</p>' if facts.unfinished else ""
    return (
        f"{unfinished}<p>{what} It was trained on <code>{escaped(facts.data)}</code>{read}.</p>"
        '<p class="muted">It is meant for texts like these: of the same kind, language and time. On other texts the figures '
        "below do not hold; score it on some labelled ones first. A class is a guess with a probability, and no reason to "
        "decide about a person without reading the text.</p>"
    )


def tiles(facts: Facts, judged: Judged | None) -> str:
    """The figures that matter, large."""
    training = facts.main
    split, metrics = scored_on(training)
    found: list[tuple[str, str, str]] = []
    for name in ("micro_f1", "accuracy", "f1", "perplexity"):  # the calibration error has a section that explains it
        if number(metrics.get(name)) is not None and len(found) < 3:
            found.append((score(name, metrics[name]), SCORES[name], f"{SPLITS.get(split, split)} texts"))
    rival = _rival(facts, split)
    if rival is not None:
        found.append((percent(rival), "TF-IDF baseline", "same texts"))
    if judged is not None:
        found.append(
            (
                f"{sum(part.documents for part in judged.parts):,}",
                "labelled texts",
                f"{judged.rows:,} of them {SPLITS[judged.split]}",
            )
        )
    if facts.minutes:
        processes = int(number(training.stored.get("world_size")) or 1)
        found.append(
            (
                f"{sum(facts.minutes.values()):.0f} min",
                "training",
                f"{processes:,} process{'es' if processes > 1 else ''}",
            )
        )
    size = number(training.resolved.get("parameters"))
    if size:
        each = f" of each of {facts.averaged} classifiers" if facts.averaged > 1 else ""
        found.append((f"{size / 1e6:.1f} M", f"parameters{each}", f"{training.resolved.get('vocabulary', 0):,} words"))
    cells = "".join(f"<li><b>{value}</b><span>{label}</span><small>{note}</small></li>" for value, label, note in found)
    verdict = facts.summary.get("verdict")
    told = f'<p class="verdict">{escaped(verdict)}.</p>' if isinstance(verdict, str) else ""
    return f'<ul class="tiles">{cells}</ul>{told}'


def _rival(facts: Facts, split: str) -> float | None:
    found = facts.rival.get(split)
    return number(found.get("micro_f1", found.get("accuracy"))) if isinstance(found, dict) else None


def data(facts: Facts, judged: Judged, labels: Sequence[str]) -> str:
    """Rows, lengths and classes of each split."""
    rows = [
        [SPLITS.get(part.name, part.name), f"{part.documents:,}", f"{part.median:,.0f}", f"{part.longest:,}"]
        for part in judged.parts
    ]
    out = table(["split", "texts", "median tokens", "longest"], rows, "Texts by split")
    return f'<div class="grid2"><div>{out}</div><div>{_classes(judged.parts, labels)}</div></div>'


def _classes(parts: Sequence[Part], labels: Sequence[str]) -> str:
    order = sorted(range(len(labels)), key=lambda index: -int(parts[0].counts[index]))[:MOST_CLASSES]
    rows = []
    for index in order:
        shares = [int(part.counts[index]) / max(1, part.documents) for part in parts]
        rows.append([labels[index], f"{shares[0]:.1%}{bar(shares[0])}", *(f"{share:.1%}" for share in shares[1:])])
    head = ["class", *(SPLITS.get(part.name, part.name) for part in parts)]
    more = (
        f'<p class="muted">The {MOST_CLASSES} largest of {len(labels)} classes.</p>'
        if len(labels) > MOST_CLASSES
        else ""
    )
    return table(head, rows, "Shares of the classes by split", "bars") + more


def curves(facts: Facts) -> str:
    """Loss and scores over the steps of each training."""
    out = []
    first = f"Classifier 1 of {facts.ensemble}" if facts.ensemble > 1 else "Classifier"
    for title, training in ((first, facts.clf), ("Language model", facts.lm)):
        if training is None:
            continue
        stages = training.stages()
        sampled = any(line.get("sampled") is True for line in training.lines)
        taught = "training (sampled words)" if sampled else "training"
        loss = line_chart(
            "Loss",
            [(taught, training.curve("train", "loss")), ("validation", training.curve("eval", "loss", "valid"))],
            stages=stages,
            marked=training.best_step,
        )
        names = ("accuracy", "f1", "micro_f1") if training is facts.clf else ("accuracy",)
        curves = [(SCORES[name], points) for name in names if (points := training.curve("eval", name, "valid"))]
        what = curves[0][0].capitalize() if len(curves) == 1 else "Scores"  # one curve has no legend
        scores = line_chart(f"{what} on the validation texts", curves, stages=stages, marked=training.best_step)
        rate = line_chart("Learning rate", [("lr", training.curve("train", "lr"))], stages=stages)
        told = ", then ".join(escaped(name) for _, name in stages)
        if not any((loss, scores, rate)):
            out.append(f"<h4>{title}</h4><p>No step has been logged yet.</p>")
            continue
        notes = [f"Stages: {told}; a dashed line is where the next one begins." if len(stages) > 1 else "",
                 "Training steps learn from some of the vocabulary: their loss does not compare with that of validation, "
                 "which goes by all words." if sampled else "",
                 f"The triangle marks step {training.best_step}, whose weights were kept." if training.best_step else ""]  # fmt: skip
        note = " ".join(filter(None, notes))
        out.append(f'<h4>{title}</h4><div class="grid2">{loss}{scores}{rate}</div>' + (f'<p class="muted">{note}</p>' if note else "")
                   + _evaluations(training))  # fmt: skip
    return "".join(out)


def _evaluations(training: Training) -> str:
    names = [name for name in SCORES if training.curve("eval", name, "valid")]
    steps = dict.fromkeys(step for name in names for step, _ in training.curve("eval", name, "valid"))
    if not steps:
        return ""
    columns = [dict(training.curve("eval", name, "valid")) for name in names]
    rows = [
        [f"{step:,.0f}", *(score(name, column.get(step)) for name, column in zip(names, columns, strict=True))]
        for step in steps
    ]
    head = ["step", *(SCORES[name] for name in names)]
    return f"<details><summary>All evaluations</summary>{table(head, rows, 'Scores of each evaluation')}</details>"


def commands(facts: Facts) -> str:
    """How to make and use the model."""
    found = "".join(
        f'<dt>{told}</dt><dd><pre tabindex="0"><code>{_unbroken(line)}</code></pre></dd>'
        for told, line in facts.commands()
    )
    versions = facts.main.stored.get("versions", {})
    named = ", ".join(
        f"{escaped(str(name))} {escaped(str(versions[name]))}"
        for name in ("ulmfit", "python", "torch")
        if name in versions
    )
    commit = facts.main.stored.get("git_commit")
    told = f"{named}{f', commit {escaped(str(commit)[:10])}' if commit else ''}"
    return f'<dl class="commands">{found}</dl><p class="muted">Made with {told}.</p>'


def _unbroken(line: str) -> str:
    """A command as HTML, whose lines end between words: a browser would also break them at the hyphens of options."""
    return " ".join(f"<span>{escaped(word)}</span>" for word in line.split(" "))


def comparison(runs: Sequence[Facts], names: Sequence[str]) -> str:
    """The scores of several runs side by side, their curves, and the options that differ."""
    scores = [scored_on(run.main) for run in runs]
    kept = [name for name in SCORES if any(number(metrics.get(name)) is not None for _, metrics in scores)]
    best = {}
    for name in kept:
        known = [value for _, metrics in scores if (value := number(metrics.get(name))) is not None]
        best[name] = (min if name in ("loss", "ece", "perplexity") else max)(known)
    rows = []
    for place, (run, (split, metrics)) in enumerate(zip(runs, scores, strict=True)):
        cells = [
            f"<b>{score(name, metrics.get(name))}</b> *"
            if number(metrics.get(name)) == best[name]
            else score(name, metrics.get(name))
            for name in kept
        ]
        rows.append([f'<a href="#run{place}">{names[place]}</a>', escaped(SPLITS.get(split, split) or "-"), *cells,
                     f"{sum(run.minutes.values()):.0f}" if run.minutes else "-"])  # fmt: skip
    head = ["run", "scored on", *(SCORES[name] for name in kept), "minutes"]
    out = (
        table(head, rows, "Scores of the runs")
        + '<p class="muted">* the best of the column. Compare runs on one split only.</p>'
    )
    charts = "".join(
        line_chart(
            f"Validation {SCORES[name]}",
            [(f"{place + 1}: {run.path}", run.main.curve("eval", name, "valid")) for place, run in enumerate(runs)],
        )
        for name in ("loss", "accuracy", "micro_f1")
    )
    out += f'<div class="grid2">{charts}</div>'
    if changed := differing(list(runs)):
        options = [[f"<code>{escaped(name)}</code>", *map(escaped, values)] for name, values in changed]
        out += f"<h3>Options that differ</h3>{table(['option', *names], options, 'Options that differ')}"
    return out
