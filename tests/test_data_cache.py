"Pictures out of the cache are those of the files, whatever happens to the files, to the cache and to the processes"
import errno
import gc
import importlib.util
import io
import json
import os
import pickle
import time

import numpy as np
import pytest
import torch
from conftest import ROOT, run_python
from fastai.vision.core import TensorImage, imagenet_stats
from PIL import Image

from reid_nb.core import ReidError, make_items
from reid_nb.data import cache as C
from reid_nb.data.augment import TORCHREID_FILL
from reid_nb.data.block import ReidDataLoaders, image_dl
from reid_nb.data.cache import ImageCache, OnePass, pixels_of, taps
from reid_nb.data.own import open_image
from reid_nb.data.samplers import RandomSampler

SIZE, EACH = (64, 32), 3 * 64 * 32


def noise(seed, h=48, w=24): return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (h, w, 3), dtype=np.uint8))


def want(path, size=SIZE): return np.asarray(Image.open(path).convert('RGB').resize(size[::-1], Image.Resampling.BILINEAR)).transpose(2, 0, 1)


def rest(*paths, ago=100): # as if the files had been written a while ago, each at another time
    for i, p in enumerate(paths): os.utime(p, ns=(t := time.time_ns() - int(ago * 1e9) + i * 1001, t))
    time.sleep(.06)


@pytest.fixture
def paths(tmp_path):
    out = [tmp_path/f'{i}.png' for i in range(12)]
    for i, p in enumerate(out): noise(i, 20 + 3 * i, 40 - 2 * i).save(p)
    rest(*out)
    return out


@pytest.fixture
def cache(tmp_path): return ImageCache(SIZE, tmp_path/'cache')


def right(cache, paths): # are they the files' own pictures? and how many were found
    hits = cache.hits
    for x, p in zip(cache.read(paths), paths, strict=True): np.testing.assert_array_equal(x, want(p))
    return cache.hits - hits

# ---- pixels


def test_any_size_is_pillows_to_the_bit():
    rng = np.random.default_rng(0)
    for i in range(300):
        (H, h), (W, w) = rng.integers(1, 150, 2), rng.integers(1, 120, 2)
        im = noise(i, H, W)
        np.testing.assert_array_equal(pixels_of(im, size=(h, w)), np.asarray(im.resize((w, h), Image.Resampling.BILINEAR)).transpose(2, 0, 1))


def test_taps_of_one_pixel_and_of_none_new():
    for n in (1, 2, 7): # as many as there were: each is itself
        pixel, weight = taps(n, n)
        assert (np.take_along_axis(pixel, weight.argmax(1)[:, None], 1)[:, 0] == np.arange(n)).all() and (weight.max(1) == 2**22).all()
    assert taps(1, 5)[0].max() == 0


def by_pillow(im, size, flip, shift, top, left, box): # Torchreid's steps on one picture
    h, w = size
    im = im.resize((w, h), Image.Resampling.BILINEAR)
    if flip: im = im.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if shift: im = im.resize((round(w * 1.125), round(h * 1.125)), Image.Resampling.BILINEAR).crop((left, top, left + w, top + h))
    x = torch.from_numpy(np.array(im)).permute(2, 0, 1).float().div(255)
    x = x.sub(torch.tensor(imagenet_stats[0])[:, None, None]).div(torch.tensor(imagenet_stats[1])[:, None, None])
    y, j, bh, bw = box
    x[:, y:y + bh, j:j + bw] = torch.tensor(TORCHREID_FILL)[:, None, None]
    return x


