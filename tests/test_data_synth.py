"Drawn people: the same bytes from the same seed, Market's layout, every factor in its column, a cache that heals"
import os
import re
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from reid_nb.core import ReidError, check_items, items_stats, rows_of
from reid_nb.data import synth
from reid_nb.data.datasets import market1501
from reid_nb.data.synth import (BAGS, BOTTOMS, HATS, LOOKS, OCCLUDERS, PATTERNS, SCENES, STYLES, TOPS, Camera, Person, Shot, joints, make_cameras, make_people,
                                panorama, portrait, random_person, second_colour, synth_clip, synth_people, take)

SMALL = dict(n_ids=6, n_cams=2, per_cam=3, distractors=4, junk=2)


def size_of(path):
    with Image.open(path) as im: return im.size


def files(root): return {str(o.relative_to(root)): o.read_bytes() for o in sorted(Path(root).rglob('*')) if o.is_file()}


@pytest.fixture(scope='module')
def small(tmp_path_factory):
    root = tmp_path_factory.mktemp('synth') / 'small'
    return root, synth_people(root, **SMALL)


# The same bytes

def test_the_same_seed_gives_the_same_bytes(small, tmp_path):
    again = synth_people(tmp_path / 'again', **SMALL)
    assert files(tmp_path / 'again') == files(small[0])
    cols = [o for o in again if o != 'path']
    pd.testing.assert_frame_equal(again[cols], small[1][cols])


def test_another_seed_gives_other_people(small, tmp_path):
    other = synth_people(tmp_path / 'other', **SMALL, seed=1)
    a, b = files(small[0]), files(tmp_path / 'other')
    same = [o for o in a if o.endswith('.jpg') and a[o] == b.get(o)]
    assert same == [] and not other.top_colour.equals(small[1].top_colour)


def test_another_process_draws_the_same(small, tmp_path):
    "Nothing hangs on the hash seed, on what was drawn before or on numpy's global state"
    code = f'import numpy; numpy.random.seed(5); from reid_nb.data.synth import *; synth_people({str(tmp_path / "p")!r}, **{SMALL})'
    subprocess.run([sys.executable, '-c', code], check=True, env=os.environ | dict(PYTHONHASHSEED='7'))
    assert files(tmp_path / 'p') == files(small[0])


def test_drawing_leaves_the_global_random_state_alone(tmp_path):
    np.random.seed(1)
    want = np.random.rand()
    np.random.seed(1)
    synth_people(tmp_path / 'x', **SMALL)
    assert np.random.rand() == want


def test_the_order_of_drawing_does_not_matter(small):
    o = dict(SMALL, seed=0, size=(128, 64), clothes_change=0., twins=synth.TWINS, occlusion=synth.OCCLUSION, bad_crops=synth.BAD_CROPS, tracklets=False, n_frames=8)
    cams = make_cameras(2)
    plan = synth._plan(o, cams)
    for row, shot in plan[::-5]:
        im, _ = take(shot, cams[shot.cam])
        im.save(path := small[0].parent / 'one.jpg', quality=cams[shot.cam].quality)
        assert path.read_bytes() == (small[0] / row['path']).read_bytes()


def test_more_pictures_leave_the_others_as_they_were(small, tmp_path):
    "A picture depends on (seed, pid, camera, visit), so a larger set contains the smaller one"
    synth_people(tmp_path / 'more', **SMALL | dict(per_cam=4, distractors=6))
    a, b = files(small[0]), files(tmp_path / 'more')
    names = [o for o in a if o.endswith('.jpg')]
    assert len(names) == 6 * 2 * 3 + 6 and all(a[o] == b[o] for o in names)


# Layout and counts

def test_layout_and_names(small):
    root, items = small
    assert sorted(os.listdir(root)) == ['bounding_box_test', 'bounding_box_train', 'items.csv', 'query', 'synth.json']
    folder = dict(train='bounding_box_train', query='query', gallery='bounding_box_test')
    for r in items.itertuples():
        m = re.fullmatch(r'(-1|\d{4})_c(\d)s1_(\d{6})_00\.jpg', Path(r.path).name)
        assert m and (int(m[1]), int(m[2]) - 1, int(m[3])) == (r.pid, r.cam, r.frame)
        assert Path(r.path).parent == root / folder[r.split]
    on_disk = {str(o) for o in root.rglob('*.jpg')}
    assert set(items.path) == on_disk and items.path.is_unique


