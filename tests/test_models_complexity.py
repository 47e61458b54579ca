"Counts of all networks against Torchreid's tool, against hooks and by hand"
import pytest
import torch
from torch import nn

from parity import GOLDEN
from reid_nb.models.complexity import complexity
from reid_nb.models.embedder import Embedder
from reid_nb.models.families import NETWORKS
from reid_nb.models.osnet import osnet_x0_25
from reid_nb.models.vit import VITS
from reid_nb.models.zoo import _costs, _count, list_models

@pytest.mark.parametrize('name', GOLDEN.index)
def test_as_torchreids_tool_counts(name):
    with torch.device('meta'): model = NETWORKS[name](1000)
    c = complexity(model, torchreid=True, classifier=name == 'mudeep') # that network classifies in evaluation, too, there
    assert c.params == GOLDEN.tool_params[name]
    # NASNet there pads a map, computes on it and cuts a row and a column off again; here they are not computed
    assert round(c.madds / 1e6, 1) == (367.3 if name == 'nasnsetmobile' else GOLDEN.tool_mflops[name])

@pytest.mark.parametrize('name', ['osnet_x0_25', 'osnet_ain_x0_5', 'hacnn', 'pcb_p4', 'mobilenetv2_x1_0', 'densenet121_2018'])
def test_the_table_is_what_is_counted(name): assert _costs(name) == pytest.approx(_count(name))

def test_the_table_has_every_network_and_its_parameters():
    t = list_models()
    assert list(t.index) == [*NETWORKS, *VITS] and t.params.astype(float).to_dict() == pytest.approx(
        {**t.params.astype(float), **{k: round(GOLDEN.body_params[k] / 1e6, 2) for k in GOLDEN.index}})
    assert t.feature.to_dict() == {**t.feature, **GOLDEN.n_feats}

def test_the_classifier_counts_only_where_it_is_asked_for():
    m = osnet_x0_25(1000)
    a, b = complexity(m), complexity(m, classifier=True)
    assert (b.params - a.params, b.madds - a.madds) == (513_000, 512_000)
    m = Embedder('resnet10t', 100)
    a, b = complexity(m), complexity(m, classifier=True)
    assert (b.params - a.params, b.madds - a.madds) == (51_200, 51_200)

def test_a_layer_that_is_used_again_costs_again_and_is_stored_once():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.idle = nn.Conv2d(3, 3, 1), nn.Linear(5, 5)
        def forward(self, x): return self.conv(self.conv(x))
    c = complexity(Twice(), (4, 2))
    assert (c.params, c.madds, c.activations, c.layers.calls['conv']) == (12 + 30, 2 * 9 * 8, 2 * 3 * 8, 2)
    t = complexity(Twice(), (4, 2), torchreid=True)
    assert (t.params, t.madds) == (24, 2 * (9 + 3) * 8)

def test_products_outside_of_layers():
    class Attend(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.ones(7, 3))
        def forward(self, x):
            x = x.flatten(2).transpose(1, 2) # n,8,3
            y = nn.functional.scaled_dot_product_attention(x, x, x)
            return y @ self.w.T
    c = complexity(Attend(), (4, 2))
    assert c.madds == 2 * 8 * 8 * 3 + 8 * 3 * 7 and c.params == 21 and complexity(Attend(), (4, 2), torchreid=True).madds == 0

@pytest.mark.parametrize('conv, size, madds', [
    (nn.Conv2d(3, 6, 3, 2, 1, groups=3, bias=False), (8, 4), 4 * 2 * 6 * 9), (nn.ConvTranspose2d(3, 5, 2, 2, bias=False), (4, 2), 4 * 2 * 3 * 5 * 4), (nn.Conv2d(3, 4, (1, 7), bias=False), (2, 9), 2 * 3 * 4 * 21)])
def test_convolutions_by_hand(conv, size, madds): assert complexity(conv, size).madds == madds

def test_other_operations():
    m = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(1))
    n = 4 * 8 * 4
    assert complexity(m, (8, 4)).madds == 3 * n
    assert complexity(m, (8, 4), only_conv_linear=False).madds == 3 * n + 4 * n + n + n // 4 * 3 + 4 * 8

def test_nothing_is_changed():
    m = osnet_x0_25(5).train()
    m.conv1.bn.eval()
    before = {k: o.clone() for k, o in m.state_dict().items()}
    for kw in (dict(), dict(classifier=True), dict(torchreid=True)): complexity(m, (64, 32), **kw)
    assert m.training and not m.conv1.bn.training and m.fc[1].training and all(torch.equal(o, before[k]) for k, o in m.state_dict().items())
    assert not any(len(o._forward_hooks) + len(o._forward_pre_hooks) for o in m.modules())
    assert isinstance(m(torch.rand(2, 3, 64, 32)), list)

def test_sizes_that_a_network_refuses():
    with torch.device('meta'): m = NETWORKS['hacnn'](5)
    assert complexity(m).size == (160, 64)
    with pytest.raises(ValueError, match='160x64'): complexity(m, (256, 128))
