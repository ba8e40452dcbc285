"The primary endpoint of the protocol: readings, pairing, verdict, and scores that are kept."
from dataclasses import replace

import numpy as np, pytest, torch

from chexmix.core import UserError
from chexmix.masking_study import (
    best_readings, box_records, branch_mark, difference_record, folders_by_seed, hidden_shares, hide_cells,
    masking_difference, masking_verdict, of_studies, reading_differences, rival_records, secondary_records,
    verdict_table, with_findings)
from chexmix.metrics import ConfidenceInterval
from chexmix.records import kept_values, save_study_values, StudyValues

RATIOS = (.5, .75, .9)


def branch(name, noise, seed=0, valid=.7, reading='mask id', n=200):
    "Scores of two findings: the labels and some noise."
    g = np.random.default_rng(seed)
    labels = (np.arange(2 * n).reshape(n, 2) % 3 == 0).astype(float)
    ids = [f's-{i}' for i in range(n)]
    kept = []
    for ratio in RATIOS:
        values = dict(labels=labels, scores=labels + g.normal(scale=noise, size=labels.shape))
        detail = dict(by='probe', ratio=ratio, reading=reading, valid=valid)
        kept.append(StudyValues('masking study', name, ids, ids, values, detail))
    return kept


def test_the_reading_is_chosen_on_validation_studies():
    worse_on_valid = branch('b', noise=.1, valid=.6, reading='filled first')
    best = best_readings(branch('b', noise=3) + worse_on_valid, 'probe')
    assert [kept.detail['reading'] for kept in best.values()] == ['mask id'] * 3
    assert list(best) == list(RATIOS)
    assert best_readings(worse_on_valid, 'asking') == {}


def test_a_clear_difference_is_found_and_its_sign_is_that_of_the_first_branch():
    clear = [branch('masked', .8, seed) for seed in range(3)]
    noisy = [branch('unmasked', 2, seed + 10) for seed in range(3)]
    difference = masking_difference(clear, noisy, 'probe')
    assert difference.low > 0 and masking_verdict(difference) == 'masking helps'
    turned = masking_difference(noisy, clear, 'probe')
    assert masking_verdict(turned) == 'masking does not help by as much as matters'


def test_further_branches_have_a_narrower_interval_and_no_verdict():
    pairs = [branch('masked', .8)], [branch('unmasked', 2, 10)]
    primary = difference_record(*pairs, 'probe', ('masked-{seed}', 'unmasked-{seed}'), 4430)
    further = difference_record(*pairs, 'probe', ('masked15', 'unmasked-{seed}'), 4430, primary=False)
    assert primary.value == further.value and primary.low < further.low < further.high < primary.high
    table = verdict_table([primary, further])
    assert list(table.level) == ['98.3%', '95.0%'] and list(table.verdict) == ['masking helps', '']
    assert list(table.difference) == ['masked minus unmasked', 'masked15 minus unmasked']
    assert np.mean(primary.detail['of_ratios']) == pytest.approx(primary.value)
    way = 'asking in the impression'
    for branches in pairs: branches[0] = [replace(k, detail=k.detail | dict(by=way)) for k in branches[0]]
    added = difference_record(*pairs, way, ('m', 'u'), None)
    assert added.detail['level'] == .983 and 'verdict' not in added.detail
    assert verdict_table([primary, added]).steps.tolist() == [4430, '']


def test_folders_are_sorted_by_branch_and_seed():
    folders = folders_by_seed(['masked15-3', 'masked15-12', 'stage2'])
    assert folders == {'masked15': {3: 'masked15-3', 12: 'masked15-12'}, 'stage2': {0: 'stage2'}}
    with pytest.raises(UserError, match='stage2-0 is named twice'): folders_by_seed(['stage2', 'stage2-0'])


def test_both_branches_are_compared_in_the_same_reading():
    read, filled = branch('masked', .8), branch('masked', 2, 1, reading='filled first')
    other = branch('unmasked', 2, 2), branch('unmasked', 2, 3, reading='filled first')
    found = reading_differences([read + filled], [other[1] + other[0]], 'probe')  # kept in another order
    ahead = {r.detail['reading']: r.low > 0 for r in found if r.detail['ratio'] == .5}
    assert len(found) == 6 and ahead == {'mask id': True, 'filled first': False}


def test_a_reading_without_a_number_is_not_the_better_one():
    diverged = branch('b', 1, valid=float('nan'))
    best = best_readings(diverged + branch('b', 1, valid=.6, reading='filled first'), 'probe')
    assert {kept.detail['reading'] for kept in best.values()} == {'filled first'}


def test_rows_of_a_study_are_matched_in_their_order():
    kept = branch('pixels', 1, n=6)[0]
    twice = replace(kept, study_ids=['a', 'a', 'b', 'c', 'c', 'd'])
    some = of_studies(twice, ['c', 'c', 'a'])
    assert np.array_equal(some.values['labels'], kept.values['labels'][[3, 4, 0]])


