"""Damaged weights, stores, records and settings: refused by name, or the one before is used.

Never a silent wrong result: what is loaded all the same must be equal to what was written.
"""
import random, shutil
from pathlib import Path

import numpy as np, torch
from faults.mutated import flip_bits, replace_run, truncate
from faults.trials import number, Trials

from chexmix import pretrain as pretraining
from chexmix.classify import load_probe, load_questions
from chexmix.core import open_run, read_json, UserError, write_json
from chexmix.data import read_table
from chexmix.pipeline import open_model
from chexmix.processor import Processor
from chexmix.records import load_records, load_study_values, save_study_values, StudyValues
from chexmix.token_store import open_store, write_token_store
from chexmix.training_loop import read_checkpoint

FILES = 600


# what is loaded: as something that can be compared

def weights_of(network) -> dict:
    return {name: tensor.numpy().tobytes() for name, tensor in network.state_dict().items()}


def model_in(folder: Path):
    opened = open_model(folder/'stage2')
    model, processor = opened.model, opened.processor
    config = {name: value for name, value in model.config.to_dict().items() if name != '_name_or_path'}
    vocabulary = processor.text_tokenizer.backend_tokenizer.to_str()
    tokenizer = weights_of(processor.image_tokenizer)
    return weights_of(model), config, tokenizer, vocabulary, vars(processor.layout)


def studies_in(folder: Path):
    return open_store(folder/'store').to_list()


def checkpoint_in(folder: Path):
    "The last good state: a damaged one is passed over, and the one before may be used."
    state = read_checkpoint(folder/'training')
    return {name: tensor.numpy().tobytes() for name, tensor in state['model'].items()}


def values_in(folder: Path):
    found = []
    for kept in load_study_values(folder/'results'):
        found.append((kept.study_ids, {name: x.tobytes() for name, x in kept.values.items()}))
    return found


def probe_in(folder: Path):
    probe = load_probe(folder, 'stage2')
    return probe.weight.tobytes(), probe.bias.tobytes(), str(probe.findings), probe.layer


def questions_in(folder: Path):
    questions = load_questions(folder, 'stage2')
    return questions.statements.to_json(), questions.log_prior.tobytes()


LOADERS = {  # files → what loads them
    'stage2/**/*': model_in, 'store/*': studies_in, 'training/step-*.pt': checkpoint_in,
    'results/*.json': lambda folder: str(load_records(folder/'results').to_dict()),
    'results/*.npz': values_in, 'settings.json': lambda folder: open_run(folder)[1],
    'classify/stage2.json': probe_in, 'classify/stage2_questions.json': questions_in}


def prepare(run: Path, folder: Path):
    "The trained run as this version writes it: sealed, with checksums and checkpoints."
    torch.set_num_threads(1)
    names = 'phantoms', 'processor', 'results', 'classify', 'stage1', 'settings.json', 'manifest.csv'
    for name in names:
        if not (run/name).exists(): continue
        copy = shutil.copytree if (run/name).is_dir() else shutil.copy
        copy(run/name, folder/name)
    processor, settings = Processor.from_pretrained(folder/'processor'), open_run(folder)[1]
    shutil.rmtree(folder/'processor')
    processor.save_pretrained(folder/'processor')
    records = [*(folder/'results').glob('*.json'), *(folder/'classify').glob('*.json')]
    for path in [*records, folder/'settings.json']:
        write_json(path, read_json(path))
    studies = read_table(folder/'manifest.csv')[:48]
    write_token_store(folder/'store', processor, studies, settings, part_size=16)
    values = dict(scores=np.arange(8.), labels=np.arange(8) % 2)
    kept = StudyValues('classify', 'stage 2', [*'abcdefgh'], [*'abcdefgh'], values)
    save_study_values(folder, 'classify', [kept])
    train_with_checkpoints(folder, settings)


def train_with_checkpoints(folder: Path, settings):
    "Stage 2 in three steps; its checkpoints are kept in `training/`."
    original = pretraining.save_stage

    def save(target, *args):
        shutil.copytree(target/'training', folder/'training')
        original(target, *args)
    pretraining.save_stage = save
    try: pretraining.pretrain(folder, settings, 2, steps=3, panels=0, checkpoint_seconds=0)
    finally: pretraining.save_stage = original


def outcome(load, folder: Path, path: Path, expected) -> str | None:
    "What is wrong with loading a damaged file; None where it is refused by name or nothing was lost."
    try: found = load(folder)
    except UserError as e:
        message = str(e)
        if '\n' in message: return f'more than one line: {message[:200]}'
        named = path.name in message or path.parent.name in message
        return None if named else f'not named: {message[:200]}'
    except Exception as e: return f'{type(e).__name__}: {str(e)[:200]}'
    return None if found in expected else 'another value, without a word'


def values_expected(load, folder: Path) -> list:
    "What may be loaded: what was written; of checkpoints also the one before."
    expected = [load(folder)]
    if load is checkpoint_in:
        latest = max((folder/'training').glob('step-*.pt'))
        hidden = latest.rename(latest.with_suffix('.hidden'))
        expected.append(load(folder))
        hidden.rename(latest)
    return expected


def damage(path: Path, choice):
    "Change, cut or remove a file; a record that is not there was simply not measured."
    data = path.read_bytes()
    way = choice.choice([flip_bits, flip_bits, replace_run, truncate, None])
    if way is None and path.parent.name != 'results': return path.unlink()
    way = way or truncate
    changed = way(data, choice)
    if changed == data: changed = data[:-1]
    path.write_bytes(changed)


def run(folder: Path, share: float, seed: int, trained: Path):
    "Each file of a run damaged in turn, and loaded."
    trials, choice = Trials('damaged weights, stores, records, settings'), random.Random(f'damaged {seed}')
    folder.mkdir(parents=True)
    prepare(trained, folder)
    per_loader = number(FILES / len(LOADERS), share)
    for pattern, load in LOADERS.items():
        files = [p for p in sorted(folder.glob(pattern)) if p.is_file() and 'training' not in p.parent.name]
        if load is checkpoint_in: files = sorted(folder.glob(pattern))[-1:]
        if not files: continue
        expected = values_expected(load, folder)
        files = [p for p in files if p.suffix != '.md']
        for k in range(per_loader):
            path = files[k % len(files)]
            data = path.read_bytes()
            damage(path, choice)
            fault = outcome(load, folder, path, expected)
            trials.add(fault and f'{path.relative_to(folder)} ({k}): {fault}')
            path.write_bytes(data)
    yield trials
