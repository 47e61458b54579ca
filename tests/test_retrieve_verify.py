"Counts of pairs against a list of all pairs and against scikit-learn; curves from distance to probability; input of every kind"
import importlib
import multiprocessing as mp

import numba
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings, strategies as st
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score, roc_curve

from reid_nb.core import ReidError
from reid_nb.retrieve.calibrate import Calibration, calibrate, reliability
from reid_nb.retrieve.distance import make_ready, pairwise
from reid_nb.retrieve.protocol import Protocol
from reid_nb.retrieve.verify import _floats, _orders, pair_counts


def list_pairs(dist, q, g, protocol): # distances of the same and of the different pairs that take part
    same, diff = [], []
    for i, j in np.ndindex(dist.shape):
        def equal(o): return o in q and pd.notna(q[o][i]) and pd.notna(g[o][j]) and q[o][i] == g[o][j]
        if q['pid'][i] == -1 or g['pid'][j] == -1 or np.isposinf(dist[i, j]): continue
        if not equal('pid'): diff.append(dist[i, j])
        elif not equal('item') and not (protocol == 'market' and equal('cam')): same.append(dist[i, j])
    return np.sort(np.float32(same)), np.sort(np.float32(diff))


@st.composite
def problems(draw): # many ties, negative distances and -0, inf, junk, distractors, unknown cameras, the query itself in the gallery
    n_q, n_g, seed = draw(st.integers(1, 7)), draw(st.integers(1, 40)), draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    levels, scale = draw(st.sampled_from([1, 2, 5, 1000])), draw(st.sampled_from([.25, 1e-7, 1e-42, -3., 1e30]))
    dist = ((rng.integers(0, levels, (n_q, n_g)) - draw(st.sampled_from([0, 2]))) * scale).astype(draw(st.sampled_from([np.float32, np.float64])))
    if draw(st.booleans()): dist = np.where(rng.random(dist.shape) < .1, np.inf, dist)
    who = draw(st.sampled_from([1, 4, 100]))
    q, g = dict(pid=rng.integers(-1, who, n_q)), dict(pid=rng.integers(-1, who + 1, n_g))
    if draw(st.booleans()):
        unknown = draw(st.sampled_from([0, .3]))
        for o in (q, g): o['cam'] = pd.array([pd.NA if rng.random() < unknown else c for c in rng.integers(0, 3, len(o['pid']))], dtype='Int64')
    if draw(st.booleans()): # a picture has one person
        item = rng.integers(0, 9, n_g)
        g['pid'], q['item'], g['item'] = item % 3 - 1, [f'{i}.jpg' for i in q['pid'] + 1], [f'{i}.jpg' for i in item]
        q['pid'] = (q['pid'] + 1) % 3 - 1
    return dist, q, g, draw(st.sampled_from(['market', 'all']))


def columns(q, g): return {f'{side}_{k}': v for side, o in (('q', q), ('g', g)) for k, v in o.items()}


def check_thresholds(counts, same, diff): # promises that hold for any counts
    seen = np.sort(np.r_[same, diff])
    n_upto = np.searchsorted(diff, seen, 'right')
    rates = [o for o in (1 / len(diff), .01, .1, .29, 1 / 3, .5, 1) if o * len(diff) * (1 + 1e-12) >= 1]
    fine = counts.refine(fpr=rates)
    for fpr in rates:
        t, limit = np.float32(counts.threshold_for(fpr=fpr)), fpr * len(diff) * (1 + 1e-12)
        n = np.searchsorted(diff, t, 'right')
        assert n <= limit and counts.rates(t).fpr == n / len(diff)
        if len(same): assert counts.tpr_at(fpr) == (same <= t).mean()
        t = fine.threshold_for(fpr=fpr)
        assert np.searchsorted(diff, np.float32(t), 'right') == n_upto[n_upto <= limit].max(initial=0)
        assert t in seen or t < seen[0]


def check_curve(counts, same, diff): # refined counts against scikit-learn
    score, true = -np.r_[same, diff].astype(np.float64), np.arange(len(same) + len(diff)) < len(same)
    fpr, tpr, _ = roc_curve(true, score, drop_intermediate=False)
    fine = counts.refine()
    assert fine.auc_error == 0
    assert fine.auc == pytest.approx(roc_auc_score(true, score), abs=1e-12)
    assert abs(counts.auc - fine.auc) <= counts.auc_error + 1e-15
    gap = np.flatnonzero(fpr + tpr >= 1)[0]
    a, b = 1 - tpr[gap - 1] - fpr[gap - 1], fpr[gap] + tpr[gap] - 1
    assert fine.eer.rate == pytest.approx(fpr[gap - 1] + a / (a + b) * (fpr[gap] - fpr[gap - 1]), abs=1e-12)
    for o in (counts, fine):
        roc = o.roc()
        for t, x, y in zip(roc.threshold.to_numpy(np.float32), roc.fpr, roc.tpr): assert (x, y) == ((diff <= t).mean(), (same <= t).mean())
        assert (roc.iloc[0, 1:] == 0).all() and (roc.iloc[-1, 1:] == 1).all()


