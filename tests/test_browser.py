"The rank browser in real JupyterLab in headless Chromium: run all cells, then use every control and read the page"
import json, os, shutil, signal, socket, subprocess, sys, tempfile, time, urllib.request
from contextlib import contextmanager
from pathlib import Path

import pytest

CHROMIUM = os.environ.get('REID_NB_CHROMIUM') or next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)
CELLS = ['''
import numpy as np
from PIL import Image
from reid_nb.core import rows_of
from reid_nb.data.synth import synth_people
from reid_nb.retrieve.results import ReidResults
import reid_nb.show.widgets
''', '''
items = synth_people('people', n_ids=24, n_cams=3, per_cam=3, distractors=20, junk=10, camera_effects=.4, seed=1)
def feats(paths): # colours of a strip from head to foot, each picture's mean and spread taken out
    a = np.stack([np.asarray(Image.open(p).convert('RGB').resize((6, 24)), np.float32)[:, 2:4] for p in paths])
    return ((a - a.mean((1, 2), keepdims=True)) / a.std((1, 2), keepdims=True)).reshape(len(a), -1)
query, gallery = rows_of(items, 'query'), rows_of(items, 'gallery')
res = ReidResults.from_feats(feats(query.path), feats(gallery.path), query, gallery)
''', "b = res.browse(order='worst', folder='out')\nb"]
BENIGN = ( # console errors of the page that say nothing about the widget, each with its reason
)
IDLE = '''async () => { const sc = window.jupyterapp.shell.currentWidget.sessionContext; await sc.ready;
    for (let i = 0; i < 600; i++) { if (sc.session?.kernel?.status === 'idle') return; await new Promise(r => setTimeout(r, 100)) }
    throw new Error('the kernel is not idle after 60 s') }'''

def missing(): # what stands in the way of this test, or ''
    if not CHROMIUM: return 'no Chromium found (apt install chromium, or name it in REID_NB_CHROMIUM)'
    for mod in ('playwright', 'jupyterlab', 'anywidget'):
        try: __import__(mod)
        except ImportError: return f'{mod} is not installed'
    return ''

def free_port():
    with socket.socket() as s: s.bind(('127.0.0.1', 0)); return s.getsockname()[1]

@contextmanager
def jupyterlab(root): # JupyterLab with everything that it writes below `root`
    work, port, token = root / 'work', free_port(), 'tok'
    settings = root / 'settings/@jupyterlab/apputils-extension/notification.jupyterlab-settings'
    for o in (work, settings.parent): o.mkdir(parents=True)
    settings.write_text(json.dumps(dict(fetchNews='false', checkForUpdates=False)))
    cells = [dict(cell_type='code', id=f'c{n}', metadata={}, source=s.strip(), outputs=[], execution_count=None) for n, s in enumerate(CELLS)]
    kernel = dict(kernelspec=dict(name='python3', display_name='python3', language='python'))
    (work / 'browse.ipynb').write_text(json.dumps(dict(cells=cells, metadata=kernel, nbformat=4, nbformat_minor=5)))
    dirs = dict(JUPYTER_CONFIG_DIR='config', JUPYTER_DATA_DIR='data', JUPYTER_RUNTIME_DIR='runtime', JUPYTERLAB_SETTINGS_DIR='settings',
                JUPYTERLAB_WORKSPACES_DIR='workspaces', IPYTHONDIR='ipython')
    env = os.environ | {k: str(root / v) for k, v in dirs.items()} | dict(OMP_WAIT_POLICY='PASSIVE')
    env.pop('MPLBACKEND', None)
    cmd = [sys.executable, '-m', 'jupyterlab', '--no-browser', '--allow-root', f'--port={port}', '--ServerApp.port_retries=0', f'--IdentityProvider.token={token}',
           '--LabApp.expose_app_in_browser=True', '--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate', f'--ServerApp.root_dir={work}']
    with open(root / 'lab.log', 'w') as log: lab = subprocess.Popen(cmd, cwd=work, env=env, stdout=log, stderr=log, start_new_session=True)
    try:
        for _ in range(300):
            try: urllib.request.urlopen(f'http://127.0.0.1:{port}/api', timeout=1); break
            except OSError: time.sleep(.1)
            if lab.poll() is not None: break
        else: lab.poll()
        if lab.poll() is not None: pytest.fail(f'JupyterLab ended: {(root / "lab.log").read_text()[-2000:]}')
        yield work, f'http://127.0.0.1:{port}/lab/tree/browse.ipynb?token={token}&reset'
    finally:
        if lab.poll() is None: lab.terminate()
        try: lab.wait(15) # it ends its kernels first
        except subprocess.TimeoutExpired: os.killpg(lab.pid, signal.SIGKILL); lab.wait()

