"""The page that people begin with, in a real browser."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Page, expect, sync_playwright


@pytest.fixture
def page() -> Iterator[Page]:
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.fail("The browser tests need Chromium: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser.new_page(viewport={"width": 1280, "height": 800})
        browser.close()


def test_studies_are_shown_with_pictures_found_by_words_and_lead_to_the_viewer(server: Any, page: Page) -> None:
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(server.url)
    expect(page.locator("#studies li")).to_have_count(5, timeout=30_000)
    page.wait_for_load_state("networkidle")
    # one that cannot be shown is replaced by words
    expect(page.locator("#studies img")).to_have_count(5)
    assert "0 of 5 images labelled" in page.inner_text("#state")
    assert page.locator("#more").is_hidden()
    page.fill("#words", "radio")
    expect(page.locator("#studies li")).to_have_count(1)
    expect(page.locator("#studies .name")).to_have_text("radiograph")
    link = page.get_attribute("#studies a", "href") or ""
    page.fill("#words", "no such study")
    page.get_by_text("No study fits.").wait_for()
    assert link.startswith("viewer/annotate?StudyInstanceUIDs=")
    assert all(url.startswith((server.url, "data:", "blob:")) for url in asked)
    assert errors == []


def test_a_server_that_is_gone_is_named(server: Any, page: Page) -> None:
    page.goto(server.url)
    page.locator("#studies li").first.wait_for()
    page.route("**/viewer/api/**", lambda route: route.abort())
    page.select_option("#labelled", "true")
    page.get_by_text("The server does not answer.").wait_for()
