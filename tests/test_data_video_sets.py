"Tracklet datasets in their official layouts, and damaged"
import inspect
import json
import os
import random
import shutil
import warnings
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from layouts_more import MARS_TRACKS, VIDEO, make_dukemtmcvidreid, make_ilidsvid, make_mars, make_prid2011, put
from scipy.io import savemat

from reid_nb.core import ReidError, check_items, items_stats, rows_of
from reid_nb.data import video_sets
from reid_nb.data.datasets import read_spec
from reid_nb.data.video_sets import VIDEO_SPECS, dukemtmcvidreid, frames_to_tracklets, ilidsvid, mars, prid2011, read_mat

NAMES = sorted(VIDEO)


def mini(name): return replace(VIDEO_SPECS[name], counts=VIDEO[name][1])


def read(name, root, **options): return getattr(video_sets, name)(root, check=False, **options)


def frame_names(items): return {t: [os.path.basename(o) for o in fs] for t, fs in zip(items.tid, items.frames)}


# ---- all of them

def test_every_spec_has_a_function_a_maker_and_its_terms():
    assert sorted(VIDEO_SPECS) == NAMES
    for name, spec in VIDEO_SPECS.items():
        assert name == spec.name and spec.get and spec.licence and spec.ethics and spec.paper and spec.counts
        takes = inspect.signature(getattr(video_sets, name)).parameters
        assert {'root', 'check', 'min_frames'} <= set(takes)
        assert ('split_id' in takes) == (spec.splits > 1) == bool(spec.average)
        assert set(takes) - {'root', 'check', 'junk'} == set(inspect.signature(spec.rows).parameters) - {'spec', 'home'}


@pytest.mark.parametrize('name', NAMES)
def test_a_miniature_is_read_whole(tmp_path, name):
    VIDEO[name][0](tmp_path / 'run_1_c2' / 'here')
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        items = read_spec(mini(name), tmp_path / 'run_1_c2' / 'here')
    check_items(items, paths='all')
    assert set(items.dset) == {name} and items.tid.is_unique
    assert all(isinstance(o, list) and o and all(map(os.path.isfile, o)) for o in items.frames)
    assert list(items.path) == [o[0] for o in items.frames]
    assert not items.columns.intersection(['person', 'track', 'named', 'frame', '_n']).size
    assert str(items.pid.dtype) == 'int64' and str(items.cam.dtype) == 'Int64' and items.cam.min() == 0


@pytest.mark.parametrize('name', NAMES)
def test_official_counts_are_missed_by_a_miniature_and_said_once(tmp_path, name):
    VIDEO[name][0](tmp_path)
    train = VIDEO_SPECS[name].counts['train']['tracklets']
    with pytest.warns(UserWarning, match=f'{name}: counts differ.*train tracklets {train:,} → ') as seen: getattr(video_sets, name)(tmp_path)
    assert len(seen) == 1


@pytest.mark.parametrize('name,home', [(k, h) for k in NAMES for h in VIDEO_SPECS[k].homes])
def test_it_is_found_where_archives_put_it(tmp_path, name, home):
    VIDEO[name][0](tmp_path / home)
    plain = VIDEO[name][0](tmp_path / 'plain' / 'x')
    drop = ['path', 'frames']
    assert read(name, tmp_path).drop(columns=drop).equals(read(name, plain).drop(columns=drop))


@pytest.mark.parametrize('name', NAMES)
def test_what_is_missing_is_drawn(tmp_path, name):
    VIDEO[name][0](tmp_path)
    spec = VIDEO_SPECS[name]
    word, gone = next((k, o) for k, o in list(spec.layout.items())[-1:])
    first = gone if isinstance(gone, str) else gone[0]
    (shutil.rmtree if (tmp_path / first).is_dir() else os.remove)(tmp_path / first)
    with pytest.raises(FileNotFoundError, match=f'found {len(spec.layout) - 1} of {len(spec.layout)} parts[^$]*{first.replace(".", ".")}.*<- missing'): read(name, tmp_path)
    with pytest.raises(FileNotFoundError, match='there is no folder'): read(name, tmp_path / 'nowhere')


