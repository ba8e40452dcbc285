"Several processes do the work of one: copies (DDP) and shards (FSDP), over gloo on the CPU."
import multiprocessing, os, re, shutil, signal, socket, subprocess, sys, time
from dataclasses import replace
from pathlib import Path

import numpy as np, pandas as pd, pytest, torch
from safetensors.torch import load_file

import chexmix.pretrain as pretraining, chexmix.tokenizer as tokenizers, chexmix.training_loop as training
from chexmix.core import open_run, read_json, start_run, UserError, write_json
from chexmix.data import read_table
from chexmix.training_loop import fit, FitSettings, read_checkpoint
from conftest import root
from test_training_loop import batch_at, Net, slow_batch_at, TimeOf

processes = multiprocessing.get_context('forkserver')
processes.set_forkserver_preload(['chexmix.pretrain'])


def join_group(rank, port, log, sharded=False):
    "Become one of two processes, as a launcher would start it."
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE='2', MASTER_ADDR='127.0.0.1',
        MASTER_PORT=str(port), ACCELERATE_USE_FSDP=str(sharded).lower())
    for stream in (1, 2):
        file = os.open(log.with_suffix(f'.{rank}'), os.O_CREAT | os.O_WRONLY | os.O_APPEND)
        os.dup2(file, stream)
    torch.set_num_threads(1)


def train(rank, port, sharded, folder, name, changes, log):
    "Train stage 2 as one of two processes."
    join_group(rank, port, log, sharded)
    try: pretraining.pretrain(folder, open_run(folder)[1], 2, name, **changes)
    except KeyboardInterrupt: os._exit(3)
    finally: training.dist.destroy_process_group()


def free_port() -> int:
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]


def train_with_little_memory(rank, *args):
    "The same, but the memory of rank 1 ends at two studies."
    forward = pretraining.Pretraining.forward

    def limited(self, input_ids, *inputs):
        if rank and self.training and len(input_ids) > 2: raise torch.OutOfMemoryError('none left')
        return forward(self, input_ids, *inputs)
    pretraining.Pretraining.forward = limited
    train(rank, *args)


def train_until_rank_1_is_killed(rank, *args):
    "The same, but rank 1 is killed when it has written its part of the checkpoint of step 3."
    write_parts = training.write_parts

    def killed(folder, state, *rest):
        if rank and state['done'] == 3:
            training.checksum = lambda path: os.kill(os.getpid(), signal.SIGKILL)
        write_parts(folder, state, *rest)
    training.write_parts = killed
    train(rank, *args)


def run_two(function, *args) -> list:
    "Call a function in two processes, with rank and port before its arguments: their exit codes."
    port = free_port()
    group = [processes.Process(target=function, args=(rank, port, *args)) for rank in (0, 1)]
    for p in group: p.start()
    for p in group: p.join()
    return [p.exitcode for p in group]


def exit_codes(folder, name, changes, log, sharded=False, function=train) -> list:
    "Train stage 2 in two processes."
    return run_two(function, sharded, folder, name, changes, log)


def train_in_two(folder, name, changes, log, sharded=False, function=train):
    "Train stage 2 in two processes, which must both succeed."
    codes = exit_codes(folder, name, changes, log, sharded, function)
    output = [log.with_suffix(f'.{rank}').read_text() for rank in (0, 1)]
    assert codes == [0, 0], '\n'.join(output)


def distance(folder, one, other) -> float:
    """How far two results are apart, as a share of how far training moved. Their logs must agree.

    (Adam makes a step of any gradient, also of one that is all rounding.)
    """
    logs = [pd.read_csv(folder/'logs'/f'{name}.csv') for name in (one, other)]
    columns = ['step', 'lr', 'loss', 'valid_image', 'valid_text', 'valid_grounding_gap']
    pd.testing.assert_frame_equal(logs[0][columns], logs[1][columns], rtol=1e-3, atol=1e-4)
    states = [load_file(folder/name/'model.safetensors') for name in (one, other, 'stage1')]
    assert states[0].keys() == states[1].keys()
    a, b, start = (torch.cat([state[k].flatten() for k in sorted(state)]) for state in states)
    return float((a - b).norm() / (a - start).norm())


@pytest.fixture(scope='module')
def alone(tiny_run, tmp_path_factory):
    """Stage 2 by one process: the folder, and the settings that make it comparable.

    Random numbers of dropout depend on the process, and so does rounding to bfloat16. A fork goes on at
    the peak of the learning rate, where rounding grows from step to step; here it is a tenth.
    """
    folder = shutil.copytree(tiny_run, tmp_path_factory.mktemp('distributed')/'run')
    changes = dict(
        steps=5, lr=3e-4, dropout=0., precision='float32', image_targets='masked', text_weight=2.,
        order='both', panels=0)
    pretraining.pretrain(folder, open_run(folder)[1], 2, 'alone', **changes)
    return folder, changes


