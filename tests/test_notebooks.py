"Every notebook is one test case: nbdev's own runner runs it in a child forked from a clean process that has paid the imports"
import io
import json
import multiprocessing as mp
import os
import sys
import traceback

import pytest
from execnb.shell import CaptureShell
from fastcore.nbio import read_nb
from nbdev.config import get_config
from nbdev.doclinks import nbglob
from nbdev.test import test_nb as run_nb

cfg = get_config(os.path.dirname(__file__))
NBS = sorted(nbglob(cfg.nbs_path, as_path=True))

# The fork server imports fastai once, and computes nothing: a fork after a parallel computation would hang in the child
ctx = mp.get_context('forkserver' if 'forkserver' in mp.get_all_start_methods() else 'spawn')
ctx.set_forkserver_preload(['fastai.vision.all', 'nbdev.test', 'numba'])


def code_cells(nb): # index -> source of the cells that hold more than comments
    return {c.idx_: c.source for c in read_nb(nb).cells if c.cell_type == 'code' and any(o.strip() and o[0] != '#' for o in c.source.splitlines())}


def run_in_child(nb, con): # send the index of each cell as it starts, then None or what went wrong
    mp.set_start_method(None, force=True) # the notebook's own processes start as they do in Jupyter, not from the fork server
    run_cell, sys.__stderr__ = CaptureShell.cell, io.StringIO()
    def cell(self, cell, **kw):
        con.send(cell.idx_)
        run_cell(self, cell, **kw)
    CaptureShell.cell = cell
    try:
        ok, _ = run_nb(nb, skip_flags=cfg.tst_flags.split(), force_flags=os.environ.get('NB_FLAGS', '').split(),
                       basepath=cfg.config_path, cell_timeout=cfg.cell_timeout)
    except BaseException: ok = traceback.print_exc(file=sys.__stderr__)
    con.send(None if ok else sys.__stderr__.getvalue() or 'nbdev gave no reason')


def run_notebook(nb):
    "The indexes of the cells of `nb` that ran, and None or what went wrong"
    con, child_con = ctx.Pipe(duplex=False)
    child = ctx.Process(target=run_in_child, args=(nb, child_con))
    child.start()
    child_con.close()
    ran = []
    try:
        while isinstance(o := con.recv(), int): ran.append(o)
        return ran, o
    except EOFError:
        child.join()
        return ran, f'the process of the notebook died with exit code {child.exitcode}'
    finally:
        child.kill()
        child.join()


def check_notebook(nb):
    cells, (ran, err) = code_cells(nb), run_notebook(nb)
    if err: pytest.fail(f'{nb}, cell {ran[-1] if ran else "?"}:\n{cells.get(ran[-1], "") if ran else ""}\n\n{err}', pytrace=False)
    n = len(cells.keys() & set(ran))
    if n < max(3, .8 * len(cells)):
        pytest.fail(f'{nb}: {n} of {len(cells)} code cells ran, at least 3 and 80 % must; is it empty, or skipped by a flag?', pytrace=False)


@pytest.mark.parametrize('nb', NBS, ids=lambda p: str(p.relative_to(cfg.nbs_path).with_suffix('')))
def test_notebook(nb): check_notebook(nb)


def write_nb(path, *sources):
    cells = [dict(cell_type='code', id=f'c{i}', metadata={}, execution_count=None, outputs=[], source=s) for i, s in enumerate(sources)]
    path.write_text(json.dumps(dict(cells=cells, metadata={}, nbformat=4, nbformat_minor=5)))
    return path


@pytest.mark.parametrize('sources,reason', [
    (['a = 1', 'b = 2', 'assert a == b, "no luck"'], r'cell 2:\nassert(?s:.*)no luck'),
    (['a = 1', 'import os', 'os._exit(7)'], r'cell 2:\nos._exit(?s:.*)died with exit code 7'),
    (['#| slow\na = 1'] * 5, '0 of 5 code cells ran'),
    (['# a comment only'] * 5, '0 of 0 code cells ran'),
    (['a = 1', 'b = 2'], '2 of 2 code cells ran'),
])
def test_the_runner_sees_trouble(tmp_path, sources, reason):
    with pytest.raises(pytest.fail.Exception, match=reason): check_notebook(write_nb(tmp_path/'bad.ipynb', *sources))
