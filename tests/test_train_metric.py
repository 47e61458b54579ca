"MetricLossCallback: any loss on features trains, learns its own parameters, is saved with the learner and put back by lr_find; with fastai's and torch's optimisers"
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.learner import Learner
from fastai.optimizer import SGD, Adam, OptimWrapper
from fastai.callback.schedule import fit_one_cycle, lr_find
from pytorch_metric_learning import losses as pml, miners
from torch import nn

from reid_nb.core import ReidError
from reid_nb.losses import IdLoss, TripletLoss
from reid_nb.margins import CircleLoss, OIMLoss, RingLoss
from reid_nb.train.callbacks import CenterLossCallback, CheckpointCallback, MetricLossCallback, TripletCallback
from reid_nb.triplets import contrastive

G = torch.Generator().manual_seed(0)
PID = torch.arange(32) % 8
X = torch.randn(8, 6, generator=G)[PID] + .3 * torch.randn(32, 6, generator=G)

class Net(nn.Module):
    def __init__(self, heads=1):
        super().__init__()
        self.body, self.heads = nn.Linear(6, 5), nn.ModuleList(nn.Linear(5, 8) for _ in range(heads))
    def forward(self, x):
        feat = self.body(x)
        return [(feat, o(feat)) for o in self.heads] if self.training else feat

def learner(tmp_path, *cbs, heads=1, seed=0, **kwargs):
    torch.manual_seed(seed)
    data = [(x, y) for x, y in zip(X, PID)]
    dls = DataLoaders(DataLoader(data, bs=16, shuffle=False, drop_last=True), DataLoader([(x, y % 5) for x, y in data], bs=16), path=tmp_path) # in validation the feature's five numbers stand for logits
    dls.c = 8
    return Learner(dls, Net(heads), loss_func=IdLoss(), cbs=cbs, path=tmp_path, **kwargs)

def quiet_fit(learn, n=1, lr=.05, **kwargs):
    with learn.no_bar(), learn.no_logging(): learn.fit(n, lr, **kwargs)
    return learn

OPTS = {'fastai': Adam, 'torch': partial(OptimWrapper, opt=torch.optim.AdamW)}

def test_the_weighted_loss_is_added(tmp_path):
    cb = MetricLossCallback(contrastive, weight=3., normalize=True)
    learn = learner(tmp_path, cb, opt_func=SGD)
    twin = Net()
    twin.load_state_dict(learn.model.state_dict())
    quiet_fit(learn, lr=.1, wd=0.)
    opt = torch.optim.SGD(twin.parameters(), .1)
    seen = []
    for i in (0, 16):
        (feat, logits), = twin(X[i:i + 16])
        seen.append(contrastive(F.normalize(feat), PID[i:i + 16]))
        opt.zero_grad()
        (IdLoss()(logits, PID[i:i + 16]) + 3 * seen[-1]).backward()
        opt.step()
    for a, b in zip(learn.model.parameters(), twin.parameters()): assert torch.allclose(a, b, atol=1e-4)
    names = list(learn.recorder.metric_names)
    assert names == ['epoch', 'train_loss', 'contrastive', 'valid_loss', 'time'] and learn.recorder.values[0][1] == pytest.approx(torch.stack(seen).mean().item(), rel=1e-3)

def test_our_triplet_callback_is_a_special_case(tmp_path):
    a = quiet_fit(learner(tmp_path, TripletCallback(weight=.5)))
    b = quiet_fit(learner(tmp_path, MetricLossCallback(TripletLoss(), weight=.5, normalize=True)))
    assert all(torch.equal(p, q) for p, q in zip(a.model.parameters(), b.model.parameters()))

def test_a_miner_chooses(tmp_path):
    given = []
    class Log(pml.TripletMarginLoss):
        def forward(self, feat, pid, pairs):
            given.append([len(o) for o in pairs])
            return super().forward(feat, pid, pairs)
    quiet_fit(learner(tmp_path, MetricLossCallback(Log(), miners.BatchHardMiner())))
    assert given == [[16] * 3] * 2

@pytest.mark.parametrize('opt', OPTS)
def test_parameters_of_the_loss_learn_at_the_learner_s_rate(tmp_path, opt):
    def run(weight, lr=None):
        cb = MetricLossCallback(pml.ProxyAnchorLoss(8, 5), weight=weight, lr=lr)
        learn = learner(tmp_path, cb, opt_func=OPTS[opt])
        start = cb.losses[0].proxies.detach().clone()
        quiet_fit(learn, lr=1e-3)
        return (cb.losses[0].proxies.detach() - start).abs().max().item(), cb
    assert run(1.)[0] == pytest.approx(2e-3, rel=.1)  # two steps of Adam
    assert run(1e-4)[0] == pytest.approx(2e-3, rel=.1) # whatever the weight of the loss
    assert run(1., lr=.1)[0] == pytest.approx(.2, rel=.2)
    cb = run(1.)[1]
    quiet_fit(learner(tmp_path, cb)) # a callback that was used before

def test_one_cycle_drives_the_loss_s_rate(tmp_path):
    cb = MetricLossCallback(RingLoss())
    learn = learner(tmp_path, cb)
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(2, .01)
    assert cb.optim.param_groups[0]['lr'] == pytest.approx(learn.recorder.lrs[-1])

