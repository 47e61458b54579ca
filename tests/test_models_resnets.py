"ResNets and SENets: the contract, their options, names of ImageNet files, and the figures of those networks that no other test compares with Torchreid"
import copy

import numpy as np
import pytest
import timm
import torch
import torchvision
from torch import nn
from torch.nn import functional as F
from torchvision.models.resnet import BasicBlock, Bottleneck

from parity import fill, golden_input, key_hash
from timm.models import senet
from reid_nb.models.resnets import (RESNETS, ResNet, ResNetMid, fc_head, resnet18, resnet50_2018, resnet50_fc512, resnet50_ibn_a, resnet50_ibn_b,
                                    resnet50m_2018, resnet50mid, set_stride)
from reid_nb.models.senets import SENETS, SENet, se_resnet50_fc512

ALL = {**RESNETS, **SENETS}
ONES = (1, 1, 1, 1)
SMALL = { # name to (maker, length of the feature, height of the last map of a picture of 64x32)
    'basic': (lambda: ResNet(5, BasicBlock, ONES), 512, 2),
    'bottleneck': (lambda: ResNet(5, Bottleneck, ONES, last_stride=1, fc_dims=(16, 8)), 8, 4),
    'groups': (lambda: ResNet(5, Bottleneck, ONES, groups=32, width_per_group=4, fc_dims=8, dropout_p=.1), 8, 2),
    'ibn_a': (lambda: resnet50_ibn_a(5, depths=ONES), 2048, 2),
    'ibn_b': (lambda: resnet50_ibn_b(5, depths=(2, 2, 1, 1)), 2048, 2),
    'mid': (lambda: ResNetMid(5, depths=(1, 1, 1, 3)), 3072, 2),
    'mid_2018': (lambda: resnet50m_2018(5), 3072, 2),
    'se_resnet': (lambda: SENet(5, depths=ONES), 2048, 2),
    'se_resnext': (lambda: SENet(5, senet.SEResNeXtBottleneck, ONES, 32, last_stride=1, fc_dims=8), 8, 4),
    'senet': (lambda: SENet(5, senet.SEBottleneck, ONES, 64, inplanes=128, input_3x3=True, downsample_kernel_size=3, downsample_padding=1), 2048, 2)}

def on_meta(make, *args, **kwargs):
    with torch.device('meta'): return make(*args, **kwargs)

def n_params(m): return sum(o.numel() for o in m.parameters())

@pytest.fixture(scope='module', params=SMALL)
def small(request):
    torch.manual_seed(0)
    make, d, h = SMALL[request.param]
    return make(), d, h

@pytest.fixture(scope='module')
def x(): return torch.rand(4, 3, 64, 32, generator=torch.Generator().manual_seed(1))

