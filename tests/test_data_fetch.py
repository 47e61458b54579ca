"Archives that mean harm, and what leads to a dataset"
import hashlib
import io
import os
import tarfile
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from reid_nb.core import ReidError
from reid_nb.data import fetch
from reid_nb.data.catalogue import read_dataset
from reid_nb.data.datasets import Spec
from reid_nb.data.fetch import ARCHIVES, Archive, fetch_dataset, sources, unpack
from server import DATA, says, serving, whole


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv('no_proxy', '127.0.0.1')
    with serving() as s: yield s


def left(folder): return sorted(o.name for o in folder.iterdir()) if folder.exists() else []


# ---- unpack

def zipped(path, files): # {name: bytes, or (ZipInfo attributes, bytes)}
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as z:
        for name, data in files.items():
            attrs, data = data if isinstance(data, tuple) else ({}, data)
            info = zipfile.ZipInfo('x')
            info.filename, info.compress_type = name, zipfile.ZIP_DEFLATED
            for k, v in attrs.items(): setattr(info, k, v)
            z.writestr(info, data)
    return path


def tarred(path, files, mode='w:gz'): # {name: bytes, or TarInfo attributes}
    with tarfile.open(path, mode) as t:
        for name, data in files.items():
            o = tarfile.TarInfo(name)
            if isinstance(data, dict):
                for k, v in data.items(): setattr(o, k, v)
                t.addfile(o)
            else:
                o.size = len(data)
                t.addfile(o, io.BytesIO(data))
    return path


