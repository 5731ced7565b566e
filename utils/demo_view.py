"""The caption demo's widgets: layout, clicks and escaping; every decision is the controller's.

Uses only what ipywidgets 7.7 (Colab) and 8 share. Handlers run in the main thread, because Colab
does not show what a background thread changes.
"""

import base64
import io
import time
from collections.abc import Callable
from functools import partial
from html import escape

import ipywidgets as widgets
from PIL import Image

from utils.demo import DISCLAIMER, MEGABYTE, DemoController, DemoResult, GalleryItem

THUMBNAIL = 224  # longest side in pixels, twice what is shown, for dense screens
PREVIEW = 640
GAP = 12
# The second click of a double click is queued while the first is worked on, and arrives right
# after it: disabling the button comes too late for it.
QUIET_SECONDS = 0.5

# One light surface with its own text colours, so that contrast holds in dark themes too.
STYLE = """<style>
.radiglow { background: #f5f7f9; border: 1px solid #dbe2e8; border-radius: 12px; }
.radiglow .widget-html, .radiglow .widget-html-content { height: auto; min-width: 0; margin: 0;
  line-height: 1.45; font-size: 14px; color: #1d2b36; overflow: visible; width: 100%; }
.radiglow h3 { margin: 0 0 2px; font-size: 20px; font-weight: 650; color: #12324a; }
.radiglow h4 { margin: 0 0 4px; font-size: 12px; font-weight: 650; color: #4a5b68; }
.radiglow p { margin: 0; overflow-wrap: anywhere; }
.radiglow-soft { color: #4a5b68; font-size: 13px; }
.radiglow .radiglow-disclaimer { display: inline-block; margin-top: 10px; padding: 3px 10px;
  border-radius: 6px; background: #fff1d6; color: #5e3c00; font-size: 13px; font-weight: 600; }
.radiglow img { display: block; background: #000; object-fit: contain; border-radius: 6px; }
.radiglow-thumbnail img { width: 100%; aspect-ratio: 1; }
.radiglow-thumbnail p { margin-bottom: 3px; font-size: 12px; color: #4a5b68; white-space: nowrap;
  overflow: hidden; text-overflow: ellipsis; }
.radiglow .jupyter-button.radiglow-button { width: 100%; height: 30px; margin: 4px 0 0;
  padding: 0 8px; line-height: 28px; background: #fff; color: #12527d; border: 1px solid #a9c0d0;
  border-radius: 6px; font-size: 13px; font-weight: 600; box-shadow: none; }
.radiglow .jupyter-button.radiglow-upload { width: auto; max-width: 100%; margin: 0;
  padding: 0 14px; background: #12527d; color: #fff; border-color: #12527d; }
.radiglow .jupyter-button.radiglow-button:hover:enabled { background: #e3eef5; color: #0c3d5e; }
.radiglow .jupyter-button.radiglow-button:focus-visible { outline: 3px solid #e0a100;
  outline-offset: 1px; }
.radiglow .jupyter-button.radiglow-button:disabled { opacity: 0.5; cursor: default; }
.radiglow-status { padding: 7px 12px; border-radius: 6px; background: #e6eef4;
  border-left: 4px solid #5b87a6; }
.radiglow-status.good { background: #e4f2ea; border-left-color: #2c7a4b; }
.radiglow-status.bad { background: #fbe9e7; border-left-color: #b3261e; color: #6d1610; }
.radiglow-result { display: flex; flex-wrap: wrap; align-items: flex-start; gap: 16px; }
.radiglow-result > img { flex: 1 1 240px; min-width: 0; max-width: 340px; max-height: 340px; }
.radiglow-texts { flex: 2 1 300px; min-width: 0; display: flex; flex-wrap: wrap; gap: 12px;
  align-content: flex-start; }
.radiglow-card { flex: 1 1 200px; min-width: 0; padding: 10px 14px; background: #fff;
  border: 1px solid #dbe2e8; border-radius: 8px; box-sizing: border-box; }
.radiglow-card.tuned { border-color: #12527d; }
.radiglow-card.wide { flex-basis: 100%; background: transparent; }
.radiglow-card p { font-size: 15px; white-space: pre-wrap; user-select: text; }
</style>"""