def losses(): return [MetricLossCallback(pml.ProxyAnchorLoss(8, 5), weight=.1), MetricLossCallback(OIMLoss(8, 5, queue=4)), MetricLossCallback(RingLoss(), weight=.1)]
def learned(learn): return [o for cb in learn.cbs if isinstance(cb, MetricLossCallback) for o in cb.parts.state_dict().values()]

@pytest.mark.parametrize('opt', OPTS)
def test_saved_and_loaded_with_the_learner(tmp_path, opt):
    a = quiet_fit(learner(tmp_path, *losses(), CenterLossCallback(), opt_func=OPTS[opt]), 2)
    a.save('x')
    b = learner(tmp_path, *losses(), CenterLossCallback(), seed=1, opt_func=OPTS[opt])
    b.load('x')
    quiet_fit(b, 0)
    assert len(learned(a)) == 5 and all(torch.equal(p, q) for p, q in zip(learned(a), learned(b)))
    assert torch.equal(a.center_loss.losses[0].centers, b.center_loss.losses[0].centers)
    quiet_fit(a), quiet_fit(b) # and go on alike: their Adam is there, too
    assert all(torch.equal(p, q) for p, q in zip(learned(a), learned(b)))
    assert all(torch.equal(p, q) for p, q in zip(a.model.parameters(), b.model.parameters()))

@pytest.mark.parametrize('opt', OPTS)
def test_a_run_that_died_ends_as_an_unbroken_one(tmp_path, opt):
    def run(path, stop=None):
        torch.manual_seed(7)
        learn = learner(tmp_path, *losses(), CenterLossCallback(), opt_func=OPTS[opt])
        def die():
            if learn.epoch == stop: raise KeyboardInterrupt
        learn.cbs[0].before_epoch = die
        try: quiet_fit(learn, 4, cbs=CheckpointCallback(path))
        except KeyboardInterrupt: pass
        return learn
    whole = run(tmp_path/'a.pth')
    run(tmp_path/'b.pth', stop=2)
    again = run(tmp_path/'b.pth')
    assert again.recorder.values == whole.recorder.values
    assert all(torch.equal(p, q) for p, q in zip(learned(whole), learned(again)))
    assert all(torch.equal(p, q) for p, q in zip(whole.model.parameters(), again.model.parameters()))
    assert torch.equal(whole.center_loss.losses[0].centers, again.center_loss.losses[0].centers)

@pytest.mark.parametrize('opt', OPTS)
def test_lr_find_puts_the_loss_back(tmp_path, opt):
    learn = quiet_fit(learner(tmp_path, *losses(), opt_func=OPTS[opt]))
    before = [o.clone() for o in learned(learn)]
    with learn.no_bar(), learn.no_logging(): learn.lr_find(show_plot=False, num_it=10)
    assert all(torch.equal(p, q) for p, q in zip(before, learned(learn)))
    new = learner(tmp_path, *losses(), opt_func=OPTS[opt]) # before anything was trained
    before = [o.clone() for o in learned(new)]
    with new.no_bar(), new.no_logging(): new.lr_find(show_plot=False, num_it=10)
    assert all(torch.equal(p, q) for p, q in zip(before, learned(new)))
    quiet_fit(new)

def test_heads(tmp_path):
    one = MetricLossCallback(CircleLoss())
    quiet_fit(learner(tmp_path, one, heads=2))
    two = MetricLossCallback([RingLoss(1.), RingLoss(9.)], name='rings')
    learn = quiet_fit(learner(tmp_path, two, heads=2))
    assert learn.recorder.metric_names[2] == 'rings' and two.losses[0].radius > 1 and two.losses[1].radius < 9
    with pytest.raises(ReidError, match='3 heads, but there are 2 losses'): quiet_fit(learner(tmp_path, two, heads=3))

def test_warmup(tmp_path):
    shares = []
    class Shares(MetricLossCallback):
        def after_loss(self):
            if not self.training: return
            before = self.learn.loss_grad.item()
            super().after_loss()
            shares.append((self.learn.loss_grad.item() - before) / self.seen[-1].item())
    quiet_fit(learner(tmp_path, Shares(RingLoss(3.), weight=2., warmup=.5)), 4) # eight batches
    assert shares == pytest.approx([0, .5, 1, 1.5, 2, 2, 2, 2], abs=1e-3)

def test_several_batches_to_a_step(tmp_path):
    from fastai.callback.training import GradientAccumulation
    cb = MetricLossCallback(pml.ProxyAnchorLoss(8, 5))
    start = cb.losses[0].proxies.detach().clone()
    quiet_fit(learner(tmp_path, cb), 1, lr=1e-3, cbs=GradientAccumulation(32))
    assert (cb.losses[0].proxies - start).abs().max().item() == pytest.approx(1e-3, rel=.1) # one step

@pytest.mark.parametrize('name', ['to_fp16', 'to_bf16'])
@pytest.mark.filterwarnings('ignore')
def test_half_precision(tmp_path, name):
    learn = learner(tmp_path, *losses())
    getattr(learn, name)()
    quiet_fit(learn)
    assert all(o.isfinite().all() for o in learned(learn)) and torch.tensor(learn.recorder.values[0][:4]).isfinite().all()

def test_predictions_and_summary(tmp_path):
    learn = quiet_fit(learner(tmp_path, *losses()))
    with learn.no_bar(): assert learn.get_preds()[0].shape == (32, 5)
