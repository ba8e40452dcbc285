"Pretraining that is killed, or finds damage, loses nothing."
import multiprocessing, os, random, resource, shutil, signal, subprocess, sys, time
from pathlib import Path

import pandas as pd, pytest, torch
from safetensors.torch import load_file

import chexmix.pretrain as pretraining, chexmix.training_loop as training
from chexmix.core import open_run, read_json, seal, UserError, write_json

# Children are forked from a process that has imported everything and computed nothing:
# a kill costs a second, not six.
processes = multiprocessing.get_context('forkserver')
processes.set_forkserver_preload(['chexmix.pretrain'])
STEPS = 12
EVENTS = 'before_batch', 'after_loss', 'before_step', 'after_step', 'after_batch', 'checkpoint'


def pretrain(folder, name, stage=1, **changes):
    "Pretrain without panels, with the settings of the run in `folder`."
    return pretraining.pretrain(folder, open_run(folder)[1], stage, name, **dict(panels=0) | changes)


def same_weights(folder, one, other) -> bool:
    a, b = (load_file(folder/name/'model.safetensors') for name in (one, other))
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def same_optimizer(one, other) -> bool:
    "Whether two checkpoints have the same state of the optimizer."
    of_one, of_other = one['opt']['state'], other['opt']['state']  # by the weight's name, in any order
    if of_one.keys() != of_other.keys(): return False
    return all(torch.equal(of_one[name][k], of_other[name][k]) for name in of_one for k in of_one[name])


# killed

def redirect_output(log: Path):
    os.dup2(os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND), 1)


def kill_itself():
    os.kill(os.getpid(), signal.SIGKILL)


def kill_at(step, event):
    "Make this process kill itself at an event of training at a step."
    original_call, original_checksum = training.StepLearner.__call__, training.checksum
    learners = []

    def call(self, name):
        original_call(self, name)
        learners[:] = [self]
        if (getattr(self, 'done', -1), name) == (step, event): kill_itself()

    def checksum(path):
        if event == 'checkpoint' and learners and learners[0].done >= step and path.suffix == '.part':
            kill_itself()
        return original_checksum(path)
    training.StepLearner.__call__ = call
    training.checksum = checksum


def keep_last_checkpoint(folder: Path):
    "Make this process copy the last checkpoint to `folder` before training removes it."
    original = pretraining.save_stage

    def save(target, *args):
        shutil.copytree(target/'training', folder)
        original(target, *args)
    pretraining.save_stage = save


def train(folder, stage, name, kill, kept, log):
    "In a process of its own: train, and die at `kill` (step, event), or keep the last checkpoint in `kept`."
    redirect_output(log)
    torch.set_num_threads(1)
    training.Checkpoint.due = lambda self: self.learn.done % 3 == 0  # so that some steps are done again
    if kill: kill_at(*kill)
    if kept: keep_last_checkpoint(kept)
    pretraining.pretrain(folder, open_run(folder)[1], stage, name, steps=STEPS, dropout=.1)


def exit_code(function, *args) -> int:
    "Run a function in a process of its own."
    child = processes.Process(target=function, args=args)
    child.start()
    child.join()
    return child.exitcode


@pytest.mark.parametrize('stage', (1, 2))
def test_killed_again_and_again(tiny_run, tmp_path, stage):
    """Six SIGKILLs at random steps, one at each kind of moment.

    Weights, optimizer and logs end in the bits of an undisturbed run.
    """
    folder, log = shutil.copytree(tiny_run, tmp_path/'run'), tmp_path/'out.txt'
    code = exit_code(train, folder, stage, 'undisturbed', None, tmp_path/'undisturbed', log)
    assert code == 0, log.read_text()
    seed = time.time_ns()
    random_numbers = random.Random(seed)
    steps = sorted(random_numbers.sample(range(1, STEPS), len(EVENTS)))
    kills = list(zip(steps, random_numbers.sample(EVENTS, len(EVENTS))))
    for kill in kills:
        code = exit_code(train, folder, stage, 'killed', kill, None, log)
        assert code == -signal.SIGKILL, (seed, kill)
        assert not (folder/'killed'/'model.safetensors').exists()
    code = exit_code(train, folder, stage, 'killed', None, tmp_path/'killed', log)
    assert code == 0, log.read_text()

    assert same_weights(folder, 'undisturbed', 'killed'), (seed, kills)
    a, b = (training.read_checkpoint(tmp_path/name) for name in ('undisturbed', 'killed'))
    assert a['done'] == b['done'] == STEPS
    assert a['log'] == b['log']
    assert same_optimizer(a, b), (seed, kills)
    c, d = (training.read_checkpoint(folder/name/pretraining.STABLE) for name in ('undisturbed', 'killed'))
    assert c['done'] == d['done'] < STEPS  # what another stage forks from
    assert same_optimizer(c, d), (seed, kills)
    assert all(torch.equal(c['model'][k], d['model'][k]) for k in c['model']), (seed, kills)
    logs = [(folder/'logs'/f'{name}.csv').read_bytes() for name in ('undisturbed', 'killed')]
    assert logs[0] == logs[1]
    assert not list((folder/'killed').glob('**/*.part'))
    assert not (folder/'killed'/'training').exists()


# interrupted

