"Faster models give the same features; each way says what it lacks"
import ctypes
import importlib
import sys
import warnings

import pytest
import torch
from conftest import run_python
from torch import nn

from reid_nb.core import ReidError
from reid_nb.models.export import distance_of, probe_images
from reid_nb.models.fast import InParts, compare_ways, fast_model, fold_norms, keep_memory, largest_result
from reid_nb.models.osnet import osnet_x0_25

SIZE = (64, 32)
WAYS = [pytest.param(how, dtype, id=f'{how} {dtype or ""}'.strip(), marks=[pytest.mark.skipif(importlib.util.find_spec(o) is None, reason=f'{o} is not installed: pip install "reid_nb[export]"')
        for o in dict(onnx=['onnx', 'onnxruntime'], openvino=['onnx', 'openvino']).get(how, [])])
        for how, dtype in [('eager', None), ('fold', None), ('onnx', None), ('openvino', None), ('fold', 'bf16'), ('fold', 'fp16'), ('openvino', 'bf16')]]


class Norms(nn.Module): # a little of everything that has norms
    def __init__(self):
        super().__init__()
        self.a, self.na = nn.Conv2d(3, 8, 3, 2, bias=False), nn.BatchNorm2d(8)
        self.b, self.nb = nn.Conv2d(8, 8, 3, groups=8), nn.BatchNorm2d(8, affine=False)
        self.inst = nn.InstanceNorm2d(8, affine=True)
        self.lin, self.nl = nn.Linear(8, 6, bias=False), nn.BatchNorm1d(6)
    def forward(self, x):
        x = self.inst(self.nb(self.b(self.na(self.a(x)).relu())))
        return self.nl(self.lin(x.relu().mean((2, 3))))


def seen(model, seed=0): # with statistics and weights that make a norm do something
    torch.manual_seed(seed)
    for o in model.modules():
        if isinstance(o, nn.modules.batchnorm._BatchNorm):
            o.running_mean.normal_(0, .3), o.running_var.uniform_(.5, 2)
            if o.affine: nn.init.normal_(o.weight, 1, .3), nn.init.normal_(o.bias, 0, .3)
    return model.eval()


@pytest.fixture(scope='module')
def osnet(): return seen(osnet_x0_25(5))


def norms(m): return sum(isinstance(o, nn.modules.batchnorm._BatchNorm) for o in m.modules())


@pytest.mark.parametrize('how,dtype', WAYS)
def test_a_way_gives_the_features_of_the_model(how, dtype, osnet):
    fast, x = fast_model(osnet, how, dtype, SIZE, n=4), probe_images(SIZE, 11, seed=5)
    with torch.no_grad(): cos, diff = distance_of(fast(x), osnet(x))
    assert (cos < 1e-12 and fast.error < 1e-12 and diff < 1e-5) if dtype is None else (1e-12 < fast.error < 1e-3 and cos < 1e-3)
    assert fast(x[:1]).shape == (1, 512) and fast(x).dtype == torch.float32 and fast.start_s > 0
    assert torch.allclose(fast(x)[2:5], fast(x[2:5]), atol=1e-4 if dtype is None else .05 * fast(x).abs().max().item())
    assert norms(osnet) > 50 and all(o.dtype == torch.float32 and o.requires_grad for o in osnet.parameters())


def test_the_compiler_gives_the_features_of_the_model_and_fills_up_a_short_part(monkeypatch, tmp_path):
    monkeypatch.setenv('TORCHINDUCTOR_CACHE_DIR', str(tmp_path))
    model, x = seen(Norms()), probe_images((16, 8), 7)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore') # the compiler's own
        try: fast = fast_model(model, 'compile', size=(16, 8), n=4)
        except RuntimeError as e:
            if 'compiler' in str(e).lower(): pytest.skip(f'no C++ compiler: {e}')
            raise
        with torch.no_grad(): assert fast.error < 1e-9 and distance_of(fast(x), model(x))[0] < 1e-9


def test_folding_takes_what_it_may_and_nothing_else():
    model, x = seen(Norms()), probe_images((16, 8), 3)
    folded = fold_norms(model, (16, 8))
    with torch.no_grad(): assert distance_of(folded(x), model(x))[1] < 1e-5
    assert norms(folded) == 0 and norms(model) == 3 and isinstance(folded.inst, nn.InstanceNorm2d)
    assert not folded.training and folded.a.bias is not None and model.a.bias is None


class Twice(nn.Module): # the convolution's result is wanted before its norm, too
    def __init__(self, how):
        super().__init__()
        self.how, self.a, self.b, self.n = how, nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        if how == 'parametrised': nn.utils.parametrizations.weight_norm(self.a)
    def forward(self, x):
        h = self.a(x)
        if self.how == 'skip': h = self.n(h) + h
        elif self.how == 'called twice': h = self.n(self.b(self.n(h)))
        elif self.how == 'changed between': h = self.n(h * 2)
        else: h = self.n(h)
        return h.mean((2, 3))


@pytest.mark.parametrize('how', ['skip', 'called twice', 'changed between', 'parametrised'])
def test_norms_that_must_stay_stay(how):
    model, x = seen(Twice(how)), probe_images((16, 8), 3)
    folded = fold_norms(model, (16, 8))
    with torch.no_grad(): assert norms(folded) == 1 and distance_of(folded(x), model(x))[1] < 1e-6


