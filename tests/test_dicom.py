"DICOM: every transfer syntax, colour, the way from stored values to gray, and headers."
import numpy as np
import pydicom
import pytest
from pydicom.pixels import apply_modality_lut, apply_voi_lut
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian,
    JPEG2000, JPEG2000Lossless, JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLossless, JPEGLosslessSV1,
    JPEGLSLossless, JPEGLSNearLossless, RLELossless)
from radiograph_files import (
    NEAR, SHARED, dicom, extended_jpeg, lossless_jpeg, lut, needs, noisy_pixels, picture, truncate)

from chexmix.core import UserError
from chexmix.radiograph import (
    hashed, open_radiograph, read_header, read_pixels, read_radiograph, to_unit, window)


def pixels_of(path): return read_pixels(path)[0]


# Transfer syntaxes, each file encoded here

LOSSLESS = (
    ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian,
    RLELossless, JPEGLossless, JPEGLosslessSV1, JPEGLSLossless, JPEG2000Lossless)


@pytest.mark.parametrize('signed', [False, True], ids=['unsigned', 'signed'])
@pytest.mark.parametrize('bits', [8, 10, 12, 14, 15, 16])
@pytest.mark.parametrize('syntax', LOSSLESS, ids=lambda syntax: syntax.name)
def test_lossless_encodings_are_exact(syntax, bits, signed, tmp_path):
    pixels = noisy_pixels(bits, signed)
    path = dicom(tmp_path/'a.dcm', pixels, syntax=syntax, bits=bits)
    assert pydicom.dcmread(path).file_meta.TransferSyntaxUID == syntax
    read, header = read_pixels(path)
    np.testing.assert_array_equal(to_unit(read), to_unit(pixels))
    assert (header.bits, header.height, header.width) == (bits, *pixels.shape)


@pytest.mark.parametrize('bits', [8, 12, 16])
@pytest.mark.parametrize('predictor', range(1, 8))
def test_lossless_jpeg_with_every_predictor(predictor, bits, tmp_path):
    pixels = noisy_pixels(bits)
    stream = lossless_jpeg(pixels, bits, predictor)
    path = dicom(tmp_path/'a.dcm', pixels, syntax=JPEGLossless, bits=bits, stream=stream)
    np.testing.assert_array_equal(pixels_of(path), pixels)


LOSSY = [  # syntax, bits, largest error and mean error in parts of the range of the stored bits
    (JPEGBaseline8Bit, 8, .06, .01), (JPEGExtended12Bit, 8, .15, .02),
    (JPEG2000, 8, .1, .02), (JPEG2000, 12, .1, .02), (JPEG2000, 16, .1, .02),
    (JPEGLSNearLossless, 8, NEAR / 255, .01), (JPEGLSNearLossless, 12, NEAR / 4095, .001),
    (JPEGLSNearLossless, 16, NEAR / 65535, .0001)]


def name_of(value): return getattr(value, 'name', str(value))


@pytest.mark.parametrize('syntax,bits,largest,mean', LOSSY, ids=name_of)
def test_lossy_encodings_stay_within_bounds(syntax, bits, largest, mean, tmp_path):
    pixels = noisy_pixels(bits)
    read = pixels_of(dicom(tmp_path/'a.dcm', pixels, syntax=syntax, bits=bits)).astype(float)
    error = abs(read - pixels) / (2**bits - 1)
    assert 0 < error.max() <= largest + 1e-9
    assert error.mean() <= mean


@pytest.mark.parametrize('step', [1, 8, 40])
def test_twelve_bit_jpeg_is_off_by_no_more_than_its_quantizer(step, tmp_path):
    "The DCT of the stored coefficients comes back, with the error that the quantizer made of it."
    pixels = noisy_pixels(12)
    stream = extended_jpeg(pixels, step=step)
    path = dicom(tmp_path/'a.dcm', pixels, syntax=JPEGExtended12Bit, bits=12, stream=stream)
    error = abs(pixels_of(path).astype(int) - pixels)
    assert 0 < error.max() <= 4 * step
    assert error.mean() <= step / 3 + .3


