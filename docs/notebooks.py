"""Notebooks as readers see them: without hidden cells and nbdev's directives.

Usage: `python docs/notebooks.py README.md`, `… docs/_source`, or `… --list`. With `… docs/_source NAME …`
only the notebooks named keep code and API, all their prose: that site is made sooner.
"""
import ast, json, os, re, shutil, sys
from configparser import ConfigParser
from pathlib import Path

import nbformat
from nbconvert import MarkdownExporter
from traitlets.config import Config

root = Path(__file__).resolve().parents[1]
directive = re.compile(r'^#\s*\|\s*(?P<name>[\w-]+):?[ \t]*(?P<value>.*)\n?', re.M)


def exported_source(
    path: Path,  # a notebook
) -> str:
    "The code that the notebook exports."
    cells = nbformat.read(path, as_version=4).cells
    sources = [c.source for c in cells if c.cell_type == 'code']
    return '\n'.join(s for s in sources if re.search(r'^#\s*\|\s*export', s, re.M))


def module_name(
    path: Path,  # a notebook
) -> str:
    "The module that the notebook exports; '' where it exports none."
    cells = nbformat.read(path, as_version=4).cells
    found = [m[1] for c in cells if (m := re.search(r'^#\|\s*default_exp (\w+)', c.source, re.M))]
    return found[0] if found else ''


def imported_modules(
    path: Path,  # a notebook
) -> set[str]:
    "Modules of this package that the exported code imports."
    nodes = ast.walk(ast.parse(exported_source(path)))
    names = [n.module for n in nodes if isinstance(n, ast.ImportFrom) and n.module]
    return {name.removeprefix('chexmix.') for name in names if name.startswith('chexmix.')}


def in_order(
    folder: Path = root/'nbs',
) -> list[Path]:
    "All notebooks: numbered ones by number, one in a room before the first that imports from it."
    def is_hidden(path): return any(part[0] in '._' for part in path.relative_to(folder).parts)
    paths = [p for p in folder.rglob('*.ipynb') if not is_hidden(p)]
    paths.sort(key=lambda p: (len(p.parts), str(p)))  # the numbered ones first
    exporting = {module_name(p): p for p in paths}
    order = []

    def visit(path, above=()):
        if path in order: return
        if path in above: raise SystemExit(f'{path.name} imports itself, by way of {above[-1].name}')
        for module in sorted(imported_modules(path) & exporting.keys()):
            visit(exporting[module], (*above, path))
        order.append(path)
    for path in paths: visit(path)
    return order


def shown(
    path: Path,  # a notebook
) -> nbformat.NotebookNode:
    "The notebook without hidden or empty cells; `#| echo: false` drops a source, `#| output: false` outputs."
    nb = nbformat.read(path, as_version=4)
    cells = []
    for cell in nb.cells:
        directives = {}
        if cell.cell_type == 'code':
            directives = {m['name']: m['value'].strip() for m in directive.finditer(cell.source)}
            cell.source = directive.sub('', cell.source).strip('\n')
        if directives.get('output') == 'false': cell.outputs = []
        if directives.get('echo') == 'false':
            cell.metadata.tags = [*cell.metadata.get('tags', []), 'remove-input']
        empty = not cell.source.strip() and not cell.get('outputs')
        if 'hide' not in directives and not empty: cells.append(cell)
    nb.cells = cells
    nb.metadata.language_info = {'name': 'python'}  # nbdev_clean drops it; highlighting needs it
    return nb


def readme() -> str:
    "`nbs/index.ipynb` as Markdown, its links as seen from the root of the repository."
    nb = shown(root/'nbs'/'index.ipynb')
    config = Config(TagRemovePreprocessor=dict(enabled=True, remove_input_tags={'remove-input'}))
    text, resources = MarkdownExporter(config=config).from_notebook_node(nb)
    if resources['outputs']:
        raise SystemExit('nbs/index.ipynb shows a picture: save it under results/ and link it, for README.md')
    text = re.sub(r'\]\((?!\w+:|#|\.\./)', '](nbs/', text).replace('](../', '](')
    return re.sub(r'\n{3,}', '\n\n', text).strip() + '\n'


ini = ConfigParser(delimiters=['='])
ini.read(root/'settings.ini', encoding='utf-8')
git_url, branch = ini['DEFAULT']['git_url'], ini['DEFAULT']['branch']

SIDEBAR = {  # caption → what the sidebar shows below it: notebooks by name, rooms of nbs/, other pages
    'Start': ('overview', 'first_look', 'sample', 'your_dicoms', 'your_collection', 'read_a_record',
              'pretrain_on_mimic', 'many_machines', 'start_from_phi', 'add_a_data_set', 'add_a_metric'),
    'Data': ('01_data', 'data', '02_phantom', 'phantom'),
    'Model': ('03_tokenizer', 'tokenizer', '04_model', 'model'),
    'Pretrain': ('05_pretrain', 'training_loop', 'benchmarks_training'),
    'Evaluate': ('06_classify', '07_inpaint', '08_report', '09_retrieve', '10_baselines', 'compare',
                 'metrics', 'records', '11_results'),
    'Inference': ('12_released', 'pipeline', 'inference', '14_cli', '15_explore', 'card', 'card_stage2'),
    'Internals': ('00_core', 'foundations', '13_benchmarks', 'benchmarks', 'api/index', 'contributing',
                  'licences', 'faults')}