def test_a_transformer_keeps_its_features():
    from reid_nb.models.zoo import create_model
    model = create_model('vit_tiny_patch16_224', 3, size=SIZE).eval()
    for dtype, tol in ((None, 1e-11), ('bf16', 1e-2)): assert fast_model(model, 'fold', dtype, SIZE).error < tol


def test_parts_are_as_small_as_needed_and_change_nothing(osnet):
    x = probe_images(SIZE, 9)
    most = largest_result(osnet, x[:1])
    assert most == 16 * 32 * 16 * 4 # after the first convolution
    parts = InParts(osnet, limit=2.5 * most)
    with torch.no_grad(): assert distance_of(parts(x), osnet(x))[0] < 1e-12 and parts.n == 2
    assert len(list(osnet.modules())[1]._forward_hooks) == 0 # nothing is left behind


def test_other_features_than_the_models_are_refused():
    class Moody(nn.Module): # another answer when channels are last
        def forward(self, x): return x.mean(2).flatten(1) * (1 - 2 * x.is_contiguous(memory_format=torch.channels_last))
    with pytest.raises(ReidError, match='1 - cosine is 2|1 − cosine is 2'): fast_model(Moody(), 'eager', size=SIZE)


@pytest.mark.parametrize('kw,error,words', [
    (dict(how='tensorrt'), ValueError, "'openvino'"), (dict(dtype='int8'), ValueError, "'bf16' or 'fp16'"), (dict(how='onnx', dtype='bf16'), ValueError, 'knows? 16 bits|know 16 bits')])
def test_what_is_not_possible_is_said(osnet, kw, error, words):
    with pytest.raises(error, match=words): fast_model(osnet, size=SIZE, **kw)


@pytest.mark.parametrize('how,package', [('onnx', 'onnxruntime'), ('openvino', 'openvino'), ('openvino', 'onnx')])
def test_a_missing_package_is_named_with_its_extra_and_a_table_goes_on(osnet, how, package, monkeypatch):
    for o in list(sys.modules):
        if o.split('.')[0] == package: monkeypatch.delitem(sys.modules, o)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=r'pip install "reid_nb\[export\]"'): fast_model(osnet, how, size=SIZE)
    table = compare_ways(osnet, ('fold', how), SIZE, n=2, repeat=1)
    assert table.images_s.notna().tolist() == [True, True, False] and package in table.note[how]


def test_a_wrong_size_is_refused(osnet):
    with pytest.raises(ValueError, match=r'\(n,3,64,32\), not \(2, 3, 32, 32\)'): fast_model(osnet, size=SIZE)(torch.rand(2, 3, 32, 32))


def test_a_model_of_one_size_is_made_for_it():
    class One(nn.Module):
        input_size = (16, 8)
        def forward(self, x):
            assert x.shape[-2:] == (16, 8)
            return x.mean((2, 3))
    assert fast_model(One()).size == (16, 8)


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None) if sys.platform == 'linux' else None, 'mallinfo2'), reason='no glibc 2.33')
def test_large_tensors_are_not_taken_from_the_system_each_time(tmp_path):
    out = run_python('-c', '''
import ctypes, torch
from reid_nb.models.fast import keep_memory
class Info(ctypes.Structure): _fields_ = [(o, ctypes.c_size_t) for o in 'arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost'.split()]
mallinfo = ctypes.CDLL(None).mallinfo2
mallinfo.restype = Info
def from_system(): # pieces that a tensor of 48 MB takes from the system, and gives back
    before = mallinfo().hblks
    x = torch.ones(12_000_000)
    return mallinfo().hblks - before
before = from_system()
assert keep_memory()
print(before, from_system())
''', cwd=tmp_path)
    assert out.split() == ['1', '0']


def test_without_glibc_nothing_is_done(monkeypatch):
    class Other: pass
    monkeypatch.setattr(ctypes, 'CDLL', lambda _: Other())
    assert keep_memory() is False


def test_bytes_are_no_normalised_pictures_and_no_tolerance_is_none(osnet):
    fast = fast_model(osnet, size=SIZE)
    with pytest.raises(ValueError, match=r'normalised floats, not torch.uint8'): fast(torch.zeros(2, 3, *SIZE, dtype=torch.uint8))
    assert fast(torch.zeros(0, 3, *SIZE)).shape == (0, 512) and fast(torch.zeros(2, 3, *SIZE).half()).dtype == torch.float32
    with pytest.raises(ReidError, match='and 0e\\+00 is accepted'): fast_model(osnet, dtype='bf16', size=SIZE, tol=0)


def test_a_fast_model_is_the_model_as_it_was(osnet):
    from copy import deepcopy
    model, x = deepcopy(osnet).train(), probe_images(SIZE, 3)
    fast, again = fast_model(model, size=SIZE), fast_model(model, size=SIZE)
    want = fast(x)
    with torch.no_grad(): [o.add_(.1) for o in model.parameters()]
    assert torch.equal(fast(x), want) and torch.equal(again(x), want) and all(o.training for o in model.modules())
    assert distance_of(fast_model(model, size=SIZE)(x), want)[1] > 1e-3
