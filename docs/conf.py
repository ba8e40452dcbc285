"""The site: notebooks as committed (nothing is executed) and one API page a module.

Sphinx reads this after `docs/notebooks.py` wrote `docs/_source`.
"""
import re
from configparser import ConfigParser
from pathlib import Path

from fastcore.docments import docments

ini = ConfigParser(delimiters=['='])
ini.read(Path(__file__).parents[1]/'settings.ini', encoding='utf-8')
project, author, release = (ini['DEFAULT'][k] for k in ('lib_name', 'author', 'version'))
copyright = ini['DEFAULT']['copyright']

extensions = ['myst_nb', 'sphinx.ext.autodoc', 'sphinx.ext.viewcode']
nb_execution_mode = 'off'
nb_merge_streams = True
myst_enable_extensions = ['dollarmath', 'amsmath']
myst_heading_anchors = 3
html_theme = 'furo'
html_static_path, html_css_files = ['static'], ['site.css']
html_title = f'{project} {release}'
html_show_sourcelink = html_copy_source = False
default_role = 'literal'  # docstrings mark names with single backticks, as the notebooks do
autodoc_member_order = 'bysource'
autodoc_typehints = 'description'
autodoc_inherit_docstrings = False
python_maximum_signature_line_length = 100
suppress_warnings = ['mystnb.unknown_mime_type']


def plain(
    text: str,  # as written in a docstring or a comment
) -> str:
    "Text whose only markup is the backtick; a letter may follow a closing one."
    parts = text.split('`')
    for i in range(0, len(parts), 2):  # outside of backticks
        parts[i] = re.sub(r'([|*_\\])', r'\\\1', parts[i])
        if i and parts[i][:1].isalnum(): parts[i] = '\\ ' + parts[i]
    return '`'.join(parts)


def describe_parameters(app, what, name, obj, options, lines):
    "Append what the comments beside parameters and fields say: autodoc reads docstrings alone."
    lines[:] = [plain(line) for line in lines]
    if what not in ('class', 'function', 'method'): return
    try: comments = docments(obj, full=True)
    except (TypeError, ValueError, AttributeError, SyntaxError, OSError): return  # no source to read
    found = [(k, v.docment) for k, v in comments.items() if v.get('docment') and k != 'self']
    if found and lines and lines[-1]: lines.append('')
    for key, text in found:
        text = plain(' '.join(str(text).split()))
        lines.append(f':returns: {text}' if key == 'return' else f':param {key}: {text}')


def setup(app): app.connect('autodoc-process-docstring', describe_parameters)