@pytest.mark.parametrize('sharded', (False, True))
@pytest.mark.parametrize('more', ({}, dict(n_parts=2, recompute=True)))
def test_two_processes_equal_one(alone, tmp_path, sharded, more):
    """Same global batch, same weights, up to the order of sums.

    In one piece, and in parts with activation checkpointing.
    """
    folder, changes = alone
    name = f'two-{sharded}-{len(more)}'
    train_in_two(folder, name, changes | more, tmp_path/'log', sharded)
    assert distance(folder, 'alone', name) < .01
    model, processor = pretraining.load_model(folder, name)
    assert model.config.layout == processor.layout


@pytest.mark.parametrize('more', ({}, dict(n_parts=2, recompute=True)))
def test_two_processes_in_bfloat16(alone, tmp_path, more):
    """Both ways of sharing the work train, save and reload in mixed precision, with the same losses.

    Those of the first step, whose weights are the same, show what is rounded: with the number of scored ids
    in bfloat16 they differ by a thousandth, with the stream between the blocks by a ten-thousandth.
    """
    folder, changes = alone
    names = [f'bfloat16-{sharded}-{len(more)}' for sharded in (False, True)]
    for sharded, name in enumerate(names):
        changed = changes | more | dict(precision='bfloat16')
        train_in_two(folder, name, changed, tmp_path/name, bool(sharded))
        model, _ = pretraining.load_model(folder, name)
        assert model.dtype == torch.float32
        assert all(torch.isfinite(p).all() for p in model.parameters())
    copied, split = (pd.read_csv(folder/'logs'/f'{name}.csv')[['loss', 'image', 'text']] for name in names)
    np.testing.assert_allclose(copied.iloc[0], split.iloc[0], rtol=1e-5)
    np.testing.assert_allclose(copied, split, rtol=5e-4)


def test_processes_agree_on_parts(alone, tmp_path):
    "What does not fit into the memory of one is divided by all of them."
    folder, changes = alone
    train_in_two(folder, 'little', changes, tmp_path/'log', function=train_with_little_memory)
    assert read_json(folder/'little'/'training.json')['parts'] == 2
    assert 'each step is computed in 2 parts' in (tmp_path/'log.0').read_text()
    assert distance(folder, 'alone', 'little') < .01


def test_split_weights_go_on_in_more_parts(alone, tmp_path):
    "No process can try alone: one without memory ends the training, and the same call goes on in more parts."
    folder, changes = alone
    codes = exit_codes(folder, 'split', changes, tmp_path/'first', True, train_with_little_memory)
    said = (tmp_path/'first.1').read_text()
    assert codes[1] and 'the same command goes on with each step in 2 parts' in said
    train_in_two(folder, 'split', changes, tmp_path/'second', True, train_with_little_memory)
    assert read_json(folder/'split'/'training.json')['parts'] == 2
    assert distance(folder, 'alone', 'split') < .01


def train_without_memory(rank, *args):
    "The same, but no process has memory for two studies."
    forward = pretraining.Pretraining.forward

    def limited(self, input_ids, *inputs):
        if self.training and len(input_ids) > 1: raise torch.OutOfMemoryError('none left')
        return forward(self, input_ids, *inputs)
    pretraining.Pretraining.forward = limited
    train(rank, *args)


def test_split_weights_take_as_many_parts_as_the_smallest_share_has_studies(alone, tmp_path):
    "Of three studies one process has two, the other one: in two parts it would have nothing to compute."
    folder, changes = alone
    codes = exit_codes(folder, 'uneven', changes | dict(batch=3), tmp_path/'log', True, train_without_memory)
    said = (tmp_path/'log.0').read_text()
    assert codes[0] and 'take a smaller batch' in said and 'goes on with each step in' not in said
    train_in_two(folder, 'uneven', changes | dict(batch=3, n_parts=2), tmp_path/'by_hand', True)
    assert read_json(folder/'uneven'/'training.json')['parts'] == 1


class FillMemory(training.Callback):
    "The first step of the optimizer leaves less memory to a net."
    def __init__(self, net, rows):
        self.net, self.rows = net, rows

    def after_step(self): self.net.most = self.rows


