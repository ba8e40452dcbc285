"The loop under all trainings: parts that fit, budgets of time, and checkpoints that cost no time."
import shutil, time
from dataclasses import replace

import numpy as np, pandas as pd, pytest, torch
from safetensors.torch import load_file

import chexmix.training_loop as training
from chexmix.core import open_run, read_json, rng, UserError
from chexmix.pretrain import get_stage_config, Pretraining, pretrain, stage_learning_rate, steps_seen
from chexmix.tokenizer import prepare_data, train_image_tokenizer
from chexmix.training_loop import (
    BucketedIndices, Callback, checkpoints, fit, FitSettings, read_checkpoint, sort_window, Throughput)


class Net(torch.nn.Module):
    "Its loss is a sum over the batch, so that parts add up; more than `most` rows do not fit."
    def __init__(self, most=1000):
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.most = torch.nn.Linear(1, 1), most

    def forward(self, x, total):
        if len(x) > self.most: raise torch.OutOfMemoryError('CUDA out of memory')
        return (self.layer(x) - x.sin()).square().sum() / total, {}


def batch_at(step):
    return torch.rand(16, 1, generator=rng(0, 'x', step)), torch.tensor(16.), None


def slow_batch_at(step):
    time.sleep(.02)
    return batch_at(step)


def train(net, folder, settings, batch_at=batch_at, callbacks=()):
    return fit(net, batch_at, lambda output, _: output, folder, settings, callbacks=callbacks)


# order

