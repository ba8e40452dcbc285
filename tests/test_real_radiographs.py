"Ways to a model of real radiographs: the same studies for all, people's labels, pairing over seeds."
from dataclasses import replace

import numpy as np, pandas as pd, pytest

from chexmix.core import get_settings, UserError
from chexmix.real_radiographs import (
    against_people, people_labels, prepare_way, shuffle_images, study_sources, way_differences,
    way_records, WAYS)
from chexmix.records import StudyValues
from chexmix.report import report_values
from chexmix.report_text import FINDINGS

IDS = [f's{i}' for i in range(40)]


def manifest(prefix, n=6):
    "Studies with a frontal and a lateral image each."
    views = [(f'{prefix}{k}', view) for k in range(n) for view in ('PA', 'LATERAL')]
    rows = pd.DataFrame(views, columns=['study_id', 'view'])
    split = np.where(np.arange(2 * n) < 2 * n - 4, 'train', 'test')
    return rows.assign(
        patient_id=rows.study_id, path='/' + rows.study_id + '_' + rows['view'] + '.png', split=split,
        findings_text='Clear lungs.', impression_text='', source=prefix, **dict.fromkeys(FINDINGS, 0.))


def reports(name, right, seed=0, **detail):
    "Reports that name edema where it is, for a share of the studies; the others say that nothing is there."
    truth = ['Pulmonary edema.' if i % 2 else 'Clear lungs.' for i in range(len(IDS))]
    draws = np.random.default_rng(seed).random(len(IDS))
    written = [own if draw < right else 'Clear lungs.' for own, draw in zip(truth, draws)]
    detail = dict(ratio=0, labels='words') | detail
    return StudyValues('report', name, IDS, IDS, report_values(written, truth), detail)


def test_shuffled_training_images_never_stay_and_test_images_always_do():
    before = manifest('a')
    after = shuffle_images(before, seed=3)
    train = before.split == 'train'
    assert (after.path[train] != before.path[train]).all()
    assert (after.path[~train] == before.path[~train]).all()
    assert sorted(after.path) == sorted(before.path) and (after.study_id == before.study_id).all()


def test_frontal_sources_hold_no_lateral_and_patients_may_not_be_shared():
    sources = study_sources(manifest('a'), manifest('b'), manifest('c'))
    assert not (sources['frontal']['view'] == 'LATERAL').any() and len(sources['both views']) == 12
    assert set(sources['others'].split) == {'train'}
    with pytest.raises(UserError, match='is in'): study_sources(manifest('a'), manifest('a'))


def test_a_way_without_its_images_is_refused(tmp_path):
    sources = study_sources(manifest('a'), manifest('b'))
    with pytest.raises(UserError, match='there are no others: give them, or leave that way out'):
        prepare_way(tmp_path, 'more images', sources, get_settings('tiny'), tmp_path)
    assert all(set(way.tokenizers) <= {*sources, 'others'} and way.learns in sources for way in WAYS.values())


def test_studies_that_nobody_labelled_are_left_out(tmp_path):
    labels = pd.DataFrame(0., IDS, list(FINDINGS))
    labels.loc['s1', 'Edema'], labels.loc['s5'] = 1., np.nan
    own = against_people(reports('a', 1), labels)
    assert len(own.study_ids) == 39 and 's5' not in own.study_ids and own.detail['labels'] == 'people'
    assert own.values['true'].sum() == 1 and own.values['true'][1, FINDINGS.index('Edema')]
    labels.rename_axis('study_id').to_csv(tmp_path/'people.csv')
    read = people_labels(manifest('s').assign(study_id='s1'), tmp_path/'people.csv')
    assert read.loc['s1', 'Edema'] == 1 and read.loc['s5'].isna().all()
    with pytest.raises(UserError, match='people.csv names none of these studies'):
        people_labels(manifest('a'), tmp_path/'people.csv')


def test_ways_are_compared_seed_by_seed_and_baselines_with_every_seed():
    better = [[reports('better', .9, seed, guidance=2)] for seed in range(3)]
    worse = [[reports('worse', .2, seed, guidance=2)] for seed in range(3)]
    first = {r.metric: r for r in way_differences(better, worse)}['F1 without No Finding']
    assert first.low > 0 and first.detail['seeds'] == 3 and first.detail['minus'] == 'worse'
    of_baseline = way_differences(better, [[reports('constant', 0)]])  # which knows no guidance
    assert of_baseline[0].detail['seeds'] == 3 and of_baseline[0].value > 0
    mean = {r.metric: r for r in way_records(better)}['F1 without No Finding']
    each = [way_records([own])[1].value for own in better]
    assert mean.value == pytest.approx(np.mean(each)) and mean.low < mean.value < mean.high
    other_labels = [[replace(own[0], detail=own[0].detail | dict(labels='people'))] for own in worse]
    assert way_differences(better, other_labels) == []
    other_guidance = [[reports('worse', .2, guidance=1)]]
    assert way_differences(better, other_guidance) == []
