"Released weights: goldens to the last id, every file that does not fit named in one line, nothing in a pickle run, memory of a load, files through the model."
import json, os, pickle, resource, shutil, socket, subprocess, sys
from pathlib import Path

import numpy as np, pandas as pd, pytest, torch, yaml
from PIL import Image
from safetensors.torch import load_file, save_file

import chexmix.released as released, chexmix.serve as serve
from chexmix.cli import main
from chexmix.core import UserError, read_json, write_json
from chexmix.model import ChexmixConfig, ChexmixForCausalLM, embed, fill_image, generate_reports, image_means, score_texts, text_log_likelihood
from chexmix.phantom import draw_study
from chexmix.released import cut, from_released, load_cost, official_reports, published_embedding, published_report
from chexmix.serve import embed_files, report_files
from chexmix.vqgan import VQConfig, VQModel

golden = Path(__file__).resolve().parents[2]/'shared'/'golden'/'released_layout'
needs_golden = pytest.mark.skipif(not golden.exists(), reason='no goldens at ../shared/golden (published layout, not part of the repository)')
dd = dict(double_z=False, z_channels=32, resolution=512, in_channels=3, out_ch=3, ch=32, ch_mult=[1, 1, 2, 2, 4], num_res_blocks=1, attn_resolutions=[], dropout=0.)
stated = dict(vocab_size=51_200, hidden_size=32, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2, hidden_act='gelu_new', resid_pdrop=.1, max_position_embeddings=2048,
              layer_norm_eps=1e-5, use_cache=False, tie_word_embeddings=False, qk_layernorm=False, bos_token_id=50_256, eos_token_id=50_256, model_type='phi', rope_theta=10_000., partial_rotary_factor=.5)


@pytest.fixture(scope='module')
def release(tmp_path_factory):
    "Small random weights in the released layout. Copy before changing."
    folder = tmp_path_factory.mktemp('release')
    write_json(folder/'config.json', stated)
    torch.manual_seed(0)
    lm = ChexmixForCausalLM(ChexmixConfig(hidden_size=32, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2, partial_rotary_factor=.5, initializer_range=.3))
    save_file({k: v.contiguous() for k, v in lm.state_dict().items()}, folder/'model.safetensors')
    (folder/'vqgan.yaml').write_text(yaml.safe_dump(dict(model=dict(params=dict(embed_dim=32, n_embed=8192, ddconfig=dd)))))
    torch.save(dict(state_dict=VQModel(VQConfig(512, 3, 32, (1, 1, 2, 2, 4), 1, 8192, 32)).state_dict() | {'loss.logvar': torch.zeros(())}, epoch=3), folder/'vqgan.ckpt')
    return folder


@pytest.fixture(scope='module')
def loaded(release): return from_released(release, 'cpu')


@pytest.fixture(scope='module')
def gold():
    expected = read_json(golden/'expected.json')
    vectors = np.load(golden/'embeddings.npz')
    return dict(paths=[golden/i['file'] for i in expected['images']], codes=torch.tensor([i['image_token_ids'] for i in expected['images']]), images=expected['images'], keys=expected['keys'],
                reports=[cut(i['greedy_report_ids'], (50_256, 50_295)) for i in expected['images']], embeddings=np.stack([vectors[i['file']] for i in expected['images']]), loaded=from_released(golden, 'cpu'))


# goldens

@needs_golden
def test_golden_codes_singly_and_together(gold):
    processor = gold['loaded'][1]
    images = processor.read(gold['paths'])
    assert torch.equal(torch.cat([processor.encode_images(i[None]) for i in images]), gold['codes'])
    assert torch.equal(processor.encode_images(images, block=3), gold['codes'])
    assert torch.equal(processor(gold['paths'][:1])['input_ids'][0, 1:1025] - 50_368, gold['codes'][0])
    with torch.no_grad(): rgb = processor.image_tokenizer.decode(gold['codes'].view(3, 32, 32)).clamp(-1, 1)  # (B, C, H, W)
    pixels = ((rgb + 1) * 127.5).to(torch.uint8).double().mean((1, 2, 3))
    assert np.abs(pixels.numpy() - [i['reconstruction_mean_pixel'] for i in gold['images']]).max() < .01


