"Properties that hold for any input: inverse pairs, masks, splits, sections, geometry."
import string

import numpy as np, pandas as pd, pytest, torch
from hypothesis import given, settings, strategies as st

from chexmix.core import codes_to_ids, ids_to_codes, is_code, Layout, read_json, UserError, write_json
from chexmix.data import MANIFEST_COLUMNS, split_by_patient
from chexmix.model import choose_masked, mask_tokens
from chexmix.processor import collate, sequence
from chexmix.radiograph import geometry, POLICIES, read_radiograph, to_unit
from chexmix.report_text import FINDINGS, label_report, report_sections
from chexmix.training_loop import batch_indices, LearningRate

settings.register_profile('steady', deadline=None, derandomize=True, max_examples=60)
settings.load_profile('steady')  # the same examples every time, however slow the machine
LAYOUT = Layout(n_text=50, n_codes=16, grid=2, image_start=1, image_end=2, text_start=0)
codes = st.lists(st.integers(0, 15), min_size=4, max_size=4)
text_ids = st.lists(st.integers(3, 49), max_size=9)
sizes = st.integers(1, 3000)
words = st.text(string.printable + 'äß\u2028✓', max_size=80)


# inverse pairs

@given(st.lists(st.integers(0, 15)))
def test_codes_come_back(values):
    values = torch.tensor(values, dtype=torch.long)
    ids = codes_to_ids(values, LAYOUT)
    assert is_code(ids, LAYOUT).all()
    assert torch.equal(ids_to_codes(ids, LAYOUT), values)


@given(st.integers(-5, 99))
def test_what_is_no_code_is_refused(value):
    ids = torch.tensor([value])
    if is_code(ids, LAYOUT).all(): assert codes_to_ids(ids_to_codes(ids, LAYOUT), LAYOUT) == value
    else:
        with pytest.raises(UserError): ids_to_codes(ids, LAYOUT)


@given(codes, text_ids, st.sampled_from(['image first', 'text first']))
def test_codes_and_text_stand_in_a_sequence(image, text, order):
    ids = sequence(torch.tensor(image), torch.tensor(text), LAYOUT, order)
    assert len(ids) == len(image) + len(text) + 4
    assert ids_to_codes(ids[is_code(ids, LAYOUT)], LAYOUT).tolist() == image
    assert ids[(ids >= 3) & (ids < 50)].tolist() == text


@given(st.lists(st.tuples(codes, text_ids), min_size=1, max_size=4))
def test_padding_changes_no_sequence(studies):
    rows = [dict(codes=torch.tensor(image), text_ids=torch.tensor(text)) for image, text in studies]
    batch = collate(rows, LAYOUT)
    for row, ids, seen in zip(rows, batch['input_ids'], batch['attention_mask']):
        alone = sequence(row['codes'], row['text_ids'], LAYOUT)
        assert torch.equal(ids[seen.bool()], alone) and (ids[~seen.bool()] == LAYOUT.pad).all()


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3), max_leaves=8)


@given(st.dictionaries(words.filter(lambda name: name != 'checksum'), plain, max_size=4))
def test_json_comes_back(tmp_path_factory, value):
    path = tmp_path_factory.mktemp('json')/'a.json'
    write_json(path, value)
    assert read_json(path) == value


# masks

@given(st.integers(0, 2**31), st.floats(0, 1), st.integers(1, 4), st.integers(1, 12))
def test_a_mask_has_its_share_and_nothing_else(seed, ratio, span, length):
    generator = torch.Generator().manual_seed(seed)
    eligible = torch.rand(3, length, generator=generator) < .6
    mask = choose_masked(eligible, ratio, torch.rand(3, length, generator=generator), span)
    assert not (mask & ~eligible).any()
    assert mask.sum(1).tolist() == (eligible.sum(1).double() * ratio).round().long().tolist()


@given(codes, text_ids, st.integers(0, 2**31), st.floats(0, 1), st.floats(0, 1))
def test_masking_hides_and_alters_nothing_else(image, text, seed, image_ratio, text_ratio):
    ids = sequence(torch.tensor(image), torch.tensor(text), LAYOUT)[None]
    read, mask = mask_tokens(ids, LAYOUT, image_ratio, text_ratio, torch.Generator().manual_seed(seed))
    assert (read[mask] == LAYOUT.mask).all() and torch.equal(read[~mask], ids[~mask])