def build_view(
    controller: DemoController, columns: int = 9, clock: Callable[[], float] = time.monotonic
) -> widgets.VBox:
    """Return the demo's page: gallery, upload, status, and two captions side by side.

    `columns` is the most thumbnails in a row: a narrow page shows fewer, and a gallery of fewer
    images than that shows them larger. `clock` counts seconds.
    """
    return _View(controller, columns, clock).page


def read_uploads(uploader: widgets.FileUpload) -> list[tuple[str, bytes]]:
    """Return (name, bytes) of each file, of ipywidgets 7's dict or of 8's tuple of dicts."""
    value = uploader.value
    if isinstance(value, dict):
        return [(name, bytes(file["content"])) for name, file in value.items()]
    return [(file["name"], bytes(file["content"])) for file in value]


class _View:
    def __init__(self, controller: DemoController, columns: int, clock: Callable[[], float]):
        self._controller = controller
        self._clock = clock
        self._quiet_until = float("-inf")
        self._status = widgets.HTML(_status_html(controller.greeting, None if controller.ready else False))
        self._result = widgets.HTML(_waiting_html() if controller.ready else "")
        self._picks = [self._pick(i, item) for i, item in enumerate(controller.gallery)]
        self._slot = widgets.VBox([self._uploader()], layout=_plain(align_items="flex-start"))
        self.page = widgets.VBox(
            [
                widgets.HTML(_header_html()),
                self._gallery(columns),
                widgets.VBox([self._slot, widgets.HTML(_upload_hint_html())], layout=_plain()),
                self._status,
                self._result,
            ],
            layout=widgets.Layout(max_width="1000px", padding="18px", grid_gap="16px"),
        )
        self.page.add_class("radiglow")

    def _pick(self, index: int, item: GalleryItem) -> widgets.Button:
        # No text of the data in `description`: ipywidgets 7 does not sanitise it.
        button = widgets.Button(
            description=f"Caption {index + 1}",
            tooltip=f"Caption gallery image {index + 1}",
            disabled=not self._controller.ready,
        )
        button.add_class("radiglow-button")
        button.on_click(partial(self._on_click, index))
        return button

    def _gallery(self, columns: int) -> widgets.Widget:
        cells = [
            widgets.VBox([widgets.HTML(_thumbnail_html(i, item)), pick], layout=_plain())
            for i, (item, pick) in enumerate(zip(self._controller.gallery, self._picks, strict=True))
        ]
        # At least six shares, or a gallery of two images would fill the page.
        columns = max(1, min(columns, max(6, len(cells))))
        share = f"(100% - {(columns - 1) * GAP}px) / {columns}"
        layout = _plain()
        layout.grid_template_columns = f"repeat(auto-fill, minmax(max(92px, {share}), 1fr))"
        layout.grid_gap = f"{GAP}px"
        return widgets.GridBox(cells, layout=layout)

    def _uploader(self) -> widgets.FileUpload:
        limit = f"{self._controller.max_bytes / MEGABYTE:g}"
        uploader = widgets.FileUpload(
            description=f"Upload (max {limit} MB, 1 MB on Colab)",
            disabled=not self._controller.ready,
        )
        uploader.layout.width = "auto"  # the default cuts the label off
        uploader.add_class("radiglow-button")
        uploader.add_class("radiglow-upload")
        uploader.observe(self._on_upload, names="value")
        return uploader

    def _on_click(self, index: int, _button: widgets.Button) -> None:
        if self._clock() >= self._quiet_until:
            self._run(partial(self._controller.choose, index))

    def _on_upload(self, change: dict) -> None:
        files = read_uploads(change["owner"])
        if not files:
            return
        # A fresh button, because ipywidgets 7 cannot reset one: it would count on, and refuse to
        # report the same file twice.
        self._slot.children = (self._uploader(),)
        _forget(change["owner"])
        self._run(partial(self._controller.upload, *files[-1]))

    def _run(self, request: Callable[[], DemoResult]) -> None:
        self._disable(True)
        self._result.value = ""  # an old caption must not stand beside a new failure
        self._status.value = _status_html("Captioning with both models …")
        try:
            result = request()
            self._status.value = _status_html(result.status, result.ok)
            if result.ok:
                self._result.value = _result_html(result)
        finally:
            self._disable(not self._controller.ready)
            self._quiet_until = self._clock() + QUIET_SECONDS

    def _disable(self, disabled: bool) -> None:
        for button in (*self._picks, *self._slot.children):
            button.disabled = disabled