def pretrain_until(step, folder, name, monkeypatch, batches=pretraining.Batches, **changes):
    "Stage 1, interrupted at a step, with a checkpoint after every step."
    original = batches.__call__

    def interrupted(self, k):
        if k == step: raise KeyboardInterrupt
        return original(self, k)
    with monkeypatch.context() as m:
        m.setattr(batches, '__call__', interrupted)
        with pytest.raises(KeyboardInterrupt): pretrain(folder, name, checkpoint_seconds=0, **changes)


def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(tiny_run, tmp_path, monkeypatch, capsys):
    folder = shutil.copytree(tiny_run, tmp_path/'run')
    pretrain(folder, 'undisturbed', steps=6)
    pretrain_until(4, folder, 'damaged', monkeypatch, steps=6)
    latest, _ = training.checkpoints(folder/'damaged'/'training')
    latest.write_bytes(latest.read_bytes()[:1000])
    capsys.readouterr()
    pretrain(folder, 'damaged', steps=6)
    assert f'{latest} is damaged' in capsys.readouterr().out
    assert same_weights(folder, 'undisturbed', 'damaged')


def test_changed_data_or_settings_are_refused_and_nothing_is_lost(tiny_run, tmp_path, monkeypatch):
    folder = shutil.copytree(tiny_run, tmp_path/'run')
    pretrain_until(4, folder, 'part', monkeypatch, steps=6)
    info = read_json(folder/'store'/'info.json')
    write_json(folder/'store'/'info.json', info | dict(hash='other'))
    with pytest.raises(UserError, match="was made with data '.*, not 'other'") as error:
        pretrain(folder, 'part', steps=6)
    assert '\n' not in str(error.value)
    write_json(folder/'store'/'info.json', info)
    with pytest.raises(UserError, match='was made with lr=0.003, not 0.5'):
        pretrain(folder, 'part', steps=6, lr=.5)
    pretrain(folder, 'part', steps=6)


def test_an_unfit_start_of_stage_2_is_refused(tiny_run, tmp_path):
    folder = shutil.copytree(tiny_run, tmp_path/'run')
    with pytest.raises(UserError, match='no trained model'):
        pretrain(folder, 'lost', stage=2, start='nowhere', steps=6)
    config = folder/'stage1'/'config.json'
    write_json(config, read_json(config) | dict(text_start=5, eos_token_id=5))
    seal(folder/'stage1')
    with pytest.raises(UserError, match='another layout'):
        pretrain(folder, 'strange', stage=2, steps=6)


def test_a_loss_that_is_not_finite_stops_the_run(tiny_run, tmp_path):
    folder = shutil.copytree(tiny_run, tmp_path/'run')
    with pytest.raises(UserError, match=r'^loss is nan at step \d+: lower the learning rate') as error:
        pretrain(folder, 'diverging', steps=30, lr=1e30)
    assert '\n' not in str(error.value)
    assert (folder/'diverging'/'training'/'bad_batch.pt').exists()


def pretrain_on_a_full_disk(folder, log):
    "In a process of its own: no file may grow beyond 300 kB, as on a full disk."
    redirect_output(log)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
    try: pretrain(folder, 'part', steps=6, checkpoint_seconds=0)
    except UserError as e: print(e, flush=True)


def test_a_full_disk_is_named_and_nothing_is_lost(tiny_run, tmp_path, monkeypatch):
    folder, log = shutil.copytree(tiny_run, tmp_path/'run'), tmp_path/'out.txt'
    pretrain_until(4, folder, 'part', monkeypatch, steps=6)
    exit_code(pretrain_on_a_full_disk, folder, log)
    kept = folder/'part'/'training'
    assert f'cannot write a checkpoint to {kept}' in log.read_text()
    assert 'free some space' in log.read_text()
    assert [p.name[:13] for p in training.checkpoints(kept)] == ['step-00000004', 'step-00000003']
    pretrain(folder, 'part', steps=6)
    assert pd.read_csv(folder/'logs'/'part.csv').step.tolist() == [1, 2, 3, 4, 5, 6]


# fresh studies

def test_fresh_studies_of_each_step_are_the_same_after_an_interruption(tiny_run, tmp_path, monkeypatch):
    "Weights end in the same bits."
    folder = shutil.copytree(tiny_run, tmp_path/'run')
    changes = dict(steps=5, window=2, batch=4, fresh=True)
    pretrain(folder, 'undisturbed', checkpoint_seconds=0, **changes)
    pretrain_until(3, folder, 'interrupted', monkeypatch, pretraining.FreshBatches, **changes)
    pretrain(folder, 'interrupted', checkpoint_seconds=0, **changes)
    assert same_weights(folder, 'undisturbed', 'interrupted')


RENDERING = '''from chexmix.phantom import stream
if __name__ == '__main__':
    for _ in stream(64, workers=2): print('rendered', flush=True)'''


def is_worker(pid: int) -> bool:
    "Whether the process is alive and was spawned by multiprocessing."
    command = Path(f'/proc/{pid}/cmdline')
    return command.exists() and 'spawn' in command.read_text()


def test_rendering_processes_end_with_the_one_that_started_them(tmp_path):
    "Also where it is killed."
    (tmp_path/'rendering.py').write_text(RENDERING)
    command = [sys.executable, tmp_path/'rendering.py']
    parent = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    parent.stdout.readline()
    children = Path(f'/proc/{parent.pid}/task/{parent.pid}/children')
    if not children.exists():
        parent.kill()
        pytest.skip('the system does not say whose child a process is')
    pids = [int(pid) for pid in children.read_text().split()]
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 30
    while any(map(is_worker, pids)):
        assert time.monotonic() < deadline
        time.sleep(.2)
