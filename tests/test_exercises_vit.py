"Chapter 13's exercises know a right answer, and name each usual slip"
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from reid_nb.course import check, hint
from reid_nb.exercises import vit


def tokens(h, w, patch, stride): return len(range(0, h - patch + 1, stride)) * len(range(0, w - patch + 1, stride))

def resize(pos, old, new):
    grid = torch.tensor(pos[1:]).reshape(1, *old, -1).permute(0, 3, 1, 2)
    return np.concatenate([pos[:1], F.interpolate(grid, new, mode='bilinear')[0].flatten(1).T.numpy()])

def attention(q, k, v): return F.scaled_dot_product_attention(*map(torch.tensor, (q, k, v)))

RIGHT = {'13.1': tokens, '13.2': dict(stride16=129, stride12=211, pairs=2.68), '13.3': resize, '13.4': attention}

@pytest.mark.parametrize('number', RIGHT)
def test_a_right_answer_passes(number): assert check(number, RIGHT[number]) == f'{number} is right.'

def test_every_exercise_has_an_answer(): assert {o for o in vit.EXERCISES if o.startswith('13.')} == set(RIGHT)

SLIPS = [(n, f, words) for n, slips in (('13.1', vit._TOKEN_SLIPS), ('13.3', vit._POSITION_SLIPS), ('13.4', vit._ATTENTION_SLIPS)) for f, words in slips]

@pytest.mark.parametrize('number, answer, words', SLIPS + [
    ('13.2', 129, 'Pass a dict'), ('13.2', dict(stride16=128, stride12=210, pairs=2.7), 'class token'), ('13.2', dict(stride16=129, stride12=221, pairs=2.7), 'stride12 is not 221'),
    ('13.2', dict(stride16=129, stride12=211, pairs=1.636), 'count pairs'), ('13.2', dict(stride16=129, stride12=211, pairs=3), 'pairs is not 3')])
def test_a_slip_is_named(number, answer, words):
    said = check(number, answer)
    assert said.startswith(f'{number}: not yet.') and words in said, said

def test_any_other_mistake_shows_the_input():
    said = check('13.1', lambda h, w, patch, stride: 7)
    assert 'returns 7 where' in said and 'patch = ' in said

@pytest.mark.parametrize('number', RIGHT)
def test_three_hints(number): assert [hint(number)[:6] for _ in range(3)][-1] == '3 of 3'
