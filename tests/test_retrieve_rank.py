"Rankings against a slow twin in fractions; input of every kind; processes that fork, and folders that can't be written"
import os
import shutil
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings, strategies as st

from reid_nb.core import ReidError
from reid_nb.retrieve.distance import as_source, dist_tiles, make_ready, pairwise
from reid_nb.retrieve.protocol import ALL, MARKET, PROTOCOLS, Protocol, multi_query
from reid_nb.retrieve.rank import Scorer, rank_stats

ROOT = Path(__file__).resolve().parent.parent


def equal(q, g, i, j, cols): # do query `i` and gallery item `j` agree in all columns? A missing value agrees with nothing
    return all(o in q and pd.notna(q[o][i]) and pd.notna(g[o][j]) and q[o][i] == g[o][j] for o in cols)


def kept(i, dist, q, g, protocol, ties='worst'): # gallery columns that take part, closest first
    def gone(j):
        return (g['pid'][j] == -1 or any(equal(q, g, i, j, rule) for rule in protocol.drop) or not equal(q, g, i, j, protocol.keep)
                or (protocol.mask is not None and bool(protocol.mask({k: v[i] for k, v in q.items()}, {k: v[j] for k, v in g.items()}))))
    def place(j): return dist[i, j], dict(worst=1, best=-1, first=0)[ties] * (g['pid'][j] == q['pid'][i]), j
    return [j for j in sorted(range(len(g['pid'])), key=place) if not gone(j)]


def slow(dist, q, g, protocol=MARKET, ties='worst'): # per query: ap, inp, first, n_match, n_removed
    out = []
    for i in range(len(dist)):
        o = kept(i, dist, q, g, protocol, ties)
        r = [k for k, j in enumerate(o, 1) if g['pid'][j] == q['pid'][i]]
        ap = float(sum(Fraction(k, x) for k, x in enumerate(r, 1)) / len(r)) if r else np.nan
        out.append((ap, len(r) / r[-1] if r else np.nan, r[0] if r else 0, len(r), len(g['pid']) - len(o)))
    return np.array(out, float).T


OTHER = dict(near_in_time=Protocol('near_in_time', (('item',),), mask=lambda q, g: abs(q['time'] - g['time']) < 2),
             two_rules=Protocol('two_rules', (('tid',), ('pid', 'cam')), ('dset',), mask=lambda q, g: (q['time'] == 1) & (g['pid'] == 2)))

@st.composite
def problems(draw): # distances with many ties, junk, distractors, unknown cameras, the query itself in the gallery, protocols of all kinds
    n_q, n_g, seed = draw(st.integers(1, 7)), draw(st.integers(1, 40)), draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    levels = draw(st.sampled_from([1, 2, 5, 1000]))
    dist = rng.integers(0, levels, (n_q, n_g)) / 4
    if draw(st.booleans()): dist = dist[:, rng.integers(0, n_g, n_g)] # duplicates
    protocol = draw(st.sampled_from(['market', 'all', 'cross_camera_only', 'tracklet', 'same_dset', 'near_in_time', 'two_rules']))
    q, g = dict(pid=rng.integers(-1, 4, n_q)), dict(pid=rng.integers(-1, 5, n_g))
    if draw(st.booleans()) or protocol not in ('market', 'all'):
        n_cam, unknown = draw(st.integers(1, 3)), draw(st.sampled_from([0, .3]))
        for o in (q, g):
            for col in ('cam', 'tid', 'dset'): o[col] = pd.array([pd.NA if rng.random() < unknown else c for c in rng.integers(0, n_cam, len(o['pid']))], dtype='Int64')
    for o in (q, g): o['time'] = rng.integers(0, 6, len(o['pid']))
    if draw(st.booleans()): q['item'], g['item'] = [f'{i}.jpg' for i in rng.integers(0, 9, n_q)], [f'{i}.jpg' for i in rng.integers(0, 9, n_g)]
    return dist.astype(draw(st.sampled_from([np.float32, np.float64]))), q, g, OTHER.get(protocol, protocol), draw(st.sampled_from(['worst', 'best', 'first']))