@pytest.mark.parametrize('size', [(256, 128), (64, 32), (128, 64), (384, 128), (40, 40)])
def test_one_pass_is_torchreids_pipeline_to_the_bit(size):
    torch.manual_seed(0)
    ims, tfm = [noise(i, 30, 17) for i in range(40)], OnePass(erase=.5, fill=TORCHREID_FILL)
    x, d = torch.from_numpy(np.stack([pixels_of(o, size=size) for o in ims])), tfm.draw(40, *size)
    assert all(0 < d[k].sum() < 40 for k in ('flip', 'shift')) and (d['box'][:, 2] > 0).any() and (d['box'][:, 2] == 0).any()
    got, plain = tfm.apply(x, **d), tfm(TensorImage(x), split_idx=1)
    for i, im in enumerate(ims):
        assert torch.equal(got[i], by_pillow(im, size, **{k: v[i].tolist() for k, v in d.items()}))
        assert torch.equal(plain[i], by_pillow(im, size, 0, 0, 0, 0, (0, 0, 0, 0)))
    assert torch.equal(tfm.decode(plain), x.long())


def test_draws_are_torchreids():
    torch.manual_seed(1)
    d = OnePass(flip=.2, translate=.7, erase=.4).draw(20000, 256, 128)
    assert [d[k].float().mean().item() for k in ('flip', 'shift')] == pytest.approx([.2, .7], abs=.015)
    assert (d['box'][:, 2] > 0).float().mean().item() == pytest.approx(.4, abs=.015)
    for k, most in (('top', 32), ('left', 16)): # a rounded uniform number: the ends half as often as the others
        share = torch.bincount(d[k], minlength=most + 1) / 20000
        assert len(share) == most + 1 and share[1:-1].numpy() == pytest.approx(1 / most, abs=.01)
        assert share[[0, -1]].numpy() == pytest.approx(.5 / most, abs=.008)


def test_a_seed_gives_the_same_pictures_and_validation_changes_none():
    x, tfm = TensorImage(torch.randint(0, 256, (8, 3, *SIZE), dtype=torch.uint8)), OnePass(erase=.5)
    torch.manual_seed(3)
    a = tfm(x, split_idx=0)
    torch.manual_seed(3)
    assert torch.equal(a, tfm(x, split_idx=0)) and not torch.equal(a, tfm(x, split_idx=0))
    assert torch.equal(tfm(x, split_idx=1), tfm(x, split_idx=1)) and type(a) is TensorImage and a.dtype == torch.float32
    with pytest.raises(ValueError, match='bytes on the CPU, not torch.float32 on cpu'): tfm(a, split_idx=0)


def test_memory_is_used_again_and_never_while_somebody_holds_it():
    get = C._Memory(most=3)
    a = get((4, 5), np.float32)
    a.fill_(7)
    part, where = a[1:2].t(), a.data_ptr() # a view keeps the memory
    del a
    b = get((4, 5), np.float32)
    assert b.data_ptr() != where and (part == 7).all()
    del part
    gc.collect()
    c = get((4, 5), np.float32)
    assert c.data_ptr() == where and get((4, 5), np.uint8).data_ptr() != where
    del c
    small = get((2, 3), np.float32) # as the last batch of an epoch: a part of a larger array
    assert small.data_ptr() == where and small.shape == (2, 3) and small.is_contiguous()
    many = [get((2, i), np.uint8).fill_(i) for i in range(1, 9)]
    assert len(get.all) <= 3 and all((o == i).all() for i, o in enumerate(many, 1))

# ---- the store


def test_read_once_decoded_once(paths, cache, tmp_path):
    seen = []
    def open(p): seen.append(p); return Image.open(p).convert('RGB')
    cache.open = open
    assert right(cache, paths) == 0 and len(seen) == 12
    assert right(cache, paths[::-1]) == 12 and len(seen) == 12
    assert right(cache, [paths[3]] * 5) == 5 and right(cache, [str(paths[3])]) == 1
    other = ImageCache(SIZE, tmp_path/'cache')
    assert right(other, paths) == 12 and len(other) == 12
    assert right(pickle.loads(pickle.dumps(other)), paths) == 12
    assert cache.read([]).shape == (0, 3, *SIZE)
    assert f'{len(cache)} of {cache.n_slots} pictures' in repr(cache)


def test_the_same_file_twice_in_a_first_batch_takes_one_place(paths, cache):
    assert right(cache, [paths[0], paths[1], paths[0]]) == 0 and len(cache) == 2
    os.chdir(paths[0].parent)
    assert right(cache, [paths[0].name]) == 1 # by its absolute path


