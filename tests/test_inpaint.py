"Fillings: what is hidden stays hidden, and every seed measures the same studies."
import numpy as np
import pytest
import torch

from chexmix.core import UserError
from chexmix.inpaint import (
    blend_seams, get_classifier_steps, hide_pixels, keep_blended_too, keep_filling, keep_findings,
    masked_test_studies, mean_filling, mean_records, model_filling, score_findings)
from chexmix.finding_classifier import FindingsCNN
from chexmix.metrics import paired_interval
from chexmix.model import study_masks
from chexmix.plots import mask_to_pixels
from chexmix.pretrain import load_model
from chexmix.records import mean_statistic, paired_records


@pytest.fixture(scope='module')
def loaded(tiny_run): return load_model(tiny_run, 'stage2')


@pytest.fixture(scope='module')
def masked(tiny_run, loaded): return masked_test_studies(tiny_run, loaded[1], most=8, ratios=(.5,))[0]


def test_the_seed_changes_the_masks_and_not_the_studies(tiny_run, loaded, masked):
    other, _ = masked_test_studies(tiny_run, loaded[1], most=8, ratios=(.5,), seed=7)
    assert other.study_ids == masked.study_ids
    assert not torch.equal(other.masks['random', .5], masked.masks['random', .5])


def test_hidden_pixels_cannot_leak(loaded, masked):
    "Whatever stands in hidden cells, codes and filling are the same; hidden codes know more."
    model, processor = loaded
    mask = masked.masks['random', .5]
    inside = mask_to_pixels(mask, masked.images.shape[-1])
    scrambled = torch.where(inside, masked.images.flip(0), masked.images)
    codes = [hide_pixels(processor, images, mask, .5) for images in (masked.images, scrambled)]
    assert torch.equal(*codes)
    assert not torch.equal(codes[0][~mask], masked.codes[~mask])
    filled, _ = model_filling(model, processor, masked, hidden='pixels')['random', .5]
    gray = float(masked.mean_image.mean())
    assert torch.equal(filled[~mask], hide_pixels(processor, masked.images, mask, gray)[~mask])


def test_squared_error_and_psnr_agree_study_by_study(masked):
    for kept in keep_filling('mean fill', mean_filling(masked), masked):
        np.testing.assert_allclose(kept.values['PSNR'], -10 * np.log10(kept.values['MSE']), rtol=1e-4)
        metrics = [r.metric for r in mean_records(kept)]
        assert metrics == ['MSE', 'PSNR', 'SSIM'] and mean_statistic(kept, 'token accuracy') is None


@pytest.mark.parametrize('ratio', [.25, .5, .9])
def test_blending_adds_the_surface_that_minimises_the_steps(ratio):
    "The gradient of what is minimised is 0: at every filled pixel the steps to its neighbours sum up to 0."
    mask = study_masks(['a'], 16, ratio)
    x = torch.rand(1, 32, 32, generator=torch.Generator().manual_seed(0)) / 4 + .375
    filled = mask_to_pixels(mask, 32)[0].numpy()
    added = (blend_seams(x, mask) - x)[0].double().numpy()
    assert (added[~filled] == 0).all()
    target = np.where(filled, added, np.nan)
    for row, column in zip(*np.nonzero(filled)):
        near = [(row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)]
        near = [place for place in near if min(place) >= 0 and max(place) < 32]
        wanted = [target[q] if filled[q] else float(x[0][q] - x[0, row, column]) for q in near]
        assert len(near) * added[row, column] == pytest.approx(sum(wanted), abs=1e-5)


def test_blending_reads_visible_pixels_and_keeps_them(loaded, masked):
    "Another brightness of the filled cells changes nothing, where every filled cell meets visible ones."
    mask = masked.masks['random', .5]
    size = masked.images.shape[-1]
    inside = mask_to_pixels(mask, size)
    images = masked.images / 2 + .25
    brighter = torch.where(inside, images + .1, images)
    blended, of_brighter = blend_seams(images, mask), blend_seams(brighter, mask)
    torch.testing.assert_close(blended, of_brighter)
    assert torch.equal(blended[~inside], images[~inside])
    nothing = torch.zeros_like(mask)
    assert torch.equal(blend_seams(images, nothing), images)
    assert torch.equal(blend_seams(images, ~nothing), images)


def test_every_filling_is_measured_with_seams_and_without(masked):
    kept = keep_blended_too('mean fill', mean_filling(masked), masked)
    assert [own.detail['seams'] for own in kept] == ['as decoded', 'as decoded', 'blended', 'blended']
    assert kept[2].values['MSE'].mean() < kept[0].values['MSE'].mean()


def test_models_are_compared_on_the_same_masks(loaded, masked):
    kept = keep_filling('mean fill', mean_filling(masked), masked)
    kept += keep_filling('stage2', model_filling(*loaded, masked), masked, hidden='codes')
    pairs = paired_records(kept, ['stage2'], ['MSE'], mean_statistic)
    assert [(r.detail['mask_kind'], r.detail['minus']) for r in pairs] == [
        ('random', 'mean fill'), ('block', 'mean fill')]
    one, other = mean_statistic(kept[2], 'MSE'), mean_statistic(kept[0], 'MSE')
    assert pairs[0].value == pytest.approx(paired_interval([one], [other], masked.patients).value)


def test_every_record_of_the_classifier_says_what_it_reaches_on_originals(masked):
    labels = np.zeros((len(masked.study_ids), 14))
    labels[::2] = 1
    torch.manual_seed(0)
    images = {'original': masked.images, 'stage2': masked.images.flip(0)}
    kept = keep_findings(FindingsCNN().eval(), images, labels, np.arange(3), masked, {'ratio': .5})
    records = score_findings(kept, ['stage2'], seed=0)
    assert [(r.model, r.detail.get('minus')) for r in records] == [
        ('original', None), ('stage2', None), ('stage2', 'original')]
    assert {r.detail['on_originals'] for r in records[:2]} == {round(records[0].value, 4)}
    assert records[2].value == pytest.approx(records[1].value - records[0].value)


def test_the_classifier_gets_the_steps_it_needs():
    assert get_classifier_steps('tiny') < 300 < get_classifier_steps('small') == 3000
    assert get_classifier_steps('small', 10) == 10
    with pytest.raises(UserError, match='classifier_steps'): get_classifier_steps('small', -1)