def train_with_a_large_optimizer(rank, port, folder, log):
    "Of a step's sixteen rows, rank 1 has room for five when the optimizer has its state."
    join_group(rank, port, log)
    net, settings = Net(), FitSettings(4, lr=.01, log_every=1, n_parts=0, bf16=False)
    fit(net, batch_at, lambda output, _: output, folder, settings,
        callbacks=[FillMemory(net, 5 if rank else 1000)], process_group=training.init_distributed())
    training.dist.destroy_process_group()


def test_processes_agree_on_parts_again_when_the_optimizer_has_its_state(tmp_path):
    "Its memory is taken from the first step on: the second one, no larger, is tried too."
    codes = run_two(train_with_a_large_optimizer, tmp_path/'two', tmp_path/'log')
    said = (tmp_path/'log.0').read_text()
    assert codes == [0, 0], said + (tmp_path/'log.1').read_text()
    assert re.findall('computed in (.) parts', said) == ['2', '4']
    state = read_checkpoint(tmp_path/'two')
    assert state['memory'] == dict(n_parts=4)
    settings = FitSettings(4, lr=.01, log_every=1, bf16=False)
    log = fit(Net(), batch_at, lambda output, _: output, tmp_path/'one', settings)
    pd.testing.assert_frame_equal(pd.DataFrame(state['log']), log, rtol=1e-5)


def test_processes_end_a_budget_at_the_same_step(alone, tmp_path):
    folder, changes = alone
    train_in_two(folder, 'timed', changes | dict(minutes=.05), tmp_path/'log')
    steps = read_json(folder/'timed'/'training.json')['steps']
    assert steps == pd.read_csv(folder/'logs'/'timed.csv').step.iloc[-1] > 0


@pytest.mark.parametrize('sharded', (False, True))
def test_two_processes_go_on_from_one(alone, tmp_path, monkeypatch, sharded):
    "Process 0 reads the file and sends the weights to the other."
    folder, changes = alone
    name = f'handed over {sharded}'
    original = pretraining.Batches.__call__

    def interrupted(self, step):
        if step == 3: raise KeyboardInterrupt
        return original(self, step)
    with monkeypatch.context() as m:
        m.setattr(pretraining.Batches, '__call__', interrupted)
        with pytest.raises(KeyboardInterrupt):
            pretraining.pretrain(
                folder, open_run(folder)[1], 2, name, checkpoint_seconds=0, **changes)
    train_in_two(folder, name, changes, tmp_path/'log', sharded)
    assert distance(folder, 'alone', name) < .01


@pytest.mark.parametrize('sharded', (False, True))
def test_a_killed_process_loses_nothing(alone, tmp_path, capsys, sharded):
    """The last complete checkpoint is that of step 2; two processes go on from it, or one.

    Two end in the bits of two that nobody disturbed. A damaged part is found.
    """
    folder, changes = alone
    codes = exit_codes(folder, 'killed', changes | dict(checkpoint_seconds=0), tmp_path/'killed', sharded,
                       train_until_rank_1_is_killed)
    assert codes[1] == -signal.SIGKILL and codes[0] not in (0, None)
    assert 'another process has ended, start all again' in (tmp_path/'killed.0').read_text()
    kept = folder/'killed'/'training'
    assert [path.name[:13] for path in training.checkpoints(kept)] == ['step-00000002', 'step-00000001']
    assert not (folder/'killed'/'model.safetensors').exists()
    damaged = shutil.copytree(kept, tmp_path/'damaged')
    part = sorted(training.checkpoints(damaged)[0].glob('shard-*'))[1]
    part.write_bytes(part.read_bytes()[:-1] + b'?')
    assert training.read_checkpoint(damaged)['done'] == 1
    assert f'{part.parent} is damaged' in capsys.readouterr().out
    shutil.move(folder/'killed', folder/f'one-{sharded}')
    shutil.copytree(folder/f'one-{sharded}', folder/f'resumed-{sharded}')

    pretraining.pretrain(folder, open_run(folder)[1], 2, f'one-{sharded}', **changes)
    assert distance(folder, 'alone', f'one-{sharded}') < .01
    for name in ('resumed', 'undisturbed'):
        train_in_two(folder, f'{name}-{sharded}', changes, tmp_path/name, sharded)
    a, b = (load_file(folder/f'{name}-{sharded}'/'model.safetensors') for name in ('resumed', 'undisturbed'))
    assert all(torch.equal(a[name], b[name]) for name in b)


