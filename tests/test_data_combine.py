"Combined tables, plans and hidden labels, on random tables without files"
import itertools
import warnings

import numpy as np
import pandas as pd
import pytest

from reid_nb.core import ReidError, as_items, check_items, make_items, rows_of
from reid_nb.data.combine import Plan, combine, combineall, cross_dataset, leave_one_out, unlabelled, use_val
from reid_nb.data.datasets import split_by_pid


def table(name, seed=0, n=120, n_ids=12, cams=(0, 1, 2), val=False):
    rng = np.random.default_rng([seed, len(name)])
    pid, cam = rng.integers(1, n_ids, n), rng.choice(cams, n)
    items = make_items([f'{name}/{i:03}.jpg' for i in range(n)], pid, cam, dset=name, colour=rng.choice(['red', 'blue'], n))
    with warnings.catch_warnings(action='ignore'): items = split_by_pid(items, seed=seed)
    extra = make_items([f'{name}/z{i}.jpg' for i in range(3)], [-1, 0, 0], int(cams[0]), 'gallery', name)
    items = as_items(pd.concat([items, extra]))
    if val: items['split'] = items.split.astype(str).where((items.split != 'train') | (np.arange(len(items)) % 4 > 0), 'val')
    return as_items(items)


@pytest.fixture
def abc(): return {o: table(o, i, cams=c) for i, (o, c) in enumerate(dict(a=(0, 1, 2), bb=(3, 7), ccc=(0, 5)).items())}


def people(items): return set(zip(items.dset.astype(str), items.pid))


@pytest.mark.parametrize('test', ['first', 'all', 'none', ['bb'], ['a', 'ccc']])
def test_everything_is_kept_apart(abc, test):
    out = combine(*abc.values(), test=test)
    kept = dict(first=['a'], all=list(abc), none=[]).get(test) if isinstance(test, str) else test
    want = pd.concat([o[(o.split == 'train') | (n in kept)] for n, o in abc.items()])
    assert sorted(out.path) == sorted(want.path)
    at = out.set_index('path')
    for r in want.itertuples():
        o = at.loc[r.path]
        assert (o.own_pid, o.own_cam, o.dset, o.split) == (r.pid, r.cam, r.dset, r.split)
        assert (o.pid == -1) == (r.pid == -1) and (pd.isna(o.colour) if r.pid <= 0 else o.colour == r.colour)
    real = out[out.pid != -1]
    assert real.groupby('pid').dset.nunique().max() == 1 and out.groupby('cam').dset.nunique().max() == 1
    assert len(set(real.pid)) == len(people(real)) and out.cam.nunique() == len(set(zip(out.dset.astype(str), out.own_cam)))
    assert (at.pid[at.dset == 'a'] == at.own_pid[at.dset == 'a']).all()
    if kept: check_items(out, paths='none')


def test_order_of_combining(abc):
    a, b, c = abc.values()
    one, two = combine(a, b, c, test='all'), combine(combine(a, b, test='all'), c, test='all')
    assert one[['path', 'own_pid', 'own_cam']].equals(two[['path', 'own_pid', 'own_cam']])
    same = lambda o: [set(v) for _, v in sorted(o[o.pid >= 0].groupby('pid').path, key=lambda kv: min(kv[1]))]
    assert same(one) == same(two)
    assert combine(dict(x=a, y=b)).dset.cat.categories.tolist() == ['x', 'y']


def test_unknown_cameras_stay_unknown(abc):
    out = combine(abc['a'].assign(cam=None), abc['bb'], abc['ccc'])
    assert out.cam[out.dset == 'a'].isna().all() and sorted(set(out.cam.dropna())) == [3, 7, 8, 13]


def test_faults(abc):
    a = abc['a']
    with pytest.raises(ReidError, match="called 'a'"): combine(a, a)
    with pytest.raises(ReidError, match="called 'a'"): combine(a, combine(a.assign(dset='a'), abc['bb']))
    with pytest.raises(ReidError, match='pictures are in two datasets, first a/'): combine(a, a.assign(dset='z'))
    with pytest.raises(ReidError, match='names among'): combine(a, test='bb')
    with pytest.raises(ReidError, match='names among'): combine(a, test=['bb'])
    with pytest.raises(ReidError, match='no table'): combine()
    with pytest.raises(ReidError, match='no table'): combine([])
    with pytest.raises(ReidError, match='no table'): unlabelled()
    with pytest.warns(UserWarning, match='Nothing is left of bb: '): assert set(combine(a, rows_of(abc['bb'], 'gallery')).dset) == {'a'}
    with warnings.catch_warnings(action='error'): assert set(combine(a, rows_of(abc['bb'], 'gallery'), test='all').dset) == {'a', 'bb'}
    assert combine(list(abc.values())).equals(combine(*abc.values()))
    with pytest.warns(UserWarning, match='prid and prid2011 come from the same'): combine(a.assign(dset='prid'), abc['bb'].assign(dset='prid2011'))
    with warnings.catch_warnings(action='error'): combine(a.assign(dset='prid'), abc['bb'].assign(dset='mars'))


