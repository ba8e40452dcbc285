"The repository: exports in step, clean notebooks, plain lines, papermill parameters, a complete wheel."
import ast, os, re, shutil, subprocess, sys, tarfile, zipfile
from configparser import ConfigParser
from email import message_from_bytes
from pathlib import Path

import nbformat, pandas as pd, pytest, repository
from conftest import papermill, root
from notebooks import in_order, readme

from chexmix.core import read_json

NOTEBOOKS = in_order(root/'nbs')
RUN = (
    '03_tokenizer', '05_pretrain', '06_classify', '07_inpaint', '08_report', '09_retrieve', '10_baselines',
    '11_results', '13_benchmarks', 'benchmarks_tokens', 'benchmarks_training',
    'ablation', 'masking_study', 'other_models', 'real_radiographs', 'phantom_realism', 'tokenizer_quality',
    'shifts', 'first_look')
run_notebooks = [p for p in NOTEBOOKS if p.stem in RUN]


def test_modules_are_what_the_notebooks_export(): assert repository.drifted() == []


def test_notebooks_are_clean(): assert repository.unclean() == []


def test_no_output_shows_a_path_of_a_machine(): assert repository.machine_paths() == []


def test_readme_is_the_index(): assert (root/'README.md').read_text(encoding='utf-8') == readme()


def test_lines_are_plain(): assert repository.dense_lines() == []


def test_no_notebook_imports_from_a_higher_number(): assert repository.upward_imports() == []


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    "A project of two notebooks, one of them in a room, exported and clean."
    for name in ('settings.ini', 'pyproject.toml'): shutil.copy(root/name, tmp_path/name)
    lower, upper = '#| export\ndef one(): return 1', '#| export\nfrom chexmix.core import one'
    notebooks = {
        '00_core': ['#| default_exp core', lower, 'assert one() == 1'],
        'room/inner': ['#| default_exp inner', upper, 'assert one() == 1']}
    for name, sources in notebooks.items():
        path = tmp_path/'nbs'/f'{name}.ipynb'
        path.parent.mkdir(parents=True, exist_ok=True)
        cells = [nbformat.v4.new_code_cell(source) for source in sources]
        nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    for command in ('nbdev_clean', 'nbdev_export'): repository.call(command, tmp_path)
    monkeypatch.setattr(repository, 'root', tmp_path)
    return tmp_path


def edit(path: Path, change):
    "Apply `change` to a notebook's last cell."
    nb = nbformat.read(path, 4)
    change(nb.cells[-1])
    nbformat.write(nb, path)


def test_a_changed_or_stray_module_is_named(project):
    assert repository.drifted() == []
    (project/'chexmix'/'core.py').write_text('x = 1\n')
    (project/'chexmix'/'stray.py').write_text('x = 1\n')
    assert repository.drifted() == ['core.py', 'stray.py']


def test_a_notebook_in_a_room_that_is_not_exported_is_named(project):
    (project/'chexmix'/'inner.py').unlink()
    assert repository.drifted() == ['inner.py']


@pytest.mark.parametrize('name', ['00_core', 'room/inner'])
def test_a_notebook_that_is_not_clean_is_named(project, name):
    assert repository.unclean() == []
    edit(project/'nbs'/f'{name}.ipynb', lambda cell: cell.update(execution_count=7))
    assert repository.unclean() == [f'{name}.ipynb']


def test_a_failing_notebook_in_a_room_is_caught(project):
    "By the command with which `make test` runs the notebooks."
    command = [Path(sys.executable).with_name('nbdev_test'), '--n_workers', '1']
    env = {k: v for k, v in os.environ.items() if k != 'IN_TEST'} | {'PYTHONPATH': str(project)}
    assert subprocess.run(command, cwd=project, env=env, capture_output=True).returncode == 0
    edit(project/'nbs'/'room'/'inner.ipynb', lambda cell: cell.update(source='assert one() == 2'))
    done = subprocess.run(command, cwd=project, env=env, capture_output=True, text=True)
    assert done.returncode != 0 and 'inner.ipynb' in done.stderr


def test_a_long_line_a_nested_comprehension_and_a_crowded_function_are_named(project):
    long, inner = f'x = {"1" * 110}', ', '.join(f'name_{i}' for i in range(12))
    nested = f'y = [[a for a in row] for row in ({inner})]'
    crowded = 'def f(a, b, c, d, e, f, g, h, i): pass'
    source = '\n'.join((long, nested, crowded))
    edit(project/'nbs'/'room'/'inner.ipynb', lambda cell: cell.update(source=source))
    faults = '\n'.join(repository.dense_lines())
    assert 'inner.ipynb: 114 characters' in faults
    assert 'nested comprehension: [[a for a in row]' in faults
    assert 'f has more than 8 parameters' in faults


