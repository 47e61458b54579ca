"The models against their contract, in both precisions and on odd sizes; `Embedder` around bodies of three kinds"
import pickle

import pytest
import timm
import torch
from torch import nn

from reid_nb.core import ReidError
from reid_nb.models import osnet
from reid_nb.models.embedder import Embedder, GeM

def test_osnet_start_is_torchreids():
    torch.manual_seed(0)
    m = osnet.osnet_x1_0(751)
    w = m.conv5.conv.weight # kaiming, fan out, ReLU
    assert w.std().item() == pytest.approx((2 / 512) ** .5, rel=.02)
    assert m.conv2[0].conv2a.conv2.weight.std().item() == pytest.approx((2 / (64 * 9)) ** .5, rel=.1)
    assert m.classifier.weight.std().item() == pytest.approx(.01, rel=.02) and m.fc[0].weight.std().item() == pytest.approx(.01, rel=.02)
    assert all(o.abs().max() == 0 for k, o in m.named_parameters() if k.endswith('bias'))

@pytest.mark.parametrize('make', [lambda: osnet.osnet_x0_25(7), lambda: Embedder('resnet10t', 7), lambda: Embedder('resnet10t', 7, pool='gem', neck='none')])
def test_contract(make):
    torch.manual_seed(0)
    model, x = make(), torch.rand(4, 3, 96, 40)
    (feat, logits), = model.train()(x)
    assert feat.shape == (4, model.n_feats) and logits.shape == (4, 7) and model.n_classes == 7
    (feat.pow(2).mean() + logits.pow(2).mean()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters()) # none unused: several GPUs need that
    model.eval()
    with torch.no_grad():
        assert model(x).shape == (4, model.n_feats) and model.feature_maps(x).ndim == 4
        assert torch.allclose(model(x)[:1], model(x[:1]), atol=1e-5)
        assert torch.equal(pickle.loads(pickle.dumps(model))(x), model(x))

def test_osnet_gives_the_classifiers_own_input():
    m = osnet.osnet_x0_25(7)
    (feat, logits), = m(torch.rand(4, 3, 64, 32))
    assert torch.equal(m.classifier(feat), logits)

def test_osnet_blocks_can_be_replaced(): # the way in for other normalisations
    class Noted(osnet.OSBlock):
        def branch(self, x): return nn.functional.instance_norm(super().branch(x))
    m = osnet.OSNet(5, (16, 64, 96, 128), blocks=((Noted, osnet.OSBlock),) * 3, stem_norm=lambda n: nn.InstanceNorm2d(n, affine=True)).eval()
    assert 'conv1.bn.running_mean' not in m.state_dict() and len(m.state_dict()) == 564
    assert m(torch.rand(2, 3, 64, 32)).shape == (2, 512)

# ---- embedder

@pytest.mark.parametrize('name', ['resnet10t', 'regnetx_002', 'mobilenetv3_small_050', 'densenet121', 'seresnet18' if timm.is_model('seresnet18') else 'resnet18'])
def test_last_stride_1_doubles_the_map_and_changes_no_weight(name):
    x = torch.rand(1, 3, 64, 64)
    torch.manual_seed(0)
    a = Embedder(name, 3, size=(64, 64)).eval()
    torch.manual_seed(0)
    b = Embedder(name, 3, last_stride=1, size=(64, 64)).eval()
    assert a.state_dict().keys() == b.state_dict().keys() and all(torch.equal(o, b.state_dict()[k]) for k, o in a.state_dict().items())
    with torch.no_grad(): assert (a.feature_maps(x).shape[-2:], b.feature_maps(x).shape[-2:]) == ((2, 2), (4, 4))

@pytest.mark.parametrize('name', ['convnext_atto', 'vit_tiny_patch16_224'])
def test_last_stride_1_where_it_cannot(name):
    with pytest.raises(ValueError, match='does not work for this body'): Embedder(name, 3, last_stride=1)

def test_maps_of_tokens_and_channels_last():
    v = Embedder('vit_tiny_patch16_224', 3, depth=1).eval()
    x = torch.rand(2, 3, 256, 128)
    with torch.no_grad():
        maps, tokens = v.feature_maps(x), v.body(x)
        assert maps.shape == (2, 192, 16, 8) and torch.equal(maps[:, :, 3, 5], tokens[:, 1 + 3 * 8 + 5])
    class Last(nn.Module):
        output_fmt = 'NHWC'
        def forward(self, x): return x.permute(0, 2, 3, 1)
    e = Embedder(Last(), 3).eval()
    assert e.n_feats == 3 and torch.equal(e.feature_maps(x), x)

def test_building_leaves_statistics_and_mode_alone():
    body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).train()
    Embedder(body, 3)
    assert body.training and body[1].num_batches_tracked == 0

@pytest.mark.parametrize('kw, words', [
    (dict(body='resnet_50'), 'resnet50'), (dict(body='zzzzqqq'), 'Nearest names: none'), (dict(body='resnet10t', pool='mean'), "'avg', 'max', 'gem'"),
    (dict(body='resnet10t', neck='bn'), 'bnneck'), (dict(body='resnet10t', last_stride=4), 'must be 1 or 2'),
    (dict(body=nn.Identity(), pretrained=True), 'by name'), (dict(body=nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())), r'not \(1, 3\)'),
    (dict(body=nn.Conv2d(5, 8, 3)), 'takes no pictures of 256x128')])
def test_embedder_says_what_is_wrong(kw, words):
    with pytest.raises(ValueError, match=words): Embedder(n_classes=3, **kw)

def test_pretrained_without_a_network(monkeypatch):
    make = timm.create_model
    def offline(*args, pretrained=False, **kwargs):
        if pretrained: raise FileNotFoundError('the hub cannot be reached\nand more')
        return make(*args, **kwargs)
    monkeypatch.setattr(timm, 'create_model', offline)
    with pytest.raises(ReidError, match='(?s)resnet10t: the hub cannot be reached.*weights='): Embedder('resnet10t', 3, pretrained=True)

def test_body_weights_from_a_file(tmp_path):
    src = timm.create_model('resnet10t', num_classes=17)
    torch.save({'state_dict': src.state_dict()}, tmp_path / 'a.pth')
    body = Embedder('resnet10t', 3, weights=tmp_path / 'a.pth').body
    assert all(torch.equal(o, src.state_dict()[k]) for k, o in body.state_dict().items())
    with pytest.raises(ReidError, match='a.pth has no weights for|holds no weights for'): Embedder('regnetx_002', 3, weights=tmp_path / 'a.pth')
    with pytest.raises(FileNotFoundError, match='b.pth'): Embedder('resnet10t', 3, weights=tmp_path / 'b.pth')

def test_gem_between_mean_and_max():
    x = torch.rand(3, 5, 6, 4)
    assert torch.allclose(GeM(1)(x), x.mean((2, 3)), atol=1e-6)
    assert torch.allclose(GeM(300)(x), x.amax((2, 3)), rtol=.02)
    g = GeM().double()
    assert torch.autograd.gradcheck(g, x.double().requires_grad_())
