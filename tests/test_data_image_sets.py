"Image datasets in their official layouts, whole and damaged, and the catalogue that reads them by name"
import json
import os
import random
import shutil
import warnings
from dataclasses import replace

import numpy as np
import pytest

import layouts
from reid_nb.core import ReidError, check_items, items_stats, rows_of
from reid_nb.data import image_sets
from reid_nb.data.catalogue import (SPECS, average_over_splits, list_datasets, options_of, protocol_of, read_dataset, splits_of, write_splits)
from reid_nb.data.datasets import MARKET1501, market1501
from reid_nb.data.image_sets import (IMAGE_SPECS, cuhk01, cuhk02, cuhk03, cuhksysu, dukemtmcreid, extract_cuhk03, grid, ilids, msmt17, prid, sensereid, university1652, viper)

names_of = lambda items, *splits: [os.path.basename(o) for o in rows_of(items, *splits).path]
pids_of = lambda items, *splits: set(rows_of(items, *splits).pid)


@pytest.fixture(autouse=True)
def loud():
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        yield


# ---- the official sizes: no warning, which means that every official count is met

@pytest.mark.parametrize('read, make, n', [(viper, layouts.viper, 20), (cuhk01, layouts.cuhk01, 20), (ilids, layouts.ilids, 10), (prid, layouts.prid, 10), (grid, layouts.grid, 10)])
def test_splits_of_the_official_size(tmp_path, read, make, n):
    make(tmp_path)
    name = read.__name__
    assert splits_of(name) == n
    seen = set()
    for i in range(0, n, 3):
        items = read(tmp_path, i)
        assert items.equals(read_dataset(name, tmp_path, split_id=i)) and set(items.dset) == {name}
        check_items(items, paths='none')
        assert not pids_of(items, 'train') & pids_of(items, 'query', 'gallery') and pids_of(items, 'query') <= pids_of(items, 'gallery')
        seen.add(tuple(names_of(items, 'train', 'query')))
    assert len(seen) == len(range(0, n, 3))
    for bad in (n, -1, 0.5):
        with pytest.raises(ValueError, match=f'{n} splits, split_id 0 to {n - 1}'): read(tmp_path, bad)


def test_test_sets_of_the_official_size(tmp_path):
    items = sensereid(layouts.sensereid(tmp_path))
    assert set(items.split) == {'query', 'gallery'} and set(items.cam) == {0, 1, 2, 3}
    assert items_stats(items).loc['gallery', 'ids'] == 1717
    items = cuhk02(layouts.cuhk02(tmp_path).parent)
    assert len(items) == 7264 and sorted(set(items.cam)) == list(range(10)) and set(rows_of(items, 'query').cam) == {8} and set(rows_of(items, 'gallery').cam) == {9}
    assert pids_of(items, 'train') == {1000 * p + o for p, n in ((1, 971), (2, 306), (3, 107), (4, 193)) for o in range(1, n + 1)}
    assert items.groupby('pid').cam.nunique().eq(2).all() and not pids_of(items, 'train') & pids_of(items, 'query')


@pytest.mark.parametrize('name', IMAGE_SPECS)
def test_specs_say_everything(name):
    spec = SPECS[name]
    assert spec.name == name and all((spec.layout, spec.get, spec.licence, spec.ethics, spec.counts, spec.paper))
    assert spec.splits == 1 or (spec.average and 'split_id' in options_of(name))
    known = {'ids', 'images', 'cameras', 'distractors', 'junk'}
    assert all(set(row) <= known and split in ('train', 'val', 'query', 'gallery') for split, row in spec.counts.items())
    assert list_datasets().loc[name, 'splits'] == spec.splits and list_datasets(terms=True).loc[name, 'licence']


