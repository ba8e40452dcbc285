"The token store under kills: it holds every study once."
import os, signal, subprocess, sys, time

import pytest

from chexmix.core import open_run, read_json, UserError
from chexmix.data import read_table
from chexmix.processor import Processor
from chexmix.token_store import open_store, write_token_store

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
