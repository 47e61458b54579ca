"What a run leaves behind, and what is read from it later: folders, tables with spread, sweeps that go on, TensorBoard's tags"
import json
import os
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from fastai.callback.core import Callback
from fastai.callback.tracker import EarlyStoppingCallback
from fastai.learner import Learner
from reid_nb.core import ReidError
from reid_nb.data.block import ReidDataLoaders
from reid_nb.data.synth import synth_people
from reid_nb.losses import IdLoss
from reid_nb.retrieve.results import ReidResults
from reid_nb.train.callbacks import ReidEvalCallback, SeedCallback, TripletCallback
from reid_nb.train.checkpoint import checkpoint_table
from reid_nb.train.runs import BoardCallback, RunFolder, environment, plot_curves, runs_table, sweep
from torch import nn

FILES = ['best.pth', 'curves.png', 'env.json', 'last.pth', 'log.csv', 'results.npz', 'settings.json']

class Net(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, 4), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.classifier = nn.Linear(8, c)
    def forward(self, x):
        feat = self.body(x)
        return [(feat, self.classifier(feat))] if self.training else feat

class Die(Callback):
    order = -30
    def __init__(self, epoch): self.at = epoch
    def before_batch(self):
        if self.training and self.epoch == self.at: raise KeyboardInterrupt

@pytest.fixture(scope='module')
def dls():
    items = synth_people(n_ids=16, n_cams=2, per_cam=3, distractors=0, junk=0)
    return ReidDataLoaders.from_items(items, size=(64, 32), p=4, k=2)

def learner(dls, *cbs, seed=0, **kwargs):
    torch.manual_seed(seed)
    return Learner(dls, Net(dls.c), loss_func=IdLoss(), cbs=[TripletCallback(), ReidEvalCallback(**kwargs), SeedCallback(seed), *cbs])

def fit(learn, *cbs, n=3, lr=1e-2):
    try:
        with learn.no_bar(), learn.no_logging(): learn.fit(n, lr, cbs=list(cbs))
    except KeyboardInterrupt: pass
    return learn

def test_a_run_that_died_leaves_the_folder_of_an_unbroken_one(tmp_path, dls):
    whole = fit(learner(dls), RunFolder(tmp_path/'a', dict(margin=.3, sizes=(1, 2))))
    fit(learner(dls), RunFolder(tmp_path/'b', dict(margin=.3, sizes=(1, 2))), Die(2))
    assert len(pd.read_csv(tmp_path/'b/log.csv')) == 2 and not (tmp_path/'b/results.npz').exists()
    before = pd.read_csv(tmp_path/'b/log.csv').seconds.tolist()
    fit(learner(dls), RunFolder(tmp_path/'b', dict(margin=.3, sizes=(1, 2))))
    a, b = (pd.read_csv(tmp_path/o/'log.csv', dtype=str).astype(float) for o in 'ab')
    assert b.seconds.tolist()[:2] == before
    pd.testing.assert_frame_equal(a.drop(columns='seconds'), b.drop(columns='seconds'), check_exact=True)
    assert sorted(os.listdir(tmp_path/'a')) == sorted(os.listdir(tmp_path/'b')) == FILES
    assert a.mAP.tolist() == [o[-2] for o in whole.recorder.values] == checkpoint_table(tmp_path/'b/last.pth').mAP.tolist()
    settings = json.loads((tmp_path/'b/settings.json').read_text())
    assert settings['margin'] == .3 and settings['seed'] == 0 and settings['epochs'] == 3 and settings['model'] == 'Net'
    assert ReidResults.load(tmp_path/'b/results.npz').metrics['mAP'] == pytest.approx(a.mAP.iloc[-1], abs=1e-6)

def test_results_are_ranked_as_the_run_was(tmp_path, dls):
    fit(learner(dls, protocol='all', metric='euclidean'), RunFolder(tmp_path/'a', best=None), n=1)
    res = ReidResults.load(tmp_path/'a/results.npz')
    assert (res.protocol, res.metric) == ('all', 'euclidean') and not (tmp_path/'a/best.pth').exists()

