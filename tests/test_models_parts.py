"PCB: its heads, its feature, Torchreid's triplet vector, and stripes of any map"
import pytest
import torch
import torch.nn.functional as F
from torchvision.models import resnet50

from reid_nb.losses import IdLoss, TripletLoss
from reid_nb.models.parts import PARTS, PCB, StripePool, pcb_p4, stripe_rows


@pytest.fixture(scope='module')
def model():
    torch.manual_seed(0)
    return PCB(7, parts=6)

@pytest.fixture
def x(): return torch.rand(4, 3, 64, 32, generator=torch.Generator().manual_seed(0))

@pytest.mark.parametrize('h,parts', [(16, 6), (24, 6), (8, 6), (4, 6), (5, 3), (16, 4), (1, 2)])
def test_stripes_are_torchs_adaptive_pooling(h, parts):
    x = torch.rand(2, 5, h, 3)
    got = StripePool(parts).stripes(x)
    assert torch.allclose(got, F.adaptive_avg_pool2d(x, (parts, 1))[..., 0], atol=1e-6)
    rows = stripe_rows(h, parts)
    assert {r for a, b in rows for r in range(a, b)} == set(range(h)) and all(a < b for a, b in rows)

def test_pool_is_channel_major_and_each_stripe_has_length_1():
    x = torch.rand(2, 3, 8, 2)
    out = StripePool(4)(x)
    for n in range(2):
        for p in range(4):
            mean = x[n, :, 2 * p:2 * p + 2].mean((1, 2))
            assert torch.allclose(out[n, [c * 4 + p for c in range(3)]], mean / mean.norm(), atol=1e-6)
    assert torch.equal(StripePool(2)(torch.zeros(1, 3, 4, 2)), torch.zeros(1, 6)) # nothing seen is no nan

def test_contract(model, x):
    assert (model.n_classes, model.n_feats, model.input_size, model.new_layers) == (7, 12288, None, ('conv5', 'classifier'))
    heads = model.train()(x)
    assert [(feat.shape, logits.shape) for feat, logits in heads] == [((4, 256), (4, 7))] * 6
    feat = model.eval()(x)
    assert feat.shape == (4, 12288) and torch.allclose(feat.norm(dim=1), torch.tensor(6.).sqrt(), atol=1e-4)
    assert torch.allclose(feat, model.pool(model.feature_maps(x)), atol=1e-6)
    assert model.feature_maps(x).shape == (4, 2048, 4, 2)
    assert [len(f(3).train()(x)) for f in PARTS.values()] == [6, 4]

def test_each_head_classifies_its_own_stripe():
    torch.manual_seed(0)
    model = pcb_p4(3).train()
    model.dropout.p = 0.
    model.conv5.eval() # in training its batch norm mixes the stripes
    model.feature_maps = lambda x: x # maps are given
    maps = torch.rand(4, 2048, 8, 2)
    changed = maps.clone()
    changed[:, :, 2:4] += torch.rand(4, 2048, 2, 2) # stripe 1
    before, after = model(maps), model(changed)
    assert [not torch.equal(a[1], b[1]) for a, b in zip(before, after)] == [False, True, False, False]
    for i, (feat, logits) in enumerate(after):
        want = model.conv5(changed[:, :, 2 * i:2 * i + 2].mean((2, 3), keepdim=True)).flatten(1)
        assert torch.allclose(feat, want, atol=1e-5) and torch.allclose(logits, model.classifier[i](want), atol=1e-5)

def test_whole_is_torchreids_triplet_vector(x):
    torch.manual_seed(0)
    model = PCB(7, whole=True).train()
    model.dropout.p = 0.
    heads, label = model(x), torch.tensor([0, 0, 1, 1])
    want = F.normalize(F.adaptive_avg_pool2d(model.feature_maps(x), (6, 1)), dim=1).flatten(1)
    assert all(torch.allclose(feat, want, atol=1e-5) for feat, _ in heads)
    per_head = [TripletLoss()(feat, label) for feat, _ in heads]
    assert torch.allclose(torch.stack(per_head).mean(), TripletLoss()(want, label), atol=1e-5)
    assert torch.allclose(IdLoss()(heads, label), sum(F.cross_entropy(o, label, label_smoothing=.1) for _, o in heads) / 6)

@pytest.mark.parametrize('whole', [False, True])
def test_a_step_changes_every_weight(whole, x):
    torch.manual_seed(0)
    model = PCB(7, parts=2, whole=whole).train()
    before = {k: o.detach().clone() for k, o in model.named_parameters()}
    loss = sum(F.cross_entropy(logits, torch.tensor([0, 1, 2, 3])) + feat.square().mean() for feat, logits in model(x))
    loss.backward()
    torch.optim.SGD(model.parameters(), lr=1.).step()
    assert not [k for k, o in model.named_parameters() if torch.equal(o, before[k])]

def test_body_is_torchvisions_with_one_stride_less(x):
    torch.manual_seed(0)
    body, model = resnet50().eval(), PCB(3).eval()
    missing = model.load_state_dict({k: o for k, o in body.state_dict().items() if not k.startswith('fc')}, strict=False)
    assert not missing.unexpected_keys and {k.split('.')[0] for k in missing.missing_keys} == set(PCB.new_layers)
    strides = [(k, o.stride) for k, o in model.named_modules() if isinstance(o, torch.nn.Conv2d) and o.stride != (1, 1)]
    assert [k for k, _ in strides] == ['conv1', 'layer2.0.conv2', 'layer2.0.downsample.0', 'layer3.0.conv2', 'layer3.0.downsample.0']
    seen = []
    for net in (body, model): net.layer3.register_forward_hook(lambda m, i, o: seen.append(o))
    with torch.no_grad(): body(x), model(x)
    assert torch.allclose(seen[0], seen[1], atol=1e-6)

def test_formats(model, x):
    with torch.no_grad():
        want = model.eval()(x)
        assert torch.allclose(model(x.to(memory_format=torch.channels_last)), want, atol=1e-4)
        with torch.autocast('cpu', torch.bfloat16): low = model(x)
        assert F.cosine_similarity(low.float(), want).min() > .99
        with torch.device('meta'): far = PCB(3).eval()
        assert far(x.to('meta')).shape == (4, 12288)
