"""How long an epoch of training takes, and what mAP comes of it, beside Torchreid's engine

    python tests/bench/training.py                                # a small run of ours alone
    python tests/bench/training.py --torchreid PATH --json FILE   # about 8 minutes on two idle cores
    python tests/bench/training.py --torchreid PATH --crops TABLE # people of your own: an item table (CSV) with the splits train, query and gallery

PATH is a checkout of Torchreid, whose package is imported (packages that it needs for other things are replaced by empty ones). Both sides read one folder in the layout of Market-1501, of drawn people
or of the pictures of --crops; begin with the same weights, written to one file per seed; mirror pictures with probability 1/2; draw all rows in random order; and learn by cross-entropy with label
smoothing and amsgrad, with a cosine schedule. Torchreid trains by its ImageSoftmaxEngine, with its loader without workers and its own evaluation; ours by `reid_learner` as it comes.
time: epochs of --batches batches of --bs pictures of --size with --model; the first is not counted. mAP: --map-epochs epochs of all training pictures at --map-size, for each seed.
Each measurement runs in a process of its own, and sides take turns. An epoch is training alone: loading, forward, backward, step. CPU time is that of the process with all its threads.
Other processes distort even the CPU time: run it on an idle machine, and trust ratios of one run.
"""
import argparse, json, os, platform, statistics, subprocess, sys, tempfile, time
from functools import partial
from pathlib import Path
from unittest.mock import MagicMock

LR, WD = .0015, 5e-4 # of Torchreid's OSNet files
TARGETS = dict(cpu_s=2., wall_s=2.)

# ---- data and weights

