"The table of published weights, a server that cuts, lies and shows pages, and models that are shared"
import hashlib
import json
import re
from pathlib import Path

import pytest
import torch

from reid_nb.core import ReidError
from reid_nb.models import published as pub
from reid_nb.models.families import NETWORKS
from reid_nb.models.hub import pull_from_hub, push_to_hub, save_model
from reid_nb.models.osnet import osnet_x0_25, osnet_x0_5
from reid_nb.models.published import fetch_weights, imagenet_name, published, weights_file
from reid_nb.models.zoo import create_model, list_models
from server import says, serving, whole

NAME = 'osnet_x0_25_market1501'

@pytest.fixture
def server(monkeypatch, tmp_path):
    monkeypatch.setenv('no_proxy', '127.0.0.1')
    monkeypatch.setenv('REID_NB_WEIGHTS', str(tmp_path / 'w'))
    with serving() as s: yield s

@pytest.fixture(scope='module')
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp('w') / 'a.pth'
    torch.manual_seed(0)
    torch.save(osnet_x0_25(751).state_dict(), path)
    return path.read_bytes()

def page(html): return whole(html.encode(), Content_Type='text/html; charset=utf-8')

def get(server, *plan, name=NAME, **kw):
    server.plan['/a.pth'] = list(plan)
    return fetch_weights(name, url=server.url + '/a.pth', progress=False, wait=0, tries=2, **kw)

def left(tmp_path): return sorted(o.name for o in (tmp_path / 'w').iterdir()) if (tmp_path / 'w').exists() else []

# ---- the table

def test_the_table():
    t = published()
    assert set(t.model) <= set(NETWORKS) and t.url.str.startswith(('https://', 'http://')).all()
    drive = t.url[t.url.str.contains('google')].str.extract(r'id=([\w-]+)&')[0]
    assert drive.str.len().eq(33).all() and drive.nunique() == 53 + 13
    reid = t[t.trained != 'imagenet']
    assert reid.rank1.between(20, 100).all() and (reid['mAP'] < reid.rank1).all() and reid.licence.str.contains('research').all()
    assert t.loc['osnet_x1_0_market1501', ['rank1', 'mAP', 'transforms', 'metric']].tolist() == [94.2, 82.6, 'flip', 'euclidean']
    assert t.loc['hacnn_msmt17', 'size'] == '160x64' and t.loc['osnet_ain_x1_0_ms_d_c', 'metric'] == 'cosine'
    assert all(re.fullmatch('[0-9a-f]{64}', o) for o in t.sha256 if o)

def test_every_network_has_imagenet_weights_but_three():
    assert {k for k in NETWORKS if imagenet_name(k) is None} == {'hacnn', 'mudeep'}

def test_figures_of_a_network():
    t = list_models('osnet_x1_0')
    assert (t.rank1.item(), t['mAP'].item(), t.from_msmt17_rank1.item()) == (94.2, 82.6, 66.6) and 'msmt17_all' in t.weights.item() and 'imagenet' in t.weights.item()

# ---- fetching

@pytest.mark.parametrize('cuts', [(), (20_000,), (100_000, 300_000)])
def test_what_comes_is_kept_for_create_model(server, tmp_path, data, cuts):
    path = get(server, *[whole(data, cut=n) for n in cuts], whole(data))
    assert path.read_bytes() == data and left(tmp_path) == [f'{NAME}.pth'] and weights_file(NAME) == path
    model = create_model('osnet_x0_25', 9, weights=NAME)
    assert torch.equal(model.conv1.conv.weight, torch.load(path)['conv1.conv.weight'])
    n = len(server.log)
    assert fetch_weights(NAME) == path and len(server.log) == n

def test_a_later_call_goes_on(server, tmp_path, data):
    with pytest.raises(ReidError, match='20,000 bytes are kept.*browser'): get(server, whole(data, cut=20_000), whole(data, cut=0))
    server.log.clear()
    assert get(server, whole(data)).read_bytes() == data and server.log == [('/a.pth', 'bytes=20000-')] and left(tmp_path) == [f'{NAME}.pth']

FORM = '<html><form id="f" action="{}" method="get"><input type="hidden" name="id" value="x y"><input type=submit><input type="hidden" name="confirm" value="t"></form></html>'

def test_the_form_of_a_drive(server, tmp_path, data):
    server.plan['/b?id=x+y&confirm=t'] = [whole(data)]
    assert get(server, page(FORM.format('/b'))).read_bytes() == data and left(tmp_path) == [f'{NAME}.pth']

