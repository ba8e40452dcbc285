"Tables of any kind become one manifest or one line; splits, saved manifests, and the pass over files that may be broken or deadly."
import gzip
import os
import signal
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from chexmix.core import UserError
from chexmix.data import MANIFEST_COLUMNS, check_split, concatenate, in_workers, read_table, scan, split_by_patient, to_manifest, to_parquet
from chexmix.labels import FINDINGS, label_report, report_text, resolve_uncertain

SHARED = Path(__file__).parents[2]/'shared'
PIXELS = (127 + 100 * np.sin(np.arange(90)[:, None] / 9) * np.cos(np.arange(70) / 7)).astype(np.uint8)


def picture(path, array=PIXELS):
    Image.fromarray(array).save(path)
    return path


def cut(path, keep):
    path.write_bytes(path.read_bytes()[:keep])
    return path


def content(path, data):
    path.write_bytes(data)
    return path


def zip_bomb(path):
    "A PNG of a few bytes that claims 60000×60000 pixels."
    chunk = lambda kind, data: struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))
    return content(path, b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', struct.pack('>IIBBBBB', 60000, 60000, 8, 0, 0, 0, 0)) + chunk(b'IDAT', zlib.compress(b'\0')) + chunk(b'IEND', b''))


def named(path, to):
    path.rename(to)
    return to


BAD_TABLES = {
    'empty file': ('', 'No columns'),
    'header alone': ('path,text\n', 'no rows'),
    'no path column': ('image id,text\n1,clear\n', 'no column `path`'),
    'no text, no labels': ('path,age\na.png,50\n', 'no text and no labels'),
    'empty path': ('path,text\na.png,x\n,clear\n', 'row 2 has no path'),
    'nan path': ('path,text\nNaN,clear\n', 'row 1 has no path'),
    'path leaves the folder': ('path,text\n../../etc/a.png,clear\n', 'leaves the folder'),
    'path leaves inside': ('path,text\nx/../../a.png,clear\n', 'leaves the folder'),
    'study of two patients': ('study_id,patient_id,path,text\ns,p,a.png,x\ns,q,b.png,y\n', 'row 2: study s'),
    'image twice': ('path,text\na.png,x\na.png,y\n', 'row 2: the image'),
    'image twice, written differently': ('path,text\na.png,x\n./b/../a.png,y\n', 'row 2: the image'),
    'unknown split': ('path,text,split\na.png,x,holdout\n', "'holdout'"),
    'label in words': ('path,text,Edema\na.png,x,yes\n', "'yes'"),
    'label of 2': ('path,text,Pleural Effusion\na.png,x,2\n', "'2'"),
    'ragged': ('path,text\na.png,x\nb.png,y,z\n', 'Expected 2 fields'),
    'longer than the header': ('path,text\na.png,x,y\nb.png,y,z\n', 'longer than its header'),
    'spaces for a path': ('path,text\n   ,clear\n', 'row 1 has no path'),
    'label of a half': ('path,text,Edema\na.png,x,0.5\n', "'0.5'"),
    'label of infinity': ('path,text,Edema\na.png,x,inf\n', "'inf'"),
    'semicolons and a wrong header': ('bild;befund\na.png;clear\n', 'no column `path`, only bild, befund'),
    'quote never closed': ('path,text\na.png,"clear\nb.png,x\n', 'EOF inside string'),
    'quote closed far below': ('path,text\na.png,"clear\n' + 'b.png,x y z\n' * 20_000 + 'c.png,"end"\n', 'row 1: its text has more than 100,000'),
    'huge cell': ('path,findings\na.png,ok\nb.png,' + 'word ' * 30_000 + '\n', 'row 2: its findings_text has more than'),
    'not a table but JSON': ('{"path": "a.png"}', 'no rows'),
    'blank lines': ('\n\n\n', 'No columns'),
    'column twice': ('path,Path,text\na.png,b.png,x\n', 'column twice'),
}


@pytest.mark.parametrize('name', BAD_TABLES)
def test_a_bad_table_is_one_line_with_its_path(name, tmp_path):
    text, words = BAD_TABLES[name]
    path = tmp_path/'table.csv'
    path.write_text(text)
    with pytest.raises(UserError) as error: read_table(path)
    assert str(path) in str(error.value) and words in str(error.value) and '\n' not in str(error.value)


NO_TABLES = {
    'missing': lambda d: d/'none.csv',
    'a folder': lambda d: d,
    'binary': lambda d: content(d/'a.csv', b'\x89PNG\r\n\x1a\n\xff\xfe\0\0'),
    'latin-1': lambda d: content(d/'a.csv', 'path,text\na.png,Größe normal\n'.encode('latin-1')),
    'utf-16': lambda d: content(d/'a.csv', 'path,text\na.png,clear\n'.encode('utf-16')),
    'zip named csv': lambda d: content(d/'a.csv', b'PK\x03\x04' + bytes(range(256))),
    'zero bytes': lambda d: content(d/'a.csv', b''),
    'text named gz': lambda d: content(d/'a.csv.gz', b'path,text\na.png,clear\n'),
    'truncated gz': lambda d: content(d/'a.csv.gz', gzip.compress(b'path,text\n' + b'a.png,clear\n' * 1000)[:40]),
    'text named parquet': lambda d: content(d/'a.parquet', b'path,text\na.png,clear\n'),
    'truncated parquet': lambda d: cut(parquet(d/'a.parquet'), 300),
    'zero bytes parquet': lambda d: content(d/'a.parquet', b''),
    'a folder named parquet': lambda d: (d/'a.parquet').mkdir() or d/'a.parquet',
}


def parquet(path):
    pd.DataFrame({'path': ['a.png'] * 50, 'text': ['clear'] * 50}).to_parquet(path)
    return path


@pytest.mark.parametrize('name', NO_TABLES)
def test_what_is_no_table(name, tmp_path):
    path = NO_TABLES[name](tmp_path)
    with pytest.raises(UserError, match='cannot read the table|no column|no rows') as error: read_table(path)
    assert str(path) in str(error.value) and '\n' not in str(error.value)


def test_separators_packed_tables_and_unusual_names(tmp_path):
    expected = None
    for name, text in (('a.csv', 'path,text,Edema\na.png,"Clear, dry lungs.",0\n'), ('b.csv', 'path;text;Edema\na.png;Clear, dry lungs.;0\n'), ('c.tsv', 'path\ttext\tEdema\na.png\tClear, dry lungs.\t0\n')):
        for pack in (False, True):
            path = content(tmp_path/(name + '.gz' * pack), gzip.compress(text.encode()) if pack else text.encode('utf-8-sig'))
            manifest = read_table(path).drop(columns='source')
            if expected is not None: pd.testing.assert_frame_equal(manifest, expected)
            expected = manifest
    content(tmp_path/'d.csv', b'Bild,Befund,oedem,path\na.png,"Clear, dry lungs.",0,ignored\n')
    pd.testing.assert_frame_equal(read_table(tmp_path/'d.csv', columns={'path': 'Bild', 'text': 'Befund', 'Edema': 'oedem'}).drop(columns='source'), expected)
    for wrong, words in (({'path': 'Foto'}, "no column 'Foto'"), ({'paths': 'Bild'}, 'no such column in a manifest: paths')):
        with pytest.raises(UserError, match=words): read_table(tmp_path/'d.csv', columns=wrong)


def test_a_link_that_leaves_the_folder_is_the_folders_own_word(tmp_path):
    (tmp_path/'disk').mkdir(), (tmp_path/'set').mkdir()
    picture(tmp_path/'disk'/'a.png')
    (tmp_path/'set'/'images').symlink_to(tmp_path/'disk')
    content(tmp_path/'set'/'t.csv', b'path,text\nimages/a.png,clear lungs\n')
    manifest = read_table(tmp_path/'set'/'t.csv')
    assert manifest.path.tolist() == [str(tmp_path/'set'/'images'/'a.png')] and len(scan(manifest, 32)[0]) == 1


def test_a_study_may_have_several_images(tmp_path):
    content(tmp_path/'t.csv', b'study_id,patient_id,path,view,text\ns,p,a.png,PA,Clear lungs.\ns,p,b.png,LL,Clear lungs.\n')
    manifest = read_table(tmp_path/'t.csv')
    assert manifest.study_id.tolist() == ['s', 's'] and manifest['view'].tolist() == ['PA', 'LATERAL']
    counts = check_split(split_by_patient(manifest))
    assert counts.images.sum() == 2 and counts.studies.sum() == 1 and counts.patients.sum() == 1


def test_parquet_and_csv_give_the_manifest_back(tmp_path):
    content(tmp_path/'t.csv', ('path,study_id,patient_id,view,text,' + ','.join(FINDINGS) + '\n' + 'a.png,007,01,PA,"A, b ""c"" d.",1,0,-1' + ',' * 11 + '\n' + 'b.png,1e5,NA,,,' + ',' * 13 + '\n').encode())
    manifest = read_table(tmp_path/'t.csv')
    assert manifest.study_id.tolist() == ['007', '1e5'] and manifest.patient_id.tolist() == ['01', 'NA'] and manifest.loc[0, 'Cardiomegaly'] == -1
    to_parquet(manifest, tmp_path/'m.parquet')
    manifest.to_csv(tmp_path/'m.csv', index=False)
    for name in ('m.parquet', 'm.csv'): pd.testing.assert_frame_equal(read_table(tmp_path/name), manifest)
    with pytest.raises(UserError, match='must end in .parquet'): to_parquet(manifest, tmp_path/'m.csv')
    assert sorted(p.name for p in tmp_path.iterdir()) == ['m.csv', 'm.parquet', 't.csv']


@pytest.mark.parametrize('column', ['path', 'study_id', 'patient_id'])
def test_concatenate_refuses_what_is_in_both(column):
    one = pd.DataFrame({'path': ['/a.png'], 'study_id': ['s'], 'patient_id': ['p'], 'source': 'one', 'split': ''})
    one, two = (to_manifest(t, 'table') for t in (one, one.assign(path='/b.png', study_id='t', patient_id='q', source='two')))
    assert len(concatenate(one, two)) == 2
    two[column] = one[column]
    with pytest.raises(UserError, match='is in one and in two') as error: concatenate(one, two)
    assert '\n' not in str(error.value)


def test_manifest_contract(tmp_path, capsys):
    (tmp_path/'t.csv').write_text('Path,Report,Split,Subject_ID\na.png,"FINDINGS: Small left effusion. IMPRESSION: Effusion.",val,007\nsub/b.png,.,,007\n/abs/c.png,Normal chest.,,\n')
    manifest = read_table(tmp_path/'t.csv')
    assert list(manifest) == [*MANIFEST_COLUMNS, *FINDINGS]
    assert manifest.patient_id.tolist() == ['007', '007', '/abs/c.png'] and manifest['split'].tolist() == ['valid', '', '']
    assert manifest.path.tolist() == [str(tmp_path/'a.png'), str(tmp_path/'sub'/'b.png'), '/abs/c.png']
    assert manifest.findings_text.tolist() == ['Small left effusion.', '', 'Normal chest.']
    assert manifest['Pleural Effusion'].tolist()[0] == 1 and np.isnan(manifest['Pleural Effusion'][1]) and manifest['No Finding'][2] == 1
    printed = capsys.readouterr().out
    assert '1 images name no patient' in printed and '1 images have no text' in printed
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


def test_scan_sets_bad_files_aside(tmp_path, capsys):
    picture(tmp_path/'a.png'), picture(tmp_path/'b.png'), picture(tmp_path/'c.png', PIXELS[::-1])
    content(tmp_path/'d.png', b'')
    (tmp_path/'t.csv').write_text('path,text\n' + ''.join(f'{name}.png,clear lungs\n' for name in 'abcde'))
    readable, quarantine = scan(read_table(tmp_path/'t.csv'), 32, workers=2)
    assert [Path(p).name for p in readable.path] == ['a.png', 'b.png', 'c.png'] and list(quarantine) == ['path', 'reason'] and len(quarantine) == 2
    assert '3 images readable, 2 set aside; 1 images are there under more than one patient' in capsys.readouterr().out
    with pytest.raises(UserError, match='none of 2 images'): scan(pd.DataFrame({'path': quarantine.path, 'patient_id': ['1', '2']}), 32)


def fatal(path):
    "Dies on files named so, as a decoder with a fault in native code would."
    if 'fatal' in path: os.kill(os.getpid(), signal.SIGSEGV)
    return os.path.basename(path)


def test_a_process_that_dies_costs_one_item():
    items = [f'/d/{i}' for i in range(200)]
    items[57] = '/d/fatal57'
    results = in_workers(fatal, items, workers=2, chunk=8)
    assert [i for i, r in enumerate(results) if r is None] == [57]
    assert all(r == str(i) for i, r in enumerate(results) if r is not None)


def test_a_file_that_kills_its_reader_is_set_aside(tmp_path):
    "A decoder's crash, planted in every process through the environment they start in; the script needs no guard against being imported."
    for name in 'ab': picture(tmp_path/f'{name}.png')
    picture(tmp_path/'fatal.png')
    (tmp_path/'t.csv').write_text('path,text\n' + ''.join(f'{name}.png,clear lungs\n' for name in ('a', 'fatal', 'b')))
    (tmp_path/'sitecustomize.py').write_text("import builtins, os, signal\nhonest = builtins.open\n"
        "def deadly(file, *a, **k):\n    if str(file).endswith('fatal.png'): os.kill(os.getpid(), signal.SIGSEGV)\n    return honest(file, *a, **k)\nbuiltins.open = deadly\n")
    code = f"from chexmix.data import read_table, scan\nreadable, quarantine = scan(read_table({str(tmp_path/'t.csv')!r}), 32)\nprint(len(readable), *quarantine.path, *quarantine.reason)"
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, env={**os.environ, 'PYTHONPATH': os.pathsep.join([str(tmp_path), *sys.path])})
    assert done.returncode == 0 and f'2 {tmp_path}/fatal.png cannot read {tmp_path}/fatal.png: it kills the process' in done.stdout, done.stderr[-2000:]


