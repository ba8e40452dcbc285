"""The processor of CheXmix.

Written by chexmix 0.1.0 out of its modules core, decoders, radiograph, vqgan, processor.
Research software, never for clinical use.
"""
from __future__ import annotations

from PIL import Image
from PIL import UnidentifiedImageError
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError
from contextlib import contextmanager
from dataclasses import asdict
from dataclasses import dataclass
from huggingface_hub import snapshot_download
from joblib.externals.loky import ProcessPoolExecutor
from joblib.externals.loky.backend.process import LokyProcess
from joblib.externals.loky.process_executor import BrokenProcessPool
from multiprocessing.util import Finalize
from pathlib import Path
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save_file
from scipy.sparse import csr_array
from scipy.special import expit
from torch import nn
from transformers import BatchFeature
from transformers import ImageProcessingMixin
from transformers import PreTrainedTokenizerFast
from transformers import ProcessorMixin
import hashlib
import importlib
import json
import multiprocessing
import numpy as np
import os
import re
import shutil
import socket
import stat
import tempfile
import threading
import torch
import torch.nn.functional as F
import zlib

class UserError(ValueError):
    "Something the user can put right: the message is one line that names the value and the way out."

    # Jupyter shows this line instead of the stack.
    def _render_traceback_(self): return [f'UserError: {self}']

def import_package(
    module: str,
    package: str,  # what `pip install` calls it
):
    "A module that only some of the work needs. Raises `UserError` where it is not installed."
    try: return importlib.import_module(module)
    except ModuleNotFoundError as e:
        raise UserError(f'{package} is not installed: pip install {package}') from e

@dataclass(frozen=True)
class Layout:
    "Ids of the mixed vocabulary: text `0…n_text-1`, image code k at `n_text+k`, then mask and pad."
    n_text: int       # text ids, specials included
    n_codes: int      # entries of the image codebook
    grid: int         # codes on each side of an image
    image_start: int  # `I_s`, also the target after the last text token
    image_end: int    # `I_e`
    text_start: int   # `T_s`, which is end-of-text too
    n_decodable: int = 0  # the first ids that stand for a text, before unused ones; 0 = all

    @property
    def mask(self): return self.n_text + self.n_codes
    @property
    def pad(self): return self.mask + 1
    @property
    def n_ids(self): return self.pad + 1
    @property
    def n_image(self): return self.grid**2  # codes of one image

def codes_to_ids(
    codes: torch.Tensor,  # any shape, 0…n_codes-1
    layout: Layout,
) -> torch.Tensor:  # same shape
    """Ids in the mixed vocabulary of image `codes`; `ids_to_codes` is the inverse.

    Raises `UserError` for a code outside the codebook.
    """
    if codes.numel() and not (0 <= int(codes.min()) and int(codes.max()) < layout.n_codes):
        raise UserError(f'image code {int(codes.max())} outside 0…{layout.n_codes - 1}: '
                        'was the image tokenizer trained with another codebook?')
    return codes + layout.n_text

def host_mark() -> str:
    "Eight hexadecimal digits for this machine, which do not show its name."
    return f'{zlib.crc32(socket.gethostname().encode()):08x}'

@contextmanager
def atomic(
    path: str | Path,  # final name, of a file or of a folder
):
    """Give a temporary path beside `path`; on success it becomes `path`, on any error it is removed.

    Raises `UserError` where the disk refuses.
    """
    path = Path(path)
    mark = f'{host_mark()}-{os.getpid()}'
    temporary, former = (path.with_name(f'.{path.name}{what}.{mark}.part') for what in ('', '.former'))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        if path.is_dir() and temporary.is_dir(): os.replace(path, former)
        os.replace(temporary, path)
    except OSError as e:
        reason = e.strerror or e
        raise UserError(f'cannot write {path}: {reason}; free some space or choose another folder') from e
    finally:
        for left in (temporary, former):
            if left.is_dir(): shutil.rmtree(left, ignore_errors=True)
            else: left.unlink(missing_ok=True)

def json_checksum(values: dict) -> str:  # 12 hexadecimal digits
    "Hash of what JSON holds, whatever its layout; an entry `checksum` does not count."
    rest = {name: value for name, value in values.items() if name != 'checksum'}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()[:12]

def write_json(
    path: str | Path,
    value,  # anything that JSON can hold; NaN becomes null
):
    "Write `value` as JSON under `path`, complete or not at all; a dictionary gets a `checksum`."
    plain = json.loads(json.dumps(value, default=str), parse_constant=lambda _: None)
    if isinstance(plain, dict): plain['checksum'] = json_checksum(plain)
    text = json.dumps(plain, indent=1, ensure_ascii=False) + '\n'
    with atomic(path) as temporary: temporary.write_text(text, encoding='utf-8')

def read_json(path: str | Path):
    """The value in the JSON file `path`.

    Raises `UserError` where it is missing, is no JSON, or is not what `write_json` wrote.
    """
    try: value = json.loads(Path(path).read_text(encoding='utf-8'))
    except OSError as e: raise UserError(f'cannot read {path}: {e.strerror}; check the path') from e
    except (ValueError, RecursionError) as e:
        raise UserError(f'{path} is not JSON ({e}); delete it and run the step again') from e
    checksum = value.pop('checksum', None) if isinstance(value, dict) else None
    if checksum is None or checksum == json_checksum(value): return value
    raise UserError(f'{path} is damaged: its values are not those that were written; make it anew, '
                    'or delete its checksum if you changed a value yourself')

def file_hash(path: Path) -> str:  # 16 hexadecimal digits
    "Hash of the content of a file of any size."
    with open(path, 'rb') as file: return hashlib.file_digest(file, 'sha256').hexdigest()[:16]

def seal(folder: Path):
    "Write the hashes of the files in `folder` (not below) to `hashes.json`; `check_seal` compares them."
    files = [path for path in sorted(folder.iterdir()) if path.is_file() and path.name != 'hashes.json']
    sealed = [path for path in files if path.suffix != '.md']  # a card may be edited
    write_json(folder/'hashes.json', {path.name: file_hash(path) for path in sealed})

def check_seal(folder: Path):
    """Raise `UserError` where a file is missing or not as it was when its folder was sealed.

    A folder of an earlier version, or of a release, has no seal and is taken as it is.
    """
    if not (folder/'hashes.json').exists(): return
    for name, expected in read_json(folder/'hashes.json').items():
        path = folder/name
        if path.exists() and file_hash(path) == expected: continue
        fault = 'damaged: its content is not what was written' if path.exists() else 'missing'
        raise UserError(f'{path} is {fault}; copy it again, or make it anew '
                        f'(if you meant this change, remove {folder}/hashes.json)')

NO_MEMORY = (  # how torch, oneDNN, C++, CUDA and its libraries say so
    "can't allocate memory", 'cannot allocate memory', 'could not create a primitive', 'std::bad_alloc',
    'out of memory', 'status_alloc_failed')

def is_out_of_memory(error: Exception) -> bool:
    "Whether an error tells of a lack of memory, on the CPU or a GPU."
    if isinstance(error, MemoryError) or type(error).__name__ == 'OutOfMemoryError': return True
    return any(words in str(error).lower() for words in NO_MEMORY)

@contextmanager
def memory_errors(advice: str):
    "Turn a lack of memory inside, on the CPU or a GPU, into a `UserError` with the way out."
    try: yield
    except (MemoryError, RuntimeError) as e:  # `torch.OutOfMemoryError` is a RuntimeError
        if not is_out_of_memory(e): raise
        raise UserError(f'there is not enough memory: {advice}') from e

def default_device() -> torch.device:
    "The first CUDA device, else the CPU."
    import torch
    return torch.device('cuda' if torch.cuda.is_available() else 'cpu')

class Absent:
    "Stands for a library that is not installed."
    def __init__(self, name): self.name = name
    def __call__(self, *args, **kwargs): raise UserError(f'{self.name} is not installed: pip install it')
    def __getattr__(self, name):
        if name.startswith('__'): raise AttributeError(name)
        return Absent(self.name)

try: from pydicom.datadict import tag_for_keyword
except ImportError: tag_for_keyword = Absent('pydicom')
try: from pydicom.encaps import encapsulate
except ImportError: encapsulate = Absent('pydicom')
try: from pydicom.encaps import get_frame
except ImportError: get_frame = Absent('pydicom')
try: from pydicom.pixels import apply_color_lut
except ImportError: apply_color_lut = Absent('pydicom')
try: from pydicom.pixels import convert_color_space
except ImportError: convert_color_space = Absent('pydicom')
try: from pydicom.pixels import pixel_array
except ImportError: pixel_array = Absent('pydicom')
try: from pydicom.uid import DeflatedExplicitVRLittleEndian
except ImportError: DeflatedExplicitVRLittleEndian = Absent('pydicom')
try: from pydicom.uid import ExplicitVRLittleEndian
except ImportError: ExplicitVRLittleEndian = Absent('pydicom')
try: from pydicom.uid import ImplicitVRLittleEndian
except ImportError: ImplicitVRLittleEndian = Absent('pydicom')
try: from pydicom.uid import JPEGBaseline8Bit
except ImportError: JPEGBaseline8Bit = Absent('pydicom')
try: from pydicom.uid import JPEGExtended12Bit
except ImportError: JPEGExtended12Bit = Absent('pydicom')
try: from pydicom.uid import JPEGLSTransferSyntaxes
except ImportError: JPEGLSTransferSyntaxes = Absent('pydicom')
try: from pydicom.uid import JPEGTransferSyntaxes
except ImportError: JPEGTransferSyntaxes = Absent('pydicom')
try: from pydicom.uid import SecondaryCaptureImageStorage
except ImportError: SecondaryCaptureImageStorage = Absent('pydicom')
try: from torchvision.io import ImageReadMode
except ImportError: ImageReadMode = Absent('torchvision')
try: from torchvision.io import decode_image
except ImportError: decode_image = Absent('torchvision')
try: import pydicom
except ImportError: pydicom = Absent('pydicom')

def write_code(*args, **kwargs): "Only in the package."

class DecoderDied(ValueError):
    "A decoder ended its process, or does not come to an end."

class Apart:
    "Calls functions, one at a time, in one process of its own, which is made anew where it dies."
    def __init__(self, idle: int = 60):  # seconds without work after which the process ends
        self.idle, self.pool, self.lock, self.owner = idle, None, threading.Lock(), os.getpid()

    def __call__(self, function, *args, seconds: float = 60., **kwargs):
        "What a function returns. Raises its error, or `DecoderDied` where it dies or takes too long."
        if self.owner != os.getpid(): self.__init__(self.idle)  # a fork has no threads of its parent's pool
        with self.lock:
            if not self.pool: self.start()
            try: return self.pool.submit(function, *args, **kwargs).result(seconds)
            except BrokenProcessPool: reason = 'it ends the process that decodes it'
            except TimeoutError: reason = f'it is not decoded within {seconds:g} s'
            self.stop()
        raise DecoderDied(reason)

    def start(self):
        self.pool = ProcessPoolExecutor(1, timeout=self.idle)
        # A child that ends would wait for its own child until that has been idle for long.
        Finalize(None, self.stop, exitpriority=10)

    def stop(self):
        if self.pool: self.pool.shutdown(kill_workers=True)
        self.pool = None

_call_apart = Apart()

def decode_apart(function, *args, **kwargs):
    """What a decoder returns. It works in a process of its own, but in this one where this is a worker.

    (A worker is there to die instead of its parent: `map_in_processes` goes on without it, and torch's
    `DataLoader` says that it was lost. Its workers are daemons, which may start no process.)
    Raises `DecoderDied` where it ends its process, or takes more than a minute.
    """
    process = multiprocessing.current_process()
    is_worker = process.daemon or isinstance(process, LokyProcess)
    return function(*args, **kwargs) if is_worker else _call_apart(function, *args, **kwargs)

def read_gdcm(
    path: str,
    height: int,
    width: int,
    n_bytes: int,  # of the picture
) -> bytearray | None:
    """The bytes of a DICOM file's picture by GDCM; None where it refuses, or the size is another.

    Raises `UserError` where GDCM is not installed.
    """
    gdcm = import_package('gdcm', 'python-gdcm')
    reader = gdcm.ImageRegionReader()
    reader.SetFileName(path)
    if not reader.ReadInformation(): return None
    box = gdcm.BoxRegion()
    box.SetDomain(0, width - 1, 0, height - 1, 0, 0)
    reader.SetRegion(box)
    if reader.ComputeBufferLength() != n_bytes: return None
    buffer = bytearray(n_bytes)
    return buffer if reader.ReadIntoBuffer(buffer) else None