# splits and order

patients = st.tuples(st.integers(0, 12), st.sampled_from(['', '', 'train', 'test']))


@given(st.lists(patients, min_size=1, max_size=40))
def test_a_patient_is_in_one_split(rows):
    given_split = {}
    table = pd.DataFrame('', range(len(rows)), list(MANIFEST_COLUMNS))
    for i, (patient, split) in enumerate(rows):
        table.loc[i, 'patient_id'] = str(patient)
        table.loc[i, 'split'] = split and given_split.setdefault(patient, split)
    done = split_by_patient(table)
    assert (done.groupby('patient_id')['split'].nunique() == 1).all()
    assert done['split'].isin(['train', 'valid', 'test']).all()
    shuffled = split_by_patient(table[::-1])
    assert shuffled['split'].sort_index().equals(done['split'])


@given(st.integers(1, 40), st.integers(1, 9), st.integers(0, 5))
def test_a_pass_takes_each_study_once(n, batch, seed):
    taken = torch.cat([batch_indices(n, batch, step, seed) for step in range(n)])
    for k in range(batch): assert sorted(taken[k * n:(k + 1) * n].tolist()) == list(range(n))


@given(st.integers(1, 500), st.floats(0, 1), st.floats(0, 1))
def test_a_learning_rate_stays_between_its_ends(n_steps, warmup, decay):
    rate = LearningRate(n_steps, 1., warmup, decay)
    assert all(0 < rate(step) <= 1 + 1e-9 for step in range(n_steps))


# sections and labels

@given(words, words)
def test_sections_come_back(findings, impression):
    "What stands under a header is found there, word by word."
    def usable(text): return text.isascii() and text.replace(' ', '').isalpha()
    sections = report_sections(f'FINDINGS: {findings}\nIMPRESSION: {impression}')
    if usable(findings) and usable(impression):
        assert sections['findings'].split() == findings.split()
        assert sections['impression'].split() == impression.split()


@given(words)
def test_any_text_has_all_labels(text):
    labels = label_report(text)
    assert list(labels) == list(FINDINGS)
    assert all(value in (0, 1, -1) or np.isnan(value) for value in labels.values())


sentences = st.sampled_from(['Large left pleural effusion.', 'No pneumothorax.', 'Cardiomegaly.'])


@given(sentences, st.integers(1, 4))
def test_a_sentence_repeated_says_the_same(sentence, times):
    once, again = label_report(sentence), label_report(' '.join([sentence] * times))
    assert pd.Series(once).equals(pd.Series(again))


# geometry and gray values

shapes = st.tuples(sizes, sizes, st.integers(8, 512), st.sampled_from(POLICIES), st.floats(.2, 5))


@given(shapes, st.floats(0, 1), st.floats(0, 1))
def test_a_point_comes_back(shape, y, x):
    g = geometry(*shape)
    height, width, *_ = shape
    there = g.to_square(y * height, x * width)
    assert np.allclose(g.to_original(*there), (y * height, x * width), atol=1e-6 * max(height, width))


@given(sizes, sizes, st.integers(8, 512))
def test_all_of_a_padded_image_lies_in_the_square(height, width, size):
    g = geometry(height, width, size, 'pad')
    assert 0 <= g.top and 0 <= g.left and g.top + g.rows <= size and g.left + g.cols <= size
    assert max(g.rows, g.cols) == size


sides = st.integers(2, 60)


@given(sides, sides, st.sampled_from(['uint8', 'uint16', 'float32']), st.integers(0, 99))
def test_gray_values_keep_their_order(height, width, dtype, seed):
    g = np.random.default_rng(seed)
    pixels = (g.random((height, width)) * (1 if dtype == 'float32' else 255)).astype(dtype)
    unit = to_unit(pixels)
    assert unit.dtype == np.float32 and 0 <= unit.min() and unit.max() <= 1
    order = pixels.ravel().argsort(kind='stable')
    assert (np.diff(unit.ravel()[order]) >= 0).all()
    if max(height, width) <= 100 * min(height, width):
        square = read_radiograph(pixels, 16)
        assert square.shape == (16, 16) and 0 <= square.min() and square.max() <= 1
