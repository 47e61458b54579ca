"Vision transformers: overlapping patches, cameras known and unknown, jigsaw groups, and timm's own numbers where all is off"
from functools import partial

import pytest
import timm
import torch
from torch.nn import functional as F

from reid_nb.models.embedder import Embedder
from reid_nb.models.vit import VITS, CameraEmbedding, OverlapPatches, TransReID, jigsaw_groups

SIZE = dict(size=(64, 32), depth=2, embed_dim=48, num_heads=3)

def make(name='vit_tiny_patch16_224', **kw): return TransReID(name, 5, **{**SIZE, **kw})


@pytest.mark.parametrize('kw, n', [({}, 1), (dict(stride=12), 1), (dict(n_cams=3), 1), (dict(jigsaw=4), 5), (dict(stride=(8, 12), n_cams=3, jigsaw=3), 4)])
def test_contract(kw, n):
    torch.manual_seed(0)
    model, x, cam = make(**kw), torch.rand(4, 3, 64, 32), torch.tensor([0, 2, -1, 1])
    heads = model.train()(x, cam)
    assert [(f.shape, o.shape) for f, o in heads] == [((4, 48), (4, 5))] * n
    before = {k: o.detach().clone() for k, o in model.named_parameters()}
    opt = torch.optim.SGD(model.parameters(), lr=1.)
    sum(F.cross_entropy(o, torch.arange(4)) + f.pow(2).mean() for f, o in heads).backward()
    opt.step()
    assert not [k for k, o in model.named_parameters() if torch.equal(o, before[k]) or not o.isfinite().all()] # no dead branch
    assert {k.split('.')[0] for k in before} - {'body', 'local'} <= set(model.new_layers) <= {*dict(model.named_children()), 'cams'}
    model = make(**kw).eval()
    with torch.no_grad():
        feat = model(x, cam)
        assert feat.shape == (4, model.n_feats) and model.n_feats == 48 * n
        assert torch.allclose(model(x[:1], cam[:1]), feat[:1], atol=1e-5)
        assert model.feature_maps(x, cam).shape == (4, 48, *model.body.patch_embed.grid_size)
        assert torch.allclose(model.to(memory_format=torch.channels_last)(x, cam), feat, atol=1e-4)
        with torch.autocast('cpu', torch.bfloat16): assert model(x, cam).isfinite().all()
    again = make(**kw).eval()
    again.load_state_dict(model.state_dict())
    assert torch.equal(again(x, cam), model(x, cam))

@pytest.mark.parametrize('name', ['vit_tiny_patch16_224', 'vit_base_patch16_clip_224', 'vit_small_patch14_reg4_dinov2', 'deit3_small_patch16_224'])
def test_off_means_timm(name):
    torch.manual_seed(0)
    model, x = make(name, size=(56, 28)).eval(), torch.rand(2, 3, 56, 28)
    own = timm.create_model(name, num_classes=0, global_pool='token', fc_norm=False, img_size=(56, 28), depth=2, embed_dim=48, num_heads=3).eval()
    own.load_state_dict(model.body.state_dict())
    with torch.no_grad(): assert torch.allclose(model.embed(x), own(x), atol=1e-5)

def test_jigsaw_leaves_the_whole_picture_alone():
    torch.manual_seed(0)
    a, x = make(jigsaw=4).eval(), torch.rand(2, 3, 64, 32)
    b = make().eval()
    b.load_state_dict({k: o for k, o in a.state_dict().items() if not k.startswith(('local', 'necks', 'classifiers'))})
    with torch.no_grad():
        assert torch.allclose(a.embed(x)[:, :48], b.embed(x), atol=1e-6)
        tokens = a.tokens(x) # a group sees its patches only
        cut = tokens.clone()
        cut[:, 1 + a.order[a.sizes[0]:]] = 0
        first = a.local(torch.cat([cut[:, :1], cut[:, 1:][:, a.order[:a.sizes[0]]]], 1))[:, 0]
        assert torch.allclose(a.vectors(x)[1], first, atol=1e-6)

def test_before_the_necks():
    model, x = make(jigsaw=2, after_neck=False).eval(), torch.rand(2, 3, 64, 32)
    with torch.no_grad():
        v = model.vectors(x)
        assert torch.allclose(model(x), torch.cat([v[0], v[1] / 2, v[2] / 2], 1)) and torch.equal(model(x), model.embed(x))

@pytest.mark.parametrize('n', [1, 5, 8, 127, 128, 162, 210])
@pytest.mark.parametrize('parts, shift, piles', [(4, 4, 2), (1, 0, 1), (3, 7, 3), (2, 300, 2)])
def test_each_patch_is_in_one_group(n, parts, shift, piles):
    groups = jigsaw_groups(n, parts, shift, piles)
    assert sorted(torch.cat(groups).tolist()) == list(range(n)) and len(groups) == parts
    assert max(map(len, groups)) - min(map(len, groups)) <= 1