@pytest.mark.parametrize('read, make', [(getattr(image_sets, o), getattr(layouts, o)) for o in ('viper', 'cuhk01', 'cuhk02', 'ilids', 'grid', 'university1652', 'sensereid', 'cuhksysu')])
def test_every_home_that_a_spec_names(tmp_path, read, make):
    small = dict(viper=dict(n=6), cuhk01=dict(n=6), cuhk02=dict(sizes=[2] * 5), ilids=dict(n=6), grid=dict(n=4, distractors=2), sensereid=dict(asked=4, others=3)).get(read.__name__, {})
    made = make(tmp_path / 'x', **small)
    homes = IMAGE_SPECS[read.__name__].homes
    tables = []
    for home in homes:
        to = tmp_path / 'run_1_c2' / 'y' / home
        to.parent.mkdir(parents=True, exist_ok=True)
        if home == '.': shutil.copytree(made, to, dirs_exist_ok=True)
        else: shutil.copytree(made, to)
        tables.append(read(tmp_path / 'run_1_c2' / 'y', check=False).drop(columns='path'))
        shutil.rmtree(tmp_path / 'run_1_c2')
    assert len(tables) > 1 and all(o.equals(tables[0]) for o in tables)


@pytest.mark.parametrize('name', IMAGE_SPECS)
def test_nothing_there_is_drawn(tmp_path, name):
    with pytest.raises(FileNotFoundError) as e: read_dataset(name, tmp_path)
    assert str(e.value).count('<- missing') == len(SPECS[name].layout) and 'holds nothing' in str(e.value)
    with pytest.raises(FileNotFoundError, match='there is no folder'): read_dataset(name, tmp_path / 'nowhere')


# ---- one by one

def test_market_with_500k(tmp_path):
    home = layouts.touch(tmp_path, [f'{o}/0002_c{c}s1_000451_03.jpg' for o in ('bounding_box_train', 'query', 'bounding_box_test') for c in (1, 2)])
    with pytest.raises(FileNotFoundError, match='images   <- missing'): market1501(home, check=False, with_500k=True)
    layouts.touch(home, [f'images/{o:04}_c1s1_000001_0{k}.jpg' for o in (0, -1) for k in range(3)])
    plain, more = market1501(home, check=False), market1501(home, check=False, with_500k=True)
    assert len(more) == len(plain) + 6 and (more.pid == -1).sum() == 3 and (more.pid == 0).sum() == 3 and set(more.split[more.pid <= 0]) == {'gallery'}
    with pytest.warns(UserWarning, match='counts differ') as seen: market1501(home, with_500k=True)
    assert 'gallery' not in str(seen[0].message)
    assert read_dataset('market1501', tmp_path, with_500k=True, check=False, junk=False).equals(market1501(home, junk=False, check=False, with_500k=True))


def test_market_in_the_layout_of_2018(tmp_path):
    layouts.touch(tmp_path / 'data' / 'market1501', [f'{o}/0002_c1s1_000451_03.jpg' for o in ('bounding_box_train', 'query', 'bounding_box_test')])
    assert len(market1501(tmp_path / 'data', check=False)) == 3


def test_duke(tmp_path):
    layouts.dukemtmc(tmp_path)
    items = dukemtmcreid(tmp_path, check=False)
    assert sorted(set(items.cam)) == list(range(8)) and pids_of(items, 'train') == {1, 3, 5} and items_stats(items).distractors['gallery'] == 8
    assert set(items.frame) > {46182}
    with pytest.warns(UserWarning, match='train images 16,522 → 24'): dukemtmcreid(tmp_path)


@pytest.mark.parametrize('version', [1, 2])
def test_msmt17(tmp_path, version):
    layouts.msmt17(tmp_path, version)
    items = check_items(msmt17(tmp_path, check=False), paths='none')
    assert pids_of(items, 'train') == pids_of(items, 'val') == {0, 1, 2} and pids_of(items, 'query') == pids_of(items, 'gallery') == {1041, 1042, 1043, 1044}
    assert set(items.cam) == {0, 7, 14} and set(items.time) == {'0303morning', '0303noon', '0303afternoon'}
    with_val = msmt17(tmp_path, with_val=True, check=False)
    assert len(rows_of(with_val, 'train')) == 18 and 'val' not in set(with_val.split) and len(with_val) == len(items)
    with pytest.warns(UserWarning, match=r'train images 32,621 → 18'): msmt17(tmp_path, with_val=True)
    with pytest.warns(UserWarning, match=r'train images 30,248 → 9.*val images 2,373 → 9'): msmt17(tmp_path)


