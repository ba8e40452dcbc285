"""Every format that can hold a radiograph, and every way in which a file can be wrong."""
import io
from pathlib import Path

import numpy as np
import pandas as pd
import pydicom
import pytest
from PIL import Image
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian, JPEG2000Lossless, JPEGBaseline8Bit, RLELossless,
                         SecondaryCaptureImageStorage, generate_uid)

from chexmix.core import UserError
from chexmix.labels import FINDINGS, label_report, labels_to_text, report_sections, report_text, resolve_uncertain, with_parents
from chexmix.radiograph import geometry, read_radiograph

SHARED = Path(__file__).parents[2]/'shared'
needs = lambda path: pytest.mark.skipif(not (SHARED/path).exists(), reason=f'real data not here: shared/{path}')


@pytest.fixture(scope='session')
def gray():
    "(90,70) 8-bit pixels that use the whole range."
    y, x = np.mgrid[0:90, 0:70]
    pixels = (127 + 100 * np.sin(x / 9) * np.cos(y / 7)).astype(np.uint8)
    pixels[0, 0], pixels[0, 1] = 0, 255
    return pixels


def dicom(path, pixels, photometric='MONOCHROME2', syntax=ExplicitVRLittleEndian, **tags):
    "A minimal DICOM file. Compressed syntaxes get their stream from pydicom (RLE) or Pillow (JPEG, JPEG 2000)."
    data = pydicom.Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if syntax == ImplicitVRLittleEndian else ExplicitVRLittleEndian
    data.SOPClassUID, data.SOPInstanceUID, data.PatientName = SecondaryCaptureImageStorage, generate_uid(), 'SECRET^NAME'
    data.Rows, data.Columns, data.PhotometricInterpretation = *pixels.shape[:2], photometric
    data.SamplesPerPixel = 1 if pixels.ndim == 2 else 3
    if pixels.ndim == 3: data.PlanarConfiguration = 0
    data.BitsAllocated = data.BitsStored = 8 * pixels.itemsize
    data.HighBit, data.PixelRepresentation = data.BitsStored - 1, int(pixels.dtype.kind == 'i')
    data.PixelData = pixels.tobytes() + b'\0' * (pixels.nbytes % 2)
    for name, value in tags.items(): setattr(data, name, value)
    if syntax == RLELossless: data.compress(syntax, generate_instance_uid=False)
    if syntax in (JPEG2000Lossless, JPEGBaseline8Bit):
        stream = io.BytesIO()
        Image.fromarray(pixels).save(stream, **(dict(format='JPEG2000', no_jp2=True) if syntax == JPEG2000Lossless else dict(format='JPEG', quality=95)))
        data.PixelData = encapsulate([stream.getvalue()])
    if syntax in (JPEG2000Lossless, JPEGBaseline8Bit, DeflatedExplicitVRLittleEndian): data.file_meta.TransferSyntaxUID = syntax
    data.save_as(path, enforce_file_format=True)
    return path


def picture(path, array, mode=None, **options):
    image = Image.fromarray(array)
    (image.convert(mode) if mode else image).save(path, **options)
    return path


def renamed(path, to):
    path.rename(to)
    return to