def test_an_import_from_a_higher_number_is_named(project):
    upward = '#| export\nfrom chexmix.later import x'
    edit(project/'nbs'/'00_core.ipynb', lambda cell: cell.update(source=upward))
    shutil.copy(project/'nbs'/'room'/'inner.ipynb', project/'nbs'/'01_later.ipynb')
    edit(project/'nbs'/'01_later.ipynb', lambda cell: cell.update(source='#| default_exp later'))
    (project/'nbs'/'room'/'inner.ipynb').unlink()
    nb = nbformat.read(project/'nbs'/'01_later.ipynb', 4)
    nb.cells = nb.cells[-1:]
    nbformat.write(nb, project/'nbs'/'01_later.ipynb')
    assert repository.upward_imports() == ['core needs later']


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook_is_small_and_shows_no_error(path):
    assert path.stat().st_size <= 1_000_000, 'committed outputs must stay small'
    text = path.read_text(encoding='utf-8')
    assert str(root) not in text, 'an output shows a path of this machine'
    for cell in nbformat.reads(text, 4).cells:
        assert not [o for o in cell.get('outputs', []) if o.output_type == 'error'], cell.source


RESULTS = sorted((root/'results').rglob('*.json'))


@pytest.mark.parametrize('path', RESULTS, ids=lambda p: f'{p.parent.name}-{p.stem}')
def test_record_names_data_of_no_machine(path):
    content = read_json(path)
    if 'records' not in content: return
    assert not content['config'].get('data', '').startswith('/')
    assert not content['data']['name'].startswith('/')


@pytest.mark.parametrize('path', run_notebooks, ids=lambda p: p.stem)
def test_run_notebook_has_one_cell_of_literal_parameters(path):
    tagged = [c for c in nbformat.read(path, 4).cells if 'parameters' in c.metadata.get('tags', [])]
    assert len(tagged) == 1 and tagged[0].cell_type == 'code'
    names = []
    for line in ast.parse(tagged[0].source).body:
        assert isinstance(line, ast.Assign), f'not an assignment: {ast.unparse(line)}'
        ast.literal_eval(line.value)
        names += [t.id for t in line.targets]
    assert 'run' in names
    lines = [line.strip() for line in tagged[0].source.splitlines() if line.strip()]
    comments = [line for line in lines if '#' not in line]
    assert not comments, f'parameters without a comment: {comments}'
    twice = [line for line in tagged[0].source.splitlines() if '=' in line.partition('#')[2]]
    assert not twice, f'papermill cannot parse a comment with an equals sign: {twice}'


def test_no_other_notebook_has_parameters():
    "A notebook that takes parameters is a run, and belongs into `RUN`."
    for path in NOTEBOOKS:
        tags = [tag for cell in nbformat.read(path, 4).cells for tag in cell.metadata.get('tags', [])]
        assert 'parameters' not in tags or path.stem in RUN


def test_papermill_changes_what_runs_before_and_after_cleaning(tiny_run, tmp_path):
    "`-p stage 2 -p steps N` trains N steps of stage 2, from a notebook as an editor leaves it, and cleaned."
    run = shutil.copytree(tiny_run, tmp_path/'run')
    with repository.fresh_copy() as copy:
        path = copy/'nbs'/'05_pretrain.ipynb'
        nb = nbformat.read(path, 4)
        for i, cell in enumerate(c for c in nb.cells if c.cell_type == 'code'):
            cell.execution_count = i
            cell.metadata['collapsed'] = False
        nbformat.write(nb, path)
        for name, steps in (('dirty', 3), ('clean', 5)):
            if name == 'clean': repository.call('nbdev_clean', copy)
            papermill(path, tmp_path/f'{name}.ipynb', preset='tiny', run=run, stage=2, steps=steps, name=name)
            trained = read_json(run/name/'settings.json')
            assert (trained['stage'], trained['steps']) == (2, steps)
            assert pd.read_csv(run/'logs'/f'{name}.csv').step.max() == steps
        assert 'collapsed' not in path.read_text(encoding='utf-8')


def test_wheel_holds_the_package_and_reads_settings(tmp_path):
    source = tmp_path/'source'  # a build leaves files behind; not in the checkout
    shutil.copytree(root/'chexmix', source/'chexmix', ignore=shutil.ignore_patterns('__pycache__'))
    for name in ('settings.ini', 'setup.py', 'pyproject.toml', 'README.md', 'LICENSE'):
        shutil.copy(root/name, source)
    for name in ('card.json', 'image_tokenizer/config.json'):  # packed weights travel with the package
        (source/'chexmix'/'bundled'/name).parent.mkdir(parents=True, exist_ok=True)
        (source/'chexmix'/'bundled'/name).touch()
    options = ['--quiet', '--disable-pip-version-check', '--no-deps', '--no-build-isolation', '-w', tmp_path]
    command = [sys.executable, '-m', 'pip', 'wheel', *options, source]
    subprocess.run(command, check=True, capture_output=True, text=True)
    wheel = zipfile.ZipFile(next(tmp_path.glob('*.whl')))
    names = set(wheel.namelist())
    modules = {f'chexmix/{p.relative_to(root/"chexmix")}' for p in (root/'chexmix').rglob('*.py')}
    assert modules | {'chexmix/bundled/card.json', 'chexmix/bundled/image_tokenizer/config.json'} <= names
    assert not [n for n in names if n.endswith('.ipynb')]
    path = str(next(tmp_path.glob('*.whl')))
    program = f"import sys; sys.path.insert(0, {path!r}); import chexmix; assert '.whl' in chexmix.__file__"
    subprocess.run([sys.executable, '-c', program], cwd=tmp_path, check=True, capture_output=True, text=True)

    def read(name): return wheel.read(next(n for n in names if n.endswith(f'.dist-info/{name}')))
    ini = ConfigParser(delimiters=['='])
    ini.read(root/'settings.ini', encoding='utf-8')
    cfg = ini['DEFAULT']
    metadata = message_from_bytes(read('METADATA'))
    for key, name in (('Name', 'lib_name'), ('Version', 'version'), ('Summary', 'description')):
        assert metadata[key] == cfg[name]
    required = [r for r in metadata.get_all('Requires-Dist') if 'extra' not in r]
    assert len(required) == len(cfg['requirements'].split())
    assert cfg['console_scripts'].replace('=', ' = ') in read('entry_points.txt').decode()