def test_msmt17_version_1_first(tmp_path):
    layouts.msmt17(tmp_path, 2)
    layouts.msmt17(tmp_path, 1)
    assert 'MSMT17_V1' in msmt17(tmp_path, check=False).path[0]


def test_msmt17_damage(tmp_path):
    home = layouts.msmt17(tmp_path)
    (home / 'list_val.txt').rename(tmp_path / 'away')
    with pytest.raises(FileNotFoundError, match=r'5 of 6 parts(.|\n)*list_val.txt   <- missing'): msmt17(tmp_path)
    (tmp_path / 'away').rename(home / 'list_val.txt')
    whole = (home / 'list_query.txt').read_text()
    for text, says in ((whole + '0001/0001_001_01_0303morning_0002_1.jpg\n', 'lines of .* first line 13'), ('\n\n', 'list_query.txt is empty'),
                       (whole + whole.splitlines()[2], 'names 1 files more than once'), (whole + '0000/holiday.jpg 0\n', '1 of 13 names in .*list_query.txt'),
                       (whole.replace('.jpg 0\n', '.jpg 1\n', 1), '1 of 12 identities differ from the file names'),
                       (whole + '0009/0009_001_01_0303morning_0002_1.jpg 9\n', "1 of 13 files in .* don't exist")):
        (home / 'list_query.txt').write_text(text)
        with pytest.raises(ReidError, match=says): msmt17(tmp_path)
    (home / 'list_query.txt').write_text('\n' + whole.replace('\n', '\r\n') + '\n')
    assert len(rows_of(msmt17(tmp_path, check=False), 'query')) == 12
    file = next((home / 'test').rglob('*.jpg'))
    file.rename(file.with_suffix('.png'))
    with pytest.raises(ReidError, match=r'There is .*\.png instead'): msmt17(tmp_path)


def test_viper_both_ways(tmp_path):
    layouts.viper(tmp_path, 20)
    a, b, c = (viper(tmp_path, i, check=False) for i in (4, 5, 6))
    assert names_of(a, 'train') == names_of(b, 'train') != names_of(c, 'train')
    assert names_of(a, 'query') == names_of(b, 'gallery') and set(rows_of(a, 'query').cam) == {0} and set(rows_of(b, 'query').cam) == {1}
    assert viper(tmp_path, 4, seed=2, check=False).path.tolist() != a.path.tolist() and viper(tmp_path, 4, check=False).equals(a)


def test_viper_is_drawn_as_by_numpys_global_state(tmp_path):
    layouts.viper(tmp_path)
    np.random.seed(1)
    before = [np.random.permutation(632)[:316] for _ in range(2)] # a permutation is a shuffled arange
    pids = sorted(pids_of(viper(tmp_path), 'train', 'query'))
    for i, order in enumerate(before):
        assert pids_of(viper(tmp_path, 2 * i), 'train') == {pids[o] for o in order}
    assert {pids[o] for o in (101, 575, 407, 441, 223, 531, 301, 41, 47, 262)} <= pids_of(viper(tmp_path), 'train')
    state = np.random.get_state()[1].tolist()
    viper(tmp_path)
    assert np.random.get_state()[1].tolist() == state