@needs_golden
@pytest.mark.parametrize('batch', [1, 3])
def test_golden_embeddings(gold, batch):
    model = gold['loaded'][0]
    means = torch.cat([image_means(model, c) for c in gold['codes'].split(batch)])
    assert np.abs(means.numpy() - gold['embeddings']).max() < 1e-4
    assert np.abs(embed(model, gold['codes'], layers=[1, 2]).numpy() - gold['embeddings'][:, [1, 2]]).max() < 1e-4
    assert np.abs(published_embedding(model, gold['codes'][:1]).numpy() - gold['embeddings'][0]).max() < 1e-4


@needs_golden
@pytest.mark.parametrize('batch', [1, 3])
def test_golden_reports_with_cache(gold, batch):
    model = gold['loaded'][0]
    assert [ids for c in gold['codes'].split(batch) for ids in official_reports(model, c, most=32)] == gold['reports']


@needs_golden
def test_golden_reports_without_cache(gold):
    "One image by the published loop; three at once by transformers' `generate` without a cache."
    model, codes = gold['loaded'][0], gold['codes']
    assert published_report(model, codes[:1], most=32) == gold['reports'][0]
    ids = released.image_prompt(model, codes, None, 50_296, 50_256)
    out = model.generate(ids, use_cache=False, do_sample=False, max_new_tokens=32, min_new_tokens=5, eos_token_id=50_256, pad_token_id=58_561, attention_mask=torch.ones_like(ids))
    assert [cut(row, (50_256, 50_295)) for row in out[:, 1027:].tolist()] == gold['reports']


@needs_golden
def test_golden_keys_and_text_mode(gold):
    model = gold['loaded'][0]
    assert sorted(model.state_dict()) == gold['keys']
    assert max(max(r) for r in gold['reports']) >= 50_368 and max(max(r) for r in generate_reports(model, gold['codes'], max_new_tokens=32)) < 50_295


# the same API

def test_everything_works_on_released_weights(loaded):
    model, processor = loaded
    codes = torch.randint(8192, (2, 1024), generator=torch.Generator().manual_seed(0))
    with torch.no_grad(): model.lm_head.bias[50_368:] += 100  # it would write image ids alone
    try: reports = generate_reports(model, codes, max_new_tokens=8); free = official_reports(model, codes, most=8)
    finally:
        with torch.no_grad(): model.lm_head.bias[50_368:] -= 100
    assert all(i < 50_368 for r in reports for i in r) and all(i >= 50_368 for r in free for i in r)
    mask = torch.arange(1024).expand(2, -1) >= 1020
    filled = fill_image(model, codes, mask)
    assert torch.equal(filled[~mask], codes[~mask]) and processor.decode_images(filled).shape == (2, 512, 512)
    assert torch.allclose(score_texts(model, codes[0], reports), text_log_likelihood(model, codes[:1].expand(2, -1), reports), atol=1e-2)
    assert embed(model, codes).shape == (2, 3, 32)


def test_text_mode_has_no_id_that_cannot_be_decoded(loaded):
    "Image ids and the ids that fill the vocabulary up would both be likelier."
    model, codes = loaded[0], torch.zeros(1, 1024, dtype=torch.long)
    with torch.no_grad(): model.lm_head.bias[50_295:] += 100
    try: reports = generate_reports(model, codes, max_new_tokens=8, min_new_tokens=8) + generate_reports(model, codes, max_new_tokens=8, min_new_tokens=8, num_beams=2)
    finally:
        with torch.no_grad(): model.lm_head.bias[50_295:] -= 100
    assert all(i < 50_295 and i != 50_256 for r in reports for i in r) and len(reports[0]) == 8


@pytest.fixture
def words(tmp_path):
    "A folder with a text tokenizer that fits the released ids."
    from tokenizers import Tokenizer, models, pre_tokenizers
    tokenizer = Tokenizer(models.WordLevel({'Clear': 0, 'lungs': 1, '.': 2, 'Edema': 3, '<|endoftext|>': 50_256}, unk_token='.'))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    (tmp_path/'words').mkdir()
    tokenizer.save(str(tmp_path/'words'/'tokenizer.json'))
    return tmp_path/'words'