def test_sizes_are_kept_apart(paths, cache, tmp_path):
    small = ImageCache((8, 6), tmp_path/'cache')
    right(cache, paths)
    for _ in range(2): np.testing.assert_array_equal(small.read(paths)[2], want(paths[2], (8, 6)))
    assert right(cache, paths) == 12


@pytest.mark.parametrize('how', ['bytes', 'time', 'rename', 'utime back', 'decoder'])
def test_a_changed_file_is_read_anew_into_the_same_place(paths, cache, tmp_path, how, monkeypatch):
    other = ImageCache(SIZE, tmp_path/'cache')
    assert right(cache, paths) + right(other, paths) == 12
    st = os.stat(paths[4])
    if how == 'bytes': noise(99).save(paths[4])
    if how == 'time': paths[4].write_bytes(paths[4].read_bytes())
    if how == 'rename':
        noise(98).save(tmp_path/'new.png')
        os.replace(tmp_path/'new.png', paths[4])
    if how == 'utime back': # other pixels in as many bytes, with the old time
        Image.open(paths[5]).save(paths[4], 'BMP')
        rest(paths[4])
        st = os.stat(paths[4])
        right(cache, paths[4:5])
        right(other, paths[4:5])
        Image.open(paths[5]).rotate(180).save(paths[4], 'BMP')
        os.utime(paths[4], ns=(st.st_atime_ns, st.st_mtime_ns))
    if how == 'decoder': monkeypatch.setattr(C, '_DECODER', C._DECODER + 1)
    time.sleep(.06)
    n = 0 if how == 'decoder' else 11
    assert right(cache, paths) == n and right(cache, paths) == 12 and right(other, paths) == 12 and len(cache) == 12


def test_a_file_that_is_written_again_and_again_is_never_stale(tmp_path, cache):
    path = tmp_path/'busy.bmp' # every version has as many bytes, and many are written within a tick of the clock
    for i in range(60):
        noise(i).save(path)
        assert right(cache, [path]) == 0 or i == 0
    time.sleep(.06)
    right(cache, [path])
    assert right(cache, [path]) == 1


@pytest.mark.parametrize('written, age, kept', [(10**18 + 5, 1e6, 0), (10**18 + 5, 6e7, 1), (10**18, 6e7, 0), (10**18, 3e9, 1)])
def test_a_file_is_kept_once_another_write_would_show_in_its_time(paths, cache, monkeypatch, written, age, kept):
    monkeypatch.setattr(C, '_signature', lambda p: (1, written, written, 0)) # 10**18: a file system that keeps whole seconds
    monkeypatch.setattr(time, 'time_ns', lambda: written + int(age))
    right(cache, paths[:1])
    assert len(cache) == kept


def test_a_file_that_changes_while_it_is_read_is_not_kept(tmp_path, paths):
    def open(p):
        im = Image.open(p).convert('RGB')
        noise(5).save(p)
        return im
    cache = ImageCache(SIZE, tmp_path/'cache', open=open)
    cache.read(paths[:1])
    assert len(cache) == 0


def test_what_cannot_be_read_has_its_name_in_the_error(paths, cache):
    right(cache, paths)
    bad = paths[0].with_name('bad.png')
    bad.write_bytes(paths[1].read_bytes()[:50])
    with pytest.raises(ReidError, match='bad.png'): cache.read([paths[0], bad])
    paths[1].unlink()
    with pytest.raises(ReidError, match='1.png.*FileNotFoundError'): cache.read(paths[:2])
    with pytest.raises(ValueError, match='no room for a picture of 6144 bytes'): ImageCache(SIZE, paths[0].parent, max_gb=0)


def bounded(folder, n): return ImageCache(SIZE, folder, max_gb=n * EACH / 1e9 + 1e-9)


