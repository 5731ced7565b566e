"""Serve a notebook by Voila and open it in Debian's Chromium.

``python -m tests.demo_page`` takes README's picture of the demo, from the finished stages in ``work/``.
"""

import contextlib
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from utils.stages import REPO

PICTURE = REPO / ".github" / "demo.png"
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
         "--disable-background-networking", "--disable-component-update"]  # fmt: skip


@contextlib.contextmanager
def served(notebook: Path) -> Iterator[str]:
    """Serve a notebook as a page without code, and yield its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "voila", notebook.name, "--no-browser", f"--port={port}"]
    with subprocess.Popen(
        command, cwd=notebook.parent, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as server:
        address = f"http://127.0.0.1:{port}/"
        wait_for(address + "static/favicon.ico")
        yield address
        server.terminate()


def wait_for(address: str) -> None:
    """Wait until something answers at ``address``, if only that there is no such file."""
    for _ in range(300):
        try:
            urllib.request.urlopen(address, timeout=1).close()
            return
        except urllib.error.HTTPError:
            return
        except urllib.error.URLError:
            time.sleep(0.1)
    raise TimeoutError(f"nothing answers at {address}")


@contextlib.contextmanager
def opened(address: str, width: int = 1280):
    """Open an address in Chromium and yield Playwright's page once the gallery is there."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        page = browser.new_page(viewport={"width": width, "height": 900})
        page.goto(address, timeout=120_000)
        page.get_by_role("button", name="Caption 1").wait_for(timeout=120_000)
        yield page
        browser.close()


def main() -> None:
    """Caption an image of the gallery in notebook 05 and take the picture."""
    with served(REPO / "notebooks" / "05_caption_demo.ipynb") as address, opened(address, 1060) as page:
        page.get_by_role("button", name="Caption 2").click()
        page.get_by_text("Captioned gallery image").wait_for(timeout=60_000)
        page.locator(".radiglow").first.screenshot(path=PICTURE)


if __name__ == "__main__":
    main()
