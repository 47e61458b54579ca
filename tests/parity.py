"""Is a network the same as Torchreid's of that name? Figures from running Torchreid (`torchreid_models.csv`); `python tests/parity.py NAME …` prints how far ours are off"""
import hashlib, sys, zlib
from pathlib import Path

import numpy as np
import pandas as pd
import torch

GOLDEN = pd.read_csv(Path(__file__).with_name('torchreid_models.csv'), dtype=dict(key_hash=str)).set_index('name')

def key_hash(state):
    "Twelve hex digits over the sorted names and shapes of a state dict with 1,000 classes"
    return hashlib.sha256('\n'.join(sorted(f'{k} {"x".join(map(str, o.shape))}' for k, o in state.items())).encode()).hexdigest()[:12]

def fill(state):
    "Put numbers into the tensors of `state` (in Torchreid's names) that depend on their names and shapes alone"
    for k, o in state.items():
        gen = torch.Generator().manual_seed(zlib.crc32(k.encode()))
        if not o.is_floating_point(): o.zero_(); continue
        if k.endswith('running_var'): new = 1 + .5 * torch.rand(o.shape, generator=gen)
        elif k.endswith('running_mean') or k.endswith('.bias'): new = .1 * torch.randn(o.shape, generator=gen)
        elif o.ndim == 1: new = 1 + .1 * torch.randn(o.shape, generator=gen)
        else: new = torch.randn(o.shape, generator=gen) * (2 / (o.numel() / o.shape[0])) ** .5
        o.copy_(new)
    return state

def golden_input(size=(256, 128)):
    "The two pictures that the figures were made from"
    x = torch.rand((2, 3, *size), generator=torch.Generator().manual_seed(0))
    c, i, j = torch.meshgrid(torch.arange(3), torch.arange(size[0]), torch.arange(size[1]), indexing='ij')
    x[1] = ((i * (c + 1) + 2 * j) % 64) / 63
    return x

def features_of(model, name):
    "The feature of each of the two pictures, of a `model` with 10 classes whose state dict has Torchreid's names"
    with torch.inference_mode():
        fill(model.state_dict())
        return model.eval()(golden_input((160, 64) if name == 'hacnn' else (256, 128))).double().numpy()

def differences(feat, name):
    "How far features (2,d) are from Torchreid's: relative for norms, absolute for what is normalised; the width and the largest positions must be equal"
    want, norm = GOLDEN.loc[name], np.linalg.norm(feat, axis=1)
    unit = feat / norm[:, None]
    assert feat.shape == (2, want.n_feats), (feat.shape, want.n_feats)
    def rel(a, b): return abs(a - b) / abs(b)
    return dict(norm0=rel(norm[0], want.norm0), norm1=rel(norm[1], want.norm1), cos=abs(unit[0] @ unit[1] - want.cos),
        argmax0=float(unit[0].argmax() != want.argmax0), argmax1=float(unit[1].argmax() != want.argmax1),
        max0=rel(unit[0].max(), want.max0), max1=rel(unit[1].max(), want.max1), mean0=rel(unit[0].mean(), want.mean0),
        first4=max(abs(unit[0, i] - want[f'v{i}']) for i in range(4)))

def check_parity(make, name, tol=1e-4):
    "Assert that `make(n_classes)` is Torchreid's network `name`: names and shapes of its tensors, and what it computes"
    with torch.device('meta'): state = make(1000).state_dict()
    assert len(state) == GOLDEN.n_tensors[name] and key_hash(state) == GOLDEN.key_hash[name], (name, len(state), key_hash(state))
    diff = differences(features_of(make(10), name), name)
    assert max(diff.values()) < tol, (name, diff)
    return diff

if __name__ == '__main__':
    from reid_nb.models.zoo import create_model
    for name in sys.argv[1:] or GOLDEN.index:
        try: print(name, 'differs by at most', max(check_parity(lambda n: create_model(name, n), name).values()), flush=True)
        except Exception as e: print(name, 'FAILS', type(e).__name__, str(e)[:300], flush=True)