def test_no_more_than_the_bound_and_pictures_of_a_run_stay(paths, tmp_path):
    c = bounded(tmp_path/'few', 8)
    with pytest.warns(UserWarning, match='its 8 places are taken; pass a larger max_gb'): right(c, paths)
    assert [right(c, paths) for _ in range(3)] == [8] * 3 and len(c) == 8
    assert c.path.stat().st_size == C._START + C._MOST * C._RECORD.itemsize + 8 * EACH
    assert c.disk_mb() < 8 * EACH / 1e6 + .1


def test_what_nobody_reads_any_more_makes_room_oldest_first(paths, tmp_path):
    c = bounded(tmp_path/'few', 6)
    right(c, paths[:6])
    c._maps.rec['used'][:6] = [50, 10, 40, 20, 60, 30] # seconds
    later = bounded(tmp_path/'few', 6)
    assert right(later, paths[6:9]) == 0 and right(later, paths[6:9]) == 3
    third = bounded(tmp_path/'few', 6)
    assert [right(third, [p]) for p in (paths[0], paths[2], paths[4])] == [1] * 3
    assert right(c, paths[6:9]) == 3 # the first process learns of it
    with pytest.warns(UserWarning, match='places are taken'): right(c, [paths[i] for i in (1, 3, 5)])


def test_bounds_that_differ_share_a_file_and_none_starts_anew(paths, tmp_path):
    a = bounded(tmp_path/'few', 6)
    right(a, paths[:6])
    b = bounded(tmp_path/'few', 12)
    assert right(b, paths[:6]) == 6 and right(b, paths) == 6 and right(b, paths) == 12
    a._full = False
    a._opened = 0
    with pytest.warns(UserWarning): assert right(a, paths) == 6 # it sees its own six places
    inode = b.path.stat().st_ino
    for _ in range(2): # a tighter one, a wider one, in turn: all find everything
        c = bounded(tmp_path/'few', 3)
        assert right(c, paths) == 12 and len(c) == 12 and "12 of 12 pictures" in repr(c)
        assert right(bounded(tmp_path/'few', 12), paths) == 12
    new = paths[0].with_name('new.png') # the tighter one takes a place that is there, and lets the file be as large as it is
    noise(77).save(new)
    rest(new)
    size = c.path.stat().st_size
    c._opened += 3600
    assert right(c, [new]) == 0 and right(c, [new]) == 1 and len(c) == 12
    assert (c.path.stat().st_size, c.path.stat().st_ino) == (size, inode)
    c.clear()
    assert bounded(tmp_path/'few', 3).path.stat().st_size == size - 9 * EACH


def test_cleared_by_another_process(paths, cache, tmp_path):
    other = ImageCache(SIZE, tmp_path/'cache')
    right(cache, paths[:6])
    other.clear()
    assert len(other) == 0 and right(cache, paths[:6]) == 6 # still its own
    assert right(cache, paths) == 6 and right(other, paths[6:]) == 6 # from here on in the new file


def test_damage_is_noticed_by_the_next_process(paths, cache, tmp_path):
    right(cache, paths)
    start = C._START + C._MOST * C._RECORD.itemsize
    with open(cache.path, 'r+b') as f:
        f.seek(start + 2 * EACH + 100)
        f.write(b'not these')
        f.seek(start + 5 * EACH) # as after a loss of power: a record, and no pixels
        f.write(bytes(EACH))
    again = ImageCache(SIZE, tmp_path/'cache')
    assert right(again, paths) == 10 and right(again, paths) == 12 and right(ImageCache(SIZE, tmp_path/'cache'), paths) == 12


def test_small_pictures_take_the_room_of_their_own_pixels(paths, tmp_path):
    size, files = (256, 128), [tmp_path/f'small{i}.bmp' for i in range(40)]
    for i, f in enumerate(files): noise(i, 128, 64).save(f)
    rest(*files)
    c = ImageCache(size, tmp_path/'small')
    for n in (0, 40):
        hits = c.hits
        for x, f in zip(c.read(files), files, strict=True): np.testing.assert_array_equal(x, want(f, size))
        assert c.hits - hits == n
    assert c.disk_mb() < 40 * 3 * 128 * 64 / 1e6 + .1
    mixed, hits = [*paths[:3], *files[:3], *paths[3:6], files[0]], c.hits # of many sizes in a batch, some there and some not
    for x, f in zip(c.read(mixed), mixed, strict=True): np.testing.assert_array_equal(x, want(f, size))
    assert c.hits - hits == 4
    for x, f in zip(ImageCache(size, tmp_path/'small').read(mixed), mixed, strict=True): np.testing.assert_array_equal(x, want(f, size))


