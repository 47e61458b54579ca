"The nine OSNets: one contract, no dead weights, both layouts and precisions; blocks that can be exchanged, and instance norm where it belongs"
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from reid_nb.models.osnet import Gate, LiteConv, OSBlock, OSNet, OSNETS
from reid_nb.models.osnet_ain import AINBlock, OSBlockIN, OSNetAIN, OSNETS_IN

ALL = OSNETS | OSNETS_IN
KINDS = dict(plain=OSNETS['osnet_x0_25'], ibn=lambda n, **kw: OSNETS_IN['osnet_ibn_x1_0'](n, chs=(16, 64, 96, 128), **kw), ain=OSNETS_IN['osnet_ain_x0_25'])

def seeded(make, *args):
    torch.manual_seed(0)
    return make(*args)

def test_the_nine_names():
    assert set(ALL) == {f'osnet_{k}' for k in ('x1_0', 'x0_75', 'x0_5', 'x0_25', 'ibn_x1_0', 'ain_x1_0', 'ain_x0_75', 'ain_x0_5', 'ain_x0_25')}

@pytest.mark.parametrize('name', ALL)
def test_features_have_512_numbers_at_every_width(name):
    with torch.device('meta'):
        model, x = ALL[name](7), torch.rand(2, 3, 64, 32)
        (feat, logits), = model(x)
        maps = model.eval().feature_maps(x)
    assert feat.shape == (2, 512) and logits.shape == (2, 7) and maps.shape[2:] == (4, 2)
    assert model.n_feats == 512 and model.n_classes == 7 and model.input_size is None and model.new_layers == ('classifier',)

@pytest.mark.parametrize('kind', KINDS)
def test_contract(kind):
    model, x = seeded(KINDS[kind], 7), torch.rand(4, 3, 64, 32)
    (feat, logits), = model(x)
    assert torch.equal(model.classifier(feat), logits)
    model.eval()
    with torch.no_grad():
        assert torch.allclose(model(x), model.fc(model.feature_maps(x).mean((2, 3))))
        assert torch.allclose(model(x)[:1], model(x[:1]), atol=1e-5)
        assert model(torch.rand(1, 3, 71, 45)).shape == (1, 512) # odd sizes

@pytest.mark.parametrize('kind', KINDS)
def test_one_step_changes_every_parameter(kind):
    model = seeded(KINDS[kind], 7)
    for m in model.modules():
        if isinstance(m, Gate): m.fc1.weight.data.abs_() # a gate with one hidden channel may start asleep
    before = {k: o.detach().clone() for k, o in model.named_parameters()}
    opt = torch.optim.Adam(model.parameters(), lr=.01)
    for _ in range(2): # some biases start where their gradient is zero
        (feat, logits), = model(torch.rand(8, 3, 64, 32))
        loss = F.cross_entropy(logits, torch.arange(8) % 7) + feat.pow(2).mean()
        opt.zero_grad(); loss.backward(); opt.step()
    assert [k for k, o in model.named_parameters() if torch.equal(o, before[k])] == []

@pytest.mark.parametrize('kind', KINDS)
def test_channels_last_and_bf16(kind):
    model, x = seeded(KINDS[kind], 7).eval(), F.interpolate(torch.randn(4, 3, 8, 4), size=(64, 32), mode='bicubic')
    with torch.no_grad():
        want = model.feature_maps(x)
        with torch.autocast('cpu', torch.bfloat16): half = model.feature_maps(x)
        last = model.to(memory_format=torch.channels_last).feature_maps(x.contiguous(memory_format=torch.channels_last))
    assert F.mse_loss(last, want) < 1e-10 * want.pow(2).mean()
    assert F.cosine_similarity(half.float().flatten(1), want.flatten(1)).min() > .999

@pytest.mark.parametrize('kind', KINDS)
def test_a_trained_step_in_bf16(kind):
    model, x = seeded(KINDS[kind], 7), torch.rand(4, 3, 64, 32)
    with torch.autocast('cpu', torch.bfloat16): (_, logits), = model(x)
    F.cross_entropy(logits.float(), torch.arange(4)).backward()
    assert all(o.grad.isfinite().all() for o in model.parameters())

