"Values of single studies are written beside the records, once each, and come back as they were."
import json

import numpy as np
import pytest

from chexmix.core import UserError
from chexmix.records import (
    load_records, load_study_values, read_study_values, Record, save_records, save_study_values, StudyValues)


def systems(n=40):
    true = np.random.default_rng(0).random((n, 14)) < .2
    ids, patients = [f's{i}' for i in range(n)], [f'p{i // 2}' for i in range(n)]
    for k in range(5):
        values = dict(true=true, predicted=np.roll(true, k, 0), words=np.arange(n) * 1.5)
        yield StudyValues('report', f'model {k}', ids, patients, values, {'ratio': .5, 'reading': 'mask id'})


def test_study_values_come_back(tmp_path):
    written = list(systems())
    save_study_values(tmp_path, 'report', written)
    for before, after in zip(written, load_study_values(tmp_path/'results'), strict=True):
        for name in ('task', 'model', 'study_ids', 'patients', 'detail'):
            assert getattr(before, name) == getattr(after, name)
        assert list(before.values) == list(after.values)
        for name, x in before.values.items(): np.testing.assert_array_equal(x, after.values[name])


def test_shared_arrays_are_stored_once(tmp_path):
    save_study_values(tmp_path, 'report', list(systems()))
    with np.load(tmp_path/'results'/'report.npz') as file:
        assert len(file.files) == 1 + 3 + 4 + 1  # index; ids, patients, truth; predictions; words
        assert len(json.loads(str(file['index']))) == 5


def test_a_damaged_file_is_named(tmp_path):
    save_study_values(tmp_path, 'report', list(systems(3)))
    file = tmp_path/'results'/'report.npz'
    file.write_bytes(file.read_bytes()[:-40])
    with pytest.raises(UserError, match='report.npz'): read_study_values(file)
    assert load_study_values(tmp_path) == []


def test_a_table_holds_studies_of_one_kind(tmp_path):
    "Real studies have no place in the tables of a tokenizer that learned from synthetic ones."
    (tmp_path/'results').mkdir()
    (tmp_path/'settings.json').write_text('{}')
    for task, synthetic in (('tokenizer', True), ('inpaint', True), ('real_radiographs', False)):
        record = Record(task, 'stage1', 'MSE', .5, .4, .6, 10, 0, {})
        save_records(tmp_path, task, [record], dict(name='studies', synthetic=synthetic, n=10), {})
    assert set(load_records(tmp_path/'results').task) == {'tokenizer', 'inpaint'}
