"The search of OSNet-AIN: mixtures, the search network against its children and the published one, temperatures, seeds, resuming"
import numpy as np
import pytest
import torch
from fastai.callback.core import Callback
from fastai.callback.schedule import lr_find
from fastai.learner import CancelFitException

from reid_nb.beyond.search_arch import (AIN_ARCH, KINDS, MixedBlock, SearchCallback, SearchNet, arch_probs, best_arch, child_network, child_weights, gumbel_mix,
                                        kind_probs, search_arch, search_temperature)
from reid_nb.core import ReidError
from reid_nb.data.combine import combine
from reid_nb.data.synth import synth_people
from reid_nb.models.osnet_ain import AINBlock, osnet_ain_x0_5, osnet_ain_x1_0
from reid_nb.train.recipes import load_recipe
from reid_nb.train.settings import RECIPES, recipe_settings

TWO = {k: KINDS[k] for k in ('plain', 'both')} # half the work

def shapes(model): return {k: tuple(o.shape) for k, o in model.state_dict().items()}

@pytest.fixture(scope='module')
def items(tmp_path_factory):
    few = dict(n_ids=8, n_cams=2, per_cam=3, distractors=0, junk=0, size=(32, 16))
    return combine({k: synth_people(tmp_path_factory.mktemp(k), seed=i, **few) for i, k in enumerate('ab')})

def search(items, path, seed=0, **kwargs):
    learn = search_arch(items, width=.25, kinds=TWO, size=(32, 16), bs=24, test_bs=64, epochs=2, lr=.05, cool_step=1, seed=seed, device='cpu', **kwargs)
    learn.path = path
    return learn

def quiet(learn, **kwargs):
    with learn.no_bar(), learn.no_logging(): return learn.fit_recipe(**kwargs)

@pytest.fixture(scope='module')
def whole(items, tmp_path_factory): # a search that nothing interrupts
    folder = tmp_path_factory.mktemp('whole')
    return quiet(search(items, folder), folder=folder/'run')

def test_temperatures_are_those_of_the_project():
    got = [search_temperature(o) for o in (0, 19, 20, 40, 60, 79, 80, 119)]
    assert got == [10, 10, 5, 2.5, 1.25, 1.25, 1, 1]
    assert search_temperature(50, step=None) == 10

@pytest.mark.parametrize('t', [10., 1., .2])
def test_the_largest_share_falls_by_probability_at_any_temperature(t):
    torch.manual_seed(0)
    w = torch.tensor([.5, 3, 1.5, -1])
    draws = torch.stack([gumbel_mix(w, t) for _ in range(4000)])
    assert torch.allclose(draws.sum(1), torch.ones(4000), atol=1e-5)
    often = np.bincount(draws.argmax(1), minlength=4) / 4000
    assert np.abs(often - [.1, .6, .3, 0]).max() < .03 and np.abs(kind_probs(w).numpy() - [.1, .6, .3, 0]).max() < 1e-6

def test_heat_evens_out():
    torch.manual_seed(0)
    top = [torch.stack([gumbel_mix(torch.ones(4), t) for _ in range(300)]).max(1).values.mean() for t in (10., 1., .1)]
    assert top[0] < .35 < .5 < top[1] < .9 < top[2]

def test_gradients_reach_the_weights_of_kinds():
    torch.manual_seed(0)
    block = MixedBlock(64, 64)
    block(torch.rand(4, 64, 8, 4)).square().mean().backward()
    assert (block.weights.grad != 0).all()
    x = torch.ones(3, dtype=torch.float64, requires_grad=True)
    def mix(w): torch.manual_seed(1); return gumbel_mix(w, 2.)
    torch.autograd.gradcheck(mix, x)

def test_training_draws_and_evaluation_does_not():
    torch.manual_seed(0)
    block, x = MixedBlock(64, 64), torch.rand(4, 64, 8, 4)
    block.weights.data = torch.tensor([1., 2, 3, 4])
    assert not torch.allclose(block(x), block(x))
    block.eval()
    assert torch.equal(block(x), block(x))
    want = sum(p * o(x) for p, o in zip((.1, .2, .3, .4), block.kinds.values()))
    assert torch.allclose(block(x), want, atol=1e-5)

def test_it_has_the_size_of_the_project_s():
    with torch.device('meta'): net = SearchNet(1000)
    assert sum(o.numel() for o in net.parameters()) == 6_857_296 and len(net.mixed()) == 6
    assert not any('.bn.' in k or '.IN' in k for k, _ in net.named_parameters())