def test_cuhk01_and_prid_are_drawn_as_in_torchreid(tmp_path):
    layouts.cuhk01(tmp_path), layouts.prid(tmp_path)
    assert {o + 1 for o in (517, 560, 205, 697, 241)} <= pids_of(cuhk01(tmp_path), 'train')
    state = random.getstate()
    assert sorted(pids_of(prid(tmp_path), 'train'))[:12] == [1, 3, 4, 6, 7, 8, 9, 14, 17, 21, 22, 23]
    assert random.getstate() == state
    items = cuhk01(tmp_path)
    assert set(rows_of(items, 'query')['shot']) == {1, 2} and set(rows_of(items, 'gallery')['shot']) == {3, 4}


def test_viper_pairs_by_number(tmp_path):
    home = layouts.viper(tmp_path, 20)
    whole = viper(tmp_path, check=False)
    (home / 'cam_a' / names_of(whole, 'query')[3]).unlink()
    rest = viper(tmp_path, check=False)
    assert len(rest) == len(whole) - 1 and pids_of(rest, 'train') == pids_of(whole, 'train')
    assert all(os.path.basename(o).startswith(f'{pid:03}_') for o, pid in zip(rest.path, rest.pid))


def test_viper_damage(tmp_path):
    home = layouts.viper(tmp_path, 20)
    for o in (home / 'cam_b').iterdir(): o.rename(o.with_suffix('.PNG'))
    assert len(viper(tmp_path, check=False)) == 40
    (home / 'cam_a' / '003_0 (1).bmp').touch()
    with pytest.raises(ReidError, match=r'2 files share pid and cam.*003_0 \(1\)\.bmp'): viper(tmp_path)
    (home / 'cam_a' / '003_0 (1).bmp').unlink()
    (home / 'cam_a' / 'cover.bmp').touch()
    with pytest.raises(ReidError, match=r'1 of 21 names in .*cam_a.*cover\.bmp'): viper(tmp_path)
    (home / 'cam_a' / 'cover.bmp').unlink()
    for o in (home / 'cam_a').iterdir(): o.unlink()
    (home / 'cam_a' / 'Thumbs.db').touch()
    with pytest.raises(ReidError, match='no images in .*cam_a, only Thumbs.db'): viper(tmp_path)
    shutil.rmtree(home / 'cam_a')
    with pytest.raises(FileNotFoundError, match='cam_a   <- missing'): viper(tmp_path)


def test_prid_leaves_out_strangers(tmp_path):
    home = layouts.prid(tmp_path)
    items = prid(tmp_path, 9)
    assert {os.path.basename(os.path.dirname(o)) for o in items.path[items.pid > 200]} == {'cam_b'} and items_stats(items).loc['gallery', 'distractors'] == 549
    assert len(set(rows_of(items, 'gallery').path)) == 649 and set(rows_of(items, 'query').cam) == {0}
    (home / 'cam_a' / 'person_0001.jpg').touch()
    with pytest.raises(ReidError, match='2 files share pid and cam'): prid(tmp_path)


def test_ilids_has_no_cameras(tmp_path):
    home = layouts.ilids(tmp_path)
    items = ilids(tmp_path)
    assert items.cam.isna().all() and protocol_of('ilids') == 'all' and set(names_of(items, 'query')).isdisjoint(names_of(items, 'gallery'))
    assert {o[:4] for o in names_of(items, 'query')} == {o[:4] for o in names_of(items, 'gallery')} and len(rows_of(items, 'train')) == 236
    for k in (2, 3, 4): (home / f'Persons/0007{k:03}.jpg').unlink()
    with pytest.raises(ReidError, match='1 people have one picture only'): ilids(tmp_path)


def test_grid_damage(tmp_path):
    home = layouts.grid(tmp_path, 10, 5)
    items = grid(tmp_path, 3, check=False)
    assert pids_of(items, 'gallery') == pids_of(items, 'query') | {0} and max(items.cam) == 7 and 'asks' not in items and 'file' not in items
    file = home / 'features_and_partitions.mat'
    from scipy.io import savemat
    savemat(file, dict(other=1))
    with pytest.raises(ReidError, match='no partitions `trainIdxAll`'): grid(tmp_path)
    savemat(file, dict(trainIdxAll=np.zeros((1, 10))))
    with pytest.raises(ReidError, match='no partitions `trainIdxAll`'): grid(tmp_path)
    file.write_bytes(b'<html>404</html>' * 20)
    with pytest.raises(ReidError, match="can't be read as a MATLAB file"): grid(tmp_path)
    file.unlink()
    with pytest.raises(FileNotFoundError, match='features_and_partitions.mat   <- missing'): grid(tmp_path)


