"Radiographs: the same pixels in every container, picture files, arrays, the square and the way back."
import io
import json
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, ImplicitVRLittleEndian, JPEG2000Lossless,
    JPEGBaseline8Bit, JPEGLosslessSV1, JPEGLSLossless, RLELossless)
from radiograph_files import (
    SHARED, dataset_alone, dicom, needs, pages, picture, rename, white_is_zero)

from chexmix.core import UserError
from chexmix.radiograph import (
    POLICIES, geometry, open_radiograph, read_header, read_images, read_pixels, read_radiograph, to_unit)
from chexmix.vqgan import VQConfig, VQModel


# The same pixels in every container: functions of a folder `d` and of 8-bit pixels `p`

def u2(pixels): return pixels.astype(np.uint16)


def i2(pixels): return pixels.astype(np.int16)


def in_rgb(pixels): return np.repeat(pixels[..., None], 3, 2)


def in_unicode_folder(folder, pixels):
    folder = folder/'Müller ω'
    folder.mkdir()
    return picture(folder/'é.png', pixels)


def with_overlay(folder, pixels):
    "12 bits of picture, and an overlay of one bit above them."
    overlay = u2(pixels % 3 == 0) << 12
    return dicom(folder/'a.dcm', u2(pixels) * 16 | overlay, bits=12)


def without_preamble(folder, pixels):
    path = dicom(folder/'a.dcm', pixels, syntax=ImplicitVRLittleEndian)
    path.write_bytes(path.read_bytes()[132:])
    return path


