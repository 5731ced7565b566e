"""The demo as a person meets it: served by Voila, clicked in Debian's Chromium."""

import shutil
import socket
import subprocess
import sys
import time
import urllib.request

import nbformat
import pytest

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
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
         "--disable-background-networking", "--disable-component-update"]  # fmt: skip


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(CELL.format(repo=str(REPO)))])
    nbformat.write(notebook, folder / "page.ipynb")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "voila", "page.ipynb", "--no-browser", f"--port={port}"]
    with subprocess.Popen(
        command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as server:
        address = f"http://127.0.0.1:{port}/"
        for _ in range(300):
            try:
                urllib.request.urlopen(address + "static/favicon.ico", timeout=1).close()
                break
            except (urllib.error.HTTPError, urllib.error.URLError) as error:
                if isinstance(error, urllib.error.HTTPError):
                    break  # it answers, if only that there is no such picture
                time.sleep(0.1)
        yield address
        server.terminate()


@pytest.fixture(scope="module")
def page(address):
    sync_api = pytest.importorskip("playwright.sync_api")
    browser_path = shutil.which("chromium")
    if browser_path is None:
        pytest.skip("chromium is not installed (Debian: apt-get install chromium)")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path, args=FLAGS)
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.goto(address, timeout=90_000)
        page.get_by_role("button", name="Caption 1").wait_for(timeout=90_000)
        yield page
        browser.close()


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
