"A seeded tenth of the campaign of faults: what `make faults` tries in full."
import pytest
from faults import campaign

CHEAP = dict(mutated=.1, damaged=.1, hostile=1, limits=1, full_disk=.1, together=.1)


@pytest.mark.parametrize('kind', CHEAP)
def test_a_tenth_of_the_faults_is_survived(kind, tiny_run):
    for trials in campaign.run(kind, CHEAP[kind], 0, tiny_run):
        assert trials.tried and not trials.failures, trials.failures[:5]


@pytest.mark.parametrize('work', ('token store', 'report over a folder', 'phantom writing'))
def test_killed_work_goes_on(work, tiny_run, tmp_path):
    from faults.killed import kill_again_and_again
    trials = kill_again_and_again(work, tiny_run, tmp_path/'killed', 2, 0)
    assert not trials.failures, trials.failures[:5]