PICTURE_FILES = {
    'png 8 bit': lambda d, p: picture(d/'a.png', p),
    'png 16 bit': lambda d, p: picture(d/'a.png', u2(p) * 257),
    'png 16 bit, 12 used': lambda d, p: picture(d/'a.png', u2(p) * 16),
    'png 16 bit, 8 used': lambda d, p: picture(d/'a.png', u2(p)),
    'png colour': lambda d, p: picture(d/'a.png', p, 'RGB'),
    'png transparent': lambda d, p: picture(d/'a.png', p, 'RGBA'),
    'png gray and alpha': lambda d, p: picture(d/'a.png', p, 'LA'),
    'png palette': lambda d, p: picture(d/'a.png', p, 'P'),
    'png named jpg': lambda d, p: rename(picture(d/'a.png', p), d/'a.jpg'),
    'png in a folder of other letters': in_unicode_folder,
    'tiff 8 bit': lambda d, p: picture(d/'a.tif', p),
    'tiff 16 bit': lambda d, p: picture(d/'a.tiff', u2(p) * 100),
    'tiff 32 bit': lambda d, p: picture(d/'a.tiff', p.astype(np.int32) * 70_000),
    'tiff float': lambda d, p: picture(d/'a.tif', p.astype(np.float32) / 255),
    'tiff lzw': lambda d, p: picture(d/'a.tif', p, compression='tiff_lzw'),
    'tiff deflate': lambda d, p: picture(d/'a.tif', u2(p) * 3 + 900, compression='tiff_deflate'),
    'tiff white is zero': lambda d, p: white_is_zero(d/'a.tif', 255 - p),
    'tiff white is zero 16 bit': lambda d, p: white_is_zero(d/'a.tif', 50_000 - u2(p) * 100),
}
DICOM_FILES = {
    'explicit': lambda d, p: dicom(d/'a.dcm', p),
    'implicit': lambda d, p: dicom(d/'a.dcm', p, syntax=ImplicitVRLittleEndian),
    'big endian': lambda d, p: dicom(d/'a.dcm', u2(p) * 9, syntax=ExplicitVRBigEndian),
    'deflated': lambda d, p: dicom(d/'a.dcm', p, syntax=DeflatedExplicitVRLittleEndian),
    'rle': lambda d, p: dicom(d/'a.dcm', p, syntax=RLELossless),
    'jpeg lossless': lambda d, p: dicom(d/'a.dcm', p, syntax=JPEGLosslessSV1),
    'jpeg-ls': lambda d, p: dicom(d/'a.dcm', p, syntax=JPEGLSLossless),
    'jpeg 2000': lambda d, p: dicom(d/'a.dcm', p, syntax=JPEG2000Lossless),
    'jpeg 2000, signed': lambda d, p: dicom(d/'a.dcm', i2(p) * 9 - 1000, syntax=JPEG2000Lossless),
    '16 bit': lambda d, p: dicom(d/'a.dcm', u2(p) * 13 + 5),
    '12 of 16 bit': lambda d, p: dicom(d/'a.dcm', u2(p) * 16, bits=12),
    'overlay in the upper bits': with_overlay,
    'upper bits used': lambda d, p: dicom(d/'a.dcm', u2(p) * 16 << 4, bits=12, HighBit=15),
    'signed': lambda d, p: dicom(d/'a.dcm', i2(p) * 9 - 1000),
    'signed 8 bit': lambda d, p: dicom(d/'a.dcm', (p.astype(int) - 128).astype(np.int8)),
    'rescale': lambda d, p: dicom(d/'a.dcm', u2(p), RescaleSlope=4, RescaleIntercept=-1024),
    'negative slope':
        lambda d, p: dicom(d/'a.dcm', 4000 - u2(p) * 8, RescaleSlope=-1, RescaleIntercept=0),
    'monochrome1': lambda d, p: dicom(d/'a.dcm', 255 - p, 'MONOCHROME1'),
    'monochrome1 16 bit': lambda d, p: dicom(d/'a.dcm', 9999 - u2(p) * 7, 'MONOCHROME1'),
    'presentation inverse': lambda d, p: dicom(d/'a.dcm', 255 - p, PresentationLUTShape='INVERSE'),
    'monochrome1 and inverse':
        lambda d, p: dicom(d/'a.dcm', 255 - p, 'MONOCHROME1', PresentationLUTShape='INVERSE'),
    'window that changes nothing':
        lambda d, p: dicom(d/'a.dcm', p, WindowCenter=128, WindowWidth=256),
    'empty window': lambda d, p: dicom(d/'a.dcm', p, WindowCenter=None, WindowWidth=None),
    'rgb': lambda d, p: dicom(d/'a.dcm', in_rgb(p), 'RGB'),
    'without extension': lambda d, p: dicom(d/'a', p),
    'without preamble': without_preamble,
    'dataset alone': lambda d, p: dataset_alone(dicom(d/'a.dcm', p, syntax=ImplicitVRLittleEndian)),
}
ARRAYS = {
    'array 8 bit': lambda d, p: p,
    'array fractions': lambda d, p: p / 255,
    'array float32': lambda d, p: (p / 255).astype(np.float32),
    'array 16 bit': lambda d, p: p.astype(np.int32) * 200 - 7,
    'array colour': lambda d, p: in_rgb(p),
    'array not contiguous': lambda d, p: np.asfortranarray(p),
}
CONTAINERS = PICTURE_FILES | {f'dicom {name}': write for name, write in DICOM_FILES.items()} | ARRAYS


@pytest.mark.parametrize('policy', ['pad', 'crop'])
@pytest.mark.parametrize('name', CONTAINERS)
def test_same_pixels_same_array(name, policy, tmp_path, gray):
    square = read_radiograph(CONTAINERS[name](tmp_path, gray), 48, policy)
    np.testing.assert_allclose(square, read_radiograph(gray, 48, policy), atol=3e-7)
    assert square.shape == (48, 48) and square.dtype == np.float32
    assert 0 <= square.min() and square.max() <= 1


EXACT_CONTAINERS = [
    'png 16 bit', 'tiff 16 bit', 'dicom 16 bit', 'dicom rle', 'dicom jpeg lossless', 'dicom jpeg-ls',
    'dicom jpeg 2000', 'dicom deflated', 'dicom monochrome1 16 bit', 'dicom 12 of 16 bit',
    'dicom rescale', 'dicom signed']


@pytest.mark.parametrize('name', EXACT_CONTAINERS)
def test_equal_to_the_last_bit(name, tmp_path, gray):
    square = read_radiograph(CONTAINERS[name](tmp_path, gray), 48)
    np.testing.assert_array_equal(square, read_radiograph(gray, 48))