def value_span(
    pixels: np.ndarray,  # any shape and number type
) -> tuple[float, float]:  # the values that become 0 and 1
    """The black and the white of `pixels`, decided by the values alone.

    (0, 1) for fractions, (0, 255) for values of 8 bits, else the smallest and the largest value.
    """
    low = float(pixels.min())
    high = float(pixels.max())
    if pixels.dtype.kind in 'bf' and 0 <= low and high <= 1: return 0., 1.
    if 0 <= low and high <= 255: return 0., 255.
    return low, high

def to_unit(
    pixels: np.ndarray,  # (H, W) or (H, W, 3), any number type
) -> np.ndarray:  # (H, W) float32 in [0, 1]
    "Gray values between 0 and 1. Colours are weighted as in ITU-R BT.601."
    is_gray_in_rgb = pixels.ndim == 3 and (pixels == pixels[..., :1]).all()
    if is_gray_in_rgb: pixels = pixels[..., 0]  # (H, W); a weighted sum would not be exact
    low, high = value_span(pixels)
    if (low, high) == (0, 1) and pixels.dtype == np.float32: unit = pixels
    else:
        fits_float32 = pixels.dtype.kind in 'ui' and pixels.itemsize <= 2
        unit = pixels.astype(np.float32 if fits_float32 else np.float64)
        if low: unit -= low
        unit /= max(high - low, 1e-12)
    if unit.ndim == 3: unit = unit @ np.array([.299, .587, .114], unit.dtype)  # (H, W)
    return unit.astype(np.float32, copy=False)

class Unreadable(ValueError):
    "Why a file cannot be read, in words that repeat nothing of its content."

MAX_PIXELS = 80_000_000  # four times the largest radiographs; more is a mistake or an attack

def check_size(
    width: int,   # pixels, as the header claims
    height: int,  # pixels
):
    """Check the size that a header claims, before anything is decoded.

    Raises `Unreadable` for an empty picture, one that is too large, and one that is far too narrow.
    """
    size = f'{width}×{height} pixels'
    if min(width, height) < 1: raise Unreadable(f'its header says {size}')
    if width * height > MAX_PIXELS: raise Unreadable(f'{size} are more than {MAX_PIXELS:,}')
    is_thread = max(width, height) > 100 * min(width, height)
    if is_thread: raise Unreadable(f'{size} are no shape of a radiograph')

def choose_frame(
    frames: int,        # pictures in the file
    frame: int | None,  # 0…frames-1, None where there is only one
) -> int:
    """The frame to read.

    Raises `Unreadable` where there are several frames and none was chosen, or the chosen one is absent.
    """
    if frames > 1 and frame is None:
        raise Unreadable(f'it holds {frames} frames: choose one with frame=0…{frames - 1} in Python, '
                         'or save it as a file of its own')
    if not 0 <= (frame or 0) < frames:
        raise Unreadable(f'it holds {frames} frames, none of them is frame={frame}')
    return frame or 0

@dataclass(frozen=True)
class Header:
    "What a file says of its radiograph, without the patient's identity."
    height: int                    # as stored, pixels
    width: int
    bits: int                      # of one value
    photometric: str               # as in DICOM: MONOCHROME1 (0 is white), MONOCHROME2, RGB, …
    frames: int = 1                # pictures in the file
    view: str = ''                 # PA, AP, LATERAL or an oblique (LPO, …); '' unknown
    laterality: str = ''           # of the body part: L, R, U (unpaired), B (both); '' unknown
    spacing: tuple | None = None   # mm between rows, columns; at the detector unless calibrated
    patient: str = ''              # `hashed` PatientID
    study: str = ''                # `hashed` StudyInstanceUID
    aspect: float = 1.             # height of a pixel by its width

def hashed(
    identifier: bytes,  # as stored
) -> str:  # 16 hexadecimal digits, '' where there is no identifier
    """A pseudonym for a patient or a study: the start of the SHA-256 of its identifier.

    Spaces and zero bytes at the ends, with which DICOM pads, do not count.
    """
    identifier = identifier.strip(b' \0')
    return hashlib.sha256(identifier).hexdigest()[:16] if identifier else ''

def pixel_aspect(
    height: float,  # of a pixel, in any unit
    width: float,
    name: str,      # of the element that says so
) -> float:
    """Height by width of a pixel; 1 where they differ by less than 1%, as they do by rounding.

    Raises `Unreadable` for pixels that no detector has.
    """
    ratio = height / width
    if not .1 < ratio < 10: raise Unreadable(f'its {name} says that pixels are {height:g} × {width:g}')
    return 1. if abs(ratio - 1) < .01 else ratio

def orientation_of(
    picture: Image.Image,  # opened; a PNG is decoded
) -> int:  # 1…8 as in EXIF and TIFF 6.0; 1 is upright
    "How a picture lies in its file. A TIFF is turned by Pillow itself."
    if picture.format == 'TIFF': return 1
    try: value = picture.getexif().get(0x112, 1)
    except Exception: return 1  # of damaged EXIF; the picture itself may be sound
    return value if value in range(1, 9) else 1

def turn_upright(
    pixels: np.ndarray,  # (H, W) or (H, W, 3) as stored
    orientation: int,    # 1…8
) -> np.ndarray:
    "The picture as it should be seen."
    if orientation in (5, 6, 7, 8): pixels = pixels.swapaxes(0, 1)  # 5 is the transposed picture
    if orientation in (2, 3, 6, 7): pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8): pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)

def picture_aspect(
    picture: Image.Image,
    orientation: int,  # 1…8
) -> float:
    "Height by width of a pixel when the picture stands upright, by its resolution in both directions."
    info = picture.info
    said = info.get('dpi') or info.get('aspect') or info.get('jfif_density') or (1, 1)
    across, down = map(float, said)
    is_plausible = across > 0 and down > 0 and .25 <= across / down <= 4
    if not is_plausible: return 1.
    if orientation > 4: across, down = down, across
    return pixel_aspect(float(across), float(down), 'resolution')

def is_deep_colour(
    picture: Image.Image,  # opened, not yet decoded
) -> bool:
    "Whether a file has 16 bits a colour (or for gray beside transparency), of which Pillow keeps 8."
    decoder = str(picture.tile[0][3]) if getattr(picture, 'tile', None) else ''
    return ';16' in decoder and picture.mode[0] != 'I'

def decode_deep(
    picture: Image.Image,  # opened, with 16 bits a colour
) -> np.ndarray:  # (H, W) or (H, W, 3) uint16
    "All bits of a PNG; transparency is dropped. Raises `Unreadable` for another format."
    if picture.format != 'PNG':
        raise Unreadable('it has 16 bits a colour, of which 8 would be lost: save it as 16-bit gray')
    position = picture.fp.tell()
    picture.fp.seek(0)
    content = torch.frombuffer(bytearray(picture.fp.read()), dtype=torch.uint8)
    picture.fp.seek(position)
    pixels = decode_image(content, ImageReadMode.UNCHANGED).numpy().transpose(1, 2, 0)  # (H, W, channels)
    return pixels[..., 0] if pixels.shape[2] <= 2 else pixels[..., :3]

def n_pictures(picture: Image.Image) -> int:
    "How many pictures a file holds. Beside a phone's JPEG stand previews of it, which do not count."
    return 1 if picture.format == 'MPO' else getattr(picture, 'n_frames', 1)

def picture_bits(picture: Image.Image) -> int:
    "The bits of one value of a picture that is opened and not yet decoded."
    if picture.mode.startswith('I;16') or is_deep_colour(picture): return 16
    return {'1': 1, 'I': 32, 'F': 32}.get(picture.mode, 8)

def picture_photometric(picture: Image.Image) -> str:
    "What large values mean, in the terms of DICOM."
    if picture.mode in ('LA', 'La', 'RGBA') and is_deep_colour(picture):
        return 'MONOCHROME2' if 'LA' in str(picture.tile[0][3]) else 'RGB'
    if picture.mode[0] == 'P': return 'PALETTE COLOR'
    if picture.mode[0] not in '1LIF': return 'RGB'
    tiff_photometric = getattr(picture, 'tag_v2', {}).get(262)  # TIFF 6.0, PhotometricInterpretation
    has_many_bits = picture.mode[0] in 'IF'  # Pillow turns 8 bits itself
    return 'MONOCHROME1' if has_many_bits and tiff_photometric == 0 else 'MONOCHROME2'

def picture_header(
    picture: Image.Image,  # opened, not yet decoded
) -> Header:
    "What a picture file says of itself, in the terms of DICOM."
    bits, photometric = picture_bits(picture), picture_photometric(picture)
    orientation = orientation_of(picture)
    shape = (picture.height, picture.width) if orientation < 5 else (picture.width, picture.height)
    return Header(*shape, bits, photometric, n_pictures(picture), aspect=picture_aspect(picture, orientation))

PICTURES = ('PNG', 'JPEG', 'TIFF')

def decode_picture(
    picture: Image.Image,  # at the frame to read
    photometric: str,      # of its header
) -> np.ndarray:  # (H, W) or (H, W, 3) as stored
    "Pixels of a picture as stored. Transparency is dropped."
    if is_deep_colour(picture): return decode_deep(picture)
    has_many_bits = picture.mode[0] in 'IF'
    if has_many_bits or picture.mode == 'L': return np.asarray(picture)
    target_mode = 'L' if photometric == 'MONOCHROME2' else 'RGB'
    try: return np.asarray(picture.convert(target_mode))
    except ValueError as e: raise Unreadable(f'its colours ({picture.mode}) cannot be read') from e

def picture_pixels(
    picture: Image.Image,      # opened, or made in memory
    frame: int | None = None,  # page of a TIFF file that has several
) -> tuple[np.ndarray, Header]:  # (H, W) or (H, W, 3), upright, large is white
    "Pixels and header of a picture."
    check_size(*picture.size)
    frame = choose_frame(n_pictures(picture), frame)
    if frame: picture.seek(frame)
    check_size(*picture.size)
    pixels = decode_picture(picture, picture_photometric(picture))
    header = picture_header(picture)
    if pixels.dtype.kind == 'f' and not np.isfinite(pixels).all():
        raise Unreadable('it holds NaN or infinite pixels')
    if header.photometric == 'MONOCHROME1': pixels = sum(value_span(pixels)) - pixels.astype(np.float64)
    return turn_upright(pixels, orientation_of(picture)), header

def read_picture(
    path: str | Path,          # PNG, JPEG or TIFF
    frame: int | None = None,  # page of a TIFF file that has several
) -> tuple[np.ndarray, Header]:  # (H, W) or (H, W, 3), upright, large is white
    "Pixels of a picture file."
    # Not opened by its name: Pillow would map a TIFF into memory and turn its size, not its pixels.
    with open(path, 'rb') as file, Image.open(file, formats=PICTURES) as picture:
        return picture_pixels(picture, frame)

DICOM_TAGS = (
    'Rows', 'Columns', 'NumberOfFrames', 'SamplesPerPixel', 'PhotometricInterpretation',
    'PresentationLUTShape', 'PlanarConfiguration', 'BitsAllocated', 'BitsStored', 'HighBit',
    'PixelRepresentation', 'PixelPaddingValue', 'PixelPaddingRangeLimit', 'ModalityLUTSequence',
    'RescaleIntercept', 'RescaleSlope', 'VOILUTSequence', 'VOILUTFunction', 'WindowCenter',
    'WindowWidth', 'RedPaletteColorLookupTableDescriptor',
    'GreenPaletteColorLookupTableDescriptor', 'BluePaletteColorLookupTableDescriptor',
    'RedPaletteColorLookupTableData', 'GreenPaletteColorLookupTableData',
    'BluePaletteColorLookupTableData', 'ExtendedOffsetTable', 'ExtendedOffsetTableLengths',
    'PixelData', 'ViewPosition', 'ImageLaterality', 'Laterality', 'PixelSpacing',
    'ImagerPixelSpacing', 'NominalScannedPixelSpacing', 'PixelAspectRatio', 'PatientID',
    'StudyInstanceUID')

def stored_bytes(
    data: pydicom.Dataset,  # as read, not converted
    keyword: str,
) -> bytes:
    "The value of an element as it stands in the file; empty where it is absent."
    value = data.get_item(keyword).value if keyword in data else None
    return value or b''

