"""The error browser: what a filter finds, and what a person sees of it."""

import re
import shutil
from html import escape

import ipywidgets
import matplotlib.pyplot as plt
import nbformat
import pandas as pd
import pytest
from PIL import Image

from tests.demo_page import FLAGS, served
from utils.demo import DISCLAIMER
from utils.error_browser import errors, modalities, orders, select, static
from utils.error_browser_view import build_browser
from utils.stages import REPO

NONE = float("nan")
HOSTILE = "<script>window.pwned = 1</script>"
FACTS = {f"{name}_{facet}_right": True for name in ("base", "tuned")
         for facet in ("modality", "region", "finding", "side")}  # fmt: skip


def scored(n=4, **columns):
    """Rows whose tuned captions score 0.0, 0.1, 0.2..., with ids a0, a1, a2..."""
    table = pd.DataFrame({"image_id": [f"a{i}" for i in range(n)], "reference": "Chest.", "base": "Grey.",
                          "tuned": "Lung (left).", "base_rouge_l": 0.5, "base_cider": 0.0, "tuned_cider": 1.0,
                          "tuned_rouge_l": [i / 10 for i in range(n)]}).assign(**FACTS)  # fmt: skip
    table["modality"] = pd.Series([None] * n, dtype=object)
    for name, values in columns.items():
        table[name] = pd.Series(values, dtype=object)
    return table


def ids(table):
    return "".join(table["image_id"])


def test_the_lowest_rouge_l_stands_first_and_an_image_without_a_score_last():
    table = scored(tuned_chrf=[0.2, NONE, 0.3, 0.2])
    assert ids(select(table)) == "a0a1a2a3"
    assert ids(select(table, descending=True)) == "a3a2a1a0"
    assert ids(select(table, sort="tuned_chrf")) == "a0a3a2a1"
    assert ids(select(table, sort="tuned_chrf", descending=True)) == "a2a0a3a1"


def test_images_that_tie_keep_their_order():
    table = scored(40, tuned_cider=[1.0, 0.0] * 20)
    order = "".join(f"a{i}" for i in [*range(1, 40, 2), *range(0, 40, 2)])
    assert ids(select(table, sort="tuned_cider")) == order


def test_all_filters_hold_at_once():
    table = scored(modality=["CT", "MR", None, "CT"], tuned_side_right=[True, False, False, False])
    assert ids(select(table, modality="CT")) == "a0a3"
    assert ids(select(table, modality="unknown")) == "a2"
    assert ids(select(table, error="wrong side")) == "a1a2a3"
    assert ids(select(table, "CT", "wrong side")) == "a3"
    assert ids(select(table, "MR", "wrong side", "a3")) == ""


def test_an_error_that_does_not_count_for_an_image_is_none_there():
    table = scored(tuned_negation_flip=[True, False, NONE, None], tuned_invented=[False, False, True, True])
    assert ids(select(table, error="negation flipped")) == "a0"
    assert ids(select(table, error="invented concept")) == "a2a3"


def test_words_are_searched_as_text_in_every_caption_and_the_id():
    table = scored(reference=["Öl", "b.", "bc", "c"], base=["x", "x", "X-RAY", "x"])
    assert ids(select(table, text="(LEFT)")) == "a0a1a2a3"
    assert ids(select(table, text=" b. ")) == "a1"
    assert ids(select(table, text="x-ray")) == "a2"
    assert ids(select(table, text="öl")) == "a0"
    assert ids(select(table, text="A3")) == "a3"


