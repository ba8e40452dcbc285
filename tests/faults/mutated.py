"Radiographs, tables and reports whose bytes were changed: each is read, or refused by its name."
import gzip, io, random, resource, signal, struct, time, warnings
from pathlib import Path

import numpy as np, pandas as pd
from faults.trials import number, processes, silence, Trials
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian,
    JPEG2000, JPEG2000Lossless, JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLossless, JPEGLosslessSV1,
    JPEGLSLossless, JPEGLSNearLossless, RLELossless)
from radiograph_files import dicom, gray_pixels, lut, noisy_pixels, picture

from chexmix.core import UserError
from chexmix.data import MANIFEST_COLUMNS, read_table, scan
from chexmix.datasets import report_file
from chexmix.radiograph import read_header, read_radiograph
from chexmix.report_text import FINDINGS, label_report

FILES = 20_000
CPU_SECONDS, WALL_SECONDS, BYTES = 10, 120, 2**30  # for one file
SIDE = 48, 40  # of the pictures
SYNTAXES = dict(
    implicit=ImplicitVRLittleEndian, explicit=ExplicitVRLittleEndian, big=ExplicitVRBigEndian,
    deflated=DeflatedExplicitVRLittleEndian, baseline=JPEGBaseline8Bit, extended=JPEGExtended12Bit,
    lossless=JPEGLossless, first=JPEGLosslessSV1, ls=JPEGLSLossless, near=JPEGLSNearLossless,
    j2k=JPEG2000, j2k_lossless=JPEG2000Lossless, rle=RLELossless)
REPORT = 'FINDINGS:\n1. Small left pleural effusion.\n- No pneumothorax.\n\nIMPRESSION: Normal heart size.\n'


# originals

def pictures(folder: Path) -> list[Path]:
    "Pictures of every kind that Pillow writes."
    gray = np.ascontiguousarray(gray_pixels()[:SIDE[0], :SIDE[1]])
    deep = np.ascontiguousarray(noisy_pixels(16)[:SIDE[0], :SIDE[1]])
    made = [picture(folder/f'{mode}.png', gray, mode) for mode in ('1', 'L', 'LA', 'RGB', 'P')]
    made += [picture(folder/f'{mode}.jpg', gray, mode) for mode in ('L', 'RGB', 'CMYK')]
    made += [picture(folder/'progressive.jpg', gray, progressive=True)]
    made += [picture(folder/'deep.png', deep), picture(folder/'deep.tif', deep)]
    for kind in ('raw', 'tiff_lzw', 'tiff_deflate', 'packbits', 'jpeg'):
        made.append(picture(folder/f'{kind}.tif', gray, compression=kind))
    return [*made, picture(folder/'group4.tif', gray, '1', compression='group4')]


def dicoms(folder: Path) -> list[Path]:
    "DICOM files in every transfer syntax that is read, and one with a sequence."
    gray = np.ascontiguousarray(gray_pixels()[:SIDE[0], :SIDE[1]])
    made = [dicom(folder/f'{name}.dcm', gray, syntax=syntax) for name, syntax in SYNTAXES.items()]
    table = lut('VOILUTSequence', range(256), 0, 8)
    return [*made, dicom(folder/'sequence.dcm', gray, **table)]


def tables(folder: Path) -> list[Path]:
    "Manifests as CSV with commas and semicolons, in UTF-16, packed, and as Parquet."
    row = dict.fromkeys((*MANIFEST_COLUMNS, *FINDINGS[:3]), '')
    rows = [row | dict(path=f'{k}.png', study_id=f's{k}', patient_id=f'p{k}', findings_text='Clear "lungs".')
            for k in range(6)]
    table = pd.DataFrame(rows)
    table.to_csv(folder/'comma.csv', index=False)
    table.to_csv(folder/'semicolon.csv', sep=';', index=False)
    table.to_csv(folder/'wide.csv', index=False, encoding='utf-16')
    table.to_csv(folder/'packed.csv.gz', index=False)
    table.to_parquet(folder/'table.parquet')
    return sorted(folder.glob('*.csv*')) + [folder/'table.parquet']


def reports(folder: Path) -> list[Path]:
    made = []
    for encoding in ('utf-8', 'utf-16', 'cp1252'):
        made.append(folder/f'{encoding}.txt')
        made[-1].write_bytes(REPORT.encode(encoding))
    return made


