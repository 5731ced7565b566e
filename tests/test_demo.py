"""The caption demo: what a user sees after every kind of request, and what a notebook keeps."""

import base64
import datetime
import io
import re
from html import escape

import ipywidgets
import pytest
from PIL import Image

from utils import demo
from utils.demo import DISCLAIMER, DemoController, GalleryItem
from utils.demo_view import build_view, read_uploads

HOSTILE = "<img src=x onerror=alert(1)>"


def image_file(size=(40, 30), kind="PNG", **metadata):
    buffer = io.BytesIO()
    Image.new("RGB", size, (90, 120, 150)).save(buffer, kind, **metadata)
    return buffer.getvalue()


def item(image_id="scan_7", reference="CT of the chest.", modality="CT"):
    return GalleryItem(image_id, Image.new("RGB", (30, 20)), reference, modality)


def captioner(image):
    return {"base": f"a photo {image.width} wide", "tuned": "Chest CT with a nodule."}


def failing(image):
    raise RuntimeError("CUDA out of memory.\nTried to allocate 2 GiB")


def assert_nothing_but_one_sentence(result):
    assert (result.ok, result.image, result.captions) == (False, None, {})
    assert result.reference is None
    assert re.fullmatch(r"[^\n]+[:;,] [^\n]+\.", result.status)  # what is wrong, then what to do


# The controller


def test_a_gallery_image_gets_both_captions_and_its_reference():
    result = DemoController(captioner, [item()]).choose(0)
    assert result.ok
    assert result.captions == {"base": "a photo 30 wide", "tuned": "Chest CT with a nodule."}
    assert result.reference == "CT of the chest."
    assert result.status == "Captioned gallery image scan_7 (CT)."


def test_an_upload_is_captioned_without_keeping_its_name():
    result = DemoController(captioner, []).upload("Mary_Example_1961.png", image_file((40, 30)))
    assert result.ok
    assert result.image.size == (40, 30)
    assert result.captions["base"] == "a photo 40 wide"
    assert result.status == "Captioned the uploaded image (40 x 30 pixels)."


@pytest.mark.parametrize(
    ("data", "reason"),
    [(b"", "0 bytes"), (b"%PDF-1.4", "not an image"), (image_file((90, 90))[:60], "cut off|read")],
    ids=["empty", "no image", "truncated"],
)
def test_a_file_that_cannot_be_read_is_refused_by_name(data, reason):
    result = DemoController(captioner, []).upload("scan.png", data)
    assert_nothing_but_one_sentence(result)
    assert re.match(rf'"scan.png" was not captioned: .*({reason})', result.status)


def test_a_file_over_the_limit_is_refused_before_it_is_decoded(monkeypatch):
    monkeypatch.setattr(demo, "to_rgb", lambda data: pytest.fail("decoded"))
    result = DemoController(captioner, [], max_bytes=2**20).upload("a.png", bytes(2**20 * 3 // 2))
    assert_nothing_but_one_sentence(result)
    assert result.status.startswith('"a.png" has 1.5 MB and at most 1 MB are read')


def test_a_file_of_exactly_the_limit_is_read():
    data = image_file()
    assert DemoController(captioner, [], max_bytes=len(data)).upload("a.png", data).ok


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        (failing, "RuntimeError: CUDA out of memory)"),
        (lambda image: {"base": "a photo"}, "KeyError: 'tuned'"),
    ],
)
def test_a_model_that_fails_ends_as_a_sentence(broken, reason):
    result = DemoController(broken, [item()]).choose(0)
    assert_nothing_but_one_sentence(result)
    assert reason in result.status


@pytest.mark.parametrize("index", [-1, 1])
def test_an_image_that_the_gallery_lacks_is_refused(index):
    assert_nothing_but_one_sentence(DemoController(captioner, [item()]).choose(index))


def test_without_a_tuned_model_every_answer_names_notebook_03():
    controller = DemoController(None, [item()])
    for result in (controller.choose(0), controller.upload("a.png", image_file())):
        assert_nothing_but_one_sentence(result)
        assert "run notebook 03" in result.status
    assert "run notebook 03" in controller.greeting


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("scan.png", "scan.png"),
        ("a\x00b\u202egnp.exe", "abgnp.exe"),
        ("x" * 60, "x" * 60),
        ("x" * 61, "x" * 59 + "…"),
    ],
)
def test_names_are_shown_printable_and_short(name, shown):
    assert demo.shown_name(name) == shown


# The view


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


class Page:
    """The view as a user meets it."""

    def __init__(self, controller):
        self.clock = Clock()
        self.root = build_view(controller, clock=self.clock)

    def all(self, kind):
        found, waiting = [], [self.root]
        while waiting:
            widget = waiting.pop(0)
            found += [widget] if isinstance(widget, kind) else []
            waiting = [*getattr(widget, "children", ()), *waiting]
        return found

    @property
    def html(self):
        return "\n".join(widget.value for widget in self.all(ipywidgets.HTML))

    @property
    def buttons(self):
        return self.all((ipywidgets.Button, ipywidgets.FileUpload))

    def click(self, number=1, after=10.0):
        self.clock.now += after
        self.all(ipywidgets.Button)[number - 1].click()

    def upload(self, name, data):
        (uploader,) = self.all(ipywidgets.FileUpload)
        put_file(uploader, name, data)
        return uploader


