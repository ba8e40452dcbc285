"The fastai Learner of a stage: what it shows, its search for a rate, callbacks of others, and the same bits."
import shutil
from pathlib import Path

import matplotlib.pyplot as plt, numpy as np, pandas as pd, pytest, torch
from fastai.callback.core import Callback
from fastai.callback.progress import CSVLogger
from fastai.learner import Learner, Recorder
from safetensors.torch import load_file

from chexmix.core import open_run, UserError
from chexmix.pretrain import get_learner, load_model, pretrain


@pytest.fixture(scope='module')
def run(tiny_run, tmp_path_factory) -> Path:
    "The tokens of the tiny run, and a stage 1 that `pretrain` trained with one more callback."
    folder = tmp_path_factory.mktemp('learner')/'run'
    folder.mkdir()
    for name in ('settings.json', 'processor', 'store'):
        copy = shutil.copytree if (tiny_run/name).is_dir() else shutil.copy
        copy(tiny_run/name, folder/name)
    pretrain(folder, open_run(folder)[1], 1, steps=12, callbacks=[CollectLosses()])
    return folder


class CollectLosses(Callback):
    "As a callback of Weights & Biases or TensorBoard reads them, after fastai's recorder."
    order, seen = Recorder.order + 1, []
    def before_fit(self): self.seen.clear()
    def after_batch(self): self.seen.append((float(self.learn.smooth_loss), self.learn.recorder.lrs[-1]))


def test_pretrain_takes_callbacks(run):
    assert len(CollectLosses.seen) == 12
    losses, rates = zip(*CollectLosses.seen)
    assert losses[-1] < losses[0] and max(rates) <= open_run(run)[1].lr


def test_learner_after_a_search_trains_the_same_bits(run):
    "lr_find, show_batch, show_results and a logger of fastai leave no trace in the weights."
    learn = get_learner(run, 1, 'again', callbacks=[CSVLogger(run/'again.csv')], steps=12)
    assert isinstance(learn, Learner) and len(learn.dls.train) == 12
    before = {name: p.clone() for name, p in learn.model.named_parameters()}
    plt.close(learn.show_batch(max_n=2))
    plt.close(learn.dls.show_batch(max_n=1))
    assert learn.lr_find(num_it=20, show_plot=False).valley > 0
    for name, p in learn.model.named_parameters(): assert torch.equal(p, before[name])
    assert not list((run/'again').rglob('*.pt')), 'a search writes no checkpoint'
    learn.fit(1)
    plt.close(learn.show_results(max_n=1))
    learn.save_stage()
    assert len(pd.read_csv(run/'again.csv')) == 1
    first, again = (load_file(run/name/'model.safetensors') for name in ('stage1', 'again'))
    assert first.keys() == again.keys()
    for name in first: assert torch.equal(first[name], again[name]), name
    load_model(run, 'again')


def test_masked_stage_is_shown_as_it_is_read(run):
    learn = get_learner(run, 2, 'masked', start='', steps=2)
    figure = learn.show_batch(max_n=3)
    assert any('█' in text.get_text() for ax in figure.axes for text in ax.texts)
    plt.close(figure)


def test_a_stopped_learner_goes_on(run):
    "Stopped by a callback in the middle: the next fit takes the steps that are left."
    class Stop(Callback):
        order = 70  # after the step is counted and kept
        def after_batch(self):
            if self.learn.done == 5: raise KeyboardInterrupt
    learn = get_learner(run, 1, 'stopped', callbacks=[Stop()], steps=12, checkpoint_seconds=0)
    with pytest.raises(KeyboardInterrupt): learn.fit(1)
    learn = get_learner(run, 1, 'stopped', steps=12)
    assert learn.done == 5 and len(learn.dls.train) == 7
    learn.fit(1)
    weights = load_file(run/'stage1'/'model.safetensors')
    for name, p in learn.network.lm.state_dict().items(): assert torch.equal(p, weights[name]), name


def test_deterministic_algorithms_change_no_bit_on_a_cpu(run):
    pretrain(*open_run(run), 1, 'deterministic', steps=12, deterministic=True)
    assert not torch.are_deterministic_algorithms_enabled()
    weights, again = (load_file(run/name/'model.safetensors') for name in ('stage1', 'deterministic'))
    assert all(torch.equal(weights[name], again[name]) for name in weights)


@pytest.mark.skipif(not shutil.which('g++'), reason='torch.compile needs a C++ compiler')
def test_compiled_layers_train_alike(run):
    "The loss of the first step is equal up to rounding; Muon makes more of it in the second."
    names = 'plain', 'compiled'
    for name in names:
        pretrain(*open_run(run), 1, name, steps=2, precision='float32', compile=name == 'compiled')
    first, second = np.transpose([pd.read_csv(run/'logs'/f'{name}.csv').loss for name in names])
    assert first[1] == pytest.approx(first[0], rel=1e-5) and second[1] == pytest.approx(second[0], rel=1e-2)
    weights, compiled = (load_file(run/name/'model.safetensors') for name in names)
    assert weights.keys() == compiled.keys()


def test_bad_input(run):
    with pytest.raises(UserError, match='trained already'): get_learner(run, 1, steps=12)
    with pytest.raises(UserError, match='no such stage'): get_learner(run, 3)
    with pytest.raises(UserError, match='no run at'): get_learner(run/'none', 1)
    learn = get_learner(run, 1, 'refused', steps=12)
    with pytest.raises(UserError, match='one epoch'): learn.fit(3)
    with pytest.raises(UserError, match='follows its schedule'): learn.fit(1, lr=.1)
