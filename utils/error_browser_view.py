"""The error browser's widgets: layout, clicks and escaping; what is shown is ``error_browser``'s choice.

Uses only what ipywidgets 7.7 (Colab) and 8 share.
"""

import base64
import io
from collections.abc import Callable
from html import escape

import ipywidgets as widgets
import pandas as pd
from PIL import Image

from utils import error_browser
from utils.demo import DISCLAIMER
from utils.demo_view import STYLE
from utils.error_browser import PAGE, select
from utils.evaluation_plots import origin, score_line

THUMBNAIL = 224  # longest side in pixels, more than is shown, for dense screens
ROWS = """<style>
.radiglow-row { display: flex; flex-wrap: wrap; gap: 14px; padding: 12px 0; border-top: 1px solid #dbe2e8; }
.radiglow-row > img { flex: none; width: 150px; height: 150px; }
.radiglow-row > div { flex: 1 1 300px; min-width: 0; }
.radiglow-row h4 { margin: 0; }
.radiglow-row h4 span { font-weight: 400; }
.radiglow .widget-label { color: #1d2b36; }
.radiglow-row p { margin-bottom: 5px; white-space: pre-wrap; }
</style>"""


def build_browser(scored: pd.DataFrame, load: Callable[[list[str]], list[Image.Image]]) -> widgets.VBox:
    """Return the browser: filters, order, and a page of ten captions with their images and scores.

    Args:
        scored: one row an image, as notebook 04 makes it.
        load: image ids -> their images, in the same order; asked for one page at a time.
    """
    return _Browser(scored, load).page


class _Browser:
    def __init__(self, scored: pd.DataFrame, load: Callable[[list[str]], list[Image.Image]]):
        self._scored, self._load, self._first = scored, load, 0
        kinds, names = error_browser.modalities(scored), error_browser.errors(scored)
        # A dropdown shows a value of None as nothing chosen.
        self._modality = _choice("Modality", [("all", ""), *((kind, kind) for kind in kinds)])
        self._error = _choice("Error", [("any or none", ""), *((name, name) for name in names)])
        self._text = widgets.Text(description="Words", placeholder="in a caption or an id",
                                  continuous_update=False)  # fmt: skip
        self._sort = _choice("Sort by", list(error_browser.orders(scored).items()))
        self._order = _choice("First", [("the lowest", False), ("the highest", True)])
        self._filters = (self._modality, self._error, self._text, self._sort, self._order)
        self._back, self._on = widgets.Button(description="Previous"), widgets.Button(description="Next")
        self._status, self._list = widgets.HTML(), widgets.HTML()
        for control in self._filters:
            control.observe(lambda _: self._show(0), names="value")
        self._back.on_click(lambda _: self._show(self._first - PAGE))
        self._on.on_click(lambda _: self._show(self._first + PAGE))
        self.page = self._layout()
        self._show(0)

    def _layout(self) -> widgets.VBox:
        title = f'<h3>Captions and their errors</h3><p class="radiglow-disclaimer">{DISCLAIMER}</p>'
        wrapped = widgets.Layout(flex_flow="row wrap", overflow="visible")
        page = widgets.VBox(
            [widgets.HTML(STYLE + ROWS + title), widgets.HBox(self._filters, layout=wrapped), self._status,
             self._list, widgets.HBox([self._back, self._on])],
            layout=widgets.Layout(max_width="1000px", padding="18px", grid_gap="10px"),
        )  # fmt: skip
        page.add_class("radiglow")
        return page

    def _show(self, first: int) -> None:
        self._list.value = ""  # old rows must not stand beside a new filter
        found = select(self._scored, self._modality.value or None, self._error.value or None,
                       self._text.value, self._sort.value, self._order.value)  # fmt: skip
        rows = found.iloc[first : first + PAGE]
        self._first = first
        self._back.disabled, self._on.disabled = first == 0, first + PAGE >= len(found)
        if not len(rows):
            self._status.value = _status_html("No caption matches: choose other filters.")
            return
        try:
            images = self._load(rows["image_id"].tolist())
            pairs = zip(rows.iterrows(), images, strict=True)
            self._list.value = "".join(_row_html(row, image) for (_, row), image in pairs)
            text = f"Images {first + 1:,} to {first + len(rows):,} of {len(found):,}"
        except Exception as error:  # Colab shows no traceback of a handler
            text = f"The images could not be read ({type(error).__name__}: {error}). Run the notebook again."
        self._status.value = _status_html(text)


def _choice(name: str, options: list[tuple]) -> widgets.Dropdown:
    return widgets.Dropdown(description=name, options=options, value=options[0][1])


def _status_html(text: str) -> str:
    return f'<p class="radiglow-status" role="status">{escape(text)}</p>'


def _row_html(row: pd.Series, image: Image.Image) -> str:
    parts = _caption_html("Reference", row["reference"], origin(row))
    for system in ("base", "tuned"):
        parts += _caption_html(system.capitalize(), row[system], _notes(row, system))
    return f'<div class="radiglow-row">{_png_html(image, origin(row))}<div>{parts}</div></div>'


def _notes(row: pd.Series, system: str) -> str:
    concepts = {what: row.get(f"{system}_{what}_concepts") for what in ("missed", "invented")}
    named = [f"{what}: {names}" for what, names in concepts.items() if isinstance(names, str) and names]
    return " · ".join([score_line(row, system), *named])


def _caption_html(name: str, caption: str, note: str) -> str:
    words = escape(caption) if caption.strip() else "(empty caption)"
    return f'<h4>{name} <span class="radiglow-soft">{escape(note)}</span></h4><p>{words}</p>'


def _png_html(image: Image.Image, alt: str) -> str:
    small = image.copy()
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = io.BytesIO()
    small.save(buffer, format="PNG")
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    return f'<img alt="{escape(alt)}" src="data:image/png;base64,{data}">'