def test_cuhk02_damage(tmp_path):
    home = layouts.cuhk02(tmp_path, [2] * 5)
    assert len(cuhk02(tmp_path, check=False)) == 40
    for o in (home / 'P5' / 'cam2').iterdir(): o.unlink()
    with pytest.raises(ReidError, match='no images in .*P5.cam2, only nothing'): cuhk02(tmp_path)
    shutil.rmtree(home / 'P3')
    with pytest.raises(FileNotFoundError) as e: cuhk02(tmp_path)
    assert str(e.value).count('<- missing') == 2 and 'P3/cam1   <- missing' in str(e.value)


def test_cuhksysu_trains_only(tmp_path):
    layouts.cuhksysu(tmp_path)
    items = cuhksysu(tmp_path, check=False)
    assert set(items.split) == {'train'} and items.cam.isna().all() and set(items.pid) == set(range(11422, 11426)) and set(items.box) == {1, 2}
    with pytest.warns(UserWarning, match='train ids 11,934 → 4, train images 34,574 → 8'): cuhksysu(tmp_path)
    (tmp_path / 'cuhksysu/cropped_images/s1_p3.jpg').touch()
    with pytest.raises(ReidError, match='1 of 9 names'): cuhksysu(tmp_path)


@pytest.mark.parametrize('asks, searched, n_q, n_g', [('drone', 'satellite', 9, 5), ('satellite', 'drone', 3, 15), ('ground', 'satellite', 6, 5), ('ground', 'drone', 6, 15), ('satellite', 'ground', 3, 10)])
def test_university_directions(tmp_path, asks, searched, n_q, n_g):
    layouts.university1652(tmp_path)
    items = university1652(tmp_path, f'{asks}->{searched}', check=False)
    assert set(rows_of(items, 'query')['view']) == {asks} and set(rows_of(items, 'gallery')['view']) == {searched}
    assert len(rows_of(items, 'query')) == n_q and len(rows_of(items, 'gallery')) == n_g and len(rows_of(items, 'train')) == 24
    assert set(rows_of(items, 'train')['view']) == {'drone', 'satellite', 'ground', 'web'} and items.cam.isna().all()
    assert items_stats(items).cameras.eq(0).all() and pids_of(items, 'query') == {1, 2, 3} and pids_of(items, 'gallery') == {1, 2, 3, 4, 5}
    assert university1652(tmp_path, f'{asks} → {searched}', check=False).equals(items) and protocol_of('university1652') == 'all'


def test_university_damage(tmp_path):
    home = layouts.university1652(tmp_path)
    with pytest.warns(UserWarning, match='query images 701 → 3, gallery ids 951 → 5, gallery images 51,355 → 15'): university1652(tmp_path, 'satellite->drone')
    for bad in ('drone', 'drone->drone', 'drone->web', 'plane->drone', ''):
        with pytest.raises(ValueError, match='two different of'): university1652(tmp_path, bad)
    shutil.rmtree(home / 'test' / 'query_street')
    assert len(university1652(tmp_path, check=False)) == 38
    with pytest.raises(FileNotFoundError, match='test/query_street   <- missing'): university1652(tmp_path, 'ground->drone')
    layouts.touch(home, ['test/query_drone/campus/image-01.jpeg'])
    with pytest.raises(ReidError, match='campus'): university1652(tmp_path)


# ---- CUHK03

