"The explorer: answers follow from what is visible alone, and bad input is one line."
import sys

import numpy as np, pytest, torch

import chexmix
from chexmix.cli import main
from chexmix.explore import (
    cells_svg, check_port, Explorer, fill_with_confidence, follow_report, join_words, new_studies,
    open_stages, random_mask, read_masked, similarities, Study, study_vectors)
from chexmix.generate import generate_reports, report_prompt, text_log_likelihood
from chexmix.model import image_prompt


@pytest.fixture(scope='module')
def stages(tiny_run): return open_stages(tiny_run)


@pytest.fixture(scope='module')
def opened(stages): return list(stages.values())[-1]


@pytest.fixture(scope='module')
def studies(opened): return new_studies(opened.processor, 6)


def masks(study):
    "Nothing, one cell, half, everything."
    one = torch.zeros(len(study.codes), dtype=torch.bool)
    one[3] = True
    return [random_mask(study, 0), one, random_mask(study, .5), random_mask(study, 1)]


def test_a_run_with_both_stages_shows_both(stages, tiny_run):
    assert [title.split()[0] for title in stages] == ['stage1', 'stage2']
    assert len(open_stages(tiny_run/'stage2')) == 1


def test_every_mask_has_an_answer(opened, studies):
    "From nothing hidden to everything hidden, with a probability for each filled cell and each word."
    vectors = study_vectors(opened.model, torch.stack([s.codes for s in studies]))
    for mask in masks(studies[0]):
        reading = read_masked(opened, studies[0], mask, vectors)
        assert torch.equal(reading.confidence.isnan(), ~mask)
        assert torch.equal(reading.codes[~mask], studies[0].codes[~mask])
        assert all(0 <= word.p <= 1 and word.attention.shape == mask.shape for word in reading.words)
        assert reading.similarity.shape == (6,)


def test_hidden_codes_have_no_influence(stages, studies):
    mask, shown = random_mask(studies[0], .5), studies[0]
    other = Study(shown.title, shown.image, torch.where(mask, studies[1].codes, shown.codes))
    for opened in stages.values():
        vectors = study_vectors(opened.model, torch.stack([s.codes for s in studies]))
        first, second = (read_masked(opened, study, mask, vectors) for study in (shown, other))
        assert first.report == second.report and torch.equal(first.codes, second.codes)
        np.testing.assert_allclose(first.findings, second.findings, atol=1e-5)
        torch.testing.assert_close(first.similarity, second.similarity)


def test_confidence_is_the_probability_with_which_a_code_was_chosen(opened, studies):
    "Cell by cell, against the model's own answer after all filled cells before it."
    model, study = opened.model, studies[0]
    if model.config.bidirectional: pytest.skip('a bidirectional model fills in rounds')
    mask, layout = random_mask(study, .5), model.config.layout
    codes, confidence = fill_with_confidence(model, study.codes, mask)
    for cell in mask.nonzero()[:, 0].tolist():
        before = image_prompt(model, codes[None], None)[:, :cell + 1]
        with torch.no_grad(): logits = model(before).logits[0, -1, layout.n_text:layout.mask]
        torch.testing.assert_close(logits.softmax(0).max(), confidence[cell], atol=1e-4, rtol=1e-4)


def test_probabilities_of_a_report_multiply_to_its_likelihood(opened, studies):
    "And attention is causal: it sums to less than 1 over the cells, and adds no position."
    model, study = opened.model, studies[0]
    nothing = random_mask(study, 0)
    text_ids = generate_reports(model, study.codes[None])[0]
    p, attention = follow_report(model, study.codes, nothing, text_ids)
    both = text_log_likelihood(model, study.codes[None], [text_ids])[0]
    with torch.no_grad():  # the closing id, which no word is
        ids = torch.cat([report_prompt(model, study.codes[None]), torch.tensor([text_ids])], 1)
        closing = model(ids).logits[0, -1].log_softmax(0)[model.config.layout.image_start]
    np.testing.assert_allclose(np.log(p).sum(), float(both - closing), rtol=1e-3)
    assert (attention >= 0).all() and (attention.sum(1) <= 1 + 1e-5).all()


def test_the_model_is_left_as_it_was(opened, studies):
    usual = opened.model.config._attn_implementation
    follow_report(opened.model, studies[0].codes, random_mask(studies[0], .5), [7, 8])
    assert opened.model.config._attn_implementation == usual and not opened.model.training


def test_words_are_joined_from_pieces():
    words = join_words(['Le', 'ft', ' lung', '.', ' '], np.array([.5, .5, 1, .2, 1]), np.eye(5))
    assert [word.text for word in words] == ['Left', 'lung.']
    assert [word.p for word in words] == [.25, .2]
    np.testing.assert_array_equal(words[0].attention, [.5, .5, 0, 0, 0])


def test_a_study_is_nearest_to_itself(opened, studies):
    vectors = study_vectors(opened.model, torch.stack([s.codes for s in studies]))
    for k in range(6):
        found = similarities(vectors, vectors[k])
        assert found[k] > found.max() - 1e-6  # two studies may have the same codes at preset tiny


def test_nothing_of_a_report_is_read_as_markup(opened, studies):
    "A word or a title that looks like a tag is shown as it is."
    from chexmix.explore import nearest_html, Word, words_html
    assert '<b>' not in words_html([Word('<b>', .5, np.zeros(4))])
    named = [Study('<script>', s.image, s.codes) for s in studies]
    assert '<script>' not in nearest_html(torch.arange(6.), named, named[0], 4)
    assert cells_svg(studies[0].image, {0: 'fill:none'}, {}, 4).count('<rect') == 1


def test_bad_input_is_one_line_and_the_explorer_goes_on(stages):
    "Two panels, as the run has both stages."
    pytest.importorskip('anywidget')
    explorer = Explorer(stages, n=5)
    assert len(explorer.panels) == 2
    explorer.file.value = __file__
    line = explorer.status.value
    assert 'test_explore.py' in line and '\n' not in line
    explorer.file.value = str(chexmix.sample('dcm'))
    assert explorer.status.value == '' and explorer.study.title.endswith('.dcm')
    before = [panel.filled.value for panel in explorer.panels]
    explorer.ratio.value = .5
    assert sum(explorer.board.mask) == len(explorer.study.codes) // 2
    assert all(panel.filled.value != old for panel, old in zip(explorer.panels, before))
    explorer.picker.index = 2  # another study, the same mask
    assert explorer.study is explorer.studies[2] and any(explorer.board.mask)


def test_a_missing_library_is_named_with_its_extra(monkeypatch, capsys):
    for module in ('voila', 'anywidget'):
        with monkeypatch.context() as m:
            m.setitem(sys.modules, module, None)  # as if it were not installed
            m.delitem(sys.modules, 'voila.app', raising=False)
            assert main(['explore']) == 2
        line = capsys.readouterr().err.strip()
        assert line == f"chexmix: {module} is not installed: pip install 'chexmix[notebooks]'"


def test_a_taken_port_and_a_missing_model_are_one_line(capsys):
    import socket
    from chexmix.core import UserError
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        s.listen()
        with pytest.raises(UserError, match='--port'): check_port(s.getsockname()[1])
    pytest.importorskip('voila')
    pytest.importorskip('anywidget')
    assert main(['explore', '--run', 'nowhere']) == 2
    assert 'no weights at' in capsys.readouterr().err
