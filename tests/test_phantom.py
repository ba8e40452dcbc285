"Synthetic studies: the same from run to run, and pairs that differ in one finding and in nothing else."
import hashlib, re, subprocess, sys
from pathlib import Path

import numpy as np, pytest
from PIL import Image
from scipy.ndimage import distance_transform_edt

from chexmix.anatomy import sample_exam
from chexmix.core import UserError
from chexmix.pathology import RENDERERS, sample_findings, visit_of
from chexmix.phantom import counterfactual_pair, make_phantom, write_phantoms
from chexmix.report_grammar import PlainWording, write_report
from chexmix.report_text import label_report

REACH = 14  # cm: scatter (6), flattening of large shadows (5), edges, and the coarse grid of both
NAMES = sorted(RENDERERS)
PARENTS = {'Lung Opacity', 'Enlarged Cardiomediastinum'}  # implied by other findings


def digests() -> list[str]:
    "One study at three sizes and in two views, and the half of a pair that is no study."
    studies = [make_phantom(3, 11, size, view=view) for size in (64, 128, 200) for view in ('', 'LATERAL')]
    studies.append(counterfactual_pair(3, 11, 128, 'Fracture').absent)
    texts = [study.findings_text + study.impression_text for study in studies]
    contents = [study.image.tobytes() + text.encode() for study, text in zip(studies, texts)]
    return [hashlib.sha256(content).hexdigest() for content in contents]


def sentences(text: str) -> list[str]:
    "The sentences of a section in order, without numbers of a list and labels of organs."
    text = re.sub(r'(^|(?<=\. ))(\d+\. |[A-Z][a-z]+: )', '', text)
    return [sentence for sentence in re.split(r'\.(?:\s+|$)', text) if sentence]


def mentioned(text: str) -> set[str]:
    "The findings that a text affirms or suspects."
    return {name for name, value in label_report(text).items() if value in (1, -1)} - {'No Finding'}


def whole_report(study) -> str: return f'FINDINGS: {study.findings_text} IMPRESSION: {study.impression_text}'


def test_studies_are_the_same_from_run_to_run():
    "At every size and in every view, here and in a fresh process, whatever was drawn before."
    program = 'from test_phantom import digests; print(*digests())'
    fresh = subprocess.run([sys.executable, '-c', program], cwd=Path(__file__).parent, check=True,
                           capture_output=True, text=True).stdout.split()
    make_phantom(3, 12, 128)
    assert fresh == digests() and len(set(fresh)) == 7


def test_a_pair_with_a_finding_of_the_study_holds_the_study():
    for k in range(100, 112):
        for finding in {finding.name for finding in sample_findings(0, k)[0]}:
            pair, study = counterfactual_pair(0, k, 64, finding), make_phantom(0, k, 64)
            assert (pair.present.image == study.image).all()
            assert pair.present.findings_text == study.findings_text
            assert pair.present.impression_text == study.impression_text
            assert pair.present.findings == study.findings


@pytest.mark.parametrize('name', NAMES)
def test_pictures_differ_only_where_the_finding_acts(name):
    "Beyond the reach of scatter and processing all pixels are equal; most of the change is near the finding."
    beyond = 0
    for k in (0, 5):
        pair = counterfactual_pair(1, k, 128, name)
        exam = sample_exam(1, k, view=pair.present.view)
        change = np.abs(pair.present.image - pair.absent.image)
        distance = distance_transform_edt(~pair.changed) * exam.extent / 128
        assert pair.changed.any() and change[pair.changed].max() > 1 / 255
        assert change[distance > REACH].max(initial=0) < 1e-5
        beyond += (distance > REACH).sum()
        assert (change**2)[distance < 2].sum() > .8 * (change**2).sum()
    assert beyond or name not in ('Fracture', 'Lung Lesion')


@pytest.mark.parametrize('name', NAMES)
def test_the_other_findings_stay_as_they_are(name):
    for k in range(40):
        pair = counterfactual_pair(2, k, 64, name, with_image=False)
        left = [finding for finding in pair.present.findings if finding.name != name]
        assert [(f.name, f.side, f.site, f.severity, f.size) for f in left] == [
            (f.name, f.side, f.site, f.severity, f.size) for f in pair.absent.findings]
        assert pair.absent.labels[name] == 0 or name in PARENTS


@pytest.mark.parametrize('name', NAMES)
def test_reports_differ_only_in_sentences_about_the_finding(name):
    "What is missing affirms no other finding, what is new affirms none, the rest stands in the same order."
    for k in range(60):
        pair = counterfactual_pair(0, k, 64, name, with_image=False)
        for section in ('findings_text', 'impression_text'):
            before, after = (sentences(getattr(study, section)) for study in (pair.present, pair.absent))
            assert [x for x in before if x in after] == [x for x in after if x in before]
            new = [x for x in after if x not in before]
            assert not any(mentioned(x) for x in new), new
            assert len(new) <= 1  # the organ, or everything, is called normal
            for missing in (x for x in before if x not in after):
                assert mentioned(missing) <= {name, *PARENTS}, missing
        assert name not in mentioned(whole_report(pair.absent)) or name in PARENTS
        if name != 'Support Devices': assert name in mentioned(whole_report(pair.present))


