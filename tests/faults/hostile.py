"""Files made to harm: pickles, archives, paths that leave their folder, links, formulas, HTML.

Nothing in them runs, nothing is written outside, and text is shown as text.
"""
import gzip, io, json, os, pickle, re, shutil, zipfile
from pathlib import Path

import numpy as np, pandas as pd, torch
from faults.trials import Trials
from radiograph_files import gray_pixels, picture

from chexmix.batch_inference import find_images, picture_places, plain_cells, process_files, WRITERS
from chexmix.core import only_writer, UserError, write_json
from chexmix.data import read_table
from chexmix.pipeline import Answer, open_model
from chexmix.radiograph import read_radiograph
from chexmix.records import load_study_values
from chexmix.released import load_plain
from chexmix.report import example_cards
from chexmix.training_loop import checksum, read_checkpoint


def refusal(function, *args) -> str | None:
    "What is wrong with the way a call is refused; None for a `UserError` of one line."
    try: function(*args)
    except UserError as e: return 'more than one line' if '\n' in str(e) else None
    except Exception as e: return f'{type(e).__name__}: {str(e)[:200]}'
    return 'it was taken'


# pickles

class Command:
    "Runs a command where it is unpickled."
    def __init__(self, function, *args): self.call = function, args
    def __reduce__(self): return self.call


def commands(mark: Path) -> list[Command]:
    "What would leave the file `mark` if it ran."
    script = f'open({str(mark)!r}, "w")'
    return [Command(os.system, f'touch {mark}'), Command(eval, script), Command(exec, script),
            Command(os.mkdir, str(mark)), Command(shutil.copy, __file__, str(mark))]


def pickled(payload, path: Path, kind: str) -> Path:
    "A file with the payload, as each of our readers takes it."
    if kind == 'npz':
        np.savez(path, index=np.array([payload], object))
        return path
    if kind == 'torch': torch.save(dict(model=payload, done=1), path)
    else: path.write_bytes(pickle.dumps(payload))
    return path


def load_checkpoint(path: Path):
    "As a training would; its name has the right checksum."
    folder = path.with_suffix('.training')
    folder.mkdir()
    shutil.copy(path, folder/f'step-00000001-{checksum(path):08x}.pt')
    if read_checkpoint(folder) is None: raise UserError('no checkpoint')


def load_as_values(path: Path):
    (path.parent/'values').mkdir(exist_ok=True)
    shutil.copy(path, path.parent/'values'/'classify.npz')
    load_study_values(path.parent/'values')


def load_as_weights(path: Path, trained: Path):
    "The file in place of the weights of a stage, with the seal of the original taken off."
    folder = path.with_suffix('.stage')
    shutil.copytree(trained/'stage2', folder)
    (folder/'hashes.json').unlink(missing_ok=True)
    shutil.copy(path, folder/'model.safetensors')
    open_model(folder)


def pickles(folder: Path, trained: Path, trials: Trials):
    readers = {'checkpoint': ('torch', load_checkpoint), 'release': ('torch', load_plain),
               'bare release': ('bare', load_plain), 'values': ('npz', load_as_values),
               'picture': ('bare', lambda path: read_radiograph(path, 16)),
               'weights': ('bare', lambda path: load_as_weights(path, trained))}
    for name, (kind, read) in readers.items():
        mark = folder/'ran'
        for k, payload in enumerate(commands(mark)):
            path = pickled(payload, folder/f'{name}{k}.{"npz" if kind == "npz" else "pt"}', kind)
            fault = refusal(read, path)
            if mark.exists(): fault = 'its command ran'
            trials.add(fault and f'pickle as {name}, {k}: {fault}')


# archives, and paths that leave their folder

def packed_zeros(megabytes: int) -> bytes:
    packed = io.BytesIO()
    with gzip.open(packed, 'wb', compresslevel=1) as file:
        file.write(b'path,text\n')
        for _ in range(megabytes): file.write(bytes(2**20))
    return packed.getvalue()


def archives(folder: Path, trials: Trials):
    with zipfile.ZipFile(folder/'slip.zip', 'w') as file: file.writestr('../../escaped.csv', 'path\na.png\n')
    (folder/'zip.csv').write_bytes((folder/'slip.zip').read_bytes())
    (folder/'bomb.csv.gz').write_bytes(packed_zeros(700))
    (folder/'twice.csv.gz').write_bytes(gzip.compress(packed_zeros(20)))
    for name in ('slip.zip', 'zip.csv', 'bomb.csv.gz', 'twice.csv.gz'):
        fault = refusal(read_table, folder/name)
        if (folder.parent/'escaped.csv').exists(): fault = 'it left its folder'
        trials.add(fault and f'{name}: {fault}')


