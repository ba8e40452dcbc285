"Weights in the package: they load, they answer where no model is named, and their card still holds."
import shutil
from pathlib import Path

import numpy as np, pytest
from conftest import root
from papermill import inspect_notebook
from PIL import Image

import chexmix.pipeline as pipelines
from chexmix.cli import build_parser, main
from chexmix.core import get_settings, parse_changes, read_json, Settings, UserError
from chexmix.records import content_hash
from chexmix.phantom import make_phantom
from chexmix.bundled_weights import MOST_MB, pack_run, training_commands
from chexmix.explore import open_stages
from chexmix.pipeline import BUNDLED, open_model, pipeline


@pytest.fixture(scope='module')
def packed(tiny_run, tmp_path_factory):
    "The tiny run, evaluated and packed."
    from chexmix.classify import evaluate_classify
    from chexmix.report import evaluate_report
    if not (tiny_run/'classify'/'stage2.json').exists(): evaluate_classify(tiny_run, most=100, ratios=(0,))
    if not (tiny_run/'results'/'report.json').exists(): evaluate_report(tiny_run, most=16, ratios=(0,))
    return pack_run(tiny_run, tmp_path_factory.mktemp('packed')/'weights')


PLACES = [place for place in (BUNDLED, BUNDLED/'stage2') if (place/'card.json').exists()]

@pytest.fixture(params=['packed', *PLACES], ids=lambda place: getattr(place, 'name', place))
def weights(request, packed): return packed if request.param == 'packed' else request.param


def test_weights_answer_where_no_model_is_named(weights, tmp_path, monkeypatch, capsys):
    "As right after installation: no run, no option, one radiograph."
    monkeypatch.setenv('CHEXMIX_RUNS', str(tmp_path/'runs'))
    monkeypatch.setattr(pipelines, 'BUNDLED', weights)
    Image.fromarray((make_phantom(1, 0, 64).image * 255).astype(np.uint8)).save(tmp_path/'a.png')
    answers = {'report': 'IMPRESSION', 'classify': 'Pleural Effusion', 'retrieve -k 1': 'IMPRESSION'}
    for words, answer in answers.items():
        assert main([*words.split(), str(tmp_path/'a.png')]) == 0
        printed = capsys.readouterr()
        assert answer in printed.out and 'never for clinical use' in printed.err
    assert main(['inpaint', str(tmp_path/'a.png'), '-o', str(tmp_path/'o.png')]) == 0
    assert (tmp_path/'o.png').exists()
    assert set(pipeline()(str(tmp_path/'a.png'))) == {'path', 'report', 'ids', 'findings'}


def test_card_says_what_they_are_and_its_commands_still_train_them(weights):
    card, text = read_json(weights/'card.json'), (weights/'README.md').read_text(encoding='utf-8')
    assert card['data']['synthetic'] and card['size_MB'] <= MOST_MB
    assert card['weights'] == content_hash(weights/'model.safetensors')
    parts = ('never for clinical use', 'synthetic', '## Training', '## Results', '## Limits')
    for part in (*parts, card['weights'], *card['training']): assert part in text
    stored = Settings(**card['settings'] | {'channel_mult': tuple(card['settings']['channel_mult'])})
    trained = read_json(weights/'settings.json')
    assert card['training'] == training_commands(stored, trained)
    ours = [line.split()[1:] for line in card['training'] if line.startswith('chexmix ')]
    first, *others = [build_parser().parse_args(words) for words in ours]
    settings = get_settings(first.preset, seed=first.seed, **parse_changes(first.set))
    assert settings == stored, 'the preset has changed since these weights were packed: pack them again'
    assert [args.function.__name__ for args in others] == ['pretrain', 'evaluate']
    assert {args.run for args in others} == {first.run}
    others = [line.split() for line in card['training'] if not line.startswith('chexmix ')]
    for words in others:
        known = inspect_notebook(root/words[1])
        named = [word for before, word in zip(words, words[1:]) if before == '-p']
        assert words[0] == 'papermill' and set(named) <= set(known), words
    assert len(others) <= 1


def test_both_stages_in_one_folder(tiny_run, packed, tmp_path, monkeypatch, capsys):
    "The second stage lies below the first, reads with its processor, and fills in what is hidden."
    both = pack_run(tiny_run, tmp_path/'both', 'stage1')
    own = pack_run(tiny_run, both/'stage2', 'stage2')
    assert not (own/'image_tokenizer').exists() and read_json(own/'card.json')['size_MB'] < MOST_MB
    monkeypatch.setenv('CHEXMIX_RUNS', str(tmp_path/'runs'))
    monkeypatch.setattr(pipelines, 'BUNDLED', both)
    assert open_model().place == both and open_model(task='inpaint').place == own
    assert open_model('packed/stage2').place == own and open_model('packed').place == both
    assert open_model(own).probe and open_model(own).processor.layout == open_model().processor.layout
    for name in ('none', 'classify'):
        with pytest.raises(UserError, match=f'no weights at packed/{name}: both has stage2'):
            open_model(f'packed/{name}')
    Image.fromarray((make_phantom(1, 0, 64).image * 255).astype(np.uint8)).save(tmp_path/'a.png')
    assert main(['inpaint', str(tmp_path/'a.png'), '-o', str(tmp_path/'o.png')]) == 0
    assert 'the packed weights (stage2' in capsys.readouterr().err
    assert main(['report', str(tmp_path/'a.png')]) == 0
    assert 'the packed weights (stage1' in capsys.readouterr().err
    assert [opened.place for opened in open_stages().values()] == [both, own]
    pack_run(tiny_run, both, 'stage1')  # made anew, with what lies below
    assert open_model('packed/stage2').place == own
    (own.parent/'tokenizer.json').write_text('{}')
    with pytest.raises(UserError, match='move .*stage2 away first'): pack_run(tiny_run, both, 'stage1')


def test_another_processor_is_packed_with_its_weights(tiny_run, packed, tmp_path):
    both = Path(shutil.copytree(packed, tmp_path/'both'))
    (both/'tokenizer.json').write_text('{}')
    assert (pack_run(tiny_run, both/'stage2', 'stage2')/'image_tokenizer').exists()


def test_no_model_at_all(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv('CHEXMIX_RUNS', str(tmp_path/'runs'))
    monkeypatch.setattr(pipelines, 'BUNDLED', tmp_path/'none')
    Image.fromarray((make_phantom(1, 0, 64).image * 255).astype(np.uint8)).save(tmp_path/'a.png')
    assert main(['report', str(tmp_path/'a.png')]) == 2
    assert 'chexmix demo' in capsys.readouterr().err.splitlines()[-1]
