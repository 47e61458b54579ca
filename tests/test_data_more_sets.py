"The sets used most today in their official layouts, and damaged"
import inspect
import json
import os
import random
import shutil
import warnings
from dataclasses import replace

import numpy as np
import pytest
from layouts_more import MORE, PA100K_ATTRIBUTES, cells, make_cuhk_pedes, make_ltcc, make_pa100k, make_personx_v1, make_prcc, make_randperson, make_sysu_mm01, make_veri776, \
    market_attribute_mat, pedes_entries, put, sysu_permutations
from scipy.io import loadmat, savemat

from reid_nb.core import ReidError, check_items, make_items, rows_of
from reid_nb.data import more_sets
from reid_nb.data.datasets import read_spec
from reid_nb.data.more_sets import (MORE_RULES, MORE_SPECS, add_market_attributes, cuhk_pedes, ltcc, pa100k, personx_v1, prcc, randperson, read_market_attributes,
                                    sysu_mm01, veri776)
from reid_nb.retrieve.protocol import Protocol
from reid_nb.retrieve.rank import rank_stats

NAMES = sorted(MORE)
SPLITS = {o: tuple(k for k in MORE[o][1] if k in ('train', 'query', 'gallery')) for o in MORE}


def mini(name):
    spec = MORE_SPECS[name]
    if name not in ('sysu_mm01', 'personx_v1'): return replace(spec, counts=MORE[name][1])

    def rows(spec, home, **options): # these two know their figures for every option
        df = MORE_SPECS[name].rows(spec, home, **options)
        df.attrs['counts'] = MORE[name][1]
        return df
    return replace(spec, rows=rows)


def read(name, root, **options): return getattr(more_sets, name)(root, check=False, **options)


def n_match(items, name): # how many gallery pictures answer each query, under a rule of `MORE_RULES`
    q, g = rows_of(items, 'query'), rows_of(items, 'gallery')
    feats = [np.random.default_rng(0).normal(size=(len(o), 4)).astype('float32') for o in (q, g)]
    more = [{k: o[k] for k in ('clothes', 'place') if k in o} for o in (q, g)]
    res = rank_stats(tuple(feats), q.pid, g.pid, q.cam, g.cam, protocol=Protocol(name, MORE_RULES[name]), q_more=more[0], g_more=more[1])
    return res.n_match


# ---- all of them

def test_every_spec_has_a_function_a_maker_and_its_terms():
    assert sorted(MORE_SPECS) == NAMES
    for name, spec in MORE_SPECS.items():
        assert name == spec.name and spec.get and spec.licence and spec.ethics and spec.paper and spec.counts
        takes = inspect.signature(getattr(more_sets, name)).parameters
        assert {'root', 'check'} <= set(takes) and ('split_id' in takes) == (spec.splits > 1) == bool(spec.average)
        options = set(inspect.signature(spec.rows).parameters) - {'spec', 'home'} if spec.rows else set()
        assert set(takes) - {'root', 'check'} == options


@pytest.mark.parametrize('name', NAMES)
def test_a_miniature_is_read_whole(tmp_path, name):
    MORE[name][0](tmp_path / 'run_1_c2' / 'here')
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        items = read_spec(mini(name), tmp_path / 'run_1_c2' / 'here')
    check_items(items, paths='all', splits=SPLITS[name])
    assert set(items.dset) == {name} and items.path.map(os.path.isfile).all()
    assert str(items.pid.dtype) == 'int64' and str(items.cam.dtype) == 'Int64'
    assert items.cam.isna().all() or items.cam.min() >= 0


@pytest.mark.parametrize('name', NAMES)
def test_official_counts_are_missed_by_a_miniature_and_said_once(tmp_path, name):
    MORE[name][0](tmp_path)
    with pytest.warns(UserWarning, match=f'{name}: counts differ from the official ones') as seen: getattr(more_sets, name)(tmp_path)
    assert len(seen) == 1


@pytest.mark.parametrize('name,home', [(k, h) for k in NAMES for h in MORE_SPECS[k].homes])
def test_it_is_found_where_archives_put_it(tmp_path, name, home):
    MORE[name][0](tmp_path / home)
    plain = MORE[name][0](tmp_path / 'plain' / 'x')
    assert read(name, tmp_path).drop(columns='path').equals(read(name, plain).drop(columns='path'))


