"Checkpoints whole, cut and wrong, of this kit and of others"
import os
import pickle
import re
from collections import OrderedDict
from pathlib import Path
from types import SimpleNamespace

import pytest
import timm
import torch
from torch import nn

from parity import fill
from reid_nb.core import ReidError
from reid_nb.models import osnet
from reid_nb.models.blocks import add_nonlocal
from reid_nb.models.classic import DenseNet
from reid_nb.models.embedder import Embedder
from reid_nb.models.families import NETWORKS, best_match
from reid_nb.models.weights import load_weights, read_checkpoint, save_torchreid, set_stem, to_torchreid
from reid_nb.models.zoo import create_model

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

# ---- files of others

def numbers(model): # every tensor different from every other, batch norms included
    with torch.no_grad(): fill(model.state_dict())
    return model.eval()

def same(a, b, size=(64, 32)):
    with torch.no_grad(): return torch.equal(a.eval()(x := torch.rand(2, 3, *size)), b.eval()(x))

def theirs(model, *names): # the state dict under other names
    state = dict(model.state_dict())
    for a, b in names: state = {re.sub(a, b, k): o for k, o in state.items()}
    return state

BAG = (r'^body\.', 'base.'), (r'^neck\.', 'bottleneck.')
FAST = (r'^body\.', 'backbone.'), (r'^neck\.', 'heads.bottleneck.0.'), (r'^pool\.', 'heads.pool_layer.'), (r'^classifier\.weight', 'heads.weight')

@pytest.mark.parametrize('names, layout', [(BAG, 'bag of tricks'), (FAST, 'fast-reid'), ((*FAST, ('heads.weight', 'heads.classifier.weight')), 'fast-reid'),
                                           (((r'^', 'module._orig_mod.'),), 'this network')])
def test_names_of_others(tmp_path, names, layout):
    src, model = numbers(Embedder('resnet18', 7, pool='gem')), Embedder('resnet18', 7, pool='gem')
    state = theirs(src, *names)
    if layout == 'bag of tricks': state['bottleneck.bias'] = torch.zeros(512)
    if layout == 'fast-reid': state |= {'heads.bottleneck.0.bias': torch.zeros(512), 'pixel_mean': torch.ones(1, 3, 1, 1), 'pixel_std': torch.ones(1, 3, 1, 1)}
    torch.save({'model': state, 'epoch': 3}, tmp_path / 'a.pth')
    report = load_weights(model, tmp_path / 'a.pth')
    assert report.layout == layout and len(report.loaded) == len(model.state_dict()) and same(src, model)
    assert bool(report.notes) == (layout != 'this network')

def test_fast_reids_ibn_and_non_local_blocks():
    def make():
        m = Embedder('resnet50', 7, pool='gem', ibn='a', last_stride=1, size=(64, 32))
        add_nonlocal(m.body, mid=1, size=(64, 32))
        return m
    src, model = numbers(make()), make()
    place = {'layer2.2': 'NL_2.0', 'layer2.3': 'NL_2.1', 'layer3.3': 'NL_3.0', 'layer3.4': 'NL_3.1', 'layer3.5': 'NL_3.2'}
    state = theirs(src, *FAST, *[(rf'backbone\.{a}\.non_local', f'backbone.{b}') for a, b in place.items()])
    assert any('NL_3.2.theta' in k for k in state) and not any('non_local' in k for k in state) and 'backbone.layer1.0.bn1.IN.weight' in state
    assert len(load_weights(model, state).loaded) == len(state) and all(torch.equal(o, src.state_dict()[k]) for k, o in model.state_dict().items())

def test_a_neck_that_shifts_is_no_neck_of_ours():
    src = Embedder('resnet10t', 7)
    with pytest.raises(ReidError, match='neck.bias'): load_weights(Embedder('resnet10t', 7), theirs(src, *BAG) | {'bottleneck.bias': torch.ones(512)})

