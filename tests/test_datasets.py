"One contract for all data sets, each on a miniature of its published layout, and every way in which such a tree can be wrong."
import gzip, json
from pathlib import Path

import numpy as np, pandas as pd, pydicom, pytest
from PIL import Image
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid

from chexmix.core import UserError
from chexmix.data import check_split, concatenate, label_reports, MANIFEST_COLUMNS, read_table, scan, split_by_patient, to_parquet
from chexmix.datasets import DATASETS, PAGES, read_data
from chexmix.report_text import FINDINGS

SHARED = Path(__file__).parents[2]/'shared'
PIXELS = np.add.outer(np.arange(40), np.arange(32)).astype(np.uint8)


def plant(root, files):
    "Write a tree: path → text, bytes, or None for a small PNG under whatever name."
    for name, content in files.items():
        (root/name).parent.mkdir(parents=True, exist_ok=True)
        if content is None: Image.fromarray(PIXELS).save(root/name, format='PNG')
        else: (root/name).write_bytes(content.encode() if isinstance(content, str) else content)
    return root


def dicom(path, study='1.2.3', patient='SECRET-7', view='PA', modality='DX'):
    path.parent.mkdir(parents=True, exist_ok=True)
    data = pydicom.Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.SOPClassUID, data.SOPInstanceUID, data.StudyInstanceUID = SecondaryCaptureImageStorage, generate_uid(), study
    data.PatientID, data.PatientName, data.PatientBirthDate, data.ViewPosition, data.Modality = patient, 'SECRET^NAME', '19010101', view, modality
    data.Rows, data.Columns, data.SamplesPerPixel, data.PhotometricInterpretation, data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = *PIXELS.shape, 1, 'MONOCHROME2', 8, 8, 7, 0
    data.PixelData = PIXELS.tobytes()
    data.save_as(path, enforce_file_format=True)
    return path


def findings(**said):
    "Fourteen cells of a table."
    return ','.join(str(said.get(name.replace(' ', '_'), '')) for name in FINDINGS)


IDS, NAMES = 'dicom_id,subject_id,study_id', ','.join(FINDINGS)
MIMIC = {
    'mimic-cxr-2.0.0-metadata.csv.gz': gzip.compress(f'{IDS},ViewPosition,Rows\na,10000032,50414267,PA,9\nb,10000032,50414267,LATERAL,9\nc,11000011,51029426,AP,9\nd,12000012,52000000,,9\n'.encode()),
    'mimic-cxr-2.0.0-split.csv.gz': gzip.compress(f'{IDS},split\na,10000032,50414267,train\nb,10000032,50414267,train\nc,11000011,51029426,validate\nd,12000012,52000000,test\n'.encode()),
    'mimic-cxr-2.0.0-chexpert.csv.gz': gzip.compress(f'subject_id,study_id,{NAMES}\n10000032,50414267,{findings(Edema="1.0", Pneumonia="-1.0", Fracture="0.0")}\n11000011,51029426,{findings(No_Finding="1.0")}\n'.encode())}
MIMIC_PLACES = {'a': 'p10/p10000032/s50414267', 'b': 'p10/p10000032/s50414267', 'c': 'p11/p11000011/s51029426', 'd': 'p12/p12000012/s52000000'}
MIMIC_TEXTS = {'mimic-cxr-reports/files/p10/p10000032/s50414267.txt': 'FINAL REPORT\n FINDINGS: Edema.\n\n IMPRESSION:  Edema of ___.\n', 'mimic-cxr-reports/files/p11/p11000011/s51029426.txt': ' IMPRESSION: Normal.\n'}


def mimic_jpg(d):
    plant(d/'jpg', MIMIC | {f'files/{place}/{name}.jpg': None for name, place in MIMIC_PLACES.items()})
    return d/'jpg', plant(d/'text', MIMIC_TEXTS)