@pytest.mark.parametrize('kind', ['plain', 'ain'])
def test_export_keeps_the_figures(kind):
    model, x = seeded(KINDS[kind], 7).eval(), torch.rand(2, 3, 64, 32)
    with torch.no_grad():
        assert torch.allclose(torch.export.export(model, (x,)).module()(x), model(x), atol=1e-5)

# ---- blocks

def slow_branch(block, x): # as the paper's formula has it, with a new tensor for everything
    x = block.conv1(x)
    return block.conv3(sum(o(x) * block.gate(o(x)) for o in block.streams()))

@pytest.mark.parametrize('make', [OSBlock, OSBlockIN, AINBlock, lambda *a: AINBlock(*a, inside=True), lambda *a: AINBlock(*a, outside=True), lambda *a: AINBlock(*a, inside=True, outside=True)])
@pytest.mark.parametrize('ni', [32, 64])
def test_sums_in_place_are_sums(make, ni): # values and gradients; instance norm inside, outside, at both places
    block, x = seeded(make, ni, 64).double().eval(), torch.rand(2, ni, 9, 6, dtype=torch.double)
    def slow(x):
        out, skip = slow_branch(block, x), block.downsample(x)
        if isinstance(block, AINBlock): return block.IN_out(block.IN(out) + skip).relu()
        return (block.IN(out + skip) if isinstance(block, OSBlockIN) else out + skip).relu()
    grads = []
    for f in (block, slow):
        o = x.clone().requires_grad_()
        y = f(o)
        grads.append((y.detach(), *torch.autograd.grad(y.pow(2).sum(), [o, *block.parameters()])))
        assert torch.equal(o.detach(), x) # the input stays
    assert all(torch.allclose(a, b) for a, b in zip(*grads))

def test_in_the_branch_a_cast_is_gone(): # of all channels of its last convolution
    block = seeded(lambda: AINBlock(32, 64, inside=True)).eval()
    y = torch.rand(2, 64, 9, 6)
    assert torch.allclose(block.IN(3 * y + 2), block.IN(y), atol=1e-3)
    assert 'conv3.bn.weight' not in block.state_dict() and not hasattr(block.conv3, 'bn')

def test_streams_see_what_they_say():
    block = seeded(OSBlock, 16, 64).eval()
    for k, stream in enumerate(block.streams(), 1):
        x = torch.rand(1, 16, 13, 13, requires_grad=True)
        stream(x)[0, :, 6, 6].sum().backward()
        seen = x.grad.abs().sum((0, 1)) > 0
        assert not seen[:6 - k].any() and not seen[:, 7 + k:].any() and seen.any(0).sum() <= 2 * k + 1

def test_the_gate_is_one_for_all_streams():
    block = seeded(OSBlock, 16, 64)
    calls = []
    block.gate.register_forward_hook(lambda m, i, o: calls.append(o.shape))
    block(torch.rand(2, 16, 9, 6))
    assert calls == [(2, 16, 1, 1)] * 4

def test_gates_depend_on_the_picture_alone_of_its_row():
    gate, x = seeded(Gate, 32), torch.rand(3, 32, 5, 4)
    nn.init.ones_(gate.fc1.bias)
    with torch.no_grad(): assert torch.allclose(gate(x)[1:2], gate(x[1:2])) and not torch.allclose(gate(x)[0], gate(x)[1])

def test_counts_of_a_lite_convolution():
    assert sum(o.numel() for k, o in LiteConv(256, 256).named_parameters() if 'bn' not in k) == 67_840

def test_blocks_are_an_argument(): # functions of channels in and out, of any kind
    class Half(nn.Module):
        def __init__(self, ni, nf): super().__init__(); self.conv = nn.Conv2d(ni, nf, 1)
        def forward(self, x): return self.conv(x)
    for make in (OSNet, OSNetAIN):
        model = make(5, (16, 64, 96, 128), blocks=((Half,), (OSBlock, AINBlock, Half), (OSBlockIN,))).eval()
        assert model(torch.rand(1, 3, 64, 32)).shape == (1, 512)
        assert [type(o).__name__ for o in list(model.conv3)[:3]] == ['OSBlock', 'AINBlock', 'Half']