def test_a_file_of_the_body_leaves_the_new_layers(tmp_path):
    body = numbers(timm.create_model('resnet18'))
    for state in (body.state_dict(), {k: o for k, o in body.state_dict().items() if not k.startswith('fc.')}):
        model = Embedder('resnet18', 7, pool='gem')
        report = load_weights(model, state)
        assert all(torch.equal(o, body.state_dict()[k]) for k, o in model.body.state_dict().items())
        assert {k.split('.')[0] for k in report.missing} == {'neck', 'pool', 'classifier'} and 'keep the weights' in repr(report)
        with pytest.raises(ReidError, match='missing'): load_weights(Embedder('resnet18', 7, pool='gem'), state, strict=True)

def test_positions_of_a_transformer_are_resized_as_timm_does():
    vit = numbers(timm.create_model('vit_tiny_patch16_224', depth=1))
    model = Embedder('vit_tiny_patch16_224', 7, depth=1)
    load_weights(model, vit.state_dict())
    assert model.body.pos_embed.shape == (1, 129, 192) and torch.equal(model.body.blocks[0].mlp.fc1.weight, vit.blocks[0].mlp.fc1.weight)

def test_torchvision_of_2017_had_other_names_in_densenet():
    src = numbers(DenseNet(1000, depth=121))
    old = {re.sub(r'(denselayer\d+\.(?:norm|conv))([12])', r'\1.\2', k): o for k, o in src.state_dict().items()}
    assert 'features.denseblock1.denselayer1.norm.1.weight' in old
    model = DenseNet(7, depth=121)
    assert load_weights(model, old).layout == 'torchvision before 2018' and torch.equal(model.features.denseblock4.denselayer16.conv2.weight, src.features.denseblock4.denselayer16.conv2.weight)

def test_a_reid_file_never_counts_as_imagenets(): # 1041 people: what is missing is an error, whatever it is called
    src = DenseNet(1041, depth=121).state_dict()
    with pytest.raises(ReidError, match="missing in the file, first .'fc.0.weight'"): load_weights(DenseNet(7, depth=121, fc=512), src)
    assert load_weights(DenseNet(7, depth=121, fc=512), {k: o[:1000] if k.startswith('classifier') else o for k, o in src.items()}).notes

def test_second_names_of_the_same_numbers(state):
    both = state | {f'alias.{k}': o for k, o in state.items()}
    assert len(load_weights(osnet.osnet_x0_25(11), both).loaded) == 567
    with pytest.raises(ReidError, match='alias'): load_weights(osnet.osnet_x0_25(11), state | {f'alias.{k}': o.clone() for k, o in state.items()})

@pytest.mark.parametrize('name', ['osnet_x0_5', 'osnet_x1_0', 'mobilenetv2_x1_0', 'hacnn', 'pcb_p4', 'shufflenet_v2_x0_5'])
def test_the_other_network_is_named(name):
    with torch.device('meta'): other = {k: torch.empty_like(o) for k, o in NETWORKS[name](13).state_dict().items()}
    assert best_match({f'{k}': o for k, o in other.items()}) == name
    with pytest.raises(ReidError, match=f"this looks like a file of {name}: make that with `create_model.'{name}'"): load_weights(osnet.osnet_x0_25(13), {f'module.{k}': o for k, o in other.items()})

def test_another_library_is_named(state):
    with pytest.raises(ReidError, match='fast-reid checkpoint'): load_weights(osnet.osnet_x0_25(11), theirs(Embedder('resnet18', 3), *FAST))

# ---- legacy pickles

class Python2(pickle._Pickler):
    "Writes text as Python 2 did: bytes of which the reader must know the encoding"
    def save_str(self, o):
        b = o.encode('latin1')
        self.write(pickle.SHORT_BINSTRING + bytes([len(b)]) + b)
        self.memoize(o)
    dispatch = pickle._Pickler.dispatch | {str: save_str}

