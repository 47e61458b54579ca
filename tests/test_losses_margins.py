"Losses on angles, memories and peers: figures of Torchreid, pytorch-metric-learning's classes, half precision, odd input"
import math

import pytest
import torch
import torch.nn.functional as F
from pytorch_metric_learning import losses as pml, reducers
from torch import nn

from reid_nb.core import ReidError
from reid_nb.losses import IdLoss
from reid_nb.margins import (MARGINS, CircleLoss, CosineHead, DeepSupervision, FocalLoss, MarginLoss, MutualLoss, OIMLoss, RingLoss, circle,
                             margin_logits, mutual, use_cosine_head)

G = torch.Generator().manual_seed(0)
X, Y = torch.randn(12, 8, generator=G), torch.arange(12) % 4
W = torch.randn(4, 8, generator=G)
COS = F.normalize(X) @ F.normalize(W).T
I, J = torch.arange(4.)[:, None], torch.arange(5.)
L, L2, TARGET = torch.sin(3 * I + J), torch.cos(2 * I + J), torch.tensor([0, 2, 4, 1])

@pytest.mark.parametrize('kind, theirs', [('arcface', lambda s, m: pml.ArcFaceLoss(4, 8, math.degrees(m), s)), ('cosface', lambda s, m: pml.CosFaceLoss(4, 8, margin=m, scale=s)),
                                          ('amsoftmax', lambda s, m: pml.CosFaceLoss(4, 8, margin=m, scale=s))])
@pytest.mark.parametrize('s, m', [(64, .5), (16, .35), (30, .1)])
def test_margins_equal_pml(kind, theirs, s, m):
    theirs = theirs(s, m)
    theirs.W.data = W.T.clone()
    x = X.clone().requires_grad_()
    want = theirs(x, Y)
    want.backward()
    y = X.clone().requires_grad_()
    ours = MarginLoss(kind, s, m)(F.normalize(y) @ F.normalize(W).T, Y)
    ours.backward()
    assert ours.item() == pytest.approx(want.item(), rel=1e-4)
    assert torch.allclose(x.grad, y.grad, rtol=1e-3, atol=1e-3)

def test_arcface_behind_pi_minus_m_goes_on_falling():
    theta = torch.linspace(0, math.pi, 500, dtype=torch.float64)
    z = margin_logits(theta.cos()[:, None], torch.zeros(500).long(), 'arcface', 1., .5)[:, 0]
    assert (z.diff() < 0).all()
    near = theta < math.pi - .5
    assert torch.allclose(z[near], (theta[near] + .5).cos(), atol=1e-6)
    assert torch.allclose(z[~near], theta[~near].cos() - .5 * math.sin(.5))

@pytest.mark.parametrize('kind', MARGINS)
def test_slopes_at_the_poles_are_finite(kind): # a feature on its class weight, and one opposite
    x = torch.tensor([[2., 0], [-2, 0], [0, 1]], requires_grad=True)
    head = CosineHead(2, 2)
    head.weight.data = torch.eye(2)
    loss = MarginLoss(kind)([(x, head(x))], torch.tensor([0, 0, 1]))
    loss.backward()
    assert loss.isfinite() and x.grad.isfinite().all() and head.weight.grad.isfinite().all()
    head(torch.zeros(1, 2, requires_grad=True)).sum().backward() # a feature of length 0 has no angle

@pytest.mark.parametrize('s', [1, 16, 64])
def test_no_margin_is_the_softmax_of_scaled_cosines(s):
    want = F.cross_entropy(s * COS, Y).item()
    for kind in ('arcface', 'cosface', 'amsoftmax'): assert MarginLoss(kind, s, 0)(COS, Y).item() == pytest.approx(want, abs=1e-6 * s)
    for kind in MARGINS: assert MarginLoss(kind, s, .2)(COS, Y).item() > want or kind == 'circle'

def test_circle_softmax_is_the_class_level_form():
    s, m = 30., .25
    z = margin_logits(COS, Y, 'circle', s, m)
    each = []
    for row, y in zip(COS.double(), Y):
        n = sum(torch.exp(s * max(c + m, 0) * (c - m)) for k, c in enumerate(row) if k != y)
        each.append(torch.log1p(n * torch.exp(-s * max(1 + m - row[y], 0) * (row[y] - 1 + m))))
    assert F.cross_entropy(z, Y).item() == pytest.approx(torch.stack(each).mean().item(), rel=1e-4)

