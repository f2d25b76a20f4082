"""The page in a real headless Chromium: what it shows, does, fetches and allows."""

import itertools
import json
import shutil
import socket
from pathlib import Path

import pytest

from edge.report.markdown import markdown_section
from edge.report.page import render_page
from tests.report.hostile_profiles import with_hostile_strings
from tests.support.profiles import failed_row, mac_profile

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
WIDTHS = (375, 1280)
A4_PX = 703  # between margins of 12 mm


@pytest.fixture(scope="module")
def chromium():
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("there is no chromium on the PATH")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def profiles():
    """Every column, rates that sort differently as words, a failed row; then a hostile one."""
    made = mac_profile(depths=(0,), quality=True)
    made["rows"][4]["workload"]["depth"] = 4096
    made["rows"][0] = failed_row(made["rows"][0], "it ran out of memory")
    for row, rate in zip(made["rows"][1:], (9.5, 1234.0, 88.0, 100.25), strict=True):
        row["decode_tok_s"].update(median=rate, sd=0.5)
    small = mac_profile(depths=(0,))
    small["rows"] = small["rows"][:2]
    return [made, with_hostile_strings(small, keys=True)]


@pytest.fixture(scope="module")
def file(profiles, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(render_page(profiles), encoding="utf-8")
    return path


@pytest.fixture
def opened(chromium, file):
    """Opens the page; afterwards nothing was fetched, said on the console, or attacked."""
    contexts, requests, complaints = [], [], []

    def open_page(width=1280, media="screen", **context):
        context = chromium.new_context(viewport={"width": width, "height": 800}, **context)
        contexts.append(context)
        page = context.new_page()
        page.on("request", lambda request: requests.append(request.url))
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("dialog", lambda dialog: complaints.append(dialog.message))
        page.emulate_media(media=media)
        page.goto(file.as_uri())
        return page

    open_page.complaints, open_page.requests = complaints, requests
    open_page.refusals_expected = False
    yield open_page
    for context in contexts:
        assert context.pages[0].evaluate("window.attacked") is None
        context.close()
    if not open_page.refusals_expected:
        assert {url for url in requests if not url.startswith("blob:")} == {file.as_uri()}
        assert complaints == []


def column(page, name):
    """A column of the first table, top to bottom."""
    return page.evaluate(
        """name => {
            const table = document.querySelector('table');
            const heads = Array.from(table.tHead.rows[0].cells).map(c => c.textContent);
            const i = heads.indexOf(name);
            return Array.from(table.tBodies[0].rows).map(r => r.cells[i].textContent);
        }""",
        name,
    )


def test_it_opens(opened):
    page = opened()
    assert page.title() == "Device reports"
    assert page.locator("article").count() == 2
    assert page.locator("article").first.locator("figure svg").count() >= 4
    assert page.locator("html").get_attribute("lang") == "en"


def test_figures_sort_as_numbers_and_what_is_missing_stays_last(opened):
    page = opened()
    rate = page.get_by_role("button", name="Throughput (Tok/s)").first
    rate.click()
    assert column(page, "Throughput (Tok/s)") == [
        "1234 ± 0",
        "100.2 ± 0.5",
        "88.0 ± 0.5",
        "9.50 ± 0.50",
        "—",
    ]
    head = page.locator("th", has=page.get_by_role("button", name="Throughput (Tok/s)")).first
    assert head.get_attribute("aria-sort") == "descending"
    rate.press("Enter")  # from the keyboard
    assert head.get_attribute("aria-sort") == "ascending"
    assert column(page, "Throughput (Tok/s)")[0] == "9.50 ± 0.50"
    assert column(page, "Throughput (Tok/s)")[-1] == "—"


def test_words_sort_as_words_and_rows_stay_whole(opened):
    page = opened()
    page.get_by_role("button", name="Precision").first.click()
    assert column(page, "Precision") == ["FP16", "FP16", "INT4", "Q5_K_M", "Q6_K"]
    # Rows that are equal keep their order, and every row its verdict.
    assert column(page, "Framework") == ["MLX", "GGUF", "MLX", "GGUF", "GGUF"]
    assert column(page, "Verdict") == ["INVALID", "VALID", "VALID", "VALID", "VALID"]
    page.get_by_role("button", name="Framework").first.click()
    assert page.locator("th[aria-sort]").count() == 1


def test_the_button_copies_the_markdown(opened, profiles):
    page = opened(permissions=["clipboard-read", "clipboard-write"])
    for number, profile in enumerate(profiles):
        page.get_by_role("button", name="Copy as Markdown").nth(number).click()
        page.locator("output", has_text="Copied.").nth(number).wait_for()
        copied = page.evaluate("navigator.clipboard.readText()")
        assert copied == markdown_section(profile)


def test_without_a_clipboard_the_markdown_is_selected(opened, profiles):
    page = opened()
    page.evaluate("Object.defineProperty(navigator, 'clipboard', { value: undefined })")
    page.get_by_role("button", name="Copy as Markdown").first.click()
    page.locator("output", has_text="opied").first.wait_for()
    selected = page.evaluate("window.getSelection().toString()")
    assert selected.strip() == markdown_section(profiles[0]).strip()


def test_the_profile_can_be_saved(opened, profiles, tmp_path):
    page = opened()
    for number, profile in enumerate(profiles):
        with page.expect_download() as download:
            page.get_by_role("button", name="Save the profile (JSON)").nth(number).click()
        download.value.save_as(tmp_path / "saved.json")
        assert json.loads((tmp_path / "saved.json").read_text(encoding="utf-8")) == profile


@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_is_wider_than_the_window(opened, width):
    page = opened(width)
    page.locator("details").evaluate_all("all => all.forEach(d => { d.open = true; })")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    # What is wider scrolls in a box of its own, and the keyboard reaches the box.
    wider = page.evaluate(
        """width => Array.from(document.querySelectorAll('body *'))
            .filter(e => e.getBoundingClientRect().right > width + 0.5)
            .filter(e => !e.closest('.scroll[tabindex="0"], pre[tabindex="0"], .skip'))
            .map(e => e.outerHTML.slice(0, 80))""",
        width,
    )
    assert wider == []


def test_the_fullest_table_fits_a_desktop_and_a_sheet_of_paper(opened):
    for width, media in ((1280, "screen"), (A4_PX, "print")):
        page = opened(width, media)
        table = page.locator("table").first
        assert table.locator("th").count() == 17
        box, ends = table.bounding_box(), page.locator("th.stays").first.bounding_box()
        assert box["x"] + box["width"] <= width
        before = page.locator("th", has_text="Top-1").first.bounding_box()
        assert before["x"] + before["width"] <= ends["x"] + 0.5  # nothing lies beneath the verdict


def test_a_plots_words_stand_once(opened):
    """Under it, where they can be selected, and not in the picture as well."""
    page = opened()
    for figure in page.locator("article").first.locator("figure").all():
        caption = figure.locator("figcaption").inner_text()
        assert "n = " in caption and "Apple M2 Max, macOS 15.5" in caption
        assert figure.locator("h4").inner_text() not in figure.locator("svg").text_content()
        assert "macOS 15.5" not in figure.locator("svg").text_content()


def test_the_policy_holds(opened):
    """Even if markup came through, no script of it would run and nothing would be fetched.

    The frame has another address: Chromium opens a connection for one before it asks the
    policy, and then sends nothing. Some versions report a refused request as a request, some
    late, so the judge is the server that nobody may call.
    """
    opened.refusals_expected = True
    server = socket.create_server(("127.0.0.1", 0))
    server.setblocking(False)
    address = f"http://127.0.0.1:{server.getsockname()[1]}/"
    page = opened()
    refused = page.evaluate(
        """async address => {
            const script = document.createElement('script');
            script.textContent = 'window.ran = 1';
            document.body.append(script);
            const box = document.createElement('div');
            box.innerHTML = '<img src="' + address + 'x.png" onerror="window.ran = 2">'
                + '<iframe src="http://127.0.0.1:9/"></iframe>'
                + '<p style="background: url(' + address + 'y.png)">x</p>';
            document.body.append(box);
            const painted = () => new Promise(done => requestAnimationFrame(done));
            await painted();  // the background is wanted when the page is drawn
            await painted();
            const signal = AbortSignal.timeout(5000);
            return fetch(address, { signal }).then(() => 'fetched', error => error.name);
        }""",
        address,
    )
    assert refused == "TypeError"
    assert page.evaluate("window.ran") is None
    with server, pytest.raises(BlockingIOError):  # nobody called
        server.accept()
    assert len(opened.complaints) >= 4
    assert all("Content Security Policy" in text for text in opened.complaints)


def luminance(colour):
    """WCAG 2's relative luminance of `rgb(r, g, b)`."""
    channels = [int(c) / 255 for c in colour.removeprefix("rgb(").rstrip(")").split(",")]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(a, b):
    dark, light = sorted((luminance(a), luminance(b)))
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_in_both_schemes(opened, scheme):
    page = opened(color_scheme=scheme)
    style = "(e, name) => getComputedStyle(e)[name]"
    ground = page.locator("body").evaluate(style, "backgroundColor")
    card = page.locator(".card").first.evaluate(style, "backgroundColor")
    assert (luminance(ground) < 0.1) == (scheme == "dark")
    for selector in ("h1", "caption", "nav a", ".VALID", ".INVALID", "figcaption", "footer"):
        colour = page.locator(selector).first.evaluate(style, "color")
        assert contrast(colour, ground) >= 4.5, selector
        assert contrast(colour, card) >= 4.5, selector
    # Plots are dark on white, so their card is white.
    assert page.locator(".plot").first.evaluate(style, "backgroundColor") == "rgb(255, 255, 255)"


def test_it_prints_dark_on_white_without_what_only_a_screen_can_do(opened):
    page = opened(width=A4_PX, media="print", color_scheme="dark")
    style = "(e, name) => getComputedStyle(e)[name]"
    assert page.locator("body").evaluate(style, "backgroundColor") == "rgb(255, 255, 255)"
    assert page.locator("h1").evaluate(style, "color") == "rgb(0, 0, 0)"
    for selector in (".copy", "summary", "nav", ".skip"):
        assert not page.locator(selector).first.is_visible()
    assert page.locator("table").first.is_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= A4_PX


def test_the_keyboard_skips_to_the_table_first(opened):
    page = opened()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the table"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "table-1"
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Framework"


def test_what_is_there_has_a_name(opened):
    """Buttons, regions and plots; one h1; no level of headings left out."""
    page = opened()
    unnamed = page.evaluate(
        """() => Array.from(document.querySelectorAll('button, [role], a, summary'))
            .filter(e => !(e.getAttribute('aria-label') || e.textContent).trim())
            .map(e => e.outerHTML.slice(0, 80))"""
    )
    assert unnamed == []
    levels = page.evaluate(
        "Array.from(document.querySelectorAll('h1,h2,h3,h4')).map(h => Number(h.tagName[1]))"
    )
    assert levels.count(1) == 1
    assert max(b - a for a, b in itertools.pairwise(levels)) == 1


def test_without_script_everything_can_be_read(chromium, file):
    context = chromium.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(file.as_uri())
    assert page.locator("table").first.is_visible()
    assert not page.locator(".copy").first.is_visible()
    assert page.locator("summary").first.is_visible()
    context.close()
