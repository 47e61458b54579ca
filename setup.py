"Hand the requirement lists of settings.ini to setuptools; everything else stands in pyproject.toml"
import shlex
from configparser import ConfigParser
from pathlib import Path

from setuptools import setup

cfg = ConfigParser(delimiters=['='])
cfg.read(Path(__file__).with_name('settings.ini'), encoding='utf-8')
cfg = cfg['DEFAULT']
extras = {o: shlex.split(cfg[o]) for o in ('lab', 'video', 'search', 'calibrate', 'cuhk03', 'export')}
extras['dev'] = sorted({r for reqs in extras.values() for r in reqs}) + shlex.split(cfg['test'])

setup(
    install_requires=shlex.split(cfg['requirements']),
    extras_require=extras,
    entry_points={'console_scripts': shlex.split(cfg['console_scripts']), 'nbdev': [f"{cfg['lib_path']}={cfg['lib_path']}._modidx:d"]},
)
