"Optimisers and schedules by name in training: state that is saved, runs that go on, layers that stand still"
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from fastai.callback.core import Callback
from fastai.callback.schedule import fit_one_cycle, lr_find # noqa: F401 (methods of Learner)
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.learner import Learner
from reid_nb.core import ReidError
from reid_nb.data.block import ReidDataLoaders
from reid_nb.data.synth import synth_people
from reid_nb.models.groups import layer_groups, staged_lr
from reid_nb.train.callbacks import CenterLossCallback, CheckpointCallback
from reid_nb.train.finetune import FixBaseCallback, layer_changes
from reid_nb.train.learner import reid_learner
from reid_nb.train.schedule import EpochSchedule, make_optimizer, step_factor
from torch import nn

NAMES = ('adam', 'amsgrad', 'sgd', 'rmsprop', 'radam', 'adamw')


def toy(path=None, **kwargs):
    torch.manual_seed(0)
    x = torch.randn(32, 6)
    y = (x.sum(1) > 0).long()
    net = nn.Sequential()
    net.add_module('body', nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU()))
    net.add_module('classifier', nn.Linear(8, 2))
    dl = DataLoader(list(zip(x, y)), bs=8)
    return Learner(DataLoaders(dl, dl), net, loss_func=F.cross_entropy, path=path, **kwargs)


def fit(learn, *args, **kwargs):
    with learn.no_bar(), learn.no_logging(): learn.fit(*args, **kwargs)
    return learn


def weights(learn): return {k: v.clone() for k, v in learn.model.state_dict().items()}


def same(a, b): return all(torch.equal(a[k], b[k]) for k in a)


@pytest.fixture(scope='module')
def dls(tmp_path_factory):
    items = synth_people(n_ids=16, n_cams=2, per_cam=3, distractors=4, junk=0)
    return ReidDataLoaders.from_items(items, size=(64, 32), p=4, k=2, path=tmp_path_factory.mktemp('dls'))


@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize('wd_bn_bias', [True, False])
def test_a_saved_optimiser_goes_on_as_if_never_saved(name, wd_bn_bias, tmp_path):
    opt = make_optimizer(name, wd_bn_bias=wd_bn_bias)
    split = partial(layer_groups, new_layers='classifier', n=2)
    learn = fit(toy(tmp_path, opt_func=opt, splitter=split), 1, [1e-3, 1e-2])
    learn.save('half')
    fit(learn, 1, [1e-3, 1e-2])
    other = toy(tmp_path, opt_func=opt, splitter=split)
    other.create_opt()
    other.load('half')
    assert [len(o) for o in other.opt.param_lists] == [4, 2] == [len(o) for o in learn.opt.param_lists]
    fit(other, 1, [1e-3, 1e-2])
    assert same(weights(learn), weights(other))
    again = fit(toy(tmp_path, opt_func=opt, splitter=split), 2, [1e-3, 1e-2]) # one fit of two epochs is two of one
    assert same(weights(learn), weights(again))


def test_the_state_of_another_optimiser_is_refused():
    learn = fit(toy(opt_func=make_optimizer('adam')), 1)
    with pytest.raises(ReidError, match='another kind'): learn.opt.load_state_dict(dict(state=[], hypers=[]))


@pytest.mark.parametrize('name', NAMES)
def test_frozen_groups_do_not_move_and_do_when_opened(name):
    learn = toy(opt_func=make_optimizer(name), splitter=partial(layer_groups, new_layers='classifier', n=2), train_bn=False)
    fit(learn, 1, 1e-2) # gradients and moments are there
    learn.freeze()
    before = {k: o.detach().clone() for k, o in learn.model.named_parameters()}
    fit(learn, 1, 1e-2)
    moved = {k for k, o in learn.model.named_parameters() if not torch.equal(o, before[k])}
    assert moved == {'classifier.weight', 'classifier.bias'}
    learn.unfreeze()
    fit(learn, 1, 1e-2)
    assert all(not torch.equal(o, before[k]) for k, o in learn.model.named_parameters())


def test_rates_and_decay_per_group():
    learn = toy(opt_func=make_optimizer('sgd', wd=.3, wd_bn_bias=False), splitter=partial(layer_groups, new_layers='classifier', n=2))
    fit(learn, 1, staged_lr(1e-2), wd=.2, cbs=EpochSchedule(step_factor('flat')))
    assert [o['lr'] for o in learn.opt.hypers] == pytest.approx([1e-3, 1e-2])
    assert [o['wd'] for o in learn.opt.hypers] == [.2, .2]
    spared = {id(p) for o in learn.opt.opt.param_groups if o['weight_decay'] == 0 for p in o['params']}
    assert spared == {id(o) for o in learn.model.parameters() if o.ndim == 1}


