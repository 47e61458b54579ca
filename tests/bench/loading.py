"""How fast pictures are read, enlarged and augmented, beside Torchreid's loader, and whether they are the same pictures

    python tests/bench/loading.py                       # a few hundred pictures, ours alone
    python tests/bench/loading.py --n 2000 --torchreid PATH --repeat 3

PATH is a checkout of Torchreid, of which two files are loaded: its transforms, and its function that opens a picture; the dataset around them does what Torchreid's does, and torch's loader makes
the batches. Everybody reads the same JPEGs of 64x128 (drawn people, of the size in bytes that Market-1501's have), enlarges them to 256x128, mirrors, translates, normalises and erases, with Torchreid's
probabilities and its fill, on one thread and without worker processes, in batches of 64 in random order. CPU time is that of the process, per picture, imports and compilation excluded.
Every measurement runs in a process of its own; methods take turns.
first epoch: the cache is empty, and is filled. later: from the cache, which is memory-mapped, with a look at each file's size and times.
Torchreid's translation enlarges twice, from 64x128 to 128x256 and from there to 144x288. Ours does the same: the first time when it reads from the cache, the second time in `OnePass`, and rounds as Pillow does.
Compared are therefore (1) the pictures of the test transform, bit by bit, (2) those of the training transform, bit by bit, given the random numbers that Torchreid drew, and (3) the distribution of
training pixels when both draw for themselves, by Kolmogorov-Smirnov tests, with three wrong pipelines that the tests have to notice.
Other processes distort even the CPU time: run it on an idle machine, and trust ratios of one run.
"""
import argparse, importlib.util, json, os, platform, random, statistics, subprocess, sys, tempfile, time
from pathlib import Path

import numpy as np

SIZE, BS, BYTES, WARM = (256, 128), 64, 3400, 260 # pictures to warm up with: some batches
METHODS = ['Torchreid', 'files', 'first epoch', 'later', 'bytes', 'Torchreid test', 'files test', 'first test', 'later test']
WORDS = {'Torchreid': 'Torchreid', 'files': 'ours, no cache, batch transforms', 'first epoch': 'ours, first epoch', 'later': 'ours, later epochs', 'bytes': 'ours, later, bytes for a GPU',
         'Torchreid test': 'test: Torchreid', 'files test': 'test: ours, no cache', 'first test': 'test: ours, first time', 'later test': 'test: ours, later'}
TARGETS = {('Torchreid', 'first epoch'): 2.5, ('Torchreid', 'later'): 5.} # CPU time of the peer / ours

# ---- data

