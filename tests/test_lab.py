"The lab: what it does where data is absent, and where it is present"
from pathlib import Path

import pytest
from fastcore.nbio import read_nb

import reid_nb.lab as lab
from reid_nb.data.catalogue import SPECS
from reid_nb.data.synth import synth_people
from reid_nb.lab import Target, lab_table, missing, reproduce
from reid_nb.train.recipes import RECIPES, recipe_settings

TARGET = Target('ours', 'ide', 85.4, 68.8, 'nowhere')
TINY = dict(model='osnet_x0_25', weights=None, size=(32, 16), bs=8)
NOTEBOOKS = [o for o in sorted((Path(__file__).parent.parent / 'nbs/lab').glob('[1-9]*.ipynb')) if 'Target(' in o.read_text()]


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    home = tmp_path_factory.mktemp('data')
    synth_people(home / 'market1501', n_ids=8, n_cams=2, per_cam=2, size=(32, 16), distractors=0, junk=0)
    return home


def test_absent(monkeypatch, tmp_path):
    monkeypatch.delenv('REID_DATA', raising=False)
    table = reproduce([TARGET], tmp_path / 'runs')
    assert table.loc['ours', ('', 'not run')] == 'no data: REID_DATA is not set' and table.loc['ours', ('ours', 'mAP')] == '' and table.loc['ours', ('target', 'mAP')] == 68.8
    monkeypatch.setenv('REID_DATA', str(tmp_path))
    assert reproduce([TARGET], tmp_path / 'runs').loc['ours', ('', 'not run')] == 'no data: market1501' and not (tmp_path / 'runs').exists()


def test_nothing_runs_on_a_cpu_unless_asked(monkeypatch, root, tmp_path):
    monkeypatch.setattr(lab.torch.cuda, 'is_available', lambda: False)
    assert missing(TARGET, root) == 'no GPU' and missing(TARGET, root, 'cpu') == ''
    assert reproduce([TARGET], tmp_path, root=root).loc['ours', ('', 'not run')] == 'no GPU' and not list(tmp_path.iterdir())


@pytest.mark.filterwarnings('ignore:market1501')
def test_present(monkeypatch, root, tmp_path):
    monkeypatch.setenv('REID_DATA', str(root))
    kw = dict(seeds=(1, 2), device='cpu', epochs=1, **TINY)
    table = reproduce([TARGET], tmp_path, **kw)
    row = table.loc['ours']
    assert row[('', 'seeds')] == 2 and '±' in row[('ours', 'mAP')] and not row[('', 'within tolerance')] and row[('', 'not run')] == ''
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob('last.pth')}
    assert reproduce([TARGET], tmp_path, **kw).equals(table) and len(before) == 2
    assert before == {p: p.stat().st_mtime_ns for p in tmp_path.rglob('last.pth')} # nothing was trained again
    mean = float(row[('ours', 'rank1')].split()[0]), float(row[('ours', 'mAP')].split()[0])
    assert lab_table([Target('ours', 'ide', *mean, 'here')], tmp_path).loc['ours', ('', 'within tolerance')]
    assert not lab_table([Target('ours', 'ide', mean[0], mean[1] + 1.2, 'here')], tmp_path).loc['ours', ('', 'within tolerance')]


def test_a_wrong_setting_is_told_without_data(monkeypatch, tmp_path):
    monkeypatch.delenv('REID_DATA', raising=False)
    with pytest.raises(ValueError, match="did you mean 'margin'"): reproduce([Target('x', 'ide', 1., 1., '', dict(margn=1))], tmp_path)


@pytest.mark.parametrize('nb', NOTEBOOKS, ids=lambda o: o.stem)
def test_targets_of_the_notebooks(nb):
    found = []
    def note(targets, *args, **kwargs): found.extend(targets)
    for cell in read_nb(nb).cells:
        if cell.cell_type == 'code' and 'Target' in cell.source: exec(cell.source.replace('reproduce(', 'note('), scope := locals().setdefault('scope', dict(note=note, Target=Target, reproduce=note)))
    assert len(found) >= 10 and len({o.name for o in found}) == len(found)
    for o in found:
        s = recipe_settings(o.recipe, **o.settings)
        assert o.recipe in RECIPES and s['weights'] == 'imagenet' and o.source and 10 < o.mAP < o.rank1 < 100
        assert {*o.train, o.test} <= set(SPECS)
