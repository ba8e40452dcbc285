"""Faults on purpose, kind by kind, and what must hold after each.

`PYTHONPATH=tests python -m faults` runs all of them and writes `results/faults.json`;
`python -m faults mutated --share .1` a seeded tenth of one kind.
"""
