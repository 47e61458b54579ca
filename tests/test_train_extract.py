"Features of pictures in any form, to a file that survives a kill, and as Torchreid's extractor would compute them"
import contextlib
import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2 as T

from reid_nb.core import ReidError
from reid_nb.data.synth import synth_people
from reid_nb.models.osnet import osnet_x0_25
from reid_nb.train.embed import embed_dl, embed_items, evaluate_model, features_of
from reid_nb.train.extract import FeatureExtractor, image_files

SIZE = (64, 32)


@pytest.fixture(scope='module')
def items(tmp_path_factory): return synth_people(tmp_path_factory.mktemp('people'), n_ids=8, n_cams=2, per_cam=2, distractors=0, junk=0)


@pytest.fixture(scope='module')
def model():
    torch.manual_seed(0)
    return osnet_x0_25(5).eval()


@pytest.fixture(scope='module')
def ex(model): return FeatureExtractor(model, size=SIZE, bs=8)


def close(a, b): return a.shape == b.shape and np.abs(a - b).max() < 1e-5 * np.abs(b).max()


def by_the_book(model, paths, size=SIZE): # decoded, resized and normalised by Pillow and torchvision, all in one batch
    tfm = T.Compose([T.Resize(size), T.PILToTensor(), T.ToDtype(torch.float32, scale=True), T.Normalize([.485, .456, .406], [.229, .224, .225])])
    x = torch.stack([tfm(Image.open(p).convert('RGB')) for p in paths])
    with torch.no_grad(): return model(x).numpy()


def test_features_are_those_of_the_book(ex, model, items, tmp_path):
    assert close(ex(items, progress=False), by_the_book(model, items.path))
    for i, (w, h) in enumerate([(300, 500), (31, 40), (200, 50)]): # larger, smaller, both
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (h, w, 3), dtype=np.uint8)).save(tmp_path/f'{i}.png')
    assert close(ex(tmp_path), by_the_book(model, image_files(tmp_path)))


def test_every_form_of_a_picture_gives_the_same(ex, items, tmp_path):
    paths = list(items.path[:10])
    ims = [Image.open(p).convert('RGB') for p in paths]
    arrays = [np.asarray(o) for o in ims]
    want, bgr = ex(paths), [o[..., ::-1] for o in arrays]
    bytes_ = [torch.from_numpy(o.copy()).permute(2, 0, 1) for o in arrays]
    forms = [(map(Path, paths), None), (ims, None), (arrays, 'rgb'), (np.stack(arrays), 'rgb'), (bgr, 'bgr'), (np.stack(bgr), 'bgr'), (torch.stack(bytes_), None), (tuple(paths), None),
             ((o for o in bgr), 'bgr'), ([*paths[:3], *ims[3:6], *arrays[6:]], 'rgb')]
    for form, channels in forms: assert np.array_equal(ex(form, channels, progress=False), want)
    for form, channels in ((paths[0], None), (ims[0], None), (bgr[0], 'bgr'), (bytes_[0], None)): assert np.array_equal(ex(form, channels), ex(paths[:1]))
    normal = torch.stack([ex._tensor([np.asarray(o.resize(SIZE[::-1], Image.Resampling.BILINEAR)).transpose(2, 0, 1)])[0] for o in ims])
    assert np.array_equal(ex(normal), want) and np.array_equal(ex(normal[0]), ex(paths[0]))


def test_swapped_channels_are_other_features_and_silence_about_them_is_an_error(ex, items):
    rgb = np.asarray(Image.open(items.path[0]).convert('RGB'))
    a, b = ex(rgb, 'rgb'), ex(rgb, 'bgr')
    assert np.abs(a - b).max() > 1e-3 * np.abs(a).max() and np.array_equal(ex(rgb[..., ::-1], 'rgb'), b)
    for channels in (None, 'RGB?'):
        with pytest.raises(ReidError, match="channels='bgr'` for pictures that OpenCV"): ex(rgb, channels)


def test_an_array_that_is_written_to_again_is_taken_as_it_was(ex, items):
    frame, ims = np.empty((128, 64, 3), np.uint8), [np.asarray(Image.open(p).convert('RGB')) for p in items.path[:20]]
    def video():
        for im in ims:
            frame[:] = im
            yield frame
    assert np.array_equal(ex(video(), 'rgb'), ex(ims, 'rgb', progress=False))


