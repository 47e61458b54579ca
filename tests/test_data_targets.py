"Pairs of labelled and unlabelled batches: what is in them, how long an epoch is, seeds, going on, workers and cache"
import random
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from reid_nb.core import ReidError, make_items
from reid_nb.data.block import ReidDataLoaders
from reid_nb.data.cache import ImageCache, OnePass
from reid_nb.data.samplers import RandomSampler
from reid_nb.data.targets import PairedDL, TargetBatch, TargetCallback

SIZE = (32, 16)


def table(folder, dset, n_ids, cams, split='train'):
    rows = [(folder/f'{dset}_{split}_{pid}_{cam}_{i}.png', pid, cam) for pid in range(n_ids) for cam in cams for i in range(2)]
    rng = np.random.default_rng(n_ids)
    for p, _, _ in rows: Image.fromarray(rng.integers(0, 256, (*SIZE, 3), dtype=np.uint8)).save(p)
    path, pid, cam = zip(*rows)
    return make_items(path, np.array(pid) + (100 if split != 'train' else 0), list(cam), split, dset)


@pytest.fixture
def tables(tmp_path):

    source = pd.concat([table(tmp_path, 'a', 6, (0, 1)), table(tmp_path, 'a', 2, (0, 1), 'query'), table(tmp_path, 'a', 2, (0, 1), 'gallery')])
    return source, table(tmp_path, 'b', 5, (0, 3)), table(tmp_path, 'c', 4, (None,))


def paired(source, *targets, seed=None, **kw):
    at = {k: kw.pop(k) for k in ('cache', 'tfms', 'num_workers') if k in kw}
    dls = ReidDataLoaders.from_items(source, size=SIZE, device='cpu', sampler=lambda rows: RandomSampler(rows, 5, seed=seed), **at)
    return dls.with_targets(*targets, **{'sampler': lambda rows: RandomSampler(rows, 4, seed=seed), **kw})


def rows(batches): return [(y.tolist(), t.row.tolist()) for (x, y), t in batches]


def test_a_target_batch_is_pictures_cameras_and_rows_and_no_labels(tables):
    source, b, c = tables
    dls = paired(source, b, c, tfms=[])
    items = dls.train.target.items
    assert set(items.pid) == {-1} and not {'true_pid', 'own_pid'} & set(items)
    seen = []
    for (x, y), t in dls.train:
        assert type(t) is TargetBatch and len(t) == 3 and x.shape[0] == 5 and y.max() < dls.c == 6
        assert (t.x.shape, t.cam.dtype, t.row.dtype, type(t.row)) == ((4, 3, *SIZE), torch.int64, torch.int64, torch.Tensor)
        for im, cam, row in zip(*t):
            np.testing.assert_allclose(im.permute(1, 2, 0).numpy() * 255, np.asarray(Image.open(items.path[int(row)])), atol=1e-3)
            assert cam == {'b': {0: 0, 3: 1}, 'c': {}}[items.dset[int(row)]].get(items.cam[int(row)], -1)
        seen += t.row.tolist()
    assert len(set(seen)) == len(seen) == 16


def test_labels_of_targets_change_nothing(tables):
    source, b, _ = tables
    (one, two) = (rows(paired(source, b.assign(pid=p), seed=3).train) for p in (b.pid, 7))
    assert one == two


@pytest.mark.parametrize('length, n', [('source', 4), ('target', 5), ('longer', 5)])
def test_an_epoch_is_as_long_as_it_says_and_both_begin_anew(tables, length, n):
    source, b, _ = tables
    train = paired(source, b, seed=1, length=length).train
    a, other = list(train), list(train)
    assert len(train) == len(a) == len(other) == n
    assert (train.source.epoch if length == 'source' else train.target.epoch) == 2
    first = [rows(a)[:4], rows(other)[:4]]
    assert first[0] != first[1]
    for o in (a, other): assert len({tuple(r) for _, r in rows(o)}) == n # nothing twice


