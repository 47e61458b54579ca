"Clips of tracklets: which frames, in which order, changed together, batched and masked, whatever the number of workers"
import random
import time
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from fastai.data.block import DataBlock
from fastai.data.transforms import ItemGetter, Normalize
from fastai.vision.augment import Flip
from PIL import Image
from reid_nb.core import ReidError, make_items, rows_of
from reid_nb.data.augment import PerImage, RandomFlip, RandomTranslate, reid_tfms
from reid_nb.data.block import PIDBlock
from reid_nb.data.own import open_image
from reid_nb.data.clips import (CLIPS, PADS, ClipBlock, ClipDL, ClipToTensor, ForClips, OpenClip, TensorClip, TrackletDataLoaders, TrackletPlayer, clip_dl, clip_index, clip_rows,
                                clip_tfms, first_time, frame_rows, mean_by_walk, show_tracklets, windows)
from reid_nb.data.combine import combine
from reid_nb.data.samplers import RandomIdentitySampler
from reid_nb.data.synth import synth_people

LENGTHS = 1, 2, 5, 9, 13


@pytest.fixture(scope='module')
def walks(tmp_path_factory): # red says which tracklet, green which frame of it
    root, rows = tmp_path_factory.mktemp('walks'), []
    for i in range(20):
        split = 'train' if i < 10 else 'query' if i < 13 else 'gallery'
        frames = [str(root/f'{i:02d}_{j:02d}.png') for j in range(LENGTHS[i % 5])]
        for j, f in enumerate(frames): Image.new('RGB', (12, 20), (10 * i, 12 * j, 90)).save(f)
        rows.append((frames[0], i // 3 if split == 'train' else 50 + i % 3, i % 2, split, frames))
    path, pid, cam, split, frames = zip(*rows)
    return make_items(path, pid, cam=cam, split=list(split), dset='w', tid=[f't{i}' for i in range(20)], frames=list(frames))


def numbers(x, channel): # what the images of a batch of raw clips say
    return (x[..., channel, 10, 6].float() / (10, 12, 1)[channel]).round().long()


def loaders(walks, **kw):
    return TrackletDataLoaders.from_items(walks, **{**dict(size=(20, 12), t=4, p=2, k=2, bs=4, tfms=[Normalize.from_stats((0,) * 3, (1 / 255,) * 3, cuda=False)], device='cpu'), **kw})


def epoch(walks, seed, **kw):
    random.seed(seed), torch.manual_seed(seed)
    return list(loaders(walks, how='random', **kw).train)


# Which frames

@pytest.mark.parametrize('n,t,index', [(44, 15, range(0, 30, 2)), (100, 15, range(0, 90, 6)), (14, 4, [0, 3, 6, 9]), (3, 5, [0, 1, 2, 2, 2]), (1, 3, [0, 0, 0]), (7, 7, range(7))])
def test_evenly_is_torchreids(n, t, index): assert clip_index(n, t).tolist() == list(index)


def test_random_is_torchreids_in_distribution(): # numpy's choice, sorted; with replacement where the walk is short
    rng, n = np.random.default_rng(0), 4000
    for frames, t in ((6, 3), (3, 5)):
        ours = np.mean([np.bincount(clip_index(frames, t, 'random', rng=rng), minlength=frames) for _ in range(n)], 0)
        theirs = np.mean([np.bincount(np.random.RandomState(i).choice(frames, t, replace=frames < t), minlength=frames) for i in range(n)], 0)
        assert np.abs(ours - theirs).max() < .08
    assert any(len(set(clip_index(3, 5, 'random', rng=rng).tolist())) < 3 for _ in range(50)) # drawing may leave one out


@pytest.mark.parametrize('how', [*CLIPS, 'all'])
@pytest.mark.parametrize('pad', [None, *PADS])
def test_frames_are_in_order_and_there(how, pad):
    for n in range(1, 40, 3):
        for t in range(1, 14):
            index = clip_index(n, t, how, pad, np.random.default_rng(n * t))
            assert len(index) == (n if how == 'all' else t) and 0 <= index.min() and index.max() < n
            assert (np.diff(index) >= 0).all() or (pad == 'loop' and n < t)
            if n >= t: assert first_time(index).all()
            if how == 'dense' and n >= t: assert (np.diff(index) == 1).all()


def test_restricted_takes_one_from_each_part():
    for n, t in ((44, 8), (9, 4), (5, 5)):
        draws = np.stack([clip_index(n, t, 'restricted', rng=np.random.default_rng(o)) for o in range(400)])
        parts = np.array_split(np.arange(n), t) if n % t == 0 else [np.arange(i * n // t, (i + 1) * n // t) for i in range(t)]
        for column, part in zip(draws.T, parts): assert set(column) == set(part)


def test_padding_rules():
    rng = np.random.default_rng(0)
    assert clip_index(3, 7, pad='loop').tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert clip_index(3, 7, pad='stretch').tolist() == [0, 0, 0, 1, 1, 2, 2]
    assert len(clip_index(3, 7, pad='draw', rng=rng)) == 7
    assert first_time([0, 1, 2, 0, 1]).tolist() == [True] * 3 + [False] * 2
    assert first_time([0, 0, 1]).tolist() == [True, False, True]


def test_windows_hold_every_frame():
    for n in range(1, 30):
        for t in range(1, 9):
            for step in (None, *range(1, t + 1)):
                w = windows(n, t, step)
                assert set(w.ravel()) == set(range(n)) and w.shape[1] == t and len(np.unique(w, axis=0)) == len(w)
                assert n < t or (np.diff(w) == 1).all()
    with pytest.raises(ValueError, match='step'): windows(10, 3, 0)


# Tables

def test_tables_of_windows_and_frames(walks):
    pieces, singles = clip_rows(walks, 4), frame_rows(walks)
    assert len(singles) == walks.frames.map(len).sum() and 'frames' not in singles
    assert pieces.groupby('walk').size().tolist() == [len(windows(len(o), 4)) for o in walks.frames]
    assert (pieces.path == pieces.frames.str[0]).all() and (pieces.pid.to_numpy() == walks.pid.to_numpy()[pieces.walk]).all()
    for df in (pieces, singles): assert (df.dtypes[walks.columns.drop('frames')] == walks.dtypes.drop('frames')).all()
    feats = np.arange(len(singles) * 2.).reshape(-1, 2)
    assert np.allclose(mean_by_walk(feats, singles.walk), pd.DataFrame(feats).groupby(singles.walk).mean())
    shuffled = np.random.default_rng(0).permutation(len(singles))
    assert np.allclose(mean_by_walk(feats[shuffled], singles.walk.to_numpy()[shuffled]), mean_by_walk(feats, singles.walk))
    with pytest.raises(ReidError, match='5 features for'): mean_by_walk(feats[:5], singles.walk)


# Loading

def test_frames_are_those_chosen_and_read_once(walks):
    opened = []
    def opener(path):
        opened.append(path)
        return open_image(path)
    row = walks[walks.tid == 't3'].iloc[0] # 9 frames
    x = ClipToTensor((20, 12))(OpenClip(4, open=opener)(row.frames))
    assert numbers(x, 1).tolist() == [0, 2, 4, 6] and set(numbers(x, 0).tolist()) == {3} and x.dtype == torch.uint8
    opened.clear()
    OpenClip(8, pad='loop', open=opener)(row.frames[:2])
    assert opened == row.frames[:2]


def test_evaluation_is_in_order_and_the_same_again(walks):
    for how in ('evenly', 'random'):
        dl = clip_dl(walks, size=(20, 12), t=3, how=how, bs=7, device='cpu')
        a, b = (torch.cat([o[0] for o in dl]) for _ in range(2))
        assert torch.equal(a, b) and len(a) == len(walks) and type(a) is TensorClip
    dls = loaders(walks)
    x = torch.cat([o[0] for o in dls.valid])
    assert numbers(x, 0)[:, 0].tolist() == [int(o[1:]) for o in rows_of(walks, 'query', 'gallery').tid]
    assert torch.equal(torch.cat([o[0] for o in dls.items_dl(dls.test_items, bs=3)]), x)


def test_every_frame_of_uneven_walks(walks):
    for x, mask in clip_dl(walks, size=(20, 12), how='all', mask=True, bs=6, device='cpu'):
        assert x.shape[1] == mask.shape[1] == mask.sum(1).max()
        for clip, m in zip(x, mask): assert m[:m.sum()].all() and torch.equal(clip[m.sum():], clip[m.sum() - 1].expand_as(clip[m.sum():]))
    lengths = torch.cat([m.sum(1) for _, m in clip_dl(walks, size=(20, 12), how='all', mask=True, bs=6, device='cpu')])
    assert lengths.tolist() == walks.frames.map(len).tolist()


def test_an_epoch_depends_on_the_seed_and_not_on_workers(walks):
    a, b, c, d = epoch(walks, 1), epoch(walks, 1), epoch(walks, 2), epoch(walks, 1, num_workers=2)
    assert len(a) == len(b) == len(d) > 0
    for (x, y), (x1, y1), (x2, y2) in zip(a, b, d):
        assert torch.equal(x, x1) and torch.equal(y, y1) and torch.equal(x, x2) and torch.equal(y, y2)
    assert any(not torch.equal(x, o) for (x, _), (o, _) in zip(a, c))


def test_another_epoch_takes_other_frames(walks):
    long = walks.assign(frames=[o[:9] if len(o) > 8 else walks.frames[3] for o in walks.frames])
    dls = loaders(long, how='random')
    seen = {tuple(o.tolist()) for _ in range(6) for x, _ in dls.train for o in numbers(x, 1)}
    assert len(seen) > 20


def test_batches_hold_people_in_groups(walks):
    for kw in (dict(), dict(sampler=RandomIdentitySampler(rows_of(walks, 'train'), 2, 2)), dict(sampler=lambda rows: RandomIdentitySampler(rows, 2, 2))):
        for x, y in loaders(walks, **kw).train:
            assert x.shape == (4, 4, 3, 20, 12) and y[0] == y[1] != y[2] == y[3]


def test_an_epoch_goes_on_where_it_stood(walks):
    random.seed(3)
    dls = loaders(walks, how='random')
    it = iter(dls.train)
    next(it)
    state = dls.train.state_dict()
    rest = list(it)
    other = loaders(walks, how='random')
    other.train.load_state_dict(state)
    again = list(other.train)
    assert len(again) == len(rest) > 0
    for (x, _), (o, _) in zip(rest, again): assert torch.equal(x, o)


def test_masks_are_a_second_input(walks):
    dls = loaders(walks, t=6, mask=True)
    x, mask, y = dls.one_batch()
    assert dls.n_inp == 2 and mask.shape == (4, 6) and mask.dtype == torch.bool and len(y) == 4
    plain = dls.train.new(shuffle=False, drop_last=False)
    assert type(plain) is ClipDL and [len(o) for o in next(iter(plain))] == [4, 4, 4]
    assert loaders(walks).n_inp == 1 and len(loaders(walks).one_batch()) == 2


def test_a_data_block_of_ones_own(walks):
    rows = list(zip(walks.frames, zip(walks.dset.astype(str), walks.pid)))
    block = DataBlock((ClipBlock(size=(20, 12), t=3), PIDBlock()), getters=[ItemGetter(0), ItemGetter(1)], splitter=lambda o: (list(range(len(o))), []))
    x, y = block.dataloaders(rows, bs=5, num_workers=0, device='cpu').one_batch()
    assert x.shape == (5, 3, 3, 20, 12) and len(y) == 5


# Changing

def test_one_draw_for_a_clip_or_for_a_frame():
    x = TensorClip(torch.rand(64, 1, 3, 20, 12).expand(-1, 6, -1, -1, -1).clone())
    def still(x): return (x == x[:, :1]).flatten(1).all(1)
    for tfm in (RandomFlip(), RandomTranslate(), Flip()): # ours, and fastai's
        (once,), (each,) = clip_tfms([tfm]), clip_tfms([tfm], per='frame')
        assert isinstance(each, ForClips) and isinstance(once, PerImage) == isinstance(tfm, PerImage)
        torch.manual_seed(0), random.seed(0)
        a, b = once(x, split_idx=0), each(x, split_idx=0)
        assert still(a).all() and not still(b).all() and a.shape == b.shape == x.shape and type(b) is TensorClip
        changed = ((a - x).abs() > .1).flatten(1).any(1) # fastai's moves what it doesn't mirror by rounding errors
        assert changed.any() and not changed.all()
        assert torch.allclose(once(x, split_idx=1), x, atol=1e-5)


def test_normalisation_and_decoding_reach_every_frame(walks):
    dls = loaders(walks, tfms=reid_tfms(0, 0))
    x, y = dls.one_batch()
    raw = dls.train.decode((x, y))[0]
    assert raw.shape == x.shape and raw.min() >= 0 and raw.max() <= 255 and set(numbers(raw[..., 2:, :, :], 0).ravel().tolist()) == {9} # blue, 90, as it was


# Watching

def test_the_player_is_one_picture_that_plays(walks, tmp_path):
    dls = loaders(walks, t=6, tfms=reid_tfms())
    player = dls.show_batch(max_ids=1, size=(40, 24))
    bundle = player._repr_mimebundle_()
    svg, jpeg = ET.fromstring(bundle['image/svg+xml']), player.jpeg
    cells = svg.findall('{http://www.w3.org/2000/svg}svg')
    assert player.n == 2 == len(cells) and 'steps(6)' in bundle['image/svg+xml'] and 'http' not in bundle['image/svg+xml'].replace('http://www.w3.org/2000/svg', '')
    player.save(tmp_path/'p.jpg'), player.save(tmp_path/'p.svg')
    with Image.open(tmp_path/'p.jpg') as im: assert im.size[0] == 6 * 24 and (tmp_path/'p.jpg').read_bytes() == jpeg
    with pytest.raises(ValueError, match=r"'\.gif'"): player.save(tmp_path/'p.gif')
    assert 'a&lt;b' in TrackletPlayer([np.zeros((2, 8, 4, 3), np.uint8)], ['a<b']).svg()


def test_long_walks_are_shown_whole_or_evenly(walks):
    player = show_tracklets(walks, n=5, most=8)
    assert sorted(player.lengths) == [1, 2, 5, 8, 8]
    with pytest.raises(ReidError, match='no clip'): show_tracklets(walks[:0])


# What can go wrong

def test_errors_say_what_to_do(walks, tmp_path):
    with pytest.raises(ReidError, match='no column `frames`.*frames_to_tracklets'): loaders(walks.drop(columns='frames'))
    with pytest.raises(ReidError, match='1 tracklets have no frames, first row 4'): clip_dl(walks.assign(frames=[[] if i == 4 else o for i, o in enumerate(walks.frames)]))
    with pytest.raises(ValueError, match="no way to choose frames 'even'. There are 'evenly'"): clip_index(9, 3, 'even')
    with pytest.raises(ValueError, match="no padding 'zero'"): clip_index(3, 9, pad='zero')
    with pytest.raises(ValueError, match="'clip' or 'frame'"): ForClips(RandomFlip(), per='batch')
    with pytest.raises(ReidError, match='training rows have 4'): loaders(walks, p=5)


@pytest.mark.parametrize('workers', [0, 2])
def test_a_broken_frame_is_named(walks, tmp_path, workers):
    bad = tmp_path/'half.png'
    bad.write_bytes(Path(walks.path[0]).read_bytes()[:40])
    dl = clip_dl(walks.assign(frames=[[*o, str(bad)] for o in walks.frames]), size=(20, 12), how='all', num_workers=workers, device='cpu')
    with pytest.raises(ReidError, match='half.png'): list(dl)
    with pytest.raises(ReidError, match='gone.png'): OpenClip()([str(tmp_path/'gone.png')])


def test_pictures_among_tracklets(walks):
    pictures = walks.drop(columns='frames').assign(dset='pictures', path=walks.path + '.jpg')
    with pytest.raises(ReidError, match=r'are pictures, not tracklets: their `frames` are missing, first row \d+'): loaders(combine(walks, pictures))

# ---- from a cache


def test_clips_from_a_cache_are_those_of_the_files(tmp_path):
    from reid_nb.data.cache import ImageCache, OnePass
    items = synth_people(tmp_path/'walks', n_ids=6, n_cams=2, tracklets=True, n_frames=6, distractors=0, junk=0, size=(64, 32))
    time.sleep(.06)
    cache = ImageCache((96, 48), tmp_path/'cache')
    def make(**kw): return TrackletDataLoaders.from_items(items, size=(96, 48), t=4, p=2, k=2, device='cpu', mask=True, how='evenly', **kw)
    plain = make(tfms=[])
    for workers in (0, 2):
        quick = make(tfms=[], cache=cache, num_workers=workers)
        for _ in range(2):
            for a, b in zip(plain.valid, quick.valid, strict=True): assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    frames = {f for fs in items.frames[items.split != 'train'] for f in fs}
    assert 0 < len(cache) <= len(frames) and cache.hits > 0
    for dls in (plain, quick): dls.train.rng.seed(0)
    for a, b in zip(plain.train, quick.train, strict=True): assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    for a, b in zip(clip_dl(items[:3], (96, 48), t=4, device='cpu'), clip_dl(items[:3], (96, 48), t=4, device='cpu', cache=cache), strict=True): assert torch.equal(a[0], b[0])
    hits = cache.hits
    assert torch.equal(plain.items_dl(items[:3]).one_batch()[0], make(tfms=[], cache=cache).items_dl(items[:3]).one_batch()[0]) and cache.hits > hits
    x, _, _ = make(cache=cache, tfms=[OnePass(flip=0., translate=0., erase=1., fill=9.)]).train.one_batch() # bytes, changed alike in all frames
    box = (x == 9).all(2)
    assert x.dtype == torch.float32 and box.flatten(1).any(1).all() and (box == box[:, :1]).all()


def test_caches_that_do_not_fit_clips(tmp_path):
    from reid_nb.data.cache import ImageCache
    items = synth_people(tmp_path/'walks', n_ids=4, n_cams=2, tracklets=True, n_frames=3, distractors=0, junk=0, size=(64, 32))
    cache = ImageCache((96, 48), tmp_path/'cache')
    for make in (TrackletDataLoaders.from_items, clip_dl):
        with pytest.raises(ValueError, match='holds pictures of .96, 48., and the loaders want .64, 32.'): make(items, size=(64, 32), cache=cache)
        with pytest.raises(ValueError, match='must be an `ImageCache'): make(items, size=(96, 48), cache='here')
        with pytest.raises(ValueError, match='opened by the cache'): make(items, size=(96, 48), cache=cache, open=lambda p: None)