@pytest.mark.parametrize('what,words', [
    (np.zeros((0, 4, 3), np.uint8), 'picture'), (torch.zeros(8, 4, 3, dtype=torch.uint8), r'puts channels first'), (torch.zeros(8, 4, dtype=torch.uint8), r'\(8, 4\) torch.uint8'),
    (torch.zeros(3, 8, 4, dtype=torch.int64), 'torch.int64'), ([np.zeros((1, 8, 4, 3), np.uint8)], r'\(1, 8, 4, 3\)'), (pd.DataFrame(dict(file=['a.jpg'])), 'no column `path`, but file'),
    (np.zeros((8, 4, 3), np.float32), 'of bytes'), (np.zeros((8, 4), np.uint8), 'Grey'), (np.zeros((8, 4, 4), np.uint8), r'\(8, 4, 4\)'), (torch.zeros(3, 9, 9), 'normalised pictures'), ([], 'no pictures')])
def test_what_is_no_picture_is_refused(ex, what, words):
    with pytest.raises(ReidError, match=words): ex(what, 'rgb')


def test_flipping_and_scales_are_means(model, items):
    paths = list(items.path[:5])
    one, two, big = (FeatureExtractor(model, size=o, how='eager') for o in (SIZE, SIZE, (96, 48)))
    mirrored = [Image.open(o).convert('RGB').transpose(Image.Transpose.FLIP_LEFT_RIGHT) for o in paths]
    assert close(FeatureExtractor(model, size=SIZE, flip=True)(paths), (one(paths) + one(mirrored)) / 2)
    x = torch.nn.functional.interpolate(one._tensor([np.asarray(Image.open(o).convert('RGB').resize((32, 64), Image.Resampling.BILINEAR)).transpose(2, 0, 1) for o in paths]), (96, 48), mode='bilinear', antialias=True)
    assert close(FeatureExtractor(model, size=SIZE, scales=(1, 1.5))(paths), (two(paths) + big(x)) / 2)


def spoil(folder, items, n=20): # copies of pictures, two of which are damaged, in the first and in the last batch of 8
    for i, p in enumerate(items.path[:n]): (folder/f'{i:02}.jpg').write_bytes(Path(p).read_bytes())
    (folder/'03.jpg').write_bytes(b'')
    (folder/'18.jpg').write_bytes((folder/'17.jpg').read_bytes()[:600])
    return [i for i in range(n) if i not in (3, 18)]


def test_damaged_pictures_are_all_named_in_one_error_and_left_out_on_request(ex, items, tmp_path):
    good = spoil(tmp_path, items)
    with pytest.raises(ReidError, match=r"(?s)2 pictures can't be read: .*03.jpg .*18.jpg .*skip=True"): ex(tmp_path, progress=False)
    with pytest.raises(ReidError, match="no such|No such"): ex(['nowhere.jpg'])
    feats = ex(tmp_path, skip=True, progress=False)
    assert list(ex.skipped) == [3, 18] and ex.skipped[3][0].endswith('03.jpg')
    assert close(feats, ex(list(items.path[good]), progress=False))
    feats, table = ex.to_file(tmp_path, tmp_path/'out/feats.npy', skip=True, progress=False)
    assert [Path(o).stem for o in table.path] == [f'{i:02}' for i in good] and close(feats, ex(list(items.path[good]), progress=False))
    assert list(json.loads((tmp_path/'out/feats.json').read_text())['skipped']) == ['3', '18']


RUN = '''
import sys, time, torch
from reid_nb.models.osnet import osnet_x0_25
from reid_nb.train.extract import FeatureExtractor
torch.manual_seed(0)
ex = FeatureExtractor(osnet_x0_25(5), size=(64, 32), bs=4)
run = ex._run
def slow(x):
    print('batch', flush=True)
    time.sleep(.4)
    return run(x)
ex._run = slow
ex.to_file(sys.argv[1], sys.argv[2], progress=False)
'''


