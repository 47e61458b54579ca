"Intervals, comparisons, tables and slices: against slow twins, for coverage, and with bad input"
import io
import sys
import warnings

import numpy as np
import pandas as pd
import pytest
import reid_nb.retrieve.slices # its methods
from hypothesis import given, settings, strategies as st

from reid_nb.core import ReidError, make_items, rows_of
from reid_nb.retrieve.compare import bootstrap_means, figure_values, fold_intervals, mean_interval, merge_splits, results_table, to_latex, to_markdown
from reid_nb.retrieve.distance import pairwise
from reid_nb.retrieve.rank import rank_stats
from reid_nb.retrieve.results import ReidResults


def world(n_id=12, per=8, noise=1., seed=0, junk=0, unknown=0., **kw): # results for people seen by three cameras; every fourth picture asks
    rng = np.random.default_rng(seed)
    n = n_id * per
    pid, cam = np.arange(n) % n_id, rng.integers(0, 3, n).astype(float)
    cam[rng.random(n) < unknown] = np.nan
    point = np.random.default_rng(99).normal(size=(n_id, 16))
    feat = (4 * point / np.linalg.norm(point, axis=1, keepdims=True))[pid] + noise * rng.normal(size=(n, 16))
    q = np.arange(n) // n_id % 4 == 0
    q_pid, g_pid = pid[q], pid[~q].copy()
    if junk: g_pid[rng.choice(len(g_pid), junk, replace=False)] = -1
    return ReidResults.from_arrays((feat[q], feat[~q]), q_pid, g_pid, cam[q], cam[~q], **kw)


# Drawing people

def slow_means(values, groups, n_draw, seed):
    rng, found = np.random.default_rng(seed), sorted({g for g, v in zip(groups, values) if not np.isnan(v).any()})
    rows = {g: [v for h, v in zip(groups, values) if h == g and not np.isnan(v).any()] for g in found}
    return np.array([np.mean([v for i in rng.integers(0, len(found), len(found)) for v in rows[found[i]]], axis=0) for _ in range(n_draw)])


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 7), st.integers(1, 3), st.integers(0, 10**6), st.sampled_from([0., .2]))
def test_draws_against_the_slow_twin(n_id, m, seed, missing):
    rng = np.random.default_rng(seed)
    groups = np.r_[np.arange(n_id), rng.integers(0, n_id, 20)] * 7 - 3
    values = rng.random((len(groups), m))
    values[n_id:][rng.random((20, m)) < missing] = np.nan
    np.testing.assert_allclose(bootstrap_means(values, groups, 9, seed), slow_means(values, groups, 9, seed), atol=1e-13)


def test_many_people_are_drawn_in_pieces():
    n = 3000 # 1,000 draws of 3,000 don't fit into one piece
    values, rng = np.random.default_rng(0).random(n), np.random.default_rng(5)
    want = [values[rng.integers(0, n, n)].mean() for _ in range(1000)]
    np.testing.assert_allclose(bootstrap_means(values, np.arange(n), 1000, 5)[:, 0], want, atol=1e-12)


def test_the_seed_decides():
    res = world()
    a, b, c = (res.intervals(seed=o) for o in (3, 3, 4))
    pd.testing.assert_frame_equal(a, b, check_exact=True)
    assert not a.equals(c) and a.value.equals(c.value)
    a, b = world(noise=2.), world(noise=2.5)
    for f in (lambda s: a.compare(b, seed=s).table, lambda s: a.slices('cam', seed=s), lambda s: results_table(a, ci=True, digits=9, seed=s)):
        assert f(1).equals(f(1)) and not f(1).equals(f(2))


def test_intervals_cover_what_they_say():
    "People of known mean, each asked for five times with almost one outcome: 95 % of the intervals should hold the mean, and drawing queries is far too sure"
    rng, hits, naive, n = np.random.default_rng(0), 0, 0, 300
    for i in range(n):
        values, person = np.repeat(rng.beta(2, 1, 60), 5) + .02 * rng.normal(size=300), np.repeat(np.arange(60), 5)
        for groups, by_person in ((person, True), (np.arange(300), False)):
            lo, hi = mean_interval(values, groups, n_draw=300, seed=i)
            if by_person: hits += lo[0] <= 2 / 3 <= hi[0]
            else: naive += lo[0] <= 2 / 3 <= hi[0]
    assert .91 <= hits / n <= .98 and naive / n < .75


def test_a_level_holds_its_share():
    values, groups = np.random.default_rng(1).random(40), np.arange(40)
    draws = bootstrap_means(values, groups, 500)[:, 0]
    widths = []
    for level in (.5, .9, .99):
        lo, hi = mean_interval(values, groups, level, 500)
        assert np.mean((draws >= lo) & (draws <= hi)) == pytest.approx(level, abs=.01)
        widths.append((hi - lo)[0])
    assert widths == sorted(widths)
    lo, hi = mean_interval(np.ones(40), groups)
    assert lo == hi == 1


