"Losses on pairs and triplets: against one-triplet-at-a-time code, against pytorch-metric-learning, in half precision, on odd batches"
import math

import pytest
import torch
import torch.nn.functional as F
from pytorch_metric_learning import distances, losses as pml, miners, reducers

from reid_nb.core import ReidError
from reid_nb.losses import TripletLoss, batch_hard_triplet
from reid_nb.triplets import (BatchAllTripletLoss, ContrastiveLoss, NPairsLoss, SemiHardTripletLoss, WeightedTripletLoss, batch_all_triplet,
                              contrastive, n_pairs, pair_distances, semi_hard_triplet, weighted_triplet)

LOSSES = [TripletLoss(), TripletLoss(None), BatchAllTripletLoss(), BatchAllTripletLoss(None), BatchAllTripletLoss(active=False), SemiHardTripletLoss(), SemiHardTripletLoss(None),
          WeightedTripletLoss(), WeightedTripletLoss(own=True), ContrastiveLoss(), NPairsLoss(), NPairsLoss(.01)]
NAMES = [repr(o) for o in LOSSES]

def batch(seed=0, p=6, k=4, d=8, scale=1.):
    g = torch.Generator().manual_seed(seed)
    return scale * torch.randn(p * k, d, generator=g), torch.arange(p * k) % p

def plain(): return distances.LpDistance(normalize_embeddings=False, p=2, power=1)

@pytest.mark.parametrize('seed', range(4))
@pytest.mark.parametrize('margin', [.1, .3, 2.])
def test_batch_all_equals_pml(seed, margin):
    x, y = batch(seed)
    want = pml.TripletMarginLoss(margin, distance=plain(), reducer=reducers.AvgNonZeroReducer())(x, y)
    assert batch_all_triplet(x, y, margin).item() == pytest.approx(want.item(), rel=1e-5)
    want = pml.TripletMarginLoss(margin, distance=plain(), reducer=reducers.MeanReducer())(x, y)
    assert batch_all_triplet(x, y, margin, active=False).item() == pytest.approx(want.item(), rel=1e-5)

@pytest.mark.parametrize('margin', [.3, None])
def test_batch_hard_equals_pml(margin):
    x, y = batch()
    pairs = miners.BatchHardMiner(distance=plain())(x, y)
    want = pml.TripletMarginLoss(margin or 0, smooth_loss=margin is None, distance=plain(), reducer=reducers.MeanReducer())(x, y, pairs)
    assert batch_hard_triplet(x, y, margin).item() == pytest.approx(want.item(), rel=1e-5)

@pytest.mark.parametrize('seed', range(4))
def test_semi_hard_takes_pml_miner_s_nearest(seed):
    x, y = batch(seed)
    a, p, n = miners.TripletMarginMiner(100., 'semihard', distance=plain())(x, y) # all triplets with the negative behind the positive
    dist = (x[:, None] - x).norm(dim=2)
    nearest = {}
    for i, j, k in zip(a.tolist(), p.tolist(), n.tolist()): nearest[i, j] = min(nearest.get((i, j), math.inf), dist[i, k].item())
    want = []
    for i in range(len(y)):
        for j in range(len(y)):
            if i != j and y[i] == y[j]: want.append(max(0, dist[i, j].item() - nearest.get((i, j), dist[i][y != y[i]].max().item()) + .3))
    assert len(nearest) > 20 and semi_hard_triplet(x, y, .3).item() == pytest.approx(sum(want) / len(want), rel=1e-5)

@pytest.mark.parametrize('margin', [1., 3.])
def test_contrastive_equals_pml_squared(margin): # theirs isn't squared
    x, y = batch()
    each = pml.ContrastiveLoss(neg_margin=margin, distance=plain(), reducer=reducers.DoNothingReducer())(x, y)
    want = each['pos_loss']['losses'].pow(2).mean() / 2 + each['neg_loss']['losses'].pow(2).mean() / 2
    assert contrastive(x, y, margin).item() == pytest.approx(want.item(), rel=1e-5)

def test_n_pairs_equals_pml():
    x, y = batch(k=2, d=5)
    theirs = pml.NPairsLoss(distance=distances.DotProductSimilarity(normalize_embeddings=False)) # takes one anchor of each person, the first picture; ours takes the second, too
    want = (theirs(x, y) + theirs(x.flip(0), y.flip(0))) / 2
    assert n_pairs(x, y).item() == pytest.approx(want.item(), rel=1e-5)
    assert n_pairs(x, y, .5).item() == pytest.approx(want.item() + .5 * x.pow(2).sum(1).mean().item(), rel=1e-5)

