"Downloads from a server that cuts, lies and points elsewhere"
import errno
import hashlib
import shutil
from http.server import ThreadingHTTPServer
from types import SimpleNamespace
from urllib.request import Request

import pytest

from reid_nb import download as dl
from reid_nb.core import ReidError
from reid_nb.download import Archive, download
from server import DATA, SHA, Handler, chunked, part, says, serving, whole


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv('no_proxy', '127.0.0.1')
    with serving() as s: yield s


def get(server, tmp_path, *plan, tries=3, **known):
    server.plan['/a.bin'] = list(plan)
    return download(Archive(server.url + '/a.bin', **known), tmp_path / 'got', tries=tries, wait=0, timeout=5, progress=False)


def left(folder): return sorted(o.name for o in folder.iterdir()) if folder.exists() else []


@pytest.mark.parametrize('plan', [
    [whole()],
    [whole(cut=20_000), whole(cut=10_000), whole()],
    [whole(cut=20_000), whole(ranges=False)],
    [whole(cut=20_000), whole(tag='"2"')],                     # another version: If-Range makes the server start anew
    [whole(cut=20_000, tag=None), whole(tag=None)],            # nothing to know the version by but its length
    [whole(cut=20_000, tag='W/"1"'), whole(tag='W/"1"')],
    [whole(cut=20_000), part(10_000)],                         # another place than asked for
    [whole(cut=20_000), part(20_000, tag='"2"'), whole(tag='"2"')], # If-Range ignored
    [whole(cut=20_000), part(20_000, total=60_000), whole()],
    [whole(length='none')],
    [chunked(0)],
    [chunked(30_000), whole()],
    [says(503), whole()],
    [says(429, Retry_After='0'), says(500), whole(cut=1), says(503), whole()],
    [lambda h: h.connection.close(), whole()],
    [whole(cut=20_000), says(416), whole()],
])
def test_what_comes_is_what_was_meant(server, tmp_path, plan):
    path = get(server, tmp_path, *plan, size=len(DATA), sha256=SHA)
    assert path.read_bytes() == DATA and left(path.parent) == ['a.bin']


def test_only_the_rest_is_asked_for(server, tmp_path):
    get(server, tmp_path, whole(cut=20_000), whole(cut=5_000), whole())
    assert [o for _, o in server.log] == [None, 'bytes=20000-', 'bytes=25000-'] and server.tags == [None, '"1"', '"1"']


def test_a_later_call_goes_on(server, tmp_path):
    with pytest.raises(ReidError, match='2 attempts.*cut after 20,000 of 50,000.*20,000 bytes are kept'):
        get(server, tmp_path, whole(cut=20_000), whole(cut=0), tries=2)
    assert left(tmp_path / 'got') == ['a.bin.part', 'a.bin.part.json']
    server.log.clear()
    assert get(server, tmp_path, whole()).read_bytes() == DATA
    assert server.log == [('/a.bin', 'bytes=20000-')]


def test_a_complete_part_is_not_fetched_again(server, tmp_path):
    with pytest.raises(ReidError): get(server, tmp_path, whole(cut=20_000), whole(cut=0), tries=1)
    (tmp_path / 'got/a.bin.part').write_bytes(DATA)
    server.log.clear()
    assert get(server, tmp_path, whole(), sha256=SHA).read_bytes() == DATA
    assert server.log == [('/a.bin', 'bytes=50000-')]


def test_the_same_cut_again_and_again_ends(server, tmp_path):
    with pytest.raises(ReidError, match='3 attempts'): get(server, tmp_path, whole(cut=20_000, ranges=False))
    assert len(server.log) == 4


def test_a_part_of_another_address_is_not_used(server, tmp_path):
    server.plan['/old/a.bin'] = [whole(b'x' * 9_999, length=60_000)]
    with pytest.raises(ReidError): download(server.url + '/old/a.bin', tmp_path / 'got', tries=1, wait=0, progress=False)
    assert get(server, tmp_path, whole()).read_bytes() == DATA


