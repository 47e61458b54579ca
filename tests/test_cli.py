"The command line: what it says, what it writes, how it fails. Commands run in this process, but for one that shows what a terminal gets"
import subprocess
import sys
import warnings
from functools import partial
from pathlib import Path
from unittest.mock import MagicMock

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from reid_nb.cli import COMMANDS, SMALL, _write_items, main
from reid_nb.data.datasets import market1501
from reid_nb.data.own import items_to_market
from reid_nb.data.synth import synth_clip, synth_people
from reid_nb.retrieve.results import ReidResults

EXE = Path(sys.executable).with_name('reid_nb')
SIZE = '--size', 32, 16


@pytest.fixture
def run(capsys): # (exit code, what it printed, what it complained about)
    def run(*args):
        with warnings.catch_warnings():
            try: code = main([str(o) for o in args])
            except SystemExit as e: code = e.code
        return code, *capsys.readouterr()
    return run


@pytest.fixture
def no_pictures(monkeypatch): # for what is not about the report: it takes longer to draw than the run
    for o in ('plots.plot_cmc', 'plots.plot_distances', 'report.save_report'): monkeypatch.setattr(f'reid_nb.show.{o}', MagicMock())
    monkeypatch.setattr('reid_nb.show.plots.show_ranks', lambda *args, file, **kwargs: Image.new('RGB', (1, 1)).save(file))


@pytest.fixture(scope='module')
def people(tmp_path_factory): # two small datasets in Market's layout, drawn as small as they are used
    root = tmp_path_factory.mktemp('people')
    for i, name in enumerate(('street', 'school')):
        items_to_market(synth_people(root/f'{name} as drawn', n_ids=12, n_cams=2, per_cam=2, size=(32, 16), distractors=0, junk=0, seed=i), root/name)
    return root


@pytest.fixture(scope='module')
def trained(people): # a run of two epochs
    with warnings.catch_warnings(): assert main(f'train {people}/street --size 32 16 --bs 8 --epochs 2 --out {people}/run'.split()) == 0
    return people/'run'


def test_a_terminal_gets_help_at_once_and_an_error_as_one_line(tmp_path):
    code = "import sys; from reid_nb.cli import main; main(['--help']); sys.exit(any(o in sys.modules for o in ('torch', 'fastai', 'yaml', 'matplotlib')))"
    assert subprocess.run([sys.executable, '-c', code], capture_output=True).returncode == 0, 'help loads what it does not need'
    res = subprocess.run([EXE, 'stats', tmp_path/'nowhere'], capture_output=True, text=True)
    assert (res.returncode, res.stdout) == (1, '') and res.stderr.count('\n') == 1 and 'does not exist' in res.stderr and 'Traceback' not in res.stderr


@pytest.mark.parametrize('name', COMMANDS)
def test_help_says_what_the_function_says(run, name):
    code, out, err = run(name, '--help')
    assert code == 0 and COMMANDS[name].__doc__ in ' '.join(out.split())
    wanted = dict(quickstart='--epochs', stats='--paths', crop='--sessions', train='--margin', evaluate='--protocol', extract='--skip', rank='--rerank', runs='--spread')
    assert wanted[name] in out


def test_every_setting_is_a_flag(run):
    from reid_nb.config import RUN_OPTIONS, all_recipes, recipe_options
    out = run('train', '--help')[1]
    flags = {o.strip(',') for o in out.split() if o.startswith('--')}
    assert {f'--{o.replace("_", "-")}' for o in (*recipe_options(), *RUN_OPTIONS)} - {'--items'} <= flags
    assert all(o in out for o in all_recipes())


