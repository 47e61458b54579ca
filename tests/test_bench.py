"The benchmark of scoring runs, prints its tables, and its referee is right; no time is asserted"
import importlib.util
import json

import numpy as np
import pytest
from conftest import ROOT, run_python

BENCH = ROOT/'tests/bench/evaluation.py'


@pytest.fixture(scope='module')
def bench():
    spec = importlib.util.spec_from_file_location('evaluation', BENCH)
    spec.loader.exec_module(mod := importlib.util.module_from_spec(spec))
    return mod


def test_the_referee_of_a_list_written_by_hand(bench):
    # the query's camera is 0; distance, identity and camera of six items: removed, wrong, match, wrong, match, wrong
    dist, pid, cam = np.array([[.1, .2, .2, .3, .3, .3]], np.float32), np.array([1, 2, 1, 3, 1, 4]), np.array([0, 0, 1, 0, 1, 0])
    want = dict(first=(1/2 + 2/4) / 2, worst=(1/2 + 2/5) / 2, best=(1/1 + 2/3) / 2) # ranks of the two matches: 2 and 4, 2 and 5, 1 and 3
    for ties, ap in want.items(): assert bench.referee(dist, np.array([1]), pid, np.array([0]), cam, ties) == pytest.approx([ap], abs=1e-15)
    assert np.isnan(bench.referee(dist, np.array([9]), pid, np.array([0]), cam)).all()
    assert bench.apart(np.array([.5, np.nan]), np.array([.5, np.nan])) == 0
    assert bench.apart(np.array([.5, np.nan]), np.array([.5, .5])) == np.inf


def test_the_clusters_are_those_of_the_seed_and_of_length_one(bench, tmp_path):
    size, seen = bench.Size(50, 400, 20, 3, 100), []
    for name in 'ab':
        (tmp_path/name).mkdir()
        bench.make_data(tmp_path/name, size, 128, chunk=64)
        seen.append(bench.load_data(tmp_path/name))
    (q, g), (q2, g2) = seen
    assert all((a == b).all() for a, b in zip([*q, *g], [*q2, *g2]))
    assert q.feat.shape == (50, 128) and g.feat.shape == (400, 128) and g.feat.dtype == np.float32 and (g.pid == 0).sum() == 100
    assert np.linalg.norm(g.feat, axis=1) == pytest.approx(np.ones(400), abs=1e-5)
    near = np.argmax(q.feat @ g.feat.T, axis=1)
    assert (g.pid[near] == q.pid).mean() > .7 # identities form clusters


def test_a_failed_method_is_a_line_of_the_table(bench, capsys):
    run = dict(wall=2., cpu=4., extra=1e6, peak=2e6)
    rows = {('whole', 'reid_nb'): [run, run | dict(wall=1., cpu=3.)], ('whole', 'Torchreid'): [run | dict(cpu=35.)],
            ('whole', 'fast-reid'): [dict(error='MemoryError', took=12.3)]}
    bench.print_table(rows)
    ours, peer, failed = capsys.readouterr().out.splitlines()[1:]
    assert '1.500' in ours and '10.0' in peer and 'MemoryError after 12 s' in failed
    assert bench.ratio(rows, 'whole', 'fast-reid', 'cpu') is None
    assert bench.worst_ratio(rows, 'whole', ['Torchreid', 'fast-reid'], 'cpu') == pytest.approx((10, 35 / 3))


def test_what_is_no_checkout_is_refused(bench, tmp_path):
    with pytest.raises(SystemExit, match='no checkout of it: there is no .*rank_cy.pyx'):
        bench.build_peer('torchreid', tmp_path, tmp_path/'out')


@pytest.mark.parametrize('error', [MemoryError('Unable to allocate 14 GiB'), RuntimeError("can't allocate memory")], ids=['numpy', 'torch'])
def test_too_little_memory_is_a_result_and_another_error_is_not(bench, error, monkeypatch, capsys):
    def fail(o): raise o
    monkeypatch.setattr(bench, 'measure', lambda *_: fail(error))
    bench.child('whole', 'fast-reid', '.')
    assert json.loads(capsys.readouterr().out)['error'].startswith('MemoryError')
    monkeypatch.setattr(bench, 'measure', lambda *_: fail(RuntimeError('shapes differ')))
    with pytest.raises(RuntimeError, match='shapes'): bench.child('whole', 'fast-reid', '.')


def test_a_small_run_prints_its_tables_and_is_exact(tmp_path):
    out = run_python(BENCH, '--size', 'small', '--dim', '64', '--repeat', '1', '--json', tmp_path/'figures.json', cwd=tmp_path)
    for o in ('the product alone, in tiles  oneDNN', 'the matrix of distances      reid_nb', 'scoring a given matrix       reid_nb',
              'features to all metrics      reid_nb', 'x the floor', 'first call in a fresh process', 'wanted'): assert o in out
    figures = json.loads((tmp_path/'figures.json').read_text())
    runs = {(o['step'], o['method']): o['runs'] for o in figures['runs']}
    assert not [o for o in runs.values() if 'error' in o[0]], runs
    assert all(o[0]['wall'] > 0 and o[0]['extra'] >= 0 for (step, _), o in runs.items() if step not in ('exact', 'first'))
    exact = {k: v for k, v in runs['exact', ''][0].items() if k.startswith('ties')}
    assert len(exact) >= 2 and max(exact.values()) <= 1e-12
    assert runs['scoring', 'reid_nb'][0]['mAP'] == pytest.approx(runs['whole', 'reid_nb'][0]['mAP'], abs=1e-6)
    met = {what: ok for what, _, _, ok in figures['targets']}
    assert met['small d=64: AP, difference to the referee'] and met['small d=64: mAP, difference to Torchreid, same matrix'] is None