def sidebar_name(
    path: Path,  # a notebook
) -> str:
    "The entry of `SIDEBAR` that a notebook belongs to: its own, else its room's."
    names = [name for names in SIDEBAR.values() for name in names]
    for name in (path.stem, path.parent.name):
        if name in names: return name
    raise SystemExit(f'{path.name} has no place in the sidebar: add it, or its room, to SIDEBAR')


def page(path: Path) -> str:
    "The page of a notebook, below docs/_source and without ending."
    return f'notebooks/{path.relative_to(root/"nbs").with_suffix("")}'


def sidebar(
    paths: list[Path],  # notebooks
    others: list[str],  # pages without a notebook
) -> dict[str, list[str]]:  # caption → pages
    "The pages of each group, in the order of the sidebar."
    pages = {}
    for path in paths: pages.setdefault(sidebar_name(path), []).append(page(path))
    pages |= {name: [name] for name in others}
    groups = {}
    for caption, names in SIDEBAR.items():
        groups[caption] = [place for name in names for place in pages.get(name, [])]
    return groups


def toctree(
    caption: str,
    pages: list[str],  # below docs/_source, without ending
) -> str:
    "A hidden table of contents, which the theme shows in its sidebar."
    return f'\n```{{toctree}}\n:hidden:\n:caption: {caption}\n\n' + '\n'.join(pages) + '\n```\n'


def title_and_purpose(
    path: Path,  # a notebook
) -> tuple[str, str]:
    "A notebook's title, and the line of purpose below it."
    text = '\n'.join(c.source for c in nbformat.read(path, as_version=4).cells if c.cell_type == 'markdown')
    title = re.search(r'^# (.+)', text, re.M)
    purpose = re.search(r'^> (.+)', text, re.M)
    if not (title and purpose): raise SystemExit(f'{path.name} needs a title (# …) and a purpose (> …)')
    return title[1], purpose[1]


def guides() -> list[Path]:
    "The guides, in the order of the sidebar."
    paths = (root/'nbs'/'guides').glob('*.ipynb')
    return sorted(paths, key=lambda path: SIDEBAR['Start'].index(sidebar_name(path)))


def guide_list() -> str:
    "The guides as a list of links with their purposes."
    lines = []
    for path in guides():
        title, purpose = title_and_purpose(path)
        lines.append(f'- [{title}]({page(path)}.ipynb): {purpose[0].lower()}{purpose[1:]}')
    return '\n'.join(lines)


def page_links(
    path: Path,  # a notebook
) -> nbformat.NotebookNode:  # a cell
    "Links to a notebook's source, to Colab and to its module's page."
    place = path.relative_to(root)
    links = [f'[Source]({git_url}/blob/{branch}/{place})']
    if git_url.startswith('https://github.com/'):
        repository = git_url.removeprefix('https://github.com/')
        colab = f'https://colab.research.google.com/github/{repository}/blob/{branch}/{place}'
        links.append(f'[Open in Colab]({colab}) (there, first run `%pip install git+{git_url}`)')
    up = '../' * (len(place.parts) - 1)
    if module := module_name(path): links.append(f'[API]({up}api/{module}.rst)')
    return nbformat.v4.new_markdown_cell(' · '.join(links))


def faults_page() -> str:
    "The table of the fault campaign, and what it found, from its record; '' where there is none."
    path = root/'results'/'faults.json'
    if not path.exists(): return ''
    record = json.loads(path.read_text(encoding='utf-8'))
    lines = [
        '# Faults on purpose', '',
        'What `make faults` tried. A trial survives where all that must hold afterwards does.',
        'The interval is for the share that survives, at 95%.', '',
        '| fault | tried | survived | interval | date | commit |', '|---|---|---|---|---|---|']
    for row, measured in zip(record['rows'], record['records']):
        interval = f'{measured["low"]:.2%}–{measured["high"]:.0%}'
        cells = row['kind'], f'{row["tried"]:,}', f'{row["survived"]:,}', interval, row['date'], row['commit']
        lines.append(f'| {" | ".join(cells)} |')
    lines += ['', '## Found and mended', '']
    for fault in record.get('found', []):
        lines.append(f'- **{fault["kind"]}**: {fault["found"]} {fault["mended"]}')
    return '\n'.join(lines) + '\n'


MOVED = {  # file of the repository → page
    'nbs/index.ipynb': 'overview.md', 'CONTRIBUTING.md': 'contributing.md',
    'chexmix/bundled/README.md': 'card.md', 'chexmix/bundled/stage2/README.md': 'card_stage2.md',
    'docs/licences.md': 'licences.md'}


