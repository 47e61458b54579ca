"Results: lists against a slow twin, types through a file, files that are damaged"
import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings, strategies as st

from reid_nb.core import ReidError, make_items, rows_of
from reid_nb.retrieve.protocol import Protocol
from reid_nb.retrieve.rank import rank_stats
from reid_nb.retrieve.results import FORMAT, ReidResults, table_from_json, table_to_json


def world(n_q=12, n_g=60, d=8, seed=0, dsets=1, unknown=0., both=3): # features and tables with junk, unknown cameras, and pictures that are in both
    rng = np.random.default_rng(seed)
    n = n_q + n_g
    pid = np.r_[rng.integers(0, 4, n_q), rng.integers(-1, 5, n_g)]
    path = [f'{i:03}.jpg' for i in [*range(n_q), *range(both), *range(n_q + both, n)]]
    cam = pd.array([pd.NA if rng.random() < unknown else o for o in rng.integers(0, 3, n)], dtype='Int64')
    items = make_items(path, pid, cam, ['query'] * n_q + ['gallery'] * n_g, dset=[f'set{i}' for i in rng.integers(0, dsets, n)])
    feat = rng.integers(-3, 4, (n, d)).astype(np.float32) # whole numbers: many equal distances, computed exactly
    return feat[:n_q], feat[n_q:], rows_of(items, 'query'), rows_of(items, 'gallery')


def slow_list(res, i, removed, source): # rows, ranks and kinds of the whole gallery
    items, feat = (res.query, res.q_feat) if source == 'query' else (res.gallery, res.g_feat)
    dist, out, rank = ((res.g_feat.astype(float) - feat[i])**2).sum(1), [], 0
    for j in np.argsort(dist, kind='stable'):
        a, b = items.loc[i], res.gallery.loc[j]
        same = a.pid == b.pid and a.dset == b.dset
        same_cam = res.protocol == 'market' and same and pd.notna(a.cam) and pd.notna(b.cam) and a.cam == b.cam
        kind = 'self' if a.path == b.path else 'junk' if b.pid == -1 else 'same_cam' if same_cam else 'match' if same else 'wrong'
        rank += kind in ('match', 'wrong')
        if removed or kind in ('match', 'wrong'): out.append((j, rank if kind in ('match', 'wrong') else None, kind))
    return out


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(['market', 'all']), st.sampled_from([1, 2]), st.sampled_from([0., .3, 1.]), st.sampled_from([1, 7, 500]))
def test_lists_against_the_slow_twin(seed, protocol, dsets, unknown, topk):
    res = ReidResults.from_feats(*world(seed=seed, dsets=dsets, unknown=unknown), protocol, metric='sqeuclidean', topk=topk, ties='first')
    for i in (0, 5, 11):
        for removed in (False, True):
            for source in ('query', 'gallery'):
                want = slow_list(res, i, removed, source)
                for k in (1, 5, 60):
                    df = res.ranking(i, k, removed, source)
                    assert [(r, None if pd.isna(n) else n, o) for r, n, o in zip(df.row, df['rank'], df.kind)] == want[:k]
                    pd.testing.assert_frame_equal(df[['path', 'pid', 'cam']], res.gallery.loc[df.row, ['path', 'pid', 'cam']].reset_index(drop=True))
        hits = [n for _, n, o in slow_list(res, i, False, 'query') if o == 'match']
        assert res.stats.n_match[i] == len(hits) and res.stats.first[i] == (hits[0] if hits else 0)
        if hits: assert res.stats.ap[i] == pytest.approx(np.mean([(m + 1) / r for m, r in enumerate(hits)]), abs=1e-12)


def even(q, g): return (q['tid'] + g['tid']) % 2 == 0

MASKED = Protocol('masked', (('pid', 'cam'), ('item',)), mask=even)
OTHERS = ['cross_camera_only', 'tracklet', 'same_dset', Protocol('hours', (('pid', 'tid'), ('item',)), ('dset',)), MASKED]


def tracked(**kw): # a world with a column of tracklets
    q_feat, g_feat, query, gallery = world(**kw)
    rng = np.random.default_rng(1)
    return q_feat, g_feat, query.assign(tid=rng.integers(0, 4, len(query))), gallery.assign(tid=rng.integers(0, 4, len(gallery)))