def columns(q, g): # keyword arguments of `rank_stats`
    more = {f'{side}_more': {k: v for k, v in o.items() if k in ('tid', 'dset', 'time')} for side, o in (('q', q), ('g', g))}
    return {f'{side}_{k}': v for side, o in (('q', q), ('g', g)) for k, v in o.items() if k in ('pid', 'cam', 'item')} | more


class Cut: # distances that are there, in tiles of any size
    def __init__(self, dist, b, n): self.dist, self.b, self.n, self.shape = dist, b, n, dist.shape
    def pairs(self, off, col): return as_source(self.dist).pairs(off, col)
    def tiles(self):
        for j in range(0, self.shape[1], self.n):
            for i in range(0, self.shape[0], self.b): yield i, j, np.ascontiguousarray(self.dist[i:i + self.b, j:j + self.n])


@settings(max_examples=400, deadline=None)
@given(problems(), st.integers(1, 8), st.integers(1, 41))
def test_against_the_slow_twin(problem, b, n):
    dist, q, g, protocol, ties = problem
    scorer = Scorer(**columns(q, g), protocol=protocol, ties=ties)
    hidden = np.full(dist.shape, np.nan, dist.dtype)
    def watch(i, j, tile):
        scorer.hide(i, j, tile)
        hidden[i:i + len(tile), j:j + tile.shape[1]] = tile
    scorer.run(Cut(dist, b, n), watch)
    ap, inp, first, n_match, n_removed = slow(dist, q, g, scorer.protocol, ties)
    for i in range(len(dist)): # what was hidden is what was taken away
        assert np.flatnonzero(hidden[i] < np.inf).tolist() == sorted(kept(i, dist, q, g, scorer.protocol))
    if not n_match.any():
        with pytest.raises(ReidError, match=f'{len(dist)} of {len(dist)} queries'): scorer.stats()
        return
    s = scorer.stats(12)
    np.testing.assert_allclose(s.ap, ap, rtol=0, atol=1e-15 * 8)
    np.testing.assert_allclose(s.inp, inp, rtol=0, atol=1e-15)
    np.testing.assert_array_equal((s.first, s.n_match, s.n_removed, s.valid), (first, n_match, n_removed, n_match > 0))
    np.testing.assert_allclose(s.cmc, [(first[n_match > 0] <= k).mean() for k in range(1, 13)])
    assert (np.diff(s.cmc) >= 0).all() and sum(s.removed.values()) == n_removed.sum()


@settings(max_examples=60, deadline=None)
@given(problems())
def test_bounds_and_the_order_of_the_gallery(problem):
    "The worst order is no better than any, the best no worse; neither depends on how the gallery lies"
    dist, q, g, protocol, _ = problem
    order = np.random.default_rng(0).permutation(len(g['pid']))
    other = dict(q=q, g={k: np.asarray(v, object)[order] if k == 'item' else v[order] for k, v in ((k, np.asarray(v, object) if k == 'item' else v) for k, v in g.items())})
    try: s = {o: rank_stats(dist, **columns(q, g), protocol=protocol, ties=o) for o in ('worst', 'first', 'best')}
    except ReidError: return
    v = s['worst'].valid
    assert (s['worst'].ap[v] <= s['first'].ap[v] + 1e-15).all() and (s['first'].ap[v] <= s['best'].ap[v] + 1e-15).all()
    for o in ('worst', 'best'): np.testing.assert_array_equal(rank_stats(dist[:, order], **columns(**other), protocol=protocol, ties=o).ap, s[o].ap)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40), st.integers(1, 150), st.integers(1, 20), st.sampled_from(['cosine', 'sqeuclidean', 'euclidean']), st.integers(1, 50), st.integers(1, 160), st.integers(0, 2**32 - 1))