BAD_FILES = {
    'missing': lambda d: d/'none.png', 'missing folder': lambda d: d/'none'/'a.png', 'a folder': lambda d: (d/'a.png').mkdir() or d/'a.png', 'zero bytes': lambda d: content(d/'a.png', b''),
    'zero bytes dicom': lambda d: content(d/'a.dcm', b''), 'truncated png': lambda d: cut(picture(d/'a.png'), 700), 'truncated jpeg': lambda d: cut(picture(d/'a.jpg'), 800), 'truncated tiff': lambda d: cut(picture(d/'a.tif'), 1000),
    'png named dcm': lambda d: named(picture(d/'a.png'), d/'a.dcm'), 'text named png': lambda d: content(d/'a.png', b'this is no image'), 'random bytes': lambda d: content(d/'a.jpg', np.random.default_rng(0).bytes(5000)),
    'bomb': lambda d: zip_bomb(d/'a.png'), 'a zero in the name': lambda d: d/'a\0.png', 'a very long name': lambda d: d/('a' * 300 + '.png'), 'a link to nothing': lambda d: (d/'a.png').symlink_to(d/'none') or d/'a.png', 'a link to itself': lambda d: (d/'a.png').symlink_to(d/'a.png') or d/'a.png'}


@pytest.mark.filterwarnings('ignore')
def test_scan_names_every_kind_of_bad_file(tmp_path):
    "None of the bad files stops the others, whatever is wrong with it; a file named as another format is read as what it is, or named."
    good, paths = picture(tmp_path/'good.png'), []
    for i, make in enumerate(BAD_FILES.values()):
        (tmp_path/str(i)).mkdir()
        paths.append(str(make(tmp_path/str(i))))
    manifest = pd.DataFrame({'path': [*paths, str(good)], 'patient_id': [str(i) for i in range(len(paths) + 1)]})
    readable, quarantine = scan(manifest, 32)
    assert readable.path.tolist() == [str(good)] and quarantine.path.tolist() == paths
    assert all(path in reason and '\n' not in reason for path, reason in zip(quarantine.path, quarantine.reason))


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


@pytest.mark.skipif(not (SHARED/'data'/'open_cxr').exists(), reason='real radiographs not here: shared/data/open_cxr')
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