@pytest.mark.parametrize('protocol', OTHERS, ids=lambda o: getattr(o, 'name', o))
def test_lists_under_any_protocol(protocol, tmp_path):
    "What is listed, noted or from features, is what was scored; through a file, too"
    res = ReidResults.from_feats(*tracked(dsets=2, unknown=.2), protocol, metric='sqeuclidean', topk=20, ties='first')
    res.save(tmp_path/'a.npz')
    back = ReidResults.load(tmp_path/'a.npz')
    assert back.rules == (None if protocol == MASKED else res.rules) and back.stats.removed == res.stats.removed and back.stats.words == res.stats.words
    for i in range(12):
        near, far = res.ranking(i, 20, removed=True), res.ranking(i, 60, removed=True)
        pd.testing.assert_frame_equal(near, far.head(20))
        pd.testing.assert_frame_equal(back.ranking(i, 20, removed=True), near)
        assert (far.kind.isin(['match', 'wrong']) == far['rank'].notna()).all() and far['rank'].isna().sum() == res.stats.n_removed[i]
        hits = far['rank'][far.kind == 'match'].to_numpy(int)
        if len(hits): assert res.stats.ap[i] == pytest.approx(np.mean([(m + 1) / r for m, r in enumerate(hits)]), abs=1e-12)
    kinds = set(far.kind) | set(near.kind)
    assert protocol == 'tracklet' or 'removed' in kinds
    if protocol == MASKED:
        with pytest.raises(ReidError, match="The protocol 'masked' has a mask function, which no file can hold. The 20 noted items"): back.ranking(0, 60)
        back.rules = MASKED
    pd.testing.assert_frame_equal(back.ranking(0, 60), res.ranking(0, 60))
    pd.testing.assert_frame_equal(back.ranking(7, source='gallery'), res.ranking(7, source='gallery'))


def test_a_protocol_that_draws(tmp_path):
    q_feat, g_feat, query, gallery = world()
    res = ReidResults.from_feats(q_feat, g_feat, query, gallery, protocol='cuhk03')
    s = rank_stats((q_feat, g_feat), query.pid, gallery.pid, query.cam, gallery.cam, protocol='cuhk03', q_item=query.path, g_item=gallery.path)
    assert res.metrics == s.metrics()
    res.save(tmp_path/'a.npz')
    back = ReidResults.load(tmp_path/'a.npz')
    same(res, back)
    np.testing.assert_array_equal(back.stats.shares, s.shares)
    assert 0 < s.shares[s.valid].mean() < 1 and back.rules == res.rules


def test_a_protocol_needs_its_columns():
    with pytest.raises(ReidError, match="Protocol 'tracklet' needs the column tid"): ReidResults.from_feats(*world(), protocol='tracklet')
    q_feat, g_feat, query, gallery = world()
    assert ReidResults.from_feats(q_feat, g_feat, query, gallery, ties='best').metrics['mAP'] > ReidResults.from_feats(q_feat, g_feat, query, gallery).metrics['mAP']


def test_a_distance_of_ones_own(tmp_path):
    def cityblock(q, g): return np.abs(q[:, None] - g[None]).sum(2)
    res = ReidResults.from_feats(*world(), metric=cityblock)
    assert 'market, cityblock' in repr(res) and res.ranking(3, 60).dist.is_monotonic_increasing
    res.save(tmp_path/'a.npz')
    assert ReidResults.load(tmp_path/'a.npz').metric == 'cityblock'


def test_figures_are_those_of_rank_stats():
    q_feat, g_feat, query, gallery = world(both=0)
    res = ReidResults.from_feats(q_feat, g_feat, query, gallery)
    s = rank_stats((q_feat, g_feat), query.pid, gallery.pid, query.cam, gallery.cam)
    assert res.metrics == s.metrics() and res.protocol == 'market' and res.metric == 'cosine'
    assert list(res.per_query) == ['path', 'pid', 'cam', 'ap', 'inp', 'first', 'n_match', 'valid'] and len(res.per_query) == 12
    assert res.per_query.cam.dtype == 'Int64' and len(res.cmc) == 50
    assert res.worst(4).ap.is_monotonic_increasing and (res.failures()['first'] > 1).all()
    dist = ReidResults.from_dist(1 - 2 * np.eye(12, 60), query, gallery)
    assert dist.metric == 'given' and dist.g_feat is None and dist.ranking(3, 1, removed=True).row[0] == 3


