"Distances against float64, one pair at a time, and bad input"
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from reid_nb.core import ReidError
from reid_nb.retrieve.distance import METRICS, as_feats, block_dist, dist_blocks, make_ready, pairwise


def slow(q, g, metric): # (n_q, n_g) float64, from the definitions
    q, g = np.asarray(q, np.float64), np.asarray(g, np.float64)
    if metric == 'cosine':
        dot, len_q, len_g = q @ g.T, np.linalg.norm(q, axis=1), np.linalg.norm(g, axis=1)
        return 1 - dot / np.where(np.outer(len_q, len_g) == 0, 1, np.outer(len_q, len_g))
    sq = ((q[:, None] - g[None])**2).sum(-1)
    return sq if metric == 'sqeuclidean' else np.sqrt(sq)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 9), st.integers(1, 40), st.integers(1, 70), st.sampled_from(METRICS), st.sampled_from([(1, 1), (2, 64), (5, 3), (512, 8192)]), st.integers(0, 2**32 - 1))
def test_against_float64(n_q, n_g, d, metric, shape, seed):
    rng = np.random.default_rng(seed)
    q, g = rng.normal(size=(n_q, d)).astype(np.float32), rng.normal(size=(n_g, d)).astype(np.float32)
    g[rng.integers(n_g)] = 0             # a row of zeros
    g[rng.integers(n_g)] = q[rng.integers(n_q)] # and one that is a query
    got = pairwise(q, g, metric, shape)
    assert got.dtype == np.float32 and got.shape == (n_q, n_g) and (got >= 0).all()
    err = 1e-6 * (1 if metric == 'cosine' else 1 + (q**2).sum(1).max() + (g**2).sum(1).max())
    if metric == 'euclidean': got, err = got.astype(float)**2, err * 2 # near 0 a root is coarse: compare squares
    np.testing.assert_allclose(got, slow(q, g, 'sqeuclidean' if metric == 'euclidean' else metric), atol=err, rtol=1e-5)


def test_whole_numbers_are_exact_in_any_block():
    rng = np.random.default_rng(0)
    q, g = rng.integers(-8, 9, (37, 24)), rng.integers(-8, 9, (53, 24))
    for shape in ((1, 1), (3, 50), (16, 7), (37, 53), (512, 8192)):
        np.testing.assert_array_equal(pairwise(q, g, 'sqeuclidean', shape), slow(q, g, 'sqeuclidean'))


def test_blocks_cover_all_queries_once_and_reuse_memory():
    blocks = [(i, len(d), d.ctypes.data) for i, d in dist_blocks(np.ones((10, 3)), np.ones((4, 3)), block=4)]
    assert [o[:2] for o in blocks] == [(0, 4), (4, 4), (8, 2)] and len({o[2] for o in blocks}) == 1


def test_default_block_stays_small():
    "A long gallery makes short blocks"
    sizes = [len(d) for _, d in dist_blocks(np.ones((600, 1)), np.ones((200_000, 1)))]
    assert max(sizes) * 200_000 * 4 <= 2**25 and sum(sizes) == 600


@pytest.mark.parametrize('make', [lambda x: x.astype(np.float16), lambda x: x.astype(np.float64), lambda x: x.astype(int), lambda x: x.tolist(), np.asfortranarray,
                                  lambda x: np.repeat(x, 2, axis=1)[:, ::2], lambda x: np.frombuffer(x.tobytes(), np.float32).reshape(x.shape)])
def test_accepts(make):
    x = np.float32([[1, 2, 3], [4, 5, 6]])
    y = as_feats(make(x))
    assert y.dtype == np.float32 and y.flags.c_contiguous
    np.testing.assert_array_equal(y, x)


def test_accepts_torch():
    torch = pytest.importorskip('torch')
    x = torch.tensor([[1., 2.], [3., 4.]], requires_grad=True)
    for o in (x, x.half(), x.bfloat16(), x.double()): np.testing.assert_array_equal(as_feats(o), [[1, 2], [3, 4]])


def test_a_long_and_a_short_row_have_a_direction():
    "Squares leave the range of float32 above 1.8e19 and below 1e-23"
    x = np.float32([[3e25, 4e25], [3e-25, 4e-25], [3, 4], [0, 0]])
    np.testing.assert_allclose(pairwise(x, [[3, 4], [-4, 3], [0, 0]]), [[0, 1, 1]] * 3 + [[1, 1, 1]], atol=1e-6)


def test_large_finite_values_are_not_called_infinite():
    as_feats(np.full((2, 4), 3e38, np.float32)) # their sum overflows, they do not
    with pytest.raises(ReidError, match='too large for .sqeuclidean.'): pairwise(np.full((2, 4), 3e38), np.ones((1, 4)), 'sqeuclidean')


@pytest.mark.parametrize('x, says', [
    (np.ones(3), r'found \(3,\)'), (np.ones((2, 2, 2)), r'found \(2, 2, 2\)'), (np.ones((2, 0)), r'found \(2, 0\)'), (np.float32(1), r'found \('),
    (np.float32([[1, np.nan], [1, 1], [np.inf, -np.inf]]), r'2 of 3 rows of query features hold 1 NaN and 2 infinite values, first rows \[0, 2\]')])
def test_bad_features(x, says):
    with pytest.raises(ReidError, match=says): pairwise(x, np.ones((2, 2)))


def test_bad_calls():
    with pytest.raises(ReidError, match='Query features have 3 dimensions, gallery features 4'): pairwise(np.ones((2, 3)), np.ones((2, 4)))
    with pytest.raises(ValueError, match='must be one of'): pairwise(np.ones((2, 3)), np.ones((2, 3)), 'l2')


def test_the_callers_arrays_stay_as_they_are():
    q = np.random.default_rng(0).normal(size=(4, 8)).astype(np.float32); old = q.copy()
    for metric in METRICS: block_dist(make_ready(q, metric), make_ready(q, metric))
    np.testing.assert_array_equal(q, old)
