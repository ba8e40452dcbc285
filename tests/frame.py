"Is the package what the notebooks export, is every notebook clean, is the README current? Run as a script it prints what is not."
import os, shutil, subprocess, sys, tempfile
from contextlib import contextmanager
from pathlib import Path

root = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(root/'docs'))


def notebooks(
    folder: Path = root/'nbs',
) -> list[Path]:
    "The notebooks of `folder`, in the order they are run."
    return sorted(p for p in folder.glob('*.ipynb') if p.name[0] not in '._')


@contextmanager
def fresh_copy():
    "A temporary folder with the notebooks and the settings, and no package yet."
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        (copy/'nbs').mkdir()
        for p in (root/'settings.ini', root/'pyproject.toml', *notebooks()): shutil.copy(p, copy/p.relative_to(root))
        yield copy


def call(
    command: str,  # an nbdev command
    folder: Path,  # where it finds settings.ini
):
    "Run an nbdev command in `folder`. (Under `IN_TEST`, which nbdev_test sets, it would do nothing.)"
    env = {k: v for k, v in os.environ.items() if k != 'IN_TEST'}
    subprocess.run([Path(sys.executable).with_name(command)], cwd=folder, env=env, check=True, capture_output=True, text=True)


def drifted() -> list[str]:
    "Modules that differ from what the notebooks export, and modules that no notebook exports."
    with fresh_copy() as copy:
        call('nbdev_export', copy)
        exported = {p.name: p.read_bytes() for p in (copy/'chexmix').glob('*.py')}
    found = {p.name: p.read_bytes() for p in (root/'chexmix').glob('*.py')}
    return sorted(name for name in exported.keys() | found.keys() if exported.get(name) != found.get(name))


def unclean() -> list[str]:
    "Notebooks that `nbdev_clean` would change."
    with fresh_copy() as copy:
        call('nbdev_clean', copy)
        return [p.name for p in notebooks() if p.read_bytes() != (copy/'nbs'/p.name).read_bytes()]


def main() -> int:
    from notebooks import readme
    faults = [f'chexmix/{name} is not what the notebooks export: run nbdev_export (never edit chexmix/ by hand)' for name in drifted()]
    faults += [f'nbs/{name} is not clean: run nbdev_clean --fname nbs/{name}' for name in unclean()]
    if (root/'README.md').read_text(encoding='utf-8') != readme(): faults.append('README.md is not what nbs/index.ipynb says: run make readme')
    print('\n'.join(faults) or f'{len(notebooks())} notebooks: clean, and exported as they stand')
    return bool(faults)


if __name__ == '__main__': sys.exit(main())
