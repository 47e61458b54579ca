"MOTChallenge folders, several videos and COCO files, painted on the spot: what is cut out must be what was painted there"
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from reid_nb.core import ReidError, check_items
from reid_nb.data.mot import crop_mot, crop_videos, items_from_coco, mot_sequences, read_coco, transits

H, W, N = 80, 200, 8
BOX = dict(w=24, h=60)


def colour(video, tid, frame): return (40 * (video % 6) + 10, 40 * (tid % 6) + 10, 25 * (frame % 9))


def box(tid, frame): return 6 + 45 * (tid - 1) + frame, 8, BOX['w'], BOX['h'] # left, top, width, height


def frames(folder, video, tids=(1, 2, 3, 4), n=N, name='{:06}.png', first=1):
    folder.mkdir(parents=True, exist_ok=True)
    for f in range(first, n + first):
        a = np.full((H, W, 3), 128, np.uint8)
        for t in tids:
            x, y, w, h = box(t, f)
            a[y:y + h, x:x + w] = colour(video, t, f)
        Image.fromarray(a).save(folder / name.format(f))


def sequence(root, name, video, tids=(1, 2, 3, 4), mot15=False, ini=None, gt=True):
    folder = root / name
    frames(folder / 'img1', video, tids)
    if gt:
        (folder / 'gt').mkdir()
        rows = [(f, t, *box(t, f), *((1, -1, -1, -1) if mot15 else (int(t != 4), 1 if t != 4 else 7, 1))) for t in tids for f in range(1, N + 1)]
        rows += [] if mot15 else [(f, 9, 0, 0, 30, 30, 1, 3, 1) for f in range(1, N + 1)] # a car in the corner, considered by mistake
        (folder / 'gt/gt.txt').write_text('\n'.join(','.join(map(str, r)) for r in rows))
    if not mot15: (folder / 'seqinfo.ini').write_text(ini or f'[Sequence]\nname={name}\nimDir=img1\nframeRate=4\nseqLength={N}\nimWidth={W}\nimHeight={H}\nimExt=.png\n')
    return folder


def cut(root, out, **kw): return crop_mot(root, out, progress=False, **dict(dict(min_visibility=0), **kw))


def assert_painted(items, videos, col): # `videos`: value of column `col` -> its number
    for r in items.itertuples():
        with Image.open(r.path) as im: got = np.median(np.asarray(im).reshape(-1, 3), 0)
        want = colour(videos[getattr(r, col)], r.tid, r.frame)
        assert np.abs(got - want).max() <= 8, (r.path, got, want)


# MOTChallenge

@pytest.fixture
def mot(tmp_path):
    root = tmp_path / 'MOT17'
    for o in ('SDP', 'DPM'): sequence(root / 'train', f'MOT17-02-{o}', 1)
    sequence(root / 'train', 'MOT17-13-FRCNN', 2, (1, 2))
    sequence(root / 'test', 'MOT17-01-DPM', 3, gt=False)
    return root


def test_mot17(mot, tmp_path):
    seqs = mot_sequences(mot)
    assert list(seqs.name) == ['MOT17-01-DPM', 'MOT17-02-DPM', 'MOT17-02-SDP', 'MOT17-13-FRCNN'] and list(seqs.detector) == ['DPM', 'DPM', 'SDP', 'FRCNN']
    assert set(seqs.fps) == {4.} and set(zip(seqs.h, seqs.w, seqs.frames)) == {(H, W, N)} and list(seqs.part) == ['test', 'train', 'train', 'train']
    items = cut(mot, tmp_path / 'out')
    assert len(items) == 3 * N + 2 * N # no seated person, no car, each sequence once
    assert items.groupby('sequence').cam.unique().map(list).to_dict() == {'MOT17-02': [0], 'MOT17-13': [1]}
    assert not set(items.pid[items.cam == 0]) & set(items.pid[items.cam == 1]) and set(items.dset) == {'MOT17'}
    assert np.allclose(items.time, (items.frame - 1) / 4)
    assert_painted(items, {'MOT17-02': 1, 'MOT17-13': 2}, 'sequence')
    assert cut(mot, tmp_path / 'out').equals(items)
    check_items(items, paths='all', splits=('gallery',))


