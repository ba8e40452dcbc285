"Paired differences: what two systems have in common cancels, and intervals hold what they promise."
from dataclasses import astuple

import numpy as np
import pytest

from chexmix.core import UserError
from chexmix.metrics import (
    bootstrap_interval, cider_d, f1, macro, paired_interval, paired_verdict, patient_weights, plain_words,
    seed_shares, weighted_auroc, weighted_mean)


def test_equal_systems_differ_by_nothing():
    x = np.random.default_rng(0).normal(size=50)
    i = paired_interval([weighted_mean(x)] * 3, [weighted_mean(x)] * 3, range(50))
    assert (i.value, i.low, i.high) == (0, 0, 0)
    assert paired_verdict(i) == 'no difference shown'


def test_one_seed_is_the_bootstrap_of_the_difference():
    g = np.random.default_rng(1)
    a, b, patients = g.normal(size=60), g.normal(size=60), np.arange(60) // 3
    paired = paired_interval([weighted_mean(a)], [weighted_mean(b)], patients, seed=4)
    of_difference = bootstrap_interval(weighted_mean(a - b), patients, seed=4)
    np.testing.assert_allclose(astuple(paired), astuple(of_difference), atol=1e-12)


def test_swapped_systems_swap_the_sign():
    g = np.random.default_rng(2)
    truth, noise = g.integers(0, 2, (80, 3)).astype(float), g.normal(size=(2, 80, 3))
    systems = [[macro(weighted_auroc, truth, truth + k * n) for n in noise] for k in (1, 3)]
    there = paired_interval(*systems, range(80))
    back = paired_interval(*systems[::-1], range(80))
    assert there.value > 0 and paired_verdict(there) == 'better' and paired_verdict(back) == 'worse'
    np.testing.assert_allclose([there.low, there.high], [-back.high, -back.low], atol=1e-12)


def test_studies_of_a_patient_are_drawn_together():
    weights = patient_weights(['a', 'a', 'b', 'c', 'c', 'c'], 200)
    assert (weights[:, 0] == weights[:, 1]).all() and (weights[:, 3] == weights[:, 5]).all()
    assert (weights[:, [0, 2, 3]].sum(1) == 3).all()


def test_few_seeds_widen_the_interval_as_students_t():
    g = np.random.default_rng(3)
    held = []
    for repetition in range(300):
        of_seeds = [weighted_mean(np.full(5, x)) for x in g.normal(size=3)]
        i = paired_interval(of_seeds, [weighted_mean(np.zeros(5))] * 3, range(5), 300, repetition)
        held.append(i.low <= 0 <= i.high)
    assert .9 < np.mean(held) <= 1
    np.testing.assert_allclose(seed_shares(5).sum(1), 1)
    assert (seed_shares(1) == 1).all()


def test_seeds_that_cannot_be_paired_are_an_error():
    one = weighted_mean(np.ones(3))
    for systems in (([one], [one, one]), ([], [])):
        with pytest.raises(UserError, match='cannot be paired'): paired_interval(*systems, range(3))


def test_undefined_metrics_give_no_verdict():
    nothing = f1(np.zeros((4, 2), bool), np.zeros((4, 2), bool))
    assert paired_verdict(paired_interval([nothing], [nothing], range(4))) == 'no interval'


def test_plain_words_and_cider_know_empty_and_equal_reports():
    texts = ['1. Heart size normal. 2. No effusion.', 'Large left effusion, no pneumothorax.', '', '...']
    plain = [plain_words(text) for text in texts]
    assert plain == ['heart size normal . no effusion .', 'large left effusion no pneumothorax .', '', '']
    scores = cider_d(plain, plain)
    assert scores[:2].min() > 9.9 and (scores[2:] == 0).all()  # nothing has nothing in common with itself
    assert cider_d(plain[:1], plain[:1])[0] == 0  # of a single reference no word is rare
