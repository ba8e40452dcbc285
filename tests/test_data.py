"Tables of any kind become one manifest or one error; splits, saved manifests, and the pass over files."
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
from radiograph_files import SHARED, gray_pixels, needs, picture, rename, truncate, write_bytes

from chexmix.core import UserError
from chexmix.data import (
    check_split, concatenate, MANIFEST_COLUMNS, map_in_processes, read_table, scan, split_by_patient,
    to_manifest, to_parquet, view_names)
from chexmix.report_text import FINDINGS, label_report, report_text, resolve_uncertain


# Tables

LONG_QUOTE = 'path,text\na.png,"clear\n' + 'b.png,x y z\n' * 20_000 + 'c.png,"end"\n'
HUGE_CELL = 'path,findings\na.png,ok\nb.png,' + 'word ' * 30_000 + '\n'
BAD_TABLES = {  # the text of a table, and words of the error
    'empty file': ('', 'No columns'),
    'header alone': ('path,text\n', 'no rows'),
    'no path column': ('image id,text\n1,clear\n', 'no column `path`'),
    'no text, no labels': ('path,age\na.png,50\n', 'no text and no labels'),
    'empty path': ('path,text\na.png,x\n,clear\n', 'row 2 has no path'),
    'nan path': ('path,text\nNaN,clear\n', 'row 1 has no path'),
    'path leaves the folder': ('path,text\n../../etc/a.png,clear\n', 'leaves the folder'),
    'path leaves inside': ('path,text\nx/../../a.png,clear\n', 'leaves the folder'),
    'study of two patients':
        ('study_id,patient_id,path,text\ns,p,a.png,x\ns,q,b.png,y\n', 'row 2: study s'),
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
    'quote closed far below': (LONG_QUOTE, 'row 1: its text has more than 100,000'),
    'huge cell': (HUGE_CELL, 'row 2: its findings_text has more than'),
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
    message = str(error.value)
    assert str(path) in message and words in message and '\n' not in message


def parquet(path):
    pd.DataFrame({'path': ['a.png'] * 50, 'text': ['clear'] * 50}).to_parquet(path)
    return path


def folder_named(path):
    path.mkdir()
    return path


TABLE = 'path,text\na.png,clear\n'
LONG_GZIP = gzip.compress(b'path,text\n' + b'a.png,clear\n' * 1000)
NO_TABLES = {
    'missing': lambda d: d/'none.csv',
    'a folder': lambda d: d,
    'binary': lambda d: write_bytes(d/'a.csv', b'\x89PNG\r\n\x1a\n\xff\xfe\0\0'),
    'excel': lambda d: write_bytes(d/'a.xlsx', b'PK\x03\x04' + bytes(300)),
    'old excel': lambda d: write_bytes(d/'a.xls', b'\xd0\xcf\x11\xe0' + bytes(300)),
    'zip named csv': lambda d: write_bytes(d/'a.csv', b'PK\x03\x04' + bytes(range(256))),
    'zero bytes': lambda d: write_bytes(d/'a.csv', b''),
    'text named gz': lambda d: write_bytes(d/'a.csv.gz', TABLE.encode()),
    'truncated gz': lambda d: write_bytes(d/'a.csv.gz', LONG_GZIP[:40]),
    'text named parquet': lambda d: write_bytes(d/'a.parquet', TABLE.encode()),
    'truncated parquet': lambda d: truncate(parquet(d/'a.parquet'), 300),
    'zero bytes parquet': lambda d: write_bytes(d/'a.parquet', b''),
    'a folder named parquet': lambda d: folder_named(d/'a.parquet'),
}


@pytest.mark.parametrize('name', NO_TABLES)
def test_what_is_no_table(name, tmp_path):
    path = NO_TABLES[name](tmp_path)
    with pytest.raises(UserError, match='cannot read the table|no column|no rows') as error:
        read_table(path)
    assert str(path) in str(error.value) and '\n' not in str(error.value)


SEPARATED = {
    'a.csv': 'path,text,Edema\na.png,"Clear, dry lungs.",0\n',
    'b.csv': 'path;text;Edema\na.png;Clear, dry lungs.;0\n',
    'c.tsv': 'path\ttext\tEdema\na.png\tClear, dry lungs.\t0\n'}


@pytest.mark.parametrize('is_packed', [False, True], ids=['plain', 'gzip'])
@pytest.mark.parametrize('name', SEPARATED)
def test_separators_and_packed_tables(name, is_packed, tmp_path):
    reference = write_bytes(tmp_path/'reference.csv', SEPARATED['a.csv'].encode())
    expected = read_table(reference).drop(columns='source')
    text = SEPARATED[name]
    if is_packed: path = write_bytes(tmp_path/f'{name}.gz', gzip.compress(text.encode()))
    else: path = write_bytes(tmp_path/name, text.encode('utf-8-sig'))
    pd.testing.assert_frame_equal(read_table(path).drop(columns='source'), expected)


def test_columns_of_other_names(tmp_path):
    plain = write_bytes(tmp_path/'a.csv', SEPARATED['a.csv'].encode())
    german = write_bytes(
        tmp_path/'b.csv', b'Bild,Befund,oedem,path\na.png,"Clear, dry lungs.",0,ignored\n')
    columns = {'path': 'Bild', 'text': 'Befund', 'Edema': 'oedem'}
    renamed = read_table(german, columns=columns).drop(columns='source')
    pd.testing.assert_frame_equal(renamed, read_table(plain).drop(columns='source'))
    with pytest.raises(UserError, match="no column 'Foto'"):
        read_table(german, columns={'path': 'Foto'})
    with pytest.raises(UserError, match='no such column in a manifest: paths'):
        read_table(german, columns={'paths': 'Bild'})


def test_a_link_that_leaves_the_folder_is_followed(tmp_path):
    "The path of an image stays as the table names it."
    (tmp_path/'disk').mkdir()
    (tmp_path/'set').mkdir()
    picture(tmp_path/'disk'/'a.png', gray_pixels())
    (tmp_path/'set'/'images').symlink_to(tmp_path/'disk')
    table = write_bytes(tmp_path/'set'/'t.csv', b'path,text\nimages/a.png,clear lungs\n')
    manifest = read_table(table)
    assert manifest.path.tolist() == [str(tmp_path/'set'/'images'/'a.png')]
    readable, quarantine = scan(manifest, 32)
    assert len(readable) == 1


# Tables as programs write them

ROWS = pd.DataFrame({
    'path': ['0.png', '1.png', '2.png'], 'patient_id': ['a', 'b', 'c'],
    'text': ['Größe normal.', 'Small effusion, left.', 'Edema; no effusion.']})


def delimited(sep=',', encoding='utf-8', ending='\n', before=''):
    "The bytes of `ROWS` as a text table."
    text = before + ROWS.to_csv(sep=sep, index=False, lineterminator=ending)
    return text.encode(encoding)


WRITTEN = {
    'latin-1': ('a.csv', delimited(encoding='latin-1')),
    'Windows-1252 with semicolons': ('a.csv', delimited(';', 'cp1252', '\r\n')),
    'byte order mark': ('a.csv', delimited(encoding='utf-8-sig')),
    'UTF-16 with tabs, as Excel saves Unicode text': ('a.txt', delimited('\t', 'utf-16', '\r\n')),
    'UTF-16 without a mark': ('a.csv', delimited(encoding='utf-16-le')),
    'semicolons': ('a.csv', delimited(';')),
    'tabs under the name csv': ('a.csv', delimited('\t')),
    'bars': ('a.csv', delimited('|')),
    'a first line sep=;': ('a.csv', delimited(';', before='sep=;\n')),
    'old line ends': ('a.csv', delimited(ending='\r\n')),
    'gzip without its ending': ('a.csv', gzip.compress(delimited())),
    'empty lines before': ('a.csv', delimited(before='\n\n')),
}
FRAMES = {
    'plain': ROWS,
    'filtered': pd.concat([ROWS.head(1), ROWS])[1:].set_axis([0, 2, 5]),
    'index of patients': ROWS.set_index('patient_id'),
    'index of paths': ROWS.set_index('path'),
    'index of two columns': ROWS.set_index(['patient_id', 'path']),
    'unnamed index of words': ROWS.set_axis(['x', 'y', 'z']),
    'index that is a column too': ROWS.set_index('patient_id', drop=False),
    'named range': ROWS.rename_axis('row'),
    'categories': ROWS.astype({'patient_id': 'category'}),
    'another kind of text': ROWS.astype('string'),
}


@pytest.mark.parametrize('name', WRITTEN)
def test_a_table_is_read_as_its_program_wrote_it(name, tmp_path):
    file, content = WRITTEN[name]
    manifest = read_table(write_bytes(tmp_path/file, content))
    assert manifest.patient_id.tolist() == ['a', 'b', 'c']
    assert manifest.findings_text.tolist() == ROWS.text.tolist()


@pytest.mark.parametrize('name', FRAMES)
def test_parquet_with_any_index(name, tmp_path):
    FRAMES[name].to_parquet(tmp_path/'a.parquet')
    manifest = read_table(tmp_path/'a.parquet')
    assert manifest.patient_id.tolist() == ['a', 'b', 'c']
    assert [Path(path).name for path in manifest.path] == ROWS.path.tolist()
    assert manifest.findings_text.tolist() == ROWS.text.tolist()


def test_whole_numbers_of_parquet_stay_whole(tmp_path):
    "A missing cell makes pandas keep a column of ids as fractions."
    ROWS.assign(patient_id=[7, None, 12]).to_parquet(tmp_path/'a.parquet')
    assert read_table(tmp_path/'a.parquet').patient_id.tolist()[::2] == ['7', '12']


MISSING_SPELLINGS = (
    '', ' ', 'NULL', 'null', 'None', 'NONE', 'NA', 'N/A', 'n/a', 'nan', 'NaN', '<NA>', 'NaT', '-', '--', '–',
    '—', '−', '.')


@pytest.mark.parametrize('cell', MISSING_SPELLINGS)
def test_a_missing_value_is_missing_in_any_spelling(cell, tmp_path, capsys):
    header = 'path,study_id,patient_id,view,split,text,Edema'
    rows = f'{header}\na.png{f",{cell}" * 6}\n'
    manifest = read_table(write_bytes(tmp_path/'t.csv', rows.encode()))
    row = manifest.iloc[0]
    assert row.study_id == row.patient_id == 'a.png' and row['view'] == row['split'] == ''
    assert row.findings_text == '' and np.isnan(row.Edema)
    assert '1 images name no patient' in capsys.readouterr().out
    rows = f'path,text\n{cell or " "},Clear lungs.\n'
    with pytest.raises(UserError, match='row 1 has no path'):
        read_table(write_bytes(tmp_path/'t.csv', rows.encode()))


SIMILAR = [('P1', 'p1'), ('007', '7'), ('P 1', 'P1'), ('p01', 'P1'), ('A-1', 'a-01')]


@pytest.mark.parametrize('one, other', SIMILAR)
@pytest.mark.parametrize('column', ['patient_id', 'study_id'])
def test_ids_that_look_alike_are_named_with_their_files(column, one, other, tmp_path, capsys):
    rows = f'path,{column},text\na.png,{one},Clear lungs.\nb.png,{other},Edema.\n'
    assert len(read_table(write_bytes(tmp_path/'t.csv', rows.encode()))) == 2
    printed = capsys.readouterr().out
    assert f"'{one}' (a.png) and '{other}' (b.png)" in printed


def test_a_study_of_two_patients_is_named_with_its_files(tmp_path):
    rows = b'study_id,patient_id,path,text\ns,p,a.png,x\ns,q,b.png,y\n'
    with pytest.raises(UserError, match='a.png and .*b.png'): read_table(write_bytes(tmp_path/'t.csv', rows))


# name → (cells of `findings`, the texts that must be there, label of the last row: finding and value)
EFFUSION = 'Large left pleural effusion with atelectasis.'
FINDING_CELLS = {
    'two Normal': (['Normal', 'Normal', EFFUSION], [2], ('Pleural Effusion', 1)),
    'nine Normal': (['Normal'] * 9 + [EFFUSION], [9], ('Atelectasis', 1)),
    'several label words': (['Normal', 'Cardiomegaly', 'Edema', EFFUSION], [3], ('Pleural Effusion', 1)),
    'a sentence without a stop': (['Normal', 'Normal', EFFUSION[:-1]], [2], ('Pleural Effusion', 1)),
    'a short sentence': (['Normal', 'Normal', 'Small effusion.'], [2], ('Pleural Effusion', 1)),
    'lists and a note': (['Effusion|Mass', 'Edema|Mass', EFFUSION], [2], ('Pleural Effusion', 1)),
    'lists and a short note': (['Effusion|Mass', 'Edema', 'see edema'], [2], ('Edema', 1)),
    'sentences and one word': ([EFFUSION, 'No edema.', 'Normal'], [0, 1, 2], ('No Finding', 1)),
    'a denial': (['Normal', 'Normal', 'No effusion is seen.'], [2], ('Pleural Effusion', 0)),
    'two sentences': (['Normal'] * 3 + ['Clear.', 'Left effusion.'], [3, 4], ('Pleural Effusion', 1)),
    'commas': (['Normal', 'No Finding', 'Effusion, small, on the left side'], [2], ('Pleural Effusion', 1)),
}


@pytest.mark.parametrize('name', FINDING_CELLS)
def test_sentences_among_label_words_are_kept(name, tmp_path):
    cells, kept, (finding, value) = FINDING_CELLS[name]
    pd.DataFrame({'path': [f'{i}.png' for i in range(len(cells))], 'findings': cells}).to_csv(
        tmp_path/'t.csv', index=False)
    manifest = read_table(tmp_path/'t.csv')
    for row in kept: assert manifest.findings_text[row] == cells[row]
    assert (manifest.findings_text != '').all()
    assert manifest[finding].iloc[-1] == value


def test_lists_alone_are_labels(tmp_path):
    cells = ['Effusion|Mass', 'No Finding', 'Pneumonia', 'Effusion']
    pd.DataFrame({'path': list('abcd'), 'findings': cells}).to_csv(tmp_path/'t.csv', index=False)
    manifest = read_table(tmp_path/'t.csv')
    assert manifest['Lung Lesion'].tolist() == [1, 0, 0, 0]
    assert manifest.findings_text[0] == 'Effusion, mass.'


# The manifest

def test_manifest_contract(tmp_path, capsys):
    table = tmp_path/'t.csv'
    table.write_text(
        'Path,Report,Split,Subject_ID\n'
        'a.png,"FINDINGS: Small left effusion. IMPRESSION: Effusion.",val,007\n'
        'sub/b.png,.,,007\n'
        '/abs/c.png,Normal chest.,,\n')
    manifest = read_table(table)
    assert list(manifest) == [*MANIFEST_COLUMNS, *FINDINGS]
    assert manifest.patient_id.tolist() == ['007', '007', '/abs/c.png']
    assert manifest['split'].tolist() == ['valid', '', '']
    assert manifest.path.tolist() == [str(tmp_path/'a.png'), str(tmp_path/'sub'/'b.png'), '/abs/c.png']
    assert manifest.findings_text.tolist() == ['Small left effusion.', '', 'Normal chest.']
    assert manifest['Pleural Effusion'][0] == 1 and np.isnan(manifest['Pleural Effusion'][1])
    assert manifest['No Finding'][2] == 1
    printed = capsys.readouterr().out
    assert '1 images name no patient' in printed and '1 images have no text' in printed
    manifest.to_csv(tmp_path/'again.csv', index=False)
    pd.testing.assert_frame_equal(read_table(tmp_path/'again.csv'), manifest)
    assert split_by_patient(manifest)['split'].tolist()[:2] == ['valid', 'valid']


def test_a_study_may_have_several_images(tmp_path):
    table = write_bytes(
        tmp_path/'t.csv', b'study_id,patient_id,path,view,text\n'
        b's,p,a.png,PA,Clear lungs.\ns,p,b.png,LL,Clear lungs.\n')
    manifest = read_table(table)
    assert manifest.study_id.tolist() == ['s', 's']
    assert manifest['view'].tolist() == ['PA', 'LATERAL']
    counts = check_split(split_by_patient(manifest))
    assert (counts.images.sum(), counts.studies.sum(), counts.patients.sum()) == (2, 1, 1)


def test_label_columns_keep_unknown_and_uncertain(tmp_path):
    (tmp_path/'t.csv').write_text('path,Edema,Effusion,Nodule,Mass\na.png,1.0,-1,0,1\nb.png,,0,,\n')
    manifest = read_table(tmp_path/'t.csv')
    assert manifest.loc[0, ['Edema', 'Pleural Effusion', 'Lung Lesion']].tolist() == [1, -1, 1]
    assert manifest.loc[1, ['Edema', 'Lung Lesion', 'Fracture']].isna().all()
    assert manifest['Pleural Effusion'][1] == 0
    assert manifest.findings_text[0] == 'Lung lesion, edema. Possible pleural effusion.'
    assert resolve_uncertain(manifest, 'ones')['Pleural Effusion'][0] == 1
    assert resolve_uncertain(manifest, 'zeros')['Pleural Effusion'][0] == 0
    assert np.isnan(resolve_uncertain(manifest)['Pleural Effusion'][0])


def test_parquet_and_csv_give_the_manifest_back(tmp_path):
    header = 'path,study_id,patient_id,view,text,' + ','.join(FINDINGS)
    first = 'a.png,007,01,PA,"A, b ""c"" d.",1,0,-1' + ',' * 11
    second = 'b.png,1e5,NA,,,' + ',' * 13
    manifest = read_table(write_bytes(tmp_path/'t.csv', f'{header}\n{first}\n{second}\n'.encode()))
    assert manifest.study_id.tolist() == ['007', '1e5']
    assert manifest.patient_id.tolist() == ['01', '1e5']  # NA is no patient
    assert manifest.loc[0, 'Cardiomegaly'] == -1
    to_parquet(manifest, tmp_path/'m.parquet')
    manifest.to_csv(tmp_path/'m.csv', index=False)
    for name in ('m.parquet', 'm.csv'):
        pd.testing.assert_frame_equal(read_table(tmp_path/name), manifest)
    with pytest.raises(UserError, match='must end in .parquet'): to_parquet(manifest, tmp_path/'m.csv')
    assert sorted(p.name for p in tmp_path.iterdir()) == ['m.csv', 'm.parquet', 't.csv']


@pytest.mark.parametrize('column', ['path', 'study_id', 'patient_id'])
def test_concatenate_refuses_what_is_in_both(column):
    columns = {'path': '/a.png', 'study_id': 's', 'patient_id': 'p', 'source': 'one', 'split': ''}
    table = pd.DataFrame([columns])
    other = table.assign(path='/b.png', study_id='t', patient_id='q', source='two')
    one = to_manifest(table, 'table')
    two = to_manifest(other, 'table')
    assert len(concatenate(one, two)) == 2
    two[column] = one[column]
    with pytest.raises(UserError, match='is in one and in two') as error: concatenate(one, two)
    assert '\n' not in str(error.value)


# The split from a file, and the kinds of text

COLLECTION = """study_id,patient_id,path,view,findings,text_kind,findings_text,impression_text
s1,p1,1f.png,FRONTAL,Opacity,report,Clear XXXX lungs.,Normal.
s1,p1,1l.png,LATERAL,Opacity,report,Clear XXXX lungs.,Normal.
s2,p2,2f.png,FRONTAL,normal,report,XXXX.,XXXX XXXX.
s3,p3,3l.png,LATERAL,normal,report,Large heart.,
s4,p3,4f.png,FRONTAL,normal,report,No effusion.,
s5,p5,5f.png,PA,,caption,An arrow.,
s6,p6,6f.png,PA,Effusion,,,
"""
SPLIT_FILES = {  # the text of the file, and words of the error
    'no study of the table':
        ('study_id,split\nx,train\n', "no study of the table: it names 'x', the table 's1': mend its ids"),
    'no split at all': ('study_id,split\ns1,\n', 'gives no study a split'),
    'a patient in two parts':
        ('study_id,split\ns3,train\ns4,test\n', '1 patients are in more than one split, for example p3'),
    'a study in two parts':
        ('study_id,split\ns1,train\ns1,test\n', 'row 2: study s1 is in another part further up'),
    'an unknown part': ('study_id,split\ns1,holdout\n', "row 1: split is 'holdout'"),
    'a row without a study': ('study_id,split\ns1,train\n ,test\n', 'row 2: it has no study_id'),
    'no column of splits': ('study_id,part\ns1,train\n', 'has no column split'),
    'no column of studies': ('uid,split\n1,train\n', 'has no column study_id'),
    'empty': ('', 'is empty: give it the columns study_id and split'),
    'no row': ('study_id,split\n', 'no rows'),
    'no table': ('PK\x03\x04', 'an Excel or a packed file'),
    'no file': (None, 'No such file'),
}


@pytest.fixture
def collection(tmp_path):
    (tmp_path/'metadata.csv').write_text(COLLECTION)
    return tmp_path/'metadata.csv'


@pytest.mark.parametrize('name', SPLIT_FILES)
def test_a_bad_split_file_is_one_line_with_its_path(name, collection):
    text, words = SPLIT_FILES[name]
    path = collection.with_name('split.csv')
    if text is not None: path.write_text(text)
    with pytest.raises(UserError) as error: read_table(collection, split=path)
    message = str(error.value)
    assert str(path) in message and words in message and '\n' not in message


def test_a_split_file_decides_alone_and_what_it_leaves_is_counted(collection, capsys):
    split = collection.with_name('split.csv')
    split.write_text('study_id,split\ns1,Training\ns2,val\ns1,train\ns3,test\ns4,test\ngone,test\n')
    manifest = read_table(collection, split=split)
    assert dict(zip(manifest.study_id, manifest['split'])) == dict(
        s1='train', s2='valid', s3='test', s4='test')
    assert manifest.index.tolist() == list(range(5))
    said = capsys.readouterr().out
    assert '1 of its 5 studies are not in the table, as gone' in said
    assert '2 studies of the table have no split in it and are left out, as s5' in said
    again = split_by_patient(manifest)
    assert again['split'].tolist() == manifest['split'].tolist()


def test_one_kind_of_text_is_chosen_and_the_others_are_counted(collection, capsys):
    manifest = read_table(collection, text_kind='report')
    assert manifest.study_id.tolist() == ['s1', 's1', 's2', 's3', 's4']
    said = capsys.readouterr().out
    assert "2 images have no text of kind 'report' and are left out: 1 caption, 1 without one" in said
    assert 'its column findings is not read: labels are those that the texts say' in said
    with pytest.raises(UserError, match="no text_kind 'letter', only 5 report, 1 caption, 1 without one"):
        read_table(collection, text_kind='letter')
    (collection.with_name('plain.csv')).write_text('path,text\na.png,clear\n')
    with pytest.raises(UserError, match='has no column text_kind'):
        read_table(collection.with_name('plain.csv'), text_kind='report')


def test_a_row_number_counts_the_rows_of_the_file(collection):
    text = COLLECTION.replace('FRONTAL,Opacity,report', 'FRONTAL,Opacity,note').replace('4f.png', '3l.png')
    collection.write_text(text)
    with pytest.raises(UserError, match='row 5: the image .*3l.png is there twice'):
        read_table(collection, text_kind='report')


def test_listed_labels_beside_texts_are_those_of_images_without_a_text(tmp_path):
    (tmp_path/'table.csv').write_text(
        'path,findings,findings_text\n'
        'a.png,Effusion|Mass,\nb.png,Edema,Clear lungs.\nc.png,Opacity of mine,\n')
    manifest = read_table(tmp_path/'table.csv')
    assert manifest['Pleural Effusion'].tolist()[0] == 1 and manifest['Edema'].tolist()[0] == 0
    assert manifest['Edema'].tolist()[1] == label_report('Clear lungs.').get('Edema', 0)
    assert manifest.loc[2, list(FINDINGS)].isna().all()
    assert manifest.findings_text.tolist() == ['', 'Clear lungs.', '']


VIEW_WORDS = {
    'LATERAL': ['Lateral view', 'left lateral', 'LLAT', 'LAT', 'XTABLE LATERAL', 'RL'],
    'AP': ['ap', 'Antero-posterior', 'AP_horizontal'],
    'AP LLD': ['AP LLD'],
    'LEFT LATERAL DECUBITUS': ['Left lateral decubitus'],
    '': ['', 'unknown', 'nan']}


@pytest.mark.parametrize('view', VIEW_WORDS)
def test_spellings_of_a_view(view):
    assert set(view_names(pd.Series(VIEW_WORDS[view]))) == {view}


def test_what_a_table_leaves_open_is_counted(tmp_path, capsys):
    "A view that nobody knows, two reports in one study, an image without a study: none passes in silence."
    (tmp_path/'table.csv').write_text(
        'study_id,path,view,text\n'
        's1,a.png,PA,Clear lungs.\ns1,b.png,Flank,Large effusion.\n,c.png,PA,Normal.\n')
    manifest = read_table(tmp_path/'table.csv')
    said = capsys.readouterr().out
    assert '1 images have a view that is not known and count as frontal (1 FLANK)' in said
    assert '1 studies have images that differ in their report, or have none, for example s1: each' in said
    assert '1 images name no study, as c.png: each of them is taken for a study of its own' in said
    assert manifest.study_id.nunique() == 2


def test_a_split_file_has_columns_in_any_case(collection):
    split = collection.with_name('split.csv')
    split.write_text('Study_ID,Split\ns1,train\ns2,test\n')
    assert set(read_table(collection, split=split)['split']) == {'train', 'test'}


def test_a_policy_for_removed_words_is_checked_first(tmp_path):
    with pytest.raises(UserError, match='no such policy for removed words: dorp'):
        read_table(tmp_path/'absent.csv', marks='dorp')


MARKED = {  # policy → the texts of studies s1 and s2, as the model reads them
    'leave': ('IMPRESSION: Normal. FINDINGS: Clear ___ lungs.', 'Clear XXXX lungs.'),
    'token': ('IMPRESSION: Normal. FINDINGS: Clear ___ lungs.', 'Clear ___ lungs.'),
    'drop': ('IMPRESSION: Normal. FINDINGS: Clear lungs.', 'Clear lungs.'),
}


@pytest.mark.parametrize('marks', MARKED)
def test_removed_words_follow_the_policy(marks, collection, capsys):
    manifest = read_table(collection, marks=marks)
    model_reads, findings = MARKED[marks]
    assert report_text(manifest.iloc[0]) == model_reads
    assert manifest.findings_text[0] == findings
    assert report_text(manifest.iloc[2]) == ''  # nothing but marks
    assert '2 images have no text and teach images only' in capsys.readouterr().out


def test_another_policy_for_removed_words_is_refused(collection):
    with pytest.raises(UserError, match='no such policy for removed words: keep; choose leave, token, drop'):
        read_table(collection, marks='keep')


def test_reports_of_marks_alone_and_studies_without_a_frontal_image_are_counted(collection, capsys):
    read_table(collection, text_kind='report')
    said = capsys.readouterr().out
    assert '1 images have no text and teach images only: 1 only marks' in said
    assert '1 studies have no frontal image, for example s3' in said


def test_both_views_of_a_study_have_its_report_and_no_other_does(collection):
    manifest = read_table(collection)
    reports = manifest.groupby('study_id')['findings_text'].unique()
    assert reports.map(len).eq(1).all() and reports.explode().is_unique
    assert manifest.loc[manifest.study_id == 's1', 'view'].tolist() == ['FRONTAL', 'LATERAL']


# Splits

def test_split_is_stable_and_disjoint():
    manifest = pd.DataFrame({
        'study_id': [f's{i}' for i in range(4000)],
        'patient_id': [f'p{i % 1500}' for i in range(4000)], 'split': ''})
    full = split_by_patient(manifest)
    half = split_by_patient(manifest.sample(frac=.5, random_state=0))
    assert (full['split'][half.index] == half['split']).all()
    counts = check_split(full)
    assert abs(counts.patients / 1500 - [.7, .1, .2]).max() < .03


def test_bad_splits_are_refused():
    manifest = pd.DataFrame({
        'study_id': [f's{i}' for i in range(40)], 'patient_id': [f'p{i % 15}' for i in range(40)],
        'split': ''})
    overlapping = manifest.assign(split=['train'] * 20 + ['test'] * 20)
    with pytest.raises(UserError, match='sum to 1'): split_by_patient(manifest, (.5, .1, .1))
    with pytest.raises(UserError, match='more than one split'): check_split(overlapping)
    with pytest.raises(UserError, match='no split'): check_split(manifest)


# The pass over files

def test_scan_sets_bad_files_aside(tmp_path, capsys):
    pixels = gray_pixels()
    picture(tmp_path/'a.png', pixels)
    picture(tmp_path/'b.png', pixels)
    picture(tmp_path/'c.png', pixels[::-1])
    write_bytes(tmp_path/'d.png', b'')
    rows = [f'{name}.png,clear lungs' for name in 'abcde']
    (tmp_path/'t.csv').write_text('\n'.join(['path,text', *rows]) + '\n')
    readable, quarantine = scan(read_table(tmp_path/'t.csv'), 32, workers=2)
    assert [Path(p).name for p in readable.path] == ['a.png', 'b.png', 'c.png']
    assert list(quarantine) == ['path', 'reason'] and len(quarantine) == 2
    summary = '3 images readable, 2 set aside; 1 images are there under more than one patient'
    assert summary in capsys.readouterr().out
    unreadable = pd.DataFrame({'path': quarantine.path, 'patient_id': ['1', '2']})
    with pytest.raises(UserError, match='none of 2 images'): scan(unreadable, 32)


def zip_bomb(path):
    "A PNG of a few bytes that claims 60000×60000 pixels."
    def chunk(kind, data):
        return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))
    header = chunk(b'IHDR', struct.pack('>IIBBBBB', 60000, 60000, 8, 0, 0, 0, 0))
    body = chunk(b'IDAT', zlib.compress(b'\0')) + chunk(b'IEND', b'')
    return write_bytes(path, b'\x89PNG\r\n\x1a\n' + header + body)


