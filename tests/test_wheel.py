"What is published: the wheel holds the package alone, and works where only its requirements are"
import sysconfig
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest
from conftest import copy_project, run_python

# Imports each module that the wheel brings, and uses one function of each room that needs no data
SMOKE = '''
import sys
from importlib.metadata import entry_points, version
import numpy as np, pandas as pd, torch
import reid_nb
from reid_nb.core import as_items, items_stats
from reid_nb.models.osnet import osnet_x0_25
from reid_nb.retrieve.rank import rank_stats

assert reid_nb.__file__.startswith(sys.prefix), f'{reid_nb.__file__} is not the wheel in {sys.prefix}'
assert version('reid_nb') == reid_nb.__version__
items = as_items(pd.DataFrame(dict(path=[f'{i}.jpg' for i in range(5)], pid=[1, 2, 1, 2, 3], cam=[0, 0, 1, 1, 1], split=['query']*2 + ['gallery']*3)))
assert list(items_stats(items).images) == [2, 3, 5]
dist = np.array([[.1, .2, .3], [.1, .2, .3]], 'f')
assert rank_stats(dist, [1, 2], [1, 2, 3], [0, 0], [1, 1, 1]).ap.tolist() == [1, .5]
with torch.no_grad(): assert osnet_x0_25(10).eval()(torch.zeros(1, 3, 64, 32)).shape == (1, 512)
assert entry_points(group='console_scripts')['reid_nb'].value == 'reid_nb.cli:main'
tools = {'pytest', 'nbdev', 'execnb', 'hypothesis', 'playwright', 'jupyterlab'} & set(sys.modules)
assert not tools, f'the package imports {tools}'
'''


@pytest.fixture(scope='module')
def dist(tmp_path_factory):
    "A folder with the wheel and the sdist of a copy of the project; the wheel is made from the sdist, as for publishing"
    tmp = tmp_path_factory.mktemp('dist')
    run_python('-m', 'build', '--no-isolation', '--outdir', tmp/'dist', cwd=copy_project(tmp/'src'))
    return tmp/'dist'


def test_the_wheel_holds_the_package_alone(dist):
    (wheel,), (sdist,) = dist.glob('*.whl'), dist.glob('*.tar.gz')
    info = f'reid_nb-{version("reid_nb")}.dist-info'
    names = zipfile.ZipFile(wheel).namelist()
    assert {o.split('/')[0] for o in names} == {'reid_nb', info}
    assert {'reid_nb/core.py', f'{info}/licenses/LICENSE'} <= set(names)


def test_the_wheel_works_alone(dist, tmp_path):
    run_python('-m', 'venv', '--without-pip', tmp_path/'venv', cwd=tmp_path)
    exe = tmp_path/'venv/bin/python'
    run_python('-m', 'pip', '--python', exe, 'install', '--quiet', '--no-deps', '--no-index', next(dist.glob('*.whl')), cwd=tmp_path)
    site = run_python('-c', 'import sysconfig; print(sysconfig.get_path("purelib"))', cwd=tmp_path, exe=exe).strip()
    Path(site, 'requirements.pth').write_text(sysconfig.get_path('purelib')) # what is installed here, without its .pth files: an editable reid_nb stays out
    run_python('-c', SMOKE, cwd=tmp_path, exe=exe)