def test_another_run_leaves_the_folder_alone(tmp_path, dls):
    fit(learner(dls), RunFolder(tmp_path/'a', dict(margin=.3)), n=1)
    before = {o.name: o.read_bytes() for o in (tmp_path/'a').iterdir()}
    with pytest.raises(ReidError, match='margin was 0.3 and is 0.4'): fit(learner(dls), RunFolder(tmp_path/'a', dict(margin=.4)), n=1)
    assert {o.name: o.read_bytes() for o in (tmp_path/'a').iterdir()} == before

def test_what_changed_between_two_starts_is_noted(tmp_path, dls, monkeypatch):
    from reid_nb.train import runs
    fit(learner(dls), RunFolder(tmp_path/'a'), Die(1))
    monkeypatch.setattr(runs, 'environment', lambda device: dict(environment(device), python='9.9'))
    fit(learner(dls), RunFolder(tmp_path/'a'))
    env = json.loads((tmp_path/'a/env.json').read_text())
    assert env['python'] != '9.9' and env['resumed'] == [dict(epoch=1, python='9.9')]

def test_the_commit_is_that_of_the_working_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert environment()['commit'] is None
    git = 'git -c user.name=a -c user.email=a@b.invalid'
    os.system(f'git init -q . && {git} commit -q --allow-empty -m x')
    assert len(environment()['commit']) == 40 and not environment()['uncommitted']
    (tmp_path/'new').touch()
    assert environment()['uncommitted']

def test_an_early_stop_is_in_the_log(tmp_path, dls):
    for _ in range(2): fit(learner(dls), RunFolder(tmp_path/'a'), EarlyStoppingCallback(monitor='mAP', min_delta=9., patience=1), n=6)
    assert len(pd.read_csv(tmp_path/'a/log.csv')) == 2 and sorted(os.listdir(tmp_path/'a')) == FILES

def test_a_full_disk_costs_the_log_and_not_the_run(tmp_path, dls, monkeypatch):
    real = os.replace
    def replace(a, b):
        if str(b).endswith('log.csv'): raise OSError(28, 'No space left on device')
        real(a, b)
    monkeypatch.setattr(os, 'replace', replace)
    with warnings.catch_warnings(record=True) as notes:
        warnings.simplefilter('always')
        fit(learner(dls), RunFolder(tmp_path/'a'), n=2)
    assert sum('log.csv could not be written: No space left on device' in str(o.message) for o in notes) == 2
    monkeypatch.undo()
    fit(learner(dls), RunFolder(tmp_path/'a'), n=2) # it is over: nothing more to log
    assert len(checkpoint_table(tmp_path/'a/last.pth')) == 2


def write_run(folder, figures, **settings):
    folder.mkdir(parents=True)
    pd.DataFrame(dict(train_loss=[2., 1.], mAP=figures, seconds=1.)).rename_axis('epoch').to_csv(folder/'log.csv')
    (folder/'settings.json').write_text(json.dumps(settings))

def test_the_spread_is_over_seeds(tmp_path):
    for seed, mAP in enumerate((.5, .6, .7)): write_run(tmp_path/f'a/{seed}', [.9, mAP], lr=.1, seed=seed, epochs=2)
    for seed, mAP in enumerate((.2, .2)): write_run(tmp_path/f'b/{seed}', [.1, mAP], lr=.2, seed=seed, epochs=2)
    table = runs_table(tmp_path)
    assert list(table) == ['lr', 'seed', 'epoch', 'train_loss', 'mAP', 'best mAP', 'best epoch', 'seconds']
    assert table.loc['a/2', 'mAP'] == .7 and table.loc['a/2', 'best epoch'] == 0 and table.loc['b/0', 'best mAP'] == .2
    wide = runs_table(tmp_path, spread=True)
    assert wide.n.tolist() == [3, 2] and wide.loc['0.1', 'mAP'] == pytest.approx(.6) and wide.loc['0.1', 'mAP ±'] == pytest.approx(np.std([.5, .6, .7], ddof=1))
    assert runs_table(tmp_path/'a', spread=True).n.tolist() == [3]
    assert len(plot_curves(tmp_path, ['mAP']).axes[0].lines) == 5
    with pytest.raises(ReidError, match='None of the columns'): plot_curves(tmp_path, ['nAP'])

LOG = '''Loading weights
##### Evaluating market1501 (source) #####
Extracting features from query set ...
** Results **
mAP: 11.1%
CMC curve
Rank-1  : 22.2%
##### Evaluating market1501 (source) #####
** Results **
mAP: {}%
CMC curve
Rank-1  : {}%
Rank-5  : 98.1%
Rank-10 : 99.0%
Rank-20 : 99.4%
'''