@settings(max_examples=100, deadline=None)
@given(problems())
def test_against_a_list_of_pairs(problem):
    dist, q, g, protocol = problem
    same, diff = list_pairs(dist, q, g, protocol)
    if not len(same) and not len(diff):
        with pytest.raises(ReidError, match='No pair is left'): pair_counts(dist, **columns(q, g), protocol=protocol)
        return
    counts = pair_counts(dist, **columns(q, g), protocol=protocol)
    assert (counts.n_same, counts.n_diff) == (len(same), len(diff))
    np.testing.assert_array_equal(counts.same_dist, same)
    assert counts.same.sum() == len(same)
    at = np.searchsorted(diff, counts.hi, 'right') - np.searchsorted(diff, counts.lo, 'left')
    np.testing.assert_array_equal(counts.diff, at)
    if len(diff): check_thresholds(counts, same, diff)
    if len(diff) and len(same): check_curve(counts, same, diff)
    for tpr in (.01, .5, 1):
        if len(same): assert counts.threshold_for(tpr=tpr) == same[int(np.ceil(tpr * len(same) - 1e-9)) - 1]
    h = counts.histogram(7)
    assert (h.same.sum(), h.different.sum()) == (len(same), len(diff))
    assert f'{len(same):,} same and {len(diff):,} different' in repr(counts) and ('<table' in counts._repr_html_()) == (len(diff) >= 10)


@given(st.lists(st.floats(width=32, allow_nan=False), min_size=2))
def test_floats_in_order(x):
    x = np.float32(x)
    np.testing.assert_array_equal(_floats(_orders(x)), x)
    np.testing.assert_array_equal(np.argsort(_orders(x), kind='stable'), np.argsort(x, kind='stable'))


def world(n_q=700, n_g=9000, d=8, n_ids=300, seed=0): # more than a tile in both directions
    rng = np.random.default_rng(seed)
    point = rng.normal(size=(n_ids, d))
    pid = rng.integers(0, n_ids, n_q), rng.integers(-1, n_ids, n_g)
    feats = tuple((point[o] + .4 * rng.normal(size=(len(o), d))).astype(np.float32) for o in pid)
    return feats, (*pid, rng.integers(0, 4, n_q), rng.integers(0, 4, n_g))


def same_counts(a, b):
    for o in ('lo', 'hi', 'diff', 'same_dist'): np.testing.assert_array_equal(getattr(a, o), getattr(b, o))


@pytest.fixture(scope='module')
def big():
    feats, labels = world()
    return feats, labels, pair_counts(feats, *labels)


@pytest.mark.parametrize('metric', ['cosine', 'sqeuclidean', 'euclidean', lambda q, g: -q @ g.T])
def test_from_features_and_from_distances(metric):
    feats, labels = world()
    counts, given_ = pair_counts(feats, *labels, metric=metric), pair_counts(pairwise(*feats, metric), *labels)
    same_counts(counts, given_)
    assert given_.metric == 'given' and counts.protocol == 'market'
    same_counts(counts.refine(fpr=1e-3), given_.refine(fpr=1e-3))


def test_threads_and_layouts_do_not_matter(big):
    feats, labels, counts = big
    before = numba.get_num_threads()
    try:
        numba.set_num_threads(1)
        same_counts(pair_counts(feats, *labels), counts)
    finally: numba.set_num_threads(before)
    dist = pairwise(*feats)
    dist.flags.writeable = False
    same_counts(pair_counts(dist, *labels), counts)
    same_counts(pair_counts(np.asfortranarray(dist), *labels), counts)
    same_counts(pair_counts(dist.astype(np.float64), *labels), counts)
    same_counts(pair_counts(tuple(make_ready(o) for o in feats), *labels), counts)


def count_in_child(con, feats, labels): con.send(pair_counts(feats, *labels).same_dist)