def test_cuhk03_new(tmp_path):
    layouts.cuhk03_extracted(tmp_path)
    for labeled in (False, True):
        items = check_items(cuhk03(tmp_path, labeled=labeled, check=False), paths='none')
        assert pids_of(items, 'train') == {1001, 1002, 1003, 3001, 4001, 5001} and pids_of(items, 'query') == pids_of(items, 'gallery') == {2001, 2002}
        assert set(items.cam) == {0, 1} and set(items.pair) == {1, 2, 3, 4, 5} and all(f'images_{"labeled" if labeled else "detected"}' in o for o in items.path)
        assert len(rows_of(items, 'query')) == 4 and not set(names_of(items, 'query')) & set(names_of(items, 'gallery'))
    with pytest.warns(UserWarning, match='train images 7,365 → 44'): cuhk03(tmp_path)
    with pytest.warns(UserWarning, match='train images 7,368 → 44.*gallery images 5,328 →'): cuhk03(tmp_path, labeled=True)
    with pytest.raises(ValueError, match='one split'): cuhk03(tmp_path, 1)


def test_cuhk03_classic(tmp_path):
    layouts.cuhk03_extracted(tmp_path)
    a, b = cuhk03(tmp_path, 0, classic=True, check=False), read_dataset('cuhk03_classic', tmp_path, 1, check=False)
    assert names_of(a, 'query') == names_of(a, 'gallery') and pids_of(a, 'query') == {1001, 2001} and pids_of(b, 'query') == {1002, 2001}
    assert not pids_of(a, 'train') & pids_of(a, 'query') and len(pids_of(a, 'train')) == 6
    assert [protocol_of('cuhk03_classic', o) for o in (False, True)] == ['cuhk03', 'cuhk03_torchreid'] and splits_of('cuhk03_classic') == 20
    with pytest.raises(ValueError, match='20 splits'): cuhk03(tmp_path, 20, classic=True)


def test_cuhk03_damage(tmp_path):
    home = layouts.cuhk03_extracted(tmp_path)
    config = home / 'cuhk03_new_protocol_config_detected.mat'
    image = home / 'images_detected' / '1_001_1_01.png'
    image.rename(tmp_path / 'away')
    with pytest.raises(ReidError, match="1 of 44 files in .*detected.mat, train don't exist"): cuhk03(tmp_path)
    (tmp_path / 'away').rename(image)
    from scipy.io import loadmat, savemat
    mat = {k: v for k, v in loadmat(config).items() if not k.startswith('__')}
    savemat(config, mat | dict(labels=np.roll(mat['labels'], 1)))
    with pytest.raises(ReidError, match='labels and names .* disagree'): cuhk03(tmp_path)
    del mat['query_idx']
    savemat(config, mat)
    with pytest.raises(ReidError, match='lacks .*query_idx'): cuhk03(tmp_path)
    config.unlink()
    with pytest.raises(FileNotFoundError, match='config_detected.mat   <- missing'): cuhk03(tmp_path)
    shutil.rmtree(home / 'images_detected')
    with pytest.raises(FileNotFoundError, match='Write it once by `extract_cuhk03'): cuhk03(tmp_path)


def test_cuhk03_extraction(tmp_path):
    pytest.importorskip('h5py')
    from PIL import Image
    home, people = layouts.cuhk03_release(tmp_path), layouts.cuhk03_people()
    with pytest.raises(FileNotFoundError, match='extract_cuhk03'): cuhk03(tmp_path)
    assert extract_cuhk03(tmp_path) == home == extract_cuhk03(home)
    for kind in ('detected', 'labeled'):
        files = sorted((home / f'images_{kind}').iterdir())
        assert len(files) == sum(map(len, people.values()))
        for o in files:
            pair, person, view, i = map(int, o.stem.split('_'))
            assert view == (1 if i <= 5 else 2) and i in people[pair, person]
            assert np.array_equal(np.asarray(Image.open(o)), layouts.cuhk03_image(kind, pair, person, i))
    other = layouts.cuhk03_extracted(tmp_path / 'other')
    assert json.loads((home / 'testsets_classic.json').read_text()) == json.loads((other / 'testsets_classic.json').read_text())
    for options in (dict(), dict(labeled=True), dict(classic=True, split_id=7)):
        a, b = cuhk03(tmp_path, check=False, **options), cuhk03(tmp_path / 'other', check=False, **options)
        assert a.drop(columns='path').equals(b.drop(columns='path')) and check_items(a, paths='all') is not None