def mimic_dicom(d):
    plant(d/'tables', MIMIC), plant(d/'dcm', {name.removeprefix('mimic-cxr-reports/'): text for name, text in MIMIC_TEXTS.items()})
    for name, place in MIMIC_PLACES.items(): dicom(d/'dcm'/'files'/place/f'{name}.dcm')
    return d/'dcm', d/'dcm', d/'tables'


CHEXPERT_HEAD = f'Path,Sex,Age,Frontal/Lateral,AP/PA,{NAMES}'
STANFORD = ('train/patient00001/study1/view1_frontal', 'train/patient00001/study1/view2_lateral', 'train/patient00002/study3/view1_frontal', 'valid/patient64541/study1/view1_frontal')


def chexpert(d):
    row = lambda place, view, ap, **said: f'CheXpert-v1.0-small/{place}.jpg,Male,60,{view},{ap},{findings(**said)}\n'
    return plant(d/'CheXpert-v1.0-small', {f'{place}.jpg': None for place in STANFORD} | {
        'train.csv': f'{CHEXPERT_HEAD}\n' + row(STANFORD[0], 'Frontal', 'AP', Edema='1.0', Pneumonia='-1.0') + row(STANFORD[1], 'Lateral', '', Edema='1.0') + row(STANFORD[2], 'Frontal', 'PA', No_Finding='1.0'),
        'valid.csv': f'{CHEXPERT_HEAD}\n' + row(STANFORD[3], 'Frontal', 'AP', **{name.replace(' ', '_'): '0.0' for name in FINDINGS})}),


def chexpert_plus(d):
    row = lambda place, view, ap, text: f'{place}.jpg,{view},{ap},patient,{place.split("/")[0]},"FULL",{text},"Stable, \n as before."\n'
    return plant(d, {f'PNG/{place}.png': None for place in STANFORD} | {
        'df_chexpert_plus_240401.csv': 'path_to_image,frontal_lateral,ap_pa,deid_patient_id,split,report,section_findings,section_impression\n' + row(STANFORD[0], 'Frontal', 'AP', 'Edema.') + row(STANFORD[1], 'Lateral', '', 'Edema.') + row(STANFORD[2], 'Frontal', 'PA', '') + row(STANFORD[3], 'Frontal', 'AP', ''),
        'chexbert_labels/impression_fixed.json': '\n'.join(json.dumps({'path_to_image': f'{place}.jpg', 'Edema': value, 'Pneumonia': -1.0, 'Fracture': None}) for place, value in zip(STANFORD, (1.0, 1.0, 0.0, None)))}),


def xml(uid, findings, impression, *images):
    return (f'<?xml version="1.0" encoding="utf-8"?>\n<eCitation><meta type="rr"/><uId id="{uid}"/><MedlineCitation><Article><Abstract><AbstractText Label="COMPARISON">None.</AbstractText>'
            f'<AbstractText Label="FINDINGS">{findings}</AbstractText><AbstractText Label="IMPRESSION">{impression}</AbstractText></Abstract></Article></MedlineCitation>'
            + ''.join(f'<parentImage id="{i}"><caption>Xray &amp; more</caption></parentImage>' for i in images) + '</eCitation>').encode()


def open_i_xml(d):
    return plant(d, {'NLMCXR_reports/ecgen-radiology/1.xml': xml('CXR1', 'Small left pleural effusion.', '', 'CXR1_1_IM-0001-3001', 'CXR1_1_IM-0001-4001'), 'NLMCXR_reports/ecgen-radiology/2.xml': xml('CXR2', '', 'Normal chest.', 'CXR2_IM-0652-1001'),
                     **{f'NLMCXR_png/{i}.png': None for i in ('CXR1_1_IM-0001-3001', 'CXR1_1_IM-0001-4001', 'CXR2_IM-0652-1001')}}),


