"Videos and boxes made on the spot: what is cut out must be what was painted there"
import json
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from reid_nb.core import ReidError, check_items
from reid_nb.data import crops
from reid_nb.data.crops import crop_tracks, read_boxes, read_frames, select_boxes, visible_share

H, W, N = 96, 160, 24


def colour(tid, frame): return (30 + 45 * tid, 240 - 9 * frame, 60 * (tid % 3))


@pytest.fixture
def boxes():
    rows = [(f, t, 4 + 30 * t + f // 2, 10 + 3 * t, 20, 52, 1, -1, -1, -1) for f in range(1, N + 1) for t in range(1, 5)]
    return pd.DataFrame(rows)


def paint(boxes, n=N, size=(H, W)):
    out = []
    for f in range(1, n + 1):
        a = np.full((*size, 3), 128, np.uint8)
        for _, t, x, y, w, h, *_ in boxes[boxes[0] == f].itertuples(index=False): a[int(y):int(y + h), int(x):int(x + w)] = colour(int(t), int(f))
        out.append(a)
    return out


def as_folder(path, frames, name='img{:06}.png'):
    path.mkdir(parents=True, exist_ok=True)
    for i, a in enumerate(frames, 1): Image.fromarray(a).save(path / name.format(i))
    return path


def as_video(path, frames, codec='ffv1', fmt='yuv444p', noise=0):
    av = pytest.importorskip('av')
    rng = np.random.default_rng(0)
    with av.open(str(path), 'w') as c:
        s = c.add_stream(codec, rate=10)
        s.bit_rate = 8_000_000
        s.height, s.width, s.pix_fmt = *frames[0].shape[:2], fmt
        for a in frames:
            if noise: a = np.clip(a + rng.integers(-noise, noise, a.shape), 0, 255).astype(np.uint8)
            for p in s.encode(av.VideoFrame.from_ndarray(a, format='rgb24')): c.mux(p)
        for p in s.encode(): c.mux(p)
    return path


def as_text(path, boxes, sep=','):
    path.write_text('\n'.join(sep.join(f'{o:g}' for o in r) for r in boxes.itertuples(index=False)) + '\n')
    return path


def pixels(path):
    with Image.open(path) as im: return np.asarray(im)


def cut(source, boxes, out, **kw): return crop_tracks(source, boxes, out, progress=False, **dict(dict(min_visibility=0), **kw))


def assert_painted(items, tol=12):
    for r in items.itertuples():
        got = np.median(pixels(r.path).reshape(-1, 3), 0)
        assert np.abs(got - colour(r.pid, r.frame)).max() <= tol, (r.path, got, colour(r.pid, r.frame))


# what is cut out

@pytest.mark.parametrize('kind', ['folder', 'mkv', 'avi', 'mp4'])
def test_each_crop_shows_its_person_in_its_frame(tmp_path, boxes, kind):
    frames = paint(boxes)
    source = (as_folder(tmp_path / 'f', frames) if kind == 'folder' else as_video(tmp_path / 'v.mkv', frames) if kind == 'mkv'
              else as_video(tmp_path / f'v.{kind}', frames, dict(avi='mjpeg', mp4='mpeg4')[kind], dict(avi='yuvj444p', mp4='yuv420p')[kind]))
    items = cut(source, as_text(tmp_path / 'gt.txt', boxes), tmp_path / 'out')
    assert len(items) == 4 * N
    assert_painted(items, 12 if kind != 'mp4' else 40)
    assert (items.w == 20).all() and (items.h == 52).all()
    check_items(items, paths='all', splits=('gallery',))


def test_table(tmp_path, boxes):
    items = cut(as_video(tmp_path / 'walk.mkv', paint(boxes)), as_text(tmp_path / 'gt.txt', boxes), tmp_path / 'out', sessions=3)
    assert list(items)[:5] == ['path', 'pid', 'cam', 'split', 'dset']
    assert {'tid', 'time', 'frame', 'x', 'y', 'w', 'h', 'visibility', 'session'} <= set(items)
    assert set(items.split) == {'gallery'} and set(items.dset) == {'walk'}
    assert np.allclose(items.time, (items.frame - 1) / 10)
    assert items.path.map(lambda p: Path(p).name)[0] == '0001_c1s1_000001_00.jpg'
    assert items.path.is_monotonic_increasing
    assert str(items.dtypes['tid']) == str(items.dtypes['frame']) == str(items.dtypes['x']) == 'int64'


def test_time_of_a_folder_needs_fps(tmp_path, boxes):
    folder = as_folder(tmp_path / 'f', paint(boxes))
    assert cut(folder, boxes.set_axis(list('fiabwhcxyz'), axis=1).rename(columns=dict(f='frame', i='id', a='left', b='top', w='width', h='height'))[
        ['frame', 'id', 'left', 'top', 'width', 'height']], tmp_path / 'a').time.isna().all()
    assert cut(folder, as_text(tmp_path / 'gt.txt', boxes), tmp_path / 'b', fps=4).time.max() == (N - 1) / 4


def test_order_of_lines_does_not_matter(tmp_path, boxes):
    v = as_folder(tmp_path / 'f', paint(boxes))
    a = cut(v, as_text(tmp_path / 'a.txt', boxes), tmp_path / 'a', every=2)
    b = cut(v, as_text(tmp_path / 'b.txt', boxes.sample(frac=1, random_state=0)), tmp_path / 'b', every=2)
    c = cut(v, as_text(tmp_path / 'c.txt', boxes.sort_values([1, 0])), tmp_path / 'c', every=2)
    drop = lambda d: d.drop(columns='path')
    assert drop(a).equals(drop(b)) and drop(a).equals(drop(c))


def test_same_bytes_twice(tmp_path, boxes):
    v, t = as_video(tmp_path / 'v.mkv', paint(boxes)), as_text(tmp_path / 'gt.txt', boxes)
    for o in 'ab': cut(v, t, tmp_path / o, size=(64, 32))
    a, b = (sorted((tmp_path / o).glob('*.jpg')) for o in 'ab')
    assert [p.name for p in a] == [p.name for p in b] and len(a) == 4 * N
    assert all(p.read_bytes() == q.read_bytes() for p, q in zip(a, b))
    assert pixels(a[0]).shape == (64, 32, 3)


def test_names_with_blanks_and_accents(tmp_path, boxes):
    home = tmp_path / 'my vidéos (2)'
    home.mkdir()
    items = cut(as_video(home / 'Straße 1.mkv', paint(boxes)), as_text(home / 'gt final.txt', boxes), home / 'out put')
    assert_painted(items)
    assert set(items.dset) == {'Straße 1'}


def test_clipped_at_the_rim(tmp_path, boxes):
    b = boxes[boxes[1] == 1].copy()
    b[2] = -8
    items = cut(as_folder(tmp_path / 'f', [np.full((H, W, 3), 90, np.uint8)] * N), as_text(tmp_path / 'gt.txt', b), tmp_path / 'out', min_size=(10, 5))
    assert (items.x == 0).all() and (items.w == 12).all()
    assert np.allclose(items.visibility, 12 / 20)
    assert pixels(items.path[0]).shape == (52, 12, 3)


def test_box_larger_than_the_frame(tmp_path):
    b = pd.DataFrame([(1, 1, -50, -50, 900, 900)])
    items = cut(as_folder(tmp_path / 'f', [np.zeros((H, W, 3), np.uint8)]), as_text(tmp_path / 'gt.txt', b), tmp_path / 'out')
    assert items[['x', 'y', 'w', 'h']].iloc[0].tolist() == [0, 0, W, H]


def test_unknown_people_are_junk(tmp_path, boxes):
    b = boxes.copy()
    b[1] = -1
    items = cut(as_folder(tmp_path / 'f', paint(boxes)), as_text(tmp_path / 'det.txt', b), tmp_path / 'out')
    assert set(items.pid) == {-1} and len(items) == items.path.nunique() == 4 * N
    assert Path(items.path[0]).name.startswith('-1_c1s1_')


def test_several_cameras_and_sessions_have_their_own_numbers(tmp_path, boxes):
    v, t = as_folder(tmp_path / 'f', paint(boxes)), as_text(tmp_path / 'gt.txt', boxes)
    a, b = cut(v, t, tmp_path / 'a', sessions=2, cam=0), cut(v, t, tmp_path / 'b', sessions=2, cam=1)
    assert set(a.cam) == {0, 1} and set(b.cam) == {2, 3}
    assert set(cut(v, t, tmp_path / 'c', cam=5).cam) == {5}


def test_turned_phone_video(tmp_path, boxes):
    b = boxes[boxes[0] <= 3]
    path = as_video(tmp_path / 'v.mp4', [np.rot90(a).copy() for a in paint(b, 3)], 'mpeg4', 'yuv420p')
    d = bytearray(path.read_bytes())
    at = d.find(b'tkhd') + 4 + 4 + 20 + 16
    d[at:at + 36] = struct.pack('>9i', 0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30)
    path.write_bytes(d)
    assert next(read_frames(path))[1].size == (W, H)
    assert_painted(cut(path, as_text(tmp_path / 'gt.txt', b), tmp_path / 'out'), 40)


# filters against the obvious

def random_boxes(seed, n_frames=8, n=6):
    rng = np.random.default_rng(seed)
    rows = [(f, t, *rng.integers(-10, 120, 2), *rng.integers(5, 60, 2), rng.choice([0, 1, 1, .5])) for f in range(1, n_frames + 1)
            for t in range(n) if rng.random() < .8]
    return pd.DataFrame(rows, columns=['frame', 'tid', 'left', 'top', 'width', 'height', 'conf'])


def slow_reason(b, size, min_size, every, min_visibility, max_overlap, min_conf):
    out = []
    for i, r in b.iterrows():
        x0, y0, x1, y1 = (int(o) for o in (r.left, r.top, r.left + r.width, r.top + r.height))
        inside = {(x, y) for x in range(x0, x1) for y in range(y0, y1) if 0 <= x < size[1] and 0 <= y < size[0]}
        seen, iou = set(inside), 0
        for j, o in b[b.frame == r.frame].iterrows():
            if i == j: continue
            there = {(x, y) for x in range(int(o.left), int(o.left + o.width)) for y in range(int(o.top), int(o.top + o.height))}
            mine = {(x, y) for x in range(x0, x1) for y in range(y0, y1)}
            iou = max(iou, len(mine & there) / len(mine | there))
            if o.top + o.height > r.top + r.height: seen -= there
        nth = sum((b.tid == r.tid) & (b.frame < r.frame))
        w, h = min(x1, size[1]) - max(x0, 0), min(y1, size[0]) - max(y0, 0)
        out.append('ignored' if (r.conf == 0 if min_conf is None else r.conf < min_conf) else 'outside' if w <= 0 or h <= 0 else 'every' if nth % every
                   else 'small' if h < min_size[0] or w < min_size[1] else 'hidden' if len(seen) / (r.width * r.height) < min_visibility
                   else 'overlap' if iou > max_overlap else 'kept')
    return out


@pytest.mark.parametrize('kw', [dict(), dict(min_size=(30, 20)), dict(every=3), dict(min_visibility=.7), dict(max_overlap=.1), dict(min_conf=.7),
                                dict(min_size=(20, 10), every=2, min_visibility=.4, max_overlap=.3, min_conf=.2)])
def test_filters(kw):
    opts = dict(dict(min_size=(1, 1), every=1, min_visibility=0, max_overlap=1, min_conf=None), **kw)
    for seed in range(2):
        b = read_boxes(random_boxes(seed))
        got = select_boxes(b, (100, 110), max_outside=1, **opts)
        want = slow_reason(b, (100, 110), **opts)
        assert list(got.fate) == want and len(set(want)) > 1 or not kw
    if kw: assert {k: v for k, v in got.fate.value_counts().items() if v}.keys() >= {'kept'}


def test_given_visibility_is_kept():
    b = read_boxes(random_boxes(0).assign(visibility=.25))
    assert (select_boxes(b, (200, 200), max_outside=1).visibility == .25).all()
    b.loc[0, 'visibility'] = np.nan
    assert select_boxes(b, (200, 200), max_outside=1).visibility[0] == visible_share(b, (200, 200))[0][0]


@pytest.mark.parametrize('sessions,gap', [(1, 0), (2, 0), (5, 0), (3, 3), (24, 0)])
def test_sessions(tmp_path, boxes, sessions, gap):
    b = boxes.copy()
    b[0] += 7
    items = cut(as_folder(tmp_path / 'f', paint(boxes) + [np.zeros((H, W, 3), np.uint8)] * 7), as_text(tmp_path / 'gt.txt', b), tmp_path / 'out',
                sessions=sessions, session_gap=gap)
    borders = [8 + k * N / sessions for k in range(1, sessions)]
    want = {f: sum(f >= o for o in borders) for f in range(8, 8 + N) if all(abs(f - o) >= gap for o in borders)}
    assert dict(zip(items.frame, items.cam)) == want
    assert (items.cam == items.session).all()


@pytest.mark.parametrize('n', [-1, 25])
def test_senseless_sessions(tmp_path, boxes, n):
    with pytest.raises(ValueError, match='between 1 and the 24 frames'): cut(as_folder(tmp_path / 'f', paint(boxes)), as_text(tmp_path / 'g.txt', boxes), tmp_path / 'o', sessions=n)


# box files

@pytest.mark.parametrize('text,n', [
    ('1,1,2,3,4,5\n', 1), ('1,1,2,3,4,5,1\n2,1,2,3,4,5,1\n', 2), ('1,1,2,3,4,5,1,1,0.5\n', 1), ('1,1,2,3,4,5,1,-1,-1,-1\r\n\r\n2,1,2,3,4,5,1,-1,-1,-1\r\n', 2),
    ('1 1 2 3 4 5\n2  1 2 3 4 5\n', 2), ('1\t1\t2\t3\t4\t5\n', 1), ('\ufeff1, 1, 2.0, 3e0, 4, 5\n', 1),
    ('frame,id,x,y,w,h\n1,1,2,3,4,5\n', 1), ('Frame ID;Track-ID;x1;y1;x2;y2;Label\n1;1;2;3;6;8;"person; adult"\n', 1),
    ('"frame","object_id","bb_left","bb_top","bb_width","bb_height"\n"1","1","2","3","4","5"\n', 1),
    ('note,person_id,frame,xmin,ymin,width,height\nhello,1,1,2,3,4,5\n', 1)])
def test_formats(tmp_path, text, n):
    (tmp_path / 'b').write_text(text, encoding='utf-8', newline='')
    b = read_boxes(tmp_path / 'b')
    assert len(b) == n and (b.tid == 1).all() and (b.pid == 1).all()
    assert b[['left', 'top', 'width', 'height']].iloc[0].tolist() == [2, 3, 4, 5]
    assert b.dtypes[['frame', 'tid', 'pid']].eq('int64').all() and b.dtypes[['left', 'top', 'width', 'height', 'conf', 'visibility']].eq('float64').all()


def test_mot16_and_mot15_columns(tmp_path):
    (tmp_path / 'b').write_text('1,1,2,3,4,5,0,7,0.5\n')
    assert read_boxes(tmp_path / 'b')[['conf', 'cls', 'visibility']].iloc[0].tolist() == [0, 7, .5]
    (tmp_path / 'b').write_text('1,1,2,3,4,5,0.9,-4.2,-7.4,0\n')
    b = read_boxes(tmp_path / 'b')
    assert b.conf[0] == .9 and np.isnan(b.visibility[0]) and 'cls' not in b


@pytest.mark.parametrize('text,columns,told', [
    ('', None, 'is empty'), ('\n \n', None, 'is empty'), ('frame,id,x,y,w,h\n', None, 'header and no box'),
    ('1,1,2,3,4\n', None, 'has 5 columns and no header'), ('1,1,2,3,4,5,6,7\n', None, 'has 8 columns and no header'),
    ('1,1,2,3,4,5\n\n2,1,2,3,4\n', None, 'line 3 has 5 columns, line 1 has 6'), ('1,1,2,3,4,5\n2,1,2,3,4,5,1\n', None, 'line 2 has 7 columns'),
    ('1,1,2,3,4,5\n2,1,2,three,4,5\n', None, "line 2: `top` is 'three', not a number"), ('1,1,2,3,4,\n', None, "line 1: `height` is '', not a number"),
    ('1,anna,2,3,4,5\n', None, "line 1: `tid` is 'anna'"), ('1,1,2,3,4,inf\n', None, "`height` is 'inf'"), ('1,1,nan,3,4,5\n', None, "`left` is 'nan'"),
    ('1,1,2,3,4,5\n2,1,2,3,-4,5\n2,2,2,3,4,-5\n', None, r'line 2: a negative size, -4 × 5 .* \(2 such lines\)'),
    ('1.5,1,2,3,4,5\n', None, 'line 1: `frame` is 1.5, not a whole number'), ('1,2.5,2,3,4,5\n', None, '`tid` is 2.5'),
    ('frame,x,y,w,h\n1,2,3,4,5\n', None, r"no column for \['tid'\]"), ('frame,id,track,x,y,w,h\n1,1,1,2,3,4,5\n', None, r"\['id', 'track'\] could each be `tid`"),
    ('1,1,2,3,4,5\n', ['frame', 'tid'], '`columns` names 2'), ('frame,id,x,y,w,h\n1,1,2,3,4,5\n', dict(tid='who'), "no column 'who'"),
    ('9,4,2,3,4,5\n\n1,4,2,3,4,5\n9,4,8,3,4,5\n', None, 'line 4: tid 4 is in frame 9 a second time'),
    ('frame,id,pid,x,y,w,h\n1,1,7,2,3,4,5\n1,2,7,12,3,4,5\n', None, 'line 3: pid 7 is in frame 1 a second time')])
def test_faulty_box_files(tmp_path, text, columns, told):
    (tmp_path / 'b.txt').write_text(text)
    with pytest.raises(ReidError, match=told) as e: read_boxes(tmp_path / 'b.txt', columns)
    assert 'b.txt' in str(e.value) or 'olumn' in str(e.value)


def test_video_given_as_boxes(tmp_path, boxes):
    v = as_video(tmp_path / 'v.avi', paint(boxes)[:3], 'mjpeg', 'yuvj420p')
    with pytest.raises(ReidError, match='no text file'): read_boxes(v)
    with pytest.raises(FileNotFoundError, match='no box file'): read_boxes(tmp_path / 'nope.txt')


def test_tables_are_checked_too():
    b = pd.DataFrame(dict(frame=[1, 1], id=[3, 3], x=0, y=0, w=9, h=9))
    with pytest.raises(ReidError, match='The table, row 1: tid 3'): read_boxes(b)
    with pytest.raises(ReidError, match="row 0: `tid` is 'anna'"): read_boxes(b.assign(id='anna'))
    again = read_boxes(read_boxes(b[:1]))
    assert again.equals(read_boxes(b[:1]))
    assert read_boxes(select_boxes(b[:1], (99, 99))).equals(again.assign(visibility=1.))


def test_columns_win_over_guesses(tmp_path):
    (tmp_path / 'b.csv').write_text('frame,id,track,x,y,w,h\n1,5,8,2,3,4,5\n')
    assert read_boxes(tmp_path / 'b.csv', dict(tid='track')).tid[0] == 8
    (tmp_path / 'b.txt').write_text('7;1;2;6;3;8\n')
    assert read_boxes(tmp_path / 'b.txt', ['tid', 'frame', 'left', 'right', 'top', 'bottom'])[['tid', 'width', 'height']].iloc[0].tolist() == [7, 4, 5]


# wrong pairs of video and boxes

def test_boxes_of_another_video(tmp_path, boxes):
    f, b = as_folder(tmp_path / 'f', paint(boxes)), boxes.copy()
    b[[2, 3]] += 400
    with pytest.raises(ReidError, match=r'96 of 96 boxes \(100%\) lie entirely outside the 160 × 96 frame .* reach to 556 × 474'): cut(f, as_text(tmp_path / 'b.txt', b), tmp_path / 'o')
    b = boxes.copy()
    b.loc[:2, 2] = 1000
    assert len(cut(f, as_text(tmp_path / 'b.txt', b), tmp_path / 'o')) == 4 * N - 3


def test_boxes_past_the_end(tmp_path, boxes):
    f, b = as_folder(tmp_path / 'f', paint(boxes)), boxes.copy()
    b[0] += 4
    with pytest.raises(ReidError, match=r'24 good frames up to number 24; frame 25 .* 16 of 96 boxes lie from frame 25 on'): cut(f, as_text(tmp_path / 'b.txt', b), tmp_path / 'o')
    b[0] -= 5
    with pytest.raises(ReidError, match='first_frame=0'): cut(f, as_text(tmp_path / 'b.txt', b), tmp_path / 'o')
    zero = cut(f, as_text(tmp_path / 'b.txt', b), tmp_path / 'o', first_frame=0, fps=1)
    assert zero.frame.min() == 0 and zero.time.min() == 0
    assert_painted(zero.assign(frame=zero.frame + 1))


def test_truncated_videos(tmp_path, boxes):
    frames, t = paint(boxes), as_text(tmp_path / 'gt.txt', boxes)
    for name, codec, fmt in (('a.avi', 'mjpeg', 'yuvj420p'), ('b.mkv', 'ffv1', 'yuv444p'), ('c.avi', 'mpeg4', 'yuv420p')):
        v = as_video(tmp_path / name, frames, codec, fmt, noise=40)
        v.write_bytes(v.read_bytes()[:v.stat().st_size * 2 // 3])
        with pytest.raises(ReidError) as e: cut(v, t, tmp_path / f'o{name}')
        good = sum(1 for _ in read_frames(v, range(1, 2)))
        last = int(str(e.value).split('up to number ')[1].split(';')[0])
        assert good == 1 and 3 <= last <= 22 and f'{(boxes[0] > last).sum()} of 96 boxes lie from frame {last + 1} on' in str(e.value)
        if name.endswith('avi'): assert "header promises 24 frames" in str(e.value)
        kept = cut(v, boxes[boxes[0] <= last].set_axis(['frame', 'tid', 'left', 'top', 'width', 'height', 'conf', *'xyz'], axis=1).drop(columns=list('xyz')), tmp_path / f'o{name}')
        assert len(kept) == 4 * last
    v = as_video(tmp_path / 'd.mp4', frames, 'mpeg4', 'yuv420p', noise=40)
    v.write_bytes(v.read_bytes()[:v.stat().st_size // 2])
    with pytest.raises(ReidError, match="d.mp4 can't be opened as a video"): cut(v, t, tmp_path / 'od')


def test_damaged_video(tmp_path, boxes):
    v = as_video(tmp_path / 'v.mp4', paint(boxes), 'mpeg4', 'yuv420p', noise=40)
    d, at = bytearray(v.read_bytes()), v.stat().st_size * 2 // 3
    d[at:at + 300] = b'\xff' * 300
    v.write_bytes(d)
    with pytest.raises(ReidError, match=r'up to number (\d+); frame \d+ is damaged'): cut(v, as_text(tmp_path / 'g.txt', boxes), tmp_path / 'o')
    assert [n for n, _ in read_frames(v, [1, 24])] == [1, 24]


def test_no_video_at_all(tmp_path, boxes):
    t = as_text(tmp_path / 'gt.txt', boxes)
    (tmp_path / 'x.mp4').write_text('hello')
    (tmp_path / 'empty').mkdir()
    with pytest.raises(ReidError, match="x.mp4 can't be opened as a video"): cut(tmp_path / 'x.mp4', t, tmp_path / 'o')
    with pytest.raises(FileNotFoundError, match='no video or folder'): cut(tmp_path / 'y.mp4', t, tmp_path / 'o')
    with pytest.raises(ReidError, match='holds no frames'): cut(tmp_path / 'empty', t, tmp_path / 'o')


def test_without_av(tmp_path, boxes, monkeypatch):
    v = as_video(tmp_path / 'v.mkv', paint(boxes)[:2])
    monkeypatch.setitem(sys.modules, 'av', None)
    with pytest.raises(ImportError, match=r'pip install "reid_nb\[video\]"'): cut(v, as_text(tmp_path / 'gt.txt', boxes), tmp_path / 'o')
    assert len(cut(as_folder(tmp_path / 'f', paint(boxes)), as_text(tmp_path / 'gt.txt', boxes), tmp_path / 'o')) == 4 * N


# folders of frames

@pytest.mark.parametrize('name', ['{}.png', 'img{}.png', 'frame {:03}.png', 'cam1_{:05}_left.png'])
def test_folder_names(tmp_path, boxes, name):
    assert_painted(cut(as_folder(tmp_path / 'f', paint(boxes), name), as_text(tmp_path / 'gt.txt', boxes), tmp_path / 'o'))


def test_holes_in_a_folder(tmp_path, boxes):
    f, t = as_folder(tmp_path / 'f', paint(boxes)), as_text(tmp_path / 'gt.txt', boxes)
    (f / 'Thumbs.db').write_text('x')
    (f / 'img000005.png').unlink()
    with pytest.raises(ReidError, match=r'img000006.png follows img000004.png \(1 such places in 23 files\)'): cut(f, t, tmp_path / 'o')
    files = {int(p.stem[3:]): p for p in f.glob('*.png')}
    with pytest.raises(ReidError, match='frame 5 is damaged or not there'): cut(files, t, tmp_path / 'o')
    items = cut(files, as_text(tmp_path / 'gt2.txt', boxes[boxes[0] != 5]), tmp_path / 'o')
    assert len(items) == 4 * (N - 1)
    assert_painted(items)


def test_odd_frames(tmp_path, boxes):
    f, t = as_folder(tmp_path / 'f', paint(boxes)), as_text(tmp_path / 'gt.txt', boxes)
    whole = (f / 'img000007.png').read_bytes()
    (f / 'img000007.png').write_bytes(whole[:len(whole) // 2])
    with pytest.raises(ReidError, match="img000007.png can't be read"): cut(f, t, tmp_path / 'o')
    Image.new('RGB', (W // 2, H)).save(f / 'img000007.png')
    with pytest.raises(ReidError, match='Frame 7 is 80 × 96, the first one 160 × 96'): cut(f, t, tmp_path / 'o')


# the output folder

def test_runs_again(tmp_path, boxes, monkeypatch):
    v, t = as_folder(tmp_path / 'f', paint(boxes)), as_text(tmp_path / 'gt.txt', boxes)
    first = cut(v, t, tmp_path / 'o')
    lost = Path(first.path[10])
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / 'o').glob('*.jpg') if p != lost}
    lost.unlink()
    assert cut(v, t, tmp_path / 'o').equals(first) and lost.exists()
    assert all(p.stat().st_mtime_ns == n for p, n in before.items())
    monkeypatch.setattr(crops, 'read_frames', lambda *a: pytest.fail('nothing is to be read'))
    assert cut(v, t, tmp_path / 'o').equals(first)


@pytest.mark.parametrize('kw', [dict(quality=50), dict(size=(40, 20)), dict(every=2), dict(sessions=2), dict(min_size=(60, 5), min_conf=None, every=3)])
def test_other_options_make_the_folder_anew(tmp_path, boxes, kw):
    v, b = as_folder(tmp_path / 'f', paint(boxes)), boxes.copy()
    b.loc[b[1] == 2, 5] = 70
    t = as_text(tmp_path / 'gt.txt', b)
    a = cut(v, t, tmp_path / 'o')
    old = {p.name: p.read_bytes() for p in (tmp_path / 'o').glob('*.jpg')}
    b = cut(v, t, tmp_path / 'o', **kw)
    new = {p.name: p.read_bytes() for p in (tmp_path / 'o').glob('*.jpg')}
    assert set(new) == {Path(p).name for p in b.path} and old != new
    fresh = cut(v, t, tmp_path / 'p', **kw)
    assert new == {p.name: p.read_bytes() for p in (tmp_path / 'p').glob('*.jpg')} and len(fresh) == len(b) and len(a) == 4 * N


def test_other_video_under_the_same_name(tmp_path, boxes):
    v, t = tmp_path / 'v.mkv', as_text(tmp_path / 'gt.txt', boxes)
    cut(as_video(v, paint(boxes)), t, tmp_path / 'o')
    dark = cut(as_video(v, [a // 4 for a in paint(boxes)]), t, tmp_path / 'o')
    assert max(pixels(p).max() for p in dark.path[:5]) < 90


def test_killed_and_run_again(tmp_path, boxes, monkeypatch):
    v, t = as_folder(tmp_path / 'f', paint(boxes)), as_text(tmp_path / 'gt.txt', boxes)
    real, n = Image.Image.save, []
    def save(im, *a, **kw):
        n.append(1)
        real(im, *a, **kw)
        if len(n) == 30: raise KeyboardInterrupt
    monkeypatch.setattr(Image.Image, 'save', save)
    with pytest.raises(KeyboardInterrupt): cut(v, t, tmp_path / 'o')
    assert len(list((tmp_path / 'o').iterdir())) == 29 + 1 # whole pictures and the note, no half one
    items = cut(v, t, tmp_path / 'o')
    assert len(n) == 30 + 4 * N - 29
    assert_painted(items)


def test_strange_folder_is_left_alone(tmp_path, boxes):
    f = as_folder(tmp_path / 'f', paint(boxes), 'img{:04}.jpg')
    names = sorted(p.name for p in f.iterdir())
    with pytest.raises(ReidError, match='did not make, such as img0001.jpg|did not make'): cut(f, as_text(tmp_path / 'gt.txt', boxes), f)
    assert sorted(p.name for p in f.iterdir()) == names
    (tmp_path / 'keep.jpg').write_text('mine')
    (tmp_path / 'o').mkdir()
    (tmp_path / 'o/crops.json').write_text(json.dumps(dict(stamp='x', files=['../keep.jpg'])))
    cut(f, as_text(tmp_path / 'gt.txt', boxes), tmp_path / 'o')
    assert (tmp_path / 'keep.jpg').exists()


def test_nothing_left(tmp_path, boxes):
    with pytest.raises(ReidError, match=r"None of 96 boxes is left: \{'small': 96\}"):
        cut(as_folder(tmp_path / 'f', paint(boxes)), as_text(tmp_path / 'gt.txt', boxes), tmp_path / 'o', min_size=(90, 90))
    assert not (tmp_path / 'o').exists()


def test_progress_bar_does_not_change_the_result(tmp_path, boxes, capsys):
    v, t = as_folder(tmp_path / 'f', paint(boxes)), as_text(tmp_path / 'gt.txt', boxes)
    a = cut(v, t, tmp_path / 'a')
    b = crop_tracks(v, t, tmp_path / 'b', min_visibility=0)
    assert b.drop(columns='path').equals(a.drop(columns='path'))
    assert '24' in capsys.readouterr().out


def test_imports_little():
    code = 'import sys, reid_nb.data.crops; print([o for o in ("torch", "fastai", "av", "matplotlib", "fastprogress", "IPython") if o in sys.modules])'
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout.strip() == '[]'
