"""Networks for clips against loops over them, training on clips and on frames, whole tracklets, and the recipes' settings"""
import numpy as np
import pandas as pd
import pytest
import torch
from fastai.callback.core import Callback
from torch import nn

from reid_nb.core import ReidError, seed_all
from reid_nb.data.clips import TrackletDataLoaders, frame_rows, mean_by_walk
from reid_nb.data.synth import synth_people
from reid_nb.losses import IdLoss
from reid_nb.models.embedder import Embedder
from reid_nb.models.groups import layer_groups, open_layers
from reid_nb.models.layers import ReidModel
from reid_nb.models.zoo import create_model
from reid_nb.train.callbacks import CenterLossCallback, TripletCallback
from reid_nb.train.embed import embed_items
from reid_nb.train.finetune import FixBaseCallback
from reid_nb.train.learner import reid_learner
from reid_nb.train.recipes import RECIPES, recipe_settings
from reid_nb.train.video import (ClipModel, FrameDataLoaders, FramesCallback, TimeAttention, TimeConv, TimeMax, TimeMean, embed_tracklets, make_time_pool,
                                 video_softmax, video_triplet, video_xent_2018, video_xent_htri_2018)

POOLS = ('avg', 'max', 'attention', 'attention_3', 'conv')


class Tiny(ReidModel):
    def __init__(self, n_classes=4):
        super().__init__()
        self.n_classes, self.n_feats = n_classes, 8
        self.conv, self.bn, self.classifier = nn.Conv2d(3, 8, 5, 4), nn.BatchNorm2d(8), nn.Linear(8, n_classes)

    def feature_maps(self, x): return self.bn(self.conv(x)).relu()


def tiny_timm(**kw): return Embedder(nn.Sequential(nn.Conv2d(3, 8, 5, 4), nn.ReLU()), 4, size=(32, 16), **kw)


@pytest.fixture(scope='module')
def walks(tmp_path_factory):
    return synth_people(tmp_path_factory.mktemp('walks'), n_ids=8, n_cams=2, size=(32, 16), tracklets=True, n_frames=6, distractors=0, junk=0)


def awake(pool): # with random weights where they begin at 0
    for p in pool.parameters(): nn.init.normal_(p, std=.5)
    return pool


@pytest.mark.parametrize('name', POOLS)
def test_masked_frames_are_as_if_not_there(name):
    seed_all(0)
    pool, x = awake(make_time_pool(name, 6)), torch.randn(4, 5, 6)
    mask = torch.arange(5)[None] < torch.tensor([[5], [3], [1], [2]])
    alone = torch.cat([pool(o[None, :m.sum()]) for o, m in zip(x, mask)])
    torch.testing.assert_close(pool(x, mask), alone)
    assert not torch.allclose(pool(x)[1:], alone[1:], atol=1e-3)


def test_mean_max_and_attention_do_not_know_the_order():
    seed_all(0)
    x, order = torch.randn(3, 7, 6), torch.randperm(7)
    for pool in (TimeMean(), TimeMax(), awake(TimeAttention(6))): torch.testing.assert_close(pool(x[:, order]), pool(x))
    for pool in (awake(TimeAttention(6, kernel=3)), awake(TimeConv(6))): assert not torch.allclose(pool(x[:, order]), pool(x), atol=1e-3)


@pytest.mark.parametrize('name', POOLS)
@pytest.mark.parametrize('make', [Tiny, tiny_timm, lambda: tiny_timm(after_neck=False)])
def test_a_clip_of_one_frame_is_a_picture(name, make):
    seed_all(0)
    image = make()
    clip, x = ClipModel(image, name), torch.randn(4, 1, 3, 32, 16)
    for a, b in zip(clip.train()(x)[0], image.train()(x[:, 0])[0], strict=True): torch.testing.assert_close(a, b)
    torch.testing.assert_close(clip.eval()(x), image.eval()(x[:, 0])) # batch norm has learned the same, too
    torch.testing.assert_close(clip(x[:, 0]), image(x[:, 0]))
    back = clip.image_model()
    torch.testing.assert_close(back(x[:, 0]), image(x[:, 0]))
    assert back.state_dict().keys() == image.state_dict().keys()


@pytest.mark.parametrize('name', POOLS)
def test_gradients_reach_every_weight(name):
    seed_all(0)
    clip = ClipModel(Tiny(), name)
    awake(clip.pool)
    IdLoss()(clip(torch.randn(4, 3, 3, 32, 16)), torch.tensor([0, 1, 2, 3])).backward()
    still = {k for k, p in clip.named_parameters() if p.grad is None or not p.grad.abs().max() > 1e-9}
    assert still <= {'pool.score.bias', 'body.conv.bias'} # a softmax and a batch norm take no notice of them


