"Package metadata: everything is read from settings.ini."
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
ini = ConfigParser(delimiters=['='])
ini.read(here/'settings.ini', encoding='utf-8')
cfg = ini['DEFAULT']
statuses = {'1': 'Planning', '2': 'Pre-Alpha', '3': 'Alpha', '4': 'Beta', '5': 'Production/Stable'}
status = statuses[cfg['status']]
# Development needs all that the notebooks, the tests and the site need.
extras = {name: cfg[f'{name}_requirements'].split() for name in ('train', 'eval', 'notebooks', 'dev')}
extras['all'] = sorted({*extras['train'], *extras['eval'], *extras['notebooks']})
extras['dev'] += extras['all']

setup(
    name=cfg['lib_name'], version=cfg['version'], description=cfg['description'], keywords=cfg['keywords'],
    author=cfg['author'], license='Apache-2.0', license_files=['LICENSE'],
    url=cfg['git_url'], project_urls={'Paper': 'https://arxiv.org/abs/2604.22989'},
    long_description=(here/'README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    classifiers=[f"Development Status :: {cfg['status']} - {status}",
                 f"Intended Audience :: {cfg['audience']}",
                 'Programming Language :: Python :: 3.11', 'Programming Language :: Python :: 3.12',
                 f"Natural Language :: {cfg['language']}"],
    packages=find_packages(include=[cfg['lib_path'], f"{cfg['lib_path']}.*"]),
    package_data={cfg['lib_path']: ['bundled/*', 'bundled/*/*', 'bundled/*/*/*', 'samples/*', 'templates/*']},
    python_requires=f">={cfg['min_python']}",
    install_requires=cfg['requirements'].split(), extras_require=extras,
    entry_points={'console_scripts': cfg['console_scripts'].split(),
                  'nbdev': [f"{cfg['lib_path']}={cfg['lib_path']}._modidx:d"]})
