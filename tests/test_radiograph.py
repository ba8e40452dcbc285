"""Every format and encoding that can hold a radiograph, each written here, and every way in which a file can be wrong."""
import io, logging, os, struct, subprocess, sys, textwrap, traceback, warnings, zlib
from dataclasses import replace
from pathlib import Path

import gdcm
import numpy as np
import pydicom
import pytest
from PIL import Image, PngImagePlugin
from pydicom.dataelem import RawDataElement
from pydicom.datadict import dictionary_VR
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate, get_frame
from pydicom.pixels import apply_modality_lut, apply_voi_lut
from pydicom.tag import Tag
from pydicom.uid import (JPEG2000, DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian, JPEG2000Lossless,
                         JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLossless, JPEGLosslessSV1, JPEGLSLossless, JPEGLSNearLossless, RLELossless,
                         SecondaryCaptureImageStorage, generate_uid)
from scipy.fft import dctn

from chexmix.core import UserError
from chexmix.radiograph import MAX_PIXELS, POLICIES, Radiograph, geometry, hashed, open_radiograph, read_header, read_pixels, read_radiograph, to_unit, window

SHARED = Path(__file__).parents[2]/'shared'
needs = lambda path: pytest.mark.skipif(not (SHARED/path).exists(), reason=f'real data not here: shared/{path}')
GDCM = {JPEGExtended12Bit: 'JPEGExtendedProcess2_4', JPEGLossless: 'JPEGLosslessProcess14', JPEGLosslessSV1: 'JPEGLosslessProcess14_1',
        JPEGLSLossless: 'JPEGLSLossless', JPEGLSNearLossless: 'JPEGLSNearLossless'}
NEAR = 3  # the largest error of the near-lossless files


@pytest.fixture(scope='session')
def gray():
    "(90,70) 8-bit pixels that use the whole range."
    y, x = np.mgrid[0:90, 0:70]
    pixels = (127 + 100 * np.sin(x / 9) * np.cos(y / 7)).astype(np.uint8)
    pixels[0, 0], pixels[0, 1] = 0, 255
    return pixels


def deep(bits, signed=False):
    "(61,48) values, noisy, that use the whole range of `bits`."
    y, x = np.mgrid[0:61, 0:48]
    half = 2**(bits - 1)
    wave = half + .9 * half * np.sin(x / 9) * np.cos(y / 7) + np.random.default_rng(bits).normal(0, half / 50, y.shape)
    wave[0, 0], wave[0, 1] = 0, 2 * half - 1
    kind = f'{"ui"[signed]}{1 if bits <= 8 else 2}'
    return (wave.clip(0, 2 * half - 1).round().astype(int) - half * signed).astype(kind)


def transcode(path, syntax):
    "Encode a DICOM file anew with GDCM."
    reader, change, writer = gdcm.ImageReader(), gdcm.ImageChangeTransferSyntax(), gdcm.ImageWriter()
    reader.SetFileName(str(path))
    assert reader.Read()
    change.SetTransferSyntax(gdcm.TransferSyntax(getattr(gdcm.TransferSyntax, GDCM[syntax])))
    if syntax == JPEGLSNearLossless:
        codec = gdcm.JPEGLSCodec()
        codec.SetLossless(False)
        codec.SetLossyError(NEAR)
        change.SetUserCodec(codec)
    change.SetInput(reader.GetImage())
    assert change.Change(), f'GDCM cannot encode {syntax.name}'
    writer.SetFileName(str(path))
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    assert writer.Write()


def dicom(path, pixels, photometric='MONOCHROME2', syntax=ExplicitVRLittleEndian, bits=None, frames=1, stream=None, **tags):
    "A DICOM file of `pixels` (H,W), (H,W,3) or, with frames, (frames,H,W). RLE and JPEG 2000 are encoded by pydicom, baseline JPEG by Pillow, the others by GDCM."
    data = pydicom.Dataset()
    data.file_meta = FileMetaDataset()
    data.SOPClassUID, data.SOPInstanceUID = SecondaryCaptureImageStorage, generate_uid()
    shape = pixels.shape[1:] if frames > 1 else pixels.shape
    data.Rows, data.Columns, data.PhotometricInterpretation, data.SamplesPerPixel = *shape[:2], photometric, 1 if len(shape) == 2 else 3
    if frames > 1: data.NumberOfFrames = frames
    if len(shape) == 3: data.PlanarConfiguration = 0
    data.BitsAllocated, data.BitsStored = 8 * pixels.itemsize, bits or 8 * pixels.itemsize
    data.HighBit, data.PixelRepresentation = data.BitsStored - 1, int(pixels.dtype.kind == 'i')
    raw = pixels.astype(pixels.dtype.newbyteorder('>' if syntax == ExplicitVRBigEndian else '<')).tobytes()
    data.PixelData = raw + b'\0' * (len(raw) % 2)
    data['PixelData'].VR = 'OB' if pixels.itemsize == 1 else 'OW'
    native = syntax in (ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian)
    data.file_meta.TransferSyntaxUID = syntax if native else ExplicitVRLittleEndian
    for name, value in tags.items(): setattr(data, name, value)
    if syntax in (RLELossless, JPEG2000Lossless): data.compress(syntax, encoding_plugin='pydicom' if syntax == RLELossless else 'pylibjpeg', generate_instance_uid=False)
    if syntax == JPEG2000: data.compress(syntax, encoding_plugin='pylibjpeg', j2k_cr=[6], generate_instance_uid=False)
    if syntax == JPEGBaseline8Bit and stream is None:
        Image.fromarray(pixels).save(file := io.BytesIO(), 'JPEG', quality=95)
        stream = file.getvalue()
    if stream is not None: data.PixelData, data.file_meta.TransferSyntaxUID = encapsulate([stream]), syntax
    data.save_as(path, enforce_file_format=True)
    if syntax in GDCM and stream is None: transcode(path, syntax)
    return path


def segment(marker, content): return bytes([0xff, marker]) + (len(content) + 2).to_bytes(2) + content