def open_i_csv(d):
    return plant(d, {'indiana_reports.csv': 'uid,MeSH,Problems,image,indication,comparison,findings,impression\n1,x,x,,,,Small left pleural effusion.,\n2,normal,normal,,,,,Normal chest.\n',
                     'indiana_projections.csv': 'uid,filename,projection\n1,1_IM-0001-4001.dcm.png,Frontal\n1,1_IM-0001-3001.dcm.png,Lateral\n2,2_IM-0652-1001.dcm.png,Frontal\n',
                     **{f'images/images_normalized/{i}.dcm.png': None for i in ('1_IM-0001-4001', '1_IM-0001-3001', '2_IM-0652-1001')}}),


def nih(d):
    return plant(d, {'images_001/images/00000001_000.png': None, 'images_001/images/00000001_001.png': None, 'images_012/images/00000013_000.png': None, 'train_val_list.txt': '00000013_000.png\n', 'test_list.txt': '00000001_000.png\n00000001_001.png\n',
        'Data_Entry_2017_v2020.csv': 'Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position\n00000001_000.png,Cardiomegaly|Emphysema,0,1,57,M,PA\n00000001_001.png,No Finding,1,1,58,M,PA\n00000013_000.png,Effusion|Hernia,0,13,60,M,AP\n'}),


def padchest(d):
    table = ',ImageID,ImageDir,StudyID,PatientID,Projection,Report,Labels\n0,a.png,0,100,7,PA,derram pleural .,"[\'pleural effusion\', \'scoliosis\']"\n1,b.png,0,100,7,L,derram pleural .,"[\'pleural effusion\', \'scoliosis\']"\n2,c.png,54,101,8,AP_horizontal,sin hallazg .,"[\'suboptimal study\']"\n'
    return plant(d, {'0/a.png': None, '0/b.png': None, '54/c.png': None, 'PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv.gz': gzip.compress(table.encode())}),


def vindr_cxr(d):
    names = 'Aortic enlargement,Edema,Nodule/Mass,Lung tumor,Rib fracture,No finding'
    for split, name in (('train', 'a'), ('train', 'b'), ('test', 'c')): dicom(d/split/f'{name}.dicom')
    return plant(d, {'annotations/image_labels_test.csv': f'image_id,{names}\nc,0,0,0,0,0,1\n',
        'annotations/image_labels_train.csv': f'image_id,rad_id,{names}\na,R1,1,0,1,0,0,0\na,R2,1,1,0,1,0,0\na,R3,0,0,1,0,0,0\nb,R1,0,0,0,0,0,1\nb,R2,0,0,0,0,0,1\nb,R3,0,0,0,0,0,0\n'}),


def rexgradient(d):
    study = lambda patient, n, **said: {'PatientID': patient, 'ImagePath': [f'../deid_png/{patient}/A1/studies/1/series/1/instances/{i}.png' for i in range(n)], 'ImageViewPosition': ['PA', 'LL', None][:n], 'Indication': 'Pain.', **said}
    sets = {'train': {'s1': study('P1', 2, Findings='Clear lungs.', Impression='Normal.'), 's4': study('P1', 0)}, 'valid': {'s2': study('P2', 1, Findings=None, Impression='Edema.')}, 'test': {'s3': study('P3', 3, Findings='Small effusion.')}}
    return plant(d, {f'metadata/{split}_metadata_view_position.json': json.dumps(studies) for split, studies in sets.items()}
                 | {path.removeprefix('../'): None for studies in sets.values() for said in studies.values() for path in said['ImagePath']}),


def table(d):
    return plant(d, {'sub/a.png': None, 'b.png': None, 'table.csv': 'image_path,report,subject_id,split\nsub/a.png,"FINDINGS: Small left effusion.",7,val\nb.png,,8,\n'})/'table.csv',


def folder(d):
    return plant(d, {'p1/one/a.png': None, 'p1/one/a.txt': 'FINDINGS: Small left effusion. IMPRESSION: Effusion.', 'p1/two/b.jpeg': None, 'c.tif': None, 'c.txt': b'Clear lungs. \xff', '.hidden/d.png': None, 'notes.md': 'x'}),


