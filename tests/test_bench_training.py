"The benchmark of training runs and prints its tables; no time is asserted"
import importlib.util
import json

import pytest
from conftest import ROOT, run_python

BENCH = ROOT/'tests/bench/training.py'


@pytest.fixture(scope='module')
def bench():
    spec = importlib.util.spec_from_file_location('training', BENCH)
    spec.loader.exec_module(mod := importlib.util.module_from_spec(spec))
    return mod


def test_a_small_run_prints_its_table(tmp_path):
    out = run_python(BENCH, '--model', 'osnet_x0_25', '--map-size', '32', '16', '--map-ids', '4', '--map-epochs', '2', '--batches', '0', '--seeds', '1', '--bs', '8', '--json', tmp_path/'f.json', cwd=tmp_path)
    assert 'mAP: osnet_x0_25, 2 epochs of 5 batches of 8 pictures of 32x16, 2 people, 1 seeds' in out
    [run] = json.loads((tmp_path/'f.json').read_text())['runs']['mAP']['ours']
    assert len(run['cpu_s']) == 2 and 0 < run['mAP'] <= 1


def test_ratios_leave_out_the_first_epoch_and_seeds_have_an_error(bench):
    def run(s, mAP): return dict(cpu_s=[99., s, s], wall_s=[99., s, s], mAP=mAP)
    runs = dict(Torchreid=[run(4., .5), run(6., .6)], ours=[run(1., .51), run(2., .57)])
    assert bench.ratios(runs, 'cpu_s') == [4., 3.]
    [(_, _, cpu, met), (_, wanted, _, _)] = bench.time_lines(runs, 'osnet_x1_0', 64)
    assert (cpu, met, wanted) == ('3.50 [3.00, 4.00]', True, '>= 2 x')
    assert bench.mAP_line(runs)[2:] == ('-0.0100 ± 0.0200', True)
    assert not bench.mAP_line(dict(Torchreid=[run(1., .5)], ours=[run(1., .49)]))[3]


def test_what_is_no_checkout_is_refused(tmp_path):
    with pytest.raises(pytest.fail.Exception, match='is no checkout of it'): run_python(BENCH, '--torchreid', str(tmp_path), cwd=tmp_path)
