"Files through a job: what is found, a journal that goes on, outputs that never take the place of an input."
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from PIL import Image

from chexmix import batch_inference, sample
from chexmix.batch_inference import (
    answers, ask_job, file_state, find_images, Job, only_writer, open_journal, picture_places, process_files,
    protect_inputs, read_texts, report_job)
from chexmix.classify import statement_log_likelihood
from chexmix.core import UserError
from chexmix.generate import generate_reports
from chexmix.pipeline import open_model
from chexmix.token_store import encode_shifts

STAMP = {'kind': 'brightness'}


class Reader:
    "What a job needs of a processor, where nothing is encoded."
    image_size, policy = 16, 'pad'


class Weights(torch.nn.Module):
    "What a job needs of a model, where nothing is computed."
    device = torch.device('cpu')


@pytest.fixture
def job(monkeypatch):
    "A job that answers with the mean brightness of each image; `asked` is the list of those it was asked."
    asked = []

    def answer(images, paths):
        asked.extend(paths)
        return [dict(report=f'{image.mean():.3f}') for image in images]
    monkeypatch.setattr(Job, 'stamp', STAMP)
    monkeypatch.setattr(batch_inference, 'images_at_once', lambda model, new: 2)
    found = Job('brightness', Weights(), Reader(), answer)
    return found, asked


def write_png(path, value=100):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new('L', (20, 30), value).save(path)
    return path


# Several shifts

@pytest.fixture(scope='module')
def opened(): return open_model('packed')


@pytest.mark.parametrize('guidance', [1, 2])
def test_a_job_with_shifts_writes_what_they_say_together(opened, guidance):
    "In pieces, and of a number of images that the shifts do not divide."
    images = opened.processor.read([sample('png')] * 4).clone()
    images[1], images[3] = images[1].flip(1), images[3] / 2
    shifts = encode_shifts(opened.processor, images, 3)
    job = report_job(opened.model, opened.processor, 20, guidance, 3)
    expected = generate_reports(opened.model, shifts, max_new_tokens=20, guidance=guidance)
    assert [row['ids'] for row in job.answer(images, list('abcd'))] == expected


def test_asking_with_shifts_is_the_mean_of_their_log_likelihoods(opened):
    parts, questions = (opened.model, opened.processor), opened.questions
    images = opened.processor.read([sample('png')])
    row, = ask_job(*parts, questions, 3).answer(images, ['a'])
    own = encode_shifts(opened.processor, images, 3)[0]
    likely = statement_log_likelihood(*parts, questions, own).mean(0, keepdims=True)
    p = questions.probabilities(questions.scores(likely))[0]
    assert list(row.values()) == pytest.approx(p.tolist(), abs=.001)


def test_other_questions_and_other_shifts_are_another_job(opened):
    "A table that was begun with one is not continued with another."
    def digest(questions, shifts=1): return ask_job(opened.model, opened.processor, questions, shifts).options
    q = opened.questions
    others = [replace(q, slope=2.), replace(q, bias=q.bias + 1), replace(q, bias=None),
              replace(q, against='denials')]
    assert all(digest(other) != digest(q) for other in others) and digest(q, 5) != digest(q)


@pytest.mark.parametrize('first, then', [(dict(shifts=5), {}), ({}, dict(shifts=5))])
def test_a_journal_of_other_shifts_is_refused(first, then, tmp_path):
    open_journal(tmp_path/'journal', STAMP | first)
    with pytest.raises(UserError, match='begun with shifts='): open_journal(tmp_path/'journal', STAMP | then)


# The journal

LETTERS = ['\u2028', '\u2029', '\x85', '\x0b', '\x0c', '\x1c', '\x1d', '\x1e',
           '\r', '\n', '\ud800', '\0', '😀']


@pytest.mark.parametrize('letter', LETTERS, ids=ascii)
def test_a_journal_keeps_any_letter(letter, tmp_path):
    "As the earlier version wrote it, and as this one does."
    journal, row = tmp_path/'journal', {'path': f'a{letter}.png', 'report': f'Clear.{letter}No effusion.'}
    for ascii_only in (False, True):
        text = json.dumps(STAMP) + '\n' + json.dumps(row, ensure_ascii=ascii_only) + '\n'
        if letter == '\ud800' and not ascii_only: continue  # was never written
        journal.write_bytes(text.encode())
        assert open_journal(journal, STAMP) == {row['path']: row}


@pytest.mark.parametrize('letter', LETTERS, ids=ascii)
def test_a_table_of_lines_keeps_any_letter(letter, tmp_path, job):
    if letter in '\0\ud800': return  # no name of a file
    path = write_png(tmp_path/'in'/f'a{letter[0]}b.png')
    process_files(job[0], [path], tmp_path/'o.jsonl')
    rows = [json.loads(line) for line in (tmp_path/'o.jsonl').read_text().splitlines()]
    assert [row['path'] for row in rows] == [str(path)]


