"""The caption demo without its widgets: an image in, two captions or one clear sentence out."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field

from PIL import Image

from utils.images import ImageError, to_rgb

DISCLAIMER = "Research and teaching only. Not for clinical use."
MEGABYTE = 2**20
NAME_LENGTH = 60
NO_CAPTIONER = (
    "No tuned model is loaded: run notebook 03 (03_train_lora) first, "
    "then run this notebook again from its top."
)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class GalleryItem:
    """An image with a known caption; `image` is 8-bit RGB of any size."""

    image_id: str
    image: Image.Image
    reference: str
    modality: str | None


@dataclass(frozen=True)
class DemoResult:
    """What one request shows.

    `captions` has the keys "base" and "tuned". When `ok` is False nothing of this or of an
    earlier request is left to show: `image` is None, `captions` is empty, and `status` is one
    sentence of plain text that says what was wrong and what to do next.
    """

    image: Image.Image | None = None
    captions: dict[str, str] = field(default_factory=dict)
    reference: str | None = None
    status: str = ""
    ok: bool = False


class DemoController:
    """Answers requests of the demo; its methods never raise for anything a user can do.

    `captioner(image)` takes an 8-bit RGB PIL image and returns {"base": ..., "tuned": ...}; None
    when no tuned model was found. `max_bytes` limits an uploaded file before it is decoded.
    """

    def __init__(
        self,
        captioner: Callable[[Image.Image], dict[str, str]] | None,
        gallery: list[GalleryItem],
        max_bytes: int = 8 * MEGABYTE,
    ):
        self.captioner = captioner
        self.gallery = list(gallery)
        self.max_bytes = max_bytes

    @property
    def ready(self) -> bool:
        """Whether there is a captioner to ask."""
        return self.captioner is not None

    @property
    def greeting(self) -> str:
        """The status before the first request."""
        if not self.ready:
            return NO_CAPTIONER
        if not self.gallery:
            return "The gallery is empty: upload an image, or run notebook 02 to fill it."
        return "Choose an image of the gallery, or upload one."

    def choose(self, index: int) -> DemoResult:
        """Caption the gallery image with this index, counted from 0."""
        if not 0 <= index < len(self.gallery):
            return DemoResult(
                status=f"The gallery has no image {index + 1}: choose one of the "
                f"{len(self.gallery)} that it shows."
            )
        item = self.gallery[index]
        kind = f" ({item.modality})" if item.modality else ""
        return self._caption(item.image, f"gallery image {item.image_id}{kind}", item.reference)

    def upload(self, name: str, data: bytes) -> DemoResult:
        """Decode and caption an uploaded file; its name is shown when it fails, never opened."""
        file = f'"{shown_name(name)}"'
        if not self.ready:
            return DemoResult(status=NO_CAPTIONER)
        # Before decoding, so that an oversized file costs no more memory than it has already.
        if len(data) > self.max_bytes:
            return DemoResult(
                status=f"{file} has {len(data) / MEGABYTE:.1f} MB and at most "
                f"{self.max_bytes / MEGABYTE:g} MB are read: make the image smaller first."
            )
        try:
            image = to_rgb(data)
        except ImageError as error:
            return DemoResult(status=f"{file} was not captioned: {_clause(error)}; try another image.")
        # The name may tell who the patient is, and saved widget state would keep it.
        return self._caption(image, f"the uploaded image ({image.width} x {image.height} pixels)")

    def _caption(self, image: Image.Image, what: str, reference: str | None = None) -> DemoResult:
        if not self.ready:
            return DemoResult(status=NO_CAPTIONER)
        try:
            captions = self.captioner(image)
            captions = {key: str(captions[key]) for key in ("base", "tuned")}
        except Exception as error:
            # Whatever a model can raise ends as a sentence; the traceback stays in the log.
            log.debug("captioning %s failed", what, exc_info=True)
            return DemoResult(
                status=f"The model failed on {what} ({type(error).__name__}: {_clause(error)}); "
                "try again, or restart the notebook if it repeats."
            )
        return DemoResult(image, captions, reference, f"Captioned {what}.", ok=True)


def shown_name(name: str) -> str:
    """Return a file name for display: printable characters only, at most 60 of them.

    Control characters go, and so do the ones that reverse the direction of the text. The result
    still holds any HTML of the name: escape it.
    """
    printable = "".join(letter for letter in name if letter.isprintable())
    if len(printable) <= NAME_LENGTH:
        return printable
    return printable[: NAME_LENGTH - 1] + "…"


def _clause(error: Exception) -> str:
    """Return an error's first line as the middle part of a sentence."""
    lines = str(error).strip().splitlines()
    first = lines[0].strip().rstrip(".")[:200] if lines else "no details"
    # "CUDA out of memory" keeps its capitals.
    return first[:1].lower() + first[1:] if first[1:2].islower() else first
