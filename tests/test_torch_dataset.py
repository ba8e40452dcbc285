"A manifest as a torch data set: unknown findings stay unknown, and bad input is one line."
import numpy as np, pytest, torch
from torch.utils.data import DataLoader

from chexmix.core import UserError
from chexmix.data import read_table
from chexmix.radiograph import read_radiograph
from chexmix.report_text import FINDINGS, report_text
from chexmix.torch_dataset import ChestDataset


@pytest.fixture
def manifest(tiny_run): return read_table(tiny_run/'manifest.csv')


def test_items_are_those_of_the_manifest(manifest):
    manifest.loc[0, 'Edema'] = np.nan
    dataset = ChestDataset(manifest, size=64)
    assert dataset.pathologies == list(FINDINGS) and dataset.labels.shape == (len(manifest), 14)
    study = dataset[0]
    assert np.array_equal(study['image'][0], read_radiograph(manifest.path[0], 64))
    assert study['labels'].isnan().tolist() == manifest[list(FINDINGS)].isna().iloc[0].tolist()
    assert study['report'] == report_text(manifest.iloc[0])


def test_splits_share_no_image(manifest):
    parts = [ChestDataset(manifest, 64, split) for split in ('train', 'valid', 'test')]
    paths = [path for part in parts for path in part.manifest.path]
    assert sorted(paths) == sorted(manifest.path)


def test_loader_with_workers(manifest):
    dataset = ChestDataset(manifest[:5], size=32, transform=torch.Tensor.neg)
    batches = list(DataLoader(dataset, batch_size=2, num_workers=2))
    images = torch.cat([batch['image'] for batch in batches])
    assert torch.equal(images, torch.stack([dataset[i]['image'] for i in range(5)]))
    assert images.max() <= 0


def test_bad_input(manifest, tmp_path):
    with pytest.raises(UserError, match='does not exist'): ChestDataset(tmp_path/'none')
    with pytest.raises(UserError, match='no such policy'): ChestDataset(manifest, policy='squeeze')
    with pytest.raises(UserError, match='one of test, train, valid'): ChestDataset(manifest, split='tset')
    (tmp_path/'a.png').write_text('nothing')
    manifest.loc[0, 'path'] = str(tmp_path/'a.png')
    with pytest.raises(UserError, match='a.png'): ChestDataset(manifest)[0]