@pytest.mark.parametrize('name', NAMES)
def test_the_report_says_the_same_of_all_other_findings(name):
    for k in range(60):
        pair = counterfactual_pair(4, k, 64, name, with_image=False)
        others = {finding.name for finding in pair.absent.findings}
        before, after = mentioned(whole_report(pair.present)), mentioned(whole_report(pair.absent))
        assert before - {name, *PARENTS} == after - PARENTS == others - PARENTS


def test_unknown_finding_is_named():
    with pytest.raises(UserError, match='Gallstones'): counterfactual_pair(0, 0, 64, 'Gallstones')
    with pytest.raises(UserError, match='No Finding'): counterfactual_pair(0, 0, 64, 'No Finding')


@pytest.mark.parametrize('name', NAMES)
def test_dial_makes_a_finding_plainer_and_leaves_all_else(name):
    "The picture without it stays, the change of the picture grows, and both ends of the dial can be drawn."
    pairs = [counterfactual_pair(6, 2, 64, name, strength=strength) for strength in (.1, 1., 2.)]
    weak, usual, strong = (np.square(p.present.image - p.absent.image).sum() for p in pairs)
    assert weak < usual < strong
    for pair in pairs: assert np.isfinite(pair.present.image).all()
    assert (counterfactual_pair(6, 2, 64, name).present.image == pairs[1].present.image).all()


def test_report_follows_the_dial():
    def sizes(strength):
        studies = [make_phantom(0, k, 64, with_image=False, strength=strength) for k in range(60)]
        found = [one for study in studies for one in study.findings]
        return np.array([one.size for one in found if one.name == 'Lung Lesion'])
    half, usual = sizes(.5), sizes(1.)
    assert len(usual) > 3 and np.allclose(half, usual * .5**.5, atol=.09)  # both are rounded
    for k in range(60):
        study = make_phantom(0, k, 64, with_image=False, strength=2.)
        for one in study.findings:
            if one.name != 'Lung Lesion': continue
            words = f'{one.size:.1f} cm', f'{10 * one.size:.0f} mm'
            assert any(x in study.findings_text for x in words)


def test_dial_has_ends():
    for strength in (0., 7., float('nan')):
        with pytest.raises(UserError, match='strength'): make_phantom(0, 4, 64, strength=strength)


def test_plain_reports_say_the_same_in_one_wording():
    "The labels read back agree with the truth, and a statement has one wording."
    said = {}
    for k in range(300):
        study = make_phantom(3, k, 64, with_image=False, plain=True)
        true = {name for name, value in study.labels.items() if value in (1, -1)} - {'No Finding'}
        assert mentioned(whole_report(study)) - PARENTS == true - PARENTS
        for sentence in sentences(study.impression_text):
            said.setdefault(frozenset(mentioned(sentence)), set()).add(sentence)
    assert len(said[frozenset()]) == 1  # that nothing is found
    effusions = said[frozenset({'Pleural Effusion'})]
    effusions = {re.sub('left|right|bilateral', 'a', words).rstrip('s') for words in effusions}
    assert len(effusions) <= 3 * (5 + 1)  # three amounts, each changed in one of five ways or only possible


def test_plain_reports_do_not_depend_on_random_numbers():
    findings = sample_findings(0, 202)[0]
    exam = sample_exam(0, 202)
    assert write_report(findings, exam, PlainWording()) == write_report(findings, exam, PlainWording())
    study = make_phantom(0, 202, 64, with_image=False)
    assert make_phantom(0, 202, 64, with_image=False, plain=True).labels == study.labels


def test_no_report_of_a_first_visit_compares_with_an_earlier_study():
    words = (r'\b(new|unchanged|stable|persistent|increas\w+|worsen\w+|progress\w+|decreas\w+|improv\w+|'
             r'interval|prior|previous\w*|compar\w+|again|since|earlier|still)\b')
    compares = {True: 0, False: 0}
    for k in range(600):
        for plain in (False, True):
            study = make_phantom(8, k, 64, with_image=False, plain=plain)
            first = visit_of(k)[1] == 0
            compares[first] += bool(re.search(words, whole_report(study), re.I))
    assert compares[True] == 0 and compares[False] > 50


@pytest.mark.parametrize('plain', (False, True))
def test_files_hold_what_the_dial_and_the_switch_say(tmp_path, plain):
    manifest = write_phantoms(tmp_path/'a', 3, 64, workers=1, strength=.5, plain=plain)
    for k, row in manifest.iterrows():
        study = make_phantom(0, k, 64, strength=.5, plain=plain)
        assert row.findings_text == study.findings_text
        stored = np.asarray(Image.open(tmp_path/'a'/row.path)) / 255
        assert np.abs(stored - study.image).max() <= .51 / 255
    with pytest.raises(UserError): write_phantoms(tmp_path/'a', 3, 64, workers=1, plain=plain)
