"""report.html: results, cost and provenance of a run or of several, in one file that needs no network.

The page is rendered from the template `page.html`; `content` decides what it says.
"""

from __future__ import annotations

import base64
import io
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import matplotlib
import numpy as np
from PIL import Image

from kcd_jax.report import content, style
from kcd_jax.report.comparisons import split
from kcd_jax.report.records import SUMMARY, Files, collect, to_csv

NAME, DATA = 'report.html', 'report.csv'
_METADATA = {'Date': None, 'Creator': None, 'Format': None, 'Type': None}


def write(
    folder: str | os.PathLike[str],
    images: np.ndarray | None = None,
    labels: np.ndarray | None = None,
    class_names: Sequence[str] | None = None,
    reference: str = 'kd',
    problems: list[str] | None = None,
) -> Path:
    """Writes <folder>/report.html, and the raw numbers of its runs as <folder>/report.csv.

    Args:
      folder: a finished run (it holds summary.json), or a folder with such runs or with JSON files of results in it.
      images: u8[num_points, H, W, 3], the training images by point, for the gallery.
      labels: i32[num_points], their classes.
      class_names: [num_classes]; without it classes are called by their number.
      reference: the row that the others of an experiment are compared with.
      problems: receives one line for each damaged or missing file; the page names them too.

    Returns:
      The path of the page.

    Raises:
      ValueError: no run under `folder` has finished, or `images` or `labels` are not those of the run's points.
    """
    folder = Path(folder)
    problems, files = [] if problems is None else problems, Files()
    pictures = content.Pictures(images, labels, class_names)
    if (folder / SUMMARY).is_file():
        summaries = collect([folder / SUMMARY])
        kind, title, parts = 'run', *content.of_run(summaries[0], pictures, files)
    else:
        summaries = collect([folder], problems)
        if not summaries:
            reason = f' ({problems[0]})' if problems else ''
            raise ValueError(f'no finished run under {folder}{reason}; a run leaves summary.json when it has finished')
        kind, title, parts = content.of_comparisons(split(summaries, reference), pictures, folder, files)
    problems += files.problems
    _replace(folder / DATA, to_csv(content.run_records(summaries, folder)))
    _replace(folder / NAME, render(kind, title, parts, problems))
    return folder / NAME


def _replace(path: Path, text: str) -> None:
    # Renamed into place, so that a reader never sees half a file.
    part = path.with_name(f'.{path.name}.part')
    part.write_text(text, encoding='utf-8')
    part.replace(path)


def render(kind: str, title: str, parts: Sequence[Mapping[str, Any]], problems: Sequence[str]) -> str:
    """The page as text.

    Args:
      kind: of the page: 'run', 'experiment', ...
      title: its heading.
      parts: see `content`.
      problems: lines about files that could not be used.
    """
    here = Path(__file__).parent
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(here), autoescape=True, undefined=jinja2.ChainableUndefined
    )
    for place, part in enumerate(parts):
        for block in (
            block for section in part['sections'] for kind_of in ('columns', 'stack') for block in section[kind_of]
        ):
            if block['kind'] == 'drawing':
                drawn = block['drawing']
                name = f'e{place + 1}-{drawn.name}' if len(parts) > 1 else drawn.name
                block |= {'kind': 'figure', 'id': name, 'title': drawn.title, 'caption': drawn.alt}
                block['svg'] = svg(drawn.figure, name, drawn.alt)
            elif block['kind'] == 'gallery':
                for image in (image for half in block['halves'] for image in half['images']):
                    height, width = image['pixels'].shape[:2]
                    image |= {'source': picture(image['pixels']), 'height': height, 'width': width}
    css = (here / 'page.css').read_text(encoding='utf-8')
    template = environment.get_template('page.html')
    return template.render(kind=kind, title=title, parts=parts, problems=problems, style=css) + '\n'


def svg(figure: matplotlib.figure.Figure, prefix: str, alt: str) -> str:
    """A figure as an <svg> element inside a page.

    Its ink and grid take the page's colours, its text the page's font, and its ids begin with `prefix`, so that several
    fit on one page.
    """
    out = io.StringIO()
    # The salt makes the ids, and so the whole page, the same for the same data.
    with matplotlib.rc_context({**style.STYLE, 'svg.hashsalt': prefix}):
        figure.savefig(out, format='svg', transparent=True, metadata=_METADATA, dpi=200)
    source = out.getvalue()
    source = source[source.index('<svg') :]
    source = re.sub(r'<metadata>.*?</metadata>', '', source, flags=re.DOTALL)
    source = re.sub(r'\bid="', f'id="{prefix}-', source)
    source = re.sub(r'url\(#', f'url(#{prefix}-', source)
    source = re.sub(r'href="#', f'href="#{prefix}-', source)
    source = re.sub(r"(font: [^'\"]*)'[^;\"]*", r'\1var(--sans)', source)
    source = source.replace(style.INK, 'var(--ink)').replace(style.GRID, 'var(--grid)')
    # The element's own size would override the page's width.
    source = re.sub(r'(<svg[^>]*?) width="[^"]*"', r'\1', source, count=1)
    source = re.sub(r'(<svg[^>]*?) height="[^"]*"', r'\1', source, count=1)
    # The words are escaped by hand: the element enters the template as it is.
    words = str(jinja2.utils.markupsafe.escape(alt))
    return source.replace('<svg', f'<svg role="img" aria-label="{words}"', 1).strip()


def picture(image: np.ndarray) -> str:
    """An image u8[H, W, 3] (or f[H, W, 3] in [0, 1]) as a data URI."""
    if image.dtype != np.uint8:
        image = np.clip(np.rint(255 * np.asarray(image, np.float64)), 0, 255).astype(np.uint8)
    if image.ndim == 3 and image.shape[-1] == 1:
        image = image[..., 0]
    out = io.BytesIO()
    Image.fromarray(image).save(out, format='PNG', optimize=True)
    return 'data:image/png;base64,' + base64.b64encode(out.getvalue()).decode('ascii')