def test_no_bit_depends_on_the_tiles(n_q, n_g, d, metric, b, n, seed):
    rng = np.random.default_rng(seed)
    q, g, labels = rng.normal(size=(n_q, d)), rng.normal(size=(n_g, d)), (rng.integers(0, 3, n_q), np.r_[0, 1, 2, rng.integers(0, 3, n_g)][:n_g])
    ready = make_ready(q, metric), make_ready(g, metric)
    scorer = Scorer(*labels)
    source = as_source(ready)
    source.tiles = lambda: dist_tiles(*ready, shape=(b, n))
    scorer.run(source)
    try: want = rank_stats(pairwise(q, g, metric), *labels)
    except ReidError: return
    np.testing.assert_array_equal(scorer.stats().ap, want.ap)
    np.testing.assert_array_equal(rank_stats((q, g), *labels, metric=metric).ap, want.ap)


def test_golden():
    "Figures that Torchreid gives for the same matrix"
    dist = np.abs(np.sin(2.3 * np.arange(5)[:, None] + 1.1 * np.arange(12)))
    labels = [0, 1, 2, 3, 9], [0, 0, 0, 1, 1, 2, 2, 2, 3, 3, 4, 5], [0, 0, 1, 1, 0], [0, 1, 1, 0, 1, 0, 1, 0, 1, 0, 0, 1]
    for d in (dist, dist.astype(np.float32), dist.astype(np.float32).tolist()):
        s = rank_stats(d, *labels, max_rank=5)
        np.testing.assert_allclose(s.cmc, [0, .25, .5, .5, .5])
        np.testing.assert_allclose(s.ap, [.1964286, .3333333, .4166667, .125, np.nan], atol=5e-8)
        assert s.mAP == pytest.approx(.2678571, abs=5e-8) and s.valid.tolist() == [True] * 4 + [False]
    np.testing.assert_allclose(rank_stats(dist, *labels, max_rank=11).cmc, [0, .25, .5, .5, .5, .5, .75, 1, 1, 1, 1])


def test_cmc_goes_on_where_the_gallery_ends():
    s = rank_stats([[.1, .2, .3]], [1], [2, 1, 3], max_rank=50)
    assert s.cmc.shape == (50,) and s.cmc[0] == 0 and (s.cmc[1:] == 1).all()


def test_a_gallery_of_one():
    s = rank_stats([[.5]], [1], [1])
    assert (s.rank1, s.mAP, s.mINP, s.protocol) == (1, 1, 1, 'all')


def test_long_rows_are_counted_exactly():
    "More items than one run of the counter, all at the same distance"
    n, pid = 30_001, np.zeros(30_001, int)
    pid[[0, 8191, 8192, 16384, 30_000]] = 1
    s = rank_stats(np.zeros((1, n), np.float32), [1], pid, ties='first')
    rank = np.flatnonzero(pid) + 1
    assert s.ap[0] == pytest.approx((np.arange(1, 6) / rank).mean(), abs=1e-15) and s.inp[0] == 5 / n


def test_many_matches():
    rng = np.random.default_rng(0)
    dist, q, g = rng.random((3, 4000)).astype(np.float32), dict(pid=np.array([0, 1, 2])), dict(pid=rng.integers(0, 2, 4000))
    np.testing.assert_allclose(rank_stats(dist, **columns(q, g)).ap, slow(dist, q, g, ALL)[0], rtol=1e-12)


def random_case(n_q=20, n_g=90, seed=0):
    rng = np.random.default_rng(seed)
    return rng.random((n_q, n_g)).astype(np.float32), [rng.integers(0, hi, n) for hi, n in ((8, n_q), (8, n_g), (3, n_q), (3, n_g))]


