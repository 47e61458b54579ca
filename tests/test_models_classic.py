"The classic networks: contract, sizes, keys of the libraries' files; dead branches; half precision and channels_last"
import copy
import re

import pytest
import timm
import torch
import torchvision
from torch.nn import functional as F

from reid_nb.models import classic
from reid_nb.models.classic import CLASSICS, ChainNet

SMALL = {'densenet121': (64, 32), 'densenet121_fc512': (64, 32), 'densenet121_2018': (64, 32), 'inceptionv4': (107, 75), 'inceptionresnetv2': (107, 75),
         'xception': (64, 32), 'nasnsetmobile': (64, 32)} # name: a size that is quick
LAST = dict(densenet121=(1024, 2, 1), densenet121_fc512=(1024, 2, 1), densenet121_2018=(1024, 2, 1), inceptionv4=(1536, 2, 1), inceptionresnetv2=(1536, 2, 1),
            xception=(2048, 2, 1), nasnsetmobile=(1056, 2, 1))
FEATS = {'densenet121': 1024, 'densenet169': 1664, 'densenet201': 1920, 'densenet161': 2208, 'densenet121_fc512': 512, 'densenet121_2018': 1024,
         'inceptionv4': 1536, 'inceptionresnetv2': 1536, 'xception': 2048, 'nasnsetmobile': 1056, 'nasnetmobile': 1056}

@pytest.fixture(scope='module')
def nets(): # made once: their random start is what costs time
    torch.manual_seed(0)
    return {k: CLASSICS[k](5) for k in SMALL}

def pictures(name, n=2): return torch.rand(n, 3, *SMALL[name], generator=torch.Generator().manual_seed(1))

def on_meta(make, *args, **kwargs):
    with torch.device('meta'): return make(*args, **kwargs)

def shapes(model, drop=()): return {k: tuple(o.shape) for k, o in model.state_dict().items() if k.split('.')[0] not in drop}

def test_names():
    assert set(CLASSICS) == set(FEATS)
    assert {k: on_meta(f, 7).n_feats for k, f in CLASSICS.items()} == FEATS

@pytest.mark.parametrize('name', SMALL)
def test_contract(nets, name):
    model, x = nets[name].eval(), pictures(name)
    with torch.no_grad():
        feat, maps = model(x), model.feature_maps(x)
        assert maps.shape == (2, *LAST[name]) and feat.shape == (2, FEATS[name])
        if model.n_feats == maps.shape[1]: assert torch.allclose(feat, maps.mean((2, 3)), atol=1e-6)
        [(f, logits)] = model.train()(x)
    assert f.shape == feat.shape and logits.shape == (2, 5) and torch.equal(logits, model.classifier(f))
    assert model.n_classes == 5 and model.input_size is None
    assert model.new_layers == (('fc', 'classifier') if name.endswith('fc512') else ('classifier',))

@pytest.mark.parametrize('name', SMALL)
def test_one_step_changes_everything(nets, name):
    torch.manual_seed(0)
    model, x = copy.deepcopy(nets[name]).train(), pictures(name, 3)
    before = {k: o.detach().clone() for k, o in model.named_parameters()}
    opt = torch.optim.SGD(model.parameters(), lr=1e-2)
    [(feat, logits)] = model(x)
    (F.cross_entropy(logits, torch.arange(3)) + feat.square().mean()).backward()
    opt.step()
    assert [k for k, o in model.named_parameters() if torch.equal(o, before[k])] == []

@pytest.mark.parametrize('name', SMALL)
def test_other_layouts(nets, name):
    model, x = nets[name].eval(), pictures(name)
    with torch.no_grad():
        want = F.normalize(model(x))
        try: got = F.normalize(model.to(memory_format=torch.channels_last)(x.contiguous(memory_format=torch.channels_last)))
        finally: model.to(memory_format=torch.contiguous_format)
        with torch.autocast('cpu', torch.bfloat16): half = F.normalize(model(x).float())
    assert torch.allclose(want, got, atol=1e-5)
    assert (want * half).sum(1).min() > .99

