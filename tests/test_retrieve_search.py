"Search: against a slow twin that sorts everything, through additions, removals, filters, files and approximate forms"
import json
import os
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings, strategies as st

from reid_nb.core import ReidError
from reid_nb.retrieve import search as module
from reid_nb.retrieve.distance import METRICS, make_ready, pairwise
from reid_nb.retrieve.few import FEW, few_tiles
from reid_nb.retrieve.nearest import k_nearest
from reid_nb.retrieve.search import FORMS, GalleryIndex, Pieces, rows_where


def world(n=200, d=6, seed=0, coarse=True): # whole numbers have many equal distances, computed exactly
    rng = np.random.default_rng(seed)
    feats = rng.integers(-2, 3, (n, d)) if coarse else rng.normal(size=(n, d))
    items = pd.DataFrame(dict(path=pd.Series([f'{i:03}.jpg' for i in range(n)], dtype='str'), pid=rng.integers(-1, 9, n),
                              cam=pd.array([pd.NA if o == 3 else o for o in rng.integers(0, 4, n)], dtype='Int64'),
                              dset=pd.Categorical(rng.choice(['a', 'b'], n)), time=pd.Timestamp('2026-05-01') + pd.to_timedelta(rng.integers(0, 9999, n), unit='s'),
                              box=[[1, int(o)] for o in rng.integers(0, 9, n)]))
    return feats.astype(np.float32), items


def small_pieces(index, d, n_bytes): # an index whose pieces hold a few rows
    index._pieces = Pieces(d, index.metric, n_bytes)
    return index


def slow_search(feats, q, k, keep, metric): # sorts all rows that are kept
    rows, dist, all_ = np.full((len(q), k), -1), np.full((len(q), k), np.inf, np.float32), pairwise(q, feats, metric) if len(feats) else np.empty((len(q), 0))
    for i, d in enumerate(all_):
        at = np.array([j for j in np.argsort(d, kind='stable') if keep[j]], int)[:k]
        rows[i, :len(at)], dist[i, :len(at)] = at, d[at]
    return rows, dist


def slow_fits(o, cond): # does a row, a dict, fit the condition?
    def fits(value, want):
        if isinstance(want, tuple): return not pd.isna(value) and (want[0] is None or value >= want[0]) and (want[1] is None or value <= want[1])
        if isinstance(want, list): return not pd.isna(value) and value in want
        return pd.isna(value) if want is None else not pd.isna(value) and value == want
    return all(fits(o[k], v) for k, v in cond.items())


T = pd.Timestamp('2026-05-01 01:00')
CONDITIONS = [dict(cam=1), dict(cam=[0, 2], dset='b'), dict(cam=None), dict(pid=(2, 5)), dict(pid=(None, 3), time=(T, None)), dict(time=(T, T + pd.Timedelta(minutes=30))), dict(dset=['a', 'b']), dict(cam=9), {}]


# Rows that are meant

@pytest.mark.parametrize('cond', CONDITIONS, ids=str)
def test_conditions_against_the_slow_twin(cond):
    _, items = world()
    want = [slow_fits(o, cond) for o in items.to_dict('records')]
    assert rows_where(items, cond).tolist() == want
    assert rows_where(items, np.array(want)).tolist() == rows_where(items, lambda o: want).tolist() == rows_where(items, np.flatnonzero(want)).tolist() == want


def test_conditions_in_other_forms():
    _, items = world()
    assert rows_where(items, lambda o: o.cam > 0).tolist() == (items.cam > 0).fillna(False).tolist() # <NA> is not meant
    assert rows_where(items, dict(time=('2026-05-01 01:00', None))).tolist() == (items.time >= T).tolist()
    some = items.time[[3, 77]]
    assert rows_where(items, dict(time=[str(o) for o in some])).tolist() == rows_where(items, dict(time=list(some))).tolist() == items.time.isin(some).tolist()
    assert not rows_where(items, dict(time=[])).any()
    assert rows_where(items, 3).sum() == 1 and not rows_where(items, []).any() and rows_where(items).all()