def test_a_damaged_journal_is_named(tmp_path):
    (tmp_path/'journal').write_text('{"kind": "brightness"}\n{"path": \n')
    with pytest.raises(UserError, match='journal is damaged'): open_journal(tmp_path/'journal', STAMP)


def break_file(path): path.write_bytes(b'\x89PNG broken')


def link_instead(path):
    path.unlink()
    path.symlink_to(path.parent/'b.png')


MENDED = {'written anew': write_png, 'linked': link_instead}


@pytest.mark.parametrize('how', MENDED)
def test_a_mended_file_is_read_again_and_leaves_the_quarantine(how, tmp_path, job):
    broken, good, out = tmp_path/'in'/'a.png', write_png(tmp_path/'in'/'b.png'), tmp_path/'o.csv'
    break_file(broken)
    process_files(job[0], [tmp_path/'in'], out)
    assert pd.read_csv(f'{out}.quarantine.csv').path.tolist() == [str(broken)]
    MENDED[how](broken)
    assert process_files(job[0], [tmp_path/'in'], out).path.tolist() == [str(broken), str(good)]
    assert not Path(f'{out}.quarantine.csv').exists() and not list(tmp_path.glob('.*'))


def test_a_mended_file_is_read_again_after_a_kill(tmp_path, job):
    "A failure in the journal counts as long as the file stays as it was."
    broken, good, out = tmp_path/'in'/'a.png', write_png(tmp_path/'in'/'b.png'), tmp_path/'o.csv'
    break_file(broken)
    row = dict(path=str(broken), reason='damaged', state=file_state(str(broken)))
    lines = json.dumps(STAMP) + '\n' + json.dumps(row) + '\n'
    (tmp_path/'.o.csv.journal').write_text(lines)
    assert open_journal(tmp_path/'.o.csv.journal', STAMP)[str(broken)]['reason'] == 'damaged'
    write_png(broken)
    assert process_files(job[0], [tmp_path/'in'], out).path.tolist() == [str(broken), str(good)]


def test_nothing_readable_leaves_nothing_behind(tmp_path, job):
    broken, out = tmp_path/'a.png', tmp_path/'out'/'o.csv'
    break_file(broken)
    with pytest.raises(UserError, match='none of 1 images'): process_files(job[0], [broken], out)
    write_png(broken)
    assert len(process_files(job[0], [broken], out)) == 1


# Outputs and inputs

def link_to(target, path):
    path.symlink_to(target)
    return path


# What is given and what is to be written, in a folder with images in/a.png, in/deep/b.png and t.csv.
PROTECTED = {
    'the image': (['in/a.png'], 'in/a.png'),
    'the table': (['t.csv'], 't.csv'),
    'an image of the table': (['t.csv'], 'in/a.png'),
    'the folder': (['in'], 'in'),
    'a new file in the folder': (['in'], 'in/o.csv'),
    'deep in the folder': (['in'], 'in/new/deep/o.csv'),
    'in a folder below': (['in'], 'in/deep/o.csv'),
    'by another way': (['in/a.png'], 'in/deep/../a.png'),
    'through a link to the table': (['t.csv'], 'link.csv'),
    'a link as input': (['link.csv'], 't.csv'),
    'through a link to the folder': (['in'], 'linked/o.csv'),
    'a linked folder as input': (['linked'], 'in/o.csv'),
    'where a link of the folder leads': (['in'], 'disk/o.csv'),
    'one of several': (['in/a.png', 'in/deep/b.png'], 'in/deep/b.png'),
}


