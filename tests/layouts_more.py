"The official layouts of the video datasets and of the sets used most today, in miniature: real folder and file names, real kinds of lists"
import io
import itertools
import json

import numpy as np
from PIL import Image
from scipy.io import savemat

_jpeg, _png = io.BytesIO(), io.BytesIO()
Image.new('RGB', (8, 16), (200, 30, 30)).save(_jpeg, 'JPEG')
Image.new('RGB', (8, 16), (30, 200, 30)).save(_png, 'PNG')
JPEG, PNG = _jpeg.getvalue(), _png.getvalue()


def put(path, data=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes((PNG if path.suffix == '.png' else JPEG) if data is None else data)
    return path


def put_all(home, names):
    for o in names: put(home / o)
    return home


def cells(*names): # a column of MATLAB cells
    return np.array([[o] for o in names], dtype=object)


# ---- tracklets

MARS_TRACKS = dict( # who, camera, number, frames
    train=[('0001', 1, 1, 3), ('0001', 2, 1, 2), ('0003', 1, 1, 12), ('0003', 6, 2, 1)],
    test=[('00-1', 3, 1, 2), ('0000', 1, 1, 2), ('0002', 1, 1, 3), ('0002', 1, 2, 2), ('0002', 4, 1, 4), ('0006', 2, 1, 2)])


def make_mars(home):
    for part, tracks in MARS_TRACKS.items():
        names, rows = [], []
        for who, cam, t, n in tracks:
            rows.append([len(names) + 1, len(names) + n, -1 if who == '00-1' else int(who), cam])
            names += [f'{who}C{cam}T{t:04}F{i + 1:03}.jpg' for i in range(n)]
        put_all(home, [f'bbox_{part}/{o[:4]}/{o}' for o in names])
        put(home / f'info/{part}_name.txt', ('\r\n'.join(names) + '\r\n').encode())
        savemat(home / f'info/tracks_{part}_info.mat', {f'track_{part}_info': np.array(rows, float)})
    savemat(home / 'info/query_IDX.mat', dict(query_IDX=np.array([[3., 6.]]))) # 0006 is asked for and isn't in the gallery
    return home


def make_ilidsvid(home):
    people = (1, 2, 4, 7, 119, 319)
    for cam, who, i in itertools.product((1, 2), people, (317, 318, 320)): put(home / f'i-LIDS-VID/sequences/cam{cam}/person{who:03}/cam{cam}_person{who:03}_{i:05}.png')
    for cam, who in itertools.product((1, 2), people): put(home / f'i-LIDS-VID/images/cam{cam}/person{who:03}/cam{cam}_person{who:03}.png')
    (home / 'train-test people splits').mkdir()
    splits = np.stack([np.random.default_rng(i).permutation(len(people)) + 1 for i in range(10)]).astype(float)
    savemat(home / 'train-test people splits/train_test_splits_ilidsvid.mat', dict(ls_set=splits))
    return home


def make_prid2011(home):
    for cam, last in dict(a=5, b=8).items():
        for who, i in itertools.product(range(1, last + 1), (1, 2, 11)): put(home / f'prid_2011/multi_shot/cam_{cam}/person_{who:04}/{i:04}.png')
        put(home / f'prid_2011/single_shot/cam_{cam}/person_0001.png')
    put(home / 'prid_2011/readme.txt', b'PRID')
    name = 'person_{:04}'.format
    splits = [dict(train=[name(1 + i % 2), name(3)], test=[name(2 - i % 2), name(4)]) for i in range(10)]
    put(home / 'splits_prid2011.json', json.dumps(splits).encode())
    return home


def make_dukemtmcvidreid(home):
    put_all(home, [f'train/0001/0003/0001_C6_F{i:04}_X{30823 + 12 * i}.jpg' for i in range(2, 13)]) # begins with number 2, as some do
    put_all(home, [f'train/0001/0004/0001_C7_F{i:04}_X{40000 + 12 * i}.jpg' for i in range(1, 4)])
    put_all(home, [f'train/0007/0010/0007C2F{i:04}X{500 + 12 * i}.jpg' for i in range(1, 3)])       # the older way
    put_all(home, [f'query/0005/0001/0005_C1_F{i:04}_X{100 + 12 * i}.jpg' for i in range(1, 3)])
    put_all(home, [f'gallery/0005/0002/0005_C2_F{i:04}_X{100 + 12 * i}.jpg' for i in range(1, 3)])
    put_all(home, [f'gallery/0702/0001/0702_C3_F{i:04}_D{100 + 12 * i}.jpg' for i in range(1, 3)])
    return home


# ---- pictures

def make_occluded_duke(home):
    put(home / 'train.list', b'0001_c2_f0046182.jpg\n')
    return put_all(home, ['bounding_box_train/0001_c2_f0046182.jpg', 'bounding_box_train/0001_c5_f0046302.jpg', 'query/0019_c1_f0051230.jpg',
                          'bounding_box_test/0019_c5_f0051350.jpg', 'bounding_box_test/0002_c1_f0044158.jpg', 'bounding_box_test/7103_c8_f0001234.jpg'])


def make_ltcc(home):
    for part, ids in {'cloth-change_id_train': '000\n', 'cloth-unchange_id_train': '', 'cloth-change_id_test': '148\n', 'cloth-unchange_id_test': '001\n'}.items():
        put(home / f'info/{part}.txt', ids.encode())
    return put_all(home, ['train/000_1_c10_001008.png', 'train/000_2_c1_001100.png', 'query/148_1_c3_014811.png', 'query/001_1_c12_015001.png',
                          'test/148_1_c2_015900.png', 'test/148_2_c2_023111.png', 'test/148_2_c3_023800.png', 'test/001_1_c4_015855.png'])


def make_prcc(home):
    for kind, part in itertools.product(('rgb', 'sketch'), ('train', 'val')):
        put_all(home, [f'{kind}/{part}/{who}/{cam}_cropped_rgb{i:03}.jpg' for who in ('092', '113') for cam in 'ABC' for i in ((1, 2) if part == 'train' else (6,))])
    for cam, who, i in itertools.product('ABC', ('001', '003'), (1, 10)): put(home / f'rgb/test/{cam}/{who}/cropped_rgb{i:03}.jpg')
    return home


def _veri_label(names, colours): # as in the official files, which say GB2312
    items = ''.join(f'<Item imageName="{o}" vehicleID="{o[:4]}" cameraID="{o[5:9]}" colorID="{c}" typeID="{c + 1}" />\r\n' for o, c in zip(names, colours))
    return f'<?xml version="1.0" encoding="gb2312"?>\r\n<TrainingImages Version="1.0">\r\n<Items number="{len(names)}">\r\n{items}</Items>\r\n</TrainingImages>'.encode()


def make_veri776(home):
    train, query = ['0001_c001_00016450_0.jpg', '0001_c020_00016460_0.jpg'], ['0002_c002_00030600_0.jpg']
    test = [*query, '0002_c008_00084510_0.jpg', '0776_c019_00034675_0.jpg']
    for part, names in dict(train=train, query=query, test=test).items():
        put_all(home, [f'image_{part}/{o}' for o in names])
        put(home / f'name_{part}.txt', '\n'.join(names).encode())
    put(home / 'train_label.xml', _veri_label(train, (2, 2)))
    put(home / 'test_label.xml', _veri_label(test, (1, 1, 3)))
    put(home / 'list_color.txt', b'1 yellow\n2 orange\n3 green\n')
    put(home / 'list_type.txt', b'1 sedan\n2 suv\n3 van\n4 hatchback\n')
    return home


def make_sysu_mm01(home):
    for cam, pid, i in itertools.product(range(1, 7), (1, 2, 6, 10, 333), range(1, 13)):
        if (cam, pid) != (1, 10): put(home / f'cam{cam}/{pid:04}/{i:04}.jpg') # not everybody passes every camera
    for part, ids in dict(train='1', val='2', test='6,10', available='1,2,6,10').items(): put(home / f'exp/{part}_id.txt', f'{ids}\n'.encode())
    return home


def sysu_permutations(file, seed=0): # the authors' `rand_perm_cam.mat`, with the sizes of `make_sysu_mm01`
    rng, box = np.random.default_rng(seed), np.empty((6, 1), object)
    for cam in range(1, 7):
        box[cam - 1, 0] = np.empty((333, 1), object)
        for pid in range(1, 334):
            there = pid in (1, 2, 6, 10, 333) and (cam, pid) != (1, 10)
            box[cam - 1, 0][pid - 1, 0] = np.stack([rng.permutation(12) + 1 for _ in range(10)]).astype(float) if there else np.empty((0, 0))
    savemat(file, dict(rand_perm_cam=box))
    return box


def pedes_entries():
    told = lambda split, pid, file, *say: dict(split=split, captions=list(say), file_path=file, processed_tokens=[o.split() for o in say], id=pid)
    return [told('train', 1, 'CUHK01/0363004.png', 'A man.', 'He wears blue jeans, "and" a coat.'), told('train', 1, 'cam_a/001_45.png', 'One.', 'Two.', 'Three.'),
            told('train', 11003, 'train_query/p11600_s14885.jpg', 'A woman in a gray shirt.', 'Brown pants.'), told('val', 11004, 'Market/0002_c1s1_000451_03.jpg', 'A.', 'B.'),
            told('test', 12004, 'CUHK03/299_4.jpg', 'A man with a red bag.', 'He looks left.'), told('test', 12005, 'test_query/p6955_s9221.jpg', 'Ein Mann, größer.', 'C.')]


def make_cuhk_pedes(home):
    put_all(home, [f'imgs/{o["file_path"]}' for o in pedes_entries()])
    put(home / 'reid_raw.json', json.dumps(pedes_entries(), ensure_ascii=False).encode('utf-8'))
    return home


def make_personx(home):
    return put_all(home, ['bounding_box_train/0004_c1s1_01.jpg', 'bounding_box_train/0004_c6s1_22.jpg', 'query/0001_c1s1_32.jpg', 'query/0001_c5s1_02.jpg',
                          'bounding_box_test/0001_c2s1_03.jpg', 'bounding_box_test/0002_c3s1_36.jpg'])


def make_personx_v1(home):
    for b in range(1, 7): put_all(home, [f'{b}/bounding_box_train/0004_c{b}s1_01.jpg', f'{b}/query/0001_c{b}s1_32.jpg', f'{b}/bounding_box_test/0001_c{b}s1_02.jpg'])
    put(home / 'readme.txt', b'PersonX')
    return home


def make_randperson(home):
    return put_all(home, [f'randperson_subset/{o}' for o in ('000000_s00_c00_f000264.jpg', '000000_s00_c01_f001032.jpg', '000000_s10_c03_f001632.jpg', '007999_s05_c00_f000001.jpg')])


PA100K_ATTRIBUTES = ('Female AgeOver60 Age18-60 AgeLess18 Front Side Back Hat Glasses HandBag ShoulderBag Backpack HoldObjectsInFront ShortSleeve LongSleeve UpperStride UpperLogo UpperPlaid '
                     'UpperSplice LowerStripe LowerPattern LongCoat Trousers Shorts Skirt&Dress boots').split()


def make_pa100k(home, images='release_data/release_data', labels='annotation.mat'):
    mat = dict(attributes=cells(*PA100K_ATTRIBUTES))
    for i, (part, n) in enumerate(dict(train=8, val=1, test=2).items()):
        files = [f'{1000 * i + k + 1:06}.jpg' for k in range(n)]
        put_all(home, [f'{images}/{o}' for o in files])
        mat |= {f'{part}_images_name': cells(*files), f'{part}_label': (np.arange(26 * n).reshape(n, 26) % (i + 2) == 0).astype(np.uint8)}
    (home / labels).parent.mkdir(parents=True, exist_ok=True)
    savemat(home / labels, mat)
    return home


UP, DOWN = 'black white red purple yellow gray blue green'.split(), 'black white pink purple yellow gray blue green brown'.split()
MARKET_27 = 'gender hair up down clothes hat backpack bag handbag age'.split() + ['up' + o for o in UP] + ['down' + o for o in DOWN]


def market_attribute_mat(file, people): # {split: {pid: {attribute: number}}}; all others are 1
    def struct(rows): return {k: np.array([str(f'{pid:04}') if k == 'image_index' else o.get(k, 1) for pid, o in rows.items()],
                                          object if k == 'image_index' else np.uint8)[None] for k in [*MARKET_27, 'image_index']}
    savemat(file, dict(market_attribute={split: struct(rows) for split, rows in people.items()}))
    return file


def counted(train=None, val=None, query=None, gallery=None, total=None, what='images'): # (ids, images, cameras) each, as official counts
    told = dict(train=train, val=val, query=query, gallery=gallery, total=total)
    return {k: dict(zip(('ids', what, 'cameras'), v)) for k, v in told.items() if v}


VIDEO = dict( # name: (maker, what the miniature holds)
    mars=(make_mars, counted((2, 4, 3), None, (2, 2, 2), (2, 4, 3), what='tracklets')),
    ilidsvid=(make_ilidsvid, counted((3, 6, 2), None, (3, 3, 1), (3, 3, 1), what='tracklets')),
    prid2011=(make_prid2011, counted((2, 4, 2), None, (2, 2, 1), (2, 2, 1), what='tracklets')),
    dukemtmcvidreid=(make_dukemtmcvidreid, counted((2, 3, 3), None, (1, 1, 1), (2, 2, 2), what='tracklets')))

MORE = dict(
    occluded_duke=(make_occluded_duke, counted((1, 2, 2), None, (1, 1, 1), (3, 3, 3))),
    ltcc=(make_ltcc, counted((1, 2, 2), None, (2, 2, 2), (2, 4, 3))),
    prcc=(make_prcc, counted((2, 12, 3), (2, 6, 3), (2, 8, 2), (2, 4, 1))),
    veri776=(make_veri776, counted((1, 2, 2), None, (1, 1, 1), (2, 3, 3))),
    sysu_mm01=(make_sysu_mm01, counted((1, 72, 6), (1, 72, 6), (2, 48, 2), (2, 7, 4))),
    cuhk_pedes=(make_cuhk_pedes, counted((2, 3, 0), (1, 1, 0), None, (2, 2, 0))),
    personx=(make_personx, counted((1, 2, 2), None, (1, 2, 2), (2, 2, 2))),
    personx_v1=(make_personx_v1, counted((1, 6, 6), None, (1, 6, 6), (1, 6, 6))),
    randperson=(make_randperson, counted((2, 4, 4))),
    pa100k=(make_pa100k, counted((8, 8, 0), (1, 1, 0), None, (2, 2, 0))))
