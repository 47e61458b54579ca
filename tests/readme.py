"""README.md as nbs/index.ipynb has it: run `python tests/readme.py` after a change of that notebook

Markdown stays as it is, with links seen from the top folder. Code becomes a block, and what it printed or returned an indented one. A picture that code has drawn
becomes nbs/images/readme_*.png. `#| hide` leaves a cell out and `#| echo: false` its code."""
import base64
import posixpath
import re
from pathlib import Path

from fastcore.nbio import read_nb

ROOT = Path(__file__).resolve().parent.parent
NB = ROOT/'nbs/index.ipynb'


def from_top(text): # markdown with the links of nbs/ as they are seen from the top folder; code stays as it is
    def link(m): return m[1] + posixpath.normpath(f'nbs/{m[2]}')
    parts = re.split(r'(^```.*?^```$)', text, flags=re.S | re.M)
    return ''.join(o if i % 2 else re.sub(r'(\]\(|src=")(?![a-z]+:|[#/])([^)"\s]+)', link, o) for i, o in enumerate(parts))


def indented(text): return '\n'.join(f'    {o}'.rstrip() for o in text.rstrip().splitlines())


def shown(out, name): # what README says for one output, and the picture if it is one
    if out.output_type == 'stream': return indented(out.text), None
    data = {k: ''.join(v) for k, v in out.data.items()}
    if 'image/png' in data: return f'![](nbs/images/{name})', base64.b64decode(data['image/png'])
    if 'text/markdown' in data: return data['text/markdown'], None
    plain = data.get('text/plain', '')
    if not plain.startswith('<'): return indented(plain), None
    return '\n'.join(re.findall(r'<table.*?</table>', data.get('text/html', ''), re.S)), None


def readme(nb=NB):
    "The text of README.md, and the pictures it needs as name -> bytes"
    parts, pictures = ['<!-- Made from nbs/index.ipynb by tests/readme.py: edit the notebook -->'], {}
    for cell in read_nb(nb).cells:
        if cell.cell_type == 'markdown': parts.append(from_top(cell.source))
        if cell.cell_type != 'code' or 'hide' in cell.directives: continue
        code = re.sub(r'^#\|.*\n?', '', cell.source, flags=re.M).strip()
        if code and cell.directives.get('echo') != 'false': parts.append(f'```python\n{code}\n```')
        for out in cell.outputs:
            name = f'readme_{len(pictures) + 1}.png'
            text, picture = shown(out, name)
            if picture: pictures[name] = picture
            parts.append(text)
    return '\n\n'.join(filter(None, parts)) + '\n', pictures


def write_readme():
    text, pictures = readme()
    (ROOT/'README.md').write_text(text)
    images = ROOT/'nbs/images'
    for old in images.glob('readme_*.png'): old.unlink()
    if pictures: images.mkdir(exist_ok=True)
    for name, data in pictures.items(): (images/name).write_bytes(data)


if __name__ == '__main__': write_readme()
