"What makes a triplet loss do nothing is found, each cause by its own name, and healthy runs are left in peace"
import math
import warnings
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from fastai.callback.core import Callback
from fastai.callback.schedule import lr_find # noqa: F401
from fastai.learner import Learner
from reid_nb.core import ReidError
from reid_nb.data.block import ReidDataLoaders
from reid_nb.data.cache import ImageCache
from reid_nb.data.samplers import RandomSampler
from reid_nb.data.synth import synth_people
from reid_nb.losses import IdLoss, TripletLoss
from reid_nb.train.averages import AccumulateCallback
from reid_nb.train.callbacks import MetricLossCallback, ReidEvalCallback, SeedCallback, TripletCallback
from reid_nb.train.checkpoint import CheckpointCallback
from reid_nb.train.diagnose import (DISEASES, DiagnoseCallback, DiagnosisWarning, DistanceHistogramCallback, batch_facts, diagnose, pairs_in_order,
    plot_distance_epochs)
from reid_nb.train.finetune import FixBaseCallback
from reid_nb.train.schedule import make_optimizer
from torch import nn


class Tiny(nn.Module):
    def __init__(self, c, norm=nn.BatchNorm2d, heads=1, change=lambda x: x):
        super().__init__()
        def block(i, o): return nn.Sequential(nn.Conv2d(i, o, 3, 2, 1, bias=False), norm(o), nn.ReLU())
        self.body, self.classifier = nn.Sequential(block(3, 16), block(16, 32), nn.AdaptiveAvgPool2d(1), nn.Flatten()), nn.Linear(32, c)
        self.heads, self.change = heads, change

    def forward(self, x):
        feat = self.body(x)
        return [(self.change(feat) if i == self.heads - 1 else feat, self.classifier(feat)) for i in range(self.heads)] if self.training else feat


@pytest.fixture(scope='module')
def items(): return synth_people(n_ids=24, n_cams=2, per_cam=2, distractors=4, junk=0)


@pytest.fixture(scope='module')
def cache(tmp_path_factory): return ImageCache((32, 16), tmp_path_factory.mktemp('pixels'))


@pytest.fixture
def make(items, cache, tmp_path):
    def make(*cbs, triplet=TripletCallback, net=Tiny, loss_func=None, opt='adam', **kwargs):
        dls = ReidDataLoaders.from_items(items, **{**dict(size=(32, 16), p=4, k=2, cache=cache), **kwargs})
        torch.manual_seed(0)
        cbs = [*([triplet()] if triplet else []), SeedCallback(0), ReidEvalCallback(every=99), *cbs]
        return Learner(dls, net(dls.c), loss_func=loss_func or IdLoss(), path=tmp_path, opt_func=make_optimizer(opt), cbs=cbs)
    return make


def fit(learn, n=4, lr=1e-2, cbs=None): # the warnings that are ours
    with learn.no_bar(), learn.no_logging(), warnings.catch_warnings(record=True) as said:
        warnings.simplefilter('always', DiagnosisWarning)
        try: learn.fit(n, lr, cbs=cbs)
        finally: learn.said = [str(o.message) for o in said if o.category is DiagnosisWarning]
    return learn


def found(learn): return learn.diagnosis.what.tolist()
def no_id_loss(heads, label): return sum(o.sum() for _, o in heads) * 0.
def row(**kwargs):
    return {**dict(epoch=0, head=0, total=10, one=0., alone=0., graph=True, grad=1., moved=.01, open=1., held=False, body_lr=.01, lr=.01, bad='', bad_step=-1, d_pos=.5, d_neg=.6, spread=.5, active=.5,
                   triplet=.2, triplet0=.4, loss=2., loss0=3., length=5., length0=5.), **kwargs}


@pytest.mark.parametrize('triplet, n', [(TripletCallback, 12), (partial(TripletCallback, None), 6), (partial(TripletCallback, normalize=False), 6), (partial(TripletCallback, None, normalize=False), 6)])
def test_healthy_runs_are_left_in_peace(make, triplet, n):
    learn = fit(make(DiagnoseCallback(), triplet=triplet), n)
    assert found(learn) == [] and learn.said == []
    assert list(learn.diagnosis.columns) == ['what', 'head', 'since', 'until', 'value', 'says', 'do']