LOSSY_PICTURES = {
    'jpeg': lambda d, p: picture(d/'a.jpg', p, quality=95),
    'jpeg colour': lambda d, p: picture(d/'a.jpg', p, 'RGB', quality=95),
    'jpeg progressive': lambda d, p: picture(d/'a.jpg', p, quality=95, progressive=True),
    'tiff jpeg': lambda d, p: picture(d/'a.tif', p, compression='jpeg', quality=95),
    'dicom jpeg': lambda d, p: dicom(d/'a.dcm', p, syntax=JPEGBaseline8Bit),
}


@pytest.mark.parametrize('name', LOSSY_PICTURES)
def test_lossy_pictures_are_close(name, tmp_path, gray):
    square = read_radiograph(LOSSY_PICTURES[name](tmp_path, gray), 48)
    assert abs(square - read_radiograph(gray, 48)).mean() < .01


def test_one_of_several_tiff_pages_has_to_be_chosen(tmp_path, gray):
    second = 255 - gray[:50]
    path = pages(tmp_path/'a.tif', gray, second)
    with pytest.raises(UserError, match='2 frames'): read_radiograph(path, 48)
    np.testing.assert_array_equal(read_radiograph(path, 48, frame=1), read_radiograph(second, 48))
    single = picture(tmp_path/'b.tif', gray)
    np.testing.assert_array_equal(read_radiograph(single, 48, frame=0), read_radiograph(gray, 48))


def test_images_are_read_in_order(tmp_path, gray):
    paths = [picture(tmp_path/f'{i}.png', np.roll(gray, i, 0)) for i in range(5)]
    images = read_images(paths, 32)
    assert images.shape == (5, 32, 32) and images.dtype == torch.float32
    for path, image in zip(paths, images): np.testing.assert_array_equal(image, read_radiograph(path, 32))


PICTURE_HEADERS = {  # the writer, the bits and the photometric interpretation
    'png': (lambda d, p: picture(d/'a.png', p), 8, 'MONOCHROME2'),
    'png 16 bit': (lambda d, p: picture(d/'a.png', u2(p)), 16, 'MONOCHROME2'),
    'png colour': (lambda d, p: picture(d/'a.png', p, 'RGB'), 8, 'RGB'),
    'png palette': (lambda d, p: picture(d/'a.png', p, 'P'), 8, 'PALETTE COLOR'),
    'png one bit': (lambda d, p: picture(d/'a.png', p, '1'), 1, 'MONOCHROME2'),
    'tiff white is zero': (lambda d, p: white_is_zero(d/'a.tif', u2(p)), 16, 'MONOCHROME1'),
    'jpeg': (lambda d, p: picture(d/'a.jpg', p), 8, 'MONOCHROME2'),
}


@pytest.mark.parametrize('name', PICTURE_HEADERS)
def test_header_of_a_picture(name, tmp_path, gray):
    write, bits, photometric = PICTURE_HEADERS[name]
    header = read_header(write(tmp_path, gray))
    assert (header.height, header.width) == (90, 70)
    assert (header.bits, header.photometric, header.patient) == (bits, photometric, '')


# Arrays

BAD_ARRAYS = {
    'vector': np.zeros(5), 'empty': np.zeros((0, 4)), 'four axes': np.zeros((2, 3, 4, 5)),
    'four channels': np.zeros((4, 4, 4)), 'infinite': np.full((3, 3), np.inf), 'nan': np.full((3, 3), np.nan),
    'text': np.array([['a']]), 'thread': np.zeros((1, 500)), 'complex': np.zeros((3, 3), complex),
    'too large': np.broadcast_to(np.uint8(0), (10_000, 10_000))}


@pytest.mark.parametrize('name', BAD_ARRAYS)
def test_bad_arrays_are_refused(name):
    with pytest.raises(UserError): read_radiograph(BAD_ARRAYS[name], 8)


def test_a_boolean_array_is_black_and_white():
    square = read_radiograph(np.eye(8, dtype=bool), 8)
    np.testing.assert_array_equal(square, np.eye(8, dtype=np.float32))


