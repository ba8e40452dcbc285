"Chromium without a window, for the tests that look at pages."
import shutil, time
from contextlib import contextmanager

import pytest


@contextmanager
def chromium(
    *options: str,         # of its command line, without dashes
    strategy='normal',     # none: a page counts as loaded while it still streams
):
    """A browser that keeps what its console says.

    The test is skipped where there is none (on Debian: apt install chromium chromium-driver).
    """
    webdriver = pytest.importorskip('selenium.webdriver', reason='no selenium: it is in the extra dev')
    browser, driver = shutil.which('chromium'), shutil.which('chromedriver')
    if not (browser and driver): pytest.skip('no browser: apt install chromium chromium-driver')
    settings = webdriver.ChromeOptions()
    settings.binary_location, settings.page_load_strategy = browser, strategy
    for option in ('headless=new', 'no-sandbox', 'disable-dev-shm-usage', 'disable-gpu', *options):
        settings.add_argument(f'--{option}')
    settings.set_capability('goog:loggingPrefs', {'browser': 'ALL'})
    opened = webdriver.Chrome(settings, webdriver.ChromeService(driver))
    opened.set_page_load_timeout(120)
    try: yield opened
    finally: opened.quit()


def wait_for(condition, seconds: float = 60):
    """The first true value of `condition()`; an error where there is none in time.

    A part of the page that is drawn anew while it is read is read again.
    """
    from selenium.common.exceptions import JavascriptException, StaleElementReferenceException
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            if found := condition(): return found
        except (JavascriptException, StaleElementReferenceException): pass
        time.sleep(.1)
    raise AssertionError(f'not within {seconds} s')