@pytest.mark.parametrize('plan, known, reason', [
    (whole(DATA[:-1]), dict(size=50_000), '49,999 bytes instead of 50,000'),
    (whole(DATA + b'x'), dict(size=50_000), '50,001 bytes instead of 50,000'),
    (whole(DATA + b'x', length='none'), dict(size=50_000), 'more than 50,000 bytes'),
    (whole(DATA[:-1], length='none'), dict(size=50_000), '49,999 bytes instead of 50,000'),
    (whole(DATA[::-1]), dict(size=50_000, sha256=SHA), f'instead of {SHA}'),
    (whole(DATA[::-1]), dict(md5=hashlib.md5(DATA).hexdigest()), 'md5'),
    (whole(length=10_000), dict(sha256=SHA), 'sha256'),                     # the server says less than it has
    (whole(b'<html>log in</html>', Content_Type='text/html; charset=utf-8'), {}, 'sent a web page.*browser'),
    (says(404), dict(seen='Gone since 2021.'), '404 .*Gone since 2021'),
    (says(403), {}, '403'),
    (says(302, Location='file:///etc/passwd'), {}, '302|Only http'),
    (says(302, Location='ftp://127.0.0.1/a'), {}, 'Only http'),
    (says(302, Location='/a.bin'), {}, 'infinite loop'),
])
def test_what_can_not_be_right_is_refused(server, tmp_path, plan, known, reason):
    with pytest.raises(ReidError, match=reason): get(server, tmp_path, plan, **known)
    assert 'a.bin' not in left(tmp_path / 'got') and len(server.log) <= 11
    if '404' in reason: assert len(server.log) == 1


def test_a_server_that_promises_more_than_it_has(server, tmp_path):
    with pytest.raises(ReidError, match='cut after 50,000 of 90,000'): get(server, tmp_path, whole(length=90_000, ranges=False))


def test_a_redirection_is_followed_with_its_range(server, tmp_path):
    server.plan['/there'] = [whole(cut=20_000), whole()]
    assert get(server, tmp_path, says(301, Location='/there')).read_bytes() == DATA
    assert server.log == [('/a.bin', None), ('/there', None), ('/a.bin', 'bytes=20000-'), ('/there', 'bytes=20000-')]


def test_no_way_from_https_to_http():
    ask = Request('https://example.org/a')
    with pytest.raises(ReidError, match='never from https to http'): dl._Redirect().redirect_request(ask, None, 302, '', {}, 'http://example.org/a')
    assert dl._Redirect().redirect_request(ask, None, 302, '', {}, 'https://example.org/b').full_url == 'https://example.org/b'


def test_nobody_at_home(tmp_path):
    with ThreadingHTTPServer(('127.0.0.1', 0), Handler) as s: url = f'http://127.0.0.1:{s.server_port}/a.bin'
    with pytest.raises(ReidError, match='2 attempts'): download(url, tmp_path, tries=2, wait=0, progress=False)
    assert left(tmp_path) == []


@pytest.mark.parametrize('url', ['file:///etc/passwd', 'ftp://example.org/a', '/etc/passwd', 'data:,a'])
def test_other_kinds_of_address(tmp_path, url):
    with pytest.raises(ValueError, match='no address'): download(url, tmp_path)


def test_a_file_that_is_there(server, tmp_path):
    path = get(server, tmp_path, whole(), sha256=SHA)
    server.log.clear()
    assert get(server, tmp_path, whole(), sha256=SHA) == path and not server.log
    path.write_bytes(b'other')
    with pytest.raises(ReidError, match='is another file than'): get(server, tmp_path, whole(), sha256=SHA)
    assert path.read_bytes() == b'other'


def test_two_at_a_time(server, tmp_path):
    pytest.importorskip('fcntl')
    (tmp_path / 'got').mkdir()
    with dl._alone(tmp_path / 'got/a.bin.part'), pytest.raises(ReidError, match='Another process'): get(server, tmp_path, whole())


def test_a_full_disk(server, tmp_path, monkeypatch):
    with monkeypatch.context() as m, pytest.raises(ReidError, match='GB left'):
        m.setattr(shutil, 'disk_usage', lambda p: SimpleNamespace(free=10))
        get(server, tmp_path, whole())
    def full(*args): raise OSError(errno.ENOSPC, 'No space left on device')
    monkeypatch.setattr(dl, '_attempt', full)
    with pytest.raises(OSError, match='No space') as e: get(server, tmp_path, whole())
    assert e.value.errno == errno.ENOSPC


@pytest.mark.parametrize('url, name', [
    ('https://a.org/x/VIPeR.v1.0.zip?raw=1', 'VIPeR.v1.0.zip'), ('https://a.org/%2e%2e%2f%2e%2e%2fetc%2fpasswd', 'passwd'),
    ('https://a.org/..', 'archive'), ('https://a.org/', 'archive'), ('https://a.org/a%00b.zip', 'a_b.zip'), ('https://a.org/C:%5Ca.zip', 'C__a.zip')])
def test_the_name_of_a_file(url, name): assert dl._name(Archive(url)) == name