@pytest.mark.parametrize('where,error,says', [
    (dict(camera=1), ReidError, "no column 'camera' to filter by. Found: \\['path'"), (dict(cam='1'), ReidError, 'is text'), (dict(cam=['1']), ReidError, 'is text'), (dict(dset=('a', None)), ReidError, "can't be compared"),
    (dict(cam=(1, 2, 3)), ValueError, 'first and last'), (np.ones(3, bool), ReidError, r'shape \(3,\), the index has 200 rows'), ([0, 200], ReidError, 'There is no row 200: the index has the rows 0 to 199'), ([-1], ReidError, 'no row -1'),
    (dict(cam=slice(0, 1)), ValueError, 'A range is a tuple'), (dict(path=3), ReidError, '3 is of type int'), (dict(path=[Path('a')]), ReidError, 'Pass `str'),
    ('cam == 1', ValueError, 'must be a dict'), ([.5], ValueError, 'must be a dict')], ids=str)
def test_conditions_that_mean_nothing(where, error, says):
    with pytest.raises(error, match=says): rows_where(world()[1], where)


# Search

@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(METRICS), st.sampled_from([1, 3, 40, 300]), st.sampled_from([1, FEW, FEW + 1, 20]), st.sampled_from([48, 240, 10**6]))
def test_search_against_the_slow_twin(seed, metric, k, n_q, n_bytes):
    "Added in pieces, some removed, more added, some removed again, filtered"
    rng = np.random.default_rng(seed)
    feats, items = world(150, seed=seed)
    index, alive, at = small_pieces(GalleryIndex(metric), 6, n_bytes), np.empty(0, int), 0
    for _ in range(4):
        n = int(rng.integers(0, 50))
        index.add(feats[at:at + n], items[at:at + n])
        alive, at = np.r_[alive, np.arange(at, min(at + n, 150))], min(at + n, 150)
        gone = rng.random(len(alive)) < rng.choice([0, .1, .9])
        if rng.random() < .3: gone[:len(gone) // 2] = True
        if len(alive): assert index.remove(gone) == gone.sum()
        alive = alive[~gone]
    left, table = feats[alive], items.iloc[alive].reset_index(drop=True)
    assert len(index) == len(alive)
    if not len(alive): return
    pd.testing.assert_frame_equal(index.items, table, check_categorical=False)
    some = rng.permutation(len(alive))[:7]
    assert np.array_equal(index.feats_of(some), left[some])
    q = feats[rng.integers(0, 150, n_q)]
    for where in (None, dict(cam=[0, 1]), rng.random(len(alive)) < .5, dict(cam=77)):
        rows, dist = index.search(q, k, where)
        want_rows, want_dist = slow_search(left, q, k, rows_where(table, where), metric)
        assert np.array_equal(rows, want_rows) and np.array_equal(dist, want_dist)


def test_without_filter_it_is_k_nearest():
    feats, items = world(500, 33, coarse=False)
    index = small_pieces(GalleryIndex(), 33, 10_000).add(feats, items)
    for n_q in (1, 2, 50):
        for got, want in zip(index.search(feats[:n_q] + .1, 7), k_nearest(feats[:n_q] + .1, feats, 7)): assert np.array_equal(got, want)


@pytest.mark.parametrize('metric', METRICS)
@pytest.mark.parametrize('n_q,n_g,d', [(1, 8, 1), (1, 7, 5), (2, 9, 512), (3, 1003, 130), (FEW + 1, 40, 8), (0, 9, 3), (1, 0, 3)])
def test_a_few_queries_have_the_distances_of_tiles(metric, n_q, n_g, d):
    rng = np.random.default_rng(1)
    x = [rng.normal(size=(n, d)).astype(np.float32) for n in (n_q, n_g)]
    for o in x[1:]: o[::5] *= 1e-20 # short rows, and some of zeros
    x[1][::7] = 0
    for o in x: o.flags.writeable = False
    q, g = (make_ready(o, metric) for o in x)
    out = np.full((n_q, n_g), np.nan, np.float32)
    for i, j, dist in few_tiles(q, g): out[i:i + len(dist), j:j + dist.shape[1]] = dist
    assert np.array_equal(out, pairwise(*x, metric))


def test_a_filter_copies_no_features():
    "Selecting rows takes one piece of memory at a time"
    feats, items = world(40_000, 64, coarse=False)
    index = small_pieces(GalleryIndex(), 64, 2**20).add(feats, items)
    where, q = np.arange(40_000) % 10 > 0, feats[:2]
    index.search(q, 5, where)
    tracemalloc.start()
    index.search(q, 5, where)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < feats.nbytes / 4, f'{peak / 1e6:.1f} MB of {feats.nbytes / 1e6:.1f}'


def test_a_function_as_metric(tmp_path):
    feats, items = world(80)
    def city(q, g): return np.abs(q[:, None] - g).sum(2)
    index = GalleryIndex(city).add(feats, items)
    rows, dist = index.search(feats[:5], 4)
    want = np.argsort(city(feats[:5], feats), axis=1, kind='stable')[:, :4]
    assert np.array_equal(rows, want) and np.array_equal(dist, city(feats[:5], feats)[np.arange(5)[:, None], want])
    assert index.query(feats[0], 2).score.tolist() == (-dist[0, :2]).tolist()
    with pytest.raises(ReidError, match='is the function'): index.save(tmp_path/'a')
    with pytest.raises(ValueError, match='with a name'): index.approximate('flat')


# Rows that come and go

def test_many_small_additions_are_joined_seldom():
    feats, items = world(300)
    index = GalleryIndex()
    for i in range(300):
        index.add(feats[i:i + 1], items[i:i + 1])
        assert len(index._tables) <= 10 and len(index._slots) <= 10
    pd.testing.assert_frame_equal(index.items, items)
    assert np.array_equal(index.feats_of(None), feats)


def test_features_move_never():
    feats, items = world(100)
    index = small_pieces(GalleryIndex(), 6, 240)
    index.add(feats[:50], items[:50])
    before = [o.x.ctypes.data for o in index._pieces.parts]
    index.add(feats[50:], items[50:])
    index.remove(np.arange(0, 100, 3))
    assert [o.x.ctypes.data for o in index._pieces.parts[:5]] == before


def test_the_memory_of_old_rows_comes_back():
    feats, items = world(100)
    index = small_pieces(GalleryIndex(), 6, 240).add(feats, items) # ten rows a piece
    index.remove(np.arange(35))
    assert [o is None for o in index._pieces.parts] == [True] * 3 + [False] * 7
    index.remove(np.arange(65))
    assert len(index) == 0 and list(index.items) == list(items)
    with pytest.raises(ReidError, match='has no rows'): index.search(feats[:1])
    index.add(feats[7:9], items[7:9])
    assert index.search(feats[8], 1)[0].tolist() == [[1]]


def test_an_array_can_stay_on_disk(tmp_path):
    feats, items = world(100, coarse=False)
    np.save(tmp_path/'feats.npy', feats)
    disk = np.load(tmp_path/'feats.npy', mmap_mode='r')
    index = small_pieces(GalleryIndex(), 6, 240).add(disk, items, copy=False).add(feats[:5], items[:5])
    assert all(np.may_share_memory(o.x, disk) for o in index._pieces.parts[:10]) and not np.may_share_memory(index._pieces.parts[-1].x, disk)
    index.remove([0])
    assert np.array_equal(index.search(feats[:9], 3)[0], slow_search(np.r_[feats, feats[:5]][1:], feats[:9], 3, np.ones(104), 'cosine')[0])
    for bad in (feats.astype(float), feats[:, ::-1], feats[::2]):
        with pytest.raises(ValueError, match="can't stay where they are"): index.add(bad, items[:len(bad)], copy=False)


def test_types_of_features():
    feats, items = world(20)
    want = GalleryIndex().add(feats, items).search(feats, 3)
    for x in (feats.astype(np.float16), feats.astype(np.float64), feats.astype(int), np.asfortranarray(feats), feats.tolist()):
        for a, b in zip(GalleryIndex().add(x, items).search(x, 3), want): assert np.array_equal(a, b)


@pytest.mark.parametrize('feats,change,says', [
    (np.ones((5, 7)), {}, '7 dimensions, the index 6'), (np.ones((4, 6)), {}, '4 features for 5 rows'), (np.ones(5), {}, r'found \(5,\)'), (np.full((5, 6), np.nan), {}, '5 of 5 rows of features hold 30 NaN'),
    (np.ones((5, 6)), dict(path=None), 'needs a column `path`'), (np.ones((5, 6)), dict(dist=1), r"\['dist'\] have names"), (np.ones((5, 6)), dict(extra=1), 'They must be the same'), (np.ones((5, 6)), dict(cam='x'), "'cam' is (str|object), in the index Int64")], ids=str)
def test_what_does_not_fit_changes_nothing(feats, change, says):
    good, items = world(30)
    index = GalleryIndex().add(good, items)
    new = items[:5].assign(**change) if change != dict(path=None) else items[:5].drop(columns='path')
    with pytest.raises(ReidError, match=says): index.add(feats, new)
    pd.testing.assert_frame_equal(index.items, items)
    index.add(good[:3], items[:3])
    assert len(index) == 33 and np.array_equal(index.feats_of(None), np.r_[good, good[:3]])


def test_an_error_late_in_the_features_names_its_row():
    feats, items = world(100)
    bad = feats.copy()
    bad[93, 2] = np.inf
    for index in (small_pieces(GalleryIndex(), 6, 240), small_pieces(GalleryIndex(), 6, 240).add(feats[:5], items[:5])):
        n = len(index)
        with pytest.raises(ReidError, match=r'1 of 100 rows of features hold 0 NaN and 1 infinite values, first rows \[93\]'): index.add(bad, items)
        assert len(index) == n
        assert np.array_equal(index.add(feats, items).feats_of(None), np.r_[feats[:n], feats])


def test_bad_requests():
    feats, items = world(30)
    index = GalleryIndex()
    with pytest.raises(ReidError, match='has no rows'): index.query(feats[:1])
    with pytest.raises(ReidError, match='has no rows'): index.feats_of(None)
    assert len(index.items) == 0 and index.dim is None and 'any number of' in repr(index)
    index.add(feats, items)
    for k in (0, -3):
        with pytest.raises(ValueError, match='`k` must be 1 at least'): index.query(feats[:1], k)
    with pytest.raises(ReidError, match='Query features have 5 dimensions, the index 6'): index.query(feats[:1, :5])
    with pytest.raises(ReidError, match='1 of 1 rows of query features hold 6 NaN'): index.query(np.full(6, np.nan))
    with pytest.raises(ValueError, match='needs to know which rows'): index.remove(None)
    with pytest.raises(ValueError, match='`metric` must be one of'): GalleryIndex('manhattan')


# The table of an answer

def test_the_table_says_what_the_arrays_say():
    feats, items = world(60)
    items['path'] = items.path.where(items.index > 20, 'one.jpg') # a path may come more than once
    index = GalleryIndex().add(feats, items)
    where = dict(cam=[0, 1])
    rows, dist = index.search(feats[:4], 50, where)
    df = index.query(feats[:4], 50, where)
    assert list(df) == ['query', 'rank', 'row', 'dist', 'score', *items] and len(df) == (rows >= 0).sum() < 200
    for i, o in df.groupby('query'):
        assert o['rank'].tolist() == list(range(1, len(o) + 1)) and o.row.tolist() == rows[i][rows[i] >= 0].tolist() and np.array_equal(o.dist, dist[i][rows[i] >= 0])
        pd.testing.assert_frame_equal(o[list(items)].reset_index(drop=True), items.iloc[o.row].reset_index(drop=True))
    assert np.array_equal(df.score, 1 - df.dist)
    assert index.query(feats[:0]).empty and len(index.query(feats[:2], 500)) == 120


def test_categories_of_several_tables_stay_categories():
    feats, items = world(9)
    index = GalleryIndex()
    for o in 'xyx': index.add(feats, items.assign(dset=pd.Categorical([o] * 9)))
    assert isinstance(index.items.dset.dtype, pd.CategoricalDtype) and index.items.dset.tolist() == ['x'] * 9 + ['y'] * 9 + ['x'] * 9
    assert set(index.query(feats[:3], where=dict(dset='y')).row // 9) == {1}


# Same person

def test_same_person():
    feats, items = world(50, coarse=False)
    index = GalleryIndex('euclidean').add(feats, items)
    with pytest.raises(ReidError, match='has no threshold'): index.same_person(feats[0], feats[1])
    dist = pairwise(feats, feats, 'euclidean')
    index.threshold = float(dist[3, 4])
    assert index.same_person(feats[3], feats[4]) is True and index.same_person(feats[3:4], feats[4]).tolist() == [True]
    assert index.same_person(feats, feats[::-1]).tolist() == (dist[np.arange(50), np.arange(50)[::-1]] <= dist[3, 4]).tolist()
    assert index.same_person(feats, feats[4]).tolist() == (dist[:, 4] <= dist[3, 4]).tolist()
    df = index.query(feats, 50)
    assert df.same.tolist() == (dist[df['query'], df.row] <= dist[3, 4]).tolist()
    with pytest.raises(ReidError, match='5 dimensions, the index 6'): index.same_person(feats[0, :5], feats[1])
    with pytest.raises(ReidError, match="50 features can't be paired with 3"): index.same_person(feats, feats[:3])


def test_a_threshold_of_verification_keeps_its_promise():
    from reid_nb.retrieve.verify import pair_counts
    rng = np.random.default_rng(0)
    pid = np.repeat(np.arange(40), 5)
    feats = (rng.normal(size=(40, 16))[pid] + .7 * rng.normal(size=(200, 16))).astype(np.float32)
    index = GalleryIndex(threshold=pair_counts((feats, feats), pid, pid, protocol='all').threshold_for(fpr=.01)).add(feats, pd.DataFrame(dict(path=['x'] * 200, pid=pid)))
    df = index.query(feats, 200)
    wrong = df.pid.to_numpy() != pid[df['query']]
    assert .008 < df.same[wrong].mean() <= .01


# Files

def check_same(a, b, q):
    pd.testing.assert_frame_equal(a.items, b.items)
    assert (a.metric, a.threshold, a.dim, len(a)) == (b.metric, b.threshold, b.dim, len(b))
    if len(a):
        pd.testing.assert_frame_equal(a.query(q, 9), b.query(q, 9))
        pd.testing.assert_frame_equal(a.query(q, 9, dict(cam=[1])), b.query(q, 9, dict(cam=[1])))


@pytest.mark.parametrize('metric', METRICS)
@pytest.mark.parametrize('mmap', [False, True])
def test_a_file_gives_everything_back(tmp_path, metric, mmap):
    feats, items = world(90, coarse=False)
    feats[5] = 0
    index = small_pieces(GalleryIndex(metric, threshold=.1 + .2), 6, 240).add(feats, items)
    for _ in range(3):
        index.save(tmp_path/'a.safetensors')
        back = GalleryIndex.load(tmp_path/'a.safetensors', dim=6, mmap=mmap)
        check_same(index, back, feats[:8])
        for o in (index, back): # both go on alike; the file on disk is replaced while it is in use
            o.remove(dict(cam=0))
            o.add(feats[:20], items[:20])
        check_same(index, back, feats[:8])
        index = back
    assert os.listdir(tmp_path) == ['a.safetensors']


def test_an_index_that_was_emptied_can_be_saved(tmp_path):
    feats, items = world(9)
    with pytest.raises(ReidError, match='has no rows'): GalleryIndex().save(tmp_path/'a')
    index = GalleryIndex().add(feats, items)
    index.remove(np.arange(9))
    index.save(tmp_path/'a')
    check_same(index, GalleryIndex.load(tmp_path/'a'), None)


def test_other_programs_can_read_the_file(tmp_path):
    load_file = pytest.importorskip('safetensors.numpy', reason='safetensors is not installed').load_file
    feats, items = world(30)
    GalleryIndex().add(feats, items).save(tmp_path/'a.safetensors')
    o = load_file(tmp_path/'a.safetensors')
    assert np.array_equal(o['feats'], feats) and json.loads(o['table'].tobytes())['n'] == 30


def test_a_column_that_text_cannot_hold_loses_nothing(tmp_path):
    feats, items = world(9)
    index = GalleryIndex().add(feats, items)
    index.save(tmp_path/'a')
    before = (tmp_path/'a').read_bytes()
    index.items['odd'] = [object()] * 9
    with pytest.raises(ReidError, match="Column 'odd' can't be saved"): index.save(tmp_path/'a')
    assert (tmp_path/'a').read_bytes() == before and os.listdir(tmp_path) == ['a']


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    feats, items = world(40, coarse=False)
    path = tmp_path_factory.mktemp('whole')/'a'
    GalleryIndex(threshold=.3).add(feats, items).save(path)
    return path.read_bytes()


@pytest.mark.parametrize('part', [0, 1, 7, 8, 9, 300, 4095, 4096, 4097, .5, -1])
@pytest.mark.parametrize('mmap', [False, True])
def test_a_file_that_was_cut_off_is_refused(tmp_path, whole, part, mmap):
    n = int(part * len(whole)) if isinstance(part, float) else part
    (tmp_path/'a').write_bytes(whole[:n])
    with pytest.raises(ReidError, match='is not a whole gallery index|is of the format'): GalleryIndex.load(tmp_path/'a', mmap=mmap)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_a_damaged_file_is_refused_or_the_same(tmp_path_factory, whole, data):
    "A bit is turned anywhere, most often in the header; spaces between words may come in other forms"
    at = data.draw(st.one_of(st.integers(0, 900), st.integers(0, len(whole) - 1)))
    bad = bytearray(whole)
    bad[at] ^= 1 << data.draw(st.integers(0, 7))
    path, good = tmp_path_factory.getbasetemp()/'bad', tmp_path_factory.getbasetemp()/'good'
    path.write_bytes(bad)
    good.write_bytes(whole)
    try: back = GalleryIndex.load(path)
    except ReidError: return
    check_same(GalleryIndex.load(good), back, world(4, coarse=False)[0])
    assert at < 4096


def test_files_of_others_are_refused(tmp_path, whole):
    def header(change): # the same file with another header
        head = json.loads(whole[8:4096])
        change(head)
        return whole[:8] + json.dumps(head).encode().ljust(4088) + whole[4096:]
    def version(o): o['__metadata__']['version'] = '2'
    def meta(o): del o['__metadata__']
    def shape(o): o['feats']['shape'] = [6, 40]
    def rows(o): o['feats']['shape'] = [39, 6]
    def head(o): o['__metadata__']['head'] = o['__metadata__']['head'].replace('cosine', 'euclid')
    for text, says in [(b'', "can't be read"), (b'{}', "can't be read"), (b'PK' * 5000, "can't be read"), (header(version), "is of the format .*'2'.*reads .*'1'"), (header(meta), 'is of the format'),
                       (struct.pack('<Q', 2) + b'[]', 'is of the format'), (header(rows), 'another size'), (header(head), 'checksum'), (whole + b'x', 'bytes instead of')]:
        (tmp_path/'a').write_bytes(text)
        with pytest.raises(ReidError, match=says): GalleryIndex.load(tmp_path/'a')
    (tmp_path/'a').write_bytes(header(shape))
    with pytest.raises(ReidError): GalleryIndex.load(tmp_path/'a')
    (tmp_path/'a').write_bytes(whole)
    with pytest.raises(ReidError, match='features of 6 dimensions, not 512'): GalleryIndex.load(tmp_path/'a', dim=512)
    with pytest.raises(FileNotFoundError): GalleryIndex.load(tmp_path/'none')


# Approximate forms

def test_without_faiss_it_says_what_to_install(monkeypatch):
    real = module.importlib.import_module
    def missing(name, *args): # of faiss alone
        if name.startswith('faiss'): raise ModuleNotFoundError(name)
        return real(name, *args)
    monkeypatch.setattr(module.importlib, 'import_module', missing)
    feats, items = world(60)
    index = GalleryIndex().add(feats, items)
    with pytest.raises(ImportError, match='pip install faiss-cpu'): index.approximate('ivf')
    assert index.search(feats[:1], 1)[0].shape == (1, 1) and 'exact' in repr(index)


def people(n=1500, d=16, seed=0):
    rng = np.random.default_rng(seed)
    pid = rng.integers(0, n // 8, n)
    feats = (rng.normal(size=(n // 8, d))[pid] + .4 * rng.normal(size=(n, d))).astype(np.float32)
    return feats, pd.DataFrame(dict(path=[f'{i}.jpg' for i in range(n)], pid=pid, cam=rng.integers(0, 4, n)))


@pytest.fixture
def faiss(): return pytest.importorskip('faiss', reason='faiss is not installed: `pip install faiss-cpu`')


@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize('metric', METRICS)
def test_approximate_forms_find_most_and_measure_exactly(faiss, monkeypatch, form, metric):
    monkeypatch.setattr(module, 'FEW_ROWS', 0)
    feats, items = people()
    index = GalleryIndex(metric).add(feats[:1200], items[:1200]).approximate(form, effort={'ivf': 30, 'pq': 30, 'hnsw': 80}.get(form), cells=30)
    index.add(feats[1200:], items[1200:])
    index.remove(lambda o: o.pid % 7 == 0)
    q = feats[:60] + .01
    for where in (None, dict(cam=[0, 1, 2])):
        rows, dist = index.search(q, 10, where)
        want, want_dist = index.search(q, 10, where, exact=True)
        assert np.array_equal(dist, np.take_along_axis(pairwise(q, index.feats_of(None), metric), rows, 1)), 'distances must be those of the rows'
        assert (np.diff(dist, axis=1) >= 0).all() and rows_where(index.items, where)[rows].all()
        assert np.mean([np.isin(a, b).mean() for a, b in zip(want, rows)]) == index.recall(q, 10, where) > (.9 if form in ('hnsw', 'pq') else .999)
        if form == 'flat': assert np.array_equal(rows, want) and np.array_equal(dist, want_dist)


def test_an_approximate_answer_is_never_short(faiss, monkeypatch):
    monkeypatch.setattr(module, 'FEW_ROWS', 0)
    feats, items = people()
    index = GalleryIndex().add(feats, items).approximate('ivf', effort=1, cells=37) # a cell has some 40 rows
    rows, dist = index.search(feats[:20], 400)
    assert (rows >= 0).all() and np.array_equal(rows, index.search(feats[:20], 400, exact=True)[0])
    rows, _ = index.search(feats[:20], 9999, dict(cam=[1, 2]))
    assert ((rows >= 0).sum(1) == items.cam.isin([1, 2]).sum()).all()


def test_filters_that_leave_few_rows_are_exact(faiss):
    feats, items = people()
    index = GalleryIndex().add(feats, items).approximate('ivf', effort=1)
    for where in (dict(cam=1), dict(pid=3)):
        for a, b in zip(index.search(feats[:30], 20, where), index.search(feats[:30], 20, where, exact=True)): assert np.array_equal(a, b)


@pytest.mark.parametrize('form', FORMS)
def test_an_approximate_form_is_the_same_each_time_and_after_a_file(faiss, tmp_path, monkeypatch, form):
    monkeypatch.setattr(module, 'FEW_ROWS', 0)
    feats, items = people()
    def make():
        o = GalleryIndex(threshold=.2).add(feats[:1000], items[:1000])
        o.approximate(form, effort=4)
        o.remove(np.arange(0, 900, 9))
        return o.add(feats[1000:], items[1000:])
    index = make()
    check_same(index, make(), feats[:30])
    for mmap in (False, True):
        index.save(tmp_path/'a')
        back = GalleryIndex.load(tmp_path/'a', mmap=mmap)
        check_same(index, back, feats[:30])
        assert form in repr(back)
        for o in (index, back):
            o.remove(dict(cam=0))
            o.add(feats[:50], items[:50])
        check_same(index, back, feats[:30])
        back.save(tmp_path/'b')
        check_same(index, GalleryIndex.load(tmp_path/'b'), feats[:30])
    assert GalleryIndex.load(tmp_path/'b', exact=True)._approx is None and index.approximate('exact')._approx is None


def test_damaged_approximate_form_is_refused(faiss, tmp_path):
    feats, items = people(300)
    GalleryIndex().add(feats, items).approximate('hnsw').save(tmp_path/'a')
    raw = bytearray((tmp_path/'a').read_bytes())
    start, end = json.loads(raw[8:4096])['faiss']['data_offsets']
    raw[4096 + (start + end) // 2] ^= 4
    (tmp_path/'a').write_bytes(raw)
    with pytest.raises(ReidError, match="checksum of 'faiss'"): GalleryIndex.load(tmp_path/'a')
    assert len(GalleryIndex.load(tmp_path/'a', exact=True)) == 300


def test_requests_that_no_form_can_serve(faiss):
    feats, items = people(200)
    index = GalleryIndex().add(feats, items)
    with pytest.raises(ReidError, match="'pq' learns from the rows, 256 at least; the index has 200"): index.approximate('pq')
    with pytest.raises(ValueError, match="`form` must be 'exact' or one of"): index.approximate('annoy')
    assert index._approx is None
    with pytest.raises(ValueError, match='Call `approximate` first'): index.effort = 3
    assert index.effort is None and index.approximate('ivf').effort > 0
    index.effort = 99
    assert index.recall(feats[:9], 3) == 1
    with pytest.raises(ReidError, match='There is nothing to find: 9 queries'): index.recall(feats[:9], 3, where=dict(cam=99))
    with pytest.raises(ValueError, match='`effort` must be 1 at least, not 0'): index.effort = 0


@pytest.mark.parametrize('kw', [dict(effort=0), dict(effort=-5), dict(propose=0), dict(propose=-1), dict(cells=-1), dict(links=0), dict(links=1), dict(threads=0)], ids=str)
def test_what_would_end_the_process_is_refused(kw):
    "faiss aborts, Jupyter's kernel with it, when a graph has no links"
    feats, items = people(200)
    index = GalleryIndex().add(feats, items)
    with pytest.raises(ValueError, match=f'`{[*kw][0]}` must be [12] at least'): index.approximate('hnsw', **kw)
    with pytest.raises(ReidError, match='201 `cells` can.t be learned from 200 rows'): index.approximate('ivf', cells=201)