def test_n_pairs_uses_every_picture_as_anchor_and_positive():
    x, y = batch(k=5, p=3)
    x.requires_grad_()
    n_pairs(x, y).backward()
    assert (x.grad.abs().sum(1) > 0).all()
    rows = torch.stack([torch.nonzero(y == o)[:, 0] for o in range(3)], 1)
    want = torch.stack([F.cross_entropy(x[rows[t]] @ x[rows[(t + 1) % 5]].T, torch.arange(3)) for t in range(5)]).mean()
    assert n_pairs(x, y).item() == pytest.approx(want.item(), rel=1e-5)

def test_weighted_by_hand(): # an anchor, positives at 1 and 2, negatives at 1 and 3
    x, y = torch.tensor([[0., 0], [1, 0], [-2, 0], [0, 1], [0, -3]]), torch.tensor([0, 0, 0, 1, 2])
    def one(i, own):
        d = (x - x[i]).norm(dim=1).double()
        p, n = d[[j for j in range(3) if own or j != i]], d[3:]
        return F.softplus((p.exp() * p).sum() / p.exp().sum() - ((-n).exp() * n).sum() / (-n).exp().sum())
    for own in (False, True): assert weighted_triplet(x, y, own).item() == pytest.approx(sum(one(i, own) for i in range(3)).item() / 3, rel=1e-5)
    e = math.e
    assert one(0, False).item() == pytest.approx(math.log1p(math.exp((e + 2 * e ** 2) / (e + e ** 2) - (e ** -1 + 3 * e ** -3) / (e ** -1 + e ** -3))))

@pytest.mark.parametrize('loss', LOSSES, ids=NAMES)
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision(loss, dtype):
    x, y = batch(scale=15)
    x = x.to(dtype).requires_grad_()
    with torch.autocast('cpu', dtype=torch.bfloat16): value = loss(x, y)
    value.backward()
    assert value.dtype == torch.float32 and value.item() == pytest.approx(loss(x.detach().float(), y).item(), rel=1e-6)
    assert x.grad.dtype == dtype and x.grad.isfinite().all()

@pytest.mark.parametrize('loss', LOSSES, ids=NAMES)
def test_gradient(loss):
    g = torch.Generator().manual_seed(5)
    x = torch.randn(9, 3, generator=g, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: loss(x, torch.tensor([0, 0, 0, 1, 1, 2, 2, 3, 4])), x)

@pytest.mark.parametrize('loss', LOSSES, ids=NAMES)
def test_odd_batches(loss):
    x, y = batch(p=3, k=2)
    for bad, words in ((torch.zeros(6), 'show 1 identity'), (torch.arange(6), 'one picture each'), (y[:5], '(6, 8) and (5,)')):
        with pytest.raises(ReidError) as e: loss(x, bad)
        assert words in str(e.value)
    x[1], x[4] = x[0], x[3] # the same picture twice, with another and with its own label
    x.requires_grad_()
    loss(x, y).backward()
    assert x.grad.isfinite().all()
    same = torch.ones(6, 8, requires_grad=True) # collapse
    loss(same, y).backward()
    assert same.grad.isfinite().all()

@pytest.mark.parametrize('loss', LOSSES, ids=NAMES)
def test_order_of_the_batch_and_numbers_of_people_don_t_matter(loss):
    x, y = batch(2, p=4, k=3)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    if not isinstance(loss, NPairsLoss): assert loss(x[order], y[order]).item() == pytest.approx(loss(x, y).item(), rel=1e-5)
    assert loss(x, 1000 - 7 * y).item() == pytest.approx(loss(x, y).item(), rel=1e-5)

@pytest.mark.parametrize('loss', LOSSES, ids=NAMES)
def test_the_gradient_is_the_same_each_time(loss):
    x, y = batch(p=16, k=4, d=256)
    def grad():
        o = x.clone().requires_grad_()
        loss(o, y).backward()
        return o.grad
    first = grad()
    assert all(torch.equal(grad(), first) for _ in range(8))

def test_distances_far_from_the_origin():
    x, y = batch(d=4)
    far = pair_distances(x + 1000, y)[0]
    assert (far - pair_distances((x + 1000).double(), y)[0]).abs().max() < 1e-4

def test_soft_forms_rest_at_ln2_and_do_not_overflow():
    y = torch.tensor([0, 0, 1, 1])
    for loss in (BatchAllTripletLoss(None), SemiHardTripletLoss(None), WeightedTripletLoss()):
        assert loss(torch.ones(4, 3), y).item() == pytest.approx(math.log(2))
        x = torch.tensor([[0.], [1e4], [1.], [1e4 + 1]], requires_grad=True)
        loss(x, y).backward()
        assert x.grad.isfinite().all()
    assert n_pairs(torch.zeros(4, 3), y).item() == pytest.approx(math.log(2))

def test_fastai_tensors():
    from fastai.torch_core import TensorCategory, TensorImage
    x, y = batch()
    for loss in LOSSES: assert type(loss(TensorImage(x), TensorCategory(y))) is torch.Tensor
