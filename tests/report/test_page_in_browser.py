"""The report in a real browser: every control that a reader uses, and a quiet console."""

import pytest

from cpo_ray.report.write import write_report
from tests.report.chromium import BINARY, open_browser
from tests.report.fake_run import HOSTILE, make_fake_run

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(BINARY is None, reason="no Chromium here: apt-get install chromium"),
]

COUNT = "document.getElementById('count').textContent"
ROWS = "document.querySelectorAll('#list button').length"
BADGES = """[...document.querySelectorAll('#list li')].map(
    (row) => [...row.querySelectorAll('.badge')].map((badge) => badge.textContent))"""
NAMES = ["reference", "mle", "cpo", "merged-0.30", "merged-0.70"]
CHOOSE = """((id, value) => {{
    const node = document.getElementById(id);
    node.value = value;
    node.dispatchEvent(new Event('change'));
}})('{}', '{}')"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with open_browser(tmp_path_factory.mktemp("profile")) as page:
        yield page


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    root = tmp_path_factory.mktemp("report")
    make_fake_run(root)
    write_report([root], root / "report")
    return (root / "report" / "index.html").as_uri()


@pytest.fixture
def page(browser, url):
    browser.problems.clear()
    browser.requests.clear()
    browser.resize(1280, 900)
    browser.open(url)
    yield browser
    assert browser.problems == []
    assert {request for request in browser.requests if not request.startswith("data:")} == {url}


def choose(page, control, value):
    page.evaluate(CHOOSE.format(control, value))


def test_list_pages_through_all_prompts(page):
    assert page.evaluate(COUNT) == "1 to 20 of 500 prompts"
    assert page.evaluate(ROWS) == 20
    page.evaluate("document.getElementById('next-page').click()")
    assert page.evaluate(COUNT) == "21 to 40 of 500 prompts"


def test_hostile_sample_does_not_run(page):
    assert page.evaluate("document.querySelector('#list .excerpt').textContent") == HOSTILE.strip()
    page.evaluate("document.querySelector('#list button').click()")
    assert page.evaluate("document.querySelector('.gold pre').textContent") == HOSTILE
    assert page.evaluate("typeof window.hacked") == "undefined"


def test_search_narrows_and_clear_restores(page):
    page.evaluate("document.getElementById('search').focus()")
    page.type("JUNIPER task named sorting")
    page.wait_for(f"{COUNT}.includes('(500 in all)')")
    texts = page.evaluate("[...document.querySelectorAll('#list .excerpt')].map((node) => node.textContent)")
    assert texts
    assert all("sorting" in text for text in texts)
    page.type(" no such words anywhere")
    page.wait_for(f"{COUNT} === 'No prompt fits these filters.'")
    page.evaluate("document.querySelector('#filters [type=reset]').click()")
    page.wait_for(f"{COUNT} === '1 to 20 of 500 prompts'")


def test_a_sample_opened_while_a_search_is_typed_is_the_one_that_was_clicked(page):
    page.evaluate("document.getElementById('search').focus()")
    page.evaluate("""
        const search = document.getElementById("search");
        search.value = "no such words anywhere";
        search.dispatchEvent(new Event("input"));
        document.querySelectorAll("#list button")[5].click();
    """)
    page.evaluate("new Promise((resolve) => setTimeout(resolve, 300))")
    assert page.evaluate("document.getElementById('sample-title').textContent") == "Sample 6 of 500"
    page.press("ArrowRight", 39)
    page.wait_for("document.getElementById('sample-title').textContent === 'Sample 7 of 500'")
    page.press("Escape", 27)
    page.wait_for(f"{COUNT} === 'No prompt fits these filters.'")
    assert page.evaluate("document.activeElement.id") == "search"


def test_filters_by_category_verdict_and_disagreement(page):
    choose(page, "category", "counting")
    assert page.evaluate(COUNT) == "1 to 20 of 100 prompts (500 in all)"
    choose(page, "model", "2")
    choose(page, "verdict", "win")
    assert all(row[2] == "cpowin" for row in page.evaluate(BADGES))
    choose(page, "model", "")
    choose(page, "verdict", "")
    choose(page, "compare", "2>1")
    score = {"win": 2, "tie": 1, "loss": 0}
    for row in page.evaluate(BADGES):
        assert score[row[2].removeprefix("cpo")] > score[row[1].removeprefix("mle")]
    choose(page, "compare", "disagree")
    for row in page.evaluate(BADGES):
        outcomes = {badge[len(name) :] for badge, name in zip(row, NAMES, strict=True)}
        assert len(outcomes - {"invalid"}) > 1


def test_decoding_switches_the_answers(page):
    rows = "document.getElementById('list').textContent"
    greedy = page.evaluate(rows)
    choose(page, "decoding", "1")
    assert page.evaluate(rows) != greedy


def test_a_sample_is_opened_and_walked_by_keyboard(page):
    page.evaluate("document.querySelectorAll('#list button')[18].focus()")
    page.press("Enter", 13)
    page.wait_for("document.getElementById('sample').open")
    title = "document.getElementById('sample-title').textContent"
    assert page.evaluate(title) == "Sample 19 of 500"
    headings = page.evaluate("[...document.querySelectorAll('#sample h4')].map((node) => node.firstChild.textContent)")
    assert headings == ["Prompt", "Ground truth", *NAMES]
    page.press("ArrowRight", 39)
    page.press("ArrowRight", 39)
    page.wait_for(f"{title} === 'Sample 21 of 500'")
    page.press("ArrowLeft", 37)
    page.wait_for(f"{title} === 'Sample 20 of 500'")
    page.press("ArrowRight", 39)
    page.press("Escape", 27)
    page.wait_for("!document.getElementById('sample').open")
    page.wait_for(f"{COUNT} === '21 to 40 of 500 prompts'")
    assert page.evaluate("document.activeElement === document.querySelector('#list button')")


def test_theme_follows_the_system_and_the_toggle(page):
    background = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(background)
    page.resize(1280, 900, "dark")
    page.wait_for(f"{background} !== '{light}'")
    page.evaluate("document.getElementById('theme').click()")
    assert page.evaluate(background) == light
    page.evaluate("localStorage.clear()")


@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_overflows_the_page(page, width):
    page.resize(width, 900)
    page.wait_for(f"innerWidth === {width}")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_filtering_builds_no_more_rows_than_it_shows(page):
    page.evaluate(
        "window.built = 0; document.createElement = ((make) => (tag) => "
        "{ window.built += tag === 'button'; return make.call(document, tag); })(document.createElement)"
    )
    choose(page, "compare", "disagree")
    assert page.evaluate("window.built") == page.evaluate(ROWS) == 20


@pytest.fixture(scope="module")
def comparison(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    for name in ("left", "right"):
        make_fake_run(root / name, rows=30, steps=12, decodings=("greedy",), name=name)
    write_report([root / "left", root / "right"], root / "report")
    return (root / "report" / "index.html").as_uri()


def test_two_runs_stand_side_by_side(browser, comparison):
    browser.problems.clear()
    browser.resize(1280, 900)
    browser.open(comparison)
    assert browser.evaluate("document.querySelectorAll('#list li')[0].querySelectorAll('.badge').length") == 6
    assert browser.evaluate("document.querySelector('#list li .badges').lastChild.textContent") == "+4 more"
    choose(browser, "model", "9")
    choose(browser, "verdict", "win")
    for row in browser.evaluate(BADGES):
        assert "right: merged-0.70win" in row, "what is filtered by is shown"
    choose(browser, "model", "")
    choose(browser, "verdict", "")
    choose(browser, "compare", "7>6")
    assert (
        browser.evaluate("document.getElementById('compare').selectedOptions[0].text") == "right: cpo better than mle"
    )
    browser.evaluate("document.querySelector('#list button').click()")
    assert browser.evaluate("document.querySelectorAll('#sample .cards .card').length") == 11
    browser.evaluate("document.getElementById('close').click()")
    browser.evaluate("for (const node of document.querySelectorAll('details')) node.open = true")
    for width in (390, 1280):
        browser.resize(width, 900)
        browser.wait_for(f"innerWidth === {width}")
        assert browser.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert browser.problems == []