@pytest.mark.parametrize('verb, options', [('report', ['--new', '6']), ('embed', ['--layers', '1']), ('inpaint', ['--ratio', '0.004']), ('retrieve', ['-k', '2'])])
def test_command_line_on_a_release(verb, options, release, words, tmp_path, monkeypatch, capsys):
    "The four commands with `--model` a folder of the released layout."
    quick(released.ReleasedProcessor, monkeypatch, [])
    monkeypatch.setattr(released.ReleasedProcessor, 'decode_images', lambda self, codes: torch.rand(len(codes), 512, 512))
    Image.fromarray((draw_study(1, 0, 64).image * 255).astype(np.uint8)).save(tmp_path/'a.png')
    (tmp_path/'reports.txt').write_text('Clear lungs.\nEdema.\n')
    if verb == 'retrieve':
        options = [*options, '--texts', str(tmp_path/'reports.txt')]
        assert main([verb, str(tmp_path/'a.png'), '--model', str(release), '--device', 'cpu', *options]) == 2 and 'text tokenizer' in capsys.readouterr().err
        options += ['--text-tokenizer', str(words)]
    assert main([verb, str(tmp_path/'a.png'), '--model', str(release), '--device', 'cpu', '-o', str(tmp_path/'o.jsonl'), *options]) == 0
    row, = [json.loads(line) for line in (tmp_path/'o.jsonl').read_text().splitlines()]
    if verb == 'report': assert 5 <= len(row['ids']) <= 6
    if verb == 'embed': assert len(row['layer_1']) == 32
    if verb == 'inpaint': assert len(row['hidden']) == 4 and len(row['codes']) == 1024 and Path(row['picture']).exists()
    if verb == 'retrieve': assert sorted(row['reports']) == ['Clear lungs.', 'Edema.'] and row['scores'][0] >= row['scores'][1]


def test_command_line_names_what_does_not_fit(release, tmp_path, capsys):
    "A truncated file and a pickle with code, from the command line: one line, exit code 2."
    Image.fromarray((draw_study(1, 0, 64).image * 255).astype(np.uint8)).save(tmp_path/'a.png')
    folder = shutil.copytree(release, tmp_path/'copy')
    torch.save(Command(tmp_path/'ran'), folder/'vqgan.ckpt')
    assert main(['report', str(tmp_path/'a.png'), '--model', str(folder)]) == 2
    assert 'nothing in it was run' in capsys.readouterr().err.splitlines()[-1] and not (tmp_path/'ran').exists()
    shutil.copy(release/'vqgan.ckpt', folder/'vqgan.ckpt')
    halve(folder/'model.safetensors')
    assert main(['report', str(tmp_path/'a.png'), '--model', str(folder)]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert 'model.safetensors' in said and 'Traceback' not in said


def test_in_bfloat16(release):
    model, _ = from_released(release, 'cpu', 'bfloat16')
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16} and model.model.rotary_emb.inv_freq.dtype == torch.float32
    assert len(official_reports(model, torch.zeros(1, 1024, dtype=torch.long), most=6)[0]) <= 6


def test_terms_are_said_once(release):
    words = [sys.executable, '-c', f'from chexmix.released import from_released as f; f({str(release)!r}, "cpu"); f({str(release)!r}, "cpu")']
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert done.stderr.count('non-commercial research licence') == 1 and not done.stdout


# files that do not fit

def bad_key(folder, change):
    state = change(load_file(folder/'model.safetensors'))
    save_file({k: v.contiguous() for k, v in state.items()}, folder/'model.safetensors')

