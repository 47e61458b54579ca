"Pictures, figures and the rank browser's state, without a browser"
import json
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageColor

from reid_nb.core import ReidError, make_items, rows_of

N_ID, N_CAM = 8, 3


@pytest.fixture(scope='module')
def people(tmp_path_factory): # 8 persons × 3 cameras × 3 pictures, 4 distractors, 4 junk; a colour per person
    root, rng, rows = tmp_path_factory.mktemp('people'), np.random.default_rng(0), []
    for pid in [*range(1, N_ID + 1), 0, -1]:
        for cam in range(N_CAM):
            for n in range(3 if pid > 0 else 1 + (cam == 0)):
                path = root/f'{pid}_{cam}_{n}.jpg'
                Image.new('RGB', (32, 64), tuple(rng.integers(0, 256, 3).tolist())).save(path)
                rows.append((path, pid, cam, 'query' if pid > 0 and n == 0 else 'gallery'))
    path, pid, cam, split = zip(*rows)
    items = make_items(path, pid, cam, split)
    who = rng.normal(size=(N_ID + 2, 16))
    feats = who[items.pid] + .8 * rng.normal(size=(N_CAM, 16))[items.cam.astype(int)] + 1.1 * rng.normal(size=(len(items), 16))
    return items, feats.astype(np.float32)


def results(people, **kw):
    from reid_nb.retrieve.results import ReidResults
    items, feats = people
    q, g = (items.split == o for o in ('query', 'gallery'))
    return ReidResults.from_feats(feats[q], feats[g], rows_of(items, 'query'), rows_of(items, 'gallery'), **kw)


@pytest.fixture(scope='module')
def res(people): return results(people)


@pytest.fixture(scope='module')
def bare(people): return results(people, keep_feats=False, topk=5)


@pytest.fixture
def plots():
    import matplotlib.pyplot as plt
    import reid_nb.show.plots as plots
    yield plots
    plt.close('all')


@pytest.fixture
def widgets():
    import reid_nb.show.widgets as widgets
    return widgets


# -- thumbnails ---------------------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('mode', ['RGB', 'L', 'RGBA', 'P', 'I;16', 'CMYK'])
def test_thumbnail_reads_any_kind_of_picture(plots, tmp_path, mode):
    file = tmp_path/('a.tif' if mode == 'CMYK' else 'a.png')
    Image.new(mode, (30, 90)).save(file)
    im, why = plots.thumbnail(file, (64, 32))
    assert (im.size, im.mode, why) == ((32, 64), 'RGB', '')


def test_thumbnail_keeps_proportions(plots, tmp_path):
    Image.new('RGB', (200, 50), (255, 0, 0)).save(tmp_path/'wide.png')
    a = np.asarray(plots.thumbnail(tmp_path/'wide.png', (64, 32))[0])
    red = (a == (255, 0, 0)).all(2)
    assert red.any(1).sum() == 8 and red.any(0).sum() == 32


def test_thumbnail_sees_a_changed_file(plots, tmp_path):
    file = tmp_path/'a.png'
    for colour in ((255, 0, 0), (0, 0, 255)):
        Image.new('RGB', (8, 16), colour).save(file)
        assert plots.thumbnail(file, (16, 8))[0].getpixel((4, 8)) == colour


