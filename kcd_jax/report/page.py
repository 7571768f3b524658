"""The parts of a report's page, as HTML that is also well-formed XML; everything from outside is escaped."""

from __future__ import annotations

import base64
import html
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image

from kcd_jax.report import figures
from kcd_jax.report.drawings import Drawing
from kcd_jax.report.tables import Table

_METADATA = {'Date': None, 'Creator': None, 'Format': None, 'Type': None}


def text(value: object) -> str:
    """Escaped for use between tags and inside attributes."""
    return html.escape(str(value), quote=True)


def arrows(words: str) -> str:
    """ASCII arrows as they are printed."""
    return words.replace('->', '→')


def document(title: str, body: str) -> str:
    """The whole page; the style sheet is inside it."""
    style = Path(__file__).with_name('report.css').read_text(encoding='utf-8')
    head = (
        '<meta charset="utf-8"/>\n<meta name="viewport" content="width=device-width, initial-scale=1"/>\n'
        f'<title>{text(title)}</title>\n<style>\n{style}</style>'
    )
    page = f'<head>\n{head}\n</head>\n<body>\n<main>\n{body}\n</main>\n</body>'
    return f'<!DOCTYPE html>\n<html lang="en">\n{page}\n</html>\n'


def section(title: str, *parts: str) -> str:
    """A heading and what is under it; '' where there is nothing."""
    content = '\n'.join(part for part in parts if part)
    return f'<section>\n<h2>{text(title)}</h2>\n{content}\n</section>' if content else ''


def stack(*parts: str) -> str:
    """Cards below each other; '' where there is none."""
    content = '\n'.join(part for part in parts if part)
    return f'<div class="stack">\n{content}\n</div>' if content else ''


def tiles(entries: Iterable[tuple[str, str, str]]) -> str:
    """(name, number, note) as tiles; entries without a number are left out."""
    shown = [
        f'<div class="tile"><dt>{text(name)}</dt><dd><span class="number">{text(number)}</span>'
        f'<span class="note">{text(note)}</span></dd></div>'
        for name, number, note in entries
        if number
    ]
    return '<dl class="tiles">\n' + '\n'.join(shown) + '\n</dl>' if shown else ''


def grid(
    headers: Sequence[str],
    rows: Sequence[Sequence[str]],
    title: str = '',
    chosen: Iterable[int] = (),
    words: bool = False,
) -> str:
    """A table in a card that scrolls sideways where it is too wide.

    Args:
      headers: [C]; none where the rows are name and value.
      rows: cells as plain text; the first of a row names it.
      title: its caption.
      chosen: rows that are set off.
      words: the cells are words rather than numbers: left, and wrapped.
    """
    chosen = set(chosen)
    head = ''.join(f'<th scope="col">{text(header)}</th>' for header in headers)
    lines = []
    for place, row in enumerate(rows):
        cells = f'<th scope="row">{text(row[0])}</th>' + ''.join(f'<td>{text(cell)}</td>' for cell in row[1:])
        lines.append(f'<tr class="chosen">{cells}</tr>' if place in chosen else f'<tr>{cells}</tr>')
    caption = f'<caption><span>{text(title)}</span></caption>' if title else ''
    thead = f'<thead><tr>{head}</tr></thead>' if headers else ''
    kind = ' class="words"' if words else ''
    body = '\n'.join(lines)
    table = f'<table{kind}>{caption}{thead}<tbody>\n{body}\n</tbody></table>'
    label = text(title or 'table')
    return f'<div class="scroll" tabindex="0" role="region" aria-label="{label}">{table}</div>'


def card(*parts: str) -> str:
    """A box around its parts."""
    return '<div class="card">\n' + '\n'.join(part for part in parts if part) + '\n</div>'


def result_table(table: Table, chosen: Iterable[int] = ()) -> str:
    """A table of results with its notes, in a card."""
    return card(grid(table.headers, table.rows, arrows(table.title), chosen), notes(table.notes))


def notes(lines: Sequence[str]) -> str:
    """Small print."""
    items = ''.join(f'<li>{text(line)}</li>' for line in lines)
    return f'<ul class="notes">{items}</ul>' if items else ''


def pairs(entries: Mapping[str, object], title: str = '') -> str:
    """A table of names and values."""
    return grid([], [[name, str(value)] for name, value in entries.items()], title, words=True)


