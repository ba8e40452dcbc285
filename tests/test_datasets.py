"""Every data set on a miniature of its published layout, and the ways in which such a tree can be wrong."""
import gzip
import io
import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pydicom
import pytest
from PIL import Image
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid

from chexmix.batch_inference import find_images
from chexmix.core import UserError
from chexmix.data import (
    check_split, concatenate, fill_labels, MANIFEST_COLUMNS, read_table, scan, split_by_patient,
    to_parquet)
from chexmix.datasets import DATASETS, indiana_labels, open_i, PAGES, read_data
from chexmix.report_text import FINDINGS

SHARED = Path(__file__).parents[2]/'shared'
REPORTS = SHARED/'data'/'iu_reports'
REAL_TREE = SHARED/'data'/'open_cxr2'
PIXELS = np.add.outer(np.arange(40), np.arange(32)).astype(np.uint8)


def png_file():
    "The bytes of a small PNG. It stands for every image, whatever its name ends with."
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).save(buffer, format='PNG')
    return buffer.getvalue()


PNG = png_file()


def write_tree(root, files):
    "Write text or bytes to each path below `root`, and return `root`."
    for name, content in files.items():
        path = root/name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return root


def write_dicom(path, study='1.2.3', patient='SECRET-7', view='PA', modality='DX'):
    "A radiograph with a name and a date of birth in its header, which no manifest may keep."
    path.parent.mkdir(parents=True, exist_ok=True)
    data = pydicom.Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.SOPClassUID = SecondaryCaptureImageStorage
    data.SOPInstanceUID = generate_uid()
    data.StudyInstanceUID = study
    data.PatientID = patient
    data.PatientName = 'SECRET^NAME'
    data.PatientBirthDate = '19010101'
    data.ViewPosition = view
    data.Modality = modality
    data.Rows, data.Columns = PIXELS.shape
    data.SamplesPerPixel = 1
    data.PhotometricInterpretation = 'MONOCHROME2'
    data.BitsAllocated = 8
    data.BitsStored = 8
    data.HighBit = 7
    data.PixelRepresentation = 0
    data.PixelData = PIXELS.tobytes()
    data.save_as(path, enforce_file_format=True)
    return path


def lines(*rows):
    "Text of these lines, the last one closed too."
    return '\n'.join(rows) + '\n'


def zipped_lines(*rows): return gzip.compress(lines(*rows).encode())


FINDING_COLUMNS = ','.join(FINDINGS)

def finding_cells(**labels):
    "The cells of a row's fourteen labels, empty where none is given; `No_Finding` is 'No Finding'."
    return ','.join(str(labels.get(name.replace(' ', '_'), '')) for name in FINDINGS)


# Each `build_…` writes a miniature below a folder and returns the arguments of the data set's function.

MIMIC_TABLES = {
    'mimic-cxr-2.0.0-metadata.csv.gz': zipped_lines(
        'dicom_id,subject_id,study_id,ViewPosition,Rows',
        'a,10000032,50414267,PA,9',
        'b,10000032,50414267,LATERAL,9',
        'c,11000011,51029426,AP,9',
        'd,12000012,52000000,,9'),
    'mimic-cxr-2.0.0-split.csv.gz': zipped_lines(
        'dicom_id,subject_id,study_id,split',
        'a,10000032,50414267,train',
        'b,10000032,50414267,train',
        'c,11000011,51029426,validate',
        'd,12000012,52000000,test'),
    'mimic-cxr-2.0.0-chexpert.csv.gz': zipped_lines(
        f'subject_id,study_id,{FINDING_COLUMNS}',
        '10000032,50414267,' + finding_cells(Edema='1.0', Pneumonia='-1.0', Fracture='0.0'),
        '11000011,51029426,' + finding_cells(No_Finding='1.0')),
}
MIMIC_IMAGES = [
    'files/p10/p10000032/s50414267/a',
    'files/p10/p10000032/s50414267/b',
    'files/p11/p11000011/s51029426/c',
    'files/p12/p12000012/s52000000/d',
]
MIMIC_REPORTS = {
    'files/p10/p10000032/s50414267.txt':
        'FINAL REPORT\n FINDINGS: Edema.\n\n IMPRESSION:  Edema of ___.\n',
    'files/p11/p11000011/s51029426.txt': ' IMPRESSION: Normal.\n',
}


def build_mimic_jpg(parent):
    images = {f'{name}.jpg': PNG for name in MIMIC_IMAGES}
    reports = {f'mimic-cxr-reports/{name}': text for name, text in MIMIC_REPORTS.items()}
    write_tree(parent/'jpg', MIMIC_TABLES | images)
    write_tree(parent/'text', reports)
    return parent/'jpg', parent/'text'


def build_mimic_dicom(parent):
    write_tree(parent/'tables', MIMIC_TABLES)
    write_tree(parent/'dcm', MIMIC_REPORTS)
    for name in MIMIC_IMAGES: write_dicom(parent/'dcm'/f'{name}.dcm')
    return parent/'dcm', parent/'dcm', parent/'tables'


STANFORD_IMAGES = [
    'train/patient00001/study1/view1_frontal',
    'train/patient00001/study1/view2_lateral',
    'train/patient00002/study3/view1_frontal',
    'valid/patient64541/study1/view1_frontal',
]


def chexpert_row(image, view, ap_pa, **labels):
    return f'CheXpert-v1.0-small/{image}.jpg,Male,60,{view},{ap_pa},{finding_cells(**labels)}'


def build_chexpert(parent):
    header = f'Path,Sex,Age,Frontal/Lateral,AP/PA,{FINDING_COLUMNS}'
    frontal, lateral, other_patient, radiologists = STANFORD_IMAGES
    all_absent = {name.replace(' ', '_'): '0.0' for name in FINDINGS}
    tables = {
        'train.csv': lines(
            header,
            chexpert_row(frontal, 'Frontal', 'AP', Edema='1.0', Pneumonia='-1.0'),
            chexpert_row(lateral, 'Lateral', '', Edema='1.0'),
            chexpert_row(other_patient, 'Frontal', 'PA', No_Finding='1.0')),
        'valid.csv': lines(
            header,
            chexpert_row(radiologists, 'Frontal', 'AP', **all_absent)),
    }
    images = {f'{name}.jpg': PNG for name in STANFORD_IMAGES}
    return (write_tree(parent/'CheXpert-v1.0-small', images | tables),)


def plus_row(image, view, ap_pa, findings):
    split = image.split('/')[0]
    return f'{image}.jpg,{view},{ap_pa},patient,{split},"FULL",{findings},"Stable, \n as before."'


def plus_label_line(image, edema):
    labels = {'Edema': edema, 'Pneumonia': -1.0, 'Fracture': None}
    return json.dumps({'path_to_image': f'{image}.jpg', **labels})