def test_a_killed_extraction_goes_on_where_it_was(ex, items, tmp_path):
    folder, out = Path(items.path[0]).parent, tmp_path/'feats.npy'
    n = len(image_files(folder))
    p = subprocess.Popen([sys.executable, '-W', 'ignore', '-c', RUN, str(folder), str(out)], stdout=subprocess.PIPE, text=True)
    for _ in range(3): p.stdout.readline()
    p.send_signal(signal.SIGKILL)
    with p: p.communicate()
    assert not out.exists() and 4 <= (done := json.loads((tmp_path/'feats.part.json').read_text())['done']) <= 12
    torch.manual_seed(0)
    again, seen = FeatureExtractor(osnet_x0_25(5), size=SIZE, bs=4), []
    run = again._run
    again._run = lambda x: (seen.append(len(x)), run(x))[1]
    feats, table = again.to_file(folder, out, progress=False)
    assert sum(seen) == n - done and list(table.path) == image_files(folder)
    assert close(feats, ex(folder, progress=False)) and isinstance(feats, np.memmap)
    assert sorted(o.name for o in tmp_path.iterdir()) == ['feats.csv', 'feats.json', 'feats.npy']
    again.to_file(folder, out, progress=False)
    assert sum(seen) == n - done, 'what was complete was computed again'


def test_other_features_are_not_overwritten_and_a_half_of_others_is_not_gone_on_from(ex, model, items, tmp_path):
    out = tmp_path/'feats.npy'
    ex.to_file(items, out, progress=False)
    flipped = FeatureExtractor(model, size=SIZE, flip=True)
    for other, rows in ((flipped, items), (ex, items[:9])):
        with pytest.raises(ReidError, match='holds features of other (flip|n, names, pictures)'): other.to_file(rows, out, progress=False)
    feats, _ = flipped.to_file(items, out, overwrite=True, progress=False)
    assert close(feats, flipped(items, progress=False))
    np.save(tmp_path/'mine.npy', np.zeros(3))
    with pytest.raises(ReidError, match='mine.npy is there already, and no description'): ex.to_file(items, tmp_path/'mine.npy')
    with pytest.raises(ValueError, match='must end with .npy'): ex.to_file(items, tmp_path/'feats')


def test_a_picture_that_has_changed_since_is_computed_anew(ex, items, tmp_path):
    for i, p in enumerate(items.path[:3]): (tmp_path/f'{i}.jpg').write_bytes(Path(p).read_bytes())
    ex.to_file(tmp_path, tmp_path/'f.npy')
    (tmp_path/'1.jpg').write_bytes(Path(items.path[9]).read_bytes())
    with pytest.raises(ReidError, match='other pictures'): ex.to_file(tmp_path, tmp_path/'f.npy')


def test_a_name_needs_weights(items, model, tmp_path):
    with pytest.raises(ReidError, match='random network'): FeatureExtractor('osnet_x0_25', size=SIZE)
    torch.save(model.state_dict(), tmp_path/'w.pth')
    named = FeatureExtractor('osnet_x0_25', tmp_path/'w.pth', size=SIZE, device='cpu')
    assert close(named(items[:3]), FeatureExtractor(model, size=SIZE)(items[:3]))
    same = FeatureExtractor('osnet_x0_25', tmp_path/'w.pth', size=SIZE, device='cpu') # has another random classifier
    assert named.weights_id == same.weights_id != FeatureExtractor(osnet_x0_25(5), size=SIZE).weights_id
    assert FeatureExtractor('osnet_x0_25', 'random', size=SIZE, device='cpu').n_feats == 512


def test_loaders_and_tables_go_through_the_same_loop(model, items, monkeypatch):
    want, calls = by_the_book(model, items.path), []
    import reid_nb.train.embed as embed
    import reid_nb.train.extract as extract
    def watched(*args, **kw):
        calls.append(1)
        yield from features_of(*args, **kw)
    for o in (embed, extract): monkeypatch.setattr(o, 'features_of', watched)
    model.train()
    assert close(embed_items(model, items, SIZE, progress=False), want)
    assert model.training
    assert close(embed_items(model, items, SIZE, progress=False, how='fold'), want) and close(FeatureExtractor(model, size=SIZE)(items, progress=False), want)
    model.eval()
    assert len(calls) == 3 and evaluate_model(model, items, SIZE, progress=False, how='fold').metrics['n_valid'] > 0


def test_a_model_that_returns_no_feature_is_refused():
    batches = [(torch.rand(2, 3, 16, 8),)]
    with pytest.raises(ReidError, match=r'must return features \(n,d\)'): embed_dl(torch.nn.Conv2d(3, 4, 1), batches, progress=False)
    with pytest.raises(ReidError, match='no images'): embed_dl(torch.nn.Conv2d(3, 4, 1), [], progress=False)


