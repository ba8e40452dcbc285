"The kinds of faults, and the record of a campaign."
import importlib, shutil, subprocess, tempfile, time
from dataclasses import asdict
from pathlib import Path

from faults.found import FOUND
from faults.trials import Trials
from scipy.stats import beta

from chexmix.core import read_json, write_json
from chexmix.records import Record

KINDS = 'mutated', 'damaged', 'hostile', 'identifiers', 'limits', 'together', 'full_disk', 'killed', 'demo'


def run(kind: str, share: float, seed: int, trained: Path):
    "The trials of a kind, in a folder that goes away."
    folder = Path(tempfile.mkdtemp())
    try: yield from importlib.import_module(f'faults.{kind}').run(folder/kind, share, seed, trained)
    finally: shutil.rmtree(folder, ignore_errors=True)


def survival(trials: Trials, seed: int) -> Record:
    "The share that survived, with its exact (Clopper-Pearson) 95% interval."
    n, k = trials.tried, trials.survived
    low = beta.ppf(.025, k, n - k + 1) if k else 0.
    high = beta.ppf(.975, k + 1, n - k) if k < n else 1.
    detail = dict(kind=trials.kind, tried=n, survived=k)
    return Record('faults', trials.kind, 'survived', k / n, float(low), float(high), n, seed, detail)


def commit() -> str:
    "The commit of this checkout; '' outside of one."
    command = ['git', '-C', str(Path(__file__).parent), 'rev-parse', '--short', 'HEAD']
    return subprocess.run(command, capture_output=True, text=True).stdout.strip()


def keep(path: Path, trials: Trials, seed: int, seconds: float):
    "Put a kind's row into the record, in place of an earlier one."
    content = read_json(path) if path.exists() else dict(records=[], rows=[])
    data = dict(name='faults on purpose', synthetic=True)
    about = dict(config=dict(preset='tiny'), data=data, command='make faults')
    rows = [row for row in content['rows'] if row['kind'] != trials.kind]
    row = dict(kind=trials.kind, tried=trials.tried, survived=trials.survived, seed=seed,
               seconds=round(seconds), date=time.strftime('%Y-%m-%d'), commit=commit())
    records = [row for row in content['records'] if row['model'] != trials.kind]
    records.append(asdict(survival(trials, seed)))
    found = [dict(kind=kind, found=fault, mended=mended) for kind, fault, mended in FOUND]
    write_json(path, content | about | dict(rows=[*rows, row], records=records, found=found))
