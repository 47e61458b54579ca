"Attributes: from files and columns to figures that sklearn gives, too; what is unknown counts for nothing"
import numpy as np
import pandas as pd
import pytest
import torch
from fastai.callback.core import Callback
from PIL import Image
from scipy.io import savemat
from torch import nn

from reid_nb.beyond.attributes import (AttributeDataLoaders, AttributeLoss, AttributeNet, AttributeResults, add_duke_attributes, attribute_learner,
                                       attribute_targets, attribute_weights, attribute_words, attributes, read_duke_attributes)
from reid_nb.core import ReidError, make_items, rows_of
from reid_nb.data.more_sets import add_market_attributes, pa100k
from reid_nb.models.zoo import create_model
from reid_nb.train.runs import RunFolder
from reid_nb.train.schedule import make_optimizer


class Tone(nn.Module):
    "Tells attributes from the mean colour"
    new_layers = ('classifier',)
    def __init__(self, c):
        super().__init__()
        self.classifier = nn.Linear(3, c)
    def forward(self, x):
        feat = x.mean((2, 3))
        return [(feat, self.classifier(feat))] if self.training else feat

def cells(*names): return np.array([[o] for o in names], dtype=object)

@pytest.fixture(scope='module')
def pictures(tmp_path_factory): # a folder as PA-100K's: red or not, bright or not
    home = tmp_path_factory.mktemp('pa100k')
    (home/'data').mkdir()
    rng, mat, number = np.random.default_rng(0), dict(attributes=cells('red', 'bright')), 0
    for part, n in dict(train=60, val=20, test=20).items():
        truth, names = rng.integers(0, 2, (n, 2)), []
        for red, bright in truth:
            number += 1
            names.append(f'{number:06}.png')
            colour = (np.array([150, 40, 40] if red else [40, 40, 150]) + 100 * bright + rng.integers(-10, 10, 3)).astype(np.uint8)
            Image.fromarray(np.full((32, 16, 3), colour, np.uint8)).save(home/'data'/names[-1])
        mat |= {f'{part}_images_name': cells(*names), f'{part}_label': truth.astype(np.uint8)}
    savemat(home/'annotation.mat', mat)
    return home

@pytest.fixture(scope='module')
def items(pictures): return pa100k(pictures, check=False)

@pytest.fixture(scope='module')
def dls(items): return AttributeDataLoaders.from_items(items, size=(32, 16), bs=20)

def trained(dls, epochs=15, **kwargs):
    torch.manual_seed(0)
    learn = attribute_learner(dls, Tone(dls.c), opt_func=make_optimizer('adam', wd=0.), lr=.1, **kwargs)
    with learn.no_bar(), learn.no_logging(): learn.fit(epochs)
    return learn

def test_from_the_file_to_the_figures(items, dls):
    assert dls.attributes == ['red', 'bright'] and list(dls.valid_items.split.unique()) == ['val']
    learn = trained(dls, 30)
    for o in (learn.tell(progress=False), learn.tell(rows_of(items, 'gallery'), progress=False)): assert o.metrics['mA'] > .9 and o.metrics['F1'] > .85 and o.metrics['n'] == 20

def test_unknown_cells_move_nothing(items): # half of the reds are known, and of the other half only how bright they are
    red = items.red.astype('boolean')
    learn = trained(AttributeDataLoaders.from_items(items.assign(red=red.mask((items.index % 2 == 0) & (items.split == 'train'))), ['red', 'bright'], size=(32, 16), bs=20))
    assert learn.tell(progress=False).metrics['mA'] > .9
    loss, z = AttributeLoss(), torch.randn(6, 2, requires_grad=True)
    loss(z, torch.tensor([[1, np.nan]] * 6)).backward()
    assert (z.grad[:, 1] == 0).all() and (z.grad[:, 0] != 0).all()

@pytest.mark.parametrize('kind', ['exp', 'both', None])
def test_the_gradient_of_the_loss(kind):
    g = torch.Generator().manual_seed(0)
    y = torch.randint(0, 2, (5, 3), generator=g).float()
    y[1, 2] = y[3, 0] = np.nan
    w = attribute_weights(y.numpy(), kind)
    z = torch.randn(5, 3, generator=g, requires_grad=True)
    AttributeLoss(w)(z, y).backward()
    yes = y.nan_to_num()
    want = torch.where(yes > 0, w[1], w[0]) * (z.detach().sigmoid() - yes) * ~y.isnan() / 13
    assert torch.allclose(z.grad, want, atol=1e-6)