def dicom_folder(d):
    for i, (study, patient, view, modality) in enumerate((('1.2.3', 'SECRET-7', 'PA', 'DX'), ('1.2.3', 'SECRET-7', 'LL', 'DX'), ('1.2.4', 'SECRET-8', 'AP', 'CR'), ('1.2.4', 'SECRET-8', '', 'CT'))): dicom(d/f'deep/er/{i}'/('IM.dcm' if i % 2 else 'IM'), study, patient, view, modality)
    return plant(d, {'deep/er/0/IM.txt': 'Small left effusion.', 'DICOMDIR.html': 'x', 'deep/thumb.png': None}),


# name → maker, images, studies, official splits (None: by hash), texts (None: none), a label that is known and its value, one that is unknown
CONTRACT = {
    'mimic_cxr': (mimic_jpg, 4, 3, ['train', 'train', 'valid', 'test'], ['FINDINGS: Edema. IMPRESSION: Edema of ___.'] * 2 + ['IMPRESSION: Normal.', ''], (0, 'Pneumonia', -1), (0, 'Pneumothorax')),
    'mimic_cxr, DICOM': (mimic_dicom, 4, 3, ['train', 'train', 'valid', 'test'], ['FINDINGS: Edema. IMPRESSION: Edema of ___.'] * 2 + ['IMPRESSION: Normal.', ''], (0, 'Fracture', 0), (3, 'No Finding')),
    'chexpert': (chexpert, 4, 3, ['train', 'train', 'train', 'valid'], None, (0, 'Pneumonia', -1), (0, 'Pneumothorax')),
    'chexpert_plus': (chexpert_plus, 4, 3, ['train', 'train', 'train', 'valid'], ['FINDINGS: Edema. IMPRESSION: Stable, as before.'] * 2 + ['IMPRESSION: Stable, as before.'] * 2, (0, 'Pneumonia', -1), (0, 'Fracture')),
    'open_i, XML': (open_i_xml, 3, 2, None, ['FINDINGS: Small left pleural effusion.'] * 2 + ['IMPRESSION: Normal chest.'], (0, 'Pleural Effusion', 1), (0, 'Fracture')),
    'open_i, tables': (open_i_csv, 3, 2, None, ['FINDINGS: Small left pleural effusion.'] * 2 + ['IMPRESSION: Normal chest.'], (0, 'Pleural Effusion', 1), (0, 'Fracture')),
    'nih': (nih, 3, 3, ['test', 'test', ('train', 'valid')], None, (0, 'Enlarged Cardiomediastinum', 1), None),
    'padchest': (padchest, 3, 2, None, ['FINDINGS: derram pleural .'] * 2 + ['FINDINGS: sin hallazg .'], (0, 'Pleural Effusion', 1), (2, 'No Finding')),
    'vindr_cxr': (vindr_cxr, 3, 3, [('train', 'valid'), ('train', 'valid'), 'test'], None, (0, 'Edema', -1), (0, 'Support Devices')),
    'rexgradient': (rexgradient, 6, 3, ['train', 'train', 'valid', 'test', 'test', 'test'], ['FINDINGS: Clear lungs. IMPRESSION: Normal.'] * 2 + ['IMPRESSION: Edema.'] + ['FINDINGS: Small effusion.'] * 3, None, (0, 'No Finding')),
    'read_table': (table, 2, 2, ['valid', ''], ['FINDINGS: Small left effusion.', ''], (0, 'Pleural Effusion', 1), (1, 'Pleural Effusion')),
    'folder': (folder, 3, 3, None, ['FINDINGS: Clear lungs. �', 'FINDINGS: Small left effusion. IMPRESSION: Effusion.', ''], (1, 'Pleural Effusion', 1), (2, 'Pleural Effusion')),
    'dicom_folder': (dicom_folder, 3, 2, None, ['FINDINGS: Small left effusion.', '', ''], (0, 'Pleural Effusion', 1), (1, 'Pleural Effusion'))}
load = lambda name, arguments: DATASETS[name.split(',')[0]](*arguments)


def test_every_data_set_is_in_the_contract(): assert {name.split(',')[0] for name in CONTRACT} == set(DATASETS)


