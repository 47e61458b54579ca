"The exercises of chapters 5 and 7 know their right answers, and name each usual slip"
import math
import re

import numpy as np
import pytest
import torch

from reid_nb.course import check, hint
from reid_nb.exercises import center, softmax
from reid_nb.losses import CenterLoss


def floor(c, eps): # found by trying, not by a formula
    target = torch.full((c,), eps / c, dtype=torch.double)
    target[0] += 1 - eps
    return torch.special.entr(target).sum()

def feature_from(logits, weight, bias): return np.linalg.lstsq(weight, (logits - bias).T, rcond=None)[0].T

def logits_from(prob): return np.log(prob / np.exp(np.log(prob).mean(1, keepdims=True)))

def pull(feat, label, centers):
    x = torch.tensor(feat, requires_grad=True)
    ((x - torch.tensor(centers)[label])**2).sum().div(2).backward()
    return x.grad

def moved(centers, feat, label, lr): # by the library's loss and PyTorch's SGD
    loss = CenterLoss(*centers.shape).double()
    loss.centers.data = torch.tensor(centers)
    opt = torch.optim.SGD(loss.parameters(), lr)
    loss(torch.tensor(feat), torch.tensor(label)).backward()
    opt.step()
    return loss.centers.detach()

def steps_to_halve(share, lr, weight): return math.log(2) / -math.log1p(-2 * lr * weight * share)

def within(feat, label):
    between = sum((label == o).sum() * ((feat[label == o].mean(0) - feat.mean(0))**2).sum() for o in set(label))
    return 1 - between / ((feat - feat.mean(0))**2).sum()

RIGHT = [('5.1', math.log(751)), ('5.1', 6.62), ('5.1', torch.tensor(6.6214)), ('5.2', floor), ('5.3', feature_from), ('5.4', logits_from),
         ('7.1', 1_538_048), ('7.2', pull), ('7.3', moved), ('7.4', steps_to_halve), ('7.5', within)]

@pytest.mark.parametrize('number,answer', RIGHT)
def test_right_answers_pass(number, answer): assert check(number, answer) == f'{number} is right.'

SLIPS = {'5.2': softmax._FLOOR_SLIPS, '5.3': softmax._FEATURE_SLIPS, '5.4': softmax._LOGIT_SLIPS, '7.2': center._PULL_SLIPS, '7.3': center._MOVE_SLIPS, '7.4': center._SPEED_SLIPS,
         '7.5': center._WITHIN_SLIPS, '5.1': softmax._FIRST_SLIPS, '7.1': center._SIZE_SLIPS}

@pytest.mark.parametrize('number,i', [(k, i) for k, v in SLIPS.items() for i in range(len(v))])
def test_slips_are_named(number, i):
    slip, why = SLIPS[number][i]
    said = check(number, slip)
    assert 'not yet' in said and why in said

@pytest.mark.parametrize('number,answer,says', [
    ('5.1', 'ln 751', 'Pass a number'), ('5.1', 6.5, 'Which probability'), ('5.1', 6.7, 'Which probability'), ('5.2', .99, 'Pass the function itself'), ('5.2', lambda c, eps: eps, 'is right. The input'),
    ('5.3', lambda logits, weight, bias: np.linalg.solve(weight, logits.T), 'raises LinAlgError'), ('5.3', lambda logits, weight, bias: None, 'was `return` forgotten'),
    ('5.4', lambda prob: logits_from(prob)[0], 'is right. The input'), ('5.4', lambda prob: 2 * logits_from(prob), 'is right. The input'),
    ('7.1', None, 'Pass a number'), ('7.1', 1_538_049, 'How many centres'), ('7.2', lambda feat, label, centers: feat, 'is right. The input'), ('7.2', lambda feat, label, centers: feat - centers, 'raises|is right'),
    ('7.3', lambda centers, feat, label, lr: centers, 'is right. The input'), ('7.4', lambda share, lr: 1, 'raises TypeError'), ('7.5', lambda feat, label: 0., 'is right. The input')])
def test_what_a_wrong_answer_hears(number, answer, says):
    said = check(number, answer)
    assert 'not yet' in said and re.search(says, said), said

def test_a_fancy_index_is_caught(): # the first try of chapter 7, which changes its input in place
    def first_try(centers, feat, label, lr):
        centers[label] -= lr * 2 / len(feat) * (centers[label] - feat)
        return centers
    assert 'np.add.at' in check('7.3', first_try)

@pytest.mark.parametrize('number', dict.fromkeys(o for o, _ in RIGHT))
def test_hints_grow(number):
    hints = [hint(number) for _ in range(3)]
    assert len(set(hints)) == 3 and hint(number) == hints[-1]

def test_figures_in_the_text():
    assert round(math.log(751), 2) == 6.62 and round(floor(751, .1).item(), 2) == .99
    assert round(steps_to_halve(1 / 751, .5, 1)) == 520 and round(steps_to_halve(1 / 751, .5, .0005) / 404) == 2577