LEAVING = ('../x.png', '../../etc/passwd', 'a/../../x.png', './../x.png', 'a/b/../../../x.png')


def leaving_paths(folder: Path, trials: Trials):
    for k, path in enumerate(LEAVING):
        table = folder/f'leaving{k}.csv'
        table.write_text(f'path,text\n{path},Clear lungs.\n')
        trials.add(refusal(read_table, table))
    for k, name in enumerate(('..', '...', '-rf', '~', '%2e%2e%2fx', '..\\x', ' ', '\u202e')):
        (folder/'odd').mkdir(exist_ok=True)
        path = picture(folder/'odd'/'a.png', gray_pixels()).rename(folder/'odd'/f'{name}.png')
        place = picture_places([str(path)], folder/'out', 'masked')[str(path)]
        trials.add(None if place.resolve().parent == folder/'out' else f'{name}: {place}')


# links

SIDE_FILES = '.out.csv.journal', '.out.csv.reading', 'out.csv.quarantine.csv', '.out.csv.lock', 'out.csv'


def links(folder: Path, trials: Trials):
    "Links planted where a call writes: what they point at stays as it is."
    victim = folder/'victim'
    images = folder/'linked'
    images.mkdir()
    picture(images/'a.png', gray_pixels())
    for k, name in enumerate(SIDE_FILES):
        place = folder/f'links{k}'
        place.mkdir()
        victim.write_text('untouched')
        (place/name).symlink_to(victim)
        try: write_answers(images, place/'out.csv')
        except (UserError, OSError): pass
        trials.add(None if victim.read_text() == 'untouched' else f'{name}: written through a link')
    (images/'again').symlink_to(images)
    (images/'gone.png').symlink_to(folder/'nowhere')
    found = find_images([images])
    trials.add(None if len([p for p in found if p.endswith('a.png')]) == 1 else f'a loop of links: {found}')


def write_answers(images: Path, out: Path):
    "What every command with `-o` does, by a job that computes nothing."
    from faults.small import brightness_job
    process_files(brightness_job(), [images], out, batch=1)


# formulas and HTML

FORMULAS = (
    '=1+1', '+1', '-1+1', '@SUM(1)', "=cmd|' /C calc'!A0", '\t=1', '\r=1', '=HYPERLINK("http://x","y")')


def formulas(folder: Path, trials: Trials):
    for text in FORMULAS:
        table = pd.DataFrame(dict(path=[text + '.png'], report=[text]))
        with open(folder/'formula.csv', 'w'): pass
        WRITERS['.csv'](table, folder/'formula.csv')
        cells = pd.read_csv(folder/'formula.csv', dtype=str, keep_default_na=False).iloc[0]
        computed = [cell for cell in cells if cell.startswith(('=', '+', '-', '@', '\t', '\r'))]
        trials.add(f'{computed[0]!r} is a formula' if computed else None)
    numbers = plain_cells(pd.DataFrame(dict(path=['a'], score=[-1.5])))
    trials.add(None if numbers.score[0] == -1.5 else 'a number became a text')


MARKUP = (
    '<script>alert(1)</script>', '<img src=x onerror=alert(1)>', '"><svg onload=alert(1)>',
    '</td></table><h1>x', '<a href="javascript:alert(1)">x</a>', '&lt;script&gt;', '$\\frac{1$',
    '$$', '\\n\x00', '{{7*7}}')


def tags_in(page: str, text: str) -> bool:
    "Whether a page holds the text as markup."
    return bool(re.search(r'<(script|svg|h1|a )|onerror=alert\(1\)>', page.replace('<svg xmlns', '')))


def markup(folder: Path, trials: Trials):
    image = torch.zeros(8, 8)
    for text in MARKUP:
        answer = Answer({'radiograph': image}, dict(path=text, report=text, findings={text: .5}))
        trials.add(f'{text!r} is markup in a notebook' if tags_in(answer._repr_html_(), text) else None)
        try: fault = None if answer._repr_png_()[:4] == b'\x89PNG' else 'no picture'
        except Exception as e: fault = f'{text!r} in a picture: {type(e).__name__}: {e}'
        trials.add(fault)
        page = pd.DataFrame(dict(report=[text])).to_html()
        trials.add(f'{text!r} is markup in a table' if tags_in(page, text) else None)


def run(folder: Path, share: float, seed: int, trained: Path):
    trials = Trials('hostile pickles, archives, paths, links, formulas, HTML')
    folder.mkdir(parents=True)
    folder = folder.resolve()
    pickles(folder, trained, trials)
    archives(folder, trials)
    leaving_paths(folder, trials)
    links(folder, trials)
    formulas(folder, trials)
    markup(folder, trials)
    yield trials