def test_intervals_belong_to_the_metrics():
    res = world(noise=2., junk=4, unknown=.2)
    names = ['rank1', 'rank5', 'rank10', 'mAP', 'mINP', 'rank3']
    df = res.intervals(names)
    assert list(df.index) == names and (df.lo <= df.value).all() and (df.value <= df.hi).all()
    np.testing.assert_allclose(df.value, [*(res.metrics[o] for o in names[:5]), res.stats.hit_rate(3)], atol=1e-14)
    assert np.isnan(figure_values(res.stats, ['rank1'])[~res.stats.valid]).all()
    s = rank_stats((res.q_feat, res.g_feat), res.query.pid, res.gallery.pid, res.query.cam, res.gallery.cam) # figures without tables
    lo, hi = mean_interval(figure_values(s), res.query.pid)
    np.testing.assert_array_equal(np.stack([lo, hi], 1), res.intervals()[['lo', 'hi']])


def test_one_number_of_two_datasets_is_two_people():
    pid, feat = np.arange(12) % 3, np.random.default_rng(0).normal(size=(12, 4))
    items = make_items([f'{i}' for i in range(24)], np.r_[pid, pid], np.tile([0, 1], 12), ['query'] * 12 + ['gallery'] * 12, dset=['a', 'b'] * 12)
    query, gallery = rows_of(items, 'query'), rows_of(items, 'gallery')
    res = ReidResults.from_feats(feat, feat, query, gallery, protocol='all')
    lo, hi = mean_interval(figure_values(res.stats), query.dset.astype(str) + query.pid.astype(str))
    assert len(set(res.person['query'])) == 6
    np.testing.assert_array_equal(res.intervals()[['lo', 'hi']], np.stack([lo, hi], 1))
    other = ReidResults.from_arrays((feat, feat), query.pid, gallery.pid, protocol='all')
    assert results_table([res]).n_id.item() == 6 and results_table([other]).n_id.item() == 3


def test_bad_requests():
    res = world()
    for o in ('map', 'rank0', 'rank', 'rank-1', 'AP'):
        with pytest.raises(ValueError, match='A figure is'): res.intervals([o])
    for o in (0, 1, 95, -.5):
        with pytest.raises(ValueError, match='`level` must lie between 0 and 1'): res.intervals(level=o)
    with pytest.raises(ValueError, match='`n_draw` must be 1 at least, not 0'): res.intervals(n_draw=0)
    with pytest.raises(ReidError, match='There are 3 rows of values for 2 groups'): bootstrap_means([1, 2, 3], [1, 2])
    with pytest.raises(ReidError, match='0 of 2 rows have a value, and they belong to 0 persons'): bootstrap_means([np.nan] * 2, [1, 2])


def test_one_person_has_no_interval():
    rng = np.random.default_rng(0)
    res = ReidResults.from_arrays((rng.normal(size=(4, 8)), rng.normal(size=(9, 8))), [5] * 4, [5, 5, 5, 6, 6, 6, 7, 7, 7], [0] * 4, [1] * 9)
    for f in (res.intervals, lambda: res.compare(res), lambda: results_table(res, ci=True)):
        with pytest.raises(ReidError, match='4 of 4 rows have a value, and they belong to 1 person. An interval over people needs 2'): f()
    df = res.slices('cam')
    assert df.n_id.item() == 1 and df.mAP.item() == pytest.approx(res.metrics['mAP']) and df[['mAP_lo', 'mAP_hi']].isna().all(axis=None)
    assert results_table(res).n_id.item() == 1


# Two runs

def shuffled(res, seed=1): # the same run with its queries in another order
    at = np.random.default_rng(seed).permutation(len(res.query))
    return ReidResults.from_feats(res.q_feat[at], res.g_feat, res.query.iloc[at], res.gallery)