def test_looking_changes_nothing(make):
    a, b = fit(make(), 3), fit(make(DiagnoseCallback(every=1), DistanceHistogramCallback()), 3)
    assert all(torch.equal(v, w) for v, w in zip(a.model.state_dict().values(), b.model.state_dict().values()))


@pytest.mark.parametrize('what, value, change', [
    ('one person', .25, dict(one=.25)), ('alone', 1., dict(alone=1.)), ('alone', .2, dict(alone=.2)), ('frozen', 0., dict(graph=False)), ('frozen', 0., dict(grad=0.)), ('frozen', 0., dict(moved=0.)),
    ('collapse', .5, dict(d_pos=.01, d_neg=.01)), ('collapse', .01, dict(spread=.01)), ('dead', .01, dict(active=.01)), ('length', 20., dict(length=100.)), ('rate', .1, dict(loss=4., moved=.1)),
    ('rate', .1, dict(loss=0., loss0=0., triplet=.7, moved=.1)), ('nan', 3, dict(bad='images', bad_step=3, spread=math.nan, length=math.inf))])
def test_each_disease_from_its_figures(what, value, change):
    assert diagnose(pd.DataFrame([row()]), n_epoch=4).empty
    seen = diagnose(pd.DataFrame([row(), row(epoch=1, **change)]), n_epoch=4)
    assert seen[['what', 'since', 'until']].values.tolist() == [[what, 1, 1]] and seen.value[0] == pytest.approx(value)
    assert seen.do[0] == DISEASES[what][1]


def test_a_plateau_needs_time_and_no_other_cause():
    def run(n, patience=100, **kwargs): return diagnose(pd.DataFrame([row(epoch=i, total=50 * (i + 1), **{**dict(triplet=.31), **kwargs}) for i in range(n)]), patience=patience, n_epoch=20).what.tolist()
    assert run(2) == [] and run(3) == ['plateau'] and run(3, 200) == [] and run(4, 200) == ['plateau']
    assert run(5, triplet=.2) == [] and run(5, spread=.001) == ['collapse'] and run(5, alone=.5) == ['alone']
    falling = pd.DataFrame([row(epoch=i, total=50 * (i + 1), triplet=.5 - .02 * i) for i in range(6)])
    assert diagnose(falling, patience=100).empty
    soft = pd.DataFrame([row(epoch=i, total=50 * (i + 1), triplet=.69) for i in range(4)])
    assert diagnose(soft, None, 100).what.tolist() == ['plateau'] and 'ln 2' in diagnose(soft, None, 100).says[0]
    assert diagnose(soft, math.nan, 100).empty # no triplet loss


def test_the_hardest_triplets_of_a_first_batch_are_no_measure():
    assert diagnose(pd.DataFrame([row(loss=0., loss0=0., triplet=.5, triplet0=.4, moved=.1)])).empty


def test_few_active_anchors_are_fine_at_the_end():
    rows = pd.DataFrame([row(epoch=i, active=.5 if i < 3 else 0.) for i in range(6)])
    assert diagnose(rows, n_epoch=6).empty and diagnose(rows, n_epoch=8).what.tolist() == ['dead']
    assert diagnose(rows, None, n_epoch=8).empty # soft: every anchor has a loss


def test_batches_without_pairs(make):
    learn = make(DiagnoseCallback(), p=8, k=1)
    with pytest.raises(ReidError, match='one picture each'): fit(learn)
    assert found(learn) == ['alone'] and learn.diagnosis.value[0] == 1 and len(learn.said) == 1
    learn = make(DiagnoseCallback(), sampler=lambda rows: [np.flatnonzero(rows.pid == o).tolist() for o in rows.pid.unique()] and PersonByPerson(rows))
    with pytest.raises(ReidError, match='1 identity'): fit(learn)
    assert found(learn) == ['one person']
    quiet = make(DiagnoseCallback(), triplet=partial(MetricLossCallback, lambda feat, pid: feat.sum() * 0), p=8, k=1) # says nothing itself
    assert found(fit(quiet, 2)) == ['alone'] and quiet.diagnosis.until[0] == 1
    assert found(fit(make(DiagnoseCallback(), sampler=partial(RandomSampler, bs=24)), 2)) in ([], ['alone'])


class PersonByPerson(RandomSampler):
    def __init__(self, rows): super().__init__(rows, bs=4); self.pid = rows.pid.to_numpy()
    def draw(self, rng): return [np.flatnonzero(self.pid == o) for o in rng.permutation(np.unique(self.pid))]