def test_arrays_of_any_make(tmp_path):
    dist, labels = random_case()
    want = rank_stats(dist, *labels).ap
    np.save(tmp_path/'d.npy', dist)
    wide = np.zeros((20, 180), np.float32); wide[:, ::2] = dist
    frozen = dist.copy(); frozen.flags.writeable = False
    for d in (np.asfortranarray(dist), wide[:, ::2], frozen, np.load(tmp_path/'d.npy', mmap_mode='r'), dist.astype(np.float64), pd.DataFrame(dist)):
        np.testing.assert_array_equal(rank_stats(d, *labels).ap, want)
    for make in (list, pd.Series, lambda o: pd.array(o, dtype='Int64'), lambda o: o.astype(np.int32), lambda o: pd.Series(o, index=np.arange(len(o))[::-1])):
        np.testing.assert_array_equal(rank_stats(dist, labels[0], labels[1], make(labels[2]), make(labels[3])).ap, want)
    np.testing.assert_array_equal(rank_stats((dist * 1000).astype(int), *labels).ap, rank_stats((dist * 1000).astype(int).astype(np.float64), *labels).ap)
    half = dist.astype(np.float16)
    np.testing.assert_array_equal(rank_stats(half, *labels).ap, rank_stats(half.astype(np.float32), *labels).ap)
    torch = pytest.importorskip('torch')
    np.testing.assert_array_equal(rank_stats(torch.tensor(dist), *map(torch.tensor, labels)).ap, want)


def test_features_or_their_distances():
    rng = np.random.default_rng(1)
    q, g, labels = rng.integers(-9, 9, (20, 16)), rng.integers(-9, 9, (90, 16)), random_case()[1]
    want = rank_stats(pairwise(q, g, 'sqeuclidean'), *labels)
    assert want.metrics() == rank_stats((q, g), *labels, metric='sqeuclidean').metrics()


def test_infinite_distances_stand_last():
    s = rank_stats([[np.inf, .1, .2], [np.inf, np.inf, 0]], [1, 1], [1, 2, 3])
    assert s.first.tolist() == [3, 3]


def test_order_of_queries_and_names_of_identities_play_no_part():
    dist, (q_pid, g_pid, q_cam, g_cam) = random_case()
    want, o = rank_stats(dist, q_pid, g_pid, q_cam, g_cam), np.random.default_rng(0).permutation(20)
    np.testing.assert_array_equal(rank_stats(dist[o], q_pid[o], g_pid, q_cam[o], g_cam).ap, want.ap[o])
    np.testing.assert_array_equal(rank_stats(dist, q_pid * 10**12 + 5, g_pid * 10**12 + 5, q_cam + 7, g_cam + 7).ap, want.ap)
    p = np.random.default_rng(0).permutation(90) # nor, without ties, does the gallery's
    np.testing.assert_allclose(rank_stats(dist[:, p], q_pid, g_pid[p], q_cam, g_cam[p]).ap, want.ap, rtol=1e-14)


def test_protocols():
    dist = [[.1, .2, .3, .4]]
    market = dict(q_pid=[1], g_pid=[1, 2, 1, 1], q_cam=[0], g_cam=[0, 1, 1, None])
    s = rank_stats(dist, **market)
    assert (s.protocol, s.n_match[0], s.n_removed[0], s.first[0]) == ('market', 2, 1, 2)
    s = rank_stats(dist, **market, protocol='all')
    assert (s.protocol, s.n_match[0], s.n_removed[0], s.first[0]) == ('all', 3, 0, 1)
    s = rank_stats(dist, **market, q_item=['c.jpg'], g_item=['a.jpg', 'b.jpg', 'c.jpg', 'd.jpg'])
    assert (s.n_match[0], s.n_removed[0], s.first[0]) == (1, 2, 2)
    for cams in ({}, dict(q_cam=[None], g_cam=[None] * 4), dict(q_cam=[pd.NA], g_cam=[0, 1, 1, 2])):
        assert rank_stats(dist, [1], [1, 2, 1, 1], **cams).protocol == 'all'
    other = Protocol('cross_camera', (('cam',),)) # rules of one's own
    s = rank_stats(dist, [1], [1, 2, 1, 1], [1], [0, 1, 1, 2], protocol=other)
    assert (s.protocol, s.n_match[0], s.n_removed[0], s.first[0]) == ('cross_camera', 2, 2, 1)
    assert rank_stats(dist, [1], [1, 2, 1, 1], [None], [None, 1, 1, None], protocol=other).n_removed[0] == 0 # an unknown camera equals no other
    assert rank_stats(dist, [1], [1, 2, 1, 1], q_item=[None], g_item=[None] * 4).n_removed[0] == 0
    assert rank_stats(dist, **market, protocol=MARKET).first == rank_stats(dist, **market).first and ALL.drop == (('item',),)


