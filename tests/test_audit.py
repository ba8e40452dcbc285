"The audit: every planted fault is found and nothing else; unreadable files are listed and the rest goes on."
from pathlib import Path

import numpy as np, pandas as pd, pytest
from PIL import Image

from chexmix.audit import audit, correlation, frontal_similarity, NEAR, near_pairs, ODD, same_image
from chexmix.data import perceptual_hash, read_table, scan, thumbnail, to_manifest
from chexmix.report_text import FINDINGS
from chexmix.phantom import write_phantoms
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
    tables = ['audit.csv', 'audit.png', 'images.csv', 'prevalence.csv', 'quarantine.csv']
    assert sorted(p.name for p in (tmp_path/'out').iterdir()) == tables
    written = pd.read_csv(tmp_path/'out'/'quarantine.csv')
    assert [Path(path).name for path in written.path] == ['none.png', 'empty.dcm', 'cut.png']
    for path, reason in zip(written.path, written.reason): assert path in reason
    assert Image.open(tmp_path/'out'/'audit.png').width > 500
    readable, quarantine = scan(manifest, 64)  # the run's own pass says the same
    assert quarantine.path.tolist() == written.path.tolist() and len(readable) == 57


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