def save_python2(obj, path):
    def dump(o, f, protocol=2): Python2(f, protocol).dump(o)
    torch.save(obj, path, pickle_module=SimpleNamespace(Pickler=Python2, dump=dump, __name__='pickle'), pickle_protocol=2, _use_new_zipfile_serialization=False)

def test_files_of_python_2_are_read_safely(tmp_path, state):
    save_python2({'state_dict': OrderedDict(state), 'place': 'Zürich', 'epoch': 59, 'rank1': .854}, tmp_path / 'a.pth.tar')
    with pytest.raises(UnicodeDecodeError): torch.load(tmp_path / 'a.pth.tar', weights_only=True)
    assert len(load_weights(osnet.osnet_x0_25(11), tmp_path / 'a.pth.tar', strict=True).loaded) == 567
    assert read_checkpoint(tmp_path / 'a.pth.tar')['place'] == 'Zürich'
    save_python2({'state_dict': OrderedDict(state), 'more': Evil(str(tmp_path / 'made')), 'place': 'Zürich'}, tmp_path / 'evil.pth.tar')
    with pytest.raises(ReidError, match='not run here'): load_weights(osnet.osnet_x0_25(11), tmp_path / 'evil.pth.tar')
    assert not (tmp_path / 'made').exists()

def test_whole_objects_need_trust(tmp_path, state):
    src = osnet.osnet_x0_25(11)
    torch.save(src, tmp_path / 'whole.pth')
    with pytest.raises(ReidError, match='trust=True'): load_weights(osnet.osnet_x0_25(11), tmp_path / 'whole.pth')
    model = osnet.osnet_x0_25(11)
    load_weights(model, tmp_path / 'whole.pth', strict=True, trust=True)
    assert same(src, model)

def test_a_web_page_is_no_checkpoint(tmp_path):
    for name in ('a.pth', 'a.safetensors'):
        (tmp_path / name).write_text('\n<!doctype html><title>Google Drive</title>')
        with pytest.raises(ReidError, match='web page'): load_weights(osnet.osnet_x0_25(3), tmp_path / name)

# ---- other libraries' first layers

def test_stems(): # by hand: pooling without a border, and no ReLU
    m, x = numbers(Embedder('resnet18', 3)), torch.rand(2, 3, 64, 32) - .5
    with torch.no_grad():
        y = m.body.bn1(m.body.conv1(x))
        tail = lambda z: m.pool(m.body.layer4(m.body.layer3(m.body.layer2(m.body.layer1(z)))))
        want = {'torchvision': nn.functional.max_pool2d(y.relu(), 3, 2, 1), 'fast-reid': nn.functional.max_pool2d(y.relu(), 3, 2, ceil_mode=True), 'bag of tricks': nn.functional.max_pool2d(y, 3, 2, 1)}
        for k in (*want, 'torchvision'):
            set_stem(m, k)
            assert torch.allclose(m.embed(x), tail(want[k]), rtol=1e-5)
    with pytest.raises(ValueError, match="'fast-reid'"): set_stem(m, 'fastreid')

# ---- to Torchreid

def test_to_torchreid(tmp_path, state):
    assert to_torchreid(osnet.osnet_x0_25(11)).keys() == state.keys()
    file = torch.load(save_torchreid({f'module.{k}': o for k, o in state.items()}, tmp_path / 'm.pth.tar', rank1=.9), weights_only=True)
    assert file['state_dict'].keys() == state.keys() and (file['epoch'], file['rank1']) == (0, .9)
    plain = to_torchreid(Embedder('resnet18', 3, neck='none'))
    assert best_match(plain) == ('resnet18' if 'resnet18' in NETWORKS else None) and plain['classifier.bias'].shape == (3,)
    for kw in (dict(), dict(neck='none', pool='gem')):
        with pytest.raises(ReidError, match='no (neck|pool)'): to_torchreid(Embedder('resnet18', 3, **kw))

# ---- by name

