"Odd pictures, splits and Market's layout, on random tables and files"
import os
import re
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from reid_nb.core import ReidError, as_items, check_items, make_items, rows_of
from reid_nb.data.datasets import items_from_csv, items_from_folder, market1501
from reid_nb.data.own import GREY, items_to_market, kfold_by_pid, open_image, split_by_camera, split_by_time

STRANGE = ['a b.jpg', ' blank.jpg', 'ü–李雷.jpg', 'new\nline.jpg', 'quote"d;,.jpg', "it's.jpg", 'tab\t.jpg', '#%3F?.jpg', 'y' * 251 + '.jpg', '..dots...jpg']


def noise(h=9, w=6, seed=0): return np.random.default_rng(seed).integers(0, 256, (h, w, 3)).astype(np.uint8)


def pixels(path, **kw): return np.asarray(open_image(path, **kw))


def quiet(fn, *a, **kw):
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', UserWarning)
        return fn(*a, **kw)


# pictures

@pytest.mark.parametrize('turn', range(1, 9))
@pytest.mark.parametrize('suffix', ['png', 'tiff', 'webp'])
def test_each_turn_of_exif(tmp_path, turn, suffix):
    a, exif = noise(), Image.Exif()
    exif[0x112] = turn
    stored = {1: a, 2: a[:, ::-1], 3: a[::-1, ::-1], 4: a[::-1], 5: a.transpose(1, 0, 2), 6: a.transpose(1, 0, 2)[::-1],
              7: a.transpose(1, 0, 2)[::-1, ::-1], 8: a.transpose(1, 0, 2)[:, ::-1]}[turn]
    Image.fromarray(np.ascontiguousarray(stored)).save(p := tmp_path / f'a.{suffix}', exif=exif, **(dict(lossless=True) if suffix == 'webp' else {}))
    assert (pixels(p) == a).all()


def test_ordinary_pictures_are_what_pillow_decodes(tmp_path):
    for mode, suffix in [('RGB', 'jpg'), ('L', 'jpg'), ('RGB', 'png'), ('L', 'png'), ('1', 'png'), ('RGB', 'bmp'), ('RGB', 'ppm'), ('RGB', 'webp')]:
        Image.fromarray(noise(40, 30)).convert(mode).save(p := tmp_path / f'{mode}.{suffix}')
        with Image.open(p) as im: assert (pixels(p) == np.asarray(im.convert('RGB'))).all(), (mode, suffix)
        assert open_image(p).mode == 'RGB'


@pytest.mark.parametrize('suffix', ['png', 'tiff', 'pgm'])
def test_sixteen_bits(tmp_path, suffix):
    a = np.random.default_rng(1).integers(0, 65536, (8, 5)).astype(np.uint16)
    a[0, :2] = 0, 65535
    Image.fromarray(a).save(p := tmp_path / f'a.{suffix}')
    assert (pixels(p)[..., 0] == a >> 8).all()
    Image.fromarray(a >> 4).save(p := tmp_path / f'b.{suffix}')
    assert (pixels(p, bits=12)[..., 1] == a >> 8).all()


def test_transparent_pixels_show_the_background(tmp_path):
    a = np.dstack([noise(), np.random.default_rng(2).integers(0, 256, (9, 6)).astype(np.uint8)])
    a[0, 0, 3], a[1, 1, 3] = 0, 255
    Image.fromarray(a).save(p := tmp_path / 'a.png')
    alpha = a[..., 3:] / 255
    assert np.abs(pixels(p) - (a[..., :3] * alpha + np.array(GREY) * (1 - alpha))).max() <= 1
    assert tuple(pixels(p)[0, 0]) == GREY and (pixels(p)[1, 1] == a[1, 1, :3]).all()
    assert tuple(pixels(p, background=(9, 8, 7))[0, 0]) == (9, 8, 7)
    for mode in ('LA', 'P'):
        if mode == 'P': a[...] = (10, 20, 30, 255); a[:4, :, 3] = 0
        im = Image.fromarray(a).convert('LA') if mode == 'LA' else Image.fromarray(a).quantize(2)
        im.save(q := tmp_path / f'{mode}.png')
        assert tuple(pixels(q)[0, 0]) == GREY
    Image.fromarray(np.full((3, 3), 7, np.uint8)).save(q := tmp_path / 'key.png', transparency=7)
    assert tuple(pixels(q)[0, 0]) == GREY


