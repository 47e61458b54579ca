"Every exercise of the course knows its right answer, and tells a reader who made a common mistake which one it was"
import re

import numpy as np
import pandas as pd
import pytest
from reid_nb import course
from reid_nb.core import make_items
from reid_nb.course import EXERCISES, PAIRS, camera_bound, check, hint, slider
from reid_nb.retrieve.rank import rank_stats
from reid_nb.retrieve.results import ReidResults


def results(noise, n=220, protocol='market'): # people found the better, the less noise
    rng = np.random.default_rng(0)
    who = rng.normal(size=(n, 32))
    tables = [make_items([f'{split}{i}.jpg' for i in range(n)], range(n), cam=cam, split=split) for cam, split in enumerate(('query', 'gallery'))]
    return ReidResults.from_feats(*(who + noise * rng.normal(size=who.shape) for _ in range(2)), *tables, protocol=protocol)


def rank1(dist, q_pid, g_pid, q_cam, g_cam):
    gone = (g_pid == q_pid[:, None]) & (g_cam == q_cam[:, None])
    return (g_pid[np.where(gone, np.inf, dist).argmin(1)] == q_pid).mean()

def rank1_of_others(dist, q_pid, g_pid, q_cam, g_cam): return (g_pid[np.where(g_cam == q_cam[:, None], np.inf, dist).argmin(1)] == q_pid).mean()

def ap(hits):
    found, total = 0, 0
    for place, hit in enumerate(hits, 1):
        found += hit
        if hit: total += found / place
    return total / found

def inp(hits): return hits.sum() / (np.flatnonzero(hits)[-1] + 1)

def subtract_means(feats, cam):
    for c in np.unique(cam): feats[cam == c] -= feats[cam == c].mean(0)
    return feats

def standardise(feats, cam): # right as well: another spread hurts nobody here
    feats = subtract_means(feats, cam)
    return feats / np.stack([feats[cam == c].std(0) for c in np.unique(cam)])[cam]

def soon(q, g): return abs(q['time'] - g['time']) < 60
def seen(q, g): return (q['pid'] == g['pid']) & (q['cam'] == g['cam'])

def people(df): return set(zip(df.dset, df.pid))
def leaked(items):
    train = items.split == 'train'
    return {o for o in people(items[train]) & people(items[~train]) if o[1] >= 0}

def box(h, w, rng, area=lambda rng: rng.uniform(.02, .4), ratio=lambda rng: rng.uniform(.3, 1 / .3), last=1):
    while True:
        a, r = area(rng) * h * w, ratio(rng)
        bh, bw = round((a * r)**.5), round((a / r)**.5)
        if bh < h and bw < w: return rng.integers(h - bh + last), rng.integers(w - bw + last), bh, bw
def cut_box(h, w, rng):
    a, r = rng.uniform(.02, .4) * h * w, rng.uniform(.3, 1 / .3)
    bh, bw = min(round((a * r)**.5), h - 1), min(round((a / r)**.5), w - 1)
    return rng.integers(h - bh + 1), rng.integers(w - bw + 1), bh, bw
def too_large(h, w, rng):
    a, r = rng.uniform(.02, .4) * h * w, rng.uniform(.3, 1 / .3)
    return 0, 0, round((a * r)**.5), round((a / r)**.5)


def doubtful(root=''): # the table of chapter 2, without its pictures
    df = course._spoilt(course.synth_people(**course._DRAWN))
    return make_items([f'{root}{o}' for o in df.file], df.pid, df.cam, df.split), df

def unanswered(items):
    q, g = items[items.split == 'query'], items[items.split == 'gallery']
    both = q.merge(g, on='pid', suffixes=('', '_g'))
    return set(q.path) - set(both.path[both.cam != both.cam_g])

def mended(junk=True, both=True, double=True, typo=True, swapped=True, lonely=True): # its table with some faults left
    items, truth = doubtful('some/where/')
    known = truth.set_index('file').loc[[o.split('/')[-1] for o in items.path]].reset_index()
    train, test = items.split == 'train', set(known.who[known.split == 'query'])
    drop = junk & train & (items.pid == -1) | both & train & items.pid.isin(test) | double & train & known.who.isin(test) & (items.pid == 37)
    items = items.assign(cam=items.cam.mask(typo & (items.cam == 11), 1).mask(swapped & (items.cam == 3), known.place))[~drop]
    return items.assign(split=items.split.mask(items.path.isin(unanswered(items)), 'gallery')) if lonely else items

def sorted_labels(pid): return [sorted(set(pid)).index(o) for o in pid]

