"A run that is killed, that meets a full disk, a NaN or an empty memory: what is kept, what is said, and how it goes on"
import json
import os
import random
import signal
import subprocess
import sys
import time
import warnings

import numpy as np
import pytest
import torch
from fastai.callback.core import Callback
from fastai.callback.schedule import lr_find
from fastai.callback.tracker import ReduceLROnPlateau
from fastai.learner import Learner
from fastai.optimizer import OptimWrapper
from reid_nb.core import ReidError
from reid_nb.data.block import ReidDataLoaders
from reid_nb.data.synth import synth_people
from reid_nb.losses import IdLoss
from reid_nb.models.zoo import load_weights
from reid_nb.train.callbacks import CenterLossCallback, ReidEvalCallback, TripletCallback
from reid_nb.train.checkpoint import CheckpointCallback, chance_state, checkpoint_table, explain_memory, pick_device, set_chance
from torch import nn

# No SeedCallback: the states of all random numbers must come from the file
RUN = '''
import json, os, random, sys, time
from pathlib import Path
import numpy as np, torch
from fastai.callback.core import Callback
from fastai.learner import Learner
from reid_nb.data.block import ReidDataLoaders
from reid_nb.data.synth import synth_people
from reid_nb.losses import IdLoss
from reid_nb.train.callbacks import CenterLossCallback, ReidEvalCallback, TripletCallback
from reid_nb.train.checkpoint import CheckpointCallback
from torch import nn

class Net(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.body, self.drop, self.classifier = nn.Sequential(nn.Conv2d(3, 8, 3, 4), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()), nn.Dropout(.5), nn.Linear(8, c)
    def forward(self, x):
        feat = self.body(x)
        return [(feat, self.classifier(self.drop(feat)))] if self.training else feat

class Noise(Callback): # takes from each source of chance, and has a state of its own
    def __init__(self): self.total = 0.
    def before_batch(self):
        if not self.training: return
        self.learn.xb = (self.xb[0] + .1 * random.random() + .1 * np.random.rand() + .1 * torch.rand(1).item(),)
        self.total += float(self.xb[0].sum())
        time.sleep(.02) # a kill can hit any batch
    def state_dict(self): return dict(total=self.total)
    def load_state_dict(self, state): self.total = state['total']

class Log:
    def __call__(self, row): print('epoch done', flush=True)

torch.set_num_threads(1)

def run(folder):
    torch.manual_seed(0), random.seed(0), np.random.seed(0)
    dls = ReidDataLoaders.from_items(synth_people(n_ids=16, n_cams=2, per_cam=3, distractors=0, junk=0), size=(64, 32), p=4, k=2, path=folder)
    dls.train.rng.seed(0)
    noise = Noise()
    learn = Learner(dls, Net(dls.c), loss_func=IdLoss(), cbs=[TripletCallback(), CenterLossCallback(), ReidEvalCallback(), noise])
    learn.logger = Log()
    with learn.no_bar(): learn.fit(7, 1e-2, cbs=CheckpointCallback(folder/'last.pth', best='mAP'))
    sums = [float(o.double().abs().sum()) for state in (learn.model.state_dict(), torch.load(folder/'best.pth', weights_only=True)) for o in state.values()]
    (folder/'end.json').write_text(json.dumps([[list(map(float, o)) for o in learn.recorder.values], list(map(float, learn.recorder.losses)), sums, noise.total,
        float(learn.center_loss.losses[0].centers.double().abs().sum()), learn.train_iter, random.random(), np.random.rand(), torch.rand(1).item(), dls.train.rng.random()]))

for line in sys.stdin: # the imports are paid once: each run is a fork
    if not (pid := os.fork()):
        run(Path(line.strip()))
        os._exit(0)
    print(pid, flush=True)
    print('exit', os.waitpid(pid, 0)[1], flush=True)
'''

class Runner:
    "A process that starts runs, tells their rows, and lives on when they are killed"
    def __init__(self): self.process = subprocess.Popen([sys.executable, '-W', 'ignore', '-c', RUN], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)
    def say(self): return self.process.stdout.readline().strip()
    def run(self, folder, rows=None, pause=0.): # killed `pause` seconds after it has shown so many rows; its exit status
        folder.mkdir(exist_ok=True)
        print(folder, file=self.process.stdin)
        pid = int(self.say())
        if rows is not None:
            for _ in range(rows): assert self.say() == 'epoch done'
            time.sleep(pause)
            os.kill(pid, signal.SIGKILL)
        while (said := self.say()) == 'epoch done': pass
        return int(said.split()[1])

@pytest.fixture(scope='module')
def runner():
    with (it := Runner()).process:
        yield it
        it.process.stdin.close()