def test_markets_reader_finds_the_same(small):
    got = market1501(small[0], check=False)
    cols = ['path', 'pid', 'cam', 'split', 'frame']
    same = [o.sort_values('path')[cols].astype({'split': str, 'frame': int}).reset_index(drop=True) for o in (small[1], got)]
    pd.testing.assert_frame_equal(*same)


def test_counts_and_splits(small):
    items = small[1]
    check_items(items, paths='all')
    st = items_stats(items)
    assert st.loc['train', 'images'] == 3 * 2 * 3 and st.loc['query', 'images'] == 3 * 2
    assert st.loc['gallery', 'images'] == 3 * 2 * 2 + 4 + 2
    assert st.loc['total', 'distractors'] == 4 and st.loc['total', 'junk'] == 2
    assert not set(rows_of(items, 'train').pid) & set(rows_of(items, 'query', 'gallery').pid)
    assert set(rows_of(items, 'query').pid) == set(items[items.split == 'gallery'].pid) - {0, -1}
    q = rows_of(items, 'query')
    assert not q.duplicated(['pid', 'cam']).any() and (items.dset == 'synth').all()


@pytest.mark.parametrize('n_ids, train', [(4, 2), (5, 3), (7, 4)])
def test_half_of_the_identities_train(tmp_path, n_ids, train):
    items = synth_people(tmp_path / 'x', n_ids=n_ids, n_cams=2, per_cam=2, distractors=0, junk=0, size=(32, 16))
    assert rows_of(items, 'train').pid.nunique() == train and items.pid.nunique() == n_ids


def test_sizes(tmp_path):
    for size in ((64, 64), (256, 128), (100, 37)):
        items = synth_people(tmp_path / str(size), n_ids=4, n_cams=1, per_cam=2, distractors=0, junk=0, size=size)
        assert set(map(size_of, items.path)) == {size[::-1]}


# Factors

def test_every_factor_is_a_column(small):
    items = small[1]
    fields = set(asdict(Person())) | {'yaw', 'phase', 'stride', 'exposure', 'place', 'dx', 'dy', 'zoom', 'occluder', 'at'}
    assert fields | {'tid', 'frame', 'clothes', 'twin', 'twin_by', 'view', 'hidden'} <= set(items)
    for col, known in dict(top=TOPS, pattern=PATTERNS, bottom=BOTTOMS, bag=BAGS, hair=STYLES, hat=HATS, occluder=OCCLUDERS, view=('front', 'side', 'back')).items():
        assert set(items[col]) <= set(known), col
    assert items.phase.between(0, 1).all() and items.hidden.between(0, 1).all() and items.yaw.between(-180, 180).all()
    assert not items.isna().any().any() and items.glasses.dtype == bool
    who = [o for o in asdict(Person())]
    assert (items[items.pid > 0].groupby('pid')[who].nunique() == 1).all().all()


def test_the_view_is_what_one_sees():
    o = dict(SMALL, seed=3, clothes_change=0., twins=0., occlusion=0., bad_crops=0., tracklets=False, n_frames=8)
    for row, shot in synth._plan(o, make_cameras(2)):
        facing = np.cos(np.radians(shot.yaw))
        assert row['view'] == ('front' if facing > .7072 else 'back' if facing < -.7072 else 'side')


def test_factors_can_be_switched_off(tmp_path):
    off = synth_people(tmp_path / 'off', **SMALL | dict(junk=0), occlusion=0., bad_crops=0., twins=0.)
    assert (off.occluder == 'none').all() and (off.hidden == 0).all() and (off.twin == 0).all() and off.dx.abs().max() < .14
    on = synth_people(tmp_path / 'on', **SMALL | dict(junk=0), occlusion=1., bad_crops=1., twins=1.)
    assert (on.occluder != 'none').all() and (on.hidden > 0).mean() > .9 and (on.dx.abs() >= .14).all()
    assert (on[on.pid > 0].groupby('pid').twin.first() > 0).sum() == 4 # two pairs among three and three


def test_switching_occlusion_off_leaves_the_rest(small, tmp_path):
    off = synth_people(tmp_path / 'off', **SMALL, occlusion=0.)
    a, b = small[1], off
    same = [o for o in a if o not in ('path', 'occluder', 'hidden')]
    pd.testing.assert_frame_equal(a[same], b[same])
    free = (a.occluder == 'none').to_numpy()
    assert all(Path(p).read_bytes() == Path(q).read_bytes() for p, q in zip(a.path[free], b.path[free]))


