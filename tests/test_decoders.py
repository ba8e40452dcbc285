"A decoder that ends its process costs its file alone, for one radiograph and for several side by side."
import os

import numpy as np, pytest
from pydicom.uid import JPEG2000Lossless, JPEGLosslessSV1
from radiograph_files import dicom

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