FORMATS = {
    'png 8 bit': lambda d, p: picture(d/'a.png', p),
    'png 16 bit': lambda d, p: picture(d/'a.png', p.astype(np.uint16) * 257),
    'png 16 bit, 12 used': lambda d, p: picture(d/'a.png', p.astype(np.uint16) * 16),
    'png 16 bit, 8 used': lambda d, p: picture(d/'a.png', p.astype(np.uint16)),
    'png colour': lambda d, p: picture(d/'a.png', p, 'RGB'),
    'png transparent': lambda d, p: picture(d/'a.png', p, 'RGBA'),
    'png gray and alpha': lambda d, p: picture(d/'a.png', p, 'LA'),
    'png palette': lambda d, p: picture(d/'a.png', p, 'P'),
    'png named jpg': lambda d, p: renamed(picture(d/'a.png', p), d/'a.jpg'),
    'tiff 8 bit': lambda d, p: picture(d/'a.tif', p),
    'tiff 16 bit': lambda d, p: picture(d/'a.tiff', p.astype(np.uint16) * 100),
    'tiff float': lambda d, p: picture(d/'a.tif', p.astype(np.float32) / 255),
    'tiff lzw': lambda d, p: picture(d/'a.tif', p, compression='tiff_lzw'),
    'dicom explicit': lambda d, p: dicom(d/'a.dcm', p),
    'dicom implicit': lambda d, p: dicom(d/'a.dcm', p, syntax=ImplicitVRLittleEndian),
    'dicom deflated': lambda d, p: dicom(d/'a.dcm', p, syntax=DeflatedExplicitVRLittleEndian),
    'dicom rle': lambda d, p: dicom(d/'a.dcm', p, syntax=RLELossless),
    'dicom jpeg 2000': lambda d, p: dicom(d/'a.dcm', p, syntax=JPEG2000Lossless),
    'dicom 16 bit': lambda d, p: dicom(d/'a.dcm', p.astype(np.uint16) * 13 + 5),
    'dicom 12 of 16 bit': lambda d, p: dicom(d/'a.dcm', p.astype(np.uint16) * 16, BitsStored=12, HighBit=11),
    'dicom signed': lambda d, p: dicom(d/'a.dcm', p.astype(np.int16) * 9 - 1000),
    'dicom rescale': lambda d, p: dicom(d/'a.dcm', p.astype(np.uint16), RescaleSlope=4, RescaleIntercept=-1024),
    'dicom monochrome1': lambda d, p: dicom(d/'a.dcm', 255 - p, 'MONOCHROME1'),
    'dicom monochrome1 16 bit': lambda d, p: dicom(d/'a.dcm', 9999 - p.astype(np.uint16) * 7, 'MONOCHROME1'),
    'dicom presentation inverse': lambda d, p: dicom(d/'a.dcm', 255 - p, PresentationLUTShape='INVERSE'),
    'dicom rgb': lambda d, p: dicom(d/'a.dcm', np.repeat(p[..., None], 3, 2), 'RGB'),
    'dicom without extension': lambda d, p: dicom(d/'a', p),
    'array 8 bit': lambda d, p: p,
    'array fractions': lambda d, p: p / 255,
    'array 16 bit': lambda d, p: p.astype(np.int32) * 200 - 7,
    'array colour': lambda d, p: np.repeat(p[..., None], 3, 2),
}


@pytest.mark.parametrize('policy', ['pad', 'crop'])
@pytest.mark.parametrize('name', FORMATS)
def test_same_pixels_same_array(name, policy, tmp_path, gray):
    got = read_radiograph(FORMATS[name](tmp_path, gray), 48, policy)
    np.testing.assert_allclose(got, read_radiograph(gray, 48, policy), atol=1e-6)
    assert got.shape == (48, 48) and got.dtype == np.float32 and 0 <= got.min() and got.max() <= 1


@pytest.mark.parametrize('write', [lambda d, p: picture(d/'a.jpg', p, quality=95), lambda d, p: picture(d/'a.jpg', p, 'RGB', quality=95),
                                   lambda d, p: dicom(d/'a.dcm', p, syntax=JPEGBaseline8Bit)], ids=['jpeg', 'jpeg colour', 'dicom jpeg'])
def test_lossy_pixels_are_close(write, tmp_path, gray):
    assert abs(read_radiograph(write(tmp_path, gray), 48) - read_radiograph(gray, 48)).mean() < .01


def test_first_window_is_used(tmp_path, gray):
    windowed = read_radiograph(dicom(tmp_path/'a.dcm', gray, WindowCenter=[100, 200], WindowWidth=[50, 10]), 90)
    first = read_radiograph(dicom(tmp_path/'b.dcm', gray, WindowCenter=100, WindowWidth=50), 90)
    np.testing.assert_array_equal(windowed, first)
    assert (windowed[:, 10:80] == 1).mean() > .2


def test_voi_and_polarity_commute(tmp_path, gray):
    window = dict(WindowCenter=100, WindowWidth=80)
    a = read_radiograph(dicom(tmp_path/'a.dcm', gray, **window), 64, 'crop')
    b = read_radiograph(dicom(tmp_path/'b.dcm', gray, 'MONOCHROME1', **window), 64, 'crop')
    np.testing.assert_allclose(a, 1 - b, atol=1e-6)