def test_one_number_two_datasets():
    "Person 1 of one dataset is not person 1 of another"
    items = make_items(list('abcd'), [1, 1, 1, 2], [0, 1, 1, 1], ['query'] + ['gallery'] * 3, dset=['x', 'y', 'x', 'x'])
    query, gallery = rows_of(items, 'query'), rows_of(items, 'gallery').sort_values('path')
    res = ReidResults.from_feats([[1, 0]], [[1, 0], [1, .1], [0, 1]], query, gallery)
    assert res.ranking(0).kind.tolist() == ['wrong', 'match', 'wrong'] and res.stats.first[0] == 2


def test_one_table_for_both():
    "Each picture of a gallery asks for the others"
    q_feat, g_feat, query, gallery = world(both=0)
    gallery = gallery[gallery.pid >= 0]
    g_feat = g_feat[gallery.index]
    res = ReidResults.from_feats(g_feat, g_feat, gallery, gallery, protocol='all')
    df = res.ranking(4, 3, removed=True)
    assert df.kind[df.row == 4].tolist() == ['self'] and res.stats.n_removed.tolist() == [1] * len(gallery)


def test_tables_without_cameras():
    q_feat, g_feat, query, gallery = world()
    res = ReidResults.from_feats(q_feat, g_feat, query.drop(columns='cam'), gallery.drop(columns='cam'))
    assert res.protocol == 'all' and res.per_query.cam.isna().all() and not (res.ranking(0, 60, removed=True).kind == 'same_cam').any()


def test_shows_itself():
    res = ReidResults.from_feats(*world())
    assert 'mAP' in repr(res) and 'market, cosine' in repr(res) and '<table' in res._repr_html_() and f'{res.metrics["mAP"]:.4f}' in res._repr_html_()


def test_bad_calls():
    q_feat, g_feat, query, gallery = world()
    with pytest.raises(ReidError, match='There are 59 gallery features for 60 rows'): ReidResults.from_feats(q_feat, g_feat[1:], query, gallery)
    with pytest.raises(ReidError, match=r"query table needs .* \['pid'\] missing"): ReidResults.from_feats(q_feat, g_feat, query.drop(columns='pid'), gallery)
    with pytest.raises(ReidError, match='12 of 12 queries .* Your items have 1 camera'): ReidResults.from_feats(q_feat, g_feat, query.assign(cam=0), gallery.assign(cam=0, path='x'))
    with pytest.raises(ValueError, match='`k` must be 1 at least'): ReidResults.from_feats(q_feat, g_feat, query, gallery, topk=0)
    res = ReidResults.from_feats(q_feat, g_feat, query, gallery, topk=5, keep_feats=False)
    assert res.q_feat is None and len(res.ranking(0, 5)) == 5
    for kw in (dict(k=6), dict(source='gallery')):
        with pytest.raises(ReidError, match='Only the 5 closest items of each query were noted'): res.ranking(0, **kw)
    for i in (-1, 12):
        with pytest.raises(IndexError, match='rows 0 to 11'): res.ranking(i)
    with pytest.raises(ValueError, match='`k` must be'): res.ranking(0, 0)
    with pytest.raises(ValueError, match='`source` must be'): res.ranking(0, source='train')


def test_arrays_that_do_not_fit():
    feats, pids = (np.eye(3, 4), np.eye(4)), ([1, 2, 3], [1, 2, 3, 3])
    for kw, error, says in ((dict(q_cam=['a', 'b', 'c'], g_cam=list('abcd')), ReidError, '`cam` of the query table must hold whole numbers'),
                            (dict(q_cam=[.5, 1, 2], g_cam=[1, 2, 3, 4]), ReidError, 'whole numbers'), (dict(q_cam=[1, 2, 3]), ReidError, 'one side only')):
        with pytest.raises(error, match=says): ReidResults.from_arrays(feats, *pids, **kw)
    with pytest.raises(ReidError, match='a tuple of two'): ReidResults.from_arrays((*feats, 1), *pids)
    with pytest.raises(ReidError, match='as a tuple'): ReidResults.from_arrays(list(feats), *pids)


