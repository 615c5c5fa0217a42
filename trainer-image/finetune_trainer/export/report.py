"""The report of a job as one HTML file: curves as SVG, figures as tables, no scripts."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from finetune_api.names import Layout
from finetune_api.reports import CompletionManifest
from finetune_trainer.checkpoint import claim as claims

Points = list[tuple[int, float]]
WIDTH, HEIGHT = 720, 300
LEFT, RIGHT, TOP, BOTTOM = 56, 16, 16, 40
COLOURS = ("#1f6feb", "#d1570a", "#2da44e")
STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:760px;margin:2em auto;padding:0 1em;"
    "color:#1f2328}h1{font-size:1.5em}h2{font-size:1.1em;margin-top:2em}table{border-collapse:"
    "collapse;width:100%}td,th{text-align:left;padding:.25em .6em;border-bottom:1px solid #d0d7de;"
    "vertical-align:top;overflow-wrap:anywhere}th{font-weight:600;white-space:nowrap}svg{width:100%;"
    "height:auto}.note{color:#59636e}"
)


@dataclass
class Curves:
    """What was logged, along the line of claims that led to the result."""

    loss: Points = field(default_factory=list)
    evaluation: Points = field(default_factory=list)
    learning_rate: Points = field(default_factory=list)
    resumes: list[int] = field(default_factory=list)
    """Steps from which an attempt went on."""


def read_curves(layout: Layout) -> Curves:
    """Return the curves of the job's line of claims; steps that were lost are left out."""
    known = claims.read_all(layout)
    spans = claims.lineage(known)
    limits = {span.claim: span.last_step for span in spans}
    lines: dict[tuple[str, int], tuple[int, float]] = {}
    for entry in _lines(layout.metrics):
        claim, step = entry.get("claim"), entry.get("step")
        if not isinstance(claim, int) or not isinstance(step, int):
            continue
        if limits and (claim not in limits or not _within(step, limits[claim])):
            continue
        evaluation = entry.get("evaluation")
        values = {
            "loss": entry.get("loss"),
            "learning_rate": entry.get("learningRate"),
            "evaluation": evaluation.get("loss") if isinstance(evaluation, Mapping) else None,
        }
        for name, value in values.items():
            if isinstance(value, int | float) and math.isfinite(value):
                lines[name, step] = (step, float(value))
    named = (known[span.claim] for span in spans if known.get(span.claim))
    return Curves(
        **{
            name: sorted(point for (kind, _), point in lines.items() if kind == name)
            for name in ("loss", "evaluation", "learning_rate")
        },
        resumes=sorted(c.resumes_from.step for c in named if c and c.resumes_from),
    )


def _within(step: int, limit: int | None) -> bool:
    return limit is None or step <= limit


def _lines(path: Path) -> Iterable[dict[str, object]]:
    """Yield the lines that are JSON objects; a crash may have cut one short."""
    if not path.is_file():
        return
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict):
            yield entry


def render(
    manifest: CompletionManifest,
    curves: Curves,
    rows: Sequence[tuple[str, str]] = (),
    *,
    verdict: str = "",
) -> str:
    """Return the page. ``rows`` are further figures, ``verdict`` one sentence on top."""
    title = html.escape(f"{manifest.job}: {manifest.method} on {manifest.base_model}")
    before, after = manifest.evaluation_before, manifest.evaluation_after
    table = [("steps", f"{manifest.steps:,} (published: step {manifest.selected_step:,})"), *rows]
    for name in after:
        change = f"{before[name]:.4g} → " if name in before else ""
        if name != "tokens":
            table.append((f"evaluation {name}", f"{change}{after[name]:.4g}"))
    proof = manifest.verification
    if proof is not None:
        table.append(
            (
                "verified",
                f"logits on {proof.prompts} prompts differ by at most {proof.max_difference:.2g} "
                f"(allowed {proof.tolerance:.2g}); loaded in a clean process; generation "
                + ("stops" if proof.stops else "did not stop by itself"),
            )
        )
    table.append(("output", manifest.uri))
    table.append(("finished", manifest.time))
    sections = [f"<h1>{title}</h1>"]
    if verdict:
        sections.append(f"<p>{html.escape(verdict)}</p>")
    losses = {"training loss": curves.loss, "evaluation loss": curves.evaluation}
    sections += ["<h2>Loss</h2>", chart(losses, curves.resumes)]
    if curves.resumes:
        listed = ", ".join(str(step) for step in curves.resumes)
        sections.append(f'<p class="note">Dashed lines: resumed from step {listed}.</p>')
    if curves.learning_rate:
        sections += ["<h2>Learning rate</h2>", chart({"learning rate": curves.learning_rate}, [])]
    sections += ["<h2>Figures</h2>", _table(table)]
    files = [
        (entry.path, f"{entry.size:,} bytes, sha256 {entry.sha256}") for entry in manifest.files
    ]
    if files:
        sections += ["<h2>Files</h2>", _table(files)]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f"<title>{title}</title><style>{STYLE}</style></head>\n<body>\n"
        + "\n".join(sections)
        + "\n</body></html>\n"
    )


