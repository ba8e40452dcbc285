"A processor whose files do not fit is refused, with the reason."
import shutil, time

import pytest, torch

from chexmix.core import read_json, rng, UserError, write_json
from chexmix.data import read_table
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


def test_files_are_encoded_in_blocks_to_the_same_codes(tiny_run, monkeypatch):
    "Never more than a few images at a time, and the next are read while the last are encoded."
    processor = Processor.from_pretrained(tiny_run/'processor')
    paths = read_table(tiny_run/'manifest.csv').path[:10].tolist()
    expected = processor.encode_images(processor.read(paths))
    monkeypatch.setattr('chexmix.processor.images_per_pass', lambda config, device: 2)
    order, read, encode = [], Processor.read, Processor.encode_images

    def noted_read(self, some):
        order.append(('read', len(some)))
        return read(self, some)

    def noted_encode(self, images):
        time.sleep(.05)  # the next block is read meanwhile
        order.append(('encode', len(images)))
        return encode(self, images)

    monkeypatch.setattr(Processor, 'read', noted_read)
    monkeypatch.setattr(Processor, 'encode_images', noted_encode)
    assert torch.equal(processor.encode_files(paths, least=3), expected)
    assert order == [('read', 4), ('read', 4), ('encode', 4), ('read', 2), ('encode', 4), ('encode', 2)]


def test_codes_depend_on_no_setting_of_the_process(tiny_run):
    "bfloat16 or TF32 allowed, cuDNN's trials, autocast: the codes are the same, and these stay set."
    processor = Processor.from_pretrained(tiny_run/'processor')
    tokenizer, cudnn = processor.image_tokenizer.cpu(), torch.backends.cudnn
    x = torch.rand(16, 1, 64, 64, generator=rng('policy')) * 2 - 1
    expected = tokenizer.encode(x)
    images = tokenizer.decode(expected)
    with torch.autocast('cpu', torch.bfloat16): rounded = tokenizer.features(x)
    assert rounded.dtype == torch.bfloat16
    torch.set_float32_matmul_precision('medium')
    cudnn.benchmark = True
    try:
        with torch.autocast('cpu', torch.bfloat16):
            assert torch.equal(tokenizer.encode(x), expected)
            assert torch.equal(tokenizer.decode(expected), images)
        assert torch.get_float32_matmul_precision() == 'medium' and cudnn.benchmark
    finally:
        torch.set_float32_matmul_precision('highest')
        cudnn.benchmark = False
