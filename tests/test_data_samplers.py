"Every epoch follows its rule, can be repeated, gone on with and shared, and is as long as it says"
import json
import pickle
import random
from collections import Counter

import numpy as np
import pytest
import torch
from reid_nb.core import ReidError, make_items, seed_all
from reid_nb.data.epochs import (_dealt, camera_pk_batches, domain_batches, hard_pk_batches, identity_batches, identity_batches_2018, likeness,
                                 n_pk_batches, pk_batches)
from reid_nb.data.samplers import (CameraPKSampler, HardPKSampler, PKDataLoader, PKSampler, RandomDatasetSampler, RandomDomainSampler,
                                   RandomIdentitySampler, RandomSampler, SampledDL, SequentialSampler, sampler_of)

TOY = np.repeat(np.arange(9), [1, 2, 3, 5, 8, 13, 21, 4, 9])
CAMS = np.repeat([0, 1, 2], [9, 12, 30])


def items(seed=0, n=240): # two datasets whose numbers of people and cameras overlap
    rng = np.random.default_rng(seed)
    return make_items([f'{i}.jpg' for i in range(n)], rng.integers(0, 12, n), cam=rng.integers(0, 3, n), dset=rng.choice(['a', 'b'], n))

def groups(labels, batch, k): return sorted(Counter(np.asarray(labels)[np.asarray(batch)].tolist()).values()) == [k] * (len(batch) // k)


# The two peers' rules, word by word, as a stream of rows

def stream_2021(labels, p, k):
    pool = {}
    for pid in set(labels.tolist()):
        rows = np.flatnonzero(labels == pid).tolist()
        if len(rows) < k: rows = [random.choice(rows) for _ in range(k)]
        random.shuffle(rows)
        pool[pid] = [o for i in range(0, len(rows), k) if len(o := rows[i:i + k]) == k]
    alive, out = sorted(pool), []
    while len(alive) >= p:
        for pid in random.sample(alive, p):
            out += pool[pid].pop(0)
            if not pool[pid]: alive.remove(pid)
    return np.array(out).reshape(-1, p * k)

def stream_domains(domains, bs, n):
    pool = {d: np.flatnonzero(domains == d).tolist() for d in set(domains.tolist())}
    m, out, stop = bs // n, [], False
    while not stop:
        for d in random.sample(sorted(pool), n):
            rows = random.sample(pool[d], m)
            out += rows
            for o in rows: pool[d].remove(o)
            if len(pool[d]) < m: stop = True
    return np.array(out).reshape(-1, bs)

def alike(slow, fast, labels, tol): # are two lists of epochs drawn by one rule? by length, rows of each label, and different rows of each label
    n_slow, n_fast = (np.array([len(o) for o in e]) for e in (slow, fast))
    assert abs(n_slow.mean() - n_fast.mean()) <= 4 * np.sqrt((n_slow.var() + n_fast.var()) / len(slow)) + 1e-9 and set(n_slow) == set(n_fast)
    c = labels.max() + 1
    for count in (lambda o: np.bincount(labels[o.ravel()], minlength=c), lambda o: np.bincount(labels[np.unique(o)], minlength=c)):
        a, b = (np.mean([count(o) for o in e], 0) for e in (slow, fast))
        assert np.abs(a - b).max() < tol, (a, b)

def test_torchreids_identity_rule():
    random.seed(0)
    rng = np.random.default_rng(3)
    alike([stream_2021(TOY, 3, 4) for _ in range(1200)], [identity_batches(TOY, 3, 4, rng) for _ in range(1200)], TOY, .35)

@pytest.mark.parametrize('n', [1, 2, 3])
def test_torchreids_domain_rule(n):
    random.seed(0)
    rng = np.random.default_rng(3)
    fast = [domain_batches(CAMS, 6, n, rng) for _ in range(1200)]
    alike([stream_domains(CAMS, 6, n) for _ in range(1200)], fast, CAMS, .45)
    for e in fast[:50]:
        assert len(set(e.ravel())) == e.size
        for b in e: assert sorted(Counter(CAMS[b].tolist()).values()) == [6 // n] * n

def test_zero_domains_are_all():
    e = domain_batches(CAMS, 9, 0, np.random.default_rng(0))
    assert len(e) == 3 and all((np.bincount(CAMS[b]) == 3).all() for b in e)

def test_the_rule_of_2018():
    for seed in range(20):
        e = identity_batches_2018(TOY, 4, 3, np.random.default_rng(seed))
        assert e.shape == (2, 12) and len(set(TOY[e].ravel())) == 8
        assert all(len(set(g)) == 3 for g in e.reshape(-1, 3) if (TOY == TOY[g[0]]).sum() >= 3)

def test_market_has_the_lengths_of_the_facts(): # 751 people: 3,004 pictures an epoch in 2018, of which batches of 32 hold 93 × 32
    labels = np.repeat(np.arange(751), 17)
    assert len(identity_batches_2018(labels, 8, 4, np.random.default_rng(0))) == 3004 // 32

def test_camera_shares_are_even():
    for seed in range(80):
        rng = np.random.default_rng(seed)
        k, cam = int(rng.integers(1, 7)), rng.integers(0, rng.integers(1, 5), rng.integers(1, 40))
        g = _dealt(np.arange(len(cam)), cam, k, rng)
        assert g.shape == (max(len(cam) // k, 1), k)
        used = Counter(g.ravel().tolist())
        if len(cam) >= k: assert set(used.values()) == {1}
        else: assert len(used) == len(cam) and max(used.values()) - min(used.values()) <= 1
        for c in np.unique(cam[g]): assert np.ptp((cam[g] == c).sum(1)) <= 1

def test_camera_batches_are_as_many_as_plain_ones():
    rng = np.random.default_rng(0)
    labels, cams = rng.integers(0, 20, 300), rng.integers(0, 4, 300)
    assert len(camera_pk_batches(labels, cams, 5, 4, rng)) == len(pk_batches(labels, 5, 4, rng)) == n_pk_batches(labels, 5, 4)

def test_likeness_against_plain_loops():
    feats, lab = np.random.default_rng(0).normal(size=(12, 3)), np.repeat(np.arange(6), 2)
    mean = [(feats / np.linalg.norm(feats, axis=1, keepdims=True))[lab == i].sum(0) for i in range(6)]
    sim = np.array([[-9 if i == j else a @ b / np.linalg.norm(a) / np.linalg.norm(b) for j, b in enumerate(mean)] for i, a in enumerate(mean)])
    want = np.argsort(-sim, 1)[:, :5]
    assert (likeness(lab, feats) == want).all() and (likeness(lab, confusion=np.exp(sim), m=2) == want[:, :2]).all()
    assert likeness([5, 5], np.ones((2, 3))).shape == (1, 0)
    keep = np.exp(sim)
    likeness(lab, confusion=keep)
    assert (keep == np.exp(sim)).all() # the caller's matrix is left alone
    for kw, words in (({}, 'either'), (dict(feats=feats, confusion=sim), 'either'), (dict(confusion=np.eye(5)), r'6 identities.*\(5, 5\)'), (dict(feats=feats[:3]), '3 features for 12')):
        with pytest.raises(ValueError, match=words): likeness(lab, **kw)

def test_look_alikes_meet():
    for seed in range(25):
        rng = np.random.default_rng(seed)
        labels, p, hard = rng.integers(0, 12, 80), int(rng.integers(1, 6)), int(rng.integers(0, 6))
        near, ids = likeness(labels, rng.normal(size=(80, 4))), np.unique(labels)
        e = hard_pk_batches(labels, near, p, 3, hard, rng)
        assert all(groups(labels, b, 3) for b in e)
        who, m = np.searchsorted(ids, labels[e[0]][::3]), min(hard, p - 1)
        assert (who[1:1 + m] == near[who[0]][:m]).all() # nobody is used up in the first batch


# Samplers

SAMPLERS = {
    'random': lambda t, **kw: RandomSampler(t, 32, **kw), 'ragged': lambda t, **kw: RandomSampler(t, 32, drop_last=False, **kw), 'sequential': lambda t, **kw: SequentialSampler(t, 32, **kw),
    'pk': lambda t, **kw: PKSampler(t, 5, 4, **kw), '2021': lambda t, **kw: RandomIdentitySampler(t, 5, 4, **kw),
    '2018': lambda t, **kw: RandomIdentitySampler(t, 5, 4, year=2018, **kw), 'camera': lambda t, **kw: CameraPKSampler(t, 5, 4, **kw),
    'hard': lambda t, **kw: HardPKSampler(t, 5, 4, **kw), 'domain': lambda t, **kw: RandomDomainSampler(t, 32, n=2, **kw), 'dataset': lambda t, **kw: RandomDatasetSampler(t, 32, n=2, **kw)}

@pytest.fixture(params=list(SAMPLERS))
def make(request): return SAMPLERS[request.param]

def plain(batches): return [[int(i) for i in b] for b in batches]

def test_length_is_what_comes_in_every_epoch(make):
    s = make(items(), seed=3)
    for _ in range(4):
        n = len(s)
        assert n == len(list(s)) > 0

def test_an_epoch_is_a_function_of_seed_and_number(make):
    a, b = make(items(), seed=3), make(items(), seed=3)
    epochs = [list(a) for _ in range(3)]
    b.set_epoch(2)
    assert list(b) == epochs[2]
    b.set_epoch(1, start=2)
    assert len(b) == len(epochs[1]) - 2 and list(b) == epochs[1][2:] and b.number == 2 and b.start == 0
    if 'Sequential' not in type(a).__name__: assert epochs[0] != epochs[1] and list(make(items(), seed=4)) != epochs[0]

def test_ranks_share_whole_batches(make):
    whole = list(make(items(), seed=1))
    for world in (2, 3):
        parts = [list(make(items(), seed=1, rank=r, world=world)) for r in range(world)]
        assert {len(o) for o in parts} == {len(whole) // world}
        assert [b for step in zip(*parts) for b in step] == whole[:len(whole) // world * world]

def test_batches_have_their_shape():
    t = items()
    who, cam, dset = (t.groupby(o, observed=True).ngroup().to_numpy() for o in (['dset', 'pid'], ['dset', 'cam'], ['dset']))
    for name in ('pk', '2021', '2018', 'camera', 'hard'): assert all(groups(who, b, 4) for b in SAMPLERS[name](t, seed=0)), name
    assert all(groups(cam, b, 16) for b in SAMPLERS['domain'](t, seed=0))
    assert all(groups(dset, b, 16) for b in SAMPLERS['dataset'](t, seed=0))
    assert sum(SAMPLERS['sequential'](t), []) == list(range(240))
    assert sorted(sum(SAMPLERS['ragged'](t, seed=0), [])) == list(range(240)) and len(SAMPLERS['random'](t, seed=0)) == 7

def test_without_a_seed_the_seed_of_all_decides():
    def epoch():
        seed_all(5)
        return list(PKSampler(items(), 5, 4))
    assert epoch() == epoch()

def test_pytorchs_own_loader_takes_a_sampler():
    s = PKSampler(items(), 5, 4, seed=0)
    got = [b.tolist() for b in torch.utils.data.DataLoader(range(240), batch_sampler=s)]
    s.set_epoch(0)
    assert got == list(s)

def test_hard_mining_counts_at_once():
    t = items()
    s, feats = HardPKSampler(t, 5, 4, hard=4, seed=0), np.random.default_rng(0).normal(size=(240, 8))
    before = plain(s.epoch([0, 0]))
    assert before == plain(PKSampler(t, 5, 4).epoch([0, 0])) # nobody is alike yet
    s.update(feats)
    assert plain(s.epoch([0, 0])) != before and len(s) == len(s.epoch([0, 0]))
    s.update(confusion=np.eye(24))

def test_errors_say_what_to_do():
    t = items()
    for f, words in ((lambda: PKSampler(t, 60, 4), 'p=60 identities, and the training rows have'), (lambda: RandomDomainSampler(t, 32, n=7), 'n=7 domains.*rows have 6'),
                     (lambda: RandomDomainSampler(t, 96), 'takes 96 from each'), (lambda: RandomDomainSampler(t.assign(cam=t.cam.mask(t.index < 3))), '3 of 240 rows have no camera')):
        with pytest.raises(ReidError, match=words): f()
    for f, words in ((lambda: RandomDomainSampler(t, 32, n=3), "bs=32 rows can't be divided evenly among n=3"), (lambda: RandomIdentitySampler(t, year=2019), '2018 or 2021, not 2019'),
                     (lambda: PKSampler(t, 5, 4, rank=2, world=2), 'rank=2 must be one of 0…1'), (lambda: CameraPKSampler(t, 5, 4, cams=[1, 2]), '2 cameras for 240 rows'),
                     (lambda: identity_batches(TOY, 0, 4), 'p=0'), (lambda: SampledDL(list(range(9))), 'needs a `sampler`')):
        with pytest.raises(ValueError, match=words): f()


# The loader

def loader(make, workers=0, **kw): return SampledDL(list(range(240)), make(items(), **kw), num_workers=workers)
def tolist(dl): return [b.tolist() for b in dl]

@pytest.mark.parametrize('seed', [None, 7])
def test_loader_length_is_true_and_known_before(make, seed):
    seed_all(1)
    dl = loader(make, seed=seed)
    for _ in range(3):
        n = len(dl)
        within = [len(dl) for _ in dl]
        assert within == [n] * n

def test_loader_draws_what_it_drew_before_there_were_samplers():
    labels = np.random.default_rng(0).integers(0, 20, 300)
    dl = PKDataLoader(list(range(300)), labels, 5, 4, num_workers=0)
    dl.rng = random.Random(11)
    twin = random.Random(11)
    for _ in range(2):
        twin = random.Random(twin.randint(0, 2**32 - 1))
        assert tolist(dl) == plain(pk_batches(labels, 5, 4, np.random.default_rng(twin.getrandbits(64))))

@pytest.mark.parametrize('seed', [None, 7])
@pytest.mark.parametrize('workers', [0, 2])
def test_going_on_in_the_middle(seed, workers):
    make = SAMPLERS['2021']
    seed_all(1)
    whole, broken, other = (loader(make, seed=seed) for _ in range(3))
    for o in (whole, broken, other): o.rng = random.Random(4)
    epochs = [tolist(whole) for _ in range(3)]
    assert tolist(broken) == epochs[0]
    for i, b in enumerate(broken):
        if i == 2: break
    state = json.loads(json.dumps(broken.state_dict()))
    rng = broken.rng.getstate()
    other = loader(make, workers, seed=seed)
    other.load_state_dict(state)
    assert state['epoch'] == 1 and state['batch'] == 3 and len(other) == len(epochs[1]) - 3
    other.one_batch() # looking at a batch changes nothing
    assert tolist(other) == epochs[1][3:]
    other.rng.setstate(rng) # the trainer's task, if the seed is its own
    assert other.epoch == 2 and tolist(other) == epochs[2]

def test_a_state_after_the_last_batch_is_the_next_epoch():
    dl, other = loader(SAMPLERS['pk'], seed=7), loader(SAMPLERS['pk'], seed=7)
    for b in dl: state = dl.state_dict()
    other.load_state_dict(state)
    assert (other.epoch, len(other)) == (1, len(dl)) and tolist(other) == tolist(dl)
    assert dl.state_dict() == dict(epoch=2, batch=0, entropy=None)

@pytest.mark.parametrize('world', [2, 3])
def test_fastais_distributed_cut_breaks_no_group(world, monkeypatch): # it splits the rows of an epoch into `world` equal pieces
    monkeypatch.setenv('WORLD_SIZE', str(world))
    t = items()
    who = t.groupby(['dset', 'pid'], observed=True).ngroup().to_numpy()
    for name in ('pk', '2021', '2018', 'camera', 'hard'):
        dl = loader(SAMPLERS[name], seed=2)
        rows = np.array(dl.get_idxs())
        assert len(rows) == 20 * len(dl) and len(dl) % world == 0
        assert all(groups(who, b, 4) for piece in np.split(rows, world) for b in piece.reshape(-1, 20))
    assert len(loader(SAMPLERS['pk'], seed=2, rank=1, world=world)) == len(loader(SAMPLERS['pk'], seed=2)) // world # shared already: left alone

def test_copies_of_a_loader():
    dl = loader(SAMPLERS['pk'], seed=1)
    assert len(tolist(dl.new(shuffle=False, drop_last=False))) == 12 and type(dl.new(shuffle=False)).__name__ == 'TfmdDL'
    again = dl.new()
    assert tolist(again) == tolist(dl) and (again.p, again.k) == (5, 4)
    assert len(dl.new([])) == 0 and tolist(dl.new([])) == []
    assert tolist(pickle.loads(pickle.dumps(dl))) == tolist(dl)
    with pytest.raises(ValueError, match='240 labels for a dataset of 9'): SampledDL(list(range(9)), dl.sampler)

def test_worker_processes_bring_the_same_batches():
    a, b = loader(SAMPLERS['camera'], seed=1), loader(SAMPLERS['camera'], 2, seed=1)
    assert tolist(a) == tolist(b)

def test_what_makes_a_sampler():
    t = items()
    one = PKSampler(t, 4, 4)
    assert sampler_of(one, t) is one and sampler_of(PKSampler, t).p == 16 and sampler_of(lambda rows: RandomSampler(rows, 8), t).bs == 8
    for bad in (3, 'pk', lambda rows: None):
        with pytest.raises(ValueError, match='A `ReidSampler` is needed'): sampler_of(bad, t)
