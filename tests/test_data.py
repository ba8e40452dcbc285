"""Tables, labels, splits and the scan, and every way in which a table can be wrong."""
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from chexmix.core import UserError
from chexmix.data import MANIFEST_COLUMNS, check_split, read_table, scan, split_by_patient
from chexmix.labels import FINDINGS, label_report, labels_to_text, report_sections, report_text, resolve_uncertain, with_parents

SHARED = Path(__file__).parents[2]/'shared'
needs = lambda path: pytest.mark.skipif(not (SHARED/path).exists(), reason=f'real data not here: shared/{path}')


@pytest.fixture(scope='session')
def gray():
    "(90,70) 8-bit pixels that use the whole range."
    y, x = np.mgrid[0:90, 0:70]
    pixels = (127 + 100 * np.sin(x / 9) * np.cos(y / 7)).astype(np.uint8)
    pixels[0, 0], pixels[0, 1] = 0, 255
    return pixels


def picture(path, array, mode=None, **options):
    image = Image.fromarray(array)
    (image.convert(mode) if mode else image).save(path, **options)
    return path


def content(path, data):
    path.write_bytes(data)
    return path


def test_unknown_policies():
    for call in (lambda: resolve_uncertain(pd.DataFrame(columns=list(FINDINGS)), 'maybe'), lambda: report_text({}, 'all')):
        with pytest.raises(UserError, match='choose one of'): call()


BAD_TABLES = {
    'empty file': ('', 'No columns'),
    'header alone': ('path,text\n', 'no rows'),
    'no path column': ('image id,text\n1,clear\n', 'no column `path`'),
    'no text, no labels': ('path,age\na.png,50\n', 'no text and no labels'),
    'empty path': ('path,text\na.png,x\n,clear\n', 'row 2 has no path'),
    'nan path': ('path,text\nNaN,clear\n', 'row 1 has no path'),
    'path leaves the folder': ('path,text\n../../etc/a.png,clear\n', 'leaves the folder'),
    'path leaves inside': ('path,text\nx/../../a.png,clear\n', 'leaves the folder'),
    'study twice': ('study_id,path,text\ns,a.png,x\ns,b.png,y\n', 'row 2: study s'),
    'image twice': ('path,text\na.png,x\na.png,y\n', 'row 2'),
    'unknown split': ('path,text,split\na.png,x,holdout\n', "'holdout'"),
    'label in words': ('path,text,Edema\na.png,x,yes\n', "'yes'"),
    'label of 2': ('path,text,Pleural Effusion\na.png,x,2\n', "'2'"),
    'ragged': ('path,text\na.png,x\nb.png,y,z\n', 'Expected 2 fields'),
    'longer than the header': ('path,text\na.png,x,y\nb.png,y,z\n', 'longer than its header'),
    'column twice': ('path,Path,text\na.png,b.png,x\n', 'column twice'),
}


@pytest.mark.parametrize('name', BAD_TABLES)
def test_a_bad_table_is_one_line_with_its_path(name, tmp_path):
    text, words = BAD_TABLES[name]
    path = tmp_path/'table.csv'
    path.write_text(text)
    with pytest.raises(UserError) as error: read_table(path)
    assert str(path) in str(error.value) and words in str(error.value) and '\n' not in str(error.value)


@pytest.mark.parametrize('make', [lambda d: d/'none.csv', lambda d: d, lambda d: content(d/'a.csv', b'\x89PNG\r\n\x1a\n\xff\xfe\0\0')], ids=['missing', 'a folder', 'binary'])
def test_what_is_no_table(make, tmp_path):
    with pytest.raises(UserError, match='cannot read the table|no column|no rows'): read_table(make(tmp_path))


def test_manifest_contract(tmp_path, capsys):
    (tmp_path/'t.csv').write_text('Path,Report,Split,Subject_ID\na.png,"FINDINGS: Small left effusion. IMPRESSION: Effusion.",val,007\nsub/b.png,.,,007\n/abs/c.png,Normal chest.,,\n')
    manifest = read_table(tmp_path/'t.csv')
    assert list(manifest) == [*MANIFEST_COLUMNS, *FINDINGS]
    assert manifest.patient_id.tolist() == ['007', '007', '/abs/c.png'] and manifest['split'].tolist() == ['valid', '', '']
    assert manifest.path.tolist() == [str(tmp_path/'a.png'), str(tmp_path/'sub'/'b.png'), '/abs/c.png']
    assert manifest.findings_text.tolist() == ['Small left effusion.', '', 'Normal chest.']
    assert manifest['Pleural Effusion'].tolist()[0] == 1 and np.isnan(manifest['Pleural Effusion'][1]) and manifest['No Finding'][2] == 1
    printed = capsys.readouterr().out
    assert '1 studies name no patient' in printed and '1 studies have no text' in printed
    manifest.to_csv(tmp_path/'again.csv', index=False)
    pd.testing.assert_frame_equal(read_table(tmp_path/'again.csv'), manifest)
    assert split_by_patient(manifest)['split'].tolist()[:2] == ['valid', 'valid']


def test_label_columns_keep_unknown_and_uncertain(tmp_path):
    (tmp_path/'t.csv').write_text('path,Edema,Effusion,Nodule,Mass\na.png,1.0,-1,0,1\nb.png,,0,,\n')
    manifest = read_table(tmp_path/'t.csv')
    assert manifest.loc[0, ['Edema', 'Pleural Effusion', 'Lung Lesion']].tolist() == [1, -1, 1]
    assert manifest.loc[1, ['Edema', 'Lung Lesion', 'Fracture']].isna().all() and manifest['Pleural Effusion'][1] == 0
    assert manifest.findings_text[0] == 'Lung lesion, edema. Possible pleural effusion.'
    assert [resolve_uncertain(manifest, p)['Pleural Effusion'][0] for p in ('ones', 'zeros')] == [1, 0]
    assert np.isnan(resolve_uncertain(manifest)['Pleural Effusion'][0])