def test_the_launcher_starts_processes(alone):
    "As the notebook does with `processes`; and a mistake is one line."
    folder, _ = alone
    options = dict(n_parts=2, recompute=True, precision='float32', checkpoint_seconds=0)
    target = pretraining.launch(folder, 2, 2, 'launched', steps=3, **options)
    assert read_json(target/'training.json')['parts'] == 2
    assert (target/'model.safetensors').exists()
    with pytest.raises(UserError, match='^2 processes share a batch of 1 studies'):
        pretraining.launch(folder, 2, 2, 'too small', steps=3, batch=1)


def test_accelerate_splits_the_weights_as_the_file_in_docs_says(alone):
    "The command of the guides, with two processes."
    folder, _ = alone
    words = ['--config_file', root/'docs'/'fsdp.yaml', '--num_processes', '2']
    words += ['-m', 'chexmix.pretrain', folder, '--stage', '2', '--name', 'accelerated']
    words += ['--recompute', '--set', 'steps=2', '--set', 'precision=float32']
    command = [sys.executable, '-m', 'accelerate.commands.launch', *words]
    called = subprocess.run(
        command, env=os.environ | dict(CUDA_VISIBLE_DEVICES=''), capture_output=True, text=True)
    assert called.returncode == 0, called.stderr
    made_by = read_json(folder/'logs'/'accelerated'/'environment.json')
    assert (made_by['processes'], made_by['sharded']) == (2, True)
    assert (folder/'accelerated'/'model.safetensors').exists()


def train_tokenizer(rank, port, folder, settings, log, last_step=None):
    "Train the image tokenizer as one of two processes, in float32; the second ends before `last_step`."
    join_group(rank, port, log)
    training.has_bfloat16 = lambda device: False
    training.Checkpoint.due = lambda self: True
    if rank and last_step:
        def ending(self):
            if self.learn.done == last_step: os._exit(3)
        tokenizers.CodebookUpdates.before_backward = ending
    manifest, group = read_table(folder/'manifest.csv'), training.init_distributed()
    try: tokenizers.train_image_tokenizer(folder, settings, manifest, group=group)
    except UserError as e: raise SystemExit(str(e))
    finally: training.dist.destroy_process_group()


@pytest.fixture(scope='module')
def images(tiny_run, tmp_path_factory):
    "A table of images, and settings in which all losses, the codebook and the discriminator are at work."
    table = read_table(tiny_run/'manifest.csv')
    _, settings = open_run(tiny_run)
    return table, replace(
        settings, tokenizer_steps=10, tokenizer_batch=7, discriminator_start=0., adversarial_start=.5)


def train_tokenizer_in_two(folder, settings):
    "Train the image tokenizer in two processes, which must both succeed."
    codes = run_two(train_tokenizer, folder, settings, folder/'log')
    assert codes == [0, 0], (folder/'log.0').read_text()


def tokenizer_log(folder): return pd.read_csv(folder/'logs'/'image_tokenizer.csv')


def new_folder(folder, table):
    "A folder with a manifest."
    folder.mkdir()
    table.to_csv(folder/'manifest.csv', index=False)
    return folder


def test_two_processes_train_the_image_tokenizer_as_one_does(images, tmp_path, monkeypatch):
    "Shares of four and three images: the same log until k-means, which rounding may tip."
    table, settings = images
    settings = replace(settings, perceptual_weight=0.)  # its network would be another one
    one, two = (new_folder(tmp_path/name, table) for name in ('one', 'two'))
    monkeypatch.setattr(training, 'has_bfloat16', lambda device: False)
    tokenizers.train_image_tokenizer(one, settings, table)
    train_tokenizer_in_two(two, settings)
    logs = [tokenizer_log(folder) for folder in (one, two)]
    for column in ('loss', 'l1', 'l2', 'codebook', 'discriminator', 'valid_psnr'):
        alone, together = (log[column].to_numpy() for log in logs)
        assert np.allclose(alone[:2], together[:2], rtol=1e-3, atol=1e-5), column
        assert np.allclose(alone, together, rtol=.2, atol=.02), column
    with pytest.raises(UserError, match='^2 processes share a batch of 1 studies'):
        alone = training.ProcessGroup(0, 2, torch.device('cpu'))
        tokenizers.train_image_tokenizer(tmp_path, replace(settings, tokenizer_batch=1), table, group=alone)


