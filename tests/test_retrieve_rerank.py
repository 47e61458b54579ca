"Re-ranking against sets in float64 and the dense form; expansion and graph against slow twins; input of every kind"
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numba
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from reid_nb.core import ReidError
from reid_nb.retrieve.distance import pairwise
from reid_nb.retrieve.expand import augment_gallery, expand_queries, graph_rerank
from reid_nb.retrieve.rank import rank_stats
from reid_nb.retrieve.rerank import CONVENTIONS, k_reciprocal, k_reciprocal_dense, k_reciprocal_dist
from reid_nb.retrieve.sparse import AllDists, AllFeats, SparseRows, look, mix_rows, turn_rows

ROOT = Path(__file__).resolve().parent.parent


def three(q, g, metric='sqeuclidean'): return [pairwise(a, b, metric) for a, b in ((q, g), (q, q), (g, g))]


def by_sets(dist, n_q, k1, k2, lam): # (n_q, n_g) from (n, n) distances, with Python's sets and float64
    n = len(dist)
    dist = dist / np.maximum(dist.max(1, keepdims=True), 1e-300)
    order = [sorted(range(n), key=lambda j: (dist[i, j], j)) for i in range(n)]
    def mutual(i, k): return {j for j in order[i][:k] if i in order[j][:k]}
    V = np.zeros((n, n))
    for i in range(n):
        members = R = mutual(i, k1 + 1)
        for j in R:
            half = mutual(j, int(np.around(k1 / 2)) + 1)
            if len(half & R) > 2 / 3 * len(half): members = members | half
        for j in members: V[i, j] = np.exp(-dist[i, j])
        if members: V[i] /= V[i].sum()
    if k2 > 1: V = np.array([np.mean([V[j] for j in o[:k2]], axis=0) for o in order])
    low = np.array([[np.minimum(a, b).sum() for b in V[n_q:]] for a in V[:n_q]])
    return (1 - low / (2 - low)) * (1 - lam) + dist[:n_q, n_q:] * lam


