"""The official layouts of image datasets: real folders, file names and lists, in any number of people.

Each function makes one dataset below `root`, of the official size unless told otherwise, and returns the folder that holds the layout. Files are empty: no
reader opens a picture.
"""
import json

import numpy as np


def touch(root, names):
    for folder in {(root / o).parent for o in names}: folder.mkdir(parents=True, exist_ok=True)
    for o in names: (root / o).touch()
    return root


def dukemtmc(root, n=3):
    "train: n people; query: n others; gallery: those and one whom nobody asks for; 8 cameras"
    home, cams = root / 'DukeMTMC-reID', range(1, 9)
    touch(home, [f'bounding_box_train/{2 * o + 1:04}_c{c}_f{46182 + o:07}.jpg' for o in range(n) for c in cams])
    touch(home, [f'query/{2 * o + 2:04}_c{c}_f{44158 + o:07}.jpg' for o in range(n) for c in cams])
    return touch(home, [f'bounding_box_test/{2 * o + 2:04}_c{c}_f{85094 + o:07}.jpg' for o in range(n + 1) for c in cams])


def msmt17(root, version=1, train=3, test=4):
    "15 cameras; both halves count people from 0; a picture of `val` for every one of `train`"
    home = root / f'MSMT17_V{version}'
    seen, unseen = ('train', 'test') if version == 1 else ('mask_train_v2', 'mask_test_v2')
    for split, folder, n in (('train', seen, train), ('val', seen, train), ('query', unseen, test), ('gallery', unseen, test)):
        names = [f'{o:04}/{o:04}_{cam:03}_{cam:02}_0303{when}_{"train val query gallery".split().index(split):04}_{cam % 3}{"_ex" * (cam == 15)}.jpg'
                 for o in range(n) for cam, when in ((1, 'morning'), (8, 'noon'), (15, 'afternoon'))]
        touch(home / folder, names)
        (home / f'list_{split}.txt').write_text(''.join(f'{o} {int(o[:4])}\n' for o in names))
    return home


def viper(root, n=632):
    "numbers with gaps, up to 873 in the original"
    pids = [o + (o > 246) * 53 + (o > 400) * 189 for o in range(n)]
    touch(root / 'VIPeR', [f'cam_a/{o:03}_{45 * (o % 3)}.bmp' for o in pids])
    return touch(root / 'VIPeR', [f'cam_b/{o:03}_{90 + 45 * (o % 3)}.bmp' for o in pids])


def cuhk01(root, n=971):
    return touch(root / 'cuhk01', [f'campus/{o:04}{k:03}.png' for o in range(1, n + 1) for k in range(1, 5)])


def cuhk02(root, sizes=(971, 306, 107, 193, 239)):
    return touch(root / 'Dataset', [f'P{p}/cam{cam}/{o:03}_{k + 2 * cam - 2}.png' for p, n in enumerate(sizes, 1) for cam in (1, 2) for o in range(1, n + 1) for k in (1, 2)])


def sensereid(root, asked=522, others=1195):
    "1,040 pictures ask, 3,388 are searched: two per person and camera, except for a few"
    touch(root / 'SenseReID', [f'test_probe/{o:05}_{k}.jpg' for k in (0, 1) for o in range(asked)][:1040])
    return touch(root / 'SenseReID', [f'test_gallery/{o:05}_{k}.jpg' for k in (2, 3) for o in range(asked + others)][:3388])


def ilids(root, n=119):
    "four pictures per person"
    return touch(root / 'i-LIDS_Pedestrian', [f'Persons/{o:04}{k:03}.jpg' for o in range(1, n + 1) for k in range(1, 5)])


def prid(root, both=200, a=385, b=749):
    home = root / 'prid_2011' / 'single_shot'
    touch(home, [f'cam_a/person_{o:04}.png' for o in range(1, both + 1)] + [f'cam_a/person_{o:04}.png' for o in range(201, a + 1)])
    return touch(home, [f'cam_b/person_{o:04}.png' for o in range(1, both + 1)] + [f'cam_b/person_{o:04}.png' for o in range(201, b + 1)])


