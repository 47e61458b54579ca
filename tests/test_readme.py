"README.md is what nbs/index.ipynb says, promises two commands, and its code runs as it is written"
import re

from conftest import ROOT, run_python
from readme import from_top, readme

COMMANDS = ['python -m pip install -e ".[lab]" && reid_nb quickstart', 'python -m pip install -e ".[dev]" && pytest']


# What a reader has beside the code: `photos`, a folder for each person, with the camera in the file's name; a video and its boxes; features; a checkpoint
SCENE = """
from pathlib import Path
from reid_nb.data.synth import synth_clip, synth_people
for i, o in enumerate(synth_people('drawn', n_ids=16, n_cams=3, per_cam=3, distractors=0, junk=0).itertuples()):
    Path(f'photos/visitor {o.pid:02}').mkdir(parents=True, exist_ok=True)
    Path(o.path).rename(f'photos/visitor {o.pid:02}/cam{o.cam} {i}.jpg')
synth_clip('video.mp4', n_people=10, n_frames=80).rename('boxes.txt')
import numpy as np
rng, pid = np.random.default_rng(0), np.arange(600) % 60
feat = rng.normal(size=(60, 128))[pid] + 2.2 * rng.normal(size=(600, 128))
np.savez('features.npz', **{f'{k}_{o}': v[i] for k, i in (('q', slice(240)), ('g', slice(240, None))) for o, v in dict(feat=feat, pid=pid, cam=rng.integers(0, 4, 600)).items()})
import torch
from reid_nb.models.osnet import osnet_x0_25
torch.save(dict(state_dict=osnet_x0_25(751).state_dict(), epoch=250), 'checkpoint.pth')
"""


def blocks(lang): return re.findall(rf'^```{lang}\n(.*?)\n```$', (ROOT/'README.md').read_text(), flags=re.S | re.M)


def test_the_readme_is_made_from_the_index():
    text, pictures = readme()
    assert (ROOT/'README.md').read_text() == text, 'run `python tests/readme.py`'
    assert {o.name: o.read_bytes() for o in (ROOT/'nbs/images').glob('readme_*.png')} == pictures, 'run `python tests/readme.py`'


def test_links_are_seen_from_the_top():
    assert from_top('[a](course/01_x.ipynb#b) ![](images/p.png) [c](../LICENSE) [d](https://e.org/f) [g](#h)') == \
        '[a](nbs/course/01_x.ipynb#b) ![](nbs/images/p.png) [c](LICENSE) [d](https://e.org/f) [g](#h)'
    assert from_top('```python\na[0](b)\n```') == '```python\na[0](b)\n```'


def test_every_file_that_the_readme_links_to_is_there():
    links = re.findall(r'\]\((?![a-z]+:|#)([^)#\s]+)', (ROOT/'README.md').read_text())
    assert not (o := [link for link in links if not (ROOT/link).exists()]), f'README.md links to {o}'


def test_two_commands_are_all_a_newcomer_types(): assert blocks('sh') == COMMANDS


def test_the_code_of_the_readme_runs(tmp_path):
    run_python('-c', SCENE, cwd=tmp_path)
    run_python('-c', '\n'.join(blocks('python')), cwd=tmp_path)
