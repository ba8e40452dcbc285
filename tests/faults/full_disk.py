"""A disk that is full at a random byte: one line, what was finished stays usable, and the work goes on later.

No file may grow beyond that byte, which fails in the system's own call for whoever writes, libraries too.
"""
import os, random, resource, shutil, signal
from pathlib import Path

from faults.killed import prepare, WORK
from faults.trials import exit_code, last_line, number, Trials

from chexmix.core import UserError
from chexmix.training_loop import checkpoints, checksum

TRIALS = 24
KINDS = 'tokenizer training', 'token store', 'stage 1', 'report over a folder', 'embed', 'phantom writing'


def work_on_a_full_disk(work, folder: Path, byte: int, said: Path):
    "In a process of its own: exit code 3 with one line where the disk refused."
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    line = os.open(said, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
    resource.setrlimit(resource.RLIMIT_FSIZE, (byte, byte))
    try: work(folder)
    except UserError as e:
        resource.setrlimit(resource.RLIMIT_FSIZE, (byte, byte))
        os.write(line, str(e).encode())
        os._exit(3)


def largest_file(folder: Path, began: float) -> int:
    "Bytes of the largest file that the work wrote."
    return max(p.stat().st_size for p in folder.rglob('*') if p.is_file() and p.stat().st_mtime >= began)


def fault_of(work, folder: Path, byte: int, log: Path) -> str | None:
    "What is wrong with the way the work ended on a full disk."
    said = folder.with_name('said')
    code = exit_code(work_on_a_full_disk, work, folder, byte, said, log=log)
    message = said.read_text()
    if code not in (0, 3): return f'exit code {code}: {last_line(log)}'
    is_one_line = '\n' not in message and 'free some space' in message
    if code and not is_one_line: return f'not one line with a way out: {message}'
    damaged = [p.name for training in folder.rglob('training') for p in checkpoints(training)
               if f'{checksum(p):08x}' != p.stem[-8:]]
    return f'{damaged[0]} is damaged' if damaged else None


def fill(kind: str, trained: Path, place: Path, n: int, seed: int, trials: Trials):
    "Trials of one kind of work."
    work, result, without, images = WORK[kind]
    place.mkdir(parents=True)
    log, choice = place/'log', random.Random(f'{kind} {seed}')
    prepare(trained, place/'0', without, images)
    began = max(p.stat().st_mtime for p in (place/'0').rglob('*')) + .001
    code = exit_code(work, place/'0', log=log)
    if code: raise RuntimeError(last_line(log))
    most, expected = largest_file(place/'0', began), result(place/'0')
    for k in range(n):
        folder = place/'again'
        prepare(trained, folder, without, images)
        log.unlink()
        fault = fault_of(work, folder, choice.randint(3000, max(3001, most)), log)
        code = 0 if fault else exit_code(work, folder, log=log)
        if code: fault = f'does not go on: {last_line(log)}'
        if not fault and result(folder) != expected: fault = 'another result than undisturbed'
        trials.add(fault and f'{kind}: {fault}')
        shutil.rmtree(folder)


def run(folder: Path, share: float, seed: int, trained: Path):
    trials = Trials('disk full at a random byte')
    kinds = KINDS if share == 1 else KINDS[1:2]
    for k, kind in enumerate(kinds):
        fill(kind, trained, folder/str(k), number(TRIALS / len(kinds), share), seed, trials)
    yield trials