def test_an_opened_image_is_what_its_file_is(ex, items, tmp_path): # turned, transparent, 16 bits, CMYK, palette
    im, turned, alpha = Image.open(items.path[0]).convert('RGB'), Image.Exif(), Image.linear_gradient('L').resize((64, 128))
    turned[0x0112] = 6
    im.save(tmp_path/'turned.jpg', exif=turned)
    rgba = im.copy()
    rgba.putalpha(alpha)
    rgba.save(tmp_path/'alpha.png')
    im.save(tmp_path/'one.png', transparency=im.getpixel((0, 0)))
    Image.fromarray(np.asarray(alpha, np.uint16) << 8).save(tmp_path/'deep.png')
    im.convert('CMYK').save(tmp_path/'cmyk.jpg')
    im.convert('P').save(tmp_path/'palette.gif')
    paths = image_files(tmp_path)
    with contextlib.ExitStack() as stack: assert np.array_equal(ex([stack.enter_context(Image.open(p)) for p in paths]), ex(paths)) and len(paths) == 6


def test_an_opened_image_that_is_cut_off_counts_as_a_file_that_is(ex, items, tmp_path):
    (tmp_path/'cut.jpg').write_bytes(Path(items.path[0]).read_bytes()[:700])
    pictures = [items.path[1], None, np.zeros((9, 9, 3), np.uint8)]
    with Image.open(tmp_path/'cut.jpg') as pictures[1], pytest.raises(ReidError, match="^1 picture can't be read: .*cut.jpg .*truncated"): ex(pictures, 'rgb')
    with Image.open(tmp_path/'cut.jpg') as pictures[1]: assert len(ex(pictures, 'rgb', skip=True)) == 2 and list(ex.skipped) == [1]
    with pytest.raises(ReidError, match="^1 picture can't be read: nowhere"): ex([pictures[2], 'nowhere.jpg'], 'rgb') # once, though it is looked at twice


def test_a_tensor_of_bytes_may_be_bgr(ex, items):
    rgb = np.asarray(Image.open(items.path[0]))
    bgr = torch.from_numpy(rgb[..., ::-1].copy()).permute(2, 0, 1)
    assert np.array_equal(ex(bgr, 'bgr'), ex(items.path[0])) and not np.array_equal(ex(bgr), ex(items.path[0]))


def test_an_error_of_a_generator_is_the_callers(ex, items):
    def broken():
        yield from items.path[:9]
        raise KeyError('midway')
    got = []
    with pytest.raises(KeyError, match='midway'): got.extend(ex.batches(broken()))
    with pytest.raises(KeyError, match='midway'): ex(broken())


def test_batches_and_threads_change_nothing(model, items):
    a, b, c = (FeatureExtractor(model, size=SIZE, bs=bs, n_threads=n)(items, progress=False) for bs, n in ((1, 1), (64, 3), (7, 2)))
    assert close(a, b) and close(c, b)


def half_done(ex, folder, out, n=2): # an extraction that stops at a damaged picture after n batches
    path = Path(image_files(folder)[n * ex.bs + 3])
    good = path.read_bytes()
    path.write_bytes(b'')
    with pytest.raises(ReidError, match="1 picture can't be read"): ex.to_file(folder, out, progress=False)
    assert json.loads(out.with_suffix('.part.json').read_text())['done'] == n * ex.bs
    return path, good


def copied(items, folder, n=30):
    folder.mkdir()
    for i, p in enumerate(items.path[:n]): (folder/f'{i:02}.jpg').write_bytes(Path(p).read_bytes())
    return folder


def counted(model, **kw): # an extractor, and the sizes of its batches
    ex, seen = FeatureExtractor(model, size=SIZE, bs=8, **kw), []
    run = ex._run
    ex._run = lambda x: (seen.append(len(x)), run(x))[1]
    return ex, seen


@pytest.mark.parametrize('way', ['restored', 'skipped'])
def test_what_an_error_recommends_goes_on_from_where_it_was(way, model, items, tmp_path):
    folder, (ex, seen) = copied(items, tmp_path/'p'), counted(model)
    path, good = half_done(ex, folder, tmp_path/'f.npy')
    if way == 'restored': path.write_bytes(good)
    feats, table = ex.to_file(folder, tmp_path/'f.npy', skip=way == 'skipped', progress=False)
    left = [p for p in image_files(folder) if way == 'restored' or p != str(path)]
    assert list(table.path) == left and sum(seen) == len(left) and list(ex.skipped) == [19] * (way == 'skipped')
    assert close(feats, ex(left, progress=False))
    if way == 'skipped':
        with pytest.raises(ReidError, match="1 picture can't be read: .*19.jpg"): ex.to_file(folder, tmp_path/'f.npy', progress=False)