def test_cmyk_and_animations(tmp_path):
    Image.new('RGB', (16, 16), (200, 30, 60)).convert('CMYK').save(p := tmp_path / 'a.jpg', quality=100)
    assert np.abs(pixels(p).astype(int) - (200, 30, 60)).max() < 6
    frames = [Image.new('RGB', (8, 8), o) for o in ((255, 0, 0), (0, 255, 0))]
    frames[0].save(p := tmp_path / 'a.gif', save_all=True, append_images=frames[1:])
    assert tuple(pixels(p)[0, 0]) == (255, 0, 0)


@pytest.mark.parametrize('make', [lambda p: p.write_bytes(b''), lambda p: p.write_bytes(b'text'), lambda p: p.mkdir(), lambda p: None,
                                  lambda p: Image.fromarray(np.ones((4, 4), np.float32)).save(p, 'TIFF')])
def test_what_is_no_picture_is_an_error_with_its_name(tmp_path, make):
    make(p := tmp_path / 'odd one.jpg')
    with pytest.raises(ReidError, match='odd one.jpg'): open_image(p)


# names

@pytest.mark.skipif(os.name == 'nt', reason='Windows forbids such names')
def test_strange_names(tmp_path):
    (tmp_path / 'in' / 'åsa b').mkdir(parents=True)
    names = STRANGE[:-1]
    for i, o in enumerate(names): Image.fromarray(noise(seed=i)).save(tmp_path / 'in' / 'åsa b' / o, 'JPEG')
    Image.fromarray(noise()).save(os.fsencode(tmp_path / 'in' / 'åsa b') + b'/\xff\xfe.jpg', 'JPEG') # no UTF-8
    items = items_from_folder(tmp_path / 'in')
    assert len(items) == len(names) + 1 and set(names) < {os.path.basename(o) for o in items.path}
    for o in items.path: assert open_image(o).size == (6, 9)
    check_items(items, paths='all', splits=('train',))
    back = items_from_csv(items_to_market(items.assign(cam=0), tmp_path / 'out') / 'items.csv')
    assert set(map(str, items.path)) - set(back.source) == {o for o in items.path if '\udcff' in o}
    with open(tmp_path / 'list.csv', 'w', encoding='utf-8') as f: # as pandas writes it
        items[['path', 'pid']][~items.path.str.contains('\udcff')].to_csv(f, index=False, quoting=1)
    assert len(items_from_csv(tmp_path / 'list.csv')) == len(names)


# splits

def town(seed, n_ids=14, n_cams=4, dsets=('a',)):
    rng = np.random.default_rng(seed)
    n = rng.integers(60, 160)
    pid = np.where(rng.random(n) > .04, rng.integers(0, n_ids, n), -1)
    return make_items([f'{i:04}.jpg' for i in range(n)], pid, rng.integers(0, n_cams, n), np.where(pid == -1, 'gallery', 'train'), rng.choice(dsets, n), time=rng.random(n) * 100)


def people(items, *splits):
    o = rows_of(items, *splits)
    return {(d, p) for d, p in zip(o.dset.astype(str), o.pid) if p != -1}


def fair(items): # every query has a match from another camera
    g = rows_of(items, 'gallery')
    return all(((g.pid == q.pid) & (g.dset.astype(str) == q.dset) & (g.cam != q.cam)).any() for q in rows_of(items, 'query').itertuples())


@pytest.mark.parametrize('seed', range(8))
def test_time(seed):
    items = town(seed, n_ids=45)
    out = quiet(split_by_time, items, test=.4, seed=seed, gap=3)
    at = items.time.quantile(.6)
    person = out.pid != -1
    assert (out.time[(out.split == 'train')] <= at - 3).all() and (out.time[person & (out.split != 'train')] >= at + 3).all()
    assert not people(out, 'train') & people(out, 'query', 'gallery') and fair(out)
    assert set(out.path) <= set(items.path) and not out.path.duplicated().any()
    assert set(out.path[~person]) == set(items.path[(items.pid == -1) & ((items.time - at).abs() >= 3)])
    assert out.equals(quiet(split_by_time, items.sample(frac=1, random_state=1), test=.4, seed=seed, gap=3))
    both = quiet(split_by_time, items, test=.4, returning='both')
    assert set(both.path) == set(items.path)
    none = quiet(split_by_time, items, at=at, returning=1.)
    early = set(items.pid[items.time < at]) - set(items.pid[items.time >= at])
    assert set(none.pid[none.split == 'train']) == early - {-1}