def known_word(
    data: pydicom.Dataset,
    keyword: str,
    known: dict,  # what may stand there → what we call it
) -> str:  # '' for everything else
    "The value of a text element if it is one of the `known` ones."
    text = stored_bytes(data, keyword).decode('ascii', 'replace')
    return known.get(text.strip(' \0').upper(), '')

def read_numbers(
    data: pydicom.Dataset,
    keyword: str,
) -> list[float]:
    """The numbers in a text element (VR DS or IS).

    Raises `Unreadable` where there is something else.
    """
    parts = stored_bytes(data, keyword).decode('ascii', 'replace').strip(' \0').split('\\')
    try: values = [float(part) for part in parts if part.strip()]
    except ValueError: raise Unreadable(f'its {keyword} is no number') from None
    if not np.isfinite(values).all(): raise Unreadable(f'its {keyword} is not finite')
    return values

def read_spacing(
    data: pydicom.Dataset,
) -> tuple[float, float] | None:  # mm between rows, between columns
    "The distance of the pixels, calibrated where the file has that, else at the detector."
    for keyword in ('PixelSpacing', 'ImagerPixelSpacing', 'NominalScannedPixelSpacing'):
        spacing = read_numbers(data, keyword)
        if len(spacing) == 2 and min(spacing) > 0: return tuple(spacing)
    return None

def read_aspect(
    data: pydicom.Dataset,
) -> float:
    """Height by width of a pixel, by the spacing where there is one, else by the PixelAspectRatio.

    Source: PS3.3 C.7.6.3.1.7. Raises `Unreadable` for pixels that no detector has.
    """
    spacing = read_spacing(data)
    if spacing: return pixel_aspect(*spacing, 'PixelSpacing')
    ratio = read_numbers(data, 'PixelAspectRatio')
    if len(ratio) != 2 or min(ratio) <= 0: return 1.
    return pixel_aspect(*ratio, 'PixelAspectRatio')

VIEWS = {view: view for view in ('PA', 'AP', 'LATERAL', 'LPO', 'RPO', 'LAO', 'RAO', 'LLD', 'RLD')}

SIDES = {side: side for side in 'LRUB'}

PHOTOMETRIC = {name: name for name in (
    'MONOCHROME1', 'MONOCHROME2', 'RGB', 'YBR_FULL', 'YBR_FULL_422', 'YBR_ICT', 'YBR_RCT',
    'PALETTE COLOR')}

def read_counts(data: pydicom.Dataset, *keywords: str) -> list[int]:
    "The integers in binary elements (VR US), 0 where one is absent or empty."
    return [int(data.get(keyword) or 0) for keyword in keywords]

def check_bits(allocated: int, bits: int):
    "Raises `Unreadable` where the `bits` of a value do not fit into the 8 or 16 that are allocated."
    if not allocated: raise Unreadable('it does not say its BitsAllocated')
    if allocated not in (8, 16) or not 1 <= bits <= allocated:
        raise Unreadable(f'it has {bits} bits in {allocated}; 8 to 16 can be read')

def dicom_header(
    data: pydicom.Dataset,  # as read, not converted
) -> Header:
    """What a DICOM file says of its radiograph.

    Raises `Unreadable` where it holds no picture, or one that is not of 8 to 16 bits.
    """
    height, width = read_counts(data, 'Rows', 'Columns')
    allocated, bits = read_counts(data, 'BitsAllocated', 'BitsStored')
    photometric = known_word(data, 'PhotometricInterpretation', PHOTOMETRIC)
    check_size(width, height)
    check_bits(allocated, bits)
    if not photometric:
        raise Unreadable(f'its PhotometricInterpretation is none of {", ".join(PHOTOMETRIC)}')
    spacing = read_spacing(data)
    frames = read_numbers(data, 'NumberOfFrames') or [1]
    laterality = known_word(data, 'ImageLaterality', SIDES) or known_word(data, 'Laterality', SIDES)
    return Header(
        height, width, bits, photometric, frames=int(frames[0]) or 1,
        view=known_word(data, 'ViewPosition', VIEWS), laterality=laterality, spacing=spacing,
        patient=hashed(stored_bytes(data, 'PatientID')),
        study=hashed(stored_bytes(data, 'StudyInstanceUID')), aspect=read_aspect(data))

def check_inflated(
    path: str | Path,  # a DICOM file
    start: bytes,      # its first kilobyte
):
    "Raises `Unreadable` where a deflated dataset is larger than any radiograph."
    if DeflatedExplicitVRLittleEndian.encode() not in start: return
    meta = pydicom.filereader.read_file_meta_info(path)
    with open(path, 'rb') as file:
        file.seek(144 + meta.FileMetaInformationGroupLength)  # PS3.10 section 7.1
        deflated = file.read()
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    inflater.decompress(deflated, 4 * MAX_PIXELS)
    if inflater.unconsumed_tail:
        raise Unreadable(f'its dataset is more than {4 * MAX_PIXELS:,} bytes when inflated')

def jpeg2000_header(
    codestream: bytes,  # from its first marker, SOC, on
) -> tuple[int, int, int, int]:  # height, width, bits, channels
    "What the SIZ segment of a JPEG 2000 codestream promises (ITU-T T.800 A.5.1)."
    def number(start, size): return int.from_bytes(codestream[start:start + size])
    width = number(8, 4) - number(16, 4)  # the reference grid minus the offset of the image
    height = number(12, 4) - number(20, 4)
    bits = (number(42, 1) & 127) + 1
    channels = number(40, 2)
    return height, width, bits, channels

FRAME_MARKERS = {*range(0xc0, 0xd0), 0xf7} - {0xc4, 0xc8, 0xcc}  # SOF of JPEG and of JPEG-LS

def jpeg_header(
    stream: bytes,  # JPEG or JPEG-LS
) -> tuple[int, int, int, int]:  # height, width, bits, channels; zeros where it is damaged
    "What the frame header of a JPEG or JPEG-LS stream promises (ITU-T T.81 B.2, T.87 C.2)."
    def number(start, size): return int.from_bytes(stream[start:start + size])
    position = 2
    promised = 0, 0, 0, 0
    while stream[position:position + 1] == b'\xff':
        marker = number(position + 1, 1)
        if marker == 0xda: return promised  # the compressed pixels begin
        if marker in FRAME_MARKERS:
            height, width = number(position + 5, 2), number(position + 7, 2)
            bits, channels = number(position + 4, 1), number(position + 9, 1)
            promised = height, width, bits, channels
        if marker == 0xff: position += 1  # a fill byte
        else: position += 2 + number(position + 2, 2)
    return 0, 0, 0, 0

def stream_header(
    stream: bytes,  # JPEG, JPEG-LS or JPEG 2000
) -> tuple[int, int, int, int]:  # height, width, bits, channels; zeros where it is damaged
    "What the header of a compressed stream promises."
    start = stream.find(b'\xff\x4f\xff\x51')  # a JP2 file has boxes before it
    if start >= 0: return jpeg2000_header(stream[start:start + 43])
    return jpeg_header(stream)

def check_stream(stream: bytes, data: pydicom.Dataset, header: Header):
    "Raises `Unreadable` where a stream ends early or holds another picture than the header promises."
    height, width, bits, channels = stream_header(stream)
    # GDCM also writes extended JPEG of 16 bits, but then reads white where it wrote black.
    syntax = data.file_meta.TransferSyntaxUID
    max_bits = 12 if syntax == JPEGExtended12Bit else 16
    expected = header.height, header.width, data.SamplesPerPixel
    if (height, width, channels) != expected or not 0 < bits <= max_bits:
        raise Unreadable(
            f'its compressed stream promises {width}×{height} pixels of {channels} × {bits} bits, '
            f'its header {header.width}×{header.height} of {data.SamplesPerPixel} × {header.bits}')
    if b'\xff\xd9' not in stream[-1024:]: raise Unreadable('its compressed stream ends early')

def read_stream(
    data: pydicom.Dataset,
    header: Header,
    frame: int,
) -> bytes:
    "The compressed stream of a frame. Raises `Unreadable` as `check_stream` does."
    stream = get_frame(data.PixelData, frame, number_of_frames=header.frames)
    has_header = 'RLE' not in data.file_meta.TransferSyntaxUID.name
    if has_header: check_stream(stream, data, header)
    return stream

def write_stream(
    path: str | Path,
    stream: bytes,  # as `read_stream` gives it
    syntax: str,    # transfer syntax UID
    bits: int,      # of a value
):
    "Write a compressed stream as a DICOM file with the smallest possible header."
    data = pydicom.Dataset()
    data.file_meta = pydicom.dataset.FileMetaDataset()
    data.file_meta.TransferSyntaxUID = syntax
    data.SOPClassUID = SecondaryCaptureImageStorage
    data.SOPInstanceUID = '1.2'
    data.Rows, data.Columns, _, data.SamplesPerPixel = stream_header(stream)
    data.BitsAllocated = 8 if bits <= 8 else 16
    data.BitsStored = bits
    data.HighBit = bits - 1
    data.PixelRepresentation = 0
    data.PhotometricInterpretation = 'RGB' if data.SamplesPerPixel == 3 else 'MONOCHROME2'
    data.PlanarConfiguration = 0
    data.PixelData = encapsulate([stream])
    data.save_as(path, enforce_file_format=True)

def decode_gdcm(
    stream: bytes,  # as `read_stream` gives it
    syntax: str,    # transfer syntax UID
) -> np.ndarray:  # (H, W) or (H, W, 3), unsigned
    """Values of a lossless or 12-bit JPEG or a JPEG-LS stream.

    Raises `Unreadable` where GDCM refuses it.
    """
    height, width, bits, channels = stream_header(stream)
    dtype = np.dtype('<u1' if bits <= 8 else '<u2')
    n_bytes = height * width * channels * dtype.itemsize
    with tempfile.TemporaryDirectory() as folder:
        path = f'{folder}/stream.dcm'
        write_stream(path, stream, syntax, bits)
        buffer = decode_apart(read_gdcm, path, height, width, n_bytes)
    if buffer is None: raise Unreadable('its compressed stream is damaged')
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.frombuffer(buffer, dtype).reshape(shape)

def check_length(
    data: pydicom.Dataset,
    header: Header,
):
    "Raises `Unreadable` where uncompressed pixels are too few for the header, or a picture too many."
    samples = 2 if header.photometric == 'YBR_FULL_422' else data.SamplesPerPixel
    promised = header.frames * header.height * header.width * samples * data.BitsAllocated // 8
    one_frame = promised // header.frames
    if not promised <= len(data.PixelData) < promised + one_frame:
        raise Unreadable(
            f'its pixel data are {len(data.PixelData):,} bytes, its header promises {promised:,}')

PIXEL_TAGS = (
    'Rows', 'Columns', 'NumberOfFrames', 'SamplesPerPixel', 'PhotometricInterpretation',
    'PlanarConfiguration', 'BitsAllocated', 'BitsStored', 'HighBit', 'PixelRepresentation',
    'ExtendedOffsetTable', 'ExtendedOffsetTableLengths', 'PixelData')

def pixels_alone(data: pydicom.Dataset) -> pydicom.Dataset:
    "A dataset with the pixels of another, to be handed to another process."
    alone = pydicom.Dataset()
    alone.file_meta = pydicom.dataset.FileMetaDataset()
    alone.file_meta.TransferSyntaxUID = data.file_meta.TransferSyntaxUID
    for keyword in PIXEL_TAGS:
        if data.get(keyword) is not None: setattr(alone, keyword, data.get(keyword))
    return alone

def decode_stream(
    data: pydicom.Dataset,
    header: Header,
    frame: int,
    stream: bytes,  # of this frame, as `read_stream` gives it
) -> np.ndarray:  # (H, W) or (H, W, 3) RGB
    "A compressed frame, by the decoder that is best for its transfer syntax."
    syntax = data.file_meta.TransferSyntaxUID
    if syntax not in (*JPEGTransferSyntaxes, *JPEGLSTransferSyntaxes):
        options = dict(index=frame, decoding_plugin='pylibjpeg', correct_unused_bits=False)
        return decode_apart(pixel_array, pixels_alone(data), **options)
    if syntax in (JPEGBaseline8Bit, JPEGExtended12Bit) and stream_header(stream)[2] == 8:
        return pixel_array(data, index=frame, decoding_plugin='pillow')
    values = decode_gdcm(stream, syntax)
    if data.SamplesPerPixel == 1 or header.photometric == 'RGB': return values
    return convert_color_space(values, header.photometric, 'RGB')  # (H, W, 3)