def link(path, target):
    path.symlink_to(target)
    return path


BAD_FILES = {  # functions of a folder `d` and of pixels `p`
    'missing': lambda d, p: d/'none.png',
    'missing folder': lambda d, p: d/'none'/'a.png',
    'a folder': lambda d, p: folder_named(d/'a.png'),
    'zero bytes': lambda d, p: write_bytes(d/'a.png', b''),
    'zero bytes dicom': lambda d, p: write_bytes(d/'a.dcm', b''),
    'truncated png': lambda d, p: truncate(picture(d/'a.png', p), 700),
    'truncated jpeg': lambda d, p: truncate(picture(d/'a.jpg', p), 800),
    'truncated tiff': lambda d, p: truncate(picture(d/'a.tif', p), 1000),
    'png named dcm': lambda d, p: rename(picture(d/'a.png', p), d/'a.dcm'),
    'text named png': lambda d, p: write_bytes(d/'a.png', b'this is no image'),
    'random bytes': lambda d, p: write_bytes(d/'a.jpg', np.random.default_rng(0).bytes(5000)),
    'bomb': lambda d, p: zip_bomb(d/'a.png'),
    'a zero in the name': lambda d, p: d/'a\0.png',
    'a very long name': lambda d, p: d/('a' * 300 + '.png'),
    'a link to nothing': lambda d, p: link(d/'a.png', d/'none'),
    'a link to itself': lambda d, p: link(d/'a.png', d/'a.png'),
}