@pytest.mark.parametrize('name, kw, words', [
    ('osnet_x025', {}, 'osnet_x0_25'), ('resnet_50', {}, 'resnet50'), ('zzzzqqq', {}, 'Nearest names: none'), ('timm/resnet_50', {}, 'resnet50'), ('timm/osnet_x1_0', {}, 'no model'),
    ('osnet_x0_25', dict(pool='gem'), 'no `pool`'), ('densenet121', dict(last_stride=1, neck='none'), 'timm/densenet121'), ('hacnn', dict(size=(256, 128)), '160x64'),
    ('mudeep', dict(size=(8, 8)), 'at least 13x13'), ('hacnn', dict(weights='imagenet'), 'Nobody has published')])
def test_names_and_options_that_cannot_be(name, kw, words):
    with torch.device('meta'), pytest.raises(ValueError, match=words): create_model(name, 3, **kw)

def test_torchreids_name_comes_first():
    with torch.device('meta'):
        assert 'features.conv0.weight' in create_model('densenet121', 3).state_dict() and create_model('densenet121', 3).n_classes == 3
    assert isinstance(create_model('timm/densenet121', 3), Embedder) and isinstance(create_model('resnet10t', 3, size=(64, 32)), Embedder)

@pytest.mark.parametrize('n', [0, -1])
def test_no_classes(n):
    with pytest.raises(ValueError, match='n_classes'): create_model('osnet_x0_25', n)


@pytest.mark.parametrize('spoil,words', [
    (lambda o: o * float('nan'), 'not finite'), (lambda o: o.to('meta'), 'meta device'), (lambda o: o.to_sparse(), 'sparse'), (lambda o: o.to(torch.complex64), 'complex')])
def test_what_cannot_be_a_weight_is_told_and_nothing_is_loaded(spoil, words):
    model, other = osnet.osnet_x0_25(5), osnet.osnet_x0_25(5)
    before = {k: o.clone() for k, o in model.state_dict().items()}
    with pytest.raises(ReidError, match=words): load_weights(model, other.state_dict() | {'fc.0.weight': spoil(other.fc[0].weight.detach())})
    assert all(torch.equal(o, before[k]) for k, o in model.state_dict().items())

def test_classifiers_of_other_stripes_are_left_out():
    model, other = create_model('pcb_p6', 5), create_model('pcb_p4', 5)
    before = model.classifier[0].weight.clone()
    report = load_weights(model, other)
    assert torch.equal(model.classifier[0].weight, before) and not any(k.startswith('classifier') for k in report.loaded)

def test_neither_file_nor_weights():
    for o in (None, 3, [{}]):
        with pytest.raises(ValueError, match='must be a file'): load_weights(osnet.osnet_x0_25(5), o)
    with pytest.raises(ValueError, match="no child 'nope'"): load_weights(osnet.osnet_x0_25(5), osnet.osnet_x0_25(5), head='nope')
    load_weights(torch.nn.DataParallel(model := osnet.osnet_x0_25(5)), other := osnet.osnet_x0_25(5))
    assert torch.equal(model.fc[0].weight, other.fc[0].weight)

@pytest.mark.parametrize('kw,words', [
    (dict(n_classes=1.5), 'n_classes'), (dict(n_classes='5'), 'n_classes'), (dict(size=256), 'size'), (dict(size=(0, 0)), 'size'), (dict(name='OSNET_X0_25'), 'osnet_x0_25'), (dict(name=None), 'no model None'),
    (dict(weights=''), 'weights'), (dict(weights=True), 'weights'), (dict(name='inceptionv4', size=(64, 32)), 'from 75x75 on')])
def test_create_model_says_what_it_needs(kw, words):
    with pytest.raises(ValueError, match=words): create_model(**dict(name='osnet_x0_25', n_classes=5) | kw)

def test_mudeep_of_another_size():
    with torch.device('meta'): assert create_model('mudeep', 5, size=(64, 32)).input_size == (64, 32)
