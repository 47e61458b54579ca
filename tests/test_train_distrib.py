"Two gloo processes against one with the same batch; what the options of scale leave as it is; errors that name the number"
import copy
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from fastai.callback.core import Callback
from fastai.optimizer import SGD
from torch import nn

from reid_nb.core import ReidError
from reid_nb.data.augment import reid_tfms
from reid_nb.data.block import ReidDataLoaders
from reid_nb.data.samplers import PKSampler, RandomSampler
from reid_nb.data.synth import synth_people
from reid_nb.losses import batch_hard_triplet
from reid_nb.train.averages import AccumulateCallback, MixCallback
from reid_nb.train.callbacks import CenterLossCallback, MetricLossCallback, TripletCallback
from reid_nb.train.checkpoint import CheckpointCallback
from reid_nb.train.distrib import (SharedSampler, _all_end, channels_last, checkpoint_blocks, compile_model, gather_rows, joined, launch, mixed_precision, share_work,
                                   shared_rows)
from reid_nb.train.finetune import FixBaseCallback
from reid_nb.train.learner import reid_learner


class Net(nn.Module): # three layers, with batch norm
    new_layers = ('classifier',)
    def __init__(self, c):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, 2, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 6), nn.BatchNorm1d(6))
        self.classifier = nn.Linear(6, c)
    def forward(self, x):
        f = self.body(x)
        return [(f, self.classifier(f))] if self.training else f


class Proxies(nn.Module): # a loss with a parameter; rows of two people count together
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
    def forward(self, feat, pid): return self.scale * batch_hard_triplet(feat, pid, margin=None)


class InDouble(Callback): # rounding must not hide what differs
    order = 60
    def before_batch(self): self.learn.xb = (self.xb[0].as_subclass(torch.Tensor).double(),)
    def after_loss(self): self.learn.loss = self.loss.float()


def make(items, *cbs, seed=0, tfms=None):
    dls = ReidDataLoaders.from_items(items, size=(32, 16), p=4, k=2, tfms=reid_tfms(0, 0) if tfms is None else tfms, device='cpu')
    torch.manual_seed(0)
    return reid_learner(dls, Net(dls.c).double(), cbs=[InDouble(), *cbs], seed=seed, opt_func=SGD)


def fit(learn, epochs=1, cbs=None, **kw): # (columns, weights)
    with share_work(learn, **kw), learn.no_bar(), learn.no_logging(): learn.fit(epochs, .1, cbs=cbs)
    return [[float(o) for o in row] for row in learn.recorder.values], {k: v.numpy() for k, v in learn.model.state_dict().items()}


def whole(items): # all that must be equal; the frozen layers are opened in the second epoch
    return fit(make(items, TripletCallback(), CenterLossCallback(), MetricLossCallback(Proxies(), name='proxies'), FixBaseCallback(1)), 2)


def mean_gradient(): # of a loss of all rows with respect to what made this process's rows
    from torch.distributed import all_reduce, get_rank
    w, x = torch.arange(3., requires_grad=True), torch.arange(12.).reshape(4, 3)[get_rank() * 2:][:2]
    feat = gather_rows(x * w)
    torch.cdist(feat, feat).pow(3).sum().backward()
    all_reduce(w.grad)
    return w.grad / 2


def in_two(items, folder): # everything that needs two processes, since they take long to start
    from torch.distributed import all_gather_object, get_rank
    out, seen = dict(whole=whole(items), gradient=mean_gradient()), [None, None]
    learn = make(items, TripletCallback(), CenterLossCallback(), AccumulateCallback(2), seed=None, tfms=reid_tfms())
    loaders, bs = list(learn.dls.loaders), learn.dls.train.bs
    parts = fit(learn, 2, CheckpointCallback(folder / 'last.pth'), gather=False, sync_bn=False)
    all_gather_object(seen, (parts[1], [o.centers.detach().numpy() for o in learn.center_loss.losses], parts[0]))
    out.update(parts=seen, back=loaders == list(learn.dls.loaders) and bs == learn.dls.train.bs and type(learn.model.body[1]) is nn.BatchNorm2d)
    learn.model.float()
    full = learn.evaluate(progress=False).stats
    shared = learn.evaluate_shared()
    out['stats'] = [np.array_equal(getattr(full, o), getattr(shared, o), equal_nan=True) for o in ('ap', 'inp', 'first', 'cmc', 'n_match')]
    try: fit(make(items[(items.split != 'train') | items.pid.isin(items.pid[items.split == 'train'].unique()[:3])]), 1)
    except ReidError as e: out['few'] = str(e)
    try: fit(make(items, MixCallback()), 1)
    except ValueError as e: out['mix'] = str(e)
    if get_rank() == 1: print('the other process speaks')
    return out


@pytest.fixture(scope='module')
def items(tmp_path_factory): return synth_people(tmp_path_factory.mktemp('people'), n_ids=12, n_cams=2, per_cam=2, distractors=3, junk=0, size=(32, 16))