@pytest.mark.parametrize('way', ['probe', 'asked', 'asked_in_the_impression', 'secondary'])
def test_a_branch_on_another_machine_is_known_by_any_of_its_files(tmp_path, way):
    kept = [replace(k, detail=k.detail | dict(conditions=['abc', 1])) for k in branch('b-1', 1)]
    save_study_values(tmp_path, f'masking_study_b-1_{way}', kept)
    assert branch_mark(tmp_path, 'b-1') == 'abc'
    with pytest.raises(UserError, match='train the branch'): branch_mark(tmp_path, 'b')


def test_a_rival_is_compared_with_the_mean_over_the_seeds():
    clear = [branch('masked', .8, seed) for seed in range(3)]
    rival = branch('pixels', 2, 20)
    ahead = rival_records(dict(masked=clear), dict(pixels=rival))
    assert [r.detail['ratio'] for r in ahead] == list(RATIOS) and all(r.low > 0 for r in ahead)
    for r in ahead: assert r.value == pytest.approx(r.detail['means'][0] - r.detail['means'][1])
    same = rival_records(dict(masked=[rival]), dict(pixels=rival))
    assert [(r.value, r.low, r.high) for r in same] == [(0, 0, 0)] * 3
    some = [of_studies(kept, kept.study_ids[50:20:-1]) for kept in rival]  # a branch that reads some studies
    assert [(r.value, r.n) for r in rival_records(dict(masked=[some]), dict(pixels=rival))] == [(0, 30)] * 3
    with pytest.raises(UserError, match='pixels has no value of other: evaluate both on the same studies'):
        of_studies(rival[0], ['s-1', 'other'])


def test_hidden_cells_show_the_mean_image_and_the_others_themselves():
    images, mask = torch.rand(2, 8, 8), torch.tensor([[True, False, False, False]] * 2)
    hidden = hide_cells(images, mask, torch.full((8, 8), .5))
    assert (hidden[:, :4, :4] == .5).all()
    hidden[:, :4, :4] = images[:, :4, :4]
    assert torch.equal(hidden, images)


def test_branches_of_different_studies_are_refused():
    other = [replace(kept, study_ids=kept.study_ids[::-1]) for kept in branch('unmasked', 1)]
    with pytest.raises(UserError, match='different studies: evaluate both on the same'):
        masking_difference([branch('masked', 1)], [other], 'probe')


@pytest.mark.parametrize('interval, verdict', [
    ((.010, .001, .02), 'masking helps'),
    ((.009, .001, .02), 'masking helps by less than matters'),
    ((-.01, -.02, .0099), 'masking does not help by as much as matters'),
    ((.000, -.01, .010), 'undecided')])
def test_each_line_of_the_protocol_has_its_verdict(interval, verdict):
    assert masking_verdict(ConfidenceInterval(*interval)) == verdict


def test_scores_of_other_conditions_are_made_anew(tmp_path):
    calls = []
    def evaluate():
        calls.append(1)
        return branch('b', 1)
    for weights in 'aab': kept_values(tmp_path, 'b', [weights], evaluate)
    assert len(calls) == 2


def filled(name, error):
    "A filling of five studies with this squared error in each."
    ids = list('abcde')
    return [StudyValues('inpaint', name, ids, ids, {'MSE': np.full(5, error), 'token accuracy': np.ones(5)})]


def test_secondary_differences_are_means_over_the_seeds_of_training():
    masked = [filled('m-0', .2), filled('m-1', .4)]
    unmasked = [filled('u-0', .1), filled('u-1', .1)]
    error, accuracy = secondary_records(masked, unmasked)
    assert error.value == pytest.approx(.2) and error.detail['values'] == pytest.approx([.3, .1])
    assert (accuracy.value, accuracy.detail['seeds']) == (0, 2)


def test_visible_and_hidden_findings_are_told_apart():
    "One branch reads visible findings perfectly and hidden ones by chance; each side keeps all negatives."
    chance = branch('unmasked', noise=50)[:1]
    labels = chance[0].values['labels']
    hidden = np.where(labels == 1, np.arange(200)[:, None] % 2, np.nan)  # wholly visible, or wholly hidden
    sides = {side: with_findings(chance[0], hidden, side).values['labels'] for side in ('visible', 'hidden')}
    for kept in sides.values(): assert np.array_equal(kept == 0, labels == 0)
    assert np.array_equal(np.nansum([sides['visible'] == 1, sides['hidden'] == 1], 0), labels)
    scores = np.where((labels == 1) & (hidden == 0), 1e3, chance[0].values['scores'])
    reads = [replace(chance[0], model='masked', values=dict(labels=labels, scores=scores))]
    visible, unseen = box_records([reads], [chance], 'probe', hidden[:, None])
    assert (visible.detail['finding'], unseen.detail['finding']) == ('visible', 'hidden')
    assert visible.detail['means'][0] == 1 and visible.low > 0 and unseen.value == 0


def test_a_mask_of_nothing_and_one_of_everything():
    shares = hidden_shares([f'p0-{k:06}' for k in range(12)], ['Cardiomegaly', 'Pneumonia'], [0, 1], 8)
    assert np.isfinite(shares).any() and not np.isfinite(shares).all()
    assert np.array_equal(np.isfinite(shares[:, 0]), np.isfinite(shares[:, 1]))
    assert np.nanmax(shares[:, 0]) == 0 and np.allclose(shares[:, 1][np.isfinite(shares[:, 1])], 1)