def build_chexpert_plus(parent):
    columns = [
        'path_to_image', 'frontal_lateral', 'ap_pa', 'deid_patient_id', 'split', 'report',
        'section_findings', 'section_impression']
    frontal, lateral, other_patient, valid = STANFORD_IMAGES
    tables = {
        'df_chexpert_plus_240401.csv': lines(
            ','.join(columns),
            plus_row(frontal, 'Frontal', 'AP', 'Edema.'),
            plus_row(lateral, 'Lateral', '', 'Edema.'),
            plus_row(other_patient, 'Frontal', 'PA', ''),
            plus_row(valid, 'Frontal', 'AP', '')),
        'chexbert_labels/impression_fixed.json': '\n'.join([
            plus_label_line(frontal, 1.0),
            plus_label_line(lateral, 1.0),
            plus_label_line(other_patient, 0.0),
            plus_label_line(valid, None)]),
    }
    images = {f'PNG/{name}.png': PNG for name in STANFORD_IMAGES}
    return (write_tree(parent, images | tables),)


def open_i_report(uid, findings, impression, images):
    "The XML file of one report, with its images by name."
    caption = '<caption>Xray &amp; more</caption>'
    parents = [f'<parentImage id="{name}">{caption}</parentImage>' for name in images]
    return ''.join([
        '<?xml version="1.0" encoding="utf-8"?>\n',
        f'<eCitation><meta type="rr"/><uId id="{uid}"/>',
        '<MeSH><major>Pleural Effusion/left/small</major><major>Thickening</major></MeSH>',
        '<MedlineCitation><Article><Abstract>',
        '<AbstractText Label="COMPARISON">None.</AbstractText>',
        f'<AbstractText Label="FINDINGS">{findings}</AbstractText>',
        f'<AbstractText Label="IMPRESSION">{impression}</AbstractText>',
        '</Abstract></Article></MedlineCitation>',
        *parents,
        '</eCitation>'])


def build_open_i_xml(parent):
    first_images = ['CXR1_1_IM-0001-3001', 'CXR1_1_IM-0001-4001']
    second_images = ['CXR2_IM-0652-1001']
    reports = {
        'NLMCXR_reports/ecgen-radiology/1.xml':
            open_i_report('CXR1', 'Small left pleural effusion.', '', first_images),
        'NLMCXR_reports/ecgen-radiology/2.xml':
            open_i_report('CXR2', '', 'Normal chest.', second_images),
    }
    images = {f'NLMCXR_png/{name}.png': PNG for name in first_images + second_images}
    return (write_tree(parent, reports | images),)


def build_open_i_tables(parent):
    tables = {
        'indiana_reports.csv': lines(
            'uid,MeSH,Problems,image,indication,comparison,findings,impression',
            '1,Pleural Effusion/left;Thickening,Pleural Effusion;Thickening,,,,Small left pleural effusion.,',
            '2,normal,normal,,,,,Normal chest.'),
        'indiana_projections.csv': lines(
            'uid,filename,projection',
            '1,1_IM-0001-4001.dcm.png,Frontal',
            '1,1_IM-0001-3001.dcm.png,Lateral',
            '2,2_IM-0652-1001.dcm.png,Frontal'),
    }
    images = {
        'images/images_normalized/1_IM-0001-4001.dcm.png': PNG,
        'images/images_normalized/1_IM-0001-3001.dcm.png': PNG,
        'images/images_normalized/2_IM-0652-1001.dcm.png': PNG,
    }
    return (write_tree(parent, tables | images),)


ONE_TABLE = lines(
    'study_id,patient_id,path,view,sex,age,findings,text,source,text_kind,findings_text,impression_text',
    'iu_1,iu_1,images/iu_1_f.jpg,FRONTAL,,,TERMS,,IU,report,Small left pleural effusion.,',
    'iu_1,iu_1,images/iu_1_l.jpg,LATERAL,,,TERMS,,IU,report,Small left pleural effusion.,',
    'iu_2,iu_2,images/iu_2_f.jpg,FRONTAL,,,normal,,IU,report,,Normal chest.',
    'roco_7,roco_7,images/roco_7.jpg,PA,,,Pneumonia,An arrow.,ROCO,caption,,',
    'nih_8,nih_8,images/nih_8.jpg,PA,,,Effusion|Mass,,NIH,,,').replace('TERMS', 'Pleural Effusion|Thickening')


def build_open_i_table(parent):
    images = ('iu_1_f', 'iu_1_l', 'iu_2_f', 'roco_7', 'nih_8')
    files = {'metadata.csv': ONE_TABLE} | {f'images/{name}.jpg': PNG for name in images}
    return (write_tree(parent, files),)


def build_nih(parent):
    files = {
        'images_001/images/00000001_000.png': PNG,
        'images_001/images/00000001_001.png': PNG,
        'images_012/images/00000013_000.png': PNG,
        'train_val_list.txt': lines('00000013_000.png'),
        'test_list.txt': lines('00000001_000.png', '00000001_001.png'),
        'Data_Entry_2017_v2020.csv': lines(
            'Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position',
            '00000001_000.png,Cardiomegaly|Emphysema,0,1,57,M,PA',
            '00000001_001.png,No Finding,1,1,58,M,PA',
            '00000013_000.png,Effusion|Hernia,0,13,60,M,AP'),
    }
    return (write_tree(parent, files),)


PADCHEST_TABLE = 'PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv.gz'

def build_padchest(parent):
    files = {
        '0/a.png': PNG,
        '0/b.png': PNG,
        '54/c.png': PNG,
        PADCHEST_TABLE: zipped_lines(
            ',ImageID,ImageDir,StudyID,PatientID,Projection,Report,Labels',
            '0,a.png,0,100,7,PA,derram pleural .,"[\'pleural effusion\', \'scoliosis\']"',
            '1,b.png,0,100,7,L,derram pleural .,"[\'pleural effusion\', \'scoliosis\']"',
            '2,c.png,54,101,8,AP_horizontal,sin hallazg .,"[\'suboptimal study\']"'),
    }
    return (write_tree(parent, files),)


def build_vindr_cxr(parent):
    columns = 'Aortic enlargement,Edema,Nodule/Mass,Lung tumor,Rib fracture,No finding'
    tables = {
        'annotations/image_labels_test.csv': lines(
            f'image_id,{columns}',
            'c,0,0,0,0,0,1'),
        'annotations/image_labels_train.csv': lines(
            f'image_id,rad_id,{columns}',
            'a,R1,1,0,1,0,0,0',
            'a,R2,1,1,0,1,0,0',
            'a,R3,0,0,1,0,0,0',
            'b,R1,0,0,0,0,0,1',
            'b,R2,0,0,0,0,0,1',
            'b,R3,0,0,0,0,0,0'),
    }
    for name in ('train/a', 'train/b', 'test/c'): write_dicom(parent/f'{name}.dicom')
    return (write_tree(parent, tables),)


