"""Identifiers in every text field of DICOM files, in notes of pictures and in file names.

None may be in a log, record, manifest, store, notebook, error or picture. A file's own name is kept
where the file must be found again (manifest, store, quarantine, tables of answers, errors), and nowhere else.
"""
import os, re, traceback, warnings
from pathlib import Path

import pandas as pd, pydicom, torch
from faults.trials import exit_code, last_line, Trials
from PIL import Image
from pydicom.datadict import dictionary_VR, DicomDictionary
from radiograph_files import dicom, gray_pixels, truncate

from chexmix.audit import audit
from chexmix.batch_inference import embed_files, inpaint_files, report_files
from chexmix.core import get_settings, UserError
from chexmix.datasets import dicom_folder
from chexmix.pipeline import open_model
from chexmix.tokenizer import prepare_run

TEXT = 'AE', 'AS', 'CS', 'DA', 'DT', 'LO', 'LT', 'PN', 'SH', 'ST', 'TM', 'UC', 'UI', 'UR', 'UT'
# These say how to read the rest.
READ = 'SpecificCharacterSet', 'TransferSyntaxUID', 'PhotometricInterpretation'
FILES = 24
NAME = 'ZQNAME'  # in each file's name


def text_fields() -> list[str]:
    "Keywords of all text elements of the standard."
    rows = [row for tag, row in DicomDictionary.items() if tag > 0x00080000]
    return [keyword for vr, _, _, _, keyword in rows if vr in TEXT and keyword and keyword not in READ]


def planted(vr: str, k: int) -> str:
    "An identifier for field number k, of a form that its type allows where possible."
    if vr == 'UI': return f'1.2.99{k:05d}99'
    if vr == 'DA': return f'{1500 + k // 365:04d}{k // 28 % 12 + 1:02d}{k % 28 + 1:02d}'
    return f'ZQ{k:05d}'


def write_files(folder: Path) -> dict[str, str]:  # keyword → identifier
    "DICOM files with all fields planted, two of them damaged."
    folder.mkdir(parents=True)
    fields = {}
    for k, keyword in enumerate(text_fields()): fields[keyword] = planted(dictionary_VR(keyword), k)
    fields = {keyword: word for keyword, word in fields.items() if not re.fullmatch(r'\d+', word)}
    data = pydicom.dcmread(dicom(folder/'base.dcm', gray_pixels()))
    (folder/'base.dcm').unlink()
    with warnings.catch_warnings(action='ignore'):
        for keyword, word in fields.items():
            try: setattr(data, keyword, word)
            except (ValueError, TypeError): pass
        for k in range(FILES):
            data.PatientID, data.PatientName = f'ZQ{k}PATIENT', f'ZQ{k}^PATIENT'
            data.StudyInstanceUID, data.SeriesInstanceUID = f'1.2.9900099.{k}', f'1.2.9900098.{k}'
            data.SOPInstanceUID, data.Modality, data.ViewPosition = f'1.2.9900097.{k}', 'DX', 'ZQVIEW'
            data.save_as(folder/f'{NAME}{k}.dcm')
    planted_bytes = (folder/f'{NAME}{FILES - 1}.dcm').read_bytes()
    fields = {keyword: word for keyword, word in fields.items() if word.encode() in planted_bytes}
    truncate(folder/f'{NAME}0.dcm', 9000)
    truncate(folder/f'{NAME}1.dcm', -400)
    return fields


def use_all(folder: Path, trained: Path):
    "What a user does with a folder of DICOM files, everything printed into the log."
    torch.set_num_threads(1)
    os.environ.pop('CHEXMIX_QUIET', None)
    manifest = dicom_folder(folder/'in')
    manifest = manifest.assign(findings_text='Clear lungs.', impression_text='Normal.')
    manifest.to_csv(folder/'table.csv', index=False)
    audit(manifest, folder/'audit')
    settings = get_settings('tiny', data=str(folder/'table.csv'), tokenizer_steps=2)
    prepare_run(folder/'run', settings)
    opened = open_model(trained)
    parts = opened.model, opened.processor, [folder/'in']
    report_files(*parts, folder/'report.csv', new=8)
    embed_files(*parts, folder/'vectors.parquet')
    inpaint_files(*parts, folder/'filled.jsonl')
    for path in sorted((folder/'in').iterdir())[:3]:
        try: opened.processor.read([path])
        except UserError: traceback.print_exc()


def content(path: Path) -> str:
    "What a file holds, as text; of pictures what stands beside the pixels, of Parquet its cells."
    if path.suffix == '.png': return str(Image.open(path).info)
    if path.suffix == '.parquet': return pd.read_parquet(path).to_csv()
    return path.read_bytes().decode('utf-8', 'replace')


KEEP_NAMES = r'manifest\.csv|table\.csv|quarantine|\.arrow|report\.csv|vectors|filled|images\.csv|log'


def run(folder: Path, share: float, seed: int, trained: Path):
    trials = Trials('identifiers in DICOM fields and file names')
    fields = write_files(folder/'in')
    code = exit_code(use_all, folder, trained, log=folder/'log')
    if code: raise RuntimeError(last_line(folder/'log'))
    files = [p for p in folder.rglob('*') if p.is_file() and (folder/'in') not in p.parents]
    texts = {str(p.relative_to(folder)): content(p) for p in files}
    joined = '\n'.join(texts.values())
    found = set(re.findall(r'ZQ\d{5}|1\.2\.99\d{5}99', joined))
    for keyword, word in fields.items(): trials.add(f'{keyword} is in an output' if word in found else None)
    for word in ('PATIENT', 'ZQVIEW', '1.2.9900099', '1.2.9900098', '1.2.9900097'):
        places = [name for name, text in texts.items() if word in text]
        trials.add(f'{word} is in {places}' if places else None)
    for name, text in texts.items():
        kept = re.search(KEEP_NAMES, name)
        trials.add(f'the name of a file is in {name}' if NAME in text and not kept else None)
    yield trials