def test_further_columns_go_by_position():
    more = pd.DataFrame(dict(hat=[1, 2, 3], coat=[4, 5, 6]), index=[9, 2, 5])
    other = dict(hat=more.hat, coat=more.coat.sort_index()) # pandas would put their rows together by index
    for o, coat in ((more, [4, 5, 6]), (other, [5, 6, 4])):
        res = ReidResults.from_arrays(np.ones((3, 4)), [1, 2, 3], [1, 2, 3, 3], q_more=o)
        assert res.query.pid.tolist() == res.query.hat.tolist() == [1, 2, 3] and res.query.coat.tolist() == coat
    table = res.query.assign(item=0, cam=[0, 1, 2])
    assert ReidResults.from_feats(np.eye(3), np.eye(3), table, table.assign(cam=[1, 2, 0], path=list('abc'))).stats.protocol == 'market' # a column of that name is like any other


COLUMNS = dict(
    pid=np.array([1, -1, 2**60], np.int64), small=np.array([1, 2, 3], np.int8), cam=pd.array([0, None, 2**60], dtype='Int64'), ap=[.1, np.nan, 1 / 3], single=np.float32([.1, np.inf, 1 / 3]),
    yes=[True, False, True], maybe=pd.array([True, None, False], dtype='boolean'), path=pd.Series(['a', 'ü/é "x"\n', '人'], dtype='str'), text=pd.array(['a', None, ''], dtype='string'),
    mixed=pd.Series([1, 'a', None], dtype=object), split=pd.Categorical(['query', None, 'gallery'], categories=['train', 'query', 'gallery']),
    size=pd.Categorical([3, 1, 3], categories=[3, 2, 1], ordered=True), frames=[['a.jpg', 'b.jpg'], [], ['c.jpg']], box=[[1, 2.5], [3, 4], []],
    time=pd.to_datetime(['2020-01-01 12:00:00.123456', None, '1999-12-31'], format='ISO8601'),
    zone=pd.to_datetime(['2020-01-01 12:00', None, '1999-12-31 00:00']).tz_localize('Europe/Rome'), lasts=pd.to_timedelta(['1s', None, '2 days']))


@pytest.mark.parametrize('name', COLUMNS)
def test_types_come_back(name):
    df = pd.DataFrame({name: COLUMNS[name]})
    pd.testing.assert_frame_equal(table_from_json(table_to_json(df)), df, check_exact=True)


def test_tables_of_no_rows_or_another_index():
    df = pd.DataFrame(COLUMNS)
    pd.testing.assert_frame_equal(table_from_json(table_to_json(df[:0])), df[:0])
    pd.testing.assert_frame_equal(table_from_json(table_to_json(df.set_index(pd.Index([5, 6, 7])))), df)
    df = pd.DataFrame(dict(box=[np.array([1, 2]), np.array([3])])) # arrays come back as lists
    assert table_from_json(table_to_json(df)).box.tolist() == [[1, 2], [3]]
    with pytest.raises(ReidError, match="Column 'mask' can't be saved"): table_to_json(pd.DataFrame(dict(a=[1], mask=[{1}])))


@pytest.fixture
def saved(tmp_path):
    q_feat, g_feat, query, gallery = world(unknown=.2)
    res = ReidResults.from_feats(q_feat, g_feat, query.assign(hat=True), gallery)
    res.save(tmp_path/'runs/one.npz')
    return res, tmp_path/'runs/one.npz'


def same(a, b):
    for o in ('query', 'gallery', 'per_query'): pd.testing.assert_frame_equal(getattr(a, o), getattr(b, o), check_exact=True)
    assert a.metrics == b.metrics and (a.protocol, a.metric) == (b.protocol, b.metric)
    for o in ('cmc', 'n_removed'): np.testing.assert_array_equal(getattr(a.stats, o), getattr(b.stats, o))
    for kw in (dict(k=9), dict(k=9, removed=True), *([dict(k=60), dict(source='gallery')] if a.g_feat is not None else [])):
        pd.testing.assert_frame_equal(a.ranking(2, **kw), b.ranking(2, **kw))


