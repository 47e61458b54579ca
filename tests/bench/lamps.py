"""What batch norm, IBN-a and IBN-b make of a lamp that training never saw

    python tests/bench/lamps.py            # two seeds, 50 steps each: two and a half minutes of one core

With one thread, which the numbers on the page of residual networks are from: OMP_NUM_THREADS=1.
"""
import argparse, tempfile, time

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch.nn import functional as F

LAMPS = dict(white=(1., 1., 1.), warm=(1., .8, .55), cold=(.6, .75, .95), dim=(.5, .5, .5))
STAGES = ['maxpool', 'layer1', 'layer2', 'layer3', 'layer4']

def pictures(n_ids=64): # items and pictures (n,3,64,32) in 0…1, of people under one white lamp
    from reid_nb.data.synth import synth_people
    with tempfile.TemporaryDirectory() as tmp:
        items = synth_people(tmp, n_ids=n_ids, n_cams=2, per_cam=4, distractors=0, junk=0, camera_effects=0, size=(64, 32))
        return items, torch.stack([torch.from_numpy(np.array(Image.open(o).convert('RGB'))).permute(2, 0, 1) / 255 for o in items.path])

def under(x, lamp): # pictures under a lamp, normalised as for ImageNet
    def col(o): return torch.tensor(o)[:, None, None]
    return (x * col(LAMPS[lamp]) - col((.485, .456, .406))) / col((.229, .224, .225))

def train(model, x, y, steps, bs=32): # cross entropy under the white lamp, with flips
    model = model.to(memory_format=torch.channels_last)
    opt = torch.optim.Adam(model.train().parameters(), 1e-3)
    for _ in range(steps):
        i, flip = torch.randint(len(x), (bs,)), torch.rand(bs, 1, 1, 1) < .5
        xb = under(torch.where(flip, x[i].flip(3), x[i]), 'white')
        (_, logits), = model(xb.contiguous(memory_format=torch.channels_last))
        opt.zero_grad(); F.cross_entropy(logits, y[i]).backward(); opt.step()
    return model.eval()

def rank1(model, x, pid): # per lamp of the queries, the share whose nearest picture under the white lamp, itself left out, is of the same person
    feats, out = {k: F.normalize(model(under(x, k))) for k in LAMPS}, {}
    for k, o in feats.items():
        sim = (o @ feats['white'].T).fill_diagonal_(-2)
        out[k] = (pid[sim.argmax(1)] == pid).float().mean().item()
    return out

def moved(model, x, pid): # per stage, how far the mean of the maps goes from the warm lamp to the cold one, over the distance between people
    def means(lamp):
        seen = {}
        hooks = [getattr(model, k).register_forward_hook(lambda _, i, o, k=k: seen.update({k: o.mean((2, 3))})) for k in STAGES]
        model(under(x, lamp))
        for h in hooks: h.remove()
        return seen
    a, b, others = means('warm'), means('cold'), pid[:, None] != pid
    return {k: ((a[k] - b[k]).norm(dim=1).mean() / torch.cdist(a[k], a[k])[others].mean()).item() for k in STAGES}

def main():
    from reid_nb.models.resnets import ResNet, resnet50_ibn_a, resnet50_ibn_b
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--steps', type=int, default=50); p.add_argument('--seeds', type=int, default=2); p.add_argument('--ids', type=int, default=64)
    o = p.parse_args()
    items, x = pictures(o.ids)
    old, pid = torch.tensor((items.split == 'train').values), torch.tensor(items.pid.values)
    y, rows = torch.unique(pid[old], return_inverse=True)[1], []
    for name, make in {'batch norm': ResNet, 'IBN-a': resnet50_ibn_a, 'IBN-b': resnet50_ibn_b}.items():
        for seed in range(o.seeds):
            torch.manual_seed(seed)
            start = time.perf_counter()
            model = train(make(len(y.unique()), depths=(2, 2, 1, 1)), x[old], y, o.steps)
            with torch.inference_mode(): rows.append(dict(norm=name) | rank1(model, x[~old], pid[~old]) | moved(model, x[~old], pid[~old]))
            print(f'{name}, seed {seed}: {time.perf_counter() - start:.0f} s', flush=True)
    print(pd.DataFrame(rows).groupby('norm', sort=False).mean().round(2).to_string())

if __name__ == '__main__': main()
