"""How fast, how large and how exact the scoring of rankings is, beside the bare matrix product and other people's evaluators

    python tests/bench/evaluation.py            # the size of Market-1501 with 512 dimensions
    python tests/bench/evaluation.py --size market msmt market500k --dim 512 2048 --torchreid PATH --fastreid PATH --json FILE

PATH is a checkout of the peer; its Cython evaluator is built in a temporary folder (pip install cython).
Every measurement follows a small warm-up in a process of its own. The methods take turns; what takes over 20 s is measured once.
extra: the highest memory during the step, less the memory before it.
peak: the highest memory of the whole process, less features and given distances.
Linux only. Other processes distort even the CPU time: run it on an idle machine, and trust ratios of one run.
"""
import argparse, json, os, platform, resource, shutil, signal, statistics, subprocess, sys, tempfile, time
from collections import namedtuple
from importlib.metadata import version
from inspect import signature
from pathlib import Path
from unittest.mock import MagicMock

import numpy as np

Size = namedtuple('Size', 'n_q n_g n_ids n_cams n_distract')
SIZES = dict(small=Size(300, 3000, 80, 4, 500), market=Size(3368, 15913, 750, 6, 2798), msmt=Size(11659, 82161, 3060, 15, 0),
             market500k=Size(3368, 515913, 750, 6, 502798))
Side = namedtuple('Side', 'feat pid cam') # of the queries or of the gallery
TILE = 512, 8192 # queries x gallery items: 16 MB of distances
SLOW = 20        # seconds; a slower method is not repeated

# ---- data