def test_poolings_with_weights_leave_the_mean_at_the_first_step():
    seed_all(0)
    x, y = torch.randn(4, 5, 6), torch.randn(4, 6)
    for name in POOLS[2:]:
        pool = make_time_pool(name, 6)
        torch.testing.assert_close(pool(x), x.mean(1))
        opt = torch.optim.SGD(pool.parameters(), lr=.05)
        for _ in range(20): opt.zero_grad(); (pool(x) - y).square().mean().backward(); opt.step()
        assert all(p.grad.abs().max() > 0 for k, p in pool.named_parameters() if k != 'score.bias')
        assert (pool(x) - y).square().mean() < (x.mean(1) - y).square().mean()


def test_the_copy_is_a_copy():
    image = Tiny()
    clip = ClipModel(image)
    nn.init.zeros_(clip.classifier.weight)
    assert image.classifier.weight.abs().sum() > 0


def test_networks_with_several_heads():
    seed_all(0)
    pcb = ClipModel(create_model('pcb_p4', 5)).train()
    pcb.body.dropout.p = 0.
    heads = pcb(torch.randn(2, 2, 3, 64, 32))
    assert len(heads) == 4
    for classifier, (feat, logits) in zip(pcb.body.classifier, heads): torch.testing.assert_close(classifier(feat), logits, rtol=1e-4, atol=1e-4)
    assert pcb.eval()(torch.randn(1, 2, 3, 64, 32)).shape == (1, 4 * 2048)
    with pytest.raises(ValueError, match='several heads'): ClipModel(pcb.body, 'conv')
    with pytest.raises(ReidError, match='mean only'): ClipModel(pcb.body, 'max').train()(torch.randn(1, 2, 3, 64, 32))


def test_groups_and_two_steps_find_the_layers():
    clip = ClipModel(create_model('osnet_x0_25', 4), 'attention')
    assert clip.new_layers == ('pool', 'classifier')
    early, late, new = layer_groups(clip)
    assert len(early) and len(late) and len(new) == 6
    assert sum(map(len, (early, late, new))) == len(list(clip.parameters()))
    assert open_layers(clip, 'classifier') == ['body', 'pool']
    assert [k for k, p in clip.named_parameters() if p.requires_grad] == ['classifier.weight', 'classifier.bias']


def test_it_learns_with_all_losses_and_masks(walks):
    short = walks.assign(frames=[o[:n] for o, n in zip(walks.frames, [2, 6, 3] * 99)])
    dls = TrackletDataLoaders.from_items(short, size=(32, 16), t=4, p=4, k=2, mask=True)
    learn = reid_learner(dls, ClipModel(tiny_timm(), 'attention'), cbs=[TripletCallback(), CenterLossCallback(), FixBaseCallback(1)])
    before = {k: v.clone() for k, v in learn.model.named_parameters()}
    with learn.no_bar(), learn.no_logging(): learn.fit(3, 1e-2)
    assert np.isfinite(learn.recorder.values[-1]).all()
    assert all((v != before[k]).any() for k, v in learn.model.named_parameters() if k != 'pool.score.bias')
    assert learn.evaluate(progress=False).metrics['mAP'] == pytest.approx(learn.recorder.values[-1][-2], abs=1e-6) # with masks, as in training
    x, mask = next(iter(dls.valid))
    assert not mask.all() and np.allclose(learn.embed(progress=False)[:len(x)], learn.model.eval()(x, mask).detach(), atol=1e-5)


class See(Callback):
    def before_fit(self): self.seen = []
    def after_pred(self):
        if self.training: self.seen.append((self.x.detach().clone(), self.y.tolist(), self.pred[0][1].shape[0]))


def test_frames_of_clips_get_the_label_of_their_clip(walks):
    short = walks.assign(frames=[o[:n] for o, n in zip(walks.frames, [2, 6, 3] * 99)])
    for mask in (False, True):
        dls = TrackletDataLoaders.from_items(short, size=(32, 16), t=4, p=4, k=2, mask=mask, tfms=[])
        learn = reid_learner(dls, ClipModel(Tiny()), cbs=[FramesCallback(), See(), TripletCallback()])
        with learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-3)
        x, y, n = learn.see.seen[0]
        assert len(x) == len(y) == n
        assert (n == 32) != mask and len(set(y)) == 4
        alike = [len(set(np.asarray(y)[(x == o).flatten(1).all(1).numpy()])) for o in x] # equal pixels, equal labels
        assert set(alike) == {1}
        assert np.isfinite(learn.recorder.values[-1][-1])


def test_frames_refuse_a_pooling_that_would_not_learn(walks):
    dls = TrackletDataLoaders.from_items(walks, size=(32, 16), t=2, p=4, k=2)
    learn = reid_learner(dls, ClipModel(Tiny(), 'conv'), cbs=FramesCallback())
    with pytest.raises(ReidError, match='never reaches'), learn.no_bar(), learn.no_logging(): learn.fit(1)