def test_queries_without_a_match_are_counted_and_left_out():
    s = rank_stats([[.1, .2], [.1, .2], [.1, .2]], [1, 9, -1], [1, -1])
    m = s.metrics()
    assert (m['n_query'], m['n_valid'], m['rank1'], m['mAP']) == (3, 1, 1, 1)
    assert np.isnan(s.ap[1:]).all() and s.first.tolist() == [1, 0, 0] and '1 of 3 queries with a match' in repr(s)
    assert list(m) == ['rank1', 'rank5', 'rank10', 'mAP', 'mINP', 'n_query', 'n_valid']


@pytest.mark.parametrize('kw, says', [
    (dict(q_pid=[1, 2], g_pid=[1, 2, 2], q_cam=[0, 0], g_cam=[0, 0, 0]),
     r"^2 of 2 queries have no gallery image of the same identity from another camera\. Your items have 1 camera; pass `protocol='all'` to keep same-camera matches, or set `cam` per file\.$"),
    (dict(q_pid=[1, 7], g_pid=[1, 2, 2], q_cam=[0, 0], g_cam=[0, 0, 0]), r'another camera \(1 have none at all\)\. Your items have 1 camera'),
    (dict(q_pid=[1, 2], g_pid=[1, 2, 2], q_cam=[0, 1], g_cam=[0, 1, 1]), r'Your items have 2 cameras, but each identity was seen by one of them only'),
    (dict(q_pid=[1, 2], g_pid=[3, 4, -1]), r'the 2 query identities, first \[1, 2\], and the 2 gallery identities, first \[3, 4\], have none in common'),
    (dict(q_pid=[1, 2], g_pid=[1, 2, 3], q_item=[0, 1], g_item=[0, 1, 2]), r"2 of 2 queries have no gallery image of the same identity left: protocol 'all' removes junk, the query itself"),
    (dict(q_pid=[1, 2], g_pid=[1, 2, 3], q_cam=[0, 0], g_cam=[1, 1, 0], q_item=['a', 'b'], g_item=['a', 'b', 'c']), r'though other cameras saw some of them: the query itself took them away'),
    (dict(q_pid=[-1, -1], g_pid=[-1, -1, -1]), r'2 of 2 queries have no gallery image')])
def test_no_match_says_why(kw, says):
    with pytest.raises(ReidError, match=says): rank_stats(np.ones((2, 3)), **kw)