def test_comparison_against_the_slow_twin():
    a, b = world(noise=1.5, junk=3, unknown=.1), world(noise=2., seed=1, junk=3, unknown=.1)
    b = ReidResults.from_feats(b.q_feat, b.g_feat, a.query, a.gallery)
    c = a.compare(shuffled(b), names=('a', 'b'), figures=['rank1', 'mAP'])
    both = a.per_query.merge(b.per_query, on='path', suffixes=('_a', '_b'))
    use = both[both.valid_a & both.valid_b]
    for name, x, y in (('mAP', use.ap_a, use.ap_b), ('rank1', use.first_a == 1, use.first_b == 1)):
        row, d = c.table.loc[name], x.astype(float) - y.astype(float)
        np.testing.assert_allclose([row['a'], row['b'], row['diff']], [x.mean(), y.mean(), d.mean()], atol=1e-12)
        assert [row.won, row.lost, row.tied] == [(d > 1e-9).sum(), (d < -1e-9).sum(), (d.abs() <= 1e-9).sum()]
        assert row.diff_lo <= row['diff'] <= row.diff_hi
    lo, hi = mean_interval((use.ap_a - use.ap_b), use.pid_a)
    np.testing.assert_allclose([c.table.diff_lo['mAP'], c.table.diff_hi['mAP']], [lo[0], hi[0]], atol=1e-12)
    assert (shuffled(b).query.path[c.per_query.other_row].to_numpy() == a.query.path.to_numpy()).all()
    np.testing.assert_array_equal(c.per_query.ap_b, b.stats.ap)
    for df, sign in ((c.wins(4), 1), (c.losses(4), -1)):
        d = (sign * (a.stats.ap - b.stats.ap))[use.index]
        np.testing.assert_allclose(sign * df['diff'], np.sort(d[d > 1e-9])[::-1][:4], atol=1e-12)
        assert (a.query.path[df.index] == df.path).all()


def test_there_and_back():
    a, b = world(noise=1.5), world(noise=2., seed=1)
    c, d = a.compare(b, on=None), b.compare(a, on=None)
    np.testing.assert_allclose(c.table['diff'], -d.table['diff'], atol=1e-14)
    np.testing.assert_allclose(c.table.diff_lo, -d.table.diff_hi, atol=1e-12)
    assert (c.table.won == d.table.lost).all() and (c.table.tied == d.table.tied).all() and c.notes == []
    same = a.compare(shuffled(a))
    assert (same.table.tied == len(a.query)).all() and (same.table[['diff', 'diff_lo', 'diff_hi']].abs() < 1e-12).all(axis=None)
    assert len(same.wins()) == len(same.losses()) == 0
    assert 'diff_lo' in repr(c) and '<table' in c._repr_html_()


def test_pairing_makes_the_interval_narrow():
    a = world(40, noise=2.)
    b = ReidResults.from_feats(a.q_feat + .2 * np.random.default_rng(1).normal(size=a.q_feat.shape), a.g_feat, a.query, a.gallery)
    c, one = a.compare(b).table.loc['mAP'], a.intervals().loc['mAP']
    assert c.diff_hi - c.diff_lo < .6 * (one.hi - one.lo)


def test_runs_over_other_queries_are_refused():
    a = world(noise=1.5)
    n = len(a.query)
    part = ReidResults.from_feats(a.q_feat[3:], a.g_feat, a.query.iloc[3:], a.gallery)
    with pytest.raises(ReidError, match=f'The queries differ: 3 of {n} are in this run only, first .*query 0.*; 0 of {n - 3} in the other only'): a.compare(part)
    with pytest.raises(ReidError, match=f'The queries differ: 0 of {n - 3} are in this run only, first .*; 3 of {n} in the other only'): part.compare(a)
    with pytest.raises(ReidError, match=f'{n} and {n - 3} queries can\'t be matched by their order'): a.compare(part, on=None)
    with pytest.raises(ReidError, match=rf'of {n} matched queries have another identity .* same order\?'): a.compare(shuffled(a), on=None)
    renamed = ReidResults.from_feats(a.q_feat, a.g_feat, a.query.assign(path='x/' + a.query.path), a.gallery)
    with pytest.raises(ReidError, match=f'{n} of {n} are in this run only'): a.compare(renamed)
    assert (a.compare(renamed, on=None).table.tied == n).all()
    other = ReidResults.from_feats(a.q_feat, a.g_feat, a.query.assign(pid=(a.query.pid + 1) % 12), a.gallery)
    with pytest.raises(ReidError, match=f'{n} of {n} matched queries have another identity .* numbered anew'): a.compare(other)
    with pytest.raises(ReidError, match="of this run has no column 'frame'"): a.compare(a, on='frame')
    with pytest.raises(ReidError, match=f'{n - 3} of {n} queries of this run repeat a value of \'cam\''): a.compare(a, on='cam')


def test_what_else_differs_is_noted():
    a = world(noise=1.5, unknown=0.)
    b = ReidResults.from_feats(a.q_feat, a.g_feat, a.query, a.gallery, protocol='all')
    assert a.compare(b).notes == ["The protocols differ: 'market' and 'all'."] and 'protocols differ' in repr(a.compare(b)) and 'protocols differ' in a.compare(b)._repr_html_()
    keep = a.gallery.pid != 3
    c = ReidResults.from_feats(a.q_feat, a.g_feat[keep], a.query, a.gallery[keep])
    n, lost = len(a.gallery), int((a.query.pid == 3).sum())
    assert a.compare(c).notes == [f'The galleries differ: {n} and {keep.sum()} items.', f'{lost} queries have a match in one of the runs only, and are left out.']
    assert (a.compare(c).table[['won', 'lost', 'tied']].sum(axis=1) == a.stats.valid.sum() - lost).all() and a.compare(c).per_query['diff'].isna().sum() == lost


