"What all kinds of faults share: counting, and processes that may die."
import multiprocessing, os, signal
from dataclasses import dataclass, field
from pathlib import Path

# Children are forked from a process that has imported everything and computed nothing:
# a death costs a second, not ten.
processes = multiprocessing.get_context('forkserver')
processes.set_forkserver_preload(['chexmix.pretrain', 'chexmix.pipeline'])


HANGS = 999  # in place of an exit code


@dataclass
class Trials:
    "How often a kind of fault was tried, and what went wrong."
    kind: str
    tried: int = 0
    failures: list[str] = field(default_factory=list)

    def add(self, failure: str | None):
        "Count a trial; `failure` says what went wrong, if anything."
        self.tried += 1
        if failure: self.failures.append(failure)

    @property
    def survived(self) -> int: return self.tried - len(self.failures)


def number(full: int, share: float) -> int:
    "How many trials a share of the campaign has: at least two."
    return max(2, round(full * share))


def silence(log: Path):
    "Send what this process and its children print to a file."
    file = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    for stream in (1, 2): os.dup2(file, stream)


def in_child(log: Path, function, *args):
    silence(log)
    os.environ['CHEXMIX_QUIET'] = '1'
    function(*args)


def start(function, *args, log: Path):
    "Start a function in a process of its own."
    child = processes.Process(target=in_child, args=(log, function, *args))
    child.start()
    return child


def exit_code(function, *args, log: Path, seconds: float = 300) -> int:
    "Run a function in a process of its own; `HANGS` where it does not end."
    child = start(function, *args, log=log)
    child.join(seconds)
    if child.exitcode is None:
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        return HANGS
    return child.exitcode


def last_line(log: Path) -> str:
    lines = log.read_text(errors='replace').strip().splitlines() if log.exists() else []
    return lines[-1][:300] if lines else ''