@pytest.mark.parametrize('name', PROTECTED)
def test_an_output_is_never_an_input(name, tmp_path, job, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_png(tmp_path/'in'/'a.png')
    write_png(tmp_path/'in'/'deep'/'b.png')
    write_png(tmp_path/'disk'/'c.png')
    link_to(tmp_path/'disk', tmp_path/'in'/'other')
    (tmp_path/'t.csv').write_text('path,text\nin/a.png,Clear lungs.\n')
    link_to(tmp_path/'t.csv', tmp_path/'link.csv')
    link_to(tmp_path/'in', tmp_path/'linked')
    given, target = PROTECTED[name]
    before = {p: p.read_bytes() for p in tmp_path.rglob('*') if p.is_file()}
    with pytest.raises(UserError, match='is an input|of the input folder'):
        protect_inputs([target], given, find_images(given))
    if target.endswith('.csv'):
        with pytest.raises(UserError, match='is an input|of the input folder'):
            process_files(job[0], given, Path(target))
    assert {p: p.read_bytes() for p in tmp_path.rglob('*') if p.is_file()} == before


ALLOWED = [(['in/a.png'], 'in/o.csv'), (['t.csv'], 'o.csv'), (['in'], 'o.csv'), (['in'], 'inside/o.csv')]


@pytest.mark.parametrize('given, target', ALLOWED)
def test_an_output_beside_the_inputs_is_written(given, target, tmp_path, job, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_png(tmp_path/'in'/'a.png')
    (tmp_path/'t.csv').write_text('path,text\nin/a.png,Clear lungs.\n')
    assert len(process_files(job[0], given, Path(target))) == 1 and Path(target).exists()


def test_the_quarantine_of_an_earlier_call_is_no_output_of_one_that_reads_it(tmp_path, job):
    write_png(tmp_path/'a.png')
    table = tmp_path/'o.csv.quarantine.csv'
    table.write_text(f'path,reason\n{tmp_path}/a.png,damaged\n')
    with pytest.raises(UserError, match='is an input'): process_files(job[0], [table], tmp_path/'o.csv')


def test_two_calls_at_once(tmp_path, job):
    "The second is refused while the first writes; a lock that a killed call left behind is nobody's."
    image, out = write_png(tmp_path/'a.png'), tmp_path/'out'/'o.csv'
    (tmp_path/'out').mkdir()
    with only_writer(out):
        with pytest.raises(UserError, match='another call'): process_files(job[0], [image], out)
    program = ('import os, sys; from pathlib import Path; from chexmix.batch_inference import only_writer\n'
               'with only_writer(Path(sys.argv[1])): os._exit(9)')
    assert subprocess.run([sys.executable, '-c', program, out]).returncode == 9
    assert len(process_files(job[0], [image], out)) == 1 and not list(out.parent.glob('.*'))


# Names

ODD_NAMES = [
    b'caf\xe9.png', b'\xff.png', b'\x80\x81.png', b'a\xc3.png', b'p\xe9/a.png', b'\xe9\xe8.dcm', b'\xb5m.tif',
    b'na\xefve.jpg', b'\xa0.png', b'x\xf0\x9f.png']


@pytest.mark.parametrize('name', ODD_NAMES)
@pytest.mark.parametrize('ending', ['.jsonl', '.csv', '.parquet', '.txt'])
def test_a_name_that_is_no_utf8_is_set_aside_and_the_others_done(name, ending, tmp_path, job):
    good = write_png(tmp_path/'in'/'a.png')
    odd = Path(os.fsdecode(os.path.join(os.fsencode(tmp_path/'in'), name)))
    odd.parent.mkdir(exist_ok=True)
    odd.write_bytes(good.read_bytes())
    out = tmp_path/f'o{ending}'
    assert process_files(job[0], [tmp_path/'in'], out).path.tolist() == [str(good)]
    quarantine = pd.read_csv(f'{out}.quarantine.csv')
    assert len(quarantine) == 1 and 'not UTF-8' in quarantine.reason[0]
    rows = [row for part in answers(job[0], find_images([tmp_path/'in']), 8) for row in part]
    assert sorted('reason' in row for row in rows) == [False, True]


def test_pictures_of_files_named_by_uid_keep_their_names():
    paths = ['p/1.2.840.1', 'p/1.2.840.2', 'p/a.png', 'q/A.jpg']
    names = [place.name for place in picture_places(paths, Path('o'), 'filled').values()]
    assert names[:2] == ['1.2.840.1_filled.png', '1.2.840.2_filled.png'] and len(set(names)) == 4
    assert len({name.lower() for name in names}) == 4


# Reports to choose among

TEXTS = ['Effusion.', 'Größe normal.']
TEXT_FILES = {
    'utf-8': '\n'.join(TEXTS).encode(), 'mark': '\n'.join(TEXTS).encode('utf-8-sig'),
    'utf-16': '\r\n'.join(TEXTS).encode('utf-16'), 'utf-16-be': '\n'.join(TEXTS).encode('utf-16-be'),
    'latin-1': '\n'.join(TEXTS).encode('latin-1'), 'windows': '\r\n'.join(TEXTS).encode('cp1252'),
    'old mac': '\r'.join(TEXTS).encode(), 'empty lines': '\n\n'.join([*TEXTS, '']).encode(),
    'twice': '\n'.join(TEXTS * 2).encode(), 'utf-32': '\n'.join(TEXTS).encode('utf-32')}


@pytest.mark.parametrize('name', TEXT_FILES)
def test_reports_to_choose_among_in_any_encoding(name, tmp_path):
    (tmp_path/'t.txt').write_bytes(TEXT_FILES[name])
    assert read_texts(tmp_path/'t.txt') == TEXTS
    for ending, mark in (('.csv', ','), ('.tsv', '\t')):
        rows = [f'n{mark}Text', *[f'1{mark}{text}' for text in TEXTS]]
        (tmp_path/f't{ending}').write_text('\n'.join(rows), encoding='utf-16')
        assert read_texts(tmp_path/f't{ending}') == TEXTS


def test_the_earlier_name_of_the_module():
    from chexmix import serve
    assert serve.find_images is batch_inference.find_images and serve.WRITERS is batch_inference.WRITERS