@pytest.mark.parametrize('width,make', [(1., osnet_ain_x1_0), (.5, osnet_ain_x0_5)])
def test_the_published_choice_gives_the_published_network(width, make):
    with torch.device('meta'): ours, theirs = child_network(AIN_ARCH, 10, width), make(10)
    assert shapes(ours) == shapes(theirs)
    def kinds(net): return [(k, type(m)) for k, m in net.named_modules()]
    assert kinds(ours) == kinds(theirs)

@pytest.mark.parametrize('arch', [AIN_ARCH, ('both', 'outside', 'plain', 'inside', 'outside', 'both')])
def test_a_sure_search_network_is_its_child(arch):
    torch.manual_seed(0)
    net, x = SearchNet(7, .25), torch.rand(6, 3, 64, 32)
    net(x)
    for m, kind in zip(net.mixed().values(), arch): m.weights.data = torch.tensor([3. * (o == kind) for o in m.kinds])
    assert best_arch(net) == tuple(arch) and (arch_probs(net).max(axis=1) == 1).all()
    child = child_network(arch, 7, .25)
    missing, unexpected = child.load_state_dict(child_weights(net), strict=False)
    norms = {f'{k}.{o}' for k, m in child.named_modules() if isinstance(m, torch.nn.modules.batchnorm._NormBase) for o in ('weight', 'bias')}
    assert not unexpected and set(missing) == norms
    (f, l), = net(x)
    (g, m), = child(x)
    assert torch.allclose(f, g, atol=1e-4) and torch.allclose(l, m, atol=1e-4)
    assert torch.allclose(net.eval()(x), child.eval()(x), atol=1e-5)

def test_wrong_names_and_widths_are_told():
    with pytest.raises(ValueError, match="must name six of .'plain'"): child_network(('plain',) * 5 + ('planar',))
    with pytest.raises(ValueError, match='must name six'): child_network(AIN_ARCH[:5])
    with pytest.raises(ValueError, match='0.25 or more'): SearchNet(5, .1)

def test_the_recipe_has_the_published_settings():
    s = recipe_settings('search_arch')
    assert [s[o] for o in ('bs', 'epochs', 'opt', 'lr', 'wd', 'schedule', 'jitter', 'metric', 'sampler')] == [512, 120, 'sgd', .1, 5e-4, 'cosine', 1., 'cosine', 'random']
    assert RECIPES['search_arch'] is search_arch

def test_a_seed_makes_a_search_and_another_another(items, tmp_path, whole):
    a, b, c = whole, quiet(search(items, tmp_path)), quiet(search(items, tmp_path, seed=1), epochs=1)
    assert a.search.probs == b.search.probs and a.search.probs[1] != c.search.probs[1]
    assert all(torch.equal(p, q) for p, q in zip(a.model.state_dict().values(), b.model.state_dict().values()))
    assert a.settings['width'] == .25 and a.settings['kinds'] == list(TWO)
    table = a.search.table()
    assert len(table) == 3 * 6 * 2 and np.allclose(table[table.epoch == 2].prob, arch_probs(a.model).to_numpy().ravel())
    names = list(a.recorder.metric_names)
    assert [o[names.index('temperature') - 1] for o in a.recorder.values] == [10, 5]
    assert [o[names.index('sure') - 1] for o in a.recorder.values] == pytest.approx([np.mean(np.max(o, 1)) for o in a.search.probs[1:]], abs=1e-6)

class Stop(Callback):
    order = 90
    def after_epoch(self): raise CancelFitException

def test_a_search_goes_on_where_it_stopped(items, tmp_path, whole):
    quiet(search(items, tmp_path), folder=tmp_path/'cut', cbs=[Stop()])
    cut = quiet(search(items, tmp_path), folder=tmp_path/'cut')
    assert cut.search.probs == whole.search.probs and len(cut.search.probs) == 3
    assert all(torch.equal(p, q) for p, q in zip(cut.model.state_dict().values(), whole.model.state_dict().values()))
    again, _ = load_recipe(tmp_path/'cut')
    assert best_arch(again) == best_arch(cut.model) and all(torch.equal(again.state_dict()[k], o) for k, o in cut.model.state_dict().items())

def test_lr_find_leaves_the_search_as_it_was(items, tmp_path):
    learn = search(items, tmp_path)
    before = arch_probs(learn.model)
    with learn.no_bar(), learn.no_logging(): learn.lr_find(num_it=2, show_plot=False, suggest_funcs=None)
    assert arch_probs(learn.model).equals(before)

def test_there_must_be_something_to_search(items, tmp_path):
    learn = search(items, tmp_path)
    learn.model = child_network(AIN_ARCH, learn.dls.c, .25)
    with pytest.raises(ReidError, match='nothing to search in OSNetAIN'): quiet(learn)