@contextmanager
def chromium(profile, errors): # a page whose console errors are gathered in `errors`
    from playwright.sync_api import sync_playwright
    with sync_playwright() as p:
        flags = ['--no-sandbox', '--disable-gpu', '--disable-dev-shm-usage', '--no-first-run', '--disable-background-networking']
        ctx = p.chromium.launch_persistent_context(str(profile), executable_path=CHROMIUM, headless=True, args=flags, viewport=dict(width=1240, height=860))
        page = ctx.pages[0]
        page.set_default_timeout(40_000)
        page.on('console', lambda m: errors.append(m.text) if m.type == 'error' and not any(o in m.text for o in BENIGN) else None)
        page.on('pageerror', lambda e: errors.append(str(e)))
        try: yield page
        finally: ctx.close()

class Browser:
    "The widget as a user meets it: controls by class name, figures read from the page"
    def __init__(self, page): self.page, self.root = page, page.locator('.reid-browser')
    def at(self, name): return self.root.locator(f'.reid-{name}')
    def text(self, name): return self.at(name).inner_text()
    def kinds(self): return self.root.locator('.reid-found .reid-card').evaluate_all('cards => cards.map(o => o.dataset.kind)')
    @property
    def tick(self): return int(self.root.get_attribute('data-tick'))
    def act(self, do): # do something and wait for the answer
        before = self.tick
        do()
        self.page.wait_for_function('([o]) => +document.querySelector(".reid-browser").dataset.tick > o', arg=[before])
        return self

def open_notebook(page, url):
    page.goto(url, wait_until='domcontentloaded')
    page.wait_for_selector('.jp-NotebookPanel .jp-Notebook .jp-Cell')
    page.evaluate(IDLE)

def walk(b): # query: slider, buttons, keys
    first = b.text('title')
    assert len(b.kinds()) == 10 and b.at('num').input_value() == '1' and b.at('prev').is_disabled()
    b.at('pos').focus()
    b.act(lambda: b.at('pos').press('ArrowRight'))
    assert b.at('num').input_value() == '2' and b.text('title') != first
    b.act(b.at('next').click)
    assert b.at('num').input_value() == '3'
    b.act(b.at('prev').click).act(b.at('prev').click)
    assert b.text('title') == first
    b.at('title').click()
    b.act(lambda: b.page.keyboard.press('ArrowRight'))
    assert b.at('num').input_value() == '2'
    b.at('num').fill('5')
    b.act(lambda: b.at('num').press('Enter'))
    assert b.at('num').input_value() == '5'

def ask_gallery(b): # a click on a picture, and back
    before = b.text('title')
    card = b.root.locator('.reid-found .reid-card').nth(2)
    row = card.get_attribute('data-row')
    b.act(card.click)
    assert b.text('title').startswith(f'gallery {row} ·') and b.at('ask').locator('.reid-card').get_attribute('data-row') == row
    assert 'AP' in b.text('line')
    b.act(lambda: b.page.keyboard.press('Backspace'))
    assert b.text('title') == before and b.at('back').is_disabled()