def rexgradient_study(patient, n_images, **sections):
    "The metadata of a study; its views are PA, LL and unknown, as far as it has images."
    series = f'../deid_png/{patient}/A1/studies/1/series/1/instances'
    return {
        'PatientID': patient,
        'ImagePath': [f'{series}/{i}.png' for i in range(n_images)],
        'ImageViewPosition': ['PA', 'LL', None][:n_images],
        'Indication': 'Pain.',
        **sections}


def build_rexgradient(parent):
    studies_of = {
        'train': {
            's1': rexgradient_study('P1', 2, Findings='Clear lungs.', Impression='Normal.'),
            's4': rexgradient_study('P1', 0)},
        'valid': {'s2': rexgradient_study('P2', 1, Findings=None, Impression='Edema.')},
        'test': {'s3': rexgradient_study('P3', 3, Findings='Small effusion.')},
    }
    files = {}
    for split, studies in studies_of.items():
        files[f'metadata/{split}_metadata_view_position.json'] = json.dumps(studies)
        for study in studies.values():
            files |= {path.removeprefix('../'): PNG for path in study['ImagePath']}
    return (write_tree(parent, files),)


def build_table(parent):
    files = {
        'sub/a.png': PNG,
        'b.png': PNG,
        'table.csv': lines(
            'image_path,report,subject_id,split',
            'sub/a.png,"FINDINGS: Small left effusion.",7,val',
            'b.png,,8,'),
    }
    return (write_tree(parent, files)/'table.csv',)


def build_folder(parent):
    files = {
        'p1/one/a.png': PNG,
        'p1/one/a.txt': 'FINDINGS: Small left effusion. IMPRESSION: Effusion.',
        'p1/two/b.jpeg': PNG,
        'c.tif': PNG,
        'c.txt': b'Clear lungs. \xff',
        '.hidden/d.png': PNG,
        'notes.md': 'x',
    }
    return (write_tree(parent, files),)


def build_dicom_folder(parent):
    deep = parent/'deep'/'er'
    write_dicom(deep/'0'/'IM', study='1.2.3', patient='SECRET-7', view='PA', modality='DX')
    write_dicom(deep/'1'/'IM.dcm', study='1.2.3', patient='SECRET-7', view='LL', modality='DX')
    write_dicom(deep/'2'/'IM', study='1.2.4', patient='SECRET-8', view='AP', modality='CR')
    write_dicom(deep/'3'/'IM.dcm', study='1.2.4', patient='SECRET-8', view='', modality='CT')
    files = {
        'deep/er/0/IM.txt': 'Small left effusion.',
        'DICOMDIR.html': 'x',
        'deep/thumb.png': PNG,
    }
    return (write_tree(parent, files),)


@dataclass(frozen=True)
class Collection:
    "A miniature and what its manifest must hold, image by image."
    build: Callable               # writes it below a folder, returns the arguments of the function
    n_images: int
    n_studies: int
    splits: list | None = None    # official ones; None: all by the hash of the patient
    texts: list | None = None     # None: no image has one
    known: tuple | None = None    # row, finding and label that the collection gives
    unknown: tuple | None = None  # row and finding that must be NaN


# What comes after a comma in a name tells layouts of one data set apart.
COLLECTIONS = {
    'mimic_cxr': Collection(
        build_mimic_jpg,
        n_images=4,
        n_studies=3,
        splits=['train', 'train', 'valid', 'test'],
        texts=[
            'FINDINGS: Edema. IMPRESSION: Edema of ___.',
            'FINDINGS: Edema. IMPRESSION: Edema of ___.',
            'IMPRESSION: Normal.',
            ''],
        known=(0, 'Pneumonia', -1),
        unknown=(0, 'Pneumothorax')),
    'mimic_cxr, DICOM': Collection(
        build_mimic_dicom,
        n_images=4,
        n_studies=3,
        splits=['train', 'train', 'valid', 'test'],
        texts=[
            'FINDINGS: Edema. IMPRESSION: Edema of ___.',
            'FINDINGS: Edema. IMPRESSION: Edema of ___.',
            'IMPRESSION: Normal.',
            ''],
        known=(0, 'Fracture', 0),
        unknown=(3, 'No Finding')),
    'chexpert': Collection(
        build_chexpert,
        n_images=4,
        n_studies=3,
        splits=['train', 'train', 'train', 'valid'],
        known=(0, 'Pneumonia', -1),
        unknown=(0, 'Pneumothorax')),
    'chexpert_plus': Collection(
        build_chexpert_plus,
        n_images=4,
        n_studies=3,
        splits=['train', 'train', 'train', 'valid'],
        texts=[
            'FINDINGS: Edema. IMPRESSION: Stable, as before.',
            'FINDINGS: Edema. IMPRESSION: Stable, as before.',
            'IMPRESSION: Stable, as before.',
            'IMPRESSION: Stable, as before.'],
        known=(0, 'Pneumonia', -1),
        unknown=(0, 'Fracture')),
    'open_i, XML': Collection(
        build_open_i_xml,
        n_images=3,
        n_studies=2,
        texts=[
            'FINDINGS: Small left pleural effusion.',
            'FINDINGS: Small left pleural effusion.',
            'IMPRESSION: Normal chest.'],
        known=(0, 'Pleural Effusion', 1),
        unknown=(0, 'Fracture')),
    'open_i, tables': Collection(
        build_open_i_tables,
        n_images=3,
        n_studies=2,
        texts=[
            'FINDINGS: Small left pleural effusion.',
            'FINDINGS: Small left pleural effusion.',
            'IMPRESSION: Normal chest.'],
        known=(0, 'Pleural Effusion', 1),
        unknown=(0, 'Fracture')),
    'open_i, one table': Collection(
        build_open_i_table,
        n_images=3,
        n_studies=2,
        texts=[
            'FINDINGS: Small left pleural effusion.',
            'FINDINGS: Small left pleural effusion.',
            'IMPRESSION: Normal chest.'],
        known=(0, 'Pleural Effusion', 1),
        unknown=(0, 'Fracture')),
    'nih': Collection(
        build_nih,
        n_images=3,
        n_studies=3,
        splits=['test', 'test', 'train or valid'],
        known=(0, 'Enlarged Cardiomediastinum', 1)),
    'padchest': Collection(
        build_padchest,
        n_images=3,
        n_studies=2,
        texts=[
            'FINDINGS: derram pleural .',
            'FINDINGS: derram pleural .',
            'FINDINGS: sin hallazg .'],
        known=(0, 'Pleural Effusion', 1),
        unknown=(2, 'No Finding')),
    'vindr_cxr': Collection(
        build_vindr_cxr,
        n_images=3,
        n_studies=3,
        splits=['train or valid', 'train or valid', 'test'],
        known=(0, 'Edema', -1),
        unknown=(0, 'Support Devices')),
    'rexgradient': Collection(
        build_rexgradient,
        n_images=6,
        n_studies=3,
        splits=['train', 'train', 'valid', 'test', 'test', 'test'],
        texts=[
            'FINDINGS: Clear lungs. IMPRESSION: Normal.',
            'FINDINGS: Clear lungs. IMPRESSION: Normal.',
            'IMPRESSION: Edema.',
            'FINDINGS: Small effusion.',
            'FINDINGS: Small effusion.',
            'FINDINGS: Small effusion.'],
        unknown=(0, 'No Finding')),
    'read_table': Collection(
        build_table,
        n_images=2,
        n_studies=2,
        splits=['valid', ''],
        texts=['FINDINGS: Small left effusion.', ''],
        known=(0, 'Pleural Effusion', 1),
        unknown=(1, 'Pleural Effusion')),
    'folder': Collection(
        build_folder,
        n_images=3,
        n_studies=3,
        texts=[
            'FINDINGS: Clear lungs. ÿ',  # no UTF-8, so the code page of Windows
            'FINDINGS: Small left effusion. IMPRESSION: Effusion.',
            ''],
        known=(1, 'Pleural Effusion', 1),
        unknown=(2, 'Pleural Effusion')),
    'dicom_folder': Collection(
        build_dicom_folder,
        n_images=3,
        n_studies=2,
        texts=['FINDINGS: Small left effusion.', '', ''],
        known=(0, 'Pleural Effusion', 1),
        unknown=(1, 'Pleural Effusion')),
    'mixed_folder': Collection(
        build_dicom_folder,
        n_images=4,
        n_studies=3,
        texts=['FINDINGS: Small left effusion.', '', '', ''],
        known=(0, 'Pleural Effusion', 1),
        unknown=(3, 'Pleural Effusion')),
}


