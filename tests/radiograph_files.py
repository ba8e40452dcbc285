"Writers of radiograph files in every format and encoding, for the tests that read them."
import io
import struct
from pathlib import Path

import gdcm
import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian,
    JPEG2000, JPEG2000Lossless, JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLossless, JPEGLosslessSV1,
    JPEGLSLossless, JPEGLSNearLossless, RLELossless, SecondaryCaptureImageStorage, generate_uid)
from scipy.fft import dctn

SHARED = Path(__file__).parents[2]/'shared'
NATIVE = (
    ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian)
GDCM = {
    JPEGExtended12Bit: 'JPEGExtendedProcess2_4', JPEGLossless: 'JPEGLosslessProcess14',
    JPEGLosslessSV1: 'JPEGLosslessProcess14_1', JPEGLSLossless: 'JPEGLSLossless',
    JPEGLSNearLossless: 'JPEGLSNearLossless'}
NEAR = 3  # the largest error of the near-lossless files


def needs(path):
    "Skip a test where real data are absent."
    return pytest.mark.skipif(not (SHARED/path).exists(), reason=f'real data not here: shared/{path}')


# Pixels

def gray_pixels():
    "(90, 70) 8-bit pixels that use the whole range."
    y, x = np.mgrid[0:90, 0:70]
    pixels = (127 + 100 * np.sin(x / 9) * np.cos(y / 7)).astype(np.uint8)
    pixels[0, 0], pixels[0, 1] = 0, 255
    return pixels


def noisy_pixels(bits, signed=False):
    "(61, 48) noisy values that use the whole range of `bits`."
    y, x = np.mgrid[0:61, 0:48]
    half = 2**(bits - 1)
    noise = np.random.default_rng(bits).normal(0, half / 50, y.shape)
    wave = half + .9 * half * np.sin(x / 9) * np.cos(y / 7) + noise
    wave[0, 0], wave[0, 1] = 0, 2 * half - 1
    dtype = f'{"ui"[signed]}{1 if bits <= 8 else 2}'
    return (wave.clip(0, 2 * half - 1).round().astype(int) - half * signed).astype(dtype)


# Files as bytes

def write_bytes(path, data):
    path.write_bytes(data)
    return path


def replace_bytes(path, old, new):
    "The file with one run of bytes, the first of its kind, replaced."
    data = path.read_bytes()
    assert old in data and len(old) == len(new)
    return write_bytes(path, data.replace(old, new, 1))


def truncate(path, keep):
    "The first `keep` bytes; of negative `keep` all but the last."
    return write_bytes(path, path.read_bytes()[:keep])


def rename(path, to):
    path.rename(to)
    return to


# Picture files

def picture(path, array, mode=None, **options):
    "A picture file, in the format of its extension."
    image = Image.fromarray(array)
    if mode: image = image.convert(mode)
    image.save(path, **options)
    return path


def pages(path, first, *others):
    "A picture file of several frames."
    others = [Image.fromarray(pixels) for pixels in others]
    Image.fromarray(first).save(path, save_all=True, append_images=others)
    return path


def white_is_zero(path, array):
    "A TIFF whose PhotometricInterpretation says that zero is white, whatever Pillow makes of it."
    Image.fromarray(array).save(path)
    zero_is_black = struct.pack('<HHIHH', 262, 3, 1, 1, 0)
    zero_is_white = struct.pack('<HHIHH', 262, 3, 1, 0, 0)
    return replace_bytes(path, zero_is_black, zero_is_white)


# DICOM files

def transcode(path, syntax):
    "Encode a DICOM file anew with GDCM."
    reader = gdcm.ImageReader()
    reader.SetFileName(str(path))
    assert reader.Read()
    change = gdcm.ImageChangeTransferSyntax()
    change.SetTransferSyntax(gdcm.TransferSyntax(getattr(gdcm.TransferSyntax, GDCM[syntax])))
    if syntax == JPEGLSNearLossless:
        codec = gdcm.JPEGLSCodec()
        codec.SetLossless(False)
        codec.SetLossyError(NEAR)
        change.SetUserCodec(codec)
    change.SetInput(reader.GetImage())
    assert change.Change(), f'GDCM cannot encode {syntax.name}'
    writer = gdcm.ImageWriter()
    writer.SetFileName(str(path))
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    assert writer.Write()


