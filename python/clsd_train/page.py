"""One HTML page that needs no other file: texts, tables, plots, and images to slide over."""

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 84rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2.2rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; white-space: nowrap; }
th, td { padding: .25rem .7rem; text-align: right; border-bottom: 1px solid #8884; }
th:first-child, td:first-child { text-align: left; }
pre { overflow-x: auto; padding: .8rem; background: #8882; }
img { max-width: 100%; }
.plot { background: #fff; }
figure { margin: 1.2rem 0; max-width: 40rem; }
.layers { position: relative; line-height: 0; }
.layers img { width: 100%; image-rendering: pixelated; }
.layers img + img { position: absolute; inset: 0; clip-path: inset(0 100% 0 0); }
.slide { width: 100%; margin: .5rem 0 0; }
.marks { display: flex; justify-content: space-between; }
.marks button { font: inherit; border: 0; background: none; color: inherit; cursor: pointer; }
"""
# From left to right, each hundred uncovers one more layer.
SCRIPT = """
for (const figure of document.querySelectorAll("figure.slider")) {
  const slide = figure.querySelector(".slide");
  const layers = [...figure.querySelectorAll(".layers img")];
  const update = () => layers.forEach((layer, index) => {
    const shown = Math.min(Math.max(slide.value - 100 * (index - 1), 0), 100);
    if (index) layer.style.clipPath = `inset(0 ${100 - shown}% 0 0)`;
  });
  slide.addEventListener("input", update);
  figure.querySelectorAll(".marks button").forEach((mark, index) =>
    mark.addEventListener("click", () => { slide.value = 100 * index; update(); }));
  update();
}
"""


class Page:
    """A page that grows from top to bottom."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._parts = [f"<h1>{escape(title)}</h1>"]

    def heading(self, text: str) -> None:
        self._parts.append(f"<h2>{escape(text)}</h2>")

    def paragraph(self, text: str) -> None:
        self._parts.append(f"<p>{escape(text)}</p>")

    def code(self, text: str) -> None:
        self._parts.append(f"<pre>{escape(text)}</pre>")

    def table(self, rows: Sequence[Sequence[str]]) -> None:
        """The first row is the header."""
        header, *body = rows
        lines = [_row("th", header), *(_row("td", row) for row in body)]
        self._parts.append(f'<div class="wide"><table>{"".join(lines)}</table></div>')

    def plot(self, figure: Figure, title: str) -> None:
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
        source = _source("image/svg+xml", buffer.getvalue())
        self._parts.append(f'<p><img class="plot" alt="{escape(title)}" src="{source}"></p>')

    def slider(self, caption: str, layers: Mapping[str, np.ndarray]) -> None:
        """Images of one size, uint8 [H, W, 3], by their labels, over each other."""
        images = "".join(
            f'<img alt="{escape(label)}" src="{_source("image/png", _png(image))}">'
            for label, image in layers.items()
        )
        marks = "".join(f"<button>{escape(label)}</button>" for label in layers)
        end = 100 * (len(layers) - 1)
        label = escape(f"from {' to '.join(layers)}")
        self._parts.append(
            f'<figure class="slider"><div class="layers">{images}</div>'
            f'<input class="slide" type="range" min="0" max="{end}" value="{end // 2}" '
            f'aria-label="{label}"><div class="marks">{marks}</div>'
            f"<figcaption>{escape(caption)}</figcaption></figure>"
        )

    def text(self) -> str:
        """The whole page."""
        parts = "\n".join(self._parts)
        return (
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            '<meta name="viewport" content="width=device-width">\n'
            f"<title>{escape(self._title)}</title>\n<style>{STYLE}</style>\n</head>\n"
            f"<body>\n{parts}\n<script>{SCRIPT}</script>\n</body>\n</html>\n"
        )


def _row(tag: str, cells: Sequence[str]) -> str:
    return f"<tr>{''.join(f'<{tag}>{escape(cell)}</{tag}>' for cell in cells)}</tr>"


def _png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "png")
    return buffer.getvalue()


def _source(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
