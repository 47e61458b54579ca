"""How fast and how large re-ranking is, and what it gains, beside Torchreid's

    python tests/bench/reranking.py                     # a small set, a second or two
    python tests/bench/reranking.py --size market msmt --torchreid PATH --repeat 3

PATH is a checkout of Torchreid, of which two files are loaded: its k-reciprocal re-ranking, and the distances that this is given. It needs some 25 bytes per pair of items, and is left
out where there is less memory than that. Every measurement follows a small warm-up in a process of its own; methods take turns.
extra: the highest memory during the step, the result included, less the memory before it (the features).
Linux only. Other processes distort even the CPU time: run it on an idle machine, and trust ratios of one run.
"""
import argparse, importlib.util, json, os, platform, signal, statistics, subprocess, sys, tempfile, time
from pathlib import Path

import numpy as np

from evaluation import SIZES, limit_memory, load_data, make_data, size_of

METRIC = 'sqeuclidean' # what Torchreid calls euclidean

# ---- methods: from two arrays of features to what `rank_stats` takes

def room(): # ours
    from reid_nb.retrieve import expand, rerank
    def dense(q, g):
        from reid_nb.retrieve.distance import pairwise
        return rerank.k_reciprocal_dense(*(pairwise(a, b, METRIC) for a, b in ((q, g), (q, q), (g, g))), convention='torchreid')
    def both(q, g): return expand.expand_queries(q, g := expand.augment_gallery(g)), g
    return {'k-reciprocal': lambda q, g: rerank.k_reciprocal(q, g, metric=METRIC, convention='torchreid'), 'k-reciprocal, paper': rerank.k_reciprocal, 'k-reciprocal, dense': dense,
            'graph': lambda q, g: expand.graph_rerank(q, g, lambda_value=.1), 'queries expanded': lambda q, g: (expand.expand_queries(q, g), g),
            'gallery augmented': lambda q, g: (q, expand.augment_gallery(g)), 'both': both, 'by distance': lambda q, g: (q, g)}

def load_peer(checkout): # Torchreid's functions, without the package around them
    def load(file):
        spec = importlib.util.spec_from_file_location(Path(file).stem, Path(checkout) / file)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module
    return load('torchreid/metrics/distance.py').compute_distance_matrix, load('torchreid/utils/rerank.py').re_ranking

def peer_dists(distances, q, g): # the three matrices, as Torchreid's engine makes them
    import torch
    q, g = torch.from_numpy(q), torch.from_numpy(g)
    return [distances(a, b, metric='euclidean').numpy() for a, b in ((q, g), (q, q), (g, g))]

def method(name, checkout):
    if name != 'Torchreid': return room()[name]
    distances, re_ranking = load_peer(checkout)
    return lambda q, g: re_ranking(*peer_dists(distances, q, g))

# ---- a measuring process

def measure(name, folder, checkout):
    "Run a method once, after a warm-up on a corner of the data; the result is scored afterwards"
    q, g = load_data(folder)
    limit_memory()
    call = method(name, checkout)
    call(q.feat[:64], g.feat[:2048])
    Path('/proc/self/clear_refs').write_text('5') # the peak starts anew from here
    before, cpu, wall = size_of('VmRSS'), time.process_time(), time.perf_counter()
    out = call(q.feat, g.feat)
    wall, cpu, extra = time.perf_counter() - wall, time.process_time() - cpu, size_of('VmHWM') - before
    return dict(wall=wall, cpu=cpu, extra=extra, peak=size_of('VmHWM')) | score(out, q, g)

def score(out, q, g):
    from reid_nb.retrieve.rank import rank_stats
    s = rank_stats(out, q.pid, g.pid, q.cam, g.cam)
    return dict(mAP=s.mAP, rank1=s.rank1)

def agreement(folder, checkout):
    "Give Torchreid and us the same matrices, and compare the results bit by bit; then ours from features"
    from reid_nb.retrieve.rerank import k_reciprocal, k_reciprocal_dist
    q, g = load_data(folder)
    distances, re_ranking = load_peer(checkout)
    three = peer_dists(distances, q.feat, g.feat)
    ours, theirs = k_reciprocal_dist(*three, convention='torchreid'), re_ranking(*three)
    del three
    feats, out = k_reciprocal(q.feat, g.feat, metric=METRIC, convention='torchreid'), {}
    for kind, x in (('same matrices', ours), ('features', feats)):
        diff = np.abs(x - theirs)
        out[kind] = dict(equal=float((diff == 0).mean()), rows=int((diff > 1e-4).any(1).sum()), most=float(diff.max()), mAP=score(x, q, g)['mAP'] - score(theirs, q, g)['mAP'])
    return out

