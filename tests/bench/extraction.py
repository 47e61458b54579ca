"""How fast pictures become features, beside Torchreid's FeatureExtractor, and whether they are the same features

    python tests/bench/extraction.py                                       # osnet_x0_25, ours alone
    python tests/bench/extraction.py --models osnet_x0_25 osnet_x1_0 resnet50 --torchreid PATH --repeat 3 --json FILE

PATH is a checkout of Torchreid, whose package is imported (packages that it needs for other things are replaced by empty ones). Both sides load one file: of random weights, or of
--weights NAME=FILE. Trained weights make 16 bits a hundred times less exact than random ones do, and what is exact no less so: to learn what a way costs you, pass yours.
forward: normalised pictures of 256x128 in memory, one batch. files: JPEGs of 64x128 on disk to features, in batches.
All ways of one network are measured in one process, which has as many threads as PyTorch takes, and take turns; the median counts. CPU time is that of the process with all its threads.
start: seconds until a way gives its first feature. error: the largest 1 - cosine to float64 of the same network; to Torchreid's features for `same as Torchreid`.
Other processes distort even the CPU time, and help the one that waits for memory rather than for the processor: run it on an idle machine, and trust ratios of one run.
"""
import argparse, json, os, platform, statistics, subprocess, sys, tempfile, time
from pathlib import Path
from unittest.mock import MagicMock

sys.path.insert(0, str(Path(__file__).resolve().parent))
from loading import load_items, make_data

SIZE = (256, 128)
WAYS = ['as it is', 'eager', 'fold', 'compile', 'onnx', 'openvino', 'fold bf16', 'compile bf16', 'openvino bf16']
FILES = ['fold', 'openvino', 'openvino bf16'] # ways that are measured from files as well
EXACT = ['compile', 'onnx', 'openvino']
TARGETS = [('without a compiler', ['eager', 'fold'], 4., 1e-10), ('exact, with an engine', EXACT, 7.5, 1e-10), ('in 16 bits', ['compile bf16', 'openvino bf16'], 15., 1e-4)]

# ---- networks

def make_weights(name, file): # random
    "Write a checkpoint that both sides can read"
    import torch
    from reid_nb.models.zoo import create_model
    torch.manual_seed(0)
    torch.save(create_model(name, 1).state_dict(), file)

def our_model(name, file):
    from reid_nb.models.zoo import create_model
    return create_model(name, 1, weights=file).eval()

def peer_extractor(name, file, checkout):
    "Torchreid's own, on the CPU"
    sys.path.insert(0, str(checkout))
    for o in ('torchreid.engine', 'torchreid.data', 'torchreid.metrics', 'torchreid.losses', 'torchreid.optim', 'gdown', 'tensorboard', 'yacs', 'h5py', 'cv2'): sys.modules.setdefault(o, MagicMock())
    import io, contextlib, torch
    with contextlib.redirect_stdout(io.StringIO()):
        from torchreid.utils import FeatureExtractor
        peer = FeatureExtractor(model_name=name, model_path=str(file), image_size=SIZE, device='cpu', verbose=False)
    own, there = peer.model.state_dict(), torch.load(file, map_location='cpu', weights_only=True)
    if missing := [k for k in own if k not in there and not k.startswith('classifier')]: # which it says in a warning, and goes on with random weights
        raise ValueError(f'{len(missing)} of {len(own)} tensors of Torchreid\'s {name} are not in our file: these are two networks')
    return peer

# ---- measuring

def timed(run, x): # seconds: wall, CPU
    wall, cpu = time.perf_counter(), time.process_time()
    run(x)
    return time.perf_counter() - wall, time.process_time() - cpu

def in_turns(runs, x, n, repeat, warm): # way → dict of medians; `x` is what each is called with
    times = {o: [] for o in runs}
    for run in runs.values(): run(warm)
    for _ in range(repeat):
        for way, run in runs.items(): times[way].append(timed(run, x))
    return {way: dict(wall_ms=statistics.median(a for a, _ in o) / n * 1e3, cpu_ms=statistics.median(b for _, b in o) / n * 1e3) for way, o in times.items()}

