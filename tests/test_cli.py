"The command line: what it says, what it writes, how it fails"
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from reid_nb.cli import COMMANDS
from reid_nb.data.synth import synth_clip, synth_people
from reid_nb.retrieve.results import ReidResults

EXE = Path(sys.executable).with_name('reid_nb')


def run(*args, cwd=None): # (exit code, what it printed, what it complained about)
    res = subprocess.run([EXE, *map(str, args)], cwd=cwd, capture_output=True, text=True)
    return res.returncode, res.stdout, res.stderr


@pytest.mark.parametrize('name', COMMANDS)
def test_help_says_what_the_function_says(name):
    code, out, err = run(name, '--help')
    assert code == 0 and COMMANDS[name].__doc__ in ' '.join(out.split())
    assert {'quickstart': '--epochs', 'stats': '--paths', 'crop': '--sessions', 'train': '--margin', 'evaluate': '--protocol'}[name] in out


def test_an_error_is_one_line(tmp_path):
    code, out, err = run('stats', tmp_path/'nowhere')
    assert code == 1 and out == '' and err.count('\n') == 1 and 'does not exist' in err and 'Traceback' not in err
    (tmp_path/'empty').mkdir()
    code, out, err = run('train', tmp_path/'empty')
    assert code == 1 and err.count('\n') == 1 and 'Traceback' not in err
    assert 'Traceback' in run('stats', tmp_path/'nowhere', '--debug')[2]
    assert run('fly')[0] == 2


def test_a_checkpoint_of_something_else_is_an_error(tmp_path):
    items = synth_people(tmp_path/'people', n_ids=16, n_cams=2, per_cam=2, distractors=2, junk=0)
    (tmp_path/'bad.pth').write_bytes(b'no weights')
    code, out, err = run('evaluate', tmp_path/'people', tmp_path/'bad.pth')
    assert code == 1 and err.count('\n') == 1 and 'bad.pth' in err
    assert len(items) and not (tmp_path/'evaluation').exists()


def test_crop_train_evaluate(tmp_path):
    boxes = synth_clip(tmp_path/'clip.mp4', n_people=12, n_frames=90)
    code, out, err = run('crop', tmp_path/'clip.mp4', boxes, '--out', tmp_path/'crops', '--sessions', 2, '--every', 3)
    assert code == 0, err
    assert {'path', 'pid', 'cam', 'split', 'tid', 'time', 'frame'} <= set(pd.read_csv(tmp_path/'crops/items.csv'))
    code, out, err = run('train', tmp_path/'crops/items.csv', '--out', tmp_path/'run', '--epochs', 1, '--p', 3, '--height', 64, '--width', 32, '--center', .0005)
    assert code == 0, err
    code, out, err = run('evaluate', tmp_path/'crops/items.csv', tmp_path/'run', '--out', tmp_path/'again')
    assert code == 0, err
    first, again = (ReidResults.load(tmp_path/o/'results.npz') for o in ('run', 'again'))
    assert first.metrics == pytest.approx(again.metrics)
    page = (tmp_path/'run/report.html').read_text()
    assert page.count('data:image/png;base64,') == 4 and 'src="http' not in page


def test_people_who_were_trained_on_and_other_options_are_refused(tmp_path):
    for o in synth_people(tmp_path/'drawn', n_ids=16, n_cams=2, per_cam=2, distractors=0, junk=0).itertuples():
        (tmp_path/f'photos/{o.pid}').mkdir(parents=True, exist_ok=True)
        Path(o.path).rename(tmp_path/f'photos/{o.pid}/cam{o.cam}_{Path(o.path).name}')
    photos = tmp_path/'photos', '--cams', r'cam(\d)'
    train = 'train', *photos, '--out', tmp_path/'run', '--seed', 1, '--epochs', 1, '--p', 4, '--height', 64, '--width', 32
    assert (res := run(*train))[0] == 0, res[2]
    code, out, err = run('evaluate', photos[0], tmp_path/'run', *photos[1:], '--out', tmp_path/'e', '--seed', 0)
    assert code == 1 and 'was trained on' in err and err.count('\n') == 1
    for items in ((photos[0], tmp_path/'run', *photos[1:], '--seed', 1), (tmp_path/'run/items.csv', tmp_path/'run')):
        assert (res := run('evaluate', *items, '--out', tmp_path/'e'))[0] == 0, res[2]
    code, out, err = run(*train, '--lr', .001)
    assert code == 1 and 'lr was 0.0035 and is 0.001' in err
    assert (res := run(*train))[0] == 0 and 'Going on from' in res[1]


def test_quickstart_twice_gives_the_same_figures(tmp_path):
    figures = []
    for o in ('a', 'b'):
        code, out, err = run('quickstart', '--out', tmp_path/o, '--epochs', 1, '--n-ids', 32, '--seed', 1)
        assert code == 0, err
        assert {'model.pth', 'run.json', 'results.npz', 'ranks.png', 'report.html', 'people'} <= {f.name for f in (tmp_path/o).iterdir()}
        assert 'colour histogram' in out and 'untrained' in out and 'trained' in out
        figures.append(ReidResults.load(tmp_path/o/'results.npz').per_query.drop(columns='path'))
    pd.testing.assert_frame_equal(*figures)