def bad_config(folder, **other): write_json(folder/'config.json', {k: v for k, v in (stated | other).items() if v is not None})
def bad_yaml(folder, **other): (folder/'vqgan.yaml').write_text(yaml.safe_dump(dict(model=dict(params=dict(embed_dim=32, n_embed=8192, ddconfig=dd | other)))))
def halve(path): path.write_bytes(path.read_bytes()[:path.stat().st_size // 2])

FAULTS = {  # name → (what is done to a copy, what the line must name)
    'no weights': (lambda f: (f/'model.safetensors').unlink(), 'model.safetensors'),
    'weights cut off': (lambda f: halve(f/'model.safetensors'), 'model.safetensors'),
    'weights of another format': (lambda f: (f/'model.safetensors').write_text('hello'), 'model.safetensors'),
    'key gone': (lambda f: bad_key(f, lambda s: {k: v for k, v in s.items() if k != 'lm_head.bias'}), '1 keys missing (lm_head.bias'),
    'key too many': (lambda f: bad_key(f, lambda s: s | {'vision.weight': torch.zeros(2)}), '1 keys unexpected (vision.weight'),
    'plain Phi': (lambda f: bad_key(f, lambda s: {k: v[:51_200] for k, v in s.items()}), '(51200, 32), not (58562, 32)'),
    'another model': (lambda f: bad_config(f, model_type='llama'), 'llama'),
    'another depth': (lambda f: bad_config(f, num_hidden_layers=3), 'model.layers.2'),
    'config says too little': (lambda f: bad_config(f, partial_rotary_factor=None), 'partial_rotary_factor'),
    'config damaged': (lambda f: halve(f/'config.json'), 'config.json'),
    'tokenizer cut off': (lambda f: halve(f/'vqgan.ckpt'), 'vqgan.ckpt'),
    'tokenizer empty': (lambda f: (f/'vqgan.ckpt').write_bytes(b''), 'vqgan.ckpt'),
    'tokenizer is text': (lambda f: (f/'vqgan.ckpt').write_text('hello world'), 'vqgan.ckpt'),
    'tokenizer of another kind': (lambda f: torch.save([1, 2], f/'vqgan.ckpt'), 'state_dict'),
    'tokenizer of another size': (lambda f: bad_yaml(f, num_res_blocks=2), 'keys missing'),
    'other grid': (lambda f: bad_yaml(f, ch_mult=[1, 2]), 'grid 256, not 32'),
    'attention below the middle': (lambda f: bad_yaml(f, attn_resolutions=[16]), 'attn_resolutions'),
    'sizes damaged': (lambda f: (f/'vqgan.yaml').write_text('model: ['), 'vqgan.yaml'),
    'text tokenizer damaged': (lambda f: (f/'tokenizer.json').write_text('{}'), 'tokenizer.json'),
}


@pytest.mark.parametrize('name', FAULTS)
def test_fault_is_one_line(name, release, tmp_path):
    folder = shutil.copytree(release, tmp_path/'copy')
    spoil, named = FAULTS[name]
    spoil(folder)
    with pytest.raises(UserError) as e: from_released(folder, 'cpu')
    assert named in str(e.value) and '\n' not in str(e.value)


@pytest.mark.parametrize('device, dtype, named', [('cuda:99', '', 'cuda:99'), ('toaster', '', 'toaster'), ('cpu', 'float16', 'float16'), ('cpu', 'int', 'int')])
def test_device_that_does_not_exist(device, dtype, named, release):
    with pytest.raises(UserError, match=named): from_released(release, device, dtype)


def test_prompt_over_the_context(release, tmp_path):
    folder = shutil.copytree(release, tmp_path/'copy')
    bad_config(folder, max_position_embeddings=1030)
    model, codes = from_released(folder, 'cpu')[0], torch.zeros(1, 1024, dtype=torch.long)
    assert len(official_reports(model, codes)[0]) <= 3
    with pytest.raises(UserError, match='1030'): score_texts(model, codes[0], [[5] * 9])
    model.config.max_position_embeddings = 1027
    for write in (official_reports, generate_reports):
        with pytest.raises(UserError, match='1027'): write(model, codes)


class Command:
    def __init__(self, path): self.path = path
    def __reduce__(self): return os.system, (f'touch {self.path}',)


@pytest.mark.parametrize('kind', ['zip', 'zip, protocol 4', 'beside the tensors', 'plain pickle', 'old torch'])
def test_pickle_with_code_is_refused_and_nothing_runs(kind, release, tmp_path):
    folder, ran = shutil.copytree(release, tmp_path/'copy'), tmp_path/'ran'
    command, path = Command(ran), folder/'vqgan.ckpt'
    if kind == 'zip': torch.save(command, path)
    if kind == 'zip, protocol 4': torch.save(command, path, pickle_protocol=4)
    if kind == 'beside the tensors': torch.save(torch.load(path, weights_only=True) | {'callbacks': command}, path)
    if kind == 'plain pickle': path.write_bytes(pickle.dumps(command))
    if kind == 'old torch': torch.save(command, path, _use_new_zipfile_serialization=False)
    with pytest.raises(UserError, match='nothing in it was run') as e: from_released(folder, 'cpu')
    assert '\n' not in str(e.value) and not ran.exists()
    if kind == 'plain pickle':
        pickle.loads(path.read_bytes())
        assert ran.exists()  # the file is what it is said to be


# the hub

@pytest.fixture
def hub(release, tmp_path):
    "The hub's cache with one repository in it."
    place = tmp_path/'hub'/'models--someone--chexmix'
    shutil.copytree(release, place/'snapshots'/'0123abc')
    (place/'refs').mkdir()
    (place/'refs'/'main').write_text('0123abc')
    return tmp_path/'hub'


def test_cache_without_network(hub, monkeypatch):
    monkeypatch.setattr(socket.socket, 'connect', lambda *args: pytest.fail('a connection was opened'))
    model, _ = from_released('someone/chexmix', 'cpu', offline=True, cache=hub)
    assert model.config.hidden_size == 32
    with pytest.raises(UserError, match='someone/other.*network is off'): from_released('someone/other', offline=True, cache=hub)


def test_no_room_for_a_download(monkeypatch, tmp_path):
    def full(*args, **kwargs): raise OSError(28, os.strerror(28))
    monkeypatch.setattr(released, 'snapshot_download', full)
    with pytest.raises(UserError, match='someone/chexmix.*No space left') as e: from_released('someone/chexmix', cache=tmp_path)
    assert '\n' not in str(e.value)


# sizes and memory

def hollow(path, config, dtype, itemsize):
    "A weights file of zeros that takes no room on disk."
    shapes, stop = {}, 0
    for k, v in released.empty_model(config).state_dict().items():
        start, stop = stop, stop + itemsize * v.numel()
        shapes[k] = dict(dtype=dtype, shape=list(v.shape), data_offsets=[start, stop])
    table = json.dumps(shapes).encode()
    with open(path, 'wb') as file: file.write(len(table).to_bytes(8, 'little') + table); file.truncate(8 + len(table) + stop)


def test_full_size_without_memory(tmp_path):
    config, before = ChexmixConfig(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    hollow(tmp_path/'model.safetensors', config, 'BF16', 2)
    found, own = released.read_shapes(tmp_path/'model.safetensors'), released.empty_model(config).state_dict()
    released.check_keys(own, found, 'full')
    assert (config.hidden_size, config.num_hidden_layers, len(own)) == (2560, 32, 453) and own['lm_head.weight'].shape == (58_562, 2560)
    assert (tmp_path/'model.safetensors').stat().st_size > 5.6e9 and resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000


@needs_golden
def test_full_size_has_the_keys_of_the_goldens(gold):
    layers = lambda keys: {k.replace('.3.', '.31.') if '.layers.3.' in k else k for k in keys if '.layers.' not in k or '.layers.3.' in k}
    own = {k for k in released.empty_model(ChexmixConfig()).state_dict() if '.layers.' not in k or '.layers.31.' in k}
    assert own == layers(gold['keys'])


@pytest.mark.skipif(sys.platform != 'linux', reason='memory of a process is read from /proc')
@pytest.mark.parametrize('stored, dtype', [('F32', 'float32'), ('BF16', 'float32')])
def test_peak_of_a_load(stored, dtype, tmp_path):
    "More than 500 MB in memory; the peak is at most 1.2 times the weights, and times the file where nothing is converted."
    write_json(tmp_path/'config.json', stated | dict(hidden_size=640, intermediate_size=2560, num_hidden_layers=12, num_attention_heads=8, partial_rotary_factor=.4))
    hollow(tmp_path/'model.safetensors', released.read_config(tmp_path), stored, {'F32': 4, 'BF16': 2}[stored])
    cost = load_cost(tmp_path, dtype)
    assert cost['weights'] > 500 and cost['peak'] < 1.2 * cost['weights']
    if stored == 'F32': assert cost['peak'] < 1.2 * cost['file']


# files through the model

@pytest.fixture
def folder(tmp_path):
    place = tmp_path/'in'
    place.mkdir()
    for k in range(3): Image.fromarray((draw_study(1, k, 64).image * 255).astype(np.uint8)).save(place/f'{k}.png')
    (place/'1.png').write_bytes(b'no image')
    return place


def quick(processor, monkeypatch, calls):
    "Codes from the pixels' sum: the image tokenizer takes seconds. Of one processor, or of the class."
    def encode(*args):
        images = args[-1]
        calls.append(len(images))
        return torch.stack([torch.randint(8192, (1024,), generator=torch.Generator().manual_seed(int(i.sum()))) for i in images])
    monkeypatch.setattr(processor, 'encode_images', encode, raising=False)


@pytest.mark.parametrize('suffix', ['jsonl', 'csv', 'parquet', 'txt'])
def test_reports_of_a_folder(suffix, folder, loaded, tmp_path, monkeypatch, capsys):
    quick(loaded[1], monkeypatch, [])
    table = report_files(*loaded, [folder], tmp_path/f'out.{suffix}', new=6, batch=2)
    assert [Path(p).name for p in table.path] == ['0.png', '2.png'] and 'no text tokenizer' in capsys.readouterr().out
    assert all(5 <= len(ids) <= 6 for ids in table.ids)
    bad = pd.read_csv(tmp_path/f'out.{suffix}.quarantine.csv')
    assert len(bad) == 1 and '1.png' in bad.reason[0]
    if suffix == 'jsonl': assert pd.read_json(tmp_path/'out.jsonl', lines=True).ids.tolist() == table.ids.tolist()
    if suffix == 'csv': assert [json.loads(x) for x in pd.read_csv(tmp_path/'out.csv').ids] == table.ids.tolist()
    if suffix == 'parquet': assert [list(x) for x in pd.read_parquet(tmp_path/'out.parquet').ids] == table.ids.tolist()
    if suffix == 'txt': assert str(folder/'2.png') in (tmp_path/'out.txt').read_text()
    assert not list(tmp_path.glob('.*'))


def test_killed_run_goes_on(folder, loaded, tmp_path, monkeypatch):
    whole, calls = embed_files(*loaded, [folder/'0.png', folder/'2.png'], tmp_path/'whole.parquet', layers=[1]), []
    honest = loaded[1].encode_images
    def killed(images):
        if calls: raise KeyboardInterrupt
        calls.append(len(images))
        return honest(images)
    monkeypatch.setattr(loaded[1], 'encode_images', killed, raising=False)
    with pytest.raises(KeyboardInterrupt): embed_files(*loaded, [folder], tmp_path/'out.parquet', layers=[1], batch=1)
    assert not (tmp_path/'out.parquet').exists()
    journal = tmp_path/'.out.parquet.journal'
    journal.write_text(journal.read_text() + '{"path": "half')
    with pytest.raises(UserError, match='layers'): embed_files(*loaded, [folder], tmp_path/'out.parquet', layers=[2])
    monkeypatch.setattr(loaded[1], 'encode_images', lambda images: (calls.append(len(images)), honest(images))[1], raising=False)
    again = embed_files(*loaded, [folder], tmp_path/'out.parquet', layers=[1], batch=1)
    assert again.layer_1.tolist() == whole.layer_1.tolist() and sum(calls) == 2 and not journal.exists()


def test_a_file_that_kills_its_reader_is_set_aside(folder, loaded, tmp_path, monkeypatch):
    "The call that died left a note of what it was reading; the next one does not die of it again."
    quick(loaded[1], monkeypatch, [])
    asked = []
    monkeypatch.setattr(serve, 'in_workers', lambda function, items, *args: (asked.extend(items), [None if i.endswith('2.png') else True for i in items])[1])
    (tmp_path/'.out.csv.reading').write_text(f'{folder}/0.png\n{folder}/2.png')
    table = report_files(*loaded, [folder], tmp_path/'out.csv', new=6)
    bad = pd.read_csv(tmp_path/'out.csv.quarantine.csv')
    assert len(asked) == 2 and [Path(p).name for p in table.path] == ['0.png'] and 'ends the process' in bad.reason[bad.path.str.endswith('2.png')].iloc[0]
    assert not list(tmp_path.glob('.*'))


def test_no_room_for_the_table(folder, loaded, tmp_path, monkeypatch, capsys):
    "The kernel refuses to let any file grow: one line, and what stood there before is left."
    quick(loaded[1], monkeypatch, [])
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    (tmp_path/'out.csv').write_text('before')
    import signal
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50, hard))
    try:
        with pytest.raises(UserError, match='out.csv') as e: report_files(*loaded, [folder], tmp_path/'out.csv', new=6)
    finally: resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard)); signal.signal(signal.SIGXFSZ, handler)
    assert '\n' not in str(e.value) and (tmp_path/'out.csv').read_text() == 'before'


@pytest.mark.parametrize('paths, out, named', [(['none'], 'o.csv', 'none'), (['empty'], 'o.csv', 'empty'), (['in'], 'o.xlsx', 'o.xlsx'), (['in/1.png'], 'o.csv', 'none of 1')])
def test_mistakes_with_files(paths, out, named, folder, loaded, tmp_path):
    (tmp_path/'empty').mkdir()
    with pytest.raises(UserError, match=named): report_files(*loaded, [tmp_path/p for p in paths], tmp_path/out)
    assert not (tmp_path/out).exists()
