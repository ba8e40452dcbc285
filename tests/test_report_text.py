"""Reports: sections, what becomes text and why not, how sentences affirm, deny or doubt a finding."""
from itertools import zip_longest
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from chexmix.core import UserError
from chexmix.data import one_line
from chexmix.phantom import make_phantom, study_row
from chexmix.report_text import (
    count_gaps, CUES, divided_words, explain_report, FINDINGS, join_lines, label_report, labels_to_text,
    LEXICON, phrase_words, plain_text, report_mentions, report_sections, report_text, resolve_uncertain,
    Rules, standard_rules, text_gap, with_parents,
)
from structured_reports import KINDS, SHORT

REPORTS = Path(__file__).parents[2]/'shared'/'data'/'iu_reports'/'indiana_reports.csv'

MIMIC = """                                 FINAL REPORT
 EXAMINATION:  CHEST (PA AND LAT)

 INDICATION:  ___ year old woman with cough  // ?pneumonia

 TECHNIQUE:  Chest PA and lateral

 COMPARISON:  ___

 FINDINGS:

 The heart is enlarged. There is no pleural
 effusion.

 No pneumothorax.

 IMPRESSION:

 Cardiomegaly.
"""
F, I = 'findings', 'impression'
SECTIONS_OF = {
    'MIMIC': (
        MIMIC,
        {
            F: 'The heart is enlarged. There is no pleural effusion. No pneumothorax.',
            I: 'Cardiomegaly.',
            'examination': 'CHEST (PA AND LAT)',
            'indication': '___ year old woman with cough // ?pneumonia',
            'technique': 'Chest PA and lateral',
            'comparison': '___',}),
    'MIMIC, title instead of FINDINGS': (
        ' FINAL REPORT\n CHEST, TWO VIEWS:  ___\n\n HISTORY: Cough.\n\n CHEST, PA AND LATERAL: '
        'The lungs are clear.\n\n IMPRESSION:  Normal.',
        {F: '___ The lungs are clear.', I: 'Normal.', 'indication': 'Cough.'}),
    'MIMIC, title with a time': (
        ' FINAL REPORT\n AP CHEST, 4:30 A.M., ___\n\n HISTORY:  Fever.\n\n IMPRESSION:  AP '
        'chest compared to ___:\n\n Lungs clear.',
        {I: 'AP chest compared to ___: Lungs clear.', 'indication': 'Fever.'}),
    'MIMIC, findings under no header after the history': (
        ' FINAL REPORT\n HISTORY:  Cough.\n \n The lungs are clear.\n \n IMPRESSION:  Normal.',
        {F: 'The lungs are clear.', I: 'Normal.', 'indication': 'Cough.'}),
    'MIMIC, wet read first': (
        ' WET READ: ___ ___ ___ 9:54 PM\n Small effusion.\n '
        '______________________________________________________________________________\n'
        '                                 FINAL REPORT\n FINDINGS: No effusion.\n',
        {F: 'No effusion.', 'wet read': '___ ___ ___ 9:54 PM Small effusion.'}),
    'wet read alone': ('WET READ: No effusion.', {'wet read': 'No effusion.'}),
    'addendum': (
        'FINDINGS: Clear. IMPRESSION: Normal.\nADDENDUM: Discussed by telephone.',
        {F: 'Clear.', I: 'Normal.', 'addendum': 'Discussed by telephone.'}),
    'addendum with an impression': (
        'IMPRESSION: Normal.\nADDENDUM\nIMPRESSION: Small nodule.',
        {I: 'Normal. Small nodule.'}),
    'several impressions': (
        'FINDINGS: Clear. IMPRESSION: One. IMPRESSION: Two.',
        {F: 'Clear.', I: 'One. Two.'}),
    'findings and impression': ('FINDINGS AND IMPRESSION: Clear lungs.', {F: 'Clear lungs.'}),
    'findings/impression': ('FINDINGS/IMPRESSION: Clear lungs.', {F: 'Clear lungs.'}),
    'impression and findings': ('IMPRESSION AND FINDINGS: Clear.', {F: 'Clear.'}),
    'IU': (
        'Comparison: None. Indication: Positive TB test. Findings: The heart is normal. '
        'Impression: Normal chest x-XXXX.',
        {
            F: 'The heart is normal.',
            I: 'Normal chest x-___.',
            'comparison': 'None.',
            'indication': 'Positive TB test.',}),
    'IU, marks before headers': (
        'Comparison: XXXX Indication: XXXX Findings: Clear. Impression: Normal.',
        {F: 'Clear.', I: 'Normal.', 'comparison': '___', 'indication': '___'}),
    'lower case': ('findings: clear. impression: normal.', {F: 'clear.', I: 'normal.'}),
    'mixed case': ('FiNdInGs: clear.\nImPression: normal.', {F: 'clear.', I: 'normal.'}),
    'capitals within a line': (
        'The lungs are clear IMPRESSION: Normal',
        {F: 'The lungs are clear', I: 'Normal'}),
    'space before the colon': (
        'FINDINGS : Clear. IMPRESSION : Normal.',
        {F: 'Clear.', I: 'Normal.'}),
    'dashes': ('Findings - Clear lungs.\nImpression - Normal.', {F: 'Clear lungs.', I: 'Normal.'}),
    'headers alone on a line': (
        'FINDINGS\nClear lungs.\nIMPRESSION\nNormal.',
        {F: 'Clear lungs.', I: 'Normal.'}),
    'headers with title case on a line': (
        'Findings\nClear lungs.\nImpression\nNormal.',
        {F: 'Clear lungs.', I: 'Normal.'}),
    'a wrapped word is no header': (
        'There are no acute\nfindings\nin the lungs.',
        {F: 'There are no acute findings in the lungs.'}),
    'a word in a sentence is no header': (
        'These findings were discussed. Impression is unchanged.',
        {F: 'These findings were discussed. Impression is unchanged.'}),
    'no headers': ('Clear lungs.', {F: 'Clear lungs.'}),
    'no FINDINGS': ('Clear lungs. IMPRESSION: Normal.', {F: 'Clear lungs.', I: 'Normal.'}),
    'impression alone': ('IMPRESSION: Normal.', {I: 'Normal.'}),
    'only a request': (
        'INDICATION: Cough. COMPARISON: None.',
        {'indication': 'Cough.', 'comparison': 'None.'}),
    'conclusion': ('FINDINGS: Clear. CONCLUSION: Normal.', {F: 'Clear.', I: 'Normal.'}),
    'opinion': ('Opinion: Normal.', {I: 'Normal.'}),
    'reason for examination': (
        'REASON FOR EXAMINATION: Cough.\nFINDINGS: Clear.',
        {F: 'Clear.', 'indication': 'Cough.'}),
    'recommendation(s)': (
        'IMPRESSION: Nodule. RECOMMENDATION(S): CT.',
        {I: 'Nodule.', 'recommendation': 'CT.'}),
    'numbered impression': ('IMPRESSION:\n1. Effusion.\n2. Edema.', {I: '1. Effusion. 2. Edema.'}),
    'unclosed headers': ('FINDINGS: IMPRESSION:', {}),
    'a header without its text': ('FINDINGS:\nIMPRESSION: Normal.', {I: 'Normal.'}),
    'title within findings': (
        'FINDINGS:\nPA AND LATERAL CHEST RADIOGRAPHS: Clear lungs.',
        {F: 'Clear lungs.'}),
    'windows line ends': (
        'FINDINGS: Clear\r\nlungs.\r\nIMPRESSION: Normal.\r\n',
        {F: 'Clear lungs.', I: 'Normal.'}),
    'control characters': ('FINDINGS:\x00 Clear\x07 lungs.', {F: 'Clear lungs.'}),
    'empty': ('', {}),
    'None': (None, {}),
    'NaN': (float('nan'), {}),
    'only marks': ('XXXX ___', {F: '___ ___'}),
}

