"The demo killed again and again: the same command ends with the records and weights of an undisturbed one."
import json, os, random, signal, subprocess, sys, time
from pathlib import Path

from faults.trials import last_line, number, Trials

from chexmix.core import read_json
from chexmix.records import content_hash

KILLS = 20
NOTEBOOKS = Path(__file__).parents[2]/'nbs'
PROGRAM = 'import sys; from chexmix.cli import main; sys.exit(main())'


def demo_command(folder: Path) -> list[str]:
    options = ['--preset', 'tiny', '--run', str(folder), '--notebooks', str(NOTEBOOKS)]
    return [sys.executable, '-c', PROGRAM, 'demo', *options]


def demo_values(folder: Path) -> str:
    "Every record of the demo, and the weights of both stages."
    weights = content_hash(*(folder/stage/'model.safetensors' for stage in ('stage1', 'stage2')))
    contents = [read_json(path) for path in sorted((folder/'results').glob('*.json'))]
    return json.dumps([weights, [content['records'] for content in contents if 'records' in content]])


def run_demo(folder: Path, log: Path, seconds: float | None = None, whole_group: bool = True) -> int | None:
    "The demo; killed after `seconds`, with its notebooks' processes or alone. None where it was killed."
    with open(log, 'ab') as out:
        process = subprocess.Popen(demo_command(folder), stdout=out, stderr=out, start_new_session=True)
        try: return process.wait(seconds)
        except subprocess.TimeoutExpired: pass
    if whole_group: os.killpg(process.pid, signal.SIGKILL)
    else: process.kill()
    process.wait()


def kill_demo(place: Path, kills: int, seed: int) -> Trials:
    "One demo, killed again and again on its way, against an undisturbed one."
    trials, choice, log = Trials('SIGKILL: demo'), random.Random(f'demo {seed}'), place/'log'
    place.mkdir(parents=True)
    begin = time.monotonic()
    code = run_demo(place/'undisturbed', log)
    if code: raise RuntimeError(last_line(log))
    share = (time.monotonic() - begin) / kills
    for k in range(kills):
        code = run_demo(place/'killed', log, share * choice.uniform(.5, 1.5), whole_group=k % 2 == 0)
        if code is not None: break
    hits = k + (code is None)
    code = run_demo(place/'killed', log)
    fault = f'exit code {code}: {last_line(log)}' if code else None
    if not fault and demo_values(place/'killed') != demo_values(place/'undisturbed'):
        fault = 'another result than undisturbed'
    for _ in range(hits): trials.add(fault)
    return trials

def run(folder: Path, share: float, seed: int, trained: Path):
    yield kill_demo(folder, number(KILLS, share), seed)
