"Transforms change what they should as often and as much as Torchreid's rules say, alike on any device and from any seed"
import math
import pickle
import random

import numpy as np
import pytest
import torch
import torchvision.transforms.functional as TF
from fastai.data.core import Datasets, TfmdDL
from fastai.data.transforms import IntToFloatTensor
from fastai.vision.core import TensorImage, imagenet_stats
from reid_nb.data.augment import (TORCHREID_FILL, ColorJitter, PadCrop, PCAColor, RandomErase, RandomFlip, RandomGray, RandomTranslate, boxes, crop_at,
                                  inside, reid_tfms)
from reid_nb.data.augment_more import KViews, LocalSwap, OccluderPaste, PerItem, RandomPatch, torchreid_tfms
from torch._subclasses.fake_tensor import FakeTensorMode
from torchvision.transforms import AugMix, RandAugment

H, W = 64, 32
ALL = [RandomFlip, RandomTranslate, PadCrop, ColorJitter, PCAColor, RandomGray, RandomErase, RandomPatch, OccluderPaste, LocalSwap]

@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)
    random.seed(0)

def noise(n=24, h=H, w=W): return TensorImage(torch.rand(n, 3, h, w))
def changed(a, b): return (a != b).flatten(1).any(1)

def same_law(a, b, p=1e-4): # two samples of one distribution? Kolmogorov and Smirnov's bound at level p
    a, b = np.sort(np.asarray(a, float)), np.sort(np.asarray(b, float))
    both = np.concatenate([a, b])
    d = np.abs(np.searchsorted(a, both, 'right') / len(a) - np.searchsorted(b, both, 'right') / len(b)).max()
    return d < math.sqrt(-math.log(p / 2) / 2 * (1 / len(a) + 1 / len(b)))

def often(k, n, p): return abs(k - n * p) < 4.5 * math.sqrt(n * p * (1 - p)) + 1e-9 # k of n with chance p?


# Torchreid's rules, one picture at a time

def box_of_torchreid(h, w, area, aspect):
    for _ in range(100):
        a, r = random.uniform(*area) * h * w, random.uniform(*aspect)
        bh, bw = round(math.sqrt(a * r)), round(math.sqrt(a / r))
        if bh < h and bw < w: return random.randint(0, h - bh), random.randint(0, w - bw), bh, bw
    return 0, 0, 0, 0

@pytest.mark.parametrize('area,aspect', [((.02, .4), (.3, 1 / .3)), ((.01, .5), (.1, 10.))])
def test_boxes_have_torchreids_law(area, aspect):
    slow = np.array([box_of_torchreid(128, 64, area, aspect) for _ in range(8000)]).T
    fast = torch.stack(boxes(8000, 128, 64, area, aspect)).numpy()
    for a, b in zip(slow, fast): assert same_law(a, b)
    assert same_law(slow[2] * slow[3], fast[2] * fast[3]) and same_law(slow[2] / slow[3], fast[2] / fast[3])
    assert same_law(slow[0] / (129 - slow[2]), fast[0] / (129 - fast[2]))
    assert not same_law(slow[2] * slow[3], fast[2] * fast[3] * 1.08) # the test can tell

def test_erased_share_on_the_market_shape_and_how_many_boxes_do_not_fit(): # the figures of the course
    first = torch.stack(boxes(20000, 256, 128, tries=1))
    assert abs((first[2] == 0).float().mean() - .056) < .006
    _, _, h, w = boxes(20000, 256, 128)
    assert abs((h * w).float().mean() / (256 * 128) - .204) < .003

def test_boxes_that_never_fit_are_none():
    _, _, h, w = boxes(50, 10, 10, area=(.9, .9), aspect=(9., 9.))
    assert not h.any() and not w.any()
    x = noise(4)
    assert (RandomErase(p=1., area=(.99, .99), aspect=(9., 9.))(x, split_idx=0) == x).all()

