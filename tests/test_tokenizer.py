"The training of the image tokenizer under kills: it goes on to the same bits."
from dataclasses import replace

import numpy as np, pandas as pd, pytest, torch
from safetensors.torch import load_file

import chexmix.tokenizer as tokenizer
from chexmix.core import open_run, UserError
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
        def images_or_kill(step, **share):
            if step == 9: raise KeyboardInterrupt
            return images_at(step, **share)
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


def test_a_step_in_parts_is_the_step_at_once(tiny_run, tmp_path):
    "All losses, the codebook and the discriminator at work: the log agrees, within rounding until k-means."
    _, settings = open_run(tiny_run)
    manifest = read_table(tiny_run/'manifest.csv')
    plain = replace(settings, tokenizer_steps=5, adversarial_weight=0.)
    logs = []
    for n_parts in (1, 3):
        train_image_tokenizer(tmp_path/f'{n_parts}', plain, manifest, n_parts)
        logs.append(pd.read_csv(tmp_path/f'{n_parts}'/'logs'/'image_tokenizer.csv'))
    for column in ('l1', 'l2', 'perceptual', 'codebook', 'valid_psnr'):
        at_once, in_parts = (log[column].to_numpy() for log in logs)
        assert np.isclose(at_once[0], in_parts[0], rtol=2e-3, atol=1e-5, equal_nan=True), column
        assert np.allclose(at_once, in_parts, rtol=.1, atol=.01, equal_nan=True), column  # k-means differs

    complete = replace(settings, tokenizer_steps=8, discriminator_start=.2, adversarial_start=.3)
    train_image_tokenizer(tmp_path/'all', complete, manifest, 3)
    log = pd.read_csv(tmp_path/'all'/'logs'/'image_tokenizer.csv')
    assert all(np.isfinite(log[column].iloc[-1]) for column in COLUMNS)
    with pytest.raises(UserError, match='parts must be 0'):
        train_image_tokenizer(tmp_path/'none', plain, manifest, -1)


def test_memory_that_is_short_costs_parts_and_no_bits_of_the_rest(tiny_run, tmp_path, monkeypatch, capsys):
    "With parts 0, a step that does not fit is halved until it does."
    _, settings = open_run(tiny_run)
    forward = tokenizer.TokenizerTraining.forward

    def forward_of_few(self, x):
        if self.training and len(x) > 5: raise MemoryError
        return forward(self, x)

    monkeypatch.setattr(tokenizer.TokenizerTraining, 'forward', forward_of_few)
    settings = replace(settings, tokenizer_steps=5, adversarial_weight=0.)
    train_image_tokenizer(tmp_path, settings, read_table(tiny_run/'manifest.csv'), 0)
    assert 'computed in 4 parts' in capsys.readouterr().out


def test_large_codebooks_start_by_k_means_on_the_device():
    "Near the vectors' own clusters, every centre in use, the same for a seed."
    middles = torch.randn(50, 16, generator=torch.Generator().manual_seed(1)) * 5
    vectors = (middles.repeat(40, 1) + .1 * torch.randn(2000, 16, generator=torch.Generator().manual_seed(2)))
    centres = tokenizer.k_means_on_device(vectors, 200, 0)
    assert torch.equal(centres, tokenizer.k_means_on_device(vectors, 200, 0))
    assert torch.isfinite(centres).all() and centres.shape == (200, 16)
    nearest = torch.cdist(vectors, centres).min(1)
    assert nearest.values.mean() < .6