def grid(root, n=250, distractors=775, seed=0):
    "ten splits of half of the people, as nested cells of a MATLAB file"
    from scipy.io import savemat
    home = touch(root / 'underground_reid', [f'probe/{o:04}_{o % 4 + 1}_25004_107_32_106_{221 + o}.jpeg' for o in range(1, n + 1)])
    touch(home, [f'gallery/{o:04}_{o % 4 + 5}_25023_116_134_128_{330 + o}.jpeg' for o in range(1, n + 1)])
    touch(home, [f'gallery/0000_{o % 8 + 1}_25698_{o}_16_87_246.jpeg' for o in range(distractors)])
    cells, rng = np.empty((1, 10), object), np.random.default_rng(seed)
    for i in range(10): cells[0, i] = dict(first=0, second=0, third=np.sort(rng.permutation(n)[:n // 2] + 1)[None])
    savemat(home / 'features_and_partitions.mat', dict(trainIdxAll=cells))
    return home


def university1652(root, train=3, query=3, gallery=5):
    home = root / 'University-Release'
    touch(home, [f'train/{view}/{839 + o:04}/image-{k:02}.jpeg' for view in ('drone', 'satellite', 'street', 'google') for o in range(train) for k in (1, 2)])
    for view, n in (('drone', 3), ('satellite', 1), ('street', 2)):
        touch(home, [f'test/query_{view}/{o:04}/image-{k:02}.jpeg' for o in range(1, query + 1) for k in range(1, n + 1)])
        touch(home, [f'test/gallery_{view}/{o:04}/image-{k:02}.jpeg' for o in range(1, gallery + 1) for k in range(1, n + 1)])
    return home


def cuhksysu(root, n=4):
    return touch(root / 'cuhksysu', [f'cropped_images/p{11422 + o}_s{16929 + k}_{k}.jpg' for o in range(n) for k in (1, 2)])


# ---- CUHK03: what is in the MATLAB files, and the files

def cuhk03_people(sizes=(3, 2, 1, 1, 1)):
    "{(pair, person): which of the ten cells hold a picture}: all for the first, one view only for the last of the first pair, else some"
    people = {(pair, person): [o for o in range(1, 11) if (o + person) % 4] for pair, n in enumerate(sizes, 1) for person in range(1, n + 1)}
    people[1, 1], people[1, sizes[0]] = list(range(1, 11)), [1, 2, 3]
    return people


def cuhk03_image(kind, pair, person, i):
    "a picture that tells which one it is, higher than wide"
    image = np.zeros((12, 5, 3), np.uint8)
    image[0, 0] = kind == 'labeled', pair, person
    image[-1, -1] = i, 255, 0
    return image


def cuhk03_release(root, sizes=(3, 2, 1, 1, 1)):
    "cuhk-03.mat, as MATLAB 7.3 writes it: cells are references to datasets with their axes reversed, an empty cell is two zeros"
    import h5py
    home, people = root / 'cuhk03', cuhk03_people(sizes)
    (home / 'cuhk03_release').mkdir(parents=True)
    with h5py.File(home / 'cuhk03_release' / 'cuhk-03.mat', 'w') as f:
        refs, n = f.create_group('#refs#'), iter(range(10**6))
        ref = lambda array: refs.create_dataset(str(next(n)), data=array).ref
        for kind in ('detected', 'labeled'):
            pairs = []
            for pair, size in enumerate(sizes, 1):
                cells = np.empty((size, 10), h5py.ref_dtype)
                for person in range(1, size + 1):
                    for i in range(1, 11):
                        there = i in people[pair, person]
                        cells[person - 1, i - 1] = ref(cuhk03_image(kind, pair, person, i).T if there else np.zeros(2, np.uint64))
                pairs.append(ref(cells.T))
            f.create_dataset(kind, data=np.array([pairs], h5py.ref_dtype), dtype=h5py.ref_dtype)
        tests = [ref(np.array([[1, 1 + k % sizes[0]], [2, 1]], float).T) for k in range(20)]
        f.create_dataset('testsets', data=np.array([tests], h5py.ref_dtype), dtype=h5py.ref_dtype)
    cuhk03_config(home, people)
    return home


def cuhk03_config(home, people, kinds=('detected', 'labeled')):
    "the new protocol's lists: pairs 1 and 3 to 5 train; of pair 2, one picture per view asks"
    from scipy.io import savemat
    names, labels = [], []
    for label, ((pair, person), cells) in enumerate(people.items(), 1):
        names += [f'{pair}_{person:03}_{1 if i <= 5 else 2}_{i:02}.png' for i in cells]
        labels += [label] * len(cells)
    test = [i for i, o in enumerate(names, 1) if o.startswith('2_')]
    asks = [next(i for i in test if names[i - 1].startswith(f'2_{person:03}_{view}')) for person in sorted({o for p, o in people if p == 2}) for view in (1, 2)]
    cell = np.empty((len(names), 1), object)
    cell[:, 0] = names
    for kind in kinds:
        savemat(home / f'cuhk03_new_protocol_config_{kind}.mat', dict(
            filelist=cell, labels=np.array(labels)[:, None], train_idx=np.array([i for i in range(1, len(names) + 1) if i not in test])[:, None],
            query_idx=np.array(asks)[:, None], gallery_idx=np.array([i for i in test if i not in asks])[:, None]))


def cuhk03_extracted(root, sizes=(3, 2, 1, 1, 1)):
    "what extraction leaves behind, without the MATLAB file of pictures"
    home, people = root / 'cuhk03', cuhk03_people(sizes)
    names = [f'{pair}_{person:03}_{1 if i <= 5 else 2}_{i:02}.png' for (pair, person), cells in people.items() for i in cells]
    for kind in ('detected', 'labeled'): touch(home / f'images_{kind}', names)
    (home / 'testsets_classic.json').write_text(json.dumps([[[1, 1 + k % sizes[0]], [2, 1]] for k in range(20)]))
    cuhk03_config(home, people)
    return home