@pytest.mark.filterwarnings('ignore')
def test_scan_names_every_kind_of_bad_file(tmp_path):
    "No bad file stops the others; each is named with a reason of one line."
    good = str(picture(tmp_path/'good.png', gray_pixels()))
    bad = []
    for i, write in enumerate(BAD_FILES.values()):
        folder = folder_named(tmp_path/str(i))
        bad.append(str(write(folder, gray_pixels())))
    paths = [*bad, good]
    manifest = pd.DataFrame({'path': paths, 'patient_id': [str(i) for i in range(len(paths))]})
    readable, quarantine = scan(manifest, 32)
    assert readable.path.tolist() == [good]
    assert quarantine.path.tolist() == bad
    for path, reason in zip(quarantine.path, quarantine.reason): assert path in reason and '\n' not in reason


def fatal(path):
    "Dies on files of this name, as a decoder with a fault in native code would."
    if 'fatal' in path: os.kill(os.getpid(), signal.SIGSEGV)
    return os.path.basename(path)


def test_a_process_that_dies_costs_one_item():
    items = [f'/d/{i}' for i in range(200)]
    items[57] = '/d/fatal57'
    results = map_in_processes(fatal, items, workers=2, chunk=8)
    expected = [str(i) for i in range(200)]
    expected[57] = None
    assert list(results) == expected