def test_a_picture_that_was_done_and_has_changed_is_not_gone_on_from(model, items, tmp_path):
    folder, (ex, _) = copied(items, tmp_path/'p'), counted(model)
    path, good = half_done(ex, folder, tmp_path/'f.npy')
    path.write_bytes(good)
    (folder/'03.jpg').write_bytes(Path(items.path[31]).read_bytes())
    with pytest.raises(ReidError, match='part.npy holds features of other pictures'): ex.to_file(folder, tmp_path/'f.npy', progress=False)
    (folder/'99.jpg').write_bytes(good)
    with pytest.raises(ReidError, match='part.npy holds features of other n, names'): ex.to_file(folder, tmp_path/'f.npy', progress=False)


class Power(torch.nn.Module): # other features of the same weights
    def __init__(self, model, k):
        super().__init__()
        self.model, self.k = model, k
    def forward(self, x): return self.model(x).abs() ** self.k


class Head(torch.nn.Module): # a classifier that is the feature
    def __init__(self, seed):
        super().__init__()
        torch.manual_seed(seed)
        self.classifier = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 4))
    def forward(self, x): return self.classifier(x.mean((2, 3)))


def test_half_an_extraction_is_never_mixed_with_another(model, items, tmp_path):
    folder = copied(items, tmp_path/'p')
    makes = [lambda: Power(model, 1), lambda: Power(model, 2), lambda: Head(0), lambda: Head(1), lambda: osnet_x0_25(5)]
    path, good = half_done(FeatureExtractor(makes[0](), size=SIZE, bs=8), folder, tmp_path/'f.npy')
    path.write_bytes(good)
    others = [dict(model=makes[1]()), *(dict(model=makes[0](), **o) for o in (dict(size=(32, 64)), dict(flip=True), dict(scales=(1, 1.5)), dict(dtype='bf16'), dict(how='eager'), dict(mean=(.5, .5, .5))))]
    for kw in others:
        with pytest.raises(ReidError, match='part.npy holds features of other'): FeatureExtractor(**{'size': SIZE, 'bs': 8, **kw}).to_file(folder, tmp_path/'f.npy', progress=False)
    feats, _ = FeatureExtractor(makes[0](), size=SIZE, bs=16).to_file(folder, tmp_path/'f.npy', progress=False) # another batch size is no other model
    assert close(feats, FeatureExtractor(makes[0](), size=SIZE)(folder, progress=False))
    assert FeatureExtractor(makes[2](), size=SIZE).weights_id != FeatureExtractor(makes[3](), size=SIZE).weights_id


def test_a_full_disk_is_an_error_before_the_work(ex, items, tmp_path, monkeypatch):
    def full(*args): raise OSError(errno.ENOSPC, 'No space left on device')
    monkeypatch.setattr(os, 'posix_fallocate', full, raising=False)
    with pytest.raises(OSError, match='take .* GB, for which there is no room') as e: ex.to_file(items, tmp_path/'f.npy', progress=False)
    assert e.value.errno == errno.ENOSPC and not list(tmp_path.iterdir())
    def cannot(*args): raise OSError(errno.EOPNOTSUPP, 'not supported')
    monkeypatch.setattr(os, 'posix_fallocate', cannot, raising=False)
    assert len(ex.to_file(items, tmp_path/'f.npy', progress=False)[0]) == len(items)


def test_a_table_of_yours_is_not_written_over_and_comes_back_as_it_is(ex, items, tmp_path):
    for name in ('mine.csv', 'mine.json'):
        (tmp_path/name).write_text('precious')
        with pytest.raises(ReidError, match=f'{name} is there already'): ex.to_file(items, tmp_path/'mine.npy', progress=False)
        assert [o.read_text() for o in tmp_path.iterdir()] == ['precious']
        (tmp_path/name).unlink()
    mine = items[::-1].assign(name=['007', 'NA', *'x' * (len(items) - 2)])
    for _ in range(2): # made, and found complete
        _, table = ex.to_file(mine, tmp_path/'mine.npy', progress=False)
        pd.testing.assert_frame_equal(table, mine.reset_index(drop=True))
    ex.to_file(mine.assign(name='other'), tmp_path/'mine.npy', progress=False)
    assert set(pd.read_csv(tmp_path/'mine.csv').name) == {'other'}