@pytest.mark.parametrize('dtype,white', [(np.float32, 1), (np.float64, 1), (np.uint8, 200), (np.uint16, 200)])
def test_reading_leaves_an_array_as_it_was(dtype, white):
    array = (np.arange(64).reshape(8, 8) / 63 * white).astype(dtype)
    before = array.copy()
    read_radiograph(array, 5)
    np.testing.assert_array_equal(array, before)


# The square and the way back

SHAPES = [
    (300, 200), (200, 300), (64, 64), (31, 777), (1, 5), (3000, 2501), (2499, 3001), (65, 63)]


def for_geometries(test):
    "Run a test for every shape, size and policy."
    test = pytest.mark.parametrize('policy', POLICIES)(test)
    test = pytest.mark.parametrize('size', [64, 63, 512])(test)
    return pytest.mark.parametrize('shape', SHAPES, ids=str)(test)


@for_geometries
def test_to_original_and_to_square_are_inverse(shape, size, policy):
    g = geometry(*shape, size, policy)
    for point in [(0, 0), (shape[0] / 3, shape[1]), (7.25, 1.5)]:
        assert g.to_original(*g.to_square(*point)) == pytest.approx(point)


@for_geometries
def test_the_image_lies_where_its_geometry_says(shape, size, policy):
    g = geometry(*shape, size, policy)
    fitted_side = max(g.rows, g.cols) if policy == 'pad' else min(g.rows, g.cols)
    assert fitted_side == size
    assert g.scale == (g.rows / shape[0], g.cols / shape[1])
    assert g.to_square(0, 0) == (g.top, g.left)
    assert g.to_square(*shape) == pytest.approx((g.top + g.rows, g.left + g.cols))
    center = shape[0] / 2, shape[1] / 2
    assert g.to_original(size / 2, size / 2) == pytest.approx(center, abs=max(shape) / size)


@for_geometries
def test_cell_boxes_begin_at_their_corner(shape, size, policy):
    g = geometry(*shape, size, policy)
    for row, col in [(0, 0), (3, 3), (1, 2)]:
        top, left, bottom, right = g.cell_box(row, col, 4)
        assert top < bottom and left < right
        assert (top, left) == pytest.approx(g.to_original(size / 4 * row, size / 4 * col))


@pytest.mark.parametrize('policy', POLICIES)
@pytest.mark.parametrize('shape', [(301, 203), (203, 301), (255, 255)], ids=str)
@pytest.mark.parametrize('size', [64, 97])
def test_a_spot_is_found_where_it_was(shape, size, policy):
    image = np.zeros(shape, np.uint8)
    y, x = shape[0] // 2 + 21, shape[1] // 2 - 17
    image[y - 20:y + 21, x - 20:x + 21] = 255  # over a hundredth of the image: `official` clips less
    radiograph = open_radiograph(image, size, policy)
    rows, cols = np.mgrid[:size, :size] + .5
    weights = radiograph.image / radiograph.image.sum()
    found = radiograph.geometry.to_original((rows * weights).sum(), (cols * weights).sum())
    assert found == pytest.approx((y + .5, x + .5), abs=.7)


@pytest.mark.parametrize('policy', ['pad', 'crop'])
@pytest.mark.parametrize(
    'shape', [(810, 630), (631, 811), (48, 48), (20, 31), (48, 700), (5, 3)], ids=str)
def test_resizing_is_that_of_pillow(shape, policy):
    image = np.random.default_rng(0).random(shape, np.float32)
    g = geometry(*shape, 48, policy)
    resized = Image.fromarray(image).resize((g.cols, g.rows), Image.Resampling.LANCZOS)
    square = np.array(resized.crop((-g.left, -g.top, 48 - g.left, 48 - g.top))).clip(0, 1)
    np.testing.assert_allclose(read_radiograph(image, 48, policy), square, atol=1e-6)


def test_unknown_policy(gray):
    with pytest.raises(UserError, match='choose one of'): read_radiograph(gray, 8, 'squeeze')
    with pytest.raises(UserError, match='choose one of'): geometry(5, 5, 5, 'x')


# The official preprocessing