SENTENCES = [
    # mentions
    ('Moderate cardiomegaly.', 'Cardiomegaly 1'),
    ('The cardiac silhouette is mildly enlarged.', 'Cardiomegaly 1'),
    ('Enlargement of the heart.', 'Cardiomegaly 1'),
    ('The heart and the aorta are enlarged.', 'Cardiomegaly 1'),
    ('The heart is stable and the aorta is enlarged.', 'Cardiomegaly ?'),
    ('Widening of the upper mediastinum.', 'Enlarged Cardiomediastinum 1'),
    ('Hazy left air-space disease.', 'Lung Opacity 1'),
    ('Kerley B lines are present.', 'Edema 1'),
    ('Collapse of the right upper lobe.', 'Atelectasis 1'),
    ('Large hydropneumothorax.', 'Pneumothorax 1, Pleural Effusion 1'),
    ('Healed rib fractures.', 'Fracture 1'),
    ('Right IJ central line with its tip in the SVC.', 'Support Devices 1'),
    ('Biapical pleural thickening.', 'Pleural Other 1'),
    ('Three nodules in the right lung.', 'Lung Lesion 1'),
    ('PNEUMOTHORAX ON THE LEFT', 'Pneumothorax 1'),
    ('Small pericardial effusion.', 'Pleural Effusion ?'),
    ('A lytic bone lesion.', 'Lung Lesion ?'),
    ('Mass effect on the trachea.', 'Lung Lesion ?'),
    # laterality and size change nothing
    ('Right pleural effusion.', 'Pleural Effusion 1'),
    ('Left pleural effusion.', 'Pleural Effusion 1'),
    ('No right pleural effusion.', 'Pleural Effusion 0'),
    ('Bilateral effusions, greater on the left.', 'Pleural Effusion 1'),
    # denial before
    ('No pneumothorax.', 'Pneumothorax 0'),
    ('No pleural effusion or pneumothorax.', 'Pleural Effusion 0, Pneumothorax 0'),
    ('No effusion, edema, consolidation or pneumothorax is seen.',
     'Pleural Effusion 0, Edema 0, Consolidation 0, Pneumothorax 0'),
    ('There is no evidence of edema.', 'Edema 0'),
    ('Cardiomegaly without edema.', 'Cardiomegaly 1, Edema 0'),
    ('Negative for pneumonia.', 'Pneumonia 0'),
    ('The lungs are free of consolidation.', 'Consolidation 0'),
    ('Neither effusion nor pneumothorax.', 'Pleural Effusion 0, Pneumothorax 0'),
    ('Absence of edema.', 'Edema 0'),
    ('The heart is not enlarged.', 'Cardiomegaly 0'),
    ('Atelectasis rather than pneumonia.', 'Atelectasis 1, Pneumonia 0'),
    ('No opacity to suggest pneumonia.', 'Lung Opacity 0, Pneumonia 0'),
    ('Non-displaced rib fracture.', 'Fracture 1'),
    # denial after
    ('Pneumothorax is absent.', 'Pneumothorax 0'),
    ('Edema is not seen.', 'Edema 0'),
    ('Effusion and pneumothorax are not identified.', 'Pleural Effusion 0, Pneumothorax 0'),
    ('Pneumonia is unlikely.', 'Pneumonia 0'),
    ('Effusion, edema, and pneumothorax are absent.',
     'Pleural Effusion 0, Edema 0, Pneumothorax 0'),
    ('Pneumothorax has been excluded.', 'Pneumothorax 0'),
    # a denial ends with its clause
    ('There is much pleural fluid on the left, pneumothorax is absent, and the heart is not enlarged.',
     'Pleural Effusion 1, Pneumothorax 0, Cardiomegaly 0'),
    ('There is no focal consolidation, but a small right effusion is present.',
     'Consolidation 0, Pleural Effusion 1'),
    ('No pneumothorax; small effusion.', 'Pneumothorax 0, Pleural Effusion 1'),
    ('No pneumothorax and a small effusion is present.', 'Pneumothorax 0, Pleural Effusion 1'),
    ('No edema, stable cardiomegaly.', 'Edema 0, Cardiomegaly 1'),
    ('No effusion and the heart is enlarged.', 'Pleural Effusion 0, Cardiomegaly 1'),
    ('The heart is not enlarged and a left effusion is seen.',
     'Cardiomegaly 0, Pleural Effusion 1'),
    ('There is a left effusion and pneumothorax is absent.', 'Pleural Effusion 1, Pneumothorax 0'),
    ('Edema, no effusion.', 'Edema 1, Pleural Effusion 0'),
    ('No acute process except for atelectasis.', 'Atelectasis 1'),
    ('Effusion is present and no pneumothorax is seen.', 'Pleural Effusion 1, Pneumothorax 0'),
    ('No definite effusion seen, rib fractures on the right.', 'Pleural Effusion 0, Fracture 1'),
    ('Opacity at the base with effusion is not seen.', 'Lung Opacity 1, Pleural Effusion 0'),
    ('No consolidation. Effusion on the left.', 'Consolidation 0, Pleural Effusion 1'),
    ('No pneumonia, however there is edema.', 'Pneumonia 0, Edema 1'),
    # doubt
    ('Possible pneumonia.', 'Pneumonia -1'),
    ('Opacity may represent atelectasis.', 'Lung Opacity 1, Atelectasis -1'),
    ('Pneumonia cannot be excluded.', 'Pneumonia -1'),
    ('Cannot exclude a small effusion.', 'Pleural Effusion -1'),
    ('Pneumothorax is not excluded.', 'Pneumothorax -1'),
    ('Atelectasis versus pneumonia.', 'Atelectasis -1, Pneumonia -1'),
    ('Findings suggestive of edema.', 'Edema -1'),
    ('Concern for pneumonia.', 'Pneumonia -1'),
    ('Opacity, likely atelectasis.', 'Lung Opacity 1, Atelectasis -1'),
    ('Effusion is suspected.', 'Pleural Effusion -1'),
    ('Effusion, possibly loculated, on the left.', 'Pleural Effusion 1'),
    ('Borderline cardiomegaly.', 'Cardiomegaly -1'),
    ('Borderline heart size.', 'Cardiomegaly -1'),
    ('Questionable nodule.', 'Lung Lesion -1'),
    ('Pneumonia is possible.', 'Pneumonia -1'),
    ('Possible edema, no effusion.', 'Edema -1, Pleural Effusion 0'),
    ('No pneumothorax, possible effusion.', 'Pneumothorax 0, Pleural Effusion -1'),
    ('The differential includes pneumonia and edema.', 'Pneumonia -1, Edema -1'),
    ('A fracture could not be ruled out.', 'Fracture -1'),
    ('Probable small effusion.', 'Pleural Effusion -1'),
    ('Consistent with edema.', 'Edema 1'),
    ('Small effusions would be difficult to exclude.', 'Pleural Effusion -1'),
    # comparison
    ('No change in the left pneumothorax.', 'Pneumothorax 1'),
    ('The effusion has not significantly changed.', 'Pleural Effusion 1'),
    ('Unchanged cardiomegaly.', 'Cardiomegaly 1'),
    ('The effusion has improved.', 'Pleural Effusion 1'),
    ('New consolidation.', 'Consolidation 1'),
    ('The pneumothorax has resolved.', 'Pneumothorax 0'),
    ('Resolved pneumothorax.', 'Pneumothorax 0'),
    ('Resolution of the edema.', 'Edema 0'),
    ('Prior effusion has cleared.', 'Pleural Effusion 0'),
    ('Pneumothorax is no longer seen.', 'Pneumothorax 0'),
    ('The heart is no longer enlarged.', 'Cardiomegaly 0'),
    ('The chest tube has been removed.', 'Support Devices 0'),
    ('Interval removal of the endotracheal tube.', 'Support Devices 0'),
    ('The previously seen effusion is smaller.', 'Pleural Effusion 1'),
    ('The pneumothorax has nearly resolved.', 'Pneumothorax 1'),
    ('No interval increase in the effusion.', 'Pleural Effusion 1'),
    ('The edema has cleared, the effusions are unchanged.', 'Edema 0, Pleural Effusion 1'),
    ('Decreased right effusion.', 'Pleural Effusion 1'),
    ('Consolidation has disappeared.', 'Consolidation 0'),
    ('The chest tube was removed and a small pneumothorax is seen.',
     'Support Devices 0, Pneumothorax 1'),
    ('Fracture is not well seen.', 'Fracture 1'),
    ('Near complete resolution of the pneumothorax.', 'Pneumothorax 1'),
    # neither: advice, history, method
    ('Recommend CT to evaluate for malignancy.', 'Lung Lesion ?'),
    ('History of pneumothorax.', 'Pneumothorax ?'),
    ('Rule out pneumonia.', 'Pneumonia ?'),
    ('Correlate clinically for pneumonia.', 'Pneumonia ?'),
    ('CT would be helpful to exclude a nodule.', 'Lung Lesion ?'),
    ('A small nodule may not be visible.', 'Lung Lesion ?'),
    ('Old granulomatous disease.', 'Lung Lesion ?'),
    # what is normal
    ('Heart size is normal.', 'Cardiomegaly 0'),
    ('The lungs are clear.', 'Pneumonia 0, Lung Opacity 0, Edema 0'),
    ('The lungs are not clear.', 'Pneumonia ?, Lung Opacity ?'),
    ('Costophrenic angles are sharp.', 'Pleural Effusion 0'),
    ('The ribs are intact.', 'Fracture 0'),
    ('The mediastinum is unremarkable.', 'Enlarged Cardiomediastinum 0'),
    ('Pulmonary vascular congestion is within normal limits.', 'Edema 0'),
    ('The heart is not enlarged and the mediastinum is of normal width.',
     'Cardiomegaly 0, Enlarged Cardiomediastinum 0'),
    # marks of de-identification hide nothing
    ('No XXXX effusion.', 'Pleural Effusion 0'),
    ('Since ___ a new left effusion.', 'Pleural Effusion 1'),
    ('The heart size XXXX at XXXX mildly enlarged.', 'Cardiomegaly 1'),
    ('XXXX pneumothorax, XXXX, is ___ absent.', 'Pneumothorax 0'),
    # affirmed anywhere beats doubted, doubted beats denied
    ('Possible edema. IMPRESSION: Edema.', 'Edema 1'),
    ('No effusion. Possible effusion on the lateral view.', 'Pleural Effusion -1'),
    ('INDICATION: pneumonia? FINDINGS: Clear lungs.', 'Pneumonia 0, No Finding 1'),
]


