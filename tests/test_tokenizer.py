"The tokenizer under kills: training goes on to the same bits, the token store holds every study once; files that do not fit are named."
import os, shutil, signal, subprocess, sys, time
from dataclasses import replace
from functools import partial

import pytest, torch
from safetensors.torch import load_file

import chexmix.tokenizer as tokenizer
from chexmix.core import UserError, open_run, read_json, write_json
from chexmix.data import read_table
from chexmix.tokenizer import Processor, token_store, train_image_tokenizer


def test_killed_training_with_both_judges_ends_in_the_same_bits(tiny_run, tmp_path, monkeypatch):
    "Killed after 9 of 14 steps, when codebook, perceptual loss and discriminator are all at work."
    _, s = open_run(tiny_run)
    s, manifest = replace(s, tokenizer_steps=14, discriminator_start=.3, adversarial_start=.5), read_table(tiny_run/'manifest.csv')
    monkeypatch.setattr(tokenizer, 'fit', partial(tokenizer.fit, checkpoint_seconds=0))
    for name in ('whole', 'killed'): shutil.copytree(tiny_run/'image_tokenizer', tmp_path/name/'image_tokenizer', ignore=shutil.ignore_patterns('model.safetensors', 'training'))
    train_image_tokenizer(tmp_path/'whole', s, manifest)
    honest = tokenizer.training_images

    def killed(paths, s):
        images = honest(paths, s)
        def until_9(step):
            if step == 9: raise KeyboardInterrupt
            return images(step)
        return until_9
    monkeypatch.setattr(tokenizer, 'training_images', killed)
    with pytest.raises(KeyboardInterrupt): train_image_tokenizer(tmp_path/'killed', s, manifest)
    assert not (tmp_path/'killed'/'image_tokenizer'/'model.safetensors').exists()
    monkeypatch.setattr(tokenizer, 'training_images', honest)
    train_image_tokenizer(tmp_path/'killed', s, manifest)
    a, b = (load_file(tmp_path/name/'image_tokenizer'/'model.safetensors') for name in ('whole', 'killed'))
    assert all(torch.equal(a[k], b[k]) for k in a)
    log = (tmp_path/'killed'/'logs'/'image_tokenizer.csv').read_text()
    assert all(name in log for name in ('perceptual', 'adversarial', 'discriminator', 'valid_psnr', 'used', 'perplexity'))


def test_killed_store_holds_every_study_once(tiny_run, tmp_path):
    "SIGKILL while two processes write parts of six studies; the same call then finishes."
    call = f'''import sys; from pathlib import Path; from chexmix.core import open_run; from chexmix.data import read_table; from chexmix.tokenizer import Processor, token_store
run = Path({str(tiny_run)!r}); token_store(Path({str(tmp_path/'store')!r}), Processor.from_pretrained(run/'processor'), read_table(run/'manifest.csv'), open_run(run)[1], workers=2, part_size=6)'''
    process = subprocess.Popen([sys.executable, '-c', call], stdout=subprocess.DEVNULL, env=os.environ | {'OMP_NUM_THREADS': '1'})
    parts = lambda: list((tmp_path/'store').glob('part-*.arrow'))
    while len(parts()) < 3 and process.poll() is None: time.sleep(.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path/'store'/'info.json').exists() and 3 <= len(parts()) < 40
    manifest = read_table(tiny_run/'manifest.csv')
    args = tmp_path/'store', Processor.from_pretrained(tiny_run/'processor'), manifest, open_run(tiny_run)[1]
    store, whole = token_store(*args, part_size=6), tokenizer.open_store(tiny_run/'store')
    assert store['study_id'][:] == manifest.study_id.tolist() and store['codes'][:] == whole['codes'][:]
    assert read_json(tmp_path/'store'/'info.json')['n'] == len(manifest) and not list((tmp_path/'store').glob('.part-*'))
    with pytest.raises(UserError, match='part_size=6, not 7'): (tmp_path/'store'/'info.json').unlink(); token_store(*args, part_size=7)


@pytest.mark.parametrize('change, said', [(dict(grid=5), '4×4 codes of 64'), (dict(n_codes=65), 'room for 4×4 of 65'), (dict(depth=1), 'depth')])
def test_processor_that_does_not_fit(tiny_run, tmp_path, change, said):
    shutil.copytree(tiny_run/'processor', tmp_path/'processor')
    write_json(tmp_path/'processor'/'processor_config.json', read_json(tmp_path/'processor'/'processor_config.json') | change)
    with pytest.raises(UserError, match=said): Processor.from_pretrained(tmp_path/'processor')
