"Centers under accumulated batches, cameras that reach the model, and several targets ranked at epoch ends"
import numpy as np
import pandas as pd
import pytest
import torch
from fastai.learner import Learner
from reid_nb.core import ReidError
from reid_nb.data.block import ReidDataLoaders
from reid_nb.data.synth import synth_people
from reid_nb.losses import CenterLoss, IdLoss
from reid_nb.train.averages import AccumulateCallback, EmaCallback
from reid_nb.train.callbacks import CameraCallback, CenterLossCallback, CheckpointCallback, ReidColumns, ReidEvalCallback, SeedCallback, cams_of
from reid_nb.train.embed import embed_dl
from reid_nb.train.learner import reid_learner
from reid_nb.train.runs import BoardCallback, RunFolder, runs_table
from torch import nn


class Tiny(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.conv, self.classifier = nn.Conv2d(3, 8, 3, 4), nn.Linear(8, c)

    def forward(self, x):
        feat = self.conv(x).relu().mean((2, 3))
        return [(feat, self.classifier(feat))] if self.training else feat


class TinyCam(Tiny):
    "Its feature begins with the camera that it was told"
    def forward(self, x, cam):
        out = super().forward(x)
        return [(out[0][0] + 0 * cam[:, None], out[0][1])] if self.training else torch.cat([cam[:, None].float(), out], 1)


@pytest.fixture(scope='module')
def items(): return synth_people(n_ids=16, n_cams=3, per_cam=2, distractors=4, junk=0)


def loaders(items, **kw): return ReidDataLoaders.from_items(items, size=(32, 16), p=4, k=2, bs=7, **kw)


def learner(dls, *cbs, net=Tiny, **kw):
    torch.manual_seed(0)
    return Learner(dls, net(dls.c), loss_func=IdLoss(), cbs=[SeedCallback(0), *cbs], **kw)


def fit(learn, *args, **kw):
    with learn.no_bar(), learn.no_logging(): learn.fit(*args, **kw)
    return learn


def test_centers_move_by_the_mean_gradient_of_the_batches_of_a_step(items):
    cb, feats, labels = CenterLossCallback(lr=.5), [], []
    learn = learner(loaders(items), cb, AccumulateCallback(100)) # one step
    cb.losses = [CenterLoss(learn.dls.c, 8)]
    start = cb.losses[0].centers.detach().clone()
    learn.loss_func = lambda heads, y: (feats.append(heads[0][0].detach()), labels.append(y), IdLoss()(heads, y))[-1]
    fit(learn, 1, 0.)
    assert len(feats) == len(learn.dls.train) > 1
    x, y, centers = torch.cat(feats), torch.cat(labels).as_subclass(torch.Tensor), start.clone().requires_grad_()
    ((x - centers[y]) ** 2).sum(1).mean().backward()
    assert torch.allclose(cb.losses[0].centers, start - .5 * centers.grad, atol=1e-5)


def test_lr_find_leaves_no_gradients_for_the_centers(items, tmp_path): # it ends between two steps, with weights that are anywhere
    def centers(find):
        learn = learner(loaders(items), cb := CenterLossCallback(), AccumulateCallback(100), path=tmp_path)
        with learn.no_bar(), learn.no_logging():
            if find: learn.lr_find(num_it=7, show_plot=False, suggest_funcs=None)
        fit(learn, 1, 1e-3)
        return cb.losses[0].centers
    assert torch.equal(centers(False), centers(True))


@pytest.mark.parametrize('workers', [0, 1])
def test_each_picture_comes_with_its_own_camera(items, workers):
    dls = loaders(items, num_workers=workers)
    seen = []
    class Look(CameraCallback):
        order = 91
        def before_batch(self):
            super().before_batch()
            if self.training: seen.append((self.dl.rows.copy(), self.xb[1].clone(), self.y.clone()))
    learn = fit(learner(dls, Look(), ReidEvalCallback(), net=TinyCam), 2, 1e-3)
    first = dls.items.cam.min()
    assert len(seen) == 2 * len(dls.train)
    for rows, cam, y in seen:
        assert cam.tolist() == (dls.items.cam.iloc[rows] - first).tolist()
        assert [learn.dls.vocab[int(o)][1] for o in y] == dls.items.pid.iloc[rows].tolist()


def test_test_pictures_come_with_theirs(items):
    dls = loaders(items)
    learn = fit(learner(dls, CameraCallback(), ReidEvalCallback(), net=TinyCam), 1, 1e-3)
    want = (dls.test_items.cam - dls.items.cam.min()).tolist()
    assert learn.embed(progress=False)[:, 0].tolist() == want
    assert learn.embed(dls.test_items[::-1], progress=False)[:, 0].tolist() == want[::-1]
    assert embed_dl(learn.model, dls.valid, flip=True, progress=False, cams=np.array(want))[:, 0].tolist() == want
    assert learn.evaluate(progress=False).metrics['mAP'] == pytest.approx(learn.recorder.values[-1][-2], abs=1e-6)


def test_weights_that_were_trained_elsewhere_are_told_the_cameras(items):
    learn = learner(loaders(items), CameraCallback(), net=TinyCam)
    assert learn.embed(progress=False)[:, 0].tolist() == (learn.dls.test_items.cam - learn.dls.items.cam.min()).tolist()


def test_unknown_cameras_are_minus_one_and_models_without_cameras_an_error(items):
    learn = fit(learner(loaders(items), CameraCallback(), net=TinyCam), 1, 1e-3)
    assert set(cams_of(learn, items.assign(cam=pd.NA))) == {-1} and set(cams_of(learn, items.assign(dset='other'))) == {-1}
    with pytest.raises(ReidError, match='takes no cameras'): fit(learner(loaders(items), CameraCallback()), 1)


def test_transreid_learns_with_cameras(items):
    from reid_nb.models.vit import TransReID
    dls = ReidDataLoaders.from_items(items, size=(32, 16), p=4, k=2)
    net = TransReID('vit_tiny_patch16_224', dls.c, size=(32, 16), n_cams=3, depth=2)
    learn = reid_learner(dls, net, cbs=CameraCallback())
    before = net.cams.vectors.detach().clone()
    fit(learn, 1, 1e-3)
    assert (net.cams.vectors != before).any(1).all()


def test_further_targets_stand_in_table_log_and_board(items, tmp_path):
    acc = pytest.importorskip('tensorboard.backend.event_processing.event_accumulator')
    other = synth_people(n_ids=8, n_cams=2, per_cam=2, seed=5, distractors=0, junk=0)
    dls = loaders(items)
    learn = fit(learner(dls, ReidEvalCallback(every=2, also=dict(harbour=other))), 3, 1e-2, cbs=[RunFolder(tmp_path), BoardCallback(tmp_path)])
    log = pd.read_csv(tmp_path/'log.csv')
    assert log.harbour_mAP.isna().tolist() == [True, False, False]
    assert log.harbour_mAP.iloc[-1] == pytest.approx(learn.evaluate(other, progress=False).metrics['mAP'], abs=1e-5)
    assert {'mAP', 'harbour_rank1', 'harbour_mAP'} <= set(runs_table(tmp_path))
    tags = acc.EventAccumulator(str(tmp_path)).Reload().Tags()['scalars']
    assert {'Test/harbour/mAP', 'Test/harbour/rank1', f'Test/{dls.test_items.dset.iloc[0]}/mAP'} <= set(tags)


def test_a_finished_run_that_is_started_again_ends_with_its_average(items, tmp_path):
    def run():
        learn = fit(learner(loaders(items), EmaCallback(), ReidEvalCallback()), 2, 1e-2, cbs=CheckpointCallback(tmp_path/'last.pth'))
        return learn.model.state_dict()
    a, b = run(), run()
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_a_column_of_training_stands_over_its_own_values_whatever_its_order(items):
    class Late(ReidColumns):
        order, columns = 70, ('late',)
        def after_train(self): self.log([.5])
    learn = fit(learner(loaders(items), ReidEvalCallback(), Late()), 1, 1e-3)
    row = dict(zip(learn.recorder.metric_names[1:], learn.recorder.values[-1]))
    assert row['late'] == .5 and row['mAP'] == pytest.approx(learn.evaluate(progress=False).metrics['mAP'], abs=1e-6)