@pytest.mark.parametrize('dist, kw, error, says', [
    (np.ones((2, 3)), dict(q_pid=[1, 2, 3]), ReidError, r'3 queries and 3 gallery items do not fit distances of shape \(2, 3\)'),
    (np.ones((3, 3)), {}, ReidError, r'2 queries and 3 gallery items do not fit distances of shape \(3, 3\)'),
    (np.ones((2, 4)), {}, ReidError, r'shape \(2, 4\)'),
    (np.ones(3), {}, ReidError, r'not \(3,\)'),
    ((np.ones((2, 5)), np.ones((3, 6))), {}, ReidError, 'Query features have 5 dimensions'),
    (np.array([[1, np.nan, np.nan], [np.nan, 1, 1]]), {}, ReidError, r'3 distances are NaN, in 2 rows, first \[0, 1\]'),
    ((np.ones((2, 5)), np.full((3, 5), np.nan)), {}, ReidError, '3 of 3 rows of gallery features hold 15 NaN'),
    (np.ones((2, 3)), dict(q_pid=['anna', 'bert']), ReidError, 'pd.factorize'),
    (np.ones((2, 3)), dict(q_pid=[1., 2.]), ReidError, 'must be a row of whole numbers, not float64'),
    (np.ones((2, 3)), dict(q_pid=np.zeros(0, int)), ReidError, 'There are no queries'),
    (np.ones((2, 3)), dict(g_pid=np.zeros(0, int)), ReidError, 'There are no gallery items'),
    (np.ones((2, 3)), dict(q_cam=[0, 1]), ReidError, 'one side only'),
    (np.ones((2, 3)), dict(q_cam=[0, 1], g_cam=[0]), ReidError, '`g_cam` has 1 entries, `g_pid` has 3'),
    (np.ones((2, 3)), dict(protocol='cuhk'), ValueError, "must be one of"),
    (np.ones((2, 3)), dict(max_rank=0), ValueError, '`max_rank` must be 1 at least'),
    (tuple(np.ones((n, 5)) for n in (2, 3)), dict(metric='l2'), ValueError, '`metric` must be one of'),
    (np.ones((2, 3)), dict(ties='middle'), ValueError, '`ties` must be one of'),
    (np.ones((2, 3)), dict(protocol='tracklet'), ReidError, 'needs the column tid on both sides'),
    (np.ones((2, 3)), dict(protocol='cross_camera_only'), ReidError, 'Pass `q_cam` and `g_cam`'),
    (np.array([['a', 'b', 'c']] * 2), {}, ReidError, 'Distances must be numbers'),
    (np.ma.masked_less(np.eye(2, 3), .5), {}, ReidError, '4 values are masked'),
    (np.ones((2, 3)), dict(protocol=Protocol('odd', mask=lambda q, g: q['pid'] == g['pid'][:, :1])), ReidError, r'needed is bool of shape \(1, ')])
def test_bad_input(dist, kw, error, says):
    with pytest.raises(error, match=says): rank_stats(dist, **{**dict(q_pid=[1, 2], g_pid=[1, 2, 2]), **kw})


DIST = np.float32([[.1, .2, .3], [.1, .2, .3]])


@pytest.mark.parametrize('kw, error, says', [
    (dict(q_cam=['0', '1'], g_cam=[0, 1, 1]), ReidError, '`q_cam` holds text, `g_cam` holds numbers: none could equal another'),
    (dict(q_cam=[b'0', b'1'], g_cam=['0', '1', '1']), ReidError, '`q_cam` holds bytes, `g_cam` holds text'),
    (dict(q_cam=pd.Categorical(['0', '1']), g_cam=pd.Categorical([0, 1, 1])), ReidError, 'holds text, `g_cam` holds numbers'),
    (dict(q_item=[Path('a'), Path('b')], g_item=['a', 'b', 'c']), ReidError, 'Path, `g_item` holds text'),
    (dict(q_more=dict(tid=[1, 2]), g_more=dict(tid=list('abc')), protocol='tracklet'), ReidError, '`q_tid` holds numbers, `g_tid` holds text'),
    (dict(q_more=dict(cam=[0, 1]), g_more=dict(cam=[0, 1, 1])), ValueError, "Pass 'cam' as `q_cam`, and not in `q_more`"),
    (dict(q_more=dict(pid=[0, 0])), ValueError, "Pass 'pid' as `q_pid`"),
    (dict(q_cam=1, g_cam=2), ReidError, 'one per picture, not int of shape'),
    (dict(q_cam=[[0], [1]] * np.ones((2, 1)), g_cam=[0, 1, 1]), ReidError, r'not ndarray of shape \(2, 1\)'),
    (dict(q_pid=np.array([1, 2**64 - 1], np.uint64)), ReidError, 'goes up to 18446744073709551615'),
    (dict(q_pid=[1, np.nan]), ReidError, 'not float64 .* convert: `.astype'),
    (dict(q_pid=[]), ReidError, 'There are no queries'),
    (dict(protocol=Protocol('odd', repeats=-1)), ValueError, 'must not be negative, and is -1')])