def test_the_shorter_one_begins_again_with_another_order(tables):
    source, b, _ = tables
    train = paired(source, b, sampler=lambda r: RandomSampler(r, 10, seed=5)).train # two batches, for four of the source
    r = [t.row.tolist() for _, t in train]
    assert len(r) == 4 and sorted(r[0] + r[1]) == sorted(r[2] + r[3]) == list(range(20)) and r[0] + r[1] != r[2] + r[3]


@pytest.mark.parametrize('length', ['source', 'longer'])
@pytest.mark.parametrize('stop', [1, 3, 4, 5, 7])
def test_going_on_anywhere_gives_the_same_batches(tables, length, stop):
    source, b, _ = tables
    whole = paired(source, b, seed=2, length=length).train
    n = len(whole)
    want = sum((rows(whole) for _ in range(3)), [])
    broken, got = paired(source, b, seed=2, length=length).train, []
    while len(got) < stop:
        for o in broken:
            got += rows([o])
            if len(got) == stop: break
    later = paired(source, b, seed=2, length=length).train
    later.load_state_dict(broken.state_dict())
    assert len(later) == (n - stop % n if stop % n else n)
    while len(got) < len(want): got += rows(later)
    assert got == want
    fresh = paired(source, b, seed=2, length=length).train
    fresh.load_state_dict(whole.state_dict()) # between two epochs
    assert rows(fresh) == rows(whole)


def test_one_random_generator_settles_both_and_leaves_the_source_as_it_was(tables):
    source, b, _ = tables
    def run(dl):
        dl.rng = random.Random(4)
        return list(dl)
    a, two = (rows(run(paired(source, b).train)) for _ in range(2))
    assert a == two
    alone = run(paired(source, b).train.source)
    assert [y.tolist() for _, y in alone] == [y for y, _ in a]


def test_workers_and_cache_give_the_same_pairs(tables, tmp_path):
    source, b, _ = tables
    time.sleep(.06)
    cache = ImageCache(SIZE, tmp_path/'cache')
    runs = [list(paired(source, b, seed=6, tfms=[], **kw).train) for kw in ({}, dict(num_workers=1), dict(cache=cache), dict(cache=cache))]
    for other in runs[1:]:
        for ((x, y), t), ((x2, y2), t2) in zip(runs[0], other, strict=True):
            assert torch.equal(x, x2) and torch.equal(y, y2) and all(torch.equal(o, p) for o, p in zip(t, t2, strict=True))
    assert cache.hits > 30
    assert all(t.x.dtype == torch.float32 for _, t in paired(source, b, cache=cache, tfms=[OnePass(erase=1., fill=9.)]).train)
    assert all((t.x == 9).flatten(1).any(1).all() for _, t in paired(source, b, cache=cache, tfms=[OnePass(erase=1., fill=9.)]).train) # they are augmented


def test_a_learner_trains_on_the_source_and_sees_the_target(tables):
    from fastai.callback.core import Callback
    from fastai.learner import Learner
    from torch import nn
    source, b, _ = tables
    dls, got = paired(source, b), []
    class Look(Callback):
        def after_loss(self):
            if self.training: got.append((self.x.shape, self.y.shape, self.target.x.shape, len(self.yb)))
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 16, dls.c))
    learn = Learner(dls, net, loss_func=nn.CrossEntropyLoss(), cbs=[TargetCallback(), Look()])
    with learn.no_logging(): learn.fit(1)
    assert got == [((5, 3, *SIZE), (5,), (4, 3, *SIZE), 1)] * 4
    plain = Learner(ReidDataLoaders.from_items(source, size=SIZE, device='cpu', p=3, k=2), net, loss_func=nn.CrossEntropyLoss(), cbs=[TargetCallback()])
    with plain.no_logging(), pytest.raises(ReidError, match='no targets.*with_targets'): plain.fit(1)
    assert [len(o) for o in dls.new_empty().loaders] == [0, 0]


def test_reid_learner_adds_what_pairs_need(tables):
    from reid_nb.train.learner import reid_learner
    source, b, _ = tables
    learn = reid_learner(paired(source, b), 'osnet_x0_25')
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
    assert learn.target.x.shape == (4, 3, *SIZE)


