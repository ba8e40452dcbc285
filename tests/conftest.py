"What tests share: a folder for runs, notebooks run as users run them, and one trained run at preset tiny."
import os, shutil, subprocess, sys, tempfile
from pathlib import Path

import pytest

root = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(Path(__file__).parent))
os.environ.pop('IN_TEST', None)  # nbdev_test sets it; it would silence nbdev's commands
os.environ['HF_HUB_OFFLINE'] = '1'
os.environ.setdefault('MPLBACKEND', 'agg')
# Commands of this environment first, whether or not it is activated.
os.environ['PATH'] = f'{Path(sys.executable).parent}{os.pathsep}{os.environ["PATH"]}'


def pytest_configure(config):
    "Without `make test` nobody has named a folder for runs: take one that goes away."
    if 'CHEXMIX_RUNS' not in os.environ:
        os.environ['CHEXMIX_RUNS'] = config.chexmix_runs = tempfile.mkdtemp()


def pytest_unconfigure(config):
    if hasattr(config, 'chexmix_runs'): shutil.rmtree(config.chexmix_runs, ignore_errors=True)


def papermill(
    notebook: Path,
    output: Path,  # the executed notebook
    **parameters,  # as with `-p name value`
):
    "Run a notebook by the papermill command; its output is shown where it fails."
    command = ['papermill', str(notebook), str(output), '--cwd', str(notebook.parent), '--no-progress-bar']
    for name, value in parameters.items(): command += ['-p', name, str(value)]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr[-4000:]


@pytest.fixture(scope='session')
def tiny_run() -> Path:
    """A run at preset tiny with both stages trained. Copy it before changing it.

    It is the one that the notebooks made under `make test`, else a new one.
    """
    run = Path(os.environ['CHEXMIX_RUNS'])/'tiny'
    if not (run/'stage2'/'model.safetensors').exists():
        with tempfile.TemporaryDirectory() as out:
            papermill(root/'nbs'/'05_pretrain.ipynb', Path(out)/'05.ipynb', stage=2)
    return run


@pytest.fixture(scope='session')
def gray():
    "(90, 70) 8-bit pixels that use the whole range."
    from radiograph_files import gray_pixels
    return gray_pixels()