def test_cached_windows_are_those_that_are_sorted():
    "In any order of the steps, and over the end of a pass."
    lengths = np.random.default_rng(0).integers(5, 90, 100)
    indices_at = BucketedIndices(lengths, batch=5, seed=3, window=4)
    for step in (0, 1, 17, 16, 3, 40):
        window = sort_window(lengths, 5, step // 4, 3, 4)
        assert torch.equal(indices_at(step), window[step % 4])
    seen = torch.cat([indices_at(step) for step in range(60)])
    assert torch.bincount(seen, minlength=100).tolist() == [3] * 100


# parts

def test_parts_are_found_and_kept(tmp_path, capsys):
    settings = FitSettings(6, lr=.01, log_every=6, n_parts=0, bf16=False)
    expected, found = Net(), Net(most=5)
    train(expected, tmp_path/'one', replace(settings, n_parts=1))
    train(found, tmp_path/'found', settings)
    for a, b in zip(expected.parameters(), found.parameters()): torch.testing.assert_close(a, b)
    said = [line for line in capsys.readouterr().out.splitlines() if 'memory' in line]
    assert [line.split('computed in')[1] for line in said] == [' 2 parts', ' 4 parts']
    learn = training.new_learner(
        Net(most=5), batch_at, lambda output, _: output, tmp_path/'found', replace(settings, n_steps=8))
    assert learn.n_parts == 4  # a killed training goes on with them, for the same bits


def test_the_log_of_a_step_in_parts_is_that_of_all_parts(tmp_path):
    "What the loss consists of is a mean over all parts, not that of the last one."
    class Logged(Net):
        def forward(self, x, total):
            error = (self.layer(x) - x.sin()).square()
            return error.sum() / total, dict(error=error.mean().detach())

    settings = FitSettings(4, lr=.01, log_every=1, bf16=False)
    for n in (1, 4):
        log = train(Logged(), tmp_path/str(n), replace(settings, n_parts=n))
        np.testing.assert_allclose(log.error, log.loss, rtol=1e-5)


def test_what_no_division_helps_is_one_line(tmp_path):
    settings = FitSettings(2, lr=.01, n_parts=0, bf16=False)
    with pytest.raises(UserError, match='^there is not enough memory: take a smaller batch') as error:
        train(Net(most=0), tmp_path, settings)
    assert '\n' not in str(error.value)
    with pytest.raises(UserError, match='not enough memory'):
        train(Net(most=8), tmp_path/'fixed', replace(settings, n_parts=1))


def test_parts_that_are_found_have_the_dropout_of_parts_that_are_named(tiny_run, tmp_path, monkeypatch):
    "A stage in two parts because its memory ends there: the same bits as with two parts from the start."
    folder = shutil.copytree(tiny_run, tmp_path/'run')
    settings, forward = open_run(folder)[1], Pretraining.forward
    changes = dict(steps=3, panels=0, dropout=.1)
    pretrain(folder, settings, 1, 'named', n_parts=2, **changes)

    def small_memory(self, input_ids, *args):
        if self.training and len(input_ids) > settings.batch // 2: raise torch.OutOfMemoryError('none left')
        return forward(self, input_ids, *args)
    monkeypatch.setattr(Pretraining, 'forward', small_memory)
    pretrain(folder, settings, 1, 'found', **changes)
    a, b = (load_file(folder/name/'model.safetensors') for name in ('named', 'found'))
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert read_json(folder/'found'/'training.json') == dict(steps=3, stable_steps=3, parts=2)


@pytest.mark.parametrize('wrong', (dict(n_parts=-1), dict(n_parts=.5), dict(checkpoint_seconds=-1),
                                   dict(minutes=-1), dict(minutes=float('nan')), dict(precision='half')))
def test_bad_options_are_refused_before_anything_is_written(tiny_run, wrong):
    folder, settings = open_run(tiny_run)
    with pytest.raises(UserError) as error: pretrain(folder, settings, 1, 'refused', **wrong)
    assert '\n' not in str(error.value) and not (folder/'refused').exists()


# a budget of time

class Positions(Callback):
    "Where on the schedule each step began, and its rate."
    def __init__(self): self.rows = []
    def after_batch(self):
        self.rows.append((self.learn.memory['last_position'], self.opt.hypers[0]['lr']))


def test_a_budget_is_kept_and_the_rate_follows_it(tmp_path):
    "The steps of the schedule, 300, are neither reached nor needed."
    positions, seconds = Positions(), 3.
    settings = FitSettings(300, lr=.01, warmup=.1, decay=.5, log_every=100, seconds=seconds)
    log = train(Net(), tmp_path, settings, slow_batch_at, [positions])
    memory = read_checkpoint(tmp_path)['memory']
    step_seconds = memory['seconds'] / len(positions.rows)
    assert seconds - 3 * step_seconds < memory['seconds'] < seconds + 3 * step_seconds
    rate = training.LearningRate(300, .01, .1, .5)
    assert all(lr == pytest.approx(rate(position)) for position, lr in positions.rows)
    assert positions.rows[-1][1] < .008 and log.step.iloc[-1] == len(positions.rows) < 290


def test_a_killed_budget_goes_on_with_the_time_that_was_left(tmp_path):
    settings = FitSettings(300, lr=.01, log_every=100, seconds=3., checkpoint_seconds=0)

    def killed_at(step):
        if step == 6: raise KeyboardInterrupt
        return slow_batch_at(step)
    with pytest.raises(KeyboardInterrupt): train(Net(), tmp_path, settings, killed_at)
    before = read_checkpoint(tmp_path)['memory']['seconds']
    began = time.monotonic()
    log = train(Net(), tmp_path, settings, slow_batch_at)
    spent, after = time.monotonic() - began, read_checkpoint(tmp_path)
    assert .12 <= before < 3 and 6 < after['done'] == log.step.iloc[-1]
    assert after['memory']['position'] == 300 and before < after['memory']['seconds'] < 3.5
    assert spent < 3 - before + 2  # what it takes to make a learner
    train(Net(), tmp_path, settings, slow_batch_at)  # nothing is left to do
    assert read_checkpoint(tmp_path)['done'] == after['done']


def test_stages_under_a_budget(tiny_run, tmp_path):
    "Stage 1 ends with weights and a state to fork from; stage 2 goes on with the batches that come next."
    folder = shutil.copytree(tiny_run, tmp_path/'run')
    for stage in ('stage1', 'stage2'): shutil.rmtree(folder/stage)
    settings = open_run(folder)[1]
    began = time.monotonic()
    pretrain(folder, settings, 1, minutes=.1, panels=0)
    assert time.monotonic() - began < 60
    done = read_json(folder/'stage1'/'training.json')
    kept = int(checkpoints(folder/'stage1'/'stable')[0].name[5:13])
    assert 0 < kept == done['stable_steps'] <= done['steps'] and done['parts'] == 1
    assert pd.read_csv(folder/'logs'/'stage1.csv').step.iloc[-1] == done['steps']
    assert f'| steps | {done["steps"]} |' in (folder/'stage1'/'README.md').read_text()
    pretrain(folder, settings, 2, minutes=.1, panels=0)
    assert read_json(folder/'stage2'/'settings.json')['first_step'] == kept
    assert steps_seen(folder, get_stage_config(settings, 2)) == kept
    assert load_file(folder/'stage2'/'model.safetensors')
    with pytest.raises(UserError, match='was made with minutes=0.1, not 0.2'):
        pretrain(folder, settings, 2, minutes=.2)


def test_the_image_tokenizer_under_a_budget(tiny_run, tmp_path):
    "With network of features, k-means start, restarts of entries and discriminator, all by time."
    folder = shutil.copytree(tiny_run, tmp_path/'run')
    shutil.rmtree(folder/'image_tokenizer')
    settings = replace(open_run(folder)[1], tokenizer_minutes=.2)
    began = time.monotonic()
    tokenizer = train_image_tokenizer(folder, settings, prepare_data(folder, settings))
    assert time.monotonic() - began < 60
    log = pd.read_csv(folder/'logs'/'image_tokenizer.csv')
    assert log.step.iloc[-1] == read_json(folder/'logs'/'image_tokenizer.json')['steps'] > 1
    assert log[['codebook', 'perplexity', 'discriminator']].iloc[-1].notna().all()
    codes = tokenizer.encode(torch.zeros(1, 1, 64, 64))
    assert codes.numel() == settings.grid**2
    shutil.rmtree(folder/'image_tokenizer')
    with pytest.raises(UserError, match='before the codebook began to learn'):
        short = replace(settings, tokenizer_minutes=1e-4)
        train_image_tokenizer(folder, short, prepare_data(folder, short))


# checkpoints

class TimeOf(Callback):
    "Seconds that training waits for its checkpoints, the last one apart, which ends it."
    def __init__(self, checkpoint):
        self.seconds, self.saved = 0., 0
        original = checkpoint.after_batch

        def timed():
            began, last = time.monotonic(), checkpoint.last
            original()
            self.seconds += time.monotonic() - began
            self.saved += checkpoint.last != last
        checkpoint.after_batch = timed


def save_slowly(monkeypatch, seconds: float):
    "From here on a file takes this long to write."
    save = torch.save

    def slow_save(*args):
        time.sleep(seconds)
        save(*args)
    monkeypatch.setattr(training.torch, 'save', slow_save)


def test_a_slow_disk_costs_a_twentieth_of_the_time_at_most(tmp_path, monkeypatch):
    "Half a second a checkpoint, one due every .2 s: they are written beside the steps."
    save_slowly(monkeypatch, .5)
    learn = training.new_learner(
        Net(), slow_batch_at, lambda output, _: output, tmp_path,
        FitSettings(200, lr=.01, checkpoint_seconds=.2))
    waiting = TimeOf(learn.checkpoint)
    began = time.monotonic()
    learn.fit()
    seconds = time.monotonic() - began - .5
    assert waiting.saved >= 3 and waiting.seconds < .05 * seconds
    assert read_checkpoint(tmp_path)['done'] == 200


def test_the_period_counts_from_the_end_of_writing(tmp_path):
    checkpoint = training.Checkpoint(tmp_path, seconds=60)
    alone = training.ProcessGroup(0, 1, torch.device('cpu'))
    learner = type('', (), dict(writer=training.CheckpointWriter(alone), process_group=alone))
    checkpoint.learn = learn = learner()
    learn.writer.ended -= 61
    assert checkpoint.due()
    learn.writer.write(tmp_path, dict(done=1))
    learn.writer.wait()
    assert not checkpoint.due()
    learn.writer.ended -= 61
    checkpoint.blocked = 30.  # a copy of half a minute: once in ten minutes
    assert not checkpoint.due()
    learn.writer.ended -= 600
    assert checkpoint.due()


def test_what_is_written_is_the_state_when_it_was_saved(tmp_path, monkeypatch):
    "Later steps change the weights while the thread has not begun."
    kept = tmp_path/'kept'
    settings = FitSettings(30, lr=.01, bf16=False, checkpoint_seconds=float('inf'))
    train(Net(), tmp_path/'plain', settings, callbacks=[training.KeepState(kept/'plain', 10)])
    save_slowly(monkeypatch, .2)
    train(Net(), tmp_path/'late', settings, callbacks=[training.KeepState(kept/'late', 10)])
    a, b = (read_checkpoint(kept/name) for name in ('plain', 'late'))
    assert a['done'] == b['done'] == 10
    assert all(torch.equal(a['model'][k], b['model'][k]) for k in a['model'])
    assert all(torch.equal(a['opt']['state'][k][n], b['opt']['state'][k][n])
               for k in a['opt']['state'] for n in a['opt']['state'][k])


def test_processes_without_a_common_folder_are_told(tmp_path):
    "What process 1 wrote is on another disk."
    with pytest.raises(UserError, match='part b of another process is not there: all need the same folder'):
        with training.checkpoint_errors(tmp_path): training.seal_parts(tmp_path, dict(done=1), dict(b=0))


# speed

def test_speed_and_trace_of_a_stage(tiny_run, tmp_path):
    "They change no weight; a call that goes on keeps the rows that were there."
    folder = shutil.copytree(tiny_run, tmp_path/'run')
    settings = open_run(folder)[1]
    for name in ('watched', 'plain'):
        pretrain(folder, settings, 1, name, steps=6, panels=0, profile=name == 'watched')
    weights = [load_file(folder/name/'model.safetensors') for name in ('watched', 'plain')]
    assert all(torch.equal(value, weights[1][key]) for key, value in weights[0].items())
    speed = pd.read_csv(folder/'logs'/'watched'/'speed.csv')
    assert speed.step.iloc[-1] == 6 and (speed.ids_per_second > 0).all() and speed.MFU.isna().all()
    assert speed.waiting.between(0, 1).all() and (speed.memory_GB > 0).all()
    assert read_json(folder/'logs'/'watched'/'trace.json')['traceEvents']
    assert not (folder/'logs'/'plain'/'trace.json').exists()


def test_the_first_row_of_speed_comes_soon_and_a_resumed_call_appends(tmp_path):
    settings = FitSettings(30, lr=.01, log_every=30, checkpoint_seconds=0)
    watch = Throughput(tmp_path/'speed.csv', 12., first=.05, seconds=1e9)
    def until_step_20(step):
        if step == 20: raise KeyboardInterrupt
        return slow_batch_at(step)
    with pytest.raises(KeyboardInterrupt): train(Net(), tmp_path/'run', settings, until_step_20, [watch])
    before = pd.read_csv(tmp_path/'speed.csv')
    assert len(before) == 1 and before.seconds.iloc[0] < 5
    train(Net(), tmp_path/'run', settings, callbacks=[watch])
    after = pd.read_csv(tmp_path/'speed.csv')
    assert len(after) > 1 and after.iloc[0].equals(before.iloc[0]) and after.step.iloc[-1] == 30


# optimizer

def matrices():
    "Of a small transformer, the second without a gradient."
    torch.manual_seed(0)
    shapes = [shape for _ in range(3) for shape in ((24, 24), (24, 24), (96, 24), (24, 96))]
    return [torch.nn.Parameter(torch.randn(shape) * .1) for shape in shapes]


def take_steps(optimizer, parameters, steps):
    for step in steps:
        generator = rng(0, 'gradient', step)
        for k, p in enumerate(parameters):
            gradient = torch.randn(p.shape, generator=generator)
            p.grad = None if k == 1 else gradient
        optimizer.step()


@pytest.mark.parametrize('most', (1, 2**20))
def test_stacked_matrices_learn_as_one_by_one(monkeypatch, most):
    "Stacks of one and of many; each goes on from a checkpoint of the other."
    stacks = training.StackedMuon.stacks
    if most == 1:
        monkeypatch.setattr(training.StackedMuon, 'stacks', lambda self, group: [
            [p] for params in stacks(self, group) for p in params])
    options = dict(lr=.01, weight_decay=.1, adjust_lr_fn='match_rms_adamw')
    kinds = torch.optim.Muon, training.StackedMuon
    weights, optimizers = [], []
    for kind in kinds:
        weights.append(matrices())
        optimizers.append(kind(weights[-1], **options))
        take_steps(optimizers[-1], weights[-1], range(4))
    for kind, optimizer, parameters in zip(reversed(kinds), optimizers, weights):
        other = kind(parameters, **options)
        other.load_state_dict(optimizer.state_dict())
        take_steps(other, parameters, range(4, 7))
    start = matrices()
    for one, other, first in zip(*weights, start):
        moved = float((one - first).detach().abs().max())
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5 * moved)
    assert torch.equal(weights[0][1], start[1]) and not torch.equal(weights[0][0], start[0])


def n_operations(optimizer) -> int:
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities) as profiled: optimizer.step()
    return sum(event.count for event in profiled.key_averages() if event.key.startswith('aten::'))


def test_stacking_saves_operations():
    numbers = []
    for kind in (torch.optim.Muon, training.StackedMuon):
        parameters = matrices()
        optimizer = kind(parameters, .01, adjust_lr_fn='match_rms_adamw')
        take_steps(optimizer, parameters, range(1))
        numbers.append(n_operations(optimizer))
    assert numbers[1] < .7 * numbers[0]
