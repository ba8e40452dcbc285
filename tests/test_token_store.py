"The token store under kills: it holds every study once."
import os, shutil, signal, subprocess, sys, time

import numpy as np, pandas as pd, pytest
from PIL import Image

from chexmix.core import get_settings, open_run, read_json, start_run, UserError
from chexmix.data import read_table
from chexmix.generate import generate_study_reports
from chexmix.phantom import make_phantom
from chexmix.pretrain import load_model, pretrain
from chexmix.processor import Processor
from chexmix.report_text import report_text
from chexmix.token_store import all_codes, encode_studies, open_store, write_token_store

WRITE_IN_TWO_PROCESSES = '''
from pathlib import Path
from chexmix.core import open_run
from chexmix.data import read_table
from chexmix.processor import Processor
from chexmix.token_store import write_token_store
run, store = Path({run!r}), Path({store!r})
processor, manifest = Processor.from_pretrained(run/'processor'), read_table(run/'manifest.csv')
write_token_store(store, processor, manifest, open_run(run)[1], workers=2, part_size=6)
'''


def test_killed_store_holds_every_study_once(tiny_run, tmp_path):
    "SIGKILL while two processes write parts of six studies; the same call then finishes."
    folder = tmp_path/'store'
    code = WRITE_IN_TWO_PROCESSES.format(run=str(tiny_run), store=str(folder))
    environment = os.environ | {'OMP_NUM_THREADS': '1'}
    process = subprocess.Popen([sys.executable, '-c', code], stdout=subprocess.DEVNULL, env=environment)
    def n_parts(): return len(list(folder.glob('part-*.arrow')))
    while n_parts() < 3 and process.poll() is None: time.sleep(.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (folder/'info.json').exists()
    assert 3 <= n_parts() < 40

    manifest, settings = read_table(tiny_run/'manifest.csv'), open_run(tiny_run)[1]
    processor = Processor.from_pretrained(tiny_run/'processor')
    store = write_token_store(folder, processor, manifest, settings, part_size=6)
    assert store['study_id'][:] == manifest.study_id.tolist()
    assert store['codes'][:] == open_store(tiny_run/'store')['codes'][:]
    assert read_json(folder/'info.json')['n'] == len(manifest)
    assert not list(folder.glob('.part-*'))

    (folder/'info.json').unlink()
    with pytest.raises(UserError, match='part_size=6, not 7'):
        write_token_store(folder, processor, manifest, settings, part_size=7)


def write_two_views(folder):
    "Six synthetic studies with a frontal and a lateral image, in the layout of `metadata.csv`."
    rows = []
    for k in range(6):
        for view in ('PA', 'LATERAL'):
            study = make_phantom(9, k, 64, view=view)
            name = f'images/iu_{k}_{view}.png'
            (folder/name).parent.mkdir(exist_ok=True)
            Image.fromarray((study.image * 255).astype(np.uint8)).save(folder/name)
            rows.append(dict(study_id=f'iu_{k}', patient_id=f'iu_{k}', path=name, view=view,
                             findings='normal', text_kind='report',
                             findings_text=f'XXXX {study.findings_text}',
                             impression_text=study.impression_text))
    pd.DataFrame(rows).sample(frac=1, random_state=0).to_csv(folder/'metadata.csv', index=False)


def test_both_views_of_a_study_carry_its_report_and_no_other(tiny_run, tmp_path):
    "One row an image, in any order of the table: its text is its own study's, its codes are its own image's."
    write_two_views(tmp_path)
    manifest = read_table(tmp_path/'metadata.csv', text_kind='report', marks='drop')
    processor = Processor.from_pretrained(tiny_run/'processor')
    store = encode_studies(manifest, processor, 200)
    assert store['path'][:] == manifest.path.tolist()
    for row in store:
        study = make_phantom(9, int(row['study_id'].removeprefix('iu_')), 64, with_image=False)
        own = dict(findings_text=study.findings_text, impression_text=study.impression_text)
        assert row['text'] == report_text(own)
        assert row['path'].endswith(f"{row['study_id']}_{row['view']}.png")
        codes = processor.encode_images(processor.read([row['path']]))[0]
        assert row['codes'] == codes.tolist()


def two_view_run(tiny_run, folder, **changes):
    "A run of six studies with two images each, with the tokenizers of `tiny_run`; one has a third image."
    folder.mkdir()
    write_two_views(folder)
    table = pd.read_csv(folder/'metadata.csv')
    further = table[(table.study_id == 'iu_0') & (table['view'] == 'PA')].copy()
    further['path'] = 'images/further.png'
    shutil.copy(folder/'images'/'iu_0_PA.png', folder/'images'/'further.png')
    pd.concat([table, further]).to_csv(folder/'metadata.csv', index=False)
    settings = get_settings('tiny', data=str(folder/'metadata.csv'), images_a_study=2, **changes)
    start_run(folder/'run', settings)
    processor = Processor.from_pretrained(tiny_run/'processor')
    processor.save_pretrained(folder/'run'/'processor')
    manifest = read_table(folder/'metadata.csv', text_kind='report', marks='drop').assign(split='train')
    return folder/'run', processor, write_token_store(folder/'run'/'store', processor, manifest, settings)


def test_a_study_of_two_images_is_learnt_as_one_sequence(tiny_run, tmp_path, capsys):
    "Frontal codes, lateral codes, own report; no image is lost; the weights say that they read two."
    run, processor, store = two_view_run(tiny_run, tmp_path/'two', augmentations=2)
    assert 'as iu_0: the others stand in 1 sequences' in capsys.readouterr().out
    assert sorted(store['study_id'][:]) == sorted([*(f'iu_{k}' for k in range(6)), 'iu_0'])
    paired = [row for row in store if row['second_path']]
    assert len(paired) == 6
    for row in paired:
        assert row['path'].endswith('.png') and row['second_path'].endswith(f"{row['study_id']}_LATERAL.png")
        lateral = processor.encode_images(processor.read([row['second_path']]))[0].tolist()
        assert row['second_codes'] == lateral
        assert [len(codes) for codes in row['variants']] == [32, 32]

    settings = open_run(run)[1]
    pretrain(run, settings, 1, steps=3, batch=4, panels=0)
    model, _ = load_model(run, 'stage1')
    assert model.config.images_a_study == 2
    reports = generate_study_reports(model, [all_codes(row) for row in store], max_new_tokens=8)
    assert len(reports) == 7 and all(reports)


def test_two_images_where_they_do_not_fit(tiny_run, tmp_path, capsys):
    "A context that is too short for both gives each image a sequence; a model of one image refuses two."
    _, processor, store = two_view_run(tiny_run, tmp_path/'short', context=60)
    assert 'each image has a sequence of its own' in capsys.readouterr().out
    assert len(store) == 13 and 'second_codes' not in store.column_names
    model, _ = load_model(tiny_run, 'stage1')
    with pytest.raises(UserError, match='reads 1 image a study, and is given 2'):
        generate_study_reports(model, [[*store[0]['codes'], *store[1]['codes']]])
