"Nothing that identifies a patient leaves the reader: not in results, errors, warnings, logs or prints."
import logging
import traceback
import warnings
from dataclasses import replace

import pydicom
import pytest
from PIL import Image, PngImagePlugin
from pydicom.datadict import dictionary_VR
from pydicom.dataelem import RawDataElement
from pydicom.tag import Tag
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian, JPEG2000Lossless, JPEGLosslessSV1
from radiograph_files import dicom, picture, write_bytes

from chexmix.core import UserError
from chexmix.radiograph import hashed, open_radiograph, read_header

SECRETS = dict(
    PatientName='DOE^JANE', PatientID='MRN-0815', PatientBirthDate='19400203', OtherPatientIDs='OTHER-77',
    PatientAddress='SECRETSTREET 5', PatientComments='SECRETCOMMENT', StudyDate='20200131',
    AcquisitionDateTime='20200131121212', AccessionNumber='ACC-4711', InstitutionName='SECRETHOSPITAL',
    ReferringPhysicianName='REFERRER^RITA', OperatorsName='OPERATOR^OTTO',
    StudyInstanceUID='1.2.3.987654321', SeriesInstanceUID='1.2.3.987654322',
    DeviceSerialNumber='SERIAL-99', StudyID='STUDY-31', ImageComments='SECRETIMAGE',
    DerivationDescription='SECRETDERIVED', ProtocolName='SECRETPROTOCOL', StationName='SECRETSTATION',
    RequestingPhysician='REQUESTER^ROB')
IDENTIFYING = (
    'DOE', 'JANE', 'MRN', '0815', '1940', 'OTHER', 'SECRET', '20200131', '4711', 'REFERRER', 'OPERATOR',
    '98765432', 'SERIAL', 'STUDY-31', 'REQUESTER')
PSEUDONYMS = (hashed(b'MRN-0815'), hashed(b'1.2.3.987654321'))


def result_text(read):
    "The header that a reader returns, or its error with the traceback, as text."
    try: result = read()
    except UserError as error: return '\n'.join([repr(error), *traceback.format_exception(error)])
    is_radiograph = hasattr(result, 'image')
    return repr(replace(result, image=None) if is_radiograph else result)  # pixels hold digits of nobody


def everything_emitted(path, capfd, caplog):
    "What reading a file returns, prints, warns, logs and raises, as one text."
    caplog.set_level(logging.DEBUG)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        texts = [
            result_text(lambda: open_radiograph(path, 16)), result_text(lambda: read_header(path)),
            result_text(lambda: open_radiograph(path, 16, 'official', frame=1))]
    printed = capfd.readouterr()
    texts += [str(warning.message) for warning in caught]
    return '\n'.join([*texts, printed.out, printed.err, caplog.text]).replace(str(path), '')


def leaks(text):
    "The identifying words in a text; hashes may contain any digits."
    for pseudonym in PSEUDONYMS: text = text.replace(pseudonym, '')
    return [word for word in IDENTIFYING if word in text]


SYNTAXES = (ExplicitVRLittleEndian, ImplicitVRLittleEndian, JPEGLosslessSV1, JPEG2000Lossless)


@pytest.mark.parametrize('syntax', SYNTAXES, ids=lambda syntax: syntax.name)
def test_a_dicom_file_shows_its_patient_only_as_a_hash(syntax, tmp_path, gray, capfd, caplog):
    text = everything_emitted(dicom(tmp_path/'a.dcm', gray, syntax=syntax, **SECRETS), capfd, caplog)
    assert hashed(b'MRN-0815') in text
    assert not leaks(text)


MISPLACED = {  # an element that is read, and an identifier in its place
    'window': ('WindowCenter', 'DOE^JANE'), 'slope': ('RescaleSlope', 'DOE^JANE'),
    'spacing': ('PixelSpacing', 'DOE\\JANE'), 'frames': ('NumberOfFrames', 'MRN-0815'),
    'view': ('ViewPosition', 'DOE^JANE'), 'laterality': ('ImageLaterality', 'DOE^JANE'),
    'photometric': ('PhotometricInterpretation', 'DOE^JANE'), 'function': ('VOILUTFunction', 'DOE^JANE'),
    'shape': ('PresentationLUTShape', 'DOE^JANE'), 'rows': ('Rows', 'DOE^JANE'),
    'bits': ('BitsStored', 'DOE^JANE'), 'sequence': ('VOILUTSequence', 'DOE^JANE'),
    'padding': ('PixelPaddingValue', 'DOE^JANE'), 'study': ('StudyInstanceUID', 'DOE^JANE'),
    'samples': ('SamplesPerPixel', 'DOE^JANE'),
}


def misplace(path, keyword, value, vr):
    "Write an identifier as it is into an element that should hold something else."
    data = pydicom.dcmread(path)
    tag = Tag(keyword)
    raw = value.encode() + b' ' * (len(value) % 2)
    data._dict[tag] = RawDataElement(tag, vr or dictionary_VR(tag)[:2], len(raw), raw, 0, False, True)
    data.save_as(path)
    assert raw in path.read_bytes()
    return path


@pytest.mark.parametrize('name', MISPLACED)
@pytest.mark.parametrize('vr', ['', 'LT', 'UN'], ids=['as it should be typed', 'as text', 'as unknown'])
def test_an_identifier_in_the_wrong_place_is_not_repeated(name, vr, tmp_path, gray, capfd, caplog):
    path = dicom(tmp_path/'a.dcm', gray, WindowWidth=100, **SECRETS)
    misplace(path, *MISPLACED[name], vr)
    assert not leaks(everything_emitted(path, capfd, caplog))


def png_with_notes(folder, pixels):
    notes = PngImagePlugin.PngInfo()
    for name, value in SECRETS.items(): notes.add_text(name, value)
    return picture(folder/'a.png', pixels, pnginfo=notes)


def truncated_png_with_notes(folder, pixels):
    return write_bytes(folder/'b.png', png_with_notes(folder, pixels).read_bytes()[:2000])


def jpeg_with_notes(folder, pixels):
    exif = Image.Exif()
    exif[0x010e], exif[0x9286] = 'DOE^JANE', 'SECRETCOMMENT'
    return picture(folder/'a.jpg', pixels, exif=exif)


@pytest.mark.parametrize('write', [png_with_notes, truncated_png_with_notes, jpeg_with_notes])
def test_the_notes_in_a_picture_are_not_repeated(write, tmp_path, gray, capfd, caplog):
    assert not leaks(everything_emitted(write(tmp_path, gray), capfd, caplog))