def test_only_what_the_table_holds_can_be_chosen():
    table = scored(modality=["MR", None, "CT", "MR"], tuned_invented=[True] * 4, tuned_concept_f1=[0.5] * 4)
    assert modalities(table) == ["CT", "MR", "unknown"]
    assert errors(table) == ["wrong modality", "wrong region", "wrong finding", "wrong side", "invented concept"]
    assert orders(table) == {
        "ROUGE-L (tuned)": "tuned_rouge_l", "CIDEr (tuned)": "tuned_cider", "concept F1 (tuned)": "tuned_concept_f1",
        "ROUGE-L (base)": "base_rouge_l", "CIDEr (base)": "base_cider",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"modality": "PET"}, "There is no modality 'PET' here: choose one of CT."),
        ({"error": "side flipped"}, "There is no error 'side flipped' here: choose one of wrong modality, "),
        ({"sort": "tuned"}, "There is no column to sort by 'tuned' here: choose one of tuned_rouge_l, "),
    ],
)
def test_a_choice_that_is_not_there_is_refused_and_those_that_are_are_named(choice, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        select(scored(1, modality=["CT"]), **choice)


class Images:
    """Loads one-coloured images and remembers which it was asked for."""

    def __init__(self):
        self.asked = []

    def __call__(self, image_ids):
        self.asked.append("".join(image_ids))
        return [Image.new("RGB", (500, 300), (90, 90, 90))] * len(image_ids)


def test_the_saved_notebook_shows_the_first_images_and_reads_no_others():
    load = Images()
    figure = static(scored(9), load, count=3)
    assert load.asked == ["a0a1a2"]
    assert figure._suptitle.get_text() == "Lowest ROUGE-L of the tuned captions: 3 of 9 images"
    assert "unknown modality · a2" in [text.get_text() for axes in figure.axes for text in axes.texts]
    plt.close(figure)


class Page:
    """The browser as a user meets it."""

    def __init__(self, table, load=None):
        self.load = load or Images()
        self.root = build_browser(table, self.load)
        self.widgets = [self.root]
        for widget in self.widgets:
            self.widgets += getattr(widget, "children", ())

    @property
    def html(self):
        return "\n".join(widget.value for widget in self.widgets if isinstance(widget, ipywidgets.HTML))

    def named(self, name):
        return next(widget for widget in self.widgets if getattr(widget, "description", None) == name)

    @property
    def buttons(self):
        return [name for name in ("Previous", "Next") if not self.named(name).disabled]


def test_a_page_shows_ten_images_and_reads_only_them():
    page = Page(scored(23))
    assert DISCLAIMER in page.html
    assert "Images 1 to 10 of 23" in page.html
    assert (page.load.asked, page.buttons) == (["a0a1a2a3a4a5a6a7a8a9"], ["Next"])
    page.named("Next").click()
    page.named("Next").click()
    assert "Images 21 to 23 of 23" in page.html
    assert (page.load.asked[2], page.buttons) == ("a20a21a22", ["Previous"])
    page.named("Previous").click()
    assert "Images 11 to 20 of 23" in page.html


def test_a_filter_shows_its_first_page():
    page = Page(scored(23, modality=["CT"] * 22 + ["MR"], tuned_side_right=[True, False] * 11 + [True]))
    page.named("Next").click()
    page.named("Modality").value = "CT"
    assert "Images 1 to 10 of 22" in page.html
    page.named("Error").value = "wrong side"
    page.named("Words").value = "a1"
    assert "Images 1 to 6 of 6" in page.html
    assert (page.load.asked[-1], page.buttons) == ("a1a11a13a15a17a19", [])
    page.named("First").value = True
    page.named("Sort by").value = "base_cider"
    assert page.load.asked[-2:] == ["a19a17a15a13a11a1", "a1a11a13a15a17a19"]
    page.named("Words").value = "nothing like it"
    assert "No caption matches" in page.html
    assert "<img" not in page.html


def test_the_scores_and_the_concepts_stand_beside_their_caption():
    page = Page(scored(1, tuned_missed_concepts=["Nodule, Lung"], tuned_invented_concepts=[""], base_missed_concepts=[None],
                       base_invented_concepts=["Effusion"], tuned=[" "]))  # fmt: skip
    assert "ROUGE-L .00 · CIDEr 1.0 · facts 4/4 · missed: Nodule, Lung<" in page.html
    assert "ROUGE-L .50 · CIDEr 0.0 · facts 4/4 · invented: Effusion<" in page.html
    assert "(empty caption)" in page.html


def test_text_of_models_and_data_is_never_markup():
    names = ("reference", "base", "tuned", "modality", "image_id", "tuned_missed_concepts")
    page = Page(scored(1, **{name: [HOSTILE + '"'] for name in names}))
    assert HOSTILE not in page.html
    assert page.html.count(escape(HOSTILE + '"')) == 8  # modality and id also in the picture's text
    assert len(re.findall(r'<img alt="[^"]+" src="data:image/png;base64,', page.html)) == 1


def test_images_that_cannot_be_read_end_as_a_sentence_without_old_rows():
    calls = []

    def load(image_ids):
        if calls:
            raise OSError("the folder is gone")
        calls.append(image_ids)
        return Images()(image_ids)

    page = Page(scored(12), load)
    page.named("Next").click()
    assert "The images could not be read (OSError: the folder is gone)" in page.html
    assert "<img" not in page.html


CELL = """
import sys
sys.path.insert(0, {repo!r})
from tests.test_error_browser import HOSTILE, Images, scored
from utils.error_browser_view import build_browser
table = scored(23, modality=["CT"] * 22 + ["MR"])
build_browser(table.assign(tuned=HOSTILE + "<b>bold</b>"), Images())
"""


@pytest.mark.slow
def test_a_person_filters_in_a_real_browser_and_no_caption_runs_as_a_script(tmp_path):
    sync = pytest.importorskip("playwright.sync_api")
    if shutil.which("chromium") is None:
        pytest.skip("chromium is not installed (Debian: apt-get install chromium)")
    cell = nbformat.v4.new_code_cell(CELL.format(repo=str(REPO)))
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), tmp_path / "page.ipynb")
    with served(tmp_path / "page.ipynb") as address, sync.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        page = browser.new_page()
        page.goto(address, timeout=120_000)
        page.get_by_text("Images 1 to 10 of 23").wait_for(timeout=120_000)
        assert page.get_by_text(DISCLAIMER).is_visible()
        page.get_by_label("Modality").select_option("MR")
        page.get_by_text("Images 1 to 1 of 1").wait_for()
        assert page.get_by_text(HOSTILE + "<b>bold</b>").is_visible()
        assert page.evaluate("window.pwned") is None
        page.set_viewport_size({"width": 400, "height": 900})
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        browser.close()
