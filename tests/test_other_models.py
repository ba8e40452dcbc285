"Late fusion: a trained encoder of its own, which learns with it, and the readings of masked images."
import pytest
import torch

from chexmix.core import get_settings
from chexmix.model import new_model, study_masks
from chexmix.other_models import (
    fill_pixels, full_image_encoder, fusion_batch, fusion_readings, fusion_reports, LateFusion, mae_run,
    MaskedAutoencoder, seeded)
from chexmix.plots import mask_to_pixels
from chexmix.processor import Processor
from chexmix.token_store import open_store, split_rows

settings = get_settings('tiny')


@pytest.fixture
def mae(): return seeded(lambda: MaskedAutoencoder(settings), 0).eval()


@pytest.fixture(scope='module')
def processor(tiny_run): return Processor.from_pretrained(tiny_run/'processor')


def test_the_encoder_sees_all_patches_in_the_order_of_the_grid(mae):
    images = torch.rand(2, settings.image_size, settings.image_size)
    nothing = torch.zeros(2, settings.grid**2, dtype=torch.bool)
    in_order = torch.arange(settings.grid**2).float().expand(2, -1)
    states = full_image_encoder(mae).eval()(images[:, None] * 2 - 1, noise=in_order).last_hidden_state
    out = mae_run(mae, images, nothing)
    order = out.ids_restore[..., None].expand(-1, -1, settings.width)
    normalised = mae.vit.vit.layernorm(out.hidden_states[-1])
    torch.testing.assert_close(states[:, 1:], normalised[:, 1:].gather(1, order), atol=1e-4, rtol=1e-3)


def test_late_fusion_trains_its_encoder_and_leaves_the_autoencoder_alone(mae, processor, tiny_run):
    before = [p.clone() for p in mae.parameters()]
    fusion = LateFusion(full_image_encoder(mae), new_model(settings, processor.layout, 0))
    store = split_rows(open_store(tiny_run/'store'), 'train')
    loss, _ = fusion(*fusion_batch(store, settings, processor, 0)[:-1])
    loss.backward()
    parts = fusion.vision.embeddings.patch_embeddings, fusion.projection, fusion.lm
    assert all(next(part.parameters()).grad.abs().sum() > 0 for part in parts)
    torch.optim.SGD(fusion.parameters(), .1).step()
    assert all(torch.equal(a, b) for a, b in zip(before, mae.parameters()))


def test_late_fusion_learns_which_report_belongs_to_which_image(mae, processor, tiny_run):
    "The collapsed rival wrote the same for everybody; this one tells four images apart."
    fusion = LateFusion(full_image_encoder(mae), new_model(settings, processor.layout, 0))
    store = split_rows(open_store(tiny_run/'store'), 'train')
    pixels, ids, _ = fusion_batch(store, settings, processor, 0)
    pixels, ids = pixels[:4], ids[:4, :20]
    optimizer = torch.optim.AdamW(fusion.parameters(), 2e-3)
    for _ in range(120):
        loss, _ = fusion(pixels, ids)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    other, _ = fusion(pixels.roll(1, 0), ids)
    assert loss < .2 and other > 5 * loss
    images, nothing = pixels[:, 0] / 2 + .5, torch.zeros(4, settings.grid**2, dtype=torch.bool)
    reports = fusion_reports(fusion.eval(), processor, images, nothing, images.mean(0), 1, max_new_tokens=16)
    assert len(set(reports)) == 4


def test_filled_first_reads_no_hidden_pixel(mae):
    images, ids = torch.rand(3, settings.image_size, settings.image_size), ['a', 'b', 'c']
    mask = study_masks(ids, settings.grid**2, .5)
    scrambled = torch.where(mask_to_pixels(mask, settings.image_size), 1 - images, images)
    readings = fusion_readings(mae, images, ids, (0, .5))
    assert list(readings) == [(0, ''), (.5, 'mask id'), (.5, 'filled first')]
    filled, nothing = readings[.5, 'filled first']
    assert torch.equal(filled, fill_pixels(mae, scrambled, mask)) and not nothing.any()