@pytest.mark.parametrize('name', [o for o in NAMES if o not in ('personx_v1', 'randperson', 'pa100k')])
def test_what_is_missing_is_drawn(tmp_path, name):
    MORE[name][0](tmp_path)
    layout = MORE_SPECS[name].layout
    for gone in layout.values():
        (tmp_path / gone).rename(tmp_path / 'away')
        with pytest.raises(FileNotFoundError, match=f'found {len(layout) - 1} of {len(layout)} parts[^$]*{gone}   <- missing'): read(name, tmp_path)
        (tmp_path / 'away').rename(tmp_path / gone)


@pytest.mark.parametrize('name', [o for o in NAMES if MORE_SPECS[o].pattern])
def test_a_name_that_says_nothing_is_an_error(tmp_path, name):
    MORE[name][0](tmp_path)
    some = next(o for o in sorted(tmp_path.rglob('*.??g')) if 'sketch' not in str(o))
    put(some.with_name('holiday.jpg'))
    with pytest.raises(ReidError, match='names in .* don\'t match.*holiday.jpg'): read(name, tmp_path)


@pytest.mark.parametrize('name', [o for o in NAMES if MORE_SPECS[o].pattern])
def test_a_folder_without_pictures(tmp_path, name):
    MORE[name][0](tmp_path)
    folder = next(o for o in sorted(tmp_path.rglob('*.??g')) if 'sketch' not in str(o)).parent
    if name == 'sysu_mm01': folder = tmp_path / 'cam1'
    for o in folder.rglob('*.??g'): o.rename(o.with_suffix('.txt'))
    with pytest.raises(ReidError, match='no images in '): read(name, tmp_path)


# ---- clothes

def test_ltcc_rules_by_hand(tmp_path):
    items = ltcc(make_ltcc(tmp_path), check=False)
    assert (items.groupby('pid').clothes.nunique() > 1).to_dict() == {0: True, 1: False, 148: True}
    q, g = rows_of(items, 'query'), rows_of(items, 'gallery')
    slow = [sum(p == r.pid and c != r.cam and k != r.clothes for p, c, k in zip(g.pid, g.cam, g.clothes)) for r in q.itertuples()]
    assert n_match(items, 'clothes_changed').tolist() == slow == [0, 1]


def test_prcc_clothes_cameras_and_kinds(tmp_path):
    items = prcc(make_prcc(tmp_path), check=False)
    assert set(zip(items.cam, items.clothes)) == {(0, 1), (1, 1), (2, 2)}
    assert set(rows_of(items, 'gallery').cam) == {0} and set(rows_of(items, 'query').cam) == {1, 2}
    assert not items.path.str.contains('sketch').any()
    assert set(rows_of(items, 'train').pid) == set(rows_of(items, 'val').pid) == {92, 113}
    put(tmp_path / 'rgb/train/092/D_cropped_rgb001.jpg')
    with pytest.raises(ReidError, match='1 of 13 names in .*train'): prcc(tmp_path, check=False)
    shutil.rmtree(tmp_path / 'rgb/test/B')
    with pytest.raises(FileNotFoundError, match='rgb/test/B   <- missing'): prcc(tmp_path, check=False)


def test_prcc_cameras_keep_their_numbers_when_one_is_rare(tmp_path):
    make_prcc(tmp_path)
    for part in ('train', 'val'):
        for o in (tmp_path / 'rgb' / part).rglob('A_*'): o.unlink()
    assert set(rows_of(prcc(tmp_path, check=False), 'train').cam) == {1, 2}


# ---- vehicles

def test_veri_colours_and_types(tmp_path):
    items = veri776(make_veri776(tmp_path), check=False)
    assert items.colour.tolist() == ['orange', 'orange', 'yellow', 'yellow', 'yellow', 'green']
    assert items.type.tolist() == ['van', 'van', 'suv', 'suv', 'suv', 'hatchback']
    assert set(items.cam) == {0, 1, 7, 18, 19}
    (tmp_path / 'list_color.txt').unlink()
    assert veri776(tmp_path, check=False).colour.tolist() == [2, 2, 1, 1, 1, 3]
    for o in ('train_label.xml', 'test_label.xml'): (tmp_path / o).unlink()
    assert not {'colour', 'type'} & set(veri776(tmp_path, check=False))


