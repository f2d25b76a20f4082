"""The page in headless Chromium."""

import json
import shutil
import socket
from pathlib import Path

import pytest

from edge.report.page import Source, render_page
from edge.report.plots import draw
from edge.report.table import markdown_section
from tests.support.profiles import failed_row, hostile_profile, make_profile, typed

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync"]


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
    """One with all columns, a failed row and rates that sort differently as text; a hostile one."""
    made = make_profile(quality=True)
    made["rows"][4]["workload"]["depth"] = 4096
    made["rows"][0] = failed_row(made["rows"][0], "it ran out of memory")
    for row, rate in zip(made["rows"][1:], (9.5, 1234.0, 88.0, 100.25), strict=True):
        row["decode_tok_s"].update(median=rate, sd=0.5)
    small = make_profile()
    small["rows"] = small["rows"][:2]
    return [made, hostile_profile(small)]


@pytest.fixture(scope="module")
def file(profiles, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("page") / "report.html"
    sources = [Source(typed(p), draw(typed(p)), json.dumps(p).encode()) for p in profiles]
    path.write_text(render_page(sources), encoding="utf-8")
    return path


@pytest.fixture
def opened(chromium, file):
    """Opens the page; afterwards checks that nothing was fetched, logged or attacked."""
    contexts, requests, messages = [], [], []

    def open_page(**context):
        context = chromium.new_context(viewport={"width": 1280, "height": 800}, **context)
        contexts.append(context)
        page = context.new_page()
        page.on("request", lambda request: requests.append(request.url))
        page.on("console", lambda message: messages.append(message.text))
        page.on("pageerror", lambda error: messages.append(str(error)))
        page.on("dialog", lambda dialog: messages.append(dialog.message))
        page.goto(file.as_uri())
        return page

    open_page.messages, open_page.requests = messages, requests
    open_page.expects_refusals = False
    yield open_page
    for context in contexts:
        assert context.pages[0].evaluate("window.attacked") is None
        context.close()
    if not open_page.expects_refusals:
        assert {url for url in requests if not url.startswith("blob:")} == {file.as_uri()}
        assert messages == []


def column(page, name):
    return page.evaluate(
        """name => {
            const table = document.querySelector('table');
            const heads = Array.from(table.tHead.rows[0].cells).map(c => c.textContent);
            const i = heads.indexOf(name);
            return Array.from(table.tBodies[0].rows).map(r => r.cells[i].textContent);
        }""",
        name,
    )


def test_columns_sort_as_numbers_with_missing_values_last(opened):
    page = opened()
    assert page.title() == "Device reports"
    assert page.locator("article").first.locator("figure svg").count() >= 4
    rate = page.get_by_role("button", name="Throughput (Tok/s)").first
    rate.click()
    sorted_down = ["1234 ± 0", "100 ± 0", "88.0 ± 0.5", "9.50 ± 0.50", "—"]
    assert column(page, "Throughput (Tok/s)") == sorted_down
    head = page.locator("th", has=page.get_by_role("button", name="Throughput (Tok/s)")).first
    assert head.get_attribute("aria-sort") == "descending"
    rate.press("Enter")  # from the keyboard
    assert head.get_attribute("aria-sort") == "ascending"
    assert column(page, "Throughput (Tok/s)")[0] == "9.50 ± 0.50"
    assert column(page, "Throughput (Tok/s)")[-1] == "—"
    assert page.evaluate("document.documentElement.scrollWidth") <= 1280


def test_buttons_copy_markdown_and_save_json(opened, profiles):
    page = opened(permissions=["clipboard-read", "clipboard-write"])
    for number, profile in enumerate(profiles):
        with page.expect_download() as download:
            page.get_by_role("button", name="Save the profile (JSON)").nth(number).click()
        assert json.loads(Path(download.value.path()).read_text(encoding="utf-8")) == profile
        page.get_by_role("button", name="Copy as Markdown").nth(number).click()
        page.locator("output", has_text="Copied.").nth(number).wait_for()
        copied = page.evaluate("navigator.clipboard.readText()")
        assert copied == markdown_section(typed(profile))


def test_the_content_security_policy_refuses_scripts_and_requests(opened):
    """Some versions report refused requests as requests, so a local server checks."""
    opened.expects_refusals = True
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
            document.body.append(box);
            const signal = AbortSignal.timeout(5000);
            return fetch(address, { signal }).then(() => 'fetched', error => error.name);
        }""",
        address,
    )
    assert refused == "TypeError"
    assert page.evaluate("window.ran") is None
    with server, pytest.raises(BlockingIOError):
        server.accept()
    assert len(opened.messages) >= 3
    assert all("Content Security Policy" in text for text in opened.messages)