def data_set_of(name): return name.split(',')[0]


def load(name, arguments): return DATASETS[data_set_of(name)](*arguments)


def build_and_load(name, parent): return load(name, COLLECTIONS[name].build(parent))


def test_every_data_set_has_a_miniature():
    assert {data_set_of(name) for name in COLLECTIONS} == set(DATASETS)


@dataclass(frozen=True)
class Loaded:
    "A miniature on disk, and what reading it gave."
    name: str
    expected: Collection
    arguments: tuple
    manifest: pd.DataFrame
    printed: str


@pytest.fixture(params=COLLECTIONS)
def loaded(request, tmp_path, capsys):
    expected = COLLECTIONS[request.param]
    arguments = expected.build(tmp_path/'data')
    manifest = load(request.param, arguments)
    return Loaded(request.param, expected, arguments, manifest, printed=capsys.readouterr().out)


def test_columns_and_their_types(loaded):
    manifest = loaded.manifest
    assert list(manifest) == [*MANIFEST_COLUMNS, *FINDINGS]
    assert isinstance(manifest.index, pd.RangeIndex)
    for column in MANIFEST_COLUMNS:
        assert all(isinstance(cell, str) for cell in manifest[column])
    for finding in FINDINGS:
        assert manifest[finding].dtype == np.float64
        assert manifest[finding].isin([1, 0, -1, np.nan]).all()


def test_images_and_studies(loaded):
    manifest, expected = loaded.manifest, loaded.expected
    assert len(manifest) == expected.n_images
    assert manifest.study_id.nunique() == expected.n_studies
    assert f'{expected.n_images} images, {expected.n_studies} studies' in loaded.printed
    assert manifest.path.is_unique
    for path in map(Path, manifest.path):
        assert path.is_absolute()
        assert path.is_file()


def test_ids_source_and_view(loaded):
    manifest = loaded.manifest
    assert manifest.groupby('study_id').patient_id.nunique().eq(1).all()
    assert (manifest.patient_id != '').all()
    assert (manifest.source != '').all()
    assert set(manifest['view']) <= {'PA', 'AP', 'LATERAL', 'FRONTAL', ''}


def test_no_patient_is_in_two_splits(loaded):
    if loaded.name == 'read_table':  # a row of the table without a split keeps none
        assert split_by_patient(loaded.manifest)['split'].isin(['train', 'valid', 'test']).all()
    else:
        assert 'patient-disjoint split' in loaded.printed
        assert check_split(loaded.manifest).images.sum() == loaded.expected.n_images


def test_splits_are_official_or_by_hash(loaded):
    splits = loaded.manifest['split']
    if loaded.expected.splits:
        for split, allowed in zip(splits, loaded.expected.splits, strict=True):
            assert split in allowed.split(' or '), splits.tolist()
    else:
        by_hash = split_by_patient(loaded.manifest.assign(split=''))
        pd.testing.assert_series_equal(splits, by_hash['split'])


def joined_sections(findings, impression):
    sections = []
    if findings: sections.append(f'FINDINGS: {findings}')
    if impression: sections.append(f'IMPRESSION: {impression}')
    return ' '.join(sections)


def test_texts(loaded):
    manifest, expected = loaded.manifest, loaded.expected
    texts = list(map(joined_sections, manifest.findings_text, manifest.impression_text))
    assert texts == (expected.texts or [''] * expected.n_images)


def test_labels(loaded):
    if loaded.expected.known:
        row, finding, label = loaded.expected.known
        assert loaded.manifest.loc[row, finding] == label
    if loaded.expected.unknown:
        row, finding = loaded.expected.unknown
        assert np.isnan(loaded.manifest.loc[row, finding])


def test_a_second_reading_is_the_same(loaded):
    "Nothing depends on the order of a folder or on chance."
    pd.testing.assert_frame_equal(load(loaded.name, loaded.arguments), loaded.manifest)


def test_saved_and_read_back(loaded, tmp_path):
    to_parquet(loaded.manifest, tmp_path/'m.parquet')
    loaded.manifest.to_csv(tmp_path/'m.csv', index=False)
    pd.testing.assert_frame_equal(read_table(tmp_path/'m.parquet'), loaded.manifest)
    pd.testing.assert_frame_equal(read_table(tmp_path/'m.csv'), loaded.manifest)


def test_concatenated_and_scanned(loaded):
    assert len(concatenate(loaded.manifest)) == loaded.expected.n_images
    readable, _ = scan(loaded.manifest, 32)
    assert len(readable) == loaded.expected.n_images


def test_nothing_of_a_header_identifies_the_patient(loaded):
    assert 'SECRET' not in loaded.printed
    assert 'SECRET' not in loaded.manifest.drop(columns='path').to_csv()
    assert '19010101' not in loaded.manifest.to_csv()


@pytest.mark.parametrize('name', sorted(set(DATASETS) - {'read_table'}))
def test_card(name):
    "Origin, access, labels, split, text, citation and tree stand in each docstring, one line each."
    card = DATASETS[name].__doc__
    for field in ('Origin', 'Access', 'Labels', 'Split', 'Text', 'Cite', 'Tree'):
        assert card.count(f'\n    {field}: ') == 1, field
    assert name in PAGES


