"Exported files compute what the model computes, say what they are, and appear only when they are right"
import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import run_python
from torch import nn

from reid_nb.core import ReidError
from reid_nb.data.synth import synth_people
from reid_nb.models.export import distance_of, probe_images, read_meta, to_onnx, to_openvino, to_torchscript
from reid_nb.models.osnet import osnet_x0_25

SIZE = (64, 32)


def engine(name): # a mark that skips with the reason
    return pytest.mark.skipif(importlib.util.find_spec(name) is None, reason=f'{name} is not installed: pip install "reid_nb[export]"')


WRITERS = [pytest.param(to_torchscript, 'm.pt', id='torchscript'), pytest.param(to_onnx, 'm.onnx', id='onnx', marks=[engine('onnx'), engine('onnxruntime')]),
           pytest.param(to_openvino, 'm.xml', id='openvino', marks=engine('openvino'))]


@pytest.fixture(scope='module')
def model():
    torch.manual_seed(0)
    model = osnet_x0_25(7)
    for o in model.modules():
        if isinstance(o, nn.modules.batchnorm._BatchNorm): o.running_mean.normal_(0, .2), o.running_var.uniform_(.5, 2)
    return model


class Pool(nn.Module): # the mean colours, and something wrong on request
    def __init__(self, wrong=lambda f, x: f):
        super().__init__()
        self.wrong = wrong
    def forward(self, x): return self.wrong(x.mean((2, 3)), x)


@pytest.mark.parametrize('write,name', WRITERS)
def test_a_file_is_the_model_for_any_batch_and_leaves_the_model_alone(write, name, model, tmp_path):
    before = {k: o.clone() for k, o in model.state_dict().items()}
    items = synth_people(tmp_path/'people', n_ids=4, n_cams=2, per_cam=2, distractors=0, junk=0)
    from reid_nb.data.block import image_dl
    pictures = next(iter(image_dl(items, SIZE, device='cpu')))[0].as_subclass(torch.Tensor)
    report = write(model.train(), tmp_path/'out'/name, size=SIZE, images=pictures, name='people')
    assert report.diff < 1e-4 and report.cos < 1e-9 and report.mb > .5 and 'people' in repr(report)
    assert model.training and all(torch.equal(o, before[k]) for k, o in model.state_dict().items())
    meta = read_meta(tmp_path/'out'/name)
    assert (meta['name'], meta['size'], meta['n_feats'], meta['channels']) == ('people', [64, 32], 512, 'RGB') and len(meta['mean']) == len(meta['std']) == 3
    assert sorted(o.suffix for o in (tmp_path/'out').iterdir()) == (['.bin', '.xml'] if name == 'm.xml' else [Path(name).suffix])


@pytest.mark.parametrize('write,name', WRITERS)
@pytest.mark.parametrize('wrong,words', [
    (lambda f, x: f.reshape(int(x.shape[0]), 3) + torch.rand(3), 'of the largest value|takes no batches'),
    (lambda f, x: (f[:, None] * torch.ones(int(x.shape[0]), 1, 1)).reshape(-1, 3)[:int(x.shape[0])] + torch.ones(int(x.shape[0]), 3), 'takes no batches|of the largest value'),
], ids=['random', 'fixed batch'])
def test_what_computes_something_else_gets_no_file(write, name, wrong, words, tmp_path):
    (tmp_path/name).write_text('an older file')
    with pytest.raises(ReidError, match=words): write(Pool(wrong), tmp_path/name, size=(16, 8))
    assert [o.name for o in tmp_path.iterdir()] == [name] and (tmp_path/name).read_text() == 'an older file'


def test_a_model_that_returns_no_feature_is_refused(tmp_path):
    with pytest.raises(ReidError, match='must return features'): to_torchscript(nn.Conv2d(3, 4, 1), tmp_path/'m.pt', size=(16, 8))
    assert not list(tmp_path.iterdir())