# Tables

def test_results_table(tmp_path):
    a, b = world(noise=1.5), world(noise=2.5, unknown=.3)
    a.save(tmp_path/'a.npz'); b.save(tmp_path/'sub/b.npz')
    df = results_table({'first': a, 'second': tmp_path/'sub/b.npz'}, digits=2)
    assert list(df) == ['rank1', 'rank5', 'rank10', 'mAP', 'mINP', 'n_query', 'n_id'] and list(df.index) == ['first', 'second']
    for name, res in (('first', a), ('second', b)):
        np.testing.assert_allclose(df.loc[name, ['rank1', 'mAP']].astype(float), [round(100 * res.metrics[o], 2) for o in ('rank1', 'mAP')], atol=1e-9)
        assert df.n_query[name] == res.metrics['n_valid']
    assert list(results_table([a, b]).index) == ['run 1', 'run 2'] and list(results_table(a).index) == ['run 1']
    assert list(results_table([tmp_path/'a.npz', tmp_path/'sub/b.npz']).index) == ['a', 'b']
    b.save(tmp_path/'sub/a.npz')
    assert list(results_table([tmp_path/'a.npz', tmp_path/'sub/a.npz']).index) == [str(tmp_path/'a.npz'), str(tmp_path/'sub/a.npz')]
    ci = results_table([a], figures=['mAP'], ci=True, digits=6)
    np.testing.assert_allclose(ci[['mAP', 'mAP_lo', 'mAP_hi']].to_numpy()[0], 100 * a.intervals(['mAP']).to_numpy()[0], atol=1e-5)
    back = pd.read_csv(io.StringIO(ci.to_csv()), index_col=0)
    pd.testing.assert_frame_equal(back, ci)
    for o in ([], {}):
        with pytest.raises(ReidError, match='There are no results'): results_table(o)
    with pytest.raises(FileNotFoundError, match='There is no results file'): results_table([tmp_path/'none.npz'])


ODD = pd.DataFrame({'a_b & c|d': [1.25, np.nan], 'a_b & c|d_lo': [1., np.nan], 'a_b & c|d_hi': [1.5, np.nan], 'n': [3, 4], 'x_lo': [.5, .25], 'text': ['50 % ~ {x}', None]}, index=['OSNet_x1', 'a|b'])


def test_bounds_are_folded():
    df = fold_intervals(ODD, 2)
    assert list(df) == ['a_b & c|d', 'n', 'x_lo', 'text']
    assert df.to_numpy().tolist() == [['1.25 [1.00, 1.50]', '3', '0.50', '50 % ~ {x}'], ['–', '4', '0.25', '–']]
    assert fold_intervals(ODD, 0)['x_lo'].tolist() == ['0', '0'] and list(ODD)[1] == 'a_b & c|d_lo'


def test_text_needs_nothing_installed(monkeypatch):
    for o in ('jinja2', 'tabulate'): monkeypatch.setitem(sys.modules, o, None)
    with pytest.raises(ImportError): ODD.to_markdown()
    assert to_markdown(ODD, 2).split('\n') == [
        r'|  | a_b & c\|d | n | x_lo | text |',
        '| :-- | --: | --: | --: | :-- |',
        '| OSNet_x1 | 1.25 [1.00, 1.50] | 3 | 0.50 | 50 % ~ {x} |',
        r'| a\|b | – | 4 | 0.25 | – |']
    assert to_latex(ODD, 2).split('\n') == [
        r'\begin{tabular}{lrrrl}', r'\toprule', r' & a\_b \& c|d & n & x\_lo & text \\', r'\midrule',
        r'OSNet\_x1 & 1.25 [1.00, 1.50] & 3 & 0.50 & 50 \% \textasciitilde{} \{x\} \\', r'a|b & -- & 4 & 0.25 & -- \\', r'\bottomrule', r'\end{tabular}']


def test_tables_of_several_levels_are_written_too():
    pairs = world(noise=2.).camera_pairs()
    assert to_markdown(pairs).startswith('| query cam | mAP 0 | mAP 1 | mAP 2 | rank1 0') and to_latex(pairs[['mAP']]).count('&') == 12
    assert to_markdown(world(noise=2.).slices('cam')).count('[') == 6


# Splits