def decode(
    data: pydicom.Dataset,
    header: Header,
    frame: int,  # 0…frames-1
) -> np.ndarray:  # (H, W) stored values, or (H, W, 3) RGB
    "One frame as stored."
    is_gray = data.SamplesPerPixel == 1
    if not data.file_meta.TransferSyntaxUID.is_encapsulated:
        check_length(data, header)
        return pixel_array(data, index=frame, correct_unused_bits=False)
    stream = read_stream(data, header, frame)
    values = decode_stream(data, header, frame, stream)
    if is_gray and data.PixelRepresentation: return values.view(f'<i{values.itemsize}')
    has_more_bits = is_gray and stream_header(stream)[2] > header.bits
    return values.clip(max=2**header.bits - 1) if has_more_bits else values  # lossy streams overshoot

def decode_bits(
    stored: np.ndarray,  # integers as stored
    data: pydicom.Dataset,
) -> np.ndarray:  # int64
    """The numbers that stored bits stand for: `BitsStored` of them up to `HighBit`, with their sign.

    The other bits may hold an old overlay and do not count.
    """
    bits = int(data.BitsStored)
    unused_below = max(int(data.get('HighBit') or bits - 1) + 1 - bits, 0)
    values = (stored.astype(np.int64) >> unused_below) & (2**bits - 1)
    if not data.PixelRepresentation: return values
    sign_bit = values >> (bits - 1)
    return values - (sign_bit << bits)  # two's complement

def padding_word(
    data: pydicom.Dataset,
    keyword: str,
) -> int | None:
    "A padding value with the sign of the pixels, whatever sign the file gives it; None where it has none."
    value = data.get(keyword)
    if isinstance(value, bytes): value = int.from_bytes(value[:2], 'little') if value else None
    if value is None or value == '': return None
    if isinstance(value, pydicom.multival.MultiValue): value = value[0]
    word = int(value) & 0xffff
    return word - 2**16 if data.PixelRepresentation and word >= 2**15 else word

def number_of_word(
    word: int,  # of padding, as `padding_word` gives it
    data: pydicom.Dataset,
) -> int:
    "The number that a word stands for; a negative number may be written without the bits above its sign."
    bits = int(data.BitsStored)
    is_unsigned_writing = data.PixelRepresentation and 2**(bits - 1) <= word < 2**bits
    return word - 2**bits if is_unsigned_writing else word

def is_padding(
    stored: np.ndarray,  # integers as stored
    data: pydicom.Dataset,
) -> np.ndarray:  # bool
    """Which values stand for no measurement, as outside the collimated field.

    Source: PixelPaddingValue and its range, PS3.3 C.7.5.1.1.2.
    """
    word = padding_word(data, 'PixelPaddingValue')
    if word is None: return np.zeros(stored.shape, bool)
    limit = padding_word(data, 'PixelPaddingRangeLimit')
    ends = [number_of_word(end, data) for end in (word, word if limit is None else limit)]
    values = decode_bits(stored, data)
    is_within = (min(ends) <= values) & (values <= max(ends))
    return is_within | (stored == word)

def read_lut(
    item: pydicom.Dataset,   # of a ModalityLUTSequence or VOILUTSequence
    signed: bool,            # whether the values to look up may be negative
    byte_order: str = '<',   # '>' in a big endian file
) -> tuple[int, np.ndarray]:  # the value that the first entry stands for; entries
    """A look-up table (PS3.3 C.11.1.1).

    Raises `Unreadable` where entries are missing.
    """
    length, first, _ = map(int, item.LUTDescriptor)
    length = length or 2**16  # 16 bits cannot hold this number, so 0 stands for it
    raw = stored_bytes(item, 'LUTData')
    entry_bytes = 2 if len(raw) >= 2 * length else 1
    entries = np.frombuffer(raw, f'{byte_order}u{entry_bytes}')[:length].astype(np.int64)
    if len(entries) < length:
        raise Unreadable(f'its look-up table has {len(entries)} of {length} entries')
    if signed and first >= 2**15: first -= 2**16
    return first, entries

def apply_lut(
    values: np.ndarray,
    first: int,           # value that the first entry stands for
    entries: np.ndarray,
) -> np.ndarray:
    "The entry of each value. Values outside the table get its first or last entry."
    positions = np.rint(values).astype(np.int64) - first
    return entries[positions.clip(0, len(entries) - 1)]

def byte_order(
    data: pydicom.Dataset,
) -> str:  # '<' little endian, '>' big endian
    "The order of bytes in the words of a file."
    is_little_endian = data.original_encoding[1]
    return '<' if is_little_endian else '>'

def apply_modality(
    values: np.ndarray,
    data: pydicom.Dataset,
) -> np.ndarray:
    "Values after the modality LUT or the rescale, where there is one (PS3.3 C.11.1)."
    order = byte_order(data)
    if data.get('ModalityLUTSequence'):
        lut = read_lut(data.ModalityLUTSequence[0], bool(data.PixelRepresentation), order)
        return apply_lut(values, *lut)
    slope = read_numbers(data, 'RescaleSlope') or [1.]
    intercept = read_numbers(data, 'RescaleIntercept') or [0.]
    if not slope[0]: raise Unreadable('its RescaleSlope is 0')
    return values * slope[0] + intercept[0]

def window(
    values: np.ndarray,
    center: float,             # in the units of `values`
    width: float,
    function: str = 'LINEAR',  # or LINEAR_EXACT, SIGMOID
) -> np.ndarray:  # in [0, 1]
    """A window as PS3.3 C.11.2.1.2 and C.11.2.1.3 define it.

    Raises `Unreadable` for a width that they forbid.
    """
    if width <= 0: raise Unreadable(f'its WindowWidth is {width:g}')
    if function == 'SIGMOID': return expit(4 * (values - center) / width)
    if function == 'LINEAR' and width >= 1:  # below 1 it can only be meant exactly, after a small slope
        center = center - .5
        width = width - 1
    if not width: return (values > center).astype(float)
    return ((values - center) / width + .5).clip(0, 1)

WINDOW_FUNCTIONS = {name: name for name in ('', 'LINEAR', 'LINEAR_EXACT', 'SIGMOID')}

def apply_voi(
    values: np.ndarray,
    data: pydicom.Dataset,
) -> tuple[np.ndarray, tuple[float, float] | None]:  # gray; its black and white, if defined
    "Values of interest: through the first VOI LUT, else the first window, else all (PS3.3 C.11.2)."
    if data.get('VOILUTSequence'):
        first, entries = read_lut(data.VOILUTSequence[0], bool(values.min() < 0), byte_order(data))
        return apply_lut(values, first, entries), (float(entries.min()), float(entries.max()))
    pairs = zip(read_numbers(data, 'WindowCenter'), read_numbers(data, 'WindowWidth'))
    windows = [(center, width) for center, width in pairs if width > 0]  # viewers ignore the others
    if not windows: return values, None
    function = known_word(data, 'VOILUTFunction', WINDOW_FUNCTIONS) or 'LINEAR'
    return window(values, *windows[0], function), (0., 1.)

def occurs(
    candidates: np.ndarray,  # (n,) values that might occur
    stored: np.ndarray,      # (H, W) of the same number type
) -> np.ndarray:  # (n,) bool
    "Which candidates are among the stored values."
    unsigned = f'u{stored.itemsize}'
    is_stored = np.zeros(2**(8 * stored.itemsize), bool)
    is_stored[stored.view(unsigned)] = True
    return is_stored[candidates.view(unsigned)]

def sets_scale(
    stored: np.ndarray,      # (H, W)
    candidates: np.ndarray,  # (n,) the values from its smallest to its largest
    gray: np.ndarray,        # (n,) what each becomes
    padding: np.ndarray,     # (n,) bool
) -> np.ndarray:  # (n,) bool
    """Which candidates set the scale.

    Both ends where gray rises or falls with the value, else those that occur and are no padding.
    """
    steps = np.diff(gray)
    is_monotonic = (steps >= 0).all() or (steps <= 0).all()
    if is_monotonic and not padding.any(): return np.isin(candidates, candidates[[0, -1]])
    occurring = occurs(candidates, stored)
    measured = occurring & ~padding
    return measured if measured.any() else occurring

def look_up(
    stored: np.ndarray,      # (H, W)
    candidates: np.ndarray,  # (n,) stored values, of the same number type
    results: np.ndarray,     # (n,) what each becomes
) -> np.ndarray:  # (H, W) float32; 0 for what is no candidate
    "The result of each stored value, from a table of all values that its bits can hold."
    unsigned = f'u{stored.itemsize}'
    table = np.zeros(2**(8 * stored.itemsize), np.float32)
    table[candidates.view(unsigned)] = results
    return table[stored.view(unsigned)]

def display_values(
    stored: np.ndarray,  # (H, W)
    data: pydicom.Dataset,
    photometric: str,    # of its header
) -> np.ndarray:  # (H, W) float32 in [0, 1]; as stored where nothing has to be done
    "A gray frame as a viewer shows it."
    candidates = np.arange(int(stored.min()), int(stored.max()) + 1).astype(stored.dtype)
    values = decode_bits(candidates, data)
    padding = is_padding(candidates, data)
    gray, span = apply_voi(apply_modality(values, data), data)
    inverse = known_word(data, 'PresentationLUTShape', {'INVERSE': 'INVERSE'})
    inverted = photometric == 'MONOCHROME1' or inverse == 'INVERSE'
    if not padding.any() and not inverted and np.array_equal(gray, candidates): return stored
    black, white = span or value_span(gray[sets_scale(stored, candidates, gray, padding)])
    unit = (white - gray if inverted else gray - black) / max(white - black, 1e-12)
    return look_up(stored, candidates, np.where(padding, 0, unit.clip(0, 1)))

def fill_absent(data: pydicom.Dataset):
    "Add what a file leaves out, where it can be one thing only: one unsigned sample that fills its bits."
    def add(keyword, value):
        if data.get(keyword) in (None, ''): setattr(data, keyword, value)

    is_colour = known_word(data, 'PhotometricInterpretation', PHOTOMETRIC)[:3] in ('RGB', 'YBR')
    add('SamplesPerPixel', 3 if is_colour else 1)
    add('PixelRepresentation', 0)
    if is_colour: add('PlanarConfiguration', 0)
    stored, allocated = read_counts(data, 'BitsStored', 'BitsAllocated')
    if stored and not allocated: add('BitsAllocated', 8 if stored <= 8 else 16)
    if allocated: add('BitsStored', allocated)
    if stored or allocated: add('HighBit', data.BitsStored - 1)

def open_dicom(
    path: str | Path,
    **options,  # of pydicom.dcmread
) -> pydicom.Dataset:
    """The elements of `DICOM_TAGS` that a file has.

    A file without a transfer syntax (written before 1993, or carelessly) is taken as it was read.
    """
    with open(path, 'rb') as file: start = file.read(1024)
    check_inflated(path, start)
    data = pydicom.dcmread(path, force=True, specific_tags=list(DICOM_TAGS), **options)
    if not data.file_meta.get('TransferSyntaxUID'):
        is_implicit = data.original_encoding[0]
        syntax = ImplicitVRLittleEndian if is_implicit else ExplicitVRLittleEndian
        data.file_meta.TransferSyntaxUID = syntax
    fill_absent(data)
    return data

def read_dicom(
    path: str | Path,
    frame: int | None = None,  # 0…frames-1, None where there is only one
) -> tuple[np.ndarray, Header]:  # (H, W) or (H, W, 3), large is white
    "Pixels of a DICOM file as a viewer shows them."
    data = open_dicom(path)
    if not data.get_item('PixelData'): raise Unreadable('it holds no pixel data')
    header = dicom_header(data)
    stored = decode(data, header, choose_frame(header.frames, frame))
    if header.photometric == 'PALETTE COLOR': return apply_color_lut(stored, data), header
    if stored.ndim == 3: return stored, header
    return display_values(stored, data, header.photometric), header

def absent_element(error: AttributeError) -> str:
    "What is wrong with a file whose reading ended in this error: the element that it lacks, if that is it."
    name = error.name or (re.findall(r"attribute '(\w+)'", str(error)) or [''])[-1]
    return f'it lacks its {name}' if tag_for_keyword(name) else 'it is damaged (AttributeError)'