def clusters(size, rng): # identity and camera of all rows, queries first; identity 0 are the distractors, each a person of its own
    n_cell = size.n_ids * size.n_cams # a cell is an identity before a camera
    share = np.repeat(rng.gamma(3, size=size.n_ids), size.n_cams) * rng.gamma(2, size=n_cell)
    q_cell = rng.choice(n_cell, size.n_q, replace=size.n_q > n_cell)
    cell = np.r_[q_cell, rng.choice(n_cell, size.n_g - size.n_distract, p=share / share.sum())]
    cam = np.r_[cell % size.n_cams, rng.integers(0, size.n_cams, size.n_distract)]
    return cell, np.r_[cell // size.n_cams + 1, np.zeros(size.n_distract, np.int64)], cam

def make_data(folder, size, d, seed=0, n_sub=96, chunk=16384): # writes q.npy, g.npy, labels.npz; rows of length one in `n_sub` dimensions
    "Clustered features: a centre per identity, an offset for each of its cameras, and more noise in some pictures than in others"
    rng = np.random.default_rng(seed)
    def normal(*shape): return rng.standard_normal(shape, dtype=np.float32)
    cell, pid, cam = clusters(size, rng)
    centre = np.repeat(normal(size.n_ids, n_sub), size.n_cams, axis=0) + .8 * normal(size.n_ids * size.n_cams, n_sub)
    axes, sides = normal(n_sub, d), dict(q=(0, size.n_q), g=(size.n_q, size.n_q + size.n_g))
    for name, (lo, hi) in sides.items():
        out = np.lib.format.open_memmap(folder / f'{name}.npy', 'w+', np.float32, (hi - lo, d))
        for a in range(lo, hi, chunk):
            b = min(hi, a + chunk)
            z = .72 * rng.lognormal(0, .4, (b - a, 1)).astype(np.float32) * normal(b - a, n_sub)
            n = max(0, min(b, len(cell)) - a) # the rows after these are distractors
            z[:n] += centre[cell[a:a + n]]
            z[n:] += 1.3 * normal(b - a - n, n_sub)
            x = z @ axes
            out[a - lo:b - lo] = x / np.linalg.norm(x, axis=1, keepdims=True)
    labels = {f'{k}_{name}': x[lo:hi] for name, (lo, hi) in sides.items() for k, x in (('pid', pid), ('cam', cam))}
    np.savez(folder / 'labels.npz', **labels)

def load_data(folder): # queries and gallery; the features are memory-mapped, and in memory
    labels, sides = np.load(folder / 'labels.npz'), []
    for name in 'qg':
        feat = np.load(folder / f'{name}.npy', mmap_mode='c').view(np.ndarray)
        feat[:, ::1024 // feat.itemsize].sum() # touch each page
        sides.append(Side(feat, labels[f'pid_{name}'], labels[f'cam_{name}']))
    return sides

# ---- methods: each makes a dict of what it can do; only a measuring process calls them

def figures(mAP, cmc): return dict(mAP=float(mAP), cmc=[float(o) for o in cmc])

def reid_nb(folder):
    from reid_nb.retrieve.distance import pairwise
    from reid_nb.retrieve.rank import rank_stats
    def scoring(dist, q, g):
        s = rank_stats(dist, q.pid, g.pid, q.cam, g.cam)
        sum32 = s.ap[s.valid].astype(np.float32).cumsum()[-1] # one after the other in float32, as Torchreid adds them up
        return figures(s.mAP, s.cmc) | dict(mAP32=float(sum32 / s.valid.sum()))
    return dict(distances=lambda q, g: pairwise(q.feat, g.feat), scoring=scoring, whole=lambda q, g: scoring((q.feat, g.feat), q, g))

def tiles(q, g): # slices of queries and of gallery items, the gallery outside
    for j in range(0, len(g), TILE[1]):
        for i in range(0, len(q), TILE[0]): yield q[i:i + TILE[0]], g[j:j + TILE[1]]

def numpy_product(folder):
    buf = np.empty(TILE[0] * TILE[1], np.float32)
    def product(q, g):
        for a, b in tiles(q.feat, g.feat): np.matmul(a, b.T, out=buf[:len(a) * len(b)].reshape(len(a), len(b)))
    return dict(product=product)

def torch_product(folder):
    import torch
    buf = torch.empty(TILE[0] * TILE[1])
    def product(q, g):
        for a, b in tiles(torch.from_numpy(q.feat), torch.from_numpy(g.feat)):
            torch.mm(a, b.T, out=buf[:len(a) * len(b)].view(len(a), len(b)))
    return dict(product=product)

def onednn_product(folder):
    import torch
    from torch.utils.mkldnn import to_mkldnn
    def product(q, g):
        q, g, lin = torch.from_numpy(q.feat), torch.from_numpy(g.feat), torch.nn.Linear(1, 1, bias=False)
        for j in range(0, len(g), TILE[1]):
            lin.weight = torch.nn.Parameter(g[j:j + TILE[1]], requires_grad=False)
            times_g = to_mkldnn(lin)
            for i in range(0, len(q), TILE[0]): times_g(q[i:i + TILE[0]].to_mkldnn())
    return dict(product=torch.inference_mode()(product))

def numpy_pass(folder): # looks once at as many numbers as there are distances, in tiles that stay in the cache
    buf = np.zeros(TILE, np.float32)
    return {'one pass': lambda q, g: [buf[:len(a), :len(b)].max() for a, b in tiles(q.feat, g.feat)]}

def torchreid(folder, metric='cosine'):
    import torch
    sys.path.insert(0, str(folder.parent / 'torchreid'))
    from peer.distance import compute_distance_matrix
    from rank_cy import evaluate_cy
    def distances(q, g): return compute_distance_matrix(torch.from_numpy(q.feat), torch.from_numpy(g.feat), metric).numpy()
    def scoring(dist, q, g):
        cmc, mAP = evaluate_cy(dist, q.pid, g.pid, q.cam, g.cam, 50)
        return figures(mAP, cmc)
    return dict(distances=distances, scoring=scoring, whole=lambda q, g: scoring(distances(q, g), q, g))

def torchreid_euclidean(folder): return torchreid(folder, 'euclidean')

def fastreid(folder):
    import torch
    sys.path.insert(0, str(folder.parent / 'fastreid'))
    sys.modules['faiss'] = MagicMock() # its module of distances loads faiss; the cosine distance doesn't use it
    from peer.distance import compute_cosine_distance
    from rank_cy import evaluate_cy
    def distances(q, g): return compute_cosine_distance(torch.from_numpy(q.feat), torch.from_numpy(g.feat))
    def scoring(dist, q, g):
        cmc, ap, _ = evaluate_cy(dist, q.pid, g.pid, q.cam, g.cam, 50)
        return figures(np.mean(ap), cmc)
    return dict(distances=distances, scoring=scoring, whole=lambda q, g: scoring(distances(q, g), q, g))

METHODS = {'numpy': numpy_product, 'torch.mm': torch_product, 'oneDNN': onednn_product, 'numpy max': numpy_pass, 'reid_nb': reid_nb,
           'Torchreid': torchreid, 'Torchreid euclidean': torchreid_euclidean, 'fast-reid': fastreid}
JOBS = [('product', 'numpy'), ('product', 'torch.mm'), ('product', 'oneDNN'), ('one pass', 'numpy max'),
        ('distances', 'reid_nb'), ('distances', 'Torchreid'), ('distances', 'Torchreid euclidean'), ('distances', 'fast-reid'),
        ('scoring', 'reid_nb'), ('scoring', 'Torchreid'), ('scoring', 'fast-reid'),
        ('whole', 'reid_nb'), ('whole', 'Torchreid'), ('whole', 'Torchreid euclidean'), ('whole', 'fast-reid')]
STEPS = {'product': 'the product alone, in tiles', 'one pass': 'one pass over the distances', 'distances': 'the matrix of distances',
         'scoring': 'scoring a given matrix', 'whole': 'features to all metrics'}

# ---- a measuring process

def size_of(name, file='/proc/self/status'): # bytes, out of /proc
    return next(int(o.split()[1]) * 1024 for o in Path(file).read_text().splitlines() if o.startswith(name + ':'))

def limit_memory(spare=1e9):
    "Let a request for more memory than there is raise MemoryError; if others take it meanwhile, this process is the first to go"
    top = int(size_of('VmSize') + size_of('MemAvailable', '/proc/meminfo') - spare)
    resource.setrlimit(resource.RLIMIT_AS, (top, top))
    Path('/proc/self/oom_score_adj').write_text('1000')

def measure(step, method, folder): # a dict: seconds, bytes, and what `figures` tells
    "Run one step of one method once, after a warm-up on a corner of the data"
    q, g = load_data(folder)
    limit_memory()
    call, args, given = METHODS[method](folder)[step], (q, g), q.feat.nbytes + g.feat.nbytes
    small = tuple(Side(*(o[:n] for o in x)) for x, n in ((q, 64), (g, 2048)))
    if step == 'scoring':
        pairwise = reid_nb(folder)['distances']
        call(pairwise(*small), *small)
        args = pairwise(q, g), q, g
        given += args[0].nbytes
    else: call(*small)
    Path('/proc/self/clear_refs').write_text('5') # the peak starts anew from here
    before, cpu, wall = size_of('VmRSS'), time.process_time(), time.perf_counter()
    out = call(*args)
    wall, cpu, peak = time.perf_counter() - wall, time.process_time() - cpu, size_of('VmHWM')
    return dict(wall=wall, cpu=cpu, extra=max(0, peak - before), peak=max(0, peak - given), **(out if isinstance(out, dict) else {}))

def first_call(folder): # seconds of a fresh process, which has loaded numpy only
    q, g = (Side(*(o[:2048] for o in x)) for x in load_data(folder))
    args = (q.feat, g.feat), q.pid, g.pid, q.cam, g.cam
    at, cpu = [time.perf_counter()], []
    def lap():
        at.append(time.perf_counter())
        cpu.append(time.process_time())
    import numba; lap()
    from reid_nb.retrieve.rank import rank_stats; lap()
    rank_stats(*args); lap()
    rank_stats(*args); lap()
    return dict(zip(('numba', 'room', 'call', 'again'), np.diff(at).tolist()), cpu=cpu[2] - cpu[0])

def referee(dist, q_pid, g_pid, q_cam, g_cam, ties='first'): # (n_q,) AP, nan where there is no match
    "Average precision by a stable sort in float64, query by query; `ties` says which of equally distant items come first"
    ap = np.full(len(dist), np.nan)
    for i, row in enumerate(dist.astype(np.float64)):
        keep = (g_pid != q_pid[i]) | (g_cam != q_cam[i])
        d, match = row[keep], g_pid[keep] == q_pid[i]
        order = np.argsort(d, kind='stable') if ties == 'first' else np.lexsort((match if ties == 'worst' else ~match, d))
        rank = np.flatnonzero(match[order]) + 1
        if len(rank): ap[i] = np.mean(np.arange(1, len(rank) + 1) / rank)
    return ap

def apart(a, b): # largest difference; inf where only one of both is nan
    return float(np.max(np.where(np.isnan(a) & np.isnan(b), 0, np.nan_to_num(np.abs(a - b), nan=np.inf))))

def exactness(folder, most=4000 * 20000): # the largest differences of AP, a dict
    "Compare AP with the `referee` on the same matrix, as it is and rounded until it is full of ties; of a large set for 100 queries"
    from reid_nb.retrieve.rank import rank_stats
    q, g = load_data(folder)
    if len(q.pid) * len(g.pid) > most: q = Side(*(o[::len(o) // 100] for o in q))
    dist, out = reid_nb(folder)['distances'](q, g), dict(n=len(q.pid))
    def ap(x, n=None, **kw): return rank_stats(x, q.pid[:n], g.pid, q.cam[:n], g.cam, **kw).ap
    rules = ('worst', 'best', 'first') if 'ties' in signature(rank_stats).parameters else ('first',)
    for ties in rules:
        kw = dict(ties=ties) if len(rules) > 1 else {}
        for name, x in (('as it is', dist), ('full of ties', dist[:100].round(2))):
            n = len(x)
            out[f'ties={ties}, {name}'] = apart(ap(x, n, **kw), referee(x, q.pid[:n], g.pid, q.cam[:n], g.cam, ties))
    out['from features, to the matrix'] = apart(ap((q.feat, g.feat)), ap(dist))
    return out

def child(step, method, folder): # what a measuring process prints: a line of JSON
    free = size_of('MemAvailable', '/proc/meminfo')
    try: out = dict(first=first_call, exact=exactness).get(step, lambda f: measure(step, method, f))(Path(folder))
    except (MemoryError, RuntimeError) as e:
        if not isinstance(e, MemoryError) and 'allocate memory' not in str(e): raise
        out = dict(error=f'MemoryError, {free / 1e9:.0f} GB were free,', why=str(e)[:200])
    print('\n' + json.dumps(out))

def spawn(step, method, folder): # its dict, which has the key 'error' where it failed
    path = os.pathsep.join([str(Path(__file__).resolve().parents[2]), os.environ.get('PYTHONPATH', '')])
    env = dict(os.environ, PYTHONPATH=path, PYTHONWARNINGS='ignore')
    env.setdefault('GOMP_SPINCOUNT', '10000') # threads that wait by spinning would count as CPU time
    t = time.perf_counter()
    res = subprocess.run([sys.executable, __file__, '--child', step, method, str(folder)], env=env, capture_output=True, text=True)
    took = dict(took=time.perf_counter() - t)
    if res.returncode == -signal.SIGKILL: return dict(took, error='killed: the machine ran out of memory')
    if res.returncode: return dict(took, error=(res.stderr.strip().splitlines() or ['it ended without a word'])[-1][:100])
    return json.loads(res.stdout.strip().splitlines()[-1]) | took

# ---- peers

PEERS = dict(torchreid=dict(rank='torchreid/metrics/rank_cylib/rank_cy.pyx', distance='torchreid/metrics/distance.py'),
             fastreid=dict(rank='fastreid/evaluation/rank_cylib/rank_cy.pyx', distance='fastreid/utils/compute_dist.py',
                           faiss_utils='fastreid/utils/faiss_utils.py'))
SETUP = '''import numpy
from setuptools import Extension, setup
from Cython.Build import cythonize
setup(name='peer', ext_modules=cythonize([Extension('rank_cy', ['rank_cy.pyx'], include_dirs=[numpy.get_include()])], language_level=3))
'''

def build_peer(name, checkout, folder):
    "Build a peer's evaluator in `folder / name`, out of copies of the files that it needs"
    to, files = folder / name, {k: Path(checkout) / v for k, v in PEERS[name].items()}
    if gone := [o for o in files.values() if not o.is_file()]: sys.exit(f'--{name} {checkout} is no checkout of it: there is no {gone[0]}')
    try: version('cython')
    except ImportError: sys.exit(f'--{name} needs Cython, and a C compiler, to build the evaluator: pip install cython')
    (to / 'peer').mkdir(parents=True)
    (to / 'peer/__init__.py').touch()
    (to / 'setup.py').write_text(SETUP)
    for k, o in files.items(): shutil.copy(o, to / ('rank_cy.pyx' if k == 'rank' else f'peer/{k}.py'))
    res = subprocess.run([sys.executable, 'setup.py', '-q', 'build_ext', '--inplace'], cwd=to, capture_output=True, text=True)
    if res.returncode: sys.exit(f'The evaluator of {checkout} could not be built:\n{res.stderr[-2000:]}')
    head = subprocess.run(['git', '-C', str(checkout), 'log', '-1', '--format=%h of %cs'], capture_output=True, text=True).stdout.strip()
    print(f'{name}: {head or checkout}')

# ---- tables

def good(runs): return [o for o in runs if 'error' not in o]
def mid(runs, what): return statistics.median(o[what] for o in good(runs)) if good(runs) else None
def least(runs, what): return min(o[what] for o in good(runs)) if good(runs) else None
def fmt(x, unit=1, digits=3): return '-' if x is None else f'{x / unit:.{digits}f}'
WIDTHS = 15, 9, 14, 9, 9, 9, 7, 7

def print_table(rows): # rows[step, method]: list of the runs' dicts
    "Seconds and memory of each step, and what the others need for it, in multiples of ours"
    heads = 'wall s: median', 'least', 'CPU s: median', 'least', 'extra MB', 'peak MB', 'wall x', 'CPU x'
    print(f'{"step":28} {"method":20}', *(f'{o:>{w}}' for o, w in zip(heads, WIDTHS)))
    for (step, method), runs in rows.items():
        if step not in STEPS: continue
        print(f'{STEPS[step]:28} {method:20}', end=' ')
        if not good(runs): print(f'{runs[-1]["error"]} after {runs[-1]["took"]:.0f} s'); continue
        cells = [fmt(stat(runs, o)) for o in ('wall', 'cpu') for stat in (mid, least)]
        cells += [fmt(mid(runs, o), 1e6, 0) for o in ('extra', 'peak')]
        cells += [fmt(ratio(rows, step, method, o), digits=1) for o in ('wall', 'cpu')]
        print(*(f'{o:>{w}}' for o, w in zip(cells, WIDTHS)))

def ratio(rows, step, method, what, stat=mid): # how many times of ours a peer needs, or None
    ours, peer = stat(rows.get((step, 'reid_nb'), []), what), stat(rows.get((step, method), []), what)
    return peer / ours if ours and peer else None

def fastest(rows, what, stat=mid): # the fastest product alone: its seconds and its name
    return min(((s, m) for (step, m), runs in rows.items() if step == 'product' and (s := stat(runs, what))), default=(None, None))

def over_limit(rows, what, stat=mid, plus_pass=False): # features to all metrics, in multiples of the limit
    ours, (product, _), one = stat(rows['whole', 'reid_nb'], what), fastest(rows, what, stat), stat(rows['one pass', 'numpy max'], what)
    return ours / (product + plus_pass * one) if ours and product and one else None

def agreement(rows, step, method): # between a peer and us: differences of mAP, of mAP summed in float32, and of the CMC; or None
    a, b = good(rows.get((step, 'reid_nb'), [])), good(rows.get((step, method), []))
    if a and b: return *(abs(a[0][o] - b[0]['mAP']) for o in ('mAP', 'mAP32')), apart(np.array(a[0]['cmc']), np.array(b[0]['cmc']))

def print_rest(rows):
    "The distance to the limit, exactness, agreement and the first call, a line each"
    for what, name in (('cpu', 'CPU'), ('wall', 'wall')):
        print(f'features to all metrics, {name}: {fmt(over_limit(rows, what), digits=2)} x the fastest product ({fastest(rows, what)[1]}), '
              f'{fmt(over_limit(rows, what, plus_pass=True), digits=2)} x the floor (product + one pass)')
    exact, first = rows['exact', ''][0], rows['first', '']
    words = exact.get('error') or '; '.join(f'{k}: {v:.1e}' for k, v in exact.items() if k not in ('n', 'took'))
    print(f'exactness, largest difference of AP over {exact.get("n")} queries: {words}')
    for step, method in rows:
        if step in ('scoring', 'whole') and method != 'reid_nb' and (diff := agreement(rows, step, method)):
            print(f'agreement, {STEPS[step]}, {method}: mAP differs by {diff[0]:.1e} '
                  f'({diff[1]:.1e} with ours summed in float32), CMC by {diff[2]:.1e} at most')
    parts = dict(numba='import of numba', room='of reid_nb.retrieve.rank', call='the call', cpu='CPU of both', again='the next call')
    print('first call in a fresh process, median s:', ', '.join(f'{v} {fmt(mid(first, k), digits=2)}' for k, v in parts.items()))

# ---- targets

def worst_ratio(rows, step, methods, what): # against the best form of a peer: (medians, minima) or None
    both = [[ratio(rows, step, m, what, stat) for m in methods] for stat in (mid, least)]
    both = [[o for o in x if o] for x in both]
    return tuple(min(o) for o in both) if both[0] else None

def targets(size, d, rows): # yields (what, wanted, (median, least), is it met?); the last two are None where nothing was measured
    "What this room promises, for one size and dimension"
    def line(what, sign, bound, got, unit=''):
        got = got if got is None or isinstance(got, tuple) else (got, got)
        met = None if got is None else got[0] >= bound if sign == '>=' else got[0] <= bound
        return f'{size} d={d}: {what}', f'{sign} {bound:g}{unit}', got, met
    def memory(step, what): return None if (m := mid(rows[step, 'reid_nb'], what)) is None else m / 1e6
    both, agree = ['Torchreid', 'Torchreid euclidean'], agreement(rows, 'scoring', 'Torchreid') or (None, None, None)
    if size == 'market':
        yield line('scoring alone, CPU of Torchreid / ours', '>=', 20, worst_ratio(rows, 'scoring', ['Torchreid'], 'cpu'), 'x')
        yield line('scoring alone, CPU of fast-reid / ours', '>=', 10, worst_ratio(rows, 'scoring', ['fast-reid'], 'cpu'), 'x')
        yield line('scoring alone, extra memory', '<=', 50, memory('scoring', 'extra'), ' MB')
        yield line('whole, CPU of Torchreid / ours', '>=', 5 if d <= 512 else 3, worst_ratio(rows, 'whole', both, 'cpu'), 'x')
        if d <= 512: yield line('whole, wall of Torchreid / ours', '>=', 8, worst_ratio(rows, 'whole', both, 'wall'), 'x')
    if size == 'msmt': yield line('whole, wall of Torchreid / ours', '>=', 12, worst_ratio(rows, 'whole', both, 'wall'), 'x')
    if size in (most := dict(msmt=300, market500k=500)):
        yield line('whole, peak over the features', '<=', most[size], memory('whole', 'peak'), ' MB')
    if size != 'small' and (got := over_limit(rows, 'cpu')):
        yield line('whole, CPU / the fastest product alone', '<=', 1.3, (got, over_limit(rows, 'cpu', least)), 'x')
    exact, first = rows['exact', ''][0], [o['room'] + o['call'] for o in good(rows['first', ''])]
    yield line('AP, difference to the referee', '<=', 1e-12, max((v for k, v in exact.items() if k.startswith('ties')), default=None))
    yield line('mAP, difference to Torchreid, same matrix', '<=', 1e-6, agree[0])
    yield line('the same, ours summed in float32 as there', '<=', 1e-6, agree[1])
    yield line('CMC, difference to Torchreid, same matrix', '<=', 1e-6, agree[2])
    yield line('first call over the import of numba', '<=', .8, (statistics.median(first), min(first)) if first else None, ' s')

def print_targets(lines):
    print(f'\n{"target":62} {"wanted":>9}    {"reached: median":>16} {"least":>10}')
    for what, wanted, got, met in lines:
        a, b = ('-', '-') if got is None else (f'{o:.2g}' if abs(o) < .01 else f'{o:.2f}' for o in got)
        print(f'{what:62} {wanted:>9} -> {a:>16} {b:>10}  { {None: "not measured", True: "yes", False: "NO"}[met]}')

# ---- the run

def run_size(size, d, folder, methods, repeat): # rows[step, method]: list of the runs' dicts
    "Make the data of one size and measure every step of every method, in turns"
    data = folder / 'data'
    data.mkdir()
    make_data(data, SIZES[size], d)
    rows = {o: [] for o in JOBS if o[1] in methods} | {('exact', ''): [spawn('exact', '', data)], ('first', ''): []}
    for _ in range(repeat):
        for (step, method), runs in rows.items():
            done = step == 'exact' or runs and ('error' in runs[-1] or runs[-1].get('wall', 0) > SLOW)
            if not done: runs.append(spawn(step, method, data))
    shutil.rmtree(data)
    return rows

def print_size(size, d, rows):
    "All tables of one size"
    (n_q, n_g, *_), stats = SIZES[size], (good(rows['whole', 'reid_nb']) or [dict(mAP=np.nan, cmc=[np.nan])])[0]
    print(f'\n## {size}: {n_q} x {n_g}, d = {d}; features {4e-6 * d * (n_q + n_g):.0f} MB; '
          f'mAP {stats["mAP"]:.4f}, rank 1 {stats["cmc"][0]:.4f}; load {os.getloadavg()[0]:.1f}')
    print_table(rows)
    print_rest(rows)

def machine(): # what the figures belong to
    cpu = [o.split(':')[1].strip() for o in Path('/proc/cpuinfo').read_text().splitlines() if o.startswith('model name')]
    return dict(cpu=(cpu or [platform.machine()])[0], cores=len(os.sched_getaffinity(0)), load=os.getloadavg()[0],
                memory_gb=round(size_of('MemTotal', '/proc/meminfo') / 1e9, 1), python=platform.python_version(),
                **{o: version(o) for o in ('numpy', 'numba', 'torch')})

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--size', nargs='+', choices=SIZES, default=['market'])
    p.add_argument('--dim', nargs='+', type=int, default=[512], help='length of a feature')
    p.add_argument('--repeat', type=int, default=3, help='how often each method is measured')
    p.add_argument('--json', type=Path, help='where every single run goes')
    for o in PEERS: p.add_argument(f'--{o}', metavar='PATH', help='a checkout; its evaluator is built in a temporary folder (needs Cython)')
    a = p.parse_args()
    about, methods, lines, runs = machine(), set(METHODS), [], []
    print(', '.join(f'{k} {v}' for k, v in about.items()), flush=True)
    with tempfile.TemporaryDirectory(prefix='evaluation') as folder:
        for o in PEERS:
            if path := getattr(a, o): build_peer(o, path, Path(folder))
            else: methods -= {k for k, f in METHODS.items() if f.__name__.startswith(o)}
        for size in a.size:
            for d in a.dim:
                rows = run_size(size, d, Path(folder), methods, a.repeat)
                print_size(size, d, rows)
                lines += targets(size, d, rows)
                runs += [dict(size=size, dim=d, step=k[0], method=k[1], runs=v) for k, v in rows.items()]
                if a.json: a.json.write_text(json.dumps(dict(about, runs=runs, targets=lines), indent=1))
                sys.stdout.flush()
    print_targets(lines)

if __name__ == '__main__':
    if sys.argv[1:2] == ['--child']: child(*sys.argv[2:])
    else: main()