def test_choices(mot, tmp_path):
    assert set(cut(mot, tmp_path / 'a', sequences=['MOT17-13']).sequence) == {'MOT17-13'}
    assert set(cut(mot, tmp_path / 'b', sequences=['MOT17-02-SDP']).sequence) == {'MOT17-02'}
    both = cut(mot, tmp_path / 'c', sequences=['MOT17-02'], classes=(1, 7), min_conf=-1)
    assert set(both.tid) == {1, 2, 3, 4}
    assert set(cut(mot, tmp_path / 'd', classes=(3,), min_size=(20, 20)).tid) == {9}
    halves = cut(mot, tmp_path / 'e', sessions=2)
    assert set(halves.cam) == {0, 1, 2, 3} and halves.groupby('pid').cam.nunique().eq(2).all()
    one = cut(mot / 'train/MOT17-13-FRCNN', tmp_path / 'f')
    assert len(one) == 2 * N


def test_mot15_has_no_note(tmp_path):
    sequence(tmp_path / 'train', 'ADL', 4, mot15=True)
    seqs = mot_sequences(tmp_path)
    assert seqs.fps.isna().all() and list(seqs.detector) == [None]
    items = cut(tmp_path, tmp_path / 'out')
    assert set(items.tid) == {1, 2, 3, 4} and items.time.isna().all()
    assert_painted(items, {'ADL': 4}, 'sequence')


def test_faults_of_a_folder(mot, tmp_path):
    with pytest.raises(FileNotFoundError): mot_sequences(tmp_path / 'nothing')
    with pytest.raises(ReidError, match='holds no sequence'): mot_sequences((tmp_path / 'empty').mkdir() or tmp_path / 'empty')
    with pytest.raises(ReidError, match='no sequence .x.'): cut(mot, tmp_path / 'o', sequences=['x'])
    with pytest.raises(ReidError, match='no gt/gt.txt in MOT17-01-DPM'): cut(mot / 'test', tmp_path / 'o')
    ini = mot / 'train/MOT17-13-FRCNN/seqinfo.ini'
    for text, match in [('[Sequence]\nframeRate=fast', 'a word where a number'), ('frameRate=3', "can't be understood"), ('[Other]\na=1', 'no section'),
                        (f'[Sequence]\nseqLength={N + 5}', f'promises {N + 5}'), ('[Sequence]\nimDir=frames', 'no pictures')]:
        ini.write_text(text)
        with pytest.raises(ReidError, match=match): cut(mot, tmp_path / 'o')
    ini.write_text('\ufeff[Sequence]\r\nname=50%\r\nframeRate=12.5\r\n', encoding='utf-8') # as Windows writes it, with a percent sign
    assert mot_sequences(mot).fps.tolist()[-1] == 12.5


# several videos

@pytest.fixture
def videos(tmp_path):
    rows = []
    for i, (name, tids) in enumerate({'hall': (1, 2, 3), 'yard': (1, 2, 4)}.items()):
        frames(tmp_path / name, i + 1, tids)
        rows.append(dict(source=tmp_path / name, boxes=pd.DataFrame([(f, t, *box(t, f)) for t in tids for f in range(1, N + 1)], columns=['frame', 'tid', 'left', 'top', 'width', 'height']),
                         cam=name, fps=4, start=100 * i))
    return rows


def street(videos, out, **kw): return crop_videos(videos, out, progress=False, **dict(dict(min_visibility=0), **kw))


def test_videos_apart_and_same(videos, tmp_path):
    apart = street(videos, tmp_path / 'a')
    assert_painted(apart, dict(hall=1, yard=2), 'video')
    assert apart.pid.nunique() == 6 and apart.groupby('pid').cam.nunique().max() == 1
    assert set(zip(apart.cam, apart.cam_name)) == {(0, 'hall'), (1, 'yard')}
    assert np.allclose(apart.clock, apart.time + 100 * apart.cam.astype(float)) and np.allclose(apart.time, (apart.frame - 1) / 4)
    same = street(videos, tmp_path / 'b', people='same')
    assert (same.pid == same.tid).all() and same.groupby('pid').cam.nunique().to_dict() == {1: 2, 2: 2, 3: 1, 4: 1}
    check_items(same, paths='all', splits=('gallery',))