@pytest.mark.parametrize('name', ['densenet121', 'densenet121_2018', 'inceptionv4', 'inceptionresnetv2', 'xception'])
def test_smallest_size(nets, name):
    model, least = nets[name].eval(), nets[name].min_size
    with torch.no_grad():
        assert model.feature_maps(torch.rand(1, 3, least, least)).shape[2:] == (1, 1)
        for h, w in [(least - 1, 200), (200, least - 1)]:
            with pytest.raises(ValueError, match=f'{type(model).__name__} needs pictures of at least {least}x{least} .*, not {h}x{w}'): model(torch.rand(1, 3, h, w))
            with pytest.raises(RuntimeError): # the limit is a real one: without it, layers fail
                x = torch.rand(1, 3, h, w)
                for k in model.chain: x = getattr(model, k)(x)

@pytest.mark.parametrize('size', [(299, 299), (61, 33), (7, 5), (3, 3)])
def test_nasnet_takes_odd_maps(nets, size):
    with torch.no_grad(): assert nets['nasnsetmobile'].eval()(torch.rand(1, 3, *size)).isfinite().all()

def test_nasnet_leaves_out_half_in_training(nets):
    model = nets['nasnsetmobile'].train()
    maps = torch.ones(4, 1056, 2, 1)
    assert abs((model.pool(maps) == 0).float().mean() - .5) < .05 and (model.eval().pool(maps) == 1).all()

@pytest.mark.parametrize('depth', [121, 169, 201, 161])
def test_imagenet_file_of_densenet(depth):
    "torchvision's files fill all but the head, old spelling of layers included"
    name = f'densenet{depth}'
    want = shapes(on_meta(torchvision.models.get_model, name), ('classifier',))
    assert shapes(on_meta(CLASSICS[name], 5), ('classifier',)) == want
    old = {re.sub(r'(denselayer\d+\.(?:norm|conv))([12])\.', r'\1.\2.', k) for k in want} # as in the files on torchvision's server
    assert old != set(want) and {re.sub(r'(denselayer\d+\.(?:norm|conv))\.([12])\.', r'\1\2.', k) for k in old} == set(want)
    if depth == 121:
        assert shapes(on_meta(CLASSICS['densenet121_fc512'], 5), ('fc', 'classifier')) == want
        assert {k.replace('base.', 'features.', 1): o for k, o in shapes(on_meta(CLASSICS['densenet121_2018'], 5), ('classifier',)).items()} == want

@pytest.mark.parametrize('name,theirs,head', [('inceptionv4', 'inception_v4', 'last_linear'), ('inceptionresnetv2', 'inception_resnet_v2', 'classif'), ('xception', 'legacy_xception', 'fc')])
def test_imagenet_file_of_timm(name, theirs, head):
    want = shapes(on_meta(timm.create_model, theirs), (head,))
    assert len(want) > 200 and shapes(on_meta(CLASSICS[name], 5), ('classifier',)) == want

def test_options():
    assert on_meta(classic.DenseNet, 5, drop_rate=.2).features.denseblock1.denselayer1.drop_rate == .2
    assert on_meta(classic.Xception, 5, fc=64).n_feats == 64
    with pytest.raises(ValueError): classic.DenseNet(5, depth=122)

def test_2018_counts():
    model = on_meta(CLASSICS['densenet121_2018'], 751)
    assert round(sum(o.numel() for o in model.parameters()) / 1e6, 2) == 7.72
    assert all(k.startswith(('base.', 'classifier.')) for k in model.state_dict())

def test_how_layers_begin(nets):
    for name in ('densenet121', 'densenet121_fc512', 'xception', 'nasnsetmobile'):
        head = nets[name].classifier
        assert abs(head.weight.std() - .01) < 1e-3 and not head.bias.any()
    conv = nets['densenet121'].features.conv0
    assert abs(conv.weight.std() - (2 / (64 * 49)) ** .5) < 1e-3 # counted by what goes out

def test_a_chain_of_ones_own():
    model = ChainNet(3, dict(a=torch.nn.Conv2d(3, 4, 1)), 4)
    assert set(model.state_dict()) == {'a.weight', 'a.bias', 'classifier.weight', 'classifier.bias'}
