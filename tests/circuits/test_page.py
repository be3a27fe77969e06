"""The page of a circuit in a real browser: nothing goes wrong, and what it shows is what there is."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from planted import nasty
from playwright.sync_api import Page, sync_playwright

from sparsekern.circuits import Circuit

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking", "--disable-sync"]


@pytest.fixture(scope="module")
def browser():
    path = shutil.which("chromium") or shutil.which("google-chrome")
    assert path, "these tests need Chromium: make browser"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def opened(browser, circuit: Circuit, tmp_path: Path) -> Iterator[Page]:
    """The page, which must not complain and must load nothing."""
    circuit.to_html(tmp_path / "circuit.html")
    page = browser.new_page()
    complaints, requests = [], []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    page.goto((tmp_path / "circuit.html").as_uri())
    yield page
    assert complaints == []
    assert requests == [(tmp_path / "circuit.html").as_uri()]
    assert page.evaluate("window.harmed") is None
    page.close()


def test_it_shows_every_node_and_edge(opened: Page, circuit: Circuit) -> None:
    assert opened.locator("#canvas .node:not(.end)").count() == len(circuit.nodes) == 33
    assert opened.locator("#canvas .edge").count() == len(circuit.edges) == 18
    assert opened.locator("#canvas .edge.negative").count() == sum(e.weight < 0 for e in circuit.edges)
    assert opened.locator("#numbers dd").all_inner_texts() == ["33", "18"]
    assert opened.title() == "binding: 33 nodes, 18 edges"


def test_tokens_are_text_and_nothing_else(opened: Page, circuit: Circuit) -> None:
    assert nasty().replace("\u2028", "") in opened.locator("#cue").inner_text().replace("\u2028", "")
    assert "<b>T</b>" in opened.locator("#cue").inner_text()
    assert opened.locator("#cue b, #details img, #details script").count() == 0
    texts = opened.locator("#details .text").all_inner_texts()
    assert len(texts) == len(circuit.about.prompts)
    assert any("</script><script>" in text for text in texts)


def test_the_slider_hides_weak_weights(opened: Page, circuit: Circuit) -> None:
    def visible() -> int:
        return opened.locator("#canvas .edge[visibility=visible]").count()

    assert visible() == 18
    opened.locator("#threshold").evaluate("e => { e.value = 0.9; e.dispatchEvent(new Event('input')); }")
    strongest = max(abs(e.weight) for e in circuit.edges)
    expected = sum(abs(e.weight) >= 0.9 * strongest for e in circuit.edges)
    assert 0 < expected < 18
    assert visible() == expected
    assert opened.locator("#shown").inner_text().endswith(f"{expected} of 18 edges")
    opened.locator("#links").uncheck()
    assert opened.locator("#canvas .link[visibility=visible]").count() == 0


def test_a_node_tells_what_it_does(opened: Page, circuit: Circuit) -> None:
    node = next(n for n in circuit.nodes if n.location == "1.attn.act_in" and n.channel == 3)
    opened.locator(f"#canvas .node[aria-label^='{node.location} {node.channel},']").click()
    details = opened.locator("#details")
    assert details.locator("h2").first.inner_text() == f"{node.location} {node.channel}"
    assert f"{node.effect:.3f}" in details.inner_text()
    assert details.locator(".text").count() == len(node.activations) + len(node.contexts)
    (edge,) = [e for e in circuit.edges if e.source == (node.location, node.channel)]
    assert f"{edge.weight:.3f}" in details.inner_text()
    details.locator("button").first.click()  # goes to the node it names
    assert re.match(r"1\.attn\.v 0 \(head 0, channel 0\)|embedding", details.locator("h2").first.inner_text())


def test_a_node_can_be_chosen_by_keyboard_and_an_edge_by_mouse(opened: Page, circuit: Circuit) -> None:
    opened.locator("#canvas .node").nth(3).focus()
    opened.keyboard.press("Enter")
    assert opened.locator("#canvas .node.chosen").count() == 1
    opened.locator("#canvas .edge").first.dispatch_event("click")
    assert opened.locator("#details h2").first.inner_text().startswith("Weight ")


def test_light_and_dark(opened: Page) -> None:
    colours = {}
    for scheme in ("light", "dark"):
        opened.emulate_media(color_scheme=scheme)
        colours[scheme] = opened.evaluate("getComputedStyle(document.body).backgroundColor")
    assert colours == {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 24, 31)"}


def test_the_policy_forbids_everything_else(opened: Page, tmp_path: Path) -> None:
    policy = opened.locator("meta[http-equiv=Content-Security-Policy]").get_attribute("content")
    own = r"style-src 'sha256-\S{44}'; script-src 'sha256-\S{44}'"
    parts = f"default-src 'none'; {own}; base-uri 'none'; form-action 'none'"
    assert re.fullmatch(parts, policy)
    text = (tmp_path / "circuit.html").read_text()
    assert "http://" not in text.replace("http://www.w3.org/2000/svg", "")
    assert "https://" not in text
