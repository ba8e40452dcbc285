"Files that are damaged, hostile or not radiographs: each is refused in one line that names its path."
import os
import struct
import subprocess
import sys
import textwrap
import zlib

import numpy as np
import pydicom
import pytest
from pydicom.encaps import encapsulate, get_frame
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian, JPEG2000Lossless,
    JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLossless, JPEGLosslessSV1, JPEGLSLossless, RLELossless)
from radiograph_files import (
    dicom, lut, noisy_pixels, pages, picture, rename, replace_bytes, truncate, write_bytes)

from chexmix.core import UserError
from chexmix.radiograph import MAX_PIXELS, read_radiograph


# Writers of bad files

def png_chunk(kind, data):
    return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))


def png(path, width, height, body=b'\0', extra=b''):
    "A PNG that claims this size, whatever its body holds."
    header = png_chunk(b'IHDR', struct.pack('>IIBBBBB', width, height, 8, 0, 0, 0, 0))
    data = png_chunk(b'IDAT', zlib.compress(body))
    return write_bytes(path, b'\x89PNG\r\n\x1a\n' + header + extra + data + png_chunk(b'IEND', b''))


def png_of_text(folder, pixels):
    "A PNG with a compressed note of 100 MB."
    note = png_chunk(b'zTXt', b'a\0\0' + zlib.compress(bytes(100_000_000)))
    return png(folder/'a.png', 9, 9, bytes(90), note)