def test_masked_frames_are_refused_where_processes_would_have_unlike_numbers_of_them(walks, monkeypatch):
    learn = reid_learner(TrackletDataLoaders.from_items(walks, size=(32, 16), t=2, p=4, k=2, mask=True), ClipModel(Tiny()), cbs=FramesCallback())
    monkeypatch.setattr('reid_nb.train.video.num_distrib', lambda: 2)
    with pytest.raises(ReidError, match='mask=False'), learn.no_bar(), learn.no_logging(): learn.fit(1)


def test_tracklets_taken_apart(walks):
    dls = FrameDataLoaders.from_items(walks, size=(32, 16), t=3)
    paths = [f for o in walks[walks.split == 'train'].frames for f in o]
    assert sorted(dls.items.path) == sorted(paths) and dls.train.bs == 32
    assert dls.one_batch()[0].shape == (32, 3, 32, 16) and dls.valid.one_batch()[0].shape == (5, 3, 3, 32, 16)
    assert dls.show_batch is not None and len(dls.train) == len(paths) // 32
    learn = reid_learner(dls, ClipModel(Tiny(dls.c), 'max'))
    with learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-3)
    assert learn.evaluate(progress=False).stats.mAP == pytest.approx(learn.reid_eval.stats.mAP)
    assert len(learn.embed(walks[:3], progress=False)) == 3


def test_whole_tracklets(walks):
    seed_all(0)
    image = Tiny().eval()
    uneven = walks.assign(frames=[o[:n] for o, n in zip(walks.frames, [1, 6, 3] * 99)])
    frames = frame_rows(uneven)
    want = mean_by_walk(embed_items(image, frames, (32, 16), progress=False), frames.walk)
    for t in (None, 1): np.testing.assert_allclose(embed_tracklets(ClipModel(image), uneven, (32, 16), t=t), want, atol=1e-5)
    two = embed_tracklets(ClipModel(image, 'max'), uneven, (32, 16), t=2)
    feats = embed_items(image, frames, (32, 16), progress=False)
    assert frames.walk.tolist()[:1] == [0]
    np.testing.assert_allclose(two[0], feats[0], atol=1e-5)
    rows = feats[frames.walk == 1]
    np.testing.assert_allclose(two[1], np.mean([rows[i:i + 2].max(0) for i in (0, 2, 4)], 0), atol=1e-5)
    rows = feats[frames.walk == 2] # 3 frames: windows 0-1 and 1-2
    np.testing.assert_allclose(two[2], np.mean([rows[:2].max(0), rows[1:].max(0)], 0), atol=1e-5)


def test_recipes_have_the_settings_of_their_scripts():
    s = {k: recipe_settings(k) for k in ('video_softmax', 'video_triplet', 'video_xent_2018', 'video_xent_htri_2018', 'video_attention')}
    assert set(s) <= set(RECIPES)
    table = pd.DataFrame(s).T
    assert table.epochs.tolist() == [60, 60, 15, 500, 800]
    assert table.step.tolist() == [20, 20, 5, 200, 200]
    assert table.seq_len.tolist() == [15, 15, 15, 15, 4]
    assert table.bs.tolist() == [8, 8, 32, 32, 32] and table.test_bs.tolist()[:4] == [3, 3, 5, 5]
    assert table.triplet.tolist() == [0, .7, 0, 1, 1] and table.margin.tolist() == [.3] * 5
    assert (table.lr == 3e-4).all() and (table.wd == 5e-4).all() and (table.opt == 'adam').all() and (table.gamma == .1).all()
    assert table.translate.tolist() == [0, 0, .5, .5, .5] and (table.flip == .5).all() and (table.seed == 1).all()


SMALL = dict(size=[32, 16], weights=None, seq_len=3, bs=8)


def test_recipes_run(walks):
    for make, changes in ((video_softmax, {}), (video_triplet, {}), (video_xent_2018, {}), (video_xent_htri_2018, {}), (RECIPES['video_attention'], dict(seq_len=2))):
        learn = make(walks, **{**SMALL, 'model': Tiny(4), **changes})
        with learn.no_bar(), learn.no_logging(): learn.fit_recipe(1)
        assert learn.reid_eval.stats.mAP > 0 and learn.settings['model'] == 'Tiny'
        assert learn.settings['bs'] == 8 and len(learn.show_settings(changed=True))


def test_recipes_say_what_does_not_fit(walks):
    dls = TrackletDataLoaders.from_items(walks, size=(32, 16), t=2, p=4, k=2)
    with pytest.raises(ValueError, match="train_on='clips'"): video_softmax(walks, time_pool='conv')
    with pytest.raises(ValueError, match='seq_len: the loaders exist already'): video_softmax(dls, seq_len=3)
    with pytest.raises(ValueError, match='`train_on` must be one of'): video_softmax(walks, train_on='film')
    with pytest.raises(ReidError, match='no batch of bs=100'): video_softmax(walks, **{**SMALL, 'bs': 100})
    assert video_softmax(dls, model=Tiny(4)).settings['seq_len'] is None