def test_frozen_features(make):
    learn = make(DiagnoseCallback())
    learn.model.body.requires_grad_(False)
    assert found(fit(learn, 1)) == ['frozen'] and '0% of' in learn.diagnosis.says[0]
    learn = fit(make(DiagnoseCallback(), net=partial(Tiny, heads=2, change=torch.Tensor.detach)), 1)
    assert found(learn) == ['frozen'] and learn.diagnosis['head'].tolist() == [1] # the other head learns
    assert 'learning rate is 0' in fit(make(DiagnoseCallback()), 1, 0.).diagnosis.says[0]
    assert found(fit(make(DiagnoseCallback(), FixBaseCallback(2)), 3)) == [] # on purpose


def test_collapse(make):
    for margin, words in ((.3, 'margin, 0.3'), (None, 'ln 2')):
        learn = fit(make(DiagnoseCallback(), triplet=partial(TripletCallback, margin, normalize=False), loss_func=no_id_loss, k=4), 16, 1.)
        assert 'collapse' in found(learn), learn.diagnosis.says.tolist()
        says = learn.diagnosis.set_index('what').says['collapse']
        assert words in says
        assert learn.diagnose.rows[-1]['triplet'] == pytest.approx(math.log(2) if margin is None else margin, rel=.1)


def test_nan_is_placed(make):
    class Empty(Callback): # an image without pixels
        order = 0
        def before_batch(self):
            if self.training and self.epoch == 1 and self.iter == 2: self.learn.xb = (self.x * math.nan,)
    class LossNan(Callback):
        order = 45
        def after_loss(self):
            if self.training and self.iter == 1: self.learn.loss_grad = self.learn.loss_grad * math.nan; self.learn.loss = self.learn.loss_grad.detach()
    learn = make(DiagnoseCallback(), Empty())
    with pytest.raises(ReidError, match='NaN'): fit(learn, 3) # the features that are ranked
    assert found(learn) == ['nan'] and 'images were not finite any more in epoch 1, step 2' in learn.diagnosis.says[0]
    learn = make(DiagnoseCallback(), LossNan())
    with pytest.raises(ReidError, match='NaN'): fit(learn, 1)
    assert found(learn) == ['nan'] and 'losses were not finite any more in epoch 0, step 1' in learn.diagnosis.says[0]
    learn = make(DiagnoseCallback(), LossNan(), CheckpointCallback('nowhere.pth', resume=False)) # which stops the run
    with pytest.raises(ReidError, match='nan'): fit(learn, 1)
    assert found(learn) == ['nan'] and learn.diagnosis.value[0] == 1


def test_a_rate_that_is_too_high(make):
    learn = fit(make(DiagnoseCallback(), net=partial(Tiny, norm=nn.Identity)), 3, .1)
    assert 'rate' in found(learn) and 'learning rate 0.1' in learn.diagnosis.set_index('what').says['rate']


@pytest.mark.parametrize('cbs', [(), (partial(AccumulateCallback, 2),)])
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision_and_accumulated_steps(make, dtype, cbs):
    learn = fit(make(DiagnoseCallback(every=1), *(o() for o in cbs), net=partial(Tiny, change=lambda x: x.to(dtype))), 2)
    assert found(learn) == []
    looks = pd.DataFrame(learn.diagnose.rows)
    assert looks.grad.eq(1).all() and looks.moved.gt(0).all()


def test_the_settings_are_the_losss(make):
    def set_to(**kwargs):
        learn = make(cb := DiagnoseCallback(), **kwargs)
        cb.learn = learn
        with learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-3)
        return cb.set_to
    assert set_to(triplet=partial(TripletCallback, .2, normalize=False)) == dict(margin=.2, normalize=False)
    assert set_to(triplet=partial(MetricLossCallback, TripletLoss(None))) == dict(margin=None, normalize=False)
    assert math.isnan(set_to(triplet=None)['margin'])