@pytest.mark.parametrize('name', SECTIONS_OF)
def test_sections(name):
    text, expected = SECTIONS_OF[name]
    assert report_sections(text) == expected


def test_sections_join_again():
    report = 'IMPRESSION: Normal. FINDINGS: Clear lungs.'
    assert report_text({f'{k}_text': v for k, v in report_sections(report).items()}) == report


@pytest.mark.parametrize('policy,expected', [
    ('findings', 'FINDINGS: Clear since ___.'),
    ('impression', 'IMPRESSION: Normal.'),
    ('both', 'IMPRESSION: Normal. FINDINGS: Clear since ___.'),
])
def test_policy_decides_what_becomes_text(policy, expected):
    row = {'findings_text': ' Clear since\n XXXX. ', 'impression_text': 'Normal.'}
    assert report_text(row, policy) == report_text(pd.Series(row), policy) == expected
    assert text_gap(row, policy) == ''


@pytest.mark.parametrize('function,table,policy', [
    (report_text, {}, 'all'),
    (text_gap, {}, 'all'),
    (resolve_uncertain, pd.DataFrame(columns=list(FINDINGS)), 'maybe'),
])
def test_unknown_policies(function, table, policy):
    with pytest.raises(UserError, match='choose one of'): function(table, policy)


GAPS = [
    ({}, 'both', 'no report'),
    ({'findings_text': None, 'impression_text': np.nan}, 'both', 'no report'),
    ({'findings_text': ' \n'}, 'both', 'no report'),
    ({'findings_text': 'XXXX. ___'}, 'both', 'only marks'),
    ({'findings_text': '[**2000-1-1**]'}, 'findings', 'only marks'),
    ({'findings_text': '1.'}, 'both', 'too short'),
    ({'impression_text': 'ok'}, 'both', 'too short'),
    ({'impression_text': 'Normal.'}, 'findings', 'no findings section'),
    ({'findings_text': 'Clear.', 'impression_text': ''}, 'impression', 'no impression section'),
    ({'text': 'INDICATION: Cough.'}, 'both', 'no findings and no impression'),
    ({'findings_text': 'Clear.'}, 'both', ''),
]

