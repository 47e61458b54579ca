"The reader, on layouts with real file names, on damaged ones, and on names that nobody expects"
import io
import itertools
import os
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from PIL import Image

from reid_nb.core import ReidError, as_items, check_items, items_stats, make_items, rows_of
from reid_nb.data.datasets import (MARKET1501, Spec, folder_rows, items_from_csv, items_from_folder, market1501, read_spec, split_by_pid)

_jpeg = io.BytesIO()
Image.new('RGB', (8, 16), (200, 30, 30)).save(_jpeg, 'JPEG')
JPEG = _jpeg.getvalue()


def put(path, data=JPEG):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def make_market(root, inside='.', junk=3, distractors=2):
    "Market-1501 in miniature at `root/inside`: 3 + 3 identities, 6 cameras, real file names, Windows leftovers"
    home = root / inside
    for pid, cam in itertools.product((2, 7, 1500), (1, 3, 6)):
        put(home / f'bounding_box_train/{pid:04}_c{cam}s1_00{cam}301_01.jpg')
    for pid, cam in itertools.product((1, 3, 1501), (1, 2, 5)):
        put(home / f'query/{pid:04}_c{cam}s1_001051_00.jpg')
        for box in (1, 2): put(home / f'bounding_box_test/{pid:04}_c{cam}s3_027612_0{box}.jpg')
    for i in range(distractors): put(home / f'bounding_box_test/0000_c{i + 1}s1_000151_0{i}.jpg')
    for i in range(junk): put(home / f'bounding_box_test/-1_c{i + 1}s2_000401_0{i}.jpg')
    for o in ('bounding_box_train', 'query', 'bounding_box_test'): put(home / o / 'Thumbs.db', b'\xd0\xcf')
    put(home / 'readme.txt', b'hello')
    put(home / 'gt_bbox/0001_c1s1_001051_00.jpg')
    return home


MINI = replace(MARKET1501, counts=dict(train=dict(ids=3, images=9, cameras=3), query=dict(ids=3, images=9, cameras=3),
                                       gallery=dict(ids=4, images=23, cameras=4, junk=3)))


# ---- Market-1501

@pytest.mark.parametrize('inside', MARKET1501.homes)
def test_market_nestings(tmp_path, inside):
    root = tmp_path / 'run_1_c2'
    make_market(root, inside)
    items = market1501(root, check=False)
    assert items.split.value_counts().to_dict() == dict(gallery=23, train=9, query=9, val=0)
    assert set(items.pid) == {-1, 0, 1, 2, 3, 7, 1500, 1501}
    assert set(items.cam) == {0, 1, 2, 4, 5} and set(items.dset) == {'market1501'}
    assert set(items.seq) == {1, 2, 3} and str(items.frame.dtype) == 'Int64'
    assert all(os.path.isfile(o) for o in items.path)
    check_items(items, paths='all')


def test_market_pid_and_cam_come_from_the_name_alone(tmp_path):
    a = market1501(make_market(tmp_path / '9_c4' / '1_c2s1_000000'), check=False)
    b = market1501(make_market(tmp_path / 'plain'), check=False)
    assert a.drop(columns='path').equals(b.drop(columns='path'))


