"The benchmark of extraction runs and prints its tables, also where a package is missing; no time is asserted"
import importlib.util
import json
import sys

import pytest
from conftest import ROOT, run_python

BENCH = ROOT/'tests/bench/extraction.py'


@pytest.fixture(scope='module')
def bench():
    spec = importlib.util.spec_from_file_location('extraction', BENCH)
    spec.loader.exec_module(mod := importlib.util.module_from_spec(spec))
    sys.path.remove(str(BENCH.parent))
    return mod


def test_a_small_run_prints_its_table(tmp_path):
    out = run_python(BENCH, '--bs', '2', '--n', '3', '--repeat', '1', '--ways', 'as it is', 'fold', '--json', tmp_path/'f.json', cwd=tmp_path)
    for o in ('forward: as it is', 'forward: fold', 'files: fold'): assert o in out
    [run] = json.loads((tmp_path/'f.json').read_text())['runs']
    assert run['forward']['fold']['error'] < 1e-11 and run['files']['fold']['cpu_ms'] > 0


def test_targets_count_only_what_is_exact(bench):
    row = dict(cpu_ms=10., wall_ms=10., start_s=1., error=1e-13)
    run = dict(model='osnet_x1_0', same=1e-13, forward={'Torchreid': row | dict(cpu_ms=100.), 'fold': row, 'onnx': row | dict(cpu_ms=5., error=1e-3), 'openvino': dict(note='openvino is not installed')})
    got = {what.split(': ')[1] if ': ' in what else what: (reached, met) for what, _, reached, met in bench.targets(run, 64)}
    assert got['fold, CPU (wall)'] == ('10.0 (1.0)', True) and len(got) == 2


def test_what_is_no_checkout_is_refused(tmp_path):
    with pytest.raises(pytest.fail.Exception, match='is no checkout of it'): run_python(BENCH, '--torchreid', str(tmp_path), cwd=tmp_path)