@pytest.mark.parametrize('m, gamma', [(.25, 128), (.4, 80), (.25, 16)])
def test_circle_equals_pml(m, gamma):
    want = pml.CircleLoss(m, gamma, reducer=reducers.MeanReducer())(X, Y)
    assert circle(X, Y, m, gamma).item() == pytest.approx(want.item(), rel=1e-5)

def test_cosine_head_in_models():
    from reid_nb.models.osnet import osnet_x0_25
    from reid_nb.models.parts import pcb_p4
    torch.manual_seed(0)
    model = osnet_x0_25(5)
    keys = set(model.state_dict()) - {'classifier.bias'}
    weight = model.classifier.weight.detach().clone()
    assert use_cosine_head(model) is model and set(model.state_dict()) == keys and torch.equal(model.classifier.weight, weight)
    x = torch.rand(4, 3, 64, 32)
    (feat, cos), = model(x)
    assert torch.allclose(cos, F.cosine_similarity(feat[:, None], weight, dim=2), atol=1e-5)
    MarginLoss()([(feat, cos)], TARGET).backward()
    assert model.classifier.weight.grad.abs().sum() > 0 and model.eval()(x).shape == (4, 512)
    many = use_cosine_head(pcb_p4(5))
    assert [type(o) for o in many.classifier] == [CosineHead] * 4
    with pytest.raises(ReidError, match='has no linear layer named `classifier`; its children are 0'): use_cosine_head(nn.Sequential(nn.Linear(2, 2)))

def test_margin_loss_over_heads_and_rows():
    heads = [(None, COS), (None, -COS)]
    loss = MarginLoss('cosface', 16)
    assert loss(heads, Y).item() == pytest.approx((loss(COS, Y) + loss(-COS, Y)).item() / 2)
    rows = MarginLoss('cosface', 16, reduction='none')(heads, Y)
    assert rows.shape == (12,) and rows.mean().item() == pytest.approx(loss(heads, Y).item())
    assert repr(MarginLoss()) == "MarginLoss('arcface', s=64.0, m=0.5)"
    with pytest.raises(ReidError, match='A logit is 5'): loss(5 * COS / COS.abs().max(), Y)
    with pytest.raises(ValueError, match='must be one of arcface'): MarginLoss('arc')

def test_focal():
    assert FocalLoss(0)(L, TARGET).item() == pytest.approx(IdLoss(0)(L, TARGET).item(), rel=1e-6)
    p = L.double().softmax(1)[torch.arange(4), TARGET]
    for gamma in (.5, 2, 5): assert FocalLoss(gamma)(L, TARGET).item() == pytest.approx((-(1 - p) ** gamma * p.log()).mean().item(), rel=1e-5)
    assert FocalLoss()([(None, L), (None, L2)], TARGET).item() == pytest.approx((FocalLoss()(L, TARGET) + FocalLoss()(L2, TARGET)).item() / 2)
    assert FocalLoss(reduction='none')(L, TARGET).shape == (4,)
    sure = torch.tensor([[200., 0]], requires_grad=True) # p is 1: (1-p)**0.5 has no slope there
    FocalLoss(.5)(sure, torch.tensor([0])).backward()
    assert sure.grad.isfinite().all()

def test_ring():
    ring = RingLoss()
    x = X.clone().requires_grad_()
    loss = ring(x, Y)
    norm = X.norm(dim=1)
    assert ring.radius.item() == pytest.approx(norm.mean().item()) and loss.item() == pytest.approx(norm.var(unbiased=False).item() / 2, rel=1e-5)
    loss.backward()
    assert torch.allclose(x.grad, ((norm - norm.mean()) / norm)[:, None] * X / 12, atol=1e-6)
    ring(2 * X) # a later batch doesn't begin anew
    assert ring.radius.item() == pytest.approx(norm.mean().item())
    other = RingLoss()
    other.load_state_dict(ring.state_dict())
    assert other.radius.item() == ring.radius.item()

