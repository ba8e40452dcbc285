"The demo killed again and again: the same command ends with the records and weights of an undisturbed one."
import json, os, random, re, signal, subprocess, sys, threading, time
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


def steps_begun(log: Path) -> dict[int, str]:
    "The steps of the demo that its log names, as `[3/7] 05_pretrain`."
    steps = re.findall(r'^\[(\d+)/\d+\] (.*) ·', log.read_text(), re.M)
    return {int(number): title for number, title in steps}


def run_demo(folder: Path, log: Path, at: tuple = (0, 0.), whole_group: bool = True) -> int | None:
    """The demo's exit code. None where it was killed: so many seconds after the start of a step.

    Killed with the processes of its notebooks, or alone.
    """
    step, seconds = at
    with open(log, 'wb') as out:
        process = subprocess.Popen(demo_command(folder), stdout=out, stderr=out, start_new_session=True)
        while process.poll() is None and step not in steps_begun(log): time.sleep(.1)
        try: return process.wait(seconds if step in steps_begun(log) else None)
        except subprocess.TimeoutExpired: pass
    if whole_group: os.killpg(process.pid, signal.SIGKILL)
    else: process.kill()
    process.wait()


def undisturbed_demo(folder: Path, log: Path) -> dict[int, float]:
    "Seconds that each step of an undisturbed demo takes."
    begun, ended = {}, threading.Event()
    def look():
        while not ended.wait(.1):
            for step in steps_begun(log) if log.exists() else (): begun.setdefault(step, time.monotonic())
    looking = threading.Thread(target=look)
    looking.start()
    try: code = run_demo(folder, log)
    finally:
        ended.set()
        looking.join()
    if code: raise RuntimeError(last_line(log))
    ends = [*list(begun.values())[1:], time.monotonic()]
    return {step: end - begin for (step, begin), end in zip(begun.items(), ends)}


def kill_on_the_way(folder: Path, log: Path, seconds: dict[int, float], choice, most: int) -> tuple[int, str]:
    "How often a demo was killed, up to three times in each step, and the last line of one that failed."
    hits = 0
    for step in sorted(3 * list(seconds)):
        if hits == most: break
        at = step, choice.uniform(0, .8 * seconds[step])
        code = run_demo(folder, log, at, whole_group=hits % 2 == 0)
        if code is not None: return hits, last_line(log) if code else ''
        hits += 1
    return hits, last_line(log) if run_demo(folder, log) else ''


def kill_demo(place: Path, kills: int, seed: int) -> Trials:
    "Demos that are killed again and again on their way, against an undisturbed one."
    trials, choice, log = Trials('SIGKILL: demo'), random.Random(f'demo {seed}'), place/'log'
    place.mkdir(parents=True)
    seconds = undisturbed_demo(place/'undisturbed', log)
    while trials.tried < kills:
        folder = place/f'killed{trials.tried}'
        hits, fault = kill_on_the_way(folder, log, seconds, choice, kills - trials.tried)
        if not fault and demo_values(folder) != demo_values(place/'undisturbed'):
            fault = 'another result than undisturbed'
        for _ in range(max(hits, bool(fault))): trials.add(fault or None)
    return trials


def run(folder: Path, share: float, seed: int, trained: Path):
    yield kill_demo(folder, number(KILLS, share), seed)