def test_who_is_who(videos, tmp_path):
    who = [('hall', 1, 'zoe'), ('yard', 4, 'zoe'), ('hall', 2, 'ann'), ('yard', 1, 'ann')]
    for form in (who, pd.DataFrame(who, columns=['video', 'tid', 'pid'])):
        items = street(videos, tmp_path / 'a', people=form)
        assert_painted(items, dict(hall=1, yard=2), 'video')
        found = {(r.video, r.tid): (r.pid, r.name) for r in items[['video', 'tid', 'pid', 'name']].drop_duplicates().itertuples(index=False)}
        assert found[('hall', 1)] == found[('yard', 4)] == (1, 'zoe') and found[('hall', 2)] == found[('yard', 1)] == (0, 'ann')
        rest = {found[('hall', 3)][0], found[('yard', 2)][0]}
        assert rest == {2, 3}
    numbers = street(videos, tmp_path / 'b', people=[('hall', 1, 70), ('yard', 4, 70), ('yard', 2, -1)])
    assert set(numbers.tid[numbers.pid == 70]) == {1, 4} and 'name' not in numbers
    assert set(numbers.tid[numbers.pid == -1]) == {2} and set(numbers.video[numbers.pid == -1]) == {'yard'}
    for people, match in [([('hall', 9, 1)], 'have no boxes'), ([('hall', 1, 1), ('hall', 1, 2)], 'named twice'), (pd.DataFrame(dict(video=['hall'], tid=[1])), r"\['pid'\] missing")]:
        with pytest.raises(ReidError, match=match): street(videos, tmp_path / 'c', people=people)
    with pytest.raises(ValueError, match='apart'): street(videos, tmp_path / 'c', people='what')


def test_one_camera_two_videos_and_dates(videos, tmp_path):
    t0 = pd.Timestamp('2024-03-01 09:00')
    rows = [v | dict(name=v['cam'], cam=7, start=t0 + pd.Timedelta(100 * i, 's')) for i, v in enumerate(videos)]
    items = street(rows, tmp_path / 'a', people='same')
    assert set(items.cam) == {7} and 'cam_name' not in items
    assert (items.clock[items.video == 'yard'].min() - t0).total_seconds() == 100
    t = transits(items)
    assert (t.cam == 7).all() and (t.to == 7).all() and t.n.sum() == 2
    with pytest.raises(ReidError, match='Two videos are called'): street([v | dict(name='x') for v in rows], tmp_path / 'b')


def test_faults_of_videos(videos, tmp_path):
    with pytest.raises(ReidError, match='`start` is missing for'): street([videos[0], {k: v for k, v in videos[1].items() if k != 'start'}], tmp_path / 'a')
    with pytest.raises(ReidError, match='no rate'): street([{k: v for k, v in o.items() if k != 'fps'} for o in videos], tmp_path / 'a')
    with pytest.raises(ReidError, match="A video has no 'camera'"): street([o | dict(camera=1) for o in videos], tmp_path / 'a')
    with pytest.raises(ReidError, match=r"needs \['boxes'\]"): street([dict(source='a')], tmp_path / 'a')
    assert 'clock' not in street([{k: v for k, v in o.items() if k != 'start'} for o in videos], tmp_path / 'b')
    with pytest.raises(ReidError, match="no column 'clock'"): transits(street([{k: v for k, v in o.items() if k != 'start'} for o in videos], tmp_path / 'b'))