def test_official_depends_on_the_format(tmp_path, gray):
    clipped = gray.clip(max=200)
    png = picture(tmp_path/'a.png', clipped)
    jpeg = picture(tmp_path/'a.jpg', clipped, quality=95)
    assert read_radiograph(png, 64, 'official').max() == 1
    assert read_radiograph(jpeg, 64, 'official').max() < .85
    named_otherwise = [(png, 'b.jpg'), (jpeg, 'b.png'), (png, 'b'), (jpeg, 'b.tif')]
    for source, name in named_otherwise:
        (tmp_path/name).write_bytes(source.read_bytes())
        same = read_radiograph(tmp_path/name, 64, 'official')
        np.testing.assert_array_equal(same, read_radiograph(source, 64, 'official'))


@needs('golden/released_layout/vqgan.ckpt')
def test_official_gives_the_released_tokens():
    folder = SHARED/'golden'/'released_layout'
    config = VQConfig(
        image_size=512, in_channels=3, channels=32, channel_mult=(1, 1, 2, 2, 4), res_blocks=1,
        n_codes=8192, code_dim=32)
    model = VQModel(config).eval()
    checkpoint = torch.load(folder/'vqgan.ckpt', map_location='cpu', weights_only=False)
    model.load_state_dict(checkpoint['state_dict'])
    for image in json.loads((folder/'expected.json').read_text())['images']:
        unit = torch.from_numpy(read_radiograph(folder/image['file'], 512, 'official'))
        pixels = unit.expand(1, 3, -1, -1) * 2 - 1
        with torch.no_grad(): codes = model.encode(pixels).flatten()
        assert (codes != torch.tensor(image['image_token_ids'])).sum() <= 3, image['file']


# Real files

@needs('data/open_cxr/metadata.csv')
def test_real_pictures_with_their_headers():
    for path in sorted((SHARED/'data'/'open_cxr'/'images').glob('*.jpg'))[::40]:
        radiograph = open_radiograph(path, 64)
        assert min(radiograph.header.height, radiograph.header.width) == 320
        assert radiograph.header.bits == 8
        assert .05 < radiograph.image.mean() < .95


# Orientation

def corners():
    "(60, 40) pixels that show which way is up."
    pixels = np.zeros((60, 40), np.uint8)
    pixels[:15] = 250
    pixels[15:, :10] = 120
    return pixels


UPRIGHT = {  # how the stored picture has to be turned, TIFF 6.0 and EXIF 2.32
    1: lambda p: p, 2: np.fliplr, 3: lambda p: p[::-1, ::-1], 4: np.flipud, 5: np.transpose,
    6: lambda p: np.rot90(p, -1), 7: lambda p: np.rot90(p, 2).T, 8: np.rot90}
TURNED = {  # ending, options of Pillow, whether the pixels have 16 bits
    'png': ('png', {}, False), 'png of 16 bits': ('png', {}, True), 'jpeg': ('jpg', {'quality': 95}, False),
    'tiff': ('tif', {}, False), 'tiff of 16 bits': ('tif', {}, True),
    'packed tiff': ('tif', {'compression': 'tiff_lzw'}, False)}


@pytest.mark.parametrize('orientation', UPRIGHT)
@pytest.mark.parametrize('name', TURNED)
def test_a_turned_picture_is_read_upright(name, orientation, tmp_path):
    ending, options, is_deep = TURNED[name]
    pixels = corners() * np.uint16(257) if is_deep else corners()
    exif = Image.Exif()
    exif[0x112] = orientation
    path = tmp_path/f'a.{ending}'
    Image.fromarray(pixels).save(path, exif=exif, **options)
    expected = UPRIGHT[orientation](corners()) / 255
    read = to_unit(read_pixels(path)[0])
    assert read.shape == expected.shape and np.abs(read - expected).max() < .05
    radiograph = open_radiograph(path, 32)
    for header in (radiograph.header, read_header(path)):
        assert (header.height, header.width) == expected.shape
    assert (radiograph.geometry.height, radiograph.geometry.width) == expected.shape
    if ending != 'tif':  # Pillow maps a TIFF that it opened by name
        np.testing.assert_array_equal(read_radiograph(Image.open(path), 32), radiograph.image)