CRASHING_OPEN = '''
import builtins, os, signal
original_open = builtins.open

def crashing_open(file, *args, **options):
    if str(file).endswith('fatal.png'): os.kill(os.getpid(), signal.SIGSEGV)
    return original_open(file, *args, **options)

builtins.open = crashing_open
'''
SCAN_TABLE = '''
import sys
from chexmix.data import read_table, scan
readable, quarantine = scan(read_table(sys.argv[1]), 32)
print(len(readable), *quarantine.path, *quarantine.reason)
'''


def test_a_file_that_kills_its_reader_is_set_aside(tmp_path):
    """A decoder's crash, planted in every process through the environment they start in.

    The script needs no guard against being imported.
    """
    for name in ('a', 'b', 'fatal'): picture(tmp_path/f'{name}.png', gray_pixels())
    rows = [f'{name}.png,clear lungs' for name in ('a', 'fatal', 'b')]
    (tmp_path/'t.csv').write_text('\n'.join(['path,text', *rows]) + '\n')
    (tmp_path/'sitecustomize.py').write_text(CRASHING_OPEN)
    environment = os.environ | {'PYTHONPATH': os.pathsep.join([str(tmp_path), *sys.path])}
    command = [sys.executable, '-c', SCAN_TABLE, str(tmp_path/'t.csv')]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    path = tmp_path/'fatal.png'
    assert done.returncode == 0, done.stderr[-2000:]
    assert f'2 {path} cannot read {path}: it kills the process' in done.stdout, done.stderr[-2000:]


