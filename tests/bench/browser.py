"""How long a click in the rank browser takes on a gallery of 20,000 rows with 512 features

    python tests/bench/browser.py            # what Python does for a click
    python tests/bench/browser.py --page     # from the click to the drawn page, in JupyterLab and Chromium
"""
import argparse, statistics, sys, tempfile, time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

MAKE = '''
import numpy as np
from PIL import Image
from pathlib import Path
from reid_nb.core import make_items, rows_of
from reid_nb.retrieve.results import ReidResults
import reid_nb.show.widgets
def make(folder, n_q=1000, n_g=20000, d=512, n_ids=1500, n_cams=6, seed=0): # a file per row, as on disk; the features know the person and the camera a little
    rng, folder = np.random.default_rng(seed), Path(folder)
    folder.mkdir(exist_ok=True)
    pid, cam = rng.integers(0, n_ids, n_q + n_g), rng.integers(0, n_cams, n_q + n_g)
    for i in range(n_q + n_g):
        im = Image.fromarray(rng.integers(0, 256, (16, 8, 3), dtype=np.uint8)).resize((64, 128))
        im.save(folder / f'{i:06}.jpg', quality=90)
    items = make_items([folder / f'{i:06}.jpg' for i in range(n_q + n_g)], pid, cam, ['query'] * n_q + ['gallery'] * n_g)
    feats = (rng.normal(size=(n_ids, d))[pid] + rng.normal(size=(n_cams, d))[cam] + 2 * rng.normal(size=(n_q + n_g, d))).astype(np.float32)
    return ReidResults.from_feats(feats[:n_q], feats[n_q:], rows_of(items, 'query'), rows_of(items, 'gallery'))
'''

def line(name, ms): print(f'{name:38} median {statistics.median(ms):7.1f} ms   worst {max(ms):7.1f} ms   of {len(ms)}')

CLICKS = [('next query', 'step', [dict(by=1)] * 30), ('slider', 'goto', [dict(pos=37 * i % 1000) for i in range(30)]), ('top 50', 'set', [dict(k=50), dict(k=10)] * 5),
          ('show what is left out', 'set', [dict(removed=True), dict(removed=False)] * 5), ('worst first, then table order', 'set', [dict(order='worst'), dict(order='table')] * 5),
          ('failures only, then all', 'set', [dict(failures=True), dict(failures=False)] * 5), ('a gallery picture asks', 'pick', [dict(row=613 * i) for i in range(30)]),
          ('back', 'back', [{}] * 10), ('PNG', 'save', [{}] * 3)]

def in_python(res, folder):
    b = res.browse(folder=folder)
    for name, what, calls in CLICKS:
        ms = []
        for kw in calls:
            t = time.perf_counter()
            b.do(what, **kw)
            ms.append(1000 * (time.perf_counter() - t))
        assert 'Error' not in b.view['note'], b.view['note']
        line(name, ms)

def in_page(folder):
    import test_browser as t
    t.CELLS[:] = [MAKE, f"res = make({str(folder)!r})", "b = res.browse(folder='out')\nb"]
    errors, root = [], Path(tempfile.mkdtemp())
    with t.jupyterlab(root) as (_, url), t.chromium(root / 'chrome', errors) as page:
        page.set_default_timeout(120_000)
        t.open_notebook(page, url)
        page.evaluate("() => window.jupyterapp.commands.execute('notebook:run-all-cells')")
        b = t.Browser(page)
        b.root.locator('.reid-found .reid-card').first.wait_for()
        def clicks(name, n, do):
            ms = []
            for i in range(n):
                b.act(lambda: do(i))
                ms.append(float(b.root.get_attribute('data-ms')))
            line(name, ms)
        clicks('next query', 20, lambda i: b.at('next').click())
        clicks('a gallery picture asks', 20, lambda i: b.root.locator('.reid-found .reid-card').nth(i % 10).click())
        clicks('back', 10, lambda i: b.at('back').click())
        clicks('top 50, then 10', 6, lambda i: b.at('k').fill(['50', '10'][i % 2]))
        clicks('failures only, then all', 6, lambda i: b.at('failures').click())
    print('console errors:', errors)

if __name__ == '__main__':
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--page', action='store_true', help='measure in JupyterLab and Chromium')
    with tempfile.TemporaryDirectory() as folder:
        if p.parse_args().page: in_page(folder)
        else:
            exec(MAKE)
            t = time.perf_counter()
            res = globals()['make'](folder)
            print(f'made in {time.perf_counter() - t:.0f} s')
            in_python(res, folder)
