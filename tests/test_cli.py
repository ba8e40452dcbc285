"The command line: images in, text or PNG out; each mistake one line, exit code 2, nothing half-written."
import json, os, resource, shlex, shutil, signal, subprocess, sys, time
from pathlib import Path

import numpy as np, pandas as pd, pydicom, pytest, torch
from PIL import Image
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid

from chexmix.cli import main
from chexmix.core import PRESETS, read_json
from chexmix.data import read_table
from chexmix.phantom import make_phantom
from chexmix.pretrain import load_model
from chexmix.records import load_records
from conftest import root

PROGRAM = 'import sys; from chexmix.cli import main; sys.exit(main(sys.argv[1:]))'


def write_dicom(path, pixels):
    "Write 8-bit pixels as a DICOM file."
    data, meta = pydicom.Dataset(), pydicom.dataset.FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = data.SOPClassUID = SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = generate_uid()
    data.file_meta = meta
    data.Rows, data.Columns = pixels.shape
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, 'MONOCHROME2'
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 8, 8, 7, 0
    data.PixelData = pixels.tobytes()
    data.save_as(path, enforce_file_format=True)


def save_phantom(path, seed, k):
    "Write a synthetic radiograph of 64 pixels; returns its study."
    study = make_phantom(seed, k, 64)
    Image.fromarray((study.image * 255).astype(np.uint8)).save(path)
    return study


@pytest.fixture(scope='module')
def images(tmp_path_factory):
    "One synthetic radiograph as PNG, JPEG and DICOM, and a file that only claims to be a PNG."
    folder = tmp_path_factory.mktemp('images')
    pixels = (make_phantom(1, 3, 64).image * 255).astype(np.uint8)
    Image.fromarray(pixels).save(folder/'a.png')
    Image.fromarray(pixels).save(folder/'b.jpg', quality=95)
    write_dicom(folder/'c.dcm', pixels)
    (folder/'broken.png').write_bytes(b'no image')
    return folder


@pytest.fixture(scope='module')
def own_run(tiny_run, tmp_path_factory):
    "A copy of the trained run into which no notebook writes meanwhile."
    run = tmp_path_factory.mktemp('own')/'tiny'
    run.mkdir()
    for name in ('settings.json', 'manifest.csv', 'quarantine.csv'): shutil.copy(tiny_run/name, run)
    for name in ('processor', 'image_tokenizer', 'store', 'stage1', 'stage2', 'logs'):
        shutil.copytree(tiny_run/name, run/name)
    (run/'phantoms').symlink_to(tiny_run/'phantoms')
    (run/'results').mkdir()
    shutil.copy(tiny_run/'results'/'tokenizer.json', run/'results')
    return run


@pytest.mark.parametrize('name', ['a.png', 'b.jpg', 'c.dcm'])
def test_report_of_each_format(name, images, tiny_run, capsys):
    assert main(['report', str(images/name), '--run', str(tiny_run)]) == 0
    lines = capsys.readouterr().out.strip().splitlines()
    assert lines[0] == str(images/name) and len(lines[1].split()) > 2


def test_same_pixels_same_report(images, tiny_run, capsys):
    main(['report', str(images/'a.png'), str(images/'c.dcm'), '--run', str(tiny_run)])
    png, dicom = [block.splitlines()[1] for block in capsys.readouterr().out.strip().split('\n\n')]
    assert png == dicom


@pytest.mark.parametrize('verb, word', [('inpaint', 'inpainted'), ('tokenizer', 'reconstructed')])
def test_picture_out(verb, word, images, tiny_run, tmp_path, capsys):
    png, dicom, run = str(images/'a.png'), str(images/'c.dcm'), ['--run', str(tiny_run)]
    assert main([verb, png, *run, '-o', str(tmp_path/'one.png')]) == 0
    assert main([verb, png, dicom, *run, '-o', str(tmp_path/'many')]) == 0
    assert np.asarray(Image.open(tmp_path/'one.png')).std() > 5
    assert sorted(p.name for p in (tmp_path/'many').iterdir()) == [f'a_{word}.png', f'c_{word}.png']