@contextmanager
def errors_naming(
    path: str | Path,
):
    "Turn every failure inside into a `UserError` that names the path, but nothing of the content."
    try: yield
    except UserError: raise  # of a package that is missing: no fault of the file
    except (Unreadable, DecoderDied) as e: reason = str(e)
    except UnidentifiedImageError: reason = 'it is no PNG, JPEG, TIFF or DICOM file'
    except Image.DecompressionBombError: reason = f'it has more than {MAX_PIXELS:,} pixels'
    except MemoryError: reason = 'it asks for more memory than there is'
    except OSError as e: reason = e.strerror or ' '.join(str(e).replace(str(path), 'it').split())
    except AttributeError as e: reason = absent_element(e)
    except Exception as e: reason = f'it is damaged ({type(e).__name__})'
    else: return
    advice = 'mend or replace the file, or leave it out of the table'
    raise UserError(f'cannot read {path}: {reason}; {advice}') from None

def is_dicom(
    path: str | Path,
) -> bool:
    """Whether a file is to be read as DICOM.

    Raises `Unreadable` for an empty file, and for a device or a pipe, which may never end.
    """
    def open_without_waiting(name, flags): return os.open(name, flags | getattr(os, 'O_NONBLOCK', 0))
    with open(path, 'rb', opener=open_without_waiting) as file:
        is_regular = stat.S_ISREG(os.fstat(file.fileno()).st_mode)
        if not is_regular: raise Unreadable('it is no regular file')
        start = file.read(132)
    if not start: raise Unreadable('it is empty')
    return start[128:] == b'DICM' or str(path).lower().endswith(('.dcm', '.dicom'))

def read_pixels(
    path: str | Path,
    frame: int | None = None,  # of a file that holds several
) -> tuple[np.ndarray, Header]:  # (H, W) or (H, W, 3), any number type, large is white
    """Pixels and header of a radiograph file.

    Every failure is a `UserError` that names the path.
    """
    with errors_naming(path):
        if is_dicom(path): return read_dicom(path, frame)
        return read_picture(path, frame)

@dataclass(frozen=True)
class Geometry:
    "Where an image lies in the square made of it, in pixels of the square."
    height: int  # of the original
    width: int
    size: int    # of the square
    rows: int    # of the resized image
    cols: int
    top: int     # row of the square where the resized image begins; negative: cut off
    left: int

    @property
    def scale(self) -> tuple[float, float]:
        "Pixels of the square for one of the original, down and across."
        return self.rows / self.height, self.cols / self.width

    def to_original(self, y: float, x: float) -> tuple[float, float]:
        """The point of the original (0 = upper or left edge) under the point (y, x) of the square.

        `to_square` is the inverse.
        """
        return (y - self.top) * self.height / self.rows, (x - self.left) * self.width / self.cols

    def to_square(self, y: float, x: float) -> tuple[float, float]:
        "The point of the square under the point (y, x) of the original; `to_original` is the inverse."
        return y * self.rows / self.height + self.top, x * self.cols / self.width + self.left

    def cell_box(self, row: int, col: int, grid: int) -> tuple[float, float, float, float]:
        """One cell of a grid × grid division of the square, in pixels of the original.

        The order is top, left, bottom, right.
        """
        side = self.size / grid
        upper_left = self.to_original(row * side, col * side)
        lower_right = self.to_original((row + 1) * side, (col + 1) * side)
        return *upper_left, *lower_right

POLICIES = ('pad', 'crop', 'official')

def check_policy(policy: str):
    "Raises `UserError` for a policy that is none of the `POLICIES`."
    if policy not in POLICIES:
        raise UserError(f'no such policy: {policy}; choose one of {", ".join(POLICIES)}')

def geometry(
    height: int,          # of the original, pixels
    width: int,
    size: int,            # of the square, pixels
    policy: str = 'pad',  # pad: all of the image, black beside it; crop, official: its centre
    aspect: float = 1.,   # height by width of a pixel
) -> Geometry:
    "How an image of this shape is laid into a square, so that its pixels are square there."
    check_policy(policy)
    tall = height * aspect  # in widths of a pixel
    fitted_side = max(tall, width) if policy == 'pad' else min(tall, width)
    scale = size / fitted_side
    rows = max(1, round(scale * tall))
    cols = max(1, round(scale * width))
    top = int((size - rows) / 2)
    left = int((size - cols) / 2)
    return Geometry(height, width, size, rows, cols, top, left)

def lanczos_weights(
    old_size: int,  # pixels along one side
    new_size: int,
) -> csr_array:  # (new_size, old_size) float32; each row sums to 1
    """The weights that resize a column of pixels, with anti-aliasing.

    Source: [Duchon 1979](https://doi.org/10.1175/1520-0450(1979)018%3C1016:LFIOAT%3E2.0.CO;2).
    """
    scale = max(old_size / new_size, 1)
    centers = (np.arange(new_size) + .5) * old_size / new_size
    first = np.maximum((centers - 3 * scale + .5).astype(int), 0)
    stop = np.minimum((centers + 3 * scale + .5).astype(int), old_size)
    columns = first[:, None] + np.arange((stop - first).max())  # (new_size, n)
    distance = (columns - centers[:, None] + .5) / scale
    is_near = columns < stop[:, None]
    weights = np.sinc(distance) * np.sinc(distance / 3) * is_near
    weights /= weights.sum(1, keepdims=True)
    row_starts = np.r_[0, is_near.sum(1).cumsum()]
    values = weights[is_near].astype(np.float32)
    return csr_array((values, columns[is_near], row_starts), shape=(new_size, old_size))

def visible_part(start: int, size: int) -> slice:
    "The rows (or columns) of a resized image in a square of `size`, where its first one lies at `start`."
    cut_off = max(-start, 0)
    return slice(cut_off, cut_off + size)

def resize_visible(
    unit: np.ndarray,    # (H, W) float32
    geometry: Geometry,  # of this image
) -> np.ndarray:  # (h, w) float32; (size, size) at most
    "The part of a resized image that the square shows, by Lanczos with anti-aliasing."
    rows = visible_part(geometry.top, geometry.size)
    cols = visible_part(geometry.left, geometry.size)
    if unit.shape == (geometry.rows, geometry.cols): return unit[rows, cols]
    down = lanczos_weights(geometry.height, geometry.rows)[rows]
    across = lanczos_weights(geometry.width, geometry.cols)[cols]
    return (across @ np.ascontiguousarray((down @ unit).T)).T

def fit_square(
    unit: np.ndarray,      # (H, W) float32
    size: int,             # of the square, pixels
    policy: str = 'pad',   # pad or crop
    aspect: float = 1.,    # height by width of a pixel
) -> np.ndarray:  # (size, size) float32
    "An image in a square, resized by Lanczos with anti-aliasing; black where it does not reach."
    g = geometry(*unit.shape, size, policy, aspect)
    visible = resize_visible(unit, g)
    top = max(g.top, 0)
    left = max(g.left, 0)
    square = np.zeros((size, size), np.float32)
    square[top:top + visible.shape[0], left:left + visible.shape[1]] = visible
    return square

def stretch(pixels: np.ndarray) -> np.ndarray:
    "Values between their 1st and 99th percentile, stretched to 0…255."
    low, high = np.percentile(pixels, [1, 99])
    # The small number decides the rounding: without it 3% of a real image's tokens differ.
    return (np.clip(pixels, low, high) - low) / (high - low + 1e-8) * 255

def fit_official(
    pixels: np.ndarray,  # (H, W) or (H, W, 3)
    is_jpeg: bool,       # a JPEG keeps its values; all else is clipped and stretched, as a PNG
    size: int,
    aspect: float = 1.,  # height by width of a pixel
) -> np.ndarray:  # (size, size) float32 in [0, 1]
    "The preprocessing of the released weights, up to the scale (they expect 2u − 1)."
    if not is_jpeg: pixels = stretch(pixels)
    picture = Image.fromarray(pixels.astype(np.uint8)).convert('L')
    g = geometry(*pixels.shape[:2], size, 'official', aspect)
    if picture.size != (g.cols, g.rows):
        picture = picture.resize((g.cols, g.rows), Image.Resampling.LANCZOS)
    square = picture.crop((-g.left, -g.top, size - g.left, size - g.top))
    return np.array(square).astype(np.float32) / 255

def check_array(
    pixels: np.ndarray,  # (H, W), (H, W, 1), (H, W, 2) with transparency, or (H, W, 3)
) -> np.ndarray:  # (H, W) or (H, W, 3)
    """`pixels`, if they can be a radiograph, without transparency.

    Raises `UserError` that says why not.
    """
    if pixels.ndim == 3 and pixels.shape[2] in (1, 2): pixels = pixels[..., 0]
    is_image = pixels.ndim == 2 or pixels.ndim == 3 and pixels.shape[2] == 3
    if not is_image or not pixels.size:
        shape = tuple(pixels.shape)
        raise UserError(f'an array of shape {shape} is no radiograph: give (H, W) gray or (H, W, 3) RGB')
    if pixels.dtype.kind not in 'buif' or not np.isfinite(pixels).all():
        raise UserError(
            f'array of {pixels.dtype} holds something else than finite numbers: clean it first')
    try: check_size(pixels.shape[1], pixels.shape[0])
    except Unreadable as e: raise UserError(f'cannot use the array: {e}; cut it first') from None
    return pixels

@dataclass(frozen=True)
class Radiograph:
    "A radiograph as a square, the way back to its pixels, and what its file says of it."
    image: np.ndarray   # (size, size) float32 in [0, 1], large is white
    geometry: Geometry
    header: Header

def array_header(pixels: np.ndarray) -> Header:
    "What can be said of pixels (H, W) or (H, W, 3) that no file describes."
    photometric = 'MONOCHROME2' if pixels.ndim == 2 else 'RGB'
    return Header(*pixels.shape[:2], 8 * pixels.itemsize, photometric)

def make_square(
    pixels: np.ndarray,  # (H, W) or (H, W, 3), any number type
    size: int,
    policy: str,
    is_jpeg: bool,       # by the content of the file; counts under `official` alone
    aspect: float = 1.,  # height by width of a pixel
) -> np.ndarray:  # (size, size) float32 in [0, 1]
    "Pixels as a square, by any of the `POLICIES`."
    if policy == 'official': return fit_official(pixels, is_jpeg, size, aspect)
    square = fit_square(to_unit(pixels), size, policy, aspect)
    return square.clip(0, 1)  # Lanczos overshoots at edges

def tensor_pixels(
    tensor: torch.Tensor,  # (H, W), (H, W, 3), or (C, H, W) with one or three channels
) -> np.ndarray:  # (H, W) or (H, W, 3)
    "A tensor as an array, its channels last."
    pixels = tensor.detach().cpu()
    if pixels.dtype == torch.bfloat16: pixels = pixels.float()
    pixels = pixels.numpy()
    has_channels_first = pixels.ndim == 3 and len(pixels) in (1, 3) and pixels.shape[2] not in (1, 3)
    return pixels.transpose(1, 2, 0) if has_channels_first else pixels

def pixels_of(
    source,            # a path; an array, a tensor; or a picture of Pillow
    frame: int | None, # of a file that holds several
) -> tuple[np.ndarray, Header]:  # (H, W) or (H, W, 3), any number type, large is white
    "Pixels and header, from a file or from memory. Raises `UserError` for anything else."
    if isinstance(source, torch.Tensor): source = tensor_pixels(source)
    if isinstance(source, np.ndarray):
        pixels = check_array(source)
        return pixels, array_header(pixels)
    if isinstance(source, Image.Image):
        with errors_naming('the picture'): return picture_pixels(source, frame)
    if isinstance(source, (str, os.PathLike)): return read_pixels(source, frame)
    raise UserError(f'a {type(source).__name__} is no radiograph: give a path, an array or tensor (H, W), '
                    'or a picture of Pillow')

def is_jpeg(
    source,  # as for `pixels_of`
) -> bool:
    "Whether a radiograph is a JPEG, by its content."
    if isinstance(source, Image.Image): return source.format in ('JPEG', 'MPO')
    if not isinstance(source, (str, os.PathLike)): return False
    with errors_naming(source), open(source, 'rb') as file: return file.read(3) == b'\xff\xd8\xff'

