"""What must hold of the repository: exports in step, clean notebooks, plain lines, no upward import.

As a script it prints every fault and ends with exit code 1 where there is one.
"""
import ast, os, re, shutil, subprocess, sys, tempfile
from contextlib import contextmanager
from pathlib import Path

import nbformat

root = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(root/'docs'))
from notebooks import imported_modules, in_order, module_name, readme

LONGEST, LONG, LONG_SHARE = 110, 100, .05  # characters; at most this share of the lines may be over LONG
LONGEST_NESTED, MOST_PARAMETERS = 88, 8
COMPREHENSIONS = ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp


# exports

@contextmanager
def fresh_copy():
    "A temporary folder with the notebooks and the settings, and no package yet."
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        for path in (root/'settings.ini', root/'pyproject.toml', *in_order(root/'nbs')):
            target = copy/path.relative_to(root)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)
        yield copy


def call(
    command: str,  # an nbdev command
    folder: Path,  # where it finds settings.ini
):
    "Run an nbdev command in `folder`. (Under `IN_TEST`, which nbdev_test sets, it would do nothing.)"
    env = {k: v for k, v in os.environ.items() if k != 'IN_TEST'}
    program = Path(sys.executable).with_name(command)
    subprocess.run([program], cwd=folder, env=env, check=True, capture_output=True, text=True)


def python_files(
    package: Path,
) -> dict[str, bytes]:  # path below the package → content
    paths = [p for p in package.rglob('*.py') if p.parent.name != 'bundled']  # code saved with weights
    return {str(p.relative_to(package)): without_bundled(p.read_bytes()) for p in paths}


def without_bundled(content: bytes) -> bytes:
    "Without nbdev's index of the code that lies beside the packed weights."
    return b''.join(x for x in content.splitlines(keepends=True) if b"'chexmix.bundled." not in x)


def drifted() -> list[str]:
    "Modules that differ from what the notebooks export, and modules that no notebook exports."
    with fresh_copy() as copy:
        call('nbdev_export', copy)
        exported = python_files(copy/'chexmix')
    found = python_files(root/'chexmix')
    for files in (exported, found): files.pop('__init__.py', None)  # the version, and what an import does
    return sorted(name for name in exported.keys() | found.keys() if exported.get(name) != found.get(name))


def unclean() -> list[str]:
    "Notebooks that `nbdev_clean` would change, as paths below nbs/."
    with fresh_copy() as copy:
        call('nbdev_clean', copy)
        places = sorted(p.relative_to(root/'nbs') for p in in_order(root/'nbs'))
        return [str(p) for p in places if (root/'nbs'/p).read_bytes() != (copy/'nbs'/p).read_bytes()]


def machine_paths() -> list[str]:
    "Notebooks with an output that names a place on somebody's machine, as a warning of a library does."
    found = []
    for path in in_order(root/'nbs'):
        cells = nbformat.read(path, as_version=4).cells
        outputs = [str(output) for cell in cells for output in cell.get('outputs', ())]
        if any('site-packages' in output for output in outputs): found.append(path.name)
    return found


# imports

def upward_imports() -> list[str]:
    "Numbered notebooks that need one with a higher number, directly or by way of a room."
    needs = {module_name(p): imported_modules(p) for p in in_order(root/'nbs')}
    number = {module_name(p): p.name[:2] for p in in_order(root/'nbs') if p.name[:2].isdigit()}

    def reached(module, seen):
        for other in needs.get(module, set()) - seen:
            seen.add(other)
            reached(other, seen)
        return seen
    pairs = [(m, other) for m in number for other in sorted(reached(m, set())) if other in number]
    return [f'{m} needs {other}' for m, other in pairs if number[other] > number[m]]


# lines

def code() -> dict[str, dict[str, str]]:
    "Kind (modules, cells, tests) → file → its Python code."
    modules = [root/'chexmix'/name for name in sorted(python_files(root/'chexmix')) if name != '_modidx.py']
    others = [*sorted((root/'tests').rglob('*.py')), *sorted((root/'docs').glob('*.py')), root/'setup.py']
    cells = {}
    for path in in_order(root/'nbs'):
        sources = [c.source for c in nbformat.read(path, as_version=4).cells if c.cell_type == 'code']
        cells[str(path.relative_to(root))] = '\n'.join(re.sub(r'(?m)^[%!].*$', '', s) for s in sources)
    return dict(modules=contents(modules), cells=cells, tests=contents(others))


def contents(paths: list[Path]) -> dict[str, str]:
    return {str(p.relative_to(root)): p.read_text(encoding='utf-8') for p in paths if p.exists()}


def nested_comprehensions(tree: ast.AST, text: str) -> list[str]:
    "The beginning of each comprehension that holds another one and is longer than `LONGEST_NESTED`."
    found = []
    for node in ast.walk(tree):
        if not isinstance(node, COMPREHENSIONS): continue
        segment = ast.get_source_segment(text, node) or ''
        has_inner = any(isinstance(x, COMPREHENSIONS) for x in ast.walk(node) if x is not node)
        if has_inner and len(segment) > LONGEST_NESTED: found.append(segment[:60])
    return found


def crowded_functions(tree: ast.AST) -> list[str]:
    "Functions with more than `MOST_PARAMETERS` parameters (`self` and `**` aside)."
    found = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.FunctionDef): continue
        names = [a.arg for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
        if len([n for n in names if n not in ('self', 'cls')]) > MOST_PARAMETERS: found.append(node.name)
    return found


def hand_written(text: str) -> list[str]:
    "The lines of a file, without empty ones and nbdev's (the docstring of a module, `__all__`)."
    lines = text.splitlines()
    for node in ast.parse(text).body:
        docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        if docstring or (isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == '__all__'):
            lines[node.lineno - 1:node.end_lineno] = [''] * (node.end_lineno - node.lineno + 1)
    return [line for line in lines if line.strip()]


def dense_lines() -> list[str]:
    "Every breach of the limits above."
    faults = []
    for kind, files in code().items():
        lengths = []
        for name, text in files.items():
            lines = hand_written(text)
            lengths += map(len, lines)
            too_long = [line for line in lines if len(line) > LONGEST]
            faults += [f'{name}: {len(line)} characters: {line.strip()[:60]}…' for line in too_long]
            tree = ast.parse(text)
            faults += [f'{name}: nested comprehension: {x}…' for x in nested_comprehensions(tree, text)]
            crowded = crowded_functions(tree)
            faults += [f'{name}: {x} has more than {MOST_PARAMETERS} parameters' for x in crowded]
        share = sum(length > LONG for length in lengths) / max(1, len(lengths))
        if share > LONG_SHARE:
            limit = f'at most {LONG_SHARE:.0%} may be'
            faults.append(f'{kind}: {share:.1%} of the lines are over {LONG} characters, {limit}')
    return faults


def main() -> int:
    mend = 'run nbdev_export (never edit chexmix/ by hand)'
    faults = [f'chexmix/{name} is not what the notebooks export: {mend}' for name in drifted()]
    faults += [f'nbs/{name} is not clean: run nbdev_clean --fname nbs/{name}' for name in unclean()]
    if (root/'README.md').read_text(encoding='utf-8') != readme():
        faults.append('README.md is not what nbs/index.ipynb says: run make readme')
    faults += [f'{name} shows a path of this machine: mend what warns there' for name in machine_paths()]
    faults += upward_imports() + dense_lines()
    print('\n'.join(faults) or f'{len(in_order())} notebooks: clean, exported as they stand, in plain lines')
    return bool(faults)


if __name__ == '__main__': sys.exit(main())