def test_contract(small, x):
    model, d, h = small
    with torch.no_grad():
        feat, maps = model.eval()(x), model.feature_maps(x)
        heads = model.train()(x)
    assert (model.n_classes, model.n_feats, model.input_size) == (5, d, None)
    assert feat.shape == (4, d) and maps.shape[2:] == (h, h // 2)
    assert len(heads) == 1 and [o.shape for o in heads[0]] == [(4, d), (4, 5)]
    assert torch.allclose(heads[0][1], model.classifier(heads[0][0]), atol=1e-5)

def test_odd_sizes(small):
    model = small[0].eval()
    with torch.inference_mode(): assert model(torch.rand(1, 3, 97, 43)).shape == (1, model.n_feats)

def test_every_weight_learns(small, x):
    model = copy.deepcopy(small[0]).train()
    torch.manual_seed(0)
    before = {k: o.detach().clone() for k, o in model.named_parameters()}
    (feat, logits), = model(x)
    (F.cross_entropy(logits, torch.arange(4)) + feat.square().mean()).backward()
    torch.optim.SGD(model.parameters(), .1).step()
    assert [k for k, o in model.named_parameters() if torch.equal(o, before[k])] == []

def test_channels_last_and_bf16(small, x):
    model = copy.deepcopy(small[0]).eval()
    with torch.inference_mode():
        want = model(x)
        got = model.to(memory_format=torch.channels_last)(x.contiguous(memory_format=torch.channels_last))
        with torch.autocast('cpu', torch.bfloat16): half = model(x)
    assert torch.allclose(got, want, rtol=1e-3, atol=1e-4 * want.abs().max())
    assert half.isfinite().all() and F.cosine_similarity(half.float(), want).min() > .99

@pytest.mark.parametrize('name', ['ibn_b', 'mid', 'se_resnext'])
def test_export_computes_the_same(name, x):
    model = SMALL[name][0]().eval()
    program = torch.export.export(model, (x,)).module()
    with torch.no_grad(): assert torch.allclose(program(x), model(x), rtol=1e-4, atol=1e-5)

# Names and shapes

@pytest.mark.parametrize('name', ['resnet18', 'resnet34', 'resnet50', 'resnet101', 'resnet152', 'resnext50_32x4d', 'resnext101_32x8d',
                                  'resnet50_fc512', 'resnet50mid'])
def test_torchvision_files_fill_all_but_new_layers(name):
    ours, theirs = on_meta(RESNETS[name], 751), on_meta(getattr(torchvision.models, name.replace('_fc512', '').replace('mid', '')))
    a, b = ({k: tuple(o.shape) for k, o in m.state_dict().items()} for m in (ours, theirs))
    assert {k: o for k, o in b.items() if not k.startswith('fc.')} == {k: o for k, o in a.items() if k.split('.')[0] not in ours.new_layers}
    assert not set(a.items()) & {(k, o) for k, o in b.items() if k.startswith('fc.')}

@pytest.mark.parametrize('name, theirs', [('se_resnet50', 'seresnet50'), ('se_resnet50_fc512', 'seresnet50'), ('se_resnet101', 'seresnet101'), ('se_resnet152', 'seresnet152'),
                                          ('se_resnext50_32x4d', 'seresnext50_32x4d'), ('se_resnext101_32x4d', 'seresnext101_32x4d'), ('senet154', 'senet154')])
def test_cadenes_files_fill_all_but_new_layers(name, theirs):
    ours, theirs = on_meta(SENETS[name], 751), on_meta(timm.create_model, f'legacy_{theirs}')
    a, b = ({k: tuple(o.shape) for k, o in m.state_dict().items()} for m in (ours, theirs))
    assert {k: o for k, o in b.items() if not k.startswith('last_linear.')} == {k: o for k, o in a.items() if k.split('.')[0] not in ours.new_layers}

@pytest.mark.parametrize('name', ALL)
def test_new_layers_are_children_with_weights(name):
    model = on_meta(ALL[name], 751)
    children = dict(model.named_children())
    assert all(n_params(children[k]) for k in model.new_layers) and 'classifier' in model.new_layers

# Figures that are not among the 49: from running Torchreid's own code for these two, and its ancestor's of March 2018, with the same fill and pictures

EXTRA = { # name to tensors, key hash, and for those that single precision is enough for: norms, cosine, largest positions, first values of row 0
    'senet154': (1144, 'f0e17c29a608'), 'se_resnet152': (1132, '8dcf1e90d1d5'),
    'resnet50_2018': (320, '9468d8226090', (1362.23, 1226.36), .99911, (194, 701), (.003553, 1.8291e-05, .0090535, .0028309)),
    'resnet50m_2018': (645, 'cfeed0a841ac', (1509.24, 1359.03), .99906, (194, 701), (.003207, 1.651e-05, .0081717, .0025552))}

@pytest.mark.parametrize('name', EXTRA)
def test_names_of_the_networks_beyond_the_49(name):
    state = on_meta(ALL[name], 1000).state_dict()
    assert (len(state), key_hash(state)) == EXTRA[name][:2]

@pytest.mark.parametrize('name', ['resnet50_2018', 'resnet50m_2018'])
def test_what_the_networks_of_2018_compute(name):
    model = ALL[name](10).eval()
    with torch.inference_mode():
        fill({k: o for k, o in model.state_dict().items() if not k.startswith('layers')})
        feat = model(golden_input()).double().numpy()
    _, _, norms, cos, top, first = EXTRA[name]
    norm = np.linalg.norm(feat, axis=1)
    unit = feat / norm[:, None]
    assert norm == pytest.approx(norms, rel=1e-4) and unit[0] @ unit[1] == pytest.approx(cos, abs=1e-4)
    assert tuple(unit.argmax(1)) == top and unit[0, :4] == pytest.approx(first, abs=1e-5)

def test_what_a_short_senet154_computes(): # of all its kinds of blocks; with 50 of them this fill needs double precision, where both give 13536.7 and 12768.2
    model = SENet(10, senet.SEBottleneck, (1, 2, 1, 1), 64, inplanes=128, input_3x3=True, downsample_kernel_size=3, downsample_padding=1).eval()
    fill(model.state_dict())
    with torch.inference_mode(): feat = model(golden_input((64, 32)))
    assert feat.norm(dim=1).tolist() == pytest.approx([19.7492, 18.7549], rel=2e-5) and feat.argmax(1).tolist() == [343, 114]
    assert F.cosine_similarity(feat[0], feat[1], 0).item() == pytest.approx(.98335, abs=2e-5)

@pytest.mark.parametrize('name, n_classes, millions', [('resnet50_2018', 751, 25.046831), ('resnet50m_2018', 751, 30.01), ('resnet50_2018', 625, 24.79), ('resnet50m_2018', 625, 29.63)])
def test_sizes_of_2018(name, n_classes, millions):
    assert n_params(on_meta(RESNETS[name], n_classes)) / 1e6 == pytest.approx(millions, abs=.005)

def test_files_of_2018_with_and_without_second_names():
    model = resnet50m_2018(3)
    state = {k: torch.rand_like(o) if o.is_floating_point() else o for k, o in model.state_dict().items() if not k.startswith('layers')}
    twice = {**state, **{k.replace('base.7.2.', 'layers5c.'): o for k, o in state.items() if k.startswith('base.7.2.')}}
    size = len(twice)
    for given in (state, twice):
        other = resnet50m_2018(3)
        assert str(other.load_state_dict(given)) == '<All keys matched successfully>'
        assert torch.equal(other.base[7][2].conv1.weight, state['base.7.2.conv1.weight'])
    assert len(twice) == size # what was passed is left as it was
    with pytest.raises(RuntimeError, match='Missing key'): resnet50m_2018(3).load_state_dict({k: o for k, o in twice.items() if not k.startswith('base.4.')})
    inside = nn.Sequential(resnet50m_2018(3))
    assert len(inside.state_dict()) == 645 and '0.layers3.0.conv1.weight' in inside.state_dict()
    inside.load_state_dict(inside.state_dict())
    assert len({id(o) for o in model.parameters()}) == len(list(model.parameters())) == sum(len(list(o.parameters())) for o in model.children())

# Options

def test_last_stride():
    for make in (resnet50_fc512, se_resnet50_fc512):
        y = torch.empty(1, 3, 256, 128, device='meta')
        assert [on_meta(make, 3, last_stride=o).feature_maps(y).shape[-2:] for o in (1, 2)] == [(16, 8), (8, 4)]
        with pytest.raises(ValueError, match='must be 1 or 2, not 3'): on_meta(make, 3, last_stride=3)
    stage = nn.Sequential(nn.Conv2d(3, 3, 3, 2), nn.Conv2d(3, 3, 3))
    set_stride(stage, 1)
    assert [o.stride for o in stage] == [(1, 1), (1, 1)]

def test_fc_head():
    head, n = fc_head(8, (6, 4), .5)
    assert [type(o).__name__ for o in head] == ['Linear', 'BatchNorm1d', 'ReLU', 'Dropout'] * 2 and n == 4
    assert [len(fc_head(8, o)[0]) for o in ((), None, 4, [4], (4, 2))] == [0, 0, 3, 3, 6]
    model = on_meta(resnet18, 3, fc_dims=(64, 32))
    assert list(model.classifier.weight.shape) == [3, 32] and model.new_layers == ('fc', 'classifier') and ResNet.new_layers == ('classifier',)

def test_layers_begin_as_torchreids():
    torch.manual_seed(0)
    model = resnet50_ibn_b(751, depths=(2, 2, 1, 1), fc_dims=512)
    assert model.layer4[0].conv2.weight.std().item() == pytest.approx((2 / (512 * 9)) ** .5, rel=.02)
    assert model.layer2[1].conv2.weight.std().item() == pytest.approx((2 / (128 * 9)) ** .5, rel=.02) # a block that was put in later
    assert [o.weight.std().item() for o in (model.classifier, model.fc[0])] == pytest.approx([.01, .01], rel=.02)
    assert not model.classifier.bias.any()

def test_signatures_show_the_options():
    import inspect
    for name, f in ALL.items():
        if not name.endswith('_2018'): assert 'last_stride' in inspect.signature(f).parameters, name
    assert inspect.signature(resnet50_fc512).parameters['last_stride'].default == 1

def test_ibn_norms_a_picture_by_itself():
    torch.manual_seed(0)
    model = resnet50_ibn_b(3, depths=(2, 2, 1, 1)).eval()
    assert [k for k, m in model.named_modules() if isinstance(m, nn.InstanceNorm2d)] == ['bn1', 'layer1.1.IN', 'layer2.1.IN']
    model = on_meta(resnet50_ibn_a, 3)
    found = [k for k, m in model.named_modules() if isinstance(m, nn.InstanceNorm2d)]
    assert len(found) == 13 and all(k.endswith('bn1.IN') for k in found) and not any('layer4' in k for k in found)

def test_mid_is_the_mean_of_three_maps():
    model = ResNetMid(3, depths=(1, 1, 1, 3), fused=7).eval()
    y = torch.rand(2, 3, 64, 32)
    with torch.no_grad():
        a = model.layer4[0](model.early_maps(y)); b = model.layer4[1](a)
        want = torch.cat([model.fc_fusion(torch.cat([a.mean((2, 3)), b.mean((2, 3))], 1)), model.layer4[2](b).mean((2, 3))], 1)
        assert model.n_feats == 2055 and torch.allclose(model(y), want, atol=1e-6)
    assert on_meta(resnet50mid, 3, last_stride=1).feature_maps(torch.empty(1, 3, 64, 32, device='meta')).shape[-2:] == (4, 2)
