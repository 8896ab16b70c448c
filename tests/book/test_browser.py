"""Every page in a real browser: Chromium, headless, found on PATH, with no way to any other machine.

A page is loaded once, and looked at on a wide screen, in the dark, and on a telephone.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote, urldefrag, urlparse

import nbformat
import pytest

sync_api = pytest.importorskip("playwright.sync_api", reason="no Chromium: no playwright")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on PATH"),
    pytest.mark.filterwarnings(
        "ignore::PendingDeprecationWarning", "ignore::DeprecationWarning"
    ),  # Sphinx's own
]

NARROW, WIDE = 390, 1280

# Text below its threshold of contrast: 4.5, or 3 where it is large. Colours are drawn, so that any notation is understood.
LOW_CONTRAST = """() => {
  const canvas = document.createElement('canvas'); canvas.width = canvas.height = 1;
  const pen = canvas.getContext('2d', {willReadFrequently: true});
  const mixed = new Map(), backs = new Map();
  const over = (below, colour) => {
    const key = `${below}|${colour}`;
    if (!mixed.has(key)) mixed.set(key, painted(below, colour));
    return mixed.get(key);
  };
  const painted = (below, colour) => {
    pen.clearRect(0, 0, 1, 1); pen.fillStyle = `rgb(${below.join(',')})`; pen.fillRect(0, 0, 1, 1);
    pen.fillStyle = colour; pen.fillRect(0, 0, 1, 1);
    return [...pen.getImageData(0, 0, 1, 1).data].slice(0, 3);
  };
  const light = c => { const [r, g, b] = c.map(v => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
                       return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const back = e => {
    if (!e) return [255, 255, 255];
    if (!backs.has(e)) backs.set(e, over(back(e.parentElement), getComputedStyle(e).backgroundColor));
    return backs.get(e);
  };
  const found = new Set();
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let t; (t = walk.nextNode());) {
    const e = t.parentElement, style = getComputedStyle(e);
    if (!t.data.trim() || !e.checkVisibility({visibilityProperty: true, opacityProperty: true}) || e.closest('svg, .headerlink, .skip-to-content')) continue;
    const below = back(e), a = light(below), b = light(over(below, style.color));
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    const size = parseFloat(style.fontSize), large = size >= 24 || (size >= 18.66 && style.fontWeight >= 700);
    if (ratio < (large ? 3 : 4.5)) found.add(`${e.tagName}.${e.className} «${t.data.trim().slice(0, 20)}» ${ratio.toFixed(2)}`);
  }
  return [...found];
}"""
OPEN = "document.querySelectorAll('details').forEach(d => d.open = true)"
EMPTY_FORMULAS = """() => [...document.querySelectorAll('math')].filter(m => {
  const box = m.getBoundingClientRect();
  return box.width < 1 || box.height < 1;
}).map(m => m.textContent)"""
NAMELESS = """() => [...document.querySelectorAll('a[href], button, summary, input:not([type=hidden]):not([type=checkbox]), img')]
  .filter(e => e.checkVisibility() && !(e.getAttribute('aria-label') || e.title || e.alt || e.textContent.trim() || e.placeholder))
  .map(e => e.outerHTML.slice(0, 80))"""


@pytest.fixture(scope="module")
def book(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from gradderiv.book.site.build import site

    out = tmp_path_factory.mktemp("site") / "book"
    site(out, progress=lambda *told: None)
    return out


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


class Seen(NamedTuple):
    """What one page shows."""

    file: Path
    title: str
    empty: list[str]
    nameless: list[str]
    pale: dict[str, list[str]]
    dark: bool
    widths: dict[int, int]
    ids: set[str]
    links: list[str]


class Visit(NamedTuple):
    """All pages, and what the browser said and asked for meanwhile."""

    seen: list[Seen]
    said: list[str]
    asked: list[str]


@pytest.fixture(scope="module")
def visit(book: Path, browser: Any) -> Visit:
    page = opened(browser)
    seen = [looked_at(page, file) for file in sorted(book.rglob("*.html"))]
    page.wait_for_timeout(500)  # for what a script asks for late
    return Visit(seen, page.said, page.asked)


def looked_at(page: Any, file: Path) -> Seen:
    page.goto(file.as_uri())
    nameless = page.evaluate(NAMELESS)
    page.evaluate(OPEN)
    empty = page.evaluate(EMPTY_FORMULAS)
    ids = set(page.evaluate("[...document.querySelectorAll('[id]')].map(e => e.id)"))
    links = page.evaluate("[...new Set([...document.querySelectorAll('a[href]')].map(a => a.href))]")
    pale, widths = {}, {}
    for scheme in ("dark", "light"):
        page.emulate_media(color_scheme=scheme)
        pale[scheme] = page.evaluate(LOW_CONTRAST)
        if scheme == "dark":
            dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
    for width in (WIDE, NARROW):
        page.set_viewport_size({"width": width, "height": 900})
        widths[width] = page.evaluate("document.documentElement.scrollWidth")
    page.set_viewport_size({"width": WIDE, "height": 900})
    shade = sum(map(int, dark[4:-1].split(",")))
    return Seen(file, page.title(), empty, nameless, pale, shade < 150, widths, ids, links)


def opened(browser: Any) -> Any:
    page = browser.new_page(viewport={"width": WIDE, "height": 900}, color_scheme="light")
    page.said, page.asked = [], []
    page.on("console", lambda m: page.said.append(m.text) if m.type in ("error", "warning") else None)
    page.on("pageerror", lambda e: page.said.append(str(e)))
    page.on("request", lambda r: page.asked.append(r.url))
    return page


def test_every_page_loads_by_itself(book: Path, visit: Visit) -> None:
    assert len(visit.seen) > 10
    assert [(s.file.name, s.empty, s.nameless) for s in visit.seen if s.empty or s.nameless] == []
    assert all(s.title for s in visit.seen)
    assert visit.said == []
    assert [url for url in visit.asked if not url.startswith((book.as_uri(), "data:", "blob:"))] == []


def test_these_checks_can_fail(browser: Any) -> None:
    page = opened(browser)
    page.set_content(
        "<p style='color:#999'>pale</p><math></math><button></button><img src='http://localhost:9/a.png'>"
        "<script>console.error('wrong')</script>"
    )
    assert page.evaluate(LOW_CONTRAST) == ["P. «pale» 2.85"]
    assert page.evaluate(EMPTY_FORMULAS) == [""]
    assert len(page.evaluate(NAMELESS)) == 2
    assert "wrong" in page.said
    assert "http://localhost:9/a.png" in page.asked


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out(visit: Visit, scheme: str) -> None:
    assert {s.file.name: s.pale[scheme] for s in visit.seen if s.pale[scheme]} == {}


def test_the_dark_page_is_dark(visit: Visit, browser: Any) -> None:
    assert all(s.dark for s in visit.seen)
    page = opened(browser)
    page.goto(visit.seen[0].file.as_uri())
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"


@pytest.mark.parametrize("width", [NARROW, WIDE])
def test_no_page_scrolls_sideways(visit: Visit, width: int) -> None:
    assert [s.file.name for s in visit.seen if s.widths[width] > width] == []


def test_links_lead_somewhere(book: Path, visit: Visit) -> None:
    ids = {s.file: s.ids for s in visit.seen}
    links = {(s.file, url) for s in visit.seen for url in s.links}
    broken = []
    for file, url in links:
        address, anchor = urldefrag(url)
        target = Path(unquote(urlparse(address).path))
        if address.startswith("file:") and not (
            target.is_file() and (not anchor or unquote(anchor) in ids[target])
        ):
            broken.append(f"{file.name}: {url}")
    assert broken == []
    assert len(links) > 100


def test_every_chapter_is_a_notebook_one_may_take(visit: Visit) -> None:
    for seen in visit.seen:
        if seen.file.name[:2].isdigit():
            taken = [Path(unquote(urlparse(url).path)) for url in seen.links if url.endswith(".ipynb")]
            assert [path.stem for path in taken] == [seen.file.stem]
            nbformat.validate(nbformat.read(taken[0], as_version=4))


def test_marks_open_by_keyboard(book: Path, browser: Any) -> None:
    page = opened(browser)
    page.goto((book / "03_linear.html").as_uri())
    marks = page.locator(".chain").first.locator("summary")
    labels = [marks.nth(i).get_attribute("aria-label") for i in range(marks.count())]
    assert labels
    assert all(": checked, probability of a mistake below 2^-" in str(label) for label in labels)
    page.locator("h1 a").first.focus()
    reached = []
    for _ in range(200):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.getAttribute('aria-label')"))
        if reached[-1] == labels[0]:
            break
    assert reached[-1] == labels[0]
    evidence = page.locator(".chain details p").first
    assert not evidence.is_visible()
    page.keyboard.press("Enter")
    assert evidence.is_visible()
    assert "random primes" in evidence.inner_text()


def test_search_finds_a_chapter(book: Path, browser: Any) -> None:
    page = opened(browser)
    page.goto((book / "search.html").as_uri() + "?q=softmax")
    page.wait_for_selector("#search-results li a")
    assert any("softmax" in t.lower() for t in page.locator("#search-results li a").all_inner_texts())
    assert page.said == []


def test_print_hides_what_paper_cannot_open(book: Path, browser: Any) -> None:
    page = opened(browser)
    page.goto((book / "03_linear.html").as_uri())
    assert page.locator(".check summary").first.is_visible()
    page.emulate_media(media="print")
    for hidden in (".check summary", ".sidebar-drawer", ".mobile-header"):
        assert not page.locator(hidden).first.is_visible()
    assert page.locator(".chain").first.is_visible()