def test_cuhk03_extraction_is_whole_or_not_there(tmp_path, monkeypatch):
    h5py = pytest.importorskip('h5py')
    home = layouts.cuhk03_release(tmp_path)
    real, n = image_sets._write_person, iter(range(99))

    def cut(*args):
        if next(n) == 4: raise KeyboardInterrupt
        return real(*args)
    monkeypatch.setattr(image_sets, '_write_person', cut)
    with pytest.raises(KeyboardInterrupt): extract_cuhk03(tmp_path)
    assert not list(home.glob('images_*'))
    monkeypatch.undo()
    extract_cuhk03(tmp_path)
    assert sorted(o.name for o in home.iterdir() if 'images' in o.name) == ['images_detected', 'images_labeled']
    with h5py.File(home / 'cuhk03_release' / 'cuhk-03.mat', 'a') as f: del f['testsets']
    with pytest.raises(ReidError, match=r"lacks \['testsets'\]"): extract_cuhk03(tmp_path)
    (home / 'cuhk03_release' / 'cuhk-03.mat').write_bytes(b'half')
    with pytest.raises(ReidError, match='no whole HDF5 file'): extract_cuhk03(tmp_path)
    (home / 'cuhk03_release' / 'cuhk-03.mat').unlink()
    with pytest.raises(FileNotFoundError, match='cuhk-03.mat   <- missing'): extract_cuhk03(tmp_path)


def test_cuhk03_without_h5py(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__('sys').modules, 'h5py', None)
    with pytest.raises(ImportError, match='pip install h5py'): extract_cuhk03(tmp_path)


# ---- files of splits

@pytest.mark.parametrize('name, make', [('viper', layouts.viper), ('cuhk01', layouts.cuhk01), ('ilids', layouts.ilids), ('prid', layouts.prid)])
def test_splits_move_with_the_dataset(tmp_path, name, make):
    make(tmp_path / 'a', **({} if name == 'prid' else dict(n=12)))
    file = write_splits(name, tmp_path / 'a', tmp_path / 'splits.json', seed=5)
    assert str(tmp_path) not in file.read_text()
    (tmp_path / 'a').rename(tmp_path / 'b')
    for i in range(splits_of(name)):
        a, b = read_dataset(name, tmp_path / 'b', i, seed=5, check=False), read_dataset(name, tmp_path / 'b', i, splits=file, check=False)
        assert a.equals(b)


def test_splits_that_torchreid_left(tmp_path):
    layouts.viper(tmp_path, 12), layouts.ilids(tmp_path, 12), layouts.prid(tmp_path)
    for name, entry in (('viper', lambda o: ['/elsewhere/reid-data/viper/VIPeR/' + '/'.join(o.split('/')[-2:]), 3, 0]), ('ilids', os.path.basename)):
        items = read_dataset(name, tmp_path, 3, seed=9, check=False)
        record = {k: [entry(o) for o in rows_of(items, k).path] for k in ('train', 'query', 'gallery')} | dict(num_train_pids=6)
        (tmp_path / 'splits.json').write_text(json.dumps([record]))
        assert read_dataset(name, tmp_path, 0, splits=tmp_path / 'splits.json', check=False).equals(items)
    items = prid(tmp_path, 2)
    (tmp_path / 'splits.json').write_text(json.dumps([dict(train=sorted(map(int, pids_of(items, 'train'))), test=sorted(map(int, pids_of(items, 'query'))))]))
    assert prid(tmp_path, splits=tmp_path / 'splits.json').equals(items)