def test_nobody_left_to_train_on_is_said():
    items = make_items([f'{i}.jpg' for i in range(8)], pid=[1, 1, 1, 1, 2, 2, 2, 2], cam=[0, 1] * 4, time=list(range(4)) * 2)
    with pytest.raises(ReidError, match='No rows are left to train on'), warnings.catch_warnings(action='ignore'): split_by_time(items, at=2, returning=1)
    with pytest.raises(ReidError, match='empty in 1 of 8'): split_by_time(items.assign(time=[np.nan] + [1.] * 7))
    with pytest.raises(ValueError, match='returning'): split_by_time(items, returning=2)
    with pytest.warns(UserWarning, match='2 of 2 identities are on both sides'): split_by_time(items, at=2, returning=.5)


@pytest.mark.parametrize('seed', range(6))
def test_camera(seed):
    items = town(seed)
    out = quiet(split_by_camera, items, test=[1, 3], seed=seed)
    assert set(out.cam[out.split == 'train']) == {0, 2} and set(out.cam[(out.split != 'train') & (out.pid != -1)]) == {1, 3}
    assert not people(out, 'train') & people(out, 'query', 'gallery') and fair(out)
    with pytest.raises(ReidError, match='no cameras'): split_by_camera(items, test=[9])
    with pytest.raises(ReidError, match='have no camera'): split_by_camera(items.assign(cam=items.cam.mask(items.index == 0)), test=[1])


@pytest.mark.parametrize('k', [2, 3, 7])
def test_folds(k):
    items = town(3, dsets=('a', 'b'))
    folds = quiet(kfold_by_pid, items, k)
    everybody = people(items, 'train')
    tested = [people(o, 'query', 'gallery') for o in folds]
    assert len(folds) == k and set().union(*tested) == everybody and sum(map(len, tested)) == len(everybody)
    assert max(map(len, tested)) - min(map(len, tested)) <= 1
    for f, t in zip(folds, tested):
        assert people(f, 'train') == everybody - t and fair(f) and len(f) == len(items)
    for d in 'ab': # each dataset is spread
        n = [sum(o[0] == d for o in t) for t in tested]
        assert max(n) - min(n) <= 1
    assert all(a.equals(b) for a, b in zip(folds, quiet(kfold_by_pid, items.sample(frac=1, random_state=0), k)))
    assert not folds[0].equals(quiet(kfold_by_pid, items, k, seed=1)[0])


def test_distractors_stay_where_they_are():
    items = as_items(pd.concat([town(4).assign(dset='a').query('pid > 0'), make_items(['z.jpg'], pid=0, cam=0, split='gallery', dset='a', time=1.)]))
    items.loc[items.index[items.pid == 5][:1], 'split'] = 'query'
    items.loc[items.index[items.pid == 5][1:], 'split'] = 'gallery'
    for f in quiet(kfold_by_pid, items, 3): assert f.split[f.path == 'z.jpg'].item() == 'gallery'


# Market's layout

@pytest.fixture
def shots(tmp_path):
    items = town(5).assign(dset='mine')
    items['path'] = [str(tmp_path / 'in' / f'{i}.{"jpg" if i % 3 else "png"}') for i in range(len(items))]
    (tmp_path / 'in').mkdir()
    for i, o in enumerate(items.path): Image.fromarray(noise(16, 8, i)).save(o)
    return quiet(split_by_time, items, returning='both')


