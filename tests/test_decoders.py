"A decoder that ends its process costs its file alone, for one radiograph and for several side by side."
import multiprocessing, os
from functools import partial

import numpy as np, pytest
from pydicom.uid import JPEG2000Lossless, JPEGLosslessSV1
from radiograph_files import dicom
from torch.utils.data import DataLoader

from chexmix import radiograph
from chexmix.core import UserError
from chexmix.radiograph import read_images, read_radiograph


@pytest.mark.parametrize('syntax, decoder', [
    (JPEGLosslessSV1, 'read_gdcm'), (JPEG2000Lossless, 'pixel_array')], ids=['GDCM', 'pylibjpeg'])
def test_a_dead_decoder_is_an_unreadable_file(syntax, decoder, tmp_path, gray, monkeypatch):
    path = dicom(tmp_path/'a.dcm', gray, syntax=syntax)
    before = read_radiograph(path, 16)
    with monkeypatch.context() as m:
        m.setattr(radiograph, decoder, lambda *args, **kwargs: os.abort())
        with pytest.raises(UserError, match='a.dcm: it ends the process that decodes it'):
            read_radiograph(path, 16)
    assert np.array_equal(read_radiograph(path, 16), before)
    assert np.array_equal(read_images([path] * 4, 16)[3], before)


def test_a_dead_decoder_in_a_process_of_the_user(tmp_path, gray):
    "A process that someone starts is not a worker of ours: it lives on."
    path = dicom(tmp_path/'a.dcm', gray, syntax=JPEGLosslessSV1)
    child = multiprocessing.get_context('fork').Process(target=read_with_a_dead_decoder, args=(path,))
    child.start()
    child.join(60)
    assert child.exitcode == 0


def read_with_a_dead_decoder(path):
    radiograph.read_gdcm = lambda *args: os.abort()
    with pytest.raises(UserError, match='it ends the process'): read_radiograph(path, 16)


def test_compressed_dicom_by_workers_of_a_data_loader(tmp_path, gray):
    path = dicom(tmp_path/'a.dcm', gray, syntax=JPEGLosslessSV1)
    [image] = DataLoader([path], batch_size=None, num_workers=1, collate_fn=partial(read_radiograph, size=16))
    assert np.array_equal(image, read_radiograph(path, 16))
