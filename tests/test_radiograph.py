"Radiographs: the same pixels in every container, picture files, arrays, the square and the way back."
import json

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
    POLICIES, geometry, open_radiograph, read_header, read_images, read_radiograph)
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
    'two channels': np.zeros((4, 4, 2)), 'infinite': np.full((3, 3), np.inf), 'nan': np.full((3, 3), np.nan),
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

def test_official_depends_on_the_extension(tmp_path, gray):
    clipped = gray.clip(max=200)
    png = picture(tmp_path/'a.png', clipped)
    jpeg = picture(tmp_path/'a.jpg', clipped, quality=95)
    assert read_radiograph(png, 64, 'official').max() == 1
    assert read_radiograph(jpeg, 64, 'official').max() < .85


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
