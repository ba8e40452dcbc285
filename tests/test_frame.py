"The frame: exports in step, clean notebooks, parameters that papermill can change, a wheel that needs no notebook."
import ast, shutil, subprocess, sys, zipfile
from configparser import ConfigParser
from email import message_from_bytes

import frame, nbformat, pandas as pd, pytest
from conftest import papermill, root
from notebooks import readme

from chexmix.core import read_json

RUN = ('03_tokenizer', '05_pretrain', '06_classify', '06a_judge', '06b_quality', '07_inpaint', '08_report', '09_retrieve', '10_baselines', '10a_encoders', '10b_ablation', '11_results', '13_benchmarks', '13a_benchmarks_tokens', '13b_benchmarks_training')
run_notebooks = [p for p in frame.notebooks() if p.stem in RUN]


def test_modules_are_what_the_notebooks_export(): assert frame.drifted() == []


def test_notebooks_are_clean(): assert frame.unclean() == []


def test_readme_is_the_index(): assert (root/'README.md').read_text(encoding='utf-8') == readme()


def test_drift_is_noticed(tmp_path, monkeypatch):
    "A changed module, a module nobody exports and a notebook with an execution count are named."
    (tmp_path/'nbs').mkdir()
    for name in ('settings.ini', 'pyproject.toml', 'nbs/00_core.ipynb'): shutil.copy(root/name, tmp_path/name)
    for command in ('nbdev_clean', 'nbdev_export'): frame.call(command, tmp_path)
    monkeypatch.setattr(frame, 'root', tmp_path)
    monkeypatch.setattr(frame.notebooks, '__defaults__', (tmp_path/'nbs',))
    assert frame.drifted() == [] and frame.unclean() == []
    (tmp_path/'chexmix'/'core.py').write_text('x = 1\n')
    (tmp_path/'chexmix'/'stray.py').write_text('x = 1\n')
    nb = nbformat.read(tmp_path/'nbs'/'00_core.ipynb', 4)
    next(c for c in nb.cells if c.cell_type == 'code').execution_count = 7
    nbformat.write(nb, tmp_path/'nbs'/'00_core.ipynb')
    assert frame.drifted() == ['core.py', 'stray.py'] and frame.unclean() == ['00_core.ipynb']


@pytest.mark.parametrize('path', frame.notebooks(), ids=lambda p: p.stem)
def test_notebook_is_small_and_shows_no_error(path):
    assert path.stat().st_size <= 1_000_000, 'committed outputs must stay small'
    text = path.read_text(encoding='utf-8')
    assert str(root) not in text, 'an output shows a path of this machine'
    for cell in nbformat.reads(text, 4).cells:
        assert not [o for o in cell.get('outputs', []) if o.output_type == 'error'], cell.source


@pytest.mark.parametrize('path', sorted((root/'results').rglob('*.json')), ids=lambda p: f'{p.parent.name}-{p.stem}')
def test_record_names_data_of_no_machine(path):
    told = read_json(path)
    if 'records' not in told: return
    assert not told['config'].get('data', '').startswith('/') and not told['data']['name'].startswith('/')


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
    comments = [line for line in tagged[0].source.splitlines() if line.strip() and not line.lstrip().startswith('#') and '#' not in line]
    assert not comments, f'parameters without a comment: {comments}'
    twice = [line for line in tagged[0].source.splitlines() if '=' in line.partition('#')[2]]
    assert not twice, f'papermill cannot parse a comment with an equals sign: {twice}'


def test_no_other_notebook_has_parameters():
    "A notebook that takes parameters is a run, and belongs into `RUN`."
    tagged = {p.stem for p in frame.notebooks() for c in nbformat.read(p, 4).cells if 'parameters' in c.metadata.get('tags', [])}
    assert tagged <= set(RUN)