def test_erasing_covers_the_box_and_nothing_else():
    x = noise(2000)
    y = RandomErase(fill=-1.)(x, split_idx=0)
    gone = (y == -1).all(1)
    assert often(int(gone.flatten(1).any(1).sum()), 2000, .5) and (y == x).all(1)[~gone].all()
    for g in gone[gone.flatten(1).any(1)][:50]: # a full rectangle
        r, c = g.any(1).nonzero(), g.any(0).nonzero()
        assert g[r.min():r.max() + 1, c.min():c.max() + 1].all()
    y = RandomErase(p=1., fill=TORCHREID_FILL)(x[:5], split_idx=0)
    hit = (y != x[:5]).any(1)
    for c, v in enumerate(imagenet_stats[0]): assert torch.allclose(y[:, c][hit], torch.tensor(v))
    assert RandomErase(p=1., fill=TORCHREID_FILL)(TensorImage(torch.ones(3, 1, H, W)), split_idx=0).unique().tolist() == pytest.approx([.485, 1.])

def test_flip_rate_and_flip_twice():
    x = noise(3000, 4, 4)
    assert often(int(changed(x, RandomFlip()(x, split_idx=0)).sum()), 3000, .5)
    twice = RandomFlip(p=1.)(RandomFlip(p=1.)(x, split_idx=0), split_idx=0)
    assert (twice == x).all()

def test_windows_are_where_they_say():
    x = torch.rand(5, 3, 20, 12)
    top, left = torch.tensor([0, 4, 3, 2, 1]), torch.tensor([1, 0, 2, 4, 3])
    assert (crop_at(x, top, left, (16, 8)) == torch.stack([o[:, t:t + 16, l:l + 8] for o, t, l in zip(x, top, left)])).all()
    assert inside((9, 7), top, left, torch.tensor([1, 2, 3, 0, 4]), torch.tensor([2, 2, 2, 0, 3])).sum((1, 2, 3)).tolist() == [2, 4, 6, 0, 12]

def test_every_shift_is_equally_likely():
    d = RandomTranslate().draw(9 * 5 * 400, H, W) # 64×32 → 72×36: 9 × 5 places
    n = torch.bincount(d['top'] * 5 + d['left'], minlength=45)
    assert len(n) == 45 and ((n - 400).square() / 400).sum() < 44 + 5 * math.sqrt(88) # chi-square
    x = noise(1, 16, 8)
    all_shifts = {tuple(o.flatten().tolist()) for o in PadCrop(pad=1)(x.repeat(300, 1, 1, 1), split_idx=0)}
    want = {tuple(torch.nn.functional.pad(x, [1] * 4)[0, :, t:t + 16, l:l + 8].flatten().tolist()) for t in range(3) for l in range(3)}
    assert all_shifts == want

def test_translation_is_pils_enlargement():
    from PIL import Image
    x = (noise(1)[0] * 255).byte()
    big = Image.fromarray(x.permute(1, 2, 0).numpy()).resize((36, 72), Image.Resampling.BILINEAR)
    t = RandomTranslate(p=1.)
    got = t.change(x[None].float(), torch.tensor([3]), torch.tensor([2]))[0]
    want = torch.from_numpy(np.array(big.crop((2, 3, 34, 67)))).permute(2, 0, 1)
    assert (got - want).abs().max() < 1.01 # PIL rounds, twice


# Colour

def test_jitter_is_torchvisions_for_the_same_factors():
    x = noise(6)
    t = ColorJitter(1., .4, .3, .5, .3)
    for order in ((0, 1, 2, 3), (3, 1, 0, 2), (2, 3, 1, 0)):
        d = t.draw(6, H, W) | dict(order=order)
        got = t.change(torch.Tensor(x), **d)
        for i in range(6):
            want = torch.Tensor(x[i])
            for j in order: want = (TF.adjust_brightness, TF.adjust_contrast, TF.adjust_saturation, TF.adjust_hue)[j](want, d[f'f{j}'][i].item())
            assert torch.allclose(got[i], want, atol=3e-4), order # its grey weighs red .2989

def test_grey_pictures_keep_their_hue():
    gray = noise(2)[:, :1].expand(-1, 3, -1, -1)
    assert torch.allclose(ColorJitter(brightness=0, contrast=0, hue=.5)(TensorImage(gray), split_idx=0), gray, atol=1e-6)

