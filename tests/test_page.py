"The page of a run in a browser: nothing wider than the window, no error, and a slider that moves."
from pathlib import Path

import pytest
from browsers import chromium

from chexmix.page import Page, page_html, Part, StudyCard, Text
from chexmix.results import results_folder, results_page

WIDTHS, SCHEMES = (375, 820, 1440), ('light', 'dark')
WIDER = """
const wide = [...document.querySelectorAll('body *')].filter(e => !e.closest('.box, nav ol, .frame'));
return wide.filter(e => e.getBoundingClientRect().right > innerWidth + 1).map(e => e.outerHTML.slice(0, 80));
"""
BACKGROUND = 'return getComputedStyle(document.body).backgroundColor'
PLACE = 'return getComputedStyle(document.querySelector(".slider .edge")).left'


@pytest.fixture(scope='module')
def browser():
    "Without the network, too."
    with chromium('hide-scrollbars', 'host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE localhost') as browser:
        yield browser


@pytest.fixture(scope='module')
def page(tmp_path_factory):
    "The page of the committed records."
    folder, target = results_folder(), tmp_path_factory.mktemp('page')/'index.html'
    return results_page(folder, folder/'figures', target)


def open_page(browser, page: Path, width: int, scheme: str):
    "Open a page in a window of this width, in a light or dark scheme; errors seen before are forgotten."
    browser.get_log('browser')
    size = dict(width=width, height=900, deviceScaleFactor=1, mobile=width < 600)
    browser.execute_cdp_cmd('Emulation.setDeviceMetricsOverride', size)
    feature = dict(name='prefers-color-scheme', value=scheme)
    browser.execute_cdp_cmd('Emulation.setEmulatedMedia', dict(features=[feature]))
    browser.get(page.as_uri())


@pytest.mark.parametrize('scheme', SCHEMES)
@pytest.mark.parametrize('width', WIDTHS)
def test_page_fits_the_window_without_an_error(browser, page, width, scheme):
    open_page(browser, page, width, scheme)
    assert browser.get_log('browser') == []
    assert browser.execute_script('return innerWidth') == width
    assert browser.execute_script('return document.documentElement.scrollWidth') <= width
    assert browser.execute_script(WIDER) == []
    channels = browser.execute_script(BACKGROUND).removeprefix('rgb(').removesuffix(')').split(',')
    assert (sum(map(int, channels)) < 3 * 128) == (scheme == 'dark')


def test_contents_stay_in_view(browser, page):
    for width in WIDTHS:
        open_page(browser, page, width, 'light')
        browser.execute_script('document.documentElement.style.scrollBehavior = "auto"; scrollTo(0, 3000)')
        assert browser.execute_script('return scrollY') == 3000
        list_box = 'return document.querySelector("nav ol").getBoundingClientRect().toJSON()'
        box = browser.execute_script(list_box)
        assert box['top'] >= 0 and box['left'] >= 0 and box['top'] < 10


def test_slider_uncovers_what_was_filled_in(browser, page):
    from selenium.webdriver.common.action_chains import ActionChains
    open_page(browser, page, 1440, 'light')
    inputs = browser.find_elements('css selector', '.slider input')
    assert len(inputs) >= 6
    browser.execute_script('arguments[0].scrollIntoView({block: "center", behavior: "instant"})', inputs[0])
    width = inputs[0].size['width']
    before = float(browser.execute_script(PLACE).removesuffix('px'))
    grab = ActionChains(browser).move_to_element(inputs[0]).click_and_hold()
    grab.move_by_offset(round(.4 * width), 0).release().perform()
    after = float(browser.execute_script(PLACE).removesuffix('px'))
    assert after - before > .3 * width


def test_tables_have_rows_and_reports_stay_text(browser, page, tmp_path):
    open_page(browser, page, 820, 'light')
    rows = browser.execute_script('return [...document.querySelectorAll("tbody")].map(b => b.rows.length)')
    assert len(rows) >= 6 and min(rows) > 0
    hostile = '<img src=x onerror="document.title = 1"><script>document.title = 2</script>'
    part = Part(hostile, studies=[StudyCard([], [Text(hostile, hostile)])])
    made = tmp_path/'hostile.html'
    made.write_text(page_html(Page('title', hostile, [hostile], hostile, [part])), encoding='utf-8')
    open_page(browser, made, 820, 'light')
    assert browser.title == 'title' and browser.get_log('browser') == []
    assert browser.find_elements('css selector', 'img') == []
    assert hostile in browser.find_element('css selector', '.text p').text