@pytest.mark.skipif('fork' not in mp.get_all_start_methods(), reason='no fork here')
def test_a_forked_process_counts_too():
    feats, labels = world(60, 500)
    here = pair_counts(feats, *labels) # threads exist before the fork
    ctx = mp.get_context('fork')
    con, child_con = ctx.Pipe(duplex=False)
    child = ctx.Process(target=count_in_child, args=(child_con, feats, labels))
    child.start()
    try:
        assert con.poll(60), f'no answer from the child, exit code {child.exitcode}'
        np.testing.assert_array_equal(con.recv(), here.same_dist)
    finally:
        child.kill()
        child.join()


def test_parts_add_up(big):
    feats, (q_pid, g_pid, q_cam, g_cam), counts = big
    def part(s): return pair_counts((feats[0], feats[1][s]), q_pid, g_pid[s], q_cam, g_cam[s])
    both = part(slice(0, 10)) + part(slice(10, 5000)) + part(slice(5000, None))
    same_counts(both, counts)
    with pytest.raises(ReidError, match='are a sum'): both.refine()
    with pytest.raises(ReidError, match='cells of their own'): counts.refine() + counts
    with pytest.raises(ReidError, match='different ways'): counts + pair_counts(feats, q_pid, g_pid)


def test_a_mask_takes_pairs_away(big):
    feats, (q_pid, g_pid, q_cam, g_cam), counts = big
    market = Protocol('mine', (('item',),), mask=lambda q, g: (q['pid'] == g['pid']) & (q['cam'] == g['cam']))
    got = pair_counts(feats, q_pid, g_pid, q_cam, g_cam, protocol=market)
    same_counts(got, counts)
    same_counts(got.refine(fpr=.01), counts.refine(fpr=.01))
    assert got.protocol == 'mine'


def gone_by(protocol, q, g): # slow: which pairs a protocol takes away
    def equal(o): return np.asarray(q[o])[:, None] == np.asarray(g[o])
    gone = equal('item') | (g['pid'] == -1) | (q['pid'][:, None] == -1)
    same_cam = equal('pid') & equal('cam')
    return gone | dict(market=same_cam, all=False, cross_camera_only=equal('cam'), tracklet=equal('tid'), same_dset=same_cam | ~equal('dset'))[protocol]


@pytest.mark.parametrize('protocol', ['market', 'all', 'cross_camera_only', 'tracklet', 'same_dset'])
def test_protocols(protocol):
    rng = np.random.default_rng(5)
    q, g = ({'pid': rng.integers(-1, 9, n), **{o: rng.integers(0, 4, n) for o in ('cam', 'tid', 'dset')}, 'item': rng.integers(0, 99, n)} for n in (40, 90))
    dist, same = rng.random((40, 90), np.float32), q['pid'][:, None] == g['pid']
    args = {f'{s}_{o}': c[o] for s, c in (('q', q), ('g', g)) for o in ('pid', 'cam', 'item')}
    more = {f'{s}_more': {o: c[o] for o in ('tid', 'dset')} for s, c in (('q', q), ('g', g))}
    counts, gone = pair_counts(dist, **args, **more, protocol=protocol).refine(fpr=[.01, .1]), gone_by(protocol, q, g)
    np.testing.assert_array_equal(counts.same_dist, np.sort(dist[same & ~gone]))
    diff = np.sort(dist[~same & ~gone])
    np.testing.assert_array_equal(np.cumsum(counts.diff), np.searchsorted(diff, counts.hi, 'right'))
    for fpr in (.01, .1): assert counts.threshold_for(fpr=fpr) in dist


def test_distances_that_change_between_the_walks(big):
    feats, labels, _ = big
    dist = pairwise(*feats)
    counts = pair_counts(dist, *labels)
    dist[:] = dist[::-1].copy()
    with pytest.raises(ReidError, match='not those that were counted'): counts.refine()


D, P = np.float32([[.1, .2, .3], [.4, .5, .6]]), (np.array([1, 2]), np.array([1, 2, 3]))


