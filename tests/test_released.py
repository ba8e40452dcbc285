"Released weights: equal to the goldens, every faulty file named in one line, no code in a pickle ever run."
import json, os, pickle, resource, shutil, signal, socket, subprocess, sys
from pathlib import Path

import numpy as np, pandas as pd, pytest, torch, yaml
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import models, pre_tokenizers, Tokenizer
from transformers import PhiForCausalLM

import chexmix.batch_inference as batch_inference, chexmix.data as data, chexmix.released as released
from chexmix.batch_inference import embed_files, report_files
from chexmix.cli import main
from chexmix.core import read_json, UserError, write_json
from chexmix.embeddings import embed, image_means
from chexmix.generate import fill_image, generate_reports, score_texts, text_log_likelihood
from chexmix.model import ChexmixConfig, ChexmixForCausalLM
from chexmix.phantom import make_phantom
from chexmix.released import (
    cut_at_end, from_released, load_cost, official_reports, published_embedding, published_report)
from chexmix.vqgan import VQConfig, VQModel

FIRST_CODE, TEXT_START, IMAGE_START, IMAGE_END = 50_368, 50_256, 50_295, 50_296  # released ids
GOLDEN = Path(__file__).resolve().parents[2]/'shared'/'golden'/'released_layout'
needs_golden = pytest.mark.skipif(
    not GOLDEN.exists(),
    reason='no goldens at ../shared/golden (published layout, not part of the repository)')

DDCONFIG = dict(
    double_z=False, z_channels=32, resolution=512, in_channels=3, out_ch=3, ch=32,
    ch_mult=[1, 1, 2, 2, 4], num_res_blocks=1, attn_resolutions=[], dropout=0.)
STATED = dict(
    vocab_size=51_200, hidden_size=32, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2,
    hidden_act='gelu_new', resid_pdrop=.1, max_position_embeddings=2048, layer_norm_eps=1e-5,
    use_cache=False, tie_word_embeddings=False, qk_layernorm=False, bos_token_id=50_256,
    eos_token_id=50_256, model_type='phi', rope_theta=10_000., partial_rotary_factor=.5)


def write_vqgan_sizes(folder, **other):
    params = dict(embed_dim=32, n_embed=8192, ddconfig=DDCONFIG | other)
    (folder/'vqgan.yaml').write_text(yaml.safe_dump(dict(model=dict(params=params))))