def test_thumbnail_tells_missing_from_broken(plots, tmp_path, people):
    data = Path(people[0].path[0]).read_bytes()
    (tmp_path/'cut.jpg').write_bytes(data[:len(data) // 3])
    (tmp_path/'text.jpg').write_text('no picture')
    whys = [plots.thumbnail(tmp_path/o)[1] for o in ('none.jpg', 'cut.jpg', 'text.jpg', '.')]
    assert whys == ['missing', 'unreadable', 'unreadable', 'unreadable']


def test_caches_are_bounded(plots, widgets):
    assert plots._read.cache_info().maxsize == 2048 and widgets._encode.cache_info().maxsize == 4096


# -- rank lists ---------------------------------------------------------------------------------------------------------------------------

def slow_view(res, i, k, source): # the same by sorting, row by row
    q, feat = (res.query, res.q_feat) if source == 'query' else (res.gallery, res.g_feat)
    norm = lambda o: o.astype(float) / np.linalg.norm(o)
    rows = []
    for r, g in enumerate(res.gallery.itertuples()):
        kind = 'self' if g.path == q.path[i] else 'junk' if g.pid == -1 else 'wrong' if g.pid != q.pid[i] else 'same_cam' if g.cam == q.cam[i] else 'match'
        rows.append((1 - norm(feat[i]) @ norm(res.g_feat[r]), r, kind))
    out, rank = [], 0
    for _, r, kind in sorted(rows):
        rank += kind in ('match', 'wrong')
        if rank > k or rank == k and kind not in ('match', 'wrong'): break
        out.append((r, kind, rank if kind in ('match', 'wrong') else None))
    hits = [o for o in out if o[1] == 'match']
    ap = np.mean([(n + 1) / o[2] for n, o in enumerate(hits)]) if hits else np.nan
    return out, ap, hits[0][2] if hits else 0


@pytest.mark.parametrize('source', ['query', 'gallery'])
def test_rank_view_is_what_sorting_gives(plots, res, source):
    for i in range(0, len(getattr(res, source)), 3):
        if getattr(res, source).pid[i] == -1: continue
        want, _, _ = slow_view(res, i, 6, source)
        view = plots.rank_view(res, i, 6, removed=True, source=source)
        assert [(o.row, o.kind, o.rank) for o in view.cards] == want
        assert [o.row for o in plots.rank_view(res, i, 6, source=source).cards] == [o[0] for o in want if o[2]]
        _, ap, first = slow_view(res, i, 10**6, source)
        assert view.first == first and np.isclose(view.ap, ap, equal_nan=True)


def test_rank_view_of_a_gallery_picture_nobody_else_shows(plots, res):
    for pid in (-1, 0):
        i = int(np.flatnonzero(res.gallery.pid == pid)[0])
        view = plots.rank_view(res, i, 3, source='gallery')
        assert len(view.cards) == 3
        if pid == -1: assert view.n_match == 0 and np.isnan(view.ap) and 'nothing to find' in view.line


def test_rank_view_without_features(plots, bare):
    assert len(plots.rank_view(bare, 0, k=5).cards) == 5
    view = plots.rank_view(bare, 0, k=5, removed=True) # only five are noted, some of them don't count
    assert 0 < sum(o.rank is not None for o in view.cards) <= 5
    with pytest.raises(ReidError, match='keep_feats'): plots.rank_view(bare, 0, k=6)
    with pytest.raises(ReidError, match='keep_feats'): plots.rank_view(bare, 0, source='gallery')


def test_rank_view_names_bad_requests(plots, res):
    for i in (-1, len(res.query)):
        with pytest.raises(IndexError, match='rows 0 to'): plots.rank_view(res, i)
    for source in ('query', 'gallery'):
        with pytest.raises(ValueError, match='at least'): plots.rank_view(res, 0, k=0, source=source)


def test_items_without_cameras(plots, people):
    from reid_nb.retrieve.results import ReidResults
    items, feats = people
    items = items.assign(cam=None)
    q, g = (items.split == o for o in ('query', 'gallery'))
    view = plots.rank_view(ReidResults.from_feats(feats[q], feats[g], rows_of(items, 'query'), rows_of(items, 'gallery')), 0)
    assert view.query.cam is None and not any('cam' in t for o in view.cards for t in o.lines)


def test_frames_have_the_colour_of_their_kind(plots, res):
    views = [plots.rank_view(res, i, removed=True) for i in range(len(res.query))]
    view = next(v for v in views if {'match', 'wrong', 'same_cam'} <= {o.kind for o in v.cards})
    px = np.asarray(plots.draw_view(view)).reshape(-1, 3)
    for card in [view.query, *view.cards]: assert (px == ImageColor.getrgb(card.colour)).all(1).any(), card.kind
    signs = {o.kind: o.head for o in view.cards}
    assert '✓' in signs['match'] and '✗' in signs['wrong'] and signs['same_cam'] == 'same cam'


def test_signs_tell_without_colour(plots, res):
    view = plots.rank_view(res, 0, k=1)
    flip = dict(match='wrong', wrong='match')
    other = replace(view, cards=[replace(view.cards[0], kind=flip[view.cards[0].kind])])
    a, b = (np.asarray(plots.draw_view(v).convert('L'), int) for v in (view, other))
    assert ((a > 200) != (b > 200)).any() # white signs differ in shape


@pytest.mark.parametrize('k,cols', [(1, None), (7, 3), (10, None)])
def test_draw_view_fits_what_it_draws(plots, res, k, cols):
    view = plots.rank_view(res, 0, k)
    im = plots.draw_view(view, (128, 64), cols)
    assert im.width >= plots._font(14, True).getlength(view.title) and im.height >= -(-k // (cols or k)) * 128
    assert plots.rank_image(res, 0, k, cols=cols).tobytes() == im.tobytes()


def test_missing_files_are_counted(plots, res):
    view = plots.rank_view(res, 0, k=4)
    view = replace(view, query=replace(view.query, path='gone.jpg'), cards=[replace(view.cards[0], path='gone2.jpg'), *view.cards[1:]])
    assert plots.draw_view(view).info['unread'] == 2


# -- figures and files --------------------------------------------------------------------------------------------------------------------

def test_query_order(plots, res):
    res = replace_stats(res, ap=np.where(np.arange(len(res.query)) == 2, np.nan, res.stats.ap))
    n, ap = len(res.query), res.stats.ap
    assert plots.query_order(res).tolist() == list(range(n))
    worst, best, shuffled = (plots.query_order(res, o, seed=1) for o in ('worst', 'best', 'random'))
    assert worst[-1] == best[-1] == 2 # nothing to find: last either way
    assert (np.diff(ap[worst[:-1]]) >= 0).all() and (np.diff(ap[best[:-1]]) <= 0).all()
    assert sorted(shuffled) == list(range(n)) and shuffled.tolist() != list(range(n)) and (shuffled == plots.query_order(res, 'random', seed=1)).all()
    with pytest.raises(ValueError, match="'bad'"): plots.query_order(res, 'bad')


def replace_stats(res, **kw):
    from reid_nb.retrieve.results import ReidResults
    return ReidResults(res.query, res.gallery, replace(res.stats, **kw), res.near, res.metric, res.q_feat, res.g_feat)


@pytest.mark.parametrize('queries,n', [(None, 4), (3, 1), ([0, 5, 2], 3), ('worst', 4), (np.array([1, 2]), 2)])
def test_show_ranks(plots, res, tmp_path, queries, n):
    ax = res.show_ranks(queries, k=3, file=tmp_path/'a.png')
    with Image.open(tmp_path/'a.png') as im:
        assert im.height == n * (plots.rank_image(res, 0, 3, size=(96, 48)).height + 14) - 14
        assert tuple(ax.figure.get_size_inches() * ax.figure.dpi) == pytest.approx(im.size)


def test_save_ranks(plots, res, tmp_path):
    (tmp_path/'mine.jpg').write_text('not yours')
    out = res.save_ranks(tmp_path, k=3, size=(64, 32), progress=False)
    assert len(out) == len(res.query) == len(list(tmp_path.glob('ap*.jpg'))) and (out.unread == 0).all()
    assert sorted(out.file) == out.file.tolist() and out.ap.is_monotonic_increasing
    assert res.query.path[out['query'][0]].endswith(out.file[0].split('_', 2)[2])
    few = plots.save_ranks(res, tmp_path, n=2, k=3, size=(64, 32), progress=False)
    assert {o.name for o in tmp_path.iterdir()} == {*few.file, 'ranks.csv', 'mine.jpg'}


def test_save_ranks_says_what_is_missing(plots, people, tmp_path):
    items, feats = people
    res = results((items.assign(path=items.path.where(items.index != items.index[items.split == 'query'][0], 'gone.jpg')), feats))
    with pytest.warns(UserWarning, match='1 pictures in 1 of 24 rank lists'): out = res.save_ranks(tmp_path, k=2, size=(64, 32), progress=False)
    assert out.unread.sum() == 1 and out.path[out.unread == 1].tolist() == ['gone.jpg']


def test_save_ranks_shows_progress(plots, res, tmp_path, capsys):
    res.save_ranks(tmp_path, n=2, k=2, size=(64, 32))
    assert '100.00%' in capsys.readouterr().out


def test_plot_cmc(plots, res, bare, tmp_path):
    ax = plots.plot_cmc({'one': res, 'two': bare}, max_rank=7, file=tmp_path/'cmc.pdf')
    assert [len(o.get_xdata()) for o in ax.lines] == [7, 7] and np.allclose(ax.lines[0].get_ydata(), 100 * res.cmc[:7])
    assert [o.get_text().split(':')[0] for o in ax.get_legend().get_texts()] == ['one', 'two'] and (tmp_path/'cmc.pdf').stat().st_size > 1000
    assert res.plot_cmc(ax=ax) is ax


@pytest.mark.parametrize('kw', [dict(), dict(protocol='all'), dict(metric='euclidean')])
def test_distances_are_counted_once(plots, people, kw):
    from reid_nb.retrieve.distance import pairwise
    res = results(people, **kw)
    d, n = pairwise(res.q_feat, res.g_feat, res.metric), dict(same=[], different=[])
    for i, q in enumerate(res.query.itertuples()):
        for j, g in enumerate(res.gallery.itertuples()):
            if g.pid == -1 or g.path == q.path or (kw.get('protocol') != 'all' and (g.pid, g.cam) == (q.pid, q.cam)): continue
            n['same' if g.pid == q.pid else 'different'].append(d[i, j])
    h = plots.distance_hist(res, bins=20)
    edges = np.append(h.lo, h.hi.iloc[-1])
    assert (edges[0], edges[-1]) == pytest.approx((min(map(min, n.values())), max(map(max, n.values()))), rel=2e-4, abs=1e-5)
    for col, want in n.items():
        assert h[col].sum() == len(want)
        assert np.abs(h[col].cumsum() - np.histogram(want, edges)[0].cumsum()).max() <= 1 # a distance on an edge may fall to either side


def test_equal_distances_make_a_histogram(plots, people):
    items, feats = people
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        h = plots.distance_hist(results((items, np.ones_like(feats))))
    assert (h[['same', 'different']] > 0).sum().tolist() == [1, 1]


def test_plot_distances(plots, res, bare, tmp_path):
    ax = res.plot_distances(file=tmp_path/'d.png')
    assert ax.get_xlabel() == 'cosine distance' and (tmp_path/'d.png').exists()
    with pytest.raises(ReidError, match='keep_feats=True'): bare.plot_distances()


# -- the browser's state ------------------------------------------------------------------------------------------------------------------

def test_walking(widgets, res):
    s = widgets.BrowserState(res, k=4)
    assert s.view().query.row == 0 and len(s.view().cards) == 4
    s.step(-1)
    assert s.pos == 0
    s.goto(7)
    assert s.at == ('query', 7)
    s.goto(10**9)
    assert s.pos == len(res.query) - 1
    s.step(1)
    assert s.pos == len(res.query) - 1


def test_order_and_filters(widgets, res):
    s = widgets.BrowserState(res, order='worst')
    assert s.view().ap == np.nanmin(res.stats.ap)
    s.goto(3)
    here, fails = s.at, np.flatnonzero(res.stats.first > 1)
    s.set(failures=True)
    assert sorted(s.queries) == fails.tolist() and (s.at == here) == (here[1] in fails) # stays, if it still fits
    s.set(failures=False, cam=1)
    assert (res.query.cam[s.queries] == 1).all() and len(s.queries) == N_ID
    s.set(order='best')
    assert s.pos == 0 and (res.query.cam[s.queries] == 1).all()
    s.set(cam=None)
    assert len(s.queries) == len(res.query)
    s.set(k=10**6)
    assert s.k == s.max_k == 50


def test_nothing_fits(widgets, res):
    s = widgets.BrowserState(replace_stats(res, first=np.ones_like(res.stats.first)), failures=True)
    s.step(1)
    s.back()
    assert s.view() is None and s.at is None
    s.set(failures=False)
    assert s.view().query.row == 0
    data = widgets._page_data(widgets.BrowserState(replace_stats(res, first=np.ones_like(res.stats.first)), failures=True), (64, 32))
    assert data['n'] == 0 and data['cards'] == [] and 'No query fits' in data['title']


def test_asking_with_gallery_pictures(widgets, res, bare):
    s = widgets.BrowserState(res)
    s.goto(4)
    s.pick(9)
    s.pick(2)
    assert s.at == ('gallery', 2) and s.view().query.path == res.gallery.path[2] and len(s.past) == 2
    s.back()
    assert s.at == ('gallery', 9)
    s.back()
    s.back()
    assert s.at == ('query', 4)
    s.pick(1)
    s.step(1)
    assert s.at == ('query', 5) and not s.past
    with pytest.raises(ValueError, match='no gallery row'): s.pick(len(res.gallery))
    with pytest.raises(ValueError, match='keep_feats'): widgets.BrowserState(bare).pick(0)
    assert widgets.BrowserState(bare).max_k == 5


def test_bad_options_change_nothing(widgets, res):
    s = widgets.BrowserState(res)
    before = dict(vars(s), queries=s.queries.tolist())
    for kw in (dict(order='x'), dict(cam=99), dict(colour=1), dict(k=3, order='x')):
        with pytest.raises(ValueError): s.set(**kw)
    assert dict(vars(s), queries=s.queries.tolist()) == before


# -- the widget, without a page -----------------------------------------------------------------------------------------------------------

def test_only_shown_pictures_are_read(widgets, res):
    widgets._encode.cache_clear()
    b = res.browse(k=5)
    assert widgets._encode.cache_info().misses == 6
    b.do('step', by=1)
    b.do('step', by=-1)
    assert widgets._encode.cache_info().misses <= 12 and widgets._encode.cache_info().hits >= 6


def test_view_is_plain_data(widgets, res):
    b = res.browse(k=3, removed=True)
    v = json.loads(json.dumps(b.view))
    assert v == b.view and v['cards'][0]['src'].startswith('data:image/jpeg;base64,')
    assert {o['kind'] for o in v['cards']} <= set(widgets.KINDS) and v['line'].startswith('AP ')


def test_every_command_is_answered(widgets, res, tmp_path):
    b, ticks = res.browse(k=3, folder=tmp_path/'new'), [0]
    for msg in (dict(what='step', by=1), dict(what='goto', pos=5), dict(what='pick', row=3), dict(what='back'), dict(what='set', k=2), dict(what='set', cam=None),
                dict(what='save'), dict(what='dance'), dict(what='pick', row=-1), dict(what='__init__'), dict(what='goto', wrong=1)):
        b._handle_custom_msg(msg, [])
        assert b.view['tick'] > ticks[-1]
        ticks.append(b.view['tick'])
        assert bool(b.view['note']) == (msg['what'] in ('save', 'dance', '__init__') or msg.get('row') == -1 or 'wrong' in msg)
    files = list((tmp_path/'new').iterdir())
    assert len(files) == 1
    with Image.open(files[0]) as im: assert im.width > 300


def test_missing_pictures_leave_a_place(widgets, people):
    items, feats = people
    b = results((items.assign(path='gone' + items.index.astype(str)), feats)).browse(k=3)
    assert [o['src'] for o in b.view['cards']] == [''] * 3


def test_static_picture_comes_first(widgets, res, monkeypatch):
    shown = []
    monkeypatch.setattr(widgets, 'display', lambda o, raw: shown.append(o))
    b = res.browse(k=3)
    b._ipython_display_()
    assert '<img src="data:image/jpeg;base64,' in shown[0]['text/html'] and len(shown[0]['text/html']) < 60_000
    assert list(shown[1]) == ['text/plain', 'application/vnd.jupyter.widget-view+json'] and '24 queries' in shown[1]['text/plain']
    b.do('set', cam=0, k=50)
    assert len(shown) == 2