def child(name, folder, checkout):
    try: out = agreement(Path(folder), checkout) if name == 'agreement' else measure(name, Path(folder), checkout)
    except MemoryError as e: out = dict(error=f'MemoryError: {e}'[:120])
    print('\n' + json.dumps(out))

def spawn(name, folder, checkout): # its dict, which has the key 'error' where it failed
    path = os.pathsep.join([str(Path(__file__).resolve().parents[2]), os.environ.get('PYTHONPATH', '')])
    env = dict(os.environ, PYTHONPATH=path, PYTHONWARNINGS='ignore')
    env.setdefault('GOMP_SPINCOUNT', '10000') # threads that wait by spinning would count as CPU time
    res = subprocess.run([sys.executable, __file__, '--child', name, str(folder), str(checkout)], env=env, capture_output=True, text=True)
    if res.returncode == -signal.SIGKILL: return dict(error='killed: the machine ran out of memory')
    if res.returncode: return dict(error=(res.stderr.strip().splitlines() or ['it ended without a word'])[-1][:120])
    return json.loads(res.stdout.strip().splitlines()[-1])

# ---- a run

def names(size, args): # what is measured
    n = size.n_q + size.n_g
    out = ['by distance', 'k-reciprocal'] + (['Torchreid'] if args.torchreid else [])
    if args.only_k: return out
    return out + ['k-reciprocal, paper'] + (['k-reciprocal, dense'] if n <= 5000 else []) + ['graph', 'queries expanded', 'gallery augmented', 'both']

def mid(runs, what): return statistics.median(o[what] for o in runs if 'error' not in o)

def show(rows, n_bytes):
    print(f'{"":22}{"wall s":>9}{"CPU s":>9}{"extra MB":>10}{"peak MB":>9}{"wall x":>8}{"CPU x":>8}{"mAP":>9}{"rank-1":>8}')
    for name, runs in rows.items():
        if all('error' in o for o in runs): print(f'{name:22}{runs[-1]["error"]}'); continue
        cells = f'{mid(runs, "wall"):9.2f}{mid(runs, "cpu"):9.2f}{mid(runs, "extra") / 1e6:10.0f}{mid(runs, "peak") / 1e6:9.0f}'
        ours = rows['k-reciprocal']
        times = [f'{mid(runs, o) / mid(ours, o):8.1f}' if name == 'Torchreid' and 'error' not in ours[0] else ' ' * 8 for o in ('wall', 'cpu')]
        print(f'{name:22}{cells}{times[0]}{times[1]}{mid(runs, "mAP"):9.5f}{mid(runs, "rank1"):8.4f}')
    print(f'(the result alone: {n_bytes / 1e6:.0f} MB)')

def run(name, d, args, folder):
    size = SIZES[name]
    n, checkout = size.n_q + size.n_g, Path(args.torchreid).resolve() if args.torchreid else None
    make_data(folder, size, d)
    print(f'\n{name}: {size.n_q} x {size.n_g}, d = {d}; one matrix of all items by all items: {4 * n**2 / 1e9:.2f} GB')
    methods, fits = names(size, args), size_of('MemAvailable', '/proc/meminfo') > 25 * n**2 + 1e9
    rows = {o: [] for o in methods}
    for _ in range(args.repeat):
        for o in methods:
            if o == 'Torchreid' and not fits: rows[o].append(dict(error=f'left out: it needs some {25 * n**2 / 1e9:.0f} GB'))
            else: rows[o].append(spawn(o, folder, checkout))
    show(rows, 4 * size.n_q * size.n_g)
    if checkout and fits:
        for kind, o in spawn('agreement', folder, checkout).items():
            print(f'{kind}:', o if isinstance(o, str) else f'{o["equal"]:.2%} of the entries equal to the last bit, {o["rows"]} of {size.n_q} queries differ by more than 1e-4, '
                  f'largest difference {o["most"]:.1e}, mAP {o["mAP"]:+.1e}')
    return rows

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--size', nargs='+', choices=SIZES, default=['small'])
    p.add_argument('--dim', nargs='+', type=int, default=[512])
    p.add_argument('--torchreid', help='a checkout')
    p.add_argument('--repeat', type=int, default=1)
    p.add_argument('--only-k', action='store_true', help='k-reciprocal encoding alone, ours and the peer\'s')
    p.add_argument('--json', help='a file for the figures')
    p.add_argument('--child', nargs=3, help=argparse.SUPPRESS)
    args = p.parse_args()
    if args.child: return child(*args.child)
    print(f'Python {platform.python_version()}, numpy {np.__version__}, {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}')
    rows = {}
    for name in args.size:
        for d in args.dim:
            with tempfile.TemporaryDirectory() as folder: rows[f'{name} {d}'] = run(name, d, args, Path(folder))
    if args.json: Path(args.json).write_text(json.dumps(rows, indent=1))

if __name__ == '__main__': main()
