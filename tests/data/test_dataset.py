import pytest
import torch

from polyclinic.data.augmentation import Augmentation
from polyclinic.data.cases import Counts, SiteData
from polyclinic.data.dataset import Dataset
from polyclinic.data.scaling import Scaler, summarise


def images_site(name, count, targets=None, seed=0):
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (count, 2, 6, 6), dtype=torch.uint8, generator=generator)
    targets = torch.arange(count) if targets is None else targets
    names = [f"{name}{i}" for i in range(count)]
    return SiteData(name, pixels, targets, names, names, None, Counts(count, count))


def own_scaler(data):
    return Scaler.from_summary(summarise(data.inputs, torch.arange(len(data))))


def test_table(make_site):
    data = make_site([0, 1, 1], inputs=torch.tensor([[1.0, 5.0], [3.0, float("nan")], [5.0, 7.0]]))
    dataset = Dataset(data, Scaler(torch.tensor([3.0, 6.0]), torch.tensor([2.0, 1.0]), torch.tensor([3.0, 6.0])))
    assert (len(dataset), dataset.site, dataset.shape, dataset.augments) == (3, "A", (2,), False)
    assert dataset.targets.tolist() == [0, 1, 1]
    inputs, targets = dataset.batch(torch.tensor([2, 1]))
    assert inputs.tolist() == [[1.0, 1.0], [0.0, 0.0]]
    assert targets.tolist() == [1, 1]
    assert data.inputs[1, 1].isnan()


def test_images_are_scaled_on_the_way():
    data = images_site("A", 4)
    dataset = Dataset(data, Scaler(torch.tensor([0.5, 0.0]), torch.tensor([0.5, 2.0]), torch.zeros(2)))
    inputs, targets = dataset.batch(torch.tensor([3, 0]))
    assert dataset.shape == (2, 6, 6)
    assert targets.tolist() == [3, 0]
    torch.testing.assert_close(inputs[:, 0], (data.inputs[[3, 0], 0] / 255 - 0.5) / 0.5)
    torch.testing.assert_close(inputs[:, 1], data.inputs[[3, 0], 1] / 255 / 2)
    assert data.inputs.dtype == torch.uint8


def test_augmentation_is_by_seed_and_before_scaling():
    masks = (torch.arange(4 * 36).view(4, 1, 6, 6) % 7 == 0).to(torch.uint8)
    data = images_site("A", 4, masks)
    augmentation = Augmentation([{"RandFlip": {"prob": 1.0, "spatial_axis": 0}}])
    dataset = Dataset(data, own_scaler(data), augmentation)
    assert dataset.augments
    index = torch.tensor([1, 2])
    plain, plain_masks = dataset.batch(index)
    changed, changed_masks = dataset.batch(index, augment=5)
    assert torch.equal(changed, plain.flip(2))
    assert torch.equal(changed_masks, plain_masks.flip(2))
    assert torch.equal(plain_masks, masks[index])
    without = Dataset(data, own_scaler(data))
    assert torch.equal(without.batch(index, augment=5)[0], plain)


def test_augmentation_is_for_images(make_site):
    with pytest.raises(ValueError, match="augmentation is for images"):
        Dataset(make_site([0, 1]), Scaler.identity(1), Augmentation([]))


def test_pool_of_tables_keeps_each_site_s_scaler(make_site):
    a = Dataset(make_site([0, 1], inputs=torch.tensor([[1.0], [3.0]])), Scaler.identity(1))
    b = Dataset(
        make_site([1], inputs=torch.tensor([[30.0]])), Scaler(torch.ones(1), torch.full((1,), 10.0), torch.ones(1))
    )
    pool = Dataset.pool([a, b], "pool")
    assert (pool.site, len(pool), pool.shape, pool.augments) == ("pool", 3, (1,), False)
    inputs, targets = pool.batch(torch.tensor([2, 0]))
    assert inputs.flatten().tolist() == pytest.approx([2.9, 1.0])
    assert targets.tolist() == [1, 0]
    assert (a.site, len(a)) == ("A", 2)


@pytest.mark.parametrize("masked", [False, True])
def test_pool_of_images_keeps_each_site_s_scaler(masked):
    sites = []
    for number, (name, count) in enumerate((("A", 3), ("B", 1), ("C", 4))):
        masks = torch.full((count, 1, 6, 6), number % 2, dtype=torch.uint8) if masked else None
        data = images_site(name, count, masks, seed=number)
        sites.append(Dataset(data, own_scaler(data), Augmentation([{"RandGaussianNoise": {"prob": 1.0}}])))
    pool = Dataset.pool(sites, "pool")
    assert (len(pool), pool.shape, pool.augments) == (8, (2, 6, 6), True)
    index = torch.tensor([7, 0, 3, 2, 4])
    inputs, targets = pool.batch(index)
    origin = [(2, 3), (0, 0), (1, 0), (0, 2), (2, 0)]
    for row, (site, case) in enumerate(origin):
        expected, target = sites[site].batch(torch.tensor([case]))
        assert torch.equal(inputs[row], expected[0])
        assert torch.equal(targets[row], target[0])
    assert targets.dtype == sites[0].targets.dtype
    first, again, other = (pool.batch(index, augment=seed)[0] for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_subclass_sees_every_index_that_is_read(make_site):
    read = []

    class Logged(Dataset):
        def batch(self, index, *, augment=None, hints=False):
            read.append((self.site, index.tolist()))
            return super().batch(index, augment=augment)

    tables = [Logged(make_site([0, 1], site=name), Scaler.identity(1)) for name in "AB"]
    Dataset.pool(tables, "pool").batch(torch.tensor([0, 3]))
    assert read == [("pool", [0, 3])]
    read.clear()
    images = [Logged(images_site(name, 2), Scaler.identity(2)) for name in "AB"]
    Dataset.pool(images, "pool").batch(torch.tensor([0, 3]))
    assert read == [("pool", [0, 3]), ("A", [0]), ("B", [1])]
