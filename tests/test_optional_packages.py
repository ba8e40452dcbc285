"Training and inference of images need neither spaCy nor GDCM; what needs them says which package is missing."
import os, subprocess, sys

import pytest

ABSENT = 'spacy', 'gdcm'


@pytest.fixture
def without(tmp_path):
    "Runs a script where these packages cannot be imported, nor in the processes that it starts."
    for name in ABSENT: (tmp_path/f'{name}.py').write_text(f'raise ModuleNotFoundError(name={name!r})')
    paths = f'{tmp_path}{os.pathsep}{os.environ.get("PYTHONPATH", "")}'

    def run(script, *words):
        command = [sys.executable, '-c', 'import sys\n' + script, *map(str, words)]
        environment = os.environ | dict(PYTHONPATH=paths)
        return subprocess.run(command, capture_output=True, text=True, env=environment)
    return run


def test_training_and_a_report_of_an_image(without, tmp_path):
    "Studies are drawn, both trainings take their steps, and the model writes a report, as everywhere."
    script = '''
from pathlib import Path
from chexmix.cli import main
from chexmix.core import open_run
from chexmix.generate import generate_reports
from chexmix.phantom import make_phantom
from chexmix.pretrain import load_model, pretrain
run = Path(sys.argv[1])
few = ['--set', 'n_studies=64', '--set', 'tokenizer_steps=12']
assert main(['tokenizer', '--preset', 'tiny', '--run', str(run), *few]) == 0
pretrain(run, open_run(run)[1], 1, 'without', steps=2, panels=0)
model, processor = load_model(run/'without')
codes = processor.encode_images(processor.read([make_phantom(0, 0, 64).image]))
assert len(generate_reports(model, codes, max_new_tokens=8)) == 1
print('loaded:', *(name for name in ('spacy', 'gdcm') if sys.modules.get(name)))'''
    done = without(script, tmp_path/'run')
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines()[-1].strip() == 'loaded:'


@pytest.mark.parametrize('package, script', [
    ('spacy', 'from chexmix.report_text import label_report; label_report("No effusion.")'),
    ('python-gdcm', 'from chexmix.radiograph import read_radiograph; read_radiograph(sys.argv[1], 64)')])
def test_what_needs_a_package_names_it(package, script, without, tmp_path):
    "Also where a compressed file is read: it is not the file that is damaged."
    words = []
    if 'argv' in script:
        from chexmix.benchmarks import detector_pixels, to_jpeg_lossless, write_dicom
        raw = write_dicom(tmp_path/'raw.dcm', detector_pixels(64, 64, 0))
        words = [to_jpeg_lossless(raw, tmp_path/'a.dcm')]
    last = without(script, *words).stderr.splitlines()[-1]
    assert last == f'chexmix.core.UserError: {package} is not installed: pip install {package}'