def _table(rows: Iterable[tuple[str, str]]) -> str:
    cells = (f"<tr><th>{html.escape(a)}</th><td>{html.escape(b)}</td></tr>" for a, b in rows)
    return "<table>" + "".join(cells) + "</table>"


def chart(series: Mapping[str, Points], marks: Sequence[int]) -> str:
    """Return a line chart of named series over steps as an SVG element."""
    drawn = {name: points for name, points in series.items() if points}
    if not drawn:
        return '<p class="note">Nothing was logged.</p>'
    steps = [step for points in drawn.values() for step, _ in points]
    values = [value for points in drawn.values() for _, value in points]
    low_x, high_x = min(steps), max(*steps, min(steps) + 1)
    low_y, high_y = _padded(min(values), max(values))

    def x(step: float) -> float:
        return LEFT + (step - low_x) / (high_x - low_x) * (WIDTH - LEFT - RIGHT)

    def y(value: float) -> float:
        return HEIGHT - BOTTOM - (value - low_y) / (high_y - low_y) * (HEIGHT - TOP - BOTTOM)

    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" font-size="12" fill="#59636e">']
    parts += [
        f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(value):.1f}" y2="{y(value):.1f}" '
        f'stroke="#d8dee4"/><text x="{LEFT - 6}" y="{y(value) + 4:.1f}" text-anchor="end">'
        f"{value:.3g}</text>"
        for value in _ticks(low_y, high_y)
    ]
    parts += [
        f'<text x="{x(step):.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{step:g}</text>'
        for step in _ticks(low_x, high_x)
    ]
    parts += [
        f'<line x1="{x(step):.1f}" x2="{x(step):.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}" '
        'stroke="#8c959f" stroke-dasharray="4 4"/>'
        for step in marks
        if low_x <= step <= high_x
    ]
    for number, (name, points) in enumerate(drawn.items()):
        colour = COLOURS[number % len(COLOURS)]
        path = " ".join(f"{x(step):.1f},{y(value):.1f}" for step, value in points)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [
            f'<circle cx="{x(step):.1f}" cy="{y(value):.1f}" r="2.5" fill="{colour}">'
            f"<title>{html.escape(name)} at step {step}: {value:.4g}</title></circle>"
            for step, value in points
        ]
        parts.append(
            f'<text x="{WIDTH - RIGHT - 4}" y="{TOP + 14 + 16 * number}" text-anchor="end" '
            f'fill="{colour}">{html.escape(name)}</text>'
        )
    parts.append(f'<text x="{WIDTH / 2}" y="{HEIGHT - 6}" text-anchor="middle">step</text></svg>')
    return "".join(parts)


def _padded(low: float, high: float) -> tuple[float, float]:
    """Return the range with a little air; never empty."""
    air = (high - low) * 0.05 or abs(high) * 0.05 or 1.0
    return (0.0 if 0 <= low < (high - low) else low - air), high + air


def _ticks(low: float, high: float, wanted: int = 5) -> list[float]:
    """Return round values in a range: multiples of 1, 2 or 5 times a power of ten."""
    rough = (high - low) / wanted
    power = 10.0 ** math.floor(math.log10(rough))
    unit = next(u * power for u in (1, 2, 5, 10) if u * power >= rough)
    first = math.ceil(low / unit)
    return [n * unit for n in range(first, math.floor(high / unit) + 1)]
