"The models against published counts, keys and features, in both precisions and on odd sizes; checkpoints whole, cut and wrong"
import hashlib
import os
import pickle
import zlib
from pathlib import Path

import pytest
import timm
import torch
from torch import nn

from reid_nb.core import ReidError
from reid_nb.models import osnet
from reid_nb.models.embedder import Embedder, GeM
from reid_nb.models.zoo import create_model, list_models, load_weights

# name: weights at 1000 classes, without the classifier, hash of keys and shapes, |feature| of row 0 and 1, their cosine, (argmax, value) of row 0, mean of row 0
PUBLISHED = {
    'osnet_x1_0':  (2_682_508, 2_169_508, '0e1134089b98', 3762.93, 3198.2, .99976, 74, .18131, .0257521),
    'osnet_x0_75': (1_798_754, 1_285_754, '98a330a31d19', 1318.61, 980.435, .97777, 223, .17173, .0265369),
    'osnet_x0_5':  (1_143_034, 630_034, 'd4f922c60308', 6309.1, 5737.17, .99916, 234, .18448, .0264216),
    'osnet_x0_25': (714_864, 201_864, 'cb11614759f7', 287.869, 270.207, .99982, 442, .27809, .0240354)}

def n_params(m): return sum(o.numel() for o in m.parameters())

def fill(model): # every tensor from a generator that is seeded with the crc32 of its name
    for k, o in model.state_dict().items():
        g = torch.Generator().manual_seed(zlib.crc32(k.encode()))
        if not o.is_floating_point(): o.zero_()
        elif k.endswith('running_var'): o.copy_(1 + .5 * torch.rand(o.shape, generator=g))
        elif k.endswith(('running_mean', '.bias')): o.copy_(.1 * torch.randn(o.shape, generator=g))
        elif o.ndim == 1: o.copy_(1 + .1 * torch.randn(o.shape, generator=g))
        else: o.copy_(torch.randn(o.shape, generator=g) * (2 / (o.numel() / o.shape[0])) ** .5)
    return model.eval()

def pictures(h=256, w=128): # row 0 noise, row 1 a ramp
    x = torch.rand(2, 3, h, w, generator=torch.Generator().manual_seed(0))
    i, j, c = torch.arange(h)[:, None], torch.arange(w), torch.arange(3)[:, None, None]
    x[1] = (i * (c + 1) + 2 * j) % 64 / 63
    return x

@pytest.mark.parametrize('name', PUBLISHED)
def test_osnet_counts_and_keys(name):
    with torch.device('meta'): model = create_model(name, 1000)
    total, body, want = PUBLISHED[name][:3]
    assert (n_params(model), n_params(model) - n_params(model.classifier)) == (total, body)
    state = model.state_dict()
    lines = sorted(f"{k} {'x'.join(map(str, o.shape))}" for k, o in state.items())
    assert len(state) == 567 and hashlib.sha256('\n'.join(lines).encode()).hexdigest()[:12] == want

@pytest.mark.parametrize('channels_last', [False, True])
@pytest.mark.parametrize('name', PUBLISHED)
def test_osnet_features(name, channels_last):
    model = fill(create_model(name, 10))
    if channels_last: model = model.to(memory_format=torch.channels_last)
    with torch.no_grad(): f = model(pictures())
    norm0, norm1, cos, top, value, mean = PUBLISHED[name][3:]
    assert f.norm(dim=1).tolist() == pytest.approx([norm0, norm1], rel=2e-5)
    f = nn.functional.normalize(f.double())
    assert (f[0] @ f[1]).item() == pytest.approx(cos, abs=1e-5)
    assert (f[0].argmax().item(), f[0].max().item()) == (top, pytest.approx(value, abs=1e-5))
    assert f[0].mean().item() == pytest.approx(mean, abs=1e-6)

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

# ---- zoo

@pytest.fixture(scope='module')
def state(): return osnet.osnet_x0_25(11).state_dict()

def test_list_models(): assert list_models().weights.to_dict() == {k: o[1] for k, o in PUBLISHED.items()}