def test_palette(tmp_path, gray):
    table = (np.arange(256) * 257).astype(np.uint16)
    tags = {f'{c}PaletteColorLookupTable{k}': v for c in ('Red', 'Green', 'Blue') for k, v in (('Descriptor', [256, 0, 16]), ('Data', table.tobytes()))}
    np.testing.assert_allclose(read_radiograph(dicom(tmp_path/'a.dcm', gray, 'PALETTE COLOR', **tags), 48), read_radiograph(gray, 48), atol=1e-5)


def test_padding_is_black_and_sets_no_scale(tmp_path, gray):
    pixels = gray.astype(np.uint16) + 1000
    pixels[:, :10] = 65535
    shown = read_radiograph(dicom(tmp_path/'a.dcm', pixels, PixelPaddingValue=65535), 90)
    assert shown[:, 10:18].max() == 0 and shown.max() == 1


def test_official_depends_on_the_extension(tmp_path, gray):
    gray = gray.copy()
    gray[gray > 200] = 200
    png, jpg = read_radiograph(picture(tmp_path/'a.png', gray), 64, 'official'), read_radiograph(picture(tmp_path/'a.jpg', gray, quality=95), 64, 'official')
    assert png.max() == 1 and jpg.max() < .85


@needs('golden/released_layout/vqgan.ckpt')
def test_official_gives_the_released_tokens():
    import json, torch
    from chexmix.vqgan import VQConfig, VQModel
    folder = SHARED/'golden'/'released_layout'
    model = VQModel(VQConfig(image_size=512, in_channels=3, channels=32, channel_mult=(1, 1, 2, 2, 4), res_blocks=1, n_codes=8192, code_dim=32)).eval()
    model.load_state_dict(torch.load(folder/'vqgan.ckpt', map_location='cpu', weights_only=False)['state_dict'])
    for image in json.loads((folder/'expected.json').read_text())['images']:
        x = torch.from_numpy(read_radiograph(folder/image['file'], 512, 'official')).expand(1, 3, -1, -1) * 2 - 1
        with torch.no_grad(): codes = model.encode(x).flatten()
        assert (codes != torch.tensor(image['image_token_ids'])).sum() <= 3, image['file']


@pytest.mark.parametrize('policy', ['pad', 'crop'])
@pytest.mark.parametrize('shape', [(300, 200), (200, 300), (64, 64), (31, 777), (1, 5)])
def test_geometry_goes_back(shape, policy):
    g = geometry(*shape, 64, policy)
    for cell in [(0, 0), (3, 3), (1, 2)]:
        top, left, bottom, right = g.cell_box(*cell, 4)
        assert top < bottom and left < right
        y, x = g.to_original(*(16 * c for c in cell))
        assert (top, left) == pytest.approx((y, x))
    assert g.to_original(32, 32) == pytest.approx((shape[0] / 2, shape[1] / 2), abs=max(shape) / 64)