def answer_of(number, answer): return answer() if number == '2.3' and callable(answer) else answer # tables are made in the test, not at import

MEMORY = dict(market1501=214, msmt17=3830)


def vote(dist, g_pid):
    names, at = [g_pid[o.argmin()] for o in dist], dist.min(1)
    most = max(names.count(o) for o in names)
    return min((d, o) for o, d in zip(names, at) if names.count(o) == most)[1]


RIGHT = [
    ('1.1', rank1), ('1.2', results(.1)),
    ('2.1', sorted_labels), ('2.2', unanswered), ('2.3', mended), ('2.4', MEMORY), ('2.4', dict(market1501=214.377536, msmt17=3831.66)),
    ('3.1', [(0, .5, .5), (1, .7, .4)]), ('3.1', np.array([[0, .5, .5], [1, .7, .4]])),
    ('3.2', ap), ('3.3', inp),
    ('3.4', lambda dist, match: [1 + (dist < t).sum() for t in dist[match]]),
    ('3.4', lambda dist, match: (dist[:, None] <= dist[match]).sum(0)),
    ('3.5', dict(best=1, worst=.0253)), ('3.6', ([1, 1, 0, 0, 0, 0, 0, 0, 0, 1], [0, 0, 1, 1, 1, 0, 0, 0, 0, 0])),
    ('4.1', subtract_means), ('4.1', standardise),
    ('4.2', {0: [0, 3, 5], 1: [8, 3]}), ('4.2', {0: np.array([5, 3, 0]), 1: {3, 8}}),
    ('4.3', lambda q, g: seen(q, g) & soon(q, g)),
    ('4.4', leaked),
    ('10.1', lambda x: x[..., ::-1]), ('10.1', lambda x: np.flip(x, 3)), ('10.2', dict(expected=.21, mean=.2045, redrawn=.054)), ('10.3', box),
    ('10.4', lambda x, mirror: np.stack([np.flip(o, -1) if m else o for o, m in zip(x, mirror)])),
    ('18.1', lambda n_frames, rho: (1 + (n_frames - 1) * rho) / n_frames),
    ('18.3', lambda n, t: [min(i * max(n // t, 1), n - 1) for i in range(t)]),
    ('18.4', lambda feats, mask: [f[m].mean(0) for f, m in zip(feats, mask)]),
    ('18.2', vote),
]

@pytest.mark.parametrize('number,answer', RIGHT)
def test_a_right_answer_passes(number, answer): assert check(number, answer_of(number, answer)) == f'{number} is right.'

def test_every_exercise_has_an_answer(): # those of the other chapters are in `reid_nb.exercises`, with tests of their own
    assert {o for o, _ in RIGHT} == {o for o in EXERCISES if o.split('.')[0] in ('1', '2', '3', '4', '10', '18')}


WRONG = [
    ('2.1', lambda pid: pid, 'is right. The input:\npid = '), ('2.1', lambda pid: pid - pid.min(), 'the gaps are still there'), ('2.1', lambda pid: pd.factorize(pid)[0], 'sort first'),
    ('2.1', lambda pid: 1 + np.array(sorted_labels(pid)), 'begin at 0'), ('2.1', lambda pid: np.argsort(pid), 'numbered the pictures'),
    ('2.2', lambda items: set(items.path[(items.split == 'query') & ~items.pid.isin(items.pid[items.split == 'gallery'])]), 'own camera is taken away'),
    ('2.2', lambda items: set(items.path[items.split == 'query']) - unanswered(items), 'that have an answer'), ('2.2', lambda items: None, 'was `return` forgotten'),
    ('2.2', lambda items: unanswered(items.assign(split=items.split.replace('train', 'gallery'))), 'is right. The input'),
    ('2.3', 3, 'Pass the mended table'), ('2.3', lambda: doubtful()[0], '5 training pictures show nobody'), ('2.3', lambda: mended(both=False), '2 numbers stand on both sides'),
    ('2.3', lambda: mended(double=False), 'under two numbers'), ('2.3', lambda: mended(typo=False), '8 pictures come from a camera 11'), ('2.3', lambda: mended(swapped=False), '6 camera numbers are still wrong'),
    ('2.3', lambda: mended(lonely=False), r'answers these queries: \d+\.jpg\.'), ('2.3', lambda: mended().iloc[:-40], r'57 pictures are gone'),
    ('2.3', lambda: mended().assign(path='x.jpg'), 'not of this dataset, first x.jpg'), ('2.3', lambda: pd.concat([mended(), mended().iloc[-3:]]), '3 pictures are there twice'),
    ('2.4', 214, 'Pass a dict'), ('2.4', MEMORY | dict(market1501=428.8), 'is float64'), ('2.4', MEMORY | dict(market1501=204.4), '1,048,576 bytes'), ('2.4', MEMORY | dict(msmt17=3.83), 'in gigabytes'),
    ('2.4', MEMORY | dict(market1501=265.8), 'Junk and queries'), ('2.4', MEMORY | dict(msmt17=None), 'msmt17 is no number'), ('2.4', MEMORY | dict(msmt17=7), 'Queries × gallery pictures × bytes'),
    ('1.1', lambda dist, q_pid, g_pid, q_cam, g_cam: (g_pid[dist.argmin(1)] == q_pid).mean(), 'what are the cameras for?'),
    ('1.1', rank1_of_others, 'other people there stay'),
    ('1.1', rank1(*course._toy_ranking(0)), 'Pass the function itself'),
    ('1.1', lambda dist: 1, r'raises TypeError.*dist = \[\['),
    ('1.2', 3, 'Pass what'), ('1.2', results(2.), 'Rank-1 is 0'), ('1.2', results(.1, 50), '50 queries are too few'),
    ('1.2', results(.1, protocol='all'), "with the protocol 'all'"),
    ('3.1', [(0, .5, .5)], 'both lists'), ('3.1', 'x', 'both lists'), ('3.1', None, 'both lists'),
    ('3.1', [(1, .5, .5), (1, .7, .4)], r'CMC@1 of \(0, 1, 0, 1, 0\) is not 1'),
    ('3.1', [(0, .5, .5), (1, .28, .4)], 'divided by the length'),
    ('3.1', [(0, .5, .5), (1, .7, .2)], 'when the last one has'),
    ('3.2', lambda hits: None, 'was `return` forgotten'),
    ('3.2', lambda hits: (np.cumsum(hits) / np.arange(1, len(hits) + 1)).mean(), 'averaged the precision of every place'),
    ('3.2', lambda hits: (np.cumsum(hits) / np.arange(1, len(hits) + 1))[hits == 1].sum() / len(hits), 'divided by the length of the list'),
    ('3.2', lambda hits: hits.mean(), 'share of hits, wherever'),
    ('3.2', lambda hits: np.mean(1 / (np.flatnonzero(hits) + 1)), 'two answers are right'),
    ('3.2', lambda hits: 1 / 0, 'raises ZeroDivisionError: division by zero'),
    ('3.2', inp, r'Your function returns .* is right\. The input:\nhits = \['), # no slip that is known
    ('3.3', lambda hits: hits.mean(), 'Reading stops at the last hit'), ('3.3', ap, 'is right. The input'),
    ('3.3', lambda hits: 1 / (np.flatnonzero(hits)[-1] + 1), 'how many are that'),
    ('3.4', lambda dist, match: 1 + np.flatnonzero(match[np.argsort(dist)]), "can't be sorted"),
    ('3.4', lambda dist, match: 1 + np.flatnonzero(match[dist.argsort()]), "can't be sorted"),
    ('3.4', lambda dist, match: [(dist < t).sum() for t in dist[match]], 'The nearest item has rank 1'),
    ('3.4', lambda dist, match: [1 + (dist > t).sum() for t in dist[match]], 'A smaller distance is closer'),
    ('3.4', lambda dist, match: [1 + (dist[~match] < t).sum() for t in dist[match]], 'take places, too'),
    ('3.5', .5, 'Pass a dict'), ('3.5', dict(best=1, worst=.04), 'at which ranks are the four'), ('3.5', dict(best=.04, worst=.0253), 'best is not 0.04'),
    ('3.6', 7, 'two lists'), ('3.6', ([1, 1, 1], [0, 1, 0]), '10 places'), ('3.6', ([2, 1] + [0] * 8, [1] * 3 + [0] * 7), '3 of them 1'),
    ('3.6', ([1, 1, 1] + [0] * 7, [0] * 7 + [1, 1, 1]), 'AP is 1.000 and'),
    ('4.1', lambda feats, cam: feats, 'haven\'t seen, Rank-1'), ('4.1', lambda feats, cam: feats - feats.mean(0), 'The same shift'),
    ('4.1', lambda feats, cam: feats / np.linalg.norm(feats, axis=1, keepdims=True), 'Rank-1 under market is 0.0'),
    ('4.1', lambda feats, cam: feats[:5], r'shape \(5, 64\)'), ('4.1', lambda feats, cam: feats * np.nan, 'not finite'), ('4.1', lambda feats: feats, 'raises TypeError'),
    ('4.1', np.zeros(3), 'Pass the function itself'),
    ('4.2', {0: [0, 2, 3, 5], 1: [3, 8]}, 'row 2: think again. It stays, because another person stays'),
    ('4.2', {0: [0, 3, 5], 1: [3, 6, 8]}, 'two unknown cameras'), ('4.2', {0: [0, 5], 1: [3, 8]}, 'junk never'), ('4.2', {0: [0, 3], 1: [3, 8]}, 'the query itself'),
    ('4.2', {}, 'row 0: think again. It goes'), ('4.2', [1, 2], 'Pass a dict'), ('4.2', {0: 3, 1: 4}, 'Pass a dict'),
    ('4.3', lambda q, g: (q['cam'] == g['cam']) & soon(q, g), 'other people away'), ('4.3', seen, 'later visits'),
    ('4.3', lambda q, g: (q['pid'] == g['pid']) & soon(q, g), 'another camera saw'), ('4.3', lambda q, g: ~(seen(q, g) & soon(q, g)), 'the other way round'),
    ('4.3', lambda q, g: seen(q, g) & (abs(q['time'] - g['time']) <= 60), 'Exactly 60'),
    ('4.3', lambda q, g: seen(q, g) & (g['time'] - q['time'] < 60), 'absolute difference'),
    ('4.3', lambda q, g: seen(q, g).ravel(), 'is right. The input'), ('4.3', lambda q, g: seen(q, g) and soon(q, g), 'raises ValueError'),
    ('4.4', lambda items: people(items[items.split == 'train']) & people(items[items.split != 'train']), 'Junk, -1, is no person'),
    ('4.4', lambda items: {o[1] for o in leaked(items)}, 'a number alone names nobody'),
    ('4.4', lambda items: {o for o in people(items[items.split != 'train']) if o[1] in set(items.pid[items.split == 'train']) and o[1] >= 0}, 'not person 3 of another'),
    ('4.4', lambda items: {o for o in people(items[items.split == 'train']) & people(items[items.split == 'query']) if o[1] >= 0}, 'The gallery is searched, too'),
    ('4.4', lambda items: None, 'was `return` forgotten'),
    ('10.1', lambda x: x[:, :, ::-1], 'upside down'), ('10.1', lambda x: x[:, ::-1], 'red and blue'), ('10.1', lambda x: x[:, :, ::-1, ::-1], '180 degrees'),
    ('10.1', lambda x: x, 'is right. The input'), ('10.2', .2, 'Pass a dict'), ('10.2', dict(expected=.21, mean=.21, redrawn=0), 'mean is not 0.21'),
    ('10.2', dict(expected=.2, mean=.204, redrawn=0), 'their middle'), ('10.2', dict(expected=.21, mean=.204, redrawn=0), 'redrawn is not 0'),
    ('10.3', box(9, 9, np.random.default_rng(0)), 'Pass the function itself'), ('10.3', lambda h, w: 1, 'raises TypeError'), ('10.3', lambda h, w, rng: (1, 2), 'Return four numbers'),
    ('10.3', lambda h, w, rng: (.5, 0, 30, 30), 'whole numbers'), ('10.3', too_large, r"5\.\d% of the boxes aren't smaller"), ('10.3', cut_box, 'cut to size'),
    ('10.3', lambda h, w, rng: (lambda t, l, a, b: (t + 40, l, a, b))(*box(h, w, rng)), 'leave the picture'), ('10.3', lambda h, w, rng: (0, *box(h, w, rng)[1:]), 'upper edge is not equally'),
    ('10.3', lambda h, w, rng: box(h, w, rng, last=0), 'left edge is not equally|upper edge is not equally'),
    ('10.3', lambda h, w, rng: box(h, w, rng, area=lambda r: r.uniform(.02, .25)), 'The mean share is'), ('10.3', lambda h, w, rng: box(h, w, rng, area=lambda r: r.uniform(.02, .6)), 'The shares go from'),
    ('10.3', lambda h, w, rng: box(h, w, rng, ratio=lambda r: .3**r.uniform(-1, 1)), 'rather than its logarithm'), ('10.3', lambda h, w, rng: box(h, w, rng, ratio=lambda r: r.uniform(.3, 1)), 'Height / width goes'),
    ('10.4', lambda x, mirror: np.where(mirror[:, None, None, None, None], x[:, ::-1], x), 'plays the tracklet backwards'), ('10.4', lambda x, mirror: x[..., ::-1], 'what is `mirror` for'),
    ('10.4', lambda x, mirror: np.where(mirror[:, None, None, None, None], x, x[..., ::-1]), 'those that should stay'), ('10.4', lambda x, mirror: x, 'is right. The input'),
    ('18.1', lambda n_frames, rho: 1 / n_frames, 'left of them when rho is 1'), ('18.1', lambda n_frames, rho: (1 - rho) / n_frames, 'still there after'),
    ('18.1', lambda n_frames, rho: n_frames ** -.5, 'standard deviation'), ('18.1', .25, 'Pass the function itself'),
    ('18.3', lambda n, t: np.linspace(0, n - 1, t).astype(int), 'the walk\'s last'), ('18.3', lambda n, t: np.arange(t) * (n // t), 'n // t is 0'),
    ('18.3', lambda n, t: np.arange(t) * max(n // t, 1) % n, 'begin again'), ('18.3', lambda n, t: None, 'was `return` forgotten'),
    ('18.4', lambda feats, mask: feats.mean(1), 'Repeated frames count'), ('18.4', lambda feats, mask: (feats * mask[..., None]).mean(1), 'length of the clip'),
    ('18.4', lambda feats, mask: feats[mask].mean(0), 'one mean for all clips'), ('18.4', lambda feats, mask: feats * mask, 'raises ValueError'),
    ('18.2', lambda dist, g_pid: g_pid[dist.min(0).argmin()], 'nobody votes'), ('18.2', lambda dist, g_pid: g_pid[dist.mean(0).argmin()], 'mean of distances'),
    ('18.2', lambda dist, g_pid: np.bincount(g_pid[dist.argmin(1)]).argmax(), 'not the smaller number'),
]

@pytest.mark.parametrize('number,answer,words', WRONG)
def test_a_wrong_answer_is_told_why(number, answer, words):
    said = check(number, answer_of(number, answer))
    assert said.startswith(f'{number}: not yet.') and said.endswith(f"hint('{number}') helps.")
    assert re.search(words, said, re.S), said


def test_hints_get_plainer_and_stop(monkeypatch):
    monkeypatch.setattr(course, '_asked', {})
    for number, o in EXERCISES.items():
        said = [hint(number) for _ in range(len(o.hints) + 2)]
        assert said[-3:] == [f'{len(o.hints)} of {len(o.hints)}: {o.hints[-1]}'] * 3 and said[0].startswith('1 of')
    with pytest.raises(KeyError, match="no exercise '9.9'. There are: 1.1, 1.2, 2.1"): hint('9.9')


def test_a_function_may_spoil_its_input(): # and is judged on the next one all the same
    def spoil(hits):
        out = ap(hits)
        hits[:] = 0
        return out
    assert check('3.2', spoil) == '3.2 is right.'


def test_the_camera_bound_set_is_what_chapter_4_says():
    feats, labels = camera_bound()
    assert [rank_stats(feats, **labels, protocol=o).rank1 for o in ('all', 'market')] == [pytest.approx(.965), pytest.approx(.05)]
    again, other = camera_bound()[0], camera_bound(3)[0]
    assert (again[0] == feats[0]).all() and (other[0] != feats[0]).any()


def test_the_pairs_of_exercise_4_2_are_what_the_kit_removes():
    q, g = (PAIRS[PAIRS.split == o] for o in ('query', 'gallery'))
    cam = [o.cam.to_numpy(float, na_value=np.nan) for o in (q, g)]
    s = rank_stats(np.arange(18.).reshape(2, 9), q.pid, g.pid, *cam, q_item=q.path, g_item=g.path)
    assert s.n_removed.tolist() == [3, 2] == [len(o) for o in course._GONE.values()]
    assert s.n_match.tolist() == [1, 3]


def test_a_slider_draws_again(monkeypatch):
    import matplotlib.pyplot as plt
    shown, updates, drawn = [], [], []
    class Handle:
        update = staticmethod(updates.append)
    monkeypatch.setattr(course, 'display', lambda o, **kw: shown.append(o) or Handle())
    def draw(k):
        drawn.append(k)
        return plt.figure(figsize=(1, 1))
    slider(draw, [2, 5, 9], at=5, name='k')
    picture, control = shown
    assert picture.data.startswith(b'\x89PNG') and control.value == 5 and drawn == [5]
    control.value = 9
    assert drawn == [5, 9] and updates[0].data.startswith(b'\x89PNG') and not plt.get_fignums()
