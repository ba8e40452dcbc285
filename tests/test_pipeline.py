"What a pipeline takes: one image or several, from files or memory; anything else is one line."
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from chexmix.core import UserError
from chexmix.pipeline import image_list, pipeline

PIXELS = np.add.outer(np.arange(70), np.arange(50)).astype(np.uint8)
SEVERAL = {
    'list': lambda path: [path, path], 'tuple': lambda path: (path, path),
    'Series': lambda path: pd.Series([path, path]),
    'Series with an index': lambda path: pd.Series([path, path], index=['x', 'y']),
    'array of paths': lambda path: np.array([path, path]),
    'array of objects': lambda path: np.array([Path(path)] * 2, object),
    'generator': lambda path: (path for _ in range(2)),
    'column of a table': lambda path: pd.DataFrame({'path': [path] * 2}),
    'arrays': lambda path: [PIXELS, PIXELS], 'tensors': lambda path: [torch.tensor(PIXELS)] * 2,
    'pictures': lambda path: [Image.fromarray(PIXELS)] * 2, 'mixed': lambda path: [path, PIXELS],
    'batch of tensors': lambda path: torch.tensor(PIXELS)[None, None].expand(2, -1, -1, -1)}
ONE = {
    'path': lambda path: path, 'Path': lambda path: Path(path), 'array': lambda path: PIXELS,
    'tensor': lambda path: torch.tensor(PIXELS), 'picture': lambda path: Image.fromarray(PIXELS),
    'channel first': lambda path: torch.tensor(PIXELS)[None]}
NOTHING = [[], (), pd.Series([], dtype=object), np.array([], dtype=object), iter(()),
           pd.DataFrame({'path': []}), np.array([], dtype=str), {}.keys(), set(), torch.zeros(0, 1, 8, 8)]
NO_PATHS = pd.DataFrame({'image': ['a.png']})
WRONG = [None, 7, 1.5, b'a.png', {'path': 'a.png'}, object(), NO_PATHS, True, [None], [3]]


@pytest.fixture(scope='module')
def embed(): return pipeline('embed', layers=[1])


@pytest.fixture
def path(tmp_path):
    Image.fromarray(PIXELS).save(tmp_path/'a.png')
    return str(tmp_path/'a.png')


@pytest.mark.parametrize('name', SEVERAL)
def test_several_images_give_as_many_answers(name, embed, path):
    answers = embed(SEVERAL[name](path))
    assert isinstance(answers, list) and len(answers) == 2
    assert answers[0]['layer_1'] == pytest.approx(embed(path)['layer_1'], abs=1e-4)


@pytest.mark.parametrize('name', ONE)
def test_one_image_gives_one_answer(name, embed, path):
    answer = embed(ONE[name](path))
    assert answer['layer_1'] == pytest.approx(embed(path)['layer_1'], abs=1e-4)


@pytest.mark.parametrize('images', NOTHING, ids=lambda x: type(x).__name__)
def test_no_image_gives_no_answer(images, embed): assert embed(images) == []


@pytest.mark.parametrize('images', WRONG, ids=lambda x: type(x).__name__)
def test_what_is_no_image_is_one_line(images, embed):
    with pytest.raises(UserError, match='is no radiograph: give') as error: embed(images)
    assert len(str(error.value)) < 250 and '\n' not in str(error.value)


ABSENT = [pd.Series(['none.png']), np.array(['none.png']), ['none.png'], 'none.png']


@pytest.mark.parametrize('images', ABSENT, ids=lambda x: type(x).__name__)
def test_a_missing_file_is_named_alone(images, embed):
    with pytest.raises(UserError, match='cannot read none.png: No such file') as error: embed(images)
    assert 'dtype' not in str(error.value)


def test_options_are_used_or_refused(embed):
    with pytest.raises(UserError, match='no such option: polcy'): pipeline('embed', polcy='crop')
    with pytest.raises(UserError, match='policy would be ignored'):
        pipeline('embed', embed.opened, policy='crop')
    assert image_list('a.png') == (['a.png'], False)