def zip_bomb(path):
    "A PNG of a few bytes that claims 60000×60000 pixels."
    import struct, zlib
    chunk = lambda kind, data: struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))
    path.write_bytes(b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', struct.pack('>IIBBBBB', 60000, 60000, 8, 0, 0, 0, 0)) + chunk(b'IDAT', zlib.compress(b'\0')) + chunk(b'IEND', b''))
    return path


def cut(path, keep):
    path.write_bytes(path.read_bytes()[:keep])
    return path


def frames(path, pixels):
    Image.fromarray(pixels).save(path, save_all=True, append_images=[Image.fromarray(pixels)])
    return path


def content(path, data):
    path.write_bytes(data)
    return path


BAD_FILES = {
    'missing': (lambda d, p: d/'none.png', 'No such file'),
    'missing folder': (lambda d, p: d/'none'/'a.png', 'No such file'),
    'a folder': (lambda d, p: d, 'Is a directory'),
    'zero bytes': (lambda d, p: content(d/'a.png', b''), 'empty'),
    'zero bytes dicom': (lambda d, p: content(d/'a.dcm', b''), 'empty'),
    'truncated png': (lambda d, p: cut(picture(d/'a.png', p), 700), ''),
    'truncated jpeg': (lambda d, p: cut(picture(d/'a.jpg', p), 800), 'truncated'),
    'truncated tiff': (lambda d, p: cut(picture(d/'a.tif', p), 1000), ''),
    'truncated dicom': (lambda d, p: cut(dicom(d/'a.dcm', p), 3000), ''),
    'truncated dicom rle': (lambda d, p: cut(dicom(d/'a.dcm', p, syntax=RLELossless), 900), ''),
    'header alone': (lambda d, p: cut(picture(d/'a.png', p), 20), ''),
    'text named png': (lambda d, p: content(d/'a.png', b'this is no image'), 'cannot identify'),
    'text named dcm': (lambda d, p: content(d/'a.dcm', b'this is no image' * 30), 'no pixel data'),
    'csv': (lambda d, p: content(d/'a.csv', b'path,text\n'), 'cannot identify'),
    'random bytes': (lambda d, p: content(d/'a.jpg', np.random.default_rng(0).bytes(5000)), 'cannot identify'),
    'random bytes dicom': (lambda d, p: content(d/'a.dcm', np.random.default_rng(0).bytes(5000)), ''),
    'bomb': (lambda d, p: zip_bomb(d/'a.png'), ''),
    'dicom bomb': (lambda d, p: dicom(d/'a.dcm', p, Rows=60000, Columns=60000), 'more than'),
    'dicom no rows': (lambda d, p: dicom(d/'a.dcm', p, Rows=0), '0 pixels'),
    'dicom frames': (lambda d, p: dicom(d/'a.dcm', p, NumberOfFrames=3), '3 frames'),
    'dicom bad bits': (lambda d, p: dicom(d/'a.dcm', p, BitsAllocated=13), ''),
    'dicom zero window': (lambda d, p: dicom(d/'a.dcm', p, WindowCenter=10, WindowWidth=0), ''),
    'tiff frames': (lambda d, p: frames(d/'a.tif', p), '2 frames'),
    'tiff nan': (lambda d, p: picture(d/'a.tif', np.full((9, 9), np.nan, np.float32)), 'NaN'),
}


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('name', BAD_FILES)
def test_a_bad_file_is_one_line_with_its_path(name, tmp_path, gray):
    make, words = BAD_FILES[name]
    path = make(tmp_path, gray)
    with pytest.raises(UserError) as error: read_radiograph(path, 32)
    line = str(error.value)
    assert str(path) in line and words in line and '\n' not in line and 'SECRET' not in line


def test_dicom_without_pixels(tmp_path, gray):
    path = dicom(tmp_path/'a.dcm', gray)
    data = pydicom.dcmread(path)
    del data.PixelData
    data.save_as(path)
    with pytest.raises(UserError, match='no pixel data'): read_radiograph(path, 32)


@pytest.mark.parametrize('array', [np.zeros(5), np.zeros((0, 4)), np.zeros((2, 3, 4, 5)), np.zeros((4, 4, 2)), np.full((3, 3), np.inf), np.array([['a']])],
                         ids=['vector', 'empty', 'four axes', 'two channels', 'infinite', 'text'])
def test_bad_arrays(array):
    with pytest.raises(UserError): read_radiograph(array, 8)


def test_unknown_policies(gray):
    for call in (lambda: read_radiograph(gray, 8, 'squeeze'), lambda: geometry(5, 5, 5, 'x'), lambda: resolve_uncertain(pd.DataFrame(columns=list(FINDINGS)), 'maybe'),
                 lambda: report_text({}, 'all')):
        with pytest.raises(UserError, match='choose one of'): call()


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


@needs('data/dicom/rsna_pneumonia_1.dcm')
@pytest.mark.parametrize('policy', ['pad', 'crop'])
def test_real_dicom_pair(policy, tmp_path):
    bright, dark = (read_radiograph(SHARED/'data'/'dicom'/name, 128, policy) for name in ('rsna_pneumonia_1.dcm', 'monochrome1_variant.dcm'))
    np.testing.assert_allclose(bright, 1 - dark, atol=1e-5)  # the same stored pixels, declared both ways
    inverse = dicom(tmp_path/'a.dcm', 255 - pydicom.dcmread(SHARED/'data'/'dicom'/'rsna_pneumonia_1.dcm').pixel_array, 'MONOCHROME1')
    np.testing.assert_allclose(read_radiograph(inverse, 128, policy), bright, atol=1e-6)