@pytest.mark.parametrize('html', ['<html>Sign in</html>', '<form action="/c"></form>', FORM.format('http://evil.example/b'), FORM.format('file:///etc/passwd'), '<form action=', FORM.format('/c')])
def test_a_page_is_never_taken_for_weights(server, tmp_path, html):
    server.plan['/c?id=x+y&confirm=t'] = [page('again')]
    with pytest.raises(ReidError, match='web page'): get(server, page(html))
    assert left(tmp_path) == [] and all('evil' not in o for o, _ in server.log)

@pytest.mark.parametrize('lie, words', [
    (b'<html>quota exceeded</html>', 'web page'), (b'x' * 5000, 'no checkpoint'), (None, 'no checkpoint')])
def test_lies_are_deleted(server, tmp_path, data, lie, words): # sent as if they were a file
    with pytest.raises(ReidError, match=words): get(server, whole(data[:-1000] if lie is None else lie))
    assert left(tmp_path) == []

def test_weights_of_another_network(server, tmp_path, data):
    with pytest.raises(ReidError, match='tensors of osnet_x1_0: it is another file.*deleted'): get(server, whole(data), name='osnet_x1_0_market1501')
    assert left(tmp_path) == []

def test_hashes(server, tmp_path, data):
    sha = hashlib.sha256(data).hexdigest()
    assert get(server, whole(data), sha256=sha).exists()
    with pytest.raises(ReidError, match='6f57607f'): get(server, whole(data), name='osnet_x0_25_msmt17')
    server.plan['/a-00000000.pth'] = [whole(data)]
    with pytest.raises(ReidError, match='begins with'): fetch_weights('osnet_x0_25_msmt17_all', url=server.url + '/a-00000000.pth', progress=False)
    server.plan[f'/a-{sha[:8]}.pth'] = [whole(data)]
    assert fetch_weights('osnet_x0_25_msmt17_all', url=f'{server.url}/a-{sha[:8]}.pth', progress=False).exists()

def test_gone(server, tmp_path):
    with pytest.raises(ReidError, match='404.*Open .* in a browser'): get(server, says(404))
    assert left(tmp_path) == []

def test_a_file_that_you_have(server, tmp_path, data):
    (tmp_path / 'mine.pth').write_bytes(data)
    assert fetch_weights(NAME, url=tmp_path / 'mine.pth').name == f'{NAME}.pth' and (tmp_path / 'mine.pth').exists()
    assert fetch_weights('mine', url=tmp_path / 'mine.pth').exists() and create_model('osnet_x0_25', 3, weights='mine')
    assert create_model('osnet_x0_25', 3, weights=tmp_path / 'mine.pth') and not server.log
    (tmp_path / 'bad.pth').write_bytes(data[:-1000])
    with pytest.raises(ReidError, match='bad.pth'): fetch_weights('osnet_x0_25_msmt17_all', url=tmp_path / 'bad.pth')
    assert (tmp_path / 'bad.pth').exists()
    with pytest.raises(FileNotFoundError): fetch_weights(NAME, url=tmp_path / 'no.pth')

def test_names_that_are_none(server, tmp_path):
    with pytest.raises(ValueError, match='osnet_x1_0_market1501'): fetch_weights('osnet_x1_0_market')
    with pytest.raises(ValueError, match='No published'): fetch_weights('../evil', url='https://example.org/a')
    with pytest.raises(FileNotFoundError, match=r"fetch_weights\('osnet_x1_0_market1501'\)"): create_model('osnet_x1_0', 3, weights='osnet_x1_0_market1501')
    with pytest.raises(FileNotFoundError, match='nearest: osnet'): create_model('osnet_x1_0', 3, weights='osnet_x1_0_markt')

def test_imagenet_goes_through_the_table(server, tmp_path, data, monkeypatch):
    server.plan['/i.pth'] = [whole(data)]
    monkeypatch.setattr(pub, '_table', lambda t=pub._table().copy(): t)
    pub._table().loc['osnet_x0_25_imagenet', 'url'] = server.url + '/i.pth'
    model = create_model('osnet_x0_25', 5, weights='imagenet')
    assert left(tmp_path) == ['osnet_x0_25_imagenet.pth'] and torch.equal(model.fc[0].weight, torch.load(tmp_path / 'w/osnet_x0_25_imagenet.pth')['fc.0.weight'])

