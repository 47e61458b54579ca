"Bodies of eleven families through one Embedder: contract, a step of training, options, positions, and what is said where it can't be; the blocks that change a body"
import copy
import pickle

import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F

from reid_nb.models.blocks import IBN, MixStyle, NonLocal, add_after, add_mixstyle, add_nonlocal, layers_at, look, to_ibn
from reid_nb.models.embedder import Embedder
from reid_nb.models.layers import ReidModel
from reid_nb.models.pools import POOLS, AttentionPool, GeM, MaxMeanPool, make_pool

SMALL = dict(depth=2, embed_dim=48, num_heads=3)
FAMILIES = { # name in timm: (what makes it small, (h,w) of the last map at 64×32, does it take other sizes)
    'resnet10t': ({}, (2, 1), True), 'convnext_atto': ({}, (2, 1), True), 'swin_tiny_patch4_window7_224': (dict(depths=(1, 1, 1, 1), embed_dim=24, num_heads=(1, 1, 2, 4)), (2, 1), False),
    'vit_tiny_patch16_224': (SMALL, (4, 2), False), 'vit_small_patch14_dinov2': (SMALL, (4, 2), False), 'vit_small_patch16_dinov3': (SMALL, (4, 2), True),
    'vit_base_patch16_clip_224': (SMALL, (4, 2), False), 'vit_base_patch16_siglip_224': (SMALL, (4, 2), False), 'tf_efficientnet_lite0': ({}, (2, 1), True),
    'mobilenetv4_conv_small_050': ({}, (2, 1), True), 'regnetx_002': ({}, (2, 1), True)}


def make(name, **kw): return Embedder(name, 5, size=(64, 32), **{**FAMILIES.get(name, ({},))[0], **kw})

def idle(model, x, *args): # names of parameters without a gradient in the second step of training (in the first, branches that begin at 0 hide what is before them)
    model.train()
    opt = torch.optim.SGD(model.parameters(), lr=.1)
    for _ in range(2):
        before = {k: o.detach().clone() for k, o in model.named_parameters()}
        loss = sum(F.cross_entropy(logits, torch.arange(len(x)) % 5) + feat.pow(2).mean() for feat, logits in model(x, *args))
        opt.zero_grad()
        loss.backward()
        opt.step()
        assert loss.isfinite() and any(not torch.equal(o, before[k]) for k, o in model.named_parameters() if k.startswith('body'))
    return [k for k, o in model.named_parameters() if o.grad is None or not o.grad.isfinite().all() or o.grad.abs().max() == 0]


@pytest.mark.parametrize('name', FAMILIES)
def test_families(name):
    torch.manual_seed(0)
    _, grid, any_size = FAMILIES[name]
    model, x = make(name), torch.rand(4, 3, 64, 32)
    assert isinstance(model, ReidModel)
    (emb, logits), = model.train()(x)
    assert emb.shape == (4, model.n_feats) and logits.shape == (4, 5)
    assert idle(model, x) == []
    model = make(name).eval()
    with torch.no_grad():
        feat = model(x)
        assert feat.shape == (4, model.n_feats) and model.feature_maps(x).shape[2:] == grid
        assert torch.allclose(feat[:1], model(x[:1]), atol=1e-4)
        assert torch.allclose(model.to(memory_format=torch.channels_last)(x), feat, atol=1e-4)
        with torch.autocast('cpu', torch.bfloat16): assert model(x).isfinite().all()
        larger = torch.rand(2, 3, 96, 64)
        if any_size: assert model.input_size is None and model(larger).shape == (2, model.n_feats)
        else:
            with pytest.raises(ValueError, match='takes pictures of 64x32 .* only, not 96x64'): model(larger)


def test_new_layers_are_all_that_a_file_of_the_body_does_not_fill():
    model = make('resnet10t', pool='gem')
    assert {k.split('.')[0] for k, _ in model.named_parameters()} == {'body', *model.new_layers}
    assert set(dict(model.named_children())) == {'body', *model.new_layers}


