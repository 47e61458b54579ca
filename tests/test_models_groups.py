"Groups of layers of every kind of network, in a Learner; layers that stand still"
import pytest
import torch
from fastai.callback.core import Callback
from fastai.callback.progress import ProgressCallback # learn.no_bar
from fastai.data.core import DataLoaders
from fastai.learner import Learner
from torch.utils.data import DataLoader, TensorDataset

from reid_nb.losses import IdLoss
from reid_nb.models.embedder import Embedder
from reid_nb.models.families import NETWORKS
from reid_nb.models.groups import layer_groups, open_all, open_layers, staged_lr
from reid_nb.models.osnet import osnet_x0_25

@pytest.mark.parametrize('name', NETWORKS)
def test_every_parameter_is_in_one_group_and_order_is_kept(name):
    with torch.device('meta'): model = NETWORKS[name](5)
    order = {id(o): i for i, o in enumerate(model.parameters())}
    for n in (2, 3):
        groups = layer_groups(model, n=n)
        at = [[order[id(o)] for o in g] for g in groups]
        assert len(groups) == n and all(at) and sorted(sum(at, [])) == list(range(len(order)))
    heads = {k.split('.')[0] for k, o in model.named_parameters() if id(o) in {id(p) for p in groups[-1]}}
    assert heads == {o for o in model.new_layers if any(True for _ in getattr(model, o).parameters())} and any(o.startswith('classifier') for o in heads)
    assert max(at[0]) < max(at[1]) # early before late

def loaders():
    x, y = torch.rand(16, 3, 64, 32), torch.arange(16) % 5
    dl = DataLoader(TensorDataset(x, y), batch_size=8)
    return DataLoaders(dl, dl)


def fit(model, n=1, cbs=None, lr=1e-2, **kw):
    learn = Learner(loaders(), model, loss_func=IdLoss(), cbs=cbs, **kw)
    before = {k: o.clone() for k, o in model.state_dict().items()}
    return learn, before

def moved(model, before, params=True): # children in which a parameter, or a statistic, has changed
    names = {k for k, _ in model.named_parameters()}
    return {k.split('.')[0] for k, o in model.state_dict().items() if (k in names) == params and not torch.equal(o, before[k])}

def test_rates_of_their_own():
    torch.manual_seed(0)
    learn, before = fit(osnet_x0_25(5), splitter=layer_groups, train_bn=False)
    learn.create_opt()
    learn.freeze()
    with learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-2)
    assert moved(learn.model, before) == {'classifier'}
    learn.unfreeze()
    with learn.no_bar(), learn.no_logging(): learn.fit(1, [0., 1e-3, 1e-3])
    assert 'conv1' not in moved(learn.model, before) and {'conv5', 'fc', 'classifier'} <= moved(learn.model, before)

class Open(Callback): # what a callback for two steps does
    def before_train(self): open_layers(self.model, 'classifier')

def test_open_layers_in_a_learner():
    torch.manual_seed(0)
    learn, before = fit(osnet_x0_25(5), cbs=Open)
    with learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-2)
    assert moved(learn.model, before) == {'classifier'} and moved(learn.model, before, params=False) == set()
    open_all(learn.model)
    learn.remove_cb(Open)
    with learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-2)
    assert {'conv1', 'conv3', 'fc'} <= moved(learn.model, before) & moved(learn.model, before, params=False)

def test_direct_parameters_stand_still_too():
    m = Embedder('vit_tiny_patch16_224', 5, depth=1, size=(64, 32))
    assert open_layers(m, None) and not m.body.cls_token.requires_grad and m.classifier.weight.requires_grad and not m.body.training

@pytest.mark.parametrize('kw, words', [(dict(new_layers='head'), "no child .'head'"), (dict(n=1), '2 or 3')])
def test_what_cannot_be(kw, words):
    with pytest.raises(ValueError, match=words): layer_groups(osnet_x0_25(5), **kw)
    with pytest.raises(ValueError, match='its children are'): open_layers(osnet_x0_25(5), ['classifier', 'nothing'])

def test_staged(): assert staged_lr(1., .5) == [.5, 1.] and staged_lr(3e-4) == pytest.approx([3e-5, 3e-4])