def test_a_run_killed_at_any_moment_ends_as_an_unbroken_one(tmp_path, runner):
    whole, broken, chance = tmp_path/'whole', tmp_path/'broken', random.Random(7)
    for rows in (0, 1, 3): # a resumed run shows the finished rows first
        assert runner.run(broken, rows, chance.uniform(0, .12)) == signal.SIGKILL
        assert not (broken/'end.json').exists(), 'it was over before it could be killed'
        if rows: assert rows - 1 <= len(checkpoint_table(broken/'last.pth')) < 7
    assert runner.run(broken) == 0 and runner.run(whole) == 0
    assert json.loads((broken/'end.json').read_text()) == json.loads((whole/'end.json').read_text())
    assert sorted(o.name for o in broken.iterdir() if not o.name.startswith('.')) == ['best.pth', 'end.json', 'last.pth']


class Net(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, 4), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.drop, self.classifier = nn.Dropout(.5), nn.Linear(8, c)
    def forward(self, x):
        feat = self.body(x)
        return [(feat, self.classifier(self.drop(feat)))] if self.training else feat

class Die(Callback):
    order = -30
    def __init__(self, epoch, batch=None): self.at = epoch, batch
    def before_epoch(self):
        if self.at == (self.epoch, None): raise KeyboardInterrupt
    def before_batch(self):
        if self.training and self.at == (self.epoch, self.iter): raise KeyboardInterrupt

@pytest.fixture(scope='module')
def items(): return synth_people(n_ids=16, n_cams=2, per_cam=3, distractors=0, junk=0)

def learner(items, *cbs, seed=0, **kwargs):
    random.seed(seed), np.random.seed(seed), torch.manual_seed(seed)
    dls = ReidDataLoaders.from_items(items, size=(64, 32), p=4, k=2)
    dls.train.rng.seed(seed)
    return Learner(dls, Net(dls.c), loss_func=IdLoss(), cbs=[TripletCallback(), CenterLossCallback(), ReidEvalCallback(), *cbs], **kwargs)

def fit(learn, path, *cbs, n=4, lr=1e-2, **kwargs):
    try:
        with learn.no_bar(), learn.no_logging(): learn.fit(n, lr, cbs=[CheckpointCallback(path, **kwargs), *cbs])
    except KeyboardInterrupt: pass
    return learn

def same(a, b):
    assert a.recorder.values == b.recorder.values
    for o in ('losses', 'lrs', 'iters'): assert list(map(float, getattr(a.recorder, o))) == list(map(float, getattr(b.recorder, o)))
    assert all(torch.equal(p, q) for p, q in zip(a.model.state_dict().values(), b.model.state_dict().values()))

def adamw(params, lr, **kwargs): return OptimWrapper(params, torch.optim.AdamW, lr=lr)

@pytest.mark.parametrize('opt', [None, adamw])
def test_every_moment_and_another_beginning(tmp_path, items, opt):
    kwargs = dict(opt_func=opt) if opt else {}
    whole = fit(learner(items, **kwargs), tmp_path/'a.pth')
    for at, seed in (((0, 1), 0), ((1, 0), 0), ((2, None), 51)): fit(learner(items, seed=seed, **kwargs), tmp_path/'b.pth', Die(*at)) # the first leaves no file
    assert len(checkpoint_table(tmp_path/'b.pth')) == 2
    same(fit(learner(items, seed=99, **kwargs), tmp_path/'b.pth'), whole)
    same(fit(learner(items, seed=98, **kwargs), tmp_path/'b.pth'), whole) # it is over: only shown again

def test_chance_is_put_back(items):
    dls = learner(items).dls
    def throw(): return [random.random(), np.random.rand(), np.random.randn(), torch.rand(1).item(), dls.train.rng.random(), [o[1].tolist() for o in dls.train]]
    np.random.randn() # numpy keeps the second of two normal numbers
    state = chance_state(dls)
    first = throw()
    assert throw() != first
    set_chance(state, dls)
    assert throw() == first

def test_trackers_go_on_where_they_were(tmp_path, items):
    class Spy(ReduceLROnPlateau):
        def __init__(self): super().__init__(monitor='mAP', min_delta=9., patience=2, factor=10.) # nothing is good enough
    whole = fit(learner(items), tmp_path/'a.pth', Spy(), n=5)
    assert whole.recorder.lrs[-1] < .5 * whole.recorder.lrs[0]
    fit(learner(items), tmp_path/'b.pth', Spy(), Die(2), n=5)
    same(fit(learner(items, seed=5), tmp_path/'b.pth', Spy(), n=5), whole)

def test_the_best_epoch_is_kept(tmp_path, items):
    states = []
    class Watch(Callback):
        order = 54
        def after_validate(self): states.append({k: v.clone() for k, v in self.model.state_dict().items()})
    learn = fit(learner(items), tmp_path/'last.pth', Watch(), n=5, best='mAP')
    table = checkpoint_table(tmp_path/'last.pth')
    best = int(table.mAP.to_numpy().argmax())
    assert table.attrs['best'] == [best, table.mAP[best]]
    found = torch.load(tmp_path/'best.pth', weights_only=True)
    assert all(torch.equal(found[k], v) for k, v in states[best].items())
    load_weights(learn.model, tmp_path/'best.pth', strict=True)
    assert learn.recorder.metric_names[-2] == 'mINP' and list(table)[-3:] == ['rank1', 'mAP', 'mINP']

