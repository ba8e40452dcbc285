"Two runs in one folder, a reader during a write, clock jumps, a killed worker, a lost process of two."
import os, random, time
from pathlib import Path

import pandas as pd, psutil, torch
from faults.killed import prepare, WORK
from faults.small import brightness_job
from faults.trials import exit_code, last_line, number, start, Trials
from radiograph_files import gray_pixels, picture

from chexmix.batch_inference import process_files
from chexmix.core import open_run, read_json, UserError, write_json
from chexmix.data import read_table
from chexmix.phantom import write_phantoms
from chexmix.pretrain import launch
from chexmix.processor import Processor
from chexmix.token_store import write_token_store

TWICE = 'tokenizer training', 'token store', 'stage 1', 'report over a folder', 'phantom writing'


def one_line(work, folder: Path, said: Path):
    "In a process of its own: exit code 3 where it is refused by one line."
    try: work(folder)
    except UserError as e:
        said.write_text(str(e))
        os._exit(3)


def two_runs(kind: str, trained: Path, place: Path, delay: float) -> str | None:
    "Both in one folder: each finishes or is refused, and what is there in the end is whole."
    work, result, without, images = WORK[kind]
    log = place/'log'
    for name in ('alone', 'both'): prepare(trained, place/name, without, images)
    exit_code(work, place/'alone', log=log)
    said = [place/f'said{k}' for k in (0, 1)]
    first = start(one_line, work, place/'both', said[0], log=log)
    first.join(delay)
    second = start(one_line, work, place/'both', said[1], log=log)
    for child in (first, second): child.join(300)
    codes = [first.exitcode, second.exitcode]
    if not set(codes) <= {0, 3} or codes == [3, 3]: return f'{kind}: exit codes {codes}: {last_line(log)}'
    refused = [path.read_text() for path in said if path.exists()]
    if any('\n' in line for line in refused): return f'{kind}: {refused}'
    exit_code(work, place/'both', log=log)
    return None if result(place/'both') == result(place/'alone') else f'{kind}: another result than alone'


# a reader during a write

def write_on(folder: Path, stop: Path):
    "Two contents in turn, as fast as it goes."
    torch.set_num_threads(1)
    k = 0
    while not stop.exists():
        k += 1
        write_json(folder/'record.json', dict(value=[k] * 2000))
        if k % 20 == 0: process_files(brightness_job(), [folder/'images'], folder/'out.csv', batch=2)


def read_during_write(folder: Path, times: int) -> Trials:
    trials = Trials('a reader during a write')
    (folder/'images').mkdir(parents=True)
    for k in range(3): picture(folder/'images'/f'{k}.png', gray_pixels())
    write_json(folder/'record.json', dict(value=[0] * 2000))
    process_files(brightness_job(), [folder/'images'], folder/'out.csv', batch=2)
    writer = start(write_on, folder, folder/'stop', log=folder/'log')
    for _ in range(times):
        try:
            values = read_json(folder/'record.json')['value']
            whole = len(values) == 2000 and len(set(values)) == 1 and len(pd.read_csv(folder/'out.csv')) == 3
            trials.add(None if whole else 'half a file')
        except (UserError, OSError, ValueError) as e: trials.add(f'{type(e).__name__}: {e}')
    (folder/'stop').touch()
    writer.join()
    return trials


# clocks

def work_with_jumps(work, folder: Path, seed: int):
    "The wall clock jumps by up to a year, both ways, at every look."
    choice, real = random.Random(seed), time.time
    time.time = lambda: real() + choice.uniform(-3e7, 3e7)
    work(folder)


def clock_jumps(kind: str, trained: Path, place: Path, seed: int) -> str | None:
    work, result, without, images = WORK[kind]
    log = place/'log'
    for name in ('steady', 'jumping'): prepare(trained, place/name, without, images)
    exit_code(work, place/'steady', log=log)
    code = exit_code(work_with_jumps, work, place/'jumping', seed, log=log)
    if code: return f'{kind}: exit code {code}: {last_line(log)}'
    return None if result(place/'jumping') == result(place/'steady') else f'{kind}: another result'


def mended_file(place: Path, shift: float) -> str | None:
    "A file that is mended is read again, whatever its time says."
    (place/'in').mkdir(parents=True)
    (place/'in'/'a.png').write_bytes(b'no picture')
    picture(place/'in'/'b.png', gray_pixels())
    process_files(brightness_job(), [place/'in'], place/'out.csv', batch=2)
    picture(place/'in'/'a.png', gray_pixels())
    now = time.time()
    os.utime(place/'in'/'a.png', (now + shift, now + shift))
    table = process_files(brightness_job(), [place/'in'], place/'out.csv', batch=2)
    return None if len(table) == 2 else 'the mended file was not read'


