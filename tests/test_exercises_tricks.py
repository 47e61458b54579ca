"Chapter 9's exercises know a right answer, and name each usual slip"
import math
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from reid_nb.course import check, hint
from reid_nb.exercises import tricks


def map_size(size, strides): # by pooling
    x = torch.zeros(1, 1, *size)
    for s in strides: x = F.max_pool2d(x, s, ceil_mode=True)
    return x.shape[2:]

def affine(mean, var, weight, bias, eps): # by asking the layer at 0 and 1
    at = [F.batch_norm(torch.full((1, len(mean)), o, dtype=torch.double), *map(torch.tensor, (mean, var, weight, bias)), eps=eps)[0] for o in (0., 1.)]
    return at[1] - at[0], at[0]

def interval(scores, t):
    mean = sum(scores) / 3
    half = t * math.sqrt(sum((o - mean)**2 for o in scores) / 6)
    return mean - half, mean + half

def gain(without, with_it, t): return interval([b - a for a, b in zip(without, with_it)], t)

RIGHT = {'9.1': map_size, '9.2': affine, '9.3': interval, '9.4': gain, '9.5': dict(ladder=18, leave_one_out=18, all=96)}

@pytest.mark.parametrize('number', RIGHT)
def test_right_answers_pass(number): assert check(number, RIGHT[number]) == f'{number} is right.'

SLIPS = {'9.1': tricks._STRIDE_SLIPS, '9.2': tricks._NORM_SLIPS, '9.3': tricks._INTERVAL_SLIPS, '9.4': tricks._GAIN_SLIPS}

@pytest.mark.parametrize('number,i', [(k, i) for k, v in SLIPS.items() for i in range(len(v))])
def test_slips_are_named(number, i):
    slip, why = SLIPS[number][i]
    said = check(number, slip)
    assert 'not yet' in said and why in said

@pytest.mark.parametrize('number,answer,says', [
    ('9.1', (8, 4), 'Pass the function itself'), ('9.1', lambda size, strides: size, 'is right. The input'), ('9.1', lambda size, strides: None, 'was `return` forgotten'),
    ('9.2', lambda mean, var, weight, bias, eps: weight, 'is right. The input'), ('9.2', lambda mean, var: 1, 'raises TypeError'), ('9.3', lambda scores, t: scores.mean(), 'is right. The input'),
    ('9.4', lambda without, with_it, t: (0, 0), 'is right. The input'), ('9.5', 18, 'Pass a dict'), ('9.5', dict(ladder=18), 'Pass a dict'), ('9.5', dict(ladder=15, leave_one_out=18, all=96), 'The baseline is a run'),
    ('9.5', dict(ladder=18, leave_one_out=12, all=96), 'one at a time'), ('9.5', dict(ladder=18, leave_one_out=18, all=32), 'Three seeds'), ('9.5', dict(ladder=18, leave_one_out=18, all=7), 'all is not 7. Settings times seeds')])
def test_what_a_wrong_answer_hears(number, answer, says):
    said = check(number, answer)
    assert 'not yet' in said and re.search(says, said), said

@pytest.mark.parametrize('number', RIGHT)
def test_hints_grow(number):
    hints = [hint(number) for _ in range(3)]
    assert len(set(hints)) == 3 and hint(number) == hints[-1]

def test_the_sizes_of_the_chapter():
    assert tuple(map_size((256, 128), [2, 2, 1, 2, 2, 2])) == (8, 4) and tuple(map_size((256, 128), [2, 2, 1, 2, 2, 1])) == (16, 8)