def test_splits(tmp_path):
    runs = [world(noise=2., seed=i) for i in range(12)]
    for i, o in enumerate(runs): o.save(tmp_path/f'split{i}'/'res.npz')
    df = merge_splits(str(tmp_path/'*/res.npz'), digits=9)
    assert list(df) == ['mAP', 'rank1', 'rank5', 'rank10', 'rank20'] and list(df.index[-2:]) == ['mean', 'std']
    assert [o.split('/')[-2] for o in df.index[:-2]] == [f'split{i}' for i in range(12)] # by number, not by letter
    for name, k in (('mAP', None), ('rank1', 1), ('rank20', 20)):
        each = 100 * np.array([o.metrics['mAP'] if k is None else o.stats.hit_rate(k) for o in runs])
        np.testing.assert_allclose(df[name], [*each, each.mean(), each.std(ddof=1)], atol=1e-8)
    pd.testing.assert_frame_equal(merge_splits(runs, digits=9).reset_index(drop=True), df.reset_index(drop=True))
    assert list(merge_splits(dict(x=runs[0], y=tmp_path/'split1/res.npz'), ['mAP']).index) == ['x', 'y', 'mean', 'std']
    assert len(merge_splits(tmp_path/'split3')) == 3 and merge_splits(tmp_path/'split3').loc['std'].isna().all()


def test_bad_splits(tmp_path):
    for o in (tmp_path, str(tmp_path/'*.npz'), tmp_path/'none'):
        with pytest.raises(FileNotFoundError, match='There are no results files at'): merge_splits(o)
    with pytest.raises(ReidError, match='There are no results'): merge_splits([])
    a = world(noise=2.)
    for o in ([a.stats], dict(x=a.stats), [a, None]):
        with pytest.raises(ReidError, match='A run is a `ReidResults`, or a file of them, not (RankStats|NoneType)'): merge_splits(o)
    b = ReidResults.from_feats(a.q_feat, a.g_feat, a.query, a.gallery, protocol='all')
    with pytest.raises(ReidError, match=r"scored under 2 protocols, \['all', 'market'\]"): merge_splits([a, b])
    (tmp_path/'x.npz').write_text('no results')
    with pytest.raises(ReidError, match='is not a whole results file'): merge_splits(tmp_path)


# Camera pairs

@pytest.mark.parametrize('protocol,unknown', [('market', 0.), ('all', 0.), ('market', .2), ('all', .2)])
def test_camera_pairs_against_the_slow_twin(protocol, unknown):
    res = world(noise=2., junk=5, unknown=unknown, protocol=protocol)
    pairs = res.camera_pairs()
    same = lambda col, c: col.isna().to_numpy() if pd.isna(c) else (col == c).fillna(False).to_numpy(bool)
    cams = [0, 1, 2] + [pd.NA] * (unknown > 0)
    assert pairs.shape == (len(cams), 3 * len(cams))
    for i, qc in enumerate(cams):
        for j, gc in enumerate(cams):
            a, b = same(res.query.cam, qc), same(res.gallery.cam, gc)
            got = [pairs[o].iloc[i, j] for o in ('mAP', 'rank1', 'n_query')]
            try: one = ReidResults.from_feats(res.q_feat[a], res.g_feat[b], res.query[a], res.gallery[b], protocol=protocol).metrics
            except ReidError: one = dict(mAP=np.nan, rank1=np.nan, n_valid=0)
            np.testing.assert_allclose(got, [one['mAP'], one['rank1'], one['n_valid']], atol=1e-6)
    if protocol == 'market': assert (np.diag(pairs.n_query)[:3] == 0).all() and np.isnan(np.diag(pairs.mAP)[:3]).all()


def test_camera_pairs_from_distances():
    res = world(noise=2.)
    dist = pairwise(res.q_feat, res.g_feat)
    bare = ReidResults.from_dist(dist, res.query, res.gallery)
    pd.testing.assert_frame_equal(bare.camera_pairs(dist), res.camera_pairs())
    with pytest.raises(ReidError, match='these results hold no features'): bare.camera_pairs()
    with pytest.raises(ReidError, match=rf'do not fit distances of shape \({len(dist)}, {dist.shape[1] - 1}\)'): bare.camera_pairs(dist[:, 1:])
    dist[3, 4] = np.nan
    with pytest.raises(ReidError, match='NaN'): bare.camera_pairs(dist)
    with pytest.raises(ReidError, match='No camera is known'): ReidResults.from_arrays(np.ones((2, 4)), [1, 2], [1, 2, 1, 2]).camera_pairs([[1] * 4] * 2)


# Slices