# ---- shared models

def test_there_and_back(tmp_path):
    model = create_model('timm/resnet10t', 7, pool='gem', size=(64, 32)).eval()
    folder = save_model(model, tmp_path / 'm', 'timm/resnet10t', (64, 32), metrics=dict(rank1=.5, mAP=.25), options=dict(pool='gem'), data='synthetic people', notes='Mind the gap.')
    assert sorted(o.name for o in folder.iterdir()) == ['README.md', 'config.json', 'model.safetensors']
    again, config = pull_from_hub(folder)
    x = torch.rand(2, 3, 64, 32)
    with torch.no_grad(): assert torch.equal(again(x), model(x))
    assert not again.training and config['metrics'] == {'rank1': .5, 'mAP': .25} and config['size'] == [64, 32]
    card = (folder / 'README.md').read_text()
    assert all(o in card for o in ('| rank1 | 0.5000 |', '7 identities (synthetic people)', '64x32', 'Mind the gap.', 'library_name: reid_nb')) and card.startswith('---\n')

def test_the_name_must_make_the_network(tmp_path):
    with pytest.raises(ReidError, match='makes another network'): save_model(osnet_x0_25(5), tmp_path / 'm', 'osnet_x0_5')
    assert not (tmp_path / 'm').exists()

@pytest.mark.parametrize('config', ['{', '[]', '{"name": "osnet_x0_5"}', '{"name": "osnet_x0_5", "n_classes": 5, "size": 3}'])
def test_folders_that_hold_no_model(tmp_path, config):
    save_model(osnet_x0_5(5), tmp_path / 'm', 'osnet_x0_5')
    (tmp_path / 'm/config.json').write_text(config)
    with pytest.raises(ReidError, match='no model of reid_nb'): pull_from_hub(tmp_path / 'm')

def test_a_configuration_can_fetch_nothing(tmp_path):
    save_model(create_model('resnet10t', 3), tmp_path / 'm', 'resnet10t')
    c = json.loads((tmp_path / 'm/config.json').read_text())
    (tmp_path / 'm/config.json').write_text(json.dumps(c | dict(options=dict(pretrained=True))))
    with pytest.raises(ReidError, match='pretrained'): pull_from_hub(tmp_path / 'm')
    (tmp_path / 'm/config.json').write_text(json.dumps(c | dict(n_classes=4)))
    with pytest.raises(ReidError, match='another shape'): pull_from_hub(tmp_path / 'm')

def test_pushing_uploads_that_folder(monkeypatch):
    import huggingface_hub
    seen = {}
    class Api:
        def __init__(self, token=None): seen['token'] = token
        def create_repo(self, repo, private, exist_ok): seen.update(repo=repo, private=private)
        def upload_folder(self, repo_id, folder_path, commit_message):
            seen['files'] = sorted(o.name for o in Path(folder_path).iterdir())
            seen['card'] = (Path(folder_path) / 'README.md').read_text()
            return 'https://hub/' + repo_id
    monkeypatch.setattr(huggingface_hub, 'HfApi', Api)
    assert push_to_hub(osnet_x0_25(5), 'me/people', 'osnet_x0_25', token='t') == 'https://hub/me/people'
    assert seen['private'] and seen['files'] == ['README.md', 'config.json', 'model.safetensors'] and "pull_from_hub('me/people')" in seen['card']
    def refuse(*a, **k): raise OSError('no route to host')
    monkeypatch.setattr(Api, 'create_repo', refuse)
    with pytest.raises(ReidError, match='me/people could not be written.*no route'): push_to_hub(osnet_x0_25(5), 'me/people', 'osnet_x0_25')

def test_nothing_on_the_hub(tmp_path):
    with pytest.raises(ReidError, match='nobody/nothing is no folder here'): pull_from_hub('nobody/nothing', local_files_only=True, cache_dir=tmp_path)


def test_published_hacnn_reads_regions_as_it_was_trained(tmp_path, monkeypatch):
    monkeypatch.setenv('REID_NB_WEIGHTS', str(tmp_path))
    torch.save(create_model('hacnn', 751).state_dict(), tmp_path / 'hacnn_market1501.pth')
    assert create_model('hacnn', 5, weights='hacnn_market1501').align_corners
    assert not create_model('hacnn', 5, weights='hacnn_market1501', align_corners=False).align_corners
    assert not create_model('hacnn', 5, weights=tmp_path / 'hacnn_market1501.pth').align_corners