@pytest.mark.parametrize('name', CONTRACT)
def test_contract(name, tmp_path, capsys):
    maker, images, studies, splits, texts, known, unknown = CONTRACT[name]
    arguments = maker(tmp_path/'data')
    manifest = load(name, arguments)
    printed = capsys.readouterr().out
    assert list(manifest) == [*MANIFEST_COLUMNS, *FINDINGS] and isinstance(manifest.index, pd.RangeIndex)
    assert all(isinstance(cell, str) for column in MANIFEST_COLUMNS for cell in manifest[column])
    assert all(manifest[finding].dtype == np.float64 for finding in FINDINGS) and manifest[list(FINDINGS)].isin([1, 0, -1, np.nan]).all(axis=None)
    assert (len(manifest), manifest.study_id.nunique()) == (images, studies) and f'{images} images, {studies} studies' in printed
    assert all(Path(path).is_absolute() and Path(path).is_file() for path in manifest.path) and manifest.path.is_unique
    assert manifest.groupby('study_id').patient_id.nunique().eq(1).all() and (manifest.patient_id != '').all() and (manifest.source != '').all()
    assert set(manifest['view']) <= {'PA', 'AP', 'LATERAL', 'FRONTAL', ''}
    if name == 'read_table': assert split_by_patient(manifest)['split'].isin(['train', 'valid', 'test']).all()
    else: assert 'patient-disjoint split' in printed and check_split(manifest).images.sum() == images
    if splits: assert all(given in (wanted if isinstance(wanted, tuple) else (wanted,)) for given, wanted in zip(manifest['split'], splits, strict=True)), manifest['split'].tolist()
    else: pd.testing.assert_series_equal(manifest['split'], split_by_patient(manifest.assign(split=''))['split'])
    said = [' '.join(f'{word}: {text}' for word, text in zip(('FINDINGS', 'IMPRESSION'), pair) if text) for pair in zip(manifest.findings_text, manifest.impression_text)]
    assert said == (texts or [''] * images)
    if known: assert manifest.loc[known[0], known[1]] == known[2]
    if unknown: assert np.isnan(manifest.loc[unknown[0], unknown[1]])
    pd.testing.assert_frame_equal(load(name, arguments), manifest)  # nothing depends on the order of a folder or on chance
    to_parquet(manifest, tmp_path/'m.parquet'), manifest.to_csv(tmp_path/'m.csv', index=False)
    for saved in ('m.parquet', 'm.csv'): pd.testing.assert_frame_equal(read_table(tmp_path/saved), manifest)
    assert len(concatenate(manifest)) == images and len(scan(manifest, 32)[0]) == images
    assert 'SECRET' not in printed + manifest.drop(columns='path').to_csv() and '19010101' not in manifest.to_csv()


@pytest.mark.parametrize('name', sorted(set(DATASETS) - {'read_table'}))
def test_card(name):
    "Origin, access, labels, split, text, citation and tree stand in each docstring, one line each."
    card = DATASETS[name].__doc__
    assert [f for f in ('Origin', 'Access', 'Labels', 'Split', 'Text', 'Cite', 'Tree') if card.count(f'\n    {f}: ') != 1] == []
    assert name in PAGES


NEEDED = [('mimic_cxr', file) for file in MIMIC] + [('chexpert', f'{split}.csv') for split in ('train', 'valid')] + [('chexpert_plus', 'df_chexpert_plus_240401.csv'), ('open_i, tables', 'indiana_reports.csv'), ('open_i, tables', 'indiana_projections.csv'),
    ('nih', 'Data_Entry_2017_v2020.csv'), ('nih', 'train_val_list.txt'), ('nih', 'test_list.txt'), ('padchest', 'PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv.gz')] + [
    ('vindr_cxr', f'annotations/image_labels_{split}.csv') for split in ('train', 'test')] + [('rexgradient', f'metadata/{split}_metadata_view_position.json') for split in ('train', 'valid', 'test')]


