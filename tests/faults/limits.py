"Too little memory while loading, training and writing reports; numbers that are not finite."
import os, resource, shutil
from pathlib import Path

import numpy as np, torch
from faults.mutated import data_bytes
from faults.trials import exit_code, last_line, number, Trials
from PIL import Image

from chexmix import pretrain as pretraining
from chexmix.core import open_run, UserError
from chexmix.pipeline import open_model, pipeline
from chexmix.radiograph import read_radiograph


def limit_memory(more: int):
    "From here on this process gets `more` bytes."
    resource.setrlimit(resource.RLIMIT_DATA, (data_bytes() + more, resource.RLIM_INFINITY))


def loading(folder: Path):
    limit_memory(200_000)
    open_model(folder)


def training(folder: Path):
    original = pretraining.Batches.__call__

    def limited(self, step):
        if step == 2: limit_memory(3_000_000)
        return original(self, step)
    pretraining.Batches.__call__ = limited
    pretraining.pretrain(folder, open_run(folder)[1], 1, 'limited', steps=6, batch=160, panels=0)


def generating(folder: Path):
    answer = pipeline('report', folder, new=100)
    limit_memory(4_000_000)
    answer(np.zeros((64, 64, 64, 1), np.uint8))


def loss_not_finite(folder: Path):
    pretraining.pretrain(folder, open_run(folder)[1], 1, 'diverging', steps=30, lr=1e30, panels=0)


def gradient_not_finite(folder: Path):
    "The loss is finite, its gradient is not."
    original = pretraining.Pretraining.forward

    def forward(self, *args, **kwargs):
        loss, parts = original(self, *args, **kwargs)
        weight = self.lm.lm_head.bias
        return loss + (weight - weight.detach()).abs().sqrt().sum(), parts
    pretraining.Pretraining.forward = forward
    pretraining.pretrain(folder, open_run(folder)[1], 1, 'steep', steps=4, panels=0)


def input_not_finite(folder: Path):
    read_radiograph(np.full((9, 9), np.nan), 16)


def file_not_finite(folder: Path):
    Image.fromarray(np.full((9, 9), np.inf, np.float32)).save(folder/'a.tif')
    read_radiograph(folder/'a.tif', 16)


CASES = {  # work → words of its one line; what must be there afterwards
    loading: ('enough memory', ''), training: ('enough memory', ''), generating: ('enough memory', ''),
    loss_not_finite: ('lower the learning rate', 'diverging/training/bad_batch.pt'),
    gradient_not_finite: ('lower the learning rate', 'steep/training/bad_batch.pt'),
    input_not_finite: ('finite', ''), file_not_finite: ('NaN or infinite', '')}


def work_within(work, folder: Path, said: Path):
    "In a process of its own: exit code 3 with one line."
    torch.set_num_threads(1)
    line = os.open(said, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
    try: work(folder)
    except UserError as e:
        resource.setrlimit(resource.RLIMIT_DATA, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        os.write(line, str(e).encode())
        os._exit(3)


def fault_of(work, folder: Path, log: Path) -> str | None:
    words, kept = CASES[work]
    said = folder.with_name('said')
    code = exit_code(work_within, work, folder, said, log=log)
    message = said.read_text() if said.exists() else ''
    if code != 3: return f'exit code {code}: {last_line(log)}'
    if '\n' in message or words not in message: return f'not one line with a way out: {message}'
    return f'{kept} is not there' if kept and not (folder/kept).exists() else None


def run(folder: Path, share: float, seed: int, trained: Path):
    memory, finite = Trials('memory limit'), Trials('non-finite input, loss, gradient')
    folder.mkdir(parents=True)
    ignore = shutil.ignore_patterns('phantoms', 'results', 'figures')
    shutil.copytree(trained, folder/'run', ignore=ignore)
    for work in CASES:
        trials = memory if CASES[work][0] == 'enough memory' else finite
        fault = fault_of(work, folder/'run', folder/'log')
        trials.add(fault and f'{work.__name__}: {fault}')
    yield from (memory, finite)