def test_jitter_factors_have_torchreids_range():
    d = ColorJitter().draw(4000, H, W)
    for k, a in (('f0', .2), ('f1', .15)): assert same_law(d[k], [random.uniform(1 - a, 1 + a) for _ in range(4000)])
    assert (d['f2'] == 1).all() and (d['f3'] == 0).all() and list(d['order']) == [0, 1, 2, 3]
    assert len({tuple(ColorJitter(any_order=True).draw(1, H, W)['order']) for _ in range(300)}) == 24

def test_principal_colours():
    x = TensorImage(torch.full((6000, 3, 2, 2), .5))
    shift = (PCAColor(p=1.)(x, split_idx=0) - x)[:, :, 0, 0]
    v, m = torch.tensor([.2175, .0188, .0045]), torch.tensor([[-.5675, .7192, .4009], [-.5808, -.0045, -.8140], [-.5836, -.6948, .4203]])
    assert torch.allclose(m.T @ m, torch.eye(3), atol=2e-3) # unit vectors, at right angles
    assert torch.allclose(torch.Tensor(shift.T @ shift / 6000), (m * (.1 * v)**2) @ m.T, atol=3e-5)
    assert often(int(changed(x, PCAColor()(x, split_idx=0)).sum()), 6000, .5)

def test_gray():
    x = noise(2000, 4, 4)
    y = RandomGray()(x, split_idx=0)
    assert often(int(changed(x, y).sum()), 2000, .1)
    g = RandomGray(p=1.)(x, split_idx=0)
    assert (g[:, 0] == g[:, 1]).all() and torch.allclose(g, TF.rgb_to_grayscale(torch.Tensor(x), 3), atol=1e-3)


# Patches, occluders, exchanged places

def test_patch_pool():
    t, x = RandomPatch(p=1., least=30, capacity=40), noise(20)
    assert (t(x, split_idx=0) == x).all() and len(t.pool) == 20
    assert changed(t(x, split_idx=0), x).float().mean() > .9 and len(t.pool) == 40
    old = [o.clone() for o in t.pool]
    t(noise(5), split_idx=0)
    assert all((a == b).all() for a, b in zip(list(t.pool)[:35], old[5:])) # the oldest went
    assert t.pool[0].dtype == torch.uint8 and t(x, split_idx=1) is x
    assert not pickle.loads(pickle.dumps(t)).pool and len(t.pool) == 40

def test_patch_rates_and_what_is_pasted():
    t = RandomPatch(degrees=0)
    t(TensorImage(torch.full((200, 3, H, W), 7 / 255)), split_idx=0) # a pool of one colour
    t.look = lambda x: None
    x = TensorImage(torch.zeros(2000, 3, H, W))
    y = t(x, split_idx=0)
    assert often(int(changed(x, y).sum()), 2000, .5) and y.unique().tolist() == pytest.approx([0, 7 / 255])
    pasted = (y[changed(x, y)][:, 0] > 0)
    slow = [box_of_torchreid(H, W, (.01, .5), (.1, 10.)) for _ in range(2000)]
    assert abs(pasted.float().mean() - np.mean([h * w for _, _, h, w in slow]) / (H * W)) < .015
    d = RandomPatch().draw(8000, H, W)
    assert often(int((d['turn'] != 0).sum()), 8000, .5 * 20 / 21) and often(int(d['mirror'].sum()), 8000, .5)
    assert set(d['turn'].tolist()) == set(range(-10, 11))

def test_occluders_touch_an_edge_and_come_from_elsewhere():
    x = TensorImage(torch.rand(300, 3, H, W).round(decimals=3) * .5 + torch.arange(300)[:, None, None, None] / 600) # each picture has colours of its own
    y = OccluderPaste(p=1.)(x, split_idx=0)
    hit = (y != x).any(1)
    share = hit.float().mean((1, 2))
    assert share[share > 0].min() > .05 and share.max() < .55 and (share > 0).float().mean() > .95
    edge = hit[:, -1].any(1) | hit[:, :, 0].any(1) | hit[:, :, -1].any(1)
    assert edge[share > 0].all()