def test_a_record_with_a_wild_size_is_no_picture(paths, cache, tmp_path):
    right(cache, paths)
    for hw in ((0, 0), (65535, 65535), (64, 33), (1, 1)):
        cache._maps.rec['hw'][4] = hw
        again = ImageCache(SIZE, tmp_path/'cache')
        assert right(again, paths) == 11 and right(again, paths) == 12


def jpeg(im, **kw):
    im.save(f := io.BytesIO(), 'JPEG', **kw)
    return f.getvalue()


TURNED = Image.Exif()
TURNED[0x112] = 6
JPEGS = {'plain': jpeg(noise(0)), 'subsampled': jpeg(noise(1, 47, 23), subsampling=2), 'progressive': jpeg(noise(2), progressive=True), 'turned': jpeg(noise(3), exif=TURNED), 'rgb inside': jpeg(noise(4), keep_rgb=True),
         'grey': jpeg(noise(5).convert('L')), 'cmyk': jpeg(noise(6).convert('CMYK')), 'comment': jpeg(noise(7), comment=b'\xff\xc0 no frame'), 'more': jpeg(noise(8)) + b'after the end'}


@pytest.mark.parametrize('kind', JPEGS)
def test_jpegs_are_read_as_by_open_image(tmp_path, kind):
    (tmp_path/'a.jpg').write_bytes(JPEGS[kind])
    np.testing.assert_array_equal(np.asarray(C._open(tmp_path/'a.jpg')), np.asarray(open_image(tmp_path/'a.jpg')))
    assert (C._plain(JPEGS[kind]) is None) == (kind in ('turned', 'grey', 'cmyk', 'rgb inside'))


def test_damaged_jpegs_give_the_pixels_of_open_image_or_its_error(tmp_path):
    rng, ends = np.random.default_rng(0), {True: 0, False: 0}
    whole, f = jpeg(noise(0).resize((64, 128))), tmp_path/'a.jpg'
    for i in range(300):
        raw, at = bytearray(whole), int(rng.integers(2, len(whole)))
        if i % 4 == 0: raw = raw[:at]
        elif i % 4 == 1: raw[at:at + int(rng.integers(1, 200))] = b''
        elif i % 4 == 2: raw[at] = int(rng.integers(256))
        else: raw[int(rng.integers(630))] = int(rng.integers(256))
        f.write_bytes(raw)
        def pixels(open):
            try: return np.asarray(open(f))
            except ReidError: return None
        a, b = pixels(C._open), pixels(open_image)
        assert (a is None) == (b is None) and np.array_equal(a, b)
        ends[a is None] += 1
    assert min(ends.values()) > 50


def test_a_full_disk_is_a_warning_and_pictures_are_right(paths, cache, monkeypatch):
    right(cache, paths[:3])
    def full(*args): raise OSError(errno.ENOSPC, 'No space left on device')
    with monkeypatch.context() as m:
        m.setattr(os, 'pwrite', full)
        with pytest.warns(UserWarning, match='takes no more pictures .OSError: .Errno 28. No space left'): assert right(cache, paths) == 3
        assert right(cache, paths) == 3
    assert len(cache) == 3


def test_fill_by_threads(paths, cache):
    assert cache.fill(paths, n_threads=4, bs=1) is cache and len(cache) == 12 and right(cache, paths) == 12