# ---- infrared

def test_sysu_modes_and_shots(tmp_path):
    make_sysu_mm01(tmp_path)
    for mode, cams in dict(all={0, 1, 3, 4}, indoor={0, 1}).items():
        for shots in (1, 10, None):
            items = sysu_mm01(tmp_path, mode, shots, check=False)
            gallery = rows_of(items, 'gallery')
            assert set(gallery.cam) == cams and set(gallery.modality) == {'visible'} and set(gallery.pid) == {6, 10}
            assert set(gallery.groupby(['pid', 'cam']).size()) == {12 if shots is None else shots} and gallery.path.is_unique
            query = rows_of(items, 'query')
            assert len(query) == 48 and set(query.cam) == {2, 5} and set(query.modality) == {'infrared'}
    assert set(items.pid) == {1, 2, 6, 10} # 333 is in none of the lists


def test_sysu_draws_are_the_usual_ones(tmp_path):
    make_sysu_mm01(tmp_path)
    seen = set()
    for trial in range(10):
        random.seed(trial)
        slow = []
        for pid in ('0006', '0010'):
            for cam in ('cam1', 'cam2', 'cam4', 'cam5'):
                folder = tmp_path / cam / pid
                if folder.is_dir(): slow.append(random.choice(sorted(str(o) for o in folder.iterdir())))
        got = rows_of(sysu_mm01(tmp_path, split_id=trial, check=False), 'gallery').path
        assert sorted(got) == sorted(slow)
        seen.add(tuple(got))
    assert len(seen) == 10
    for bad in (10, -1):
        with pytest.raises(ValueError, match=f'draws 0 to 9, not {bad}'): sysu_mm01(tmp_path, split_id=bad)


def test_sysu_draws_of_the_authors(tmp_path):
    make_sysu_mm01(tmp_path / 'a')
    box = sysu_permutations(tmp_path / 'perm.mat')
    for trial, shots in ((0, 1), (9, 10)):
        got = rows_of(sysu_mm01(tmp_path / 'a', shots=shots, split_id=trial, perm=tmp_path / 'perm.mat', check=False), 'gallery')
        want = {str(tmp_path / f'a/cam{c}/{p:04}/{int(k):04}.jpg') for p in (6, 10) for c in (1, 2, 4, 5) if (c, p) != (1, 10) for k in box[c - 1, 0][p - 1, 0][trial][:shots]}
        assert set(got.path) == want
    (tmp_path / 'a/cam1/0006/0012.jpg').unlink()
    with pytest.raises(ReidError, match='draws picture 12 of identity 6, camera 1, which has 11'): sysu_mm01(tmp_path / 'a', shots=12, perm=tmp_path / 'perm.mat', check=False)


def test_sysu_pictures_of_one_room_do_not_answer_each_other(tmp_path):
    items = sysu_mm01(make_sysu_mm01(tmp_path), check=False)
    q, g = rows_of(items, 'query'), rows_of(items, 'gallery')
    slow = [sum(p == r.pid and not (r.cam == 2 and c == 1) for p, c in zip(g.pid, g.cam)) for r in q.itertuples()]
    assert n_match(items, 'cross_place').tolist() == slow and set(slow) == {2, 3, 4}


@pytest.mark.parametrize('mode,shots,n', [('all', 1, 301), ('all', 10, '3,010'), ('indoor', 1, 112), ('indoor', 10, '1,120'), ('all', None, None)])
def test_sysu_knows_the_counts_of_every_kind(tmp_path, mode, shots, n):
    make_sysu_mm01(tmp_path)
    with pytest.warns(UserWarning, match='query images 3,803 → 48') as seen: sysu_mm01(tmp_path, mode, shots)
    assert (f'gallery images {n} → ' in str(seen[0].message)) == (n is not None) == ('gallery' in str(seen[0].message))