KINDS = dict(DICOM=dicoms, pictures=pictures, tables=tables, reports=reports)
SHARES = dict(DICOM=.5, pictures=.35, tables=.1, reports=.05)  # of the files


# mutations: of bytes, by a `random.Random`

MARKS = (
    b'\x08\x00', b'\x10\x00', b'\x28\x00', b'\x00\x28', b'\xe0\x7f', b'\xfe\xff', b'IDAT', b'IHDR',
    b'\xff\xc0', b'\xff\xc4', b'\xff\xda', b'\xff\xdb', b'\xff\x52', b'\xff\x5c')
LENGTHS = 0, 1, 0x7f, 0x7fff, 0xfffe, 0xffff, 0x7fffffff, 0x80000000, 0xfffffff0, 0xffffffff


def words(data: bytes) -> list[int]:
    "Where a tag may stand: DICOM groups, chunks of PNG, markers of JPEG; else every fourth byte."
    found = []
    for mark in MARKS:
        at = data.find(mark)
        while at >= 0 and len(found) < 200:
            found.append(at)
            at = data.find(mark, at + 1)
    return found or list(range(0, max(1, len(data) - 8), 4))


def flip_bits(data: bytes, choice) -> bytes:
    changed = bytearray(data)
    for _ in range(choice.randint(1, 16)):
        changed[choice.randrange(len(changed))] ^= 1 << choice.randrange(8)
    return bytes(changed)


def replace_run(data: bytes, choice) -> bytes:
    at, n = choice.randrange(len(data)), choice.randint(1, 12)
    run = choice.choice([bytes(n), b'\xff' * n, choice.randbytes(n), b'9' * n])
    return data[:at] + run + data[at + n:]


def truncate(data: bytes, choice) -> bytes:
    start, stop = sorted(choice.randrange(len(data)) for _ in range(2))
    return data[:stop] if choice.random() < .6 else data[:start] + data[stop:]


def swap_tags(data: bytes, choice) -> bytes:
    changed = bytearray(data)
    one, other = choice.choice(words(data)), choice.choice(words(data))
    changed[one:one + 4], changed[other:other + 4] = data[other:other + 4], data[one:one + 4]
    return bytes(changed[:len(data)])


def nest(data: bytes, choice) -> bytes:
    "Sequences in sequences in front of a tag, or a piece many times."
    at, depth = choice.choice(words(data)), choice.choice([2, 50, 2000])
    sequence = struct.pack('<HH2s2xI', 0x0040, 0x0275, b'SQ', 0xffffffff)
    item = struct.pack('<HHI', 0xfffe, 0xe000, 0xffffffff)
    piece = data[at:at + choice.randint(1, 40)]
    return data[:at] + choice.choice([sequence + item, piece, b'<b>', b'(', b'"']) * depth + data[at:]


def wrong_length(data: bytes, choice) -> bytes:
    at = choice.choice(words(data)) + choice.randint(2, 8)
    size = choice.choice([2, 4])
    value = choice.choice(LENGTHS)
    order = choice.choice(['little', 'big'])
    return data[:at] + (value % 256**size).to_bytes(size, order) + data[at + size:]


def bomb(data: bytes, choice) -> bytes:
    "A picture that claims to be huge; packed zeros for what is packed."
    if data[:2] == b'\x1f\x8b': return gzip.compress(b'path,text\n' + bytes(choice.randint(1, 64) * 2**20), 1)
    claimed = choice.choice([4000, 8900, 30_000, 65_500])
    for order in ('little', 'big'):
        for side in SIDE:
            size = choice.choice([2, 4])
            old = side.to_bytes(size, order)
            if choice.random() < .8: data = data.replace(old, claimed.to_bytes(size, order))
    return data


WAYS = flip_bits, replace_run, truncate, swap_tags, nest, wrong_length, bomb


# reading

def fault_of_picture(path: Path) -> str | None:
    "What is wrong with the way a radiograph is read; None where it is read whole, or refused by name."
    image = read_radiograph(path, 16)
    if image.shape != (16, 16) or not (np.isfinite(image).all() and 0 <= image.min() <= image.max() <= 1):
        return 'no picture in 0…1'
    read_header(path)


def fault_of_table(path: Path) -> str | None:
    table = read_table(path)
    if not len(table) or list(table.columns[:len(MANIFEST_COLUMNS)]) != list(MANIFEST_COLUMNS):
        return 'no manifest'