def test_labels_that_fit_nothing(kw, error, says):
    "Each of these was once scored without a word, as if no rule applied"
    with pytest.raises(error, match=says): rank_stats(DIST, **{**dict(q_pid=[1, 2], g_pid=[1, 2, 2]), **kw})


@pytest.mark.parametrize('feats, says', [((np.ones((2, 4)),), 'a tuple of two, .* not of 1'), ((np.ones((2, 4)), np.ones((3, 4)), np.ones((3, 4))), 'not of 3'),
                                         ([np.ones((2, 4)), np.ones((3, 4))], 'rows of different lengths .* as a tuple')], ids=('one', 'three', 'list'))
def test_features_are_two(feats, says):
    with pytest.raises(ReidError, match=says): rank_stats(feats, [1, 2], [1, 2, 2])


def test_labels_of_equal_values_and_other_types():
    want = rank_stats(DIST, [1, 2], [1, 2, 2], [0, 1], [0, 1, 2], protocol='cross_camera_only')
    for q_cam, g_cam in ((np.float32([0, 1]), [0, 1, 2]), (pd.array([0, 1], dtype='Int64'), np.uint8([0, 1, 2])), (pd.Series([0., 1], index=[9, 3]), pd.Categorical([0, 1, 2]))):
        assert rank_stats(DIST, [1, 2], [1, 2, 2], q_cam, g_cam, protocol='cross_camera_only').n_removed.tolist() == want.n_removed.tolist() == [1, 1]
    more = pd.DataFrame(dict(tid=[5, 6]), index=[7, 8]), pd.DataFrame(dict(tid=[5, 6, 7]))
    assert rank_stats(DIST, [1, 2], [1, 2, 2], protocol='tracklet', q_more=more[0], g_more=more[1]).removed["the query's tracklet"] == 2
    torch = pytest.importorskip('torch')
    listed = [list(torch.tensor(o)) for o in ([1, 2], [1, 2, 2], [0, 1], [0, 1, 2])] # as a loop over batches collects them; such tensors equal nothing but themselves
    assert rank_stats([o.requires_grad_() for o in torch.tensor(DIST)], *listed, protocol='cross_camera_only').n_removed.tolist() == [1, 1]


def test_a_short_cmc_changes_no_figure():
    rng = np.random.default_rng(0)
    dist, labels = rng.random((20, 80)), (rng.integers(0, 30, 20), rng.integers(0, 30, 80))
    for protocol in ('all', Protocol('draws', repeats=5)):
        short, long = (rank_stats(dist, *labels, protocol=protocol, max_rank=k) for k in (3, 50))
        assert short.metrics() == long.metrics() and short.cmc.tolist() == long.cmc[:3].tolist()
        with pytest.raises(ValueError, match='`k` must be 1 at least'): short.hit_rate(0)
        assert long.hit_rate(99) == pytest.approx(1)
    with pytest.raises(ValueError, match='up to rank 10. For rank 12 score with `max_rank=12`'): short.hit_rate(12)


def test_multi_query_needs_cameras():
    with pytest.raises(ReidError, match='pass the cameras of both'): multi_query([1], None, np.ones((2, 3)), [1, 1], None)