@pytest.mark.parametrize('args,kw,error,match', [
    ((D[:1], *P), {}, ReidError, '2 labels of queries and 3 of gallery items, but 1 and 3 rows'),
    (((np.ones((2, 4)), np.ones((2, 4))), *P), {}, ReidError, 'but 2 and 2 rows'),
    ((D, P[0].astype(float), P[1]), {}, ReidError, '`q_pid` must be a row of whole numbers, not float64'),
    ((np.empty((0, 3)), np.empty(0, int), P[1]), {}, ReidError, '`q_pid` is empty'),
    ((D, *P, [0]), dict(g_cam=[0, 1, 2]), ReidError, '`q_cam` has 1 entries'),
    ((D, *P, [0, 1]), {}, ReidError, 'Cameras are given for one side only'),
    ((D, *P), dict(protocol='cuhk'), ValueError, "not 'cuhk'"),
    ((D, *P, [0, 1], [0, 1, 2]), dict(protocol='cuhk03'), ValueError, 'pairs are no lists'),
    ((D, *P), dict(protocol='tracklet'), ReidError, 'needs the column tid'),
    ((D * np.nan, *P), {}, ReidError, '6 distances are NaN'),
    ((-D * np.inf, *P), {}, ReidError, '6 distances are NaN or -inf'),
    ((D, np.array([-1, -1]), P[1]), {}, ReidError, 'No pair is left'),
    ((D + np.inf, *P), {}, ReidError, 'No pair is left'),
])
def test_bad_input(args, kw, error, match):
    with pytest.raises(error, match=match): pair_counts(*args, **kw)


def test_one_kind_of_pairs_only():
    same, diff = pair_counts(D[:, :1], np.array([1, 1]), np.array([1])), pair_counts(D, *P[:1], P[1] + 10)
    assert (same.n_same, same.n_diff, diff.n_same, diff.n_diff) == (2, 0, 0, 6)
    assert same.threshold_for(tpr=1) == np.float32(.4) and np.isnan(same.rates(.2).fpr)
    assert diff.rates(diff.threshold_for(fpr=.5)).fpr == .5 and np.isnan(diff.rates(.2).tpr)
    assert diff.refine(fpr=.5).threshold_for(fpr=.5) == np.float32(.3)
    for o in ('auc', 'eer'):
        with pytest.raises(ReidError, match='No pair of different people'): getattr(same, o)
        with pytest.raises(ReidError, match='No pair of the same person'): getattr(diff, o)
    for f in (lambda: same.threshold_for(fpr=.5), lambda: same.tpr_at(.5)[0], lambda: diff.threshold_for(tpr=.5), lambda: diff.tpr_at(.5), diff.roc, lambda: calibrate(same)):
        with pytest.raises(ReidError, match='takes part'): f()
    assert 'AUC' not in repr(same) + repr(diff)


@pytest.mark.parametrize('kw', [{}, dict(fpr=.1, tpr=.1), dict(fpr=0), dict(fpr=1.1), dict(tpr=0), dict(tpr=-1), dict(fpr=np.nan)])
def test_rates_that_make_no_sense(big, kw):
    with pytest.raises(ValueError): big[2].threshold_for(**kw)


def test_a_threshold_that_is_no_number(big):
    with pytest.raises(ValueError, match='is NaN'): big[2].rates(np.nan)
    with pytest.raises(ValueError, match='`bins` must be 1 at least, not 0'): big[2].histogram(0)


def test_the_curve_has_a_moderate_length(big):
    counts = big[2]
    assert len(counts.lo) > 5000 and len(counts.roc(300)) <= 301
    fine, coarse = counts.roc(10**9), counts.roc(300)
    area = [np.trapezoid(o.tpr, o.fpr) for o in (fine, coarse)]
    assert area[0] == pytest.approx(counts.auc, abs=1e-12) and area[1] == pytest.approx(counts.auc, abs=1e-3)


def tiny(seed=0): # few enough pairs for a list, on few enough levels that each cell is a single value
    rng = np.random.default_rng(seed)
    pid = rng.integers(0, 5, 12), rng.integers(0, 5, 30)
    dist = (rng.integers(0, 12, (12, 30)) + 6 * (pid[0][:, None] != pid[1])).astype(np.float32) / 8
    return dist, pair_counts(dist, *pid).refine(fpr=np.linspace(.01, 1, 40)), pid[0][:, None] == pid[1]


@pytest.mark.parametrize('seed', range(5))
def test_isotonic_curve_is_that_of_the_listed_pairs(seed):
    dist, counts, same = tiny(seed)
    x, y = np.r_[dist.ravel(), dist.min(), dist.max()], np.r_[same.ravel(), 0, 1]
    weight = np.r_[np.ones(dist.size), .5, .5]
    fit = IsotonicRegression(increasing=False).fit(x, y, sample_weight=weight)
    curve = calibrate(counts, share=(same.sum() + .5) / (dist.size + 1)) # the half pairs count in the share
    levels = np.unique(dist)
    np.testing.assert_allclose(curve(levels), fit.predict(levels), rtol=2e-5)
    assert (np.diff(curve(np.linspace(-1, 5, 500))) <= 1e-12).all() and 0 < curve(99.) < curve(-99.) < 1