def forward_runs(name, file, checkout, ways, bs): # (way → function, way → what is known of it)
    import torch
    from reid_nb.core import ReidError
    from reid_nb.models.export import distance_of, probe_images
    from reid_nb.models.fast import InParts, fast_model
    model, x = our_model(name, file), probe_images(SIZE, 8, seed=9)
    with torch.no_grad(): exact, plain = InParts(model.double())(x.double()), InParts(model.float())(x)
    runs, facts = {}, {}
    def add(way, run, start=0.): runs[way], facts[way] = torch.no_grad()(run), dict(start_s=start, error=distance_of(run(x), exact)[0])
    with torch.no_grad():
        if checkout:
            add('Torchreid', peer := peer_extractor(name, file, checkout))
            facts['same as Torchreid'] = distance_of(plain, peer(x))[0]
        for way in ways:
            if way == 'as it is': add(way, model); continue
            try: fast = fast_model(model, *way.split(), size=SIZE)
            except (ImportError, RuntimeError, ReidError) as e: facts[way] = dict(note=str(e).splitlines()[0]); continue
            add(way, fast, fast.start_s)
    return runs, facts

def file_runs(name, file, checkout, ways, bs): # way → function of a list of paths
    from reid_nb.train.extract import FeatureExtractor
    runs, model = {}, our_model(name, file)
    if checkout:
        peer = peer_extractor(name, file, checkout)
        runs['Torchreid'] = lambda paths: [peer(paths[i:i + bs]) for i in range(0, len(paths), bs)]
    for way in ways:
        how, dtype = (way.split() + [None])[:2]
        runs[way] = lambda paths, ex=FeatureExtractor(model, size=SIZE, how=how, dtype=dtype, bs=bs): ex(paths, progress=False)
    return runs

def measure(name, folder, checkout, ways, bs, n_files, repeat, weights):
    "All figures of one network"
    from reid_nb.models.export import probe_images
    file = Path(weights or folder / f'{name}.pth')
    if not weights: make_weights(name, file)
    runs, facts = forward_runs(name, file, checkout, ways, bs)
    x = probe_images(SIZE, bs)
    forward = in_turns(runs, x, bs, repeat, x[:8])
    out = dict(model=name, same=facts.pop('same as Torchreid', None), forward={way: o | forward.get(way, {}) for way, o in facts.items()}, files={})
    some = [o for o in FILES if o in runs]
    if n_files and some:
        paths = list(load_items(folder).path)[:n_files]
        runs = file_runs(name, file, checkout, some, bs)
        out['files'] = in_turns(runs, paths, len(paths), repeat, paths[:8])
    return out

# ---- a run

def child(spec):
    import torch
    spec = json.loads(spec)
    out = measure(spec['name'], Path(spec['folder']), spec['checkout'], spec['ways'], spec['bs'], spec['n'], spec['repeat'], spec['weights'])
    print('\n' + json.dumps(out | dict(threads=torch.get_num_threads(), torch=torch.__version__)))

def spawn(**spec):
    path = os.pathsep.join([str(Path(__file__).resolve().parents[2]), os.environ.get('PYTHONPATH', '')])
    env = dict(os.environ, PYTHONPATH=path, PYTHONWARNINGS='ignore')
    env.setdefault('GOMP_SPINCOUNT', '10000') # threads that wait by spinning would count as CPU time
    res = subprocess.run([sys.executable, __file__, '--child', json.dumps(spec)], env=env, capture_output=True, text=True)
    if res.returncode: return dict(model=spec['name'], error=(res.stderr.strip().splitlines() or ['it ended without a word'])[-1][:200])
    return json.loads(res.stdout.strip().splitlines()[-1])