def test_sysu_damaged_lists(tmp_path):
    make_sysu_mm01(tmp_path)
    (tmp_path / 'exp/test_id.txt').write_text('6;10')
    with pytest.raises(ReidError, match='test_id.txt must hold whole numbers with commas'): sysu_mm01(tmp_path, check=False)
    (tmp_path / 'exp/test_id.txt').write_text('6,\n10,\n')
    assert len(rows_of(sysu_mm01(tmp_path, check=False), 'gallery')) == 7


# ---- words

def test_cuhk_pedes_sentences(tmp_path):
    items = cuhk_pedes(make_cuhk_pedes(tmp_path), check=False)
    told = {os.path.basename(o['file_path']): o['captions'] for o in pedes_entries()}
    assert {os.path.basename(k): v for k, v in zip(items.path, items.text)} == told
    asks = rows_of(items, 'gallery').explode('text', ignore_index=True)
    assert len(asks) == 4 and 'Ein Mann, größer.' in set(asks.text) and set(items.source) == {'CUHK01', 'cam_a', 'train_query', 'Market', 'CUHK03', 'test_query'}


def test_cuhk_pedes_damage(tmp_path):
    make_cuhk_pedes(tmp_path)
    file, entries = tmp_path / 'reid_raw.json', pedes_entries()

    def told(entries, says):
        file.write_text(entries if isinstance(entries, str) else json.dumps(entries))
        with pytest.raises(ReidError, match=says): cuhk_pedes(tmp_path, check=False)
    told('[', "isn't JSON")
    told([{k: v for k, v in o.items() if k != 'split'} for o in entries], '6 entries lack one of split, captions, file_path, id, the first: 0, 1, 2')
    told([entries[0] | dict(split='dev')], 'unknown splits dev; expected train, val, test')
    told([*entries, entries[0] | dict(file_path='VIPeR/000_45.bmp')], '1 of 7 pictures are missing: .*000_45.bmp')
    file.write_text(json.dumps([*entries, entries[0]]))
    with pytest.raises(ReidError, match='the same path twice in one split'): check_items(cuhk_pedes(tmp_path, check=False), splits=('train', 'gallery'))


# ---- synthetic

def test_personx_v1_reads_the_backgrounds_asked_for(tmp_path):
    make_personx_v1(tmp_path)
    items = personx_v1(tmp_path, backgrounds=(2, 5), check=False)
    assert set(items.cam) == {1, 4} and len(items) == 6 and set(rows_of(items, 'query').view) == {32}
    with pytest.warns(UserWarning, match='found.: total ids 1,266 → 2[.] Unpack'): personx_v1(tmp_path, backgrounds=(4, 6)) # two cameras are all there can be
    shutil.rmtree(tmp_path / '3')
    assert len(personx_v1(tmp_path, backgrounds=(1, 2), check=False)) == 6
    with pytest.raises(FileNotFoundError, match='3/query   <- missing'): personx_v1(tmp_path, check=False)


def test_randperson_cameras_are_numbered_through(tmp_path):
    make_randperson(tmp_path)
    items = randperson(tmp_path, check=False)
    assert dict(zip(items.path.map(os.path.basename), items.cam)) == {'000000_s00_c00_f000264.jpg': 0, '000000_s00_c01_f001032.jpg': 1, '000000_s10_c03_f001632.jpg': 18, '007999_s05_c00_f000001.jpg': 9}
    every = [(s, c) for s, n in enumerate((2, 2, 2, 2, 1, 1, 2, 1, 1, 1, 4)) for c in range(n)]
    for i, (s, c) in enumerate(every): put(tmp_path / f'b/randperson_subset/000001_c{c:02}_s{s:02}_f{i:06}.jpg') # the older way
    b = randperson(tmp_path / 'b', check=False)
    assert b.cam.tolist() == b.frame.tolist() == sorted(b.cam, key=lambda o: b.path[b.cam == o].iloc[0]) and set(b.cam) == set(range(19))
    put(tmp_path / 'randperson_subset/000001_s04_c01_f000001.jpg')
    with pytest.raises(ReidError, match='1 names tell a scene or camera that isn\'t there: .*000001_s04_c01'): randperson(tmp_path, check=False)
    with pytest.raises(FileNotFoundError, match='randperson_subset or subset   <- missing'): randperson(tmp_path / 'b/randperson_subset')


