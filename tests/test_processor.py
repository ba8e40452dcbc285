"A processor whose files do not fit is refused, with the reason."
import shutil

import pytest

from chexmix.core import read_json, UserError, write_json
from chexmix.processor import Processor


@pytest.mark.parametrize('change, message', [
    (dict(grid=5), '4×4 codes of 64'),
    (dict(n_codes=65), 'room for 4×4 of 65'),
    (dict(depth=1), 'depth')])
def test_processor_that_does_not_fit(tiny_run, tmp_path, change, message):
    shutil.copytree(tiny_run/'processor', tmp_path/'processor')
    path = tmp_path/'processor'/'processor_config.json'
    write_json(path, read_json(path) | change)
    with pytest.raises(UserError, match=message): Processor.from_pretrained(tmp_path/'processor')