def test_a_jpeg_and_the_same_stream_in_dicom_are_equal(tmp_path, gray):
    jpeg = picture(tmp_path/'a.jpg', gray, quality=80)
    path = dicom(tmp_path/'a.dcm', gray, syntax=JPEGBaseline8Bit, stream=jpeg.read_bytes())
    np.testing.assert_array_equal(read_radiograph(path, 48), read_radiograph(jpeg, 48))


def test_values_above_white_are_clipped(tmp_path):
    "A lossy stream of more bits than are stored: a value above white must not come out black."
    pixels = np.full((64, 64), 1023, np.uint16)
    pixels[::2] = 0
    stream = extended_jpeg(pixels, step=200)
    path = dicom(tmp_path/'a.dcm', pixels, syntax=JPEGExtended12Bit, bits=10, stream=stream)
    read = pixels_of(path)
    assert read.max() == 1023
    assert read[1::2].min() > 800 and read[::2].max() < 200


WITH_FRAMES = (
    ExplicitVRLittleEndian, RLELossless, JPEGLossless, JPEGLosslessSV1, JPEGLSLossless, JPEG2000Lossless)


@pytest.mark.parametrize('syntax', WITH_FRAMES, ids=lambda syntax: syntax.name)
def test_one_of_several_frames_has_to_be_chosen(syntax, tmp_path, gray):
    frames = np.stack([gray, 255 - gray, gray[::-1]])
    path = dicom(tmp_path/'a.dcm', frames, syntax=syntax, frames=3)
    assert read_header(path).frames == 3
    with pytest.raises(UserError, match='3 frames: choose one with frame=0…2'):
        read_radiograph(path, 48)
    for absent in (3, -1):
        with pytest.raises(UserError, match=f'3 frames, none of them is frame={absent}'):
            read_radiograph(path, 48, frame=absent)
    for i, frame in enumerate(frames):
        np.testing.assert_array_equal(read_radiograph(path, 48, frame=i), read_radiograph(frame, 48))


# Colour

@pytest.fixture(scope='session')
def colour(gray): return np.stack([gray, gray[::-1], 255 - gray], -1)


def to_ybr(rgb):
    "YBR_FULL of PS3.3 C.7.6.3.1.2, rounded."
    matrix = np.array([[.299, .587, .114], [-.168736, -.331264, .5], [.5, -.418688, -.081312]])
    return (rgb @ matrix.T + (0, 128, 128)).round().clip(0, 255).astype(np.uint8)


def assert_reads_as(path, expected, atol):
    "Both give the same square: a file, and another file or pixels."
    np.testing.assert_allclose(read_radiograph(path, 48), read_radiograph(expected, 48), atol=atol)


WITH_COLOUR = (
    ExplicitVRLittleEndian, RLELossless, JPEG2000Lossless, JPEGLSLossless, JPEGLosslessSV1)


@pytest.mark.parametrize('syntax', WITH_COLOUR, ids=lambda syntax: syntax.name)
def test_rgb(syntax, tmp_path, colour):
    assert_reads_as(dicom(tmp_path/'a.dcm', colour, 'RGB', syntax), colour, atol=1e-6)


def test_colour_by_plane(tmp_path, colour):
    planes = np.ascontiguousarray(colour.transpose(2, 0, 1)).tobytes()
    path = dicom(tmp_path/'a.dcm', colour, 'RGB', PlanarConfiguration=1, PixelData=planes)
    assert_reads_as(path, colour, atol=1e-6)


def test_ybr_full(tmp_path, colour):
    assert_reads_as(dicom(tmp_path/'a.dcm', to_ybr(colour), 'YBR_FULL'), colour, atol=.01)