def test_a_schedule_repeats_in_every_fit_and_stands_aside_in_lr_find():
    learn = toy(opt_func=make_optimizer('sgd'), cbs=EpochSchedule(step_factor('multi_step', step=[1, 2])))
    for _ in range(2):
        fit(learn, 3, 1e-2)
        assert learn.recorder.hps['lr'] == pytest.approx([1e-2] * 4 + [1e-3] * 4 + [1e-4] * 4)
    before = weights(learn)
    with learn.no_bar(): learn.lr_find(show_plot=False, num_it=30)
    assert same(before, weights(learn)) and max(learn.recorder.lrs) > 1
    with learn.no_bar(), pytest.raises(ValueError, match='Two callbacks'): learn.fit_one_cycle(1)


def test_warm_up_per_iteration_and_per_epoch():
    smooth, steps = (step_factor('flat', warmup_epochs=2, warmup_start=0., warmup_by=o) for o in ('iteration', 'epoch'))
    for f, rates in ((smooth, [0, .25, .5, .75, 1, 1]), (steps, [0, 0, .5, .5, 1, 1])):
        learn = toy(opt_func=make_optimizer('sgd'))
        learn.dls.train.bs = 16 # two batches an epoch
        fit(learn, 3, 1., cbs=EpochSchedule(f))
        assert learn.recorder.hps['lr'] == pytest.approx(rates)


@pytest.mark.parametrize('kw, said', [(dict(name='cosin'), "did you mean 'cosine'"), (dict(name='single_step', step=[20, 40]), 'last, 40'), (dict(name='multi_step', step=20), 'list'),
                                      (dict(name='cosine'), 'n_epoch'), (dict(warmup='linar', warmup_epochs=2), "'linear'"), (dict(by='batch'), 'iteration'), (dict(warmup_epochs=-1), '-1'), (dict(step=[]), 'takes one number')])
def test_unfit_schedules_are_told(kw, said):
    with pytest.raises(ValueError, match=said): step_factor(**kw)


class PowerCut(Callback):
    order = 80 # after the checkpoint of the second epoch
    def after_epoch(self):
        if self.epoch == 1: raise KeyboardInterrupt


def test_a_checkpointed_run_goes_on_exactly_with_schedule_and_centers(dls, tmp_path):
    def run(path, *cbs):
        learn = reid_learner(dls, 'osnet_x0_25', cbs=[CenterLossCallback(), FixBaseCallback(1)], seed=3, opt_func=make_optimizer('amsgrad', wd_bn_bias=False))
        return fit(learn, 3, 1e-3, cbs=[EpochSchedule(step_factor('cosine', 3, warmup_epochs=1)), CheckpointCallback(path), *cbs])
    whole = run(tmp_path/'whole.pth')
    with pytest.raises(KeyboardInterrupt): run(tmp_path/'broken.pth', PowerCut())
    again = run(tmp_path/'broken.pth')
    assert again.recorder.values == whole.recorder.values and again.recorder.lrs == whole.recorder.lrs
    assert same(weights(whole), weights(again))
    assert torch.equal(whole.center_loss.losses[0].centers, again.center_loss.losses[0].centers)


def test_two_steps_with_osnet_leave_all_but_the_open_layers_as_they_were(dls):
    learn = reid_learner(dls, 'osnet_x0_25', opt_func=make_optimizer('amsgrad'), seed=0)
    before = weights(learn)
    fit(learn, 1, 1e-3, cbs=FixBaseCallback(1, ['fc', 'classifier']))
    now = layer_changes(before, learn.model)
    assert set(now.index[now.moved > 0]) == {'fc', 'classifier'} == set(now.index[now.stats_moved > 0]) | {'classifier'}
    assert all(p.requires_grad for p in learn.model.parameters())
    with pytest.raises(ValueError, match='its children are'): fit(learn, 1, cbs=FixBaseCallback(1, 'head'))
    assert all(p.requires_grad for p in learn.model.parameters())
    fit(learn, 2, 1e-3, cbs=FixBaseCallback(1))
    assert (layer_changes(before, learn.model).moved > 0).all()


def test_a_fit_broken_off_while_layers_stood_opens_them_in_the_next():
    learn = toy(opt_func=make_optimizer('adam'))
    with pytest.raises(KeyboardInterrupt): fit(learn, 4, cbs=[FixBaseCallback(3, 'classifier'), PowerCut()])
    before = weights(learn)
    fit(learn, 2, cbs=FixBaseCallback(1, 'classifier'))
    assert (layer_changes(before, learn.model).moved > 0).all()
    with pytest.raises(KeyboardInterrupt): fit(learn, 4, cbs=[FixBaseCallback(3, 'classifier'), PowerCut()])
    with pytest.raises(ReidError, match='does not know'): fit(learn, 2, cbs=FixBaseCallback(1, 'classifier'), reset_opt=True)