def test_logistic_curve_is_that_of_the_listed_pairs():
    dist, counts, same = tiny()
    n = same.sum(), (~same).sum()
    t = (n[0] + 1) / (n[0] + 2), 1 / (n[1] + 2)
    x, y = np.tile(dist.ravel(), 2)[:, None].astype(np.float64), np.repeat([1, 0], dist.size)
    target = np.where(same.ravel(), *t)
    fit = LogisticRegression(C=np.inf, solver='newton-cholesky', tol=1e-10).fit(x, y, sample_weight=np.r_[target, 1 - target])
    got = calibrate(counts, 'logistic')
    levels = np.unique(dist)
    np.testing.assert_allclose(got(levels), fit.predict_proba(levels[:, None].astype(np.float64))[:, 1], rtol=1e-6)
    assert got.share == same.mean()


@pytest.mark.parametrize('share', [1e-4, .1, .9])
def test_a_share_moves_the_curve(big, share):
    curve = calibrate(big[2])
    x = np.linspace(0, 2, 300)
    np.testing.assert_allclose(curve.at_share(share)(x), calibrate(big[2], share=share)(x), rtol=2e-3, atol=1e-9) # fitted or moved: nearly, for half pairs have a share
    np.testing.assert_allclose(curve.at_share(share).at_share(curve.share)(x), curve(x), rtol=1e-9)
    for bad in (0, 1, -1, np.nan):
        with pytest.raises(ValueError, match='between 0 and 1'): curve.at_share(bad)
        with pytest.raises(ValueError, match='between 0 and 1'): calibrate(big[2], share=bad)


def test_pairs_that_are_told_apart_perfectly_make_nobody_sure():
    dist = np.float32([[.1, .9, .8], [.9, .2, .7]])
    for method in ('isotonic', 'logistic'):
        p = calibrate(pair_counts(dist, *P), method, share=.5)(dist)
        assert 0 < p.min() < .4 < .6 < p.max() < 1
    same = pair_counts(np.float32([[.5, .5, .5], [.5, .5, .5]]), *P) # all at one distance
    for method in ('isotonic', 'logistic'): assert calibrate(same, method)(.5) == pytest.approx(1 / 3, abs=.2)


def test_reliability(big):
    curve = calibrate(big[2], share=.5)
    df = reliability(curve, big[2], bins=7)
    assert (df.same.sum(), df.different.sum()) == (big[2].n_same, big[2].n_diff) and df.weight.sum() == pytest.approx(1)
    np.testing.assert_allclose(df.said, df.was, atol=.01) # on its own pairs a staircase keeps its word
    assert df.said.between(0, 1).all() and len(df) <= 7


def test_a_curve_in_a_file(big, tmp_path):
    curve, file = calibrate(big[2]).at_share(.3), tmp_path/'curve.npz'
    curve.save(file)
    back = Calibration.load(file)
    assert back.share == .3
    np.testing.assert_array_equal(back(np.linspace(0, 2, 50)), curve(np.linspace(0, 2, 50)))
    whole = file.read_bytes()
    for bad in (b'', whole[:100], whole[:-40], b'x' * 300):
        file.write_bytes(bad)
        with pytest.raises(ReidError, match='is not a whole calibration file'): Calibration.load(file)
    np.savez(file, calibration=2, dist=[0.], log_odds=[0.], share=.5)
    with pytest.raises(ReidError, match='version 2'): Calibration.load(file)
    np.save(tmp_path/'a.npy', np.ones(3))
    with pytest.raises(ReidError, match='whole'): Calibration.load(tmp_path/'a.npy')
    with pytest.raises(FileNotFoundError): Calibration.load(tmp_path/'none.npz')


def test_without_scikit_learn(big, monkeypatch):
    curve = calibrate(big[2])
    def gone(name): raise ModuleNotFoundError(name)
    monkeypatch.setattr(importlib, 'import_module', gone)
    assert 0 < curve(.5) < 1
    with pytest.raises(ImportError, match='reid_nb.calibrate'): calibrate(big[2])
    with pytest.raises(ValueError, match="must be one of"): calibrate(big[2], 'platt')


def test_distances_that_no_float32_holds():
    with pytest.raises(ReidError, match='1 distances are larger than a float32 holds, up to 1.0e[+]300'): pair_counts(np.array([[.1, 1e300]]), [1], [1, 2])
    with pytest.raises(ReidError, match='Distances must be numbers'): pair_counts(np.array([['1', '2']]), [1], [1, 2])