def test_ybr_full_422(tmp_path, colour):
    ybr = to_ybr(colour)
    ybr[:, 1::2, 1:] = ybr[:, ::2, 1:]  # two pixels share their chroma
    halved = np.stack([ybr[:, ::2, 0], ybr[:, 1::2, 0], ybr[:, ::2, 1], ybr[:, ::2, 2]], -1)
    path = dicom(tmp_path/'a.dcm', colour, 'YBR_FULL_422', PixelData=halved.tobytes())
    assert_reads_as(path, dicom(tmp_path/'b.dcm', ybr, 'YBR_FULL'), atol=1e-6)


COLOUR_JPEGS = {
    '422': ('YBR_FULL_422', {}), '444': ('YBR_FULL', dict(subsampling=0)),
    'rgb': ('RGB', dict(keep_rgb=True, subsampling=0))}


@pytest.mark.parametrize('name', COLOUR_JPEGS)
def test_colour_jpeg(name, tmp_path, colour):
    photometric, options = COLOUR_JPEGS[name]
    jpeg = picture(tmp_path/'a.jpg', colour, quality=98, **options)
    path = dicom(tmp_path/'a.dcm', colour, photometric, JPEGBaseline8Bit, stream=jpeg.read_bytes())
    assert_reads_as(path, jpeg, atol=.01)
    assert abs(read_radiograph(path, 48) - read_radiograph(colour, 48)).mean() < .01


PALETTES = {
    '16 bit': (np.arange(256) * 257).astype('<u2'), '8 bit': np.arange(256).astype(np.uint8)}


@pytest.mark.parametrize('name', PALETTES)
def test_palette(name, tmp_path, gray):
    table = PALETTES[name]
    tags = {}
    for channel in ('Red', 'Green', 'Blue'):
        tags[f'{channel}PaletteColorLookupTableDescriptor'] = [256, 0, 8 * table.itemsize]
        tags[f'{channel}PaletteColorLookupTableData'] = table.tobytes()
    assert_reads_as(dicom(tmp_path/'a.dcm', gray, 'PALETTE COLOR', **tags), gray, atol=1e-5)


# Windows

@pytest.mark.parametrize('function', ['LINEAR', 'LINEAR_EXACT', 'SIGMOID', None])
@pytest.mark.parametrize('slope,intercept', [(1, 0), (2, -100)])
def test_windows_are_those_of_pydicom(function, slope, intercept, tmp_path):
    tags = dict(WindowCenter=1900, WindowWidth=1500)
    if slope != 1: tags |= dict(RescaleSlope=slope, RescaleIntercept=intercept)
    if function: tags['VOILUTFunction'] = function
    path = dicom(tmp_path/'a.dcm', noisy_pixels(12), bits=12, **tags)
    data = pydicom.dcmread(path)
    reference = apply_voi_lut(apply_modality_lut(data.pixel_array, data), data)
    low, high = np.array([0, 4095]) * slope + intercept
    np.testing.assert_allclose(pixels_of(path), (reference - low) / (high - low), atol=1e-6)


def test_linear_window_by_hand():
    "PS3.3 C.11.2.1.2.1: center 2048 and width 4096 map 0 to 0 and 4095 to 1; width 1 is a threshold."
    grays = window(np.array([-5, 0, 2047.5, 4095, 5000]), 2048, 4096)
    np.testing.assert_allclose(grays, [0, 0, .5, 1, 1])
    np.testing.assert_array_equal(window(np.array([99, 100, 101]), 100.5, 1), [0, 0, 1])


def test_other_windows_by_hand():
    exact = window(np.array([0, 2048, 4096]), 2048, 4096, 'LINEAR_EXACT')
    np.testing.assert_allclose(exact, [0, .5, 1])
    sigmoid = window(np.array([0., 10]), 0, 40, 'SIGMOID')
    np.testing.assert_allclose(sigmoid, [.5, 1 / (1 + np.exp(-1))])