NEEDED_FILES = [
    ('mimic_cxr', 'mimic-cxr-2.0.0-metadata.csv.gz'),
    ('mimic_cxr', 'mimic-cxr-2.0.0-split.csv.gz'),
    ('mimic_cxr', 'mimic-cxr-2.0.0-chexpert.csv.gz'),
    ('chexpert', 'train.csv'),
    ('chexpert', 'valid.csv'),
    ('chexpert_plus', 'df_chexpert_plus_240401.csv'),
    ('open_i, tables', 'indiana_reports.csv'),
    ('open_i, tables', 'indiana_projections.csv'),
    ('nih', 'Data_Entry_2017_v2020.csv'),
    ('nih', 'train_val_list.txt'),
    ('nih', 'test_list.txt'),
    ('padchest', PADCHEST_TABLE),
    ('vindr_cxr', 'annotations/image_labels_train.csv'),
    ('vindr_cxr', 'annotations/image_labels_test.csv'),
    ('rexgradient', 'metadata/train_metadata_view_position.json'),
    ('rexgradient', 'metadata/valid_metadata_view_position.json'),
    ('rexgradient', 'metadata/test_metadata_view_position.json'),
]

@pytest.mark.parametrize('name,file', NEEDED_FILES)
def test_a_missing_file_is_named_with_what_to_download(name, file, tmp_path):
    arguments = COLLECTIONS[name].build(tmp_path)
    (arguments[0]/file).unlink()
    with pytest.raises(UserError) as error: load(name, arguments)
    message = str(error.value)
    without_release = file.split('_v2020')[0].removesuffix('.gz').removesuffix('.csv')
    assert without_release in message
    assert PAGES[data_set_of(name)] in message
    assert '\n' not in message


OWN = {'read_table', 'folder', 'dicom_folder', 'mixed_folder'}


@pytest.mark.parametrize('name', sorted(set(COLLECTIONS) - OWN))
def test_missing_images_are_left_out_and_none_is_an_error(name, tmp_path, capsys):
    arguments = COLLECTIONS[name].build(tmp_path)
    first, *others = load(name, arguments).path
    Path(first).unlink()
    assert load(name, arguments).path.tolist() == others
    assert 'not on this disk and left out' in capsys.readouterr().out
    for path in others: Path(path).unlink()
    with pytest.raises(UserError) as error: load(name, arguments)
    message = str(error.value)
    assert f'none of the {COLLECTIONS[name].n_images} images' in message
    assert PAGES[data_set_of(name)] in message
    assert str(tmp_path) in message


# Each change below takes the bytes of a file and returns the damaged bytes.

def put(content): return lambda _: content


def keep_until(end): return lambda content: content[:end]


def swap(old, new, encoding='utf-8'):
    return lambda content: content.replace(old.encode(encoding), new.encode(encoding))


def in_gzip(change):
    return lambda content: gzip.compress(change(gzip.decompress(content)))


def keep_header(content): return content.split(b'\n')[0] + b'\n'


def repeat_first_row(content): return content + content.split(b'\n')[1] + b'\n'


def to_utf16(content): return content.decode().encode('utf-16')


LOGIN_PAGE = b'<html><body>\nLog in, please.\n</body></html>\n'
ENTITY_BOMB = b'<!DOCTYPE r [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;">]><r>&b;</r>'
EXTERNAL_ENTITY = b'<!DOCTYPE r [<!ENTITY a SYSTEM "file:///etc/hostname">]><r>&a;</r>'


@dataclass(frozen=True)
class Fault:
    name: str         # of the collection
    pattern: str      # of the file that is damaged
    change: Callable  # from its bytes to the damaged ones
    words: str        # that the error must hold


FAULTS = {
    'metadata with a wrong header': Fault(
        'mimic_cxr', '*-metadata.csv.gz', in_gzip(swap('dicom_id', 'name')), 'no column dicom_id'),
    'an unknown split': Fault(
        'mimic_cxr', '*-split.csv.gz', in_gzip(swap('validate', 'holdout')), "'holdout'"),
    'a label in words': Fault(
        'mimic_cxr', '*-chexpert.csv.gz', in_gzip(swap('-1.0', 'maybe')), "'maybe'"),
    'a truncated gz': Fault(
        'mimic_cxr', '*-metadata.csv.gz', keep_until(30), 'cannot read the table'),
    'a table that is a web page': Fault(
        'mimic_cxr', '*-split.csv.gz', in_gzip(put(LOGIN_PAGE)), 'no column dicom_id, split'),
    'a zero-byte table': Fault(
        'chexpert', 'train.csv', put(b''), 'cannot read the table'),
    'a header alone': Fault(
        'chexpert', 'valid.csv', keep_header, 'no rows'),
    'a table without findings': Fault(
        'chexpert', 'train.csv', swap(',Edema,', ',Oedema,'), 'no column Edema'),
    'the same image twice': Fault(
        'chexpert', 'train.csv', repeat_first_row, 'is there twice'),
    'an Excel file': Fault(
        'chexpert_plus', 'df_*.csv', put(b'PK\x03\x04' + bytes(300)), 'save the sheet as CSV'),
    'labels that are no JSON': Fault(
        'chexpert_plus', '*_fixed.json', keep_until(-20), 'one JSON object a line'),
    'labels without paths': Fault(
        'chexpert_plus', '*_fixed.json', swap('path_to_image', 'path'), 'one JSON object a line'),
    'labels of 2': Fault(
        'chexpert_plus', '*_fixed.json', swap('-1.0', '2.0'), 'write 1, 0, -1'),
    'broken XML': Fault(
        'open_i, XML', '1.xml', keep_until(-30), 'cannot read'),
    'zero-byte XML': Fault(
        'open_i, XML', '1.xml', put(b''), 'cannot read'),
    'XML that is a web page': Fault(
        'open_i, XML', '1.xml', put(b'<html><body>Not found</body></html>'), 'cannot read'),
    'an entity bomb': Fault(
        'open_i, XML', '1.xml', put(ENTITY_BOMB), 'entities'),
    'an external entity': Fault(
        'open_i, XML', '1.xml', put(EXTERNAL_ENTITY), 'entities'),
    'XML in another encoding': Fault(
        'open_i, XML', '1.xml', to_utf16, 'cannot read'),
    'an image in no list': Fault(
        'nih', 'test_list.txt', swap('00000001_001.png', ''), 'in neither list'),
    'a table of another release': Fault(
        'nih', 'Data_Entry*.csv', swap('Finding Labels', 'Labels'), 'no column Finding Labels'),
    'one study of two patients': Fault(
        'padchest', '*.csv.gz', in_gzip(swap('b.png,0,100,7', 'b.png,0,100,9')),
        'belongs to another patient'),
    'no image_id': Fault(
        'vindr_cxr', 'image_labels_train.csv', swap('image_id', 'id'), 'no column image_id'),
    'votes in words': Fault(
        'vindr_cxr', 'image_labels_train.csv', swap('R1,1,0', 'R1,1,no'), 'findings with 0 and 1'),
    'boxes instead of votes': Fault(
        'vindr_cxr', 'image_labels_test.csv', put(b'image_id,class_name,x_min\nc,Edema,3\n'),
        'findings with 0 and 1'),
    'metadata that are no JSON': Fault(
        'rexgradient', 'train_*.json', keep_until(-5), 'is not JSON'),
    'metadata that are a list': Fault(
        'rexgradient', 'train_*.json', put(b'[1, 2]'), 'download it again'),
    'fewer views than images': Fault(
        'rexgradient', 'train_*.json', swap('["PA", "LL"]', '["PA"]'), 'equally long'),
    'an image path that climbs': Fault(
        'rexgradient', 'train_*.json', swap('../deid_png/P1/', '../deid_png/P1/../../../'),
        'not below deid_png'),
    'an image path elsewhere': Fault(
        'rexgradient', 'train_*.json', swap('../deid_png/P1/', '/etc/'), 'not below deid_png'),
    'a path that leaves the folder': Fault(
        'read_table', 'table.csv', swap('sub/a.png', '../a.png'), 'leaves the folder'),
}