def test_oim_memory_and_queue():
    oim = OIMLoss(4, 8, queue=3)
    y = Y.clone()
    y[[1, 5]] = -1
    first = oim(X, y)
    assert first.item() == pytest.approx(math.log(7)) and oim.at.item() == 2
    v = F.normalize(X[0], dim=0)
    for i in (4, 8): v = F.normalize(.5 * v + .5 * F.normalize(X[i], dim=0), dim=0)
    assert torch.allclose(oim.memory[0], v, atol=1e-6)
    assert torch.allclose(oim.unknown[:2], F.normalize(X[[1, 5]]), atol=1e-6) and oim.unknown[2].abs().sum() == 0
    oim(X[:4], torch.full((4,), -1)) # more at once than there is room for
    assert torch.allclose(oim.unknown.sum(0), F.normalize(X[1:4]).sum(0), atol=1e-5)
    other = OIMLoss(4, 8, queue=3)
    other.load_state_dict(oim.state_dict())
    assert other.eval()(X, y).item() == oim.eval()(X, y).item()
    x = X.clone().requires_grad_()
    oim.train()(x, y).backward() # the memory changes after use, and backward doesn't mind
    assert x.grad.isfinite().all() and (x.grad[[1, 5]] == 0).all()

def test_mutual():
    assert mutual(L2, L, entropy=True).item() == pytest.approx(1.676959, abs=2e-6)
    assert mutual(L2, L).item() == pytest.approx(F.kl_div(L2.log_softmax(1), L.softmax(1), reduction='batchmean').item(), rel=1e-6)
    a, b = L2.clone().requires_grad_(), L.clone().requires_grad_()
    g1, = torch.autograd.grad(mutual(a, b), a)
    g2, = torch.autograd.grad(mutual(a, b, entropy=True), a)
    assert torch.allclose(g1, g2, atol=1e-7) and not mutual(L2, b).requires_grad
    assert torch.allclose(g1, (L2.softmax(1) - L.softmax(1)) / 4, atol=1e-6)
    assert MutualLoss()([(None, L2), (None, L)], [(None, L), (None, L)]).item() == pytest.approx(mutual(L2, L).item() / 2)
    with pytest.raises(ReidError, match='1 heads can.t learn from one with 2'): MutualLoss()([L], [L, L2])
    sure = torch.tensor([[300., 0, 0]])
    assert mutual(sure, -sure).isfinite()

def test_deep_supervision():
    assert DeepSupervision(nn.CrossEntropyLoss(label_smoothing=.1))([(None, L), (None, L2)], TARGET).item() == pytest.approx(1.929031, abs=2e-6)
    assert DeepSupervision(nn.CrossEntropyLoss())([L], TARGET).item() == pytest.approx(2.281387, abs=2e-6)
    assert DeepSupervision(nn.CrossEntropyLoss(), [1, 0])([L, L2], TARGET).item() == pytest.approx(2.281387, abs=2e-6)

@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
@pytest.mark.parametrize('make', [*(lambda x, h, k=k: MarginLoss(k)([(x, h(x))], Y) for k in MARGINS), lambda x, h: FocalLoss()(x[:, :4], Y), lambda x, h: CircleLoss()(x, Y), lambda x, h: RingLoss()(x),
                                  lambda x, h: OIMLoss(4, 8).eval()(x, Y), lambda x, h: MutualLoss()([(x, h(x))], [(x, -h(x))]), lambda x, h: DeepSupervision(IdLoss())([x, x ** 2], Y)])
def test_half_precision(dtype, make):
    head = CosineHead(8, 4)
    head.weight.data = W.clone()
    x = (15 * X).to(dtype)
    half, full = x.clone().requires_grad_(), x.float().requires_grad_()
    with torch.autocast('cpu', dtype=torch.bfloat16): loss = make(half, head)
    loss.backward()
    assert loss.dtype == torch.float32 and half.grad.isfinite().all()
    assert loss.item() == pytest.approx(make(full, head).item(), rel=1e-2 if dtype == torch.bfloat16 else 2e-3) # x ** 2 rounds; the losses themselves don't

def test_fastai_tensors():
    from fastai.torch_core import TensorCategory, TensorImage
    x, y = TensorImage(X), TensorCategory(Y)
    for loss in (CircleLoss(), RingLoss(), OIMLoss(4, 8)): assert type(loss(x, y)) is torch.Tensor
    assert type(MarginLoss()([(x, CosineHead(8, 4)(x))], y)) is torch.Tensor and type(FocalLoss()(x, y)) is torch.Tensor