def test_lr_find_and_other_runs_leave_the_diagnosis_alone(make):
    learn = fit(make(DiagnoseCallback(), DistanceHistogramCallback(bins=10), p=4, k=2), 1, 0.)
    before, epochs = learn.diagnosis, learn.distance_histogram.epochs
    with learn.no_bar(), learn.no_logging(), warnings.catch_warnings():
        warnings.simplefilter('error', DiagnosisWarning)
        learn.lr_find(show_plot=False, num_it=10)
        learn.validate()
        learn.get_preds()
    assert learn.diagnosis is before and found(learn) == ['frozen'] and learn.distance_histogram.epochs is epochs
    assert found(fit(learn, 1)) == [] # each fit begins anew
    learn = fit(make(), 1, cbs=DiagnoseCallback(warn=False)) # it stays when the callback has gone
    assert found(learn) == [] and not hasattr(learn, 'diagnose')


class PowerCut(Callback):
    order = 80
    def __init__(self, epoch): self.at = epoch
    def after_epoch(self):
        if self.epoch == self.at: raise KeyboardInterrupt


@pytest.mark.parametrize('opt', ['adam', None])
def test_a_run_that_goes_on_is_diagnosed_as_a_whole(make, opt, tmp_path):
    from fastai.optimizer import Adam
    def run(name, *cbs, diagnosed=True):
        learn = make(net=partial(Tiny, change=lambda x: 5 + .01 * x))
        if opt is None: learn.opt_func = Adam
        learn.add_cbs([DiagnoseCallback(), DistanceHistogramCallback(bins=10)] if diagnosed else [])
        return fit(learn, 4, cbs=[CheckpointCallback(tmp_path/name), *cbs])
    whole = run('whole.pth')
    with pytest.raises(KeyboardInterrupt): run('broken.pth', PowerCut(1))
    gone_on = run('broken.pth')
    pd.testing.assert_frame_equal(whole.diagnosis, gone_on.diagnosis)
    assert found(whole) == ['collapse'] and whole.diagnosis.until[0] == 3
    assert np.array_equal(whole.distance_histogram.counts, gone_on.distance_histogram.counts) and gone_on.distance_histogram.epochs == [0, 1, 2, 3]
    with pytest.raises(KeyboardInterrupt): run('plain.pth', PowerCut(1), diagnosed=False)
    assert run('plain.pth').diagnosis.since.tolist() == [2] # a run that began without may go on with it


def test_facts_of_a_batch():
    torch.manual_seed(0)
    feat, pid = torch.randn(12, 6), torch.arange(4).repeat_interleave(3)
    o = batch_facts(feat, pid, .3, normalize=False)
    dist = torch.cdist(feat, feat)
    same = pid[:, None] == pid
    assert o['d_pos'] == pytest.approx((dist * same).amax(1).mean().item(), rel=1e-5) and o['d_neg'] == pytest.approx(dist.masked_fill(same, 99).amin(1).mean().item(), rel=1e-5)
    assert o['ids'] == 4 and o['alone'] == 0 and o['length'] == pytest.approx(feat.norm(dim=1).mean().item(), rel=1e-5)
    assert batch_facts(7 * feat, pid)['spread'] == pytest.approx(batch_facts(feat, pid)['spread'], rel=1e-5)
    assert batch_facts(torch.ones(12, 6), pid, None)['triplet'] == pytest.approx(math.log(2), rel=1e-4)
    assert batch_facts(feat, torch.tensor([0, 0, 0, *range(1, 10)]))['alone'] == pytest.approx(.75)
    assert math.isnan(batch_facts(feat, torch.zeros(12))['triplet'])


def test_histograms(make):
    hists = DistanceHistogramCallback(bins=20)
    learn = fit(make(hists), 3)
    assert hists.epochs == [0, 1, 2] and all(o.shape == (2, 20) and o.sum() == len(learn.dls.train) * 28 for o in hists.counts) # 8 pictures have 28 pairs
    assert all(o[0].sum() == len(learn.dls.train) * 4 for o in hists.counts)
    fig = plot_distance_epochs(hists, n=2)
    assert len(fig.axes) == 2 and fig.axes[1].get_title().startswith('epoch 2')
    assert pairs_in_order(np.array([[1, 0], [0, 3]])) == 1 and pairs_in_order(np.array([[0, 2], [2, 0]])) == 0 and pairs_in_order(np.ones((2, 4))) == .5
    fit(make(raw := DistanceHistogramCallback(bins=20, normalize=False), triplet=partial(TripletCallback, normalize=False)), 2)
    assert raw.limit > 0 and raw.edges[-1] == raw.limit and raw.counts[0].sum() == len(learn.dls.train) * 28
    with pytest.raises(ValueError, match='No epoch'): plot_distance_epochs(DistanceHistogramCallback())
