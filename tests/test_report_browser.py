"""The report in a real browser: no error on the console, search, sort, the chart, a phone, the dark, paper."""

import shutil

import pytest
from reports import planted, study_of
from selenium import webdriver
from selenium.webdriver.common.keys import Keys

from benchmarks import report

pytestmark = pytest.mark.slow

NS, PS, VARIANTS = (100, 1000, 2000), (10, 3000), ("primal", "dual", "primal-keops")


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The address of a report with every kind of content."""
    speed = {"primal": 3.0, "dual": 2.0, "primal-keops": 5.0}
    made = [planted(v, n, p, speed[v] * n / 100) for v in VARIANTS for p in PS for n in NS]
    made[5] = planted("primal", 2000, 3000, status="oom", detail=f"during warm-up: {'cannot allocate ' * 20}")
    made.append(planted("gone", 100, 10))
    study = study_of(tmp_path_factory.mktemp("results") / "here", made, n=NS, p=PS, variants=VARIANTS)
    return report.write(study).as_uri()


@pytest.fixture(scope="module")
def chromium():
    paths = {name: shutil.which(name) for name in ("chromium", "chromedriver")}
    if not all(paths.values()):
        pytest.skip("needs chromium and chromedriver: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = paths["chromium"]
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(paths["chromedriver"]))
    yield driver
    driver.quit()


@pytest.fixture
def browser(chromium, page):
    """The page, loaded afresh on a wide and light screen; nothing may appear on the console."""
    emulate(chromium)
    chromium.get(page)
    yield chromium
    assert chromium.get_log("browser") == []


def emulate(driver, width=1280, scheme="light", media=""):
    size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    features = [
        {"name": "prefers-color-scheme", "value": scheme},
        {"name": "prefers-reduced-motion", "value": "reduce"},  # a page that glides is clicked beside the point
    ]
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": media, "features": features})


def find(browser, css):
    return browser.find_element("css selector", css)


def shown(browser):
    """(variant, n, p, runtime) of the visible rows of the full table."""
    rows = browser.execute_script(
        "return [...document.querySelectorAll('#full tbody tr')].filter((row) => row.offsetParent)"
        ".map((row) => [...row.cells].map((cell) => cell.textContent))"
    )
    return [(variant, n, p, runtime) for variant, n, p, _, runtime, *_ in rows]


def test_an_error_on_the_console_is_seen(chromium, page):
    chromium.get(page)
    chromium.execute_script("setTimeout(() => { throw new Error('planted'); })")
    assert any("planted" in entry["message"] for entry in chromium.get_log("browser"))


def test_search_keeps_the_rows_that_have_every_word(browser):
    field, count = find(browser, "input[type=search]"), find(browser, "output")
    assert count.text == "19 of 19 rows"
    field.send_keys("keops 2,000")
    assert {row[:3] for row in shown(browser)} == {("primal-keops", "2,000", p) for p in ("10", "3,000")}
    assert count.text == "2 of 19 rows"
    field.send_keys(" no-such-word")
    assert shown(browser) == []
    field.send_keys(Keys.CONTROL + "a", Keys.DELETE)
    assert len(shown(browser)) == 19


def test_a_heading_sorts_by_number_both_ways_and_empty_ones_last(browser):
    heading = "#full thead th:nth-child(5)"  # runtime
    find(browser, f"{heading} button").click()
    runtimes = [row[3] for row in shown(browser)]
    assert runtimes[-1] == ""
    numbers = [float(text) for text in runtimes[:-1]]
    assert numbers == sorted(numbers)
    assert find(browser, heading).get_attribute("aria-sort") == "ascending"
    find(browser, f"{heading} button").click()
    runtimes = [row[3] for row in shown(browser)]
    assert [float(text) for text in runtimes[:-1]] == numbers[::-1]
    assert runtimes[-1] == ""


def readout(browser):
    return find(browser, ".readout p").text, find(browser, ".readout ol").text.split("\n")


def test_the_chart_tells_its_values(browser):
    assert readout(browser) == (
        "n = 2,000, p = 10",
        ["dual", "40 s", "primal", "60 s", "primal, KeOps (LSMMD-MA)", "100 s"],
    )
    find(browser, "select[name=p] option[value='3000']").click()
    assert readout(browser)[1][-2:] == ["primal", "ran out of memory"]
    find(browser, "svg.plate").send_keys(Keys.ARROW_LEFT)
    assert readout(browser)[0] == "n = 1,000, p = 3,000"
    find(browser, "select[name=quantity] option[value='2']").click()
    assert readout(browser)[1][1] == "0.25 GiB"


def test_pointing_at_a_line_picks_it_out(browser):
    point = browser.find_elements("css selector", "svg.plate g[data-v='2'] circle")[0]
    webdriver.ActionChains(browser).move_to_element(point).perform()
    assert readout(browser)[0] == "n = 100, p = 10"
    assert find(browser, ".readout .near").text.startswith("primal, KeOps")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_overflows_a_phone(browser, scheme):
    emulate(browser, width=360, scheme=scheme)
    browser.refresh()
    assert browser.execute_script("return document.documentElement.scrollWidth") == 360
    beyond = browser.execute_script(
        "return [...document.querySelectorAll('body *')].filter((node) => !node.closest('.scroll, .unseen') &&"
        " node.getBoundingClientRect().right > 361).map((node) => node.outerHTML.slice(0, 80))"
    )
    assert beyond == []


def test_the_dark_scheme_is_followed(browser):
    def background():
        return browser.execute_script("return getComputedStyle(document.body).backgroundColor")

    assert background() == "rgb(255, 255, 255)"
    emulate(browser, scheme="dark")
    assert background() == "rgb(23, 23, 23)"


def test_paper_is_light_and_has_no_controls(browser):
    emulate(browser, scheme="dark", media="print")
    visible = browser.execute_script("return [...document.querySelectorAll('nav, input, .chart, #full, .downloads')]"
                                     ".filter((node) => node.getClientRects().length).length")  # fmt: skip
    assert visible == 0
    assert browser.execute_script("return getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert "left out on paper" in find(browser, "main").text
    assert "The table of all losses, wider than paper, is left out here" in find(browser, "main").text


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_begins_with_facts_that_lead_to_their_sections(browser, scheme):
    emulate(browser, scheme=scheme)
    facts = browser.find_elements("css selector", ".facts a")
    assert 6 <= len(facts) <= 8
    assert max(fact.rect["y"] for fact in facts) < find(browser, "#verdict").rect["y"]
    assert {fact.rect["width"] for fact in facts} == {facts[0].rect["width"]}
    facts[0].click()
    assert browser.current_url.endswith("#how-every-measurement-ended")


def test_figures_side_by_side_have_one_size_and_one_top(browser):
    one, other = (figure.rect for figure in browser.find_elements("css selector", ".pair img"))
    assert (one["y"], one["width"], one["height"]) == (other["y"], other["width"], other["height"])
    assert one["x"] + one["width"] < other["x"]


def test_without_javascript_the_page_says_what_is_missing(browser, page):
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    browser.get(page)
    try:
        text = find(browser, "main").text
    finally:
        browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
    assert "needs JavaScript" in text
    assert not find(browser, "input[type=search]").is_displayed()
    assert not find(browser, ".chart").is_displayed()
    assert find(browser, "#full").is_displayed()