# A real table

@needs('data/open_cxr')
def test_real_table(capsys):
    manifest = read_table(SHARED/'data'/'open_cxr'/'metadata.csv')
    assert (len(manifest), manifest.patient_id.nunique()) == (928, 615)
    assert (manifest['No Finding'] == 1).sum() == 419
    assert (manifest['Pleural Effusion'] == 1).sum() == 85
    assert manifest[list(FINDINGS)].notna().all().all()
    assert all(map(report_text, manifest.to_dict('records')))
    assert manifest.findings_text.str.len().max() > 500
    counts = check_split(split_by_patient(manifest))
    assert counts.studies.sum() == 928 and counts.patients.sum() == 615
    assert (counts.studies > 50).all()
    assert 'patient-disjoint' in capsys.readouterr().out
    readable, quarantine = scan(manifest.sample(40, random_state=0), 64)
    assert len(readable) == 40 and not len(quarantine)


@needs('data/open_cxr')
def test_a_sentence_written_from_labels_is_read_back_as_those_labels():
    manifest = read_table(SHARED/'data'/'open_cxr'/'metadata.csv')
    from_labels = manifest[~manifest.path.str.contains('cov_')]
    for row in from_labels.to_dict('records'):
        read_back = label_report(report_text(row))
        for finding in FINDINGS: assert (read_back[finding] == 1) == (row[finding] == 1)
