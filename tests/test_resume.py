"Pretraining that is killed, or finds damage, loses nothing."
import multiprocessing, os, random, resource, shutil, signal, subprocess, sys, time
from pathlib import Path

import pandas as pd, pytest, torch
from safetensors.torch import load_file

import chexmix.pretrain as pretraining, chexmix.training as training
from chexmix.core import UserError, open_run, read_json, write_json

# Children are forked from one process that has imported everything and computed nothing: a kill costs a second, not six.
processes = multiprocessing.get_context('forkserver')
processes.set_forkserver_preload(['chexmix.pretrain'])
STEPS, EVENTS = 12, ('before_batch', 'after_loss', 'before_step', 'after_step', 'after_batch', 'checkpoint')


def train(folder, stage, name, kill, keep, log):
    "In a process of its own: train, and at step `kill[0]` kill yourself at the event `kill[1]`. The last checkpoint is copied to `keep`."
    os.dup2(os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND), 1)
    torch.set_num_threads(1)
    training.Checkpoint.due = lambda self: self.learn.done % 3 == 0  # so that some steps are done again
    honest_call, honest_checksum, honest_save = training.StepLearner.__call__, training.checksum, pretraining.save_stage
    learner = []

    def call(self, event):
        honest_call(self, event)
        learner[:] = [self]
        if kill and (getattr(self, 'done', -1), event) == kill: os.kill(os.getpid(), signal.SIGKILL)

    def checksum(path):
        if kill and kill[1] == 'checkpoint' and learner and learner[0].done >= kill[0] and path.suffix == '.part': os.kill(os.getpid(), signal.SIGKILL)
        return honest_checksum(path)

    def save(target, *args):
        if keep: shutil.copytree(target/'training', keep)
        honest_save(target, *args)
    training.StepLearner.__call__, training.checksum, pretraining.save_stage = call, checksum, save
    pretraining.pretrain(folder, open_run(folder)[1], stage, name, steps=STEPS, dropout=.1)


def run(*args) -> int:
    child = processes.Process(target=train, args=args)
    child.start(); child.join()
    return child.exitcode


@pytest.mark.parametrize('stage', (1, 2))
def test_killed_again_and_again(tiny_run, tmp_path, stage):
    "Six SIGKILLs at random steps, one at each kind of moment; weights, optimizer and logs end in the bits of an undisturbed run."
    folder, log = shutil.copytree(tiny_run, tmp_path/'run'), tmp_path/'out.txt'
    assert run(folder, stage, 'whole', None, tmp_path/'whole', log) == 0, log.read_text()
    seed = time.time_ns()
    draw = random.Random(seed)
    kills = list(zip(sorted(draw.sample(range(1, STEPS), len(EVENTS))), draw.sample(EVENTS, len(EVENTS))))
    for kill in kills:
        assert run(folder, stage, 'killed', kill, None, log) == -signal.SIGKILL, (seed, kill)
        assert not (folder/'killed'/'model.safetensors').exists()
    assert run(folder, stage, 'killed', None, tmp_path/'killed', log) == 0, log.read_text()
    a, b = (load_file(folder/name/'model.safetensors') for name in ('whole', 'killed'))
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a), (seed, kills)
    a, b = (training.read_checkpoint(tmp_path/name) for name in ('whole', 'killed'))
    assert a['done'] == b['done'] == STEPS and a['log'] == b['log']
    for x, y in zip(a['opt']['state'].values(), b['opt']['state'].values(), strict=True): assert all(torch.equal(x[k], y[k]) for k in x), (seed, kills)
    assert (folder/'logs'/'whole.csv').read_bytes() == (folder/'logs'/'killed.csv').read_bytes()
    assert not list((folder/'killed').glob('**/*.part')) and not (folder/'killed'/'training').exists()


def stopped(folder, name, at, monkeypatch, **changes):
    "Stage 1, interrupted at step `at`, with a checkpoint after every step."
    honest = pretraining.Batches.__call__

    def until(self, step):
        if step == at: raise KeyboardInterrupt
        return honest(self, step)
    with monkeypatch.context() as m:
        m.setattr(pretraining.Batches, '__call__', until)
        with pytest.raises(KeyboardInterrupt): pretraining.pretrain(folder, open_run(folder)[1], 1, name, steps=6, checkpoint_seconds=0, panels=0, **changes)


