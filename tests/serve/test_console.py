"""The operator's page in a headless Chromium: wide and narrow, light and dark, by keyboard alone.

Chromium is that of the system: `pip install playwright`, and Debian's package `chromium`, or the path in CHROMIUM.
"""

import os
import shutil

import pytest

from tests.helpers.services import OPERATOR
from tests.serve.conftest import LIVE, PROMPT, TIGHT, digest, offered

pytestmark = pytest.mark.browser
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or ""
SHOTS = os.environ.get("SAFEFLUX_SHOTS", "")
"""A folder for screenshots, to be looked at."""


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser, served):
    """Open the page in a window of its own; anything that the page complains of fails the test."""
    client, _ = served
    contexts, complaints = [], []

    def open_page(width=1280, scheme="light", **more):
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, **more)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda line: complaints.append(line.text) if "Content Security" in line.text else None)
        page.goto(f"{client.base_url}/console")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert complaints == []


def sign_in(page):
    page.get_by_label("Operator's token").fill(OPERATOR)
    page.keyboard.press("Enter")
    page.get_by_role("heading", name="In force").wait_for()


def shot(page, name):
    if SHOTS:
        page.screenshot(path=f"{SHOTS}/{name}.png", full_page=True)


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_is_wider_than_the_window_and_text_has_contrast(open_page, width, scheme):
    page = open_page(width, scheme)
    shot(page, f"sign-in-{width}-{scheme}")
    sign_in(page)
    page.get_by_text("weapons").first.wait_for()
    page.get_by_text("unbroken").wait_for()
    shot(page, f"console-{width}-{scheme}")
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    assert page.locator("#state").inner_text() == "GUARDED"
    low = page.evaluate(CONTRAST)
    assert low == []


def test_the_next_policy_is_shown_before_and_after_and_put_in_force_by_keyboard_alone(open_page, served, home):
    from playwright.sync_api import expect

    client, _ = served
    page = open_page()
    page.keyboard.press("Tab")  # the first field has the focus already; the button is next
    page.get_by_label("Operator's token").focus()
    page.keyboard.type(OPERATOR)
    page.keyboard.press("Enter")
    page.get_by_role("button", name="Edit live").wait_for()
    page.get_by_role("button", name="Edit live").focus()
    page.keyboard.press("Enter")
    text = page.get_by_label("Policy (YAML)")
    expect(text).to_be_focused()
    assert text.input_value() == LIVE
    page.keyboard.press("Control+A")
    page.keyboard.insert_text(TIGHT + "adpaters: deny\n")
    page.keyboard.press("Tab")
    page.keyboard.type(PROMPT)
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")  # Check
    page.get_by_text("live.yaml:5:1: unknown key 'adpaters'").wait_for()
    text.focus()
    page.keyboard.press("Control+A")
    page.keyboard.insert_text(TIGHT)
    for _ in range(3):
        page.keyboard.press("Tab")
    assert page.get_by_role("button", name="Put in force").is_disabled()
    page.keyboard.press("Enter")  # Draw before and after
    page.get_by_alt_text(f"after: {PROMPT}").wait_for()
    page.get_by_text("mixed").wait_for()
    shot(page, "preview-1280-light")
    put = page.locator("#put")
    assert put.is_enabled()
    text.focus()
    page.keyboard.type(" ")
    assert put.is_disabled()  # another text than the one that was drawn
    page.keyboard.press("Backspace")
    put.focus()
    page.keyboard.press("Enter")
    page.get_by_role("dialog").wait_for()
    page.keyboard.press("Escape")
    assert offered(client)["live"] == digest(LIVE)
    put.focus()
    page.keyboard.press("Enter")
    page.get_by_role("dialog").wait_for()
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.get_by_text("revision 2, by operator").wait_for()
    assert offered(client)["live"] == digest(TIGHT)
    page.get_by_role("heading", name="Categories of live").wait_for()
    shot(page, "put-1280-light")
    page.locator("#roll-back").click()
    page.get_by_role("dialog").get_by_role("button", name="Roll back").click()
    page.get_by_text("revision 3, by operator").wait_for()
    assert offered(client)["live"] == digest(LIVE)
    with page.expect_download() as download:
        page.get_by_role("button", name="Download a receipt of now").click()
    assert '"state": "GUARDED"' in download.value.path().read_text()


def test_a_text_is_not_lost_unasked_and_a_service_that_is_away_is_not_called_guarded(open_page):
    from playwright.sync_api import expect

    page = open_page(390, "dark")
    sign_in(page)
    text, edit = page.get_by_label("Policy (YAML)"), page.get_by_role("button", name="Edit live")
    text.fill("my own work")
    edit.click()
    shot(page, "discard-390-dark")
    page.keyboard.press("Enter")  # Cancel has the focus
    expect(page.get_by_role("dialog")).to_be_hidden()
    assert text.input_value() == "my own work"
    edit.click()
    page.get_by_role("button", name="Discard").click()
    expect(text).to_have_value(LIVE)
    edit.click()  # nothing was changed, so nothing is asked
    expect(text).to_be_focused()

    page.route("**/policies", lambda route: route.abort())
    page.get_by_text("the service cannot be reached").wait_for()
    expect(page.locator("#state")).to_have_text("state unknown")
    shot(page, "away-390-dark")
    page.unroute("**/policies")
    expect(page.locator("#state")).to_have_text("GUARDED", timeout=15_000)
    expect(page.locator("#message")).to_be_hidden()


def test_a_wrong_token_opens_nothing(open_page):
    page = open_page(390, "dark")
    page.get_by_label("Operator's token").fill("a-token-of-nobody")
    page.keyboard.press("Enter")
    page.get_by_text("with a known token").wait_for()
    assert page.locator("#console").is_hidden()
    assert page.evaluate("sessionStorage.length") == 0


CONTRAST = """() => {
  const parse = (color) => { const p = color.match(/[\\d.]+/g).map(Number); return p.length < 4 ? [...p, 1] : p; };
  const linear = (v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => 0.2126 * linear(r / 255) + 0.7152 * linear(g / 255) + 0.0722 * linear(b / 255);
  const ground = (e) => {
    for (; e; e = e.parentElement) { const c = parse(getComputedStyle(e).backgroundColor); if (c[3]) return c; }
    return [255, 255, 255, 1];
  };
  const found = [];
  for (const e of document.querySelectorAll("body *")) {
    const isText = [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
    if (!isText || !e.checkVisibility() || e.disabled || ["SCRIPT", "STYLE"].includes(e.tagName)) continue;
    const [a, b] = [light(parse(getComputedStyle(e).color)), light(ground(e))].sort((x, y) => y - x);
    if ((a + 0.05) / (b + 0.05) < 4.5) found.push(`${e.tagName}: ${e.textContent.slice(0, 40)}`);
  }
  return found;
}"""
"""Texts whose contrast is less than 4.5, as WCAG 2.2 counts it."""