KILL = '''
import os, random, signal, sys, time
import numpy as np
from PIL import Image
from reid_nb.data.cache import ImageCache
folder, paths = sys.argv[1], sys.argv[2:]
want = np.stack([np.asarray(Image.open(p).resize((32, 64), 2)).transpose(2, 0, 1) for p in paths])
def cache(): return ImageCache((64, 32), folder, max_gb=20 * 3 * 64 * 32 / 1e9 + 1e-9)
def writer(seed): # reads in some order, and makes files stale; dies when it likes
    rng, c = np.random.default_rng(seed), cache()
    c._opened = 2**32 - 1 # everything may be replaced
    while True:
        some = rng.permutation(len(paths))[:5]
        if not (c.read([paths[i] for i in some]) == want[some]).all(): os._exit(3)
        if rng.random() < .2: os.utime(paths[some[0]], ns=(0, int(rng.integers(10**15))))
        if rng.random() < .02: c.clear()
cache().read(paths) # compiled before the forks
random.seed(0)
pids, deaths = {}, 0
for step in range(15):
    while len(pids) < 3:
        if not (pid := os.fork()): writer(1000 * step + len(pids))
        pids[pid] = None
    time.sleep(random.uniform(.005, .05))
    pid = random.choice(list(pids))
    os.kill(pid, signal.SIGKILL)
    status = os.waitpid(pid, 0)[1]
    assert os.WIFSIGNALED(status), f'a writer saw wrong pixels ({status})'
    del pids[pid]
    deaths += 1
    assert (cache().read(paths) == want).all()
for pid in pids: os.kill(pid, signal.SIGKILL); os.waitpid(pid, 0)
time.sleep(.06)
c = cache()
c._opened = 2**32 - 1
c.read(paths)
print(deaths, 'deaths', (c.read(paths) == want).all())
'''


@pytest.mark.skipif(not hasattr(os, 'fork'), reason='forks')
def test_processes_that_are_killed_while_they_write_leave_no_wrong_picture(tmp_path):
    paths = [tmp_path/f'{i}.bmp' for i in range(30)] # more than there is room for
    for i, p in enumerate(paths): noise(i).save(p)
    rest(*paths)
    assert '15 deaths True' in run_python('-W', 'ignore', '-c', KILL, tmp_path/'kill', *paths, cwd=ROOT)

# ---- loaders


@pytest.fixture
def items(tmp_path):
    rows = [(f'{pid}_{cam}_{i}', pid, cam, s) for s, pids in (('train', range(6)), ('query', range(6, 9)), ('gallery', range(6, 9))) for pid in pids for cam in range(2) for i in range(2)]
    files = [tmp_path/f'{s}_{n}.png' for n, _, _, s in rows]
    for i, f in enumerate(files): noise(i).save(f)
    rest(*files)
    return make_items(files, [o[1] for o in rows], [o[2] for o in rows], [o[3] for o in rows])


def loaders(items, **kw): return ReidDataLoaders.from_items(items, size=SIZE, p=3, k=2, bs=5, device='cpu', **kw)


def epochs(dls, n=2): # the batches of n epochs, from a seed
    dls.train.rng.seed(0)
    torch.manual_seed(0)
    return [b for _ in range(n) for b in dls.train]


@pytest.mark.parametrize('workers', [0, 2])
def test_batches_are_the_same_with_a_cache(items, cache, workers):
    a, b = loaders(items), loaders(items, cache=cache, num_workers=workers)
    for one, two in zip(epochs(a), epochs(b), strict=True):
        assert [(type(o), o.dtype) for o in one] == [(type(o), o.dtype) for o in two] and all(torch.equal(x, y) for x, y in zip(one, two))
    for _ in range(2):
        for (x,), (y,) in zip(a.valid, b.valid, strict=True): assert torch.equal(x, y) and type(x) is type(y)
    assert len(cache) == len(items)
    assert torch.equal(a.items_dl(items[:3]).one_batch()[0], b.items_dl(items[:3]).one_batch()[0])
    assert torch.equal(image_dl(items, SIZE, device='cpu').one_batch()[0], image_dl(items, SIZE, device='cpu', cache=cache).one_batch()[0])