def save_phantom(path, k=0):
    pixels = (make_phantom(1, k, 64).image * 255).astype(np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture(scope='module')
def release(tmp_path_factory):
    "Small random weights in the released layout. Copy before changing."
    folder = tmp_path_factory.mktemp('release')
    write_json(folder/'config.json', STATED)
    torch.manual_seed(0)
    lm = ChexmixForCausalLM(ChexmixConfig(
        hidden_size=32, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2,
        partial_rotary_factor=.5, initializer_range=.3))
    save_file({k: v.contiguous() for k, v in lm.state_dict().items()}, folder/'model.safetensors')
    write_vqgan_sizes(folder)
    vqgan = VQModel(VQConfig(512, 3, 32, (1, 1, 2, 2, 4), 1, 8192, 32))
    state = vqgan.state_dict() | {'loss.logvar': torch.zeros(())}
    torch.save(dict(state_dict=state, epoch=3), folder/'vqgan.ckpt')
    return folder


@pytest.fixture(scope='module')
def loaded(release): return from_released(release, 'cpu')


@pytest.fixture(scope='module')
def gold():
    expected, vectors = read_json(GOLDEN/'expected.json'), np.load(GOLDEN/'embeddings.npz')
    images = expected['images']
    return dict(
        images=images,
        keys=expected['keys'],
        paths=[GOLDEN/image['file'] for image in images],
        codes=torch.tensor([image['image_token_ids'] for image in images]),
        reports=[cut_at_end(image['greedy_report_ids'], (TEXT_START, IMAGE_START)) for image in images],
        embeddings=np.stack([vectors[image['file']] for image in images]),
        loaded=from_released(GOLDEN, 'cpu'))


# goldens

@needs_golden
def test_golden_codes_singly_and_together(gold):
    processor, codes = gold['loaded'][1], gold['codes']
    images = processor.read(gold['paths'])
    assert torch.equal(torch.cat([processor.encode_images(image[None]) for image in images]), codes)
    assert torch.equal(processor.encode_images(images, block=3), codes)
    input_ids = processor(gold['paths'][:1])['input_ids']
    assert torch.equal(input_ids[0, 1:1025] - FIRST_CODE, codes[0])


@needs_golden
def test_golden_reconstructions(gold):
    processor = gold['loaded'][1]
    with torch.no_grad(): rgb = processor.image_tokenizer.decode(gold['codes'].view(3, 32, 32))
    pixels = ((rgb.clamp(-1, 1) + 1) * 127.5).to(torch.uint8).double().mean((1, 2, 3))  # (B,)
    expected = [image['reconstruction_mean_pixel'] for image in gold['images']]
    assert np.abs(pixels.numpy() - expected).max() < .01


@needs_golden
@pytest.mark.parametrize('batch', [1, 3])
def test_golden_embeddings(gold, batch):
    model, codes, expected = gold['loaded'][0], gold['codes'], gold['embeddings']
    def distance(means, expected): return np.abs(means.numpy() - expected).max()

    means = torch.cat([image_means(model, part) for part in codes.split(batch)])
    assert distance(means, expected) < 1e-4
    assert distance(embed(model, codes, layers=[1, 2]), expected[:, [1, 2]]) < 1e-4
    assert distance(published_embedding(model, codes[:1]), expected[0]) < 1e-4


@needs_golden
@pytest.mark.parametrize('batch', [1, 3])
def test_golden_reports_with_cache(gold, batch):
    model, reports = gold['loaded'][0], []
    for codes in gold['codes'].split(batch): reports += official_reports(model, codes, most=32)
    assert reports == gold['reports']


@needs_golden
def test_golden_reports_without_cache(gold):
    "One image by the published loop; three at once by transformers' `generate` without a cache."
    model, codes = gold['loaded'][0], gold['codes']
    assert published_report(model, codes[:1], most=32) == gold['reports'][0]
    ids = released.image_prompt(model, codes, None, IMAGE_END, TEXT_START)
    out = PhiForCausalLM.generate(  # transformers' own, which may choose any id
        model, ids, use_cache=False, do_sample=False, max_new_tokens=32, min_new_tokens=5,
        eos_token_id=TEXT_START, pad_token_id=58_561, attention_mask=torch.ones_like(ids))
    new = out[:, 1027:].tolist()
    assert [cut_at_end(row, (TEXT_START, IMAGE_START)) for row in new] == gold['reports']


@needs_golden
def test_golden_keys_and_text_mode(gold):
    model = gold['loaded'][0]
    assert sorted(model.state_dict()) == gold['keys']
    assert max(map(max, gold['reports'])) >= FIRST_CODE
    assert max(map(max, generate_reports(model, gold['codes'], max_new_tokens=32))) < IMAGE_START


# the same functions as for our own weights

class raised_bias:
    "Inside, the model would rather write the ids from `first` on."
    def __init__(self, model, first): self.bias = model.lm_head.bias.data[first:]
    def __enter__(self): self.bias += 100
    def __exit__(self, *_): self.bias -= 100


def test_reports_in_text_mode_and_as_published(loaded):
    model = loaded[0]
    codes = torch.randint(8192, (2, 1024), generator=torch.Generator().manual_seed(0))
    with raised_bias(model, FIRST_CODE):
        text = generate_reports(model, codes, max_new_tokens=8)
        published = official_reports(model, codes, most=8)
    assert all(i < FIRST_CODE for report in text for i in report)
    assert all(i >= FIRST_CODE for report in published for i in report)


def test_everything_else_works_on_released_weights(loaded):
    model, processor = loaded
    codes = torch.randint(8192, (2, 1024), generator=torch.Generator().manual_seed(0))
    mask = torch.arange(1024).expand(2, -1) >= 1020
    filled = fill_image(model, codes, mask)
    assert torch.equal(filled[~mask], codes[~mask])
    assert processor.decode_images(filled).shape == (2, 512, 512)
    texts = generate_reports(model, codes, max_new_tokens=8)
    scores = text_log_likelihood(model, codes[:1].expand(2, -1), texts)
    assert torch.allclose(score_texts(model, codes[0], texts), scores, atol=1e-2)
    assert embed(model, codes).shape == (2, 3, 32)


def test_text_mode_has_no_id_that_cannot_be_decoded(loaded):
    "Image ids and the ids that fill the vocabulary up would both be likelier."
    model, codes = loaded[0], torch.zeros(1, 1024, dtype=torch.long)
    options = dict(max_new_tokens=8, min_new_tokens=8)
    with raised_bias(model, IMAGE_START):
        reports = generate_reports(model, codes, **options)
        reports += generate_reports(model, codes, num_beams=2, **options)
    assert all(i < IMAGE_START and i != TEXT_START for report in reports for i in report)
    assert len(reports[0]) == 8


@pytest.fixture
def words(tmp_path):
    "A folder with a text tokenizer that fits the released ids."
    vocabulary = {'Clear': 0, 'lungs': 1, '.': 2, 'Edema': 3, '<|endoftext|>': TEXT_START}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token='.'))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    (tmp_path/'words').mkdir()
    tokenizer.save(str(tmp_path/'words'/'tokenizer.json'))
    return tmp_path/'words'