def test_transits_against_the_obvious():
    rng = np.random.default_rng(0)
    df = pd.DataFrame(dict(pid=rng.integers(-1, 6, 200), cam=rng.integers(0, 3, 200), tid=0, clock=rng.random(200) * 1000)).assign(video=lambda o: o.cam)
    want = {}
    for pid, g in df[df.pid >= 0].groupby('pid'):
        visits = sorted((v.clock.min(), v.clock.max(), cam) for cam, v in g.groupby('cam'))
        for a, b in zip(visits, visits[1:]): want.setdefault((a[2], b[2]), []).append((b[0] - a[1], pid))
    got = transits(df)
    assert {(r.cam, r.to) for r in got.itertuples()} == set(want)
    for r in got.itertuples():
        gaps = want[(r.cam, r.to)]
        assert r.n == len(gaps) and np.isclose(r.min, min(gaps)[0]) and r.pid == min(gaps)[1] and np.isclose(r.median, np.median([o[0] for o in gaps]))


# COCO

def coco(tmp_path, where='top', **change):
    images, ann = [], []
    for i, cam in enumerate(['n', 'n', 's', 's'], 1):
        frames(tmp_path / 'pics', i, n=1, name=f'{cam}_{i}.png')
        images.append(dict(id=10 * i, file_name=f'{cam}_{i}.png', width=W, height=H))
        for t in (1, 2, 3):
            who = dict(track_id=t)
            ann.append(dict(id=len(ann), image_id=10 * i, category_id=1, bbox=list(map(float, box(t, 1))), iscrowd=0) | (who if where == 'top' else dict(attributes=who)))
    ann.append(dict(id=99, image_id=10, category_id=2, bbox=[0, 0, 50, 50], track_id=77))
    ann.append(dict(id=98, image_id=10, category_id=1, bbox=[0, 0, 50, 50], iscrowd=1, track_id=78))
    ann.append(dict(id=97, image_id=20, category_id=1, bbox=list(map(float, box(4, 1)))))
    full = dict(images=images, annotations=ann, categories=[dict(id=1, name='Person'), dict(id=2, name='dog')])
    (tmp_path / 'a.json').write_text(json.dumps(full | {k: v(full[k]) if callable(v) else v for k, v in change.items()}))
    return tmp_path / 'a.json'


def from_coco(file, tmp_path, **kw): return items_from_coco(file, tmp_path / 'pics', tmp_path / 'out', progress=False, **dict(dict(min_visibility=0), **kw))


@pytest.mark.parametrize('where', ['top', 'attributes'])
def test_coco(tmp_path, where):
    items = from_coco(coco(tmp_path, where), tmp_path, camera=r'^(\w)_')
    assert len(items) == 13 and set(items.pid) == {-1, 1, 2, 3} and (items.pid == -1).sum() == 1
    assert set(items.split[items.pid == -1]) == {'gallery'} and set(items.split[items.pid > 0]) == {'train'}
    assert set(zip(items.cam, items.cam_name)) == {(0, 'n'), (1, 's')}
    for r in items.itertuples():
        with Image.open(r.path) as im: got, size = np.median(np.asarray(im).reshape(-1, 3), 0), im.size
        assert size == (BOX['w'], BOX['h'])
        assert np.abs(got - colour(int(r.file_name[2]), r.pid if r.pid > 0 else 4, 1)).max() <= 8
    check_items(items, paths='all', splits=('train',))
    assert from_coco(tmp_path / 'a.json', tmp_path, camera=r'^(\w)_').equals(items)


