"HACNN, MLFN and MuDeep: their contract, what their attention does, and the sizes they take"
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from reid_nb.models.attention import ATTENTIONS, HACNN, MLFN, FactorBlock, HardAttention, Streams, cut_region
from reid_nb.models.mudeep import MUDEEPS, Fusion, MuDeep


def small_hacnn(**kwargs): return HACNN(7, chs=(16, 32, 48), dim=24, **kwargs)
def small_mudeep(): return MuDeep(7, n_feats=40, size=(64, 32))
MAKE = dict(hacnn=small_hacnn, mlfn=lambda: MLFN(7), mudeep=small_mudeep) # network, pictures, heads, last map
SIZES = dict(hacnn=(160, 64), mlfn=(64, 32), mudeep=(64, 32))

def pictures(name, n=4): return torch.rand(n, 3, *SIZES[name], generator=torch.Generator().manual_seed(0))

def settled(name, **kwargs): # a small network in evaluation, with statistics of batches
    torch.manual_seed(0)
    model = MAKE[name](**kwargs).train()
    with torch.no_grad(): model(pictures(name, 8))
    return model.eval()

@pytest.mark.parametrize('name,n_heads,width,maps', [('hacnn', 2, 24, (48, 10, 4)), ('mlfn', 1, 1024, (2048, 2, 1)), ('mudeep', 1, 40, (256, 4, 2))])
def test_contract(name, n_heads, width, maps):
    torch.manual_seed(0)
    model, x = MAKE[name](), pictures(name)
    heads = model.train()(x)
    assert [(feat.shape, logits.shape) for feat, logits in heads] == [((4, width), (4, 7))] * n_heads
    classifiers = [model.classifier_global, model.classifier_local] if name == 'hacnn' else [model.classifier]
    assert all(torch.allclose(c(feat), logits, atol=1e-5) for c, (feat, logits) in zip(classifiers, heads))
    feat = model.eval()(x)
    assert feat.shape == (4, model.n_feats) and model.n_feats == n_heads * width and model.n_classes == 7
    assert model.feature_maps(x).shape == (4, *maps)
    assert set(model.new_layers) <= {k for k, _ in model.named_children()}

@pytest.mark.parametrize('name', MAKE)
def test_a_step_changes_every_weight(name):
    torch.manual_seed(0)
    model, x = MAKE[name]().train(), pictures(name)
    heads = model(x)
    loss = sum(F.cross_entropy(logits, torch.tensor([0, 1, 2, 3])) + feat.square().mean() for feat, logits in heads)
    loss.backward()
    idle = [k for k, o in model.named_parameters() if o.grad is None or not o.grad.any()]
    normed = {f'{k}.bias' for k, o in model.named_modules() if isinstance(o, nn.Conv2d)} # batch norm takes their biases away again
    normed |= {f'{k}.weight' for k, o in model.named_modules() if isinstance(o, nn.Conv2d) and o.weight.numel() == 1} # and the size of a single number
    assert not [k for k in idle if k not in normed], idle

@pytest.mark.parametrize('name', MAKE)
def test_formats(name):
    model, x = settled(name), pictures(name)
    with torch.no_grad():
        want = model(x)
        assert torch.allclose(model(x.to(memory_format=torch.channels_last)), want, atol=1e-4)
        with torch.autocast('cpu', torch.bfloat16): low = model(x)
        assert F.cosine_similarity(low.float(), want).min() > .98
        assert F.cosine_similarity(model.bfloat16()(x.bfloat16()).float(), want).min() > .98
        assert model.float().to('meta')(x.to('meta')).shape == want.shape # nothing inside stays behind on another device

@pytest.mark.parametrize('name', ['hacnn', 'mudeep'])
def test_other_sizes_are_refused(name):
    model, (h, w) = settled(name), SIZES[name]
    for size in ((h, w + 16), (w, h), (256, 128)):
        for mode in (True, False):
            with pytest.raises(ValueError, match=f'pictures of {h}x{w} .height x width. only, not {size[0]}x{size[1]}'): model.train(mode)(torch.rand(2, 3, *size))

def test_full_networks_count_as_torchreids():
    with torch.device('meta'): full = {k: f(1000) for k, f in (ATTENTIONS | MUDEEPS).items()}
    assert {k: sum(o.numel() for o in m.parameters()) for k, m in full.items()} == dict(hacnn=3_955_112, mlfn=33_498_024, mudeep=139_037_304)
    assert {k: len(m.state_dict()) for k, m in full.items()} == dict(hacnn=535, mlfn=669, mudeep=174)
    assert {k: m.input_size for k, m in full.items()} == dict(hacnn=(160, 64), mlfn=None, mudeep=(256, 128))

# regions

def test_regions_start_one_below_the_other():
    centres = HardAttention(5)(torch.rand(3, 5, 4, 4))
    assert torch.equal(centres[0], centres[2]) and torch.equal(centres[..., 0], torch.zeros(3, 4))
    assert torch.allclose(centres[0, :, 1], torch.tensor([-.75, -.25, .25, .75]).tanh())