def open_radiograph(
    path: str | Path | np.ndarray,  # PNG, JPEG, TIFF, DICOM; pixels (H, W) or (H, W, 3); a picture
    size: int,                      # of the square, pixels
    policy: str = 'pad',            # pad, crop or official, see `geometry`
    frame: int | None = None,       # of a file that holds several: 0…frames-1
) -> Radiograph:
    """A radiograph with its geometry and header.

    Raises `UserError` that names the file where it cannot be read.
    """
    check_policy(policy)
    pixels, header = pixels_of(path, frame)
    image_geometry = geometry(*pixels.shape[:2], size, policy, header.aspect)
    keeps_values = policy == 'official' and is_jpeg(path)
    name = path if isinstance(path, (str, os.PathLike)) else 'the array'
    with memory_errors(f'{name} is too large for it; make it smaller, or leave it out of the table'):
        square = make_square(pixels, size, policy, keeps_values, header.aspect)
    return Radiograph(square, image_geometry, header)

def read_radiograph(
    path: str | Path | np.ndarray,  # PNG (8, 16 bit), JPEG, TIFF, DICOM; or pixels (H, W) or (H, W, 3)
    size: int,                      # of the square, pixels
    policy: str = 'pad',            # pad, crop or official, see `geometry`
    frame: int | None = None,       # of a file that holds several: 0…frames-1
) -> np.ndarray:  # (size, size) float32 in [0, 1], large is white
    "The square of `open_radiograph` alone."
    return open_radiograph(path, size, policy, frame).image

def read_images(
    paths: Iterable,      # of B radiographs: files or arrays, as for `read_radiograph`
    size: int,            # pixels on each side
    policy: str = 'pad',  # how an image becomes a square: pad, crop or official
) -> torch.Tensor:  # (B, H, W) float32 in [0, 1]
    "Read radiographs side by side in threads."
    def read(path): return read_radiograph(path, size, policy)
    with ThreadPoolExecutor(os.cpu_count()) as pool: images = list(pool.map(read, paths))
    return torch.from_numpy(np.stack(images))

@dataclass(frozen=True)
class VQConfig:
    "Sizes of the network; each level of `channel_mult` but the last halves the image."
    image_size: int
    in_channels: int     # 1 gray, 3 as released
    channels: int        # width of the first level
    channel_mult: tuple  # width of each level, as a multiple
    res_blocks: int      # residual blocks a level
    n_codes: int         # K
    code_dim: int        # D
    beta: float = .25    # weight of the commitment loss
    legacy: bool = False # True: beta on the codebook's term, as first released (`VectorQuantizer`)

    @property
    def grid(self): return self.image_size // 2**(len(self.channel_mult) - 1)

    @property
    def widths(self): return [self.channels * multiple for multiple in self.channel_mult]

def norm(channels: int) -> nn.GroupNorm:
    "GroupNorm as in the published network."
    return nn.GroupNorm(32 if channels % 32 == 0 else channels // 4, channels, eps=1e-6)

class ResnetBlock(nn.Module):
    "Two normalized 3×3 convolutions beside a shortcut; (B, C_in, H, W) → (B, C_out, H, W)."
    def __init__(self, c_in: int, c_out: int):
        super().__init__()
        self.norm1 = norm(c_in)
        self.conv1 = nn.Conv2d(c_in, c_out, 3, padding=1)
        self.norm2 = norm(c_out)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, padding=1)
        if c_in != c_out: self.nin_shortcut = nn.Conv2d(c_in, c_out, 1)

    def forward(self, x):
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return h + (self.nin_shortcut(x) if hasattr(self, 'nin_shortcut') else x)

class AttnBlock(nn.Module):
    "Self-attention of one head over all grid positions; (B, C, h, w) → same."
    def __init__(self, channels: int):
        super().__init__()
        self.norm = norm(channels)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(channels, channels, 1) for _ in range(4))

    def forward(self, x):
        h = self.norm(x)
        q, k, v = (conv(h).flatten(2).transpose(1, 2) for conv in (self.q, self.k, self.v))  # (B, hw, C)
        h = F.scaled_dot_product_attention(q, k, v)
        return x + self.proj_out(h.transpose(1, 2).reshape(x.shape))  # (B, C, h, w)

class Downsample(nn.Module):
    "Halve the image; (B, C, H, W) → (B, C, H/2, W/2)."
    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x): return self.conv(F.pad(x, (0, 1, 0, 1)))

class Upsample(nn.Module):
    "Double the image; (B, C, H, W) → (B, C, 2H, 2W)."
    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x): return self.conv(F.interpolate(x, scale_factor=2.))

class Middle(nn.Module):
    "Block, attention, block at the coarsest grid; (B, C, h, w) → same."
    def __init__(self, channels: int):
        super().__init__()
        self.block_1 = ResnetBlock(channels, channels)
        self.attn_1 = AttnBlock(channels)
        self.block_2 = ResnetBlock(channels, channels)

    def forward(self, x): return self.block_2(self.attn_1(self.block_1(x)))

class Level(nn.Module):
    "One resolution's residual blocks; (B, C_in, H, W) → (B, C_out, H, W)."
    def __init__(self, c_in: int, c_out: int, n_blocks: int):
        super().__init__()
        widths = [c_in, *[c_out] * n_blocks]
        self.block = nn.ModuleList(ResnetBlock(a, b) for a, b in zip(widths, widths[1:]))

    def forward(self, x):
        for block in self.block: x = block(x)
        return x

class Encoder(nn.Module):
    "(B, C, H, W) in [-1, 1] → (B, D, h, w)."
    def __init__(self, config: VQConfig):
        super().__init__()
        widths = config.widths
        self.conv_in = nn.Conv2d(config.in_channels, config.channels, 3, padding=1)
        pairs = zip([config.channels, *widths], widths)  # a level starts at the width of the last
        self.down = nn.ModuleList(Level(c_in, c_out, config.res_blocks) for c_in, c_out in pairs)
        for level, width in zip(self.down[:-1], widths): level.downsample = Downsample(width)
        self.mid = Middle(widths[-1])
        self.norm_out = norm(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], config.code_dim, 3, padding=1)

    def forward(self, x):
        h = self.conv_in(x)
        for level in self.down:
            h = level(h)
            if hasattr(level, 'downsample'): h = level.downsample(h)
        return self.conv_out(F.silu(self.norm_out(self.mid(h))))

class Decoder(nn.Module):
    "(B, D, h, w) → (B, C, H, W), not clipped."
    def __init__(self, config: VQConfig):
        super().__init__()
        widths = config.widths
        self.conv_in = nn.Conv2d(config.code_dim, widths[-1], 3, padding=1)
        self.mid = Middle(widths[-1])
        pairs = zip([*widths[1:], widths[-1]], widths)  # from the finest level to the coarsest
        self.up = nn.ModuleList(Level(c_in, c_out, config.res_blocks + 1) for c_in, c_out in pairs)
        for level, width in zip(self.up[1:], widths[1:]): level.upsample = Upsample(width)
        self.norm_out = norm(widths[0])
        self.conv_out = nn.Conv2d(widths[0], config.in_channels, 3, padding=1)

    def forward(self, z):
        h = self.mid(self.conv_in(z))
        for level in reversed(self.up):
            h = level(h)
            if hasattr(level, 'upsample'): h = level.upsample(h)
        return self.conv_out(F.silu(self.norm_out(h)))