def fault_of_report(path: Path) -> str | None:
    findings, impression, _ = report_file(str(path))
    labels = label_report(f'{findings} {impression}')
    if set(labels) != set(FINDINGS): return 'no labels'


READERS = dict(
    DICOM=fault_of_picture, pictures=fault_of_picture, tables=fault_of_table, reports=fault_of_report)


def data_bytes() -> int:
    "Private memory of this process, as RLIMIT_DATA counts it."
    status = Path('/proc/self/status').read_text()
    return int(status.split('VmData:')[1].split()[0]) * 1024


def limit_next_file():
    "From here on: ten seconds of computing and a gigabyte."
    usage = resource.getrusage(resource.RUSAGE_SELF)
    spent = int(usage.ru_utime + usage.ru_stime)
    resource.setrlimit(resource.RLIMIT_CPU, (spent + CPU_SECONDS + 1, resource.RLIM_INFINITY))
    resource.setrlimit(resource.RLIMIT_DATA, (data_bytes() + BYTES, resource.RLIM_INFINITY))


def read_one(kind: str, path: Path) -> str | None:
    try: return READERS[kind](path)
    except UserError as e: return None if str(path) in str(e) else f'the message names no file: {e}'
    except BaseException as e: return f'{type(e).__name__}: {e}'


def serve(kind: str, pipe, log: Path):
    "In a process of its own: read each path that comes, and say what was wrong."
    silence(log)
    warnings.simplefilter('ignore')
    for path in iter(pipe.recv, None):
        limit_next_file()
        pipe.send(read_one(kind, path))


class Reader:
    "Files to a process that may die of them."
    def __init__(self, kind: str, log: Path):
        self.kind, self.log, self.child = kind, log, None

    def __call__(self, path: Path) -> str | None:
        if not self.child:
            self.pipe, theirs = processes.Pipe()
            self.child = processes.Process(target=serve, args=(self.kind, theirs, self.log))
            self.child.start()
            theirs.close()
        self.pipe.send(path)
        try:
            if self.pipe.poll(WALL_SECONDS): return self.pipe.recv()
            death = 'it hangs'
        except EOFError: death = ''
        self.child.kill() if death else None
        self.child.join()
        code, self.child = self.child.exitcode, None
        return death or f'the process died ({signal.Signals(-code).name if code < 0 else code})'

    def close(self):
        if not self.child: return
        self.pipe.send(None)
        self.child.join()


def fault_of_scan(paths: list[Path], readable: Path) -> list[str]:
    "What is wrong with the quarantine of a run over these files: each is kept, or named there."
    table = pd.DataFrame(dict(path=[*map(str, paths), str(readable)]))
    table = table.assign(study_id=table.path, patient_id=table.path)
    kept, quarantine = scan(table, 16, workers=2)
    missing = set(table.path) - set(kept.path) - set(quarantine.path)
    unnamed = [path for path, reason in zip(quarantine.path, quarantine.reason) if path not in reason]
    return [f'{path} is neither kept nor named' for path in [*missing, *unnamed]]


def mutants(kind: str, folder: Path, n: int, seed: int):
    "Paths of `n` files with changed bytes, and how each was changed."
    (folder/'originals').mkdir(parents=True)
    originals = [(path, path.read_bytes()) for path in KINDS[kind](folder/'originals')]
    choice = random.Random(f'{kind} {seed}')
    for k in range(n):
        original, data = originals[k % len(originals)]
        way = WAYS[k // len(originals) % len(WAYS)]
        ending = ''.join(original.suffixes[-2:])
        path = folder/f'{k:05d}{ending}'
        path.write_bytes(way(data, choice) or b'\0')
        yield path, f'{original.name} {way.__name__}'


def run(folder: Path, share: float, seed: int, trained: Path):
    "All mutated files, by what they were."
    for kind, part in SHARES.items():
        trials = Trials(f'mutated files: {kind}')
        place = folder/kind
        reader = Reader(kind, folder/f'{kind}.log')
        paths = []
        for path, what in mutants(kind, place, number(FILES * part, share), seed):
            fault = reader(path)
            trials.add(fault and f'{path.name} ({what}): {fault}')
            paths.append(path)
        reader.close()
        if kind in ('DICOM', 'pictures'):
            readable = picture(place/'readable.png', gray_pixels())
            trials.failures += fault_of_scan(paths, readable)
        yield trials
