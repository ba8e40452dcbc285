"""SIGKILL at random moments: the same command finishes, with the result of an undisturbed run.

Half of the kills come when a file is opened for writing, renamed or removed, counted over a whole run;
the others after a random time.
"""
import json, os, random, shutil, signal, subprocess, sys, time
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
    write_phantoms(folder/'drawn', 40, 64, layout='dicom')


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


def prepare(run: Path, folder: Path, without: tuple = (), images: int = 0):
    "A copy of the trained run without what is to be made."
    ignore = shutil.ignore_patterns('notebooks', 'figures', 'results', 'quality', 'other', 'grids', 'inpaint_judge')
    shutil.copytree(run, folder, ignore=ignore)
    for name in without: shutil.rmtree(folder/name, ignore_errors=True)
    if not images: return
    (folder/'images').mkdir()
    for path in sorted((run/'phantoms').glob('*.png'))[:images]: shutil.copy(path, folder/'images')


WORK = {  # kind → work, result, what a folder for it lacks, images to answer
    'tokenizer training': (train_tokenizer, hash_of('image_tokenizer/model.safetensors'), ('image_tokenizer',), 0),
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
        hits = 0
        for _ in range(3 * IN_A_ROW):
            if hits < min(IN_A_ROW, kills - trials.tried):
                hits += kill_once(work, folder, choice, max(1, changes // 2), seconds / 2, log)
        code = exit_code(work, folder, log=log)
        fault = f'exit code {code}: {last_line(log)}' if code else None
        if not fault and result(folder) != expected: fault = 'another result than undisturbed'
        leftover = [p.name for p in folder.rglob('.*.part') if not fault]
        if leftover: fault = f'left {leftover[0]}'
        for _ in range(hits): trials.add(fault)
        if not hits: trials.add('no kill came in time')
        shutil.rmtree(folder)
    return trials


# the demo: all notebooks, in processes of its own

def demo_command(folder: Path) -> list[str]:
    notebooks = Path(__file__).parents[2]/'nbs'
    program = 'import sys; from chexmix.cli import main; sys.exit(main())'
    return [sys.executable, '-c', program, 'demo', '--preset', 'tiny', '--run', str(folder), '--notebooks', str(notebooks)]


def demo_values(folder: Path) -> str:
    "Every record of the demo, and the weights of both stages."
    values = {path.name: read_json(path)['records'] for path in sorted((folder/'results').glob('*.json'))
              if 'records' in read_json(path)}
    return json.dumps([values, content_hash(folder/'stage1'/'model.safetensors', folder/'stage2'/'model.safetensors')])


def run_demo(folder: Path, log: Path, seconds: float | None = None, whole_group: bool = True) -> int | None:
    "The demo; killed after `seconds`, with its notebooks' processes or alone. None where it was killed."
    with open(log, 'ab') as out:
        process = subprocess.Popen(demo_command(folder), stdout=out, stderr=out, start_new_session=True)
        try: return process.wait(seconds)
        except subprocess.TimeoutExpired: pass
    if whole_group: os.killpg(process.pid, signal.SIGKILL)
    else: process.kill()
    process.wait()


def kill_demo(place: Path, kills: int, seed: int) -> Trials:
    "One demo, killed again and again on its way, against an undisturbed one."
    trials, choice, log = Trials('SIGKILL: demo'), random.Random(f'demo {seed}'), place/'log'
    place.mkdir(parents=True)
    begin = time.monotonic()
    code = run_demo(place/'undisturbed', log)
    if code: raise RuntimeError(last_line(log))
    share = (time.monotonic() - begin) / len(range(kills))
    for k in range(kills):
        code = run_demo(place/'killed', log, share * choice.uniform(.5, 1.5), whole_group=k % 2 == 0)
        if code is not None: break
    hits = k + (code is None)
    code = run_demo(place/'killed', log)
    fault = f'exit code {code}: {last_line(log)}' if code else None
    if not fault and demo_values(place/'killed') != demo_values(place/'undisturbed'):
        fault = 'another result than undisturbed'
    for _ in range(hits): trials.add(fault)
    return trials


def run(folder: Path, share: float, seed: int, trained: Path):
    "All kinds of work; the demo with the whole campaign alone."
    for k, kind in enumerate(WORK):
        yield kill_again_and_again(kind, trained, folder/str(k), number(KILLS, share), seed)
    if share == 1: yield kill_demo(folder/'demo', KILLS, seed)