@pytest.mark.parametrize('name', NAMES)
def test_short_tracklets_can_be_left_out(tmp_path, name):
    VIDEO[name][0](tmp_path)
    full, least = read(name, tmp_path), read(name, tmp_path, min_frames=3)
    assert least.frames.map(len).min() >= 3
    assert set(least.tid) == set(full.tid[full.frames.map(len) >= 3])


def test_the_order_of_a_listing_does_not_matter(tmp_path, monkeypatch):
    make_ilidsvid(tmp_path)
    want, scan = ilidsvid(tmp_path, check=False), os.scandir

    class Shuffled(list):
        __enter__, __exit__ = (lambda self: self), (lambda self, *a: None)

    monkeypatch.setattr(os, 'scandir', lambda path: Shuffled(random.Random(1).sample(o := list(scan(path)), len(o))))
    assert ilidsvid(tmp_path, check=False).equals(want)


# ---- frames to tracklets

def test_frames_are_ordered_by_number_not_by_letters():
    names = [f'v2/person7_{i}.png' for i in (1, 2, 10, 9, 100)]
    df = pd.DataFrame(dict(path=names, tid='a', pid=1, cam=1, split='train', extra='x'))
    out = frames_to_tracklets(df)
    assert out.frames[0] == [f'v2/person7_{i}.png' for i in (1, 2, 9, 10, 100)] and out.extra[0] == 'x'
    assert frames_to_tracklets(df.assign(frame=['5', '4', '3', '2', '1'])).frames[0] == names[::-1]


def test_frames_without_a_number_and_mixed_tracklets_are_refused():
    df = pd.DataFrame(dict(path=['a/x.png', 'a/y.png'], tid='a', pid=1, cam=1, split='train'))
    with pytest.raises(ReidError, match='2 frames have no number in their names: a/x.png, a/y.png'): frames_to_tracklets(df)
    for change in (dict(pid=[1, 2]), dict(split=['train', 'query']), dict(cam=[1, 2])):
        with pytest.raises(ReidError, match='1 tracklets hold several identities, cameras or splits: a'): frames_to_tracklets(df.assign(path=['a/1.png', 'a/2.png'], **change))


# ---- MATLAB files

def test_mat_files_that_are_none(tmp_path):
    with pytest.raises(FileNotFoundError): read_mat(tmp_path / 'no.mat', 'a')
    for data in (b'', b'hello', b'MATLAB 5.0 MAT-file' + bytes(200)):
        put(tmp_path / 'bad.mat', data)
        with pytest.raises(ReidError, match='bad.mat can\'t be read as a MATLAB file|has no variable'): read_mat(tmp_path / 'bad.mat', 'a')


def test_a_single_line_keeps_its_columns(tmp_path):
    savemat(tmp_path / 'a.mat', dict(a=np.array([[1., 2, 3, 4]]), b=np.ones((4, 3))))
    assert read_mat(tmp_path / 'a.mat', 'a', 4).tolist() == [[1, 2, 3, 4]]
    with pytest.raises(ReidError, match=r"'b' has the shape \(4, 3\), not \(n, 4\)"): read_mat(tmp_path / 'a.mat', 'b', 4)


# ---- MARS

def test_mars_rows_by_hand(tmp_path):
    items = mars(make_mars(tmp_path), check=False)
    slow = {f'{who}C{cam}T{t:04}': [f'{who}C{cam}T{t:04}F{i + 1:03}.jpg' for i in range(n)] for part in MARS_TRACKS.values() for who, cam, t, n in part}
    assert frame_names(items) == slow
    assert set(rows_of(items, 'query').tid) == {'0002C1T0001', '0006C2T0001'}
    stats = items_stats(items)
    assert stats.loc['gallery', ['ids', 'tracklets', 'cameras', 'distractors', 'junk']].tolist() == [2, 4, 3, 1, 1]
    assert len(mars(tmp_path, junk=False, check=False)) == len(items) - 1