def half_stream(path):
    "A compressed file whose stream ends in the middle, all lengths around it in order."
    data = pydicom.dcmread(path)
    stream = get_frame(data.PixelData, 0, number_of_frames=1)
    data.PixelData = encapsulate([stream[:len(stream) // 2]])
    data.save_as(path)
    return path


def stream_of(other, path, pixels, syntax=JPEGLosslessSV1):
    "A file of `pixels` in which the compressed stream of `other` lies."
    data = pydicom.dcmread(dicom(path, other, syntax=syntax))
    stream = get_frame(data.PixelData, 0, number_of_frames=1)
    return dicom(path, pixels, syntax=syntax, stream=stream)


def huge_jpeg_stream(path, pixels, syntax):
    "A compressed file whose JPEG or JPEG-LS stream claims 65,500×65,500 pixels."
    dicom(path, pixels, syntax=syntax)
    return replace_bytes(path, struct.pack('>BHH', 8, 90, 70), struct.pack('>BHH', 8, 65_500, 65_500))


def huge_jpeg2000_stream(path, pixels):
    "A compressed file whose JPEG 2000 stream claims a million by a million pixels."
    dicom(path, pixels, syntax=JPEG2000Lossless)
    huge = struct.pack('>IIII', 10**6, 10**6, 0, 0)
    return replace_bytes(path, struct.pack('>IIII', 70, 90, 0, 0), huge)


def deflated_zeros(path, size):
    "A deflated DICOM file of some kilobytes whose dataset is `size` zero bytes."
    syntax = DeflatedExplicitVRLittleEndian
    start = dicom(path, np.zeros((9, 9), np.uint8), syntax=syntax).read_bytes()
    meta = pydicom.filereader.read_file_meta_info(path)
    start = start[:144 + meta.FileMetaInformationGroupLength]
    deflater = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    deflated = b''.join(deflater.compress(bytes(2**20)) for _ in range(size >> 20)) + deflater.flush()
    return write_bytes(path, start + deflated)


def nested_sequences(path, depth):
    "Sequences in sequences, of undefined length, in an element that is read."
    data = dicom(path, np.zeros((9, 9), np.uint8), syntax=ImplicitVRLittleEndian).read_bytes()
    before = data[:data.index(struct.pack('<HH', 8, 0x16))]
    sequence = struct.pack('<HHI', 0x0028, 0x3010, 0xffffffff)
    item = struct.pack('<HHI', 0xfffe, 0xe000, 0xffffffff)
    return write_bytes(path, before + (sequence + item) * depth)


def claimed_length(path, length):
    "Pixel data that claim to be `length` bytes."
    data = dicom(path, np.zeros((9, 9), np.uint16)).read_bytes()
    position = data.index(struct.pack('<HH', 0x7fe0, 0x10))
    return write_bytes(path, data[:position + 8] + struct.pack('<I', length) + data[position + 12:])


def called_rle(path):
    "Native pixels under the transfer syntax of RLE."
    return replace_bytes(path, ExplicitVRLittleEndian.encode() + b'\0', RLELossless.encode() + b'\0')


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


def window_center(path, pixels, text):
    "A file whose WindowCenter is a text of eight bytes."
    return replace_bytes(dicom(path, pixels, WindowCenter=123456, WindowWidth=9), b'123456.0', text)


def slope(path, pixels, text):
    "A file whose RescaleSlope is a text of eight bytes."
    return replace_bytes(dicom(path, pixels, RescaleSlope=123456, RescaleIntercept=5), b'123456.0', text)


def looped_tiff(path, pixels):
    "A TIFF whose second page is its first."
    data = pages(path, pixels, pixels).read_bytes()
    first = struct.unpack('<I', data[4:8])[0]
    n_entries = struct.unpack('<H', data[first:first + 2])[0]
    next_page = first + 2 + 12 * n_entries
    return write_bytes(path, data[:next_page] + struct.pack('<I', first) + data[next_page + 4:])


def folder_named(path):
    path.mkdir()
    return path


def pipe(path):
    os.mkfifo(path)
    return path


def link(path, target):
    path.symlink_to(target)
    return path


# Bad files: a function of a folder `d` and of 8-bit pixels `p`, and words of the error

NO_RADIOGRAPH = 'no PNG, JPEG, TIFF or DICOM'
EPS = b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n'
NO_FILES = {
    'missing': (lambda d, p: d/'none.png', 'No such file'),
    'missing folder': (lambda d, p: d/'none'/'a.png', 'No such file'),
    'a file as folder': (lambda d, p: picture(d/'a.png', p)/'b.png', 'Not a directory'),
    'a folder': (lambda d, p: d, 'Is a directory'),
    'a folder named dcm': (lambda d, p: folder_named(d/'a.dcm'), 'Is a directory'),
    'a pipe': (lambda d, p: pipe(d/'a.png'), 'no regular file'),
    'a link to itself': (lambda d, p: link(d/'a.png', d/'a.png'), 'symbolic links'),
    'a name too long': (lambda d, p: d/('a' * 300), 'too long'),
    'zero bytes': (lambda d, p: write_bytes(d/'a.png', b''), 'empty'),
    'zero bytes dicom': (lambda d, p: write_bytes(d/'a.dcm', b''), 'empty'),
}
OTHER_FILES = {
    'one byte': (lambda d, p: write_bytes(d/'a.jpg', b'\xff'), NO_RADIOGRAPH),
    'zeros': (lambda d, p: write_bytes(d/'a.dcm', bytes(5000)), ''),
    'text named png': (lambda d, p: write_bytes(d/'a.png', b'this is no image'), NO_RADIOGRAPH),
    'text named dcm':
        (lambda d, p: write_bytes(d/'a.dcm', b'this is no image' * 30), 'no pixel data'),
    'png named dcm': (lambda d, p: rename(picture(d/'a.png', p), d/'a.dcm'), ''),
    'csv': (lambda d, p: write_bytes(d/'a.csv', b'path,text\n'), NO_RADIOGRAPH),
    'gif': (lambda d, p: picture(d/'a.gif', p), NO_RADIOGRAPH),
    'postscript': (lambda d, p: write_bytes(d/'a.png', EPS), NO_RADIOGRAPH),
    'zip': (lambda d, p: write_bytes(d/'a.png', b'PK\3\4' + bytes(500)), NO_RADIOGRAPH),
    'random bytes': (
        lambda d, p: write_bytes(d/'a.jpg', np.random.default_rng(0).bytes(5000)),
        NO_RADIOGRAPH),
    'random bytes dicom':
        (lambda d, p: write_bytes(d/'a.dcm', np.random.default_rng(0).bytes(5000)), ''),
    'random bytes after a preamble': (
        lambda d, p: write_bytes(d/'a', bytes(128) + b'DICM' + np.random.default_rng(1).bytes(5000)),
        ''),
}
TRUNCATED_FILES = {
    'truncated png': (lambda d, p: truncate(picture(d/'a.png', p), 700), ''),
    'truncated png 16 bit':
        (lambda d, p: truncate(picture(d/'a.png', noisy_pixels(16)), 900), ''),
    'truncated jpeg': (lambda d, p: truncate(picture(d/'a.jpg', p), 800), 'truncated'),
    'truncated tiff': (lambda d, p: truncate(picture(d/'a.tif', p), 1000), ''),
    'truncated tiff lzw':
        (lambda d, p: truncate(picture(d/'a.tif', p, compression='tiff_lzw'), 600), ''),
    'png header alone': (lambda d, p: truncate(picture(d/'a.png', p), 20), ''),
    'png signature alone': (lambda d, p: write_bytes(d/'a.png', b'\x89PNG\r\n\x1a\n'), ''),
    'jpeg markers alone': (lambda d, p: write_bytes(d/'a.jpg', b'\xff\xd8\xff\xd9'), ''),
    'truncated dicom':
        (lambda d, p: truncate(dicom(d/'a.dcm', p), 3000), 'its header promises 6,300'),
    'truncated dicom by two bytes':
        (lambda d, p: truncate(dicom(d/'a.dcm', p), -2), 'its header promises 6,300'),
    'truncated dicom header': (lambda d, p: truncate(dicom(d/'a.dcm', p), 400), ''),
    'truncated dicom meta': (lambda d, p: truncate(dicom(d/'a.dcm', p), 150), ''),
    'truncated dicom deflated': (
        lambda d, p: truncate(dicom(d/'a.dcm', p, syntax=DeflatedExplicitVRLittleEndian), -300),
        'damaged'),
    'truncated dicom rle':
        (lambda d, p: truncate(dicom(d/'a.dcm', p, syntax=RLELossless), 900), ''),
    'truncated dicom jpeg lossless':
        (lambda d, p: truncate(dicom(d/'a.dcm', p, syntax=JPEGLosslessSV1), -900), ''),
    'truncated dicom jpeg-ls':
        (lambda d, p: truncate(dicom(d/'a.dcm', p, syntax=JPEGLSLossless), -900), ''),
    'truncated dicom jpeg 2000':
        (lambda d, p: truncate(dicom(d/'a.dcm', p, syntax=JPEG2000Lossless), -900), ''),
}
HUGE_FILES = {
    'bomb png': (lambda d, p: png(d/'a.png', 60_000, 60_000), 'more than'),
    'bomb png below the limit of pillow':
        (lambda d, p: png(d/'a.png', 10_000, 9_000), 'more than'),
    'png shorter than it claims': (lambda d, p: png(d/'a.png', 5_000, 5_000), ''),
    'png of text': (png_of_text, ''),
    'png of no width': (lambda d, p: png(d/'a.png', 0, 9), ''),
    'png thread': (
        lambda d, p: picture(d/'a.png', np.zeros((1, 2000), np.uint8)),
        'no shape of a radiograph'),
    'bomb dicom': (lambda d, p: dicom(d/'a.dcm', p, Rows=60_000, Columns=60_000), 'more than'),
    'bomb dicom rle': (
        lambda d, p: edited(dicom(d/'a.dcm', p, syntax=RLELossless), Rows=60_000, Columns=60_000),
        'more than'),
    'bomb dicom deflated':
        (lambda d, p: deflated_zeros(d/'a.dcm', 4 * MAX_PIXELS + 2**22), 'when inflated'),
    'bomb dicom of frames':
        (lambda d, p: dicom(d/'a.dcm', p, NumberOfFrames=2**31 - 1), '2147483647 frames'),
    'bomb in a jpeg stream':
        (lambda d, p: huge_jpeg_stream(d/'a.dcm', p, JPEGLosslessSV1), '65500×65500'),
    'bomb in a jpeg-ls stream':
        (lambda d, p: huge_jpeg_stream(d/'a.dcm', p, JPEGLSLossless), '65500×65500'),
    'bomb in a jpeg 2000 stream':
        (lambda d, p: huge_jpeg2000_stream(d/'a.dcm', p), '1000000×1000000'),
    'claims of 4 gigabytes': (
        lambda d, p: truncate(claimed_length(d/'a.dcm', 0xfffffff0), -20),
        'its header promises 162'),
    'sequences without end': (lambda d, p: nested_sequences(d/'a.dcm', 5000), ''),
}
STREAMS = {
    'half a stream, JPEG':
        (lambda d, p: half_stream(dicom(d/'a.dcm', p, syntax=JPEGBaseline8Bit)), 'ends early'),
    'half a stream, extended JPEG':
        (lambda d, p: half_stream(dicom(d/'a.dcm', p, syntax=JPEGExtended12Bit)), 'ends early'),
    'half a stream, lossless JPEG':
        (lambda d, p: half_stream(dicom(d/'a.dcm', p, syntax=JPEGLosslessSV1)), 'ends early'),
    'half a stream, JPEG-LS':
        (lambda d, p: half_stream(dicom(d/'a.dcm', p, syntax=JPEGLSLossless)), 'ends early'),
    'half a stream, JPEG 2000':
        (lambda d, p: half_stream(dicom(d/'a.dcm', p, syntax=JPEG2000Lossless)), 'ends early'),
    'half a stream, RLE':
        (lambda d, p: half_stream(dicom(d/'a.dcm', p, syntax=RLELossless)), 'damaged'),
    'another stream': (lambda d, p: stream_of(p[:40], d/'a.dcm', p), 'its header 70×90'),
    'another jpeg 2000 stream':
        (lambda d, p: stream_of(p[:40], d/'a.dcm', p, JPEG2000Lossless), 'its header 70×90'),
    'stream of too many bits': (
        lambda d, p: dicom(d/'a.dcm', noisy_pixels(12), syntax=JPEGExtended12Bit, bits=12),
        '1 × 16 bits'),
    'stream of text': (
        lambda d, p: dicom(d/'a.dcm', p, syntax=JPEGLosslessSV1, stream=b'this is no JPEG stream'),
        '0×0'),
    'stream of nothing':
        (lambda d, p: dicom(d/'a.dcm', p, syntax=JPEG2000Lossless, stream=b'\0\0'), '0×0'),
    'stream of a marker': (
        lambda d, p: dicom(d/'a.dcm', p, syntax=JPEGBaseline8Bit, stream=b'\xff\xd8' + b'\xff' * 500),
        '0×0'),
    'native data called RLE': (lambda d, p: called_rle(dicom(d/'a.dcm', p)), ''),
}
HEADERS = {
    'odd length of pixel data': (lambda d, p: claimed_length(d/'a.dcm', 161), ''),
    'too many pixels': (
        lambda d, p: dicom(d/'a.dcm', p, PixelData=bytes(2 * p.size)),
        'its header promises 6,300'),
    'too few pixels': (
        lambda d, p: dicom(d/'a.dcm', p, PixelData=bytes(p.size // 2)),
        'its header promises 6,300'),
    'no pixel data': (lambda d, p: without(dicom(d/'a.dcm', p), 'PixelData'), 'no pixel data'),
    'no rows': (lambda d, p: dicom(d/'a.dcm', p, Rows=0), '0 pixels'),
    'rows missing': (lambda d, p: without(dicom(d/'a.dcm', p), 'Rows'), '0 pixels'),
    'no photometric interpretation': (
        lambda d, p: without(dicom(d/'a.dcm', p), 'PhotometricInterpretation'),
        'PhotometricInterpretation'),
    'unknown photometric interpretation':
        (lambda d, p: dicom(d/'a.dcm', p, 'HSV'), 'PhotometricInterpretation'),
    'frames': (lambda d, p: dicom(d/'a.dcm', np.stack([p, p, p]), frames=3), '3 frames'),
    'more frames than pixels': (lambda d, p: dicom(d/'a.dcm', p, NumberOfFrames=3), '3 frames'),
    'negative frames': (lambda d, p: dicom(d/'a.dcm', p, NumberOfFrames=-3), 'none of them'),
    'bits 13': (lambda d, p: dicom(d/'a.dcm', p, BitsAllocated=13), 'in 13'),
    'bits 32': (lambda d, p: dicom(d/'a.dcm', p.astype(np.uint32)), 'in 32'),
    'more bits stored than allocated':
        (lambda d, p: dicom(d/'a.dcm', p, bits=12), '12 bits in 8'),
    'palette without tables': (lambda d, p: dicom(d/'a.dcm', p, 'PALETTE COLOR'), 'damaged'),
}
WINDOWS = {
    'window of words':
        (lambda d, p: window_center(d/'a.dcm', p, b'middle  '), 'WindowCenter is no number'),
    'window of infinity':
        (lambda d, p: window_center(d/'a.dcm', p, b'1e9999  '), 'WindowCenter is not finite'),
    'slope of zero': (
        lambda d, p: dicom(d/'a.dcm', p, RescaleSlope=0, RescaleIntercept=5),
        'RescaleSlope is 0'),
    'slope of nan': (lambda d, p: slope(d/'a.dcm', p, b'nan     '), 'RescaleSlope is not finite'),
    'lut too short': (
        lambda d, p: dicom(d/'a.dcm', p, **lut('VOILUTSequence', range(256), 0, 8, bytes(100))),
        '100 of 256 entries'),
}
PICTURES = {
    'tiff pages': (lambda d, p: pages(d/'a.tif', p, p), '2 frames'),
    'tiff of colours that Pillow cannot convert': (lambda d, p: picture(d/'a.tif', p, 'LAB'), ''),
    'tiff nan': (lambda d, p: picture(d/'a.tif', np.full((9, 9), np.nan, np.float32)), 'NaN'),
    'tiff infinite':
        (lambda d, p: picture(d/'a.tif', np.full((9, 9), np.inf, np.float32)), 'NaN'),
    'animated png': (lambda d, p: pages(d/'a.png', p, 255 - p), '2 frames'),
}
BAD_FILES = (
    NO_FILES | OTHER_FILES | TRUNCATED_FILES | HUGE_FILES | STREAMS | HEADERS | WINDOWS | PICTURES)


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('name', BAD_FILES)
def test_a_bad_file_is_one_line_with_its_path(name, tmp_path, gray):
    write, words = BAD_FILES[name]
    path = write(tmp_path, gray)
    with pytest.raises(UserError) as error: read_radiograph(path, 32)
    message = str(error.value)
    assert str(path) in message and words in message
    assert '\n' not in message and len(message) < len(str(path)) + 250


ODD_FILES = {
    'one pixel': lambda d, p: picture(d/'a.png', np.zeros((1, 1), np.uint8)),
    'one value': lambda d, p: picture(d/'a.png', np.full((9, 9), 7, np.uint16)),
    'one bit': lambda d, p: picture(d/'a.png', p, '1'),
    'cmyk': lambda d, p: picture(d/'a.tif', p, 'CMYK'),
    'cmyk jpeg': lambda d, p: picture(d/'a.jpg', p, 'CMYK'),
    'palette and alpha': lambda d, p: picture(d/'a.tif', p, 'PA'),
    'tiff that loops': lambda d, p: looped_tiff(d/'a.tif', p),
    'claims of 4 gigabytes': lambda d, p: claimed_length(d/'a.dcm', 0xfffffff0),
    'one value dicom': lambda d, p: dicom(d/'a.dcm', np.full((9, 9), 3000, np.uint16)),
    'zero frames': lambda d, p: dicom(d/'a.dcm', p, NumberOfFrames=0),
}


@pytest.mark.parametrize('name', ODD_FILES)
def test_odd_files_that_can_be_read(name, tmp_path, gray):
    try: path = ODD_FILES[name](tmp_path, gray)
    except OSError as error: pytest.skip(f'Pillow cannot write this: {error}')
    square = read_radiograph(path, 16)
    assert square.shape == (16, 16) and np.isfinite(square).all()


READ_MUTATED = textwrap.dedent('''
    import sys
    import warnings
    from pathlib import Path
    import numpy as np
    from chexmix.core import UserError
    from chexmix.radiograph import read_radiograph

    warnings.simplefilter('ignore')
    generator = np.random.default_rng(0)
    n_read = n_refused = 0
    for path in map(Path, sys.argv[1:]):
        original = np.frombuffer(path.read_bytes(), np.uint8)
        for _ in range(30):
            data = original.copy()
            positions = generator.integers(0, len(data), generator.integers(1, 9))
            data[positions] = generator.integers(0, 256, len(positions))
            path.write_bytes(data.tobytes())
            try: square = read_radiograph(path, 16)
            except UserError as error:
                assert str(path) in str(error)
                n_refused += 1
            else:
                assert np.isfinite(square).all()
                n_read += 1
    print(n_read, n_refused)
''')


def test_mutated_files_do_not_take_the_process_down(tmp_path, gray):
    """300 files with bytes changed at random, read in a process of their own.

    Each gives an image or one line, and the process lives.
    """
    syntaxes = (
        JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLossless, JPEGLSLossless, JPEG2000Lossless, RLELossless)
    paths = [dicom(tmp_path/f'{i}.dcm', gray, syntax=syntax) for i, syntax in enumerate(syntaxes)]
    paths += [picture(tmp_path/'a.png', gray), picture(tmp_path/'a.jpg', gray)]
    for name in ('tiff_lzw', 'tiff_deflate'):
        paths.append(picture(tmp_path/f'{name}.tif', gray, compression=name))
    command = [sys.executable, '-c', READ_MUTATED, *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, f'exit code {done.returncode}: {done.stderr[-2000:]}'
    n_read, n_refused = map(int, done.stdout.split())
    assert n_read + n_refused == 300 and n_refused > 30