@pytest.mark.parametrize('align_corners', [False, True])
def test_cut_region_reads_the_rows_it_says(align_corners):
    h, w = 80, 32
    row, col = (torch.arange(n, dtype=torch.float32) for n in (h, w))
    x = torch.stack([row[:, None].expand(h, w), col.expand(h, w)])[None]
    for cy in (-.6, 0., .3):
        got = cut_region(x, torch.tensor([[0., cy]]), (h, w), align_corners)
        if align_corners: rows, cols = (cy + .25 * torch.linspace(-1, 1, h) + 1) / 2 * (h - 1), col
        else: rows, cols = ((cy + .25 * ((2 * row + 1) / h - 1) + 1) * h - 1) / 2, col
        assert torch.allclose(got[0, 0], rows[:, None].expand(h, w), atol=1e-3) and torch.allclose(got[0, 1], cols.expand(h, w), atol=1e-3)
    below = cut_region(torch.ones(1, 1, h, w), torch.tensor([[0., 1.]]), (h, w), align_corners)[0, 0]
    assert below[:38].min() == 1 and below[44:].max() == 0 # half of the window hangs out of the map

def test_halves_have_length_1_and_both_readings_differ():
    model, x = settled('hacnn'), pictures('hacnn')
    with torch.no_grad():
        new = model(x)
        model.align_corners = True
        old = model(x)
    assert torch.allclose(new.view(4, 2, -1).norm(dim=2), torch.ones(4, 2), atol=1e-5)
    assert torch.allclose(new[:, :24], old[:, :24]) and (new - old)[:, 24:].abs().max() > 1e-4 # the global half has no regions
    assert HACNN(3, chs=(16, 32, 48), dim=4).align_corners is False

def test_regions_move_with_the_picture_and_matter():
    model, x = settled('hacnn'), pictures('hacnn')
    with torch.no_grad():
        before = model(x)
        for o in (model.ha1, model.ha2, model.ha3): o.hard_attn.fc.weight.normal_(0, 5)
        centres = model.levels(x)[0][0][1]
        assert centres.shape == (4, 4, 2) and centres.abs().max() < 1 and not torch.allclose(centres[0], centres[1], atol=1e-3)
        assert not torch.allclose(model(x)[:, 24:], before[:, 24:], atol=1e-3)

# factors

def test_gates_belong_to_whole_groups():
    torch.manual_seed(0)
    block, x = FactorBlock(16, 128, 2, (8, 8), groups=8).eval(), torch.rand(2, 16, 8, 6)
    def grouped(o, s): # group by group
        return torch.cat([g * s[:, i:i + 1] for i, g in enumerate(o.chunk(8, 1))], 1)
    with torch.no_grad():
        y, gates = block(x)
        o = block.fm_bn2(block.fm_conv2(block.fm_bn1(block.fm_conv1(x)).relu())).relu()
        want = (block.fm_bn3(block.fm_conv3(grouped(o, gates))).relu() + block.downsample(x)).relu()
    assert y.shape == (2, 128, 4, 3) and gates.shape == (2, 8, 1, 1) and torch.allclose(y, want, atol=1e-5)
    assert FactorBlock(64, 64, groups=8).downsample is None and FactorBlock(64, 64, 2, groups=8).downsample is not None

def test_mlfn_feature_is_the_mean_of_maps_and_gates():
    model, x = settled('mlfn'), pictures('mlfn')
    with torch.no_grad():
        maps, gates = model.factors(x)
        want = (model.fc_x(maps.mean((2, 3), keepdim=True)) + model.fc_s(gates)).flatten(1) / 2
        assert gates.shape == (4, 512, 1, 1) and 0 < gates.min() and gates.max() < 1 and torch.allclose(model(x), want, atol=1e-5)

# scales

def test_fusion_weighs_maps_in_their_order():
    fusion, maps = Fusion(3), torch.rand(4, 2, 3, 8, 4)
    with torch.no_grad():
        for i in range(4): getattr(fusion, f'a{i + 1}').fill_(10. ** i)
    want = F.avg_pool2d(maps[0] + 10 * maps[1] + 100 * maps[2] + 1000 * maps[3], 4)
    assert torch.allclose(fusion(list(maps)), want, rtol=1e-5)
    assert list(Fusion(3).state_dict()) == ['a1', 'a2', 'a3', 'a4'] and 0 <= Fusion(256).a1.min() < .1 < .9 < Fusion(256).a1.max() <= 1

def test_mudeep_does_not_classify_in_evaluation():
    model = settled('mudeep')
    model.classifier.register_forward_hook(lambda *_: pytest.fail('the classifier was run'))
    model(pictures('mudeep'))
    with pytest.raises(ValueError, match='12x64 leave no map'): MuDeep(2, size=(12, 64))

def test_streams_keep_their_order():
    s = Streams(nn.Identity(), nn.MaxPool2d(3, 1, 1))
    x = torch.rand(1, 2, 4, 4)
    assert list(dict(s.named_children())) == ['stream1', 'stream2'] and torch.equal(s(x)[:, :2], x) and torch.equal(s.each(x)[1], s(x)[:, 2:])
