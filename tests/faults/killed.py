"""SIGKILL at random moments: the same command finishes, with the result of an undisturbed run.

Half of the kills come when a file is opened for writing, renamed or removed, counted over a whole run;
the others after a random time.
"""
import json, os, random, shutil, signal, sys, time
from functools import partial
from pathlib import Path

import pandas as pd, torch
from faults.trials import exit_code, last_line, number, start, Trials
from safetensors.torch import load_file

from chexmix.batch_inference import embed_files, report_files
from chexmix.core import changed, open_run, read_json
from chexmix.data import read_table
from chexmix.phantom import write_phantoms
from chexmix.pipeline import open_model
from chexmix.pretrain import pretrain
from chexmix.processor import Processor
from chexmix.records import content_hash
from chexmix.token_store import write_token_store
from chexmix.tokenizer import train_image_tokenizer
from chexmix.training_loop import Checkpoint

KILLS, IN_A_ROW = 20, 10  # of each kind; before a run may finish
EVENTS = 'open', 'os.rename', 'os.remove', 'os.mkdir', 'os.rmdir'


# the work: a function of a folder, and what must be equal in the end

def train_tokenizer(folder: Path):
    torch.set_num_threads(1)
    Checkpoint.due = lambda self: self.learn.done % 3 == 0  # so that some steps are done again
    settings = changed(open_run(folder)[1], tokenizer_steps=8)
    train_image_tokenizer(folder, settings, read_table(folder/'manifest.csv'))


def write_store(folder: Path):
    torch.set_num_threads(1)
    processor = Processor.from_pretrained(folder/'processor')
    manifest = read_table(folder/'manifest.csv')
    write_token_store(folder/'store', processor, manifest, open_run(folder)[1], part_size=16)


def train_stage(folder: Path, stage: int):
    torch.set_num_threads(1)
    Checkpoint.due = lambda self: self.learn.done % 3 == 0
    pretrain(folder, open_run(folder)[1], stage, 'killed', steps=12, dropout=.1, panels=0)


def embed_folder(folder: Path):
    torch.set_num_threads(1)
    opened = open_model(folder)
    embed_files(opened.model, opened.processor, [folder/'images'], folder/'out.parquet', batch=2)


def report_folder(folder: Path):
    torch.set_num_threads(1)
    opened = open_model(folder)
    report_files(opened.model, opened.processor, [folder/'images'], folder/'out.jsonl', new=12, batch=2)


def draw(folder: Path):
    write_phantoms(folder/'drawn', 24, 64, layout='dicom')


def hash_of(*names: str):
    return lambda folder: content_hash(*(folder/name for name in names))


def rows_of(name: str, read):
    "The rows of a table, each image by its name in its folder."
    def rows(folder):
        table = read(folder/name)
        return table.assign(path=[Path(path).name for path in table.path]).to_json()
    return rows


def stage_state(folder: Path) -> str:
    "Weights, log and processor of a stage: the bits of each."
    weights = load_file(folder/'killed'/'model.safetensors')
    sums = {name: content_hash(folder/'killed'/name) for name in ('config.json', 'processor_config.json')}
    numbers = {name: weights[name].double().sum().item().hex() for name in sorted(weights)}
    return json.dumps([content_hash(folder/'killed'/'model.safetensors'), numbers, sums,
                       content_hash(folder/'logs'/'killed.csv')])


NOT_NEEDED = ('.*', 'notebooks', 'figures', 'results', 'quality', 'other', 'grids', 'inpaint_judge',
              'classify', 'benchmark-*')


def prepare(run: Path, folder: Path, without: tuple = (), images: int = 0):
    "A copy of the trained run without what is to be made."
    shutil.copytree(run, folder, ignore=shutil.ignore_patterns(*NOT_NEEDED))
    for name in without: shutil.rmtree(folder/name, ignore_errors=True)
    if not images: return
    (folder/'images').mkdir()
    for path in sorted((run/'phantoms').glob('*.png'))[:images]: shutil.copy(path, folder/'images')


