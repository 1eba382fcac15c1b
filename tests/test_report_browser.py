"""The page of a run in a real browser: Chromium, headless, where there is one."""

import re
import shutil

import pytest
from made_run import make_run

from dilax.report import write_page

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))),
    None,
)
pytestmark = pytest.mark.skipif(not CHROMIUM, reason="no Chromium on this machine")
WIDE, PHONE = (1400, 900), (390, 800)
WRONG, RIGHT, NONE = [213, 94, 0, 255], [0, 0, 0, 150], [0, 0, 0, 0]
HIT, ADDED, DIM = [86, 180, 233, 255], [240, 228, 66, 255], [0, 0, 0, 170]


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return write_page(make_run(tmp_path_factory.mktemp("browser") / "run"))


@pytest.fixture(scope="module")
def browser():
    api = pytest.importorskip("playwright.sync_api", reason="drives a browser")
    with api.sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-dev-shm-usage"]
        )
        yield browser
        browser.close()


class _Opened:
    """A page with its messages and requests."""

    def __init__(self, browser, path, size=WIDE, scheme="light"):
        view = {"width": size[0], "height": size[1]}
        self.page = browser.new_page(viewport=view, color_scheme=scheme)
        self.page.set_default_timeout(5000)
        self.messages, self.requests = [], []
        self.page.on("console", lambda message: self.messages.append(message.text))
        self.page.on("pageerror", lambda error: self.messages.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(path.as_uri())


@pytest.fixture
def opened(browser, path):
    opened = _Opened(browser, path)
    yield opened
    opened.page.close()
    requests = [u for u in opened.requests if not u.startswith("data:")]
    assert opened.messages == []  # whatever a test does
    assert requests == [path.as_uri()]


@pytest.fixture
def page(opened):
    return opened.page


def _card(page, number):
    """The card of evaluation image `number`, in view and painted."""
    card = page.locator(f".card[data-index='{number}']")
    card.scroll_into_view_if_needed()
    return card


def _pixel(page, number, side, y, x, shows):
    """A pixel of a side's canvas, once it shows what it should."""
    canvas = _card(page, number).locator(f"canvas.{side}[data-shows='{shows}']")
    canvas.wait_for(state="attached")
    code = "(c, [x, y]) => [...c.getContext('2d').getImageData(x, y, 1, 1).data]"
    return canvas.evaluate(code, [x, y])


def _cut(page, number):
    return (
        _card(page, number)
        .locator(".frame")
        .evaluate("f => f.style.getPropertyValue('--cut')")
    )


def _choose(page, side, view):
    page.locator(f"input[name={side}][value={view}]").check(force=True)


def _captions(page):
    return [
        int(t.split("· ")[1][0])
        for t in page.locator("figcaption .name").all_inner_texts()
    ]


def test_worst_and_best_come_first_and_the_order_can_be_changed(page):
    assert _captions(page) == [7, 0, 6, 1, 5, 2, 4, 3]
    badges = page.locator(".badge").all_inner_texts()
    assert badges[:4] == ["worst", "best", "worst 2", "best 2"]
    wanted = {"worst": [*range(7, -1, -1)], "best": [*range(8)], "number": [*range(8)]}
    for order, numbers in wanted.items():
        page.select_option("#order", order)
        assert _captions(page) == numbers


def test_truth_and_prediction_have_the_colours_of_their_classes(page):
    # Image 7: its first 28 rows are of the next class; the last columns are ignored.
    colours = {(0, 0, 0), (128, 0, 0), (0, 128, 0)}
    truth = _pixel(page, 7, "left", 40, 3, "truth all")
    guess = _pixel(page, 7, "right", 40, 3, "prediction all")
    assert truth == guess and tuple(truth[:3]) in colours and truth[3] == 255
    assert _pixel(page, 7, "left", 2, 3, "truth all") != _pixel(
        page, 7, "right", 2, 3, "prediction all"
    )
    assert _pixel(page, 7, "left", 40, 63, "truth all") == NONE


def test_errors_are_where_prediction_and_truth_differ(page):
    _choose(page, "right", "error")
    assert _pixel(page, 7, "right", 2, 3, "error all") == WRONG
    assert _pixel(page, 7, "right", 40, 3, "error all") == RIGHT
    assert _pixel(page, 7, "right", 2, 63, "error all") == NONE
    assert "wrong" in page.locator("#key").inner_text()


def test_another_stage_is_shown_and_ranked_by_its_own_scores(page):
    before = page.locator("figcaption strong").all_inner_texts()
    page.select_option("#right-source", label="front end")
    after = page.locator("figcaption strong").all_inner_texts()
    assert before[1] == "100.0 %" and after[1] != "100.0 %"
    tag = _card(page, 0).locator(".tag.right")
    tag.filter(has_text="Prediction, front end").wait_for()  # drawn a moment later
    _choose(page, "right", "error")
    assert _pixel(page, 0, "right", 1, 3, "error all") == WRONG  # two rows of it are
    assert _pixel(page, 0, "right", 2, 3, "error all") == RIGHT


def test_only_the_class_under_the_pointer_is_shown(page):
    shown = _pixel(page, 0, "left", 5, 3, "truth all")
    number = {(0, 0, 0): 0, (128, 0, 0): 1, (0, 128, 0): 2}[tuple(shown[:3])]
    button = page.locator(f".legend button[data-class='{number}']")
    other = page.locator(f".legend button[data-class='{(number + 1) % 3}']")
    button.hover()
    assert _pixel(page, 0, "left", 5, 3, f"truth {number}") == shown
    assert page.locator(f"#iou tr.lit[data-class='{number}']").count() == 1
    other.hover()
    assert _pixel(page, 0, "left", 5, 3, f"truth {(number + 1) % 3}") == DIM
    page.mouse.move(0, 0)
    assert _pixel(page, 0, "left", 5, 3, "truth all") == shown


def test_a_class_is_pinned_by_keyboard_and_released_by_escape(page):
    button = page.locator(".legend button").first
    button.focus()
    page.keyboard.press("Enter")
    assert button.get_attribute("aria-pressed") == "true"
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    page.locator("#order").focus()
    assert "Showing only dark" in page.locator("#key").inner_text()
    page.keyboard.press("Escape")
    assert button.get_attribute("aria-pressed") == "false"
    assert page.locator("tr.lit").count() == 0


def test_errors_of_one_class_are_hits_misses_and_false_alarms(page):
    _choose(page, "left", "error")
    truth = _pixel(page, 7, "right", 2, 3, "prediction all")
    number = {(0, 0, 0): 0, (128, 0, 0): 1, (0, 128, 0): 2}[tuple(truth[:3])]
    page.locator(f".legend button[data-class='{number}']").click()
    assert _pixel(page, 7, "left", 2, 3, f"error {number}") == ADDED
    page.locator(f".legend button[data-class='{(number + 2) % 3}']").click()
    assert _pixel(page, 7, "left", 2, 3, f"error {(number + 2) % 3}") == WRONG
    key = page.locator("#key").inner_text()
    assert all(word in key for word in ("correct", "missed", "false positive"))


def test_the_divider_moves_by_keys(page):
    _card(page, 7).locator("input").focus()
    for key, wanted in (("ArrowRight", "51%"), ("ArrowLeft", "50%"), ("Home", "0%")):
        page.keyboard.press(key)
        assert _cut(page, 7) == wanted
    assert _cut(page, 0) == ""


def test_dividers_move_by_mouse_and_together(page):
    frame = _card(page, 7).locator(".frame").bounding_box()
    y = frame["y"] + frame["height"] / 2
    page.mouse.click(frame["x"] + frame["width"] / 4, y)
    assert 20 <= int(_cut(page, 7).rstrip("%")) <= 30
    page.locator("#together").check()
    _card(page, 6).locator("input").focus()
    page.keyboard.press("End")
    assert [_cut(page, number) for number in (0, 6, 7)] == ["100%"] * 3


def test_radio_buttons_move_by_arrow_keys(page):
    page.locator("input[name=right][value=prediction]").focus()
    page.keyboard.press("ArrowRight")
    assert page.locator("input[name=right][value=error]").is_checked()
    assert _card(page, 7).locator(".tag.right").inner_text() == "Error, joint"


def test_the_slider_sets_the_opacity(page):
    page.locator("#opacity").focus()
    page.keyboard.press("Home")
    canvas = _card(page, 7).locator("canvas.left")
    assert canvas.evaluate("c => getComputedStyle(c).opacity") == "0"


def test_every_control_and_image_has_a_name(page):
    named = """() => [...document.querySelectorAll('img, input, select, button, svg')]
        .filter(e => !(e.alt || e.ariaLabel || e.labels?.length || e.textContent))
        .map(e => e.outerHTML.slice(0, 80))"""
    assert page.evaluate(named) == []
    assert page.locator("h1").count() == 1 and page.locator("main").count() == 1


@pytest.mark.parametrize("size", [WIDE, PHONE, (320, 600)])
def test_nothing_is_wider_than_the_screen(browser, path, size):
    opened = _Opened(browser, path, size)
    assert opened.page.evaluate("document.documentElement.scrollWidth") == size[0]
    if size == PHONE:  # wraps, or is small enough
        for name in ("nav ul", ".legend", "#iou .scroll", "#confusion [open] .scroll"):
            box = opened.page.locator(name)
            assert box.evaluate("e => e.scrollWidth - e.clientWidth") <= 0, name
    opened.page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_contrasts_with_its_background(browser, path, scheme):
    opened = _Opened(browser, path, scheme=scheme)
    read = """name => getComputedStyle(document.querySelector(name))"""
    ground = _luminance(opened.page.evaluate(f"({read})('body').backgroundColor"))
    for name, least in (("body", 7), (".faint", 4.5), ("nav a", 4.5), (".badge", 3)):
        ink = _luminance(opened.page.evaluate(f"({read})('{name}').color"))
        light, dark = max(ink, ground), min(ink, ground)
        assert (light + 0.05) / (dark + 0.05) >= least, name
    assert (ground < 0.1) == (scheme == "dark")
    opened.page.close()


def _luminance(colour):
    """Of `rgb(r, g, b)`, as WCAG 2 has it."""
    parts = [int(n) / 255 for n in re.findall(r"\d+", colour)[:3]]
    linear = [
        c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts
    ]
    return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