@pytest.mark.parametrize('fault', FAULTS.values(), ids=FAULTS)
def test_a_damaged_collection_is_one_line_with_its_file(fault, tmp_path):
    arguments = COLLECTIONS[fault.name].build(tmp_path/'data')
    damaged = next((tmp_path/'data').rglob(fault.pattern))
    content = damaged.read_bytes()
    damaged.write_bytes(fault.change(content))
    assert damaged.read_bytes() != content
    with pytest.raises(UserError) as error: load(fault.name, arguments)
    message = str(error.value)
    assert fault.words in message
    assert '\n' not in message
    assert len(message) < 700
    assert any(place in message for place in (str(tmp_path), 'table', fault.name))


def test_mimic_without_its_reports(tmp_path):
    "The commonest mistake is to name the JPG release as the reports' root, which has no text."
    images, _ = build_mimic_jpg(tmp_path)
    words = 's50414267.txt: MIMIC-CXR-JPG has none, so unpack mimic-cxr-reports.zip'
    with pytest.raises(UserError, match=words): DATASETS['mimic_cxr'](images, images)


def missing_folder(parent): return parent/'none'


def text_file(parent): return write_tree(parent, {'a.txt': 'x'})/'a.txt'


def folder_without_images(parent): return write_tree(parent, {'x/y.md': ''})/'x'


def folder_of_texts(parent): return write_tree(parent, {'a.txt': 'Clear lungs.'})


WRONG_FOLDERS = {
    'missing': (missing_folder, 'no folder|does not exist'),
    'a text file': (text_file, 'no folder|no column|no rows'),
    'empty': (folder_without_images, 'no image|no DICOM'),
    'texts alone': (folder_of_texts, 'no image|no DICOM'),
}
FOLDER_READERS = {
    'folder': DATASETS['folder'],
    'dicom_folder': DATASETS['dicom_folder'],
    'read_data': read_data,
}

@pytest.mark.parametrize('reader', FOLDER_READERS.values(), ids=FOLDER_READERS)
@pytest.mark.parametrize('make_path,words', WRONG_FOLDERS.values(), ids=WRONG_FOLDERS)
def test_wrong_folders(make_path, words, reader, tmp_path):
    path = make_path(tmp_path)
    with pytest.raises(UserError, match=words) as error: reader(path)
    assert str(path) in str(error.value)
    assert '\n' not in str(error.value)


def test_other_modalities_alone(tmp_path):
    write_dicom(tmp_path/'a.dcm', modality='CT')
    with pytest.raises(UserError, match='no radiograph among them'):
        DATASETS['dicom_folder'](tmp_path)


def test_damaged_dicom_is_for_the_scan_to_name(tmp_path):
    "A damaged file becomes a row and does not stop the folder; the scan sets it aside by its path."
    good = write_dicom(tmp_path/'good.dcm')
    write_tree(tmp_path, {
        'empty.dcm': b'',
        'text.dcm': b'no image',
        'cut.dcm': good.read_bytes()[:700],
        'IM1': bytes(128) + b'DICM' + b'\xff' * 300,
    })
    manifest = DATASETS['dicom_folder'](tmp_path)
    assert len(manifest) == 5
    assert manifest.study_id.nunique() == 4  # cut.dcm still names the study of good.dcm
    readable, quarantine = scan(manifest, 32)
    assert [Path(path).name for path in readable.path] == ['good.dcm']
    assert len(quarantine) == 4
    for path, reason in zip(quarantine.path, quarantine.reason): assert path in reason


def test_the_same_people_in_two_collections(tmp_path):
    chexpert = build_and_load('chexpert', tmp_path/'a')
    chexpert_plus = build_and_load('chexpert_plus', tmp_path/'b')
    with pytest.raises(UserError, match='is in chexpert and in chexpert_plus: leave one out'):
        concatenate(chexpert, chexpert_plus)
    both = concatenate(chexpert, build_and_load('nih', tmp_path/'c'))
    assert len(both) == 7
    assert set(both.source) == {'chexpert', 'nih'}
    check_split(both)


def test_spanish_reports_are_marked_and_not_labelled(tmp_path):
    manifest = build_and_load('padchest', tmp_path)
    assert set(manifest.source) == {'padchest_es'}
    unlabelled = manifest.assign(**dict.fromkeys(FINDINGS, np.nan))
    assert fill_labels(unlabelled)[list(FINDINGS)].isna().all(axis=None)


def test_labels_of_a_text_only_collection(tmp_path):
    labelled = fill_labels(build_and_load('rexgradient', tmp_path))
    assert labelled['No Finding'].tolist()[:2] == [1, 1]
    assert labelled['Edema'][2] == 1
    assert labelled['Pleural Effusion'][3] == 1


def test_read_data_knows_tables_and_folders(tmp_path, capsys):
    images, = build_folder(tmp_path/'a')
    table, = build_table(tmp_path/'b')
    write_dicom(tmp_path/'c'/'x')
    assert len(read_data(images)) == 3
    assert len(read_data(table)) == 2
    assert len(read_data(tmp_path/'c')) == 1
    read_data(images).to_csv(images/'manifest.csv', index=False)
    assert len(read_data(images)) == 3
    assert 'manifest.csv: 3 images' in capsys.readouterr().out


def test_read_data_takes_the_table_of_a_folder_before_its_images(tmp_path):
    "A folder `images` beside a table is no patient."
    root, = build_open_i_table(tmp_path)
    manifest = read_data(root, text_kind='report')
    assert manifest.patient_id.tolist() == ['iu_1', 'iu_1', 'iu_2']
    images, = build_folder(tmp_path/'pictures')
    with pytest.raises(UserError, match='is a folder without a table: split, marks can be chosen'):
        read_data(images, split='split.csv', marks='drop')


# Open-i: people's labels, the split from a file, two views of a study

OPEN_I = [name for name in COLLECTIONS if data_set_of(name) == 'open_i']