def test_coco_words_cameras_and_options(tmp_path):
    file = coco(tmp_path, annotations=lambda a: [o | dict(who=f'p{o.get("track_id", 0)}') for o in a], images=lambda a: [o | dict(camera=o['id'] // 30) for o in a])
    items = from_coco(file, tmp_path, identity='who', junk=['p0'], size=(32, 16))
    assert set(items.name) == {'p0', 'p1', 'p2', 'p3'} and set(items.pid[items.name == 'p0']) == {-1} and set(items.cam) == {0, 1}
    with Image.open(items.path[0]) as im: assert im.size == (16, 32)
    assert from_coco(coco(tmp_path), tmp_path).cam.isna().all()
    assert not (tmp_path / 'out' / Path(items.path[0]).name).exists() # the folder belongs to the last call
    assert len(from_coco(coco(tmp_path), tmp_path, category='dog', min_size=(1, 1))) == 1


def test_coco_of_whole_images(tmp_path):
    file = coco(tmp_path, annotations=lambda a: [o for o in a if o.get('track_id') == 2])
    items = items_from_coco(file, tmp_path / 'pics', camera=r'(n|s)_')
    assert sorted(items.path) == sorted(map(str, (tmp_path / 'pics').iterdir())) and set(items.pid) == {2} and set(items.cam) == {0, 1}
    with pytest.raises(ReidError, match='share an image'): items_from_coco(coco(tmp_path), tmp_path / 'pics')


def test_coco_of_videos_asks_whether_numbers_are_shared(tmp_path):
    file = coco(tmp_path, images=lambda a: [o | dict(video_id=o['id'] // 30) for o in a])
    with pytest.raises(ReidError, match='occur in several videos'): from_coco(file, tmp_path)
    assert from_coco(file, tmp_path, shared=True).pid.nunique() == 4
    apart = from_coco(file, tmp_path, shared=False)
    assert apart[apart.pid >= 0].pid.nunique() == 6 and apart[apart.pid >= 0].groupby('pid').video_id.nunique().max() == 1


def test_coco_size_and_exif(tmp_path):
    file = coco(tmp_path, images=lambda a: [{k: v for k, v in o.items() if k not in ('width', 'height')} for o in a])
    assert len(from_coco(file, tmp_path)) == 13 # sizes from the files
    p, e = tmp_path / 'pics/n_1.png', Image.Exif()
    e[0x112] = 6
    with Image.open(p) as im: im.load(); im.save(p, exif=e)
    with pytest.raises(ReidError, match='80 × 200 and its boxes are for 200 × 80.*to be turned'): from_coco(coco_again(file), tmp_path)


def coco_again(file): # the same file, with the sizes of the stored pictures
    d = json.loads(file.read_text())
    file.write_text(json.dumps(d | dict(images=[o | dict(width=W, height=H) for o in d['images']])))
    return file


@pytest.mark.parametrize('change, match', [
    (dict(annotations=lambda a: [{k: v for k, v in o.items() if k != 'track_id'} for o in a]), 'Nothing in the annotations says who it is'),
    (dict(annotations=[]), '0 boxes'), (dict(annotations=lambda a: a + [dict(image_id=10, category_id=1, bbox=[1, 2, 3], track_id=5)]), r'not \[left, top, width, height\]'),
    (dict(annotations=lambda a: a + [dict(image_id=11, category_id=1, bbox=[1, 2, 3, 4], track_id=5)]), "doesn't list"),
    (dict(annotations=lambda a: a + [dict(image_id=10, category_id=1, bbox=[1, 2, -3, 4], track_id=5)]), 'not .left'),
    (dict(categories=[dict(id=1, name='cat'), dict(id=2, name='dog')]), 'No category'), (dict(images=None), "no list 'images'"),
    (dict(images=lambda a: [o | dict(file_name='x/' + o['file_name']) for o in a]), "don't exist")])
def test_coco_faults(tmp_path, change, match):
    with pytest.raises(ReidError, match=match): from_coco(coco(tmp_path, **change), tmp_path)


def test_coco_that_is_none(tmp_path):
    (tmp_path / 'a.json').write_text('{"images": [')
    with pytest.raises(ReidError, match='is no JSON'): read_coco(tmp_path / 'a.json')
    (tmp_path / 'a.json').write_text('[]')
    with pytest.raises(ReidError, match='no list'): read_coco(tmp_path / 'a.json')
    file = coco(tmp_path)
    with pytest.raises(ReidError, match="no 'who'"): read_coco(file, identity='who')
    with pytest.raises(ReidError, match='is no key'): read_coco(file, camera='where')
    with pytest.raises(ReidError, match="don't match"): read_coco(file, camera=r'^(n)_')
    with pytest.raises(ReidError, match='boxes is left'): from_coco(file, tmp_path, min_size=(500, 500))


def test_a_coco_file_that_is_not_there(tmp_path):
    for read in (items_from_coco, read_coco):
        with pytest.raises(FileNotFoundError, match='There is no file .*gone.json'): read(tmp_path / 'gone.json')
        with pytest.raises(FileNotFoundError, match='it is a folder'): read(tmp_path)
