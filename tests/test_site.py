"""The site in a real browser: headless Chromium, driven by Playwright, on pages served from this machine."""

import functools
import http.server
import importlib.util
import os
import shutil
import subprocess
import sys
import threading
from urllib.parse import urldefrag, urlsplit

import pandas as pd
import pytest

from kd.report.findings import of_studies
from kd.study.paths import ROOT

pytest.importorskip("sphinx", reason="Sphinx is not installed: `make site` installs it")
api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed: `make site` installs it")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed: apt-get install chromium")

SITE = ROOT / "build" / "site"
QUIET = ["--no-sandbox", "--disable-quic", "--disable-background-networking", "--disable-component-update"]
WIDTHS = (390, 1440)
METHODS = ("KD", "KR", "SRM", "RCO", "IE-KD", "PWKD")


class Silent(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def address():
    """Where the site, built from the committed reports, is served."""
    subprocess.run([sys.executable, "site/build.py"], check=True, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Silent, directory=SITE))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.fixture(scope="module")
def browser():
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield browser
        browser.close()


@pytest.fixture
def page(browser):
    page = browser.new_page(viewport={"width": 1440, "height": 900})
    yield page
    page.close()


def pages():
    paths = (path.relative_to(SITE).as_posix() for path in SITE.rglob("*.html"))
    return sorted(path for path in paths if not path.startswith("_static/"))


