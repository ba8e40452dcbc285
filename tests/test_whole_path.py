"The whole path: weights load with transformers, and real radiographs go through everything."
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

import chexmix.pretrain as pretraining
from chexmix.core import get_settings
from chexmix.records import load_records
from chexmix.data import check_split
from chexmix.processor import Processor
from chexmix.tokenizer import prepare_data, prepare_run

metadata = Path(__file__).resolve().parents[2]/'shared'/'data'/'open_cxr'/'metadata.csv'


def test_weights_load_with_transformers(tiny_run):
    model = AutoModelForCausalLM.from_pretrained(tiny_run/'stage2')
    processor = Processor.from_pretrained(tiny_run/'stage2')
    assert model.config.layout == processor.layout == Processor.from_pretrained(tiny_run/'processor').layout


missing = 'no real radiographs at ../shared/data/open_cxr (928 public images, not part of the repository)'


@pytest.mark.skipif(not metadata.exists(), reason=missing)
def test_real_radiographs_through_the_whole_path(tmp_path):
    "928 real radiographs, at preset tiny: tokenizers, both stages, four evaluations, baselines, page."
    from chexmix.baselines import ComparisonSettings, evaluate_baselines
    from chexmix.classify import evaluate_classify
    from chexmix.inpaint import evaluate_inpaint
    from chexmix.report import evaluate_report
    from chexmix.results import results_page
    from chexmix.retrieve import evaluate_retrieve
    s = get_settings('tiny', data=str(metadata), stage1_steps=10, stage2_steps=10)
    folder = prepare_run(tmp_path/'real', s)
    manifest = prepare_data(folder, s)
    assert len(manifest) == 928 and check_split(manifest).patients.sum() == 615
    for stage in (1, 2): pretraining.pretrain(folder, s, stage)
    evaluate_classify(folder, most=100, ratios=(0, .5))
    evaluate_inpaint(folder, most=8, ratios=(.5,))
    evaluate_report(folder, most=16, ratios=(0, .9))
    evaluate_retrieve(folder, pool=20)
    few = ComparisonSettings(most=100, ratios=(0, .5), inpaint_most=8, report_most=16, pool=20)
    evaluate_baselines(folder, comparison=few)
    records = load_records(folder/'results')
    tasks = {'tokenizer', 'classify', 'inpaint', 'report', 'guidance', 'retrieve', 'paired'}
    assert set(records.task) == tasks
    assert {'stage2', 'pixels 32×32', 'chance'} <= set(records.model)
    page = results_page(folder/'results', folder/'figures', folder/'index.html')
    assert page.stat().st_size > 1e5
