"""The site: every page is there, no link is dead, and a browser shows it without an error.

It is built once, with code and API of three notebooks and the prose of all: the whole takes over a minute.
`CHEXMIX_SITE=_docs` looks at the site of `make docs` instead.
"""
import functools, os, posixpath, re, subprocess, sys, threading
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlsplit

import pytest, repository  # which finds docs/notebooks.py
from browsers import chromium, wait_for
from conftest import root
from notebooks import git_url, in_order, ini, page, SIDEBAR, sidebar

COMPLETE = ('04_model', 'datasets', 'read_a_record')  # notebooks with code, figures and API
FIGURE = 'notebooks/04_model.html'                    # a page that must show one
EXTERNAL = ('http:', 'https:', 'mailto:', 'data:')


@pytest.fixture(scope='module')
def site(tmp_path_factory) -> Path:
    "The site, built with warnings as errors."
    if 'CHEXMIX_SITE' in os.environ: return (root/os.environ['CHEXMIX_SITE']).resolve()
    folder = tmp_path_factory.mktemp('site')
    source, built = folder/'source', folder/'site'
    commands = (
        [sys.executable, root/'docs'/'notebooks.py', source, *COMPLETE],
        [Path(sys.executable).with_name('sphinx-build'), '-q', '-W', '--keep-going', '-c', root/'docs',
         '-d', folder/'doctrees', source, built])
    for command in commands:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    return built


class Page(HTMLParser):
    "The links, the addresses of pictures and scripts, and the anchors of a page."
    def __init__(self, text: str):
        super().__init__()
        self.links, self.ids = [], set()
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        if attributes.get('id'): self.ids.add(attributes['id'])
        links = [attributes.get(name) for name in ('href', 'src')]
        self.links += [link for link in links if link and not link.startswith(EXTERNAL)]


@pytest.fixture(scope='module')
def pages(site) -> dict[str, Page]:
    "Name below the site → page."
    files = site.rglob('*.html')
    return {str(path.relative_to(site)): Page(path.read_text(encoding='utf-8')) for path in files}


def dead_links(site: Path, pages: dict[str, Page]) -> list[str]:
    "Links inside the site to files and anchors that are not there, with the pages that have them."
    dead = []
    for name, content in pages.items():
        for link in set(content.links):
            path, anchor = urldefrag(unquote(link))
            here, path = posixpath.dirname(name), urlsplit(path).path
            target = posixpath.normpath(posixpath.join(here, path)) if path else name
            if path.endswith('/') or target == '.': target = posixpath.join(target, 'index.html')
            known = pages.get(target)
            missing_anchor = anchor and known and anchor not in known.ids
            if missing_anchor or not (site/target).exists(): dead.append(f'{name}: {link}')
    return sorted(dead)


def test_no_link_is_dead(site, pages):
    assert len(pages) > 60
    assert dead_links(site, pages) == []


def test_a_dead_link_and_a_dead_anchor_are_named(tmp_path):
    (tmp_path/'there.html').touch()
    links = ''.join(f'<a href="{link}">a</a>' for link in ('there.html', 'gone.html', '#x', '#y'))
    text = links + '<p id="x"></p>'
    pages = {'here.html': Page(text), 'there.html': Page('')}
    (tmp_path/'here.html').touch()
    assert dead_links(tmp_path, pages) == ['here.html: #y', 'here.html: gone.html']


def test_every_notebook_has_a_page_with_links_to_its_source_and_to_colab(site, pages):
    for path in in_order():
        if path.stem == 'index': continue
        text = (site/f'{page(path)}.html').read_text(encoding='utf-8')
        place = path.relative_to(root)
        assert f'{git_url}/blob/main/{place}' in text, place
        assert 'https://colab.research.google.com/github/' in text and f'{place}"' in text, place


def test_sidebar_has_each_page_once_in_seven_groups(site):
    paths = [path for path in in_order() if path.stem != 'index']
    pages = ['overview', 'card', 'card_stage2', 'contributing', 'licences', 'faults', 'api/index']
    groups = sidebar(paths, pages)
    places = [place for group in groups.values() for place in group]
    assert sorted(places) == sorted(set(places)) and len(places) == len(paths) + len(pages)
    text = (site/'index.html').read_text(encoding='utf-8')
    captions = re.findall(r'<span class="caption-text">(.+?)</span>', text)
    assert captions == list(SIDEBAR) == 'Start Data Model Pretrain Evaluate Inference Internals'.split()


def test_a_class_shows_its_own_parameters_alone(site):
    text = (site/'api'/'model.html').read_text(encoding='utf-8')
    entry = text[text.index('id="chexmix.model.ChexmixConfig"'):]
    plain = re.sub(r'<[^>]+>', '', entry[:entry.index('</dt>')])
    assert 'n_text=50_368' in plain.replace('50368', '50_368') and 'bidirectional=False' in plain
    assert '**kwargs' in plain and not re.search('transformers_version|id2label|use_cache', plain)