def dataset(pixels, photometric, bits, frames, byte_order='<'):
    "An uncompressed DICOM dataset of `pixels`."
    data = pydicom.Dataset()
    data.file_meta = FileMetaDataset()
    data.SOPClassUID = SecondaryCaptureImageStorage
    data.SOPInstanceUID = generate_uid()
    shape = pixels.shape[1:] if frames > 1 else pixels.shape
    data.Rows, data.Columns = shape[:2]
    data.PhotometricInterpretation = photometric
    data.SamplesPerPixel = 1 if len(shape) == 2 else 3
    if frames > 1: data.NumberOfFrames = frames
    if len(shape) == 3: data.PlanarConfiguration = 0
    data.BitsAllocated = 8 * pixels.itemsize
    data.BitsStored = bits or 8 * pixels.itemsize
    data.HighBit = data.BitsStored - 1
    data.PixelRepresentation = int(pixels.dtype.kind == 'i')
    raw = pixels.astype(pixels.dtype.newbyteorder(byte_order)).tobytes()
    data.PixelData = raw + b'\0' * (len(raw) % 2)
    data['PixelData'].VR = 'OB' if pixels.itemsize == 1 else 'OW'
    return data


def compress(data, syntax):
    "Compress a dataset with pydicom, where it can encode this transfer syntax."
    if syntax == RLELossless:
        data.compress(syntax, encoding_plugin='pydicom', generate_instance_uid=False)
    if syntax == JPEG2000Lossless:
        data.compress(syntax, encoding_plugin='pylibjpeg', generate_instance_uid=False)
    if syntax == JPEG2000:
        data.compress(syntax, encoding_plugin='pylibjpeg', j2k_cr=[6], generate_instance_uid=False)


def dicom(
    path, pixels, photometric='MONOCHROME2', syntax=ExplicitVRLittleEndian,
    bits=None, frames=1, stream=None, **tags,
):
    """A DICOM file of `pixels` (H, W), (H, W, 3) or, with frames, (frames, H, W).

    RLE and JPEG 2000 are encoded by pydicom, baseline JPEG by Pillow, the others by GDCM.
    """
    data = dataset(pixels, photometric, bits, frames, '>' if syntax == ExplicitVRBigEndian else '<')
    data.file_meta.TransferSyntaxUID = syntax if syntax in NATIVE else ExplicitVRLittleEndian
    for name, value in tags.items(): setattr(data, name, value)
    compress(data, syntax)
    if syntax == JPEGBaseline8Bit and stream is None:
        Image.fromarray(pixels).save(file := io.BytesIO(), 'JPEG', quality=95)
        stream = file.getvalue()
    if stream is not None:
        data.PixelData = encapsulate([stream])
        data.file_meta.TransferSyntaxUID = syntax
    data.save_as(path, enforce_file_format=True)
    if syntax in GDCM and stream is None: transcode(path, syntax)
    return path


def dataset_alone(path):
    "The dataset alone, as ACR-NEMA and careless exports leave it: no preamble, no file meta."
    meta = pydicom.filereader.read_file_meta_info(path)
    return write_bytes(path, path.read_bytes()[144 + meta.FileMetaInformationGroupLength:])


def lut(keyword, entries, first, bits, data=None):
    "A ModalityLUTSequence or VOILUTSequence of one item."
    item = pydicom.Dataset()
    item.add_new('LUTDescriptor', 'SS' if first < 0 else 'US', [len(entries), first, bits])
    item.add_new('LUTData', 'OW', data or np.asarray(entries, '<u2').tobytes())
    if keyword == 'ModalityLUTSequence': item.ModalityLUTType = 'OD'
    return {keyword: pydicom.Sequence([item])}


# JPEG streams that no library at hand can write

def segment(marker, content): return bytes([0xff, marker]) + (len(content) + 2).to_bytes(2) + content


def frame_header(marker, bits, shape):
    "The frame header of one gray component."
    return segment(marker, struct.pack('>BHHB3B', bits, *shape, 1, 1, 0x11, 0))


def huffman_table(kind, lengths, values): return segment(0xc4, bytes([kind, *lengths, *values]))