def test_splits_of_another_copy(tmp_path):
    home = layouts.viper(tmp_path, 12)
    file = write_splits('viper', tmp_path, tmp_path / 'splits.json')
    with pytest.raises(ValueError, match='20 splits'): viper(tmp_path, 20, splits=file, check=False)
    (home / 'cam_b' / '002_180.bmp').unlink()
    with pytest.raises(ReidError, match='1 files that aren.t there, first cam_b/002_180.bmp'): viper(tmp_path, splits=file)
    file.write_text('[{')
    with pytest.raises(ReidError, match='no JSON file'): viper(tmp_path, splits=file)
    for other in ([dict(train=[1], test=[2])], dict(a=1), [1], 'x'):
        file.write_text(json.dumps(other))
        with pytest.raises(ReidError, match="doesn't list splits"): viper(tmp_path, splits=file)
    with pytest.raises(FileNotFoundError): viper(tmp_path, splits=tmp_path / 'nowhere.json')
    layouts.grid(tmp_path, 4, 2)
    with pytest.raises(ValueError, match="grid aren't drawn.*viper"): write_splits('grid', tmp_path, file)


# ---- the catalogue

def test_names_and_options(tmp_path):
    with pytest.raises(ValueError, match="called 'market'.*market1501"): read_dataset('market', tmp_path)
    with pytest.raises(ValueError, match="takes no option 'labeled'. It takes: with_val"): read_dataset('msmt17', tmp_path, labeled=True)
    with pytest.raises(ValueError, match='no option .*It takes: none'): read_dataset('dukemtmcreid', tmp_path, seed=1)
    with pytest.raises(ValueError, match='one split'): read_dataset('dukemtmcreid', tmp_path, split_id=2)
    own = replace(MARKET1501, name='own', counts={}, rows=None)
    layouts.touch(tmp_path, [f'{o}/0002_c1s1_000451_03.jpg' for o in ('bounding_box_train', 'query', 'bounding_box_test')])
    assert set(read_dataset(own, tmp_path).dset) == {'own'} and splits_of(own) == 1 and options_of(own) == {} and protocol_of(own) == 'market'


def test_average_over_splits(tmp_path):
    layouts.viper(tmp_path, 12)
    calls = []
    def test(items):
        calls.append(items)
        return dict(mAP=float(rows_of(items, 'query').pid.sum()), rank1=1, note='words are left out')
    table = average_over_splits(test, 'viper', tmp_path, check=False)
    want = [float(viper(tmp_path, i, check=False).query("split == 'query'").pid.sum()) for i in range(20)]
    assert table.mAP[:20].tolist() == want and len(calls) == 20 and list(table.columns) == ['mAP', 'rank1']
    assert np.isclose(table.mAP['mean'], np.mean(want)) and np.isclose(table.mAP['std'], np.std(want, ddof=1)) and table.rank1['std'] == 0
    some = average_over_splits(test, 'viper', tmp_path, splits=[4], check=False)
    assert list(some.index) == [4, 'mean', 'std'] and np.isnan(some.mAP['std'])
    with pytest.raises(ValueError, match='empty'): average_over_splits(test, 'viper', tmp_path, splits=[], check=False)
    with pytest.raises(ValueError, match='must return a dict of figures'): average_over_splits(lambda o: 0.5, 'viper', tmp_path, check=False)


def test_average_trains_once_per_half(tmp_path):
    layouts.viper(tmp_path, 12), layouts.ilids(tmp_path, 12)
    class Scored:
        def __init__(self, **kw): self.kw = kw
        def metrics(self): return self.kw
    for name, n in (('viper', 10), ('ilids', 10)):
        trained = []
        table = average_over_splits(lambda model, items: Scored(fit=float(model == pids_of(items, 'train'))), name, tmp_path,
                                    train=lambda items: trained.append(1) or pids_of(items, 'train'), check=False)
        assert len(trained) == n and table.fit['mean'] == 1 and len(table) == splits_of(name) + 2