def test_slices_add_up():
    res = world(20, noise=2., junk=4, unknown=.1)
    n = len(res.query)
    rng = np.random.default_rng(0)
    res.query['hat'], res.query['height'], res.query['coat'] = rng.random(n) < .4, rng.integers(40, 300, n), pd.Categorical(rng.choice(['a', 'b'], n), categories=['b', 'none', 'a'])
    res.query['few'] = pd.array(np.where(rng.random(n) < .3, None, rng.integers(0, 3, n)), dtype='Int64')
    for by, kinds in (('hat', [False, True]), ('coat', ['b', 'a']), ('few', [0, 1, 2, 'missing']), ('cam', None), ('height', None)):
        df = res.slices(by, figures=['mAP', 'rank5', 'mINP'])
        if kinds: assert list(df.index) == kinds
        assert df.index.name == by and df.n_query.sum() == n and df.n_valid.sum() == res.stats.valid.sum()
        for o, total in (('mAP', res.metrics['mAP']), ('rank5', res.metrics['rank5']), ('mINP', res.metrics['mINP'])):
            assert np.average(df[o], weights=df.n_valid) == pytest.approx(total)
            df_ = df[df.n_id > 1]
            assert len(df_) > 1 and (df_[f'{o}_lo'] <= df_[o]).all() and (df_[o] <= df_[f'{o}_hi']).all()
    one = res.slices('hat').loc[True]
    at = res.query.hat & res.stats.valid
    lo, hi = mean_interval(figure_values(res.stats, ['rank1', 'mAP'])[at], res.query.pid[at])
    np.testing.assert_allclose(one[['rank1_lo', 'mAP_lo', 'rank1_hi', 'mAP_hi']].astype(float), [*lo, *hi], atol=1e-12)
    sizes = res.slices('height', q=3)
    assert len(sizes) == 3 and sizes.n_query.between(n / 3 - 6, n / 3 + 6).all()
    assert sizes.n_query.tolist() == [sum(h in o for h in res.query.height) for o in sizes.index]
    assert len(res.slices('height', q=[0, .1, 1])) == 2
    pd.testing.assert_frame_equal(res.slices(res.query.hat.to_numpy()), res.slices('hat'), check_names=False)


def test_slices_without_anybody():
    res = world(noise=2.)
    res = ReidResults.from_feats(res.q_feat, res.g_feat[res.gallery.pid != 3], res.query.assign(x=res.query.pid == 3, same=7.5), res.gallery[res.gallery.pid != 3])
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        df = res.slices('x')
    assert df.n_valid[True] == df.n_id[True] == 0 and df.loc[True, ['mAP', 'mAP_lo', 'rank1_hi']].isna().all() and df.n_query[True] == (res.query.pid == 3).sum()
    assert res.slices('same').index.tolist() == [7.5]


def test_bad_slices():
    res = world()
    with pytest.raises(ReidError, match="The query table has no column 'hat'. Found: .*'path', 'pid', 'cam'"): res.slices('hat')
    with pytest.raises(ReidError, match=f'There are 3 values to slice by, and {len(res.query)} queries'): res.slices([1, 2, 3])
    with pytest.raises(ReidError, match=f'All {len(res.query)} values of \'hat\' are missing'): res.slices(pd.Series([None] * len(res.query), name='hat'))
    with pytest.raises(ValueError, match='A figure is'): res.slices('cam', figures=['ap'])


# Hubs

def test_hubs_against_the_slow_twin():
    res = world(noise=2.5, junk=6, unknown=.1, topk=500)
    n_query, n_first, cost = (np.zeros(len(res.gallery)) for _ in range(3))
    for i in np.flatnonzero(res.stats.valid):
        df = res.ranking(i, len(res.gallery))
        hits = df['rank'][df.kind == 'match'].to_numpy(int)
        for row, rank, kind in zip(df.row, df['rank'], df.kind):
            if kind != 'wrong' or rank > hits[-1]: continue
            n_query[row] += rank <= 4
            n_first[row] += rank == 1
            without = hits - (hits > rank)
            cost[row] += np.mean(np.arange(1, len(hits) + 1) / without) - res.stats.ap[i]
    df = res.hubs(10**6, k=4).set_index('row').reindex(range(len(res.gallery))).fillna(0)
    np.testing.assert_array_equal(df.n_query, n_query)
    np.testing.assert_array_equal(df.n_first, n_first)
    np.testing.assert_allclose(df.cost, cost / res.stats.valid.sum(), atol=1e-12)
    assert res.hubs(3, sort='cost').cost.is_monotonic_decreasing and len(res.hubs(3)) == 3 and res.hubs(3, k=4).n_query.iloc[0] == n_query.max()


def test_a_hub_is_found_and_removing_it_pays():
    res = world(noise=1.)
    g_feat, gallery = np.r_[res.g_feat, res.q_feat.mean(0, keepdims=True) * 5], pd.concat([res.gallery, pd.DataFrame(dict(path=['hub'], pid=[777], cam=[1]))])
    q_feat = res.q_feat + 3 * res.q_feat.mean(0) # all queries lean towards it
    with_hub = ReidResults.from_feats(q_feat, g_feat, res.query, gallery, topk=100)
    without = ReidResults.from_feats(q_feat, res.g_feat, res.query, res.gallery)
    top = with_hub.hubs(1, sort='cost').iloc[0]
    assert top.path == 'hub' and top.cost == pytest.approx(without.metrics['mAP'] - with_hub.metrics['mAP'], abs=1e-12) and top.cost > 0
    with pytest.raises(ValueError, match='`sort` must be one of'): res.hubs(sort='ap')
    with pytest.raises(ValueError, match='`k` must be 1'): res.hubs(k=0)