@pytest.mark.parametrize('row,policy,reason', GAPS)
def test_a_missing_text_has_a_reason(row, policy, reason):
    assert text_gap(row, policy) == reason and bool(report_text(row, policy)) == (reason == '')


def test_gaps_are_counted():
    rows = [row for row, policy, _ in GAPS if policy == 'both']
    counts = count_gaps(rows)
    assert counts == {'no report': 3, 'too short': 2, 'only marks': 1, 'no findings and no impression': 1}
    assert list(counts.values()) == sorted(counts.values(), reverse=True)
    assert sum(counts.values()) == sum(not report_text(row) for row in rows)


@pytest.mark.parametrize('text,expected', SENTENCES, ids=[text for text, _ in SENTENCES])
def test_labels_of_sentences(text, expected):
    labels = label_report(text, parents=False)
    assert list(labels) == list(FINDINGS)
    for label in expected.split(', '):
        name, value = label.rsplit(' ', 1)
        if value != '?':
            assert labels[name] == float(value)
        elif not np.isnan(labels[name]):  # neither affirmed nor doubted
            found = [m.value for m in report_mentions(text, standard_rules()) if m.finding == name]
            assert not np.nan_to_num(found).any() and labels[name] in (0, *found)


def test_parents_are_completed():
    labels = label_report('Edema. Borderline cardiomegaly.')
    assert labels['Lung Opacity'] == 1
    assert labels['Enlarged Cardiomediastinum'] == -1
    assert labels['No Finding'] == 0


