"The exercises of chapter 11 know their right answers and name the usual mistakes"
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from reid_nb.course import check, hint
from reid_nb.exercises.osnet import EXERCISES
from reid_nb.models.osnet import ConvNorm, LiteConv, OSBlock

def sigmoid(o): return 1 / (1 + np.exp(-o))
def opening(x, w1, b1, w2, b2, act=lambda o: np.maximum(o, 0)): return act(x.mean((2, 3)) @ w1.T + b1) @ w2.T + b2
def gate(x, *w): return x * sigmoid(opening(x, *w))[..., None, None]

def sees(layers): # from the last layer back
    width = 1
    for ks, stride in reversed(layers): width = (width - 1) * stride + ks
    return width

class Mine(nn.Module): # written from plain parts of torch; class attributes make the mistakes
    gated, skipped, last, squeeze = True, True, True, staticmethod(lambda o: o.mean((2, 3), keepdim=True))
    def __init__(self, ni, nf):
        super().__init__()
        n = nf // 4
        def named(**kw): return nn.ModuleDict(kw)
        def lite(): return named(conv1=nn.Conv2d(n, n, 1, bias=False), conv2=nn.Conv2d(n, n, 3, 1, 1, groups=n, bias=False), bn=nn.BatchNorm2d(n))
        self.conv1, self.conv3 = (named(conv=nn.Conv2d(a, b, 1, bias=False), bn=nn.BatchNorm2d(b)) for a, b in ((ni, n), (n, nf)))
        self.conv2a = lite()
        self.conv2b, self.conv2c, self.conv2d = (nn.Sequential(*[lite() for _ in range(k)]) for k in (2, 3, 4))
        self.gate = named(fc1=nn.Conv2d(n, n // 16, 1), fc2=nn.Conv2d(n // 16, n, 1))
        if ni != nf: self.downsample = named(conv=nn.Conv2d(ni, nf, 1, bias=False), bn=nn.BatchNorm2d(nf))
    def run(self, m, x): return m['bn'](m['conv2'](m['conv1'](x))).relu() if 'conv2' in m else m['bn'](m['conv'](x))
    def opens(self, o): return self.gate['fc2'](self.gate['fc1'](self.squeeze(o)).relu()).sigmoid() if self.gated else 1
    def forward(self, x):
        h, out = self.run(self.conv1, x).relu(), 0
        for chain in ([self.conv2a], self.conv2b, self.conv2c, self.conv2d):
            o = h
            for m in chain: o = self.run(m, o)
            out = out + o * self.opens(o)
        out = self.run(self.conv3, out)
        if self.skipped: out = out + (self.run(self.downsample, x) if hasattr(self, 'downsample') else x)
        return out.relu() if self.last else out

def changed(**kw): return type('Changed', (Mine,), kw)

class Theirs(OSBlock): # from the library's parts, with one thing else
    def branch(self, x):
        h = self.conv1(x)
        return self.conv3(self.mix(h, [o(h) for o in self.streams()]))
def mixed(mix): return type('Mixed', (Theirs,), dict(mix=mix))

class Biased(OSBlock):
    def __init__(self, ni, nf):
        super().__init__(ni, nf)
        self.conv1.conv = nn.Conv2d(ni, nf // 4, 1)
class Lines(OSBlock):
    def __init__(self, ni, nf):
        super().__init__(ni, nf)
        self.gate.fc1 = nn.Linear(nf // 4, nf // 64)
class Chains(OSBlock):
    def __init__(self, ni, nf):
        super().__init__(ni, nf)
        self.conv2a = nn.Sequential(self.conv2a)
class Spoils(OSBlock):
    def forward(self, x): return super().forward(x.relu_())
class ReluInside(OSBlock):
    def forward(self, x): return (self.branch(x).relu() + self.downsample(x)).relu()
class Pair(OSBlock):
    def forward(self, x): return super().forward(x), x
class Short(OSBlock):
    def forward(self, x): return super().forward(x) + x

RIGHT = [('11.1', lambda ni, nf: (ni * nf * 9, ni * nf + nf * 9)), ('11.1', lambda ni, nf: np.array([9 * ni, ni + 9]) * nf), ('11.2', sees), ('11.3', gate), ('11.4', OSBlock), ('11.4', Mine),
         ('11.4', mixed(lambda self, h, outs: sum(self.gate(o) * o for o in outs)))]

@pytest.mark.parametrize('number,answer', RIGHT)
def test_a_right_answer_passes(number, answer): assert check(number, answer) == f'{number} is right.'

def test_every_exercise_has_an_answer(): assert {o for o, _ in RIGHT} == {o for o in EXERCISES if o.startswith('11.')}

WRONG = [
    ('11.1', 589_824, 'Pass the function itself'), ('11.1', lambda ni, nf: (ni * nf * 9 + nf, ni * nf + nf * 9 + 2 * nf), 'no biases'),
    ('11.1', lambda ni, nf: (ni * nf * 9, ni * 9 + ni * nf), 'comes first'), ('11.1', lambda ni, nf: (ni * nf * 9, ni * nf), 'And the 3×3'), ('11.1', lambda ni, nf: (9 * ni * nf, 9 * nf * nf + ni * nf), 'mixes no channels'),
    ('11.1', lambda ni, nf: (9 * ni, ni * nf + nf * 9), 'every pair'), ('11.1', lambda ni, nf: ni * nf * 9, r'where \(\d+, \d+\) is right'), ('11.1', lambda ni, nf: (9 * nf * ni, ni * nf + 9), 'nine numbers of its own'),
    ('11.2', lambda layers: 1 + sum(k - 1 for k, _ in layers), 'two pixels apart'), ('11.2', lambda layers: sum(k for k, _ in layers), 'overlap'), ('11.2', lambda layers: np.prod([k for k, _ in layers]), 'grow by sums'),
    ('11.2', lambda layers: layers[0][0], 'through all earlier'), ('11.2', lambda layers: sees([(1, 1)] + layers[::-1]), 'is right. The input'), ('11.2', lambda layers: layers[9], 'raises IndexError'),
    ('11.2', lambda layers: 1 + sum((k - 1) * int(np.prod([s for _, s in layers[:i + 1]])) for i, (k, _) in enumerate(layers)), 'not those of its own'),
    ('11.3', lambda x, *w: sigmoid(opening(x, *w)), 'Multiply the maps'), ('11.3', lambda x, *w: x * sigmoid(opening(x, *w, act=lambda o: o))[..., None, None], 'ReLU stands between'),
    ('11.3', lambda x, *w: x * opening(x, *w)[..., None, None], 'sigmoid is missing'), ('11.3', lambda x, *w: x * F.softmax(torch.from_numpy(opening(x, *w)), 1).numpy()[..., None, None], 'at the cost'),
    ('11.3', lambda x, *w: gate(x.max((2, 3), keepdims=True), *w) / x.max((2, 3), keepdims=True) * x, 'not the largest'), ('11.3', lambda x, *w: x * sigmoid(opening(x.mean(0, keepdims=True), *w))[..., None, None], 'over the batch'),
    ('11.3', lambda x, *w: x * sigmoid(opening(x, *w)), 'two axes of length 1'), ('11.3', lambda x, *w: None, 'was `return` forgotten'),
    ('11.4', 3, 'Pass the class itself'), ('11.4', OSBlock(32, 64), 'Pass the class itself'), ('11.4', lambda ni, nf: 5, 'not an `nn.Module` but a int'), ('11.4', ConvNorm, r'no conv1.conv.weight \(and lacks \d+ of \d+ in all\); it does have conv.weight'),
    ('11.4', Biased, "conv1.conv.bias, which the checkpoints don't"), ('11.4', Lines, r'gate.fc1.weight has the shape \(1, 16\), and \(1, 16, 1, 1\)'), ('11.4', Chains, 'no conv2a.conv1.weight'),
    ('11.4', changed(skipped=False), "input isn't added"), ('11.4', changed(last=False), 'last ReLU is missing'), ('11.4', changed(gated=False), 'without their gate'), ('11.4', ReluInside, 'no ReLU of its own'),
    ('11.4', changed(last=False, forward=lambda self, x: self.run(self.conv3, sum((o := self.run(self.conv2a, x)))) ), 'raises RuntimeError for a batch'), ('11.4', changed(squeeze=staticmethod(lambda o: o.amax((2, 3), keepdim=True))), 'is each stream right alone'),
    ('11.4', mixed(lambda self, h, outs: sum(outs) * self.gate(sum(outs))), 'You gate the sum'), ('11.4', mixed(lambda self, h, outs: sum(o * self.gate(h) for o in outs)), 'what all streams begin with'),
    ('11.4', mixed(lambda self, h, outs: sum(o * self.gate(o) for o in outs) / 4), 'summed, not averaged'), ('11.4', Spoils, 'changes its input'), ('11.4', Pair, r'makes \(\)'), ('11.4', Short, 'raises RuntimeError'),
]

@pytest.mark.parametrize('number,answer,words', WRONG)
def test_a_wrong_answer_is_told_why(number, answer, words):
    said = check(number, answer)
    assert said.startswith(f'{number}: not yet.') and said.endswith(f"hint('{number}') helps.")
    assert re.search(words, said, re.S), said

def test_a_lite_convolution_has_the_stated_weights():
    for ni, nf in ((256, 256), (16, 48)):
        assert check('11.1', lambda a, b: (nn.Conv2d(a, b, 3, bias=False).weight.numel(), sum(o.numel() for k, o in LiteConv(a, b).named_parameters() if 'conv' in k))) == '11.1 is right.'

def test_fields_are_those_of_gradients():
    layers = [(7, 2), (3, 2), (3, 1), (3, 1)]
    net, x = nn.Sequential(*[nn.Conv2d(1, 1, k, s) for k, s in layers]), torch.rand(1, 1, 60, 60, requires_grad=True)
    net(x)[0, 0, 2, 2].backward()
    assert int((x.grad[0, 0].abs().sum(0) > 0).sum()) == sees(layers)

def test_hints():
    for k in ('11.1', '11.2', '11.3', '11.4'): assert hint(k)
