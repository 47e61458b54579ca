"Averages of weights, accumulated gradients and hard identities in runs that are saved, broken off and gone on with"
from functools import partial

import pytest
import torch
from fastai.callback.core import Callback
from fastai.callback.tracker import EarlyStoppingCallback, SaveModelCallback
from fastai.learner import Learner
from fastai.optimizer import Adam
from reid_nb.core import ReidError
from reid_nb.data.block import ReidDataLoaders
from reid_nb.data.samplers import HardPKSampler
from reid_nb.data.synth import synth_people
from reid_nb.losses import IdLoss, TripletLoss
from reid_nb.train.averages import AccumulateCallback, ChunkCallback, EmaCallback, HardIdentityCallback, MixCallback, SwaCallback
from reid_nb.train.callbacks import CenterLossCallback, CheckpointCallback, MetricLossCallback, ReidEvalCallback, SeedCallback, TripletCallback
from reid_nb.train.schedule import make_optimizer
from timm.utils import ModelEmaV3
from torch import nn

ITEMS = dict(n_ids=16, n_cams=2, per_cam=3, distractors=4, junk=0)


class Tiny(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.conv, self.norm, self.drop, self.classifier = nn.Conv2d(3, 16, 3, 2, bias=False), nn.BatchNorm2d(16), nn.Dropout(.1), nn.Linear(16, c)

    def forward(self, x):
        feat = self.norm(self.conv(x)).relu().mean((2, 3))
        return [(feat, self.classifier(self.drop(feat)))] if self.training else feat


@pytest.fixture(scope='module')
def items(): return synth_people(**ITEMS)


def make(items, *cbs, hard=False, opt='adam'):
    dls = ReidDataLoaders.from_items(items, size=(32, 16), p=4, k=2, sampler=partial(HardPKSampler, p=4, k=2) if hard else None)
    torch.manual_seed(0)
    return Learner(dls, Tiny(dls.c), loss_func=IdLoss(), opt_func=Adam if opt is None else make_optimizer(opt), cbs=[SeedCallback(0), ReidEvalCallback(), *cbs])


def fit(learn, *args, **kwargs):
    with learn.no_bar(), learn.no_logging(): learn.fit(*args, **kwargs)
    return learn


def weights(learn): return {k: v.clone() for k, v in learn.model.state_dict().items()}


def same(a, b): return all(torch.equal(a[k], b[k]) for k in a)


class PowerCut(Callback):
    order = 80
    def __init__(self, epoch): self.at = epoch
    def after_epoch(self):
        if self.epoch == self.at: raise KeyboardInterrupt


@pytest.mark.parametrize('ours, theirs', [(dict(decay=.8, warmup=False), dict(decay=.8)), (dict(decay=.8), dict(decay=.8, use_warmup=True)),
                                          (dict(decay=.8, buffers='copy'), dict(decay=.8, use_warmup=True, exclude_buffers=True))])
def test_the_moving_average_is_timms(items, ours, theirs):
    class Beside(Callback):
        def before_fit(self): self.theirs, self.t = ModelEmaV3(self.learn.model, **theirs), 0
        def after_step(self):
            self.t += 1
            self.theirs.update(self.learn.model, step=self.t if 'use_warmup' in theirs else None)
    learn = fit(make(items, EmaCallback(**ours), b := Beside()), 2, 1e-2)
    for (k, v), w in zip(learn.model.state_dict().items(), b.theirs.module.state_dict().values()): assert torch.allclose(v.float(), w.float(), atol=1e-6), k


@pytest.mark.parametrize('cb', [partial(EmaCallback, .9), partial(SwaCallback, .25), partial(EmaCallback, .9, keep=False)])
@pytest.mark.parametrize('opt', ['adam', None])
def test_a_run_goes_on_with_its_average(items, tmp_path, cb, opt):
    def run(path, *cbs): return fit(make(items, cb(), opt=opt), 4, 1e-2, cbs=[CheckpointCallback(path), *cbs])
    whole = run(tmp_path/'whole.pth')
    with pytest.raises(KeyboardInterrupt): run(tmp_path/'broken.pth', PowerCut(1))
    with pytest.raises(KeyboardInterrupt): run(tmp_path/'broken.pth', PowerCut(2))
    again = run(tmp_path/'broken.pth')
    over = run(tmp_path/'broken.pth') # a run that was over
    for o in (again, over):
        assert o.recorder.values == whole.recorder.values
        assert same(weights(whole), weights(o))


def test_a_second_fit_begins_a_new_average(items):
    learn = fit(make(items, EmaCallback(.9)), 2, 1e-2)
    start = weights(learn)
    fit(learn, 1, 0.) # nothing moves but statistics: the average is the network
    now = weights(learn)
    assert all(torch.allclose(start[k], now[k]) for k, _ in learn.model.named_parameters())


@pytest.mark.parametrize('cbs', [[SaveModelCallback(monitor='mAP')], [SaveModelCallback(monitor='mAP'), EarlyStoppingCallback(monitor='mAP', patience=1)]])
def test_the_best_epochs_average_is_kept(items, tmp_path, cbs, capsys):
    learn = make(items, EmaCallback(.9))
    learn.path = tmp_path
    fit(learn, 6, 3e-2, cbs=cbs)
    maps = [o[-2] for o in learn.recorder.values]
    assert learn.validate()[-2] == pytest.approx(max(maps), abs=1e-6)


def test_an_average_counts_steps_and_not_batches(items):
    class Count(Callback):
        order, n = 80, 0
        def after_epoch(self): self.n = self.learn.ema.taken
    learn = make(items, EmaCallback(), AccumulateCallback(3), c := Count())
    fit(learn, 1, 1e-3)
    assert c.n == -(-len(learn.dls.train) // 3)


def test_accumulated_gradients_are_the_mean_of_the_batches(items):
    def grads(*cbs):
        got = []
        class Grab(Callback):
            order = 12
            def before_step(self): got.append(torch.cat([p.grad.flatten() for p in self.learn.model.parameters()]))
        learn = make(items, TripletCallback(), Grab(), *cbs)
        learn.model.norm, learn.model.drop = nn.Identity(), nn.Identity()
        fit(learn, 1, 0.)
        return got
    each = grads()
    for n in (2, len(each) - 1, 100): # the last group of an epoch may be smaller
        got, want = grads(AccumulateCallback(n)), [torch.stack(each[i:i + n]).mean(0) for i in range(0, len(each), n)]
        assert len(got) == len(want) and all(torch.allclose(a, b, rtol=1e-4, atol=1e-7) for a, b in zip(got, want))


def test_chunks_give_the_gradient_of_the_whole_batch_with_dropout_off_and_are_reproducible_with_it(items):
    def run(*cbs, drop=0.):
        learn = make(items, TripletCallback(normalize=False), *cbs)
        learn.model.norm, learn.model.drop = nn.Identity(), nn.Dropout(drop)
        return fit(learn, 2, 1e-2)
    a, b = run(), run(ChunkCallback(3))
    assert all(torch.allclose(p, q, atol=1e-5) for p, q in zip(a.model.parameters(), b.model.parameters()))
    assert same(weights(run(ChunkCallback(3), drop=.5)), weights(run(ChunkCallback(3), drop=.5)))
    assert 'forward' not in b.model.__dict__
    with pytest.raises(ReidError, match='chunk of one'): fit(make(items, ChunkCallback(7)), 1)


@pytest.mark.parametrize('every', [1, 2])
def test_hard_identities_are_known_again_when_a_run_goes_on(items, tmp_path, every):
    def run(path, *cbs): return fit(make(items, HardIdentityCallback(every=every), hard=True), 4, 1e-2, cbs=[CheckpointCallback(path), *cbs])
    whole = run(tmp_path/'whole.pth')
    assert whole.dls.train.sampler.near.shape[1]
    with pytest.raises(KeyboardInterrupt): run(tmp_path/'broken.pth', PowerCut(1))
    again = run(tmp_path/'broken.pth')
    assert again.recorder.values == whole.recorder.values and same(weights(whole), weights(again))
    with pytest.raises(ValueError, match='HardPKSampler'): fit(make(items, HardIdentityCallback()), 1)


@pytest.mark.parametrize('cb', [TripletCallback, CenterLossCallback, lambda: MetricLossCallback(TripletLoss())])
def test_mixed_images_and_losses_on_features_are_refused(items, cb):
    with pytest.raises(ValueError, match='shows two identities'): fit(make(items, MixCallback(), cb()), 1)


@pytest.mark.parametrize('kind', ['mixup', 'cutmix'])
def test_mixing_weighs_the_loss_by_the_share_of_the_image(items, kind):
    class Look(Callback):
        order = 1
        def before_batch(self):
            if self.training: self.mixed = self.x.clone()
        def after_loss(self):
            if not self.training: return
            mix, loss = self.learn.mix, self.learn.loss_func
            want = mix.share * loss(self.pred, self.y) + (1 - mix.share) * loss(self.pred, mix.other)
            assert torch.allclose(self.loss_grad, want) and 0 <= mix.share <= 1
    learn = make(items, MixCallback(kind, 1.), Look())
    fit(learn, 1, 1e-3)
    assert learn.look.mixed.shape[1:] == (3, 32, 16)