def site_link(
    link: str,    # relative to `place`
    place: Path,  # folder of the file that has the link, below the root
) -> str:
    "A link to a file of the repository as a link to its page, else to its source; others as they are."
    path = os.path.normpath(place/link)
    page = MOVED.get(path, path.replace('nbs/', 'notebooks/', 1) if path.endswith('.ipynb') else '')
    if not page and re.match(r'results/.+\.png$', path): page = path  # a picture, which is copied
    if page: return os.path.relpath(page, str(place).replace('nbs', 'notebooks', 1))
    return f'{git_url}/blob/{branch}/{path}' if (root/path).exists() else link


def with_site_links(
    text: str,    # Markdown
    place: Path,  # folder of its file, below the root
) -> str:
    "The same with links that lead to pages of the site."
    def moved(match):
        path, anchor = match[1], match[2] or ''
        return f']({site_link(path, place)}{anchor})'
    return re.sub(r'\]\((?!\w+:)([^)#\s]+)(#[^)\s]*)?\)', moved, text)


def write_pages(
    folder: Path,
) -> list[str]:  # their names
    "The pages that are no notebooks, but the landing page and the API."
    overview = readme().replace('# chexmix', '# Overview', 1)
    texts = dict(overview=with_site_links(overview, Path('.')), faults=faults_page())
    files = dict(
        contributing='CONTRIBUTING.md', card='chexmix/bundled/README.md',
        card_stage2='chexmix/bundled/stage2/README.md', licences='docs/licences.md')
    for name, path in files.items():
        texts[name] = with_site_links((root/path).read_text(encoding='utf-8'), Path(path).parent)
    texts = {name: text for name, text in texts.items() if text}
    for name, text in texts.items(): (folder/f'{name}.md').write_text(text, encoding='utf-8')
    return list(texts)


def write_notebooks(
    folder: Path,
    paths: list[Path],
    names: list[str],  # of those that keep their code; none: all
):
    "The notebooks as shown, with links below their titles."
    for path in paths:
        nb = shown(path)
        for cell in nb.cells:
            if cell.cell_type != 'markdown': continue
            cell.source = with_site_links(cell.source, path.relative_to(root).parent)
        nb.cells.insert(1, page_links(path))
        if names and path.stem not in names: nb.cells = [c for c in nb.cells if c.cell_type == 'markdown']
        target = folder/f'{page(path)}.ipynb'
        target.parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(nb, target)


def write_api(
    folder: Path,
    paths: list[Path],  # notebooks that export a module
    names: list[str],   # of those whose module is described; none: all
):
    "A page for each module, and one that lists them."
    (folder/'api').mkdir()
    rows = ['# API', '', 'Modules and what they are for; the notebook of each explains it.', '']
    for path in paths:
        module = module_name(path)
        title = f'chexmix.{module}'
        text = f'{title}\n{"=" * len(title)}\n\nExported from :doc:`/{page(path)}`, which explains it.\n'
        if not names or path.stem in names: text += f'\n.. automodule:: {title}\n   :members:\n'
        (folder/'api'/f'{module}.rst').write_text(text, encoding='utf-8')
        rows.append(f'- [{title}]({module}.rst): {title_and_purpose(path)[1]}')
    text = '\n'.join(rows) + '\n' + toctree('API', list(map(module_name, paths)))
    (folder/'api'/'index.md').write_text(text, encoding='utf-8')


def source(
    folder: Path,       # made anew
    names: list[str],   # of notebooks with code and API, see above; none: all
):
    "Write what Sphinx reads: the landing page, the notebooks as shown, one API page a module."
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    paths = [p for p in in_order() if p.name != 'index.ipynb']
    write_notebooks(folder, paths, names)
    write_api(folder, [p for p in paths if module_name(p)], names)
    pages = [*write_pages(folder), 'api/index']
    index = (root/'docs'/'index.md').read_text(encoding='utf-8')
    index = index.replace('<!-- guides -->', guide_list()).replace('GIT_URL', git_url)
    for caption, group in sidebar(paths, pages).items(): index += toctree(caption, group)
    (folder/'index.md').write_text(index, encoding='utf-8')
    essays = ''.join(path.read_text(encoding='utf-8') for path in paths)
    links = re.findall(r'\]\((results/[^)#\s]+)', index + readme())
    for link in {*links, *re.findall(r'\]\((?:\.\./)+(results/[^)#\s]+\.png)', essays)}:
        (folder/link).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(root/link, folder/link)


if __name__ == '__main__':
    if sys.argv[1] == '--list': print(*in_order(), sep='\n')
    elif sys.argv[1].endswith('.md'): Path(sys.argv[1]).write_text(readme(), encoding='utf-8')
    else: source(Path(sys.argv[1]), sys.argv[2:])