def test_a_piece_is_a_piece_of_one_other_picture():
    x = TensorImage(torch.arange(6).float()[:, None, None, None].expand(6, 3, H, W).clone())
    y = OccluderPaste(p=1.)(x, split_idx=0)
    assert all(len(o.unique()) <= 2 for o in y)
    ramp = TensorImage(torch.arange(H * W).float().reshape(1, 1, H, W).expand(2, 3, H, W).clone()) # a piece keeps its texture: a constant shift
    y = OccluderPaste(p=1.)(ramp, split_idx=0)
    for a, b in zip(y, ramp): assert len((a - b)[0].unique()) <= 2

def test_given_occluders_keep_their_shape_and_transparency():
    thing = torch.ones(1, 4, 40, 20)
    thing[:, 3, :20] = 0 # the upper half is glass
    y = OccluderPaste(p=1., occluders=thing, area=(.2, .2))(TensorImage(torch.zeros(60, 3, H, W)), split_idx=0)
    full = (y[:, 0] > .5)
    assert abs(full.float().mean() - .1) < .02
    rows, cols = full.any(2).sum(1), full.any(1).sum(1)
    assert (rows - cols).abs().max() <= 2 # half of 2:1 is a square

def test_exchange_is_its_own_inverse_and_loses_nothing():
    x = noise(500)
    t = LocalSwap(p=1.)
    d = t.draw(500, H, W)
    y = t.change(torch.Tensor(x), **d)
    assert (t.change(y, **d) == x).all() and (y.flatten(2).sort(2).values == x.flatten(2).sort(2).values).all()
    n = ((y != x).any(1)).flatten(1).sum(1)
    assert (n == 2 * d['bh'] * d['bw']).all() # two whole patches
    assert often(int(d['down'].sum()), 500, .5)


# For all of them

@pytest.mark.parametrize('cls', ALL)
def test_a_seed_decides_and_validation_is_left_alone(cls):
    x = noise(120)
    def go(s):
        torch.manual_seed(s)
        t = cls(p=.7)
        t(x, split_idx=0)
        return t(x, split_idx=0)
    a, b, c = go(1), go(1), go(2)
    assert (a == b).all() and (a != c).any() and type(a) is TensorImage and a.shape == x.shape
    keep = x.clone()
    go(3)
    assert (x == keep).all() # the batch itself is left alone
    assert cls(p=.7)(x, split_idx=1) is x and cls(p=.7)(x) is x and (cls(p=0.)(x, split_idx=0) == x).all()
    assert cls(p=1.)(noise(120, 31, 17), split_idx=0).shape == (120, 3, 31, 17)

@pytest.mark.parametrize('cls', ALL)
def test_tracklets_share_a_draw_or_not(cls):
    x = TensorImage(noise(40)[:, None].repeat(1, 5, 1, 1, 1)) # five equal frames
    if cls is OccluderPaste: x = TensorImage(noise(1)[:, None].repeat(40, 5, 1, 1, 1))
    def go(**kw):
        t = cls(p=.5 if cls in (RandomFlip, RandomGray) else .9, **kw)
        t(x, split_idx=0)
        return t(x, split_idx=0)
    one, each = go(), go(per_frame=True)
    assert one.shape == x.shape and (one == one[:, :1]).all()
    assert (each != each[:, :1]).flatten(1).any(1).float().mean() > .3

@pytest.mark.parametrize('cls', ALL)
def test_nothing_is_left_on_the_cpu(cls): # tensors that only pretend, on a device that may be missing
    with FakeTensorMode(allow_non_fake_inputs=True):
        x = torch.empty(130, 3, H, W, device='cuda')
        t = cls(p=1.)
        d = {k: v.to('cuda') if isinstance(v, torch.Tensor) else v for k, v in t.draw(130, H, W).items()}
        if cls is RandomPatch: return # its patches are cut by numbers, which pretended tensors don't have
        t.look(x)
        y = t.change(x, **d)
        assert y.device.type == 'cuda' and y.shape == x.shape