def pack_bits(codes):
    "Strings of bits as the entropy-coded bytes of a JPEG stream."
    code = ''.join(codes)
    code += '1' * (-len(code) % 8)
    return int(code, 2).to_bytes(len(code) // 8).replace(b'\xff', b'\xff\0')


def magnitude_bits(value):
    "The bits that follow the category of a value (ITU-T T.81, F.1.2.1); none for zero."
    category = abs(value).bit_length()
    if not category: return ''
    return f'{value if value > 0 else value + 2**category - 1:0{category}b}'


def predict(pixels, bits, predictor):
    "What one of the seven predictors of lossless JPEG expects at each pixel (ITU-T T.81, H.1.2.1)."
    left = np.roll(pixels, 1, 1)
    above = np.roll(pixels, 1, 0)
    corner = np.roll(above, 1, 1)
    guesses = {
        1: left, 2: above, 3: corner, 4: left + above - corner, 5: left + (above - corner >> 1),
        6: above + (left - corner >> 1), 7: left + above >> 1}
    guess = guesses[predictor].copy()
    guess[0], guess[:, 0] = left[0], above[:, 0]
    guess[0, 0] = 2**(bits - 1)
    return guess


def lossless_jpeg(pixels, bits, predictor):
    "A lossless JPEG stream (ITU-T T.81, annex H) with any of the seven predictors."
    values = pixels.astype(int)
    differences = (values - predict(values, bits, predictor) + 2**15) % 2**16 - 2**15  # modulo 2^16
    codes = []
    for difference in differences.ravel().tolist():
        category = abs(difference).bit_length()  # in five bits
        codes.append(f'{category:05b}' + (magnitude_bits(difference) if category < 16 else ''))
    table = huffman_table(0, [0, 0, 0, 0, 17] + [0] * 11, range(17))
    scan = segment(0xda, bytes([1, 1, 0, predictor, 0, 0]))
    header = frame_header(0xc3, bits, pixels.shape)
    return b'\xff\xd8' + header + table + scan + pack_bits(codes) + b'\xff\xd9'


def zigzag_key(position):
    "Sorts the 64 coefficients of a block along its diagonals, in alternating direction."
    row, column = divmod(position, 8)
    diagonal = row + column
    return diagonal, row if diagonal % 2 else column


ZIGZAG = sorted(range(64), key=zigzag_key)
AC_SYMBOLS = [0, 0xf0, *(16 * run + size for run in range(16) for size in range(1, 15))]


def block_codes(block, previous_dc):
    "The codes of one block of 64 quantized coefficients in zigzag order."
    difference = block[0] - previous_dc
    codes = [f'{abs(difference).bit_length():05b}' + magnitude_bits(difference)]
    last = max((i for i in range(1, 64) if block[i]), default=0)
    run = 0  # of zeros
    for value in block[1:last + 1]:
        if not value:
            run += 1
            continue
        symbol = AC_SYMBOLS.index(16 * (run % 16) + abs(value).bit_length())
        codes += [f'{1:08b}'] * (run // 16) + [f'{symbol:08b}' + magnitude_bits(value)]
        run = 0
    if last < 63: codes.append(f'{0:08b}')
    return codes


def extended_jpeg(pixels, bits=12, step=8):
    "A sequential DCT stream of 12 bits (ITU-T T.81, F.1), all steps of the quantizer equal."
    padding = [(0, -side % 8) for side in pixels.shape]
    padded = np.pad(pixels.astype(float) - 2**(bits - 1), padding, mode='edge')
    blocks = padded.reshape(padded.shape[0] // 8, 8, -1, 8).swapaxes(1, 2).reshape(-1, 8, 8)
    coefficients = np.rint(dctn(blocks, axes=(1, 2), norm='ortho') / step).astype(int)
    codes, previous_dc = [], 0
    for block in coefficients.reshape(-1, 64)[:, ZIGZAG].tolist():
        codes += block_codes(block, previous_dc)
        previous_dc = block[0]
    quantizer = segment(0xdb, bytes([0] + [step] * 64))
    header = frame_header(0xc1, bits, pixels.shape)
    dc_table = huffman_table(0x00, [0, 0, 0, 0, 16] + [0] * 11, range(16))
    ac_table = huffman_table(0x10, [0] * 7 + [len(AC_SYMBOLS)] + [0] * 8, AC_SYMBOLS)
    scan = segment(0xda, bytes([1, 1, 0, 0, 63, 0]))
    return b'\xff\xd8' + quantizer + header + dc_table + ac_table + scan + pack_bits(codes) + b'\xff\xd9'