def test_figures_equal_sklearn():
    from sklearn.metrics import balanced_accuracy_score, f1_score, jaccard_score, precision_score, recall_score
    rng = np.random.default_rng(1)
    truth, prob = rng.integers(0, 2, (80, 6)).astype(float), rng.random((80, 6))
    truth[:, 0] = 1 - truth[:, 1] # so that no picture is without a yes
    res, said = AttributeResults(prob, truth, list('abcdef')), prob >= .5
    kw = dict(average='samples', zero_division=0)
    assert res.metrics['accuracy'] == pytest.approx(jaccard_score(truth, said, **kw))
    assert res.metrics['precision'] == pytest.approx(precision_score(truth, said, **kw))
    assert res.metrics['recall'] == pytest.approx(recall_score(truth, said, **kw))
    for j, o in enumerate('abcdef'):
        assert res.by_attribute.mA[o] == pytest.approx(balanced_accuracy_score(truth[:, j], said[:, j]))
        assert res.by_attribute.F1[o] == pytest.approx(f1_score(truth[:, j], said[:, j]))

def test_who_always_says_no_has_a_half():
    truth = (np.arange(40).reshape(10, 4) % 3 == 0).astype(float)
    got = AttributeResults(np.zeros((10, 4)), truth, list('abcd')).metrics
    assert got['mA'] == .5 and got['recall'] < .2 and got['F1'] < .2

@pytest.mark.parametrize('name', ['osnet_x0_25', 'pcb_p4', 'resnet18', 'timm/resnet18'])
def test_any_network_serves(name): # logits in evaluation are those of its classifier, with layers that stand still
    kw = dict(size=(64, 32))
    net = AttributeNet(create_model(name, 5, **kw)).eval()
    x, before = torch.rand(2, 3, 64, 32), {k: o.clone() for k, o in net.state_dict().items()}
    with torch.no_grad(): a, b = net(x), net(x)
    assert a.shape == (2, 5) and torch.equal(a, b) and not net.net.training
    assert all(torch.equal(o, before[k]) for k, o in net.state_dict().items())
    assert net.train().net.training and net(x).requires_grad

class Dies(Callback):
    order = 99
    def after_epoch(self):
        if self.epoch == 1: raise RuntimeError('power cut')

def test_a_run_goes_on_where_it_stopped(dls, tmp_path):
    def run(folder, *cbs):
        learn = attributes(dls, model='osnet_x0_25', fixbase_epoch=1, lr=.01)
        with learn.no_bar(), learn.no_logging(): learn.fit_recipe(3, cbs=[RunFolder(folder, best='mA'), *cbs])
        return learn.model.state_dict()
    with pytest.raises(RuntimeError, match='power cut'): run(tmp_path/'parts', Dies())
    for a, b in zip(run(tmp_path/'whole').values(), run(tmp_path/'parts').values()): assert torch.equal(a, b)

def test_market_and_duke_join_their_tables(tmp_path):
    yes_no = dict.fromkeys(('hat', 'backpack', 'bag', 'handbag'), [1, 2])
    market = dict(gender=[1, 2], hair=[1, 2], up=[1, 1], down=[1, 2], clothes=[2, 1], age=[3, 4], upred=[1, 2], upblue=[2, 1], downred=[1, 1], downblue=[1, 2], image_index=['0001', '0002'])
    savemat(tmp_path/'m.mat', dict(market_attribute=dict(train=market | yes_no, test=market | yes_no | dict(image_index=['0003', '0004']))))
    t = add_market_attributes(make_items(list('abcd'), [1, 2, 4, -1], split=['train', 'train', 'gallery', 'gallery']), tmp_path/'m.mat')
    words = attribute_words(rows_of(t, 'train'), ['gender', 'hat', 'up_colour'])
    got = attribute_targets(t, words)
    assert words == dict(gender=['female'], hat=None, up_colour=['blue']) and got.iloc[:3]['gender=female'].tolist() == [0, 1, 1] and got.iloc[3].isna().all()
    duke = dict(gender=[1, 2], top=[0, 1], shoes=[1, 2], boots=[1, 2], upblack=[1, 1], upred=[2, 1], downblue=[2, 2], downred=[1, 2], image_index=['0001', '0005'])
    savemat(tmp_path/'d.mat', dict(duke_attribute=dict(train=duke | yes_no, test=duke | yes_no | dict(image_index=['0002', '0006']))))
    d = read_duke_attributes(tmp_path/'d.mat')
    assert list(d.index) == [1, 2, 5, 6] and pd.isna(d.top[1]) and d.top[5] == 'short' and d.up_colour[1] == 'red' and pd.isna(d.up_colour[5]) and pd.isna(d.down_colour[5]) and bool(d.boots[6])
    with pytest.raises(ReidError, match='no variable'): add_duke_attributes(t[t.columns[:5]], tmp_path/'m.mat')

def test_settings_that_attributes_have_not(dls, items):
    with pytest.raises(ValueError, match='triplet: no setting of attributes'): attributes(dls, triplet=1.)
    with pytest.raises(ValueError, match="did you mean 'bce_weights'"): attributes(dls, bce_weight=None)
    with pytest.raises(ReidError, match='no column'): attributes(items, attributes=['hat'])
