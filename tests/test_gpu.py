"""What only a GPU can show; each test is skipped, with the reason, where torch finds none.

    python -m pytest -m gpu tests/test_gpu.py
"""
import shutil
from dataclasses import replace

import pytest, torch
from safetensors.torch import load_file
from torch.nn.attention import sdpa_kernel, SDPBackend

from chexmix.core import open_run, read_json
from chexmix.generate import FixedStep, generate_reports, next_state, prefill, report_prompt
from chexmix.model import causal_loss, evaluating, select_targets
from chexmix.pretrain import load_model, pretrain
from chexmix.processor import collate, Processor
from chexmix.radiograph import read_images
from chexmix.token_store import open_store
from chexmix.tokenizer import prepare_data, train_image_tokenizer
from chexmix.training_loop import Callback

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason='torch finds no CUDA device on this machine')]


@pytest.fixture
def run(tiny_run, tmp_path):
    return shutil.copytree(tiny_run, tmp_path/'run')


def batch_of(run, n=16):
    "Ids and targets of some training studies, on the CPU."
    layout = Processor.from_pretrained(run/'processor').layout
    ids = collate([open_store(run/'store')[i] for i in range(n)], layout)['input_ids']
    return ids, select_targets(ids, None, layout)


def loss_and_gradients(model, ids, targets, bfloat16=False):
    "Loss of a batch, and all gradients as one vector on the CPU."
    device = model.device
    model.zero_grad()
    with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
        loss, _ = causal_loss(model, ids.to(device), targets.to(device))
    loss.backward()
    return loss.item(), torch.cat([p.grad.float().cpu().flatten() for p in model.parameters()])


def distance(a, b): return ((a - b).norm() / b.norm()).item()


def test_loss_and_gradients_are_those_of_the_cpu(run):
    model, batch = load_model(run)[0].cpu(), batch_of(run)
    loss, gradients = loss_and_gradients(model, *batch)
    on_gpu, gradients_on_gpu = loss_and_gradients(model.cuda(), *batch)
    assert on_gpu == pytest.approx(loss, rel=1e-5)
    assert distance(gradients_on_gpu, gradients) < 1e-4


def test_bfloat16_is_close_to_float32(run):
    model, batch = load_model(run)[0].cuda(), batch_of(run)
    loss, gradients = loss_and_gradients(model, *batch)
    rounded, rounded_gradients = loss_and_gradients(model, *batch, bfloat16=True)
    assert rounded == pytest.approx(loss, rel=5e-3)
    assert distance(rounded_gradients, gradients) < .05


def test_the_fast_attention_kernel_computes_padded_batches(run):
    "No other kernel is allowed, so a fall back to the plain one would be an error."
    model, (ids, targets) = load_model(run)[0].cuda(), batch_of(run)
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION), torch.autocast('cuda', torch.bfloat16):
        loss, _ = causal_loss(model, ids.cuda(), targets.cuda())
    loss.backward()


def test_compiled_layers_give_the_same_gradients(run):
    model, batch = load_model(run)[0].cuda(), batch_of(run)
    loss, gradients = loss_and_gradients(model, *batch)
    for layer in model.model.layers: layer.compile(dynamic=True)
    compiled, compiled_gradients = loss_and_gradients(model, *batch)
    assert compiled == pytest.approx(loss, rel=1e-5)
    assert distance(compiled_gradients, gradients) < 1e-4


@pytest.mark.parametrize('precision', ['float32', 'bfloat16'])
def test_a_deterministic_training_ends_in_the_same_bits(run, precision):
    settings, weights = open_run(run)[1], []
    for name in ('one', 'two'):
        pretrain(run, settings, 1, name, steps=6, precision=precision, deterministic=True, panels=0)
        weights.append(load_file(run/name/'model.safetensors'))
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


class StopAtThree(Callback):
    order = 70  # after the step is counted and kept
    def after_batch(self):
        if self.learn.done == 3: raise KeyboardInterrupt


def test_a_stopped_training_goes_on_to_the_same_bits(run):
    options = dict(steps=6, deterministic=True, panels=0, checkpoint_seconds=0.)
    pretrain(run, open_run(run)[1], 1, 'whole', **options)
    with pytest.raises(KeyboardInterrupt):
        pretrain(run, open_run(run)[1], 1, 'cut', callbacks=[StopAtThree()], **options)
    pretrain(run, open_run(run)[1], 1, 'cut', **options)
    whole, cut = (load_file(run/name/'model.safetensors') for name in ('whole', 'cut'))
    assert all(torch.equal(whole[name], cut[name]) for name in whole)


def test_codes_are_those_of_the_cpu(run):
    "Except where two entries are equally near, up to rounding."
    processor = Processor.from_pretrained(run/'processor')
    images = read_images(open_store(run/'store')['path'][:32], processor.image_size)
    processor.image_tokenizer.cpu()
    codes = processor.encode_images(images)
    processor.image_tokenizer.cuda()
    assert (processor.encode_images(images) == codes).float().mean() > .999


def test_reports_are_those_of_the_cpu(run):
    "Greedy, in float32: at most one of eight may part where two words are equally likely."
    model, codes = load_model(run)[0].cpu(), torch.tensor(open_store(run/'store')['codes'][:8])
    mask = torch.zeros_like(codes, dtype=torch.bool)
    texts = generate_reports(model, codes, mask, max_new_tokens=20)
    on_gpu = generate_reports(model.cuda(), codes.cuda(), mask.cuda(), max_new_tokens=20)
    assert sum(a != b for a, b in zip(texts, on_gpu)) <= 1


def test_a_static_cache_writes_the_same_reports(run):
    "In float32, greedy; transformers may not compile its steps."
    model, codes = load_model(run)[0].cuda(), torch.tensor(open_store(run/'store')['codes'][:8]).cuda()
    texts = generate_reports(model, codes, max_new_tokens=20, guidance=1)
    static = generate_reports(model, codes, max_new_tokens=20, cache_implementation='static')
    assert sum(a != b for a, b in zip(texts, static)) <= 1


def test_a_recorded_step_is_the_step(run):
    "After two steps a CUDA graph is replayed, and its states are those of the growing cache."
    model, codes = load_model(run)[0].cuda(), torch.tensor(open_store(run/'store')['codes'][:8])
    prompt = report_prompt(model, codes)
    step, (_, growing) = FixedStep(model, prefill(model, prompt, 6)[1]), prefill(model, prompt, 6)
    with evaluating(model):
        for k in range(6):
            ids = torch.full((8, 1), 5 + k, device='cuda')
            assert distance(step(ids), next_state(model, growing, ids)) < 1e-3
    assert step.graph is not None


def test_the_image_tokenizer_trains(run):
    shutil.rmtree(run/'image_tokenizer')
    settings = replace(open_run(run)[1], tokenizer_steps=12)
    tokenizer = train_image_tokenizer(run, settings, prepare_data(run, settings))
    assert tokenizer.encode(torch.zeros(1, settings.image_channels, 64, 64).cuda()).is_cuda


def test_little_memory_means_more_parts(run):
    "A step that fits gets two thirds of the memory that it needs, and is then computed in parts."
    def train(name): pretrain(run, open_run(run)[1], 1, name, steps=2, batch=128, panels=0)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    train('enough')
    needed = torch.cuda.max_memory_reserved() / torch.cuda.get_device_properties(0).total_memory
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(2 / 3 * needed)
    try: train('little')
    finally: torch.cuda.set_per_process_memory_fraction(1.)
    assert read_json(run/'enough'/'training.json')['parts'] == 1
    assert read_json(run/'little'/'training.json')['parts'] > 1