def test_market_counts(tmp_path):
    make_market(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        read_spec(MINI, tmp_path)
        market1501(tmp_path, check=False)
    with pytest.warns(UserWarning, match='train images 12,936 → 9.*gallery junk 3,819 → 3.*passed over: 3 .Thumbs.db') as seen: market1501(tmp_path)
    assert len(seen) == 1
    (tmp_path / 'query/0003_c2s1_001051_00.jpg').unlink()
    with pytest.warns(UserWarning, match=r': query images 9 → 8\.'): read_spec(MINI, tmp_path)


def test_market_official_counts_stand_in_the_spec():
    counts = MARKET1501.counts
    assert [counts[o]['images'] for o in ('train', 'query', 'gallery')] == [12936, 3368, 15913 + 3819]
    assert [counts[o]['ids'] for o in ('train', 'query', 'gallery')] == [751, 750, 751]


def test_market_junk(tmp_path):
    make_market(tmp_path)
    put(tmp_path / 'bounding_box_train/-1_c1s1_000001_00.jpg')
    kept, dropped = read_spec(MINI, tmp_path), read_spec(MINI, tmp_path, junk=False)
    assert set(kept.split[kept.pid == -1]) == {'gallery'} and (kept.pid == -1).sum() == 3
    assert (dropped.pid != -1).all() and len(kept) - len(dropped) == 3 and list(dropped.index) == list(range(len(dropped)))
    assert items_stats(kept).loc['gallery'].to_dict() == dict(ids=4, images=23, cameras=4, distractors=2, junk=3)


def test_market_is_the_same_however_the_folder_lists(tmp_path, monkeypatch):
    make_market(tmp_path)
    want, real = market1501(tmp_path, check=False), os.scandir

    class Reversed:
        def __init__(self, path): self.it = list(real(path))[::-1]
        def __enter__(self): return iter(self.it)
        def __exit__(self, *args): pass
    monkeypatch.setattr(os, 'scandir', Reversed)
    assert market1501(tmp_path, check=False).equals(want)


@pytest.mark.parametrize('gone', ['bounding_box_train', 'query', 'bounding_box_test'])
def test_market_missing_folder_is_drawn(tmp_path, gone):
    home = make_market(tmp_path, 'Market-1501-v15.09.15')
    (home / gone).rename(home / 'elsewhere')
    with pytest.raises(FileNotFoundError) as e: market1501(tmp_path)
    text = str(e.value)
    assert 'found 2 of 3 parts' in text and f'{gone}   <- missing' in text and text.count('<- missing') == 1
    assert str(home) in text and 'zheng-lab' in text


def test_market_nothing_there(tmp_path):
    with pytest.raises(FileNotFoundError, match='there is no folder'): market1501(tmp_path / 'nowhere')
    with pytest.raises(FileNotFoundError, match='holds nothing') as e: market1501(tmp_path)
    assert str(e.value).count('<- missing') == 3
    put(tmp_path / 'market.zip', b'PK')
    with pytest.raises(FileNotFoundError, match='holds market.zip'): market1501(tmp_path)


@pytest.mark.parametrize('files, says', [([], 'only nothing at all'), (['Thumbs.db'], 'only Thumbs.db'), (['0001_c1s1_001051_00.heic'], 'only 0001_c1s1_001051_00.heic')])
def test_market_folder_without_images(tmp_path, files, says):
    make_market(tmp_path)
    for o in (tmp_path / 'query').iterdir(): o.unlink()
    for o in files: put(tmp_path / 'query' / o)
    with pytest.raises(ReidError, match=f'no images in .*query, {says}'): market1501(tmp_path)


def test_market_odd_names_are_counted_and_named(tmp_path):
    make_market(tmp_path)
    for o in ('holiday.jpg', 'c1_0001.jpg', 'x0001_c1s1_1_1.jpg', '0001-c1.jpg', 'z.png'): put(tmp_path / 'query' / o)
    with pytest.raises(ReidError, match=r'5 of 14 names in .*query.*0001-c1\.jpg, c1_0001\.jpg, holiday\.jpg and 2 more'): market1501(tmp_path)


def test_market_camera_below_the_first(tmp_path):
    make_market(tmp_path)
    put(tmp_path / 'query/0001_c0s1_001051_00.jpg')
    with pytest.raises(ReidError, match='1 files have a camera below 1.*0001_c0s1'): market1501(tmp_path)


def test_market_names_in_other_shapes(tmp_path):
    make_market(tmp_path)
    for o in ('0001_c12s1_001051_00.JPG', '0001_c3s1_001051_00.jpg.jpg', '00001_c4.PNG'): put(tmp_path / 'query' / o)
    items = rows_of(market1501(tmp_path, check=False), 'query')
    new = items[items.path.map(os.path.basename).isin(['0001_c12s1_001051_00.JPG', '0001_c3s1_001051_00.jpg.jpg', '00001_c4.PNG'])]
    assert list(new.pid) == [1, 1, 1] and sorted(new.cam) == [2, 3, 11] and new.seq.isna().sum() == 1


def test_hidden_files_are_passed_over(tmp_path):
    make_market(tmp_path)
    for o in ('._0001_c1s1_001051_00.jpg', '.DS_Store', '.tmp/x.jpg'): put(tmp_path / 'query' / o)
    read_spec(MINI, tmp_path)


def test_home_and_strings(tmp_path, monkeypatch):
    make_market(tmp_path / 'data')
    monkeypatch.setenv('HOME', str(tmp_path))
    assert len(market1501('~/data', check=False)) == 41
    monkeypatch.chdir(tmp_path)
    assert market1501('data', check=False).path[0].startswith('data')


# ---- the spec carries other layouts

def test_spec_levels_and_letters_as_cameras(tmp_path):
    for split, pid, cam in itertools.product(('train', 'test'), ('001', '002'), 'ABC'): put(tmp_path / f'rgb/{split}/{pid}/{cam}_cropped_rgb0{pid}.jpg')
    spec = Spec(name='letters', layout=dict(train='rgb/train', gallery='rgb/test'), levels=('pid',), pattern=r'^(?P<cam>[ABC])_')
    items = read_spec(spec, tmp_path)
    assert len(items) == 12 and set(items.pid) == {1, 2} and set(items.cam) == {0, 1, 2}


def test_spec_cameras_and_identities_as_folders(tmp_path):
    for cam, pid in itertools.product((1, 4), (6, 533)): put(tmp_path / f'train/cam{cam}/{pid:04}/0001.jpg')
    spec = Spec(name='cams', layout=dict(train='train'), levels=(r'^cam(?P<cam>\d)$', 'pid'))
    items = read_spec(spec, tmp_path)
    assert sorted(zip(items.cam, items.pid)) == [(0, 6), (0, 533), (3, 6), (3, 533)]
    put(tmp_path / 'train/extra/0006/0001.jpg')
    with pytest.raises(ReidError, match='1 of 5 names in .*extra'): read_spec(spec, tmp_path)


def test_spec_other_columns_and_bases(tmp_path):
    for o in ('095_1_c8_015833.png', '095_2_c0_015834.png'): put(tmp_path / 'train' / o)
    spec = Spec(name='clothes', layout=dict(train='train'), pattern=r'^(?P<pid>\d+)_(?P<clothes>\d+)_c(?P<cam>\d+)_(?P<frame>\d+)', cam_base=0)
    items = read_spec(spec, tmp_path)
    assert list(items.clothes) == [1, 2] and list(items.cam) == [8, 0] and list(items.pid) == [95, 95]


def test_spec_with_lists_and_alternatives(tmp_path):
    def rows(spec, home, with_val=False):
        there = {k: next(home / o for o in (v if isinstance(v, tuple) else (v,)) if (home / o).exists()) for k, v in spec.layout.items()}
        out = []
        for split, names, folder in (('train', 'list_train', 'seen'), ('train', 'list_val', 'seen'), ('query', 'list_query', 'unseen'), ('gallery', 'list_gallery', 'unseen')):
            if names == 'list_val' and not with_val: continue
            for line in there[names].read_text().splitlines():
                path, pid = line.split()
                out.append(dict(path=there[folder] / path, pid=pid, cam=path.split('_')[2], split=split))
        return pd.DataFrame(out)

    layout = dict(seen=('train', 'mask_train_v2'), unseen=('test', 'mask_test_v2'), **{f'list_{o}': f'list_{o}.txt' for o in ('train', 'val', 'query', 'gallery')})
    spec = Spec(name='lists', layout=layout, homes=('V1', 'V2'), rows=rows, counts=dict(train=dict(ids=1, images=1)))
    home = tmp_path / 'V2'
    for o, folder, pid in (('train', 'mask_train_v2', 0), ('val', 'mask_train_v2', 0), ('query', 'mask_test_v2', 0), ('gallery', 'mask_test_v2', 0)):
        put(home / folder / f'{pid:04}/{pid:04}_{o}_15_0113morning_0.jpg')
        put(home / f'list_{o}.txt', f'{pid:04}/{pid:04}_{o}_15_0113morning_0.jpg {pid}\n'.encode())
    assert len(read_spec(spec, tmp_path)) == 3 and set(read_spec(spec, tmp_path).cam) == {14}
    with pytest.warns(UserWarning, match='train images 1 → 2'): assert len(read_spec(spec, tmp_path, with_val=True)) == 4
    (home / 'list_val.txt').unlink()
    with pytest.raises(FileNotFoundError, match='5 of 6 parts.*\n(.*\n)*.*list_val.txt   <- missing'): read_spec(spec, tmp_path)
    with pytest.raises(TypeError): read_spec(MARKET1501, make_market(tmp_path / 'm'), with_va=True)


def test_spec_rows_may_build_on_the_folders(tmp_path):
    for cam, pid in itertools.product('ab', range(4)): put(tmp_path / f'cam_{cam}/{pid:03}_{30 * pid}.bmp')

    def rows(spec, home, split_id=0):
        df = folder_rows(replace(spec, layout=dict(query='cam_a', gallery='cam_b')), home)
        train = np.random.default_rng(split_id).permutation(4)[:2]
        return df.assign(cam=df.split.map(dict(query=0, gallery=1)), split=df.split.mask(df.pid.astype(int).isin(train), 'train'))

    spec = Spec(name='pairs', layout=dict(a='cam_a', b='cam_b'), pattern=r'^(?P<pid>\d+)_(?P<angle>\d+)', cam_base=0, rows=rows)
    items = read_spec(spec, tmp_path, split_id=3)
    assert items.split.value_counts().to_dict() == dict(train=4, query=2, gallery=2, val=0)
    check_items(items)


def test_spec_tracklets_keep_their_frames(tmp_path):
    frames = [[str(put(tmp_path / f'bbox/{p:04}/{p:04}C1T000{t}F00{i}.jpg')) for i in range(1, 4)] for p, t in ((1, 1), (1, 2), (0, 1))]
    rows = lambda spec, home: pd.DataFrame(dict(path=[o[0] for o in frames], pid=[1, 1, 0], cam=[1, 2, 1], split=['query', 'gallery', 'gallery'], frames=frames))
    items = read_spec(Spec(name='tracks', layout=dict(bbox='bbox'), rows=rows, counts=dict(gallery=dict(tracklets=2, distractors=1))), tmp_path)
    assert list(map(len, items.frames)) == [3, 3, 3] and items_stats(items).tracklets.total == 3


# ---- folders of one's own

def people(root, who=('Anna', 'Ben'), cams=2, n=2):
    for o, cam, i in itertools.product(who, range(cams), range(n)): put(root / o / f'cam{cam}_{i}.jpg')
    return root


def test_folder_of_names(tmp_path):
    root = people(tmp_path / 'gym', ('Zoë', 'anna b.', '王芳', 'Ben'))
    items = items_from_folder(root, cams=r'cam(\d)')
    names = items.drop_duplicates('pid').set_index('pid').name
    assert names.to_dict() == dict(enumerate(sorted(['Zoë', 'anna b.', '王芳', 'Ben'])))
    assert set(items.cam) == {0, 1} and set(items.split) == {'train'} and set(items.dset) == {'gym'} and 'cam_name' not in items
    assert check_items(items, paths='all', splits=['train']).equals(items)


def test_folder_of_numbers_and_junk(tmp_path):
    items = items_from_folder(people(tmp_path, ('0007', '12', '-1')))
    assert set(items.pid) == {7, 12, -1} and 'name' not in items and items.cam.isna().all()
    assert set(items.split[items.pid == -1]) == {'gallery'} and set(items.split[items.pid != -1]) == {'train'}
    items = items_from_folder(people(tmp_path / 'b', ('Anna', 'Ben', 'nobody', '-1')), junk=['nobody'])
    assert set(items.name[items.pid == -1]) == {'nobody', '-1'} and set(items.pid) == {-1, 0, 1}
    with pytest.raises(ReidError, match="'007', '7' are the same number"): items_from_folder(people(tmp_path / 'c', ('7', '007')))
    huge = items_from_folder(people(tmp_path / 'd', ('9' * 30, '1')))
    assert set(huge.pid) == {0, 1} and set(huge.name) == {'9' * 30, '1'}
    assert set(items_from_folder(people(tmp_path / 'e', ('nan', 'inf', '1e5'))).name) == {'nan', 'inf', '1e5'}


def test_folder_weird_file_names(tmp_path):
    names = ['a b.JPG', 'ä.Jpeg', '1.2.3.PNG', '王.webp', "it's.bmp", '#1%20.tif', 'q?.jpg', 'new\nline.jpg', '-.jpg']
    for o in names: put(tmp_path / 'x' / o)
    for o in ('.hidden.jpg', 'a.txt', 'Thumbs.db', 'noext'): put(tmp_path / 'x' / o)
    items = items_from_folder(tmp_path)
    assert sorted(map(os.path.basename, items.path)) == sorted(names) and list(items.path) == sorted(items.path)
    check_items(items, paths='all', splits=['train'])


@pytest.mark.skipif(sys.platform != 'linux', reason='other file systems refuse such names')
def test_folder_name_that_is_not_utf8(tmp_path):
    put(tmp_path / 'x' / 'a.jpg')
    with open(os.path.join(os.fsencode(tmp_path), b'x', b'caf\xe9.jpg'), 'wb') as f: f.write(JPEG)
    items = items_from_folder(tmp_path)
    assert len(check_items(items, paths='all', splits=['train'])) == 2


def test_folder_pattern(tmp_path):
    for pid, cam, day in itertools.product((4, 17), ('door', 'hall'), (1, 2)): put(tmp_path / f'p{pid}.{cam}.day{day}.JPG')
    pattern = r'^p(?P<pid>\d+)\.(?P<cam>\w+)\.day(?P<day>\d)'
    items = items_from_folder(tmp_path, pattern)
    assert len(items) == 8 and set(items.pid) == {4, 17} and set(items.day) == {1, 2}
    assert items.groupby('cam').cam_name.first().to_dict() == {0: 'door', 1: 'hall'}
    put(tmp_path / 'cover.jpg')
    with pytest.raises(ReidError, match=r"1 of 9 names don't match r.*cover\.jpg"): items_from_folder(tmp_path, pattern)
    assert items_from_folder(tmp_path, pattern, skip=True).equals(items)
    with pytest.raises(ReidError, match="9 of 9 names don't match"): items_from_folder(tmp_path, r'(?P<pid>\d+)_c\d', skip=True)
    one = items_from_folder(tmp_path, pattern, cams=3, skip=True)
    assert set(one.cam) == {3} and 'cam_name' not in one


def test_folder_pattern_is_not_searched_in_the_path(tmp_path):
    people(tmp_path / 'cam9', ('Anna', 'Ben'))
    assert set(items_from_folder(tmp_path / 'cam9', cams=r'cam(\d)').cam) == {0, 1}


def test_folder_pattern_beside_sub_folders(tmp_path):
    root = people(tmp_path)
    a, b = items_from_folder(root, cams=r'cam(\d)_'), items_from_folder(root, r'cam(?P<cam>\d)_(?P<shot>\d)')
    assert a.equals(b.drop(columns='shot')) and set(b.shot) == {0, 1}
    put(root / 'Anna' / 'portrait.png')
    with pytest.raises(ReidError, match="1 of 9 names don't match.*Anna/portrait.png"): items_from_folder(root, cams=r'cam(\d)_')


def test_folders_of_cameras_are_no_people(tmp_path):
    for cam, name in itertools.product(('cam1', 'Camera_2'), ('12_a.jpg', '13_b.jpg')): put(tmp_path / cam / name)
    with pytest.raises(ReidError, match=r'folders named like cameras: Camera_2, cam1. Pass levels=\("cam",\)'): items_from_folder(tmp_path)
    assert items_from_folder(tmp_path, levels=('pid',)).pid.nunique() == 2
    with pytest.raises(ReidError, match=r'2 folders with images lie deeper.*levels=\("cam",\)'): items_from_folder(tmp_path, r'^(?P<pid>\d+)_')
    items = items_from_folder(tmp_path, r'^(?P<pid>\d+)_', levels='cam')
    assert sorted(set(items.pid)) == [12, 13] and items.cam.nunique() == 2
    with pytest.raises(ValueError, match='names the levels of sub-folders'): items_from_folder(tmp_path, levels=1)
    assert set(items_from_folder(tmp_path, r'^(?P<pid>\d+)_', levels='cam', junk='12').pid) == {-1, 13} == set(items_from_folder(tmp_path, r'^(?P<pid>\d+)_', levels='cam', junk=12).pid)


@pytest.mark.parametrize('kw', [dict(junk=('nobody',)), dict(junk='-1'), dict(distractors=('0',)), dict(layout='train')])
def test_a_spec_that_says_nonsense_says_so_at_once(kw):
    with pytest.raises(ValueError, match=f'^odd: `{next(iter(kw))}`'): Spec(**dict(name='odd', layout=dict(train='train')) | kw)


def test_folder_levels(tmp_path):
    for cam, pid in itertools.product(('cam1', 'cam2'), ('anna', 'ben')): put(tmp_path / cam / pid / '1.jpg')
    with pytest.raises(ReidError, match=r'4 folders with images lie deeper than expected: cam1/anna, cam1/ben, cam2/anna and 1 more.*levels=\("cam", "pid"\)'):
        items_from_folder(tmp_path)
    items = items_from_folder(tmp_path, levels=('cam', 'pid'))
    assert set(items.cam_name) == {'cam1', 'cam2'} and set(items.name) == {'anna', 'ben'} and len(items) == 4
    assert set(items_from_folder(tmp_path, levels=(r'cam(?P<cam>\d)', 'pid')).cam) == {1, 2}
    assert items_from_folder(tmp_path / 'cam1', levels='pid').equals(items_from_folder(tmp_path / 'cam1'))
    with pytest.raises(ReidError, match=r"2 of 2 names don't match r\"door"): items_from_folder(tmp_path, levels=(r'door(?P<cam>\d)', 'pid'))
    with pytest.raises(ValueError, match='Nothing says which identity'): items_from_folder(tmp_path, levels=('cam', 'view'))


def test_folder_split_folders_only_if_asked(tmp_path):
    for split, who in (('Train', 'Anna'), ('query', 'Ben'), ('gallery', 'Ben'), ('gallery', 'Cem')): people(tmp_path / split, (who,))
    people(tmp_path / 'notes', ('Dora',))
    with pytest.raises(ReidError, match='named like splits: Train, gallery, query.*split="folders"'): items_from_folder(tmp_path)
    items = items_from_folder(tmp_path, cams=r'cam(\d)', split='folders')
    assert items.groupby('split', observed=True).name.unique().map(list).to_dict() == dict(train=['Anna'], query=['Ben'], gallery=['Ben', 'Cem'])
    assert items.pid[items.name == 'Ben'].nunique() == 1
    check_items(items)
    assert set(items_from_folder(tmp_path / 'gallery', split='gallery').split) == {'gallery'}
    with pytest.raises(ReidError, match='no folder named like a split.*Found: Anna'): items_from_folder(tmp_path / 'Train', split='folders')
    with pytest.raises(ValueError, match='`split` must be'): items_from_folder(tmp_path, split='test')
    people(tmp_path / 'b', ('train', 'test'))
    assert set(items_from_folder(tmp_path / 'b', levels='pid').name) == {'train', 'test'}


def test_folder_in_market_layout(tmp_path):
    items = items_from_folder(make_market(tmp_path), MARKET1501.pattern, split='folders', dset='market1501')
    want = market1501(tmp_path, check=False)
    assert items.assign(cam=items.cam - 1).equals(want)


@pytest.mark.parametrize('files, says', [
    ([], 'no images. Found: nothing'), (['a/b.heic', 'notes.txt'], 'no images. Found: notes.txt, b.heic'), (['a/.x.jpg', 'b/c/.y.jpg'], 'no images. Found: c'),
    (['1.jpg', '2.jpg'], '2 images lie directly in it .*: 1.jpg, 2.jpg'), (['a/1.jpg', '2.jpg'], '1 images lie directly in it .*: 2.jpg'),
    (['a/1.jpg', 'a/old/2.jpg'], '1 folders with images lie deeper than expected: a/old'), (['a/b/c/d/1.jpg'], 'deeper than expected: a/b')])
def test_folder_damage(tmp_path, files, says):
    for o in files: put(tmp_path / o)
    with pytest.raises(ReidError, match=says): items_from_folder(tmp_path)


def test_folder_arguments(tmp_path):
    people(tmp_path)
    with pytest.raises(FileNotFoundError, match='no folder'): items_from_folder(tmp_path / 'gone')
    with pytest.raises(FileNotFoundError, match='no folder'): items_from_folder(tmp_path / 'Anna/cam0_0.jpg')
    with pytest.raises(ValueError, match=r'\(\\d\+\)_c\(\\d\)" has no named groups'): items_from_folder(tmp_path, r'(\d+)_c(\d)')
    with pytest.raises(ValueError, match='is not a regular expression'): items_from_folder(tmp_path, r'(?P<pid>\d+')
    with pytest.raises(ValueError, match='has no group'): items_from_folder(tmp_path, cams=r'cam\d')
    assert set(items_from_folder(tmp_path, cams=r'(?:cam|door)(?P<cam>\d)').cam) == {0, 1}


def test_truncated_jpeg_is_found_by_check_items(tmp_path):
    items = items_from_folder(people(tmp_path), cams=r'cam(\d)')
    put(tmp_path / 'Ben' / 'cam1_0.jpg', JPEG[:300])
    with pytest.raises(ReidError, match=r"1 of 8 files can't be read, rows \[6\]: .*Ben/cam1_0\.jpg"): check_items(items, splits=['train'])


# ---- CSV

def csv_of(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def test_csv_plain(tmp_path):
    people(tmp_path / 'pics')
    csv = csv_of(tmp_path / 'mine.csv', 'path,pid,cam,split,hat\npics/Ben/cam0_0.jpg,3,1,Train,True\npics/Anna/cam1_1.jpg,007,,query,False\n')
    items = items_from_csv(csv)
    assert list(items.pid) == [3, 7] and list(items.split) == ['train', 'query'] and list(items.hat) == [True, False] and set(items.dset) == {'mine'}
    assert items.cam.tolist() == [1, pd.NA] and items.path[0] == str(tmp_path / 'pics/Ben/cam0_0.jpg')
    assert list(items.columns) == ['path', 'pid', 'cam', 'split', 'dset', 'hat']
    moved = items_from_csv(csv_of(tmp_path / 'b' / 'mine.csv', csv.read_text()), root=tmp_path)
    assert moved.equals(items)


def test_csv_renamed_and_words(tmp_path):
    people(tmp_path)
    text = 'file;who;lens;time;name\n' + ''.join(f'{o}/cam{c}_0.jpg;{o};cam-{c};{i};nick\n' for i, (o, c) in enumerate(itertools.product(('Anna', 'Ben'), (0, 1))))
    items = items_from_csv(csv_of(tmp_path / 'x.csv', text), path='file', pid='who', cam='lens', dset='gym')
    assert list(items.pid) == [0, 0, 1, 1] and list(items.pid_name) == ['Anna', 'Anna', 'Ben', 'Ben'] and set(items.name) == {'nick'}
    assert list(items.cam_name) == ['cam-0', 'cam-1'] * 2 and list(items.time) == [0, 1, 2, 3] and set(items.dset) == {'gym'}
    twice = items_from_csv(tmp_path / 'x.csv', path='file', pid='who', tid='time', name='who')
    assert list(twice.tid) == [0, 1, 2, 3] and list(twice.name) == list(twice.pid_name)


@pytest.mark.parametrize('words', [['NA', 'None', 'nan'], ['null', 'Anna', '1'], ['1.0', '2.0', '-1']])
def test_csv_identities_that_look_like_something_else(tmp_path, words):
    people(tmp_path)
    csv = csv_of(tmp_path / 'x.csv', 'path,pid\n' + ''.join(f'Anna/cam{i // 2}_{i % 2}.jpg, {o} \n' for i, o in enumerate(words)))
    items = items_from_csv(csv)
    if words[0] == '1.0': assert sorted(items.pid) == [-1, 1, 2] and 'name' not in items
    else: assert list(items.name) == words and sorted(items.pid) == [0, 1, 2]


def test_csv_shapes(tmp_path):
    people(tmp_path)
    rows = ['Anna/cam0_0.jpg', '1', 'Ben/cam0_0.jpg', '2']
    for sep, start in itertools.product(',;\t', (b'', b'\xef\xbb\xbf')):
        text = start + 'path{0}pid\r\n{1}{0}{2}\r\n"{3}"{0}{4}\r\n'.format(sep, *rows).encode()
        assert list(items_from_csv(csv_of(tmp_path / 'x.csv', text)).pid) == [1, 2]
    absolute = csv_of(tmp_path / 'far' / 'x.csv', f'path,pid\n{tmp_path}/Anna/cam0_0.jpg,1\n')
    assert items_from_csv(absolute).path[0] == f'{tmp_path}/Anna/cam0_0.jpg'
    put(tmp_path / 'a, b.jpg')
    assert items_from_csv(csv_of(tmp_path / 'x.csv', 'path,pid\n"a, b.jpg",1\n')).path[0] == f'{tmp_path}/a, b.jpg'


def test_csv_loses_no_value_where_warnings_are_silent(tmp_path):
    put(tmp_path / 'a')
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        with pytest.raises(ReidError, match='needs quotes'): items_from_csv(csv_of(tmp_path / 'x.csv', 'path,pid\na, b.jpg,1\n'))


def test_csv_junk_and_dset(tmp_path):
    people(tmp_path)
    csv = csv_of(tmp_path / 'x.csv', 'path,pid,dset\nAnna/cam0_0.jpg,Anna,a\nAnna/cam0_1.jpg,ghost,b\n')
    items = items_from_csv(csv, junk=['ghost'])
    assert list(items.split) == ['train', 'gallery'] and list(items.pid) == [0, -1] and list(items.dset) == ['a', 'b']


@pytest.mark.parametrize('text, says', [
    ('path,person_id,camera\n', r"no column 'pid'. Nearest: 'person_id'.*pid='person_id'"),
    ('filename,pid\n', r"no column 'path'. Nearest: 'filename'.*path='filename'"),
    ('path,pid\n', 'no rows below its first line'), ('', "can't be read as a table"), (b'\xff\xfe\x00p\x00', "can't be read as a table.*UTF-8"),
    ('path,pid\nAnna/a, b.jpg,1\n', 'needs quotes'), ('path,pid\nAnna/cam0_0.jpg,1\nAnna/a, b.jpg,1\n', 'line 3.*needs quotes'),
    ('path,pid\nAnna/cam0_0.jpg,1\nAnna/cam0_1.jpg,\n,2\n', r'`path` is empty in 1 lines: 4'),
    ('path,pid\nAnna/cam0_0.jpg,1\nAnna/cam0_1.jpg,\n', r'`pid` is empty in 1 lines: 3'),
    ('path,pid\nAnna/cam0_0.jpg,1\ngone.jpg,2\n', r"1 of 2 files of .* don't exist, lines 3; the first is .*gone.jpg.*pass `root=`"),
    ('path,pid\nAnna\\cam0_0.jpg,1\n', r'write / for \\'),
    ('path,pid,split\nAnna/cam0_0.jpg,1,test\n', r"`split` must be one of .* not 'test' \(row \[2\]\)"),
    ('path,pid\nAnna/cam0_0.jpg,7\nAnna/cam0_1.jpg,07\n', "'07', '7' are the same number")])
def test_csv_damage(tmp_path, text, says):
    people(tmp_path)
    with pytest.raises(ReidError, match=says): items_from_csv(csv_of(tmp_path / 'x.csv', text))


def test_csv_misspelt_keyword_and_missing_file(tmp_path):
    people(tmp_path)
    csv = csv_of(tmp_path / 'x.csv', 'path,pid,Camera\nAnna/cam0_0.jpg,1,2\n')
    with pytest.raises(ReidError, match=r"no column 'camera'. Nearest: 'Camera'.*Correct `items_from_csv\(…, cam='Camera'\)`"): items_from_csv(csv, cam='camera')
    with pytest.raises(FileNotFoundError, match='no file'): items_from_csv(tmp_path / 'y.csv')


def test_csv_duplicate_rows_are_found_by_check_items(tmp_path):
    people(tmp_path)
    items = items_from_csv(csv_of(tmp_path / 'x.csv', 'path,pid\n' + 'Anna/cam0_0.jpg,1\n' * 2))
    with pytest.raises(ReidError, match='same path twice'): check_items(items, splits=['train'])


# ---- splits

@st.composite
def tables(draw):
    n_ids, n_cams = draw(st.integers(2, 9)), draw(st.integers(1, 4))
    rows = draw(st.lists(st.tuples(st.integers(0, n_ids - 1), st.one_of(st.none(), st.integers(0, n_cams - 1)), st.sampled_from('ab')), min_size=2, max_size=60))
    return make_items([f'{i}.jpg' for i in range(len(rows))], pid=[o[0] - (o[0] == 0) for o in rows], cam=[pd.NA if o[1] is None else o[1] for o in rows],
                      dset=[o[2] for o in rows])


@settings(max_examples=100, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(tables(), st.floats(0.1, 0.9), st.integers(0, 5), st.sampled_from(['one_per_cam', 'one_per_id']), st.randoms(use_true_random=False))
def test_split_properties(items, test, seed, query, random):
    who = lambda df: set(zip(df.dset.astype(str), df.pid))
    try:
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter('always')
            out = split_by_pid(items, test, seed, query)
    except ReidError as e:
        assert 'at least 2 are needed' in str(e) or 'can be asked for' in str(e)
        return
    assert sorted(out.path) == sorted(items.path) and len(who(items[items.pid != -1])) >= 2
    assert set(out.split[out.pid == -1]) <= {'gallery'}
    train, q, g = rows_of(out, 'train'), rows_of(out, 'query'), rows_of(out, 'gallery')
    g = g[g.pid != -1]
    assert not who(train) & (who(q) | who(g)) and len(train) and len(q) and who(q) <= who(g)
    by_cam = items.cam[items.pid != -1].nunique() > 1
    for person, mine in q.groupby([q.dset.astype(str), q.pid]):
        theirs = g[(g.dset.astype(str) == person[0]) & (g.pid == person[1])]
        assert len(mine) == (mine.cam.nunique() if by_cam and query == 'one_per_cam' else 1)
        if by_cam: assert mine.cam.notna().all() and all((theirs.cam.dropna() != c).any() for c in mine.cam)
    silent = len(who(g) - who(q))
    assert len(told) == bool(silent) and (not told or f'{silent} of {len(who(g))} test identities' in str(told[0].message))
    order = list(range(len(items)))
    random.shuffle(order)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        assert split_by_pid(items.iloc[order], test, seed, query).equals(out)
        assert split_by_pid(items.assign(split=np.where(np.arange(len(items)) % 3, 'train', 'val')), test, seed, query).equals(out)
    items_stats(out), check_items(out, paths='none')


def grid(n_ids, n_cams=2, n=2):
    rows = list(itertools.product(range(n_ids), range(n_cams), range(n)))
    return make_items([f'{p:03}_{c}_{i}.jpg' for p, c, i in rows], pid=[o[0] for o in rows], cam=[o[1] for o in rows])


@pytest.mark.parametrize('test, n', [(0.5, 5), (0.01, 1), (0.99, 9), (3, 3), (np.int64(9), 9), ([2, 5], 2), (np.array([1]), 1), ({3, 4}, 2), (range(9), 9)])
def test_split_sizes(test, n):
    out = split_by_pid(grid(10), test)
    assert rows_of(out, 'query').pid.nunique() == n and rows_of(out, 'train').pid.nunique() == 10 - n
    assert len(rows_of(out, 'query')) == 2 * n and len(rows_of(out, 'gallery')) == 2 * n
    if hasattr(test, '__len__'): assert set(rows_of(out, 'query').pid) == set(test)


@pytest.mark.parametrize('test', [0, 1.0, 0.0, -1, 1.5, -0.2])
def test_split_sizes_that_are_none(test):
    with pytest.raises(ValueError, match='`test` must be'): split_by_pid(grid(4), test)


def test_split_seeds_differ():
    sets = {tuple(sorted(set(rows_of(split_by_pid(grid(10), seed=s), 'query').pid))) for s in range(8)}
    assert len(sets) > 4
    asks = {tuple(rows_of(split_by_pid(grid(4, n=5), [0, 1], seed=s), 'query').path) for s in range(8)}
    assert len(asks) > 4


def test_split_without_cameras_or_with_one():
    for cam in (pd.NA, 3):
        out = split_by_pid(grid(6).assign(cam=cam))
        assert len(rows_of(out, 'query')) == 3 and len(rows_of(out, 'gallery')) == 9


def test_split_keeps_junk_and_distractors():
    items = pd.concat([grid(6), make_items(['j.jpg', 'k.jpg'], pid=[-1, -1], cam=0, split='gallery'), make_items(['d.jpg', 'e.jpg'], pid=[99, 99], cam=[0, 1])], ignore_index=True)
    out = split_by_pid(items, distractors=[99])
    assert items_stats(out).loc['gallery', ['distractors', 'junk']].tolist() == [2, 2] and set(out.split[out.pid == 99]) == {'gallery'}
    for seed in range(4):
        once_more = split_by_pid(out, seed=seed)
        assert set(once_more.split[once_more.pid.isin([99, -1])]) == {'gallery'} and rows_of(once_more, 'train').pid.nunique() == 3


def test_split_people_whom_nobody_can_ask_for():
    items = grid(4).drop(index=[2, 3]).assign(split='train')
    with pytest.warns(UserWarning, match='1 of 2 test identities were seen by one camera only.*distractors'): out = split_by_pid(items, test=[0, 1])
    assert set(out.split[out.pid == 0]) == {'gallery'} and items_stats(out).distractors.gallery == 2
    with pytest.raises(ReidError, match='None of the 1 test identities.*one camera only.*protocol="all"'): split_by_pid(items, test=[0])
    with pytest.raises(ReidError, match='have one image only'): split_by_pid(make_items(['a.jpg', 'b.jpg'], pid=[1, 2]))


def test_split_errors():
    with pytest.raises(ReidError, match='Found 1 identities'): split_by_pid(grid(1))
    with pytest.raises(ReidError, match='Found 0 identities'): split_by_pid(grid(1).assign(pid=-1))
    with pytest.raises(ReidError, match='4 of 4 identities for the test leave none'): split_by_pid(grid(4), test=4)
    with pytest.raises(ReidError, match="aren't there: 77"): split_by_pid(grid(4), test=[1, 77])
    with pytest.raises(ValueError, match='`query` must be'): split_by_pid(grid(4), query='two')


def test_split_takes_a_plain_table_and_leaves_it_alone():
    df = pd.DataFrame(dict(path=[f'{i}.jpg' for i in range(8)], pid=np.repeat([5, 6, 7, 8], 2), hat=range(8)))
    before = df.copy()
    out = split_by_pid(df)
    assert df.equals(before) and sorted(out.hat) == list(range(8)) and out.equals(as_items(out))


def test_same_pid_in_two_datasets_is_two_people():
    items = pd.concat([grid(1).assign(dset='a'), grid(1).assign(dset='b')], ignore_index=True)
    out = split_by_pid(items, seed=0)
    assert out.groupby('split', observed=True).dset.nunique().to_dict() == dict(train=1, query=1, gallery=1)
