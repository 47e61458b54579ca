"A run that is killed and started again ends as one that was never stopped; a batch without triplets and bad tables end in errors"
import json
import signal
import subprocess
import sys
import time

import pytest
import torch
from reid_nb.core import ReidError
from reid_nb.data.block import ReidDataLoaders
from reid_nb.data.synth import synth_people
from reid_nb.train.callbacks import CenterLossCallback, CheckpointCallback, TripletCallback
from reid_nb.train.learner import reid_learner, save_run

RUN = '''
import json, sys
from pathlib import Path
from reid_nb.data.block import ReidDataLoaders
from reid_nb.data.synth import synth_people
from reid_nb.train.callbacks import CenterLossCallback, CheckpointCallback, TripletCallback
from reid_nb.train.learner import reid_learner
folder = Path(sys.argv[1])
dls = ReidDataLoaders.from_items(synth_people(n_ids=16, n_cams=2, per_cam=3, distractors=4, junk=0), size=(64, 32), p=4, k=2, path=folder)
learn = reid_learner(dls, 'osnet_x0_25', cbs=[TripletCallback(), CenterLossCallback()], seed=3)
class Log:
    def __call__(self, row): print('epoch done', flush=True)
learn.logger = Log()
with learn.no_bar(): learn.fit_one_cycle(5, 1e-3, cbs=CheckpointCallback(folder/'last.pth'))
weights = float(sum(p.double().abs().sum() for p in learn.model.state_dict().values()))
centers = float(learn.center_loss.losses[0].centers.double().abs().sum())
(folder/'end.json').write_text(json.dumps([[list(map(float, o)) for o in learn.recorder.values], list(map(float, learn.recorder.losses)), weights, centers]))
'''


def start(folder):
    return subprocess.Popen([sys.executable, '-W', 'ignore', '-c', RUN, str(folder)], stdout=subprocess.PIPE, text=True)


def finish(p):
    with p: p.communicate()
    return p.returncode


@pytest.fixture(scope='module')
def dls(tmp_path_factory):
    items = synth_people(n_ids=16, n_cams=2, per_cam=3, distractors=4, junk=0)
    return ReidDataLoaders.from_items(items, size=(64, 32), p=4, k=2, path=tmp_path_factory.mktemp('dls'))


def test_a_killed_run_ends_as_an_unbroken_one(tmp_path):
    whole, broken = tmp_path/'whole', tmp_path/'broken'
    whole.mkdir(), broken.mkdir()
    assert finish(start(whole)) == 0
    for lines, pause in ((1, .05), (2, .3)): # kill -9 shortly after the first and (having gone on) the second epoch that it shows
        p = start(broken)
        for _ in range(lines): p.stdout.readline()
        time.sleep(pause)
        p.send_signal(signal.SIGKILL)
        finish(p)
        assert not (broken/'end.json').exists(), 'it was over before it could be killed'
    assert (broken/'last.pth').exists()
    assert finish(start(broken)) == 0
    assert json.loads((broken/'end.json').read_text()) == json.loads((whole/'end.json').read_text())
    assert sorted(o.name for o in broken.iterdir() if not o.name.startswith('.')) == ['end.json', 'last.pth']


def test_a_run_that_is_over_shows_its_table_again(dls, tmp_path):
    rows = []
    for _ in range(2):
        learn = reid_learner(dls, cbs=TripletCallback())
        with learn.no_bar(), learn.no_logging(): learn.fit(2, 1e-3, cbs=CheckpointCallback(tmp_path/'last.pth'))
        rows.append(learn.recorder.values)
    assert rows[0] == rows[1]
    learn = reid_learner(dls, cbs=TripletCallback())
    with learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-3, cbs=CheckpointCallback(tmp_path/'last.pth', resume=False))
    assert len(learn.recorder.values) == 1


def test_center_loss_is_carried_by_save_and_load(dls, tmp_path):
    learn = reid_learner(dls, cbs=CenterLossCallback(), path=tmp_path)
    with learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-3)
    learn.save('a')
    other = reid_learner(dls, cbs=CenterLossCallback(), path=tmp_path).load('a')
    with other.no_bar(), other.no_logging(): other.fit(0)
    assert torch.equal(other.center_loss.losses[0].centers, learn.center_loss.losses[0].centers)


def test_a_timm_body_trains(dls):
    learn = reid_learner(dls, 'mobilenetv3_small_050', cbs=TripletCallback())
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(1)
    assert learn.evaluate(progress=False).metrics['n_valid'] == 32//2


def test_one_camera_is_an_error_that_proposes(dls):
    items = synth_people(n_ids=16, n_cams=2, per_cam=3, distractors=4, junk=0).assign(cam=0)
    learn = reid_learner(ReidDataLoaders.from_items(items, size=(64, 32), p=4, k=2))
    with pytest.raises(ReidError, match="protocol='all'"): learn.evaluate(progress=False)
    assert learn.evaluate(protocol='all', progress=False).metrics['n_valid'] > 0


def test_no_cameras_fall_back_to_all():
    items = synth_people(n_ids=16, n_cams=2, per_cam=3, distractors=4, junk=0).drop(columns='cam')
    learn = reid_learner(ReidDataLoaders.from_items(items, size=(64, 32), p=4, k=2))
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
    assert learn.evaluate(progress=False).protocol == 'all'


@pytest.mark.parametrize('p,k,words', [(1, 4, 'show 1 identity'), (4, 1, 'one picture each')])
def test_a_batch_without_triplets_is_an_error(p, k, words):
    items = synth_people(n_ids=16, n_cams=2, per_cam=3, distractors=4, junk=0)
    learn = reid_learner(ReidDataLoaders.from_items(items, size=(64, 32), p=p, k=k), cbs=TripletCallback())
    with pytest.raises(ReidError, match=words), learn.no_bar(), learn.no_logging(): learn.fit(1)


def test_a_model_of_ones_own_can_be_saved_by_fastai_only(dls, tmp_path):
    from reid_nb.models.osnet import osnet_x0_25
    with pytest.raises(ReidError, match='by name'): save_run(reid_learner(dls, osnet_x0_25(dls.c)), tmp_path)