def test_the_first_of_several_windows_is_used(tmp_path, gray):
    several = dicom(tmp_path/'a.dcm', gray, WindowCenter=[100, 200], WindowWidth=[50, 10])
    first = dicom(tmp_path/'b.dcm', gray, WindowCenter=100, WindowWidth=50)
    windowed = read_radiograph(several, 90)
    np.testing.assert_array_equal(windowed, read_radiograph(first, 90))
    assert (windowed[:, 10:80] == 1).mean() > .2


def test_a_window_keeps_its_own_black_and_white(tmp_path, gray):
    "What does not reach the ends of the window is not stretched to them."
    pixels = gray.astype(np.uint16) // 2 + 1000
    tags = dict(WindowCenter=1128, WindowWidth=257, VOILUTFunction='LINEAR_EXACT')
    windowed = pixels_of(dicom(tmp_path/'a.dcm', pixels, **tags))
    np.testing.assert_allclose(windowed, (gray // 2 + .5) / 257, atol=1e-6)


def test_window_after_a_negative_slope(tmp_path, gray):
    "A window speaks of rescaled values; pydicom inverts such a picture."
    tags = dict(RescaleSlope=-1, RescaleIntercept=255, WindowCenter=128, WindowWidth=256)
    windowed = pixels_of(dicom(tmp_path/'a.dcm', gray, **tags))
    np.testing.assert_allclose(windowed, (255 - gray) / 255, atol=1e-6)


VOI = {
    'window': dict(WindowCenter=100, WindowWidth=80),
    'lut': lut('VOILUTSequence', np.linspace(0, 1, 256)**2 * 4095, 0, 12)}


@pytest.mark.parametrize('name', VOI)
def test_voi_and_polarity_commute(name, tmp_path, gray):
    positive = read_radiograph(dicom(tmp_path/'a.dcm', gray, **VOI[name]), 64, 'crop')
    inverted = dicom(tmp_path/'b.dcm', gray, 'MONOCHROME1', **VOI[name])
    negative = read_radiograph(inverted, 64, 'crop')
    np.testing.assert_allclose(positive, 1 - negative, atol=1e-6)


# Look-up tables

WITH_LUTS = (ExplicitVRLittleEndian, ImplicitVRLittleEndian, JPEGLosslessSV1)


@pytest.mark.parametrize('syntax', WITH_LUTS, ids=lambda syntax: syntax.name)
def test_modality_lut_then_voi_lut(syntax, tmp_path, gray):
    modality = np.arange(256)[::-1] * 10
    voi = np.sqrt(np.linspace(0, 1, 2551)) * 1023
    tags = lut('ModalityLUTSequence', modality, 0, 16) | lut('VOILUTSequence', voi, 0, 10)
    read = pixels_of(dicom(tmp_path/'a.dcm', gray, syntax=syntax, **tags))
    np.testing.assert_allclose(read, voi.astype(int)[modality[gray]] / 1023, atol=1e-6)


def test_modality_lut_alone_sets_the_scale(tmp_path, gray):
    tags = lut('ModalityLUTSequence', 5000 - np.arange(256) * 3, 0, 16)
    read = pixels_of(dicom(tmp_path/'a.dcm', gray, **tags))
    np.testing.assert_allclose(read, (255 - gray) / 255, atol=1e-6)


def test_voi_lut_goes_before_the_window(tmp_path, gray):
    tags = lut('VOILUTSequence', np.arange(256)[::-1] * 16, 0, 12)
    tags |= dict(WindowCenter=3, WindowWidth=5)
    read = pixels_of(dicom(tmp_path/'a.dcm', gray, **tags))
    np.testing.assert_allclose(read, (255 - gray) / 255, atol=1e-6)


def test_lut_that_promises_more_bits_than_it_uses(tmp_path, gray):
    tags = lut('VOILUTSequence', np.arange(256) * 16, 0, 16)
    assert pixels_of(dicom(tmp_path/'a.dcm', gray, **tags)).max() == 1


LUTS_OF_NEGATIVE_VALUES = {
    'words': lut('VOILUTSequence', np.arange(256) * 4, -128, 10),
    'first value without its sign': lut('VOILUTSequence', range(256), 2**16 - 128, 8),
    'bytes': lut('VOILUTSequence', range(256), -128, 8, bytes(range(256)))}


@pytest.mark.parametrize('name', LUTS_OF_NEGATIVE_VALUES)
def test_lut_of_negative_values(name, tmp_path):
    pixels = np.arange(-128, 128).reshape(16, 16).astype(np.int16)
    read = pixels_of(dicom(tmp_path/'a.dcm', pixels, **LUTS_OF_NEGATIVE_VALUES[name]))
    np.testing.assert_allclose(read, (pixels + 128) / 255, atol=1e-6)


def test_lut_clips_values_outside(tmp_path):
    pixels = np.arange(100, dtype=np.uint8).reshape(10, 10)
    read = pixels_of(dicom(tmp_path/'a.dcm', pixels, **lut('VOILUTSequence', [7, 8, 9], 50, 8)))
    np.testing.assert_allclose(read, (pixels.astype(int).clip(50, 52) - 50) / 2)


# Padding

PADDINGS = [(65535, None), (0, None), (60000, 65535), (65535, 60000), (0, 500)]


@pytest.mark.parametrize('photometric', ['MONOCHROME1', 'MONOCHROME2'])
@pytest.mark.parametrize('value,limit', PADDINGS)
def test_padding_is_black_and_sets_no_scale(value, limit, photometric, tmp_path, gray):
    pixels = gray.astype(np.uint16) + 1000
    pixels[:, :10] = value
    tags = dict(PixelPaddingValue=value)
    if limit is not None: tags['PixelPaddingRangeLimit'] = limit
    read = pixels_of(dicom(tmp_path/'a.dcm', pixels, photometric, **tags))
    measured = gray[:, 10:].astype(float)
    expected = (measured - measured.min()) / np.ptp(measured)
    if photometric == 'MONOCHROME1': expected = 1 - expected
    assert read[:, :10].max() == 0
    np.testing.assert_allclose(read[:, 10:], expected, atol=1e-6)


def test_padding_with_inverse_presentation_is_black(tmp_path, gray):
    pixels = gray.astype(np.uint16) + 1000
    pixels[:, :10] = 0
    path = dicom(tmp_path/'a.dcm', pixels, PixelPaddingValue=0, PresentationLUTShape='INVERSE')
    assert pixels_of(path)[:, :10].max() == 0


def test_signed_padding_written_without_its_sign(tmp_path, gray):
    pixels = gray.astype(np.int16) - 500
    pixels[:, :10] = -2000
    path = dicom(tmp_path/'a.dcm', pixels)
    data = pydicom.dcmread(path)
    data.add_new('PixelPaddingValue', 'US', 2**16 - 2000)
    data.save_as(path)
    read = pixels_of(path)
    assert read[:, :10].max() == 0
    assert read[:, 10:].min() == 0 and read.max() == 1


def test_a_picture_of_nothing_but_padding_is_black(tmp_path):
    path = dicom(tmp_path/'a.dcm', np.full((9, 9), 4000, np.uint16), PixelPaddingValue=4000)
    assert read_radiograph(path, 16).max() == 0


# Headers

def test_header_of_a_dicom_file(tmp_path, gray):
    tags = dict(
        ViewPosition='ll', ImageLaterality='L', ImagerPixelSpacing=[.15, .14], PatientID=' A-17 ',
        StudyInstanceUID='1.2.3')
    path = dicom(tmp_path/'a.dcm', gray.astype(np.uint16), 'MONOCHROME1', bits=12, **tags)
    header = read_header(path)
    assert (header.height, header.width, header.bits, header.frames) == (90, 70, 12, 1)
    assert (header.photometric, header.view, header.laterality) == ('MONOCHROME1', 'LATERAL', 'L')
    assert header.spacing == (.15, .14)
    assert (header.patient, header.study) == (hashed(b'A-17'), hashed(b'1.2.3'))
    assert len(header.patient) == 16
    assert header == open_radiograph(path, 32).header


def test_header_takes_calibrated_spacing_and_known_words(tmp_path, gray):
    tags = dict(
        PixelSpacing=[.2, .2], ImagerPixelSpacing=[.15, .15], ViewPosition='OTHER', ImageLaterality='X',
        Laterality='R')
    header = read_header(dicom(tmp_path/'a.dcm', gray, **tags))
    assert (header.spacing, header.view, header.laterality, header.patient) == ((.2, .2), '', 'R', '')


def test_header_does_not_need_the_pixels(tmp_path, gray):
    path = truncate(dicom(tmp_path/'a.dcm', gray), -5000)
    assert read_header(path).height == 90
    with pytest.raises(UserError): read_radiograph(path, 32)


# Real files

@needs('data/dicom/rsna_pneumonia_1.dcm')
@pytest.mark.parametrize('policy', ['pad', 'crop'])
def test_real_dicom_pair(policy, tmp_path):
    "The same stored pixels, declared both ways; and inverted pixels, declared MONOCHROME1."
    folder = SHARED/'data'/'dicom'
    bright = read_radiograph(folder/'rsna_pneumonia_1.dcm', 128, policy)
    dark = read_radiograph(folder/'monochrome1_variant.dcm', 128, policy)
    np.testing.assert_allclose(bright, 1 - dark, atol=1e-5)
    stored = pydicom.dcmread(folder/'rsna_pneumonia_1.dcm').pixel_array
    inverse = dicom(tmp_path/'a.dcm', 255 - stored, 'MONOCHROME1')
    np.testing.assert_allclose(read_radiograph(inverse, 128, policy), bright, atol=1e-6)


# Padding that the stored bits cannot hold

def ramp(bits=12, signed=False):
    "(64, 64) values that use all of `bits`, a third of them at the largest value."
    values = np.minimum(np.linspace(0, 1.5 * 2**bits, 64 * 64), 2**bits - 1).astype(int).reshape(64, 64)
    return (values - signed * 2**(bits - 1)).astype(np.int16 if signed else np.uint16)


# bits, whether signed, PixelPaddingValue, limit, VR, which decoded values are black
OUTSIDE = {
    '65535 with 12 bits': (12, False, 65535, None, 'US', None),
    '-1 written for 12 unsigned bits': (12, False, -1, None, 'SS', None),
    '-32768 with 12 signed bits': (12, True, -32768, None, 'SS', None),
    '32768 for -32768': (12, True, 32768, None, 'US', None),
    '4096 with 12 bits': (12, False, 4096, None, 'US', None),
    '63536 with 10 bits': (10, False, 63536, None, 'US', None),
    '-2000 with 10 signed bits': (10, True, -2000, None, 'SS', None),
    '32768 with 15 bits': (15, False, 32768, None, 'US', None),
    'range above the bits': (12, False, 5000, 65535, 'US', None),
    'range that begins within': (12, False, 4000, 65535, 'US', (4000, 4095)),
    'range from below': (12, True, -32768, -2000, 'SS', (-2048, -2000)),
    'the largest value': (12, False, 4095, None, 'US', (4095, 4095)),
    'a negative value': (12, True, -2048, None, 'SS', (-2048, -2048)),
    'a negative value without its sign': (12, True, 2048, None, 'US', (-2048, -2048)),
    'a negative value as 16 bits': (12, True, 63488, None, 'US', (-2048, -2048)),
}


@pytest.mark.parametrize('name', OUTSIDE)
def test_padding_is_compared_as_it_is_stored(name, tmp_path):
    bits, signed, value, limit, vr, black = OUTSIDE[name]
    pixels = ramp(bits, signed)
    path = dicom(tmp_path/'a.dcm', pixels, bits=bits)
    data = pydicom.dcmread(path)
    data.add_new('PixelPaddingValue', vr, value)
    if limit is not None: data.add_new('PixelPaddingRangeLimit', vr, limit)
    data.save_as(path)
    unit = to_unit(pixels_of(path))
    if black is None:
        expected = to_unit(pixels_of(dicom(tmp_path/'b.dcm', pixels, bits=bits)))
        np.testing.assert_array_equal(unit, expected)
        assert unit[-1].min() == 1
    else:
        is_black = (black[0] <= pixels) & (pixels <= black[1])
        assert unit[is_black].max() == 0 and unit[~is_black].max() == 1


def test_padding_stored_in_bits_that_do_not_count(tmp_path):
    "The word 65535 is padding although 12 bits of it would be 4095, which is white elsewhere."
    pixels = ramp()
    pixels[:, :10] = 65535
    unit = to_unit(pixels_of(dicom(tmp_path/'a.dcm', pixels, bits=12, PixelPaddingValue=65535)))
    assert unit[:, :10].max() == 0 and unit[-1, 10:].min() == 1


# Pixels that are not square

SQUARE_BLOCK = {  # elements, and height by width of a pixel
    'PixelAspectRatio': (dict(PixelAspectRatio=[1, 2]), .5),
    'PixelAspectRatio, tall': (dict(PixelAspectRatio=[2, 1]), 2),
    'PixelAspectRatio in large numbers': (dict(PixelAspectRatio=[300, 600]), .5),
    'PixelSpacing': (dict(PixelSpacing=[.1, .2]), .5),
    'PixelSpacing, tall': (dict(PixelSpacing=[.2, .1]), 2),
    'ImagerPixelSpacing': (dict(ImagerPixelSpacing=[.1, .2]), .5),
    'NominalScannedPixelSpacing': (dict(NominalScannedPixelSpacing=[.2, .1]), 2),
    'PixelSpacing before ImagerPixelSpacing': (dict(PixelSpacing=[.1, .2], ImagerPixelSpacing=[.1, .1]), .5),
    'spacing before ratio': (dict(PixelSpacing=[.1, .1], PixelAspectRatio=[1, 2]), 1),
    'square': (dict(PixelSpacing=[.139, .139]), 1),
    'square but for rounding': (dict(PixelSpacing=[.1390, .1392]), 1),
    'ratio of zero': (dict(PixelAspectRatio=[0, 0]), 1),
    'empty spacing, ratio': (dict(PixelSpacing=None, PixelAspectRatio=[1, 2]), .5),
}


@pytest.mark.parametrize('policy', ['pad', 'crop', 'official'])
@pytest.mark.parametrize('name', SQUARE_BLOCK)
def test_a_square_stays_square(name, policy, tmp_path):
    tags, aspect = SQUARE_BLOCK[name]
    height, width = (64, 32) if aspect == .5 else (32, 64) if aspect == 2 else (64, 64)
    block = np.zeros((height, width), np.uint16)
    block[height // 4:-height // 4, width // 4:-width // 4] = 4095
    image = open_radiograph(dicom(tmp_path/'a.dcm', block, bits=12, **tags), 64, policy)
    bright = image.image > .5
    assert bright.any(1).sum() == bright.any(0).sum() == 32
    assert image.header.aspect == pytest.approx(aspect)
    assert image.geometry.to_original(*image.geometry.to_square(5, 7)) == pytest.approx((5, 7))


def test_spacing_of_no_detector_is_named(tmp_path):
    path = dicom(tmp_path/'a.dcm', ramp(), bits=12, PixelSpacing=[.1, 100])
    with pytest.raises(UserError, match='PixelSpacing says that pixels are'): read_radiograph(path, 16)


# What a header may leave out, and windows that viewers ignore

WHOLE = np.linspace(0, 4095, 64 * 64).reshape(64, 64).astype(np.uint16)
LEFT_OUT = [
    ['PixelRepresentation'], ['SamplesPerPixel'], ['HighBit'], ['PixelRepresentation', 'SamplesPerPixel'],
    ['HighBit', 'PixelRepresentation'], ['SamplesPerPixel', 'HighBit', 'PixelRepresentation'],
    ['BitsAllocated'], ['BitsAllocated', 'HighBit']]


@pytest.mark.parametrize('is_emptied', [False, True], ids=['left out', 'empty'])
@pytest.mark.parametrize('names', LEFT_OUT, ids=' '.join)
def test_what_every_viewer_assumes_may_be_absent(names, is_emptied, tmp_path):
    data = pydicom.dcmread(dicom(tmp_path/'a.dcm', WHOLE, bits=12))
    expected = pixels_of(tmp_path/'a.dcm')
    for name in names:
        if is_emptied: data[name].value = None
        else: delattr(data, name)
    data.save_as(tmp_path/'b.dcm')
    np.testing.assert_array_equal(pixels_of(tmp_path/'b.dcm'), expected)


def test_absent_bits_and_planes(tmp_path, colour):
    data = pydicom.dcmread(dicom(tmp_path/'a.dcm', WHOLE, bits=16))
    del data.BitsStored, data.HighBit
    data.save_as(tmp_path/'b.dcm')
    np.testing.assert_array_equal(pixels_of(tmp_path/'b.dcm'), pixels_of(tmp_path/'a.dcm'))
    data = pydicom.dcmread(dicom(tmp_path/'a.dcm', colour, 'RGB'))
    del data.PlanarConfiguration, data.SamplesPerPixel
    data.save_as(tmp_path/'b.dcm')
    np.testing.assert_array_equal(pixels_of(tmp_path/'b.dcm'), pixels_of(tmp_path/'a.dcm'))


@pytest.mark.parametrize('name', ['PhotometricInterpretation', 'Rows', 'Columns'])
def test_what_cannot_be_known_is_named(name, tmp_path):
    data = pydicom.dcmread(dicom(tmp_path/'a.dcm', WHOLE, bits=12))
    delattr(data, name)
    data.save_as(tmp_path/'b.dcm')
    with pytest.raises(UserError, match='PhotometricInterpretation|pixels'): read_pixels(tmp_path/'b.dcm')


def test_a_lut_without_its_descriptor_is_named(tmp_path):
    item = pydicom.Dataset()
    item.add_new('LUTData', 'OW', bytes(8))
    path = dicom(tmp_path/'a.dcm', WHOLE, bits=12, VOILUTSequence=[item])
    with pytest.raises(UserError, match='it lacks its LUTDescriptor'): read_pixels(path)


WINDOWS = {  # elements, and the mean of the picture
    'width 0': (dict(WindowCenter=0, WindowWidth=0), .5),
    'negative width': (dict(WindowCenter=10, WindowWidth=-5), .5),
    'width .5 after a small slope': (
        dict(WindowCenter='.5', WindowWidth='.5', RescaleSlope='0.000244140625', RescaleIntercept=0), .5),
    'width .9': (
        dict(WindowCenter='.5', WindowWidth='.9', RescaleSlope='0.000244140625', RescaleIntercept=0), .5),
    'center alone': (dict(WindowCenter=2048), .5),
    'width alone': (dict(WindowWidth=100), .5),
    'empty window': (dict(WindowCenter=None, WindowWidth=None), .5),
    'the second of two': (dict(WindowCenter=[0, 2048], WindowWidth=[0, 4096]), .5),
    'width 0 with a function': (dict(WindowCenter=0, WindowWidth=0, VOILUTFunction='LINEAR_EXACT'), .5),
    'width 0 of a sigmoid': (dict(WindowCenter=0, WindowWidth=0, VOILUTFunction='SIGMOID'), .5),
    'width 1': (dict(WindowCenter='2048.5', WindowWidth=1), .5),
}


@pytest.mark.parametrize('name', WINDOWS)
def test_windows_that_viewers_ignore_or_use(name, tmp_path):
    tags, mean = WINDOWS[name]
    unit = to_unit(pixels_of(dicom(tmp_path/'a.dcm', WHOLE, bits=12, **tags)))
    assert unit.mean() == pytest.approx(mean, abs=.01)