# ---- pools

@pytest.mark.parametrize('pool', [k for k in POOLS if k != 'token'] + [AttentionPool(512, 2), nn.Sequential(nn.AdaptiveAvgPool2d((2, 1)), nn.Flatten())])
def test_pools_in_an_embedder(pool):
    model = make('resnet10t', pool=copy.deepcopy(pool)).eval()
    x = torch.rand(3, 3, 64, 32)
    with torch.no_grad():
        assert torch.equal(model.embed(x), model.pool(model.feature_maps(x)))
        assert torch.equal(model(x), model.neck(model.embed(x)))
    assert model.n_feats == (1024 if isinstance(pool, nn.Sequential) else 512)
    again = make('resnet10t', pool=copy.deepcopy(pool)).eval()
    again.load_state_dict(model.state_dict())
    assert torch.equal(again(x), model(x)) and ('pool.p' in model.state_dict()) == (pool == 'gem')

def test_attention_pool_begins_as_the_mean_and_can_be_any_position():
    x = torch.rand(2, 6, 4, 3)
    pool = AttentionPool(6, 3)
    assert torch.allclose(pool(x), x.mean((2, 3)), atol=1e-6)
    assert torch.allclose(pool.weights(x).sum((2, 3)), torch.ones(2, 3))
    with torch.no_grad(): pool.score.weight[1, 0] = 1e4 # the second head looks where the first channel is largest, and at nothing else
    best = x[:, 0].flatten(1).argmax(1)
    assert torch.allclose(pool(x)[:, 2:4], x[:, 2:4].flatten(2)[range(2), :, best], atol=1e-4)

def test_max_plus_mean(): assert MaxMeanPool()(torch.tensor([[[[1., 3.]]]])) == 5
def test_pools_of_odd_widths(): assert make_pool('attn', 7)(torch.rand(2, 7, 3, 3)).shape == (2, 7)

def test_the_class_token_and_nothing_else():
    model = make('vit_tiny_patch16_224', pool='token').eval()
    x = torch.rand(2, 3, 64, 32)
    with torch.no_grad(): assert torch.equal(model.embed(x), model.body(x)[:, 0])
    for name in ('vit_base_patch16_siglip_224', 'resnet10t'):
        with pytest.raises(ValueError, match='no class token'): make(name, pool='token')


# ---- positions

@pytest.mark.parametrize('name, prefix', [('vit_tiny_patch16_224', 1), ('vit_base_patch16_siglip_224', 0)])
def test_files_of_square_pictures(tmp_path, name, prefix): # a ramp over rows stays a ramp over rows, the class token is not touched
    src = timm.create_model(name, **SMALL)
    n = int((src.pos_embed.shape[1] - prefix) ** .5)
    with torch.no_grad():
        src.pos_embed[0, prefix:] = torch.arange(n).repeat_interleave(n)[:, None].float()
        src.pos_embed[0, :prefix] = 99
    torch.save(src.state_dict(), tmp_path / 'a.pth')
    pos = make(name, weights=tmp_path / 'a.pth', patch_size=16).body.pos_embed.detach()[0]
    assert (pos[:prefix] == 99).all()
    grid = pos[prefix:].unflatten(0, (4, 2))
    assert torch.allclose(grid[:, 0], grid[:, 1], atol=1e-3)                                           # rows are rows
    assert torch.allclose(grid[:, 0, 0], (torch.arange(4) + .5) * n / 4 - .5, atol=.35) and grid[0, 0, 0] < grid[3, 0, 0]

