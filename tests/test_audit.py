"The audit: every planted fault is found and nothing else; unreadable files are listed and the rest goes on."
from pathlib import Path

import numpy as np, pandas as pd, pytest
from PIL import Image

from chexmix.audit import (
    audit, correlation, frontal_similarity, lateral_look, NEAR, near_pairs, ODD, same_image, same_statements)
from chexmix.data import perceptual_hash, read_table, scan, thumbnail, to_manifest
from chexmix.report_text import FINDINGS
from chexmix.phantom import make_phantom, write_phantoms
from chexmix.radiograph import geometry

SHARED = Path(__file__).parents[2]/'shared'


@pytest.fixture(scope='module')
def phantoms(tmp_path_factory):
    "Sixty synthetic studies of 128 pixels, with their table."
    folder = tmp_path_factory.mktemp('phantoms')/'set'
    write_phantoms(folder, 60, 128)
    return folder


def test_clean_phantoms_are_clean(phantoms):
    found = audit(read_table(phantoms/'manifest.csv'), size=64)
    count = found.table.found
    of_reports = ['studies without a report', 'studies whose report another study has too']
    assert count.drop(of_reports).eq(0).all(), count
    assert found.quarantine.empty and found.images.similarity.notna().all()
    assert list(found.prevalence.index) == list(FINDINGS)


def test_planted_faults_are_found(phantoms, tmp_path):
    manifest = read_table(phantoms/'manifest.csv')
    manifest['split'] = np.where(np.arange(60) < 40, 'train', 'test')
    manifest.loc[59, 'patient_id'] = manifest.patient_id[0]           # a patient on both sides
    pixels = np.array(Image.open(manifest.path[1]))
    # image 1 again, in the other split
    Image.fromarray(pixels).resize((100, 100)).save(tmp_path/'again.jpg', quality=60)
    Image.fromarray(255 - np.array(Image.open(manifest.path[2]))).save(tmp_path/'inverted.png')
    (tmp_path/'cut.png').write_bytes(Path(manifest.path[3]).read_bytes()[:900])
    (tmp_path/'empty.dcm').write_bytes(b'')
    names = {58: 'again.jpg', 57: 'inverted.png', 56: 'cut.png', 55: 'empty.dcm', 54: 'none.png'}
    for row, name in names.items(): manifest.loc[row, 'path'] = str(tmp_path/name)
    manifest.loc[53, ['findings_text', 'impression_text']] = ''
    manifest.loc[[50, 51, 52], 'findings_text'] = 'The same words.'
    manifest.loc[[50, 51, 52], 'impression_text'] = ''
    manifest.loc[49, 'view'] = 'LATERAL'
    found = audit(manifest, tmp_path/'out', size=64)
    count = found.table.found
    wanted = {
        'cannot be read': 3,
        'inverted, by similarity to the others': 1,
        'lateral, by table or header': 1,
        '… in several splits': 2,
        '… under several patients': 2,
        'of patients who are in several splits': 2,
        'studies without a report': 1}
    assert {check: count[check] for check in wanted} == wanted
    assert count['studies whose report another study has too'] >= 3
    examples = found.table.example
    assert examples['inverted, by similarity to the others'] == manifest.study_id[57]
    assert {manifest.study_id[1], manifest.study_id[58]} == set(examples['… in several splits'].split(' = '))
    tables = ['audit.csv', 'audit.png', 'images.csv', 'manifest.csv', 'prevalence.csv', 'quarantine.csv']
    assert sorted(p.name for p in (tmp_path/'out').iterdir()) == tables
    written = pd.read_csv(tmp_path/'out'/'quarantine.csv')
    assert [Path(path).name for path in written.path] == ['none.png', 'empty.dcm', 'cut.png']
    for path, reason in zip(written.path, written.reason): assert path in reason
    assert Image.open(tmp_path/'out'/'audit.png').width > 500
    readable, quarantine = scan(manifest, 64)  # the run's own pass says the same
    assert quarantine.path.tolist() == written.path.tolist() and len(readable) == 57


@pytest.fixture(scope='module')
def two_views(tmp_path_factory):
    "Thirty synthetic frontal images and thirty laterals of other patients, as a manifest."
    folder, rows = tmp_path_factory.mktemp('views'), []
    for k in range(60):
        view = 'LATERAL' if k % 2 else 'PA'
        image = make_phantom(5, k, 64, view=view).image
        Image.fromarray((image * 255).astype(np.uint8)).save(folder/f'{k}.png')
        rows.append(dict(
            path=str(folder/f'{k}.png'), study_id=f's{k}', patient_id=f'p{k}', view=view,
            split='train' if k < 40 else 'test', findings_text=f'Report number {k}.'))
    return to_manifest(pd.DataFrame(rows), 'two views')


def upside_down(pixels): return pixels[::-1, ::-1]


def on_the_left(pixels): return np.rot90(pixels)