def test_the_posterior_mean_of_a_file(images, tiny_run, tmp_path):
    "Another picture inside the mask, the same outside; the codes of the table are the most likely ones."
    from chexmix.pipeline import pipeline
    words, tables, pictures = ['inpaint', str(images/'a.png'), '--run', str(tiny_run)], [], []
    for name, more in (('likely', []), ('mean', ['--mean'])):
        assert main([*words, *more, '-o', str(tmp_path/f'{name}.jsonl')]) == 0
        tables.append(json.loads((tmp_path/f'{name}.jsonl').read_text()))
        pictures.append(np.asarray(Image.open(tables[-1]['picture'])).astype(int))
    assert tables[0]['codes'] == tables[1]['codes'] and tables[0]['hidden'] == tables[1]['hidden']
    inside = np.zeros(16, bool)
    inside[tables[0]['hidden']] = True
    inside = inside.reshape(4, 4).repeat(pictures[0].shape[0]//4, 0).repeat(pictures[0].shape[1]//4, 1)
    differ = pictures[0] != pictures[1]
    assert differ[inside].mean() > .2 and not differ[~inside].any()
    filled = pipeline('inpaint', tiny_run, mean=True)(images/'a.png').pictures['filled']
    assert abs(filled.numpy()*255 - pictures[1]).max() <= 1


def test_findings_of_an_image(images, own_run, capsys):
    assert main(['classify', str(images/'c.dcm'), '--run', str(own_run)]) == 2
    assert 'no probe was fitted' in capsys.readouterr().err
    assert main(['evaluate', 'classify', '--run', str(own_run)]) == 0
    assert main(['classify', str(images/'c.dcm'), '--run', str(own_run)]) == 0
    assert 'Pleural Effusion' in capsys.readouterr().out


def test_retrieval_both_ways(images, tiny_run, capsys):
    assert main(['retrieve', str(images/'a.png'), '--run', str(tiny_run), '-k', '2']) == 0
    text = 'Large left pleural effusion.'
    assert main(['retrieve', '--text', text, '--run', str(tiny_run), '-k', '2']) == 0


def test_embeddings_of_an_image(images, tiny_run, tmp_path, capsys):
    files, out = [str(images/'a.png'), str(images/'c.dcm')], tmp_path/'v.parquet'
    assert main(['embed', *files, '--run', str(tiny_run), '--layers', '1-2', '-o', str(out)]) == 0
    table = pd.read_parquet(out)
    assert list(table) == ['path', 'layer_1', 'layer_2']
    assert np.array_equal(table.layer_1[0], table.layer_1[1]) and len(table.layer_1[0]) == 64


TABLES = [('report', 'report'), ('embed --layers 1', 'layer_1'), ('inpaint --ratio 0.25', 'picture'),
          ('retrieve -k 2', 'reports')]


@pytest.mark.parametrize('words, column', TABLES)
def test_a_folder_into_a_table(words, column, images, tiny_run, tmp_path, capsys):
    "Every format of the folder; the broken file is named in the quarantine, and the exit code says so."
    assert main([*words.split(), str(images), '--run', str(tiny_run), '-o', str(tmp_path/'o.jsonl')]) == 2
    rows = [json.loads(line) for line in (tmp_path/'o.jsonl').read_text().splitlines()]
    assert [row['path'].rpartition('/')[2] for row in rows] == ['a.png', 'b.jpg', 'c.dcm']
    assert all(row[column] for row in rows)
    assert pd.read_csv(tmp_path/'o.jsonl.quarantine.csv').path.tolist() == [str(images/'broken.png')]
    assert not list(tmp_path.glob('.*'))
    if column != 'picture': return
    for row in rows: assert np.asarray(Image.open(row['picture'])).std() > 5


def test_killed_run_goes_on_where_it_was(tiny_run, tmp_path, monkeypatch, capsys):
    "After SIGKILL amid 80 images the same command asks for the rest alone; the table is undisturbed."
    monkeypatch.delenv('CHEXMIX_QUIET', raising=False)  # the line of progress is looked at
    (tmp_path/'in').mkdir()
    for k in range(80): save_phantom(tmp_path/'in'/f'{k:02}.png', 2, k % 3)
    words = ['report', str(tmp_path/'in'), '--run', str(tiny_run), '--batch', '1', '--new', '20', '-o']
    out, undisturbed, journal = tmp_path/'o.csv', tmp_path/'undisturbed.csv', tmp_path/'.o.csv.journal'

    def n_lines(): return journal.read_bytes().count(b'\n') if journal.exists() else 0
    command = [sys.executable, '-c', PROGRAM, *words, str(out)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    while process.poll() is None and n_lines() <= 4: time.sleep(.005)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL and not out.exists(), process.stderr.read()
    finished = n_lines() - 1
    assert 0 < finished < 80
    assert main([*words, str(out)]) == 0 and not journal.exists()
    assert f'{finished}/80' in capsys.readouterr().out
    assert main([*words, str(undisturbed)]) == 0
    assert out.read_text() == undisturbed.read_text()


def test_one_bad_file_among_good_ones(images, tiny_run, capsys):
    assert main(['report', str(images/'broken.png'), str(images/'a.png'), '--run', str(tiny_run)]) == 2
    printed = capsys.readouterr()
    assert str(images/'a.png') in printed.out and 'broken.png' in printed.err


def table(folder, text):
    (folder/'table.csv').write_text(text)
    return str(folder/'table.csv')


# name → (words after chexmix, what the line must name)
# {run} is a trained run, {tmp} an empty folder, {images} see above
MISTAKES = {
    'unknown preset': ('tokenizer --preset huge --run {tmp}/r', 'huge'),
    'unknown preset of a demo': ('demo --preset huge --run {tmp}/r', 'huge'),
    'unknown setting': ('tokenizer --preset tiny --run {tmp}/r --set colour=1', 'colour'),
    'wrong type': ('tokenizer --preset tiny --run {tmp}/r --set lr=fast', 'fast'),
    'setting without value': ('tokenizer --preset tiny --run {tmp}/r --set lr', 'lr'),
    'unknown option': ('inpaint --colour red', '--colour'),
    'unknown command': ('rapport', 'rapport'),
    'image not named': ('report --run {run}', 'chexmix evaluate report --run'),
    'evaluating a stage that is not there': ('evaluate report --run {run} --models longer', 'longer'),
    'evaluating an unknown task': ('evaluate translate --run {run}', 'translate'),
    'stage that is not there': ('report {images}/a.png --run {run} --stage longer', 'stage1, stage2'),
    'folder that is not there': ('report {images}/a.png --model {tmp}/released/', 'released'),
    'a stage as a run': ('evaluate report --run {run}/stage1', 'settings of a run'),
    'no settings': ('tokenizer --run {tmp}/r --config {images}/a.png', 'a.png'),
    'settings from two places': (
        'tokenizer --run {tmp}/r --preset tiny --config {run}/settings.json', '--config'),
    'export over other files': ('export --run {run} -o {images}', 'not empty'),
    'not a number': ('phantom --n many {tmp}/p', 'many'),
    'no studies': ('phantom --n 0 {tmp}/p', '--n 0'),
    'unknown layout': ('phantom --n 2 --layout xml {tmp}/p', 'xml'),
    'a size that cannot be drawn': ('phantom --n 2 --size 9000 {tmp}/p', '9000'),
    'phantoms among other files': ('phantom --n 2 --size 32 {images}', 'which is no phantom'),
    'no processes': ('pretrain --processes 0 --run {run}', 'processes must be at least 1'),
    'no processes for images': ('tokenizer --processes 0 --run {run}', 'processes must be at least 1'),
    'no rate, in a run that is not there': ('pretrain --preset tiny --lr -1 --run {tmp}/r', 'lr must be'),
    'stage outside of its run': ('pretrain --name ../other --run {run}', '../other'),
    'stage in a folder of something else': ('pretrain --name processor --run {run}', 'processor is no stage'),
    'another value than the run has': ('pretrain --set n_studies=9 --run {run}', 'n_studies='),
    'fewer than no images at once': ('report {images}/a.png --batch -1 --run {run}', '--batch'),
    'device without values': ('report {images}/a.png --device meta --run {run}', 'meta'),
    'guidance that is no number': ('report {images}/a.png --guidance nan --run {run}', 'guidance'),
    'more shifts than there are': ('report {images}/a.png --shifts 6 --run {run}', '--shifts'),
    'shifts for a probe': ('classify {images}/a.png --shifts 3 --run {run}', '--ask'),
    'unknown stage': ('pretrain --stage 3 --run {run}', '3'),
    'ratio above one': ('inpaint --ratio 1.5 --run {run} {images}/a.png', '1.5'),
    'no such run': ('report {images}/a.png --run {tmp}/none', 'none'),
    'no such model': ('report {images}/a.png --run {run} --model stage9', 'stage9'),
    'another configuration': ('pretrain --run {run} --preset small', 'tiny'),
    'another seed': ('tokenizer --run {run} --preset tiny --seed 5', 'seed'),
    'missing image': ('report {tmp}/x.png --run {run}', 'x.png'),
    'unreadable image': ('inpaint {images}/broken.png --run {run}', 'broken.png'),
    'one file for two images': ('inpaint {images}/a.png {images}/b.jpg --run {run} -o {tmp}/o.png', 'o.png'),
    'missing table': ('tokenizer --preset tiny --run {tmp}/r --data {tmp}/no.csv', 'no.csv'),
    'empty table': ('tokenizer --preset tiny --run {tmp}/r --data {empty}', 'table.csv'),
    'missing column': ('tokenizer --preset tiny --run {tmp}/r --data {columns}', 'path'),
    'only unreadable images': ('tokenizer --preset tiny --run {tmp}/r --data {unreadable}', 'broken.png'),
    'audit of nothing': ('audit {tmp}/none -o {tmp}/audit', 'none'),
    'audit of a folder without images': ('audit {tmp} -o {tmp}/audit', 'no DICOM file'),
    'device that is not here': ('report {images}/a.png --run {run} --device cuda:99', 'cuda:99'),
    'number type that overflows': ('report {images}/a.png --run {run} --dtype float16', 'float16'),
    'unknown policy': ('report {images}/a.png --run {run} --policy squeeze', 'squeeze'),
    'no weights there': ('report {images}/a.png --model {tmp}/none', 'none'),
    'table of an unknown kind': ('report {images} --run {run} -o {tmp}/o.xlsx', 'o.xlsx'),
    'reports as text only': ('embed {images}/a.png --run {run} -o {tmp}/o.txt', 'o.txt'),
    'layer that is not there': (
        'embed {images}/a.png --run {run} --layers 7-12 -o {tmp}/o.csv', '0 (the input embedding) to 2'),
    'more regions than codes': (
        'embed {images}/a.png --run {run} --regions 9 -o {tmp}/o.csv', '9×9 regions'),
    'layers in words': ('embed {images}/a.png --run {run} --layers last -o {tmp}/o.csv', 'last'),
    'nothing to embed': ('embed --run {run}', 'nothing to embed'),
    'file of reports missing': ('retrieve {images}/a.png --run {run} --texts {tmp}/no.txt', 'no.txt'),
    'packing weights that nobody measured': ('pack --run {run} --stage stage9 -o {tmp}/w', 'stage9'),
    'missing notebooks': ('demo --notebooks {tmp} --run {tmp}/r', '--notebooks'),
}


@pytest.mark.parametrize('name', MISTAKES)
def test_mistake_is_one_line_and_exit_code_2(name, images, own_run, tmp_path, capsys):
    words, named = MISTAKES[name]
    tables = {
        'empty': 'path,text\n',
        'columns': 'picture,text\na.png,x\n',
        'unreadable': f'path,text\n{images}/broken.png,x\n'}
    for kind, text in tables.items():
        (tmp_path/kind).mkdir()
        words = words.replace(f'{{{kind}}}', table(tmp_path/kind, text))
    before = sorted(own_run.rglob('*'))
    try: code = main(words.format(run=own_run, tmp=tmp_path, images=images).split())
    except SystemExit as e: code = e.code
    err = capsys.readouterr().err.strip()
    assert code == 2 and named in err.splitlines()[-1] and 'Traceback' not in err, err
    assert not list(tmp_path.rglob('*.part')) and sorted(own_run.rglob('*')) == before


def test_no_room_on_disk(images, tiny_run, tmp_path):
    "The kernel refuses to let any file grow: the line names the file, and nothing stands under its name."
    def limit(): resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
    words = ['tokenizer', str(images/'a.png'), '--run', str(tiny_run), '-o', str(tmp_path/'o.png')]
    command = [sys.executable, '-B', '-c', PROGRAM, *words]
    done = subprocess.run(command, capture_output=True, text=True, preexec_fn=limit)
    assert done.returncode == 2 and 'o.png' in done.stderr.splitlines()[-1], done.stderr
    assert not list(tmp_path.iterdir())


def test_help_shows_an_example():
    done = subprocess.run(['chexmix', 'inpaint', '--help'], capture_output=True, text=True)
    assert done.returncode == 0 and '\n  chexmix inpaint chest.png' in done.stdout


BARE = ['', 'report', 'classify', 'inpaint', 'retrieve', 'embed']


@pytest.mark.parametrize('words', BARE)
def test_a_bare_command_prints_its_help(words, capsys):
    assert main(words.split()) == 2
    printed = capsys.readouterr()
    assert printed.out.startswith(f'usage: chexmix {words}'.strip()) and not printed.err


def test_a_result_is_replaced_only_by_force(own_run, capsys):
    words = ['evaluate', 'retrieve', '--run', str(own_run), '--models', 'stage1']
    place = own_run/'results'/'retrieve.json'
    place.parent.mkdir(exist_ok=True)
    place.write_text('kept')
    assert main(words) == 2 and place.read_text() == 'kept'
    assert '--force' in capsys.readouterr().err
    assert main([*words, '--force']) == 0
    assert 'R@1' in capsys.readouterr().out and 'kept' not in place.read_text()


# Which model answers

def model_line(*words, capsys):
    "What is said on standard error of the model that answers."
    assert main(['embed', *map(str, words)]) == 0
    return capsys.readouterr().err.strip().splitlines()[-1]


def test_the_model_that_answers_is_named(images, own_run, tmp_path, monkeypatch, capsys):
    "The packed weights by default, also beside a run demo; a stage is found below a name and below a path."
    monkeypatch.setenv('CHEXMIX_RUNS', str(tmp_path/'runs'))
    for name in ('demo', 'mine'): shutil.copytree(own_run, tmp_path/'runs'/name)
    (tmp_path/'runs'/'mine'/'stage1').rename(tmp_path/'runs'/'mine'/'longer')
    image, out = images/'a.png', ('-o', tmp_path/'o.csv')
    assert 'packed weights' in model_line(image, *out, capsys=capsys)
    mine = tmp_path/'runs'/'mine'
    ways = (['--model', 'mine/longer'], ['--run', 'mine', '--stage', 'longer'],
            ['--run', 'mine', '--model', 'longer'], ['--model', 'mine', '--stage', 'longer'],
            ['--model', mine/'longer'], ['--run', mine, '--stage', 'longer'])
    for way in ways:
        assert 'longer of the run mine' in model_line(image, *way, *out, capsys=capsys), way
    assert 'stage2 of the run demo' in model_line(image, '--run', 'demo', *out, capsys=capsys)


def test_an_exported_model_answers_alike(images, own_run, tmp_path, capsys):
    "Half the size in bfloat16, and a report of the same image."
    assert main(['export', '--run', str(own_run), '--stage', 'stage1', '-o', str(tmp_path/'half')]) == 0
    sizes = [(folder/'model.safetensors').stat().st_size for folder in (tmp_path/'half', own_run/'stage1')]
    assert sizes[0] < .6 * sizes[1]
    assert main(['report', str(images/'a.png'), '--model', str(tmp_path/'half'), '--new', '20']) == 0


def test_weights_in_pieces_are_the_same_weights(own_run, tmp_path, capsys):
    "Small files that are joined when the weights are opened; without one of them nothing is opened."
    from chexmix.pretrain import load_model
    command = ['export', '--run', str(own_run), '--stage', 'stage1', '-o']
    assert main([*command, str(tmp_path/'whole')]) == 0
    assert main([*command, str(tmp_path/'pieces'), '--piece-mb', '.05']) == 0
    weights = [path for path in (tmp_path/'pieces').rglob('*') if 'safetensors' in path.name]
    assert len(weights) > 6 and max(path.stat().st_size for path in weights) <= 50_000
    shutil.copytree(tmp_path/'pieces', tmp_path/'fewer')
    (tmp_path/'fewer'/'model.safetensors.001').unlink()
    assert main(['report', '--model', str(tmp_path/'fewer'), str(tmp_path/'a.png')]) == 2
    assert 'model.safetensors.001 is missing' in capsys.readouterr().err
    ids = torch.arange(40)[None]
    logits = [load_model(tmp_path/name)[0](ids).logits for name in ('whole', 'pieces')]
    assert torch.equal(*logits)
    name = 'image_tokenizer/model.safetensors'
    assert (tmp_path/'whole'/name).read_bytes() == (tmp_path/'pieces'/name).read_bytes()
    assert main([*command, str(tmp_path/'none'), '--piece-mb', '-1']) == 2


def test_settings_of_another_run(own_run, tmp_path, capsys):
    "`--config` makes the run that it was saved by, and single values change it."
    from chexmix.cli import build_parser, run_settings
    saved = json.loads((own_run/'settings.json').read_text())
    (tmp_path/'run.yaml').write_text('preset: tiny\nlr: 0.001\n')
    for file, lr in ((own_run/'settings.json', saved['lr']), (tmp_path/'run.yaml', .001)):
        words = ['tokenizer', '--run', str(tmp_path/'r'), '--config', str(file)]
        assert run_settings(build_parser().parse_args(words)).lr == lr
        assert run_settings(build_parser().parse_args([*words, '--set', 'lr=0.5'])).lr == .5


# What a shell expects

HEAVY = {'torch', 'spacy', 'gdcm', 'nltk', 'fastai', 'transformers', 'sklearn', 'scipy', 'matplotlib',
         'pandas', 'numpy', 'pydicom'}


@pytest.mark.parametrize('words', ['', 'from chexmix.cli import main; main(["--help"])'])
def test_nothing_large_is_imported_before_it_is_used(words):
    program = f'import sys, atexit, chexmix; atexit.register(lambda: print(*sys.modules)); {words}'
    done = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True)
    loaded = {name.partition('.')[0] for name in done.stdout.splitlines()[-1].split()}
    assert done.returncode == 0 and 'chexmix' in loaded and not loaded & HEAVY, done.stderr


def test_a_report_imports_no_training(images):
    "What a report of a PNG needs is torch, transformers and the network; nothing of training or evaluation."
    program = 'import sys; from chexmix.cli import main; main(sys.argv[1:]); print(*sys.modules)'
    command = [sys.executable, '-c', program, 'report', str(images/'a.png'), '--new', '4']
    done = subprocess.run(command, capture_output=True, text=True)
    loaded = {name.partition('.')[0] for name in done.stdout.splitlines()[-1].split()}
    unwanted = {'spacy', 'nltk', 'fastai', 'sklearn', 'matplotlib', 'pandas', 'datasets', 'torchmetrics'}
    assert 'torch' in loaded and not loaded & unwanted, done.stderr


def test_the_command_of_the_shell_ends_with_its_exit_code(images):
    "It does not wait until Python took down all modules; what was registered for the end runs nevertheless."
    program = 'import atexit, chexmix.cli as c; atexit.register(print, "registered"); c.console()'
    for name, code in (('a.png', 0), ('nowhere.png', 2)):
        command = [sys.executable, '-c', program, 'report', str(images/name)]
        ended = subprocess.run(command, capture_output=True, text=True)
        assert ended.returncode == code, ended.stderr
        assert ended.stdout.endswith('registered\n') and (name in ended.stdout) == (code == 0)


def test_a_reader_that_stops_is_no_fault():
    command = f'"{sys.executable}" -c "{PROGRAM}" evaluate --help | true; echo ${{PIPESTATUS[0]}}'
    done = subprocess.run(['bash', '-c', command], capture_output=True, text=True)
    assert done.stdout.strip() in ('0', '141') and not done.stderr


def examples_of_help():
    "Every example that `chexmix … --help` shows, in an order in which each finds what it needs."
    from chexmix.cli import build_parser
    actions = [a for a in build_parser()._actions if getattr(a, 'choices', None)]
    parsers = list(actions[0].choices.values())
    lines = [line for parser in parsers for line in parser.epilog.splitlines()]
    return [line.strip() for line in lines if line.startswith('  chexmix ')]


def test_every_example_of_the_help_runs_as_it_stands(own_run, tmp_path, monkeypatch, capsys):
    "After one another in an empty folder; `try` is a copy of a run. Demo and explorer have their own tests."
    from chexmix.classify import evaluate_classify
    from chexmix.report import evaluate_report
    monkeypatch.setenv('CHEXMIX_RUNS', str(tmp_path/'runs'))
    monkeypatch.chdir(tmp_path)
    shutil.copytree(own_run, tmp_path/'runs'/'try')
    run = tmp_path/'runs'/'try'
    (run/'results'/'retrieve.json').unlink(missing_ok=True)
    # `pack` wants a probe, and reports that were evaluated.
    evaluate_classify(run, ['stage2'], most=40, ratios=(0,))
    evaluate_report(run, ['stage2'], most=16, ratios=(0,))
    examples = examples_of_help()
    assert len(examples) > 15
    for example in examples:
        words = shlex.split(example)[1:]
        if words[0] in ('demo', 'explore'): continue
        assert main(words) == 0, (example, capsys.readouterr().err)
    written = {path.name for path in tmp_path.iterdir()}
    assert {'filled.png', 'codes.png', 'reports.jsonl', 'findings.csv'} <= written


def test_a_table_of_images_and_texts_becomes_a_run(tmp_path, capsys):
    "A table with two columns and one broken image goes through tokenizers and stage 1."
    rows = []
    for k in range(60):
        study = save_phantom(tmp_path/f'{k}.png', 5, k)
        rows.append(dict(path=f'{k}.png', text=study.findings_text))
    (tmp_path/'0.png').write_bytes(b'\x89PNG broken')
    pd.DataFrame(rows).to_csv(tmp_path/'table.csv', index=False)
    few = ['--set', 'tokenizer_steps=6', '--set', 'stage1_steps=3']
    run, data = tmp_path/'run', str(tmp_path/'table.csv')
    assert main(['pretrain', '--preset', 'tiny', '--run', str(run), '--data', data, *few]) == 0
    assert len(pd.read_csv(run/'quarantine.csv')) == 1 and (run/'stage1'/'model.safetensors').exists()
    shutil.rmtree(run)


def test_a_run_that_was_moved_works(tmp_path, capsys):
    "Its images are found where it lies now, and its data have the same hash as before."
    from chexmix.tokenizer import open_studies, share_tokens
    few = ['--set', 'tokenizer_steps=6', '--set', 'n_studies=40']
    assert main(['tokenizer', '--preset', 'tiny', '--run', str(tmp_path/'old'), *few]) == 0
    before = open_studies(tmp_path/'old')[1]
    (tmp_path/'old').rename(tmp_path/'new')
    store, info = open_studies(tmp_path/'new')
    assert info == before and all(path.startswith(f'{tmp_path}/new/phantoms') for path in store['path'])
    shared = share_tokens(tmp_path/'shared', tmp_path/'new', 1)
    for run in (tmp_path/'new', shared):
        assert all(os.path.exists(path) for path in open_studies(run)[0]['path'])
        for path in run.rglob('*.csv'): assert f'{tmp_path}/old' not in path.read_text()
        assert main(['tokenizer', '--run', str(run)]) == 0


def test_audit_says_what_is_wrong(tmp_path, capsys):
    "One image twice under two patients in two splits, one broken file."
    for k in range(4): save_phantom(tmp_path/f'{k}.png', 7, 3 * k)
    shutil.copy(tmp_path/'0.png', tmp_path/'4.png')
    (tmp_path/'5.png').write_bytes(b'no image')
    rows = []
    for k in range(6):
        split = 'test' if k == 4 else 'train'
        rows.append(dict(path=f'{k}.png', patient_id=f'p{k}', split=split, report='Clear lungs.'))
    pd.DataFrame(rows).to_csv(tmp_path/'table.csv', index=False)
    assert main(['audit', str(tmp_path/'table.csv'), '-o', str(tmp_path/'audit')]) == 0
    printed = capsys.readouterr().out
    assert '1 files set aside' in printed and 'Pleural Effusion' in printed
    found = pd.read_csv(tmp_path/'audit'/'audit.csv', index_col=0).found
    assert found['… in several splits'] == 2 and found['cannot be read'] == 1
    assert (tmp_path/'audit'/'audit.png').exists()


def write_collection(folder):
    "Four studies with reports by a split file, one with a caption; a word is removed from each report."
    folder.mkdir()
    rows = []
    for k in range(5):
        save_phantom(folder/f'{k}.png', 7, 3 * k)
        kind = 'caption' if k == 4 else 'report'
        rows.append(dict(path=f'{k}.png', study_id=f's{k}', patient_id=f'p{k}', text_kind=kind,
                         findings_text=f'Lungs XXXX clear, {"abcde"[k]}.'))
    pd.DataFrame(rows).to_csv(folder/'metadata.csv', index=False)
    (folder/'split.csv').write_text('study_id,split\ns0,train\ns1,train\ns2,valid\ns3,test\n')


def test_audit_of_a_collection_with_its_own_split(tmp_path, capsys):
    "The options choose texts, split and removed words; what was audited is what is trained on."
    root, out = tmp_path/'collection', tmp_path/'audit'
    write_collection(root)
    words = ['audit', str(root), '-o', str(out), '--text-kind', 'report', '--marks', 'drop']
    assert main([*words, '--split', str(root/'split.csv')]) == 0
    printed = capsys.readouterr().out
    assert "1 images have no text of kind 'report'" in printed and 'train 2 images' in printed
    assert f'--data {tmp_path}/audit/manifest.csv' in printed
    manifest = read_table(tmp_path/'audit'/'manifest.csv')
    assert manifest['split'].tolist() == ['train', 'train', 'valid', 'test']
    assert manifest.findings_text[0] == 'Lungs clear, a.'


WRONG_CHOICES = {  # options of the audit, and words of the one line that they end in
    'a split file that is not there': ('--split {tmp}/none.csv', 'none.csv: No such file'),
    'a split of other studies': ('--split {tmp}/other.csv', 'gives a split to no study of the table'),
    'a kind that no text has': ('--text-kind letter', "no text_kind 'letter', only 4 report, 1 caption"),
    'another policy': ('--marks keep', "invalid choice: 'keep'"),
}


@pytest.mark.parametrize('name', WRONG_CHOICES)
def test_wrong_choices_for_an_audit(name, tmp_path, capsys):
    options, words = WRONG_CHOICES[name]
    write_collection(tmp_path/'collection')
    (tmp_path/'other.csv').write_text('study_id,split\nx,train\n')
    command = ['audit', str(tmp_path/'collection'), '-o', str(tmp_path/'audit')]
    try: code = main([*command, *options.format(tmp=tmp_path).split()])
    except SystemExit as e: code = e.code
    error = capsys.readouterr().err
    assert code != 0 and words in error
    assert len(error.strip().splitlines()) == 1 and not (tmp_path/'audit').exists()


def test_demo_on_a_table_named_from_here(tmp_path, monkeypatch, capsys):
    """The whole demo at preset tiny under a budget of time, as `make gpu` calls it, on a table.

    The path of the table is relative. Weights lie in pieces beside the run. A second call does nothing."""
    rows = []
    for k in range(80):
        study = save_phantom(tmp_path/f'{k}.png', 6, k)
        rows.append(dict(path=f'{k}.png', patient_id=study.patient_id, report=study.findings_text))
    pd.DataFrame(rows).to_csv(tmp_path/'table.csv', index=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('CHEXMIX_RUNS', str(tmp_path/'runs'))
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '')  # its checks and speeds have a command of their own
    monkeypatch.setenv('PATH', str(Path(sys.executable).parent), prepend=os.pathsep)
    run, words = tmp_path/'runs'/'tiny', ['--data', 'table.csv', '--notebooks', str(root/'nbs')]
    script = ['bash', root/'docs'/'gpu.sh', 'tiny', '.6', '0', *words]
    called = subprocess.run(script, capture_output=True, text=True)
    assert called.returncode == 0, called.stderr
    printed, page = called.stdout, (run/'index.html').read_text()
    assert 'checks and speeds of a GPU: not run' in printed
    assert 'min left' in printed and 'Findings by a probe' in printed and 'index.html' in printed
    assert page.count('<img') > 10 and 'synthetic' not in page
    assert len(list((run/'notebooks').glob('*.ipynb'))) == 9
    assert len(list((run/'results').glob('*.json'))) >= 6
    log = pd.read_csv(run/'logs'/'stage1.csv')
    assert log.step.max() != PRESETS['tiny'].stage1_steps  # the clock ended it, not its steps
    own, carried = load_model(run)[0], load_model(f'{run}_weights')[0]
    assert own.num_parameters() == carried.num_parameters()
    made = (run/'index.html').stat().st_mtime
    words = ['demo', '--preset', 'tiny', '--run', 'tiny', '--minutes', '.6', *words]
    assert main(words) == 0 and (run/'index.html').stat().st_mtime == made


def test_a_budget_that_trains_nothing_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(['demo', '--preset', 'tiny', '--run', str(tmp_path/'run'), '--minutes', '.3']) == 2
    assert '--minutes 0.3 is too short' in capsys.readouterr().err and not (tmp_path/'run').exists()


COUNTING = """
import time
from pathlib import Path
place = Path(run)/'count.txt'
for i in range(place.read_text().count('\\n') if place.exists() else 0, 100):
    with place.open('a') as file: file.write(f'{i}\\n')
    time.sleep(.1)"""


def test_demo_in_pieces(tmp_path, monkeypatch, capsys):
    """A piece ends when it should and names the command that goes on, until the work of ten seconds is done.

    What was done is not done again, neither the steps of a notebook that keeps them nor a finished notebook.
    """
    import nbformat
    import chexmix.cli as cli
    run, args = tmp_path/'run', ['demo', '--preset', 'tiny', '--piece', '.12']
    run.mkdir()
    for name, source in (('03_tokenizer', "print('once')"), ('count', COUNTING)):
        parameters = nbformat.v4.new_code_cell("run = ''", metadata=dict(tags=['parameters']))
        cells = [parameters, nbformat.v4.new_code_cell(source)]
        notebook = nbformat.v4.new_notebook(cells=cells, metadata=dict(language_info=dict(name='python')))
        nbformat.write(notebook, tmp_path/f'{name}.ipynb')
    monkeypatch.setattr(cli, 'SHORTEST_PIECE', 0.)
    monkeypatch.setattr(cli, 'DEMO', (({'03_tokenizer': {}}, 1), ({'count': {}}, 10)))
    args = cli.build_parser().parse_args([*args, '--run', str(run), '--notebooks', str(tmp_path)])
    for piece in range(20):
        try: cli.run_notebooks(args, run)
        except cli.PieceOver: assert cli.end_of_piece(args, run, set()) == 0
        else: break
        assert capsys.readouterr().out.splitlines()[-1] == cli.going_on(args)
    assert piece > 0 and (run/'count.txt').read_text() == ''.join(f'{i}\n' for i in range(100))
    assert {path.name for path in cli.finished_notebooks(run)} == {'03_tokenizer.ipynb', 'count.ipynb'}
    again = cli.build_parser().parse_args(shlex.split(cli.going_on(args))[1:])
    own = dict(function=args.function, parser=args.parser)
    assert vars(again) | own == vars(args)


# Options are honoured or refused, and an input is never replaced

IGNORED = [  # {png} is an image, {tmp} an empty folder, {in} a folder of images
    'report {png} -o {tmp}/reports', 'report {png} -o {tmp}/reports.png', 'report {png} -o {tmp}/out/',
    'retrieve {png} -o {tmp}/out', 'retrieve {png} -o {tmp}/o.html', 'embed {png} -o {tmp}/vectors',
    'embed {png} -o {tmp}/v.txt', 'classify {png} -o {tmp}/c', 'classify {png} -o {tmp}/c.png',
    'inpaint {png} -o {tmp}/o.jpg', 'report -o {tmp}/o.csv', 'classify -o {tmp}/o.csv',
    'report --policy crop', 'retrieve --policy crop', 'inpaint -o {tmp}/o.png', 'report --model stage1',
    'retrieve --text effusion -o {tmp}/o.csv', 'tokenizer -o {tmp}/o']
REPLACING = [
    'report {in}/t.csv -o {in}/t.csv', 'report {in} -o {in}/t.csv', 'report {in}/t.csv -o {tmp}/link.csv',
    'inpaint {png} -o {png}', 'inpaint {in} -o {in}', 'inpaint {in} -o {in}/new', 'tokenizer {png} -o {png}',
    'tokenizer {in} -o {in}', 'retrieve {in}/t.csv -o {in}/t.csv', 'embed {in} -o {in}/v.parquet',
    'classify {in}/t.csv -o {in}/t.csv', 'audit {in}/images.csv -o {in}', 'audit {in} -o {in}',
    'pack -o {in}']


@pytest.fixture
def input_folder(images, tmp_path):
    "A folder with two images and two tables of them, and a link to one table."
    folder = tmp_path/'in'
    folder.mkdir()
    for name in ('a.png', 'c.dcm'): shutil.copy(images/name, folder)
    for name in ('t.csv', 'images.csv'): (folder/name).write_text('path,text\na.png,Clear lungs.\n')
    (tmp_path/'link.csv').symlink_to(folder/'t.csv')
    return folder


@pytest.mark.parametrize('words', IGNORED)
def test_an_output_option_is_honoured_or_refused(words, images, own_run, tmp_path, capsys):
    words = words.format(png=images/'a.png', tmp=tmp_path).split()
    assert main([*words, '--run', str(own_run)]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines[-1].startswith('chexmix: ') and not list(tmp_path.iterdir())


@pytest.mark.parametrize('words', REPLACING)
def test_an_input_is_never_replaced(words, input_folder, own_run, tmp_path, capsys):
    words = words.format(**{'in': input_folder, 'png': input_folder/'a.png', 'tmp': tmp_path}).split()
    before = {p: p.read_bytes() for p in tmp_path.rglob('*') if p.is_file()}
    assert main([*words, '--run', str(own_run)]) == 2
    assert '\n' not in capsys.readouterr().err.strip().split('clinical use.\n')[-1]
    assert {p: p.read_bytes() for p in tmp_path.rglob('*') if p.is_file()} == before


def probabilities(*words, capsys):
    assert main(['classify', *map(str, words)]) == 0
    return capsys.readouterr().out.split()[2:]


def test_classify_honours_policy_folders_tables_and_output(input_folder, tmp_path, capsys):
    "By the weights in the package, which have a probe."
    from chexmix.pipeline import BUNDLED
    square = Image.open(input_folder/'a.png').convert('L').resize((128, 128))
    square.save(tmp_path/'square.png')
    wide = Image.new('L', (220, 128))
    wide.paste(square, (46, 0))
    wide.save(tmp_path/'wide.png')
    model = ('--model', BUNDLED)
    cropped = probabilities(tmp_path/'wide.png', '--policy', 'crop', *model, capsys=capsys)
    assert cropped == probabilities(tmp_path/'square.png', *model, capsys=capsys)
    assert cropped != probabilities(tmp_path/'wide.png', *model, capsys=capsys)
    for given, n in ((input_folder, 2), (input_folder/'t.csv', 1)):
        out = tmp_path/'c.csv'
        assert main(['classify', str(given), '-o', str(out), *map(str, model)]) == 0
        table = pd.read_csv(out)
        assert len(table) == n and table['Pleural Effusion'].between(0, 1).all()


def test_machines_encode_their_parts_and_one_joins_them(tiny_run, tmp_path, monkeypatch, capsys):
    "`--share` on two machines that share a folder, `--merge`: the store of one machine; too early: one line."
    monkeypatch.setenv('CHEXMIX_RUNS', str(tmp_path))
    run = tmp_path/'shared'
    shutil.copytree(tiny_run, run, ignore=shutil.ignore_patterns('store', 'results', 'stage*', 'notebooks'))
    words = ['tokenizer', '--run', 'shared']
    assert main([*words, '--share', '1/2']) == 0
    assert main([*words, '--merge']) == 2
    assert 'part 2/2 is not finished' in capsys.readouterr().err
    assert main([*words, '--share', '3/2']) == 2
    assert main([*words, '--share', '2/2', '--merge']) == 2
    assert capsys.readouterr().err.count('\n') == 2
    assert main([*words, '--share', '2/2']) == 0
    assert main([*words, '--merge']) == 0
    for name in ('info.json', 'part-00000.arrow'):
        assert (run/'store'/name).read_bytes() == (tiny_run/'store'/name).read_bytes()
    assert (run/'results'/'tokenizer.json').exists()
    assert main(['tokenizer', '--run', 'nowhere', '--merge']) == 2 and not (tmp_path/'nowhere').exists()


def test_stage_2_takes_a_finished_stage_1_as_it_was_trained(own_run):
    "Whatever its steps and rate were, and whatever stage 2 is asked for."
    for stage in ('stage1', 'stage2'): shutil.rmtree(own_run/stage)
    words = ['pretrain', '--run', str(own_run)]
    assert main([*words, '--steps', '2', '--lr', '.001']) == 0
    assert main([*words, '--stage', '2', '--steps', '3', '--fresh']) == 0
    saved = read_json(own_run/'stage2'/'settings.json')
    assert saved['steps'] == 3 and saved['first_step'] == 2


def test_evaluations_take_their_size_and_ratios(own_run, capsys):
    "`--most` and `--ratios` reach the records; what a task does not have is refused in one line."
    words = ['evaluate', 'inpaint', '--run', str(own_run), '--models', 'stage1', '--force']
    assert main([*words, '--most', '5', '--ratios', '.5']) == 0
    records = load_records(own_run/'results').query('task == "inpaint" and model == "stage1"')
    assert set(records.n) == {5}
    for wrong in (['--ratios', '2'], ['--most', '-1']): assert main([*words, *wrong]) == 2
    for task in ('retrieve', 'baselines'):
        assert main(['evaluate', task, '--run', str(own_run), '--force', '--ratios', '.5']) == 2
    assert capsys.readouterr().err.count('\n') == 4
