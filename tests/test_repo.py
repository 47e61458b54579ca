"What must hold for the whole repository: export in step, notebooks clean and small, layers kept, each fact in one place"
import ast
import base64
import json
import re
import shlex
import tomllib
from configparser import ConfigParser
from importlib.metadata import distribution
from pathlib import Path

import pytest
from conftest import ROOT, copy_project, project_files, run_python
from packaging.requirements import Requirement

FILES = project_files()
NBS = [o for o in FILES if o.suffix == '.ipynb']
MODULES = [o for o in FILES if o.parts[0] == 'reid_nb' and o.suffix == '.py']


def differing(a, b, files): return [str(o) for o in files if not (a/o).is_file() or (a/o).read_text() != (b/o).read_text()]


# Notebooks and what is made from them

@pytest.fixture(scope='module')
def made_anew(tmp_path_factory):
    "A copy of the project whose modules were written by `nbdev-export` and whose notebooks went through `nbdev-clean`"
    copy = copy_project(tmp_path_factory.mktemp('made_anew'), [*NBS, Path('pyproject.toml'), Path('reid_nb/__init__.py')])
    run_python('-c', 'from nbdev.doclinks import nbdev_export; from nbdev.clean import nbdev_clean; nbdev_export(); nbdev_clean()', cwd=copy)
    return copy


def test_the_modules_are_those_of_the_notebooks(made_anew):
    made = {o.relative_to(made_anew) for o in made_anew.rglob('*') if o.is_file()} - set(NBS)
    stray = sorted(map(str, set(MODULES) - made))
    assert not stray, f'no notebook exports {stray}: delete them, or move what they hold to a notebook'
    assert not (o := differing(ROOT, made_anew, sorted(made))), f'run `nbdev-export`: {o} differ from the notebooks'


def test_the_notebooks_are_clean(made_anew):
    assert not (o := differing(ROOT, made_anew, NBS)), f'run `nbdev-clean`, which changes {o}'


@pytest.mark.parametrize('nb', NBS, ids=str)
def test_a_notebook_is_small_and_shows_no_trouble(nb):
    cells = json.loads((ROOT/nb).read_text())['cells']
    assert len(cells) <= 60, 'more than 60 cells: split it'
    assert (size := (ROOT/nb).stat().st_size) <= 300_000, f'{size/1000:.0f} KB of at most 300: make its pictures smaller'
    for i, out in [(i, o) for i, c in enumerate(cells) for o in c.get('outputs', [])]:
        trouble = out['output_type'] == 'error' or out.get('name') == 'stderr'
        assert not trouble, f'cell {i} stores an error or a warning: {str(out)[:300]}'
        for kind in ('image/png', 'image/jpeg'):
            kb = len(base64.b64decode(out.get('data', {}).get(kind, ''))) / 1000
            assert kb <= 60, f'the picture of cell {i} has {kb:.0f} KB of at most 60'


def trees(): return [(o, ast.parse((ROOT/o).read_text(), o)) for o in MODULES]


def test_functions_are_short():
    funcs = [(o, f) for o, t in trees() for f in ast.walk(t) if isinstance(f, (ast.FunctionDef, ast.AsyncFunctionDef))]
    long = [f'{o}:{f.lineno} {f.name} has {n} lines' for o, f in funcs if (n := f.end_lineno - f.lineno + 1) > 40]
    assert not long, f'40 lines at most: {long}'


def test_no_wildcard_import_in_a_module():
    wild = [f'{o}:{i.lineno}' for o, t in trees() for i in ast.walk(t) if isinstance(i, ast.ImportFrom) and i.names[0].name == '*']
    assert not wild, f'name what is imported: {wild}'


# Imports

def test_the_floors_of_the_house():
    run_python('-c', 'import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True))', cwd=ROOT)


def test_importing_the_package_costs_nothing(tmp_path):
    ms, new = run_python('-c', 'import sys, time; before = set(sys.modules); t = time.perf_counter(); import reid_nb; '
                         'print(1000*(time.perf_counter() - t)); print(*set(sys.modules) - before)', cwd=tmp_path).splitlines()
    print(f'import reid_nb: {float(ms):.1f} ms')
    assert new == 'reid_nb'


def test_retrieval_imports_arrays_only(tmp_path):
    mods = ['.'.join(o.with_suffix('').parts) for o in MODULES if o.parts[1] == 'retrieve' and o.stem != '__init__']
    heavy = {'torch', 'torchvision', 'timm', 'fastai', 'fastcore', 'matplotlib'}
    assert not run_python('-c', f'import sys, {", ".join(mods)}; print(*{heavy} & set(sys.modules))', cwd=tmp_path).strip()


# Settings and words

def test_settings_and_installation_agree():
    cfg = ConfigParser(delimiters=['='])
    cfg.read(ROOT/'settings.ini')
    ini, toml = cfg['DEFAULT'], tomllib.loads((ROOT/'pyproject.toml').read_text())
    assert ini['lib_path'] == toml['tool']['nbdev']['lib_path'] == toml['project']['name']
    reqs = [Requirement(o) for o in distribution('reid_nb').requires]
    again = 'settings.ini changed after the installation: run `python -m pip install -e ".[dev]"` again'
    ini['dev'] = ' '.join(ini[o] for o in ('lab', 'video', 'search', 'calibrate', 'cuhk03', 'export', 'test'))
    for extra in ('requirements', 'lab', 'video', 'search', 'calibrate', 'cuhk03', 'export', 'dev'):
        got = {f'{r.name}{r.specifier}' for r in reqs if (r.marker.evaluate({'extra': extra}) if r.marker else extra == 'requirements')}
        assert got == {f'{r.name}{r.specifier}' for r in map(Requirement, shlex.split(ini[extra]))}, again


MACHINE = r'/(?:work|root|home/\w+|Users/\w+)/|[A-Z]:\\+Users'
REGISTRY = r'/simple/|-index-url|"resolved": *"http|\b(?:pypi\.org|pythonhosted|npmjs\.|anaconda\.org)'

def test_no_file_names_a_machine_or_a_registry():
    texts = {o: (ROOT/o).read_text() for o in FILES if o.suffix not in ('.png', '.jpg') and not (ROOT/o).samefile(__file__)}
    found = {f'{o}: {m[0]}' for o, text in texts.items() for m in re.finditer(f'{MACHINE}|{REGISTRY}', text)}
    assert not found