# workers, and processes that share a step

def draw_by_workers(folder: Path): write_phantoms(folder/'drawn', 60, 64, workers=2)


def store_by_workers(folder: Path):
    torch.set_num_threads(1)
    processor, manifest = Processor.from_pretrained(folder/'processor'), read_table(folder/'manifest.csv')
    write_token_store(folder/'store', processor, manifest, open_run(folder)[1], workers=2, part_size=16)


def train_by_two(folder: Path):
    launch(folder, 1, 2, 'killed', steps=40, panels=0, checkpoint_seconds=0)


def python_children(pid: int, words: str) -> list[psutil.Process]:
    "Processes below `pid` whose command holds the words."
    try: below = psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess: return []
    found = []
    for process in below:
        try: command = ' '.join(process.cmdline())
        except psutil.Error: continue
        if words in command and 'resource_tracker' not in command and 'distributed.run' not in command:
            found.append(process)
    return found


def lose_one(work, folder: Path, words: str, seconds: float, said: Path, log: Path) -> int | None:
    "Kill one of the processes that the work starts, some time after it is there; the exit code of the work."
    child = start(one_line, work, folder, said, log=log)
    deadline = time.monotonic() + 120
    while child.is_alive() and time.monotonic() < deadline:
        if victims := python_children(child.pid, words):
            child.join(seconds)
            if victims[-1].is_running(): victims[-1].kill()
            break
        time.sleep(.05)
    child.join(600)
    return child.exitcode


def drawn(folder: Path) -> list: return sorted((p.name, p.read_bytes()) for p in (folder/'drawn').iterdir())


def store(folder: Path) -> dict: return read_json(folder/'store'/'info.json')


def log_of(folder: Path) -> str: return (folder/'logs'/'killed.csv').read_text()


LOSSES = {  # what is lost → work, words of the command of the process, what is made anew, result
    'worker that draws': (draw_by_workers, 'spawn_main', (), drawn),
    'worker that encodes': (store_by_workers, 'loky', ('store',), store),
    'process of two': (train_by_two, 'chexmix.pretrain', (), log_of)}


def loss(what: str, trained: Path, place: Path, seconds: float) -> str | None:
    work, words, without, result = LOSSES[what]
    log, said = place/'log', place/'said'
    for name in ('whole', 'lossy'): prepare(trained, place/name, without)
    exit_code(work, place/'whole', log=log)
    code = lose_one(work, place/'lossy', words, seconds, said, log)
    if code not in (0, 3): return f'{what}: exit code {code}: {last_line(log)}'
    if code == 3 and '\n' in said.read_text(): return f'{what}: {said.read_text()}'
    code = exit_code(work, place/'lossy', log=log)
    if code: return f'{what}: exit code {code} afterwards: {last_line(log)}'
    return None if result(place/'lossy') == result(place/'whole') else f'{what}: another result'


def run(folder: Path, share: float, seed: int, trained: Path):
    choice = random.Random(f'together {seed}')
    full = share == 1
    twice = Trials('two runs in one folder')
    for k, kind in enumerate(TWICE if full else TWICE[1:2]):
        place = folder/f'twice{k}'
        place.mkdir(parents=True)
        twice.add(two_runs(kind, trained, place, choice.uniform(0, 2)))
    yield twice
    yield read_during_write(folder/'reader', number(1000, share))
    clocks = Trials('clock jumps')
    kinds = 'token store', 'stage 1', 'report over a folder'
    for k, kind in enumerate(kinds if full else kinds[:1]):
        place = folder/f'clock{k}'
        place.mkdir(parents=True)
        clocks.add(clock_jumps(kind, trained, place, seed))
    for k, shift in enumerate((-1e8, 0, 1e8)): clocks.add(mended_file(folder/f'mended{k}', shift))
    yield clocks
    if not full: return
    for kind, names in (('a killed worker', list(LOSSES)[:2]), ('a lost process of two', list(LOSSES)[2:])):
        trials = Trials(kind)
        for k in range(2):
            for name in names:
                place = folder/f'{name}{k}'
                place.mkdir(parents=True)
                trials.add(loss(name, trained, place, choice.uniform(0, 3)))
        yield trials