@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
@pytest.mark.parametrize('cls', ALL)
def test_a_gpu_makes_the_same_pictures(cls):
    x = noise(130)
    out = []
    for device in ('cpu', 'cuda'):
        torch.manual_seed(1)
        out.append(cls(p=.7)(x.to(device), split_idx=0).cpu())
    assert torch.allclose(*out, atol=1e-4)

def test_torchvisions_recipes():
    x = noise(8)
    for tfm in (RandAugment(), AugMix()):
        torch.manual_seed(1); a = PerItem(tfm)(x, split_idx=0)
        torch.manual_seed(1); b = PerItem(tfm)(TensorImage((x * 255).round().byte()), split_idx=0)
        assert ((a * 255).round().byte() == b).all() and changed(a, x).any() and type(b) is TensorImage
        assert PerItem(tfm)(x, split_idx=1) is x

def test_recipes_by_torchreids_names():
    t = torchreid_tfms(['color_jitter', 'Random_Erase', 'random_crop', 'random_flip', 'random_patch'])
    assert [type(o).__name__ for o in t] == ['RandomFlip', 'RandomTranslate', 'RandomPatch', 'ColorJitter', 'RandomErase', 'Normalize']
    assert [o.p_image for o in t[:-1]] == [.5, .5, .5, 1., .5] and t[3].any_order and t[4].fill == TORCHREID_FILL
    assert [type(o).__name__ for o in torchreid_tfms(None)] == ['Normalize'] and torchreid_tfms('random_flip', per_frame=True)[0].per_frame
    with pytest.raises(ValueError, match="no transform 'flip'"): torchreid_tfms(['flip'])

def test_the_usual_list_keeps_its_order_and_leaves_out_what_is_zero():
    assert [type(o).__name__ for o in reid_tfms(pca=.1, gray=.1, erase=.1)] == ['RandomFlip', 'RandomTranslate', 'PCAColor', 'RandomGray', 'RandomErase', 'Normalize']
    assert reid_tfms(0, 0, normalize=False) == []
    with pytest.raises(ValueError, match='1.5 is not in'): reid_tfms(flip=1.5)

@pytest.mark.parametrize('k', [1, 3])
def test_views_in_a_loader(k):
    raw = (noise(8) * 255).byte()
    def dl(i): return TfmdDL(Datasets([0, 1, 2, 3, 4, 5, 6, 7], [[lambda j: raw[j]]], splits=[list(range(8)), list(range(8))]).subset(i), bs=8, num_workers=0,
                             after_batch=[IntToFloatTensor(), *torchreid_tfms(['random_flip', 'random_crop'], k_tfm=k)])
    train, = dl(0).one_batch()
    valid, = dl(1).one_batch()
    mean, std = (torch.tensor(o)[:, None, None] for o in imagenet_stats)
    assert torch.allclose(torch.Tensor(valid), (torch.Tensor(raw).float() / 255 - mean) / std, atol=1e-5)
    if k == 1: assert train.shape == raw.shape
    else:
        assert isinstance(train, tuple) and [o.shape for o in train] == [raw.shape] * 3
        assert changed(train[0], train[1]).any() and changed(train[1], train[2]).any()
        assert torch.allclose(KViews(reid_tfms(0, 0), 2).decode(valid), torch.Tensor(raw).float() / 255, atol=1e-5)

def test_views_are_independent():
    x = noise(4000, 2, 2)
    a, b = (changed(o, x).float() for o in KViews([RandomFlip()], 2)(x, split_idx=0))
    assert abs(((a - .5) * (b - .5)).mean()) < .25 * 4 / math.sqrt(4000)


@pytest.mark.parametrize('args, match', [(([reid_tfms()],), 'Unpack it'), ((reid_tfms(), [2]), '`k` must be'), (('flip',), "'flip', which is none"), (([RandomFlip],), 'RandomFlip'), ((reid_tfms(), 0), '`k` must be')])
def test_views_of_what_is_no_list_of_transforms_fail_at_once(args, match):
    with pytest.raises(ValueError, match=match): KViews(*args)
