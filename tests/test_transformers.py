"Saved weights with transformers alone, `generate`, and the processor as transformers knows one."
import json, shutil, subprocess, sys
from importlib.metadata import version
from pathlib import Path

import numpy as np, pytest, torch
from huggingface_hub import CommitOperationAdd, HfApi
from packaging.version import Version
from PIL import Image
from transformers import AutoModelForCausalLM, AutoProcessor, AutoTokenizer

from chexmix.pipeline import BUNDLED
from chexmix.core import UserError
from chexmix.generate import generate_images, generate_reports, report_prompt
from chexmix.model import ChexmixForCausalLM
from chexmix.phantom import make_phantom
from chexmix.pretrain import load_model
from chexmix.processor import ChexmixProcessor, split_study

# The package itself, and libraries that only some files need. Transformers 5.17 opens no image processor
# without torchvision; 5.23 does.
ABSENT = ['chexmix', 'fastcore', 'gdcm', 'pydicom']
if Version(version('transformers')) >= Version('5.23'): ABSENT.append('torchvision')


def phantom_images(size: int, n: int = 3) -> list[np.ndarray]:
    "Pixels (size, size) of 8 bits."
    return [(make_phantom(1, i, size).image * 255).astype(np.uint8) for i in range(n)]


def without_package(folder: Path, lines: str, absent=ABSENT) -> dict:
    "What `answer` is after some lines in a process that imports transformers, and cannot import `absent`."
    script = f'''import json, sys
for name in {absent!r}: sys.modules[name] = None
import numpy as np, torch
from transformers import AutoConfig, AutoImageProcessor, AutoModelForCausalLM, AutoProcessor, AutoTokenizer
folder, trust = {str(folder)!r}, dict(trust_remote_code=True)
{lines}
print(json.dumps(answer))'''
    done = subprocess.run([sys.executable, '-c', script], capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope='module', params=['trained', 'packed'])
def opened(request, tiny_run, tmp_path_factory):
    "A folder as save_pretrained writes it, its model and processor."
    source = BUNDLED if request.param == 'packed' else tiny_run/'stage2'
    model, processor = load_model(source)
    folder = tmp_path_factory.mktemp('saved')/request.param
    if request.param == 'packed': shutil.copytree(source, folder)  # as they lie in the package
    else:
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
    return folder, model, processor


@pytest.fixture
def local_hub(tmp_path, monkeypatch) -> Path:
    "A folder in place of the hub: what is pushed lies there as a client caches it."
    cache, commit = tmp_path/'cache', '0' * 40
    monkeypatch.setenv('HF_MODULES_CACHE', str(tmp_path/'modules'))  # code of this commit is kept there

    def repository(repo_id): return cache/f'models--{repo_id.replace("/", "--")}'

    def create_repo(self, repo_id, **kwargs):
        (repository(repo_id)/'refs').mkdir(parents=True, exist_ok=True)
        (repository(repo_id)/'refs'/'main').write_text(commit)
        return type('Url', (str,), dict(repo_id=repo_id))(repo_id)

    def create_commit(self, repo_id, operations, **kwargs):
        for operation in operations:
            assert isinstance(operation, CommitOperationAdd)
            target = repository(repo_id)/'snapshots'/commit/operation.path_in_repo
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(operation.path_or_fileobj, target)
    monkeypatch.setattr(HfApi, 'create_repo', create_repo)
    monkeypatch.setattr(HfApi, 'create_commit', create_commit)
    return cache


def test_transformers_alone_gives_the_same_bits(opened, tmp_path, local_hub):
    """Configuration, tokenizer, model and processor, where the package cannot be imported.

    What was pushed to the hub opens by its name, and what is saved there opens here.
    """
    folder, model, processor = opened
    for part in (model, processor): part.push_to_hub('someone/chexmix')
    image = phantom_images(processor.image_size)[0]
    Image.fromarray(image).save(folder/'a.png')
    ids = processor(image)['input_ids']
    with torch.no_grad(): np.save(folder/'logits.npy', model(ids).logits.numpy())
    answer = without_package(folder, f'''
config = AutoConfig.from_pretrained(folder, **trust)
tokenizer = AutoTokenizer.from_pretrained(folder, **trust)
model = AutoModelForCausalLM.from_pretrained(folder, **trust)
processor = AutoProcessor.from_pretrained(folder, **trust)
pixels = AutoImageProcessor.from_pretrained(folder, **trust)('a.png')['pixel_values']
inputs = processor(images='a.png', return_tensors='pt')
with torch.no_grad(): logits = model(**inputs).logits.numpy()
new = model.generate(**inputs)
for part in (model, processor): part.save_pretrained({str(tmp_path / "again")!r})
here = dict(trust, cache_dir={str(local_hub)!r})
parts = [auto.from_pretrained('someone/chexmix', **here) for auto in (AutoProcessor, AutoModelForCausalLM)]
answer = dict(
    type=config.model_type, words=tokenizer('Clear.')['input_ids'], ids=inputs['input_ids'].tolist(),
    same=bool((logits == np.load('logits.npy')).all()), pixels=list(pixels.shape),
    new=new.tolist(), text=processor.batch_decode(new), module=type(model).__module__,
    by_name=[parts[0].layout.n_ids, parts[1].config.vocab_size])''')
    assert answer['module'].startswith('transformers_modules') and answer['type'] == 'chexmix'
    assert answer['same'] and answer['ids'] == ids.tolist()
    assert answer['words'] == processor.tokenizer('Clear.')['input_ids']
    assert answer['pixels'] == [1, 1, processor.image_size, processor.image_size]
    new = model.generate(ids)
    assert (answer['new'], answer['text']) == (new.tolist(), processor.batch_decode(new))
    assert answer['by_name'] == [processor.layout.n_ids] * 2
    again, again_processor = load_model(tmp_path/'again')
    assert again_processor.layout == processor.layout
    for a, b in zip(model.parameters(), again.parameters()): assert torch.equal(a, b)