def test_groups_of_the_published_code():
    want = torch.arange(128).roll(-4).view(2, 64).t().flatten().view(4, 32)
    assert torch.equal(torch.stack(jigsaw_groups(128)), want)

@pytest.mark.parametrize('size, stride, grid', [((256, 128), 16, (16, 8)), ((256, 128), 12, (21, 10)), ((256, 128), (8, 16), (31, 8)), ((250, 120), 12, (20, 9)), ((16, 16), 5, (1, 1))])
def test_overlapping_patches(size, stride, grid):
    p = OverlapPatches(size, 16, embed_dim=4, stride=stride)
    assert p.grid_size == grid and p.num_patches == grid[0] * grid[1] and p(torch.rand(1, 3, *size)).shape == (1, grid[0] * grid[1], 4)

def test_stride_of_a_patch_is_timms():
    model = Embedder('vit_tiny_patch16_224', 5, **SIZE, pool='token', embed_layer=partial(OverlapPatches, stride=16)).eval()
    own = Embedder('vit_tiny_patch16_224', 5, **SIZE, pool='token').eval()
    own.load_state_dict(model.state_dict())
    x = torch.rand(2, 3, 64, 32)
    assert torch.equal(model(x), own(x))

def test_files_of_square_pictures_with_overlap(tmp_path):
    src = timm.create_model('vit_tiny_patch16_224', depth=2, embed_dim=48, num_heads=3)
    with torch.no_grad(): src.pos_embed[0, 1:] = torch.arange(14).repeat_interleave(14)[:, None].float()
    torch.save(src.state_dict(), tmp_path / 'a.pth')
    pos = make(stride=12, weights=tmp_path / 'a.pth').body.pos_embed.detach()[0, 1:].unflatten(0, (5, 2))
    assert torch.allclose(pos[:, 0], pos[:, 1], atol=1e-3) and (pos[1:, 0] > pos[:-1, 0]).all()
    assert torch.allclose(pos[:, 0, 0], (torch.arange(5) + .5) * 14 / 5 - .5, atol=.35)

def test_cameras():
    torch.manual_seed(0)
    cams, x = CameraEmbedding(3, 8, scale=2.), torch.rand(5, 4, 8)
    mean = cams.vectors.mean(0)
    out = cams(x, torch.tensor([2, -1, 0, 0, -1])) - x
    for row, v in zip(out, (cams.vectors[2], mean, cams.vectors[0], cams.vectors[0], mean)): assert torch.allclose(row, 2 * v.expand(4, 8), atol=1e-6)
    assert torch.allclose(cams(x), x + 2 * mean) and torch.allclose(cams(x, [1, 1, 1, 1, 1]), x + 2 * cams.vectors[1])
    with pytest.raises(ValueError, match=r'Camera 3 is none of the 3 .*\(0 to 2\).*-1'): cams(x, [0, 0, 0, 0, 3])

def test_a_camera_learns_from_its_own_pictures_only():
    model, x = make(n_cams=3).train(), torch.rand(4, 3, 64, 32)
    (_, logits), = model(x, torch.tensor([0, 0, 1, 1]))
    logits.sum().backward()
    g = model.cams.vectors.grad.abs().sum(1)
    assert g[0] > 0 and g[1] > 0 and g[2] == 0

@pytest.mark.parametrize('kw', [{}, dict(stride=12, n_cams=2, jigsaw=4)])
def test_eval_traces_and_compiles(kw):
    model, x, cam = make(**kw).eval(), torch.rand(2, 3, 64, 32), torch.tensor([0, -1])
    with torch.no_grad():
        assert torch.allclose(torch.compile(model, backend='eager', fullgraph=True)(x, cam), model(x, cam), atol=1e-6)
        assert torch.allclose(torch.export.export(model, (x,)).module()(x), model(x), atol=1e-6)

@pytest.mark.parametrize('name, kw, words', [
    ('vit_small_patch16_dinov3', {}, 'is a Eva'), ('resnet10t', dict(depth=None), 'class token|unexpected'), ('vit_tiny_patch16_224', dict(stride=20), 'between 1 and the patch size'),
    ('vit_base_patch16_siglip_224', {}, 'no class token')])
def test_what_cannot_be(name, kw, words):
    with pytest.raises((ValueError, TypeError), match=words): make(name, **kw)

def test_wrong_size():
    with pytest.raises(ValueError, match='takes pictures of 64x32 .* not 64x64'): make()(torch.rand(2, 3, 64, 64))

def test_names():
    with torch.device('meta'): model = VITS['transreid_vit_tiny'](751, n_cams=6, stride=12)
    assert model.sizes == [53, 53, 52, 52] and model.n_feats == 5 * 192 and model.cams.vectors.shape == (6, 192)
