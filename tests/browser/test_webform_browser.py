"""The hosted form in a real browser, against a real daemon: what a customer does and what arrives in the stream."""

import asyncio
import re
import struct
import zlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest
import pytest_asyncio
from aiohttp import web
from playwright.async_api import Browser, Page, async_playwright, expect

from tests.daemon import Daemon, lasting_daemon

pytestmark = pytest.mark.asyncio(loop_scope="module")  # of the browser
CHROMIUM = "/usr/bin/chromium"
CHANNEL: dict[str, Any] = {
    "type": "webform",
    "title": {"zh": "提交问题", "en": "Contact support"},
    "min_fill_seconds": 0,
    "sources": ["shop-12"],
    "fields": [
        {"name": "subject", "type": "text", "label": {"zh": "标题", "en": "Subject"}, "required": True},
        {"name": "text", "type": "textarea", "label": {"zh": "描述", "en": "Description"}, "required": True},
        {"name": "phone", "type": "phone", "label": {"zh": "电话", "en": "Phone"}},
        {"name": "product", "type": "select", "label": "Product", "choices": ["printer", "scanner"]},
        {"name": "urgency", "type": "radio", "label": "Urgency", "choices": ["low", "high"]},
        {"name": "reach", "type": "checkbox", "label": "Reach", "choices": ["mail", "call"]},
        {"name": "bought", "type": "date", "label": "Bought"},
        {"name": "photo", "type": "file", "label": {"zh": "图片", "en": "Pictures"}, "accept": ["image/*"]},
    ],
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[Browser]:
    """For the whole module. Each test has windows of its own, that share nothing with others."""
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        await browser.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def daemon() -> AsyncIterator[Daemon]:
    """For the whole module: the tickets of other tests are in its stream too."""
    async with lasting_daemon({"web-support": CHANNEL}) as daemon:
        yield daemon


async def ticket_of(daemon: Daemon, reference: str) -> dict[str, Any]:
    """The only one with this reference."""
    async with asyncio.timeout(20):
        while not (found := [one for one in await daemon.tickets() if one["data"]["reference"] == reference]):
            await asyncio.sleep(0.02)
    (ticket,) = found
    return ticket


async def ledger(daemon: Daemon) -> dict[str, int]:
    """What the channel has received, once nothing waits."""
    status = await daemon.until_status(lambda status: status["channels"][0]["waiting"] == 0)
    channel: dict[str, int] = status["channels"][0]
    return channel


@dataclass
class Site:
    """Another web site, of one page."""

    origin: str = ""
    html: str = ""


@pytest_asyncio.fixture(loop_scope="module")
async def elsewhere() -> AsyncIterator[Site]:
    site = Site()

    async def answer(_: web.Request) -> web.Response:
        return web.Response(text=site.html, content_type="text/html")

    app = web.Application()
    app.router.add_get("/", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    site.origin = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield site
    await runner.cleanup()


@pytest_asyncio.fixture(loop_scope="module")
async def listed(elsewhere: Site) -> AsyncIterator[Daemon]:
    """Its form may be used and shown by `elsewhere`."""
    channel = {**CHANNEL, "allowed_origins": [elsewhere.origin], "frame_ancestors": [elsewhere.origin]}
    async with lasting_daemon({"web-support": channel}) as daemon:
        yield daemon


def png() -> bytes:
    """A picture of eight blue pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 1, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"\0" + b"\0\0\xff" * 8)) + chunk(b"IEND", b"")


PHOTO = {"name": "故障.png", "mimeType": "image/png", "buffer": png()}


async def opened(browser: Browser, daemon: Daemon, query: str = "", **context: Any) -> Page:
    page = await (await browser.new_context(locale="zh-CN", **context)).new_page()
    await page.goto(f"{daemon.url}/c/web-support{query}")
    return page


async def shown_reference(page: Page) -> str:
    await page.wait_for_url("**/c/web-support/thanks?**")
    return await page.inner_text("#reference")


async def test_by_mouse_with_every_kind_of_field(browser: Browser, daemon: Daemon) -> None:
    page = await opened(browser, daemon, "?source=shop-12")

    await page.get_by_label("标题").fill("打印机坏了")
    await page.get_by_label("描述").fill("一直闪红灯。\n昨天开始的。")
    await page.get_by_label("电话").fill("138 1234 5678")
    await page.get_by_label("Product").select_option("printer")
    await page.get_by_label("high").check()
    await page.get_by_label("mail").check()
    await page.get_by_label("call").check()
    await page.get_by_label("Bought").fill("2026-03-01")
    await page.get_by_label("图片").set_input_files([PHOTO, {**PHOTO, "name": "2.png"}])
    await page.get_by_role("button", name="提交").click()
    reference = await shown_reference(page)

    data = (await ticket_of(daemon, reference))["data"]
    assert (data["kind"], data["language"], data["tags"]) == ("form", "zh", [])
    assert (data["subject"], data["text"]) == ("打印机坏了", "一直闪红灯。\n昨天开始的。")
    assert [one["value"] for one in data["sender"]["identities"]] == ["+8613812345678"]
    assert data["fields"] == {
        "product": "printer",
        "urgency": "high",
        "reach": ["mail", "call"],
        "bought": "2026-03-01",
        "source": "shop-12",
    }
    assert [(one["filename"], one["content_type"]) for one in data["attachments"]] == [
        ("故障.png", "image/png"),
        ("2.png", "image/png"),
    ]


async def test_by_keyboard_alone(browser: Browser, daemon: Daemon) -> None:
    page = await opened(browser, daemon)
    keys = page.keyboard

    await keys.press("Tab")  # the language
    await keys.press("Tab")
    await keys.type("打印机")
    await keys.press("Tab")
    await keys.type("坏了")
    for _ in ("phone", "product"):
        await keys.press("Tab")
    await keys.press("ArrowDown")
    await keys.press("Tab")
    await keys.press("ArrowDown")
    await keys.press("Tab")
    await keys.press("Space")
    for _ in range(8):  # a date is several stops
        await keys.press("Tab")
        if await page.evaluate("document.activeElement.localName") == "button":
            break
    await keys.press("Enter")
    reference = await shown_reference(page)

    ticket = await ticket_of(daemon, reference)
    assert ticket["data"]["subject"] == "打印机"
    assert ticket["data"]["fields"] == {"product": "printer", "urgency": "high", "reach": ["mail"]}


async def test_the_hidden_trap_is_not_reached_by_the_keyboard(browser: Browser, daemon: Daemon) -> None:
    page = await opened(browser, daemon)
    passed = set()

    for _ in range(30):
        await page.keyboard.press("Tab")
        passed.add(await page.evaluate("document.activeElement.name || document.activeElement.localName"))

    assert {"subject", "photo", "button"} <= passed
    assert "homepage" not in passed
    box = await page.locator("[name=homepage]").bounding_box()
    assert box is not None
    assert box["x"] + box["width"] < 0


async def test_a_fault_is_focused_and_can_be_corrected(browser: Browser, daemon: Daemon) -> None:
    before = (await ledger(daemon))["accepted"]
    page = await opened(browser, daemon)

    await page.get_by_label("标题").fill("打印机坏了")
    await page.get_by_label("描述").fill("闪红灯")
    await page.get_by_label("电话").fill("12")
    await page.get_by_label("图片").set_input_files(PHOTO)
    await page.locator("button").click()

    phone = page.get_by_label("电话")
    await expect(page.get_by_role("alert")).to_contain_text("电话")
    await expect(phone).to_be_focused()
    await expect(phone).to_have_accessible_description(re.compile("完整的电话号码"))
    await expect(page.get_by_label("标题")).to_have_value("打印机坏了")
    await expect(page.locator("#f-photo-chosen")).to_contain_text("故障.png")

    await phone.fill("13812345678")
    await page.keyboard.press("Enter")
    assert await ticket_of(daemon, await shown_reference(page))
    assert (await ledger(daemon))["accepted"] == before + 1


async def test_the_browser_itself_stops_what_is_plainly_missing(browser: Browser, daemon: Daemon) -> None:
    page = await opened(browser, daemon)

    await page.locator("button").click()

    await expect(page.get_by_label("标题")).to_be_focused()
    assert page.url == f"{daemon.url}/c/web-support"


async def test_a_double_click_is_one_ticket(browser: Browser, daemon: Daemon) -> None:
    before = await ledger(daemon)
    page = await opened(browser, daemon)
    await page.get_by_label("标题").fill("打印机坏了")
    await page.get_by_label("描述").fill("闪红灯")
    network = await page.context.new_cdp_session(page)
    slow = {"offline": False, "latency": 500, "downloadThroughput": -1, "uploadThroughput": -1}
    await network.send("Network.emulateNetworkConditions", slow)

    await page.locator("button").hover()
    for _ in range(2):
        async with page.expect_request(lambda request: request.method == "POST"):
            await page.mouse.down()
            await page.mouse.up()
    reference = await shown_reference(page)
    await page.reload()

    assert await shown_reference(page) == reference
    after = await ledger(daemon)
    accepted, published, duplicate = (after[one] - before[one] for one in ("accepted", "published", "duplicate"))
    assert published == 1
    assert accepted == 1 + duplicate <= 2  # a browser that is quick takes the first click back
    assert await ticket_of(daemon, reference)


async def test_without_javascript(browser: Browser, daemon: Daemon) -> None:
    page = await opened(browser, daemon, java_script_enabled=False)

    await page.get_by_label("标题").fill("打印机坏了")
    await page.get_by_label("描述").fill("闪红灯")
    await page.locator("button").click()

    assert await ticket_of(daemon, await shown_reference(page))


async def test_on_a_phone_nothing_is_cut_off_and_targets_are_large(browser: Browser, daemon: Daemon) -> None:
    page = await opened(browser, daemon, viewport={"width": 375, "height": 667}, has_touch=True, is_mobile=True)

    widths = await page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
    boxes = [await one.bounding_box() for one in await page.locator(".control, .option, button").all()]
    assert widths[0] <= widths[1] == 375
    assert len(boxes) > 8
    assert all(box and box["height"] >= 38 for box in boxes)  # WCAG 2.2, 2.5.8 asks for 24

    await page.get_by_label("标题").fill("打印机坏了")
    await page.get_by_label("描述").fill("闪红灯")
    await page.locator("button").tap()
    await shown_reference(page)


async def test_in_english_by_the_link(browser: Browser, daemon: Daemon) -> None:
    page = await opened(browser, daemon, "?source=shop-12")

    await page.get_by_role("link", name="English").click()
    await page.get_by_label("Subject").fill("Broken")
    await page.get_by_label("Description").fill("Red light")
    await page.get_by_role("button", name="Submit").click()

    await expect(page.get_by_role("heading")).to_have_text("Thank you")
    ticket = await ticket_of(daemon, await page.inner_text("#reference"))
    assert ticket["data"]["language"] == "en"
    assert ticket["data"]["fields"] == {"source": "shop-12"}


async def test_the_page_breaks_none_of_its_own_rules(browser: Browser, daemon: Daemon) -> None:
    page = await (await browser.new_context()).new_page()
    complaints: list[str] = []
    asked: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("request", lambda request: asked.append(request.url))

    await page.goto(f"{daemon.url}/c/web-support")

    assert complaints == []
    assert [url for url in asked if not url.startswith("data:")] == [f"{daemon.url}/c/web-support"]
    assert (
        await page.evaluate("getComputedStyle(document.querySelector('.button')).backgroundColor") != "rgba(0, 0, 0, 0)"
    )


async def test_a_plain_form_of_a_listed_site(browser: Browser, listed: Daemon, elsewhere: Site) -> None:
    elsewhere.html = f"""<form method="post" action="{listed.url}/c/web-support?lang=en" enctype="multipart/form-data">
        <input name="subject" value="Broken"><textarea name="text">Red light</textarea>
        <input type="file" name="photo"><button>Send</button></form>"""
    page = await (await browser.new_context()).new_page()

    await page.goto(elsewhere.origin)
    await page.set_input_files("[name=photo]", PHOTO)
    await page.click("button")

    reference = await shown_reference(page)
    (ticket,) = await listed.until_tickets(1)
    assert ticket["data"]["reference"] == reference
    assert [one["filename"] for one in ticket["data"]["attachments"]] == ["故障.png"]


async def test_a_script_of_a_listed_site(browser: Browser, listed: Daemon, elsewhere: Site) -> None:
    page = await (await browser.new_context()).new_page()
    await page.goto(elsewhere.origin)

    answer = await page.evaluate(
        """url => fetch(url, {method: "POST", headers: {"Content-Type": "application/json", "Idempotency-Key": "k"},
           body: JSON.stringify({subject: "Broken", text: "Red light"})}).then(answer => answer.json())""",
        f"{listed.url}/c/web-support",
    )

    (ticket,) = await listed.until_tickets(1)
    assert answer == {"id": ticket["id"], "reference": ticket["data"]["reference"], "status": "accepted"}


async def test_a_form_of_another_site_is_refused(browser: Browser, daemon: Daemon, elsewhere: Site) -> None:
    before = (await ledger(daemon))["accepted"]
    elsewhere.html = f"""<form method="post" action="{daemon.url}/c/web-support">
        <input name="subject" value="a"><input name="text" value="b"><button>Send</button></form>"""
    page = await (await browser.new_context()).new_page()

    await page.goto(elsewhere.origin)
    async with page.expect_response("**/c/web-support") as response:
        await page.click("button")

    assert (await response.value).status == 403
    assert (await ledger(daemon))["accepted"] == before


async def test_in_a_frame_of_a_listed_site(browser: Browser, listed: Daemon, elsewhere: Site) -> None:
    elsewhere.html = f'<iframe src="{listed.url}/c/web-support?lang=en" width="100%" height="900"></iframe>'
    page = await (await browser.new_context()).new_page()

    await page.goto(elsewhere.origin)
    frame = page.frame_locator("iframe")
    await frame.get_by_label("Subject").fill("Broken")
    await frame.get_by_label("Description").fill("Red light")
    await frame.locator("button").click()

    await expect(frame.locator("#reference")).to_be_visible()
    (ticket,) = await listed.until_tickets(1)
    assert await frame.locator("#reference").inner_text() == ticket["data"]["reference"]


async def test_not_in_a_frame_of_another_site(browser: Browser, daemon: Daemon, elsewhere: Site) -> None:
    elsewhere.html = f'<iframe src="{daemon.url}/c/web-support"></iframe>'
    page = await (await browser.new_context()).new_page()

    async with page.expect_console_message(lambda message: "frame-ancestors" in message.text):
        await page.goto(elsewhere.origin)

    assert await page.frame_locator("iframe").locator("form").count() == 0
