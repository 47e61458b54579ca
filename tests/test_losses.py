"The losses on batches that training really makes: half precision, odd sizes, duplicates, random comparison with one-pair-at-a-time code"
import math

import pytest
import torch
import torch.nn.functional as F

from reid_nb.core import ReidError
from reid_nb.losses import CenterLoss, IdLoss, TripletLoss, batch_hard, batch_hard_triplet, hardest, triplet_loss, triplet_stats

X = torch.cos(1.7 * torch.arange(8.)[:, None] + .3 * torch.arange(6.))
PIDS = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3])

def slow_triplet(x, y, margin): # anchor by anchor in float64, from the definition
    x, out = x.double(), []
    for a in range(len(y)):
        pos = [(x[a] - x[i]).norm() for i in range(len(y)) if i != a and y[i] == y[a]]
        neg = [(x[a] - x[i]).norm() for i in range(len(y)) if y[i] != y[a]]
        if pos: out.append(F.softplus(max(pos) - min(neg)) if margin is None else (max(pos) - min(neg) + margin).clamp(min=0))
    return torch.stack(out).mean()

@pytest.mark.parametrize('margin, want', [(.3, 2.434351), (0, 2.134351), (2, 4.134351)])
def test_triplet_golden(margin, want): assert batch_hard_triplet(X, PIDS, margin).item() == pytest.approx(want, abs=2e-6)

def test_identity_and_center_golden():
    i, j = torch.arange(4.)[:, None], torch.arange(5.)
    L, L2, y = torch.sin(3 * i + j), torch.cos(2 * i + j), torch.tensor([0, 2, 4, 1])
    assert IdLoss(.1)(L, y).item() == pytest.approx(2.230589, abs=2e-6)
    assert IdLoss(0)(L, y).item() == pytest.approx(2.281387, abs=2e-6)
    assert IdLoss(.1)([(None, L), (None, L2)], y).item() == pytest.approx(1.929031, abs=2e-6)
    assert IdLoss(.1)([L, L2], y).item() == IdLoss(.1)([(None, L), (None, L2)], y).item()
    center = CenterLoss(4, 6)
    center.centers.data = torch.sin(.9 * torch.arange(4.)[:, None] + .5 * torch.arange(6.))
    assert center(X, PIDS).item() == pytest.approx(6.870036, abs=2e-6)

@pytest.mark.parametrize('margin', [.3, 0, None])
@pytest.mark.parametrize('seed', range(8))
def test_triplet_equals_slow_twin(seed, margin):
    g = torch.Generator().manual_seed(seed)
    x, y = torch.randn(30, 7, generator=g) * 3, torch.randint(0, 4 + seed, (30,), generator=g) # unequal numbers per identity, some alone
    assert batch_hard_triplet(x, y, margin).item() == pytest.approx(slow_triplet(x, y, margin).item(), rel=1e-5)

def test_distances_keep_their_digits_far_from_the_origin():
    x = X + 1000 # squared norms of 6 million: the shortcut |x|²+|y|²-2xy is off by whole units there
    assert triplet_loss(*batch_hard(x[:4], PIDS[:4])).item() == pytest.approx(slow_triplet(x[:4], PIDS[:4], .3).item(), rel=1e-4)

@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision_counts_in_float32(dtype):
    x = (15 * X).to(dtype).requires_grad_()
    with torch.autocast('cpu', dtype=torch.bfloat16): loss = TripletLoss()(x, PIDS) + CenterLoss(4, 6)(x, PIDS) + IdLoss()(x, PIDS)
    assert loss.dtype == torch.float32 and loss.isfinite()
    loss.backward()
    assert x.grad.isfinite().all()
    with torch.autocast('cpu', dtype=torch.bfloat16): half = batch_hard_triplet(x, PIDS)
    assert half.item() == pytest.approx(slow_triplet(x.detach(), PIDS, .3).item(), rel=1e-5)