def make_data(folder, crops, n_ids, per_cam): # (training pictures, identities)
    "Write the folder market1501 that both sides read"
    from reid_nb.data.datasets import items_from_csv
    from reid_nb.data.own import items_to_market
    from reid_nb.data.synth import synth_people
    home = Path(folder) / 'market1501'
    if crops: items_to_market(items_from_csv(crops), home)
    else: synth_people(home, n_ids=n_ids, n_cams=4, per_cam=per_cam, distractors=n_ids // 2, junk=n_ids // 4)
    items = our_items(folder)
    train = items[items.split == 'train']
    return len(train), train.pid.nunique()

def our_items(folder):
    from reid_nb.data.datasets import market1501
    return market1501(Path(folder) / 'market1501', check=False)

def weights_file(folder, name, n_classes, seed, size):
    "Write the weights that both sides begin with"
    import torch
    from reid_nb.models.zoo import create_model
    if not (file := Path(folder) / f'{name}_{seed}.pth').exists():
        torch.manual_seed(seed)
        torch.save(create_model(name, n_classes, size=size).state_dict(), file)
    return file

# ---- both sides: (seconds of each epoch, wall and CPU; mAP or None)

class Clock:
    def __init__(self): self.rows = []
    def start(self): self.now = time.perf_counter(), time.process_time()
    def stop(self): self.rows.append([time.perf_counter() - self.now[0], time.process_time() - self.now[1]])

def ours(folder, name, size, bs, epochs, seed, weights, score):
    import torch
    from fastai.callback.core import Callback, CancelValidException
    from reid_nb.data.augment import reid_tfms
    from reid_nb.data.block import ReidDataLoaders
    from reid_nb.data.samplers import RandomSampler
    from reid_nb.models.zoo import create_model
    from reid_nb.train.learner import reid_learner
    from reid_nb.train.schedule import EpochSchedule, make_optimizer, step_factor
    clock = Clock()
    class Timing(Callback):
        order = 99
        def before_train(self): clock.start()
        def after_train(self): clock.stop()
        def before_validate(self): raise CancelValidException
    dls = ReidDataLoaders.from_items(our_items(folder), size, bs=100, tfms=reid_tfms(flip=.5, translate=0), sampler=partial(RandomSampler, bs=bs), device='cpu')
    model = create_model(name, dls.c, size=size)
    model.load_state_dict(torch.load(weights, weights_only=True))
    learn = reid_learner(dls, model, cbs=Timing(), seed=seed, opt_func=make_optimizer('amsgrad', WD))
    with learn.no_bar(), learn.no_logging(): learn.fit(epochs, LR, cbs=EpochSchedule(step_factor('cosine', epochs)))
    return clock.rows, float(learn.evaluate(progress=False).stats.mAP) if score else None

def peer(folder, name, size, bs, epochs, seed, weights, score, checkout):
    import importlib.util, io, contextlib, random
    import numpy as np, torch
    sys.path.insert(0, checkout)
    for o in ('gdown', 'cv2', 'h5py', 'yacs', 'yacs.config', 'imageio', 'chardet'): # for things that are not measured here
        if not importlib.util.find_spec(o.split('.')[0]): sys.modules[o] = MagicMock()
    with contextlib.redirect_stdout(io.StringIO()):
        import torchreid
        random.seed(seed); np.random.seed(seed); torch.manual_seed(seed)
        data = torchreid.data.ImageDataManager(root=str(folder), sources='market1501', height=size[0], width=size[1], batch_size_train=bs, batch_size_test=100, transforms='random_flip', use_gpu=False, workers=0)
        model = torchreid.models.build_model(name, data.num_train_pids, loss='softmax', pretrained=False, use_gpu=False)
        model.load_state_dict(torch.load(weights, weights_only=True)) # all of them, or it raises
        optim = torchreid.optim.build_optimizer(model, optim='amsgrad', lr=LR, weight_decay=WD, adam_beta2=.999)
        engine = torchreid.engine.ImageSoftmaxEngine(data, model, optim, torchreid.optim.build_lr_scheduler(optim, lr_scheduler='cosine', max_epoch=epochs), use_gpu=False)
        clock, found, train, evaluate = Clock(), [], engine.train, engine._evaluate
        def timed(*args, **kwargs): clock.start(); train(*args, **kwargs); clock.stop()
        def noted(*args, **kwargs): found.append(evaluate(*args, **kwargs)); return found[-1]
        engine.train, engine._evaluate = timed, noted
        if not score: engine.test = lambda **kwargs: 0.
        with tempfile.TemporaryDirectory() as log: engine.run(save_dir=log, max_epoch=epochs, print_freq=10**6, dist_metric='cosine')
    return clock.rows, float(found[-1][1]) if score else None

# ---- a run

def child(spec):
    side, checkout = spec.pop('side'), spec.pop('checkout')
    seconds, mAP = ours(**spec) if side == 'ours' else peer(**spec, checkout=checkout)
    import torch
    print('\n' + json.dumps(dict(wall_s=[o[0] for o in seconds], cpu_s=[o[1] for o in seconds], mAP=mAP, threads=torch.get_num_threads())))

def spawn(**spec):
    path = os.pathsep.join([str(Path(__file__).resolve().parents[2]), os.environ.get('PYTHONPATH', '')])
    env = dict(os.environ, PYTHONPATH=path, PYTHONWARNINGS='ignore')
    env.setdefault('GOMP_SPINCOUNT', '10000') # threads that wait by spinning would count as CPU time
    res = subprocess.run([sys.executable, __file__, '--child', json.dumps(spec)], env=env, capture_output=True, text=True)
    if res.returncode: sys.exit(f'{spec["side"]} failed:\n{res.stderr.strip()[-2000:]}')
    return json.loads(res.stdout.strip().splitlines()[-1])

def in_turns(sides, seeds, folder, name, n_classes, size, epochs, **spec): # side → list of what its runs say
    runs = {o: [] for o in sides}
    for seed in seeds:
        file = weights_file(folder, name, n_classes, seed, size)
        for o in sides: runs[o].append(spawn(side=o, folder=str(folder), name=name, size=size, epochs=epochs, seed=seed, weights=str(file), **spec))
    return runs

def ratios(runs, what): # Torchreid's epochs over ours, turn by turn; each turn by its epochs' medians
    return [statistics.median(a[what][1:]) / statistics.median(b[what][1:]) for a, b in zip(runs['Torchreid'], runs['ours'])]

def spread(x, digits): return f'{statistics.mean(x):.{digits}f} [{min(x):.{digits}f}, {max(x):.{digits}f}]'

def show(runs, n_batches, bs):
    print(f'{"":12}{"CPU s/epoch":>24}{"wall s/epoch":>24}{"pictures/s":>12}')
    for side, o in runs.items():
        cpu, wall = ([v for run in o for v in run[k][1:]] for k in ('cpu_s', 'wall_s'))
        print(f'{side:12}{spread(cpu, 2):>24}{spread(wall, 2):>24}{n_batches * bs / statistics.median(wall):12.1f}')

def time_lines(runs, name, bs): # yields (what, wanted, reached, is it met?)
    for k, bound in TARGETS.items():
        r = ratios(runs, k)
        yield f'{name}, batches of {bs}: an epoch, {"CPU" if k == "cpu_s" else "wall"}', f'>= {bound:g} x', spread(r, 2), statistics.median(r) >= bound

def mAP_line(runs): # not lower: the mean difference is not below 0 by more than two of its standard errors, or half a point where there is one seed
    d = [b['mAP'] - a['mAP'] for a, b in zip(runs['Torchreid'], runs['ours'])]
    error = statistics.stdev(d) / len(d) ** .5 if len(d) > 1 else .0025
    return f'mAP, ours minus Torchreid\'s, {len(d)} seeds: mean ± standard error', '>= 0 - 2 s.e.', f'{statistics.mean(d):+.4f} ± {error:.4f}', statistics.mean(d) >= -2 * error

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--torchreid', help='a checkout')
    p.add_argument('--crops', help='an item table, CSV, instead of drawn people')
    p.add_argument('--model', default='osnet_x1_0', help='a name that both sides know')
    p.add_argument('--bs', type=int, default=64, help='pictures in a batch')
    p.add_argument('--size', type=int, nargs=2, default=[256, 128], help='height and width, for the times')
    p.add_argument('--batches', type=int, default=3, help='in an epoch of drawn people, for the times; 0: no times')
    p.add_argument('--epochs', type=int, default=3, help='for the times; the first is not counted')
    p.add_argument('--repeat', type=int, default=2, help='turns, for the times')
    p.add_argument('--map-model', help='for the mAP; the same by default')
    p.add_argument('--map-size', type=int, nargs=2, default=[128, 64])
    p.add_argument('--map-ids', type=int, default=32, help='drawn people, of whom half train, with 20 pictures each')
    p.add_argument('--map-epochs', type=int, default=12)
    p.add_argument('--seeds', type=int, default=3, help='for the mAP; 0: no mAP')
    p.add_argument('--json', type=Path, help='a file for the figures')
    p.add_argument('--child', help=argparse.SUPPRESS)
    args = p.parse_args()
    if args.child: return child(json.loads(args.child))
    checkout = str(Path(args.torchreid).resolve()) if args.torchreid else None
    if checkout and not (Path(checkout) / 'torchreid/engine/engine.py').is_file(): sys.exit(f'--torchreid {checkout} is no checkout of it: there is no {checkout}/torchreid/engine/engine.py')
    if args.epochs < 2: sys.exit('--epochs must be 2 or more: the first is not counted')
    sides, lines, out = ['ours'] + ['Torchreid'] * bool(checkout), [], {}
    print(f'Python {platform.python_version()}, {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}', flush=True)
    with tempfile.TemporaryDirectory(prefix='training') as folder:
        if args.batches:
            n, c = make_data(home := Path(folder) / 'time', args.crops, 2 * max(2, -(-args.batches * args.bs // 20)), 5)
            print(f'\ntime: {args.model}, {n // args.bs} batches of {args.bs} pictures of {args.size[0]}x{args.size[1]}, {c} people', flush=True)
            out['time'] = in_turns(sides, range(args.repeat), home, args.model, c, args.size, args.epochs, bs=args.bs, score=False, checkout=checkout)
            show(out['time'], n // args.bs, args.bs)
            if checkout: lines += time_lines(out['time'], args.model, args.bs)
        if args.seeds:
            name = args.map_model or args.model
            n, c = make_data(home := Path(folder) / 'mAP', args.crops, args.map_ids, 5)
            print(f'\nmAP: {name}, {args.map_epochs} epochs of {n // args.bs} batches of {args.bs} pictures of {args.map_size[0]}x{args.map_size[1]}, {c} people, {args.seeds} seeds', flush=True)
            out['mAP'] = in_turns(sides, range(args.seeds), home, name, c, args.map_size, args.map_epochs, bs=args.bs, score=True, checkout=checkout)
            show(out['mAP'], n // args.bs, args.bs)
            for side, o in out['mAP'].items(): print(f'{side:12}mAP ' + ', '.join(f'{run["mAP"]:.4f}' for run in o))
            if checkout: lines.append(mAP_line(out['mAP']))
    if lines: print(f'\n{"target":64}{"wanted":>14}    {"reached":>22}')
    for what, wanted, got, met in lines: print(f'{what:64}{wanted:>14} -> {got:>22}  {"yes" if met else "NO"}')
    if args.json: args.json.write_text(json.dumps(dict(args={k: str(v) for k, v in vars(args).items()}, runs=out, targets=lines), indent=1))

if __name__ == '__main__': main()