@pytest.fixture
def command(release, tmp_path, monkeypatch):
    "Runs a verb of the command line on one radiograph and a release: exit code. Rows go to `o.jsonl`."
    replace_encoder(released.ReleasedProcessor, monkeypatch, [])
    decoded = lambda self, codes: torch.rand(len(codes), 512, 512)
    monkeypatch.setattr(released.ReleasedProcessor, 'decode_images', decoded)
    image, out = tmp_path/'a.png', tmp_path/'o.jsonl'
    save_phantom(image)
    def run(verb, *options):
        model = ['--model', str(release), '--device', 'cpu']
        return main([verb, str(image), *model, '-o', str(out), *options])
    return run


def only_row(path):
    row, = [json.loads(line) for line in path.read_text().splitlines()]
    return row


def test_command_line_report(command, tmp_path):
    assert command('report', '--new', '6') == 0
    assert 5 <= len(only_row(tmp_path/'o.jsonl')['ids']) <= 6


def test_command_line_embed(command, tmp_path):
    assert command('embed', '--layers', '1') == 0
    assert len(only_row(tmp_path/'o.jsonl')['layer_1']) == 32


def test_command_line_inpaint(command, tmp_path):
    assert command('inpaint', '--ratio', '0.004') == 0
    row = only_row(tmp_path/'o.jsonl')
    assert len(row['hidden']) == 4 and len(row['codes']) == 1024
    assert Path(row['picture']).exists()


def test_command_line_retrieve(command, words, tmp_path, capsys):
    reports = tmp_path/'reports.txt'
    reports.write_text('Clear lungs.\nEdema.\n')
    options = ['-k', '2', '--texts', str(reports)]
    assert command('retrieve', *options) == 2
    assert 'text tokenizer' in capsys.readouterr().err
    assert command('retrieve', *options, '--text-tokenizer', str(words)) == 0
    row = only_row(tmp_path/'o.jsonl')
    assert sorted(row['reports']) == ['Clear lungs.', 'Edema.']
    assert row['scores'][0] >= row['scores'][1]


def test_command_line_names_what_does_not_fit(release, tmp_path, capsys):
    "A truncated file and a pickle with code, from the command line: one line, exit code 2."
    save_phantom(tmp_path/'a.png')
    folder = shutil.copytree(release, tmp_path/'copy')
    torch.save(Command(tmp_path/'ran'), folder/'vqgan.ckpt')
    assert main(['report', str(tmp_path/'a.png'), '--model', str(folder)]) == 2
    assert 'nothing in it was run' in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path/'ran').exists()
    shutil.copy(release/'vqgan.ckpt', folder/'vqgan.ckpt')
    halve(folder/'model.safetensors')
    assert main(['report', str(tmp_path/'a.png'), '--model', str(folder)]) == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert 'model.safetensors' in message and 'Traceback' not in message