def test_loaders_made_of_loaders_read_the_cache_where_they_can(items, cache):
    cache.fill(items)
    dls = loaders(items, cache=cache)
    def found(dl):
        before = cache.hits
        n = sum(len(b[0]) for b in dl)
        return cache.hits - before, n
    assert found(dls.items_dl(items[:3])) == (3, 3) and found(dls.valid) == (24, 24)
    assert found(dls.train.new())[0] == 24 and found(dls.train.new(shuffle=False)) == (0, 24) # fastai's own loader: not from the cache, and right
    empty = dls.new_empty()
    assert all(getattr(o, 'cache', None) is None for o in empty.loaders) # an exported learner carries none


def test_one_pass_in_a_loader(items, cache):
    dls = loaders(items, cache=cache, tfms=[OnePass(erase=1., fill=9.)])
    x, y = epochs(dls, 1)[0]
    assert x.dtype == torch.float32 and (x == 9).flatten(1).any(1).all()
    plain = loaders(items)
    for (x,), (y,) in zip(dls.valid, plain.valid, strict=True): assert torch.equal(x, y) # validation: to the bit
    assert dls.show_batch() is not None


def test_the_memory_of_a_batch_is_free_as_soon_as_nobody_holds_it(items, cache):
    dls = loaders(items, cache=cache, tfms=[OnePass()])
    epochs(dls, 1)
    gc.collect()
    def held(): return [o for o in gc.get_objects() if type(o) is TensorImage]
    others = held() # of other tests
    gc.disable() # a cycle, such as a traceback, would wait for it
    try:
        for x, y in dls.train: del x, y
        assert not {id(o) for o in held()} - {id(o) for o in others}
    finally: gc.enable()


def test_options_that_do_not_fit(items, cache):
    with pytest.raises(ValueError, match=r'The cache holds pictures of \(64, 32\), and the loaders want \(128, 64\)'): ReidDataLoaders.from_items(items, size=(128, 64), p=3, k=2, cache=cache)


def test_any_sampler(items, cache):
    for kw in ({}, dict(cache=cache)):
        dls = loaders(items, sampler=lambda rows: RandomSampler(rows, bs=7, drop_last=False), **kw)
        b = epochs(dls, 1)
        assert [len(o[0]) for o in b] == [7, 7, 7, 3] and sorted(torch.cat([o[1] for o in b]).tolist()) == sorted([i for i in range(6) for _ in range(4)])

# ---- the benchmark


def load_bench():
    spec = importlib.util.spec_from_file_location('loading', ROOT/'tests/bench/loading.py')
    spec.loader.exec_module(mod := importlib.util.module_from_spec(spec))
    return mod


def test_the_benchmarks_test_of_distributions_is_calm_and_awake():
    bench, rng = load_bench(), np.random.default_rng(0)
    p = [bench.ks(rng.normal(size=300), rng.normal(size=300)) for _ in range(300)]
    assert .01 < np.mean(np.array(p) < .05) < .09 and np.mean(p) == pytest.approx(.5, abs=.06)
    assert bench.ks(rng.normal(size=300), rng.normal(.5, size=300)) < 1e-3
    same, other = rng.normal(size=(2, 300, 4))
    assert bench.compare(same, other) > .01 > bench.compare(same, other + [0, 0, .5, 0])


def test_a_small_run_of_the_benchmark_prints_its_table(tmp_path):
    out = run_python(ROOT/'tests/bench/loading.py', '--n', '70', '--methods', 'first epoch', '--json', tmp_path/'figures.json', cwd=tmp_path)
    assert 'ours, first epoch' in out and '70 JPEGs of 3' in out
    runs = json.loads((tmp_path/'figures.json').read_text())['runs']
    assert all(o[0]['cpu_us'] > 0 and o[0]['n'] == 70 for o in runs.values()), runs
    with pytest.raises(pytest.fail.Exception, match='no checkout of it'): run_python(ROOT/'tests/bench/loading.py', '--torchreid', tmp_path, cwd=tmp_path)
