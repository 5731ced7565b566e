"""The demo as a person meets it: served by Voila, clicked in Debian's Chromium."""

import shutil

import nbformat
import pytest

from tests.demo_page import opened, served
from utils.stages import REPO

pytestmark = pytest.mark.slow
CELL = """
import sys
sys.path.insert(0, {repo!r})
from PIL import Image
from utils import demo, demo_view

class Stub:
    runs = 0

    def __call__(self, image):
        Stub.runs += 1
        evil = "<img src=x onerror='window.pwned=1'>"
        return {{"base": f"a gray picture {{evil}}", "tuned": f"CT of the chest, run {{Stub.runs}}."}}

items = [demo.GalleryItem(f"test_{{i}}", Image.new("RGB", (64, 64), (60 * i,) * 3), "CT of the lung.", "CT")
         for i in range(3)]
demo_view.build_view(demo.DemoController(Stub(), items))
"""


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    pytest.importorskip("playwright.sync_api")
    if shutil.which("chromium") is None:
        pytest.skip("chromium is not installed (Debian: apt-get install chromium)")
    path = tmp_path_factory.mktemp("page") / "page.ipynb"
    cell = nbformat.v4.new_code_cell(CELL.format(repo=str(REPO)))
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), path)
    with served(path) as address, opened(address) as page:
        yield page


def test_the_notice_stands_there_before_anything_is_captioned(page):
    assert page.get_by_text("Not for clinical use").first.is_visible()


def test_a_click_on_the_gallery_shows_both_captions_and_the_reference(page):
    page.get_by_role("button", name="Caption 2").click()
    page.get_by_text("CT of the chest, run 1.").wait_for()
    assert page.get_by_text("a gray picture").is_visible()
    assert page.get_by_text("CT of the lung.").is_visible()


def test_a_caption_never_runs_as_a_script(page):
    assert page.get_by_text("onerror").is_visible(), "the caption is shown as the text that it is"
    assert page.evaluate("window.pwned") is None


def test_a_file_that_is_no_image_clears_the_old_result(page):
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Upload").click()
    chooser.value.set_files({"name": "notes.txt", "mimeType": "text/plain", "buffer": b"no image"})
    page.get_by_text("is not an image").wait_for()
    assert page.get_by_text("CT of the chest, run 1.").count() == 0


def test_the_page_fits_a_phone(page):
    page.set_viewport_size({"width": 400, "height": 900})
    page.wait_for_timeout(700)  # a click within half a second of the last answer counts as a double click
    page.get_by_role("button", name="Caption 3").click()
    page.get_by_text("CT of the chest, run 2.").wait_for()
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