def test_constraints_name_every_requirement():
    "What settings.ini asks for has an exact version that is known to work."
    ini = ConfigParser(delimiters=['='])
    ini.read(root/'settings.ini', encoding='utf-8')
    def plain(name): return name.lower().replace('_', '-')
    lines = (root/'constraints.txt').read_text().splitlines()
    pinned = {plain(line.split('==')[0]) for line in lines if '==' in line}
    requirements = [*ini['DEFAULT']['requirements'].split(), *ini['DEFAULT']['dev_requirements'].split()]
    assert {plain(re.split('[<>=]', r)[0]) for r in requirements} <= pinned


FOREIGN = (  # what may lie in a checkout and must never be published
    '.env', 'runs/demo/manifest.csv', 'notes.txt', 'chexmix/secret.key', 'nbs/.ipynb_checkpoints/a.ipynb',
    'tests/patient.dcm', 'docs/_source/index.md', 'chexmix/__pycache__/core.pyc', 'results/mine.json')
PUBLISHED = (  # of a source distribution
    r'chexmix/\w+\.py|chexmix/(bundled|samples|templates)/.+|nbs/.+\.ipynb|tests/.+\.py|'
    r'docs/\w+\.(py|md)|docs/static/.+\.css|'
    r'settings\.ini|setup\.(py|cfg)|pyproject\.toml|constraints\.txt|Makefile|MANIFEST\.in|LICENSE|'
    r'README\.md|CITATION\.cff|CONTRIBUTING\.md|CHANGELOG\.md|PKG-INFO|chexmix\.egg-info/.+')


def test_wheel_and_source_distribution_hold_nothing_else(tmp_path):
    "Files of the checkout that are not ours stay where they are."
    source = tmp_path/'source'
    ignored = shutil.ignore_patterns('.git', '.venv', 'runs', '__pycache__', '_docs', 'results')
    shutil.copytree(root, source, ignore=ignored)
    for name in FOREIGN:
        (source/name).parent.mkdir(parents=True, exist_ok=True)
        (source/name).write_text('secret')
    command = [sys.executable, '-m', 'build', '--no-isolation', '--sdist', '--wheel', '-o', tmp_path, source]
    subprocess.run(command, check=True, capture_output=True, text=True)
    wheel = zipfile.ZipFile(next(tmp_path.glob('*.whl'))).namelist()
    ours = r'chexmix/(\w+\.py|bundled/.+|samples/.+|templates/.+)|chexmix-[^/]+\.dist-info/.+'
    others = [name for name in wheel if not re.fullmatch(ours, name)]
    assert not others
    with tarfile.open(next(tmp_path.glob('*.tar.gz'))) as archive:
        names = [m.name.partition('/')[2] for m in archive.getmembers() if m.isfile()]
        assert not [m.name for m in archive.getmembers() if m.issym() or m.islnk()]
    assert not [name for name in names if not re.fullmatch(PUBLISHED, name)]


def test_hashes_are_those_of_the_constraints():
    "CI installs the versions that are known to work, each from files whose hashes are known."
    def pins(path):
        found = re.findall(r'(?m)^([\w.-]+==[^\s;]+)', (root/path).read_text())
        return sorted(pin.lower().replace('_', '-') for pin in found)
    text = (root/'.ci'/'requirements.txt').read_text()
    assert pins('.ci/requirements.txt') == pins('constraints.txt')
    assert all('--hash=sha256:' in part for part in re.split(r'(?m)^(?=[\w.-]+==)', text)[1:])


def test_the_licence_of_each_package_is_listed():
    listed = re.findall(r'(?m)^\| ([\w.-]+) \| \S', (root/'docs'/'licences.md').read_text())
    pinned = re.findall(r'(?m)^([\w.-]+)==', (root/'constraints.txt').read_text())
    assert set(pinned) <= set(listed)
