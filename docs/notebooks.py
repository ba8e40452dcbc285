"""Notebooks as readers see them: without hidden cells and nbdev's directives.

Usage: `python docs/notebooks.py README.md`, `… docs/_source`, or `… --list`.
"""
import ast, json, re, shutil, sys
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


ROOMS = dict(  # folder of nbs/ → caption in the sidebar
    foundations='Foundations', data='Data', phantom='Synthetic patients', tokenizer='Tokenizer',
    model='Model', compare='Comparisons', inference='Inference', benchmarks='Benchmarks')


def toctree(
    caption: str,
    pages: list[str],  # below docs/_source, without ending
) -> str:
    "A hidden table of contents, which the theme shows in its sidebar."
    return f'\n```{{toctree}}\n:hidden:\n:caption: {caption}\n\n' + '\n'.join(pages) + '\n```\n'


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


def source(
    folder: Path,  # made anew
):
    "Write what Sphinx reads: the index, the notebooks as shown, one API page a module."
    shutil.rmtree(folder, ignore_errors=True)
    (folder/'api').mkdir(parents=True)
    paths = [p for p in in_order() if p.name != 'index.ipynb']
    pages = {}
    for path in paths:
        place = path.relative_to(root/'nbs')
        target = folder/'notebooks'/place
        target.parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(shown(path), target)
        room = place.parts[0] if len(place.parts) > 1 else ''
        pages.setdefault(room, []).append(f'notebooks/{place.with_suffix("")}')
    names = [m for m in map(module_name, paths) if m]
    index = readme().replace('](nbs/', '](notebooks/').replace('](CONTRIBUTING.md', '](contributing.md')
    index = index.replace('](chexmix/bundled/README.md', '](card.md')
    for link in re.findall(r'\]\((results/[^)#\s]+)', index):
        (folder/link).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(root/link, folder/link)
    index += toctree('Notebooks', pages.pop(''))
    for room, caption in ROOMS.items():
        if room in pages: index += toctree(caption, pages.pop(room))
    if pages: raise SystemExit(f'no caption for nbs/{next(iter(pages))}: add it to ROOMS')
    project = ['contributing', 'card', 'licences', *(['faults'] if faults_page() else [])]
    index += toctree('API', [f'api/{m}' for m in names]) + toctree('Project', project)
    (folder/'index.md').write_text(index, encoding='utf-8')
    shutil.copy(root/'CONTRIBUTING.md', folder/'contributing.md')
    shutil.copy(root/'chexmix'/'bundled'/'README.md', folder/'card.md')  # of the weights in the package
    shutil.copy(root/'docs'/'licences.md', folder/'licences.md')
    if faults_page(): (folder/'faults.md').write_text(faults_page(), encoding='utf-8')
    for m in names:
        title = f'chexmix.{m}'
        page = f'{title}\n{"=" * len(title)}\n\n.. automodule:: {title}\n   :members:\n'
        (folder/'api'/f'{m}.rst').write_text(page, encoding='utf-8')


if __name__ == '__main__':
    if sys.argv[1] == '--list': print(*in_order(), sep='\n')
    elif sys.argv[1].endswith('.md'): Path(sys.argv[1]).write_text(readme(), encoding='utf-8')
    else: source(Path(sys.argv[1]))