def test_each_page_says_version_and_commit(site):
    command = ['git', 'rev-parse', '--short', 'HEAD']
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    for name in ('index', 'notebooks/04_model', 'api/model'):
        text = (site/f'{name}.html').read_text(encoding='utf-8')
        assert f'version {ini["DEFAULT"]["version"]}' in text
        if done.returncode or 'CHEXMIX_SITE' in os.environ: continue  # no git; made at an earlier commit
        assert f'commit {done.stdout.strip()}' in text


def test_nothing_is_loaded_from_another_site(site):
    for path in site.rglob('*.html'):
        text = path.read_text(encoding='utf-8')
        loaded = re.findall(r'<(?:script|img|link)\b[^>]*\b(?:src|href)="(https?:[^"]+)"', text)
        assert not loaded, (path.name, loaded)


# in a browser

class Quiet(SimpleHTTPRequestHandler):
    "A file server that prints nothing."
    def log_message(self, *arguments): pass


@pytest.fixture(scope='module')
def address(site):
    "Where the site is served, on this machine alone."
    handler = functools.partial(Quiet, directory=str(site))
    server = ThreadingHTTPServer(('127.0.0.1', 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f'http://127.0.0.1:{server.server_port}'
    server.shutdown()
    server.server_close()


@pytest.fixture(scope='module')
def driver():
    with chromium('window-size=1400,1000') as driver: yield driver


def console_errors(driver) -> list[str]:
    "What the console said since the last call, warnings included."
    entries = driver.get_log('browser')
    return [entry['message'] for entry in entries if entry['level'] in ('SEVERE', 'WARNING')]


def pictures(driver) -> list:
    "Pictures of the page that have loaded and are visible."
    found = driver.find_elements('css selector', 'article img')
    return [x for x in found if x.is_displayed() and int(x.get_property('naturalWidth')) > 50]


def background(driver) -> float:
    "How bright the page's background is, 0…255."
    colour = driver.find_element('tag name', 'body').value_of_css_property('background-color')
    red, green, blue = map(float, re.findall(r'[\d.]+', colour)[:3])
    return (red + green + blue) / 3


def test_home_shows_a_picture_and_leads_to_a_guide(driver, address):
    driver.get(f'{address}/index.html')
    assert driver.find_element('tag name', 'h1').text.startswith('chexmix')
    assert wait_for(lambda: pictures(driver))
    guide = driver.find_element('css selector', 'article a[href*="guides/"]')
    driver.execute_script('arguments[0].scrollIntoView({block: "center", behavior: "instant"})', guide)
    guide.click()
    assert wait_for(lambda: '/guides/' in driver.current_url)
    assert driver.find_element('tag name', 'h1').is_displayed()
    assert console_errors(driver) == []


def test_a_notebook_shows_a_figure_and_an_equation(driver, address):
    driver.get(f'{address}/{FIGURE}')
    assert wait_for(lambda: pictures(driver))
    equation = driver.find_element('css selector', 'article math[display="block"]')
    assert equation.is_displayed() and equation.size['height'] > 10
    assert console_errors(driver) == []


def test_search_finds_a_function(driver, address):
    driver.get(f'{address}/search.html?q=mask_tokens')
    results = wait_for(lambda: driver.find_elements('css selector', '#search-results li a'))
    assert any('mask_tokens' in result.get_attribute('href') for result in results)
    assert console_errors(driver) == []


@pytest.mark.parametrize('scheme, bright', [('light', True), ('dark', False)])
def test_both_colour_schemes(driver, address, scheme, bright):
    features = [dict(name='prefers-color-scheme', value=scheme)]
    driver.execute_cdp_cmd('Emulation.setEmulatedMedia', dict(features=features))
    for name in ('index.html', FIGURE):
        driver.get(f'{address}/{name}')
        assert (background(driver) > 127) is bright
        assert wait_for(lambda: pictures(driver))
    assert console_errors(driver) == []


@pytest.mark.parametrize('width', [400, 1400])
def test_nothing_is_wider_than_the_window(driver, address, width):
    size = dict(width=width, height=900, deviceScaleFactor=1, mobile=width < 500)
    driver.execute_cdp_cmd('Emulation.setDeviceMetricsOverride', size)
    for name in ('index.html', FIGURE, 'overview.html'):
        driver.get(f'{address}/{name}')
        assert driver.execute_script('return document.documentElement.scrollWidth') <= width, name
    driver.execute_cdp_cmd('Emulation.clearDeviceMetricsOverride', {})