def shares(title: str, parts: Mapping[str, tuple[float, str]]) -> str:
    """A bar of parts of a whole, and a table of {part: (amount, as it is written)}; parts of 0 are left out."""
    total = sum(amount for amount, _ in parts.values())
    if total <= 0:
        return ''
    colors = [*figures.PALETTE, figures.NEUTRAL]
    bar, rows = [], []
    for place, (name, (amount, written)) in enumerate(parts.items()):
        if amount <= 0:
            continue
        color = colors[place % len(colors)]
        share = 100 * amount / total
        bar.append(f'<span style="width:{share:.3f}%;background:{color}"></span>')
        key = f'<span class="key" style="background:{color}"></span>'
        rows.append(f'<tr><th scope="row">{key}{text(name)}</th><td>{text(written)}</td><td>{share:.2f} %</td></tr>')
    said = ', '.join(f'{name} {100 * amount / total:.1f} %' for name, (amount, _) in parts.items() if amount > 0)
    return card(
        f'<h3>{text(title)}</h3>',
        f'<div class="bar" role="img" aria-label="{text(said)}">{"".join(bar)}</div>',
        f'<div class="scroll" tabindex="0" role="region" aria-label="{text(title)}"><table><tbody>',
        '\n'.join(rows),
        '</tbody></table></div>',
    )


def svg(figure: matplotlib.figure.Figure, prefix: str, alt: str) -> str:
    """A figure as an <svg> element for the middle of a page.

    Its ink and grid take the page's colours, its text the page's font, and its ids begin with `prefix`, so that
    several fit on one page.
    """
    out = io.StringIO()
    # The salt makes the ids, and so the whole page, the same for the same data.
    with matplotlib.rc_context({**figures.STYLE, 'svg.hashsalt': prefix}):
        figure.savefig(out, format='svg', transparent=True, metadata=_METADATA, dpi=200)
    source = out.getvalue()
    source = source[source.index('<svg') :]
    source = re.sub(r'<metadata>.*?</metadata>', '', source, flags=re.DOTALL)
    source = re.sub(r'\bid="', f'id="{prefix}-', source)
    source = re.sub(r'url\(#', f'url(#{prefix}-', source)
    source = re.sub(r'href="#', f'href="#{prefix}-', source)
    source = re.sub(r"(font: [^'\"]*)'[^;\"]*", r'\1var(--sans)', source)
    source = source.replace(figures.INK, 'var(--ink)').replace(figures.GRID, 'var(--grid)')
    # The element's own size would win over the page's width.
    source = re.sub(r'(<svg[^>]*?) width="[^"]*"', r'\1', source, count=1)
    source = re.sub(r'(<svg[^>]*?) height="[^"]*"', r'\1', source, count=1)
    return source.replace('<svg', f'<svg role="img" aria-label="{text(alt)}"', 1).strip()


def drawing(drawn: Drawing, prefix: str = '') -> str:
    """A figure with its title and its words."""
    name = f'{prefix}{drawn.name}'
    shown = svg(drawn.figure, name, drawn.alt)
    heading, caption = f'<h3>{text(drawn.title)}</h3>', f'<figcaption>{text(drawn.alt)}</figcaption>'
    return f'<figure class="card" id="{text(name)}">\n{heading}\n{shown}\n{caption}\n</figure>'


def cards(*parts: str) -> str:
    """Cards in as many columns as there is room for; '' where there is none."""
    shown = [part for part in parts if part]
    kind = 'cards' if len(shown) > 1 else 'stack'
    return f'<div class="{kind}">\n' + '\n'.join(shown) + '\n</div>' if shown else ''


def picture(image: np.ndarray) -> str:
    """An image u8[H, W, 3] (or f[H, W, 3] in [0, 1]) as a data URI."""
    if image.dtype != np.uint8:
        image = np.clip(np.rint(255 * np.asarray(image, np.float64)), 0, 255).astype(np.uint8)
    if image.ndim == 3 and image.shape[-1] == 1:
        image = image[..., 0]
    out = io.BytesIO()
    Image.fromarray(image).save(out, format='PNG', optimize=True)
    return 'data:image/png;base64,' + base64.b64encode(out.getvalue()).decode('ascii')


def gallery(title: str, images: Sequence[np.ndarray], names: Sequence[str], values: Sequence[str]) -> str:
    """Small images with a name and a value each."""
    items = []
    for image, name, value in zip(images, names, values, strict=True):
        size = f'width="{image.shape[1]}" height="{image.shape[0]}"'
        picture_of = f'<img src="{picture(image)}" alt="{text(name)}, value {text(value)}" {size}/>'
        items.append(f'<li>{picture_of}<span>{text(name)}</span><span class="value">{text(value)}</span></li>')
    return f'<h3>{text(title)}</h3>\n<ul class="gallery">\n' + '\n'.join(items) + '\n</ul>'


def details(title: str, content: str, is_open: bool = False) -> str:
    """Content that can be folded away."""
    state = ' open="open"' if is_open else ''
    return f'<details class="card"{state}><summary>{text(title)}</summary>\n{content}\n</details>'