def test_bfloat16(release):
    model, _ = from_released(release, 'cpu', 'bfloat16')
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert model.model.rotary_emb.inv_freq.dtype == torch.float32
    assert len(official_reports(model, torch.zeros(1, 1024, dtype=torch.long), most=6)[0]) <= 6


def test_terms_are_shown_once(release):
    call = f'from_released({str(release)!r}, "cpu")'
    script = f'from chexmix.released import from_released; {call}; {call}'
    command = [sys.executable, '-c', script]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stderr.count('non-commercial research licence') == 1 and not done.stdout


# files that do not fit

def change_weights(folder, change):
    state = change(load_file(folder/'model.safetensors'))
    save_file({k: v.contiguous() for k, v in state.items()}, folder/'model.safetensors')


def change_config(folder, **other):
    "Other values in `config.json`; None removes one."
    stated = {k: v for k, v in (STATED | other).items() if v is not None}
    write_json(folder/'config.json', stated)


def halve(path): path.write_bytes(path.read_bytes()[:path.stat().st_size // 2])
def without_bias(state): return {k: v for k, v in state.items() if k != 'lm_head.bias'}
def with_vision(state): return state | {'vision.weight': torch.zeros(2)}
def as_plain_phi(state): return {k: v[:51_200] for k, v in state.items()}


FAULTS = {  # name → (what is done to a copy, what the message must name)
    'no weights': (lambda f: (f/'model.safetensors').unlink(), 'model.safetensors'),
    'weights cut off': (lambda f: halve(f/'model.safetensors'), 'model.safetensors'),
    'weights of another format': (
        lambda f: (f/'model.safetensors').write_text('hello'), 'model.safetensors'),
    'key gone': (lambda f: change_weights(f, without_bias), '1 keys missing (lm_head.bias'),
    'key too many': (lambda f: change_weights(f, with_vision), '1 keys unexpected (vision.weight'),
    'plain Phi': (lambda f: change_weights(f, as_plain_phi), '(51200, 32), not (58562, 32)'),
    'another model': (lambda f: change_config(f, model_type='llama'), 'llama'),
    'another depth': (lambda f: change_config(f, num_hidden_layers=3), 'model.layers.2'),
    'config lacks a size': (
        lambda f: change_config(f, partial_rotary_factor=None), 'partial_rotary_factor'),
    'config damaged': (lambda f: halve(f/'config.json'), 'config.json'),
    'tokenizer cut off': (lambda f: halve(f/'vqgan.ckpt'), 'vqgan.ckpt'),
    'tokenizer empty': (lambda f: (f/'vqgan.ckpt').write_bytes(b''), 'vqgan.ckpt'),
    'tokenizer is text': (lambda f: (f/'vqgan.ckpt').write_text('hello world'), 'vqgan.ckpt'),
    'tokenizer of another kind': (lambda f: torch.save([1, 2], f/'vqgan.ckpt'), 'state_dict'),
    'tokenizer of another size': (lambda f: write_vqgan_sizes(f, num_res_blocks=2), 'keys missing'),
    'other grid': (lambda f: write_vqgan_sizes(f, ch_mult=[1, 2]), 'grid 256, not 32'),
    'attention below the middle': (
        lambda f: write_vqgan_sizes(f, attn_resolutions=[16]), 'attn_resolutions'),
    'sizes damaged': (lambda f: (f/'vqgan.yaml').write_text('model: ['), 'vqgan.yaml'),
    'text tokenizer damaged': (lambda f: (f/'tokenizer.json').write_text('{}'), 'tokenizer.json'),
}


@pytest.mark.parametrize('name', FAULTS)
def test_fault_is_named_in_one_line(name, release, tmp_path):
    folder = shutil.copytree(release, tmp_path/'copy')
    damage, named = FAULTS[name]
    damage(folder)
    with pytest.raises(UserError) as error: from_released(folder, 'cpu')
    assert named in str(error.value) and '\n' not in str(error.value)


@pytest.mark.parametrize('device, dtype, named', [
    ('cuda:99', '', 'cuda:99'), ('toaster', '', 'toaster'), ('cpu', 'float16', 'float16'),
    ('cpu', 'int', 'int')])
def test_device_or_number_type_that_does_not_exist(device, dtype, named, release):
    with pytest.raises(UserError, match=named): from_released(release, device, dtype)


def test_prompt_longer_than_the_context(release, tmp_path):
    folder = shutil.copytree(release, tmp_path/'copy')
    change_config(folder, max_position_embeddings=1030)
    model, codes = from_released(folder, 'cpu')[0], torch.zeros(1, 1024, dtype=torch.long)
    assert len(official_reports(model, codes)[0]) <= 3
    with pytest.raises(UserError, match='1030'): score_texts(model, codes[0], [[5] * 9])
    model.config.max_position_embeddings = 1027
    for write in (official_reports, generate_reports):
        with pytest.raises(UserError, match='1027'): write(model, codes)


class Command:
    "Unpickled by an ordinary reader, it makes a file."
    def __init__(self, path): self.path = path
    def __reduce__(self): return os.system, (f'touch {self.path}',)


@pytest.mark.parametrize('kind', [
    'zip', 'zip, protocol 4', 'beside the tensors', 'plain pickle', 'old torch'])
def test_pickle_with_code_is_refused_and_nothing_runs(kind, release, tmp_path):
    folder, ran = shutil.copytree(release, tmp_path/'copy'), tmp_path/'ran'
    command, path = Command(ran), folder/'vqgan.ckpt'
    if kind == 'zip': torch.save(command, path)
    if kind == 'zip, protocol 4': torch.save(command, path, pickle_protocol=4)
    if kind == 'beside the tensors':
        torch.save(torch.load(path, weights_only=True) | {'callbacks': command}, path)
    if kind == 'plain pickle': path.write_bytes(pickle.dumps(command))
    if kind == 'old torch': torch.save(command, path, _use_new_zipfile_serialization=False)
    with pytest.raises(UserError, match='nothing in it was run') as error:
        from_released(folder, 'cpu')
    assert '\n' not in str(error.value) and not ran.exists()


def test_the_pickle_with_code_would_run(tmp_path):
    "The refused file is dangerous: an ordinary reader runs its command."
    pickle.loads(pickle.dumps(Command(tmp_path/'ran')))
    assert (tmp_path/'ran').exists()


# the hub

@pytest.fixture
def hub(release, tmp_path):
    "The hub's cache with one repository in it."
    repository = tmp_path/'hub'/'models--someone--chexmix'
    shutil.copytree(release, repository/'snapshots'/'0123abc')
    (repository/'refs').mkdir()
    (repository/'refs'/'main').write_text('0123abc')
    return tmp_path/'hub'


def test_cache_without_network(hub, monkeypatch):
    def connect(*args): pytest.fail('a connection was opened')
    monkeypatch.setattr(socket.socket, 'connect', connect)
    model, _ = from_released('someone/chexmix', 'cpu', offline=True, cache=hub)
    assert model.config.hidden_size == 32
    with pytest.raises(UserError, match='someone/other.*network is off'):
        from_released('someone/other', offline=True, cache=hub)


def test_no_room_for_a_download(monkeypatch, tmp_path):
    def full(*args, **kwargs): raise OSError(28, os.strerror(28))
    monkeypatch.setattr(released, 'snapshot_download', full)
    with pytest.raises(UserError, match='someone/chexmix.*No space left') as error:
        from_released('someone/chexmix', cache=tmp_path)
    assert '\n' not in str(error.value)


# sizes and memory

def write_sparse_weights(path, config, dtype, itemsize):
    "A weights file of zeros that takes no room on disk."
    table, stop = {}, 0
    for name, value in released.empty_model(config).state_dict().items():
        start, stop = stop, stop + itemsize * value.numel()
        table[name] = dict(dtype=dtype, shape=list(value.shape), data_offsets=[start, stop])
    header = json.dumps(table).encode()
    with open(path, 'wb') as file:
        file.write(len(header).to_bytes(8, 'little') + header)
        file.truncate(8 + len(header) + stop)


def test_full_size_without_memory(tmp_path):
    config, path = ChexmixConfig(), tmp_path/'model.safetensors'
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    write_sparse_weights(path, config, 'BF16', 2)
    state = released.empty_model(config).state_dict()
    released.check_keys(state, released.read_shapes(path), 'full')
    assert (config.hidden_size, config.num_hidden_layers, len(state)) == (2560, 32, 453)
    assert state['lm_head.weight'].shape == (58_562, 2560)
    assert path.stat().st_size > 5.6e9
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000


@needs_golden
def test_full_size_has_the_keys_of_the_goldens(gold):
    "The last layer stands for all of them: 3 of the goldens, 31 at full size."
    def outside_and_last(keys, last):
        kept = [k for k in keys if '.layers.' not in k or f'.layers.{last}.' in k]
        return {k.replace(f'.layers.{last}.', '.layers.last.') for k in kept}

    full = released.empty_model(ChexmixConfig()).state_dict()
    assert outside_and_last(full, 31) == outside_and_last(gold['keys'], 3)


@pytest.mark.skipif(sys.platform != 'linux', reason='memory of a process is read from /proc')
@pytest.mark.parametrize('stored, itemsize', [('F32', 4), ('BF16', 2)])
def test_peak_memory_of_loading(stored, itemsize, tmp_path):
    "More than 500 MB; the peak is at most 1.2 times the weights, and the file where nothing is converted."
    write_json(tmp_path/'config.json', STATED | dict(
        hidden_size=640, intermediate_size=2560, num_hidden_layers=12, num_attention_heads=8,
        partial_rotary_factor=.4))
    config = released.read_config(tmp_path)
    write_sparse_weights(tmp_path/'model.safetensors', config, stored, itemsize)
    cost = load_cost(tmp_path, 'float32')
    assert cost['weights'] > 500 and cost['peak'] < 1.2 * cost['weights']
    if stored == 'F32': assert cost['peak'] < 1.2 * cost['file']


# files through the model

@pytest.fixture
def folder(tmp_path):
    "Three files, of which the second is no image."
    folder = tmp_path/'in'
    folder.mkdir()
    for k in (0, 2): save_phantom(folder/f'{k}.png', k)
    (folder/'1.png').write_bytes(b'no image')
    return folder


def codes_from_sum(image):
    seed = int(image.sum())
    return torch.randint(8192, (1024,), generator=torch.Generator().manual_seed(seed))


def replace_encoder(processor, monkeypatch, calls):
    "Codes from the sum of the pixels, because the image tokenizer takes seconds. For an object or a class."
    def encode(*args):
        calls.append(len(args[-1]))
        return torch.stack([codes_from_sum(image) for image in args[-1]])
    monkeypatch.setattr(processor, 'encode_images', encode, raising=False)


READERS = {
    'jsonl': lambda path: pd.read_json(path, lines=True).ids.tolist(),
    'csv': lambda path: [json.loads(ids) for ids in pd.read_csv(path).ids],
    'parquet': lambda path: [list(ids) for ids in pd.read_parquet(path).ids]}


@pytest.mark.parametrize('suffix', ['jsonl', 'csv', 'parquet', 'txt'])
def test_reports_of_a_folder(suffix, folder, loaded, tmp_path, monkeypatch, capsys):
    replace_encoder(loaded[1], monkeypatch, [])
    out = tmp_path/f'out.{suffix}'
    table = report_files(*loaded, [folder], out, new=6, batch=2)
    assert 'no text tokenizer' in capsys.readouterr().out
    assert [Path(p).name for p in table.path] == ['0.png', '2.png']
    assert all(5 <= len(ids) <= 6 for ids in table.ids)
    bad = pd.read_csv(tmp_path/f'out.{suffix}.quarantine.csv')
    assert len(bad) == 1 and '1.png' in bad.reason[0]
    if suffix == 'txt': assert str(folder/'2.png') in out.read_text()
    else: assert READERS[suffix](out) == table.ids.tolist()
    assert not list(tmp_path.glob('.*'))


def test_killed_run_continues(folder, loaded, tmp_path, monkeypatch):
    model, processor = loaded
    images = [folder/'0.png', folder/'2.png']
    expected = embed_files(model, processor, images, tmp_path/'all.parquet', layers=[1])
    encode, calls, out = processor.encode_images, [], tmp_path/'out.parquet'
    def encode_one_then_die(images):
        if calls: raise KeyboardInterrupt
        return encode_and_count(images)
    def encode_and_count(images):
        calls.append(len(images))
        return encode(images)

    monkeypatch.setattr(processor, 'encode_images', encode_one_then_die, raising=False)
    with pytest.raises(KeyboardInterrupt):
        embed_files(model, processor, [folder], out, layers=[1], batch=1)
    assert not out.exists()
    journal = tmp_path/'.out.parquet.journal'
    journal.write_text(journal.read_text() + '{"path": "half')
    with pytest.raises(UserError, match='layers'):
        embed_files(model, processor, [folder], out, layers=[2])
    monkeypatch.setattr(processor, 'encode_images', encode_and_count, raising=False)
    table = embed_files(model, processor, [folder], out, layers=[1], batch=1)
    assert table.layer_1.tolist() == expected.layer_1.tolist()
    assert sum(calls) == 2 and not journal.exists()


def test_a_file_that_kills_its_reader_is_set_aside(folder, loaded, tmp_path, monkeypatch):
    "The call that died left a note of what it was reading; the next one does not die of it again."
    replace_encoder(loaded[1], monkeypatch, [])
    tried = []
    def read_in_processes(function, items, *args):
        tried.extend(items)
        return [None if item.endswith('2.png') else True for item in items]

    monkeypatch.setattr(data, 'map_in_processes', read_in_processes)
    (tmp_path/'.out.csv.reading').write_text(f'{folder}/0.png\n{folder}/2.png')
    table = report_files(*loaded, [folder], tmp_path/'out.csv', new=6)
    bad = pd.read_csv(tmp_path/'out.csv.quarantine.csv').set_index('path')
    assert len(tried) == 2
    assert [Path(p).name for p in table.path] == ['0.png']
    assert 'ends the process' in bad.reason[bad.index.str.endswith('2.png')].iloc[0]
    assert not list(tmp_path.glob('.*'))


@pytest.fixture
def small_files():
    "The kernel lets no file grow beyond 50 bytes."
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    def limit(): resource.setrlimit(resource.RLIMIT_FSIZE, (50, hard))
    def lift(): resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    yield limit, lift
    lift()
    signal.signal(signal.SIGXFSZ, handler)


def test_no_room_for_the_table(folder, loaded, tmp_path, monkeypatch, capsys, small_files):
    "One line, and what stood there before is left. (`capsys` keeps what is printed out of files.)"
    limit, lift = small_files
    replace_encoder(loaded[1], monkeypatch, [])
    out = tmp_path/'out.csv'
    out.write_text('before')
    limit()
    try:
        with pytest.raises(UserError, match='out.csv') as error:
            report_files(*loaded, [folder], out, new=6)
    finally: lift()
    assert '\n' not in str(error.value) and out.read_text() == 'before'


@pytest.mark.parametrize('path, out, named', [
    ('none', 'o.csv', 'none'), ('empty', 'o.csv', 'empty'), ('in', 'o.xlsx', 'o.xlsx'),
    ('in/1.png', 'o.csv', 'none of 1')])
def test_mistakes_with_files(path, out, named, folder, loaded, tmp_path):
    (tmp_path/'empty').mkdir()
    with pytest.raises(UserError, match=named): report_files(*loaded, [tmp_path/path], tmp_path/out)
    assert not (tmp_path/out).exists()