@st.composite
def problems(draw): # features, of whole numbers (all ties exact) or not, some of them twice or more
    n_q, n_g, d = draw(st.integers(1, 12)), draw(st.integers(1, 30)), draw(st.integers(1, 5))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    x = rng.normal(size=(n_q + n_g, d)) * draw(st.sampled_from([1, 2, 20]))
    if draw(st.booleans()): x = x.round()
    if draw(st.booleans()): x[rng.integers(0, len(x), len(x) // 2)] = x[0]
    x = x.astype(np.float32)
    return x[:n_q], x[n_q:]


params = st.tuples(st.integers(1, 25), st.integers(1, 9), st.sampled_from([0, .3, .5, 1]))


@settings(max_examples=80, deadline=None)
@given(problems(), params, st.sampled_from(CONVENTIONS))
def test_all_forms_are_equal_to_the_last_bit(feats, param, convention):
    dists = three(*feats)
    want = k_reciprocal_dense(*dists, *param, convention)
    assert want.dtype == np.float32 and want.shape == dists[0].shape and np.isfinite(want).all()
    np.testing.assert_array_equal(k_reciprocal_dist(*dists, *param, convention), want)
    np.testing.assert_array_equal(k_reciprocal(*feats, *param, 'sqeuclidean', convention), want)


@settings(max_examples=40, deadline=None)
@given(problems(), params, st.sampled_from(CONVENTIONS))
def test_against_sets_in_float64(feats, param, convention):
    feats = [o.round() for o in feats] # so that all distances are exact
    x = np.concatenate(feats).astype(np.float64)
    dist = ((x[:, None] - x)**2).sum(-1)
    want = by_sets(dist**2 if convention == 'torchreid' else dist, len(feats[0]), *param)
    np.testing.assert_allclose(k_reciprocal_dist(*three(*feats), *param, convention), want, atol=2e-6)


@settings(max_examples=40, deadline=None)
@given(problems(), params, st.sampled_from(CONVENTIONS), st.integers(0, 2**32 - 1))
def test_matrices_need_not_be_symmetric(feats, param, convention, seed):
    "An item's distances are its column, as in Torchreid"
    rng = np.random.default_rng(seed)
    dists = [(o + rng.random(o.shape)).astype(np.float32) for o in three(*feats)]
    np.testing.assert_array_equal(k_reciprocal_dist(*dists, *param, convention), k_reciprocal_dense(*dists, *param, convention))
    q_g, q_q, g_g = (o.astype(np.float64) for o in dists)
    whole = np.block([[q_q, q_g], [q_g.T, g_g]]).T
    if param[2] == 1: np.testing.assert_allclose(k_reciprocal_dist(*dists, *param), (whole / whole.max(1, keepdims=True))[:len(q_q), len(q_q):], rtol=1e-6)


@pytest.mark.parametrize('n_q, n_g', [(1, 1300), (700, 650), (1250, 3)])
def test_several_tiles(n_q, n_g):
    x = np.random.default_rng(0).integers(-4, 5, (n_q + n_g, 4)).astype(np.float32)
    dist = pairwise(x, x, 'sqeuclidean')
    found = look(AllFeats(x[:n_q], x[n_q:], 'sqeuclidean'), 22)
    np.testing.assert_array_equal(found.rows, np.argsort(dist, axis=1, kind='stable')[:, :22])
    np.testing.assert_array_equal(found.near, np.sort(dist, axis=1)[:, :22])
    np.testing.assert_array_equal(found.far, dist.max(1))
    np.testing.assert_array_equal(found.dist, dist[:n_q, n_q:])
    for a, b in zip(found[:3], look(AllFeats(x, metric='sqeuclidean'), 22)): np.testing.assert_array_equal(a, b)
    dists = three(x[:n_q], x[n_q:])
    np.testing.assert_array_equal(k_reciprocal(x[:n_q], x[n_q:], metric='sqeuclidean'), k_reciprocal_dist(*dists))


def test_rounding_does_not_depend_on_the_tiles():
    x = np.random.default_rng(1).normal(size=(1400, 33)).astype(np.float32)
    for metric in ('cosine', 'sqeuclidean', 'euclidean'):
        np.testing.assert_array_equal(k_reciprocal(x[:500], x[500:], metric=metric), k_reciprocal_dist(*three(x[:500], x[500:], metric)))


def test_golden_figures_of_torchreid():
    Z = np.float32([[np.cos(d * (.4 + .05 * (k // 4)) + .11 * k) for d in range(8)] for k in range(20)])
    q, g = Z[::4], np.delete(Z, np.s_[::4], axis=0)
    for param, first, total in (((20, 6, .3), [2e-6, 4e-5, .000198, .021241, .036024, .054153], 15.469559), ((6, 3, .3), [3e-6, .15533, .155489, .451085, .520494, .523985], 42.099663),
                                ((6, 1, .3), [.000733, .310437, .381483, .470476, .605805, .622045], 43.908649), ((6, 3, 0), [0, .221843, .221843, .639437, .735118, .735118], 51.9739)):
        got = k_reciprocal(q, g, *param, 'sqeuclidean', 'torchreid')
        np.testing.assert_allclose(got[0, :6], first, atol=1e-6)
        assert abs(got.sum() - total) < 1e-4


def test_conventions_differ_by_a_square():
    rng = np.random.default_rng(2)
    q, g = rng.normal(size=(9, 7)), rng.normal(size=(40, 7))
    roots = three(q, g, 'euclidean')
    np.testing.assert_allclose(k_reciprocal_dist(*roots, convention='torchreid'), k_reciprocal_dist(*(o * o for o in roots)), rtol=1e-6)
    assert np.abs(k_reciprocal(q, g, convention='torchreid') - k_reciprocal(q, g)).max() > .01
    unit = [o / np.linalg.norm(o, axis=1, keepdims=True) for o in (q, g)]
    np.testing.assert_allclose(k_reciprocal(*unit, metric='sqeuclidean'), k_reciprocal(q, g), atol=1e-5)


def test_scale_does_not_matter():
    rng = np.random.default_rng(3)
    q, g = rng.normal(size=(9, 7)).astype(np.float32), rng.normal(size=(40, 7)).astype(np.float32)
    np.testing.assert_array_equal(k_reciprocal(q * 64, g * 64, metric='sqeuclidean'), k_reciprocal(q, g, metric='sqeuclidean'))


@pytest.mark.parametrize('k2', [1, 6])
def test_thirty_copies(k2):
    "More copies of a picture than neighbours are kept"
    rng = np.random.default_rng(4)
    g = np.concatenate([np.repeat(rng.normal(size=(1, 8)), 30, axis=0), rng.normal(size=(60, 8))]).astype(np.float32)
    dist = k_reciprocal(g[:1], g, k2=k2, metric='sqeuclidean')
    assert np.isfinite(dist).all()
    if k2 > 1: assert set(np.argsort(dist[0], kind='stable')[:30]) == set(range(30))
    np.testing.assert_array_equal(dist, k_reciprocal_dense(*three(g[:1], g), k2=k2))


def test_all_pictures_equal():
    dist = k_reciprocal(np.ones((4, 5)), np.ones((50, 5)))
    assert np.isfinite(dist).all() and ((0 <= dist) & (dist <= 1)).all()
    assert np.isfinite(graph_rerank(np.ones((4, 5)), np.ones((50, 5)))).all()
    assert np.isfinite(k_reciprocal(np.zeros((4, 5)), np.zeros((50, 5)), metric='sqeuclidean')).all()


def test_few_items():
    for n_q, n_g in ((1, 1), (1, 2), (3, 1), (5, 20)):
        q, g = np.eye(8)[:n_q], np.random.default_rng(0).normal(size=(n_g, 8))
        for f in (k_reciprocal, graph_rerank): assert f(q, g).shape == (n_q, n_g)
        assert expand_queries(q, g, k=50).shape == q.shape and augment_gallery(g, k=50).shape == g.shape


def test_ends_of_lambda():
    rng = np.random.default_rng(5)
    q, g = rng.normal(size=(7, 16)).astype(np.float32), rng.normal(size=(90, 16)).astype(np.float32)
    dist, far = pairwise(q, g), pairwise(q, np.concatenate([q, g])).max(1, keepdims=True)
    for f in (k_reciprocal, graph_rerank): np.testing.assert_array_equal(f(q, g, lambda_value=1), dist / far)
    own, mixed = k_reciprocal(q, g, 3, 1, 0), k_reciprocal(q, g, 3, 1, .3)
    assert own.max() <= 1 and (own == 1).any()
    np.testing.assert_allclose(mixed, .7 * own + .3 * dist / far, atol=1e-6)


@pytest.mark.parametrize('make', [lambda x: x.astype(np.float64), lambda x: x.tolist(), np.asfortranarray, lambda x: np.repeat(x, 2, axis=1)[:, ::2], lambda x: x[::-1][::-1],
                                  lambda x: np.frombuffer(x.tobytes(), np.float32).reshape(x.shape)])
def test_takes_arrays_of_every_kind(make):
    rng = np.random.default_rng(6)
    feats = [rng.normal(size=(n, 12)).astype(np.float32) for n in (5, 40)]
    dists = three(*feats)
    for f, args in ((k_reciprocal, feats), (k_reciprocal_dist, dists), (k_reciprocal_dense, dists), (graph_rerank, feats), (expand_queries, feats), (augment_gallery, feats[1:])):
        kept = [o.copy() for o in args]
        np.testing.assert_array_equal(f(*map(make, args)), f(*args))
        for a, b in zip(args, kept): np.testing.assert_array_equal(a, b) # nothing of the caller's is written to


def test_takes_torch_tensors():
    import torch
    feats = [torch.randn(n, 12, generator=torch.Generator().manual_seed(n)) for n in (5, 40)]
    np.testing.assert_array_equal(k_reciprocal(*feats), k_reciprocal(*(o.numpy() for o in feats)))
    np.testing.assert_array_equal(k_reciprocal_dist(*map(torch.tensor, three(*feats))), k_reciprocal(*feats, metric='sqeuclidean'))


def test_takes_a_distance_of_ones_own():
    rng = np.random.default_rng(7)
    q, g = rng.normal(size=(6, 5)).astype(np.float32), rng.normal(size=(40, 5)).astype(np.float32)
    def city(a, b): return np.abs(a[:, None] - b).sum(-1)
    np.testing.assert_array_equal(k_reciprocal(q, g, metric=city), k_reciprocal_dist(city(q, g), city(q, q), city(g, g)))
    with pytest.raises(ReidError, match='NaN'): k_reciprocal(q, g, metric=lambda a, b: city(a, b) * np.nan)


@pytest.mark.parametrize('error, words, call', [
    (ValueError, '`k1` must be 1 at least, not 0', lambda q, g: k_reciprocal(q, g, 0)),
    (ValueError, '`k2` must be 1 at least, not -2', lambda q, g: k_reciprocal(q, g, 3, -2)),
    (ValueError, '`lambda_value` must lie between 0', lambda q, g: k_reciprocal(q, g, lambda_value=1.01)),
    (ValueError, 'not nan', lambda q, g: k_reciprocal_dist(*three(q, g), lambda_value=np.nan)),
    (ValueError, "not 'zhong'", lambda q, g: k_reciprocal_dense(*three(q, g), convention='zhong')),
    (ValueError, "not 'manhattan'", lambda q, g: k_reciprocal(q, g, metric='manhattan')),
    (ReidError, '1 of 4 rows of query features hold 2 NaN', lambda q, g: k_reciprocal(np.where(np.arange(12).reshape(4, 3) > 9, np.nan, q), g)),
    (ReidError, 'Query features have 3 dimensions, gallery features 2', lambda q, g: k_reciprocal(q, g[:, :2])),
    (ReidError, 'Query features have 3 dimensions, gallery features 2', lambda q, g: graph_rerank(q, g[:, :2])),
    (ReidError, 'dimensions', lambda q, g: expand_queries(q, g[:, :2])),
    (ReidError, 'found 0 queries and 9 gallery items', lambda q, g: k_reciprocal(q[:0], g)),
    (ReidError, 'There are no gallery items', lambda q, g: expand_queries(q, g[:0])),
    (ReidError, r'found \(3,\)', lambda q, g: k_reciprocal(q[0], g)),
    (ReidError, r'`q_q` of shape \(4, 4\) and `g_g` of shape \(9, 9\); found \(9, 9\) and \(4, 4\)', lambda q, g: k_reciprocal_dist(*np.array(three(q, g), object)[[0, 2, 1]])),
    (ReidError, 'go down to -', lambda q, g: k_reciprocal_dist(*(-o for o in three(q, g)))),
    (ReidError, '16 distances of items 0 to 3', lambda q, g: k_reciprocal_dist(three(q, g)[0], np.full((4, 4), np.inf), three(q, g)[2])),
    (ReidError, 'too large to be squared', lambda q, g: k_reciprocal_dist(*(1e25 * o.astype(np.float64) for o in three(q, g)), convention='torchreid')),
    (ValueError, '`k1` and `k2` must be 1 at least, not 0 and 7', lambda q, g: graph_rerank(q, g, 0)),
    (ValueError, '`rounds` must not be negative, and is -1', lambda q, g: graph_rerank(q, g, rounds=-1)),
    (ValueError, '`alpha` must be 0', lambda q, g: expand_queries(q, g, alpha=-.5)),
    (ValueError, '`alpha` must be 0', lambda q, g: augment_gallery(g, alpha=np.nan)),
    (ValueError, '`k` must be 1 at least, not 0', lambda q, g: augment_gallery(g, k=0)),
])
def test_says_what_is_wrong(error, words, call):
    rng = np.random.default_rng(8)
    with pytest.raises(error, match=words): call(rng.normal(size=(4, 3)).astype(np.float32), rng.normal(size=(9, 3)).astype(np.float32))


def test_distances_may_be_a_little_below_0():
    "As Torchreid's are, by rounding"
    dists = three(np.eye(4), np.eye(4))
    assert np.isfinite(k_reciprocal_dist(*(o - 1e-6 for o in dists))).all()


def test_threads_change_nothing():
    rng = np.random.default_rng(9)
    q, g, n = rng.normal(size=(80, 20)), rng.normal(size=(900, 20)), numba.get_num_threads()
    calls = lambda: [k_reciprocal(q, g), graph_rerank(q, g), expand_queries(q, g), augment_gallery(g)]
    many = calls()
    numba.set_num_threads(1)
    try: one = calls()
    finally: numba.set_num_threads(n)
    for a, b in zip(many, one): np.testing.assert_array_equal(a, b)


def test_memory_grows_with_the_items_only():
    "10,000 items: a matrix of all by all takes 400 MB"
    x = np.random.default_rng(10).normal(size=(10_000, 4)).astype(np.float32)
    for f in (k_reciprocal, expand_queries):
        f(x[:5], x[:50])
        tracemalloc.start()
        f(x[:20], x[20:])
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 60e6, (f, peak)


@pytest.mark.skipif(not hasattr(os, 'fork'), reason='no fork on this system')
def test_a_forked_process_can_rerank():
    "The threads of OpenMP do not survive a fork, nor do those of a pool"
    code = '''
import os, numpy as np
from reid_nb.retrieve.rerank import k_reciprocal
from reid_nb.retrieve.expand import augment_gallery, expand_queries, graph_rerank
rng = np.random.default_rng(0)
q, g = rng.normal(size=(40, 16)), rng.normal(size=(700, 16))
calls = lambda: [k_reciprocal(q, g), graph_rerank(q, g), expand_queries(q, g), augment_gallery(g)]
want = calls()
if not (pid := os.fork()):
    try: same = all(map(np.array_equal, calls(), want))
    except BaseException: same = False
    os._exit(0 if same else 3)
print(os.waitpid(pid, 0)[1])'''
    res = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True)
    assert res.stdout.strip() == '0', res.stdout + res.stderr


def dense(rows, n_col): # (n, n_col) from `SparseRows`
    out = np.zeros((len(rows.start) - 1, n_col), np.float32)
    for i, o in enumerate(out): o[rows.cols[rows.start[i]:rows.start[i + 1]]] = rows.vals[rows.start[i]:rows.start[i + 1]]
    return out


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 20), st.integers(1, 5), st.integers(0, 2**32 - 1))
def test_rows_of_few_entries(n, k, seed):
    rng = np.random.default_rng(seed)
    A = (rng.random((n, n)) * (rng.random((n, n)) < .3)).astype(np.float32)
    rows = SparseRows(np.r_[0, np.cumsum((A > 0).sum(1))], np.nonzero(A)[1].astype(np.int32), A[A > 0])
    near, weight, first = rng.integers(0, n, (n, k)).astype(np.int32), rng.random((n, k)).astype(np.float32), int(rng.integers(0, n + 1))
    np.testing.assert_allclose(dense(mix_rows(near, weight, rows), n), (A[near] * weight[..., None]).sum(1), rtol=1e-6)
    np.testing.assert_array_equal(dense(turn_rows(rows, first), n)[:, :n - first], A[first:].T)


def graph_by_matrices(q, g, k1, k2, rounds):
    x, n_q = np.concatenate([q, g]), len(q)
    dist = pairwise(x, x).astype(np.float64)
    rank = np.argsort(dist, axis=1, kind='stable')
    A, W = np.zeros_like(dist), np.zeros_like(dist)
    for i, r in enumerate(rank):
        A[i, r[:k1]] = 1
        W[i, r[:k2]] = (1 - dist[i, r[:k2]])**2
    for _ in range(rounds if k2 > 1 else 0):
        A = W @ (A + A.T)
        A /= np.maximum(np.linalg.norm(A, axis=1, keepdims=True), 1e-300)
    A /= np.maximum(np.linalg.norm(A, axis=1, keepdims=True), 1e-300)
    return np.maximum(1 - A[:n_q] @ A[n_q:].T, 0)


@settings(max_examples=40, deadline=None)
@given(problems(), st.integers(1, 30), st.integers(1, 9), st.integers(0, 3))
def test_graph(feats, k1, k2, rounds):
    np.testing.assert_allclose(graph_rerank(*feats, k1, k2, rounds), graph_by_matrices(*feats, k1, k2, rounds), atol=3e-6)


def means(q, g, k, alpha, own): # by sorting, in float64
    q, g = (o / np.maximum(np.linalg.norm(o.astype(np.float64), axis=1, keepdims=True), 1e-300) for o in (q, g))
    out = []
    for a in q:
        sim = g @ a
        near = np.lexsort((np.arange(len(g)), -sim.astype(np.float32)))[:k + own]
        total = (not own) * a + sum((max(sim[j], 0)**alpha if alpha else 1) * g[j] for j in near)
        out.append(total / max(np.linalg.norm(total), 1e-300))
    return np.array(out)


@pytest.mark.parametrize('k, alpha', [(1, 3), (5, 0), (5, 3), (7, 1), (60, .5)])
def test_expansion(k, alpha):
    rng = np.random.default_rng(11)
    q, g = rng.normal(size=(9, 24)) * 7, rng.normal(size=(50, 24)) * np.logspace(-3, 3, 50)[:, None] # lengths play no part
    np.testing.assert_allclose(expand_queries(q, g, k, alpha), means(q, g, k, alpha, 0), atol=1e-5)
    np.testing.assert_allclose(augment_gallery(g, k, alpha), means(g, g, k, alpha, 1), atol=1e-5)


def test_expansion_of_rows_of_zeros():
    q, g = np.zeros((1, 3)), np.float32([[1, 0, 0], [0, 0, 0]])
    assert np.isfinite(expand_queries(q, g)).all() and np.isfinite(augment_gallery(g)).all()
    np.testing.assert_array_equal(expand_queries(q, g, k=2, alpha=3), q) # at a right angle to all


def test_each_gains_where_people_are_clusters():
    rng = np.random.default_rng(12)
    pid = np.arange(600) % 40
    x = (rng.normal(size=(40, 32))[pid] + 1.2 * rng.normal(size=(600, 32))).astype(np.float32)
    q, g = x[:80], x[80:]
    score = lambda o: rank_stats(o, pid[:80], pid[80:], protocol='all').mAP
    plain = score((q, g))
    for name, o in dict(k=k_reciprocal(q, g), paper=k_reciprocal_dist(*three(q, g)), graph=graph_rerank(q, g, 15, 5), q=(expand_queries(q, g), g), g=(q, augment_gallery(g))).items():
        assert score(o) > plain + .03, name


def test_the_benchmark_runs():
    res = subprocess.run([sys.executable, 'tests/bench/reranking.py', '--help'], cwd=ROOT, capture_output=True, text=True)
    assert res.returncode == 0 and '--torchreid' in res.stdout, res.stderr
