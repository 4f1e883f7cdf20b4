"""The report as one HTML file that asks nobody for anything: plotly, styles, script and data are inside it."""

from __future__ import annotations

import html
import json
from datetime import UTC, datetime
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

from fedlora.files import disk_errors, write_atomic
from fedlora.report.build import Report, Text
from fedlora.report.charts import Chart, Section, Table
from fedlora.report.interactive import draw, graph_objects

# Says what the page may do, and with it that it loads nothing; plotly sets styles and makes pictures to download.
_POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"


def write_page(report: Report, path: Path) -> None:
    """Write the report as one HTML file.

    Raises:
        ConfigError: plotly is not installed.
        RunFolderError: The file cannot be written.
    """
    text = page(report)
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, text)


def page(report: Report) -> str:
    """Return the report as one HTML document (ConfigError where plotly is not installed)."""
    go = graph_objects()
    from plotly.offline import get_plotlyjs

    identified = [(f"{section.key}-{chart.key}", chart) for section in report.sections for chart in section.charts]
    charts = {key: _drawn(chart, go) for key, chart in identified}
    keys = iter(key for key, _ in identified)
    sections = "\n".join(_section(section, keys) for section in report.sections)
    links = [(section.key, section.title) for section in report.sections] + ([("repeat", "Repeat it")] if report.texts else [])
    return _FRAME.format(
        title=html.escape(report.title),
        policy=_POLICY,
        css=_resource("page.css"),
        lead="\n".join(f'<p class="lead">{html.escape(text)}</p>' for text in report.lead),
        missing=_missing(report.missing),
        nav="\n".join(f'<a href="#{key}">{html.escape(title)}</a>' for key, title in links),
        sections=sections,
        texts=_texts(report.texts),
        made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        version=version("fedlora"),
        charts=_script_safe(json.dumps(charts, separators=(",", ":"))),
        plotly=get_plotlyjs(),
        script=_resource("page.js"),
    )


_FRAME = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title} - fedlora</title>
<link rel="icon" href="data:,">
<style>{css}</style>
</head>
<body>
<header>
<h1>{title}</h1>
{lead}
{missing}
<nav aria-label="Sections">{nav}</nav>
<noscript><p class="js-off">The figures need JavaScript; the tables and the configuration do not.</p></noscript>
</header>
<main>
{sections}
{texts}
</main>
<footer>fedlora {version}, {made}</footer>
<script type="application/json" id="charts">{charts}</script>
<script>{plotly}</script>
<script>{script}</script>
</body>
</html>
"""


def _drawn(chart: Chart, go: Any) -> dict[str, Any]:
    """Return a chart's views as plotly reads them; plotly's own classes check every name in them."""
    views = [
        {"figure": json.loads(go.Figure(draw(view)).update_layout(template="none").to_json())} for view in chart.views.values()
    ]
    for view in views:
        view["figure"]["layout"].pop("template", None)
    return {"views": views}


def _section(section: Section, keys: Any) -> str:
    parts = [f'<section id="{section.key}"><h2>{html.escape(section.title)}</h2>']
    parts += [f"<p>{html.escape(note)}</p>" for note in section.notes]
    parts += [_table(table) for table in section.tables]
    if section.charts:
        parts += ['<div class="charts">', *(_figure(next(keys), chart) for chart in section.charts), "</div>"]
    return "\n".join([*parts, "</section>"])


def _figure(key: str, chart: Chart) -> str:
    height = max(draw(view)["layout"]["height"] for view in chart.views.values())
    choice = ""
    if len(chart.views) > 1:
        options = "".join(f"<option>{html.escape(name)}</option>" for name in chart.views)
        choice = f'<label class="choice">{html.escape(chart.choice)} <select>{options}</select></label>'
    caption = f'<figcaption class="caption">{html.escape(chart.caption)}</figcaption>' if chart.caption else ""
    title = html.escape(chart.title)
    return (
        f'<figure class="{"wide" if chart.wide else ""}"><h3>{title}</h3>{choice}<ul class="legend"></ul>'
        f'<div class="chart" id="{key}" style="--height:{height}px" role="img" aria-label="{title}"></div>{caption}</figure>'
    )


def _table(table: Table) -> str:
    if len(table.head) == 2 and table.rows:  # name and number: as many side by side as there is room for
        pairs = "".join(f"<div><dt>{html.escape(name)}</dt><dd>{html.escape(value)}</dd></div>" for name, value in table.rows)
        return f'<dl class="facts">{pairs}</dl>'
    head = "".join(f'<th scope="col">{html.escape(text)}</th>' for text in table.head)
    rows = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in table.rows)
    body = f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody>" if table.rows else ""
    note = f'<p class="caption">{html.escape(table.caption)}</p>' if table.caption else ""
    return f'<div class="scroll"><table><caption>{html.escape(table.title)}</caption>{body}</table></div>{note}'


def _missing(missing: list[str]) -> str:
    if not missing:
        return ""
    items = "".join(f"<li>{html.escape(text)}</li>" for text in missing)
    return f'<div class="missing"><strong>Not here:</strong><ul>{items}</ul></div>'


def _texts(texts: list[Text]) -> str:
    if not texts:
        return ""
    parts = ['<section id="repeat"><h2>Repeat it</h2>']
    for text in texts:
        title, body = html.escape(text.title[:1].upper() + text.title[1:]), html.escape(text.body)
        shown = text.body.count("\n") < 8
        parts.append(
            f'<div class="shown"><h3>{title}</h3><pre>{body}</pre></div>'
            if shown
            else f"<details><summary>{title}</summary><pre>{body}</pre></details>"
        )
    return "\n".join([*parts, "</section>"])


def _script_safe(text: str) -> str:
    """Return JSON that cannot end the script element that it stands in."""
    return text.replace("<", "\\u003c")


def _resource(name: str) -> str:
    return (files("fedlora.report") / name).read_text(encoding="utf-8")
