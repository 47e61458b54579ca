"Students: what they are deployed as, what moves whom, runs that go on where they stopped"
from copy import deepcopy
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from fastai.callback.core import Callback
from torch import nn

from reid_nb.beyond.mutual import FixStudentsCallback, MutualCallback, Peers, _or_itself, _rates, dml, make_peers, student_groups, student_learner
from reid_nb.core import ReidError
from reid_nb.data.block import ReidDataLoaders
from reid_nb.data.synth import synth_people
from reid_nb.train.callbacks import TripletCallback
from reid_nb.train.learner import reid_learner
from reid_nb.train.schedule import make_optimizer
from reid_nb.train.settings import recipe_settings


class Net(nn.Module):
    "A network of `n_heads` heads on the mean colours of 16 places"
    new_layers, n_feats = ('classifier',), 48
    def __init__(self, c, n_heads=1):
        super().__init__()
        self.mix, self.classifier = nn.Linear(48, 48), nn.ModuleList(nn.Linear(48, c) for _ in range(n_heads))
    def forward(self, x):
        feat = self.mix(F.adaptive_avg_pool2d(x, 4).flatten(1)).relu()
        return [(feat, o(feat)) for o in self.classifier] if self.training else feat

@pytest.fixture(scope='module')
def dls(tmp_path_factory):
    items = synth_people(tmp_path_factory.mktemp('synth'), n_ids=8, n_cams=2, per_cam=3, distractors=2, junk=0, size=(32, 16))
    return ReidDataLoaders.from_items(items, size=(32, 16), p=4, k=2)

def students(c, n=2, n_heads=1):
    torch.manual_seed(1)
    return Peers([Net(c, n_heads) for _ in range(n)])

def fit(dls, model, epochs=1, cbs=(), lr=1e-2, **kwargs):
    learn = reid_learner(dls, model, cbs=list(cbs), opt_func=make_optimizer('sgd', wd=.01), **kwargs)
    with learn.no_bar(), learn.no_logging(): learn.fit(epochs, lr)
    return learn

def test_without_the_divergence_each_learns_as_if_alone(dls): # its own losses in full, and its own decay
    both = students(dls.c)
    alone = fit(dls, deepcopy(both.model2), 2, [TripletCallback()]).model
    fit(dls, both, 2, [TripletCallback(), MutualCallback(weight=0.)])
    for a, b in zip(alone.parameters(), both.model2.parameters()): assert torch.allclose(a, b, atol=1e-6)

@pytest.mark.parametrize('n, n_heads', [(2, 1), (3, 1), (2, 3)])
def test_one_step_is_the_formula(dls, n, n_heads): # gradients by a loop over pairs, with torch's own divergence
    net = students(dls.c, n, n_heads)
    learn = reid_learner(dls, net, cbs=MutualCallback(weight=.7))
    x, y = torch.rand(6, 3, 32, 16), torch.arange(6) % dls.c
    want = deepcopy(net).train()
    heads = [o(x) for o in want.students]
    for k in range(n):
        loss = torch.stack([F.cross_entropy(z, y, label_smoothing=.1) for _, z in heads[k]]).mean()
        for other in (o for i, o in enumerate(heads) if i != k):
            for (_, z), (_, t) in zip(heads[k], other):
                loss = loss + .7 / (n - 1) / n_heads * F.kl_div(z.log_softmax(1), t.detach().log_softmax(1), reduction='batchmean', log_target=True)
        loss.backward()
    net.train()
    learn.xb, learn.yb, learn.pred = (x,), (y,), net(x)
    learn.loss_grad = learn.loss_func(learn.pred, y)
    cb = learn.mutual
    cb.before_train()
    learn.training = True
    cb.after_loss()
    learn.loss_grad.backward()
    for a, b in zip(want.parameters(), net.parameters()): assert torch.allclose(a.grad, b.grad, atol=1e-6)

def test_students_of_different_numbers_of_heads_are_refused(dls):
    with pytest.raises(ReidError, match="1 heads can't learn from one with 2"): fit(dls, Peers([Net(dls.c), Net(dls.c, 2)]), 1, [MutualCallback()])

@pytest.mark.parametrize('which', ['model1', 'model2'])
def test_the_deployed_student_alone_is_run_and_unchanged(dls, which):
    net = make_peers(['osnet_x0_25', 'osnet_x0_5'], 4, deploy=which).eval()
    calls = []
    for k, o in net.named_children(): o.register_forward_hook(lambda *_, k=k: calls.append(k))
    x = torch.rand(2, 3, 64, 32)
    assert torch.equal(net(x), net.get_submodule(which)(x)) and calls == [which] * 2
    net.deploy = 'both'
    assert torch.equal(net(x)[:, :512], net.model1(x)) and net(x).shape == (2, 1024)

