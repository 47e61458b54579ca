"Features of pictures in any form, to a file that survives a kill, and as Torchreid's extractor would compute them"
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
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
        with pytest.raises(ReidError, match='holds features of other (flip|pictures)'): other.to_file(rows, out, progress=False)
    feats, _ = flipped.to_file(items, out, overwrite=True, progress=False)
    assert close(feats, flipped(items, progress=False))
    np.save(tmp_path/'mine.npy', np.zeros(3))
    with pytest.raises(ReidError, match='mine.npy holds features of other'): ex.to_file(items, tmp_path/'mine.npy')
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