@pytest.mark.parametrize('link', [True, False])
def test_market_there_and_back(tmp_path, shots, link):
    items = as_items(shots.assign(pid=shots.pid.where(shots.pid == -1, shots.pid + 3), frame=7, seq=2))
    out = items_to_market(items, tmp_path / 'out', link=link)
    back, own = market1501(out, check=False), items_from_csv(out / 'items.csv')
    assert (back.seq == 2).all() and (back.frame == 7).all()
    read = {os.path.relpath(r.path, out): (r.pid, r.cam, str(r.split)) for r in back.itertuples()}
    for r in own.itertuples(): assert read[os.path.relpath(r.path, out)] == (r.pid, r.cam, str(r.split))
    key = ['source', 'pid', 'cam', 'split', 'dset', 'time']
    a, b = (o.astype(dict(split=str, dset=str)).sort_values(['source', 'split'])[key].reset_index(drop=True) for o in (items.assign(source=items.path), own))
    pd.testing.assert_frame_equal(a, b, check_dtype=False)
    for r in own.itertuples():
        with Image.open(r.path) as im: assert im.format == 'JPEG'
        if r.source.endswith('jpg'): assert Path(r.path).read_bytes() == Path(r.source).read_bytes()
        assert os.path.samefile(r.path, r.source) == (link and r.source.endswith('jpg'))
        assert np.abs(pixels(r.path).astype(int) - pixels(r.source)).mean() < 12


def test_what_other_tools_parse(tmp_path, shots):
    out = items_to_market(shots, tmp_path / 'out') # has a person 0, so everybody is numbered anew
    own = items_from_csv(out / 'items.csv')
    assert own.market_pid.min() == -1 and 0 not in set(own.market_pid)
    assert own[own.pid != -1].groupby('pid').market_pid.nunique().max() == own[own.pid != -1].groupby('market_pid').pid.nunique().max() == 1
    for r in own.itertuples():
        pid, cam = map(int, re.search(r'([-\d]+)_c(\d)', os.path.basename(r.path)).groups())
        assert (pid, cam) == (r.market_pid, r.cam + 1)


def test_market_keeps_unasked_zero_and_renumbers_shared_pids(tmp_path, shots):
    zero = shots[shots.pid == 4].assign(pid=0, split='gallery')[:2]
    items = as_items(pd.concat([shots[shots.pid > 0], zero]))
    own = items_from_csv(items_to_market(items, tmp_path / 'a') / 'items.csv')
    assert (own.market_pid == own.pid).all() and (own.pid == 0).sum() == 2
    twice = as_items(pd.concat([items, items.assign(dset='other')]))
    own = items_from_csv(items_to_market(twice, tmp_path / 'b') / 'items.csv')
    who = own[own.pid > 0].groupby(['dset', 'pid'], observed=True).market_pid.agg(['nunique', 'first'])
    assert (who['nunique'] == 1).all() and who['first'].is_unique and sorted(who['first']) == list(range(1, len(who) + 1))
    assert set(own.market_pid[own.pid == 0]) == {0}


def test_many_cameras_and_none(tmp_path, shots):
    with pytest.warns(UserWarning, match='take camera 13 for 1'): items_to_market(shots.assign(cam=12), tmp_path / 'a')
    with pytest.raises(ReidError, match='have no camera'): items_to_market(shots.assign(cam=None), tmp_path / 'b')
    with pytest.raises(ReidError, match='nothing to write'): items_to_market(shots[:0], tmp_path / 'b')
    back = market1501(items_to_market(shots.assign(cam=None), tmp_path / 'b', unknown_cam='apart'), check=False)
    assert set(back.cam[back.split == 'query']) == {0} and set(back.cam[back.split != 'query']) == {1}


def test_all_or_nothing(tmp_path, shots):
    Path(shots.path.iloc[-1]).write_bytes(b'broken')
    with pytest.raises(ReidError, match="can't be read"): items_to_market(shots, tmp_path / 'out')
    assert sorted(o.name for o in tmp_path.iterdir()) == ['in']
    (tmp_path / 'out').mkdir()
    items_to_market(shots[:-1], tmp_path / 'out') # an empty folder is fine
    with pytest.raises(ReidError, match="isn't empty"): items_to_market(shots[:-1], tmp_path / 'out')
    with pytest.raises(ReidError, match='tracklets'): items_to_market(shots.assign(frames=[[o] for o in shots.path]), tmp_path / 'x')