def test_what_cannot_be_paired(tables):
    source, b, _ = tables
    dls = ReidDataLoaders.from_items(source, size=SIZE, device='cpu', p=3, k=2)
    with pytest.raises(ReidError, match='20 training rows, and a batch takes 21'): dls.with_targets(b, bs=21)
    with pytest.raises(ReidError, match='0 training rows'): dls.with_targets(b.assign(split='gallery'))
    with pytest.raises(ReidError, match='24 pictures are in the source and in the target'): dls.with_targets(source)
    with pytest.raises(ReidError, match='no table'): dls.with_targets()
    with pytest.raises(ReidError, match='20 pictures are in the targets twice'): dls.with_targets(b, b, bs=4)
    with pytest.raises(ReidError, match='Targets are pictures'): dls.with_targets(b.assign(frames=[[p] for p in b.path]))
    with pytest.raises(ValueError, match='`length` must be'): dls.with_targets(b, bs=4, length='shorter')
    twice = dls.with_targets(b, bs=4).with_targets(b, bs=5) # the later one counts
    assert isinstance(twice.train, PairedDL) and not isinstance(twice.train.source, PairedDL) and len(next(iter(twice.train))[1].row) == 5

    with pytest.raises(ReidError, match=r'20 of 20 training rows are without labels \(pid -1\).*with_targets'):
        ReidDataLoaders.from_items(pd.concat([b.assign(pid=-1), source[source.split != 'train']]), size=SIZE, p=3, k=2)


def test_a_sampler_has_its_own_length_of_batches(tables):
    source, b, _ = tables
    dls = ReidDataLoaders.from_items(source, size=SIZE, device='cpu', p=6, k=4)
    assert dls.train.bs == 24 and len(next(iter(dls.with_targets(b, sampler=lambda r: RandomSampler(r, 4)).train))[1].row) == 4 # though there are only 20 rows
    with pytest.raises(ReidError, match='20 training rows, and a batch takes 50'): dls.with_targets(b, sampler=lambda r: RandomSampler(r, 50)) # it would wait for a batch for ever
    with pytest.raises(ValueError, match='pass one of the two'): dls.with_targets(b, bs=4, sampler=lambda r: RandomSampler(r, 4))
    for bs in (0, -1):
        with pytest.raises(ValueError, match='at least one picture'): dls.with_targets(b, bs=bs)


def test_pictures_of_the_test_are_told_of_and_another_spelling_is_the_same_picture(tables):
    source, b, _ = tables
    dls = ReidDataLoaders.from_items(source, size=SIZE, device='cpu', p=3, k=2)
    with pytest.warns(UserWarning, match='8 pictures of the targets are tested on as well'): dls.with_targets(source[source.split == 'gallery'].assign(split='train'), bs=4)
    with pytest.raises(ReidError, match='24 pictures are in the source and in the target'): dls.with_targets(source.assign(path=[f'{o.parent}/./{o.name}' for o in map(Path, source.path)]), bs=4)


def test_triplets_and_evaluation_beside_targets(tables):
    from reid_nb.train.callbacks import TripletCallback
    from reid_nb.train.learner import reid_learner
    source, b, _ = tables
    from torch import nn
    dls = ReidDataLoaders.from_items(source, size=SIZE, device='cpu', p=3, k=2, tfms=[])
    class Net(nn.Module):
        def __init__(self, n):
            super().__init__()
            self.lin, self.classifier = nn.Linear(3, 8), nn.Linear(8, n)
        def forward(self, x):
            f = self.lin(x.mean((2, 3)))
            return [(f, self.classifier(f))] if self.training else f
    def run(dls, *cbs):
        torch.manual_seed(0)
        learn = reid_learner(dls, Net(dls.c), cbs=[TripletCallback(), *cbs], channels_last=False)
        with learn.no_logging(): learn.fit(1)
        return learn.evaluate().metrics, learn.recorder.values[-1]
    beside = dls.with_targets(b, bs=4)
    assert beside.train.n == dls.train.n == 24 # rows, as for other loaders
    a, two = run(dls), run(beside, TargetCallback())
    assert a == two # the source's batches, its losses and its figures are those without a target
