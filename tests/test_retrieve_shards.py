"Two and three processes that each hold a part of the gallery, against one that holds it all"
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip('torch')
ROOT = Path(__file__).resolve().parent.parent

PROGRAM = '''
import json, sys, numpy as np, torch.distributed as dist
from reid_nb.core import ReidError
from reid_nb.retrieve.rank import rank_stats
from reid_nb.retrieve.shards import TorchGroup

rank, size, cases = int(sys.argv[1]), int(sys.argv[2]), json.load(open('cases.json'))
dist.init_process_group('gloo', init_method='file://' + sys.argv[3], rank=rank, world_size=size)
group, d, out = TorchGroup(), dict(np.load('data.npz')), {}
part = np.split(np.arange(len(d['g_pid'])), [7, 300][:size - 1])[rank] # unequal parts; the first is small
more = dict(q_more=dict(tid=d['q_tid']), g_more=dict(tid=d['g_tid'][part]))

def score(dist_or_feats, q_pid=d['q_pid'], **kw):
    return rank_stats(dist_or_feats, q_pid, d['g_pid'][part], d['q_cam'], d['g_cam'][part], group=group, **more, **kw)

for i, (kind, kw) in enumerate(cases):
    s = score((d['q_feat'], d['g_feat'][part]) if kind == 'features' else d[kind][:, part], **kw)
    out.update({f'{o}_{i}': getattr(s, o) for o in ('ap', 'inp', 'first', 'cmc', 'n_removed', 'n_match')})
feats, words = (d['q_feat'], d['g_feat'][part]), []
nan = d['coarse'][:, part].copy()
if rank == size - 1: nan[3, 0] = np.nan # in one process only: all must say so
for f in (lambda: score(feats, q_pid=d['q_pid'] + rank), lambda: score(feats, protocol=['market', 'all', 'all'][rank]), lambda: score(nan), lambda: score(feats, protocol='cuhk03'),
          lambda: score(feats, metric=['cosine', 'euclidean', 'cosine'][rank]), lambda: score(d[['coarse', 'coarse64', 'coarse'][rank]][:, part]),
          lambda: score(feats if rank else (feats[0], feats[1] * np.nan))): # the first can't, and the others must not wait for it
    try: f()
    except (ReidError, ValueError) as e: words.append(str(e))
np.savez(f'out{rank}.npz', words=words, **out)
dist.destroy_process_group()
'''
CASES = [('features', {}), ('features', dict(metric='euclidean', ties='best')), ('coarse', dict(ties='worst')), ('coarse', dict(ties='first')), ('coarse', dict(ties='best')),
         ('coarse64', dict(protocol='tracklet')), ('features', dict(protocol='all'))]


@pytest.fixture(scope='module')
def data():
    rng = np.random.default_rng(0)
    people, q_pid, g_pid = rng.normal(size=(41, 24)), rng.integers(0, 30, 60), rng.integers(-1, 40, 700)
    q_feat, g_feat = ((people[o] + 2 * rng.normal(size=(len(o), 24))).astype(np.float32) for o in (q_pid, g_pid))
    coarse = rng.integers(0, 9, (60, 700)).astype(np.float32)
    labels = {f'{side}_{o}': rng.integers(0, hi, n) for side, n in (('q', 60), ('g', 700)) for o, hi in (('cam', 3), ('tid', 40))}
    return dict(q_feat=q_feat, g_feat=g_feat, q_pid=q_pid, g_pid=g_pid, coarse=coarse, coarse64=coarse.astype(np.float64), **labels)


@pytest.mark.parametrize('size', [2, 3])
def test_equal_to_the_bit(size, data, tmp_path):
    from reid_nb.retrieve.rank import rank_stats
    np.savez(tmp_path/'data.npz', **data)
    (tmp_path/'cases.json').write_text(json.dumps(CASES))
    (tmp_path/'program.py').write_text(PROGRAM)
    env = {**os.environ, 'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1', 'NUMBA_NUM_THREADS': '1', 'GLOO_SOCKET_IFNAME': 'lo'}
    runs = [subprocess.Popen([sys.executable, 'program.py', str(r), str(size), str(tmp_path/'meet')], cwd=tmp_path, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for r in range(size)]
    for o in runs:
        _, err = o.communicate(timeout=240)
        assert not o.returncode, err
    for r in range(size):
        got = np.load(tmp_path/f'out{r}.npz')
        for i, (kind, kw) in enumerate(CASES):
            want = rank_stats((data['q_feat'], data['g_feat']) if kind == 'features' else data[kind], data['q_pid'], data['g_pid'], data['q_cam'], data['g_cam'],
                              q_more=dict(tid=data['q_tid']), g_more=dict(tid=data['g_tid']), **kw)
            for o in ('ap', 'inp', 'first', 'cmc', 'n_removed', 'n_match'): np.testing.assert_array_equal(got[f'{o}_{i}'], getattr(want, o), err_msg=f'{o} of {CASES[i]}')
        queries, rules, nan, draws, metric, dtype, gone = got['words']
        assert 'has other queries than process' in queries and 'has other rules' in rules and '1 distances are NaN, in 1 rows, first [3]' in nan and 'needs the whole gallery' in draws
        assert 'has other distances (here: metric' in metric and 'has other distances (here: metric None, float' in dtype
        assert 'Process 0 has given up' in gone if r else '7 of 7 rows of gallery features' in gone


class Alone: # a group of one, without torch
    rank, size = 0, 1
    def gather(self, x): return [x]
    def sum(self, x): return x


def test_any_two_methods_make_a_group(data):
    from reid_nb.retrieve.rank import rank_stats
    from reid_nb.retrieve.shards import Group
    args = (data['q_feat'], data['g_feat']), data['q_pid'], data['g_pid']
    group = type('One', (Alone, Group), {})()
    np.testing.assert_array_equal(rank_stats(*args, group=group).ap, rank_stats(*args).ap)