def filters(b): # failures, camera, order, top-k, same camera
    n = int(b.text('of').split()[1])
    b.act(b.at('failures').check)
    words = b.text('of').split()
    assert 0 < int(words[1]) < n and f'({n} in all)' in b.text('of') and b.kinds()[0] == 'wrong'
    b.act(b.at('failures').uncheck)
    b.act(lambda: b.at('cam').select_option('1'))
    assert 'cam 1' in b.text('title') and int(b.text('of').split()[1]) < n
    b.act(lambda: b.at('cam').select_option(''))
    b.act(lambda: b.at('order').select_option('best'))
    assert b.at('num').input_value() == '1' and b.kinds()[0] == 'match'
    b.at('k').focus()
    b.act(lambda: b.at('k').press('ArrowLeft'))
    assert len(b.kinds()) == 9 and b.text('kval') == '9'
    b.act(b.at('removed').check)
    assert 'same_cam' in b.kinds() and sum(o in ('match', 'wrong') for o in b.kinds()) == 9
    b.act(b.at('removed').uncheck)

def write_png(b, work):
    from PIL import Image
    b.act(b.at('save').click)
    file = Path(b.text('note').removeprefix('written to '))
    assert file.parent == work / 'out' and file.suffix == '.png'
    with Image.open(file) as im: assert im.width > 800

def static_picture(b, work): # the notebook as saved, and as it looks where nothing runs
    page = b.page
    assert not page.locator('.reid-still').is_visible(), 'the static picture shows beside the live widget'
    page.evaluate("() => window.jupyterapp.commands.execute('docmanager:save')")
    nb = json.loads((work / 'browse.ipynb').read_text())
    assert 'widgets' not in nb['metadata'] and (work / 'browse.ipynb').stat().st_size < 100_000
    htmls = [''.join(o['data'].get('text/html', '')) for o in nb['cells'][-1]['outputs']]
    assert sum('<img src="data:image/jpeg' in o for o in htmls) == 1

def reopen(page, url): # with a new kernel that knows nothing of the widget. JupyterLab tells the console so, hence this comes last
    page.evaluate("() => window.jupyterapp.shell.currentWidget.sessionContext.shutdown()")
    open_notebook(page, url.removesuffix('&reset'))
    page.locator('.reid-still').wait_for()
    page.wait_for_function("() => document.body.innerText.includes('Run this cell in Jupyter') && document.querySelector('.jp-OutputArea-child .jupyter-widgets')")
    assert page.locator('.reid-browser').count() == 0 and page.locator('.reid-still img').is_visible()
    assert not page.get_by_text('Error displaying widget').is_visible()

def test_rank_browser(tmp_path):
    if why := missing():
        if os.environ.get('CI') or os.environ.get('REID_NB_NEED_BROWSER'): pytest.fail(f'The browser test must run here, but {why}.')
        pytest.skip(why)
    shots = Path(os.environ.get('REID_NB_SHOTS') or tempfile.mkdtemp(prefix='reid_nb_shots_'))
    shots.mkdir(parents=True, exist_ok=True)
    errors = []
    with jupyterlab(tmp_path) as (work, url), chromium(tmp_path / 'chrome', errors) as page:
        try:
            open_notebook(page, url)
            assert page.evaluate("() => window.jupyterapp.commands.execute('notebook:run-all-cells')"), 'a cell failed'
            b = Browser(page)
            b.root.locator('.reid-found .reid-card').first.wait_for()
            b.root.scroll_into_view_if_needed()
            for step in (walk, ask_gallery, filters): step(b)
            write_png(b, work)
            page.screenshot(path=shots / 'rank_browser_light.png')
            static_picture(b, work)
            page.evaluate("() => window.jupyterapp.commands.execute('apputils:change-theme', {theme: 'JupyterLab Dark'})")
            page.wait_for_function("() => document.body.dataset.jpThemeLight === 'false'")
            page.wait_for_timeout(300)
            page.screenshot(path=shots / 'rank_browser_dark.png')
            assert not errors, f'{len(errors)} console errors: {errors[:5]}'
            reopen(page, url)
        except BaseException:
            page.screenshot(path=shots / 'rank_browser_failed.png')
            raise
