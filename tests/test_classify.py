"Asking a model about findings: what it has learned comes out, and test studies and labels stay outside."
import re, shutil
from collections import Counter
from dataclasses import replace

import numpy as np, pandas as pd, pytest, torch

from chexmix.classify import (
    ask_at_ratios, ask_findings, ASKING, choose_statements, Cohort, evaluate_ask, evaluate_classify,
    load_questions, new_questions, Questions, section_order, statement_log_likelihood, statement_roles)
from chexmix.cli import main
from chexmix.core import rng, UserError
from chexmix.metrics import weighted_auroc
from chexmix.model import causal_loss, select_targets
from chexmix.pretrain import load_model
from chexmix.processor import collate
from chexmix.report_text import FINDINGS

EDEMA = FINDINGS.index('Edema')
STATEMENTS = pd.DataFrame(
    [('Edema', True, 'findings', 'There is pulmonary edema.'),
     ('Edema', False, 'findings', 'No pulmonary edema.'),
     ('Pleural Effusion', True, 'findings', 'Large left pleural effusion.'),
     ('Pleural Effusion', False, 'findings', 'No pleural effusion.')],
    columns=['finding', 'affirms', 'section', 'text'])


@pytest.fixture(scope='module')
def parts(tiny_run): return load_model(tiny_run, 'stage2')  # model, processor


def random_codes(n, processor, seed=0):
    layout = processor.layout
    return torch.randint(layout.n_codes, (n, layout.n_image), generator=rng(seed, 'codes'))


def random_cohort(n, processor, seed):
    labels = np.random.default_rng(seed).integers(0, 2, (n, len(FINDINGS))).astype(float)
    ids = [f'{seed}-{i}' for i in range(n)]
    return Cohort(ids, np.array(ids), ids, random_codes(n, processor, seed), labels)


