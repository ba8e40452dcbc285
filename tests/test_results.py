"Claims rest on paired differences where values of single studies were kept; earlier records stay readable."
import numpy as np
import pandas as pd
import pytest

from chexmix.core import get_settings, start_run
from chexmix.records import (
    load_records, load_study_values, Record, save_records, save_study_values, StudyValues)
from chexmix.results import (
    claims, comparisons, fits, headline, paired_at, paired_claim, relative_gain, results_folder, select)

CLASSIFIES = 'classifies better than generative models at all masking ratios'
N, RATIOS = 300, (0, .25, .5, .75, .9)
LABELS = np.random.default_rng(5).integers(0, 2, (N, 1)).astype(float)
HARD = np.random.default_rng(6).normal(size=(N, 1))  # what makes a study hard for every system


def kept(model, better, ratio, g, ids=range(N)):
    "Scores of a system: the truth, what all systems get wrong together, and a little noise of its own."
    scores = (.6 + better) * LABELS + HARD + .1 * g.normal(size=(N, 1))
    values = dict(labels=LABELS, scores=scores)
    names = [f's{i}' for i in ids]
    return StudyValues('classify', model, names, names, values, dict(ratio=ratio))


def write_run(tmp_path, seed, with_values, better=.12):
    "A run whose stage 2 classifies a little better than its stage 1, at every ratio."
    run = start_run(tmp_path/f'run-{seed}', get_settings('tiny', seed=seed))
    g, records, all_kept = np.random.default_rng(seed), [], []
    for ratio in RATIOS:
        for model, gain, value in (('stage1', 0, .66), ('stage2', better, .69)):
            all_kept.append(kept(model, gain, ratio, g))
            for layer, v in ((1, value), (0, .5)):
                detail = dict(ratio=ratio, layer=layer, chosen=layer == 1)
                records.append(Record('classify', model, 'AUROC macro', v, v - .04, v + .04, N, 0, detail))
    data = dict(name='made-up studies', synthetic=True, n=N)
    for task, found in (('classify', records), ('tokenizer', [])): save_records(run, task, found, data, {})
    if with_values: save_study_values(run, 'classify', all_kept)
    return run/'results'


def judgement(folders):
    table = claims(folders).reset_index()
    return table[table.claim == CLASSIFIES].iloc[0]


def test_paired_values_decide_what_overlapping_intervals_leave_open(tmp_path):
    without = judgement([write_run(tmp_path/'a', seed, False) for seed in range(3)])
    assert without.judgement == 'undecided' and 'intervals apart at 0 of 5' in without.why
    paired = judgement([write_run(tmp_path/'b', seed, True) for seed in range(3)])
    assert paired.judgement == 'replicated' and 'paired over 3 seeds' in paired.why and paired.seeds == 3
    worse = judgement([write_run(tmp_path/'c', seed, True, better=-.12) for seed in range(3)])
    assert worse.judgement == 'contradicted'


def test_seeds_that_measured_other_studies_are_not_paired(tmp_path):
    g = np.random.default_rng(0)
    systems = ('stage1', 0), ('stage2', .1)
    seeds = []
    for k in (0, 1): seeds.append([kept(m, x, 0, g, range(k, k + N)) for m, x in systems])
    assert paired_at(seeds, 'stage2', 'stage1', 'classify', 'AUROC macro', ratio=0) is None
    assert paired_at(seeds[:1], 'stage2', 'stage1', 'classify', 'AUROC macro', ratio=0).value > 0
    assert paired_claim(seeds, 'stage1', 'classify', 'AUROC macro', (0,)) is None


def test_comparisons_say_which_rule_they_rest_on(tmp_path):
    expected = (False, 'intervals', 'no difference shown'), (True, 'paired', 'better')
    for with_values, rule, verdict in expected:
        folder = write_run(tmp_path/rule, 0, with_values)
        table = comparisons(load_records(folder), all_kept=load_study_values(folder))
        assert set(table[table.beside == 'stage1'].rule) == {rule}
        assert set(table[table.beside == 'stage1'].verdict) == {verdict}


def test_earlier_records_fit_the_way_that_there_was():
    models = ['stage2', 'nearest']
    earlier = pd.DataFrame(dict(task='report', metric='image dependence', model=models, ratio=.5, value=.1))
    assert fits(earlier, 'guidance', 2).all() and fits(earlier, 'guidance', 1).tolist() == [False, True]
    chosen = select(earlier, 'report', 'image dependence', ratio=.5, guidance=2, reading='filled first')
    assert chosen.model.tolist() == ['nearest']


def test_the_committed_records_are_readable():
    records = load_records(results_folder())
    for task in ('tokenizer', 'classify', 'inpaint', 'report', 'retrieve'):
        assert not headline(records, task).empty
    rows = headline(records, 'report').stage2
    assert rows['report image dependence, full image, guidance 2'] != ''


@pytest.mark.parametrize('metric, a, b, gain', [('PSNR', 23, 20, .499), ('AUROC macro', .77, .7, .1)])
def test_gains_of_decibels_are_those_of_the_squared_error(metric, a, b, gain):
    assert relative_gain(metric, a, b) == pytest.approx(gain, abs=.001)
