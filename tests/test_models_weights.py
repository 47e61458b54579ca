"Checkpoints whole, cut and wrong, of this kit and of others"
import os
from pathlib import Path

import pytest
import torch

from reid_nb.core import ReidError
from reid_nb.models import osnet
from reid_nb.models.embedder import Embedder
from reid_nb.models.weights import load_weights

@pytest.fixture(scope='module')
def state(): return osnet.osnet_x0_25(11).state_dict()

def test_head_of_other_identities_is_left(state):
    model = osnet.osnet_x0_25(3)
    head = model.classifier.weight.clone()
    report = load_weights(model, state)
    assert len(report.loaded) == 565 and set(report.mismatched) == {'classifier.weight', 'classifier.bias'}
    assert '(11, 512) in the file' in repr(report) and torch.equal(model.classifier.weight, head)
    assert all(torch.equal(o, state[k]) for k, o in model.state_dict().items() if not k.startswith('classifier'))

def test_half_a_head_is_no_head(state): # weight and bias go together
    model = osnet.osnet_x0_25(3)
    report = load_weights(model, {**state, 'classifier.bias': torch.ones(3)})
    assert not [k for k in report.loaded if k.startswith('classifier')] and model.classifier.bias.abs().max() == 0

class Evil:
    def __init__(self, path): self.path = path
    def __reduce__(self): return os.mkdir, (self.path,)

@pytest.mark.parametrize('wrap', [lambda o: o, lambda o: {'state_dict': o}, lambda o: {'state_dict': {'conv1.conv.weight': o}}])
def test_a_pickle_runs_nothing(tmp_path, wrap):
    torch.save(wrap(Evil(str(tmp_path / 'made'))), tmp_path / 'evil.pth')
    with pytest.raises(ReidError, match='not run here'): load_weights(osnet.osnet_x0_25(3), tmp_path / 'evil.pth')
    assert not (tmp_path / 'made').exists()

def test_an_error_changes_nothing(state):
    model = osnet.osnet_x0_25(11)
    before = {k: o.clone() for k, o in model.state_dict().items()}
    broken = dict(state)
    broken['conv4.1.gate.fc1.weight'] = torch.zeros(1)
    with pytest.raises(ReidError, match='566 tensors fit; 1 of another shape, first conv4.1.gate.fc1.weight'): load_weights(model, broken)
    assert all(torch.equal(o, before[k]) for k, o in model.state_dict().items())

def test_a_checkpoint_of_another_network_never_passes(state):
    with pytest.raises(ReidError, match='missing in the file'): load_weights(Embedder('resnet10t', 11), state)
    with pytest.raises(ReidError, match='OSNet of 567 tensors'): load_weights(osnet.osnet_x0_5(11), state)

def test_files_cut_anywhere(tmp_path, state):
    torch.save(state, tmp_path / 'a.pth')
    whole, model = (tmp_path / 'a.pth').read_bytes(), osnet.osnet_x0_25(11)
    for n in (0, 1, 20, 1000, len(whole) // 2, len(whole) - 500, len(whole) - 1):
        (tmp_path / 'b.pth').write_bytes(whole[:n])
        with pytest.raises(ReidError, match=f'b.pth .{n:,} bytes'): load_weights(model, tmp_path / 'b.pth')

def test_learner_checkpoints(tmp_path, state): # as fastai's `learn.save` writes them
    fastai = pytest.importorskip('fastai.learner')
    from fastai.optimizer import Adam
    from fastai.torch_core import params
    model = osnet.osnet_x0_25(11)
    opt = Adam(params(model), lr=1e-3)
    fastai.save_model(tmp_path / 'm.pth', model, opt)
    assert len(load_weights(osnet.osnet_x0_25(11), tmp_path / 'm.pth', strict=True).loaded) == 567

def test_msmt17_checkpoint(): # the real file: strict loading and the features that Torchreid gives
    path = Path(os.environ.get('REID_NB_WEIGHTS', 'unset')) / 'osnet_x0_25_msmt17.pth'
    if not path.exists(): pytest.skip('set REID_NB_WEIGHTS to a folder with osnet_x0_25_msmt17.pth (Torchreid model zoo)')
    model = osnet.osnet_x0_25(1041)
    assert len(load_weights(model, path, strict=True).loaded) == 567
    torch.manual_seed(0)
    with torch.no_grad(): f = model.eval()(torch.rand(2, 3, 256, 128))
    assert f[0, :8].tolist() == pytest.approx([1.340427, 5e-05, 0, 1.376523, .712591, 0, 1.033699, 2.321344], abs=2e-5)
    assert f[1, :8].tolist() == pytest.approx([1.03942, 3.8e-05, 0, .79199, .727425, 0, 1.090155, 2.377567], abs=2e-5)
    assert f.norm(dim=1).tolist() == pytest.approx([26.00793, 26.33156], abs=2e-5)