@pytest.mark.parametrize('name,file', NEEDED)
def test_a_missing_file_is_named_with_what_to_download(name, file, tmp_path):
    arguments = CONTRACT[name][0](tmp_path)
    (arguments[0]/file).unlink()
    with pytest.raises(UserError) as error: load(name, arguments)
    line = str(error.value)
    assert file.split('_v2020')[0].removesuffix('.gz').removesuffix('.csv') in line and PAGES[name.split(',')[0]] in line and '\n' not in line


@pytest.mark.parametrize('name', sorted(set(CONTRACT) - {'read_table', 'folder', 'dicom_folder'}))
def test_missing_images_are_left_out_and_none_is_an_error(name, tmp_path, capsys):
    maker, images, *_ = CONTRACT[name]
    arguments = maker(tmp_path)
    paths = load(name, arguments).path.tolist()
    Path(paths[0]).unlink()
    assert load(name, arguments).path.tolist() == paths[1:] and 'not on this disk and left out' in capsys.readouterr().out
    for path in paths[1:]: Path(path).unlink()
    with pytest.raises(UserError) as error: load(name, arguments)
    assert f'none of the {images} images' in str(error.value) and PAGES[name.split(',')[0]] in str(error.value) and str(tmp_path) in str(error.value)


def rewrite(pattern, change):
    "A fault: one file of the tree, changed."
    def damage(arguments):
        file = next(p for p in (arguments[0].parent if arguments[0].is_file() else arguments[0]).rglob(pattern))
        file.write_bytes(change(file.read_bytes()))
        return str(file)
    return damage


