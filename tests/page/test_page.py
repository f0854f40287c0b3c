"""The page as a person uses it, in a real browser, on a real daemon with two small models."""

import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support import leaks
from support.browser import Opened
from support.live import LiveDaemon, live
from support.shared import family
from support.tiny import tiny_served

from muxd.api.keys import table

pytestmark = pytest.mark.page
KEY = "sk-anna"
TESTS = Path(__file__).parents[1]
TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:"


def config(root: Path) -> str:
    models = ""
    for seed, name in enumerate(("ada", "bob"), 1):
        folder = tiny_served(root / name, seed)
        spec = json.loads((folder / "config.json").read_text())
        # No answer ends by itself: how long they run is the tests' to say.
        changes = {"max_position_embeddings": 4096, "eos_token_id": None}
        (folder / "config.json").write_text(json.dumps(spec | changes))
        (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>"}))
        (folder / "chat_template.jinja").write_text(TEMPLATE)
        models += (
            f'[[model]]\nname = "{name}"\npath = "{folder}"\nttft_slo = 30.0\nquota = {{ min = "256K" }}\n'
        )
    (root / "keys.toml").write_text(table("anna", KEY) + "actions = true\n")
    return f'[server]\nkeys = "{root / "keys.toml"}"\n[pool]\nbytes = "4M"\n{models}'


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory, browser: Any) -> Iterator[LiveDaemon]:
    root = tmp_path_factory.mktemp("page")
    with live(config(root), root) as daemon:
        yield daemon


@pytest.fixture
def opened(browser: Any, daemon: LiveDaemon) -> Iterator[Opened]:
    opened = Opened(browser, daemon.url, KEY).live()
    yield opened
    opened.close()
    leaks.keep(family(daemon))  # models were loaded anew


def row(page: Any, model: str) -> Any:
    return page.locator(f"#models tr[data-key='{model}']")


def state(page: Any, model: str, wanted: str) -> None:
    row(page, model).locator(f".chip[data-state='{wanted}']").wait_for()


def ask(page: Any, text: str, tokens: int) -> None:
    page.fill("#most", str(tokens))
    page.fill("#prompt", text)
    page.press("#prompt", "Enter")


def done(page: Any) -> None:
    page.wait_for_selector("#send:not([disabled])")


def test_two_models_chat_at_once_and_the_pool_moves(opened: Opened) -> None:
    page = opened.page
    pool = page.locator("#devices canvas")
    state(page, "ada", "ready")
    state(page, "bob", "ready")
    before = pool.get_attribute("aria-label")
    pixels = pool.evaluate("canvas => canvas.toDataURL()")
    page.select_option("#first", "ada")
    page.select_option("#second", "bob")
    ask(page, "Who are you?", 1500)
    page.locator("#devices canvas[aria-label*='ada guaranteed'][aria-label*='bob guaranteed']").wait_for()
    for pane in ("#pane-first", "#pane-second"):
        page.locator(f"{pane} .said", has_text=re.compile(".")).wait_for()
    assert pool.get_attribute("aria-label") != before
    assert pool.evaluate("canvas => canvas.toDataURL()") != pixels
    done(page)
    for model in ("ada", "bob"):
        text = page.locator("#timeline-text", has_text=f"{model} computed for")
        text.wait_for(state="attached")
    for pane in ("#pane-first", "#pane-second"):
        assert re.search(r"\d+ tokens", page.inner_text(f"{pane} .hint"))
    page.locator("#requests tr .chip[data-state=served]").nth(1).wait_for()
    rows = page.locator("#requests tbody tr")
    assert {rows.nth(i).locator("td").nth(1).inner_text() for i in range(2)} == {"ada", "bob"}
    assert rows.nth(0).locator("td").nth(2).inner_text() == "anna"
    rows.nth(0).locator("button.link").click()
    page.wait_for_selector("#why dl dd")
    assert "decode" in page.inner_text("#why")
    page.keyboard.press("Escape")
    assert not page.is_visible("#why-dialog")
    assert "Who are you" not in page.inner_text("main")  # the picture has no text of anybody


def test_a_model_is_unloaded_and_loaded_slept_and_woken_by_keyboard_too(opened: Opened) -> None:
    page = opened.page
    state(page, "bob", "ready")
    row(page, "bob").get_by_role("button", name="Unload bob").click()
    state(page, "bob", "unloaded")
    page.locator("#events li", has_text="unloaded").first.wait_for()
    load = row(page, "bob").get_by_role("button", name="Load bob")
    load.focus()
    page.keyboard.press("Enter")
    state(page, "bob", "ready")
    page.locator("#events li", has_text="loaded").first.wait_for()
    row(page, "bob").get_by_role("button", name="Let sleep bob").click()
    state(page, "bob", "asleep")
    page.locator("#devices .stack i.parked").wait_for()
    row(page, "bob").get_by_role("button", name="Wake bob").click()
    state(page, "bob", "ready")
    row(page, "bob").get_by_role("button", name="Pin bob", exact=True).click()
    page.locator("#models small", has_text="pinned").wait_for()
    row(page, "bob").get_by_role("button", name="Unpin bob").click()
    page.locator("#models small", has_text="pinned").wait_for(state="detached")


