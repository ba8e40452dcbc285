"What the README shows is run as it stands there, in a folder that has what its text names."
import os, re, shlex, shutil, subprocess
from pathlib import Path

import pandas as pd, pytest
from test_datasets import build_mimic_jpg

import chexmix
from chexmix.cli import main

root = Path(__file__).resolve().parents[1]
README = (root/'README.md').read_text(encoding='utf-8')


def blocks(language: str) -> list[str]:
    "The README's blocks of code in a language."
    return re.findall(rf'^```{language}\n(.*?)^```', README, re.M | re.S)


def commands() -> list[str]:
    "Every command of the README, from its blocks and from its sentences, without its comment."
    lines = [line for block in blocks('sh') for line in block.splitlines()]
    lines += re.findall(r'`(chexmix [a-z][^`]* [^`]+)`', README)
    return [line.split('  #')[0].strip() for line in lines]


@pytest.fixture
def place(tiny_run, tmp_path, monkeypatch):
    "A folder with two radiographs, a table of studies, and the run `mine`."
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('CHEXMIX_RUNS', str(tmp_path/'runs'))
    shutil.copytree(tiny_run, tmp_path/'runs'/'mine')
    for folder in ('my', 'dicom_tree'): (tmp_path/folder).mkdir()
    shutil.copy(chexmix.sample(), 'chest.png')
    for copy in ('chest.dcm', 'dicom_tree/1.dcm'): shutil.copy(chexmix.sample('dcm'), copy)
    table = pd.read_csv(tiny_run/'phantoms'/'manifest.csv')
    table['path'] = [str(tiny_run/'phantoms'/Path(path).name) for path in table.path]
    table.to_csv('my/metadata.csv', index=False)
    for folder in ('nbs', 'chexmix'): (tmp_path/folder).symlink_to(root/folder)
    return tmp_path


def test_python_of_the_readme(place):
    images, reports = build_mimic_jpg(place)
    images.rename('MIMIC-CXR-JPG')
    reports.rename('mimic-cxr-reports')
    names = {}
    for block in blocks('python'): exec(block, names)
    assert set(names['read'](chexmix.sample('dcm'))) >= {'report', 'findings'}
    assert len(pd.read_parquet('mimic.parquet'))


def test_transformers_opens_the_packed_weights_as_the_readme_says(place, monkeypatch):
    from transformers import AutoModelForCausalLM
    line = re.search(r'`(AutoModelForCausalLM\.[^`]+)`', README)[1]
    model = eval(line, dict(AutoModelForCausalLM=AutoModelForCausalLM))
    assert type(model).__name__ == 'ChexmixForCausalLM'


def test_commands_of_the_readme(place, capsys):
    "`make demo` and the demo on a table have tests of their own; papermill follows below."
    lines = [line for line in commands() if line.startswith('chexmix ') and ' demo ' not in line]
    assert len(lines) > 5
    (place/'runs'/'mine'/'results'/'report.json').unlink(missing_ok=True)
    for line in lines: assert main(shlex.split(line)[1:]) == 0, (line, capsys.readouterr().err)
    assert {'chest_inpainted.png', 'vectors.parquet'} <= {path.name for path in place.iterdir()}


def test_papermill_of_the_readme(place):
    "At preset tiny, in a run of its own."
    shutil.rmtree(place/'runs'/'mine')
    [line] = [line for line in commands() if line.startswith('papermill ')]
    line = line.replace('preset small', 'preset tiny')
    done = subprocess.run(shlex.split(line), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (place/'runs'/'mine'/'stage2'/'model.safetensors').exists()


def test_an_unknown_preset_of_make_gpu(tmp_path):
    "It is said before the checks."
    script = ['bash', root/'docs'/'gpu.sh', 'huge', '2', '0']
    done = subprocess.run(script, cwd=root, capture_output=True, text=True,
                          env=os.environ | dict(CHEXMIX_RUNS=str(tmp_path)))
    assert done.returncode and not done.stdout and not list(tmp_path.iterdir())
    assert done.stderr.startswith('chexmix: no such preset: huge; choose one of tiny')


def test_make_gpu_without_one(tmp_path):
    "Checks and speeds say that they were not run; then the study begins with these options."
    if not (root/'.venv'/'.done').exists(): pytest.skip('make has not set up .venv here')
    made = subprocess.run(
        ['make', '-C', str(root), 'gpu', 'PRESET=tiny', 'MINUTES=2', 'PIECE=.01'], capture_output=True,
        text=True, env=os.environ | dict(CHEXMIX_RUNS=str(tmp_path), CUDA_VISIBLE_DEVICES=''))
    assert 'checks and speeds of a GPU: not run, torch finds none' in made.stdout
    assert made.returncode and '--piece 0.01 is too short to get on' in made.stderr