def test_torchreids_logs_are_read(tmp_path):
    for i, o in enumerate([(82.6, 94.2), (81.6, 93.2)]):
        (tmp_path/f'split{i}').mkdir()
        (tmp_path/f'split{i}/test.log-2020-01-01').write_text(LOG.format(*o))
    table = runs_table(tmp_path)
    assert table.loc['split0', ['mAP', 'rank1', 'rank5', 'rank10', 'rank20']].tolist() == pytest.approx([.826, .942, .981, .99, .994])
    assert runs_table(tmp_path, spread=True)['mAP'].tolist() == pytest.approx([.821])
    (tmp_path/'split0/test.log-2020-01-01').write_text(LOG.format(82.6, 94.2) + LOG.format(50., 60.).replace('market1501', 'duke'))
    assert set(runs_table(tmp_path).index) == {'split0 on market1501', 'split0 on duke', 'split1'}


def test_a_sweep_goes_on(tmp_path):
    calls, good = [], set()
    def fn(folder, lr, depth):
        calls.append((lr, depth))
        folder.mkdir(parents=True, exist_ok=True)
        if lr == .3 and 'mended' not in good: raise RuntimeError('a bug')
        if (lr, depth) == (.2, 2) and 'again' not in good: raise KeyboardInterrupt # as if the machine had been switched off
        return dict(mAP=lr * depth)
    grid = dict(lr=[.3, .1, .2], depth=[1, 2])
    with pytest.raises(KeyboardInterrupt): sweep(fn, grid, tmp_path)
    assert calls == [(.3, 1), (.3, 2), (.1, 1), (.1, 2), (.2, 1), (.2, 2)]
    assert 'a bug' in (tmp_path/'lr=0.3,depth=1/error.txt').read_text()
    calls.clear(), good.add('again')
    table = sweep(fn, grid, tmp_path)
    assert calls == [(.3, 1), (.3, 2), (.2, 2)] and table.error.notna().tolist() == [True, True] + [False] * 4
    good.add('mended'), calls.clear()
    table = sweep(fn, grid, tmp_path)
    assert calls == [(.3, 1), (.3, 2)] and 'error' not in table and table.mAP.tolist() == pytest.approx([.3, .6, .1, .2, .2, .4])
    assert not list(tmp_path.rglob('error.txt'))
    with pytest.raises(ValueError, match='have the name'): sweep(fn, dict(lr=['a b', 'a_b']), tmp_path)

def test_a_figure_with_the_name_of_a_setting(tmp_path):
    table = sweep(lambda folder, triplet: dict(triplet=triplet * 10), dict(triplet=[1, 2]), tmp_path/'s')
    assert table.triplet.tolist() == [1, 2] and table['triplet (figure)'].tolist() == [10, 20]
    for i in (1, 2): write_run(tmp_path/f'r/{i}', [0., i / 10], mAP=i)
    assert runs_table(tmp_path/'r', columns=['mAP']).to_dict('list') == {'mAP': [1, 2], 'mAP (figure)': [.1, .2]}
    assert runs_table(tmp_path/'r', spread=True, columns=['mAP'])['mAP (figure)'].tolist() == [.1, .2]


def test_tensorboard_has_the_ancestors_tags_once_each(tmp_path, dls):
    acc = pytest.importorskip('tensorboard.backend.event_processing.event_accumulator')
    fit(learner(dls), RunFolder(tmp_path/'a'), BoardCallback(tmp_path/'a'), Die(2))
    fit(learner(dls), RunFolder(tmp_path/'a'), BoardCallback(tmp_path/'a'))
    events = acc.EventAccumulator(str(tmp_path/'a')).Reload()
    dset = str(dls.test_items.dset.iloc[0])
    assert {'Train/loss', 'Train/lr', 'Train/triplet', f'Test/{dset}/rank1', f'Test/{dset}/mAP'} <= set(events.Tags()['scalars'])
    assert [o.step for o in events.Scalars('Train/loss')] == list(range(3 * len(dls.train)))
    test = events.Scalars(f'Test/{dset}/mAP')
    assert [o.step for o in test] == [0, 1, 2]
    assert [o.value for o in test] == pytest.approx(pd.read_csv(tmp_path/'a/log.csv').mAP.tolist())
