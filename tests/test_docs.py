"The site without Quarto: nbdev makes its pages, pandoc reads them, and every link, anchor and picture leads somewhere"
import json
import posixpath
from html.parser import HTMLParser
from urllib.parse import unquote, urlsplit

import pypandoc
import pytest
import yaml
from conftest import ROOT, copy_project, project_files, run_python

NBS = [o.relative_to('nbs') for o in project_files() if o.suffix == '.ipynb' and o.parts[0] == 'nbs']

# Where the site and its sources would be published: links to them are looked up in the copy
SITE, REPO = 'https://site.invalid/reid_nb', 'https://repo.invalid/reid_nb'
URLS = f'\n[project.urls]\nDocumentation = "{SITE}/"\nRepository = "{REPO}"\n'

# What `nbdev-docs` does before it calls Quarto, which it would first try to install. It runs each cell that holds an import: such a cell should hold no more.
PROCESS = '''
import sys
from nbdev import doclinks, quarto, serve, serve_drv
make_page, bad = serve_drv.main, []
def try_page(o):
    try: make_page(o)
    except Exception as e: bad.append(str(e))
serve_drv.main = try_page
quarto.refresh_quarto_yml()
doclinks._build_modidx()
serve.proc_nbs(n_workers=0, force=True)
sys.exit('\\n\\n'.join(bad) or None)
'''

THEMES = 'cerulean cosmo cyborg darkly flatly journal litera lumen lux materia minty morph pulse quartz sandstone simplex sketchy slate solar ' \
         'spacelab superhero united vapor yeti zephyr default'.split() # Quarto says nothing about one that it does not know


class Page(HTMLParser):
    "One page of the site: its front matter, and the ids, links and pictures that its readers meet"
    def __init__(self, nb):
        super().__init__()
        first, *cells = json.loads(nb.read_text())['cells']
        self.front, self.ids, self.refs = yaml.safe_load(''.join(first['source']).strip('-\n ')), set(), []
        texts = [''.join(c['source']) for c in cells if c['cell_type'] == 'markdown']
        texts += [''.join(o['data']['text/markdown']) for c in cells for o in c.get('outputs', []) if 'text/markdown' in o.get('data', {})]
        self.feed(pypandoc.convert_text('\n\n'.join(texts), 'html', format='markdown', extra_args=['--fail-if-warnings', '--mathml']))

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if 'id' in attrs: self.ids.add(attrs['id'])
        if ref := attrs.get('href') or attrs.get('src'): self.refs.append(ref)


class Site:
    "The pages of a processed folder by their address, for example `retrieve/rank.html`"
    def __init__(self, proc):
        self.proc, self.pages, self.by_nb = proc, {}, {}
        for nb in sorted(proc.rglob('*.ipynb')):
            page, rel = Page(nb), nb.relative_to(proc)
            self.by_nb[str(rel)] = address = rel.with_name(page.front.get('output-file', f'{rel.stem}.html')).as_posix()
            self.pages[address] = page

    def leads_somewhere(self, page, ref):
        if ref.startswith(f'{REPO}/blob/main/'): return (self.proc.parent/urlsplit(ref).path.removeprefix('/reid_nb/blob/main/')).is_file()
        url = urlsplit(ref.removeprefix(SITE))
        if url.scheme: return True
        to = posixpath.normpath(posixpath.join('/', posixpath.dirname(page), unquote(url.path)))[1:] if url.path else page
        to = self.by_nb.get(to, to)
        if to not in self.pages: return not url.path.endswith(('.ipynb', '.html')) and (self.proc/to).is_file()
        return not url.fragment or url.fragment in self.pages[to].ids

    def dead(self): return [f'{name}: {ref}' for name, page in self.pages.items() for ref in page.refs if not self.leads_somewhere(name, ref)]


@pytest.fixture(scope='module')
def copy(tmp_path_factory):
    copy = copy_project(tmp_path_factory.mktemp('docs'))
    with (copy/'pyproject.toml').open('a') as f: f.write(URLS)
    run_python('-c', PROCESS, cwd=copy)
    return copy


@pytest.fixture(scope='module')
def site(copy): return Site(copy/'_proc')


def test_every_notebook_has_a_page_with_a_title(site):
    assert set(site.by_nb) == set(map(str, NBS))
    assert len(site.pages) == len(NBS), 'two notebooks have one address'
    assert not (o := [nb for nb, page in site.pages.items() if not page.front.get('title')]), f'no `# Title` in {o}'


def test_links_and_pictures_lead_somewhere(site): assert not (o := site.dead()), f'these lead nowhere: {o}'


def write_page(folder, text, name='a.ipynb'):
    cells = [dict(cell_type='raw', source=f'---\ntitle: {name}\n---'), dict(cell_type='markdown', source=text)]
    (folder/name).write_text(json.dumps(dict(cells=cells)))


@pytest.mark.parametrize('ref', ['b.ipynb', 'a.ipynb#nothing', '#nothing', 'a.html#nothing', '/c.html', 'p.png', '../LICENSE', f'{SITE}/c.html'])
def test_dead_links_are_found(tmp_path, ref):
    write_page(tmp_path, f'# Here\n[good](#here) [good](a.ipynb) [good]({SITE}/a.html#here) [bad]({ref})')
    assert Site(tmp_path).dead() == [f'a.html: {ref}']


@pytest.mark.parametrize('text', ['::: {.callout-note}\nno end', r'$\frac{1$', '[a][nothing]\n\n[a]: x\n[a]: y'])
def test_bad_markdown_is_found(tmp_path, text):
    write_page(tmp_path, text)
    with pytest.raises(RuntimeError, match='[Ww]arning|WARNING'): Site(tmp_path)


# The settings that only Quarto reads

def test_the_settings_of_the_site_agree(copy):
    assert (ROOT/'nbs/_quarto.yml').samefile(ROOT/'_quarto.yml')
    cfg = yaml.safe_load((ROOT/'_quarto.yml').read_text())
    assert cfg['execute'] == {'enabled': False}
    assert cfg['format']['html']['theme'] in THEMES
    assert all((ROOT/'nbs'/o).is_file() for o in [*cfg['metadata-files'], cfg['format']['html']['css']])
    ours, made = (yaml.safe_load((o/'nbs/nbdev.yml').read_text()) for o in (ROOT, copy))
    made['website'] |= {'site-url': '/', 'repo-url': ''}
    assert ours == made, 'nbs/nbdev.yml is not what nbdev makes from pyproject.toml'


def entries(contents): # the notebooks of a part of the sidebar; Quarto, too, takes those of a pattern in the order of their names
    if isinstance(contents, str): return sorted((ROOT/'nbs').glob(contents))
    return [o for item in contents for o in (entries(item['contents']) if isinstance(item, dict) else [ROOT/'nbs'/item])]


def test_the_sidebar_lists_every_notebook_once():
    listed = entries(yaml.safe_load((ROOT/'nbs/sidebar.yml').read_text())['website']['sidebar']['contents'])
    assert sorted(str(o.relative_to(ROOT/'nbs')) for o in listed) == sorted(map(str, NBS)), 'nbs/sidebar.yml and the notebooks differ'