def learn_by_heart(model, processor, codes, texts, steps):
    "Train on these images with these reports; the model ends in evaluation mode."
    ids = [processor.text_tokenizer.encode(text) for text in texts]
    rows = [dict(codes=c, text_ids=i) for c, i in zip(codes, ids)]
    batch = collate(rows, processor.layout)['input_ids']
    targets = select_targets(batch, None, processor.layout)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(steps):
        loss, _ = causal_loss(model, batch, targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()


def test_what_was_learned_by_heart_is_answered(tiny_run):
    model, processor = load_model(tiny_run, 'stage2')
    codes = random_codes(6, processor)
    has_edema = torch.tensor([1, 0, 0, 1, 1, 0])
    texts = ['There is pulmonary edema.' if x else 'No pulmonary edema.' for x in has_edema]
    learn_by_heart(model, processor, codes, [f'FINDINGS: {text}' for text in texts], steps=60)
    for others in (None, random_codes(5, processor, seed=1)):
        questions = new_questions(model, processor, STATEMENTS, codes=others)
        answers = ask_findings(model, processor, questions, codes)['Edema'].to_numpy()
        assert weighted_auroc(has_edema.numpy(), answers)(np.ones((1, 6)))[0] == 1


def test_each_image_is_answered_for_itself(parts):
    model, processor = parts
    codes = random_codes(19, processor)
    questions = new_questions(model, processor, STATEMENTS)
    together = ask_findings(model, processor, questions, codes)
    alone = pd.concat([ask_findings(model, processor, questions, codes[[i]]) for i in (0, 15, 18)])
    assert np.allclose(together.iloc[[0, 15, 18]], alone, atol=1e-4)


def test_masked_codes_cannot_matter(parts):
    model, processor = parts
    codes = random_codes(3, processor)
    mask = torch.rand(codes.shape, generator=rng('mask')) < .5
    other = torch.where(mask, (codes + 1) % processor.layout.n_codes, codes)
    questions = new_questions(model, processor, STATEMENTS)
    log_likelihood = [statement_log_likelihood(model, processor, questions, x, mask) for x in (codes, other)]
    assert np.array_equal(*log_likelihood)


def test_a_common_wording_is_no_evidence(parts):
    "A statement that is likelier after every image changes no lift and no log-odds: its prior cancels it."
    model, processor = parts
    questions = new_questions(model, processor, STATEMENTS)
    log_likelihood = np.random.default_rng(0).normal(size=(5, 4))
    shift = np.array([3., 0, -2, 1])
    shifted, roles = replace(questions, log_prior=questions.log_prior + shift), statement_roles(STATEMENTS)[0]
    same = shifted.log_lift(log_likelihood + shift, roles), questions.log_lift(log_likelihood, roles)
    assert np.allclose(*same, equal_nan=True)
    same = shifted.against_denials(log_likelihood + shift), questions.against_denials(log_likelihood)
    assert np.allclose(*same, equal_nan=True)


def test_what_an_image_says_of_another_finding_is_no_evidence():
    "Normal is out of the question: a finding that nothing speaks for gains by that against denials alone."
    rows = [('Edema', True, 'impression', 'Edema.'), ('Pneumothorax', True, 'impression', 'Pneumothorax.'),
            ('No Finding', True, 'impression', 'The chest is normal.')]
    prior = np.log([.2, .2, .6])
    questions = Questions(pd.DataFrame(rows, columns=STATEMENTS.columns), prior)
    likely, pneumothorax = np.log([[.7, .2, .1]]), FINDINGS.index('Pneumothorax')
    assert questions.against_denials(likely)[0, pneumothorax] > 1.7
    assert abs(questions.against_all(likely)[0, pneumothorax]) < 1e-9


def test_an_image_that_says_nothing_scores_zero():
    questions = Questions(STATEMENTS, np.log([.1, .4, .2, .3]))
    for score in (Questions.against_all, Questions.against_denials):
        assert np.allclose(np.nan_to_num(score(questions, questions.log_prior[None])), 0)


def test_test_studies_and_labels_stay_outside(parts):
    "Other test studies change no question, and other labels (calibration aside) no answer."
    model, processor = parts
    valid = random_cohort(12, processor, 0)
    relabelled = replace(valid, labels=1 - valid.labels)

    def ask(valid, seed):
        groups = dict(valid=valid, test=random_cohort(12, processor, seed))
        return ask_at_ratios('x', model, processor, STATEMENTS, groups, [.5], lambda mask: {})[1][.5]

    first, other_test, other_labels = ask(valid, 1), ask(valid, 2), ask(relabelled, 1)
    for way, questions in first.questions.items():
        kept = other_test.questions[way]
        assert np.array_equal(questions.log_prior, kept.log_prior) and questions.slope == kept.slope
        assert np.array_equal(questions.bias, kept.bias)
        pair = first.scores[way], other_labels.scores[way]
        assert np.array_equal(*pair, equal_nan=True)


def test_statements_state_one_finding_alone():
    counts = Counter({'Edema and effusion.': 9, 'Edema.': 1, 'Possible edema.': 7, 'No edema or effusion.': 8,
                      'No edema.': 2, 'PA view.': 50})
    table = choose_statements(dict(findings=counts), 1)
    of_edema = table[table.finding == 'Edema']
    assert list(of_edema.text) == ['Edema.', 'No edema.']
    doubted = Counter({'Possible edema.': 3})
    with pytest.raises(UserError, match='affirms'): choose_statements(dict(findings=doubted))


def test_a_finding_is_asked_in_the_first_section_that_affirms_it():
    impression = Counter({'Edema.': 3, 'No effusion.': 2})
    findings = Counter({'Mild edema.': 5, 'Large effusion.': 4, 'No effusion.': 9})
    table = choose_statements(dict(impression=impression, findings=findings))
    asked = {finding: set(zip(rows.section, rows.text)) for finding, rows in table.groupby('finding')}
    assert asked['Edema'] == {('impression', 'Edema.')}
    assert asked['Pleural Effusion'] == {('findings', 'Large effusion.'), ('findings', 'No effusion.')}


def test_a_parent_keeps_its_denials():
    "Nobody affirms it alone, and its children do; it is still denied in its own words."
    findings = Counter({'Edema.': 3, 'No focal opacity.': 5, 'The chest is normal.': 9})
    table = choose_statements(dict(impression=Counter(), findings=findings))
    affirms, denies = (roles[FINDINGS.index('Lung Opacity')] for roles in statement_roles(table))
    texts = table[['section', 'text']].drop_duplicates().text.to_numpy()
    assert set(texts[affirms]) == {'Edema.'} and set(texts[denies]) == {'No focal opacity.'}


def test_the_same_words_in_two_sections_are_two_statements(parts):
    "Each is scored after the heading of its own section, and counts for its own finding."
    model, processor = parts
    two = pd.concat([STATEMENTS, STATEMENTS.iloc[:2].assign(section='impression', finding='Cardiomegaly')])
    questions = new_questions(model, processor, two)
    assert len(questions.asked) == 6
    codes = random_codes(3, processor)
    of_both = statement_log_likelihood(model, processor, questions, codes)
    for section, rows in two.groupby('section'):
        alone = statement_log_likelihood(model, processor, new_questions(model, processor, rows), codes)
        assert np.allclose(of_both[:, questions.asked.section == section], alone, atol=1e-4)
    affirms, denies = statement_roles(two)
    assert affirms[FINDINGS.index('Cardiomegaly')].tolist() == [False] * 4 + [True, False]
    assert denies[EDEMA].tolist() == [False, True] + [False] * 4


@pytest.mark.parametrize('first', ['findings', 'impression'])
def test_the_section_with_which_a_model_begins(tiny_run, first):
    model, processor = load_model(tiny_run, 'stage1')
    learn_by_heart(model, processor, random_codes(4, processor), [f'{first.upper()}: Edema.'] * 4, steps=20)
    assert section_order(model, processor)[0] == first


@pytest.mark.parametrize('older', ['"section": "findings", ', ''])
def test_questions_of_an_older_version(tmp_path, older):
    "They named one section, or were calibrated against denials: one line says how to prepare them again."
    path = tmp_path/'classify'/'stage2_questions.json'
    path.parent.mkdir()
    path.write_text(f'{{{older}"statements": {{}}, "log_prior": [], "bias": null}}')
    with pytest.raises(UserError, match='stage2_questions.json.*evaluate ask'): load_questions(tmp_path)


def test_command_without_questions(tiny_run, tmp_path, capsys):
    "Weights for which nothing was prepared: one line that names the way."
    weights = shutil.copytree(tiny_run/'stage1', tmp_path/'weights')
    image = next((tiny_run/'phantoms').rglob('*.png'))
    assert main(['classify', '--ask', str(image), '--model', str(weights)]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert 'no questions were prepared' in error and 'evaluate ask' in error


@pytest.fixture
def run(tiny_run, tmp_path):
    "A run of its own with one stage."
    run = tmp_path/'run'
    for name in ('stage2', 'store', 'processor', 'results'): shutil.copytree(tiny_run/name, run/name)
    shutil.copy(tiny_run/'settings.json', run)
    return run


def test_evaluated_then_asked_by_command(run, tiny_run, capsys):
    records = evaluate_ask(run, ['stage2'], most=16, ratios=(0, .5), wordings=3, samples=2)
    assert {r.detail['ratio'] for r in records} == {0, .5} and {r.task for r in records} == {'ask'}
    ways = {r.detail['by'] for r in records}
    assert ways == {*ASKING, '2 sampled reports'}
    image = next((tiny_run/'phantoms').rglob('*.png'))
    assert main(['classify', '--ask', str(image), '--run', str(run)]) == 0
    printed = capsys.readouterr().out
    probability = re.search(r'Pleural Effusion +(\S+)', printed)[1]
    assert 0 <= float(probability) <= 1


def test_a_probe_from_an_evaluation_in_bfloat16_answers_for_the_saved_weights(run, tiny_run, capsys):
    evaluate_classify(run, ['stage2'], most=60, ratios=(0,), dtype='bfloat16')
    image = next((tiny_run/'phantoms').rglob('*.png'))
    assert main(['classify', str(image), '--run', str(run)]) == 0
    assert 'Pleural Effusion' in capsys.readouterr().out