def test_a_perfect_run_has_no_hubs():
    feat = np.repeat(np.eye(4), 3, axis=0)
    res = ReidResults.from_arrays((feat[::3], feat[np.arange(12) % 3 > 0]), range(4), np.repeat(range(4), 2), [0] * 4, [1] * 8)
    assert len(res.hubs()) == 0 and list(res.hubs()) == ['row', 'path', 'pid', 'cam', 'n_query', 'n_first', 'cost'] and len(res.suspects()) == 0


# Suspects

def flipped(seed, noise, n=5): # a world with `n` wrong labels, and where they are
    rng, res = np.random.default_rng(seed), world(30, per=12, noise=noise, seed=seed)
    sides = dict(query=res.query.pid.to_numpy().copy(), gallery=res.gallery.pid.to_numpy().copy())
    bad = {(o, int(i)): int(sides[o][i]) for o in [rng.choice(list(sides)) for _ in range(n)] for i in [rng.integers(len(sides[o]))]}
    for (o, i), p in bad.items(): sides[o][i] = (p + rng.integers(1, 30)) % 30
    return ReidResults.from_feats(res.q_feat, res.g_feat, res.query.assign(pid=sides['query']), res.gallery.assign(pid=sides['gallery'])), bad


@pytest.mark.parametrize('seed', range(6))
def test_wrong_labels_are_the_first_suspects(seed):
    res, bad = flipped(seed, noise=.4)
    df = res.suspects(len(bad))
    assert {(o, i): p for o, i, p in zip(df.source, df.row, df.says)} == bad
    assert (df.score > .6).all() and (df.pid != df.says).all()
    like = res.gallery.set_index('path').pid
    assert (like[df.like].to_numpy() == df.says).all()
    for o in ('query', 'gallery'): pd.testing.assert_frame_equal(res.suspects(99, source=o), res.suspects(999)[lambda d: d.source == o].reset_index(drop=True).head(99))


def test_right_labels_are_not_suspected():
    assert len(world(30, per=12, noise=.4).suspects()) == 0


def slow_suspects(res, k): # (source, row) -> own, says, other, score
    q, g, votes = res.query, res.gallery, {}
    for o, items, feat in (('query', q, res.q_feat), ('gallery', g, res.g_feat)):
        for i in range(len(items)):
            if items.pid[i] == -1: continue
            d = ((res.g_feat.astype(float) - feat[i])**2).sum(1)
            near = [j for j in np.argsort(d, kind='stable') if g.pid[j] != -1 and g.path[j] != items.path[i]][:k]
            votes[o, i] = items.pid[i], g.pid[near].tolist()
    own = {key: labels.count(p) / k for key, (p, labels) in votes.items()}
    trust = {p: np.mean([own[key] for key in votes if votes[key][0] == p]) for p in {p for p, _ in votes.values()}}
    out = {}
    for key, (p, labels) in votes.items():
        others = [o for o in labels if o != p]
        says = max(others, key=lambda o: labels.count(o) * trust[o], default=None) # of equal votes the closest
        out[key] = own[key], says, labels.count(says) / k, max([labels.count(o) / k * trust[o] for o in others], default=0) - own[key]
    return out


@pytest.mark.parametrize('k', [1, 3, 6])
def test_suspects_against_the_slow_twin(k):
    res = world(noise=2., junk=6, unknown=.2, metric='sqeuclidean')
    want = {key: v for key, v in slow_suspects(res, k).items() if v[3] > 1e-12}
    df = res.suspects(10**6, k)
    df = df[df.score > 1e-12]
    assert set(zip(df.source, df.row)) == set(want) and df.score.is_monotonic_decreasing
    for o in df.itertuples(): np.testing.assert_allclose([o.own, o.says, o.other, o.score], want[o.source, o.row], atol=1e-12)


def test_a_crowd_has_no_say():
    "Strangers who share a label make no suspects of the people near them"
    rng = np.random.default_rng(0)
    res = world(20, per=12, noise=1.2)
    g_feat = np.r_[res.g_feat, 1.2 * rng.normal(size=(400, 16))]
    strangers = pd.DataFrame(dict(path=[f's{i}' for i in range(400)], pid=[0] * 400, cam=rng.integers(0, 3, 400)))
    res = ReidResults.from_feats(res.q_feat, g_feat, res.query.assign(pid=res.query.pid + 1), pd.concat([res.gallery.assign(pid=res.gallery.pid + 1), strangers]))
    plain, df = res.suspects(999), res.suspects(999, crowd=[0])
    assert (plain.says == 0).sum() > 10 and not (df.says == 0).any() and len(df) > 0


