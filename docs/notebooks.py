"Notebooks as readers see them: without hidden cells and nbdev's directives. `python docs/notebooks.py README.md` or `… docs/_source`."
import re, shutil, sys
from pathlib import Path

import nbformat
from nbconvert import MarkdownExporter
from traitlets.config import Config

root = Path(__file__).resolve().parents[1]
directive = re.compile(r'^#\s*\|\s*(?P<name>[\w-]+):?[ \t]*(?P<value>.*)\n?', re.M)


def shown(
    path: Path,  # a notebook
) -> nbformat.NotebookNode:
    "The notebook without cells that are hidden or empty; `#| echo: false` drops the source, `#| output: false` the outputs."
    nb = nbformat.read(path, as_version=4)
    cells = []
    for cell in nb.cells:
        said = {m['name']: m['value'].strip() for m in directive.finditer(cell.source)} if cell.cell_type == 'code' else {}
        if cell.cell_type == 'code': cell.source = directive.sub('', cell.source).strip('\n')
        if said.get('output') == 'false': cell.outputs = []
        if said.get('echo') == 'false': cell.metadata.tags = [*cell.metadata.get('tags', []), 'remove-input']
        if 'hide' not in said and (cell.source.strip() or cell.get('outputs')): cells.append(cell)
    nb.cells = cells
    nb.metadata.language_info = {'name': 'python'}  # nbdev_clean drops it; highlighting needs it
    return nb


def readme() -> str:
    "`nbs/index.ipynb` as Markdown, its links as seen from the root of the repository."
    nb = shown(root/'nbs'/'index.ipynb')
    config = Config(TagRemovePreprocessor=dict(enabled=True, remove_input_tags={'remove-input'}))
    text, resources = MarkdownExporter(config=config).from_notebook_node(nb)
    if resources['outputs']: raise SystemExit('nbs/index.ipynb shows a picture: save it under results/ and link it, so that README.md can')
    text = re.sub(r'\]\((?!\w+:|#|\.\./)', '](nbs/', text).replace('](../', '](')
    return re.sub(r'\n{3,}', '\n\n', text).strip() + '\n'


def modules() -> list[str]:
    "Names of the package's modules, in the order of the notebooks that export them."
    defaults = [re.search(r'^#\|\s*default_exp (\w+)', c.source, re.M) for p in sorted((root/'nbs').glob('[0-9]*.ipynb')) for c in nbformat.read(p, 4).cells]
    return [m[1] for m in defaults if m]


def source(
    folder: Path,  # made anew
):
    "Write what Sphinx reads: the index, the notebooks as shown, one API page a module."
    shutil.rmtree(folder, ignore_errors=True)
    (folder/'notebooks').mkdir(parents=True)
    (folder/'api').mkdir()
    names = [p.stem for p in sorted((root/'nbs').glob('[0-9]*.ipynb'))]
    for name in names: nbformat.write(shown(root/'nbs'/f'{name}.ipynb'), folder/'notebooks'/f'{name}.ipynb')
    toctree = lambda caption, pages: f'\n```{{toctree}}\n:hidden:\n:caption: {caption}\n\n' + '\n'.join(pages) + '\n```\n'
    index = readme().replace('](nbs/', '](notebooks/').replace('](CONTRIBUTING.md', '](contributing.md').replace('](chexmix/bundled/README.md', '](card.md')
    for link in re.findall(r'\]\((results/[^)#\s]+)', index):
        (folder/link).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(root/link, folder/link)
    index += toctree('Notebooks', [f'notebooks/{n}' for n in names]) + toctree('API', [f'api/{m}' for m in modules()]) + toctree('Project', ['contributing', 'card'])
    (folder/'index.md').write_text(index, encoding='utf-8')
    shutil.copy(root/'CONTRIBUTING.md', folder/'contributing.md')
    shutil.copy(root/'chexmix'/'bundled'/'README.md', folder/'card.md')  # of the weights in the package
    for m in modules():
        title = f'chexmix.{m}'
        (folder/'api'/f'{m}.rst').write_text(f'{title}\n{"=" * len(title)}\n\n.. automodule:: {title}\n   :members:\n', encoding='utf-8')


if __name__ == '__main__':
    target = Path(sys.argv[1])
    if target.suffix == '.md': target.write_text(readme(), encoding='utf-8')
    else: source(target)