swap = lambda a, b: lambda content: content.replace(a.encode(), b.encode())
inside = lambda change: lambda content: gzip.compress(change(gzip.decompress(content)))
FAULTS = {  # set, damage, words of the error
    'metadata with a wrong header': ('mimic_cxr', rewrite('*-metadata.csv.gz', inside(swap('dicom_id', 'name'))), 'no column dicom_id'),
    'an unknown split': ('mimic_cxr', rewrite('*-split.csv.gz', inside(swap('validate', 'holdout'))), "'holdout'"),
    'a label in words': ('mimic_cxr', rewrite('*-chexpert.csv.gz', inside(swap('-1.0', 'maybe'))), "'maybe'"),
    'a truncated gz': ('mimic_cxr', rewrite('*-metadata.csv.gz', lambda c: c[:30]), 'cannot read the table'),
    'a table that is a web page': ('mimic_cxr', rewrite('*-split.csv.gz', lambda c: gzip.compress(b'<html><body>\nLog in, please.\n</body></html>\n')), 'no column dicom_id, split'),
    'a zero-byte table': ('chexpert', rewrite('train.csv', lambda c: b''), 'cannot read the table'),
    'a header alone': ('chexpert', rewrite('valid.csv', lambda c: c.split(b'\n')[0] + b'\n'), 'no rows'),
    'a table without findings': ('chexpert', rewrite('train.csv', swap(',Edema,', ',Oedema,')), 'no column Edema'),
    'the same image twice': ('chexpert', rewrite('train.csv', lambda c: c + c.split(b'\n')[1] + b'\n'), 'is there twice'),
    'latin-1': ('chexpert_plus', rewrite('df_*.csv', lambda c: c.replace(b'Edema.', 'Ödem.'.encode('latin-1'))), 'cannot read the table'),
    'labels that are no JSON': ('chexpert_plus', rewrite('*_fixed.json', lambda c: c[:-20]), 'one JSON object a line'),
    'labels without paths': ('chexpert_plus', rewrite('*_fixed.json', swap('path_to_image', 'path')), 'one JSON object a line'),
    'labels of 2': ('chexpert_plus', rewrite('*_fixed.json', swap('-1.0', '2.0')), 'write 1, 0, -1'),
    'broken XML': ('open_i, XML', rewrite('1.xml', lambda c: c[:-30]), 'cannot read'),
    'zero-byte XML': ('open_i, XML', rewrite('1.xml', lambda c: b''), 'cannot read'),
    'XML that is a web page': ('open_i, XML', rewrite('1.xml', lambda c: b'<html><body>Not found</body></html>'), 'cannot read'),
    'an entity bomb': ('open_i, XML', rewrite('1.xml', lambda c: b'<!DOCTYPE r [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;">]><r>&b;</r>'), 'entities'),
    'an external entity': ('open_i, XML', rewrite('1.xml', lambda c: b'<!DOCTYPE r [<!ENTITY a SYSTEM "file:///etc/hostname">]><r>&a;</r>'), 'entities'),
    'XML in another encoding': ('open_i, XML', rewrite('1.xml', lambda c: c.decode().encode('utf-16')), 'cannot read'),
    'an image in no list': ('nih', rewrite('test_list.txt', swap('00000001_001.png', '')), 'in neither list'),
    'a table of another release': ('nih', rewrite('Data_Entry*.csv', swap('Finding Labels', 'Labels')), 'no column Finding Labels'),
    'one study of two patients': ('padchest', rewrite('*.csv.gz', inside(swap('b.png,0,100,7', 'b.png,0,100,9'))), 'belongs to another patient'),
    'no image_id': ('vindr_cxr', rewrite('image_labels_train.csv', swap('image_id', 'id')), 'no column image_id'),
    'votes in words': ('vindr_cxr', rewrite('image_labels_train.csv', swap('R1,1,0', 'R1,1,no')), 'findings with 0 and 1'),
    'boxes instead of votes': ('vindr_cxr', rewrite('image_labels_test.csv', lambda c: b'image_id,class_name,x_min\nc,Edema,3\n'), 'findings with 0 and 1'),
    'metadata that are no JSON': ('rexgradient', rewrite('train_*.json', lambda c: c[:-5]), 'is not JSON'),
    'metadata that are a list': ('rexgradient', rewrite('train_*.json', lambda c: b'[1, 2]'), 'download it again'),
    'fewer views than images': ('rexgradient', rewrite('train_*.json', swap('["PA", "LL"]', '["PA"]')), 'equally long'),
    'an image path that climbs': ('rexgradient', rewrite('train_*.json', swap('../deid_png/P1/', '../deid_png/P1/../../../')), 'not below deid_png'),
    'an image path elsewhere': ('rexgradient', rewrite('train_*.json', swap('../deid_png/P1/', '/etc/')), 'not below deid_png'),
    'a path that leaves the folder': ('read_table', rewrite('table.csv', swap('sub/a.png', '../a.png')), 'leaves the folder')}


@pytest.mark.parametrize('fault', FAULTS)
def test_a_damaged_collection_is_one_line_with_its_file(fault, tmp_path):
    name, damage, words = FAULTS[fault]
    arguments = CONTRACT[name][0](tmp_path/'data')
    damage(arguments)
    with pytest.raises(UserError) as error: load(name, arguments)
    line = str(error.value)
    assert words in line and '\n' not in line and len(line) < 700
    assert any(word in line for word in (str(tmp_path), 'table', name))


def test_mimic_without_its_reports(tmp_path):
    "The commonest mistake: the JPG release has no text, so naming it as the reports' root says what to download."
    images, _ = mimic_jpg(tmp_path)
    with pytest.raises(UserError, match='s50414267.txt: MIMIC-CXR-JPG has none, so unpack mimic-cxr-reports.zip'): DATASETS['mimic_cxr'](images, images)


WRONG_FOLDERS = {
    'missing': (lambda d: d/'none', 'no folder|does not exist'), 'a text file': (lambda d: plant(d, {'a.txt': 'x'})/'a.txt', 'no folder|no column|no rows'),
    'empty': (lambda d: plant(d, {'x/y.md': ''})/'x', 'no image|no DICOM'), 'texts alone': (lambda d: plant(d, {'a.txt': 'Clear lungs.'}), 'no image|no DICOM')}