def _forget(uploader: widgets.FileUpload) -> None:
    """Take a file's bytes and name out of the widget's state, which a notebook may save."""
    uploader.unobserve_all("value")
    if isinstance(uploader.value, dict):
        uploader.metadata, uploader.data = [], []
        uploader.set_trait("value", {})
    else:
        uploader.value = ()
    uploader.close()


def _plain(**more: str) -> widgets.Layout:
    # Boxes scroll by default, and a scroll bar appears for a pixel too much.
    return widgets.Layout(width="100%", overflow="visible", **more)


def _image_html(image: Image.Image, side: int, alt: str) -> str:
    """Return an <img>, scaled down and encoded anew: no metadata of an upload gets into it."""
    small = image.convert("RGB")
    small.info = {}  # Pillow would write a JPEG's comment, which may be a name, into the new one
    small.thumbnail((side, side))
    buffer = io.BytesIO()
    small.save(buffer, format="JPEG", quality=88)
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    return f'<img alt="{escape(alt)}" src="data:image/jpeg;base64,{data}">'


def _header_html() -> str:
    return (
        f"{STYLE}<h3>Radiology captions, before and after tuning</h3>"
        '<p class="radiglow-soft">The same image captioned by BLIP-2 as published (base) and '
        f'with the LoRA adapter (tuned).</p><p class="radiglow-disclaimer">{DISCLAIMER}</p>'
    )


def _upload_hint_html() -> str:
    return (
        '<p class="radiglow-soft" style="margin-top:6px">Never upload patient data. If nothing '
        "happens after an upload, the file was too large for the connection: make it smaller.</p>"
    )


def _thumbnail_html(index: int, item: GalleryItem) -> str:
    modality = item.modality or "unknown modality"
    picture = _image_html(item.image, THUMBNAIL, f"Gallery image {index + 1}: {modality}")
    return f'<div class="radiglow-thumbnail"><p>{escape(modality)}</p>{picture}</div>'


def _status_html(text: str, ok: bool | None = None) -> str:
    mood = {True: " good", False: " bad", None: ""}[ok]
    return f'<p class="radiglow-status{mood}" role="status">{escape(text)}</p>'


def _waiting_html() -> str:
    return '<p class="radiglow-soft">The captions appear here.</p>'


def _card_html(title: str, text: str, extra: str = "") -> str:
    words = escape(text) if text.strip() else '<span class="radiglow-soft">(empty caption)</span>'
    return f'<div class="radiglow-card {extra}"><h4>{escape(title)}</h4><p>{words}</p></div>'


def _result_html(result: DemoResult) -> str:
    cards = _card_html("Base", result.captions["base"])
    cards += _card_html("Tuned", result.captions["tuned"], "tuned")
    if result.reference is not None:
        cards += _card_html("Reference caption", result.reference, "wide")
    return (
        f'<div class="radiglow-result">{_image_html(result.image, PREVIEW, "Captioned image")}'
        f'<div class="radiglow-texts">{cards}'
        f'<p class="radiglow-disclaimer" style="margin-top:0">{DISCLAIMER}</p></div></div>'
    )
