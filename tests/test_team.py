"Several processes do the work of one: copies (DDP) and shares (FSDP), over gloo on the CPU."
import multiprocessing, os, shutil, socket

import pandas as pd, pytest, torch
from safetensors.torch import load_file

import chexmix.pretrain as pretraining
from chexmix.core import UserError, open_run

processes = multiprocessing.get_context('forkserver')
processes.set_forkserver_preload(['chexmix.pretrain'])


def member(rank, port, shard, folder, name, changes, log):
    "One of two processes, as a launcher would start it."
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE='2', MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port), ACCELERATE_USE_FSDP=str(shard).lower())
    for stream in (1, 2): os.dup2(os.open(log.with_suffix(f'.{rank}'), os.O_CREAT | os.O_WRONLY | os.O_APPEND), stream)
    torch.set_num_threads(1)
    try: pretraining.pretrain(folder, open_run(folder)[1], 2, name, **changes)
    except KeyboardInterrupt: os._exit(3)
    finally: pretraining.dist.destroy_process_group()


def together(folder, name, changes, log, shard=False) -> list[int]:
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    team = [processes.Process(target=member, args=(rank, port, shard, folder, name, changes, log)) for rank in (0, 1)]
    for p in team: p.start()
    for p in team: p.join()
    return [p.exitcode for p in team]


def apart(folder, one, other) -> float:
    "How far two results are apart, as a share of how far training moved (Adam makes a step of any gradient, also of one that is all rounding). Their logs must agree."
    a, b, start = (load_file(folder/name/'model.safetensors') for name in (one, other, 'stage1'))
    assert a.keys() == b.keys()
    logs = [pd.read_csv(folder/'logs'/f'{name}.csv') for name in (one, other)]
    columns = ['step', 'lr', 'loss', 'valid_image', 'valid_text', 'valid_grounding_gap']
    pd.testing.assert_frame_equal(*(log[columns] for log in logs), rtol=1e-3, atol=1e-4)
    a, b, start = (torch.cat([x[key].flatten() for key in sorted(x)]) for x in (a, b, start))
    return float((a - b).norm() / (a - start).norm())


@pytest.fixture(scope='module')
def alone(tiny_run, tmp_path_factory):
    "A stage by one process, without dropout, whose draws depend on the process, in float32: rounding to bfloat16 does too."
    folder = shutil.copytree(tiny_run, tmp_path_factory.mktemp('team')/'run')
    changes = dict(steps=5, dropout=0., precision='float32', image_targets='masked', text_weight=2., order='both', panels=0)
    pretraining.pretrain(folder, open_run(folder)[1], 2, 'alone', **changes)
    return folder, changes


@pytest.mark.parametrize('shard', (False, True))
@pytest.mark.parametrize('more', ({}, dict(n_parts=2, recompute=True)))
def test_two_processes_equal_one(alone, tmp_path, shard, more):
    "Same global batch, same weights, up to the order of sums; in one piece and in parts, with activation checkpointing."
    folder, changes = alone
    name = f'together-{shard}-{len(more)}'
    assert together(folder, name, changes | more, tmp_path/'log', shard) == [0, 0], (tmp_path/'log.0').read_text() + (tmp_path/'log.1').read_text()
    assert apart(folder, 'alone', name) < .01
    model, processor = pretraining.load_model(folder, name)
    assert model.config.layout == processor.layout


@pytest.mark.parametrize('shard', (False, True))
def test_two_processes_in_bfloat16(alone, tmp_path, shard):
    "Both ways of sharing the work also train, save and reload in mixed precision, which no device decides here."
    folder, changes = alone
    name = f'rounded-{shard}'
    assert together(folder, name, changes | dict(precision='bfloat16'), tmp_path/'log', shard) == [0, 0], (tmp_path/'log.0').read_text()
    model, _ = pretraining.load_model(folder, name)
    assert model.dtype == torch.float32 and all(torch.isfinite(p).all() for p in model.parameters())


def test_a_run_goes_on_with_another_number_of_processes(alone, tmp_path, monkeypatch):
    folder, changes = alone
    honest = pretraining.Batches.__call__

    def until(self, step):
        if step == 3: raise KeyboardInterrupt
        return honest(self, step)
    with monkeypatch.context() as m:
        m.setattr(pretraining.Batches, '__call__', until)
        with pytest.raises(KeyboardInterrupt): pretraining.pretrain(folder, open_run(folder)[1], 2, 'handed over', checkpoint_seconds=0, **changes)
    assert together(folder, 'handed over', changes, tmp_path/'log', True) == [0, 0], (tmp_path/'log.0').read_text()
    assert apart(folder, 'alone', 'handed over') < .01


def test_a_launcher_starts_them(alone):
    "As the notebook does with `processes`; and a mistake is one line."
    folder, _ = alone
    target = pretraining.launch(folder, 2, 2, 'launched', steps=3)
    assert (target/'model.safetensors').exists()
    with pytest.raises(UserError, match='^2 processes share a batch of 1 studies'): pretraining.launch(folder, 2, 2, 'too small', steps=3, batch=1)