def test_shares_are_kept():
    o = dict(n_ids=60, n_cams=3, per_cam=4, distractors=0, junk=0, seed=0, clothes_change=.5, twins=.2, occlusion=.12, bad_crops=.1, tracklets=False, n_frames=8)
    rows = pd.DataFrame([row for row, _ in synth._plan(o, make_cameras(3))])
    assert abs((rows.occluder != 'none').mean() - .12) < .04 and abs((rows.dx.abs() > .135).mean() - .1) < .04
    ids = rows.groupby('pid')
    assert abs((ids.clothes.nunique() == 2).mean() - .5) < .2 and (ids.twin.first() > 0).sum() == 12


def test_the_hidden_share_is_measured():
    whole, shares = dict(cam=0, yaw=20., place=.3), []
    for at in (0., .5, 1.2, 3.):
        shares.append(take(Shot(Person(), occluder='pillar', at=at, **whole), Camera())[1])
    assert shares == sorted(shares, reverse=True) and shares[0] > .5 and shares[-1] == 0


def test_twins_differ_in_one_attribute_and_stay_in_their_half():
    test = np.arange(80) % 3 == 0
    for seed in range(5):
        people, kin = make_people(80, seed, 1., test)
        assert sum(k >= 0 for k, _ in kin) == sum(n // 2 * 2 for n in (test.sum(), (~test).sum()))
        for i, (k, what) in enumerate(kin):
            if k < 0: continue
            assert kin[k] == (i, what) and test[i] == test[k]
            assert [o for o in asdict(people[i]) if getattr(people[i], o) != getattr(people[k], o)] == [what]


def test_clothes_change(tmp_path):
    items = synth_people(tmp_path / 'x', n_ids=8, n_cams=3, per_cam=2, distractors=0, junk=0, clothes_change=1.)
    assert (items.groupby(['pid', 'cam']).clothes.nunique() == 1).all() and (items.groupby('pid').clothes.nunique() == 2).all()
    stays = ['height', 'build', 'skin', 'hair', 'hair_colour', 'hat', 'bag', 'bag_colour', 'glasses', 'beard']
    assert (items.groupby('pid')[stays].nunique() == 1).all().all()
    assert items.groupby(['pid', 'clothes']).top_colour.nunique().eq(1).all()


# Tracklets

def test_tracklets(tmp_path):
    opts = dict(n_ids=4, n_cams=2, tracklets=True, n_frames=30, distractors=2, junk=1, bad_crops=0.)
    items = synth_people(tmp_path / 'x', **opts)
    check_items(items, paths='all')
    assert len(items) == 4 * 2 * 2 + 3 and items.tid.is_unique and set(items.frames.map(len)) == {30}
    assert (items.path == items.frames.map(lambda o: o[0])).all()
    every = [f for fs in items.frames for f in fs]
    assert len(every) == len(set(every)) and set(every) == {str(o) for o in (tmp_path / 'x').rglob('*.jpg')}
    assert items_stats(items).loc['query', 'tracklets'] == 2 * 2
    pics = pd.read_csv(tmp_path / 'x/items.csv')
    for _, g in pics.groupby('tid'):
        assert (g.frame.diff().dropna() == 1).all() and g[['pid', 'cam', 'split', 'stride']].nunique().max() == 1
        step = g.phase.diff().dropna() % 1
        assert np.ptp(step) < .003 and .055 < step.mean() < .105
    pd.testing.assert_frame_equal(items, synth_people(tmp_path / 'x', **opts)) # from the folder


# The cache

def test_the_cache_is_used_again(tmp_path, monkeypatch):
    monkeypatch.setenv('REID_NB_CACHE', str(tmp_path))
    opts = dict(n_ids=4, n_cams=2, per_cam=2, distractors=0, junk=0)
    first = synth_people(**opts)
    stamp = {o: os.stat(o).st_mtime_ns for o in first.path}
    pd.testing.assert_frame_equal(first, synth_people(**opts))
    assert stamp == {o: os.stat(o).st_mtime_ns for o in first.path}
    second = synth_people(**opts, seed=np.int64(1))
    assert Path(first.path[0]).parts[:-2] != Path(second.path[0]).parts[:-2] and len(os.listdir(tmp_path / 'synth')) == 2
    assert synth_people(**opts | dict(camera_effects=1)).path[0] == first.path[0] # 1 and 1. are the same
    monkeypatch.setattr(synth, 'VERSION', synth.VERSION + 1)
    assert synth_people(**opts).path[0] != first.path[0]


@pytest.mark.parametrize('cached', [True, False])
@pytest.mark.parametrize('harm', ['a picture', 'a folder', 'the note', 'half a note'])
def test_what_is_not_whole_is_drawn_again(tmp_path, monkeypatch, cached, harm):
    monkeypatch.setenv('REID_NB_CACHE', str(tmp_path))
    opts = dict(root=None if cached else tmp_path / 'mine', n_ids=4, n_cams=1, per_cam=2, distractors=0, junk=0, size=(32, 16))
    items = synth_people(**opts)
    root = Path(items.path[0]).parent.parent
    want = files(root)
    if harm == 'a picture': Path(items.path[3]).unlink()
    if harm == 'a folder':
        for o in (root / 'query').iterdir(): o.unlink()
        (root / 'query').rmdir()
    if harm == 'the note': (root / 'synth.json').unlink()
    if harm == 'half a note': (root / 'synth.json').write_text('{"tag": "')
    if 'note' in harm and not cached: # it could be anything
        with pytest.raises(ReidError, match='did not draw|other options'): synth_people(**opts)
        return
    synth_people(**opts)
    assert files(root) == want


def test_a_run_that_fails_leaves_nothing(tmp_path, monkeypatch):
    calls = []
    def broken(*a):
        calls.append(a)
        if len(calls) == 5: raise KeyboardInterrupt
        return take(*a)
    monkeypatch.setattr(synth, 'take', broken)
    with pytest.raises(KeyboardInterrupt): synth_people(tmp_path / 'x', **SMALL)
    assert os.listdir(tmp_path) == []


def test_two_processes_may_draw_the_same(tmp_path):
    code = f'from reid_nb.data.synth import *; synth_people({str(tmp_path / "x")!r}, **{SMALL})'
    both = [subprocess.Popen([sys.executable, '-c', code], stderr=subprocess.PIPE, text=True) for _ in range(2)]
    assert [(p.communicate()[1], p.returncode) for p in both] == [('', 0)] * 2
    assert os.listdir(tmp_path) == ['x'] and len(synth_people(tmp_path / 'x', **SMALL)) == 42


# Errors

@pytest.mark.parametrize('bad, said', [(dict(n_ids=3), '`n_ids` must be a whole number from 4'), (dict(n_cams=0), '`n_cams`'), (dict(per_cam=1), '`per_cam`'),
    (dict(n_ids=2.5), 'not 2.5'), (dict(distractors=-1), '`distractors`'), (dict(junk=True), 'not True'), (dict(seed=-1), '`seed`'), (dict(twins=2), '`twins` is a share'),
    (dict(occlusion=-.1), '`occlusion`'), (dict(clothes_change=1.5), '`clothes_change`'), (dict(bad_crops=7), '`bad_crops`'), (dict(camera_effects=-1), '`camera_effects`'),
    (dict(size=(8, 8)), r'`size` is \(height, width\)'), (dict(size=(128,)), '`size`'), (dict(tracklets=True, n_frames=1), '`n_frames`')])
def test_bad_options(tmp_path, bad, said):
    with pytest.raises(ValueError, match=said): synth_people(tmp_path / 'x', **bad)
    assert not (tmp_path / 'x').exists()


def test_other_folders_are_left_alone(small, tmp_path):
    (tmp_path / 'thesis.tex').write_text('…')
    with pytest.raises(ReidError, match='did not draw.*thesis.tex'): synth_people(tmp_path, **SMALL)
    assert os.listdir(tmp_path) == ['thesis.tex']
    before = files(small[0])
    with pytest.raises(ReidError, match='other options'): synth_people(small[0], **SMALL | dict(seed=2))
    assert files(small[0]) == before
    (tmp_path / 'empty').mkdir()
    assert len(synth_people(tmp_path / 'empty', **SMALL)) == 42


# The drawing

def test_the_walk_is_a_cycle_on_the_ground():
    for build in (.8, 1.2):
        for p in np.linspace(0, 1, 23):
            j, k = joints(p, .9, build), joints(p + .5, .9, build)
            for o in j: np.testing.assert_allclose(j[o], k[('r' if o[0] == 'l' else 'l') + o[1:]] * (-1, 1, 1), atol=1e-12)
            np.testing.assert_allclose(joints(p + 1, .9, build)['l_toe'], j['l_toe'], atol=1e-12)
            lowest = max(j[f'{s}_{o}'][1] + r for s in 'lr' for o, r in (('ankle', .024), ('toe', .012)))
            assert abs(lowest - .985) < 1e-9
    assert abs(joints(.25, 0)['l_toe'][2] - joints(.25, 0)['r_toe'][2]) < .01 # standing


def test_patterns_go_round_the_body():
    v = np.linspace(0, 1, 50)[:, None]
    for o in PATTERNS:
        on = second_colour(o, np.linspace(-np.pi, np.pi, 80)[None], v)
        assert on.shape == (50, 80) and on.any() == (o != 'plain')
        a, b = (second_colour(o, np.array([[x]]), v) for x in (-np.pi + 1e-6, np.pi - 1e-6))
        assert (a == b).mean() > .7 or o in ('pinstripes', 'checks', 'dots')


@pytest.mark.parametrize('yaw', range(0, 360, 45))
def test_everybody_can_be_drawn_from_everywhere(yaw):
    rng = np.random.default_rng(yaw)
    paper = np.array([226, 228, 230])
    looks = [dict(top=o) for o in TOPS] + [dict(bottom=o) for o in BOTTOMS] + [dict(hair=o, hat=h) for o in STYLES for h in ('none', 'cap')]
    for o in looks + [dict(hat=o) for o in HATS] + [dict(bag=o) for o in BAGS] + [dict(pattern=o, top='dress', bottom='skirt') for o in PATTERNS]:
        im = np.asarray(portrait(replace(random_person(rng), **o), yaw, rng.random(), h=64))
        drawn = (np.abs(im - paper).sum(2) > 30).mean(1)
        assert im.shape == (64, 32, 3) and (drawn[8:60] > .03).all() and drawn.mean() < .6, o


def test_the_yaw_shows():
    "From behind one sees the pack, from the front the logo, and both sides mirror"
    red = lambda o, yaw: ((im := np.asarray(portrait(o, yaw, .25, 0., h=128)).astype(int))[..., 0] > im[..., 1:].max(2) + 60).sum()
    pack = Person(bag='backpack', bag_colour='red', skin='deep', top='sweater')
    assert red(pack, 180) > 4 * red(pack, 0) and red(pack, 90) > red(pack, 0)
    logo = Person(pattern='logo', colour2='red', skin='deep')
    assert red(logo, 0) > 20 and red(logo, 180) == 0


def test_cameras():
    cams = make_cameras(8, seed=3)
    assert [c.scene for c in cams[:6]] == [o['scene'] for o in LOOKS] and {c.scene for c in cams} <= set(SCENES) and cams == make_cameras(8, seed=3)
    assert make_cameras(3, seed=3) == cams[:3] and make_cameras(2, seed=4) != cams[:2]
    flat, plain = make_cameras(2, strength=0.), Camera()
    for c in flat: assert all(getattr(c, o) == getattr(plain, o) for o in ('gain', 'gamma', 'contrast', 'saturation', 'blur', 'resolution', 'noise', 'quality', 'tilt'))
    bare, same = (take(Shot(Person()), c)[0] for c in (plain, replace(plain, quality=20)))
    assert bare.tobytes() == same.tobytes() # the file's quality is not the picture's
    red = np.asarray(take(Shot(Person()), replace(plain, gain=(1.3, 1., 1.)))[0], int) - np.asarray(bare, int)
    assert red[..., 0].mean() > 10 and (red[..., 1:] == 0).all()
    for s in SCENES: assert panorama(s, 1, 100).size[1] == 100
    panorama('plaza', 0, 499) # kept, and not drawn upon
    before = panorama('plaza', 0, 499).tobytes()
    take(Shot(Person()), plain)
    assert panorama('plaza', 0, 499).tobytes() == before


def test_it_is_hard_in_the_right_way(tmp_path):
    "Colours find people where cameras agree, and not where they don't"
    def hit(**o):
        items = synth_people(tmp_path / str(len(o)), n_ids=20, n_cams=3, per_cam=2, distractors=0, junk=0, twins=0., size=(64, 32), **o)
        x = np.stack([np.asarray(Image.open(p), float)[4:60, 8:24].reshape(4, 14, 16, 3).mean((1, 2)).ravel() for p in items.path])
        d = np.linalg.norm(x[:, None] - x[None], axis=2)
        pid, cam = items.pid.to_numpy(), items.cam.to_numpy(dtype=int)
        d[(pid[:, None] == pid) & (cam[:, None] == cam)] = np.inf
        return (pid[d.argmin(1)] == pid).mean()
    assert hit() < .5 < .75 < hit(camera_effects=0., occlusion=0., bad_crops=0., background=False)


# The clip

def test_clip(tmp_path):
    gt = synth_clip(tmp_path / 'clip', n_people=4, n_frames=12, size=(180, 320), seed=2)
    assert gt == tmp_path / 'clip/gt.txt' and sorted(os.listdir(tmp_path / 'clip')) == [f'{i:06d}.jpg' for i in range(1, 13)] + ['gt.txt']
    lines = [[float(v) for v in o.split(',')] for o in gt.read_text().splitlines()]
    assert all(len(o) == 10 for o in lines) and lines == sorted(lines, key=lambda o: o[:2])
    for t, i, x, y, w, h, conf, *xyz in lines:
        assert 1 <= t <= 12 and 1 <= i <= 4 and x >= 0 and x + w <= 320 and y + h <= 180 and w > 3 and h > 20 and conf == 1 and xyz == [-1, -1, -1]
    again = synth_clip(tmp_path / 'again', n_people=4, n_frames=12, size=(180, 320), seed=2)
    assert files(tmp_path / 'again') == files(tmp_path / 'clip')
    assert synth_clip(tmp_path / 'clip', n_people=4, n_frames=2, size=(180, 320)).read_text() != again.read_text() # replaced
    assert len(os.listdir(tmp_path / 'clip')) == 3


def test_boxes_of_a_clip_hold_the_people():
    clean = list(synth._clip_frames(3, 5, 4, (180, 320), 0))
    empty = [np.asarray(synth.expose(synth.panorama('plaza', 4000, 180).crop((0, 0, 320, 180)), replace(make_cameras(6, 4)[0], resolution=1., blur=.25 * 128 / 180),
             np.random.default_rng([4, 22, t]), 1.), int) for t in range(5)]
    for (im, boxes), bg in zip(clean, empty):
        diff = np.abs(np.asarray(im, int) - bg).sum(2)
        inside = np.zeros(diff.shape, bool)
        for _, x0, y0, x1, y1 in boxes: inside[y0:y1, x0:x1] = True
        assert boxes and diff[inside].mean() > 5 * diff[~inside].mean()


def test_people_of_a_clip_come_back():
    h, w = 180, 320
    ways = synth._ways(make_people(10)[0], np.random.default_rng(0), h, w, 400)
    x = np.array([o[1] for o in ways])
    there = (x > 0) & (x < w)
    assert there.mean() > .5 and (there[:, :100].any(1) & there[:, 300:].any(1)).mean() > .7
    assert np.abs(np.diff(x)).max() < 8
    for _, x, depth, yaw, phase, _ in ways:
        assert ((depth >= 0) & (depth <= 1)).all() and ((phase >= 0) & (phase < 1)).all()
        assert (np.sign(np.diff(x)) == np.sign(np.sin(np.radians(yaw[1:])))).mean() > .97


@pytest.mark.parametrize('suffix', ['.mp4', '.avi'])
def test_clip_as_a_video(tmp_path, suffix):
    av = pytest.importorskip('av')
    gt = synth_clip(tmp_path / f'walk{suffix}', n_people=2, n_frames=6, size=(120, 160), fps=10)
    assert set(os.listdir(tmp_path)) == {'walk.gt.txt', f'walk{suffix}'} and gt.name == 'walk.gt.txt'
    with av.open(str(tmp_path / f'walk{suffix}')) as f:
        pics = [o.to_ndarray(format='rgb24') for o in f.decode(video=0)]
        assert len(pics) == 6 and pics[0].shape == (120, 160, 3) and f.streams.video[0].average_rate == 10
    synth_clip(tmp_path / 'f', n_people=2, n_frames=6, size=(120, 160))
    want = np.asarray(Image.open(tmp_path / 'f/000001.jpg'), float)
    assert np.abs(pics[0] - want).mean() < 8 and (tmp_path / 'f/gt.txt').read_text() == gt.read_text()


def test_clip_errors(tmp_path):
    with pytest.raises(ValueError, match='even `size`'): synth_clip(tmp_path / 'x', size=(181, 320))
    with pytest.raises(ValueError, match='n_people=0'): synth_clip(tmp_path / 'x', n_people=0)
    (tmp_path / 'notes.txt').write_text('…')
    with pytest.raises(ReidError, match='did not draw.*notes.txt'): synth_clip(tmp_path)
    assert os.listdir(tmp_path) == ['notes.txt']