def test_groups_and_freezing_look_into_students(dls):
    net = students(dls.c)
    groups = student_groups(net)
    assert [len(o) for o in groups] == [4, 4]
    before = deepcopy(net.state_dict())
    fit(dls, net, 1, [MutualCallback(), FixStudentsCallback(1)])
    assert {k for k, o in net.state_dict().items() if not torch.equal(o, before[k])} == {k for k in before if 'classifier' in k}

def test_every_weight_of_unlike_students_learns_at_its_rate(): # the first has biases where the second has none
    class Half(nn.Module):
        new_layers = ('classifier',)
        def __init__(self, bias):
            super().__init__()
            self.body, self.classifier = nn.Linear(4, 8), nn.Linear(8, 3, bias=bias)
    peers, s = Peers([Half(True), Half(False)]), recipe_settings('dml', bias_lr=2., staged_lr=True)
    rates = {id(p): factor for ps, factor in _rates(peers, s) for p in ps}
    want = {'body.weight': .1, 'body.bias': .2, 'classifier.weight': 1., 'classifier.bias': 2.}
    assert {k: rates[id(p)] for k, p in peers.named_parameters()} == {k: want[k.split('.', 1)[1]] for k, _ in peers.named_parameters()}

class Dies(Callback):
    order = 99
    def after_epoch(self):
        if self.epoch == 0: raise RuntimeError('power cut')

def test_a_run_goes_on_where_it_stopped(dls, tmp_path):
    def run(folder, *cbs):
        learn = dml(dls, model='osnet_x0_25', weights=None, fixbase_epoch=1, schedule='flat')
        with learn.no_bar(), learn.no_logging(): learn.fit_recipe(2, folder, cbs=cbs)
        return learn.model.state_dict()
    with pytest.raises(RuntimeError, match='power cut'): run(tmp_path/'parts', Dies())
    for a, b in zip(run(tmp_path/'whole').values(), run(tmp_path/'parts').values()): assert torch.equal(a, b)

def test_a_picture_without_a_partner_is_its_own():
    x = torch.cos(1.7 * torch.arange(8.)[:, None] + .3 * torch.arange(6.))
    pairs, dist = torch.arange(8) // 2, torch.cdist(x, x) + 9 * torch.eye(8)
    for margin, want in ((.3, 2.434351), (0., 2.134351)): assert float(_or_itself(x, pairs, margin)) == pytest.approx(want, abs=1e-5) # Torchreid's own figures
    torch.testing.assert_close(_or_itself(x, torch.arange(8), 2.), (2 - dist.amin(1)).relu().mean())
    assert _or_itself(x, torch.zeros(8), .3) == 0

def test_random_batches_need_no_pair(dls): # as in the project; people with one picture each
    items = pd.concat([dls.items.drop_duplicates('pid'), dls.test_items])
    learn = dml(items, variant='torchreid', model='osnet_x0_25', weights=None, size=(32, 16), bs=2, fixbase_epoch=0, device='cpu')
    with learn.no_bar(), learn.no_logging(): learn.fit_recipe(1)
    assert learn.settings['triplet'] == .5 and 0 <= learn.recorder.values[-1][list(learn.recorder.metric_names).index('triplet') - 1] < .3

def test_student_learner_takes_one(dls):
    learn = fit(dls, students(dls.c), 1, [MutualCallback()])
    assert student_learner(learn, 'model2').model is learn.model.model2 and student_learner(learn).arch is None
    with pytest.raises(ReidError, match='2 students'): student_learner(learn, 'all')
    with pytest.raises(ValueError, match='model9'): student_learner(learn, 'model9')


def test_a_frozen_layer_that_the_optimiser_does_not_know_is_told_in_students_too():
    class Opt:
        frozen_idx = 0
        def all_params(self): return []
        def freeze_to(self, n): pass
    peers = nn.Module()
    peers.students = nn.ModuleList([nn.Sequential(nn.Linear(2, 2))])
    cb = FixStudentsCallback(1, '0')
    cb.learn = SimpleNamespace(model=peers, opt=Opt())
    with pytest.raises(ReidError, match='does not know the parameters'): cb.before_fit()
