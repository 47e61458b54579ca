"Counting in torch against the compiled loops; on a GPU where there is one"
import numpy as np
import pytest

from reid_nb.core import ReidError
from reid_nb.retrieve.protocol import Protocol
from reid_nb.retrieve.rank import Scorer, rank_stats
from reid_nb.retrieve.tensors import TensorSource, on_device

torch = pytest.importorskip('torch')
FIGURES = ('ap', 'inp', 'first', 'n_match', 'n_removed', 'valid', 'cmc')


def case(seed, n_q=23, n_g=130):
    rng = np.random.default_rng(seed)
    labels = rng.integers(-1, 6, n_q), rng.integers(-1, 7, n_g), rng.integers(0, 3, n_q), rng.integers(0, 3, n_g)
    return rng.integers(0, 8, (n_q, n_g)).astype(np.float32), rng.normal(size=(n_q, 16)).astype(np.float32), rng.normal(size=(n_g, 16)).astype(np.float32), labels


def by_tensors(dist_or_feats, labels, metric='cosine', block=7, **kw):
    scorer = Scorer(*labels, **kw)
    source = TensorSource(dist_or_feats, metric, block)
    scorer.run(source)
    return scorer.stats(source=source)


@pytest.mark.parametrize('ties', ['worst', 'best', 'first'])
@pytest.mark.parametrize('protocol', ['market', 'all', 'cross_camera_only', 'cuhk03', Protocol('odd', mask=lambda q, g: (q['cam'] + g['pid']) % 3 == 0)])
def test_from_distances_the_same_to_the_bit(ties, protocol):
    for seed in range(5):
        dist, _, _, labels = case(seed)
        a, b = rank_stats(dist, *labels, protocol=protocol, ties=ties), by_tensors(torch.tensor(dist), labels, protocol=protocol, ties=ties)
        for o in FIGURES: np.testing.assert_array_equal(getattr(b, o), getattr(a, o))
        assert b.removed == a.removed


def test_the_callers_distances_stay_as_they_are():
    dist, _, _, labels = case(0)
    x = torch.tensor(dist)
    by_tensors(x, labels)
    np.testing.assert_array_equal(x, dist)


@pytest.mark.parametrize('metric', ['cosine', 'sqeuclidean', 'euclidean'])
@pytest.mark.parametrize('dtype', ['float16', 'bfloat16', 'float32', 'float64'])
def test_from_features(metric, dtype):
    "Whole numbers have exact products, whoever multiplies them"
    _, q, g, labels = case(1)
    q, g = np.round(q * 3), np.round(g * 3)
    a, b = rank_stats((q, g), *labels, metric=metric), by_tensors((torch.tensor(q).to(getattr(torch, dtype)), torch.tensor(g).to(getattr(torch, dtype))), labels, metric)
    np.testing.assert_allclose(b.ap, a.ap, atol=0 if metric == 'sqeuclidean' else .05)
    np.testing.assert_allclose(b.mAP, a.mAP, atol=1e-12 if metric == 'sqeuclidean' else 2e-3)


def test_a_function_of_ones_own():
    _, q, g, labels = case(2)
    a = rank_stats(np.abs(np.round(q)[:, None] - np.round(g)).sum(2), *labels)
    b = by_tensors((torch.tensor(q).round(), torch.tensor(g).round()), labels, lambda a, b: torch.cdist(a, b, p=1).round())
    np.testing.assert_array_equal(b.ap, a.ap)


@pytest.mark.parametrize('q, g, metric, error, says', [
    (torch.ones(2, 3), torch.ones(4, 5), 'cosine', ReidError, 'Query features have 3 dimensions, gallery features 5'),
    (torch.ones(2), torch.ones(4, 5), 'cosine', ReidError, r'found \(2,\)'),
    (torch.full((2, 5), float('nan')), torch.ones(4, 5), 'cosine', ReidError, '2 of 2 rows of query features'),
    (torch.ones(2, 5), torch.ones(4, 5), 'l2', ValueError, 'must be')])
def test_bad_input(q, g, metric, error, says):
    with pytest.raises(error, match=says): TensorSource((q, g), metric)


@pytest.mark.parametrize('dtype', ['bool', 'int32', 'uint8', 'float16', 'bfloat16', 'float64'])
def test_distances_of_any_type(dtype):
    dist, _, _, labels = case(4)
    dist = dist > 3 if dtype == 'bool' else dist
    np.testing.assert_array_equal(by_tensors(torch.tensor(dist).to(getattr(torch, dtype)), labels).ap, rank_stats(dist, *labels).ap)


def test_features_of_two_kinds():
    _, q, g, labels = case(5)
    g.flags.writeable = False
    want = by_tensors((torch.tensor(q), torch.tensor(g)), labels)
    np.testing.assert_array_equal(by_tensors((torch.tensor(q, requires_grad=True), g), labels).ap, want.ap)
    for scale in (1e-25, 1e25): # squares of these leave float32
        np.testing.assert_allclose(by_tensors((torch.tensor(q * np.float32(scale)), g), labels).mAP, want.mAP, atol=1e-3)
    np.testing.assert_array_equal(by_tensors((torch.tensor(q).round(), torch.tensor(g).round()), labels, lambda a, b: torch.cdist(a, b, p=1).round().bfloat16()).ap,
                                  rank_stats(np.abs(np.round(q)[:, None] - np.round(g)).sum(2).round(), *labels).ap)


@pytest.mark.parametrize('x, metric, says', [((torch.ones(23, 2),), 'cosine', 'not of 1'), ((torch.ones(23, 2) + 1j, torch.ones(130, 2)), 'cosine', 'not torch.complex64'),
                                             ((torch.ones(23, 2), torch.ones(130, 2)), lambda a, b: a, r'gave distances of shape \(7, 2\) for 7 queries')], ids=('one', 'complex', 'shape'))
def test_what_cannot_be_scored(x, metric, says):
    with pytest.raises(ReidError, match=says): by_tensors(x, case(0)[-1], metric)


def test_nan_is_counted():
    with pytest.raises(ReidError, match='1 distances are NaN, in 1 rows, first .1.'): by_tensors(torch.tensor([[1., 2], [float('nan'), 1]]), ([1, 2], [1, 2]))


@pytest.mark.skipif(not torch.cuda.is_available(), reason='no GPU on this machine')
def test_on_a_gpu():
    dist, q, g, labels = case(3, 200, 3000)
    x = torch.tensor(dist, device='cuda')
    assert on_device(x) and not on_device(x.cpu())
    np.testing.assert_array_equal(rank_stats(x, *labels).ap, rank_stats(dist, *labels).ap)
    feats = torch.tensor(q, device='cuda'), torch.tensor(g, device='cuda')
    assert rank_stats(feats, *labels).mAP == pytest.approx(rank_stats((q, g), *labels).mAP, abs=1e-6)
