"The small networks: contract, sizes, keys of torchvision's files, the shuffle; dead branches; half precision and channels_last"
import copy

import pytest
import torch
import torchvision
from torch.nn import functional as F

from reid_nb.models import small
from reid_nb.models.small import SMALLS, InvertedResidual, ShuffleBlock, shuffle_channels

FEATS = dict(mobilenetv2_x1_0=1280, mobilenetv2_x1_4=1792, shufflenet=960, squeezenet1_0=512, squeezenet1_0_fc512=512, squeezenet1_1=512,
             shufflenet_v2_x0_5=1024, shufflenet_v2_x1_0=1024, shufflenet_v2_x1_5=1024, shufflenet_v2_x2_0=2048)

@pytest.fixture(scope='module')
def nets():
    torch.manual_seed(0)
    return {k: f(5) for k, f in SMALLS.items()}

@pytest.fixture
def pictures(): return torch.rand(3, 3, 64, 32, generator=torch.Generator().manual_seed(1))

def on_meta(make, *args, **kwargs):
    with torch.device('meta'): return make(*args, **kwargs)

def shapes(model, drop=()): return {k: tuple(o.shape) for k, o in model.state_dict().items() if k.split('.')[0] not in drop}

def test_names(): assert set(SMALLS) == set(FEATS)

@pytest.mark.parametrize('name', FEATS)
def test_contract(nets, pictures, name):
    model, x = nets[name].eval(), pictures
    with torch.no_grad():
        feat, maps = model(x), model.feature_maps(x)
        assert maps.shape[2:] == ((3, 1) if 'squeezenet' in name else (2, 1)) and feat.shape == (3, FEATS[name]) == (3, model.n_feats)
        if model.fc is None: assert torch.allclose(feat, maps.mean((2, 3)), atol=1e-6)
        [(f, logits)] = model.train()(x)
    assert f.shape == feat.shape and logits.shape == (3, 5) and torch.equal(logits, model.classifier(f))
    assert model.n_classes == 5 and model.input_size is None
    assert model.new_layers == (('fc', 'classifier') if name.endswith('fc512') else ('classifier',))

@pytest.mark.parametrize('name', FEATS)
def test_one_step_changes_everything(nets, pictures, name):
    torch.manual_seed(0)
    model = copy.deepcopy(nets[name]).train()
    before = {k: o.detach().clone() for k, o in model.named_parameters()}
    opt = torch.optim.SGD(model.parameters(), lr=1e-2)
    [(feat, logits)] = model(pictures)
    (F.cross_entropy(logits, torch.arange(3)) + feat.square().mean()).backward()
    opt.step()
    assert [k for k, o in model.named_parameters() if torch.equal(o, before[k])] == []

@pytest.mark.parametrize('name', FEATS)
def test_other_layouts(nets, pictures, name):
    model, x = copy.deepcopy(nets[name]).eval(), pictures
    with torch.no_grad():
        want = F.normalize(model(x))
        with torch.autocast('cpu', torch.bfloat16): half = F.normalize(model(x).float())
        got = F.normalize(model.to(memory_format=torch.channels_last)(x.contiguous(memory_format=torch.channels_last)))
    assert torch.allclose(want, got, atol=1e-5)
    assert (want * half).sum(1).min() > .99

@pytest.mark.parametrize('name', FEATS)
def test_odd_sizes(nets, name):
    with torch.no_grad():
        for size in [(61, 33), (97, 21)]: assert nets[name].eval()(torch.rand(1, 3, *size)).isfinite().all()

@pytest.mark.parametrize('name,least', [('squeezenet1_0', 21), ('squeezenet1_1', 17)])
def test_smallest_size(nets, name, least):
    model = nets[name].eval()
    with torch.no_grad():
        assert model.feature_maps(torch.rand(1, 3, least, least)).shape[2:] == (1, 1)
        with pytest.raises(ValueError, match=f'at least {least}x{least} .*, not {least - 1}x64'): model(torch.rand(1, 3, least - 1, 64))
        with pytest.raises(RuntimeError): model.features(torch.rand(1, 3, least - 1, 64)) # the limit is a real one

@pytest.mark.parametrize('name,head', [('squeezenet1_0', 'classifier'), ('squeezenet1_1', 'classifier'),
                                       *[(f'shufflenet_v2_{o}', 'fc') for o in ('x0_5', 'x1_0', 'x1_5', 'x2_0')]])
def test_imagenet_file_of_torchvision(name, head):
    want = shapes(on_meta(torchvision.models.get_model, name), (head,))
    assert len(want) >= 50 and shapes(on_meta(SMALLS[name], 5), ('classifier',)) == want

@pytest.mark.parametrize('groups', [1, 2, 3, 6])
def test_shuffle(groups):
    x = torch.rand(2, 12, 3, 2)
    want = torch.stack([x[:, g * (12 // groups) + i] for i in range(12 // groups) for g in range(groups)], 1)
    assert torch.equal(shuffle_channels(x, groups), want)
    assert torch.equal(shuffle_channels(x, groups), torchvision.models.shufflenetv2.channel_shuffle(x, groups))
    assert torch.equal(shuffle_channels(want, 12 // groups), x) # and back again

def test_groups_do_not_see_each_other_before_the_shuffle():
    block = ShuffleBlock(240, 240).eval()
    x = torch.rand(1, 240, 4, 4, requires_grad=True)
    block.conv1(x)[0, :20].sum().backward()
    assert x.grad[0, :80].any() and not x.grad[0, 80:].any()
    x.grad = None
    block(x)[0, :80].sum().backward()
    assert x.grad[0, 80:].any()

def test_inverted_residual():
    torch.manual_seed(0)
    block, x = InvertedResidual(8, 8).eval(), torch.rand(1, 8, 6, 6)
    with torch.no_grad():
        assert torch.allclose(block(x) - x, block.conv3(block.dwconv2(block.conv1(x))), atol=1e-6)
        assert block.conv1(1e3 * x).max() <= 6 and block(-x).min() < 0 # no ReLU at the thin end
    assert not InvertedResidual(8, 8, stride=2).skip and not InvertedResidual(8, 16).skip

def test_how_layers_begin(nets):
    for name in ('mobilenetv2_x1_0', 'squeezenet1_0_fc512'):
        head = nets[name].classifier
        assert abs(head.weight.std() - .01) < 1e-3 and not head.bias.any()
    conv = nets['mobilenetv2_x1_0'].conv9.conv
    assert abs(conv.weight.std() - (2 / 1280) ** .5) < 1e-3

def test_options():
    assert on_meta(small.MobileNetV2, 5, width=.5).n_feats == 1280 # never thinner at the end
    assert on_meta(small.ShuffleNetV2, 5, fc=64).n_feats == 64
    with pytest.raises(ValueError): small.ShuffleNetV2(5, width='x3_0')
