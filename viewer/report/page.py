"""One self-contained HTML page: style and script inlined, nothing fetched, everything that a model wrote escaped."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

STATIC = Path(__file__).parent.parent / "static"


def page(
    title: str, subtitle: str, sections: Iterable[str], warnings: Sequence[str] = (), made: Sequence[str] = ()
) -> str:
    """The document. made: versions, commit, machine and seed of what it shows, for its foot.

    The policy in it allows the page's own script and style, and no request at all.
    """
    script = (STATIC / "report.js").read_text(encoding="utf-8")
    style = (STATIC / "theme.css").read_text(encoding="utf-8") + (STATIC / "report.css").read_text(encoding="utf-8")
    allowed = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{allowed}'; base-uri 'none'"
    icon = (STATIC / "icon.svg").read_text(encoding="utf-8").strip()
    logo = icon.replace("<svg ", '<svg class="logo" aria-hidden="true" ', 1)
    notes = "".join(f'<p class="warning">{escape(w)}</p>' for w in warnings)
    by = "".join(f"Made with {escape(line)}<br>" for line in made if line)
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)} · solostream</title>\n<style>{style}</style>\n</head>\n<body>\n<main>\n"
        f'<header>{logo}<h1>{escape(title)}</h1><span class="gap"></span>'
        f'<button title="Dark or light" aria-label="Dark or light">◐</button></header>\n'
        f'<p class="sub">{escape(subtitle)}</p>\n{notes}{"".join(sections)}\n'
        f"<footer>{by}Written by solostream. This page is one file and needs no network.</footer>\n</main>\n"
        f"<script>{script}</script>\n</body>\n</html>\n"
    )


def section(title: str, *inside: str, note: str = "") -> str:
    """A titled part. `inside` is HTML, `note` is text."""
    about = f"<p>{escape(note)}</p>" if note else ""
    return f"<section><h2>{escape(title)}</h2>{about}{''.join(inside)}</section>\n"


def grid(cards: Iterable[str]) -> str:
    """Cards beside each other. They are HTML."""
    return f'<div class="grid">{"".join(cards)}</div>'


def card(title: str, inside: str, note: str = "", wide: bool = False) -> str:
    """A titled box. `inside` is HTML; `title` and `note` are text. wide: over the whole grid."""
    about = f"<p>{escape(note)}</p>" if note else ""
    head = f"<h3>{escape(title)}</h3>" if title else ""
    return f'<div class="card{" wide" if wide else ""}">{head}{about}{inside}</div>'


def tiles(values: Iterable[tuple[str, str, str]]) -> str:
    """(name, value, note) as large numbers."""
    return '<div class="tiles">' + "".join(
        f'<div class="tile"><div class="name">{escape(name)}</div><div class="value">{escape(value)}</div>'
        f'<div class="note">{escape(note)}</div></div>'
        for name, value, note in values
    ) + "</div>"  # fmt: skip


def table(heads: Sequence[str], rows: Iterable[Sequence[object]], links: dict[str, str] | None = None) -> str:
    """A sortable table: numbers right, texts left and escaped; `links` maps a text to an anchor on the page."""
    body = []
    numeric = [False] * len(heads)
    for row in rows:
        cells = []
        for i, value in enumerate(row):
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                numeric[i] = True
                cells.append(f'<td class="num" data-value="{value}">{number(value)}</td>')
            else:
                text = escape("–" if value is None else str(value))
                link = (links or {}).get(str(value))
                cells.append(f'<td class="name">{f"""<a href="#{link}">{text}</a>""" if link else text}</td>')
        body.append(f"<tr>{''.join(cells)}</tr>")
    # a column without a title is no header: a cell says that to a screen reader
    top = "".join(
        f'<th class="{"num" if n else ""}">{escape(h)}</th>' if h else "<td></td>"
        for h, n in zip(heads, numeric, strict=True)
    )
    head = f"<thead><tr>{top}</tr></thead>"
    return f'<div class="scroll" tabindex="0"><table class="data">{head}<tbody>{"".join(body)}</tbody></table></div>'


def number(value: float | None, digits: int = 3) -> str:
    """For people: "1,234", "0.125", and a dash for None."""
    if value is None:
        return "–"
    whole = value == int(value)
    return minus(f"{value:,.{0 if whole else digits if abs(value) < 100 else 1}f}")


def percent(value: float | None) -> str:
    """A share in percent with one decimal; a dash for None."""
    return "–" if value is None else minus(f"{100 * value:.1f} %")


def minus(figure: str) -> str:
    """A figure with the minus sign of print, as everywhere on the pages, for Python's hyphen."""
    return figure.replace("-", "−")