def test_mars_official_counts_fit_together():
    counts = VIDEO_SPECS['mars'].counts
    assert counts['query']['tracklets'] + counts['gallery']['tracklets'] == 12180 and counts['gallery']['tracklets'] - counts['gallery']['junk'] == 9330


def rewrite(tmp_path, part, change):
    rows = read_mat(tmp_path / f'info/tracks_{part}_info.mat', f'track_{part}_info', 4).astype(float)
    change(rows)
    savemat(tmp_path / f'info/tracks_{part}_info.mat', {f'track_{part}_info': rows})


@pytest.mark.parametrize('cell,value,says', [((0, 1), 99, '1 tracklets point outside the 18 names of train_name.txt'), ((1, 0), 0, 'point outside'), ((2, 0), 99, 'point outside'),
                                             ((0, 2), 5, r'identity 5, camera 1 \(lines 1–3 of train_name.txt\) has frames named 0001C1'),
                                             ((1, 3), 4, 'identity 1, camera 4'), ((0, 1), 4, 'named 0001C1, 0001C2')])
def test_mars_lists_that_disagree(tmp_path, cell, value, says):
    make_mars(tmp_path)
    rewrite(tmp_path, 'train', lambda rows: rows.__setitem__(cell, value))
    with pytest.raises(ReidError, match=says): mars(tmp_path, check=False)


def test_mars_lost_frames_and_folders(tmp_path):
    make_mars(tmp_path)
    (tmp_path / 'bbox_test/0002/0002C4T0001F003.jpg').unlink()
    with pytest.raises(ReidError, match='1 frames of test_name.txt are missing: .*0002C4T0001F003.jpg'): mars(tmp_path, check=False)
    shutil.rmtree(tmp_path / 'bbox_train/0003')
    with pytest.raises(ReidError, match='13 frames of train_name.txt are missing'): mars(tmp_path, check=False)


def test_mars_queries_that_are_not_there(tmp_path):
    make_mars(tmp_path)
    for at in ([[7.]], [[0., 1]]):
        savemat(tmp_path / 'info/query_IDX.mat', dict(query_IDX=np.array(at)))
        with pytest.raises(ReidError, match='query_IDX.mat names tracklet . of 6'): mars(tmp_path, check=False)
    savemat(tmp_path / 'info/query_IDX.mat', dict(query_idx=np.array([[1.]])))
    with pytest.raises(ReidError, match="no variable 'query_IDX', only query_idx"): mars(tmp_path, check=False)


# ---- two cameras

@pytest.mark.parametrize('name', ['ilidsvid', 'prid2011'])
def test_ten_splits_each_of_two_halves(tmp_path, name):
    VIDEO[name][0](tmp_path)
    halves = set()
    for i in range(10):
        items = read(name, tmp_path, split_id=i)
        train, query, gallery = (rows_of(items, o) for o in ('train', 'query', 'gallery'))
        assert set(train.cam) == {0, 1} and set(query.cam) == {0} and set(gallery.cam) == {1}
        assert set(query.pid) == set(gallery.pid) and not set(query.pid) & set(train.pid)
        assert train.groupby('pid').size().eq(2).all() and query.pid.is_unique and gallery.pid.is_unique
        halves.add(tuple(sorted(set(train.pid))))
    assert len(halves) > 1
    for bad in (10, -1):
        with pytest.raises(ValueError, match=f'{name} has the splits 0 to 9, not {bad}'): read(name, tmp_path, split_id=bad)


def test_ilidsvid_first_half_of_the_mat_is_the_test(tmp_path):
    make_ilidsvid(tmp_path)
    line = read_mat(tmp_path / 'train-test people splits/train_test_splits_ilidsvid.mat', 'ls_set')[3].astype(int)
    people = (1, 2, 4, 7, 119, 319) # sorted folders; the .mat counts them from 1
    assert set(rows_of(ilidsvid(tmp_path, split_id=3, check=False), 'query').pid) == {people[i - 1] for i in line[:3]}


