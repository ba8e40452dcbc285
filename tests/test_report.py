"Reports: every reading is what it says, constants are the best there are, and studies do not depend on seeds."
from itertools import product

import numpy as np
import pytest
import torch

from chexmix.core import UserError
from chexmix.metrics import f1
from chexmix.model import study_masks
from chexmix.pretrain import load_model
from chexmix.report import (
    best_constant_report, best_constant_set, CLINICAL, evaluate_report, keep_constants, keep_reports,
    masked_readings, named_findings, reading_lines, report_statistic, report_studies, reports_at_ratios,
    readings_at_ratios, score_report, score_values)
from chexmix.records import load_study_values, Record
from chexmix.report_text import FINDINGS
from chexmix.token_store import open_store, split_rows
from chexmix.tokenizer import open_studies


@pytest.fixture(scope='module')
def loaded(tiny_run): return load_model(tiny_run, 'stage2')


@pytest.fixture(scope='module')
def rows(tiny_run): return report_studies(open_studies(tiny_run, '')[0], 6)


def test_filled_first_leaves_no_hole_and_keeps_what_is_visible(loaded, rows):
    readings = masked_readings(*loaded, rows, .5, .5)
    codes, mask = torch.tensor(rows['codes']), study_masks(rows['study_id'], len(rows[0]['codes']), .5)
    assert list(readings) == ['mask id', 'filled first', 'pixels hidden']
    filled, nothing = readings['filled first']
    assert not nothing.any() and torch.equal(filled[~mask], codes[~mask])
    assert all(torch.equal(readings[name][1], mask) for name in ('mask id', 'pixels hidden'))
    assert torch.equal(readings['mask id'][0], codes) and not torch.equal(readings['pixels hidden'][0], codes)
    assert list(masked_readings(*loaded, rows, 0, .5)) == ['']


def test_every_ratio_has_every_reading_at_both_guidances(loaded, rows):
    readings = readings_at_ratios(*loaded, rows, (0, .5, .9), .5)
    few = {how: (codes[:2], mask[:2]) for how, (codes, mask) in readings.items()}
    written = reports_at_ratios(*loaded, few, (1, 2))
    expected = {(0, '')} | set(product((.5, .9), ('mask id', 'filled first', 'pixels hidden')))
    assert {how[:2] for how in written} == expected and {how[2] for how in written} == {1, 2}
    kept = keep_reports('stage2', written, rows.select(range(2)))
    lines = reading_lines([r for one in kept for r in score_values(one)], 'image dependence', 1)
    assert {reading: [r.detail['ratio'] for r in line] for (_, reading), line in lines.items()} == {
        reading: [0, .5, .9] for reading in ('mask id', 'filled first', 'pixels hidden')}


def test_no_set_of_findings_is_a_better_constant():
    g = np.random.default_rng(0)
    for share in (.05, .2, .6):
        true = g.random((30, 6)) < share * g.random(6)
        scores = {bits: f1(np.tile(np.array(bits, bool), (30, 1)), true)(np.ones((1, 30)))[0]
                  for bits in product((0, 1), repeat=6)}
        best = tuple(best_constant_set(true).astype(int).tolist())
        assert scores[best] == pytest.approx(np.nanmax(list(scores.values())))


def test_no_training_report_is_a_better_constant():
    texts = ['Clear lungs.'] * 5 + ['Edema.'] * 3 + ['Pleural effusion. Edema.'] * 2 + ['Rib fracture.']
    true = named_findings(texts)[:, CLINICAL]
    scores = {}
    for text in set(texts):
        constant = np.tile(named_findings([text])[:, CLINICAL], (len(texts), 1))
        scores[text] = f1(constant, true)(np.ones((1, len(texts))))[0]
    text, origin = best_constant_report(texts)
    assert scores[text] == np.nanmax(list(scores.values())) and f'{scores[text]:.3f}' in origin
    assert best_constant_report(['Clear lungs.'])[0] == 'Clear lungs.'  # no finding in any report
    with pytest.raises(UserError): best_constant_report(['', ' '])


def test_constants_come_from_training_studies_alone(tiny_run, rows):
    train = split_rows(open_store(tiny_run/'store'), 'train')
    kept = keep_constants(train, rows, (0,))
    again = keep_constants(train, rows.select([0, 1]), (0,))
    for one, other in zip(kept, again):
        assert one.model == other.model and one.detail == other.detail
        assert (one.values['predicted'][0] == other.values['predicted'][0]).all()
        dependence = report_statistic(one, 'image dependence without No Finding')
        assert abs(dependence(np.ones((1, len(rows))))[0]) < .2


def test_no_finding_alone_scores_nothing_without_no_finding():
    references = ['The lungs are clear.'] * 3 + ['Pleural effusion.']
    everybody_normal = score_report(['The lungs are clear.'] * 4, references, range(4), 'normal')
    values = {r.metric: r.value for r in everybody_normal}
    assert values['label F1 micro'] == pytest.approx(.75) and values['F1 without No Finding'] == 0
    assert [r.metric for r in everybody_normal][:2] == ['image dependence', 'F1 without No Finding']
    assert FINDINGS[0] == 'No Finding' and 0 not in CLINICAL


def test_old_records_still_have_their_line():
    old = [Record('report', 'stage2', 'image dependence', .2, .1, .3, 9, 0, dict(ratio=r)) for r in (0, .9)]
    assert [len(rows) for rows in reading_lines(old, 'image dependence').values()] == [2]


def test_values_of_studies_give_the_records_again(tiny_run, tmp_path):
    import shutil
    run = shutil.copytree(tiny_run, tmp_path/'run')
    for kept in (run/'results').glob('*.npz'): kept.unlink()  # of other evaluations
    few = dict(most=5, ratios=(0,), guidances=(1,))
    one, other = (evaluate_report(run, ['stage2'], seed=seed, **few) for seed in (0, 3))
    assert {r.model: r.value for r in one if r.metric == 'ROUGE-L' and r.task == 'report'} == {
        r.model: r.value for r in other if r.metric == 'ROUGE-L' and r.task == 'report'}
    kept = [kept for kept in load_study_values(run/'results') if kept.task == 'report']
    again = [r.value for values in kept for r in score_values(values, 3)]
    np.testing.assert_allclose(again, [r.value for r in other[:len(again)]], rtol=1e-5, atol=1e-9)