def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(tiny_run, tmp_path, monkeypatch, capsys):
    folder = shutil.copytree(tiny_run, tmp_path/'run')
    _, s = open_run(folder)
    pretraining.pretrain(folder, s, 1, 'whole', steps=6, panels=0)
    stopped(folder, 'hurt', 4, monkeypatch)
    latest, before = training.checkpoints(folder/'hurt'/'training')
    latest.write_bytes(latest.read_bytes()[:1000])
    capsys.readouterr()
    pretraining.pretrain(folder, s, 1, 'hurt', steps=6, panels=0)
    assert f'{latest} is damaged' in capsys.readouterr().out
    a, b = (load_file(folder/name/'model.safetensors') for name in ('whole', 'hurt'))
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_what_changed_since_is_refused_and_nothing_is_lost(tiny_run, tmp_path, monkeypatch):
    folder = shutil.copytree(tiny_run, tmp_path/'run')
    _, s = open_run(folder)
    stopped(folder, 'part', 4, monkeypatch)
    info = read_json(folder/'store'/'info.json')
    write_json(folder/'store'/'info.json', info | dict(hash='other'))
    with pytest.raises(UserError, match="was made with data '.*', not 'other'") as e: pretraining.pretrain(folder, s, 1, 'part', steps=6)
    assert '\n' not in str(e.value)
    write_json(folder/'store'/'info.json', info)
    with pytest.raises(UserError, match='was made with lr=0.003, not 0.5'): pretraining.pretrain(folder, s, 1, 'part', steps=6, lr=.5)
    pretraining.pretrain(folder, s, 1, 'part', steps=6, panels=0)
    with pytest.raises(UserError, match='no trained model'): pretraining.pretrain(folder, s, 2, 'lost', start='nowhere', steps=6)
    config = folder/'stage1'/'config.json'
    write_json(config, read_json(config) | dict(text_start=5, eos_token_id=5))
    with pytest.raises(UserError, match='another layout'): pretraining.pretrain(folder, s, 2, 'strange', steps=6)


def test_a_loss_that_is_not_finite_stops_the_run(tiny_run, tmp_path):
    folder = shutil.copytree(tiny_run, tmp_path/'run')
    with pytest.raises(UserError, match=r'^loss is nan at step \d+: lower the learning rate') as e: pretraining.pretrain(folder, open_run(folder)[1], 1, 'wild', steps=30, lr=1e30, panels=0)
    assert '\n' not in str(e.value) and (folder/'wild'/'training'/'bad_batch.pt').exists()


def fill_the_disk(folder, log):
    "In a process of its own: no file may grow beyond 300 kB, as on a full disk."
    os.dup2(os.open(log, os.O_CREAT | os.O_WRONLY), 1)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
    try: pretraining.pretrain(folder, open_run(folder)[1], 1, 'part', steps=6, checkpoint_seconds=0, panels=0)
    except UserError as e: print(e, flush=True)


def test_a_full_disk_is_said_and_nothing_is_lost(tiny_run, tmp_path, monkeypatch):
    folder, log = shutil.copytree(tiny_run, tmp_path/'run'), tmp_path/'out.txt'
    stopped(folder, 'part', 4, monkeypatch)
    child = processes.Process(target=fill_the_disk, args=(folder, log))
    child.start(); child.join()
    assert f'cannot write a checkpoint to {folder/"part"/"training"}' in log.read_text() and 'free some space' in log.read_text()
    assert [p.name[:13] for p in training.checkpoints(folder/'part'/'training')] == ['step-00000004', 'step-00000003']
    pretraining.pretrain(folder, open_run(folder)[1], 1, 'part', steps=6, panels=0)
    assert pd.read_csv(folder/'logs'/'part.csv').step.tolist() == [1, 2, 3, 4, 5, 6]


def test_studies_drawn_for_each_step_are_the_same_after_an_interruption(tiny_run, tmp_path, monkeypatch):
    "Weights end in the same bits; the drawing processes end with the one that asked them."
    folder = shutil.copytree(tiny_run, tmp_path/'run')
    draw = lambda name: pretraining.pretrain(folder, open_run(folder)[1], 1, name, steps=5, window=2, batch=4, fresh=True, checkpoint_seconds=0, panels=0)
    draw('whole')
    honest = pretraining.FreshBatches.__call__

    def until(self, step):
        if step == 3: raise KeyboardInterrupt
        return honest(self, step)
    with monkeypatch.context() as m:
        m.setattr(pretraining.FreshBatches, '__call__', until)
        with pytest.raises(KeyboardInterrupt): draw('stopped')
    draw('stopped')
    a, b = (load_file(folder/name/'model.safetensors') for name in ('whole', 'stopped'))
    assert all(torch.equal(a[k], b[k]) for k in a)


DRAWING = '''from chexmix.phantom import stream
if __name__ == '__main__':
    for _ in stream(64, workers=2): print('drawn', flush=True)'''


def test_processes_that_draw_end_with_the_one_that_started_them(tmp_path):
    "Also where it is killed."
    (tmp_path/'drawing.py').write_text(DRAWING)
    parent = subprocess.Popen([sys.executable, tmp_path/'drawing.py'], stdout=subprocess.PIPE, text=True)
    parent.stdout.readline()
    children = Path(f'/proc/{parent.pid}/task/{parent.pid}/children')
    pids = [int(p) for p in children.read_text().split()] if children.exists() else pytest.skip('the system does not say whose child a process is')
    parent.kill(); parent.wait()
    deadline = time.monotonic() + 30
    while alive := [p for p in pids if Path(f'/proc/{p}/cmdline').exists() and 'spawn' in Path(f'/proc/{p}/cmdline').read_text()]:
        assert time.monotonic() < deadline, alive
        time.sleep(.2)