# ---- attributes

@pytest.mark.parametrize('images', ['data', 'release_data', 'release_data/release_data', 'data/release_data/release_data'])
@pytest.mark.parametrize('labels', ['annotation.mat', 'annotation/annotation.mat'])
def test_pa100k_layouts(tmp_path, images, labels):
    items = pa100k(make_pa100k(tmp_path, images, labels), check=False)
    assert list(items.columns[5:]) == PA100K_ATTRIBUTES and (items.dtypes[PA100K_ATTRIBUTES] == bool).all()
    first = items.iloc[0][PA100K_ATTRIBUTES].tolist()
    assert first == [i % 2 == 0 for i in range(26)] and items.pid.tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 1001, 2001, 2002]


def test_pa100k_damage(tmp_path):
    make_pa100k(tmp_path)
    whole = {k: v for k, v in loadmat(tmp_path / 'annotation.mat').items() if not k.startswith('__')}
    (tmp_path / 'release_data/release_data/000003.jpg').unlink()
    with pytest.raises(ReidError, match='1 of 11 pictures are missing: .*000003.jpg'): pa100k(tmp_path, check=False)
    for change, says in ((dict(train_images_name=cells('000001.jpg')), "1 names and 8 labels in the part 'train'"), (dict(val_label=np.ones((1, 25))), r"'val_label' has the shape \(25,\), not \(n, 26\)")):
        savemat(tmp_path / 'annotation.mat', whole | change)
        with pytest.raises(ReidError, match=says): pa100k(tmp_path, check=False)


PEOPLE = dict(train={2: dict(gender=2, upred=2, downblue=2), 7: dict(age=4, upblack=2, upred=2), 1500: dict(clothes=2, down=2, up=2, hair=2)}, test={1: dict(hat=2, downpink=2), 1501: {}})


def test_market_attributes_by_hand(tmp_path):
    table = read_market_attributes(market_attribute_mat(tmp_path / 'market_attribute.mat', PEOPLE))
    assert table.index.tolist() == [1, 2, 7, 1500, 1501] and table.shape == (5, 12)
    assert table.loc[2, ['gender', 'age', 'up_colour', 'down_colour']].tolist() == ['female', 'young', 'red', 'blue']
    assert table.loc[1500, ['clothes', 'down', 'up', 'hair']].tolist() == ['pants', 'short', 'short sleeve', 'long']
    assert table.hat.tolist() == [True, False, False, False, False]
    assert table.up_colour.isna().tolist() == [True, False, True, True, True] # 7 has two colours marked, others none


def test_market_attributes_join_by_identity(tmp_path):
    file = market_attribute_mat(tmp_path / 'market_attribute.mat', PEOPLE)
    items = make_items([f'{i}.jpg' for i in range(6)], [2, 2, 1, 1, 0, -1], split=['train', 'train', 'query', 'gallery', 'gallery', 'gallery'], dset='market1501')
    out = add_market_attributes(items, file)
    assert out[items.columns].equals(items) and len(out.columns) == len(items.columns) + 12
    assert out.gender.fillna('').tolist() == ['female', 'female', 'male', 'male', '', ''] and out.hat.isna().tolist() == [False] * 4 + [True] * 2
    with pytest.raises(ReidError, match='None of the 1 identities stands in'): add_market_attributes(items.assign(pid=77), file)
    with pytest.raises(ReidError, match='already has the columns gender, hair, up and 9 more'): add_market_attributes(out, file)


def test_market_attributes_of_another_file(tmp_path):
    savemat(tmp_path / 'duke.mat', dict(duke_attribute=dict(train=dict(image_index=np.array(['0001'], object)))))
    with pytest.raises(ReidError, match="no variable 'market_attribute', only duke_attribute"): read_market_attributes(tmp_path / 'duke.mat')
    savemat(tmp_path / 'less.mat', dict(market_attribute=dict(train=dict(image_index=np.array(['0001'], object), gender=1), test=dict(image_index=np.array(['0002'], object), gender=1))))
    with pytest.raises(ReidError, match='lacks the attributes age, backpack, bag'): read_market_attributes(tmp_path / 'less.mat')
