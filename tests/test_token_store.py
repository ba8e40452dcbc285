"The token store under kills: it holds every study once."
import os, shutil, signal, subprocess, sys, time

import numpy as np, pandas as pd, pytest, torch
from PIL import Image

from chexmix.core import get_settings, open_run, read_json, start_run, UserError, write_json
from chexmix.data import read_table
from chexmix.generate import generate_reports
from chexmix.phantom import make_phantom
from chexmix.pretrain import load_model, pretrain
from chexmix.processor import Processor
from chexmix.report_text import report_text
from chexmix.token_store import (
    encode_studies, merge_stores, open_store, plan_store, share_file, study_codes, write_share,
    write_token_store)

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


WRITE_SHARE = '''
from pathlib import Path
from chexmix.core import open_run
from chexmix.data import read_table
from chexmix.processor import Processor
from chexmix.token_store import plan_store, write_share
run, store = Path({run!r}), Path({store!r})
processor, manifest = Processor.from_pretrained(run/'processor'), read_table(run/'manifest.csv')
write_share(plan_store(store, processor, manifest, open_run(run)[1], 4), processor, (2, 3))
'''


def test_machines_share_a_store_though_one_is_killed(tiny_run, tmp_path):
    "Three machines, the second killed: merging names it; when it has finished, all is as by one."
    manifest, settings = read_table(tiny_run/'manifest.csv'), open_run(tiny_run)[1]
    processor = Processor.from_pretrained(tiny_run/'processor')
    stores = [tmp_path/f'machine{k}'/'store' for k in (1, 2, 3)]
    def plan(k, rows=manifest): return plan_store(stores[k - 1], processor, rows, settings, 4)
    code = WRITE_SHARE.format(run=str(tiny_run), store=str(stores[1]))
    process = subprocess.Popen([sys.executable, '-c', code], stdout=subprocess.DEVNULL,
                               env=os.environ | {'OMP_NUM_THREADS': '1'})
    while len(list(stores[1].glob('part-*.arrow'))) < 3 and process.poll() is None: time.sleep(.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    for k in (1, 3): write_share(plan(k), processor, (k, 3))
    assert not share_file(stores[1], (2, 3)).exists()
    with pytest.raises(UserError, match='part 2/3 is not finished'):
        merge_stores(plan(1), stores[1:], processor, settings)
    assert not (stores[0]/'info.json').exists()

    write_share(plan(2), processor, (2, 3))
    damaged = stores[1]/'part-00001.arrow'
    content = damaged.read_bytes()
    damaged.write_bytes(content[:-200])
    with pytest.raises(UserError, match='part-00001.arrow was not as'):
        merge_stores(plan(1), stores[1:], processor, settings)
    damaged.write_bytes(content)
    store = merge_stores(plan(1), stores[1:], processor, settings)
    alone = write_token_store(tmp_path/'alone'/'store', processor, manifest, settings, part_size=4)
    assert store.remove_columns('path')[:] == alone.remove_columns('path')[:]
    for name in ('info.json', 'settings.json', 'hashes.json'):
        assert (stores[0]/name).read_bytes() == (tmp_path/'alone'/'store'/name).read_bytes()


def test_machines_with_other_studies_or_tokenizers_are_refused(tiny_run, tmp_path):
    "Another manifest, another text tokenizer, two ways to divide, an absent folder: one line each."
    manifest, settings = read_table(tiny_run/'manifest.csv')[:12], open_run(tiny_run)[1]
    processor = Processor.from_pretrained(tiny_run/'processor')
    here, there = tmp_path/'here'/'store', tmp_path/'there'/'store'
    def plan(folder, rows=manifest): return plan_store(folder, processor, rows, settings, 4)
    write_share(plan(here), processor, (1, 2))
    done = write_share(plan(there, manifest[::-1]), processor, (2, 2))
    with pytest.raises(UserError, match='was made with studies'):
        merge_stores(plan(here), [there], processor, settings)
    with pytest.raises(UserError, match='no token store at'):
        merge_stores(plan(here), [tmp_path/'nowhere'], processor, settings)
    assert not (tmp_path/'nowhere').exists()
    for path in there.iterdir(): path.unlink()
    said = read_json(write_share(plan(there), processor, (2, 2)))
    write_json(done, said | dict(processor='0' * 12))
    with pytest.raises(UserError, match='by other tokenizers'):
        merge_stores(plan(here), [there], processor, settings)
    done.rename(done.with_name('share-2-of-3.json'))
    with pytest.raises(UserError, match='2 ways to divide'):
        merge_stores(plan(here), [there], processor, settings)


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
    reports = generate_reports(model, study_codes(store), max_new_tokens=8)
    assert len(reports) == 7 and all(reports)


def test_two_images_where_they_do_not_fit(tiny_run, tmp_path, capsys):
    "A context that is too short for both gives each image a sequence; a model of one image refuses two."
    _, processor, store = two_view_run(tiny_run, tmp_path/'short', context=60)
    assert 'each image has a sequence of its own' in capsys.readouterr().out
    assert len(store) == 13 and 'second_codes' not in store.column_names
    model, _ = load_model(tiny_run, 'stage1')
    with pytest.raises(UserError, match='reads 1 image a study, and is given 2'):
        generate_reports(model, torch.tensor([[*store[0]['codes'], *store[1]['codes']]]))