def test_two_processes_go_on_with_the_image_tokenizer(images, tmp_path, monkeypatch):
    "One of two ends after six steps: two go on to the bits of an undisturbed training, and so can one."
    table, settings = images
    killed, whole = (new_folder(tmp_path/name, table) for name in ('killed', 'whole'))
    codes = run_two(train_tokenizer, killed, settings, tmp_path/'killed.log', 6)
    assert codes[1] == 3 and codes[0]
    kept = killed/'image_tokenizer'/'training'
    assert training.checkpoints(kept)  # of step 5 or 6: they are written in the background
    one = shutil.copytree(killed, tmp_path/'one')
    for folder in (killed, whole): train_tokenizer_in_two(folder, settings)
    assert ['perceptual loss' in (whole/f'log.{rank}').read_text() for rank in (0, 1)] == [True, False]
    a, b = (load_file(folder/'image_tokenizer'/'model.safetensors') for folder in (killed, whole))
    assert all(torch.equal(a[name], b[name]) for name in b)
    monkeypatch.setattr(training, 'has_bfloat16', lambda device: False)
    tokenizers.train_image_tokenizer(one, settings, table)
    assert np.allclose(tokenizer_log(one).l1, tokenizer_log(whole).l1, rtol=.05)


def test_two_processes_take_an_image_tokenizer_over(images, tmp_path, monkeypatch):
    """Process 0 reads what one process has written.

    The optimizer's state then lies in memory as the weights do, or its steps would mix up their numbers."""
    table, settings = images
    folder, whole = (new_folder(tmp_path/name, table) for name in ('taken', 'whole'))
    monkeypatch.setattr(training, 'has_bfloat16', lambda device: False)
    tokenizers.train_image_tokenizer(whole, settings, table)
    with monkeypatch.context() as m:
        def end(self):
            if self.learn.done == 6: raise KeyboardInterrupt
        m.setattr(training.Checkpoint, 'due', lambda self: True)
        m.setattr(tokenizers.CodebookUpdates, 'before_backward', end, raising=False)
        with pytest.raises(KeyboardInterrupt): tokenizers.train_image_tokenizer(folder, settings, table)
    train_tokenizer_in_two(folder, settings)
    assert np.allclose(tokenizer_log(folder).l1, tokenizer_log(whole).l1, rtol=.02)


def test_the_launcher_starts_processes_of_the_image_tokenizer(images, tmp_path, capsys):
    "As `chexmix tokenizer --processes 2` does; they read the settings of the run."
    table, settings = images
    folder = start_run(tmp_path/'run', replace(settings, tokenizer_steps=5))
    table.to_csv(folder/'manifest.csv', index=False)
    tokenizers.launch_tokenizer(folder, 2)
    assert (folder/'image_tokenizer'/'model.safetensors').exists()
    shutil.rmtree(folder/'image_tokenizer')
    images = shutil.copytree(Path(table.path[0]).parent, tmp_path/'images')
    lost = images/Path(table.path[table.split == 'train'].iloc[0]).name
    lost.unlink()
    moved = table.assign(path=[str(images/Path(path).name) for path in table.path])
    moved.to_csv(folder/'manifest.csv', index=False)
    with pytest.raises(UserError, match=lost.name): tokenizers.launch_tokenizer(folder, 2)
    (folder/'manifest.csv').unlink()
    assert tokenizers.main([str(folder)]) == 2
    assert re.fullmatch('chexmix: .*manifest.csv.*\n', capsys.readouterr().err)


def train_on_a_slow_disk(rank, port, folder, log):
    "Half a second a checkpoint, one due every .2 s: keep what the training of this process waits."
    join_group(rank, port, log)
    save = training.dcp.save

    def slow_save(*args, **options):
        time.sleep(.5)
        save(*args, **options)

    training.dcp.save = slow_save
    settings = training.FitSettings(200, lr=.01, checkpoint_seconds=.2, bf16=False)
    learn = training.new_learner(
        Net(), slow_batch_at, lambda output, _: output, folder, settings,
        process_group=training.init_distributed())
    waiting, began = TimeOf(learn.checkpoint), time.monotonic()
    learn.fit()
    spent = dict(saved=waiting.saved, waiting=waiting.seconds, all=time.monotonic() - began - .5)
    write_json(folder/f'spent.{rank}.json', spent)
    training.dist.destroy_process_group()


def test_a_slow_disk_costs_two_processes_a_twentieth_of_the_time_at_most(tmp_path):
    "They agree when to save, and write beside the steps."
    assert run_two(train_on_a_slow_disk, tmp_path, tmp_path/'log') == [0, 0], (tmp_path/'log.0').read_text()
    spent = [read_json(tmp_path/f'spent.{rank}.json') for rank in (0, 1)]
    assert spent[0]['saved'] == spent[1]['saved'] >= 3
    assert all(own['waiting'] < .05 * own['all'] for own in spent), spent
    assert training.checkpoints(tmp_path)[0].name.startswith('step-00000200')