def test_a_smaller_loss_is_better(tmp_path, items):
    fit(learner(items), tmp_path/'last.pth', n=3, best='train_loss')
    table = checkpoint_table(tmp_path/'last.pth')
    assert table.attrs['best'] == [int(table.train_loss.to_numpy().argmin()), table.train_loss.min()]

@pytest.mark.parametrize('change, words', [
    (dict(n=5), 'epochs was 4 and is 5'),
    (dict(options=dict(lr=.2)), 'lr was 0.1 and is 0.2')])
def test_another_run_is_refused(tmp_path, items, change, words):
    fit(learner(items), tmp_path/'last.pth', options=dict(lr=.1))
    before = (tmp_path/'last.pth').read_bytes()
    learn = learner(items, seed=3)
    weights = [o.clone() for o in learn.model.state_dict().values()]
    with pytest.raises(ReidError, match=words): fit(learn, tmp_path/'last.pth', **{**dict(options=dict(lr=.1)), **change})
    assert (tmp_path/'last.pth').read_bytes() == before
    assert all(torch.equal(a, b) for a, b in zip(learn.model.state_dict().values(), weights))

def test_another_model_is_refused(tmp_path, items):
    fit(learner(items), tmp_path/'last.pth')
    learn = learner(items)
    learn.model.classifier = nn.Linear(8, 77)
    with pytest.raises(ReidError, match=r'2 tensors of the model differ, first classifier.weight, which was \(8, 8\) and is \(77, 8\)'): fit(learn, tmp_path/'last.pth')

def test_a_full_disk_keeps_the_last_good_file(tmp_path, items, monkeypatch):
    real, calls = os.replace, []
    def replace(a, b):
        calls.append(b)
        if len(calls) > 2: raise OSError(28, 'No space left on device')
        real(a, b)
    monkeypatch.setattr(os, 'replace', replace)
    with warnings.catch_warnings(record=True) as notes:
        warnings.simplefilter('always')
        learn = fit(learner(items), tmp_path/'last.pth')
    said = [str(o.message) for o in notes if 'last.pth' in str(o.message)]
    assert len(said) == 2 and 'after epoch 3: No space left on device. The one of epoch 1 is kept' in said[1]
    assert len(learn.recorder.values) == 4 and len(calls) == 4
    assert len(checkpoint_table(tmp_path/'last.pth')) == 2 and [o.name for o in tmp_path.iterdir()] == ['last.pth']
    monkeypatch.undo()
    same(fit(learner(items, seed=3), tmp_path/'last.pth'), learn)

class Spoil(Callback):
    "NaN in the logits of a batch, or in the weights after the last"
    order = -5
    def __init__(self, weights=False): self.weights = weights
    def after_pred(self):
        if self.training and not self.weights and (self.epoch, self.iter) == (2, 1): self.learn.pred = [(f, o * float('nan')) for f, o in self.pred]
    def after_train(self):
        if self.weights and self.epoch == 2: self.model.classifier.weight.data[0, 0] = float('inf')

@pytest.mark.parametrize('weights, words', [(False, r'The loss is nan in epoch 2, batch 1 of \d+, at learning rate 0.01'), (True, 'A weight is not finite in epoch 2')])
def test_what_is_not_finite_stops_the_run(tmp_path, items, weights, words):
    with pytest.raises(ReidError, match=words) as e: fit(learner(items, Spoil(weights)), tmp_path/'last.pth')
    assert f'The last good checkpoint is {tmp_path/"last.pth"}, of epoch 1' in str(e.value)
    same(fit(learner(items, seed=4), tmp_path/'last.pth'), fit(learner(items), tmp_path/'whole.pth')) # and it can go on once the cause is gone

def test_nothing_of_a_fit_is_left_elsewhere(tmp_path, items):
    learn = learner(items, CheckpointCallback(tmp_path/'last.pth', best='mAP'))
    with learn.no_bar(), learn.no_logging():
        learn.validate(), learn.get_preds(), learn.lr_find(show_plot=False, num_it=5)
    assert not any(tmp_path.iterdir())

@pytest.mark.parametrize('error', [torch.OutOfMemoryError('CUDA out of memory.'), MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")])
def test_memory_runs_out(tmp_path, items, error):
    class Model(Net):
        def forward(self, x):
            if self.training and learn.epoch == 1: raise error
            return super().forward(x)
    learn = learner(items)
    learn.model = Model(learn.dls.c)
    with pytest.raises(ReidError, match='epoch 1, batch 0, training.*8 images of 64×32.*last.pth, is unharmed'), explain_memory(learn):
        fit(learn, tmp_path/'last.pth')
    with pytest.raises(RuntimeError, match='another'), explain_memory(learn): raise RuntimeError('another')

@pytest.mark.skipif(torch.cuda.is_available(), reason='there is a GPU')
def test_a_gpu_that_is_not_there():
    with pytest.raises(ReidError, match='cuda was asked for.*sees no GPU.*device=.cpu'): pick_device('cuda')
    assert pick_device().type in ('cpu', 'mps')
