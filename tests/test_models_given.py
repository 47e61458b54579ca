"What people give to models by mistake: each is named, and nothing is guessed"
import numpy as np
import pandas as pd
import pytest
import torch

from reid_nb.models.blocks import MixStyle
from reid_nb.models.embedder import Embedder
from reid_nb.models.families import NETWORKS, best_match, shapes_of
from reid_nb.models.osnet import osnet_x0_25
from reid_nb.models.vit import CameraEmbedding, TransReID, jigsaw_groups

TINY = dict(depth=1, size=(64, 32))


@pytest.mark.parametrize('size', [64, '64x32', (64,), (64., 32.), (3, 64, 32), (0, 32), None])
def test_sizes(size):
    with pytest.raises(ValueError, match='height, width'): Embedder('vit_tiny_patch16_224', 5, depth=1, size=size)


@pytest.mark.parametrize('size', [[64, 32], np.array([64, 32]), torch.Size([64, 32])])
def test_a_size_is_two_plain_numbers(size):
    want = Embedder('vit_tiny_patch16_224', np.int64(5), depth=1, size=size).input_size
    assert want == (64, 32) and all(type(o) is int for o in want)


@pytest.mark.parametrize('n', [0, -1, 1.5, 10., '3', True, None])
def test_identities(n):
    with pytest.raises(ValueError, match='number of training identities, not'): Embedder('resnet10t', n, size=(64, 32))


@pytest.mark.parametrize('name,words', [('RESNET10T', 'resnet10t'), ('resnet10t.a1_in1k', 'resnet10t.c3_in1k'), ('timm/resnet10tt', 'resnet10t'), (None, 'no model'), ('', 'no model')])
def test_names(name, words):
    with pytest.raises(ValueError, match=words): Embedder(name, 5, size=(64, 32))


def test_timms_name_with_and_without_timm():
    assert Embedder('timm/vit_tiny_patch16_224', 5, **TINY).input_size == (64, 32)


@pytest.mark.parametrize('model', [lambda: osnet_x0_25(5), lambda: Embedder('vit_tiny_patch16_224', 5, **TINY)])
def test_one_picture_is_no_batch(model):
    with pytest.raises(ValueError, match=r'\(n,3,h,w\), not \(3, 64, 32\)'): model()(torch.rand(3, 64, 32))


@pytest.mark.parametrize('pool', ['avg', 'max', 'maxavg', 'gem', 'attn'])
@pytest.mark.parametrize('neck', ['bnneck', 'none'])
def test_models_in_half_precision_stay_in_it(pool, neck):
    torch.manual_seed(0)
    m, x = Embedder('resnet10t', 5, pool=pool, neck=neck, size=(64, 32)).eval(), torch.rand(4, 3, 64, 32)
    with torch.no_grad():
        want, got = m(x), m.bfloat16()(x.bfloat16())
        [(feat, logits)] = m.train()(x.bfloat16())
    assert got.dtype == feat.dtype == logits.dtype == torch.bfloat16
    assert torch.cosine_similarity(want, got.float()).min() > .99


@pytest.mark.parametrize('make', [lambda o: o.numpy().astype('uint8'), lambda o: o.to(torch.int8), lambda o: o.tolist(), lambda o: pd.array(o.numpy(), dtype='Int64')])
def test_cameras_of_any_kind(make):
    torch.manual_seed(0)
    cams, tokens, cam = CameraEmbedding(3, 8), torch.zeros(4, 2, 8), torch.tensor([0, 2, 1, 0])
    assert torch.equal(cams(tokens, make(cam)), tokens + 3 * cams.vectors[cam][:, None])


@pytest.mark.parametrize('cam', [1, [1], [[0], [1], [2], [0]], [0., 1., 2., 0.], pd.array([0, 1, None, 0], dtype='Int64')])
def test_cameras_that_are_not_one_for_each_picture(cam):
    with pytest.raises(ValueError, match='`cam`'): CameraEmbedding(3, 8)(torch.zeros(4, 2, 8), cam)
    mix = MixStyle(p=1.)
    mix.cam = cam
    with pytest.raises(ValueError, match='`cam`'): mix(torch.rand(4, 2, 3, 3))


@pytest.mark.parametrize('args', [(8, 0), (8, -1), (0, 1), (8, 2, 4, 0)])
def test_no_groups(args):
    with pytest.raises(ValueError, match='patches cannot be dealt'): jigsaw_groups(*args)


@pytest.mark.parametrize('kw,words', [(dict(jigsaw=-1), 'are 0'), (dict(n_cams=-1), 'are 0'), (dict(jigsaw=9), '8 patches cannot be shared out among 9 groups'), (dict(stride=0), '`stride`'), (dict(stride=(8, 8, 8)), '`stride`')])
def test_options_of_transreid(kw, words):
    with pytest.raises(ValueError, match=words): TransReID('vit_tiny_patch16_224', 5, **TINY, **kw)


def test_a_file_is_recognised_without_making_every_network():
    name = next(iter(NETWORKS))
    with torch.device('meta'): state = NETWORKS[name](7).state_dict()
    shapes_of.cache_clear()
    assert best_match(state) == name and shapes_of.cache_info().currsize == 1


@pytest.mark.parametrize('name', ['osnet_x0_25', 'resnet18', 'resnet50_ibn_b', 'squeezenet1_1', 'hacnn'])
def test_shapes_are_those_of_the_network(name):
    assert shapes_of(name) == {k: tuple(o.shape) for k, o in NETWORKS[name](1).state_dict().items()}