def put(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def tree(folder): return {str(o.relative_to(folder)): o.read_bytes() for o in sorted(folder.rglob('*')) if o.is_file()}


GOOD = {'d/a/1.jpg': b'1' * 3000, 'd/ü b.txt': b'', './e/2.jpg': DATA}
UNPACKED = {'d/a/1.jpg': b'1' * 3000, 'd/ü b.txt': b'', 'e/2.jpg': DATA}

def archives(tmp_path, files):
    yield zipped(tmp_path / 'a.zip', files)
    for kind in ('', 'gz', 'bz2', 'xz'): yield tarred(tmp_path / f'a.tar{kind}', files, f'w:{kind}')


def test_good_archives(tmp_path):
    for i, a in enumerate(archives(tmp_path, GOOD)):
        assert tree(unpack(a, tmp_path / f'to{i}', progress=False)) == UNPACKED
    assert tree(unpack(zipped(tmp_path / 'windows.zip', {'d\\a\\1.jpg': b'1'}), tmp_path / 'w', progress=False)) == {'d/a/1.jpg': b'1'}
    assert tree(unpack(zipped(tmp_path / 'empty.zip', {}), tmp_path / 'nothing', progress=False)) == {}


def test_several_archives_and_a_loose_file(tmp_path):
    mat = put(tmp_path / 'x' / 'split.mat', b'MATLAB')
    made = unpack([zipped(tmp_path / 'a.zip', {'one/1': b'1'}), tarred(tmp_path / 'b.tgz', {'two/2': b'2'}), mat], tmp_path / 'to', progress=False)
    assert tree(made) == {'one/1': b'1', 'two/2': b'2', 'split.mat': b'MATLAB'}


@pytest.mark.skipif(os.name == 'nt', reason='modes')
def test_nothing_that_was_unpacked_can_be_run(tmp_path):
    a = zipped(tmp_path / 'a.zip', {'run.sh': (dict(external_attr=0o104777 << 16), b'#!/bin/sh')})
    b = tarred(tmp_path / 'b.tar', {'run2.sh': dict(mode=0o4777)})
    assert all(not o.stat().st_mode & 0o7111 for o in unpack([a, b], tmp_path / 'to', progress=False).iterdir())


EVIL = ['../x', 'a/../../x', 'a/../b', '/etc/x', '//host/x', 'C:/x', 'c:x', '..\\x', '\\x', 'a/..']

@pytest.mark.parametrize('name', EVIL)
@pytest.mark.parametrize('make', [zipped, tarred])
def test_no_way_out(tmp_path, name, make):
    evil = make(put(tmp_path / 'in/e', b''), {'fine': b'1', name: b'evil'})
    with pytest.raises(ReidError, match='outside its folder'): unpack(evil, tmp_path / 'out/to', progress=False)
    assert left(tmp_path) == ['in', 'out'] and left(tmp_path / 'out') == []


@pytest.mark.parametrize('attrs', [dict(type=tarfile.SYMTYPE, linkname='/etc'), dict(type=tarfile.SYMTYPE, linkname='fine'), dict(type=tarfile.LNKTYPE, linkname='fine'),
                                   dict(type=tarfile.CHRTYPE), dict(type=tarfile.FIFOTYPE), dict(type=tarfile.BLKTYPE)])
def test_no_links_and_devices_in_a_tar(tmp_path, attrs):
    with pytest.raises(ReidError, match='holds a (link|device)'): unpack(tarred(tmp_path / 'a.tgz', {'fine': b'1', 'l': attrs, 'l/x': b'2'}), tmp_path / 'to')
    assert left(tmp_path) == ['a.tgz']


def test_no_links_in_a_zip(tmp_path):
    a = zipped(tmp_path / 'a.zip', {'l': (dict(external_attr=0o120777 << 16, create_system=3), b'/etc')})
    with pytest.raises(ReidError, match='holds a link'): unpack(a, tmp_path / 'to', progress=False)


@pytest.mark.parametrize('files', [{'a': b'1', './a': b'2'}, {'a': b'1', 'a/b': b'2'}, {'a/b': b'1', 'a': b'2'}])
@pytest.mark.parametrize('make', [zipped, tarred])
def test_no_name_twice(tmp_path, files, make):
    with pytest.raises(ReidError, match='two entries of one name'): unpack(make(tmp_path / 'a', files), tmp_path / 'to', progress=False)


@pytest.mark.parametrize('make', [zipped, tarred])
def test_bombs(tmp_path, make):
    bomb = make(tmp_path / 'a', {str(i): bytes(300_000) for i in range(5)})
    with pytest.raises(ReidError, match='unpacks to more than 1,000,000'): unpack(bomb, tmp_path / 'to', max_bytes=1_000_000, progress=False)
    with pytest.raises(ReidError, match='more than 3 files'): unpack(bomb, tmp_path / 'to', max_files=3, progress=False)
    assert left(tmp_path) == ['a']
    assert len(tree(unpack(bomb, tmp_path / 'to', max_bytes=1_500_000, max_files=5, progress=False))) == 5


def test_the_usual_limit(tmp_path, monkeypatch):
    file, wrote = put(tmp_path / 'a', b'x' * 100), []
    def endless(room): wrote.append(room); return room + 1
    monkeypatch.setattr(fetch, '_members', lambda f: ([fetch._Member('a', 0, 'file', None)], 1))
    monkeypatch.setattr(fetch, '_write', lambda member, path, room: endless(room))
    with pytest.raises(ReidError, match='more than 1,000,002,000'): unpack(file, tmp_path / 'to', progress=False)
    assert wrote == [1_000_002_000]


def test_a_bomb_that_lies(tmp_path):
    lie = fetch._Member('a', 10, 'file', lambda: io.BytesIO(bytes(5_000_000)))
    assert fetch._write(lie, tmp_path / 'a', 1_000_000) > 1_000_000 and (tmp_path / 'a').stat().st_size <= 1_000_000


def test_less_than_was_said(tmp_path):
    with pytest.raises(EOFError, match='5 of 10 bytes'): fetch._write(fetch._Member('a', 10, 'file', lambda: io.BytesIO(b'12345')), tmp_path / 'a', 100)


def flipped(data, at): return data[:at] + bytes([data[at] ^ 255]) + data[at + 1:]

@pytest.mark.parametrize('kind', ['zip', 'tar', 'targz', 'tarbz2', 'tarxz'])
@pytest.mark.parametrize('damage', [lambda d: d[:len(d) // 2], lambda d: flipped(d, len(d) // 2), lambda d: d[:100], lambda d: b'', lambda d: b'no archive at all'])
def test_damage_is_said(tmp_path, kind, damage, request):
    a = next(o for o in archives(tmp_path, {'e/2.jpg': DATA, 'e/3.jpg': DATA[::-1]}) if o.name == f'a.{kind}')
    a.write_bytes(damage(a.read_bytes()))
    if kind == 'tar' and len(a.read_bytes()) > 90_000: return # a plain tar has no checksum of its files
    with pytest.raises(ReidError, match='damaged'): unpack(a, tmp_path / 'to', progress=False)
    assert not (tmp_path / 'to').exists() and not [o for o in left(tmp_path) if o.startswith('.')]


@pytest.mark.parametrize('data, reason', [(b'Rar!\x1a\x07\x01\x00', 'RAR'), (b"7z\xbc\xaf'\x1c", '7-Zip'), (b'\n<!doctype html>', 'web page')])
def test_what_is_no_archive(tmp_path, data, reason):
    with pytest.raises(ReidError, match=reason): unpack(put(tmp_path / 'a.zip', data), tmp_path / 'to')


def test_an_encrypted_zip(tmp_path):
    a = zipped(tmp_path / 'a.zip', {'a': b'1' * 50})
    raw = bytearray(a.read_bytes())
    for sig, at in ((b'PK\3\4', 6), (b'PK\1\2', 8)): raw[raw.index(sig) + at] |= 1
    a.write_bytes(raw)
    with pytest.raises(ReidError, match='encrypted'): unpack(a, tmp_path / 'to', progress=False)


def test_a_folder_that_is_there_is_left_alone(tmp_path):
    put(tmp_path / 'to/mine.txt', b'mine')
    with pytest.raises(FileExistsError): unpack(zipped(tmp_path / 'a.zip', {'a': b'1'}), tmp_path / 'to')
    assert tree(tmp_path / 'to') == {'mine.txt': b'mine'}


def test_missing_archives(tmp_path):
    with pytest.raises(FileNotFoundError): unpack(tmp_path / 'a.zip', tmp_path / 'to')
    assert left(tmp_path) == []


# ---- fetch_dataset

def png():
    buf = io.BytesIO()
    Image.new('RGB', (4, 8), 'teal').save(buf, 'PNG')
    return buf.getvalue()

SMALL = Spec(name='small', layout={o: o for o in ('train', 'query', 'gallery')}, pattern=r'^(?P<pid>\d+)_(?P<cam>\d+)', homes=('.', 'small-v1'),
             licence='CC0, to do as you like', ethics='Nobody is in it.', get='On the table.')
FILES = {f'small-v1/{s}/{pid}_{cam}.png': png() for s in SMALL.layout for pid in (1, 2) for cam in (1, 2)}

@pytest.fixture
def small(server, tmp_path):
    server.plan['/small.zip'] = [whole(zipped(tmp_path / 'small.zip', FILES).read_bytes())]
    return server.url + '/small.zip'


def test_from_an_address_to_a_table(server, small, tmp_path, capsys):
    folder = fetch_dataset(SMALL, tmp_path / 'data', small, accept_licence=True, progress=False)
    assert folder == tmp_path / 'data/small' and not list((tmp_path / 'data').rglob('*.zip'))
    assert len(read_dataset(SMALL, folder)) == 12
    n = len(server.log)
    assert fetch_dataset(SMALL, tmp_path / 'data', small) == folder and len(server.log) == n
    fetch_dataset(SMALL, tmp_path / 'kept', small, accept_licence=True, keep=True, progress=False)
    assert (tmp_path / 'kept/archives/small/small.zip').exists()


def test_terms_come_first_and_consent_is_needed(server, small, tmp_path, capsys):
    with pytest.raises(ReidError, match='accept_licence=True'): fetch_dataset(SMALL, tmp_path / 'data', small)
    out = capsys.readouterr().out
    assert all(o in out for o in (SMALL.licence, SMALL.ethics, SMALL.get)) and not server.log and not (tmp_path / 'data').exists()
    said = []
    server.plan['/small.zip'].insert(0, lambda h: (said.append(capsys.readouterr().out), says(404)(h)))
    with pytest.raises(ReidError, match='404'): fetch_dataset(SMALL, tmp_path / 'data', small, accept_licence=True)
    assert SMALL.licence in said[0]


def test_a_file_got_by_hand(tmp_path, monkeypatch):
    a = zipped(tmp_path / 'Small.zip', FILES)
    known = Archive('', md5=hashlib.md5(a.read_bytes()).hexdigest(), name='Small.zip')
    monkeypatch.setitem(ARCHIVES, 'small', (known,))
    with pytest.raises(ReidError, match='no plain address. On the table.'): fetch_dataset(SMALL, tmp_path / 'data', accept_licence=True)
    assert len(read_dataset(SMALL, fetch_dataset(SMALL, tmp_path / 'data', a, accept_licence=True, progress=False))) == 12
    assert a.exists()
    monkeypatch.setitem(ARCHIVES, 'small', (known._replace(md5='0' * 32),))
    with pytest.raises(ReidError, match='not the file that is known'): fetch_dataset(SMALL, tmp_path / 'other', str(a), accept_licence=True)
    with pytest.raises(FileNotFoundError): fetch_dataset(SMALL, tmp_path / 'other', tmp_path / 'no.zip', accept_licence=True)


def test_the_wrong_archive_gets_no_name(tmp_path):
    a = zipped(tmp_path / 'a.zip', {'small-v1/train/1_1.png': png()})
    with pytest.raises(ReidError, match='hold something else.*found 1 of 3') as e: fetch_dataset(SMALL, tmp_path / 'data', a, accept_licence=True, progress=False)
    assert '.unpacking' not in str(e.value) and left(tmp_path / 'data') == []


def test_a_damaged_folder_is_said(tmp_path):
    put(tmp_path / 'data/small/train/1_1.png', png())
    with pytest.raises(FileNotFoundError, match='query   <- missing'): fetch_dataset(SMALL, tmp_path / 'data', tmp_path / 'a.zip', accept_licence=True)


def test_a_broken_download_goes_on_at_the_next_call(server, small, tmp_path):
    full = server.plan['/small.zip'][0]
    data = (tmp_path / 'small.zip').read_bytes()
    server.plan['/small.zip'] = [whole(data, cut=500), whole(data, cut=0)]
    ask = lambda: fetch_dataset(SMALL, tmp_path / 'data', small, accept_licence=True, progress=False, tries=1, wait=0)
    with pytest.raises(ReidError, match='500 bytes are kept'): ask()
    server.plan['/small.zip'] = [full]
    assert ask().is_dir() and server.log[-1] == ('/small.zip', 'bytes=500-')


def test_names():
    with pytest.raises(ValueError, match="No dataset is called 'marekt'.*market1501"): fetch_dataset('marekt', Path('x'))


def test_every_known_address_is_plain_and_its_state_is_told():
    for o in (a for known in ARCHIVES.values() for a in known):
        assert o.url == '' or (o.url.startswith(('http://', 'https://')) and o.seen)
        assert all(v is None or len(v) == n for v, n in ((o.md5, 32), (o.sha256, 64)))
    assert {'viper', 'market1501'} <= set(sources().index) and sources()['get']['market1501']