@pytest.mark.parametrize('value', [0, 9, 65535])
def test_an_orientation_that_does_not_exist_is_ignored(value, tmp_path):
    exif = Image.Exif()
    exif[0x112] = value
    Image.fromarray(corners()).save(tmp_path/'a.png', exif=exif)
    np.testing.assert_array_equal(read_pixels(tmp_path/'a.png')[0], corners())


def test_damaged_exif_does_not_hide_the_picture(tmp_path):
    Image.fromarray(corners()).save(tmp_path/'a.png', exif=b'Exif\0\0II*\0\xff\xff\xff\xff')
    np.testing.assert_array_equal(read_pixels(tmp_path/'a.png')[0], corners())


def test_the_first_picture_of_a_phone_is_the_picture(tmp_path, gray):
    others = [Image.fromarray(gray[::2, ::2].copy())]
    Image.fromarray(gray).save(tmp_path/'a.jpg', 'MPO', save_all=True, append_images=others)
    image = open_radiograph(tmp_path/'a.jpg', 32)
    assert image.header.frames == 1 and (image.header.height, image.header.width) == gray.shape


# Pixels that are not square

RESOLUTIONS = {  # ending, options of Pillow, height by width of a pixel
    'png': ('png', {'dpi': (200, 100)}, 2), 'png, other way': ('png', {'dpi': (100, 200)}, .5),
    'jpeg': ('jpg', {'dpi': (200, 100)}, 2), 'tiff': ('tif', {'dpi': (204, 102)}, 2),
    'packed tiff': ('tif', {'dpi': (100, 200), 'compression': 'tiff_lzw'}, .5),
    'square': ('png', {'dpi': (300, 300)}, 1), 'nearly square': ('png', {'dpi': (300, 301)}, 1),
    'nothing said': ('tif', {}, 1), 'nonsense': ('tif', {'dpi': (1, 4000)}, 1),
    'square jpeg': ('jpg', {'dpi': (72, 72)}, 1)}