def make_data(folder, n, seed=0): # n drawn people; the table is read by `load_items`
    "Draw people, and save them with the quality at which a file has as many bytes as in Market-1501"
    import io
    from PIL import Image
    from reid_nb.data.synth import synth_people
    items = synth_people(folder / 'drawn', n_ids=max(8, -(-n // 10)), n_cams=2, per_cam=5, seed=seed, distractors=0, junk=0)
    items = items.head(n).assign(split='train') # ten pictures of each person
    def size(q): # mean bytes of some pictures
        out = []
        for p in items.path[::max(1, len(items) // 50)]:
            Image.open(p).save(f := io.BytesIO(), 'JPEG', quality=q)
            out.append(len(f.getvalue()))
        return np.mean(out)
    quality = min(range(80, 98), key=lambda q: abs(size(q) - BYTES))
    for p in items.path: Image.open(p).copy().save(p, 'JPEG', quality=quality)
    items.to_pickle(folder / 'items.pkl')
    return float(np.mean([os.stat(p).st_size for p in items.path])), len(items)

def load_items(folder):
    import pandas as pd
    return pd.read_pickle(Path(folder) / 'items.pkl')

# ---- Torchreid

def load_peer(checkout): # (training transform, test transform, function that opens a picture), without the package around them
    def load(file):
        spec = importlib.util.spec_from_file_location('peer_' + Path(file).stem, Path(checkout) / file)
        spec.loader.exec_module(module := importlib.util.module_from_spec(spec))
        return module
    out, sys.stdout = sys.stdout, sys.stderr # it tells what it builds
    try: return *load('torchreid/data/transforms.py').build_transforms(*SIZE, ['random_flip', 'random_crop', 'random_erase']), load('torchreid/utils/tools.py').read_image
    finally: sys.stdout = out

def peer_dataset(items, transform, read_image):
    from torch.utils.data import Dataset
    class ImageDataset(Dataset):
        rows = list(zip(items.path, items.pid, items.cam, [0] * len(items)))
        def __len__(self): return len(self.rows)
        def __getitem__(self, i):
            path, pid, cam, dset = self.rows[i]
            return dict(img=transform(read_image(path)), pid=pid, camid=cam, impath=path, dsetid=dset)
    return ImageDataset()

def peer_loader(items, checkout, train):
    from torch.utils.data import DataLoader
    tr, te, read = load_peer(checkout)
    return DataLoader(peer_dataset(items, tr if train else te, read), batch_size=BS, shuffle=train, num_workers=0)

# ---- ours

def our_loader(items, method, cache):
    import pandas as pd
    from reid_nb.data.augment import TORCHREID_FILL, reid_tfms
    from reid_nb.data.block import ReidDataLoaders
    from reid_nb.data.cache import OnePass
    from reid_nb.data.samplers import RandomSampler
    tfms = None if method == 'bytes' else reid_tfms(erase=.5) if method.startswith('files') else [OnePass(erase=.5, fill=TORCHREID_FILL)]
    other, one = items.assign(pid=items.pid + 10**6), items.head(1).assign(pid=10**7) # the test rows are other people
    table = pd.concat([items, (other if 'test' in method else one).assign(split='query'), one.assign(split='gallery')])
    dls = ReidDataLoaders.from_items(table, SIZE, bs=BS, tfms=tfms, device='cpu', cache=None if method.startswith('files') else cache,
                                     sampler=lambda rows: RandomSampler(rows, BS, drop_last=False))
    if method == 'bytes': dls.train.after_batch.fs.clear()
    return dls.valid if 'test' in method else dls.train

def epoch(dl, key=0): # (CPU seconds, wall seconds, pictures)
    wall, cpu, n = time.perf_counter(), time.process_time(), 0
    for b in dl: n += len(b[key])
    return time.process_time() - cpu, time.perf_counter() - wall, n

def measure(method, folder, checkout):
    "Run an epoch of one method, after a warm-up on the first few pictures"
    import torch
    torch.set_num_threads(1)
    items, tmp = load_items(folder), Path(tempfile.mkdtemp(dir=folder))
    if method.startswith('Torchreid'):
        warm, dl = (peer_loader(o, checkout, 'test' not in method) for o in (items.head(WARM), items))
        epoch(warm, 'img')
        cpu, wall, n = epoch(dl, 'img')
    else:
        from reid_nb.data.cache import ImageCache
        for o in range(2): epoch(our_loader(items.head(WARM), method, ImageCache(SIZE, tmp / 'warm')))
        dl = our_loader(items, method, ImageCache(SIZE, tmp / 'cache', max_gb=1 + len(items) * 1e-4))
        if method.startswith(('later', 'bytes')): epoch(dl)
        cpu, wall, n = epoch(dl)
    return dict(cpu_us=cpu / n * 1e6, wall_us=wall / n * 1e6, n=n)

# ---- the same pictures?

def replay(n, seed, size): # what Torchreid's transforms draw for pictures number 0…n-1, each after `seeded(seed + i)`
    import torch
    h, w = size
    out = dict(flip=torch.zeros(n, dtype=torch.bool), shift=torch.zeros(n, dtype=torch.bool), top=torch.zeros(n, dtype=torch.long), left=torch.zeros(n, dtype=torch.long), box=torch.zeros(n, 4, dtype=torch.long))
    for i in range(n):
        seeded(seed + i)
        out['flip'][i] = torch.rand(1) < .5
        if random.uniform(0, 1) <= .5:
            out['shift'][i] = True
            out['left'][i], out['top'][i] = round(random.uniform(0, round(w * 1.125) - w)), round(random.uniform(0, round(h * 1.125) - h))
        if random.uniform(0, 1) > .5: continue
        for _ in range(100):
            area, ratio = random.uniform(.02, .4) * h * w, random.uniform(.3, 1 / .3)
            bh, bw = round((area * ratio)**.5), round((area / ratio)**.5)
            if bw < w and bh < h:
                out['box'][i] = torch.tensor([random.randint(0, h - bh), random.randint(0, w - bw), bh, bw])
                break
    return out

def seeded(seed):
    import torch
    random.seed(seed)
    torch.manual_seed(seed)

def ks(a, b): # p-value of two samples being of one distribution (Kolmogorov-Smirnov, asymptotic)
    every = np.sort(np.concatenate([a, b]))
    d = np.abs(np.searchsorted(np.sort(a), every, 'right') / len(a) - np.searchsorted(np.sort(b), every, 'right') / len(b)).max()
    x, k = np.sqrt(len(a) * len(b) / (len(a) + len(b))) * d, np.arange(1, 101)
    return 1. if x < .2 else float(np.clip(2 * ((-1.)**(k - 1) * np.exp(-2 * k**2 * x**2)).sum(), 0, 1))

def numbers(x, plain, weights): # (n,3,h,w) pictures and what they were made of → (n, s) numbers that tell of their pixels
    d, e, sharp = np.abs(x - plain), np.abs(x - plain[..., ::-1]), np.abs(np.diff(x, axis=-1)).mean((1, 2, 3))
    which, same = d.mean((1, 2, 3)) - e.mean((1, 2, 3)), (np.minimum(d, e) == 0).mean((1, 2, 3)) # mirrored? as it was, or mirrored, in what share of its pixels?
    return np.c_[(x - plain).reshape(len(x), -1) @ weights, x.mean((1, 2, 3)), x.std((1, 2, 3)), *x.mean((2, 3)).T, sharp, which, same]

def compare(one, other): # the smallest p-value of all numbers, multiplied by how many there are
    return min(1., one.shape[1] * min(ks(a, b) for a, b in zip(one.T, other.T)))

def agreement(folder, checkout, n_draws=100, n_pictures=40):
    "Compare our pictures with Torchreid's; a dict"
    import torch
    from reid_nb.data.augment import TORCHREID_FILL
    from reid_nb.data.cache import ImageCache, OnePass
    torch.set_num_threads(1)
    items = load_items(folder)
    paths, (tr, te, read) = list(items.path), load_peer(checkout)
    cache, tfm = ImageCache(SIZE, Path(folder) / 'agreement'), OnePass(erase=.5, fill=TORCHREID_FILL)
    out = dict(test=0, train=0, n=len(paths))
    for i in range(0, len(paths), BS):
        some = paths[i:i + BS]
        x = torch.from_numpy(cache.read(some) if i % 128 else (cache.read(some), cache.read(some))[1])
        out['test'] += sum(not torch.equal(a, te(read(p))) for a, p in zip(tfm.apply(x), some))
        ours = tfm.apply(x, **replay(len(some), i, SIZE))
        for j, p in enumerate(some):
            seeded(i + j)
            out['train'] += not torch.equal(ours[j], tr(read(p)))
    return out | distributions(paths[::max(1, len(paths) // n_pictures)][:n_pictures], cache, tr, te, read, n_draws)

def distributions(paths, cache, tr, te, read, n_draws): # p-values: ours, Torchreid with itself, and wrong pipelines
    import torch
    from reid_nb.data.augment import TORCHREID_FILL
    from reid_nb.data.cache import OnePass
    from fastai.vision.core import TensorImage
    seeded(0)
    rng = np.random.default_rng(0)
    weights = (rng.standard_normal((3 * SIZE[0] * SIZE[1], 12)) / 300).astype(np.float32)
    plain, x = torch.stack([te(read(p)) for p in paths]).numpy(), TensorImage(torch.from_numpy(cache.read(paths)))
    def sample(draw): return np.concatenate([numbers(draw(), plain, weights) for _ in range(n_draws)])
    def peer(): return np.stack([tr(read(p)).numpy() for p in paths])
    def ours(**kw):
        tfm = OnePass(**(dict(erase=.5, fill=TORCHREID_FILL) | kw))
        return lambda: tfm(x, split_idx=0).numpy()
    want = sample(peer)
    kinds = {'ours': ours(), 'Torchreid again': peer, 'wrong: mirrors 40 %': ours(flip=.4), 'wrong: fills with 0': ours(fill=0.), 'wrong: translates 40 %': ours(translate=.4)}
    return dict(pictures=len(want), p={k: compare(want, sample(v)) for k, v in kinds.items()})

# ---- a run

def child(method, folder, checkout):
    print('\n' + json.dumps(agreement(folder, checkout) if method == 'agreement' else measure(method, folder, checkout)))

def spawn(method, folder, checkout):
    path = os.pathsep.join([str(Path(__file__).resolve().parents[2]), os.environ.get('PYTHONPATH', '')])
    env = dict(os.environ, PYTHONPATH=path, PYTHONWARNINGS='ignore', OMP_NUM_THREADS='1')
    res = subprocess.run([sys.executable, __file__, '--child', method, str(folder), str(checkout)], env=env, capture_output=True, text=True)
    if res.returncode: return dict(error=(res.stderr.strip().splitlines() or ['it ended without a word'])[-1][:150])
    return json.loads(res.stdout.strip().splitlines()[-1])

def mid(runs, what): return statistics.median(o[what] for o in runs if 'error' not in o)
def least(runs, what): return min(o[what] for o in runs if 'error' not in o)

def show(rows):
    print(f'{"":36}{"CPU us/picture":>15}{"least":>8}{"pictures/s":>12}{"CPU x":>8}')
    for name, runs in rows.items():
        if all('error' in o for o in runs): print(f'{WORDS[name]:36}{runs[-1]["error"]}'); continue
        cpu, peer = mid(runs, 'cpu_us'), rows.get('Torchreid test' if 'test' in name else 'Torchreid')
        times = f'{mid(peer, "cpu_us") / cpu:8.2f}' if peer and 'error' not in peer[0] else ''
        print(f'{WORDS[name]:36}{cpu:15.0f}{least(runs, "cpu_us"):8.0f}{1e6 / mid(runs, "wall_us"):12.0f}{times}')

def targets(rows, same): # yields (what, wanted, reached, is it met?)
    for (peer, ours), bound in TARGETS.items():
        if any('error' in o for p in (peer, ours) for o in rows.get(p, [dict(error='')])): continue
        got = [stat(rows[peer], 'cpu_us') / stat(rows[ours], 'cpu_us') for stat in (mid, least)]
        yield f'{WORDS[ours]}, CPU of Torchreid / ours, medians (least)', f'>= {bound:g}', f'{got[0]:.2f} ({got[1]:.2f})', got[0] >= bound
    if same and 'error' not in same:
        for k, words in (('test', 'test pictures that differ in any bit'), ('train', 'training pictures that differ in any bit, same random numbers')):
            yield f'{words}, of {same["n"]}', '0', f'{same[k]}', same[k] == 0
        for k, p in same['p'].items():
            wrong = k.startswith('wrong')
            yield f'distribution of {same["pictures"]} training pictures, {k}: p', '< 0.01' if wrong else '>= 0.01', f'{p:.2g}', (p < .01) == wrong

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--n', type=int, default=400, help='pictures')
    p.add_argument('--torchreid', help='a checkout')
    p.add_argument('--repeat', type=int, default=1)
    p.add_argument('--methods', nargs='+', choices=METHODS, default=METHODS)
    p.add_argument('--json', type=Path, help='a file for the figures')
    p.add_argument('--child', nargs=3, help=argparse.SUPPRESS)
    args = p.parse_args()
    if args.child: return child(*args.child)
    checkout = Path(args.torchreid).resolve() if args.torchreid else None
    if checkout and not (checkout / 'torchreid/data/transforms.py').is_file(): sys.exit(f'--torchreid {checkout} is no checkout of it: there is no torchreid/data/transforms.py')
    methods = [o for o in args.methods if checkout or not o.startswith('Torchreid')]
    with tempfile.TemporaryDirectory(prefix='loading') as folder:
        size, n = make_data(Path(folder), args.n)
        print(f'Python {platform.python_version()}, {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}; {n} JPEGs of {size:.0f} bytes', flush=True)
        rows = {o: [] for o in methods}
        for _ in range(args.repeat):
            for o in methods: rows[o].append(spawn(o, folder, checkout))
        same = spawn('agreement', folder, checkout) if checkout else None
    show(rows)
    if same and 'error' in same: print('agreement:', same['error'])
    lines = list(targets(rows, same))
    if lines: print(f'\n{"target":82}{"wanted":>8}    {"reached":>12}')
    for what, wanted, got, met in lines: print(f'{what:82}{wanted:>8} -> {got:>12}  {"yes" if met else "NO"}')
    if args.json: args.json.write_text(json.dumps(dict(n=n, bytes=size, runs=rows, agreement=same, targets=lines), indent=1))

if __name__ == '__main__': main()