def on_the_right(pixels): return np.rot90(pixels, 3)


def negative(pixels): return 255 - pixels


def framed(pixels):
    "The image pressed into the upper part of a gray square, with black below."
    square = np.full((128, 128), 200, np.uint8)
    square[4:60, 8:120] = np.array(Image.fromarray(pixels).resize((112, 56)))
    square[64:] = 0
    return square


VIEW_FAULTS = {  # what is done to frontal image 4 or lateral 5, and what finds it (None: nothing)
    'nothing': (4, {}, None, None),
    'upside down': (4, {}, upside_down, 'turned, by similarity to the others'),
    'on the left side': (4, {}, on_the_left, 'turned, by similarity to the others'),
    'on the right side': (4, {}, on_the_right, 'turned, by similarity to the others'),
    'inverted': (4, {}, negative, 'inverted, by similarity to the others'),
    'a frontal called lateral': (4, dict(view='LATERAL'), None, 'called lateral, looks frontal'),
    'a lateral called frontal': (5, dict(view='PA'), None, 'called frontal, looks lateral'),
    'a lateral without a view': (5, dict(view=''), None, 'of no named view, looks lateral'),
    'a frontal without a view': (4, dict(view=''), None, None),
}
VIEW_CHECKS = {check for _, _, _, check in VIEW_FAULTS.values() if check}


@pytest.mark.parametrize('name', VIEW_FAULTS)
def test_each_fault_of_a_view_is_found_by_its_own_check(name, two_views, tmp_path):
    row, change, alter, check = VIEW_FAULTS[name]
    manifest = two_views.copy()
    for column, value in change.items(): manifest.loc[row, column] = value
    if alter:
        pixels = np.ascontiguousarray(alter(np.array(Image.open(manifest.path[row]))))
        Image.fromarray(pixels).save(tmp_path/'altered.png')
        manifest.loc[row, 'path'] = str(tmp_path/'altered.png')
    found = audit(manifest, workers=1).table
    counts = found.found[sorted(VIEW_CHECKS)]
    if alter: counts = counts.drop('called frontal, looks lateral')  # a turned one may, too
    assert counts[counts > 0].to_dict() == ({check: 1} if check else {})
    if check: assert found.example[check] == f's{row}'


def test_a_narrow_image_in_a_frame_is_odd_and_not_inverted(two_views, tmp_path):
    manifest = two_views.copy()
    Image.fromarray(framed(np.array(Image.open(manifest.path[4])))).save(tmp_path/'framed.png')
    manifest.loc[4, 'path'] = str(tmp_path/'framed.png')
    result = audit(manifest, workers=1)
    found = result.table
    assert result.images.similarity[4] < 0
    assert found.found['inverted, by similarity to the others'] == 0
    assert found.found['turned, by similarity to the others'] == 0
    assert 's4' in found.example[f'unlike a frontal chest (similarity < {ODD})']


def test_too_few_patients_teach_no_view():
    thumbs = [bytes(range(256))] * 60
    views = pd.Series(['PA', 'LATERAL'] * 30)
    assert np.isnan(lateral_look(thumbs, views, pd.Series(['p'] * 60))).all()
    assert np.isnan(lateral_look(thumbs, pd.Series(['PA'] * 60), pd.Series(range(60)))).all()
    assert lateral_look(thumbs, views, pd.Series(range(60))).round(2).tolist() == [.5] * 60


REPORTS_OF_TWO = {  # two texts, and whether they say the same but for order, numbers and marks
    'the same': ('Clear lungs.', 'Clear lungs.', True),
    'order': ('Clear lungs. No effusion.', 'No effusion. Clear lungs.', True),
    'numbers': ('1. Clear lungs. 2. No effusion.', 'Clear lungs. No effusion.', True),
    'marks': ('Clear lungs XXXX.', 'Clear lungs.', True),
    'capitals and stops': ('CLEAR LUNGS', 'Clear lungs!', True),
    'a word': ('Clear lungs.', 'Clear left lung.', False),
    'a denial': ('No effusion.', 'Effusion.', False),
    'one more sentence': ('Clear lungs.', 'Clear lungs. No effusion.', False),
}


@pytest.mark.parametrize('name', REPORTS_OF_TWO)
def test_nearly_the_same_reports(name):
    one, other, same = REPORTS_OF_TWO[name]
    assert (same_statements(one) == same_statements(f'FINDINGS: {other}')) == same


def test_reports_and_views_of_studies_are_counted(two_views):
    manifest = two_views.iloc[:6].copy()
    manifest['study_id'] = ['a', 'a', 'b', 'c', 'd', 'e']
    manifest['patient_id'] = manifest.study_id
    manifest['findings_text'] = ['Clear.', 'Clear.', '1. CLEAR', 'Clear.', 'XXXX.', 'Large heart.']
    manifest['split'] = ['train', 'train', 'test', 'test', 'test', 'test']
    found = audit(manifest, workers=1).table.found
    wanted = {
        'studies without a frontal image': 2, 'studies without a report': 1,
        'studies whose report another study has too': 2,
        '… or has but for order, numbers and removed words': 3,
        '… test studies whose report stands in training': 2,
        'studies whose images have different reports': 0}
    assert found[list(wanted)].to_dict() == wanted
    manifest.loc[1, 'findings_text'] = 'Large effusion.'
    assert audit(manifest, workers=1).table.found['studies whose images have different reports'] == 1