@pytest.mark.parametrize('name', OPEN_I)
def test_labels_of_people_are_kept_beside_those_of_the_text(name, tmp_path):
    root, = COLLECTIONS[name].build(tmp_path)
    by_text, by_people = open_i(root), open_i(root, labels='people')
    labels = list(FINDINGS)
    pd.testing.assert_frame_equal(by_people.drop(columns=labels), by_text.drop(columns=labels))
    first = by_people.iloc[0]
    assert first['Pleural Effusion'] == 1 and first['Fracture'] == 0
    assert np.isnan(first['Pleural Other'])  # a thickening of what?
    assert np.isnan(by_text['Fracture'][0])
    with pytest.raises(UserError, match='no such labels of open_i: mine; choose text or people'):
        open_i(root, labels='mine')


TERMS = {  # a cell of terms, what is present, what is unknown (None: all)
    'normal': ('normal', {'No Finding'}, set()),
    'parents': ('Pulmonary Atelectasis', {'Atelectasis', 'Lung Opacity'}, set()),
    'a comma in a term': ('Fractures, Bone|Catheters, Indwelling', {'Fracture', 'Support Devices'}, set()),
    'semicolons': ('Nodule;Opacity', {'Lung Opacity', 'Lung Lesion'}, set()),
    'vague': ('Cardiac Shadow', set(), {'Cardiomegaly', 'Enlarged Cardiomediastinum'}),
    'vague and named': (
        'Heart|Cardiomegaly', {'Cardiomegaly', 'Enlarged Cardiomediastinum'}, set()),
    'no finding of ours': ('Calcified Granuloma|Spine', set(), set()),
    'indexed by nobody': ('No Indexing', set(), None),
    'a bad image': ('Technical Quality of Image Unsatisfactory ', set(), None),
    'empty': ('', set(), None),
}


@pytest.mark.parametrize('name', TERMS)
def test_terms_of_people_become_labels(name):
    cell, present, unknown = TERMS[name]
    labels = indiana_labels(cell)
    assert {finding for finding in FINDINGS if labels[finding] == 1} == present
    missing = {finding for finding in FINDINGS if np.isnan(labels[finding])}
    assert missing == (set(FINDINGS) if unknown is None else unknown)


def test_studies_that_nobody_indexed_are_counted(tmp_path, capsys):
    root, = build_open_i_table(tmp_path)
    (root/'metadata.csv').write_text(ONE_TABLE.replace('normal', 'No Indexing'))
    manifest = open_i(root, labels='people')
    assert manifest.loc[2, list(FINDINGS)].isna().all()
    assert '1 studies were indexed by nobody' in capsys.readouterr().out


@pytest.mark.parametrize('name', OPEN_I)
def test_open_i_takes_its_split_from_a_file(name, tmp_path, capsys):
    root, = COLLECTIONS[name].build(tmp_path)
    first, last = open_i(root).study_id.iloc[[0, -1]]
    split = root/'split.csv'
    split.write_text(f'study_id,split\n{first},valid\n{last},test\nelsewhere,train\n')
    manifest = open_i(root, split=split, marks='drop')
    assert manifest['split'].tolist() == ['valid', 'valid', 'test']
    assert '1 of its 3 studies are not in the table, as elsewhere' in capsys.readouterr().out


def test_a_study_whose_frontal_image_is_missing_is_counted(tmp_path, capsys):
    root, = build_open_i_table(tmp_path)
    (root/'images'/'iu_1_f.jpg').unlink()
    manifest = open_i(root)
    said = capsys.readouterr().out
    assert manifest['view'].tolist() == ['LATERAL', 'FRONTAL']
    assert '1 of 3 images are not on this disk and left out' in said
    assert '1 studies lost their frontal images, for example iu_1' in said
    readable, _ = scan(read_table(root/'metadata.csv', text_kind='report'), 32)
    assert len(readable) == 2
    assert '1 studies lost their frontal images, for example iu_1' in capsys.readouterr().out


@pytest.mark.skipif(not REAL_TREE.exists(), reason='real images not here: shared/data/open_cxr2')
def test_the_real_tree_by_the_split_of_the_papers(capsys):
    manifest = open_i(REAL_TREE, split=REAL_TREE/'iu_split.csv', marks='token')
    said = capsys.readouterr().out
    studies = manifest.drop_duplicates('study_id')
    assert studies['split'].value_counts().to_dict() == {'train': 1657, 'test': 486, 'valid': 241}
    assert '721 studies of the table have no split in it and are left out' in said
    reports = manifest[['findings_text', 'impression_text']].agg(' '.join, axis=1)
    assert reports.groupby(manifest.study_id).nunique().eq(1).all()
    assert not reports.str.contains('XXXX').any() and reports.str.contains('___').any()
    given = pd.read_csv(REAL_TREE/'metadata.csv', dtype=str, keep_default_na=False).set_index('path')
    own = given.loc[[f'images/{Path(path).name}' for path in manifest.path], 'impression_text']
    written = [re.findall('[a-z]+', text.replace('XXXX', '').lower()) for text in own]
    read = [re.findall('[a-z]+', text.lower()) for text in manifest.impression_text]
    assert np.mean([mine == theirs for mine, theirs in zip(read, written)]) > .995


@pytest.mark.skipif(not REPORTS.exists(), reason='real reports not here: shared/data/iu_reports')
def test_real_tables_of_open_i(tmp_path):
    for name in ('indiana_reports.csv', 'indiana_projections.csv'):
        (tmp_path/name).symlink_to(REPORTS/name)
    images = pd.read_csv(tmp_path/'indiana_projections.csv').filename[:40]
    write_tree(tmp_path/'images_normalized', dict.fromkeys(images, PNG))
    manifest = DATASETS['open_i'](tmp_path)
    assert len(manifest) == 40
    assert set(manifest['view']) == {'FRONTAL', 'LATERAL'}
    assert manifest['No Finding'].notna().any()


# Reports go to the right image

REPORT = 'Large left pleural effusion.'
UID = '1.2.826.0.1.99'
REPORT_FILES = {  # images, text files, and for each image whether the report is its own
    'stem': (['a.png'], ['a.txt'], [True]),
    'full name': (['a.png'], ['a.png.txt'], [True]),
    'capitals': (['a.PNG'], ['a.TXT'], [True]),
    'capitals after the full name': (['a.jpeg'], ['a.jpeg.TXT'], [True]),
    'points in a name': (['scan.v2.tif'], ['scan.v2.txt'], [True]),
    'points in a name, report of another': (['scan.v2.tif'], ['scan.txt'], [False]),
    'UID': ([f'{UID}.1'], [f'{UID}.1.txt'], [True]),
    'UID, report of its root': ([f'{UID}.1', f'{UID}.2'], [f'{UID}.txt'], [False, False]),
    'UID and its root': ([UID, f'{UID}.1'], [f'{UID}.txt'], [True, False]),
    'UID with an ending': ([f'{UID}.1.dcm'], [f'{UID}.1.txt'], [True]),
    'UID with an ending, report of its root': ([f'{UID}.1.dcm'], [f'{UID}.txt'], [False]),
    'no ending': (['IM0001'], ['IM0001.txt'], [True]),
    'same name with and without an ending': (['a', 'a.dcm'], ['a.txt'], [True, False]),
    'two formats of one image': (['a.png', 'a.jpg'], ['a.txt'], [True, True]),
    'two formats, one named in full': (['a.jpg', 'a.png'], ['a.png.txt'], [False, True]),
    'in another folder': (['x/a.png', 'y/b.png'], ['x/b.txt'], [False, False]),
    'longer name': (['a.png', 'ab.png'], ['ab.txt'], [False, True]),
    'numbers with a point': (['view1.5.png', 'view1.png'], ['view1.txt'], [False, True]),
}