@pytest.mark.parametrize('reader', [DATASETS['folder'], DATASETS['dicom_folder'], read_data], ids=['folder', 'dicom_folder', 'read_data'])
@pytest.mark.parametrize('name', WRONG_FOLDERS)
def test_wrong_folders(name, reader, tmp_path):
    make, words = WRONG_FOLDERS[name]
    path = make(tmp_path)
    with pytest.raises(UserError, match=words) as error: reader(path)
    assert str(path) in str(error.value) and '\n' not in str(error.value)


def test_other_modalities_alone(tmp_path):
    dicom(tmp_path/'a.dcm', modality='CT')
    with pytest.raises(UserError, match='no radiograph among them'): DATASETS['dicom_folder'](tmp_path)


def test_damaged_dicom_is_for_the_scan_to_name(tmp_path):
    "A damaged file does not stop the folder; it becomes a row, and the scan sets it aside with its path."
    good = dicom(tmp_path/'good.dcm')
    for name, data in (('empty.dcm', b''), ('text.dcm', b'no image'), ('cut.dcm', good.read_bytes()[:700]), ('IM1', bytes(128) + b'DICM' + b'\xff' * 300)): (tmp_path/name).write_bytes(data)
    manifest = DATASETS['dicom_folder'](tmp_path)
    assert len(manifest) == 5 and manifest.study_id.nunique() == 4  # the cut one still says which study it is of
    readable, quarantine = scan(manifest, 32)
    assert [Path(p).name for p in readable.path] == ['good.dcm'] and all(path in reason for path, reason in zip(quarantine.path, quarantine.reason)) and len(quarantine) == 4


def test_the_same_people_in_two_collections(tmp_path):
    one, two = load('chexpert', chexpert(tmp_path/'a')), load('chexpert_plus', chexpert_plus(tmp_path/'b'))
    with pytest.raises(UserError, match='is in chexpert and in chexpert_plus: leave one out'): concatenate(one, two)
    both = concatenate(one, load('nih', nih(tmp_path/'c')))
    assert len(both) == 7 and set(both.source) == {'chexpert', 'nih'}
    check_split(both)


def test_spanish_reports_are_marked_and_not_labelled(tmp_path):
    manifest = load('padchest', padchest(tmp_path))
    assert set(manifest.source) == {'padchest_es'}
    blank = manifest.assign(**dict.fromkeys(FINDINGS, np.nan))
    assert label_reports(blank)[list(FINDINGS)].isna().all(axis=None)


def test_labels_of_a_text_only_collection(tmp_path):
    labelled = label_reports(load('rexgradient', rexgradient(tmp_path)))
    assert labelled['No Finding'].tolist()[:2] == [1, 1] and labelled.Edema[2] == 1 and labelled['Pleural Effusion'][3] == 1


def test_read_data(tmp_path, capsys):
    assert len(read_data(folder(tmp_path/'a')[0])) == 3 and len(read_data(table(tmp_path/'b')[0])) == 2
    dicom(tmp_path/'c'/'x')
    assert len(read_data(tmp_path/'c')) == 1
    read_data(tmp_path/'a').to_csv(tmp_path/'a'/'manifest.csv', index=False)
    assert len(read_data(tmp_path/'a')) == 3 and 'manifest.csv: 3 images' in capsys.readouterr().out


@pytest.mark.skipif(not (SHARED/'data'/'iu_reports').exists(), reason='real reports not here: shared/data/iu_reports')
def test_real_tables_of_open_i(tmp_path):
    for name in ('indiana_reports.csv', 'indiana_projections.csv'): (tmp_path/name).symlink_to(SHARED/'data'/'iu_reports'/name)
    names = pd.read_csv(tmp_path/'indiana_projections.csv').filename[:40]
    plant(tmp_path/'images_normalized', {name: None for name in names})
    manifest = DATASETS['open_i'](tmp_path)
    assert len(manifest) == 40 and set(manifest['view']) == {'FRONTAL', 'LATERAL'} and manifest['No Finding'].notna().any()