def test_through_a_file(saved, tmp_path):
    res, path = saved
    same(res, ReidResults.load(path))
    same(ReidResults.load(path), ReidResults.load(str(path)))
    res.save(tmp_path/'no_suffix') # the name is taken as it is
    same(res, ReidResults.load(tmp_path/'no_suffix'))
    lean = ReidResults.from_feats(res.q_feat, res.g_feat, res.query, res.gallery, keep_feats=False)
    lean.save(tmp_path/'lean.npz')
    same(lean, ReidResults.load(tmp_path/'lean.npz'))
    assert (tmp_path/'lean.npz').stat().st_size < path.stat().st_size and ReidResults.load(tmp_path/'lean.npz').g_feat is None


def test_a_file_holds_no_pickle(saved):
    with np.load(saved[1], allow_pickle=False) as z: assert {o.dtype.kind for o in z.values()} <= set('uifb')


class Bomb: # what a pickle can do to its reader
    def __init__(self, path): self.path = path
    def __reduce__(self): return open, (str(self.path), 'w')


def test_loading_runs_no_code(saved, tmp_path):
    with np.load(saved[1]) as z: d = dict(z)
    np.savez(saved[1], **d, extra=np.array([Bomb(tmp_path/'boom')], object))
    with pytest.raises(ReidError, match='is not a whole results file'): ReidResults.load(saved[1])
    assert not (tmp_path/'boom').exists()


def test_a_failing_save_leaves_the_old_file(saved, monkeypatch):
    res, path = saved
    old = path.read_bytes()
    with pytest.raises(ReidError, match="Column 'x' can't be saved"):
        ReidResults(res.query.assign(x=[{1}] * 12), res.gallery, res.stats, res.near, res.metric).save(path)
    def half(f, **arrays): f.write(b'half a file'); raise OSError('disk full')
    monkeypatch.setattr(np, 'savez', half)
    with pytest.raises(OSError, match='disk full'): res.save(path)
    assert path.read_bytes() == old and [o.name for o in path.parent.iterdir()] == ['one.npz']


def rewrite(path, **change): # the same file with another header
    with np.load(path) as z: d = dict(z)
    head = {**json.loads(d['head'].tobytes()), **change}
    np.savez(path, **{**d, 'head': np.frombuffer(json.dumps(head).encode(), np.uint8)})


@pytest.mark.parametrize('change', [dict(version=1), dict(format='other'), dict(version=None)])
def test_another_format_is_refused(saved, change):
    rewrite(saved[1], **change)
    with pytest.raises(ReidError, match=f'this reid_nb reads .*{FORMAT["format"]}'): ReidResults.load(saved[1])


def test_what_is_no_results_file(saved, tmp_path):
    path = saved[1]
    with pytest.raises(FileNotFoundError, match='There is no results file'): ReidResults.load(tmp_path/'none.npz')
    (tmp_path/'text.npz').write_text('rank1 0.9')
    np.save(tmp_path/'array.npy', np.ones(3))
    np.savez(tmp_path/'other.npz', x=np.ones(3))
    for o in ('text.npz', 'array.npy', 'other.npz', ''):
        with pytest.raises(ReidError, match='is not a whole results file'): ReidResults.load(tmp_path/o)
    with np.load(path) as z: d = dict(z)
    for o in d.keys() - {'q_feat', 'g_feat'}:
        np.savez(path, **{k: v for k, v in d.items() if k != o})
        with pytest.raises(ReidError, match='is not a whole results file'): ReidResults.load(path)


def test_damage_is_noticed(saved, tmp_path):
    "Every cut, and every change of a byte that matters, ends in a ReidError"
    res, path = saved
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    for n in rng.integers(0, len(whole), 20):
        path.write_bytes(whole[:n])
        with pytest.raises(ReidError): ReidResults.load(path)
    for n in rng.integers(0, len(whole), 150):
        path.write_bytes(whole[:n] + bytes([whole[n] ^ 0xff]) + whole[n + 1:])
        try: same(res, ReidResults.load(path)) # a time stamp, say
        except ReidError: pass