def write_image(path):
    "A PNG under the name of a picture, else DICOM."
    is_picture = path.suffix.lower() in ('.png', '.jpg', '.jpeg', '.tif')
    if is_picture: return write_tree(path.parent, {path.name: PNG})
    return write_dicom(path, study=generate_uid(), patient=path.name)


@pytest.mark.parametrize('name', REPORT_FILES)
def test_a_report_goes_to_its_image_alone(name, tmp_path):
    images, reports, own = REPORT_FILES[name]
    for image in images: write_image(tmp_path/image)
    write_tree(tmp_path, dict.fromkeys(reports, REPORT))
    manifest = read_data(tmp_path).set_index('path')
    texts = [manifest.findings_text[str(tmp_path/image)] for image in images]
    assert texts == [REPORT if is_own else '' for is_own in own]


def test_two_reports_of_one_image_are_named(tmp_path):
    write_tree(tmp_path, {'a.png': PNG, 'a.txt': REPORT, 'a.TXT': 'Clear lungs.'})
    with pytest.raises(UserError, match='a.TXT and .*a.txt are reports of one image'): read_data(tmp_path)


WINDOWS = 'Findings: The heart is enlarged.\r\nImpression: Größe normal.\r\n'
ENCODINGS = [
    'utf-8', 'utf-8-sig', 'utf-16', 'utf-16-le', 'utf-16-be', 'utf-32', 'cp1252', 'latin-1', 'iso8859-15',
    'cp1250']


@pytest.mark.parametrize('ends', ['\r\n', '\n', '\r'], ids=['windows', 'unix', 'old mac'])
@pytest.mark.parametrize('encoding', ENCODINGS)
def test_report_files_of_any_encoding(encoding, ends, tmp_path):
    write_tree(tmp_path, {'a.png': PNG, 'a.TXT': WINDOWS.replace('\r\n', ends).encode(encoding)})
    row = read_data(tmp_path).iloc[0]
    assert (row.findings_text, row.impression_text) == ('The heart is enlarged.', 'Größe normal.')


# Everything in a folder is taken, or the line says what was left out

def link(path, target):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(target)


def dicom_and_logo(root, disk):
    for i in range(3): write_dicom(root/f'IM{i}', study=f'1.{i}', patient=f'P{i}')
    write_tree(root, {'logo.png': PNG})


def dicom_dir(root, disk):
    write_dicom(root/'DICOM'/'IM1')
    write_tree(root, {'DICOMDIR': bytes(128) + b'DICM', 'index.html': 'x', 'viewer.exe': 'x', 'AUTORUN': 'x'})


def linked_patients(root, disk):
    write_tree(disk, {'p2/b.png': PNG})
    write_tree(root, {'p1/a.png': PNG})
    link(root/'p2', disk/'p2')


def linked_chain(root, disk):
    write_tree(disk, {'a.png': PNG})
    link(disk/'inner', root)
    link(root/'one'/'two', disk)


def linked_twice(root, disk):
    write_tree(disk, {'a.png': PNG})
    link(root/'x', disk)
    link(root/'y', disk)


def linked_file(root, disk):
    write_tree(disk, {'a.png': PNG})
    link(root/'b.png', disk/'a.png')


def own_name_first(root, disk):
    write_tree(root, {'z/a.png': PNG})
    link(root/'a', root/'z')


def linked_dicom(root, disk):
    write_dicom(disk/'IM1')
    link(root/'cd', disk)


def linked_root(root, disk):
    write_tree(disk, {'a.png': PNG})
    root.rmdir()
    link(root, disk)


def other_pictures(root, disk):
    write_tree(root, {'a.png': PNG, 'b.bmp': b'BM', 'c.gif': b'GIF', 'd.txt': 'x', 'e.webp': b'x'})


FOLDERS = {  # how it is made, the images in it, words of the line
    'DICOM and a logo': (dicom_and_logo, ['IM0', 'IM1', 'IM2', 'logo.png'], '3 DICOM files'),
    'a CD': (dicom_dir, ['IM1'], '4 files are no images and left out (2 no ending'),
    'linked patients': (linked_patients, ['a.png', 'b.png'], '2 images'),
    'links in a circle': (linked_chain, ['a.png'], '1 images'),
    'linked twice': (linked_twice, ['a.png'], '1 images'),
    'a linked file': (linked_file, ['b.png'], '1 images'),
    'a folder under two names': (own_name_first, ['a.png'], '1 images'),
    'linked DICOM': (linked_dicom, ['IM1'], '1 images'),
    'a linked root': (linked_root, ['a.png'], '1 images'),
    'pictures of other kinds': (other_pictures, ['a.png'], '3 files are no images and left out'),
}


@pytest.mark.parametrize('name', FOLDERS)
def test_everything_in_a_folder_is_taken_or_counted(name, tmp_path, capsys):
    build, images, words = FOLDERS[name]
    (tmp_path/'root').mkdir()
    (tmp_path/'disk').mkdir()
    build(tmp_path/'root', tmp_path/'disk')
    assert sorted(Path(path).name for path in read_data(tmp_path/'root').path) == images
    assert words in capsys.readouterr().out
    assert sorted(Path(path).name for path in find_images([tmp_path/'root'])) == images


def test_a_folder_under_two_names_keeps_its_own(tmp_path):
    own_name_first(tmp_path, None)
    assert read_data(tmp_path).patient_id.tolist() == ['z']


def test_a_report_without_an_image_is_counted(tmp_path, capsys):
    write_tree(tmp_path, {'a.png': PNG, 'a.txt': REPORT, 'b.txt': REPORT})
    read_data(tmp_path)
    assert '1 files are texts without an image and left out (1 .txt)' in capsys.readouterr().out


@pytest.mark.parametrize('name', [b'caf\xe9.png', b'p\xff/a.png', b'\x80'])
def test_names_that_are_no_utf8_are_left_out_by_name(name, tmp_path, capsys):
    write_tree(tmp_path, {'a.png': PNG})
    odd = Path(os.fsdecode(os.path.join(os.fsencode(tmp_path), name)))
    odd.parent.mkdir(exist_ok=True)
    write_image(odd) if odd.suffix else write_dicom(odd)
    assert [Path(path).name for path in read_data(tmp_path).path] == ['a.png']
    assert 'names that are not UTF-8 and are left out' in capsys.readouterr().out