def test_maps_are_laid_out_as_the_picture_at_every_size():
    model = make('vit_small_patch16_dinov3').eval()
    for h, w in ((64, 32), (96, 48), (32, 80)):
        x = torch.rand(1, 3, h, w)
        with torch.no_grad(): maps, tokens = model.feature_maps(x), model.body(x)[:, model.body.num_prefix_tokens:]
        assert maps.shape[2:] == (h // 16, w // 16)
        assert torch.equal(maps[0, :, 1, 1], tokens[0, w // 16 + 1])

def test_sizes_that_cannot_be():
    with pytest.raises(ValueError, match='takes no pictures of 250x120'): Embedder('maxvit_rmlp_pico_rw_256', 5, size=(250, 120))
    with pytest.raises(ValueError, match='timm cannot make deit_tiny_distilled_patch16_224'): Embedder('deit_tiny_distilled_patch16_224', 5, depth=1)


# ---- options

def test_options_together():
    torch.manual_seed(0)
    model = make('resnet18', pool='gem', last_stride=1, ibn='a', non_local=True, mixstyle=True)
    x = torch.rand(6, 3, 64, 32)
    kinds = [type(m) for m in model.body.modules()]
    assert (kinds.count(IBN), kinds.count(NonLocal), kinds.count(MixStyle)) == (6, 4, 2)
    assert model.eval().feature_maps(x).shape == (6, 512, 4, 2)
    assert idle(model, x) == []
    twin = pickle.loads(pickle.dumps(model.eval()))
    assert torch.equal(twin(x), model(x)) and torch.equal(copy.deepcopy(model)(x), model(x))

def test_named_layers():
    model = make('regnetx_002', non_local=['s3'], mixstyle='s1')
    assert isinstance(model.body.s3.non_local, NonLocal) and isinstance(model.body.s1.mixstyle, MixStyle)
    with pytest.raises(ValueError, match="No layer .* 'layer2.0'"): make('regnetx_002', non_local='layer2.0')
    with pytest.raises(ValueError, match='gives no map'): make('vit_tiny_patch16_224', mixstyle='blocks.0')

def test_eval_traces_and_compiles():
    model, x = make('resnet18', pool='gem', non_local=True, mixstyle=True).eval(), torch.rand(2, 3, 64, 32)
    with torch.no_grad():
        want = model(x)
        assert torch.allclose(torch.compile(model, backend='eager', fullgraph=True)(x), want, atol=1e-6)
        assert torch.allclose(torch.export.export(model, (x,)).module()(x), want, atol=1e-6)

def test_cameras_reach_mixstyle_in_training_only():
    model, x = make('resnet10t', mixstyle='layer1'), torch.rand(4, 3, 64, 32)
    mix = model.body.get_submodule('layer1.mixstyle')
    model.train()(x, torch.tensor([0, 0, 1, 1]))
    assert mix.cam.tolist() == [0, 0, 1, 1]
    model(x)
    assert mix.cam is None
    with torch.no_grad(): assert torch.equal(model.eval()(x, torch.arange(4)), model(x))


# ---- blocks

class Loop(nn.Module): # runs its children in turn, as some of timm's stages do
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
    def forward(self, x):
        for m in self.children(): x = m(x)
        return x

class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Conv2d(3, 4, 3, padding=1)
    def forward(self, x): return self.a(x)

class Times(nn.Module):
    def __init__(self, nf):
        super().__init__()
        self.nf = nf
    def forward(self, x): return 2 * x

@pytest.mark.parametrize('stage', [Loop, Plain, lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())])
def test_what_is_added_runs_once_whatever_the_layer_is(stage):
    torch.manual_seed(0)
    body = nn.Sequential(stage(), nn.Identity())
    before = look(body, (16, 8))
    keys = list(body.state_dict())
    assert add_after(body, '0', Times, 'twice', (16, 8)) == ['0'] and body[0].twice.nf == 4
    assert torch.equal(look(body, (16, 8)), 2 * before) and list(body.state_dict()) == keys
    with pytest.raises(ValueError, match='has a twice already'): add_after(body, '0', Times, 'twice', (16, 8))
    for o in (copy.deepcopy(body), pickle.loads(pickle.dumps(body))): assert torch.equal(look(o, (16, 8)), 2 * before)

def test_looking_leaves_everything_as_it_was():
    body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout()).train()
    body[1].eval()
    look(body, (16, 8))
    assert [m.training for m in body] == [True, False, True] and body.training and body[1].num_batches_tracked == 0

def test_patterns_match_between_dots():
    body = timm.create_model('resnet18')
    assert list(layers_at(body, 'layer[12].1')) == ['layer1.1', 'layer2.1']
    assert list(layers_at(body, ['bn1', 'layer4.*.bn?'])) == ['bn1', 'layer4.0.bn1', 'layer4.0.bn2', 'layer4.1.bn1', 'layer4.1.bn2']
    with pytest.raises(ValueError, match=r"called 'layer1\.\*\.nope'"): layers_at(body, ['bn1', 'layer1.*.nope'])

@pytest.mark.parametrize('h, w', [(1, 1), (2, 3), (16, 8)])
def test_non_local_in_both_orders(h, w):
    torch.manual_seed(0)
    x, out = torch.randn(2, 8, h, w, dtype=torch.double), []
    block = NonLocal(8).double().eval()
    nn.init.normal_(block.W[1].weight)
    q, k, v = (f(x).flatten(2) for f in (block.theta, block.phi, block.g))
    y = torch.einsum('nij,ncj->nci', torch.einsum('nci,ncj->nij', q, k) / (h * w), v)
    assert torch.allclose(block(x), x + block.W(y.view(2, 4, h, w)))

def test_non_local_is_where_agw_has_it():
    with torch.device('meta'): body = timm.create_model('resnet50', num_classes=0, global_pool='')
    assert add_nonlocal(body) == ['layer2.2', 'layer2.3', 'layer3.3', 'layer3.4', 'layer3.5']
    assert body.layer2[3].non_local.theta.weight.shape == (256, 512, 1, 1)

def test_ibn_keeps_what_a_network_knows():
    torch.manual_seed(0)
    body = timm.create_model('resnet18', num_classes=0, global_pool='')
    for m in body.modules():
        if isinstance(m, nn.BatchNorm2d): m.running_mean.normal_(); nn.init.normal_(m.weight)
    old = copy.deepcopy(body.layer1[0].bn1)
    to_ibn(body)
    new = body.layer1[0].bn1
    assert torch.equal(new.IN.weight, old.weight[:32]) and torch.equal(new.BN.weight, old.weight[32:]) and torch.equal(new.BN.running_mean, old.running_mean[32:])
    x = torch.rand(2, 64, 8, 4)
    assert torch.allclose(new.eval()(x)[:, 32:], old.eval()(x)[:, 32:], atol=1e-6)
    assert torch.allclose(new(3 * x + 1)[:, :32], new(x)[:, :32], atol=1e-3) # another lamp, the same first half

def test_mixstyle_gives_the_styles_it_says():
    torch.manual_seed(0)
    x, mix = torch.randn(64, 3, 8, 4) * torch.rand(64, 3, 1, 1) + torch.randn(64, 3, 1, 1), MixStyle(p=1., alpha=.01) # so small that a blend is one or the other
    mix.cam = torch.arange(64) % 2
    y = mix(x)
    style, cam = x.mean((2, 3)), mix.cam
    nearest = torch.cdist(y.mean((2, 3)), style).argmin(1)
    own = nearest == torch.arange(64)
    assert .25 < own.float().mean() < .75 and (cam[nearest[~own]] != cam[~own]).float().mean() > .9
    normed = [(o - o.mean((2, 3), keepdim=True)) / o.std((2, 3), keepdim=True) for o in (x, y)]
    assert torch.allclose(*normed, atol=1e-3) # what is in the picture stays
    assert torch.equal(mix.eval()(x), x)

def test_mixstyle_on_own_cameras_only_changes_nothing():
    x, mix = torch.rand(4, 3, 8, 4), MixStyle(p=1.)
    mix.cam = torch.zeros(4, dtype=int)
    assert torch.allclose(mix(x), x, atol=1e-5)
