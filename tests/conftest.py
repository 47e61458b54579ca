"What must stand before torch is loaded, the project's files, and the promise that tests leave the tree as it was"
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

os.environ.setdefault('GOMP_SPINCOUNT', '1000') # idle threads sleep soon: two processes that wait by spinning are 12 times slower on two cores
if n := os.environ.get('PYTEST_XDIST_WORKER_COUNT'): # the cores are shared out: threads of two processes that wait for each other's turn are 7 times slower in a backward pass
    os.environ.setdefault('OMP_NUM_THREADS', str(max(1, len(os.sched_getaffinity(0)) // int(n)) if hasattr(os, 'sched_getaffinity') else 1))
os.environ.setdefault('MPLBACKEND', 'Agg')
os.environ.pop('PYTHONDONTWRITEBYTECODE', None)     # without .pyc files each import of fastai takes twice as long
sys.dont_write_bytecode = False


def git(*args): # what git says about this checkout, also where its files belong to another user
    return subprocess.run(['git', '-c', 'safe.directory=*', *args], cwd=ROOT, check=True, capture_output=True, text=True).stdout


def project_files(): # relative paths of the files that are in the repository, or that would be with `git add -A`
    names = git('ls-files', '-z', '--cached', '--others', '--exclude-standard').split('\0')
    return sorted({Path(o) for o in names if o and (ROOT/o).is_file()})


def copy_project(to, files=None): # the project's files, or some of them, in another folder
    for o in files or project_files():
        (to/o).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT/o, to/o, follow_symlinks=False)
    return to


def run_python(*args, cwd, env=None, exe=sys.executable): # what a fresh interpreter prints; a failure shows what it said
    res = subprocess.run([exe, *args], cwd=cwd, env=env, capture_output=True, text=True)
    if res.returncode: pytest.fail(f'{" ".join(map(str, args))[:200]}\n{res.stdout}{res.stderr}', pytrace=False)
    return res.stdout


@pytest.fixture(scope='session', autouse=True)
def tree_unchanged():
    "In CI the tests must leave every file of the checkout as it was"
    before = git('status', '--porcelain')
    yield
    if os.environ.get('CI'): assert git('status', '--porcelain') == before, 'the tests changed the checkout'