def put_file(uploader, name, data):
    """Do what the browser does, in the form of the installed ipywidgets."""
    facts = {"name": name, "type": "image/png", "size": len(data)}
    if isinstance(uploader.value, tuple):  # ipywidgets 8
        facts["last_modified"] = datetime.datetime(2024, 1, 1, tzinfo=datetime.UTC)
        uploader.value = ({**facts, "content": memoryview(data)},)
    else:
        uploader.metadata, uploader.data = [facts], [data]
        uploader._counter += 1


def test_a_click_shows_both_captions_the_reference_and_the_disclaimer_again():
    page = Page(DemoController(captioner, [item()]))
    assert page.html.count(DISCLAIMER) == 1
    page.click()
    for text in ("a photo 30 wide", "Chest CT with a nodule.", "CT of the chest.", "scan_7 (CT)"):
        assert text in page.html
    assert page.html.count(DISCLAIMER) == 2


def test_an_upload_shows_its_captions_and_no_reference():
    page = Page(DemoController(captioner, [item()]))
    page.upload("scan.png", image_file((40, 30)))
    assert "a photo 40 wide" in page.html
    assert "Reference caption" not in page.html


def test_a_failure_leaves_nothing_of_the_result_before_it():
    page = Page(DemoController(captioner, [item()]))
    page.click()
    page.upload("scan.txt", b"no image")
    assert "was not captioned" in page.html
    assert "a photo 30 wide" not in page.html
    assert "Captioned image" not in page.html


def test_text_of_models_files_and_data_is_never_markup():
    page = Page(
        DemoController(lambda image: {"base": HOSTILE, "tuned": HOSTILE}, [item(HOSTILE, HOSTILE, HOSTILE)])
    )
    page.click()
    assert page.html.count(escape(HOSTILE)) == 7  # label, alt, status twice, three captions
    assert HOSTILE not in page.html
    page.upload(HOSTILE + ".png", b"no image")
    assert escape(HOSTILE) + ".png" in page.html
    assert HOSTILE not in page.html
    assert all(HOSTILE not in button.description for button in page.buttons)


def test_every_picture_has_a_text_for_those_who_cannot_see_it():
    page = Page(DemoController(captioner, [item(), item(modality=None)]))
    page.click()
    pictures = re.findall(r"<img [^>]*>", page.html)
    assert len(pictures) == 3
    assert all(re.search(r'alt="[^"]+"', picture) for picture in pictures)


def test_a_double_click_runs_once():
    asked = []
    controller = DemoController(lambda image: asked.append(image) or captioner(image), [item()])
    page = Page(controller)
    page.click()
    page.click(after=0.1)
    page.click(after=0.3)
    assert len(asked) == 1
    page.click(after=0.2)
    assert len(asked) == 2


def test_the_quiet_time_starts_when_the_work_ends():
    asked = []

    def slow(image):
        asked.append(image)
        page.clock.now += 60
        return captioner(image)

    page = Page(DemoController(slow, [item()]))
    page.click()
    page.click(after=0.1)
    assert len(asked) == 1


def test_an_upload_right_after_a_click_is_not_lost():
    page = Page(DemoController(captioner, [item()]))
    page.click()
    page.upload("scan.png", image_file((40, 30)))
    assert "a photo 40 wide" in page.html


def test_buttons_are_disabled_while_the_models_work():
    seen = []

    def watching(image):
        seen.extend(button.disabled for button in page.buttons)
        raise KeyboardInterrupt  # the notebook's stop button

    page = Page(DemoController(watching, [item(), item()]))
    with pytest.raises(KeyboardInterrupt):
        page.click()
    assert seen == [True, True, True]
    assert [button.disabled for button in page.buttons] == [False, False, False]


def test_nothing_can_be_pressed_without_a_tuned_model():
    page = Page(DemoController(None, [item()]))
    assert "run notebook 03" in page.html
    assert all(button.disabled for button in page.buttons)


def test_the_widgets_keep_neither_bytes_nor_name_of_an_upload():
    page = Page(DemoController(captioner, [item()]))
    data = image_file(kind="JPEG", comment="Mary Example")  # Pillow writes it into the next JPEG too
    assert b"Mary" in data
    used = page.upload("mary_example.png", data)
    (fresh,) = page.all(ipywidgets.FileUpload)
    assert fresh is not used
    assert read_uploads(used) == read_uploads(fresh) == []
    kept = repr([widget.get_state() for widget in [used, *page.all(ipywidgets.Widget)]])
    assert "mary" not in kept.lower()
    pictures = [base64.b64decode(text) for text in re.findall(r"base64,([^\"]+)", page.html)]
    assert len(pictures) == 2
    assert all(b"Mary" not in picture for picture in pictures)


def test_the_same_file_can_be_uploaded_twice():
    asked = []
    controller = DemoController(lambda image: asked.append(image) or captioner(image), [])
    page = Page(controller)
    for _ in range(2):
        page.upload("scan.png", image_file())
    assert len(asked) == 2


def test_the_upload_button_states_its_limit():
    (uploader,) = Page(DemoController(captioner, [], max_bytes=2**21)).all(ipywidgets.FileUpload)
    assert uploader.description == "Upload (max 2 MB, 1 MB on Colab)"


def test_an_empty_gallery_leaves_the_upload():
    page = Page(DemoController(captioner, []))
    assert "The gallery is empty" in page.html
    assert [button.disabled for button in page.buttons] == [False]