def test_suspects_of_queries_alone(tmp_path):
    res, bad = flipped(3, noise=.4)
    dist = pairwise(res.q_feat, res.g_feat)
    bare = ReidResults.from_dist(dist, res.query, res.gallery)
    assert set(zip(*bare.suspects(99)[['source', 'row']].to_numpy().T)) >= {o for o in bad if o[0] == 'query'} and set(bare.suspects(99).source) <= {'query'}
    with pytest.raises(ReidError, match='Suspects in the gallery need its features'): bare.suspects(source='gallery')
    with pytest.raises(ReidError, match='3 closest items of each query were noted, and 5 are asked for'): ReidResults.from_dist(dist, res.query, res.gallery, topk=3).suspects()
    with pytest.raises(ValueError, match="`source` must be 'query', 'gallery' or None, not 'train'"): res.suspects(source='train')
    with pytest.raises(ValueError, match='`k` must be 1 at least, not 0'): res.suspects(k=0)
    small = ReidResults.from_arrays((np.eye(2), np.eye(2)), [0, 1], [0, 1]) # fewer items than neighbours
    assert len(small.suspects()) >= 0


# From arrays, and through a file

def test_from_arrays_is_from_tables():
    rng = np.random.default_rng(0)
    n_q, n_g = 10, 40
    feats = rng.normal(size=(n_q, 8)), rng.normal(size=(n_g, 8))
    pid, cam = rng.integers(0, 4, n_q + n_g), np.where(rng.random(n_q + n_g) < .2, np.nan, rng.integers(0, 3, n_q + n_g))
    path = [f'{i}.jpg' for i in range(n_q + n_g)]
    labels = pid[:n_q], pid[n_q:], cam[:n_q], cam[n_q:]
    res = ReidResults.from_arrays(feats, *labels, path[:n_q], path[n_q:], dict(hat=range(n_q)), topk=7, metric='euclidean', protocol='all')
    cams = pd.array(cam, dtype='Int64')
    want = ReidResults.from_feats(*feats, pd.DataFrame(dict(path=path[:n_q], pid=labels[0], cam=cams[:n_q], hat=range(n_q))), pd.DataFrame(dict(path=path[n_q:], pid=labels[1], cam=cams[n_q:])),
                                  topk=7, metric='euclidean', protocol='all')
    pd.testing.assert_frame_equal(res.query, want.query); pd.testing.assert_frame_equal(res.gallery, want.gallery)
    assert res.metrics == want.metrics and res.metric == 'euclidean' and res.near['kept_row'].shape == (n_q, 7)
    dist = ReidResults.from_arrays(pairwise(*feats, 'euclidean'), *map(list, labels))
    assert dist.metric == 'given' and dist.g_feat is None and dist.gallery.path[3] == 'gallery 3' and dist.query.path.is_unique
    np.testing.assert_array_equal(dist.stats.ap, ReidResults.from_arrays(feats, *labels, metric='euclidean').stats.ap)
    assert ReidResults.from_arrays(feats, *labels[:2]).protocol == 'all'
    items = ReidResults.from_arrays((feats[1], feats[1]), pid[n_q:], pid[n_q:], q_path=path[n_q:], g_path=path[n_q:]) # one set asks for itself
    assert (items.stats.n_removed == 1).all()
    with pytest.raises(ReidError, match=r"There are 40 gallery identities; other columns have other lengths: {'cam': 39}"): ReidResults.from_arrays(feats, *labels[:3], cam[n_q + 1:])
    with pytest.raises(ReidError, match=r"There are 10 query identities; other columns have other lengths: {'path': 2, 'hat': 3}"):
        ReidResults.from_arrays(feats, *labels, q_path=['a', 'b'], q_more=dict(hat=[1, 2, 3]))
    with pytest.raises(ReidError, match='There are 9 query features for 10 rows'): ReidResults.from_arrays((feats[0][1:], feats[1]), *labels)
    with pytest.raises(ReidError, match='`q_pid` must be a row of whole numbers'): ReidResults.from_arrays(feats, labels[0] + .5, *labels[1:])


def test_a_loaded_run_says_the_same(tmp_path):
    res = world(noise=2., junk=4, unknown=.1)
    res.save(tmp_path/'a.npz')
    back = ReidResults.load(tmp_path/'a.npz')
    for f in (lambda o: o.intervals(), lambda o: o.slices('cam'), lambda o: o.hubs(), lambda o: o.suspects(), lambda o: o.camera_pairs(), lambda o: results_table([o], ci=True)):
        pd.testing.assert_frame_equal(f(res), f(back), check_exact=True)
    assert (res.compare(back).table.tied == res.stats.valid.sum()).all()
    assert len(repr(back).split('\n')) == 2 # what a run shows of itself stays small