def test_known_after_import():
    "`import chexmix` alone makes the Auto classes know the model, and imports nothing large."
    script = f'''import sys, chexmix
large = [name for name in ('torch', 'transformers', 'numpy', 'fastai') if name in sys.modules]
from transformers import AutoConfig, AutoModelForCausalLM, AutoProcessor
parts = [auto.from_pretrained({str(BUNDLED)!r}) for auto in (AutoConfig, AutoModelForCausalLM, AutoProcessor)]
print([type(part).__module__ for part in parts], *large)'''
    done = subprocess.run([sys.executable, '-c', script], capture_output=True, text=True)
    modules = "['chexmix.model', 'chexmix.model', 'chexmix.processor']"
    assert done.stdout.splitlines()[-1:] == [modules], done.stderr


def new_texts(processor, prompts, out) -> list[list[int]]:
    "Text ids that follow the prompts."
    return [split_study(row, processor.layout)[1] for row in out[:, prompts.shape[1]:].tolist()]


@pytest.mark.parametrize('guidance', [None, 1.])
def test_greedy_is_the_fast_path(opened, guidance):
    _, model, processor = opened
    codes = processor.encode_images(processor.read(phantom_images(processor.image_size)))
    prompts = report_prompt(model, codes)
    fast = generate_reports(model, codes, guidance=guidance)
    assert new_texts(processor, prompts, model.generate(prompts, guidance=guidance)) == fast


@pytest.mark.parametrize('options', [dict(do_sample=True), dict(num_beams=3, max_new_tokens=24),
                                     dict(max_new_tokens=7)])
def test_nothing_but_text_follows_text(opened, options):
    "By sampling, by beams, cut short: ids of text, then one that ends it, then pads."
    _, model, processor = opened
    layout = processor.layout
    prompts = processor(phantom_images(processor.image_size))['input_ids']
    torch.manual_seed(0)
    out = model.generate(prompts, **options)
    new = out[:, prompts.shape[1]:]
    assert (new[new != layout.pad] < layout.n_text).all()
    assert out.shape[1] <= model.config.max_position_embeddings
    assert len(processor.batch_decode(out)) == 3
    assert new.shape[1] <= options.get('max_new_tokens', 999)


def test_an_image_follows_a_report(opened):
    "Two reports of different lengths: pads on the left, then one image each, as the fast path draws it."
    _, model, processor = opened
    texts = ['Lungs are clear.', 'There is a large left pleural effusion.']
    inputs = processor(text=texts, order='text first')
    out = model.generate(**inputs)
    studies = [processor.decode_study(row) for row in out]
    assert [study['text'] for study in studies] == texts
    text_ids = [processor.tokenizer.encode(text) for text in texts]
    assert torch.equal(torch.stack([study['codes'] for study in studies]), generate_images(model, text_ids))


def test_prompts_that_cannot_be_continued(opened):
    _, model, processor = opened
    layout, context = processor.layout, model.config.max_position_embeddings
    for ids, words in (([layout.image_start, layout.pad], 'padded on the right'),
                       ([layout.text_start] * context, 'fills the context'),
                       ([layout.n_ids], 'outside the vocabulary')):
        with pytest.raises(UserError, match=words): model.generate(torch.tensor([ids]))
    with pytest.raises(UserError, match='needs input_ids'): model.generate()


def test_embeddings_are_not_resized(opened):
    _, model, _ = opened
    n_ids = model.config.vocab_size
    assert model.resize_token_embeddings(n_ids) is model.get_input_embeddings()
    with pytest.raises(UserError, match='cannot be resized'): model.resize_token_embeddings(n_ids + 1)
    with pytest.raises(UserError, match='cannot be resized'):
        model.resize_token_embeddings(pad_to_multiple_of=n_ids - 1)
    assert model.config.vocab_size == n_ids


def test_folder_without_a_model(tmp_path):
    with pytest.raises(UserError, match='no model at'): ChexmixForCausalLM.from_pretrained(tmp_path)
    with pytest.raises(UserError, match='no processor in'): ChexmixProcessor.from_pretrained(tmp_path)


def test_pushed_and_loaded_by_its_name(opened, local_hub):
    "Model and processor open by the name under which they were pushed."
    _, model, processor = opened
    for part in (model, processor): part.push_to_hub('someone/chexmix')
    here = dict(cache_dir=local_hub)
    again = ChexmixProcessor.from_pretrained('someone/chexmix', **here)
    assert again.layout == processor.layout
    for a, b in zip(again.image_tokenizer.parameters(), processor.image_tokenizer.parameters()):
        assert torch.equal(a, b)
    loaded = AutoModelForCausalLM.from_pretrained('someone/chexmix', **here)
    for a, b in zip(loaded.parameters(), model.parameters()): assert torch.equal(a, b)


def test_auto_tokenizer_is_the_text_tokenizer(opened):
    folder, _, processor = opened
    text = 'FINDINGS: No pneumothorax.'
    assert AutoTokenizer.from_pretrained(folder)(text)['input_ids'] == processor.tokenizer.encode(text)
    assert type(AutoProcessor.from_pretrained(folder)) is ChexmixProcessor