def test_errors_say_what_to_do(run, tmp_path, people):
    assert run('fly')[0] == 2
    for args, words in ((('stats', tmp_path/'nowhere'), 'does not exist'), (('train', tmp_path), 'bounding_box_train|images|picture|files'), (('train',), 'nothing to train on'),
                        (('train', 'market1501'), 'where is it'), (('train', people/'street', '--lr', 'fast'), '--lr: `lr` must be a number'), (('train', people/'street', '--recipe', 'idee'), "did you mean 'ide'"),
                        (('train', people/'street', '--height', 64), '--size'), (('train', people/'street', '--labeled'), 'cuhk03'), (('train', people/'street', *SIZE, '--bs', 7), 'multiple of 4'),
                        (('evaluate', people/'street', tmp_path/'no'), 'does not exist'), (('evaluate', people/'street', tmp_path), 'holds no run'), (('extract', people/'street', tmp_path, '--out', 'a.txt'), '.npz'),
                        (('rank', tmp_path/'f.npz'), 'does not exist'), (('runs', tmp_path), 'no run')):
        code, out, err = run(*args)
        assert code == 1 and err.count('\n') == 1 and 'Traceback' not in err and any(o in err for o in words.split('|')), (args, err)
    code, out, err = run('train', people/'street', '--lerning-rate', 1)
    assert code == 2 and err.count('\n') == 1 and '--lerning-rate' in err
    assert 'did you mean --margin' in run('train', people/'street', '--margn', 1)[2]
    with pytest.raises(FileNotFoundError): run('stats', tmp_path/'nowhere', '--debug')


def test_a_checkpoint_of_something_else_is_an_error(run, people, tmp_path):
    (tmp_path/'bad.pth').write_bytes(b'no weights')
    code, out, err = run('evaluate', people/'street', tmp_path/'bad.pth', '--out', tmp_path/'e')
    assert code == 1 and err.count('\n') == 1 and 'bad.pth' in err and not (tmp_path/'e').exists()