def show(run):
    if 'error' in run: print(f'\n{run["model"]}: {run["error"]}'); return
    print(f'\n{run["model"] + ", " + str(run["threads"]) + " threads":34}{"CPU ms":>8}{"pictures/s":>12}{"CPU x":>8}{"wall x":>8}{"start s":>9}{"error":>9}')
    for part, rows in (('forward', run['forward']), ('files', run['files'])):
        peer = rows.get('Torchreid', {})
        for way, o in rows.items():
            if 'note' in o: print(f'{part + ": " + way:34}{o["note"]}'); continue
            times = [f'{peer[k] / o[k]:8.1f}' if peer else ' ' * 8 for k in ('cpu_ms', 'wall_ms')]
            print(f'{part + ": " + way:34}{o["cpu_ms"]:8.1f}{1000 / o["wall_ms"]:12.1f}{"".join(times)}' + (f'{o["start_s"]:9.1f}{o["error"]:9.0e}' if 'error' in o else ''))

def targets(run, bs): # yields (what, wanted, reached, is it met?)
    if 'error' in run: return
    if run['same'] is not None: yield f'{run["model"]}: features, 1 - cosine to Torchreid\'s', '<= 1e-10', f'{run["same"]:.0e}', run['same'] <= 1e-10
    peer = run['forward'].get('Torchreid')
    if run['model'] != 'osnet_x1_0' or not peer: return
    for what, ways, bound, tol in TARGETS:
        there = {w: o for w in ways if 'cpu_ms' in (o := run['forward'].get(w, {})) and o['error'] <= tol}
        if not there: continue
        best = min(there, key=lambda w: there[w]['cpu_ms'])
        got = {k: peer[k] / there[best][k] for k in ('cpu_ms', 'wall_ms')}
        yield f'osnet_x1_0, batch {bs}, {what} (1 - cosine <= {tol:.0e}): {best}, CPU (wall)', f'>= {bound:g}', f'{got["cpu_ms"]:.1f} ({got["wall_ms"]:.1f})', got['cpu_ms'] >= bound

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--models', nargs='+', default=['osnet_x0_25'], help='names that both sides know')
    p.add_argument('--ways', nargs='+', choices=WAYS, default=[o for o in WAYS if 'compile' not in o])
    p.add_argument('--bs', type=int, default=64, help='pictures in a batch')
    p.add_argument('--n', type=int, default=128, help='files; 0: the forward pass alone')
    p.add_argument('--torchreid', help='a checkout')
    p.add_argument('--weights', nargs='*', default=[], metavar='NAME=FILE', help='checkpoints; other networks begin with random weights')
    p.add_argument('--repeat', type=int, default=3)
    p.add_argument('--json', type=Path, help='a file for the figures')
    p.add_argument('--child', help=argparse.SUPPRESS)
    args = p.parse_args()
    if args.child: return child(args.child)
    checkout = str(Path(args.torchreid).resolve()) if args.torchreid else None
    if checkout and not (Path(checkout) / 'torchreid/utils/feature_extractor.py').is_file(): sys.exit(f'--torchreid {checkout} is no checkout of it: there is no {checkout}/torchreid/utils/feature_extractor.py')
    runs, lines, weights = [], [], {k: str(Path(o).resolve()) for k, o in (w.split('=', 1) for w in args.weights)}
    with tempfile.TemporaryDirectory(prefix='extraction') as folder:
        size, n = make_data(Path(folder), args.n) if args.n else (0, 0)
        print(f'Python {platform.python_version()}, {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}; batches of {args.bs}; {n} JPEGs of {size:.0f} bytes', flush=True)
        for name in args.models:
            runs.append(spawn(name=name, folder=folder, checkout=checkout, ways=args.ways, bs=args.bs, n=n, repeat=args.repeat, weights=weights.get(name)))
            show(runs[-1])
            lines += targets(runs[-1], args.bs)
    if lines: print(f'\n{"target":96}{"wanted":>8}    {"reached":>12}')
    for what, wanted, got, met in lines: print(f'{what:96}{wanted:>8} -> {got:>12}  {"yes" if met else "NO"}')
    if args.json: args.json.write_text(json.dumps(dict(bs=args.bs, n=n, runs=runs, targets=lines), indent=1))

if __name__ == '__main__': main()
