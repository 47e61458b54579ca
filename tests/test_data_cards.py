"One pass over files of every kind, cards of odd tables, and reports that find the damage and nothing else"
import io
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageEnhance

from reid_nb.core import ReidError, as_items, make_items
from reid_nb.data import cards, integrity
from reid_nb.data.cards import (camera_grid, color_stats, dataset_card, example_sheet, grid_image, per_person, pixel_stats, scan_images, size_stats)
from reid_nb.data.integrity import (exact_duplicates, file_problems, identity_overlap, integrity_report, label_suspects, near_duplicates, one_camera,
                                    pair_sheet, without)


def picture(seed, h=64, w=32): # smooth, as pictures are, and unlike those of other seeds
    x = np.random.default_rng(seed).integers(0, 256, (8, 4, 3), dtype=np.uint8)
    return Image.fromarray(x).resize((w, h), Image.Resampling.BICUBIC)


def save(path, im, **kwargs):
    path.parent.mkdir(parents=True, exist_ok=True)
    im.save(path, **kwargs)
    return path


def encoded(im, kind, **kwargs):
    im.save(buf := io.BytesIO(), kind, **kwargs)
    return buf.getvalue()


@pytest.fixture
def people(tmp_path):
    "4 + 4 persons in 2 cameras, 2 pictures each; a distractor and junk"
    rows = []
    for pid in range(1, 9):
        for cam in (0, 1):
            for i in (0, 1):
                split = 'train' if pid < 5 else ('query', 'gallery')[i]
                rows.append((save(tmp_path / f'{pid}_{cam}_{i}.png', picture(100 * pid + 10 * cam + i)), pid, cam, split))
    rows += [(save(tmp_path / 'd.png', picture(1)), 0, 0, 'gallery'), (save(tmp_path / 'j.png', picture(2)), -1, 1, 'gallery')]
    return make_items(*zip(*rows))


def scan(items, **kwargs): return scan_images(items, progress=False, **kwargs)
def row(items, name): return items.index[items.path.str.endswith('/' + name)][0]


# ---- the pass

@pytest.mark.parametrize('mode, kind', [('RGB', 'JPEG'), ('L', 'JPEG'), ('CMYK', 'JPEG'), ('RGB', 'PNG'), ('RGBA', 'PNG'), ('LA', 'PNG'), ('P', 'PNG'),
                                        ('1', 'PNG'), ('I;16', 'PNG'), ('RGB', 'BMP'), ('L', 'TIFF'), ('RGB', 'WEBP'), ('P', 'GIF')])
def test_every_kind_of_picture(tmp_path, mode, kind):
    grey = Image.fromarray(np.full((20, 10), 30000, np.uint16)) if mode == 'I;16' else picture(0, 20, 10).convert(mode)
    s = scan([save(tmp_path / 'a', grey, format=kind)])
    assert s.files.problem[0] == '' and s.good.all() and (s.files.h[0], s.files.w[0]) == (20, 10) and s.sums.sum() > 0
    assert s.files.format[0] == kind and s.files.digest[0]


def test_a_turned_picture_has_the_size_that_one_sees(tmp_path):
    exif = Image.Exif()
    exif[274] = 6
    s = scan([save(tmp_path / 'a.jpg', picture(0, 20, 10), exif=exif)])
    assert (s.files.h[0], s.files.w[0], bool(s.files.turned[0])) == (10, 20, True)


@pytest.mark.parametrize('kind', ['JPEG', 'PNG'])
@pytest.mark.parametrize('part', [.3, .6, .9, .99])
def test_cut_files(tmp_path, kind, part):
    data = encoded(Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 32, 3), dtype=np.uint8)), kind)
    (tmp_path / 'a').write_bytes(data[:int(len(data) * part)])
    assert scan([tmp_path / 'a']).files.problem[0] == 'truncated'


def test_files_without_their_end(tmp_path):
    data = encoded(picture(0), 'JPEG')
    (tmp_path / 'a').write_bytes(data[:-2])
    (tmp_path / 'b').write_bytes(data + bytes(50))
    (tmp_path / 'c').write_bytes(encoded(picture(0), 'PNG')[:-12]) # all pixels are there, the last chunk isn't
    s = scan([tmp_path / o for o in 'abc'])
    assert s.files.problem.tolist() == ['truncated', '', 'truncated'] and s.good.tolist() == [False, True, True]