def test_combineall(abc):
    a = table('a', val=True)
    out = combineall(a)
    assert set(out.split) == {'train'} and set(out.path) == set(a.path[a.pid > 0])
    assert out.was.value_counts().to_dict() == a[a.pid > 0].split.astype(str).value_counts().to_dict()
    assert (combineall(a, drop=()).pid == 0).sum() == 2 and set(combineall(a, drop=(0, 5)).pid) == set(a.pid) - {-1, 0, 5}
    real = a[a.pid > 0].assign(pid=lambda o: o.pid - 1) # here 0 is a person like all others
    assert set(combineall(real).pid) == set(real.pid) and 0 in set(real.pid)
    with pytest.warns(UserWarning, match='figures on them say nothing'): leak = combineall(a, keep_test=True)
    assert len(rows_of(leak, 'query', 'gallery')) == len(rows_of(a, 'query', 'gallery'))
    with pytest.raises(ReidError, match='are in train and in query'): check_items(leak, paths='none')
    asks_in_both = as_items(pd.concat([a, rows_of(a, 'query').assign(split='gallery')])) # a query that stands in the gallery, too
    assert len(combineall(asks_in_both)) == len(out)


def test_two_datasets_with_a_zero():
    a, b = table('a'), table('bb').query('pid > 0')
    b = b.assign(pid=b.pid - 1)
    both = as_items(pd.concat([a, b]))
    out = combineall(both)
    assert ('a', 0) not in people(out) and ('bb', 0) in people(out)


def test_combineall_of_combined_tables(abc): # a crowd's 0 is another number then
    want = combine({n: combineall(o) for n, o in abc.items()})
    out = combineall(combine(*abc.values(), test='all'))
    assert set(out.path) == set(want.path) and out.pid.nunique() == want.pid.nunique()


def test_val():
    a = table('a', val=True)
    out = use_val(a)
    assert (a.split == 'val').any() and not (out.split == 'val').any()
    assert set(rows_of(out, 'train').path) == set(rows_of(a, 'train', 'val').path) and rows_of(out, 'query').equals(rows_of(a, 'query'))


def test_unlabelled_tells_nothing(abc):
    out = unlabelled(abc['a'], abc['bb'])
    assert list(out) == ['path', 'pid', 'cam', 'split', 'dset'] and set(out.pid) == {-1} and set(out.split) == {'train'}
    assert set(out.path) == {p for o in ('a', 'bb') for p in rows_of(abc[o], 'train').path}
    truth = unlabelled(abc['a'], keep_truth=True).set_index('path').true_pid
    assert (truth == rows_of(abc['a'], 'train').set_index('path').pid).all()
    assert 'frames' in unlabelled(abc['a'].assign(frames=[[o] for o in abc['a'].path]))


def test_cross_dataset(abc):
    plan = cross_dataset([abc['a'], abc['bb']], [abc['ccc'], abc['bb']])
    assert plan.name == 'a+bb → ccc, bb' and plan.unlabelled is None and list(plan.tests) == ['ccc', 'bb']
    assert set(plan.train.split) == {'train'} and set(plan.train.dset) == {'a', 'bb'}
    for n in plan.tests:
        assert plan.tests[n][['path', 'pid', 'cam']].equals(rows_of(abc[n], 'query', 'gallery')[['path', 'pid', 'cam']]) # as they were
    items = check_items(plan.items('bb'), paths='none')
    assert set(items.dset[items.split != 'train']) == {'bb'}
    assert plan.items().equals(plan.items('ccc'))
    stats = plan.stats()
    assert stats.loc[('train', 'a'), 'images'] == (abc['a'].split == 'train').sum() and stats.loc[('test: gallery', 'bb'), 'images'] == (abc['bb'].split == 'gallery').sum()
    with pytest.raises(ReidError, match="no test 'a'"): plan.items('a')
    assert list(cross_dataset(abc).tests) == list(abc)


def test_adapting(abc):
    plan = cross_dataset([abc['a']], [abc['bb'], abc['ccc']], adapt=True)
    assert set(plan.unlabelled.dset) == {'bb', 'ccc'} and set(plan.unlabelled.pid) == {-1}
    assert not set(plan.unlabelled.path) & {p for o in plan.tests.values() for p in o.path}
    assert plan.stats().loc[('unlabelled', 'bb'), 'ids'] == 0
    with pytest.raises(ReidError, match='a is a source and a target'): cross_dataset([abc['a']], [abc['a']], adapt=True)
    with pytest.raises(ReidError, match="can't be tested on"): cross_dataset([abc['a']], [rows_of(abc['bb'], 'train', 'query')])
    with pytest.raises(ReidError, match='no training rows'): cross_dataset([rows_of(abc['a'], 'query', 'gallery')], [abc['bb']])
    with pytest.warns(UserWarning, match='test people may have been trained on'): cross_dataset(dict(mars=abc['a']), dict(market1501=abc['bb']))


def test_leave_one_out(abc):
    plans = leave_one_out(abc, adapt=True)
    assert [list(o.tests) for o in plans] == [['a'], ['bb'], ['ccc']]
    for o in plans:
        assert isinstance(o, Plan) and set(o.train.dset) == set(abc) - set(o.tests) and set(o.unlabelled.dset) == set(o.tests)
        check_items(o.items(), paths='none')
    for x, y in itertools.combinations(plans, 2): assert x.name != y.name
    with pytest.raises(ReidError, match='two datasets at least'): leave_one_out([abc['a']])


def test_names_and_other_things_are_no_tables():
    for bad in ('market1501', 3, None):
        with pytest.raises(ReidError, match=r'An item table is needed, not .*`read_dataset\(name, root\)`'): combine(bad, bad)
        with pytest.raises(ReidError, match='An item table is needed'): combine({'a': bad})