def test_head_of_other_identities_is_left(state):
    model = osnet.osnet_x0_25(3)
    head = model.classifier.weight.clone()
    report = load_weights(model, state)
    assert len(report.loaded) == 565 and set(report.mismatched) == {'classifier.weight', 'classifier.bias'}
    assert '(11, 512) in the file' in repr(report) and torch.equal(model.classifier.weight, head)
    assert all(torch.equal(o, state[k]) for k, o in model.state_dict().items() if not k.startswith('classifier'))

def test_half_a_head_is_no_head(state): # weight and bias go together
    model = osnet.osnet_x0_25(3)
    report = load_weights(model, {**state, 'classifier.bias': torch.ones(3)})
    assert not [k for k in report.loaded if k.startswith('classifier')] and model.classifier.bias.abs().max() == 0

class Evil:
    def __init__(self, path): self.path = path
    def __reduce__(self): return os.mkdir, (self.path,)

@pytest.mark.parametrize('wrap', [lambda o: o, lambda o: {'state_dict': o}, lambda o: {'state_dict': {'conv1.conv.weight': o}}])
def test_a_pickle_runs_nothing(tmp_path, wrap):
    torch.save(wrap(Evil(str(tmp_path / 'made'))), tmp_path / 'evil.pth')
    with pytest.raises(ReidError, match='not run here'): load_weights(osnet.osnet_x0_25(3), tmp_path / 'evil.pth')
    assert not (tmp_path / 'made').exists()

def test_an_error_changes_nothing(state):
    model = osnet.osnet_x0_25(11)
    before = {k: o.clone() for k, o in model.state_dict().items()}
    broken = dict(state)
    broken['conv4.1.gate.fc1.weight'] = torch.zeros(1)
    with pytest.raises(ReidError, match='566 tensors fit; 1 of another shape, first conv4.1.gate.fc1.weight'): load_weights(model, broken)
    assert all(torch.equal(o, before[k]) for k, o in model.state_dict().items())

def test_a_checkpoint_of_another_network_never_passes(state):
    with pytest.raises(ReidError, match='missing in the file'): load_weights(Embedder('resnet10t', 11), state)
    with pytest.raises(ReidError, match='OSNet of 567 tensors'): load_weights(osnet.osnet_x0_5(11), state)

def test_files_cut_anywhere(tmp_path, state):
    torch.save(state, tmp_path / 'a.pth')
    whole, model = (tmp_path / 'a.pth').read_bytes(), osnet.osnet_x0_25(11)
    for n in (0, 1, 20, 1000, len(whole) // 2, len(whole) - 500, len(whole) - 1):
        (tmp_path / 'b.pth').write_bytes(whole[:n])
        with pytest.raises(ReidError, match=f'b.pth .{n:,} bytes'): load_weights(model, tmp_path / 'b.pth')

def test_learner_checkpoints(tmp_path, state): # as fastai's `learn.save` writes them
    fastai = pytest.importorskip('fastai.learner')
    from fastai.optimizer import Adam
    from fastai.torch_core import params
    model = osnet.osnet_x0_25(11)
    opt = Adam(params(model), lr=1e-3)
    fastai.save_model(tmp_path / 'm.pth', model, opt)
    assert len(load_weights(osnet.osnet_x0_25(11), tmp_path / 'm.pth', strict=True).loaded) == 567

def test_msmt17_checkpoint(): # the real file: strict loading and the features that Torchreid gives
    path = Path(os.environ.get('REID_NB_WEIGHTS', 'unset')) / 'osnet_x0_25_msmt17.pth'
    if not path.exists(): pytest.skip('set REID_NB_WEIGHTS to a folder with osnet_x0_25_msmt17.pth (Torchreid model zoo)')
    model = osnet.osnet_x0_25(1041)
    assert len(load_weights(model, path, strict=True).loaded) == 567
    torch.manual_seed(0)
    with torch.no_grad(): f = model.eval()(torch.rand(2, 3, 256, 128))
    assert f[0, :8].tolist() == pytest.approx([1.340427, 5e-05, 0, 1.376523, .712591, 0, 1.033699, 2.321344], abs=2e-6)
    assert f[1, :8].tolist() == pytest.approx([1.03942, 3.8e-05, 0, .79199, .727425, 0, 1.090155, 2.377567], abs=2e-6)
    assert f.norm(dim=1).tolist() == pytest.approx([26.00793, 26.33156], abs=2e-5)