@pytest.mark.parametrize('name', RESOLUTIONS)
def test_resolution_makes_pixels_square(name, tmp_path):
    ending, options, aspect = RESOLUTIONS[name]
    height, width = (32, 64) if aspect == 2 else (64, 32) if aspect == .5 else (64, 64)
    pixels = np.zeros((height, width), np.uint8)
    pixels[height // 4:-height // 4, width // 4:-width // 4] = 255
    image = open_radiograph(picture(tmp_path/f'a.{ending}', pixels, **options), 64)
    bright = image.image > .5
    assert image.header.aspect == pytest.approx(aspect)
    assert bright.any(1).sum() == bright.any(0).sum() == 32


# The same pixels in memory, by their path, as an array, whatever the ending says

def png16(pixels, kind):
    "A PNG with 16 bits a channel; kind 0 gray, 2 RGB, 4 gray and alpha, 6 RGB and alpha."
    def chunk(name, body):
        return struct.pack('>I', len(body)) + name + body + struct.pack('>I', zlib.crc32(name + body))
    header = struct.pack('>IIBBBBB', pixels.shape[1], pixels.shape[0], 16, kind, 0, 0, 0)
    rows = b''.join(b'\0' + row.astype('>u2').tobytes() for row in pixels)
    body = chunk(b'IHDR', header) + chunk(b'IDAT', zlib.compress(rows)) + chunk(b'IEND', b'')
    return b'\x89PNG\r\n\x1a\n' + body


LOW = np.linspace(0, 4095, 64 * 48).reshape(64, 48).astype(np.uint16)
ALPHA = np.full_like(LOW, 65535)
DEEP = {
    'gray': (LOW, 0), 'gray and alpha': (np.dstack([LOW, ALPHA]), 4), 'RGB': (np.dstack([LOW] * 3), 2),
    'RGB and alpha': (np.dstack([LOW, LOW, LOW, ALPHA]), 6),
    'gray and little alpha': (np.dstack([LOW, LOW]), 4)}


@pytest.mark.parametrize('ending', ['png', 'jpg', 'tif', 'dat'])
@pytest.mark.parametrize('name', DEEP)
def test_all_16_bits_of_a_png_count(name, ending, tmp_path):
    pixels, kind = DEEP[name]
    path = tmp_path/f'a.{ending}'
    path.write_bytes(png16(pixels, kind))
    assert len(np.unique(read_pixels(path)[0])) == LOW.size
    expected = read_radiograph(LOW, 32)
    for source in (path, Image.open(path), Image.open(io.BytesIO(path.read_bytes()))):
        np.testing.assert_array_equal(read_radiograph(source, 32), expected)
    official = read_radiograph(path, 32, 'official')
    np.testing.assert_allclose(official, read_radiograph(LOW, 32, 'official'), atol=1.1 / 255)
    assert read_header(path).bits == 16


def test_16_bit_colour_of_a_tiff_is_refused(tmp_path):
    "Pillow would keep the high byte of each colour without a word."
    image = Image.fromarray(in_rgb(np.zeros((8, 8), np.uint8)))
    image.save(tmp_path/'a.tif')
    body = bytearray((tmp_path/'a.tif').read_bytes())
    with Image.open(tmp_path/'a.tif') as opened: place = opened.tag_v2._tagdata[258]
    at = body.find(place)
    body[at:at + 6] = struct.pack('<HHH', 16, 16, 16)
    (tmp_path/'a.tif').write_bytes(body)
    with pytest.raises(UserError, match='16 bits a colour'): read_radiograph(tmp_path/'a.tif', 8)


MODES = ['1', 'L', 'LA', 'P', 'PA', 'RGB', 'RGBA', 'RGBX', 'CMYK', 'YCbCr', 'I', 'F', 'I;16']


@pytest.mark.parametrize('mode', MODES)
def test_a_picture_in_memory_is_the_picture_in_its_file(mode, tmp_path, gray):
    image = Image.fromarray(gray.astype(np.uint16)) if mode == 'I;16' else Image.fromarray(gray).convert(mode)
    path = tmp_path/'a.tif' if mode in ('RGBX', 'CMYK', 'YCbCr', 'F', 'I') else tmp_path/'a.png'
    if mode == 'PA': path, image = tmp_path/'a.png', image.convert('P')
    image.save(path)
    expected = read_radiograph(path, 64)
    np.testing.assert_array_equal(read_radiograph(image, 64), expected)
    if mode in ('1', 'L', 'LA', 'RGB', 'I', 'F', 'I;16'):
        np.testing.assert_array_equal(read_radiograph(np.asarray(image), 64), expected)
    if mode not in ('1', 'F'):
        np.testing.assert_allclose(expected, read_radiograph(gray, 64), atol=.02)


TENSORS = {
    'gray': lambda p: torch.tensor(p), 'one channel': lambda p: torch.tensor(p)[None],
    'three channels': lambda p: torch.tensor(p).expand(3, -1, -1),
    'channels last': lambda p: torch.tensor(in_rgb(p)),
    'float': lambda p: torch.tensor(p / 255).float(), 'double': lambda p: torch.tensor(p / 255),
    'wants gradients': lambda p: torch.tensor(p / 255).float().requires_grad_(),
    '16 bits': lambda p: torch.tensor(p.astype(np.int16)), 'view': lambda p: torch.tensor(p.T.copy()).T,
    'one channel last': lambda p: torch.tensor(p)[..., None]}


@pytest.mark.parametrize('name', TENSORS)
def test_a_tensor_is_read_as_its_pixels(name, gray):
    np.testing.assert_allclose(read_radiograph(TENSORS[name](gray), 64), read_radiograph(gray, 64), atol=1e-6)


NO_IMAGES = [None, 7, 0, 1.5, b'a.png', {'path': 'a.png'}, object(), ('a.png',), np.int64(0), True]


@pytest.mark.parametrize('value', NO_IMAGES, ids=lambda x: type(x).__name__)
def test_what_is_no_radiograph_is_named_by_its_type(value):
    with pytest.raises(UserError, match='is no radiograph: give a path'): read_radiograph(value, 8)