def test_a_name_that_is_no_text_is_kept(ex, items, tmp_path):
    odd = os.fsencode(tmp_path) + b'/caf\xe9.jpg'
    try: Path(os.fsdecode(odd)).write_bytes(Path(items.path[0]).read_bytes())
    except OSError: pytest.skip('this file system takes only text')
    (tmp_path/'a,"b"\n.jpg').write_bytes(Path(items.path[1]).read_bytes())
    feats, table = ex.to_file(tmp_path, tmp_path/'out/f.npy', progress=False)
    assert list(table.path) == image_files(tmp_path) and len(feats) == 2
    assert list(pd.read_csv(tmp_path/'out/f.csv', encoding_errors='surrogateescape').path) == list(table.path)


def test_the_users_model_stays_as_it_was(model, items, tmp_path):
    other = osnet_x0_25(5).train()
    torch.save(model.state_dict(), tmp_path/'w.pth')
    before = {k: o.clone() for k, o in other.state_dict().items()}
    ex = FeatureExtractor(other, tmp_path/'w.pth', size=SIZE)
    assert close(ex(items[:3]), FeatureExtractor(model, size=SIZE)(items[:3]))
    assert all(torch.equal(o, before[k]) for k, o in other.state_dict().items()) and all(o.training for o in other.modules()) and all(o.requires_grad for o in other.parameters())
    assert not any(o._forward_hooks for o in other.modules())


def test_numbers_of_numpy_and_numbers_that_cannot_be(model, items, tmp_path):
    ex = FeatureExtractor(model, size=np.array(SIZE), mean=np.float32([.5, .4, .3]), scales=np.float32([1.]))
    assert ex.to_file(items[:3], tmp_path/'f.npy', progress=False)[0].shape == (3, 512) and ex.size == SIZE
    for kw, words in ((dict(bs=0), 'at least a picture'), (dict(scales=()), 'one scale'), (dict(size=64), r'\(height, width\)'), (dict(size=(3, 64, 32)), 'height, width'), (dict(mean=[.5]), 'red, green and blue')):
        with pytest.raises(ValueError, match=words): FeatureExtractor(model, **{'size': SIZE, **kw})
    with pytest.raises(ReidError, match='no pictures'): ex.to_file(items[:0], tmp_path/'none.npy')


def test_timms_weights_come_with_their_own_colours():
    from reid_nb.models.zoo import create_model
    from reid_nb.train.extract import _colours
    vit = create_model('vit_tiny_patch16_224', 3, size=SIZE)
    assert _colours(vit, True, None, None) == [(.5,) * 3] * 2 and _colours(vit, False, None, None)[0][0] == .485 and _colours(vit, True, (.1, .2, .3), None)[0] == (.1, .2, .3)


def test_layers_keep_their_own_modes(model, items):
    norms = [o for o in model.modules() if isinstance(o, torch.nn.BatchNorm2d)]
    want = embed_items(model.eval(), items[:4], SIZE, progress=False)
    try:
        model.train()
        for o in norms: o.eval() # frozen
        embed_items(model, items[:4], SIZE, progress=False)
        assert model.training and not any(o.training for o in norms)
        model.eval()
        norms[0].train()
        assert close(embed_items(model, items[:4], SIZE, progress=False), want) and norms[0].training and not model.training
    finally: model.eval()


def test_a_model_that_is_fast_already(model, items):
    from reid_nb.models.fast import fast_model
    fast = fast_model(model, size=SIZE)
    assert close(embed_items(fast, items, SIZE, progress=False), embed_items(model, items, SIZE, progress=False))
    assert evaluate_model(fast, items, SIZE, progress=False).metrics == evaluate_model(model, items, SIZE, progress=False).metrics
    with pytest.raises(ValueError, match="needs a way.*how='fold'"): embed_items(model, items, SIZE, dtype='bf16')
    with pytest.raises(ValueError, match='already'): embed_items(fast, items, SIZE, how='eager')


def test_models_without_parameters_and_recorded_ones(model, items, tmp_path):
    from reid_nb.models.export import to_torchscript
    colours = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(2), torch.nn.Flatten())
    assert embed_items(colours, items, SIZE, progress=False).shape == FeatureExtractor(colours, size=SIZE)(items, progress=False).shape == (len(items), 12)
    to_torchscript(model, tmp_path/'m.pt', size=SIZE)
    script = torch.jit.load(tmp_path/'m.pt')
    for feats in (embed_items(script, items, SIZE, progress=False), FeatureExtractor(script, size=SIZE)(items, progress=False)): assert close(feats, by_the_book(model, items.path))