@pytest.mark.parametrize('text,value', [
    ('Normal chest.', 1),
    ('No acute disease. Pacemaker in place.', 1),
    ('Possible edema.', np.nan),
    ('Rotated film.', np.nan),
    ('No effusion. Edema.', 0),
    ('', np.nan),
])
def test_no_finding(text, value):
    np.testing.assert_equal(label_report(text)['No Finding'], value)


MB = 1_000_000
DEGENERATE = {
    'empty': '',
    'None': None,
    'NaN': float('nan'),
    'a number': 7,
    'bytes': b'Edema.',
    'only marks': 'XXXX ___ [**1**]',
    'control characters': '\0\x01\x1b\x7f',
    'unclosed headers': 'FINDINGS: IMPRESSION:',
    'an open mark': '[**' * 1000,
    'a megabyte of sentences': 'No effusion. ' * (MB // 13),
    'a megabyte without a stop': 'no effusion, ' * (MB // 13),
    'a megabyte of one letter': 'x' * MB,
    'a megabyte of lines': '\n' * MB,
    'a megabyte of stops': '.' * MB,
    'a megabyte of headers': 'FINDINGS: ' * (MB // 10),
    'a megabyte of titles': 'chest\n' * (MB // 6),
    'a megabyte of spaces': ' ' * MB,
    'other scripts': '肺炎。' * 1000,
    'surrogates': '\ud800 edema',
}

@pytest.mark.parametrize('name', DEGENERATE)
def test_no_input_raises(name):
    text = DEGENERATE[name]
    labels, sections = label_report(text), report_sections(text)
    assert list(labels) == list(FINDINGS)
    assert all(isinstance(body, str) and body for body in sections.values())
    denied = 'effusion' in str(text)[:20]
    assert labels['Pleural Effusion'] == 0 if denied else np.isnan(labels['Pleural Effusion'])
    assert isinstance(text_gap({'text': text, 'findings_text': text}), str)
    assert list(explain_report(text))[:2] == ['finding', 'value']


def test_a_mention_names_what_decided():
    mentions = explain_report(
        'FINDINGS: No edema or effusion. The pneumothorax has resolved. Possible mass. '
        'IMPRESSION: Cardiomegaly. Recommend CT to exclude pneumonia.').set_index('finding')
    assert mentions.stage.to_dict() == {
        'Edema': 'negation',
        'Pleural Effusion': 'negation',
        'Pneumothorax': 'comparison',
        'Lung Lesion': 'uncertainty',
        'Cardiomegaly': 'mention',
        'Pneumonia': 'advice',
    }
    assert mentions.cue['Pneumothorax'] == 'resolved'
    assert mentions.cue['Cardiomegaly'] == ''
    assert mentions.sentence['Lung Lesion'] == 'Possible mass.'


def written_out(positions):
    "Each word of each position in one phrase at least; `positions` as `phrase_words` gives them."
    positions = [words for words in positions if words != ['…']]
    for words in zip_longest(*positions):
        yield ' '.join((word or position[0]).strip('*') for word, position in zip(words, positions))


@pytest.mark.parametrize('name', filter(None, LEXICON))
def test_every_phrase_of_the_lexicon_is_found(name):
    for positions in phrase_words(LEXICON[name]):
        for phrase in written_out(positions):
            assert name in {m.finding for m in report_mentions(phrase, standard_rules())}, phrase


def test_no_phrase_is_two_cues():
    phrases = [phrase.strip() for table in CUES.values() for phrase in table.split(',')]
    assert len(phrases) == len(set(phrases))


def test_a_lexicon_is_extended_without_touching_the_standard_one():
    lexicon = LEXICON | {'Atelectasis': LEXICON['Atelectasis'] + ', loss of volume'}
    cues = CUES | {'negation after': CUES['negation after'] + ', is gone'}
    text = 'Loss of volume on the left. The effusion is gone.'
    labels = label_report(text, rules=Rules(lexicon=lexicon, cues=cues))
    assert labels['Atelectasis'] == 1
    assert labels['Pleural Effusion'] == 0
    labels = label_report(text)
    assert np.isnan(labels['Atelectasis'])
    assert labels['Pleural Effusion'] == 1


@pytest.mark.parametrize('tables,words', [
    (dict(lexicon={'Emphysema': 'emphysema'}), 'no such finding or cue: Emphysema'),
    (dict(cues={'negation': 'no'}), 'no such finding or cue: negation'),
    (dict(normal={'Heart': 'normal heart'}), 'Heart'),
    (dict(lexicon={'Edema': 'lung-water'}), '“lung-water” cannot match'),
    (dict(lexicon={'Edema': 'wet LUNGS'}), 'LUNGS'),
    (dict(lexicon={'Edema': '… edema'}), '…'),
    (dict(lexicon={'Edema': '*edema'}), 'edema'),
])
def test_tables_that_could_never_match_are_refused(tables, words):
    with pytest.raises(UserError) as error: Rules(**tables)
    assert words in str(error.value) and '\n' not in str(error.value)


def test_labels_and_text_are_inverse():
    rng = np.random.default_rng(0)
    for _ in range(200):
        labels = with_parents(dict(zip(FINDINGS, [0, *rng.choice([0, 1, -1], 13, p=[.7, .2, .1])])))
        back = label_report(labels_to_text(labels))
        assert {k for k, v in back.items() if v == 1} == {k for k, v in labels.items() if v == 1}
        assert {k for k, v in back.items() if v == -1} == {k for k, v in labels.items() if v == -1}


def micro_f1(predicted, truth):
    return 2 * (predicted & truth).sum() / (predicted.sum() + truth.sum())


def test_reports_of_the_phantom_are_read_back():
    studies = [make_phantom(3, k, 64, with_image=False) for k in range(500)]
    truth = np.array([[s.labels[name] for name in FINDINGS] for s in studies])
    read = np.array([list(label_report(report_text(study_row(s))).values()) for s in studies])
    assert micro_f1(np.stack([read == 1, read == -1]), np.stack([truth == 1, truth == -1])) >= .98


# Finding → regular expression of the index terms that people gave the Indiana reports.
INDEX_TERMS = {
    'Cardiomegaly': 'Cardiomegaly|Cardiac Shadow/enlarged',
    'Lung Lesion': '(?:^|;)(?:Nodule|Mass)/?',
    'Lung Opacity': 'Opacity|Airspace Disease|Infiltrate',
    'Edema': 'Edema|Pulmonary Congestion',
    'Consolidation': 'Consolidation',
    'Atelectasis': 'Atelectasis',
    'Pneumothorax': 'pneumothorax',
    'Pleural Effusion': 'Pleural Effusion|Hydropneumothorax',
    'Fracture': 'Fractures',
    'Support Devices': 'Catheters|Surgical Instruments|Medical Device|Tube, Inserted|Stents',
}


@pytest.mark.skipif(not REPORTS.exists(), reason='real data not here: shared/data/iu_reports')
@pytest.mark.parametrize('half', [1, 0], ids=['odd', 'even'])
def test_real_reports_agree_with_people(half):
    table = pd.read_csv(REPORTS).fillna('')
    table = table[(table.uid % 2 == half) & ~table.MeSH.str.contains('No Indexing')]
    reports = 'FINDINGS: ' + table.findings + ' IMPRESSION: ' + table.impression
    labels = pd.DataFrame([label_report(text, parents=False) for text in reports])[list(INDEX_TERMS)]
    terms = INDEX_TERMS.values()
    truth = np.array([table.MeSH.str.contains(pattern, case=False) for pattern in terms]).T
    assert micro_f1((labels == 1).to_numpy(), truth) >= .85
    assert micro_f1(labels.isin([1, -1]).to_numpy(), truth) >= .85


# Structured reports

STRUCTURED = [(kind, text, labels) for kind, rows in KINDS.items() for text, labels in rows]


@pytest.mark.parametrize('kind, text, expected', STRUCTURED, ids=[text for _, text, _ in STRUCTURED])
def test_sentences_of_structured_reports(kind, text, expected):
    labels = label_report(text, parents=False)
    for item in expected.split(', '):
        name, value = item.rsplit(' ', 1)
        assert labels[SHORT[name]] == float(value), (kind, item)


def test_the_set_of_structured_reports_is_large_enough():
    assert len(STRUCTURED) >= 200
    assert min(map(len, KINDS.values())) >= 10
    assert len({text for _, text, _ in STRUCTURED}) == len(STRUCTURED)


LINES = [text for kind in ('lines without stops', 'bullets', 'lines broken at the margin')
         for text, _ in KINDS[kind] if 'FINDINGS' not in text and 'IMPRESSION' not in text]


@pytest.mark.parametrize('text', LINES, ids=ascii)
def test_line_breaks_survive_on_the_one_line_of_a_table(text):
    "What a manifest keeps on one line has the labels of the lines."
    line = one_line(text)
    assert '\n' not in line
    np.testing.assert_equal(label_report(line), label_report(text))


@pytest.mark.parametrize('text', [
    'No effusion or pneumothorax.', '5 mm nodule < 1 cm and > 3 mm.', 'Seen at ___ & [**1**].'])
def test_plain_texts_stay_as_they_are(text):
    assert plain_text(text) == text == join_lines(text) == divided_words(text)