def test_papermill_changes_what_runs_before_and_after_cleaning(tiny_run, tmp_path):
    "`-p stage 2 -p steps N` trains N steps of stage 2, from a notebook as an editor leaves it and from the same one cleaned."
    run = shutil.copytree(tiny_run, tmp_path/'run')
    with frame.fresh_copy() as copy:
        path = copy/'nbs'/'05_pretrain.ipynb'
        nb = nbformat.read(path, 4)
        for i, cell in enumerate(c for c in nb.cells if c.cell_type == 'code'): cell.execution_count, cell.metadata['collapsed'] = i, False
        nbformat.write(nb, path)
        for name, steps in (('dirty', 3), ('clean', 5)):
            if name == 'clean': frame.call('nbdev_clean', copy)
            papermill(path, tmp_path/f'{name}.ipynb', preset='tiny', run=run, stage=2, steps=steps, name=name)
            trained = read_json(run/name/'settings.json')
            assert (trained['stage'], trained['steps']) == (2, steps)
            assert pd.read_csv(run/'logs'/f'{name}.csv').step.max() == steps
        assert 'collapsed' not in path.read_text(encoding='utf-8')


def test_wheel_holds_the_package_and_reads_settings(tmp_path):
    source = tmp_path/'source'  # a build leaves files behind; not in the checkout
    shutil.copytree(root/'chexmix', source/'chexmix', ignore=shutil.ignore_patterns('__pycache__'))
    for name in ('settings.ini', 'setup.py', 'pyproject.toml', 'README.md', 'LICENSE'): shutil.copy(root/name, source)
    for name in ('card.json', 'image_tokenizer/config.json'):  # packed weights travel with the package
        (source/'chexmix'/'bundled'/name).parent.mkdir(parents=True, exist_ok=True)
        (source/'chexmix'/'bundled'/name).touch()
    subprocess.run([sys.executable, '-m', 'pip', 'wheel', '--quiet', '--disable-pip-version-check', '--no-deps', '--no-build-isolation', '-w', tmp_path, source],
                   check=True, capture_output=True, text=True)
    wheel = zipfile.ZipFile(next(tmp_path.glob('*.whl')))
    names = set(wheel.namelist())
    assert {f'chexmix/{p.name}' for p in (root/'chexmix').glob('*.py')} | {'chexmix/bundled/card.json', 'chexmix/bundled/image_tokenizer/config.json'} <= names
    assert not [n for n in names if n.endswith('.ipynb')]
    subprocess.run([sys.executable, '-c', f"import sys; sys.path.insert(0, {str(next(tmp_path.glob('*.whl')))!r}); import chexmix.core; assert '.whl' in chexmix.core.__file__"],
                   cwd=tmp_path, check=True, capture_output=True, text=True)
    read = lambda name: wheel.read(next(n for n in names if n.endswith(f'.dist-info/{name}')))
    ini = ConfigParser(delimiters=['='])
    ini.read(root/'settings.ini', encoding='utf-8')
    cfg, metadata = ini['DEFAULT'], message_from_bytes(read('METADATA'))
    assert (metadata['Name'], metadata['Version'], metadata['Summary']) == (cfg['lib_name'], cfg['version'], cfg['description'])
    assert len([r for r in metadata.get_all('Requires-Dist') if 'extra' not in r]) == len(cfg['requirements'].split())
    assert cfg['console_scripts'].replace('=', ' = ') in read('entry_points.txt').decode()


def test_constraints_name_every_requirement():
    "What settings.ini asks for has an exact version that is known to work."
    ini = ConfigParser(delimiters=['='])
    ini.read(root/'settings.ini', encoding='utf-8')
    plain = lambda name: name.lower().replace('_', '-')
    pinned = {plain(line.split('==')[0]) for line in (root/'constraints.txt').read_text().splitlines() if '==' in line}
    asked = {plain(r.replace('<', '>').replace('=', '>').split('>')[0]) for key in ('requirements', 'dev_requirements') for r in ini['DEFAULT'][key].split()}
    assert asked <= pinned