@pytest.mark.parametrize('text,expected', [
    ('No pleural effusion or pneumothorax.', {'Pleural Effusion': 0, 'Pneumothorax': 0}),
    ('Moderate cardiomegaly without edema.', {'Cardiomegaly': 1, 'Edema': 0}),
    ('The cardiac silhouette is mildly enlarged.', {'Cardiomegaly': 1}),
    ('Heart size is normal.', {'Cardiomegaly': 0}),
    ('There is no focal consolidation, but a small right effusion is present.', {'Consolidation': 0, 'Pleural Effusion': 1}),
    ('Pneumonia cannot be excluded.', {'Pneumonia': -1}),
    ('Opacity may represent atelectasis.', {'Lung Opacity': -1, 'Atelectasis': -1}),
    ('No change in the left pneumothorax.', {'Pneumothorax': 1}),
    ('The chest tube has been removed.', {'Support Devices': 0}),
    ('Pacemaker leads in place. Healed rib fractures.', {'Support Devices': 1, 'Fracture': 1}),
    ('Recommend CT to evaluate for malignancy.', {'Lung Lesion': np.nan}),
    ('INDICATION: pneumonia? FINDINGS: Clear lungs.', {'Pneumonia': 0, 'No Finding': 1}),
    ('Possible edema. IMPRESSION: Edema.', {'Edema': 1}),
    ('', dict.fromkeys(FINDINGS, np.nan)),
])
def test_labels_of_sentences(text, expected):
    labels = label_report(text)
    assert list(labels) == list(FINDINGS)
    np.testing.assert_equal({name: labels[name] for name in expected}, expected)


def test_labels_and_text_are_inverse():
    rng = np.random.default_rng(0)
    for _ in range(200):
        labels = with_parents(dict(zip(FINDINGS, [0, *rng.choice([0, 1, -1], 13, p=[.7, .2, .1])])))
        back = label_report(labels_to_text(labels))
        assert {k for k, v in back.items() if v == 1} == {k for k, v in labels.items() if v == 1}
        assert {k for k, v in back.items() if v == -1} == {k for k, v in labels.items() if v == -1}


def test_sections_join_again():
    report = 'FINDINGS: Clear lungs. IMPRESSION: Normal.'
    assert report_text({f'{k}_text': v for k, v in report_sections(report).items()}) == report


def test_scan_sets_bad_files_aside(tmp_path, gray, capsys):
    picture(tmp_path/'a.png', gray), picture(tmp_path/'b.png', gray), picture(tmp_path/'c.png', gray[::-1])
    content(tmp_path/'d.png', b'')
    (tmp_path/'t.csv').write_text('path,text\n' + ''.join(f'{name}.png,clear lungs\n' for name in 'abcde'))
    readable, quarantine = scan(read_table(tmp_path/'t.csv'), 32, workers=2)
    assert [Path(p).name for p in readable.path] == ['a.png', 'b.png', 'c.png'] and list(quarantine) == ['path', 'reason'] and len(quarantine) == 2
    assert '3 images readable, 2 set aside; 1 images are there under more than one patient' in capsys.readouterr().out
    with pytest.raises(UserError, match='none of 2 images'): scan(pd.DataFrame({'path': quarantine.path, 'patient_id': ['1', '2']}), 32)


def test_split_is_stable_and_disjoint():
    many = pd.DataFrame({'study_id': [f's{i}' for i in range(4000)], 'patient_id': [f'p{i % 1500}' for i in range(4000)], 'split': ''})
    whole = split_by_patient(many)
    part = split_by_patient(many.sample(frac=.5, random_state=0))
    assert (whole['split'][part.index] == part['split']).all()
    counts = check_split(whole)
    assert abs(counts.patients / 1500 - [.7, .1, .2]).max() < .03
    with pytest.raises(UserError, match='sum to 1'): split_by_patient(many, (.5, .1, .1))
    with pytest.raises(UserError, match='more than one split'): check_split(whole.assign(split=['train'] * 2000 + ['test'] * 2000))
    with pytest.raises(UserError, match='no split'): check_split(many)


@needs('data/open_cxr/metadata.csv')
def test_real_table(capsys):
    manifest = read_table(SHARED/'data'/'open_cxr'/'metadata.csv')
    assert (len(manifest), manifest.patient_id.nunique()) == (928, 615)
    assert (manifest['No Finding'] == 1).sum() == 419 and (manifest['Pleural Effusion'] == 1).sum() == 85 and manifest[list(FINDINGS)].notna().all().all()
    assert all(map(report_text, manifest.to_dict('records'))) and manifest.findings_text.str.len().max() > 500
    written = manifest[~manifest.path.str.contains('cov_')]
    for row in written.to_dict('records'):  # a sentence written from labels is read back as those labels
        back = label_report(report_text(row))
        assert {k for k in FINDINGS if back[k] == 1} == {k for k in FINDINGS if row[k] == 1}
    counts = check_split(split_by_patient(manifest))
    assert counts.studies.sum() == 928 and counts.patients.sum() == 615 and (counts.studies > 50).all()
    assert 'patient-disjoint' in capsys.readouterr().out
    readable, quarantine = scan(manifest.sample(40, random_state=0), 64)
    assert len(readable) == 40 and not len(quarantine)