def test_the_audited_studies_can_be_trained_on(two_views, tmp_path):
    "The manifest that an audit leaves is the one it examined, with its split."
    audit(two_views.assign(split=''), tmp_path/'out', workers=1)
    again = read_table(tmp_path/'out'/'manifest.csv')
    assert again.path.tolist() == two_views.path.tolist()
    assert again['split'].isin(['train', 'valid', 'test']).all()


def test_nothing_readable_is_a_result_too(tmp_path):
    for name in 'ab': (tmp_path/f'{name}.png').write_bytes(b'')
    paths, ids = [str(tmp_path/f'{name}.png') for name in 'ab'], ['a', 'b']
    table = pd.DataFrame({'path': paths, 'study_id': ids, 'patient_id': ids, 'source': 'x'})
    found = audit(to_manifest(table, 'two'), tmp_path/'out')
    assert found.table.found['cannot be read'] == 2 and len(found.quarantine) == 2
    assert (tmp_path/'out'/'audit.png').exists()



def test_pairs_agree_with_counting_all():
    g = np.random.default_rng(0)
    base = g.integers(0, 2**63, (40, 4), dtype=np.uint64)
    chosen = base[g.integers(0, 40, 300)]
    flips = np.packbits(g.random((300, 256)) < .05, axis=1).view(np.uint64)  # about 13 bits
    words = chosen ^ flips
    bits = np.unpackbits(words.view(np.uint8).reshape(300, 32), axis=1)
    i, j = np.nonzero(np.triu((bits[:, None] != bits[None]).sum(-1) <= NEAR, 1))
    assert sorted(map(tuple, near_pairs(words).tolist())) == sorted(zip(i.tolist(), j.tolist()))
    assert len(i) > 100


@pytest.mark.parametrize('n', [0, 1, 2])
def test_few_images(n):
    thumb = np.random.default_rng(0).random((32, 32)).astype(np.float32)
    assert same_image([perceptual_hash(thumb)] * n).tolist() == [0] * n
    assert np.isnan(frontal_similarity([bytes(256)] * n, np.ones(n, bool))).all()


def test_images_of_one_gray_do_not_break_it():
    assert correlation(np.ones((3, 16, 16)), np.arange(256.).reshape(16, 16)).tolist() == [0, 0, 0]
    assert len(perceptual_hash(thumbnail(np.zeros((64, 64), np.float32), geometry(300, 200, 64)))) == 32


REAL_TREE = SHARED/'data'/'open_cxr2'


@pytest.mark.skipif(not REAL_TREE.exists(), reason='real radiographs not here: shared/data/open_cxr2')
def test_real_images_that_are_turned_or_inverted():
    "Four hundred frontal images with the three that are turned and the one that is inverted."
    table = pd.read_csv(REAL_TREE/'metadata.csv', dtype=str, keep_default_na=False)
    known = table.path.str.contains('iu_1285_IM-0188-0001|iu_2146_IM-0766|iu_2280_IM-0867|nih_00017999')
    some = table[(table['view'] != 'LATERAL') & ~known].iloc[::10][:400]
    rows = pd.concat([some, table[known & (table['view'] != 'LATERAL')]])
    rows = rows.assign(path=[str(REAL_TREE/path) for path in rows.path], findings_text='')
    found = audit(to_manifest(rows, 'some')).table
    turned, inverted = (f'{what}, by similarity to the others' for what in ('turned', 'inverted'))
    assert found.found[[turned, inverted]].tolist() == [3, 1]
    assert found.example[[turned, inverted]].tolist() == ['iu_1285, iu_2146, iu_2280', 'nih_00017999_000']


missing = 'real radiographs not here: shared/data/open_cxr'


@pytest.mark.skipif(not (SHARED/'data'/'open_cxr').exists(), reason=missing)
def test_real_images():
    "The four images that belong to two patients are found, and nothing else."
    manifest = read_table(SHARED/'data'/'open_cxr'/'metadata.csv')
    manifest = manifest[manifest.patient_id.str.startswith('cov')].reset_index(drop=True)
    found = audit(manifest)
    twins = found.images[found.images.group.duplicated(keep=False)]
    first, second = [f'cov_178_{i:03d}' for i in range(75, 79)], [f'cov_97_{i:03d}' for i in range(29, 33)]
    assert sorted(twins.study_id) == [*first, *second]
    assert (found.images.similarity > 0).all() and (found.images.similarity < ODD).mean() < .05