@pytest.fixture(scope="module")
def visits(address, browser):
    """What every page did in the browser: {page: errors, requests, links, ids, untypeset formulas, widths}."""
    found = {}
    page = browser.new_page(viewport={"width": 390, "height": 800})
    said, asked = [], []
    page.on("console", lambda message: said.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.on("response", lambda response: said.append(response.url) if response.status >= 400 else None)
    for name in pages():
        said.clear(), asked.clear()
        page.goto(f"{address}/{name}", wait_until="load")
        page.evaluate("() => window.MathJax?.startup?.promise")
        found[name] = page.evaluate(
            """() => ({
                links: [...document.querySelectorAll("a[href]")].map((link) => link.href),
                ids: [...document.querySelectorAll("[id]")].map((element) => element.id),
                images: [...document.images].filter((image) => !image.naturalWidth).map((image) => image.src),
                formulas: document.querySelectorAll(".math:not(.output_area)").length,
                raw: [...document.querySelectorAll(".math")].filter((f) => !f.querySelector("mjx-container"))
                    .map((formula) => formula.textContent),
                wrong: [...document.querySelectorAll("mjx-merror, [data-mml-node=merror]")].map((e) => e.textContent),
                dollars: (() => {
                    const text = (document.querySelector("article") ?? document.body).cloneNode(true);
                    text.querySelectorAll("pre, code, script, mjx-container").forEach((element) => element.remove());
                    return text.textContent.split("\\n").filter((line) => line.includes("$"));
                })(),
                overflow: document.documentElement.scrollWidth - window.innerWidth,
            })"""
        ) | {"errors": list(said), "requests": list(asked)}
    page.close()
    return found


def test_every_page_opens_without_an_error(visits):
    assert {name: visit["errors"] for name, visit in visits.items() if visit["errors"]} == {}


def test_nothing_is_asked_of_another_host(visits, address):
    asked = {url for visit in visits.values() for url in visit["requests"]}
    strangers = {url for url in asked if not url.startswith((address, "data:"))}
    assert strangers == set()


def test_every_study_has_its_pages(visits):
    for results in (ROOT / "reports").glob("*/results.csv"):
        profile = results.parent
        wanted = [f"notebooks/{path.stem}" for path in profile.glob("notebooks/*.ipynb")] + ["tables", "index"]
        assert {f"reports/{profile.name}/{name}.html" for name in wanted} <= set(visits)
    assert {"index.html", "reports/index.html", "reports/claims.html", "reports/benchmark.html"} <= set(visits)
    assert {"api/index.html", "api/kd.training.html", "api/kd.report.schematics.html"} <= set(visits)
    assert {f"docs/{path.stem}.html" for path in (ROOT / "docs").glob("*.md")} <= set(visits)


def test_every_link_and_image_leads_somewhere(visits, address):
    broken = {(name, image) for name, visit in visits.items() for image in visit["images"]}
    for name, visit in visits.items():
        for link in {link for link in visit["links"] if link.startswith(address)}:
            place, fragment = urldefrag(link)
            path = urlsplit(place).path.lstrip("/") or "index.html"
            if not (SITE / path).is_file() or (fragment and path in visits and fragment not in visits[path]["ids"]):
                broken.add((name, link))
    assert broken == set()


def test_formulas_are_typeset(visits):
    assert sum(visit["formulas"] for visit in visits.values()) > 50
    assert {name: visit["raw"] for name, visit in visits.items() if visit["raw"]} == {}
    assert {name: visit["dollars"] for name, visit in visits.items() if visit["dollars"]} == {}
    assert {name: visit["wrong"] for name, visit in visits.items() if visit["wrong"]} == {}


def test_no_page_scrolls_sideways_on_a_telephone(visits):
    assert {name: visit["overflow"] for name, visit in visits.items() if visit["overflow"] > 0} == {}


@pytest.mark.parametrize("width", WIDTHS)
def test_the_front_page_fits(page, address, width):
    page.set_viewport_size({"width": width, "height": 900})
    page.goto(f"{address}/index.html")
    page.evaluate("() => MathJax.startup.promise")
    assert page.evaluate("() => document.documentElement.scrollWidth") <= width
    plot = page.locator("p:has(> img[src*=answer])").bounding_box()  # on a telephone it scrolls in its box
    assert 300 < plot["width"] <= width and plot["x"] >= 0
    assert page.locator("img[src*=answer]").bounding_box()["width"] > 600


def test_every_method_has_its_card(page, address):
    page.goto(f"{address}/index.html")
    page.evaluate("() => MathJax.startup.promise")
    cards = page.locator("#the-methods .sd-card").all()
    assert [card.locator(".sd-card-title").inner_text().split(" (")[0] for card in cards] == [*METHODS, "All of them"]
    for number, card in enumerate(cards, 1):
        assert card.locator("mjx-container").count() and card.locator("img").evaluate("image => image.naturalWidth") > 0
        picture, said = card.locator("img").bounding_box(), card.locator("p", has_text="Verdicts").bounding_box()
        assert picture["width"] > 400 and picture["x"] + picture["width"] <= said["x"]  # beside each other, nothing cut off
        links = card.locator(".sd-card-footer a").evaluate_all("links => links.map((link) => link.href)")
        assert links and all(f"/notebooks/{number:02d}" in link for link in links)


def test_the_answer_is_that_of_the_claims(page, address):
    page.goto(f"{address}/index.html")
    claims = pd.read_csv(ROOT / "reports" / "claims.csv")
    number = claims["verdict"].value_counts()
    said = page.locator("#the-claims").inner_text()
    assert f"{len(claims)} tests in all" in said
    for verdict in ("supported", "contradicted", "cannot tell"):
        assert f"{number.get(verdict, 0)} {verdict}" in said
    marks = page.locator("#the-claims table").inner_text()
    assert marks.count("✓") == number.get("supported", 0) and marks.count("✗") == number.get("contradicted", 0)
    assert marks.count("?") == number.get("cannot tell", 0)
    answer = [plain(sentence) for sentence in page.locator("#the-answer li").all_inner_texts()]
    assert answer == [plain(sentence) for sentence in of_studies("readme")] and len(answer) == 5


def plain(text):
    """A sentence without marks of Markdown, with the plainest of quotes and spaces."""
    return text.replace("*", "").replace("\u2019", "'").replace("\u00a0", " ")


def test_a_file_is_linked_where_it_can_be_read(visits, address):
    """Without GITHUB_REPOSITORY: a module's API page; test_every_link_and_image_leads_somewhere follows it."""
    links = {name: [link for link in visit["links"] if link.startswith(address)] for name, visit in visits.items()}
    files = {(name, link) for name in links for link in links[name] if link.endswith((".py", ".ipynb", ".md", ".yaml"))}
    assert files == set()
    assert f"{address}/api/kd.methods.kd.html" in links["docs/library.html"]


@pytest.mark.parametrize("repository", [None, "owner/name"])
def test_links_of_a_notebook(repository, monkeypatch):
    specification = importlib.util.spec_from_file_location("site_build", ROOT / "site" / "build.py")
    specification.loader.exec_module(build := importlib.util.module_from_spec(specification))
    monkeypatch.setattr(build, "REPOSITORY", repository)

    def settled(target):
        return build.settled(f"[x]({target})", ROOT / "reports" / "digits" / "notebooks")

    github = "https://github.com/owner/name/tree/main"
    for page in ("01_kd.ipynb", "../tables.md", "../../claims.md#rco", "../../../docs/gpu.md", "https://example.org/a.py"):
        assert settled(page) == f"[x]({page})"
    assert settled("../../../README.md") == "[x](../../../index.md)" and settled("../../digits") == "[x](../index.md)"
    assert settled("99_none.ipynb") == "x" and settled("../../../kd/none.py") == "x"
    module, file = "[x](../../../api/kd.methods.rco.md)", "../../../kd/methods/rco.py"
    assert settled(file) == (f"[x]({github}/kd/methods/rco.py)" if repository else module)
    assert settled("../../../tables") == (f"[x]({github}/tables)" if repository else "x")


def test_search_finds_sub_teachers(page, address):
    page.goto(f"{address}/search.html?q=sub-teachers")
    page.wait_for_selector("#search-results ul.search li a")
    found = page.eval_on_selector_all("#search-results a", "links => links.map((link) => link.href)")
    assert any("06_pwkd" in link for link in found)


def test_tables_sort(page, address):
    page.goto(f"{address}/index.html")
    table = page.locator("#the-claims table")
    heading = table.locator("thead th").nth(2)

    def numbers():
        cells = table.locator("tbody tr td:nth-child(3)").all_inner_texts()
        return [float(cell.split()[0]) for cell in cells if cell != "not run"]

    unsorted = numbers()
    heading.click()
    assert heading.get_attribute("aria-sort") == "descending"
    assert numbers() == sorted(unsorted, reverse=True) != unsorted
    heading.press("Enter")
    assert numbers() == sorted(unsorted)
    table.locator("thead th").first.click()
    names = table.locator("tbody tr td:first-child").all_inner_texts()
    assert names == sorted(names, key=str.lower)


def test_dark_and_light(page, address):
    colours = []
    for mode in ("light", "dark"):
        page.emulate_media(color_scheme=mode)
        page.goto(f"{address}/index.html")
        page.wait_for_selector(f"html[data-theme={mode}]", state="attached")
        colours.append(page.evaluate("() => getComputedStyle(document.body).backgroundColor"))
    assert colours[0] != colours[1]


def test_next_leads_through_all_reports(page, address):
    page.goto(f"{address}/index.html")
    seen = [page.url]
    while page.locator("a.right-next").count():
        page.goto(page.locator("a.right-next").evaluate("link => link.href"))
        seen.append(page.url)
    notebooks = [path.relative_to(ROOT).with_suffix(".html").as_posix() for path in (ROOT / "reports").glob("*/notebooks/*.ipynb")]
    assert len(seen) == len(set(seen)) and sum("/notebooks/" in url for url in seen) == len(notebooks)
    digits = [url.removeprefix(f"{address}/") for url in seen if "/digits/notebooks/" in url]
    assert digits == sorted(name for name in notebooks if "/digits/" in name)  # 00, 00a, 01, 02, 02a, ..
    page.goto(f"{address}/index.html")
    page.locator("nav a", has_text="How to read a table").first.click()
    assert page.url.endswith("_tables.html")