def run(code, cwd, **env):
    res = subprocess.run([sys.executable, '-c', code], cwd=cwd, capture_output=True, text=True, env={**os.environ, **env})
    assert not res.returncode, res.stdout + res.stderr
    return res.stdout.strip()


@pytest.mark.parametrize('module', ['distance', 'rank', 'results'])
def test_imports_little(module):
    code = f'import sys, reid_nb.retrieve.{module}; print([o for o in ("torch", "fastai", "fastcore", "matplotlib", "IPython", "sklearn") if o in sys.modules])'
    assert run(code, ROOT) == '[]'


def test_nothing_can_be_written(tmp_path):
    "numba refuses to import what it can't cache; a file in place of each cache folder stops even root"
    shutil.copytree(ROOT/'reid_nb', tmp_path/'reid_nb', ignore=lambda d, names: [o for o in names if o not in ('retrieve', '__init__.py', 'core.py', *(f'{o}.py' for o in ('kernels', 'product', 'distance', 'protocol', 'single_shot', 'tensors', 'rank')))])
    for o in ('reid_nb', 'reid_nb/retrieve'): (tmp_path/o/'__pycache__').write_text('no folder')
    code = 'import reid_nb.retrieve.rank as r; print(r.__file__, r._n_below.stats.cache_path, r.rank_stats([[.2, .1]], [1], [1, 2]).mAP)'
    out = run(code, tmp_path, HOME='/dev/null', XDG_CACHE_HOME='/dev/null', NUMBA_CACHE_DIR='/dev/null/x', PYTHONPATH=str(tmp_path), PYTHONDONTWRITEBYTECODE='1', NUMBA_OPT='0')
    assert out == f'{tmp_path}/reid_nb/retrieve/rank.py None 0.5'


@pytest.mark.skipif(not hasattr(os, 'fork'), reason='no fork on this system')
def test_a_forked_process_can_score():
    "The threads of OpenMP do not survive a fork; a parallel kernel would end the child"
    code = '''
import os, numpy as np, reid_nb.retrieve.rank as r
from reid_nb.retrieve.kernels import is_forked
from reid_nb.retrieve.nearest import k_nearest
cams = dict(q_cam=np.zeros(40, int), g_cam=np.ones(90, int))
rng = np.random.default_rng(0)
args = rng.random((40, 90), dtype=np.float32), rng.integers(0, 9, 40), rng.integers(0, 9, 90)
want = r.rank_stats(*args).ap
feats = rng.random((40, 16)), rng.random((90, 16))
near = k_nearest(*feats, 5)
draw = r.rank_stats(*args, protocol='cuhk03', **cams).ap
hide = args[0].copy(); r.Scorer(*args[1:]).hide(0, 0, hide)
if not (pid := os.fork()):
    try:
        same = is_forked() and np.array_equal(r.rank_stats(*args).ap, want) and all(np.array_equal(*o) for o in zip(k_nearest(*feats, 5), near))
        same &= np.array_equal(r.rank_stats(*args, protocol='cuhk03', **cams).ap, draw)
        other = args[0].copy(); r.Scorer(*args[1:]).hide(0, 0, other); same &= np.array_equal(other, hide)
    except BaseException: same = False
    os._exit(0 if same else 3)
print(os.waitpid(pid, 0)[1], is_forked())'''
    assert run(code, ROOT) == '0 False'


def test_the_threads_of_torch_stay_as_many():
    "numba's start would overwrite their number, and a training after an evaluation come to other figures"
    pytest.importorskip('torch')
    code = '''
import torch, numpy as np, reid_nb.retrieve.rank as r
torch.set_num_threads(1)
torch.ones(500, 500) @ torch.ones(500, 500)
for _ in range(3): r.rank_stats((np.random.rand(9, 4), np.random.rand(20, 4)), np.arange(9) % 3, np.arange(20) % 3)
print(torch.get_num_threads())'''
    assert run(code, ROOT, NUMBA_NUM_THREADS='2') == '1'