def test_two_processes_do_what_one_does(items, tmp_path):
    two, (values, state) = launch(in_two, items, tmp_path, n=2, threads=1), whole(items)
    np.testing.assert_allclose(two['whole'][0], values, rtol=1e-5)
    for k, v in state.items(): np.testing.assert_allclose(two['whole'][1][k], v, rtol=1e-6, atol=1e-8, err_msg=k)
    assert values[1][1] != values[0][1] # it has learnt

    w = torch.arange(3., requires_grad=True)
    feat = torch.arange(12.).reshape(4, 3) * w
    torch.cdist(feat, feat).pow(3).sum().backward()
    torch.testing.assert_close(two['gradient'], w.grad, rtol=1e-5, atol=1e-4)

    (net, centers, log), (net1, centers1, log1) = two['parts'] # without gathering: each its own losses, one network all the same
    for k in net: np.testing.assert_array_equal(net[k], net1[k], err_msg=k)
    np.testing.assert_array_equal(centers, centers1)
    np.testing.assert_array_equal(log, log1)
    assert (tmp_path/'last.pth').exists() and two['back'] and all(two['stats'])
    assert 'needs p=4 identities' in two['few'] and '`gather=False`' in two['mix']


def test_a_process_that_fails_ends_the_others_and_says_why(tmp_path):
    (tmp_path/'err1').write_text('no such camera')
    runs = [subprocess.Popen([sys.executable, '-S', '-c', o]) for o in ('import time; time.sleep(60)', 'raise SystemExit(1)')]
    with pytest.raises(RuntimeError, match='(?s)Process 1 of 2 failed.*no such camera'): _all_end(runs, tmp_path)
    assert [o.wait() for o in runs] == [-9, 1]


def test_shares_are_whole_people_and_all_of_them():
    labels = np.repeat(np.arange(9), 5)
    for sampler in (PKSampler(labels, p=6, k=3, seed=1), RandomSampler(labels, bs=12, drop_last=False, seed=1)):
        parts = [SharedSampler(sampler, r, 3) for r in range(3)]
        batches = list(zip(*(o.epoch([1, 0]) for o in parts)))
        for all_, one in zip(sampler.epoch([1, 0]), batches, strict=False): np.testing.assert_array_equal(np.concatenate(one), all_)
        assert len(batches) == sum(len(o) == sampler.bs for o in sampler.epoch([1, 0]))
        if sampler.k > 1: assert all(len(set(labels[rows].tolist())) == 2 and len(rows) == 6 for o in batches for rows in o)
    with pytest.raises(ValueError, match='A batch of 6 people can\'t be shared evenly by 4 processes'): SharedSampler(PKSampler(labels, p=6, k=4), 0, 4)
    with pytest.raises(ValueError, match='12 rows'): SharedSampler(RandomSampler(labels, bs=12), 0, 5)


def test_alone_nothing_changes(items, monkeypatch):
    learn = make(items)
    with joined('cpu') as device, share_work(learn) as same: assert device.type == 'cpu' and same is learn and not hasattr(learn, 'distrib')
    rows = [shared_rows(items.query('split != "train"'), r, 3) for r in range(3)]
    assert sorted(np.concatenate(rows)) == list(range((items.split != 'train').sum()))
    with pytest.raises(ReidError, match='too few for 500 processes'): shared_rows(items, 0, 500)
    monkeypatch.setenv('WORLD_SIZE', '2')
    with pytest.raises(ValueError, match='have not joined'), share_work(learn): pass


def loss_and_gradient(model, x):
    torch.manual_seed(0)
    model.train().zero_grad()
    out = sum(logits.float().square().mean() for _, logits in model(x))
    out.backward()
    return torch.cat([out.detach()[None], *(o.grad.flatten() for o in model.parameters()), *(o.float().flatten() for o in model.buffers())])


@pytest.mark.parametrize('name', ['osnet_ain_x0_25', 'timm/resnet10t', 'hacnn'])
def test_checkpointing_changes_no_digit(name):
    from reid_nb.models.zoo import create_model
    size = (160, 64) if name == 'hacnn' else (64, 32)
    torch.manual_seed(0)
    model, x = create_model(name, 3, size=size), torch.rand(2, 3, *size)
    other = checkpoint_blocks(copy.deepcopy(model))
    assert sum('forward' in o.__dict__ for o in other.modules()) > 1
    torch.testing.assert_close(loss_and_gradient(other, x), want := loss_and_gradient(model, x), rtol=0, atol=0)
    again = pickle.loads(pickle.dumps(other)) # a copy computes with its own weights
    with torch.no_grad():
        for o in other.parameters(): o.zero_()
    assert torch.isfinite(want).all() and again(x)[0][1].abs().sum() > 0


def test_options_and_their_tolerance(items):
    def run(option, **kw):
        torch.manual_seed(0)
        dls = ReidDataLoaders.from_items(items, size=(32, 16), p=4, k=2, tfms=reid_tfms(0, 0), device='cpu')
        learn = reid_learner(dls, Net(dls.c), cbs=TripletCallback(), seed=0, opt_func=SGD, channels_last=False)
        option(learn)
        with learn.no_bar(), learn.no_logging(): learn.fit(1, .01)
        assert 'forward' not in learn.model.__dict__
        return np.array([o.item() for o in learn.recorder.losses]), learn.model.body(next(iter(dls.valid))[0].as_subclass(torch.Tensor)).detach()
    plain = run(lambda o: o)
    for option, tol in ((channels_last, 1e-5), (lambda o: channels_last(o, False), 0), (lambda o: checkpoint_blocks(o.model), 0), (lambda o: compile_model(o, backend='eager'), 1e-6),
                        (lambda o: mixed_precision(o, 'fp16', init_scale=64), .02), (mixed_precision, .05), (lambda o: mixed_precision(mixed_precision(o), None), 0)):
        for got, want in zip(run(option), plain): np.testing.assert_allclose(got, want, atol=tol)
    assert not np.array_equal(run(mixed_precision)[0], plain[0])
    with pytest.raises(ValueError, match="'bf16' or 'fp16', not 'int8'"): mixed_precision(make(items), 'int8')