def test_a_missing_gpu_is_told_before_anything_is_read(run, people, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    code, out, err = run('train', people/'street', '--device', 'cuda', '--out', tmp_path/'r')
    assert code == 1 and 'cuda was asked for' in err and not (tmp_path/'r').exists()


def test_a_run_leaves_all_that_is_needed(run, people, trained):
    names = {o.name for o in trained.iterdir()}
    assert {'settings.yaml', 'settings.json', 'env.json', 'log.csv', 'last.pth', 'best.pth', 'model.pth', 'run.json', 'results.npz', 'curves.png', 'ranks.png', 'report.html', 'items.csv'} <= names
    page = (trained/'report.html').read_text()
    assert page.count('data:image/png;base64,') == 4 and 'src="http' not in page
    from reid_nb.config import settle
    again = settle(config=trained/'settings.yaml')
    assert again.settings['recipe'] is None and (again.settings['epochs'], again.settings['lr'], again.settings['weights']) == (2, SMALL['lr'], None)


def test_a_run_goes_on_and_refuses_other_settings(run, people, trained, no_pictures):
    line = 'train', people/'street', *SIZE, '--bs', 8, '--epochs', 2, '--out', trained
    code, out, err = run(*line, '--lr', .001)
    assert code == 1 and 'lr was 0.0035 and is 0.001' in err and err.count('\n') == 1 and 'Exception occured' not in err
    before = pd.read_csv(trained/'log.csv')
    code, out, err = run('train', '--config', trained/'settings.yaml')
    assert code == 0 and 'Going on from' in out, err
    pd.testing.assert_frame_equal(pd.read_csv(trained/'log.csv'), before)


def test_an_interrupted_run_is_evaluated_and_finished(run, people, trained, tmp_path, monkeypatch, no_pictures):
    from reid_nb.train.runs import RunFolder
    keep = RunFolder.after_epoch
    def after_epoch(self):
        keep(self)
        if self.epoch == 0: raise KeyboardInterrupt
    line = 'train', people/'street', *SIZE, '--bs', 8, '--epochs', 2, '--out', tmp_path/'r'
    with monkeypatch.context() as m:
        m.setattr(RunFolder, 'after_epoch', after_epoch)
        code, out, err = run(*line)
    assert code == 130 and 'goes on from the last epoch' in err and not (tmp_path/'r/model.pth').exists()
    assert run('evaluate', people/'street', tmp_path/'r', '--out', tmp_path/'e')[0] == 0
    assert run(*line)[0] == 0
    logs = [pd.read_csv(o/'log.csv').drop(columns='seconds') for o in (trained, tmp_path/'r')]
    pd.testing.assert_frame_equal(*logs)


def test_running_out_of_memory_says_what_helps(run, people, tmp_path, monkeypatch):
    from reid_nb.train.callbacks import TripletCallback
    def after_loss(self):
        if self.epoch: raise torch.OutOfMemoryError('CUDA out of memory')
        keep(self)
    keep = TripletCallback.after_loss
    monkeypatch.setattr(TripletCallback, 'after_loss', after_loss)
    code, out, err = run('train', people/'street', *SIZE, '--bs', 8, '--epochs', 2, '--out', tmp_path/'r')
    assert code == 1 and 'Out of memory' in err and f'{tmp_path/"r/last.pth"}, is unharmed' in err and (tmp_path/'r/last.pth').exists()


def test_a_recipe_a_file_of_torchreid_and_two_targets(run, people, tmp_path):
    (tmp_path/'t.yaml').write_text(f'''
model: {{name: osnet_x0_25, pretrained: false}}
data: {{sources: [{tmp_path}/street.csv], targets: [{tmp_path}/street.csv, {tmp_path}/school.csv], height: 32, width: 16, save_dir: {tmp_path}/r, workers: 0}}
loss: {{name: triplet, triplet: {{weight_x: 1}}}}
sampler: {{train_sampler: RandomIdentitySampler}}
train: {{max_epoch: 50, batch_size: 8, lr: 0.001}}
test: {{start_eval: 1}}''')
    for name in ('street', 'school'): market1501(people/name, check=False).assign(dset=name).to_csv(tmp_path/f'{name}.csv', index=False)
    code, out, err = run('train', '--torchreid-config', tmp_path/'t.yaml', '--epochs', 1, '--rerank', '--rerank-k1', 4, '--rerank-k2', 2, '--pictures', 2)
    assert code == 0, err
    assert 'test.start_eval=1 is left out' in err and err.count('\n') == 1
    assert all(o in out for o in ('street', 'school', 'sqeuclidean', 't.yaml', 'flag'))
    assert {'results.npz', 'results_school.npz', 'settings.yaml'} <= {o.name for o in (tmp_path/'r').iterdir()} and len(list((tmp_path/'r/ranks').glob('*.jpg'))) == 2


def test_evaluate_on_several_tables(run, people, trained, tmp_path):
    assert (res := run('evaluate', people/'street', trained, '--out', tmp_path/'e'))[0] == 0, res[2]
    first, again = (ReidResults.load(o/'results.npz') for o in (trained, tmp_path/'e'))
    assert first.metrics == pytest.approx(again.metrics)
    other = synth_people(tmp_path/'other', n_ids=6, n_cams=2, per_cam=2, size=(32, 16), distractors=0, junk=0, seed=9).assign(split='query')
    other.loc[other.cam == 1, 'split'] = 'gallery'
    other.assign(dset='other').to_csv(tmp_path/'other.csv', index=False)
    code, out, err = run('evaluate', people/'street', tmp_path/'other.csv', trained, '--best', '--flip', '--rerank', '--protocol', 'all', '--metric', 'euclidean', '--pictures', 1, '--out', tmp_path/'f')
    assert code == 0, err
    assert all(o in out for o in ('market1501', 'other', 'other, re-ranked')) and (tmp_path/'f/results_other__re_ranked.npz').exists()
    assert ReidResults.load(tmp_path/'f/results.npz').protocol == 'all'


@pytest.mark.parametrize('line', ['transreid --model transreid_vit_tiny --size 64 32', 'dml --model osnet_x0_25 --fixbase-epoch 0 --size 32 16', 'center_2018 --model osnet_x0_25 --size 32 16 --mean 0.2 0.3 0.4'])
def test_a_run_of_any_recipe_is_evaluated_as_it_was_trained(run, people, tmp_path, no_pictures, line): # cameras, students, colours, metric
    assert (res := run('train', people/'street', '--recipe', *line.split(), '--weights', 'none', '--bs', 8, '--epochs', 1, '--out', tmp_path/'r'))[0] == 0, res[2]
    assert (res := run('evaluate', people/'street', tmp_path/'r', '--out', tmp_path/'e'))[0] == 0, res[2]
    first, again = (ReidResults.load(tmp_path/o/'results.npz') for o in 're')
    assert first.metric == again.metric
    np.testing.assert_allclose(again.q_feat, first.q_feat, atol=1e-4)


def test_settings_of_other_recipes_are_refused(run, people, tmp_path):
    code, out, err = run('train', people/'street', '--seq-len', 4, '--bs', 8, '--out', tmp_path/'r')
    assert code == 1 and 'seq_len' in err and 'ignore' in err and not (tmp_path/'r').exists()


def test_attributes_in_a_terminal(run, tmp_path):
    people = synth_people(tmp_path/'drawn', n_ids=12, n_cams=2, per_cam=2, size=(32, 16), distractors=0, junk=0)
    people[['path', 'pid', 'cam', 'split']].assign(bag=(people.pid % 2).astype(bool), hat=(people.pid % 3 == 0)).to_csv(tmp_path/'a.csv', index=False)
    code, out, err = run('train', tmp_path/'a.csv', '--recipe', 'attributes', '--model', 'osnet_x0_25', *SIZE, '--bs', 8, '--epochs', 1, '--out', tmp_path/'r')
    assert code == 0 and 'mA' in out, err
    assert list(pd.read_csv(tmp_path/'r/attributes.csv').attribute) == ['bag', 'hat'] and (tmp_path/'r/best.pth').exists()
    assert 'run of attributes' in run('evaluate', tmp_path/'a.csv', tmp_path/'r', '--out', tmp_path/'e')[2]


def test_tracklets_in_a_terminal(run, tmp_path, no_pictures):
    people = synth_people(tmp_path/'drawn', n_ids=8, n_cams=2, per_cam=2, size=(32, 16), distractors=0, junk=0, tracklets=True, n_frames=3)
    items = _write_items(people, tmp_path/'walks.csv')
    flags = '--recipe video_softmax --model osnet_x0_25 --weights none --size 32 16 --bs 4 --seq-len 3 --epochs 1'.split()
    assert (res := run('train', items, *flags, '--out', tmp_path/'r'))[0] == 0, res[2]
    assert (res := run('evaluate', tmp_path/'r/items.csv', tmp_path/'r', '--out', tmp_path/'e'))[0] == 0, res[2]
    np.testing.assert_allclose(*(ReidResults.load(tmp_path/o/'results.npz').q_feat for o in 're'), atol=1e-4)
    people.assign(frames='a.jpg').to_csv(items, index=False)
    assert '`frames` must be a list' in run('stats', items)[2]


def test_extract_and_rank(run, people, trained, tmp_path, no_pictures):
    for suffix in ('npz', 'npy'):
        code, out, err = run('extract', trained/'items.csv', trained, '--out', tmp_path/f'f.{suffix}')
        assert code == 0 and 'features of 512 numbers' in out, err
    assert (res := run('rank', tmp_path/'f.npz', '--out', tmp_path/'one'))[0] == 0, res[2]
    figures = ReidResults.load(tmp_path/'one/results.npz').metrics
    assert figures == pytest.approx(ReidResults.load(trained/'results.npz').metrics, abs=1e-3)
    with np.load(tmp_path/'f.npz') as z: feats, rows = z['feats'], pd.DataFrame({k: z[k] for k in z.files if k != 'feats'})
    np.testing.assert_array_equal(feats, np.load(tmp_path/'f.npy'))
    for split in ('query', 'gallery'):
        mine = (rows.split == split).to_numpy()
        np.save(tmp_path/f'{split}.npy', feats[mine])
        rows[mine][['pid', 'cam', 'path']].to_csv(tmp_path/f'{split}.csv', index=False)
    code, out, err = run('rank', tmp_path/'query.npy', '--gallery', tmp_path/'gallery.npy', '--out', tmp_path/'two')
    assert code == 0 and ReidResults.load(tmp_path/'two/results.npz').metrics == pytest.approx(figures), err
    code, out, err = run('extract', people/'street/query', trained, '--out', tmp_path/'plain.npz')
    assert code == 0, err
    assert 'pid' in run('rank', tmp_path/'plain.npz')[2]
    assert 'split' in run('rank', tmp_path/'query.npy')[2]


def test_runs_are_compared(run, trained, tmp_path):
    code, out, err = run('runs', trained.parent, '--csv', tmp_path/'runs.csv', '--curves', tmp_path/'curves.png')
    assert code == 0 and 'best mAP' in out and len(pd.read_csv(tmp_path/'runs.csv')) == 1 and (tmp_path/'curves.png').stat().st_size > 1000, err
    assert list(pd.read_csv(tmp_path/'runs.csv')['run']) == ['run']
    assert 'rank1' in run('runs', trained.parent, '--columns', 'rank1')[1]


def test_crop(run, tmp_path):
    boxes = synth_clip(tmp_path/'clip.mp4', n_people=6, n_frames=36)
    code, out, err = run('crop', tmp_path/'clip.mp4', boxes, '--out', tmp_path/'crops', '--sessions', 2, '--every', 3)
    assert code == 0, err
    assert {'path', 'pid', 'cam', 'split', 'tid', 'time', 'frame'} <= set(pd.read_csv(tmp_path/'crops/items.csv'))
    assert run('stats', tmp_path/'crops/items.csv')[0] == 0


def test_people_who_were_trained_on_are_refused(run, tmp_path, no_pictures):
    for o in synth_people(tmp_path/'drawn', n_ids=16, n_cams=2, per_cam=2, distractors=0, junk=0, size=(32, 16)).itertuples():
        (tmp_path/f'photos/{o.pid}').mkdir(parents=True, exist_ok=True)
        Path(o.path).rename(tmp_path/f'photos/{o.pid}/cam{o.cam}_{Path(o.path).name}')
    photos = tmp_path/'photos', '--cams', r'cam(\d)'
    code, out, err = run('train', *photos, '--out', tmp_path/'run', '--seed', 1, '--epochs', 1, '--p', 2, '--height', 32, '--width', 16, '--center', .0005, '--workers', 0)
    assert code == 0 and 'center' in out, err
    code, out, err = run('evaluate', photos[0], tmp_path/'run', *photos[1:], '--out', tmp_path/'e', '--seed', 0)
    assert code == 1 and 'was trained on' in err and err.count('\n') == 1
    for items in ((photos[0], tmp_path/'run', *photos[1:]), (tmp_path/'run/items.csv', tmp_path/'run')):
        assert (res := run('evaluate', *items, '--out', tmp_path/'e'))[0] == 0, res[2]


def test_quickstart_twice_gives_the_same_figures(run, tmp_path, monkeypatch, no_pictures):
    monkeypatch.setattr('reid_nb.data.synth.synth_people', partial(synth_people, per_cam=2, size=(64, 32), distractors=0, junk=0)) # fewer of the same
    figures = []
    for o in ('a', 'b'):
        code, out, err = run('quickstart', '--out', tmp_path/o, '--epochs', 1, '--n-ids', 32, '--seed', 1)
        assert code == 0, err
        assert {'model.pth', 'run.json', 'results.npz', 'ranks.png', 'people'} <= {f.name for f in (tmp_path/o).iterdir()}
        assert 'colour histogram' in out and 'untrained' in out and 'trained' in out
        figures.append(ReidResults.load(tmp_path/o/'results.npz').per_query.drop(columns='path'))
    pd.testing.assert_frame_equal(*figures)
