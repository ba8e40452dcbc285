"`chexmix explore` in a real browser: the slider and the brush change image and text."
import os, signal, socket, subprocess, sys
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from browsers import chromium, wait_for

for module in ('voila', 'anywidget'):
    pytest.importorskip(module, reason=f"{module} is missing: pip install 'chexmix[notebooks]'")

PROGRAM = 'import sys; from chexmix.cli import main; sys.exit(main())'


def free_port() -> int:
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]


@pytest.fixture(scope='module')
def browser():
    "The page streams while its kernel starts."
    with chromium('window-size=1300,1150', strategy='none') as browser: yield browser


@pytest.fixture(scope='module')
def address(browser, tiny_run):
    "The app of the packed weights, or of the tiny run where there are none."
    from chexmix.pipeline import BUNDLED
    port = free_port()
    command = [sys.executable, '-c', PROGRAM, 'explore', '--port', str(port)]
    if not (BUNDLED/'model.safetensors').exists(): command += ['--model', str(tiny_run)]
    app = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    line = app.stdout.readline()  # it comes when the app listens
    yield next((word for word in line.split() if word.startswith('http')), line)
    app.terminate()
    try: app.wait(20)
    except subprocess.TimeoutExpired: os.killpg(app.pid, signal.SIGKILL)


def shown(browser) -> tuple[str, str]:
    "The picture of the filled image, and the report, at one moment."
    script = """return ['.chexmix-panel svg', '.chexmix-report']
        .map(name => document.querySelector(name)).map(part => part.outerHTML)"""
    return tuple(browser.execute_script(script))


def cells_looked_at(browser) -> str:
    "The picture of the cells that the chosen word looks at."
    return browser.execute_script("return document.querySelectorAll('.chexmix-panel svg')[1].outerHTML")


def choose_last_word(browser) -> bool:
    "Of the first report: the page shows two where the package has two stages."
    browser.find_element('css selector', '.chexmix-report').find_elements('css selector', 'span')[-1].click()
    return True


def hidden_cells(browser) -> int:
    script = '''return [...document.querySelectorAll('.chexmix-cell')]
        .filter(cell => cell.style.background != 'transparent').length'''
    return browser.execute_script(script)


def test_slider_and_brush_change_image_and_text(address, browser, tmp_path):
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys
    assert address.startswith('http://127.0.0.1:')
    browser.get(address)
    by = 'css selector'
    wait_for(lambda: browser.find_elements(by, '.chexmix-report span'), 300)
    cells = browser.find_elements(by, '.chexmix-cell')
    first_picture, first_report = wait_for(lambda: shown(browser))
    assert hidden_cells(browser) == 0 and first_report

    handle = browser.find_element(by, '.noUi-handle')
    handle.send_keys(Keys.END)  # everything is hidden
    wait_for(lambda: hidden_cells(browser) == len(cells))
    wait_for(lambda: shown(browser)[0] != first_picture and shown(browser)[1] != first_report)
    all_hidden = wait_for(lambda: shown(browser))[0]

    handle.send_keys(Keys.HOME)
    wait_for(lambda: hidden_cells(browser) == 0 and shown(browser)[1] == first_report)
    cells = browser.find_elements(by, '.chexmix-cell')  # drawn anew with each mask
    first, last = cells[len(cells) // 2 + 1], cells[len(cells) // 2 + 3]
    ActionChains(browser).click_and_hold(first).move_to_element(last).release().perform()
    wait_for(lambda: shown(browser)[0] != first_picture)
    assert 1 <= hidden_cells(browser) <= 4 and shown(browser)[0] != all_hidden

    browser.save_screenshot(str(tmp_path/'explorer.png'))  # to look at
    before = wait_for(lambda: cells_looked_at(browser))
    wait_for(lambda: choose_last_word(browser))
    wait_for(lambda: cells_looked_at(browser) != before)

    field = browser.find_element(by, 'input[placeholder^="or a file"]')
    field.send_keys('nowhere.png' + Keys.ENTER)
    wait_for(lambda: 'nowhere.png' in browser.find_element(by, '.chexmix-status').text)
    errors = [entry['message'] for entry in browser.get_log('browser') if entry['level'] == 'SEVERE']
    assert not [message for message in errors if 'anywidget' in message], errors


def test_only_this_machine_is_served(address):
    "The port answers on the loopback address, and on no other one of this machine."
    port = urlsplit(address).port
    listening = Path('/proc/net/tcp').read_text().splitlines()[1:] if Path('/proc/net/tcp').exists() else []
    rows = [row.split() for row in listening]
    own = [row[1] for row in rows if row[1].endswith(f':{port:04X}') and row[3] == '0A']
    if not own: pytest.skip('this system does not list its sockets in /proc/net/tcp')
    assert own == [f'0100007F:{port:04X}']
