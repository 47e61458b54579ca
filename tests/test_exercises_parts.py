"Chapter 12's exercises know a right answer, and name each usual slip"
import re

import numpy as np
import pytest
import torch

from reid_nb.course import check, hint
from reid_nb.exercises import parts
from reid_nb.models.parts import StripePool


def stripes(maps, parts): return StripePool(parts).stripes(torch.from_numpy(maps))

def sees(layers):
    if not layers: return 1
    *before, (ks, stride) = layers
    return sees(before) + (ks - 1) * int(np.prod([s for _, s in before]))

def changed(rows, first, reach): return {i for i, (top, end) in enumerate(rows) if any(r >= first for r in range(top, end + reach))}

def distance(q, g, q_seen, g_seen):
    out = np.ones((len(q), len(g)))
    for i in range(len(q)):
        for j in range(len(g)):
            both = q_seen[i] & g_seen[j]
            if both.any(): out[i, j] = (1 - (q[i] * g[j]).sum(1))[both].mean()
    return out

RIGHT = {'12.1': stripes, '12.2': dict(reduced=1536, pooled=12288, classifiers=1158042), '12.3': sees, '12.4': changed, '12.5': distance}

@pytest.mark.parametrize('number', RIGHT)
def test_right_answers_pass(number): assert check(number, RIGHT[number]) == f'{number} is right.'

SLIPS = {'12.1': parts._STRIPE_SLIPS, '12.3': parts._SEES_SLIPS, '12.4': parts._CHANGED_SLIPS, '12.5': parts._DISTANCE_SLIPS}

@pytest.mark.parametrize('number,i', [(k, i) for k, v in SLIPS.items() for i in range(len(v))])
def test_slips_are_named(number, i):
    slip, why = SLIPS[number][i]
    said = check(number, slip)
    assert 'not yet' in said and why in said

@pytest.mark.parametrize('number,answer,says', [
    ('12.1', lambda maps, parts: np.stack([o.mean((2, 3)) for o in np.array_split(maps, parts, 3)], 2), 'side by side'),
    ('12.1', lambda maps, parts: maps, 'is right. The input'), ('12.1', 3, 'Pass the function itself'), ('12.1', lambda maps: maps, 'raises TypeError'),
    ('12.2', 1536, 'Pass a dict'), ('12.2', dict(reduced=1536), 'Pass a dict'), ('12.2', dict(reduced=256, pooled=12288, classifiers=1158042), 'reduced is not 256'),
    ('12.2', dict(reduced=1536, pooled=2048, classifiers=1158042), 'pooled is not 2048'), ('12.2', dict(reduced=1536, pooled=12288, classifiers=6 * 256 * 751), 'a bias for each'),
    ('12.2', dict(reduced=1536, pooled=12288, classifiers=257 * 751), 'Every stripe has its own'), ('12.2', dict(reduced=1536, pooled=12288, classifiers=1), 'Six linear layers'),
    ('12.3', lambda layers: len(layers), 'is right. The input'), ('12.4', lambda rows, first, reach: [], 'is right. The input'),
    ('12.4', lambda rows, first, reach: None, 'return'), ('12.5', lambda q, g, q_seen, g_seen: q_seen @ g_seen.T, 'is right. The input')])
def test_what_a_wrong_answer_hears(number, answer, says): assert re.search(says, check(number, answer))

@pytest.mark.parametrize('number', RIGHT)
def test_hints_grow(number):
    hints = [hint(number) for _ in range(3)]
    assert len(set(hints)) == 3 and hint(number) == hints[-1]

def test_body_of_the_chapter(): # what the text says of it
    assert sees([(3, 2), (3, 2), (3, 1), (3, 1)]) == 23
    resnet = [(7, 2), (3, 2), *[(3, 1)] * 3, (3, 2), *[(3, 1)] * 3, (3, 2), *[(3, 1)] * 8]
    assert sees(resnet) == 363