@engine('onnxruntime')
@engine('onnx')
def test_a_program_without_torch_can_use_the_file(model, tmp_path):
    to_onnx(model, tmp_path/'m.onnx', size=SIZE)
    x = probe_images(SIZE, 5)
    np.save(tmp_path/'x.npy', x.numpy())
    run_python('-c', '''
import sys, numpy as np, onnxruntime
s = onnxruntime.InferenceSession('m.onnx', providers=['CPUExecutionProvider'])
assert s.get_modelmeta().custom_metadata_map['size'] == '[64, 32]'
np.save('y.npy', s.run(['features'], {'images': np.load('x.npy')})[0])
assert 'torch' not in sys.modules
''', cwd=tmp_path)
    with torch.no_grad(): want = model.eval()(x)
    assert distance_of(torch.from_numpy(np.load(tmp_path/'y.npy')), want)[1] < 1e-4


@pytest.mark.parametrize('write,package', [(to_onnx, 'onnx'), (to_onnx, 'onnxruntime'), (to_openvino, 'openvino')])
def test_a_missing_package_is_named_with_its_extra(write, package, model, tmp_path, monkeypatch):
    for o in list(sys.modules):
        if o.split('.')[0] == package: monkeypatch.delitem(sys.modules, o)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf'{package}.* is not installed: `pip install "reid_nb\[export\]"`'): write(model, tmp_path/'m.xml', size=SIZE)
    assert not list(tmp_path.iterdir())


def test_what_says_nothing_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match='no file'): read_meta(tmp_path/'m.pt')
    (tmp_path/'m.pt').write_bytes(b'no model')
    with pytest.raises(ReidError, match='no TorchScript file'): read_meta(tmp_path/'m.pt')


def test_distances_see_what_a_subtraction_would_not():
    a = nn.functional.normalize(torch.randn(3, 64, dtype=torch.float64))
    b = a.clone()
    b[1, 0] += 1e-7
    cos, diff = distance_of(b, a)
    assert 1e-16 < cos < 1e-14 and diff == pytest.approx(1e-7 / a.abs().max().item(), rel=1e-3)
    assert distance_of(-a, a)[0] == pytest.approx(2) and distance_of(a * float('nan'), a) == (float('inf'),) * 2


@pytest.mark.parametrize('write,name', WRITERS)
def test_numbers_stay_numbers_and_text_stays_text(write, name, tmp_path):
    write(Pool(), tmp_path/name, size=np.array([16, 8]), name='2024', mean=np.float32([.5, .25, .125]))
    meta = read_meta(tmp_path/name)
    assert (meta['name'], meta['size'], meta['n_feats'], meta['mean']) == ('2024', [16, 8], 3, [.5, .25, .125])


@pytest.mark.parametrize('write,name', WRITERS)
def test_a_file_has_the_ending_by_which_it_is_read_and_damage_is_told(write, name, tmp_path):
    with pytest.raises(ValueError, match=Path(name).suffix): write(Pool(), tmp_path/'m.dat', size=(16, 8))
    (tmp_path/name).write_bytes(b'\x07 no model')
    with pytest.raises(ReidError, match=f'{name} is no (TorchScript|ONNX|OpenVINO) file'): read_meta(tmp_path/name)
    (tmp_path/'file').write_text('no folder')
    with pytest.raises(OSError): write(Pool(), tmp_path/'file'/name, size=(16, 8))
    assert sorted(o.name for o in tmp_path.iterdir()) == sorted(['file', name])
    with pytest.raises(ValueError, match='must end with .pt, .onnx, .xml'): read_meta(tmp_path/'m.dat')


@pytest.mark.parametrize('size', [64, (3, 64, 32), (0, 32), 'large'])
def test_what_is_no_size_is_refused(size, tmp_path):
    with pytest.raises(ValueError, match=r'must be \(height, width\)'): to_torchscript(Pool(), tmp_path/'m.pt', size=size)