def test_ilidsvid_damage(tmp_path):
    make_ilidsvid(tmp_path)
    cam1 = tmp_path / 'i-LIDS-VID/sequences/cam1'
    put(cam1 / 'nobody/cam1_nobody_00001.png')
    with pytest.raises(ReidError, match='folders without a number at their end: nobody'): ilidsvid(tmp_path, check=False)
    (cam1 / 'nobody').rename(cam1 / 'person320')
    with pytest.raises(ReidError, match='the splits are of 6 people, 7 have a folder'): ilidsvid(tmp_path, check=False)
    shutil.rmtree(cam1 / 'person320')
    shutil.rmtree(tmp_path / 'i-LIDS-VID/sequences/cam2/person004')
    with pytest.raises(ReidError, match='1 people of this split lack a tracklet in one of the cameras: person004'): ilidsvid(tmp_path, check=False)
    for o in (tmp_path / 'i-LIDS-VID/sequences/cam2').rglob('*.png'): o.rename(o.with_suffix('.txt'))
    with pytest.raises(ReidError, match='no images in .*cam2'): ilidsvid(tmp_path, check=False)


def test_prid2011_takes_only_the_people_of_the_split(tmp_path):
    items = prid2011(make_prid2011(tmp_path), check=False)
    assert set(items.pid) == {1, 2, 3, 4}
    assert frame_names(items)['cam2/person_0004'] == ['0001.png', '0002.png', '0011.png']


@pytest.mark.parametrize('text,says', [('{', "isn't JSON"), ('[[1, 2]]', 'must name folders for "train" and "test"'), ('[{"train": []}]', 'must name folders'),
                                       (json.dumps([dict(train=['person_0001'], test=['person_0007'])]), 'lack a tracklet in one of the cameras: person_0007')])
def test_prid2011_damaged_splits(tmp_path, text, says):
    make_prid2011(tmp_path)
    (tmp_path / 'splits_prid2011.json').write_text(text)
    with pytest.raises(ReidError, match=says): prid2011(tmp_path, check=False)


# ---- DukeMTMC-VideoReID

def test_duke_keeps_every_frame_in_order_and_both_ways_of_naming(tmp_path):
    items = dukemtmcvidreid(make_dukemtmcvidreid(tmp_path), check=False)
    long = frame_names(items)['train/0001/0003']
    assert long == [f'0001_C6_F{i:04}_X{30823 + 12 * i}.jpg' for i in range(2, 13)]
    row = items[items.tid == 'train/0007/0010'].iloc[0]
    assert (row.pid, row.cam, row.start) == (7, 1, 512)
    assert items_stats(items).loc['gallery', 'distractors'] == 1


def test_duke_damage(tmp_path):
    make_dukemtmcvidreid(tmp_path)
    odd = put(tmp_path / 'gallery/0005/0002/0005_C3_F0003_X00999.jpg')
    with pytest.raises(ReidError, match='1 tracklets hold several identities, cameras or splits: gallery/0005/0002'): dukemtmcvidreid(tmp_path, check=False)
    odd.rename(odd.with_name('0006_C2_F0003_X00999.jpg'))
    with pytest.raises(ReidError, match='1 frames are named after another identity than their folder: .*0006_C2'): dukemtmcvidreid(tmp_path, check=False)
    odd.with_name('0006_C2_F0003_X00999.jpg').rename(odd.with_name('holiday.jpg'))
    with pytest.raises(ReidError, match='1 of 5 names in .*gallery'): dukemtmcvidreid(tmp_path, check=False)
    shutil.rmtree(tmp_path / 'query')
    (tmp_path / 'query/0005/0001').mkdir(parents=True)
    with pytest.raises(ReidError, match='no images in .*query'): dukemtmcvidreid(tmp_path, check=False)