@torch.no_grad()
def nearest(
    vectors: torch.Tensor,  # (n, D)
    entries: torch.Tensor,  # (K, D)
    room: int = 2**22,      # distances at a time
) -> torch.Tensor:  # (n,)
    "Index of the entry nearest to each vector, in float32; the first of equally near ones."
    with torch.autocast(vectors.device.type, enabled=False):
        vectors, entries = vectors.float(), entries.float()
        half_squares = entries.square().sum(1) / 2  # (K,)
        blocks = vectors.split(max(1, room // len(entries)))
        indices = [torch.addmm(half_squares, block, entries.T, alpha=-1).argmin(1) for block in blocks]
        return torch.cat(indices)

class VectorQuantizer(nn.Module):
    """Nearest codebook entry; (B, D, h, w) → the same shape, the loss, and codes (B, h, w).

    It computes in float32 under autocast, too.
    """
    def __init__(self, config: VQConfig):
        super().__init__()
        self.beta, self.legacy = config.beta, config.legacy
        self.embedding = nn.Embedding(config.n_codes, config.code_dim)
        nn.init.uniform_(self.embedding.weight, -1 / config.n_codes, 1 / config.n_codes)

    def codes(self, z):
        "Codes (B, h, w) of vectors (B, D, h, w)."
        vectors = z.permute(0, 2, 3, 1).flatten(0, 2)  # (B·h·w, D)
        return nearest(vectors, self.embedding.weight).view(z.shape[0], *z.shape[2:])

    def lookup(self, codes):
        "Vectors (B, D, h, w) of codes (B, h, w)."
        return self.embedding(codes).permute(0, 3, 1, 2)

    def forward(self, z):
        with torch.autocast(z.device.type, enabled=False):
            z = z.float()
            codes = self.codes(z)
            quantized = self.lookup(codes)
            commitment = F.mse_loss(z, quantized.detach())
            codebook = F.mse_loss(quantized, z.detach())
            loss = self.beta * commitment + codebook
            if self.legacy: loss = commitment + self.beta * codebook
            return z + (quantized - z).detach(), loss, codes

@contextmanager
def full_float32(
    device: torch.device,  # where the network computes
):
    "Within it products are in float32: no TF32, no bfloat16, no autocast, no algorithm found by trial."
    backends, cudnn = torch.backends, torch.backends.cudnn
    kinds = backends.cudnn.conv, backends.cuda.matmul, backends.mkldnn.conv, backends.mkldnn.matmul
    precisions = [kind.fp32_precision for kind in kinds]
    choices = cudnn.benchmark, cudnn.deterministic
    try:
        for kind in kinds: kind.fp32_precision = 'ieee'
        cudnn.benchmark, cudnn.deterministic = False, True
        with torch.autocast(device.type, enabled=False): yield
    finally:
        for kind, precision in zip(kinds, precisions): kind.fp32_precision = precision
        cudnn.benchmark, cudnn.deterministic = choices

class VQModel(nn.Module):
    "Image tokenizer; parameters named as in taming-transformers."
    def __init__(self, config: VQConfig):
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.quantize = VectorQuantizer(config)
        self.quant_conv = nn.Conv2d(config.code_dim, config.code_dim, 1)
        self.post_quant_conv = nn.Conv2d(config.code_dim, config.code_dim, 1)

    def features(self, x): return self.quant_conv(self.encoder(x))  # (B, C, H, W) → (B, D, h, w)

    def encode(self, x):
        "Codes (B, h, w) of images (B, C, H, W) in [-1, 1], in `full_float32`."
        with full_float32(x.device): return self.quantize.codes(self.features(x))

    def decode(self, codes):
        "Images (B, C, H, W), about [-1, 1], of codes (B, h, w), in `full_float32`."
        return self.decode_vectors(self.quantize.lookup(codes))

    def decode_vectors(self, vectors):
        "The same of vectors (B, D, h, w), those of codes or what lies between them."
        with full_float32(vectors.device): return self.decoder(self.post_quant_conv(vectors))

    def forward(self, x):
        quantized, loss, codes = self.quantize(self.features(x))
        return self.decoder(self.post_quant_conv(quantized)), loss, codes

    def save_pretrained(
        self,
        folder: str | Path,
    ):
        "Write `config.json` and `model.safetensors`, complete or not at all, and seal them."
        state = {name: tensor.contiguous().cpu() for name, tensor in self.state_dict().items()}
        with atomic(folder) as part:
            write_json(part/'config.json', asdict(self.config))
            save_file(state, part/'model.safetensors')
            seal(part)

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
    ) -> VQModel:
        """The tokenizer saved in `folder`, in eval mode.

        Raises `UserError` where a file or a key is missing, or damaged.
        """
        folder = Path(folder)
        check_seal(folder)
        sizes, weights = read_json(folder/'config.json'), folder/'model.safetensors'
        try: config = VQConfig(**sizes | {'channel_mult': tuple(sizes['channel_mult'])})
        except (TypeError, KeyError) as e:
            raise UserError(f'{folder}/config.json does not give the sizes of an image tokenizer ({e}): '
                            'take the file that was saved with the weights') from e
        if not weights.exists(): raise UserError(f'no weights at {weights}: train with 03_tokenizer first')
        try: state = load_file(weights)
        except SafetensorError as e:
            raise UserError(f'{weights} is no complete safetensors file ({e}): copy or train it again') from e
        model = cls(config)
        load_strictly(model, state, f'{folder.name}/model.safetensors')
        return model.eval()

def check_keys(
    own: dict,    # parameter name → tensor of the model; shapes are enough (`meta` device)
    state: dict,  # parameter name → tensor to be loaded, likewise
    source: str,  # named in the error
):
    "Raise a `UserError` that names the missing, unexpected or misshapen keys of `state`, if there are any."
    shared = sorted(own.keys() & state.keys())
    wrong = {
        'missing': sorted(own.keys() - state.keys()),
        'unexpected': sorted(state.keys() - own.keys()),
        'of another shape': [f'{key} {tuple(state[key].shape)}, not {tuple(own[key].shape)}'
                             for key in shared if own[key].shape != state[key].shape]}
    problems = [f'{len(keys)} keys {problem} ({", ".join(keys[:3])} …)'
                for problem, keys in wrong.items() if keys]
    if problems:
        raise UserError(f'{source} does not fit the model: {"; ".join(problems)}: '
                        'is it for another configuration?')

def load_strictly(
    model: nn.Module,
    state: dict,       # parameter name → tensor
    source: str,       # named in the error
):
    "Load `state` into `model`. Raises `UserError` with the missing, unexpected or misshapen keys."
    check_keys(model.state_dict(), state, source)
    model.load_state_dict(state)

SPECIALS = ('<|endoftext|>', '<|img|>', '<|/img|>')  # ids 0, 1, 2; names as released

ORDERS = 'image first', 'text first'

def image_ids(
    codes: torch.Tensor,  # (n,) image codes; of two images (2n,)
    layout: Layout,
) -> torch.Tensor:  # (n + 1,), or (2n + 3,)
    "Ids of the codes and of what ends an image; what begins it stands before the second one only."
    ids = codes_to_ids(torch.as_tensor(codes, dtype=torch.long), layout)
    start, end = torch.tensor([layout.image_start]), torch.tensor([layout.image_end])
    images = [torch.cat([start, image, end]) for image in ids.split(layout.n_image)]
    return torch.cat(images)[1:]

def sequence(
    codes: torch.Tensor | None,     # (n,), or (2n,) of two images; None leaves it open for an image
    text_ids: torch.Tensor | None,  # (t,) text ids; None leaves the sequence open for a report
    layout: Layout,
    order: str = 'image first',     # or 'text first'
) -> torch.Tensor:  # (T,) ids
    """A study as ids: `I_s codes I_e T_s text I_s`, or `T_s text I_s codes I_e T_s`.

    A second image stands behind the first as another `I_s codes I_e`.
    The sequence is left open where the second part is not given.
    Raises `UserError` where the first part is missing.
    """
    if order not in ORDERS: raise UserError(f'no such order: {order}; choose one of {", ".join(ORDERS)}')
    image = None if codes is None else image_ids(codes, layout)
    text = None if text_ids is None else torch.as_tensor(text_ids, dtype=torch.long)
    parts = [(torch.tensor([layout.image_start]), image), (torch.tensor([layout.text_start]), text)]
    if order == 'text first': parts.reverse()
    (start, first), (next_start, second) = parts
    if first is None: raise UserError(f'a sequence with the {order} needs the {order.split()[0]}')
    if second is None: return torch.cat([start, first, next_start])
    return torch.cat([start, first, next_start, second, start])

def collate(
    rows: list[dict],  # with `codes` and `text_ids`
    layout: Layout,
    order: str = 'image first',  # or 'text first'
    longest: int = 0,  # ids of a sequence; 0 = any number
    side: str = 'right',  # where pads stand, or 'left'
) -> BatchFeature:  # input_ids and attention_mask, both (B, T)
    """Sequences of several studies, padded with the pad id.

    Raises `UserError` for one that is too long.
    """
    ids = [sequence(row['codes'], row['text_ids'], layout, order) for row in rows]
    for i, row in enumerate(ids):
        excess = len(row) - longest
        if longest and excess > 0:
            raise UserError(f'study {i} has {len(row)} ids, more than {longest}: '
                            f'shorten its text by {excess} ids, or take a longer context')
    input_ids = torch.nn.utils.rnn.pad_sequence(
        ids, batch_first=True, padding_value=layout.pad, padding_side=side)  # (B, T)
    return BatchFeature(dict(input_ids=input_ids, attention_mask=(input_ids != layout.pad).long()))

def check_layout(
    config: VQConfig,  # of the image tokenizer
    layout: Layout,
):
    "Raise `UserError` where the image tokenizer's codes do not fit the layout."
    if (config.grid, config.n_codes) == (layout.grid, layout.n_codes): return
    raise UserError(f'the image tokenizer gives {config.grid}×{config.grid} codes of {config.n_codes}, '
                    f'the layout has room for {layout.grid}×{layout.grid} of {layout.n_codes}: '
                    'take the two that were saved together')

def list_images(
    images,  # a path, a picture, pixels (H, W) or (H, W, 3), or a row of them; (B, H, W) is a batch
) -> list:
    "Images as a list. Raises `UserError` for what is no image, an empty row, or an unclear shape."
    if isinstance(images, (str, os.PathLike, Image.Image)): return [images]
    is_pixels = isinstance(images, torch.Tensor) or getattr(images, 'dtype', object) != object
    shape = tuple(getattr(images, 'shape', ()))
    if is_pixels and (len(shape) == 2 or len(shape) == 3 and shape[2] in (1, 3)): return [images]
    if is_pixels and len(shape) == 3 and shape[0] == 3:
        raise UserError(f'pixels of shape {shape} are three gray images or one in colour: give a list of '
                        'three, or (H, W, 3)')
    if not isinstance(images, Iterable) or isinstance(images, (bytes, dict)):
        raise UserError(f'a {type(images).__name__} is no radiograph: give a path, a picture of Pillow, '
                        'an array or tensor (H, W), or a list of them')
    images = list(images)
    if not images: raise UserError('an empty list holds no radiograph: give at least one')
    return images

def list_studies(
    images,  # as for `list_images`, one a study; or a list of studies, each a list of images
) -> list[list]:
    "The images of each study, the frontal one first. Raises `UserError` for a study without images."
    images = list_images(images)
    return [list_images(study) if isinstance(study, (list, tuple)) else [study] for study in images]

class ChexmixImageProcessor(ImageProcessingMixin):
    "Radiographs as the image tokenizer's network reads them."
    model_input_names = ['pixel_values']

    def __init__(
        self,
        image_size: int = 512,  # pixels on each side
        channels: int = 1,      # of the network
        policy: str = 'pad',    # how an image becomes a square (`radiograph`)
        **kwargs,               # as transformers keeps them
    ):
        super().__init__(**kwargs)
        self.image_size, self.channels, self.policy = image_size, channels, policy

    def read(self, images) -> torch.Tensor:
        "Images, see `list_images`, as (B, H, W) in [0, 1]."
        return read_images(list_images(images), self.image_size, self.policy)

    def __call__(self, images, return_tensors: str = 'pt', **kwargs) -> BatchFeature:
        "`pixel_values` (B, C, H, W) in [-1, 1]."
        pixels = network_input(self.read(images), self.channels)
        return BatchFeature(dict(pixel_values=pixels), tensor_type=return_tensors)

def network_input(
    images: torch.Tensor,  # (B, H, W) in [0, 1]
    channels: int,         # of the image tokenizer
) -> torch.Tensor:         # (B, C, H, W) in [-1, 1]
    "Images as the image tokenizer's network reads them."
    return images[:, None].expand(-1, channels, -1, -1) * 2 - 1

class ChexmixProcessor(ProcessorMixin):
    """Images and texts to ids of the mixed vocabulary, and back.

    Raises `UserError` where image tokenizer and layout do not fit.
    """
    def __init__(
        self,
        image_tokenizer: VQModel,
        text_tokenizer: PreTrainedTokenizerFast,
        layout: Layout,
        policy: str = 'pad',  # how an image becomes a square (`radiograph`)
    ):
        config = image_tokenizer.config
        check_layout(config, layout)
        self.image_processor = ChexmixImageProcessor(config.image_size, config.in_channels, policy)
        self.tokenizer, self.chat_template = text_tokenizer, None
        self.image_tokenizer = image_tokenizer.eval()
        self.layout = layout

    @classmethod
    def get_attributes(cls): return ['image_processor', 'tokenizer']

    @property
    def text_tokenizer(self): return self.tokenizer

    @property
    def image_size(self): return self.image_processor.image_size

    @property
    def policy(self): return self.image_processor.policy

    @policy.setter
    def policy(self, policy: str): self.image_processor.policy = policy

    def read(self, images) -> torch.Tensor:
        "Images, see `list_images`, as (B, H, W) in [0, 1]."
        return self.image_processor.read(images)

    def to_dict(self) -> dict:
        "What `processor_config.json` holds: the layout, the image processor, and where the code is."
        image_processor = self.image_processor.to_dict() | dict(auto_map=dict(PROCESSOR_CLASSES))
        return asdict(self.layout) | dict(
            image_processor=image_processor, processor_class=type(self).__name__,
            auto_map=dict(PROCESSOR_CLASSES))

    def save_pretrained(
        self,
        folder: str | Path,
        **kwargs,  # as transformers takes them
    ):
        "Write `processor_config.json`, both tokenizers, and the code that opens them, into `folder`."
        folder = Path(folder)
        push = kwargs.pop('push_to_hub', False)
        self.image_tokenizer.save_pretrained(folder/'image_tokenizer')
        ProcessorMixin.save_pretrained(self, str(folder))
        write_code(folder, PROCESSOR_FILE, title='The processor of CheXmix.', optional=OPTIONAL,
                   roots=(('processor', 'ChexmixProcessor'),), without=('write_code',))
        if push: self.push_to_hub(kwargs.get('repo_id') or folder.name, token=kwargs.get('token'))

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,  # or a name on the hub
        **kwargs,            # as transformers takes them
    ) -> ChexmixProcessor:
        """The processor saved in `folder`, or above it where `folder` has weights alone.

        Raises `UserError` where a part is missing."""
        folder = local_folder(folder, **kwargs)
        has_own = (folder/'processor_config.json').exists()
        if not has_own and (folder/'model.safetensors').exists(): folder = folder.parent
        path = folder/'processor_config.json'
        if not path.exists():
            raise UserError(f'no processor in {folder}: run 03_tokenizer (`chexmix tokenizer`) first, '
                            'or copy it there, where weights were taken out of their folder')
        stored = read_json(path)
        own = {name: stored.pop(name) for name in OWN_KEYS if name in stored}
        try: layout = Layout(**stored)
        except TypeError as e:
            raise UserError(f'{path} does not describe the ids of a processor ({e}): save it anew') from e
        image_tokenizer = VQModel.from_pretrained(folder/'image_tokenizer').to(default_device())
        policy = own.get('image_processor', {}).get('policy', 'pad')
        return cls(image_tokenizer, load_text_tokenizer(folder), layout, policy)

    @torch.inference_mode()
    def encode_images(
        self,
        images: torch.Tensor,  # (B, H, W) in [0, 1]
    ) -> torch.Tensor:  # (B, h·w) on the CPU
        "Codes of images, row by row of the grid; `decode_images` is the inverse."
        device = next(self.image_tokenizer.parameters()).device
        config = self.image_tokenizer.config
        size = config.image_size
        if images.shape[1:] != (size, size):
            raise UserError(f'images of {tuple(images.shape[1:])} pixels do not fit the tokenizer, '
                            f'which reads {size}²: read them with processor.read')
        codes = []
        for part in images.split(images_per_pass(config, device)):
            x = network_input(part.to(device), config.in_channels)
            codes.append(self.image_tokenizer.encode(x).flatten(1).cpu())  # (b, h·w)
        return torch.cat(codes)

    def encode_files(
        self,
        paths,           # of B radiographs, see `list_images`
        least: int = 32, # images that are read side by side, where a pass of the network takes fewer
    ) -> torch.Tensor:   # (B, h·w) on the CPU
        "Codes of radiographs, as `encode_images` gives them; the next block is read while one is encoded."
        paths = list_images(paths)
        device = next(self.image_tokenizer.parameters()).device
        at_once = images_per_pass(self.image_tokenizer.config, device)
        block = at_once * -(-least // at_once)  # complete passes

        def read(k): return self.read(paths[k * block:(k + 1) * block])
        n_blocks = -(-len(paths) // block)
        return torch.cat([self.encode_images(images) for images in read_ahead(read, n_blocks)])

    @torch.inference_mode()
    def decode_images(
        self,
        codes: torch.Tensor,  # (B, h·w)
    ) -> torch.Tensor:  # (B, H, W) in [0, 1], on the CPU
        """Images that codes stand for; `encode_images` is the inverse.

        Raises `UserError` for codes outside the codebook, or for a number of codes that fills no grid.
        """
        grid = self.layout.grid
        if codes.shape[1] != grid**2:
            raise UserError(f'{codes.shape[1]} codes do not fill a grid of {grid}×{grid}: '
                            f'an image has {grid**2} codes')
        codes_to_ids(codes, self.layout)  # raises for a number that is no code
        return decode_grids(self, codes.view(-1, grid, grid), self.image_tokenizer.decode)

    @torch.inference_mode()
    def decode_expected(
        self,
        probabilities: torch.Tensor,  # (B, h·w, K) of the codes, at each position
    ) -> torch.Tensor:  # (B, H, W) in [0, 1], on the CPU
        "Images of the expected code vectors, the means of the codebook under the probabilities."
        codebook = self.image_tokenizer.quantize.embedding.weight.cpu()  # (K, D)
        grid = self.layout.grid
        vectors = (probabilities.float() @ codebook).transpose(1, 2).unflatten(2, (grid, grid))  # (B, D, h, w)
        return decode_grids(self, vectors, self.image_tokenizer.decode_vectors)

    def __call__(
        self,
        images=None,  # one a study, see `list_images`, or lists of two; None, text first: open for an image
        text=None,    # one a study; None, image first: open for a report
        order: str = 'image first',    # or 'text first'
        max_length: int | None = None, # ids a sequence may have
        padding: bool | str = True,    # to the longest, or 'max_length'; False: studies must be equally long
        padding_side: str = '',        # left or right; '' = left where sequences are open
        return_tensors: str | None = 'pt',  # np, or None for lists
    ) -> BatchFeature:
        """`input_ids` and `attention_mask` (B, T) of studies.

        `processor(images=[[frontal, lateral], [frontal]], text=[…, …])` are two studies of three images.
        Raises `UserError` for a sequence that is too long, and where images and texts are not as many.
        """
        if images is None and (order == 'image first' or text is None):
            raise UserError('the processor needs images: for text alone use processor.tokenizer, '
                            "or order='text first'")
        rows = self.rows(images, text)
        is_open = images is None or text is None
        side = padding_side or ('left' if is_open else 'right')
        batch = collate(rows, self.layout, order, max_length or 0, side)
        if not padding and (batch['attention_mask'] == 0).any():
            raise UserError('the studies are not equally long: leave padding on, or give one at a time')
        if padding == 'max_length' and max_length: batch = pad_to(batch, max_length, self.layout.pad, side)
        return as_tensors(batch, return_tensors)

    def encode_views(
        self,
        studies: list[list],  # the images of each, see `list_images`
    ) -> list[torch.Tensor]:  # (k·n,) codes of the k images of each
        "Codes of all images of each study, one image after the other."
        flat = [image for images in studies for image in images]
        codes = self.encode_images(self.read(flat))  # (images, n)
        return [own.flatten() for own in codes.split([len(images) for images in studies])]

    def rows(
        self,
        images,  # or None
        text,    # or None
    ) -> list[dict]:
        "Codes and text ids of studies, None for what is not given."
        studies = None if images is None else list_studies(images)
        texts = None if text is None else list_texts(text)
        if studies is not None and texts is not None and len(studies) != len(texts):
            raise UserError(f'{len(studies)} images and {len(texts)} texts: give one text an image, or put the '
                            'images of a study into a list of their own')
        n = len(texts if studies is None else studies)
        codes = [None] * n if studies is None else self.encode_views(studies)
        text_ids = [None] * n if texts is None else [self.tokenizer.encode(t) for t in texts]
        return [dict(codes=c, text_ids=t) for c, t in zip(codes, text_ids)]

    def encode(
        self,
        image,             # a path or an array; of two images a list
        text: str | None = None,
    ) -> list[int]:
        "Ids of one study; `decode_study` is the inverse."
        text = None if text is None else [text]
        return self([image], text)['input_ids'][0].tolist()

    def split(
        self,
        ids,  # (T,) of one study, in either order
    ) -> tuple[list[list[int]], list[int]]:
        "`split_study` of ids. Raises `UserError` for an id outside the vocabulary."
        ids, n_ids = torch.as_tensor(ids).tolist(), self.layout.n_ids
        for i in ids:
            if 0 <= i < n_ids: continue
            raise UserError(f'id {i} is outside the vocabulary 0…{n_ids - 1}: '
                            'was it made with another processor?')
        return split_study(ids, self.layout)

    def decode_study(
        self,
        ids,  # (T,) of one study, in either order
    ) -> dict:  # codes: (k,); image: (H, W), None where codes are missing; images: all of them; text: str
        """Codes, images and text that ids stand for; `image` is the first of the images.

        Raises `UserError` for an id outside the vocabulary.
        """
        split_codes, text_ids = self.split(ids)
        all_codes = [torch.tensor(codes, dtype=torch.long) for codes in split_codes]
        n = self.layout.n_image
        images = [self.decode_images(codes[None])[0] if len(codes) == n else None for codes in all_codes]
        codes = torch.cat(all_codes) if all_codes else torch.tensor([], dtype=torch.long)
        return dict(codes=codes, image=images[0] if images else None, images=images,
                    text=self.tokenizer.decode(text_ids))

    def decode(
        self,
        ids,       # (T,) of one study, in either order, or new ids of `generate`
        **kwargs,  # as the text tokenizer takes them
    ) -> str:
        "The text of some ids, up to where it ends. Raises `UserError` for an id outside the vocabulary."
        return self.tokenizer.decode(self.split(ids)[1], **kwargs)

    def batch_decode(
        self,
        ids,       # (B, T), as for `decode`
        **kwargs,  # as the text tokenizer takes them
    ) -> list[str]:
        "The text of each row of ids."
        return [self.decode(row, **kwargs) for row in ids]

def load_text_tokenizer(
    folder: Path,  # of a processor
) -> PreTrainedTokenizerFast:
    "The text tokenizer, in the folder itself or, before version 0.2, below it."
    if not (folder/'tokenizer.json').exists(): folder = folder/'text_tokenizer'
    if not (folder/'tokenizer.json').exists():
        raise UserError(f'no text tokenizer in {folder.parent}: take the folder as it was saved')
    return PreTrainedTokenizerFast.from_pretrained(folder)

PROCESSOR_FILE = 'processing_chexmix'

PROCESSOR_CLASSES = dict(
    AutoProcessor=f'{PROCESSOR_FILE}.ChexmixProcessor',
    AutoImageProcessor=f'{PROCESSOR_FILE}.ChexmixImageProcessor')

OPTIONAL = (('gdcm', 'python-gdcm'), ('pydicom', 'pydicom'), ('torchvision', 'torchvision'))

OWN_KEYS = ('image_processor', 'processor_class', 'auto_map')  # in the file, beside those of `Layout`

PROCESSOR_PARTS = ('processor_config.json', 'tokenizer*', 'image_tokenizer/*', 'text_tokenizer/*')

HUB_OPTIONS = ('revision', 'cache_dir', 'token', 'local_files_only', 'force_download')

def local_folder(
    place: str | Path,  # a folder, or a name on the hub (owner/name)
    **kwargs,           # of which the hub's options count
) -> Path:
    "The folder of a processor's files, fetched from the hub where it is none here."
    if Path(place).exists() or not re.fullmatch(r'[\w.-]+/[\w.-]+', str(place)): return Path(place)
    options = {name: kwargs[name] for name in HUB_OPTIONS if name in kwargs}
    try: return Path(snapshot_download(str(place), allow_patterns=list(PROCESSOR_PARTS), **options))
    except (OSError, ValueError): return Path(place)  # the caller says what is missing

def images_per_pass(
    config: VQConfig,
    device: torch.device,
) -> int:
    "How many images the network takes at a time: its widest map stays below 128 MB, or half a GB on a GPU."
    most = 2**25 if device.type == 'cpu' else 2**27  # float32 numbers in the widest map
    return max(1, most // (config.channels * config.image_size**2))

def read_ahead(
    read: Callable,  # number → anything
    n: int,          # at least 1
) -> Iterator:
    "Yield what `read` returns for 0 … n-1; the next is read while the last is used."
    with ThreadPoolExecutor(1) as reader:
        coming = reader.submit(read, 0)
        for step in range(n):
            ready = coming.result()
            if step + 1 < n: coming = reader.submit(read, step + 1)
            yield ready

def to_unit_range(
    x: torch.Tensor,  # (B, C, H, W) in about [-1, 1]
) -> torch.Tensor:  # (B, H, W) in [0, 1]
    "The network's input or output as radiographs."
    return x.clamp(-1, 1).mean(1) / 2 + .5

def decode_grids(
    processor: ChexmixProcessor,
    grids: torch.Tensor,  # (B, h, w) codes, or (B, D, h, w) vectors
    decode,               # what the image tokenizer does with them
) -> torch.Tensor:        # (B, H, W) in [0, 1], on the CPU
    "Images of codes or vectors, as many at a time as the memory holds."
    device = next(processor.image_tokenizer.parameters()).device
    parts = grids.split(images_per_pass(processor.image_tokenizer.config, device))
    return torch.cat([to_unit_range(decode(part.to(device))).cpu() for part in parts])

def list_texts(
    text: str | list[str],
) -> list[str]:
    "Texts as a list. Raises `UserError` for what is no text, or holds a mark of the sequence."
    texts = [text] if isinstance(text, str) else list(text)
    for one in texts:
        if not isinstance(one, str): raise UserError(f'a {type(one).__name__} is no text: give a string')
        marks = [mark for mark in SPECIALS if mark in one]
        if marks: raise UserError(f'the text holds {marks[0]}, which marks parts of a study: take it out')
    return texts

def as_tensors(
    batch: BatchFeature,        # of tensors (B, T)
    return_tensors: str | None, # pt, np, or None for lists
) -> BatchFeature:
    "A batch in another form. Raises `UserError` for an unknown one."
    if return_tensors == 'pt': return batch
    if return_tensors not in ('np', None):
        raise UserError(f'return_tensors cannot be {return_tensors!r}: choose pt, np or None')
    convert = torch.Tensor.numpy if return_tensors else torch.Tensor.tolist
    return BatchFeature({name: convert(values) for name, values in batch.items()})

def pad_to(
    batch: BatchFeature,  # input_ids and attention_mask (B, T)
    length: int,          # ids
    pad: int,             # id
    side: str,            # right or left
) -> BatchFeature:
    "More pads on one side, up to `length`."
    missing = length - batch['input_ids'].shape[1]
    where = (0, missing) if side == 'right' else (missing, 0)
    values = dict(input_ids=pad, attention_mask=0)
    return BatchFeature({k: torch.nn.functional.pad(batch[k], where, value=v) for k, v in values.items()})

def split_images(
    ids: list[int],  # of one study, without its text
    layout: Layout,
) -> list[list[int]]:
    "The codes of each image in some ids, without masked ones; of a longer image as many as fit."
    images = [[]]
    for i in ids:
        if i in (layout.image_start, layout.image_end): images.append([])
        if layout.n_text <= i < layout.mask: images[-1].append(i - layout.n_text)
    return [codes[:layout.n_image] for codes in images if codes]

def split_study(
    ids: list[int],  # of one study in either order, or a part of it; pads count as nothing
    layout: Layout,
) -> tuple[list[list[int]], list[int]]:
    "The codes of each image in some ids, without masked ones, and the text ids up to the end of the text."
    ids = [i for i in ids if i != layout.pad]
    text_starts = [k + 1 for k, i in enumerate(ids) if i == layout.text_start]
    begins_with_text = not ids or ids[0] < layout.n_text and ids[0] != layout.image_start
    if begins_with_text: begin = 1 if text_starts[:1] == [1] else 0
    else: begin = text_starts[0] if text_starts else len(ids)
    ends = [k for k, i in enumerate(ids) if i in (layout.image_start, layout.text_start) and k >= begin]
    n_decodable = layout.n_decodable or layout.n_text
    end = ends[0] if ends else len(ids)
    text = [i for i in ids[begin:end] if i < n_decodable and i != layout.image_end]
    image_part = ids[:begin]
    if begins_with_text:
        image_part = ids[end:]
        if layout.text_start in image_part: image_part = image_part[:image_part.index(layout.text_start)]
    return split_images(image_part, layout), text