def test_mining_far_from_the_origin():
    for seed in range(5):
        g = torch.Generator().manual_seed(seed)
        x, y = torch.randn(24, 16, generator=g), torch.arange(24) % 6
        assert all(torch.equal(a, b) for a, b in zip(hardest(x, y), hardest(x + 3000, y)))

def test_the_same_picture_twice_gives_no_nan(): # a sampler that repeats pictures does this
    x = X.clone()
    x[1] = x[0]
    x[5] = x[4]
    x.requires_grad_()
    batch_hard_triplet(x, PIDS, None).backward()
    assert x.grad.isfinite().all()

def test_soft_margin_does_not_overflow():
    x = torch.tensor([[0.], [1e4], [1.], [1e4 + 1]], requires_grad=True)
    loss = batch_hard_triplet(x, torch.tensor([0, 0, 1, 1]), None)
    loss.backward()
    assert loss.item() == pytest.approx(1e4 - 1) and x.grad.isfinite().all()

def test_collapsed_features_rest_at_the_margin():
    x = torch.ones(8, 6, requires_grad=True)
    batch_hard_triplet(x, PIDS).backward()
    assert x.grad.abs().max() == 0
    assert batch_hard_triplet(x, PIDS, None).item() == pytest.approx(math.log(2))

def test_stats():
    d_pos, d_neg = torch.tensor([1., 2., 3., 4.]), torch.tensor([2., 2.2, 3., 1.])
    s = triplet_stats(d_pos, d_neg, .3)
    assert (s['active'].item(), s['d_pos'].item(), s['d_neg'].item()) == pytest.approx((.75, 2.5, 2.05))
    assert triplet_stats(d_pos, d_neg, None)['active'].item() == .25

@pytest.mark.parametrize('pid, words', [
    (torch.zeros(8), ['8 pictures', '1 identity', 'p at least 2']), (torch.arange(8), ['8 identities, one picture each', 'k at least 2']),
    (PIDS[:5], ['(8, 6)', '(5,)'])])
def test_batches_without_a_triplet(pid, words):
    with pytest.raises(ReidError) as e: TripletLoss()(X, pid)
    assert all(o in str(e.value) for o in words)

def test_label_outside_the_classes():
    for bad in (-1, 4):
        with pytest.raises(IndexError): CenterLoss(4, 6)(X, torch.full((8,), bad))

def test_fastai_tensors_and_unreduced_loss(): # a Learner may hand over its own tensor types, and asks for a loss per row
    fastai = pytest.importorskip('fastai.torch_core')
    x, y = fastai.TensorImage(X), fastai.TensorCategory(PIDS)
    assert TripletLoss()(x, y).item() == pytest.approx(2.434351, abs=2e-6)
    assert IdLoss()([(x, x)], y).item() == pytest.approx(IdLoss()(X, PIDS).item())
    assert CenterLoss(4, 6)(x, y).isfinite()
    rows = IdLoss(reduction='none')([(None, X), (None, X)], PIDS)
    assert rows.shape == (8,) and rows.mean().item() == pytest.approx(IdLoss()(X, PIDS).item())

def test_center_gradient_by_hand():
    x, center = X.clone().requires_grad_(), CenterLoss(5, 6)
    center(x, PIDS).backward()
    c = center.centers.detach()
    assert torch.allclose(x.grad, 2 * (X - c[PIDS]) / 8, atol=1e-6)
    want = torch.stack([-2 * (X[PIDS == k] - c[k]).sum(0) / 8 for k in range(5)])
    assert torch.allclose(center.centers.grad, want, atol=1e-6)


def test_the_gradient_is_the_same_each_time(): # sums over repeated rows must not depend on the order of threads
    torch.manual_seed(0)
    pid = torch.arange(64) // 4
    start = torch.randn(64, 1024)
    def grad():
        feat = start.clone().requires_grad_()
        batch_hard_triplet(feat, pid, margin=None).backward()
        return feat.grad
    first = grad()
    assert all(torch.equal(grad(), first) for _ in range(30))
