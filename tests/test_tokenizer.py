"The training of the image tokenizer under kills: it goes on to the same bits."
from dataclasses import replace

import pytest, torch
from safetensors.torch import load_file

import chexmix.tokenizer as tokenizer
from chexmix.core import open_run
from chexmix.data import read_table
from chexmix.tokenizer import train_image_tokenizer

COLUMNS = 'perceptual', 'adversarial', 'discriminator', 'valid_psnr', 'used', 'perplexity'  # of the log


def test_killed_training_ends_in_the_same_bits(tiny_run, tmp_path, monkeypatch):
    "Killed after 9 of 14 steps, when codebook, perceptual loss and discriminator are all at work."
    _, settings = open_run(tiny_run)
    settings = replace(settings, tokenizer_steps=14, discriminator_start=.3, adversarial_start=.5)
    manifest = read_table(tiny_run/'manifest.csv')
    fit, training_images = tokenizer.fit, tokenizer.training_images

    def fit_with_checkpoints(model, batch_at, loss, folder, fit_settings, **kwargs):
        return fit(model, batch_at, loss, folder, replace(fit_settings, checkpoint_seconds=0), **kwargs)

    def images_until_step_9(paths, settings):
        images_at = training_images(paths, settings)
        def images_or_kill(step):
            if step == 9: raise KeyboardInterrupt
            return images_at(step)
        return images_or_kill

    weights = {name: tmp_path/name/'image_tokenizer'/'model.safetensors' for name in ('complete', 'killed')}

    monkeypatch.setattr(tokenizer, 'fit', fit_with_checkpoints)
    train_image_tokenizer(tmp_path/'complete', settings, manifest)
    monkeypatch.setattr(tokenizer, 'training_images', images_until_step_9)
    with pytest.raises(KeyboardInterrupt): train_image_tokenizer(tmp_path/'killed', settings, manifest)
    assert not weights['killed'].exists()
    monkeypatch.setattr(tokenizer, 'training_images', training_images)
    train_image_tokenizer(tmp_path/'killed', settings, manifest)

    complete, continued = load_file(weights['complete']), load_file(weights['killed'])
    assert all(torch.equal(complete[name], continued[name]) for name in complete)
    log = (tmp_path/'killed'/'logs'/'image_tokenizer.csv').read_text()
    assert all(column in log for column in COLUMNS)