WORK = {  # kind → work, result, what a folder for it lacks, images to answer
    'tokenizer training': (
        train_tokenizer, hash_of('image_tokenizer/model.safetensors'), ('image_tokenizer',), 0),
    'token store': (write_store, lambda folder: read_json(folder/'store'/'info.json'), ('store',), 0),
    'stage 1': (partial(train_stage, stage=1), stage_state, (), 0),
    'stage 2': (partial(train_stage, stage=2), stage_state, (), 0),
    'embed': (embed_folder, rows_of('out.parquet', pd.read_parquet), (), 24),
    'report over a folder': (report_folder, rows_of('out.jsonl', partial(pd.read_json, lines=True)), (), 24),
    'phantom writing': (draw, hash_of('drawn'), (), 0)}


# kills

def is_writing(event: str, args: tuple) -> bool:
    "Whether an audit event is about to change a file."
    if event != 'open': return event in EVENTS
    mode, flags = args[1:3]
    return bool(flags & (os.O_WRONLY | os.O_RDWR)) if isinstance(flags, int) else 'w' in str(mode)


def watch(folder: Path, at: int, count: Path | None):
    "Count the changes of files below `folder`; die before number `at`."
    seen = 0
    def hook(event, args):
        nonlocal seen
        if event not in EVENTS or not is_writing(event, args) or str(folder) not in str(args[0]): return
        seen += 1
        if seen == at: os.kill(os.getpid(), signal.SIGKILL)
        if count and str(args[0]) != str(count): os.write(counter, b'.')
    counter = os.open(count, os.O_CREAT | os.O_WRONLY | os.O_APPEND) if count else -1
    sys.addaudithook(hook)


def work_on(work, folder: Path, at: int = 0, count: Path | None = None):
    "In a process of its own: the work, killed before a change of a file, or with the changes counted."
    watch(folder, at, count)
    work(folder)


def kill_after(work, folder: Path, seconds: float, log: Path) -> bool:
    "Kill the work after some time; False where it was done by then."
    child = start(work_on, work, folder, log=log)
    child.join(seconds)
    if child.exitcode is None: os.kill(child.pid, signal.SIGKILL)
    child.join()
    return child.exitcode == -signal.SIGKILL


def kill_once(work, folder: Path, choice, changes: int, seconds: float, log: Path) -> bool:
    "One kill; False where the work had ended before."
    if choice.random() < .5: return kill_after(work, folder, choice.uniform(.1, seconds), log)
    code = exit_code(work_on, work, folder, choice.randint(1, changes), log=log)
    return code == -signal.SIGKILL


def undisturbed(work, folder: Path, log: Path) -> tuple[int, float]:
    "How many changes of files the work makes, and how long it takes."
    count = folder.with_name('count')
    begin = time.monotonic()
    code = exit_code(work_on, work, folder, 0, count, log=log)
    if code: raise RuntimeError(f'exit code {code}: {last_line(log)}')
    return count.stat().st_size, time.monotonic() - begin


def kill_again_and_again(kind: str, run: Path, place: Path, kills: int, seed: int) -> Trials:
    "Rounds of kills in one folder, then the same call, which must finish with the undisturbed result."
    work, result, without, images = WORK[kind]
    trials, choice, log = Trials(f'SIGKILL: {kind}'), random.Random(f'{kind} {seed}'), place/'log'
    place.mkdir(parents=True)
    prepare(run, place/'0', without, images)
    changes, seconds = undisturbed(work, place/'0', log)
    expected = result(place/'0')
    while trials.tried < kills:
        folder = place/str(trials.tried + 1)
        prepare(run, folder, without, images)
        hits, most = 0, min(IN_A_ROW, kills - trials.tried)
        half = max(1, changes // 2), seconds / 2
        while hits < most and kill_once(work, folder, choice, *half, log): hits += 1
        code = exit_code(work, folder, log=log)
        fault = f'exit code {code}: {last_line(log)}' if code else None
        if not fault and result(folder) != expected: fault = 'another result than undisturbed'
        leftover = [p.name for p in folder.rglob('.*.part') if not fault]
        if leftover: fault = f'left {leftover[0]}'
        for _ in range(hits): trials.add(fault)
        shutil.rmtree(folder)
    return trials


def run(folder: Path, share: float, seed: int, trained: Path):
    for k, kind in enumerate(WORK):
        yield kill_again_and_again(kind, trained, folder/str(k), number(KILLS, share), seed)