def test_what_is_no_picture(tmp_path):
    for name, data in dict(empty=b'', text=b'hello', head=encoded(picture(0), 'JPEG')[:20]).items(): (tmp_path / name).write_bytes(data)
    (tmp_path / 'folder').mkdir()
    s = scan([tmp_path / o for o in ('empty', 'text', 'head', 'folder', 'none')])
    assert s.files.problem.tolist()[:2] == ['empty', 'not an image'] and s.files.problem[4] == 'missing'
    assert (s.files.problem != '').all() and not s.good.any()
    with pytest.raises(ReidError, match='None of 5 files'): pixel_stats(s)


def test_threads_and_samples(people):
    one, many = scan(people, workers=1), scan(people, workers=5)
    pd.testing.assert_frame_equal(one.files, many.files)
    assert (one.thumbs == many.thumbs).all() and (one.sums == many.sums).all() and (one.squares == many.squares).all()
    assert scan(people, n=3).files.path.tolist() == [people.path[0], people.path[len(people) // 2 - 1], people.path.iloc[-1]]
    assert len(scan(list(people.path) * 2)) == len(people)


def test_tracklets_are_read_by_frame(people):
    t = people.iloc[[0, 2]].assign(frames=[list(people.path[:2]), list(people.path[2:4])])
    s = scan(t)
    assert s.files.path.tolist() == list(people.path[:4])
    assert size_stats(t, s).files.tolist() == [4] and dataset_card(t, s).counts.tracklets['train'] == 2


# ---- the card

@pytest.mark.parametrize('seed', range(5))
def test_pixel_stats(tmp_path, seed):
    rng = np.random.default_rng(seed)
    ims = [rng.integers(0, 256, (*rng.integers(1, 40, 2), 3), dtype=np.uint8) for _ in range(6)]
    s = scan([save(tmp_path / f'{i}.png', Image.fromarray(o)) for i, o in enumerate(ims)])
    x = np.concatenate([o.reshape(-1, 3) for o in ims]) / 255
    np.testing.assert_allclose(pixel_stats(s, 'pixel'), np.stack([x.mean(0), x.std(0)], 1), atol=1e-12)
    w = np.concatenate([np.full(len(o.reshape(-1, 3)), 1 / len(o.reshape(-1, 3)) / len(ims)) for o in ims])[:, None]
    mean = (x * w).sum(0)
    np.testing.assert_allclose(pixel_stats(s), np.stack([mean, np.sqrt(((x - mean) ** 2 * w).sum(0))], 1), atol=1e-12)


def test_white_pictures_have_no_spread(tmp_path):
    s = scan([save(tmp_path / 'a.png', Image.new('RGB', (9, 9), 'white'))])
    assert pixel_stats(s)['mean'].tolist() == [1, 1, 1] and pixel_stats(s)['std'].tolist() == [0, 0, 0]


def test_grid_and_persons(people):
    grid = camera_grid(people)
    assert grid.shape == (9, 2) and (grid.loc[1:] == 2).all().all() and grid.loc[0].tolist() == [1, 0]
    two = camera_grid(pd.concat([people, people.assign(dset='other')]))
    assert len(two) == 18
    assert camera_grid(as_items(people.drop(columns='cam'))).columns.tolist() == ['unknown']
    p = per_person(people)
    assert p.loc['train', ['persons', 'mean', 'single', 'one_camera']].tolist() == [4, 4, 0, 0]
    assert p.loc['gallery', ['persons', 'single', 'one_camera', 'max']].tolist() == [5, 1, 1, 2]


def test_colours_by_camera(tmp_path):
    rows = [(save(tmp_path / f'{cam}{i}.png', Image.new('RGB', (4, 8), c)), i, cam) for cam, c in ((0, (255, 0, 0)), (3, (128, 128, 128))) for i in (0, 1)]
    items = make_items(*zip(*rows))
    c = color_stats(items, scan(items))
    assert c.index.tolist() == [0, 3] and c.files.tolist() == [2, 2]
    assert c.red[0] == 1 and c.saturation[0] == 1 and c.saturation[3] == 0 and c.contrast.max() == pytest.approx(0, abs=1e-9)
    assert c.brightness[3] == pytest.approx(128 / 255)


def test_a_card(people, tmp_path):
    card = dataset_card(people, scan(people))
    assert card.counts.images['total'] == 34 and 0 not in card.grid.index and '1 pictures of passers-by (pid 0)' in card.notes[0]
    page = card.save(tmp_path / 'card.html').read_text()
    assert card._repr_html_() and not re.search(r'https?:|<script|<link|src="(?!data:)', page) and page.count('<img') == 2
    assert 'train' in repr(card)


@pytest.mark.parametrize('change', [
    lambda o: o[o.split == 'train'], lambda o: o[o.pid == -1], lambda o: o.assign(cam=pd.array([pd.NA] * len(o), dtype='Int64')),
    lambda o: o.assign(dset=['a', 'b'] * (len(o) // 2)), lambda o: o.head(1)])
def test_cards_and_reports_of_odd_tables(people, change):
    items = as_items(change(people))
    assert dataset_card(items, progress=False)._repr_html_()
    assert integrity_report(items, np.ones((len(items), 3)), progress=False)._repr_html_()


def test_names_are_text_not_html(people, tmp_path):
    bad = save(tmp_path / '<img src=x onerror=alert(1)>.png', picture(3))
    shutil.copy(bad, tmp_path / 'again.png')
    items = as_items(pd.concat([people, make_items([bad, tmp_path / 'again.png'], 9)])).assign(dset='<script>')
    for page in (dataset_card(items, progress=False)._repr_html_(), integrity_report(items, progress=False)._repr_html_()):
        assert '<script' not in page and '<img src=x' not in page


def test_a_page_is_whole_or_not_there(people, tmp_path, monkeypatch):
    card = dataset_card(people, scan(people))
    (tmp_path / 'card.html').write_text('old')
    def fail(self, *args, **kwargs): raise OSError('disk')
    monkeypatch.setattr(Path, 'write_text', fail)
    with pytest.raises(OSError): card.save(tmp_path / 'card.html')
    assert (tmp_path / 'card.html').read_bytes() == b'old' and not [o for o in tmp_path.iterdir() if o.name.startswith('.')]


def test_pictures_of_the_card(people):
    assert example_sheet(people, n=3, size=(20, 10)).size == (2 * 12, 3 * 22)
    assert example_sheet(people.head(0)).size == (50, 98)
    Path(people.path[0]).write_bytes(b'')
    example_sheet(people, n=8)
    wide = pd.DataFrame(np.ones((5000, 3), int))
    assert grid_image(wide, 100).size == (100, 42) and np.ptp(np.asarray(grid_image(wide, 100))[..., 0]) == 0


# ---- integrity

def test_nothing_is_found_where_nothing_is_wrong(people):
    x = np.eye(10)[people.pid + 1]
    r = integrity_report(people, x, progress=False)
    assert list(r.tables) == ['unreadable', 'truncated', 'tiny', 'blank', 'exact', 'near', 'overlap', 'one_camera', 'suspects']
    assert r.found.found.sum() == 0 and r.n_same == 0 and without(people, r).equals(people)
    assert 'suspects' not in integrity_report(people, progress=False).tables


def test_bad_files(people):
    paths = [Path(o) for o in people.path]
    paths[0].write_bytes(b'')
    paths[1].write_bytes(paths[1].read_bytes()[:-200])
    Image.new('RGB', (32, 7)).save(paths[2])
    Image.new('RGB', (32, 64), 'teal').save(paths[3])
    Image.fromarray(np.full((64, 32, 3), 100, np.uint8) + np.random.default_rng(0).integers(0, 2, (64, 32, 1), dtype=np.uint8)).save(paths[4])
    bad = file_problems(people, scan(people))
    assert dict(zip(bad.path, bad.kind)) == dict(zip(people.path, ['unreadable', 'truncated', 'tiny', 'blank', 'blank']))
    assert not len(file_problems(people, scan(people), min_side=1, min_std=0).query('kind in ("tiny", "blank")'))
    boxes = people.assign(w=10., h=[0.] + [20.] * (len(people) - 2) + [-1.])
    assert file_problems(boxes, scan(people)).problem.tolist()[-1] == 'a box without area'
    r = integrity_report(people, progress=False)
    assert len(without(people, r)) == len(people) - 5 and len(without(people, r, ['tiny'])) == len(people) - 1
    with pytest.raises(ValueError, match='near'): without(people, r, ['near'])


def copy(items, a, b): shutil.copy(items.path[row(items, a)], items.path[row(items, b)])

def test_exact_copies_and_what_they_mean(people):
    for a, b in (('1_0_0.png', '1_0_1.png'), ('2_0_0.png', '3_0_0.png'), ('4_0_0.png', '4_1_0.png'), ('2_1_1.png', '8_0_0.png'), ('5_0_0.png', 'j.png')): copy(people, a, b)
    df = exact_duplicates(people, scan(people))
    got = {frozenset(Path(o).name for o in g.path): tuple(g[['leak', 'other_pid', 'other_cam']].iloc[0]) for _, g in df.groupby('group')}
    assert got == {frozenset({'1_0_0.png', '1_0_1.png'}): (False, False, False), frozenset({'2_0_0.png', '3_0_0.png'}): (False, True, False),
                   frozenset({'4_0_0.png', '4_1_0.png'}): (False, False, True), frozenset({'2_1_1.png', '8_0_0.png'}): (True, True, False),
                   frozenset({'5_0_0.png', 'j.png'}): (False, False, False)}
    assert df.group.iloc[0] == df.group.iloc[1] and df.leak.iloc[0]
    clean = without(people, integrity_report(people, progress=False))
    gone = {Path(o).name for o in set(people.path) - set(clean.path)}
    assert gone == {'1_0_1.png', 'j.png'}


def test_one_file_in_several_rows(people):
    both = as_items(pd.concat([people, rows := people[people.split == 'query'].assign(split='gallery')]))
    assert not len(exact_duplicates(both, scan(both)))
    two = as_items(pd.concat([people, rows.head(1).assign(pid=7)]))
    assert exact_duplicates(two, scan(two)).other_pid.tolist() == [True, True]


CHANGES = [lambda o: o.resize((24, 48)), lambda o: o.resize((64, 128)), lambda o: ImageEnhance.Brightness(o).enhance(1.15), lambda o: ImageEnhance.Contrast(o).enhance(.8),
           lambda o: Image.open(io.BytesIO(encoded(o, 'JPEG', quality=30))), lambda o: Image.fromarray((np.asarray(o) * np.array([.8, 1, .9])).astype(np.uint8))]

@pytest.mark.parametrize('change', CHANGES)
def test_near_copies(people, change):
    change(Image.open(people.path[row(people, '1_0_0.png')])).convert('RGB').save(people.path[row(people, '6_1_0.png')])
    near = near_duplicates(people, scan(people))
    assert len(near) == 1 and near.leak[0] and near.other_pid[0] and not near.other_cam[0] and near['corr'][0] > .98
    assert {near.pid_a[0], near.pid_b[0]} == {1, 6} and {near.split_a[0], near.split_b[0]} == {'train', 'query'}
    assert not len(exact_duplicates(people, scan(people)))


def test_near_copies_without_trouble_are_counted(people):
    for a, b in (('1_0_0.png', '1_0_1.png'), ('5_0_0.png', '5_0_1.png'), ('6_0_0.png', 'j.png')):
        Image.open(people.path[row(people, a)]).resize((24, 48)).save(people.path[row(people, b)])
    s = scan(people)
    assert (df := near_duplicates(people, s)).empty and df.attrs['same'] == 3
    assert len(near_duplicates(people, s, same=True)) == 3 and len(near_duplicates(people, s, same=True, max_pairs=2)) == 2


def test_near_copies_block_by_block(people):
    x = integrity.fingerprints(scan(people))
    want = {(i, j) for i in range(len(x)) for j in range(i + 1, len(x)) if x[i] @ x[j] >= .1}
    for block in (1, 5, 100):
        got = {(int(i), int(j)) for a, b, _ in integrity._close_pairs(x, .1, False, block) for i, j in zip(a, b)}
        assert got == want and len(want) > 5


def test_blank_pictures_are_like_nothing(people):
    for i in range(3): Image.new('RGB', (32, 64), (i, i, i)).save(people.path[i * 7])
    assert (integrity.fingerprints(scan(people))[[0, 7, 14]] == 0).all() and near_duplicates(people, scan(people), same=True).empty


def test_overlap_and_cameras(people):
    items = people.copy()
    items.loc[row(items, '1_0_0.png'), 'pid'] = 5
    df = identity_overlap(items)
    assert df.to_dict('records') == [dict(dset='items', pid=5, test=4, train=1)]
    assert not len(identity_overlap(items.assign(dset=items.split.astype(str))))
    one = one_camera(people[~((people.pid.isin([2, 6])) & (people.cam == 1))])
    assert one[['side', 'pid', 'cam', 'pictures']].values.tolist() == [['train', 2, 0, 2], ['test', 6, 0, 2]]
    assert not len(one_camera(people.assign(cam=pd.array([pd.NA] * len(people), dtype='Int64'))))


def test_suspects(people):
    rng = np.random.default_rng(0)
    x = np.eye(10)[people.pid + 1] + rng.normal(size=(len(people), 10)) * .05
    items = people.copy()
    items.loc[row(items, '3_1_1.png'), 'pid'] = 4
    s = label_suspects(items, x, k=3)
    assert s.row.tolist() == [row(items, '3_1_1.png')] and s.says.tolist() == [3] and s.own.tolist() == [0] and s.share.tolist() == [1]
    assert s.path[0] == items.path[s.row[0]] and items.pid[items.path == s.like[0]].tolist() == [3]
    d = row(items, 'd.png')
    x[d] = x[row(items, '5_0_0.png')]
    assert d not in label_suspects(items, x, k=3).row.tolist()
    assert d in label_suspects(items, x, k=3, crowd=()).row.tolist()


def test_a_whole_tracklet_with_a_wrong_label(people):
    x = np.eye(10)[people.pid + 1]
    wrong = people.path.str.contains('/3_1_')
    items = people.assign(tid=[Path(o).name.rsplit('_', 1)[0] for o in people.path])
    items.loc[wrong, 'pid'] = 99
    assert not len(label_suspects(items.drop(columns='tid'), x, k=3, least=.7))
    assert sorted(label_suspects(items, x, k=2).row) == sorted(items.index[people.pid == 3]) # which of two tracklets is right, no vote can tell


def test_features_that_can_not_be(people):
    with pytest.raises(ValueError, match=r'34, not \(3, 3\)'): label_suspects(people, np.ones((3, 3)))
    with pytest.raises(ReidError, match='1 of 34 features'): label_suspects(people, np.where(np.arange(34)[:, None] == 3, np.nan, np.ones((34, 2))))
    assert not len(label_suspects(people.head(1), np.ones((1, 2)))) and len(label_suspects(people, np.ones((34, 2)), k=100)) >= 0


def test_the_report_as_a_page(people, tmp_path):
    copy(people, '2_1_1.png', '8_0_0.png')
    Image.open(people.path[row(people, '1_0_0.png')]).resize((24, 48)).save(people.path[row(people, '6_1_0.png')])
    Path(people.path[row(people, '4_0_0.png')]).unlink()
    r = integrity_report(people, progress=False)
    page = r.save(tmp_path / 'r.html').read_text()
    assert not re.search(r'https?:|<script|<link|src="(?!data:)', page) and '4_0_0.png' in page and page.count('<img') == 1
    assert r.found.found.to_dict() == dict(unreadable=1, truncated=0, tiny=0, blank=0, exact=2, near=1, overlap=0, one_camera=0)
    assert len(r['near']) == 1 and 'unreadable' in repr(r)
    assert 'The first 1 of 2.' in r.save(tmp_path / 'short.html', rows=1).read_text() and page.count('<h1>') == 1 and '<h2>' not in page
    assert pair_sheet([], []).size == (54, 194) and pair_sheet(['none'], ['none']).size == (54, 194)


def test_frames_of_bad_files(people):
    t = people.iloc[[0, 2]].assign(frames=[list(people.path[:2]), list(people.path[2:4])]).reset_index(drop=True)
    Path(people.path[3]).write_bytes(b'')
    assert without(t, integrity_report(t, progress=False)).path.tolist() == [people.path[0]]