def test_what_runs_is_cancelled(opened: Opened) -> None:
    page = opened.page
    page.select_option("#first", "ada")
    ask(page, "Go on for long.", 3500)
    cancel = page.locator("#requests tr .outcome button:visible").first
    cancel.click()
    page.locator("#requests tr .chip[data-state=cancelled]").first.wait_for()
    done(page)


def test_keys_alone_are_enough(opened: Opened) -> None:
    page = opened.page
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the models"
    names = []
    for _ in range(40):
        page.keyboard.press("Tab")
        names.append(page.evaluate("document.activeElement.id || document.activeElement.dataset.verb || ''"))
    assert {"open-playground", "open-key", "theme", "unload", "pause"} <= set(names)
    page.locator("#timeline canvas").focus()
    page.keyboard.press("ArrowLeft")
    assert page.get_attribute("#pause", "aria-pressed") == "true"
    page.keyboard.press("-")
    assert page.get_attribute("[data-span='300']", "aria-pressed") == "true"
    page.locator("#open-playground").focus()
    page.keyboard.press("Enter")
    assert not page.is_visible("#playground")
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "prompt"
    nameless = page.evaluate(
        "[...document.querySelectorAll('button, select, input, textarea, canvas, [role=img]')]"
        ".filter(n => n.offsetParent && !n.getAttribute('aria-label') && !n.labels?.length)"
        ".filter(n => !n.textContent.trim())"
        ".map(n => n.outerHTML)"
    )
    assert nameless == []


def test_light_dark_and_a_phone(opened: Opened) -> None:
    page = opened.page
    papers = []
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        papers.append(page.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert papers[0] != papers[1]
    page.click("#theme")  # from the system's, which is dark now, to light
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == papers[0]
    for width in (360, 390, 768):
        page.set_viewport_size({"width": width, "height": 844})
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_without_its_key_nobody_sees_anything(browser: Any, daemon: LiveDaemon) -> None:
    opened = Opened(browser, daemon.url)
    page = opened.page
    page.wait_for_selector("#link[data-state=refused]")
    page.wait_for_selector("#key-dialog[open]")
    assert "ada" not in page.content()
    page.fill("#key", "sk-wrong")
    page.press("#key", "Enter")
    page.locator("#notice", has_text="not known").wait_for()
    page.click("#open-key")
    page.fill("#key", KEY)
    page.press("#key", "Enter")
    opened.live()
    state(page, "ada", "ready")
    assert page.evaluate("sessionStorage.getItem('muxd-key')") == KEY
    assert KEY not in page.evaluate("JSON.stringify(localStorage) + document.cookie + location.href")
    opened.close()


def test_the_page_comes_back_with_the_daemon(browser: Any, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    text = config(tmp_path)
    with live(text, tmp_path, port=port) as daemon:
        opened = Opened(browser, f"http://127.0.0.1:{port}", KEY).live()
        opened.page.locator("#about", has_text="policy mux").wait_for()
        first = opened.page.evaluate("document.querySelector('#link').dataset.state")
        assert (first, daemon.terminate()) == ("live", 0)
        opened.page.wait_for_selector("#link[data-state=gone]")
    with live(text, tmp_path, port=port):
        opened.live()
        state(opened.page, "bob", "ready")
        ask(opened.page, "Again?", 5)
        opened.page.locator("#requests tr .chip[data-state=served]").wait_for()
    opened.close()


@pytest.fixture
def crowd() -> Iterator[str]:
    """Fifty models on eight devices, served by units whose workers are played."""
    command = [sys.executable, "-m", "support.played_host", "8", "50"]
    path = os.pathsep.join([str(TESTS), *filter(None, [os.environ.get("PYTHONPATH", "")])])
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": path}
    ) as process:
        try:
            assert process.stdout is not None
            yield process.stdout.readline().strip()
        finally:
            process.kill()


def test_fifty_models_on_eight_devices(browser: Any, crowd: str) -> None:
    opened = Opened(browser, crowd, viewport={"width": 1600, "height": 1000}, color_scheme="dark").live()
    page = opened.page
    page.locator("#models tbody tr").nth(49).wait_for()
    assert page.locator("#devices article canvas").count() == 8
    colours = page.evaluate(
        "[...document.querySelectorAll('#models tbody tr')].map(n => n.style.getPropertyValue('--colour'))"
    )
    assert len(set(colours)) == 50
    page.locator("#devices canvas[aria-label*='borrowed']").first.wait_for()
    page.locator("#requests .chip[data-state=served]").first.wait_for()
    assert page.locator("#models button:enabled").count() == 0  # there are no keys
    page.locator("#act-hint", has_text="server.keys").wait_for()
    page.fill("#filter", "qwen-2b")
    page.locator("#models tbody tr").nth(1).wait_for(state="detached")
    page.fill("#filter", "")
    opened.shoot("page-many")
    for width in (390, 1600):
        page.set_viewport_size({"width": width, "height": 1000})
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    opened.close()