def packed(code):
    "Strings of bits as the entropy-coded bytes of a JPEG stream."
    code = ''.join(code)
    code += '1' * (-len(code) % 8)
    return int(code, 2).to_bytes(len(code) // 8).replace(b'\xff', b'\xff\0')


def lossless_jpeg(pixels, bits, predictor):
    "A lossless JPEG stream (ITU-T T.81, annex H) with any of the seven predictors."
    x = pixels.astype(int)
    left, above, corner = np.roll(x, 1, 1), np.roll(x, 1, 0), np.roll(np.roll(x, 1, 0), 1, 1)
    guess = [None, left, above, corner, left + above - corner, left + (above - corner >> 1), above + (left - corner >> 1), left + above >> 1][predictor]
    guess = guess.copy()
    guess[0], guess[:, 0] = left[0], above[:, 0]
    guess[0, 0] = 2**(bits - 1)
    code = []
    for d in ((x - guess + 2**15) % 2**16 - 2**15).ravel().tolist():  # differences modulo 2^16; category in five bits, then the difference
        category = abs(d).bit_length()
        code.append(f'{category:05b}' + (f'{d if d > 0 else d + 2**category - 1:0{category}b}' if 0 < category < 16 else ''))
    return (b'\xff\xd8' + segment(0xc3, struct.pack('>BHHB3B', bits, *pixels.shape, 1, 1, 0x11, 0)) + segment(0xc4, bytes([0, 0, 0, 0, 0, 17] + [0] * 11) + bytes(range(17)))
            + segment(0xda, bytes([1, 1, 0, predictor, 0, 0])) + packed(code) + b'\xff\xd9')


ZIGZAG = sorted(range(64), key=lambda i: (s := i // 8 + i % 8, (i // 8 if s % 2 else i % 8)))


def extended_jpeg(pixels, bits=12, step=8):
    "A sequential DCT stream of 12 bits (ITU-T T.81, F.1), all steps of the quantizer equal."
    padded = np.pad(pixels.astype(float) - 2**(bits - 1), [(0, -n % 8) for n in pixels.shape], mode='edge')
    blocks = padded.reshape(padded.shape[0] // 8, 8, -1, 8).swapaxes(1, 2).reshape(-1, 8, 8)
    bit = lambda v: f'{v if v > 0 else v + 2**abs(v).bit_length() - 1:0{abs(v).bit_length()}b}' if v else ''
    code, before, symbols = [], 0, [0, 0xf0, *(16 * run + size for run in range(16) for size in range(1, 15))]
    for block in np.rint(dctn(blocks, axes=(1, 2), norm='ortho') / step).astype(int).reshape(-1, 64)[:, ZIGZAG].tolist():
        code.append(f'{abs(block[0] - before).bit_length():05b}' + bit(block[0] - before))
        before, run = block[0], 0
        last = max((i for i in range(1, 64) if block[i]), default=0)
        for v in block[1:last + 1]:
            if not v: run += 1; continue
            code += [f'{1:08b}'] * (run // 16) + [f'{symbols.index(16 * (run % 16) + abs(v).bit_length()):08b}' + bit(v)]
            run = 0
        if last < 63: code.append(f'{0:08b}')
    table = lambda kind, lengths, values: segment(0xc4, bytes([kind, *lengths, *values]))
    return (b'\xff\xd8' + segment(0xdb, bytes([0] + [step] * 64)) + segment(0xc1, struct.pack('>BHHB3B', bits, *pixels.shape, 1, 1, 0x11, 0))
            + table(0x00, [0, 0, 0, 0, 16] + [0] * 11, range(16)) + table(0x10, [0] * 7 + [len(symbols)] + [0] * 8, symbols) + segment(0xda, bytes([1, 1, 0, 0, 63, 0])) + packed(code) + b'\xff\xd9')


def picture(path, array, mode=None, **options):
    image = Image.fromarray(array)
    (image.convert(mode) if mode else image).save(path, **options)
    return path


def renamed(path, to):
    path.rename(to)
    return to


def content(path, data):
    path.write_bytes(data)
    return path


def changed(path, old, new):
    "The file with one run of bytes, the first of its kind, replaced."
    data = path.read_bytes()
    assert old in data and len(old) == len(new)
    return content(path, data.replace(old, new, 1))


def white_is_zero(path, array):
    "A TIFF whose PhotometricInterpretation says that zero is white, whatever Pillow thinks of it."
    Image.fromarray(array).save(path)
    entry = struct.pack('<HHIHH', 262, 3, 1, 1, 0)
    return changed(path, entry, struct.pack('<HHIHH', 262, 3, 1, 0, 0))


# The same pixels in every container

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
    'png in a folder of other letters': lambda d, p: (d/'Müller ω').mkdir() or picture(d/'Müller ω'/'é.png', p),
    'tiff 8 bit': lambda d, p: picture(d/'a.tif', p),
    'tiff 16 bit': lambda d, p: picture(d/'a.tiff', p.astype(np.uint16) * 100),
    'tiff 32 bit': lambda d, p: picture(d/'a.tiff', p.astype(np.int32) * 70_000),
    'tiff float': lambda d, p: picture(d/'a.tif', p.astype(np.float32) / 255),
    'tiff lzw': lambda d, p: picture(d/'a.tif', p, compression='tiff_lzw'),
    'tiff deflate 16 bit': lambda d, p: picture(d/'a.tif', p.astype(np.uint16) * 3 + 900, compression='tiff_deflate'),
    'tiff white is zero': lambda d, p: white_is_zero(d/'a.tif', 255 - p),
    'tiff white is zero 16 bit': lambda d, p: white_is_zero(d/'a.tif', 50_000 - p.astype(np.uint16) * 100),
    'dicom explicit': lambda d, p: dicom(d/'a.dcm', p),
    'dicom implicit': lambda d, p: dicom(d/'a.dcm', p, syntax=ImplicitVRLittleEndian),
    'dicom big endian': lambda d, p: dicom(d/'a.dcm', p.astype(np.uint16) * 9, syntax=ExplicitVRBigEndian),
    'dicom deflated': lambda d, p: dicom(d/'a.dcm', p, syntax=DeflatedExplicitVRLittleEndian),
    'dicom rle': lambda d, p: dicom(d/'a.dcm', p, syntax=RLELossless),
    'dicom jpeg lossless': lambda d, p: dicom(d/'a.dcm', p, syntax=JPEGLosslessSV1),
    'dicom jpeg-ls': lambda d, p: dicom(d/'a.dcm', p, syntax=JPEGLSLossless),
    'dicom jpeg 2000': lambda d, p: dicom(d/'a.dcm', p, syntax=JPEG2000Lossless),
    'dicom jpeg 2000, signed': lambda d, p: dicom(d/'a.dcm', p.astype(np.int16) * 9 - 1000, syntax=JPEG2000Lossless),
    'dicom 16 bit': lambda d, p: dicom(d/'a.dcm', p.astype(np.uint16) * 13 + 5),
    'dicom 12 of 16 bit': lambda d, p: dicom(d/'a.dcm', p.astype(np.uint16) * 16, bits=12),
    'dicom overlay in the upper bits': lambda d, p: dicom(d/'a.dcm', p.astype(np.uint16) * 16 | (p % 3 == 0).astype(np.uint16) << 12, bits=12),
    'dicom upper bits used': lambda d, p: dicom(d/'a.dcm', p.astype(np.uint16) * 16 << 4, bits=12, HighBit=15),
    'dicom signed': lambda d, p: dicom(d/'a.dcm', p.astype(np.int16) * 9 - 1000),
    'dicom signed 8 bit': lambda d, p: dicom(d/'a.dcm', (p.astype(int) - 128).astype(np.int8)),
    'dicom rescale': lambda d, p: dicom(d/'a.dcm', p.astype(np.uint16), RescaleSlope=4, RescaleIntercept=-1024),
    'dicom negative slope': lambda d, p: dicom(d/'a.dcm', 4000 - p.astype(np.uint16) * 8, RescaleSlope=-1, RescaleIntercept=0),
    'dicom monochrome1': lambda d, p: dicom(d/'a.dcm', 255 - p, 'MONOCHROME1'),
    'dicom monochrome1 16 bit': lambda d, p: dicom(d/'a.dcm', 9999 - p.astype(np.uint16) * 7, 'MONOCHROME1'),
    'dicom presentation inverse': lambda d, p: dicom(d/'a.dcm', 255 - p, PresentationLUTShape='INVERSE'),
    'dicom monochrome1 and inverse': lambda d, p: dicom(d/'a.dcm', 255 - p, 'MONOCHROME1', PresentationLUTShape='INVERSE'),
    'dicom window that changes nothing': lambda d, p: dicom(d/'a.dcm', p, WindowCenter=128, WindowWidth=256),
    'dicom empty window': lambda d, p: dicom(d/'a.dcm', p, WindowCenter=None, WindowWidth=None),
    'dicom rgb': lambda d, p: dicom(d/'a.dcm', np.repeat(p[..., None], 3, 2), 'RGB'),
    'dicom without extension': lambda d, p: dicom(d/'a', p),
    'dicom without preamble': lambda d, p: content(d/'a.dcm', dicom(d/'a.dcm', p, syntax=ImplicitVRLittleEndian).read_bytes()[132:]),
    'dicom dataset alone': lambda d, p: bare(dicom(d/'a.dcm', p, syntax=ImplicitVRLittleEndian)),
    'array 8 bit': lambda d, p: p,
    'array fractions': lambda d, p: p / 255,
    'array float32': lambda d, p: (p / 255).astype(np.float32),
    'array 16 bit': lambda d, p: p.astype(np.int32) * 200 - 7,
    'array colour': lambda d, p: np.repeat(p[..., None], 3, 2),
    'array not contiguous': lambda d, p: np.asfortranarray(p),
}


def bare(path):
    "The dataset alone, as ACR-NEMA and careless exports leave it: no preamble, no file meta."
    meta = pydicom.filereader.read_file_meta_info(path)
    return content(path, path.read_bytes()[144 + meta.FileMetaInformationGroupLength:])


@pytest.mark.parametrize('policy', ['pad', 'crop'])
@pytest.mark.parametrize('name', FORMATS)
def test_same_pixels_same_array(name, policy, tmp_path, gray):
    got = read_radiograph(FORMATS[name](tmp_path, gray), 48, policy)
    np.testing.assert_allclose(got, read_radiograph(gray, 48, policy), atol=3e-7)
    assert got.shape == (48, 48) and got.dtype == np.float32 and 0 <= got.min() and got.max() <= 1


@pytest.mark.parametrize('name', ['png 16 bit', 'tiff 16 bit', 'dicom 16 bit', 'dicom rle', 'dicom jpeg lossless', 'dicom jpeg-ls', 'dicom jpeg 2000', 'dicom deflated',
                                  'dicom monochrome1 16 bit', 'dicom 12 of 16 bit', 'dicom rescale', 'dicom signed'])
def test_equal_to_the_last_bit(name, tmp_path, gray):
    np.testing.assert_array_equal(read_radiograph(FORMATS[name](tmp_path, gray), 48), read_radiograph(gray, 48))


# Encodings, each file encoded here

LOSSLESS = (ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian, RLELossless, JPEGLossless, JPEGLosslessSV1, JPEGLSLossless, JPEG2000Lossless)


@pytest.mark.parametrize('signed', [False, True], ids=['unsigned', 'signed'])
@pytest.mark.parametrize('bits', [8, 10, 12, 14, 15, 16])
@pytest.mark.parametrize('syntax', LOSSLESS, ids=lambda s: s.name)
def test_lossless_encodings_are_exact(syntax, bits, signed, tmp_path):
    pixels = deep(bits, signed)
    path = dicom(tmp_path/'a.dcm', pixels, syntax=syntax, bits=bits)
    assert pydicom.dcmread(path).file_meta.TransferSyntaxUID == syntax
    got, header = read_pixels(path)
    np.testing.assert_array_equal(to_unit(got), to_unit(pixels))
    assert (header.bits, header.height, header.width) == (bits, *pixels.shape)


@pytest.mark.parametrize('bits', [8, 12, 16])
@pytest.mark.parametrize('predictor', range(1, 8))
def test_lossless_jpeg_with_every_predictor(predictor, bits, tmp_path):
    pixels = deep(bits)
    path = dicom(tmp_path/'a.dcm', pixels, syntax=JPEGLossless, bits=bits, stream=lossless_jpeg(pixels, bits, predictor))
    np.testing.assert_array_equal(read_pixels(path)[0], pixels)


@pytest.mark.parametrize('syntax,bits,worst,mean', [  # bounds in parts of the range of the stored bits
    (JPEGBaseline8Bit, 8, .06, .01), (JPEGExtended12Bit, 8, .15, .02), (JPEG2000, 8, .1, .02), (JPEG2000, 12, .1, .02), (JPEG2000, 16, .1, .02),
    (JPEGLSNearLossless, 8, NEAR / 255, .01), (JPEGLSNearLossless, 12, NEAR / 4095, .001), (JPEGLSNearLossless, 16, NEAR / 65535, .0001)], ids=lambda v: getattr(v, 'name', str(v)))
def test_lossy_encodings_stay_within_bounds(syntax, bits, worst, mean, tmp_path):
    pixels = deep(bits)
    got = read_pixels(dicom(tmp_path/'a.dcm', pixels, syntax=syntax, bits=bits))[0].astype(float)
    error = abs(got - pixels) / (2**bits - 1)
    assert 0 < error.max() <= worst + 1e-9 and error.mean() <= mean


@pytest.mark.parametrize('write', [lambda d, p: picture(d/'a.jpg', p, quality=95), lambda d, p: picture(d/'a.jpg', p, 'RGB', quality=95),
                                   lambda d, p: picture(d/'a.jpg', p, quality=95, progressive=True), lambda d, p: picture(d/'a.tif', p, compression='jpeg', quality=95),
                                   lambda d, p: dicom(d/'a.dcm', p, syntax=JPEGBaseline8Bit)], ids=['jpeg', 'jpeg colour', 'jpeg progressive', 'tiff jpeg', 'dicom jpeg'])
def test_lossy_pictures_are_close(write, tmp_path, gray):
    assert abs(read_radiograph(write(tmp_path, gray), 48) - read_radiograph(gray, 48)).mean() < .01


@pytest.mark.parametrize('step', [1, 8, 40])
def test_twelve_bit_jpeg_as_the_standard_has_it(step, tmp_path):
    "The DCT of the stored coefficients is what comes back: an error of at most what the quantizer made of it."
    pixels = deep(12)
    got = read_pixels(dicom(tmp_path/'a.dcm', pixels, syntax=JPEGExtended12Bit, bits=12, stream=extended_jpeg(pixels, step=step)))[0].astype(int)
    assert 0 < abs(got - pixels).max() <= 4 * step and abs(got - pixels).mean() <= step / 3 + .3


def test_a_jpeg_and_the_same_stream_in_dicom_are_equal(tmp_path, gray):
    stream = picture(tmp_path/'a.jpg', gray, quality=80).read_bytes()
    np.testing.assert_array_equal(read_radiograph(dicom(tmp_path/'a.dcm', gray, syntax=JPEGBaseline8Bit, stream=stream), 48), read_radiograph(tmp_path/'a.jpg', 48))


@pytest.mark.parametrize('syntax', [ExplicitVRLittleEndian, RLELossless, JPEGLossless, JPEGLosslessSV1, JPEGLSLossless, JPEG2000Lossless], ids=lambda s: s.name)
def test_frames_by_choice(syntax, tmp_path, gray):
    stack = np.stack([gray, 255 - gray, gray[::-1]])
    path = dicom(tmp_path/'a.dcm', stack, syntax=syntax, frames=3)
    with pytest.raises(UserError, match='3 frames: choose one with frame=0…2'): read_radiograph(path, 48)
    for bad in (3, -1):
        with pytest.raises(UserError, match=f'3 frames, none of them is frame={bad}'): read_radiograph(path, 48, frame=bad)
    for i, frame in enumerate(stack): np.testing.assert_array_equal(read_radiograph(path, 48, frame=i), read_radiograph(frame, 48))
    assert read_header(path).frames == 3


def test_pages_of_a_tiff_by_choice(tmp_path, gray):
    path = frames(tmp_path/'a.tif', gray, 255 - gray[:50])
    with pytest.raises(UserError, match='2 frames'): read_radiograph(path, 48)
    np.testing.assert_array_equal(read_radiograph(path, 48, frame=1), read_radiograph(255 - gray[:50], 48))
    np.testing.assert_array_equal(read_radiograph(picture(tmp_path/'b.tif', gray), 48, frame=0), read_radiograph(gray, 48))


def frames(path, first, *others):
    Image.fromarray(first).save(path, save_all=True, append_images=[Image.fromarray(p) for p in others])
    return path


def test_what_overshoots_is_clipped(tmp_path):
    "A lossy stream of more bits than are stored: a value above white must not come out black."
    pixels = np.full((64, 64), 1023, np.uint16)
    pixels[::2] = 0
    got = read_pixels(dicom(tmp_path/'a.dcm', pixels, syntax=JPEGExtended12Bit, bits=10, stream=extended_jpeg(pixels + 0, step=200)))[0]
    assert got.max() == 1023 and got[1::2].min() > 800 and got[::2].max() < 200


# Colour

@pytest.fixture(scope='session')
def colour(gray): return np.stack([gray, gray[::-1], 255 - gray], -1)


def to_ybr(rgb):
    "YBR_FULL of PS3.3 C.7.6.3.1.2, rounded."
    matrix = np.array([[.299, .587, .114], [-.168736, -.331264, .5], [.5, -.418688, -.081312]])
    return (rgb @ matrix.T + (0, 128, 128)).round().clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize('syntax', [ExplicitVRLittleEndian, RLELossless, JPEG2000Lossless, JPEGLSLossless, JPEGLosslessSV1], ids=lambda s: s.name)
def test_rgb(syntax, tmp_path, colour):
    np.testing.assert_allclose(read_radiograph(dicom(tmp_path/'a.dcm', colour, 'RGB', syntax), 48), read_radiograph(colour, 48), atol=1e-6)


def test_colour_by_plane(tmp_path, colour):
    path = dicom(tmp_path/'a.dcm', colour, 'RGB', PlanarConfiguration=1, PixelData=np.ascontiguousarray(colour.transpose(2, 0, 1)).tobytes())
    np.testing.assert_allclose(read_radiograph(path, 48), read_radiograph(colour, 48), atol=1e-6)


def test_ybr_full(tmp_path, colour):
    np.testing.assert_allclose(read_radiograph(dicom(tmp_path/'a.dcm', to_ybr(colour), 'YBR_FULL'), 48), read_radiograph(colour, 48), atol=.01)


def test_ybr_full_422(tmp_path, colour):
    ybr = to_ybr(colour)
    ybr[:, 1::2, 1:] = ybr[:, ::2, 1:]  # two pixels share their chroma
    halved = np.stack([ybr[:, ::2, 0], ybr[:, 1::2, 0], ybr[:, ::2, 1], ybr[:, ::2, 2]], -1)
    path = dicom(tmp_path/'a.dcm', colour, 'YBR_FULL_422', PixelData=halved.tobytes())
    np.testing.assert_allclose(read_radiograph(path, 48), read_radiograph(dicom(tmp_path/'b.dcm', ybr, 'YBR_FULL'), 48), atol=1e-6)


@pytest.mark.parametrize('photometric,options', [('YBR_FULL_422', {}), ('YBR_FULL', dict(subsampling=0)), ('RGB', dict(keep_rgb=True, subsampling=0))], ids=['422', '444', 'rgb'])
def test_colour_jpeg(photometric, options, tmp_path, colour):
    stream = picture(tmp_path/'a.jpg', colour, quality=98, **options).read_bytes()
    path = dicom(tmp_path/'a.dcm', colour, photometric, JPEGBaseline8Bit, stream=stream)
    np.testing.assert_allclose(read_radiograph(path, 48), read_radiograph(tmp_path/'a.jpg', 48), atol=.01)
    assert abs(read_radiograph(path, 48) - read_radiograph(colour, 48)).mean() < .01


@pytest.mark.parametrize('table', [(np.arange(256) * 257).astype('<u2'), np.arange(256).astype(np.uint8)], ids=['16 bit', '8 bit'])
def test_palette(table, tmp_path, gray):
    tags = {f'{c}PaletteColorLookupTable{k}': v for c in ('Red', 'Green', 'Blue') for k, v in (('Descriptor', [256, 0, 8 * table.itemsize]), ('Data', table.tobytes()))}
    np.testing.assert_allclose(read_radiograph(dicom(tmp_path/'a.dcm', gray, 'PALETTE COLOR', **tags), 48), read_radiograph(gray, 48), atol=1e-5)


# From stored values to gray

def lut(keyword, entries, first, bits, data=None):
    "A ModalityLUTSequence or VOILUTSequence of one item."
    item = pydicom.Dataset()
    item.add_new('LUTDescriptor', 'SS' if first < 0 else 'US', [len(entries), first, bits])
    item.add_new('LUTData', 'OW', data or np.asarray(entries, '<u2').tobytes())
    if keyword == 'ModalityLUTSequence': item.ModalityLUTType = 'OD'
    return {keyword: pydicom.Sequence([item])}


@pytest.mark.parametrize('function', ['LINEAR', 'LINEAR_EXACT', 'SIGMOID', None])
@pytest.mark.parametrize('rescale', [{}, dict(RescaleSlope=2, RescaleIntercept=-100)], ids=['', 'rescaled'])
def test_windows_are_those_of_pydicom(function, rescale, tmp_path):
    path = dicom(tmp_path/'a.dcm', deep(12), bits=12, WindowCenter=1900, WindowWidth=1500, **rescale, **({'VOILUTFunction': function} if function else {}))
    data = pydicom.dcmread(path)
    reference = apply_voi_lut(apply_modality_lut(data.pixel_array, data), data)
    low, high = np.array([0, 4095]) * rescale.get('RescaleSlope', 1) + rescale.get('RescaleIntercept', 0)
    np.testing.assert_allclose(read_pixels(path)[0], (reference - low) / (high - low), atol=1e-6)


def test_a_window_by_hand():
    "PS3.3 C.11.2.1.2.1: center 2048, width 4096 maps 0 to 0 and 4095 to 1; width 1 is a threshold."
    np.testing.assert_allclose(window(np.array([-5, 0, 2047.5, 4095, 5000]), 2048, 4096), [0, 0, .5, 1, 1])
    np.testing.assert_allclose(window(np.array([0, 2048, 4096]), 2048, 4096, 'LINEAR_EXACT'), [0, .5, 1])
    np.testing.assert_allclose(window(np.array([0., 10]), 0, 40, 'SIGMOID'), [.5, 1 / (1 + np.exp(-1))])
    np.testing.assert_array_equal(window(np.array([99, 100, 101]), 100.5, 1), [0, 0, 1])


def test_first_window_is_used(tmp_path, gray):
    windowed = read_radiograph(dicom(tmp_path/'a.dcm', gray, WindowCenter=[100, 200], WindowWidth=[50, 10]), 90)
    first = read_radiograph(dicom(tmp_path/'b.dcm', gray, WindowCenter=100, WindowWidth=50), 90)
    np.testing.assert_array_equal(windowed, first)
    assert (windowed[:, 10:80] == 1).mean() > .2


def test_a_window_keeps_its_own_black_and_white(tmp_path, gray):
    "What does not reach the ends of the window is not stretched to them."
    path = dicom(tmp_path/'a.dcm', gray.astype(np.uint16) // 2 + 1000, WindowCenter=1128, WindowWidth=257, VOILUTFunction='LINEAR_EXACT')
    np.testing.assert_allclose(read_pixels(path)[0], (gray // 2 + .5) / 257, atol=1e-6)


def test_window_after_a_negative_slope(tmp_path, gray):
    "Rescaled values are what a window speaks of; pydicom turns such a picture round."
    path = dicom(tmp_path/'a.dcm', gray, RescaleSlope=-1, RescaleIntercept=255, WindowCenter=128, WindowWidth=256)
    np.testing.assert_allclose(read_pixels(path)[0], (255 - gray) / 255, atol=1e-6)


def test_voi_and_polarity_commute(tmp_path, gray):
    for i, voi in enumerate((dict(WindowCenter=100, WindowWidth=80), lut('VOILUTSequence', np.linspace(0, 1, 256)**2 * 4095, 0, 12))):
        a = read_radiograph(dicom(tmp_path/f'a{i}.dcm', gray, **voi), 64, 'crop')
        b = read_radiograph(dicom(tmp_path/f'b{i}.dcm', gray, 'MONOCHROME1', **voi), 64, 'crop')
        np.testing.assert_allclose(a, 1 - b, atol=1e-6)


@pytest.mark.parametrize('syntax', [ExplicitVRLittleEndian, ImplicitVRLittleEndian, JPEGLosslessSV1], ids=lambda s: s.name)
def test_modality_lut_then_voi_lut(syntax, tmp_path, gray):
    modality, voi = np.arange(256)[::-1] * 10, np.sqrt(np.linspace(0, 1, 2551)) * 1023
    tags = lut('ModalityLUTSequence', modality, 0, 16) | lut('VOILUTSequence', voi, 0, 10)
    got = read_pixels(dicom(tmp_path/'a.dcm', gray, syntax=syntax, **tags))[0]
    np.testing.assert_allclose(got, (voi.astype(int)[modality[gray]] / 1023), atol=1e-6)


def test_modality_lut_alone_sets_the_scale(tmp_path, gray):
    np.testing.assert_allclose(read_pixels(dicom(tmp_path/'a.dcm', gray, **lut('ModalityLUTSequence', 5000 - np.arange(256) * 3, 0, 16)))[0], (255 - gray) / 255, atol=1e-6)


def test_voi_lut_goes_before_the_window(tmp_path, gray):
    tags = lut('VOILUTSequence', np.arange(256)[::-1] * 16, 0, 12) | dict(WindowCenter=3, WindowWidth=5)
    np.testing.assert_allclose(read_pixels(dicom(tmp_path/'a.dcm', gray, **tags))[0], (255 - gray) / 255, atol=1e-6)


def test_lut_that_promises_more_bits_than_it_uses(tmp_path, gray):
    assert read_pixels(dicom(tmp_path/'a.dcm', gray, **lut('VOILUTSequence', np.arange(256) * 16, 0, 16)))[0].max() == 1


def test_lut_of_negative_values_and_of_bytes(tmp_path):
    pixels = (np.arange(-128, 128).reshape(16, 16)).astype(np.int16)
    for i, tags in enumerate((lut('VOILUTSequence', np.arange(256) * 4, -128, 10), lut('VOILUTSequence', range(256), 2**16 - 128, 8), lut('VOILUTSequence', range(256), -128, 8, bytes(range(256))))):
        np.testing.assert_allclose(read_pixels(dicom(tmp_path/f'{i}.dcm', pixels, **tags))[0], (pixels + 128) / 255, atol=1e-6)


def test_lut_clips_outside(tmp_path):
    pixels = np.arange(100, dtype=np.uint8).reshape(10, 10)
    np.testing.assert_allclose(read_pixels(dicom(tmp_path/'a.dcm', pixels, **lut('VOILUTSequence', [7, 8, 9], 50, 8)))[0], (pixels.astype(int).clip(50, 52) - 50) / 2)


@pytest.mark.parametrize('photometric', ['MONOCHROME1', 'MONOCHROME2'])
@pytest.mark.parametrize('value,limit', [(65535, None), (0, None), (60000, 65535), (65535, 60000), (0, 500)])
def test_padding_is_black_and_sets_no_scale(value, limit, photometric, tmp_path, gray):
    pixels = gray.astype(np.uint16) + 1000
    pixels[:, :10] = value
    shown = read_pixels(dicom(tmp_path/'a.dcm', pixels, photometric, PixelPaddingValue=value, **({} if limit is None else {'PixelPaddingRangeLimit': limit})))[0]
    wanted = (gray[:, 10:].astype(float) - gray[:, 10:].min()) / np.ptp(gray[:, 10:])
    assert shown[:, :10].max() == 0
    np.testing.assert_allclose(shown[:, 10:], 1 - wanted if photometric == 'MONOCHROME1' else wanted, atol=1e-6)


def test_padding_with_inverse_presentation_is_black(tmp_path, gray):
    pixels = gray.astype(np.uint16) + 1000
    pixels[:, :10] = 0
    assert read_pixels(dicom(tmp_path/'a.dcm', pixels, PixelPaddingValue=0, PresentationLUTShape='INVERSE'))[0][:, :10].max() == 0


def test_signed_padding_written_without_its_sign(tmp_path, gray):
    pixels = gray.astype(np.int16) - 500
    pixels[:, :10] = -2000
    path = dicom(tmp_path/'a.dcm', pixels)
    data = pydicom.dcmread(path)
    data.add_new('PixelPaddingValue', 'US', 2**16 - 2000)
    data.save_as(path)
    shown = read_pixels(path)[0]
    assert shown[:, :10].max() == 0 and shown[:, 10:].min() == 0 and shown.max() == 1


def test_nothing_but_padding_is_shown_as_it_is(tmp_path):
    assert read_radiograph(dicom(tmp_path/'a.dcm', np.full((9, 9), 4000, np.uint16), PixelPaddingValue=4000), 16).max() == 0


# Official

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


# Geometry

SHAPES = [(300, 200), (200, 300), (64, 64), (31, 777), (1, 5), (3000, 2501), (2499, 3001), (65, 63)]


@pytest.mark.parametrize('policy', POLICIES)
@pytest.mark.parametrize('size', [64, 63, 512])
@pytest.mark.parametrize('shape', SHAPES, ids=str)
def test_geometry_goes_back(shape, size, policy):
    g = geometry(*shape, size, policy)
    for cell in [(0, 0), (3, 3), (1, 2)]:
        top, left, bottom, right = g.cell_box(*cell, 4)
        assert top < bottom and left < right
        assert (top, left) == pytest.approx(g.to_original(*(size / 4 * c for c in cell)))
    for point in [(0, 0), (shape[0] / 3, shape[1]), (7.25, 1.5)]: assert g.to_original(*g.to_square(*point)) == pytest.approx(point)
    assert g.to_square(0, 0) == (g.top, g.left) and g.to_square(*shape) == pytest.approx((g.top + g.rows, g.left + g.cols))
    assert g.to_original(size / 2, size / 2) == pytest.approx((shape[0] / 2, shape[1] / 2), abs=max(shape) / size)
    assert (max if policy == 'pad' else min)(g.rows, g.cols) == size and g.scale == (g.rows / shape[0], g.cols / shape[1])


@pytest.mark.parametrize('policy', POLICIES)
@pytest.mark.parametrize('shape', [(301, 203), (203, 301), (255, 255)], ids=str)
@pytest.mark.parametrize('size', [64, 97])
def test_a_spot_is_found_where_it_was(shape, size, policy):
    image = np.zeros(shape, np.uint8)
    y, x = shape[0] // 2 + 21, shape[1] // 2 - 17
    image[y - 20:y + 21, x - 20:x + 21] = 255  # over a hundredth of the image: `official` clips less
    read = open_radiograph(image, size, policy)
    rows, cols = np.mgrid[:size, :size] + .5
    found = read.geometry.to_original((rows * read.image).sum() / read.image.sum(), (cols * read.image).sum() / read.image.sum())
    assert found == pytest.approx((y + .5, x + .5), abs=.7)


@pytest.mark.parametrize('policy', ['pad', 'crop'])
@pytest.mark.parametrize('shape', [(810, 630), (631, 811), (48, 48), (20, 31), (48, 700), (5, 3)], ids=str)
def test_resizing_is_that_of_pillow(shape, policy):
    image = np.random.default_rng(0).random(shape, np.float32)
    g = geometry(*shape, 48, policy)
    exact = Image.fromarray(image).resize((g.cols, g.rows), Image.Resampling.LANCZOS)
    exact = np.array(exact.crop((-g.left, -g.top, 48 - g.left, 48 - g.top))).clip(0, 1)
    np.testing.assert_allclose(read_radiograph(image, 48, policy), exact, atol=1e-6)


# Header and privacy

def test_header_of_a_dicom_file(tmp_path, gray):
    facts = dict(ViewPosition='ll', ImageLaterality='L', ImagerPixelSpacing=[.15, .14], PatientID=' A-17 ', StudyInstanceUID='1.2.3')
    header = read_header(dicom(tmp_path/'a.dcm', gray.astype(np.uint16), 'MONOCHROME1', bits=12, **facts))
    assert (header.height, header.width, header.bits, header.photometric, header.frames) == (90, 70, 12, 'MONOCHROME1', 1)
    assert (header.view, header.laterality, header.spacing) == ('LATERAL', 'L', (.15, .14))
    assert (header.patient, header.study) == (hashed(b'A-17'), hashed(b'1.2.3')) and len(header.patient) == 16
    assert header == open_radiograph(tmp_path/'a.dcm', 32).header


def test_header_takes_calibrated_spacing_and_known_words(tmp_path, gray):
    header = read_header(dicom(tmp_path/'a.dcm', gray, PixelSpacing=[.2, .2], ImagerPixelSpacing=[.15, .15], ViewPosition='OTHER', ImageLaterality='X', Laterality='R'))
    assert (header.spacing, header.view, header.laterality, header.patient) == ((.2, .2), '', 'R', '')


def test_header_does_not_need_the_pixels(tmp_path, gray):
    path = dicom(tmp_path/'a.dcm', gray)
    content(path, path.read_bytes()[:-5000])
    assert read_header(path).height == 90
    with pytest.raises(UserError): read_radiograph(path, 32)


@pytest.mark.parametrize('write,bits,photometric', [
    (lambda d, p: picture(d/'a.png', p), 8, 'MONOCHROME2'), (lambda d, p: picture(d/'a.png', p.astype(np.uint16)), 16, 'MONOCHROME2'), (lambda d, p: picture(d/'a.png', p, 'RGB'), 8, 'RGB'),
    (lambda d, p: picture(d/'a.png', p, 'P'), 8, 'PALETTE COLOR'), (lambda d, p: white_is_zero(d/'a.tif', p.astype(np.uint16)), 16, 'MONOCHROME1'),
    (lambda d, p: picture(d/'a.jpg', p), 8, 'MONOCHROME2'), (lambda d, p: picture(d/'a.png', p, '1'), 1, 'MONOCHROME2')], ids=['png', 'png 16', 'rgb', 'palette', 'white is zero', 'jpeg', 'one bit'])
def test_header_of_a_picture(write, bits, photometric, tmp_path, gray):
    header = read_header(write(tmp_path, gray))
    assert (header.height, header.width, header.bits, header.photometric, header.patient) == (90, 70, bits, photometric, '')


SECRETS = dict(PatientName='DOE^JANE', PatientID='MRN-0815', PatientBirthDate='19400203', OtherPatientIDs='OTHER-77', PatientAddress='SECRETSTREET 5', PatientComments='SECRETCOMMENT',
               StudyDate='20200131', AcquisitionDateTime='20200131121212', AccessionNumber='ACC-4711', InstitutionName='SECRETHOSPITAL', ReferringPhysicianName='REFERRER^RITA',
               OperatorsName='OPERATOR^OTTO', StudyInstanceUID='1.2.3.987654321', SeriesInstanceUID='1.2.3.987654322', DeviceSerialNumber='SERIAL-99', StudyID='STUDY-31',
               ImageComments='SECRETIMAGE', DerivationDescription='SECRETDERIVED', ProtocolName='SECRETPROTOCOL', StationName='SECRETSTATION', RequestingPhysician='REQUESTER^ROB')
TOLD = ('DOE', 'JANE', 'MRN', '0815', '1940', 'OTHER', 'SECRET', '20200131', '4711', 'REFERRER', 'OPERATOR', '98765432', 'SERIAL', 'STUDY-31', 'REQUESTER')


def everything_told(path, capfd, caplog):
    "What reading a file returns, prints, warns, logs and raises, as one text."
    caplog.set_level(logging.DEBUG)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter('always')
        told = []
        for read in (lambda: open_radiograph(path, 16), lambda: read_header(path), lambda: open_radiograph(path, 16, 'official', frame=1)):
            try: told.append(repr(replace(got, image=None) if isinstance(got := read(), Radiograph) else got))  # digits of pixels are nobody's
            except UserError as e: told += [repr(e), *traceback.format_exception(e)]
    printed = capfd.readouterr()
    return '\n'.join([*told, *(str(w.message) for w in warned), printed.out, printed.err, caplog.text]).replace(str(path), '')


@pytest.mark.parametrize('syntax', [ExplicitVRLittleEndian, ImplicitVRLittleEndian, JPEGLosslessSV1, JPEG2000Lossless], ids=lambda s: s.name)
def test_nothing_of_the_patient_comes_out(syntax, tmp_path, gray, capfd, caplog):
    told = everything_told(dicom(tmp_path/'a.dcm', gray, syntax=syntax, **SECRETS), capfd, caplog)
    assert hashed(b'MRN-0815') in told and not [word for word in TOLD if word in told.replace(hashed(b'MRN-0815'), '').replace(hashed(b'1.2.3.987654321'), '')]


MISPLACED = {  # an element that is read, and an identifier in its place
    'window': ('WindowCenter', 'DOE^JANE'), 'slope': ('RescaleSlope', 'DOE^JANE'), 'spacing': ('PixelSpacing', 'DOE\\JANE'), 'frames': ('NumberOfFrames', 'MRN-0815'),
    'view': ('ViewPosition', 'DOE^JANE'), 'laterality': ('ImageLaterality', 'DOE^JANE'), 'photometric': ('PhotometricInterpretation', 'DOE^JANE'),
    'function': ('VOILUTFunction', 'DOE^JANE'), 'shape': ('PresentationLUTShape', 'DOE^JANE'), 'rows': ('Rows', 'DOE^JANE'), 'bits': ('BitsStored', 'DOE^JANE'),
    'sequence': ('VOILUTSequence', 'DOE^JANE'), 'padding': ('PixelPaddingValue', 'DOE^JANE'), 'study': ('StudyInstanceUID', 'DOE^JANE'), 'samples': ('SamplesPerPixel', 'DOE^JANE'),
}


@pytest.mark.parametrize('name', MISPLACED)
@pytest.mark.parametrize('vr', ['', 'LT', 'UN'], ids=['as it should be typed', 'as text', 'as unknown'])
def test_an_identifier_in_the_wrong_place_is_not_repeated(name, vr, tmp_path, gray, capfd, caplog):
    keyword, value = MISPLACED[name]
    path = dicom(tmp_path/'a.dcm', gray, WindowWidth=100, **SECRETS)
    data, tag, raw = pydicom.dcmread(path), Tag(keyword), value.encode() + b' ' * (len(value) % 2)
    data._dict[tag] = RawDataElement(tag, vr or dictionary_VR(tag)[:2], len(raw), raw, 0, False, True)  # written as it is
    data.save_as(path)
    assert raw in path.read_bytes()
    told = everything_told(path, capfd, caplog)
    assert not [word for word in TOLD if word in told.replace(hashed(b'MRN-0815'), '').replace(hashed(b'1.2.3.987654321'), '')]


def test_nothing_of_a_picture_s_notes_comes_out(tmp_path, gray, capfd, caplog):
    notes = PngImagePlugin.PngInfo()
    for name, value in SECRETS.items(): notes.add_text(name, value)
    exif = Image.Exif()
    exif[0x010e], exif[0x9286] = 'DOE^JANE', 'SECRETCOMMENT'
    for path in (picture(tmp_path/'a.png', gray, pnginfo=notes), picture(tmp_path/'a.jpg', gray, exif=exif), content(tmp_path/'b.png', (tmp_path/'a.png').read_bytes()[:2000])):
        told = everything_told(path, capfd, caplog)
        assert not [word for word in TOLD if word in told]


# Bad input

def chunk(kind, data): return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))


def png(width, height, body=b'\0', extra=b''):
    return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', struct.pack('>IIBBBBB', width, height, 8, 0, 0, 0, 0)) + extra + chunk(b'IDAT', zlib.compress(body)) + chunk(b'IEND', b'')


def cut(path, keep):
    "The first `keep` bytes; of negative `keep` all but the last."
    return content(path, path.read_bytes()[:keep])


def cut_stream(path):
    "A compressed file whose stream ends in the middle, all lengths around it in order."
    data = pydicom.dcmread(path)
    stream = get_frame(data.PixelData, 0, number_of_frames=1)
    data.PixelData = encapsulate([stream[:len(stream) // 2]])
    data.save_as(path)
    return path


def inflated(path, size):
    "A deflated DICOM file of some kilobytes whose dataset is `size` zero bytes."
    meta = pydicom.dcmread(dicom(path, np.zeros((9, 9), np.uint8), syntax=DeflatedExplicitVRLittleEndian)).file_meta
    pydicom.filewriter.write_file_meta_info(file := io.BytesIO(), meta)
    engine = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return content(path, bytes(128) + b'DICM' + file.getvalue() + b''.join(engine.compress(bytes(2**20)) for _ in range(size >> 20)) + engine.flush())


def nested(path, depth):
    "Sequences in sequences, of undefined length, in an element that is read."
    meta = dicom(path, np.zeros((9, 9), np.uint8), syntax=ImplicitVRLittleEndian).read_bytes()
    start = struct.pack('<HHI', 0x0028, 0x3010, 0xffffffff) + struct.pack('<HHI', 0xfffe, 0xe000, 0xffffffff)
    return content(path, meta[:meta.index(struct.pack('<HH', 8, 0x16))] + start * depth)


def claims(path, length):
    "Pixel data that claim to be `length` bytes."
    data = dicom(path, np.zeros((9, 9), np.uint16)).read_bytes()
    at = data.index(struct.pack('<HH', 0x7fe0, 0x10))
    return content(path, data[:at + 8] + struct.pack('<I', length) + data[at + 12:])


def stream_of(other, path, pixels, syntax=JPEGLosslessSV1):
    "A file of `pixels` in which the compressed stream of `other` lies."
    stream = get_frame(pydicom.dcmread(dicom(path, other, syntax=syntax)).PixelData, 0, number_of_frames=1)
    return dicom(path, pixels, syntax=syntax, stream=stream)


def without(path, *keywords):
    data = pydicom.dcmread(path)
    for keyword in keywords: del data[keyword]
    data.save_as(path)
    return path


def edited(path, **tags):
    data = pydicom.dcmread(path)
    for name, value in tags.items(): setattr(data, name, value)
    data.save_as(path)
    return path


def looped(path, gray):
    "A TIFF whose second page is its first."
    data = frames(path, gray, gray).read_bytes()
    first = struct.unpack('<I', data[4:8])[0]
    n = struct.unpack('<H', data[first:first + 2])[0]
    after = first + 2 + 12 * n
    return content(path, data[:after] + struct.pack('<I', first) + data[after + 4:])


BAD_FILES = {
    'missing': (lambda d, p: d/'none.png', 'No such file'),
    'missing folder': (lambda d, p: d/'none'/'a.png', 'No such file'),
    'a file as folder': (lambda d, p: picture(d/'a.png', p)/'b.png', 'Not a directory'),
    'a folder': (lambda d, p: d, 'Is a directory'),
    'a folder named dcm': (lambda d, p: (d/'a.dcm').mkdir() or d/'a.dcm', 'Is a directory'),
    'a pipe': (lambda d, p: os.mkfifo(d/'a.png') or d/'a.png', 'no regular file'),
    'a link to itself': (lambda d, p: (d/'a.png').symlink_to(d/'a.png') or d/'a.png', 'symbolic links'),
    'a name too long': (lambda d, p: d/('a' * 300), 'too long'),
    'zero bytes': (lambda d, p: content(d/'a.png', b''), 'empty'),
    'zero bytes dicom': (lambda d, p: content(d/'a.dcm', b''), 'empty'),
    'one byte': (lambda d, p: content(d/'a.jpg', b'\xff'), 'no PNG, JPEG, TIFF or DICOM'),
    'zeros': (lambda d, p: content(d/'a.dcm', bytes(5000)), ''),
    'truncated png': (lambda d, p: cut(picture(d/'a.png', p), 700), ''),
    'truncated png 16 bit': (lambda d, p: cut(picture(d/'a.png', deep(16)), 900), ''),
    'truncated jpeg': (lambda d, p: cut(picture(d/'a.jpg', p), 800), 'truncated'),
    'truncated tiff': (lambda d, p: cut(picture(d/'a.tif', p), 1000), ''),
    'truncated tiff lzw': (lambda d, p: cut(picture(d/'a.tif', p, compression='tiff_lzw'), 600), ''),
    'truncated dicom': (lambda d, p: cut(dicom(d/'a.dcm', p), 3000), 'its header promises 6,300'),
    'truncated dicom by two bytes': (lambda d, p: cut(dicom(d/'a.dcm', p), -2), 'its header promises 6,300'),
    'truncated dicom header': (lambda d, p: cut(dicom(d/'a.dcm', p), 400), ''),
    'truncated dicom meta': (lambda d, p: cut(dicom(d/'a.dcm', p), 150), ''),
    'truncated dicom deflated': (lambda d, p: cut(dicom(d/'a.dcm', p, syntax=DeflatedExplicitVRLittleEndian), -300), 'damaged'),
    'truncated dicom rle': (lambda d, p: cut(dicom(d/'a.dcm', p, syntax=RLELossless), 900), ''),
    **{f'truncated dicom {s.name}': (lambda d, p, s=s: cut(dicom(d/'a.dcm', p, syntax=s), -900), '') for s in (JPEGLosslessSV1, JPEGLSLossless, JPEG2000Lossless)},
    **{f'half a stream, {s.name}': (lambda d, p, s=s: cut_stream(dicom(d/'a.dcm', p, syntax=s)), 'ends early') for s in (JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLosslessSV1, JPEGLSLossless, JPEG2000Lossless)},
    'half a stream, RLE': (lambda d, p: cut_stream(dicom(d/'a.dcm', p, syntax=RLELossless)), 'damaged'),
    'header alone': (lambda d, p: cut(picture(d/'a.png', p), 20), ''),
    'signature alone': (lambda d, p: content(d/'a.png', b'\x89PNG\r\n\x1a\n'), ''),
    'jpeg marker alone': (lambda d, p: content(d/'a.jpg', b'\xff\xd8\xff\xd9'), ''),
    'text named png': (lambda d, p: content(d/'a.png', b'this is no image'), 'no PNG, JPEG, TIFF or DICOM'),
    'text named dcm': (lambda d, p: content(d/'a.dcm', b'this is no image' * 30), 'no pixel data'),
    'png named dcm': (lambda d, p: renamed(picture(d/'a.png', p), d/'a.dcm'), ''),
    'csv': (lambda d, p: content(d/'a.csv', b'path,text\n'), 'no PNG, JPEG, TIFF or DICOM'),
    'gif': (lambda d, p: picture(d/'a.gif', p), 'no PNG, JPEG, TIFF or DICOM'),
    'postscript': (lambda d, p: content(d/'a.png', b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n'), 'no PNG, JPEG, TIFF or DICOM'),
    'zip': (lambda d, p: content(d/'a.png', b'PK\3\4' + bytes(500)), 'no PNG, JPEG, TIFF or DICOM'),
    'random bytes': (lambda d, p: content(d/'a.jpg', np.random.default_rng(0).bytes(5000)), 'no PNG, JPEG, TIFF or DICOM'),
    'random bytes dicom': (lambda d, p: content(d/'a.dcm', np.random.default_rng(0).bytes(5000)), ''),
    'random bytes after a preamble': (lambda d, p: content(d/'a', bytes(128) + b'DICM' + np.random.default_rng(1).bytes(5000)), ''),
    'bomb png': (lambda d, p: content(d/'a.png', png(60_000, 60_000)), 'more than'),
    'bomb png below the limit of pillow': (lambda d, p: content(d/'a.png', png(10_000, 9_000)), 'more than'),
    'png shorter than it says': (lambda d, p: content(d/'a.png', png(5_000, 5_000)), ''),
    'png of text': (lambda d, p: content(d/'a.png', png(9, 9, bytes(90), chunk(b'zTXt', b'a\0\0' + zlib.compress(bytes(100_000_000))))), ''),
    'png of no width': (lambda d, p: content(d/'a.png', png(0, 9)), ''),
    'png thread': (lambda d, p: picture(d/'a.png', np.zeros((1, 2000), np.uint8)), 'no shape of a radiograph'),
    'bomb dicom': (lambda d, p: dicom(d/'a.dcm', p, Rows=60_000, Columns=60_000), 'more than'),
    'bomb dicom rle': (lambda d, p: edited(dicom(d/'a.dcm', p, syntax=RLELossless), Rows=60_000, Columns=60_000), 'more than'),
    'bomb dicom deflated': (lambda d, p: inflated(d/'a.dcm', 4 * MAX_PIXELS + 2**22), 'when inflated'),
    'bomb dicom of frames': (lambda d, p: dicom(d/'a.dcm', p, NumberOfFrames=2**31 - 1), '2147483647 frames'),
    'bomb in a jpeg stream': (lambda d, p: changed(dicom(d/'a.dcm', p, syntax=JPEGLosslessSV1), struct.pack('>BHH', 8, 90, 70), struct.pack('>BHH', 8, 65_500, 65_500)), '65500×65500'),
    'bomb in a jpeg-ls stream': (lambda d, p: changed(dicom(d/'a.dcm', p, syntax=JPEGLSLossless), struct.pack('>BHH', 8, 90, 70), struct.pack('>BHH', 8, 65_500, 65_500)), '65500×65500'),
    'bomb in a jpeg 2000 stream': (lambda d, p: changed(dicom(d/'a.dcm', p, syntax=JPEG2000Lossless), struct.pack('>IIII', 70, 90, 0, 0), struct.pack('>IIII', 10**6, 10**6, 0, 0)), '1000000×1000000'),
    'another stream': (lambda d, p: stream_of(p[:40], d/'a.dcm', p), 'its header 70×90'),
    'another jpeg 2000 stream': (lambda d, p: stream_of(p[:40], d/'a.dcm', p, JPEG2000Lossless), 'its header 70×90'),
    'stream of too many bits': (lambda d, p: dicom(d/'a.dcm', deep(12), syntax=JPEGExtended12Bit, bits=12), '1 × 16 bits'),
    'stream of text': (lambda d, p: dicom(d/'a.dcm', p, syntax=JPEGLosslessSV1, stream=b'this is no JPEG stream'), '0×0'),
    'stream of nothing': (lambda d, p: dicom(d/'a.dcm', p, syntax=JPEG2000Lossless, stream=b'\0\0'), '0×0'),
    'stream of a marker': (lambda d, p: dicom(d/'a.dcm', p, syntax=JPEGBaseline8Bit, stream=b'\xff\xd8' + b'\xff' * 500), '0×0'),
    'native data called RLE': (lambda d, p: changed(dicom(d/'a.dcm', p), ExplicitVRLittleEndian.encode() + b'\0', RLELossless.encode() + b'\0'), ''),
    'claims of 4 gigabytes': (lambda d, p: cut(claims(d/'a.dcm', 0xfffffff0), -20), 'its header promises 162'),
    'odd length of pixel data': (lambda d, p: claims(d/'a.dcm', 161), ''),
    'too many pixels': (lambda d, p: dicom(d/'a.dcm', p, PixelData=bytes(2 * p.size)), 'its header promises 6,300'),
    'too few pixels': (lambda d, p: dicom(d/'a.dcm', p, PixelData=bytes(p.size // 2)), 'its header promises 6,300'),
    'no pixel data': (lambda d, p: without(dicom(d/'a.dcm', p), 'PixelData'), 'no pixel data'),
    'no rows': (lambda d, p: dicom(d/'a.dcm', p, Rows=0), '0 pixels'),
    'rows missing': (lambda d, p: without(dicom(d/'a.dcm', p), 'Rows'), '0 pixels'),
    'no photometric interpretation': (lambda d, p: without(dicom(d/'a.dcm', p), 'PhotometricInterpretation'), 'PhotometricInterpretation'),
    'unknown photometric interpretation': (lambda d, p: dicom(d/'a.dcm', p, 'HSV'), 'PhotometricInterpretation'),
    'no pixel representation': (lambda d, p: without(dicom(d/'a.dcm', p), 'PixelRepresentation'), ''),
    'frames': (lambda d, p: dicom(d/'a.dcm', np.stack([p, p, p]), frames=3), '3 frames'),
    'more frames than pixels': (lambda d, p: dicom(d/'a.dcm', p, NumberOfFrames=3), '3 frames'),
    'negative frames': (lambda d, p: dicom(d/'a.dcm', p, NumberOfFrames=-3), 'none of them'),
    'bits 13': (lambda d, p: dicom(d/'a.dcm', p, BitsAllocated=13), 'in 13'),
    'bits 32': (lambda d, p: dicom(d/'a.dcm', p.astype(np.uint32)), 'in 32'),
    'more bits stored than allocated': (lambda d, p: dicom(d/'a.dcm', p, bits=12), '12 bits in 8'),
    'zero window': (lambda d, p: dicom(d/'a.dcm', p, WindowCenter=10, WindowWidth=0), 'WindowWidth is 0'),
    'negative window': (lambda d, p: dicom(d/'a.dcm', p, WindowCenter=10, WindowWidth=-5, VOILUTFunction='SIGMOID'), 'WindowWidth is -5'),
    'window of words': (lambda d, p: changed(dicom(d/'a.dcm', p, WindowCenter=123456, WindowWidth=9), b'123456.0', b'middle  '), 'WindowCenter is no number'),
    'window of infinity': (lambda d, p: changed(dicom(d/'a.dcm', p, WindowCenter=123456, WindowWidth=9), b'123456.0', b'1e9999  '), 'WindowCenter is not finite'),
    'slope of zero': (lambda d, p: dicom(d/'a.dcm', p, RescaleSlope=0, RescaleIntercept=5), 'RescaleSlope is 0'),
    'slope of nothing': (lambda d, p: changed(dicom(d/'a.dcm', p, RescaleSlope=123456, RescaleIntercept=5), b'123456.0', b'nan     '), 'RescaleSlope is not finite'),
    'lut too short': (lambda d, p: dicom(d/'a.dcm', p, **lut('VOILUTSequence', range(256), 0, 8, bytes(100))), '100 of 256 entries'),
    'palette without tables': (lambda d, p: dicom(d/'a.dcm', p, 'PALETTE COLOR'), 'damaged'),
    'sequences without end': (lambda d, p: nested(d/'a.dcm', 5000), ''),
    'tiff pages': (lambda d, p: frames(d/'a.tif', p, p), '2 frames'),
    'tiff of colours that Pillow cannot convert': (lambda d, p: picture(d/'a.tif', p, 'LAB'), ''),
    'tiff nan': (lambda d, p: picture(d/'a.tif', np.full((9, 9), np.nan, np.float32)), 'NaN'),
    'tiff infinite': (lambda d, p: picture(d/'a.tif', np.full((9, 9), np.inf, np.float32)), 'NaN'),
    'animated png': (lambda d, p: frames(d/'a.png', p, 255 - p), '2 frames'),
}


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('name', BAD_FILES)
def test_a_bad_file_is_one_line_with_its_path(name, tmp_path, gray):
    make, words = BAD_FILES[name]
    path = make(tmp_path, gray)
    with pytest.raises(UserError) as error: read_radiograph(path, 32)
    line = str(error.value)
    assert str(path) in line and words in line and '\n' not in line and len(line) < len(str(path)) + 250


@pytest.mark.parametrize('make', [lambda d, p: picture(d/'a.png', np.zeros((1, 1), np.uint8)), lambda d, p: picture(d/'a.png', np.full((9, 9), 7, np.uint16)), lambda d, p: picture(d/'a.png', p, '1'),
                                  lambda d, p: picture(d/'a.tif', p, 'CMYK'), lambda d, p: looped(d/'a.tif', p), lambda d, p: claims(d/'a.dcm', 0xfffffff0), lambda d, p: picture(d/'a.jpg', p, 'CMYK'), lambda d, p: picture(d/'a.tif', p, 'PA'),
                                  lambda d, p: dicom(d/'a.dcm', np.full((9, 9), 3000, np.uint16)), lambda d, p: dicom(d/'a.dcm', p, NumberOfFrames=0)],
                         ids=['one pixel', 'one value', 'one bit', 'cmyk', 'tiff that loops', 'claims of 4 gigabytes', 'cmyk jpeg', 'palette and alpha', 'one value dicom', 'zero frames'])
def test_odd_files_that_can_be_read(make, tmp_path, gray):
    try: got = read_radiograph(make(tmp_path, gray), 16)
    except OSError as e: pytest.skip(f'Pillow cannot write this: {e}')
    assert got.shape == (16, 16) and np.isfinite(got).all()


@pytest.mark.parametrize('array', [np.zeros(5), np.zeros((0, 4)), np.zeros((2, 3, 4, 5)), np.zeros((4, 4, 2)), np.full((3, 3), np.inf), np.full((3, 3), np.nan), np.array([['a']]), np.zeros((1, 500)),
                                   np.zeros((3, 3), complex), np.broadcast_to(np.uint8(0), (10_000, 10_000))],
                         ids=['vector', 'empty', 'four axes', 'two channels', 'infinite', 'nan', 'text', 'thread', 'complex', 'too large'])
def test_bad_arrays(array):
    with pytest.raises(UserError): read_radiograph(array, 8)


def test_a_mask_is_black_and_white():
    np.testing.assert_array_equal(read_radiograph(np.eye(8, dtype=bool), 8), np.eye(8, dtype=np.float32))


def test_reading_leaves_an_array_as_it_was():
    for kind in (np.float32, np.float64, np.uint8, np.uint16):
        array = (np.arange(64).reshape(8, 8) / 63 * (1 if kind in (np.float32, np.float64) else 200)).astype(kind)
        before = array.copy()
        read_radiograph(array, 5)
        np.testing.assert_array_equal(array, before)


def test_unknown_policy(gray):
    for call in (lambda: read_radiograph(gray, 8, 'squeeze'), lambda: geometry(5, 5, 5, 'x')):
        with pytest.raises(UserError, match='choose one of'): call()


def test_damaged_streams_do_not_take_the_process_down(tmp_path, gray):
    "300 files with bytes changed at random, read in a process of their own: each an image or one line, and the process lives."
    seeds = [dicom(tmp_path/f'{i}.dcm', gray, syntax=s) for i, s in enumerate((JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLossless, JPEGLSLossless, JPEG2000Lossless, RLELossless))]
    seeds += [picture(tmp_path/'a.png', gray), picture(tmp_path/'a.jpg', gray), picture(tmp_path/'a.tif', gray, compression='tiff_lzw'), picture(tmp_path/'b.tif', gray, compression='tiff_deflate')]
    script = textwrap.dedent('''
        import sys, warnings; from pathlib import Path
        import numpy as np
        from chexmix.core import UserError
        from chexmix.radiograph import read_radiograph
        warnings.simplefilter('ignore')
        g, told = np.random.default_rng(0), []
        for name in sys.argv[1:]:
            path = Path(name); whole = np.frombuffer(path.read_bytes(), np.uint8)
            for i in range(30):
                data = whole.copy(); at = g.integers(0, len(data), g.integers(1, 9)); data[at] = g.integers(0, 256, len(at)); path.write_bytes(data.tobytes())
                try: assert np.isfinite(read_radiograph(path, 16)).all(); told.append('read')
                except UserError as e: assert str(path) in str(e); told.append('refused')
        print(told.count('read'), told.count('refused'))
    ''')
    done = subprocess.run([sys.executable, '-c', script, *map(str, seeds)], capture_output=True, text=True)
    assert done.returncode == 0, f'exit code {done.returncode}: {done.stderr[-2000:]}'
    read, refused = map(int, done.stdout.split())
    assert read + refused == 300 and refused > 30


# Real files

@needs('data/dicom/rsna_pneumonia_1.dcm')
@pytest.mark.parametrize('policy', ['pad', 'crop'])
def test_real_dicom_pair(policy, tmp_path):
    bright, dark = (read_radiograph(SHARED/'data'/'dicom'/name, 128, policy) for name in ('rsna_pneumonia_1.dcm', 'monochrome1_variant.dcm'))
    np.testing.assert_allclose(bright, 1 - dark, atol=1e-5)  # the same stored pixels, declared both ways
    inverse = dicom(tmp_path/'a.dcm', 255 - pydicom.dcmread(SHARED/'data'/'dicom'/'rsna_pneumonia_1.dcm').pixel_array, 'MONOCHROME1')
    np.testing.assert_allclose(read_radiograph(inverse, 128, policy), bright, atol=1e-6)


@needs('data/open_cxr/metadata.csv')
def test_real_pictures_with_their_headers():
    for path in sorted((SHARED/'data'/'open_cxr'/'images').glob('*.jpg'))[::40]:
        read = open_radiograph(path, 64)
        assert min(read.header.height, read.header.width) == 320 and read.header.bits == 8 and .05 < read.image.mean() < .95
