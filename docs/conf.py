"""The site: notebooks as committed (nothing is executed) and one API page a module.

Sphinx reads this after `docs/notebooks.py` wrote `docs/_source`. Nothing is loaded from another site.
"""
import inspect, re, subprocess
from configparser import ConfigParser
from dataclasses import is_dataclass
from pathlib import Path

from docutils.nodes import SkipNode
from fastcore.docments import docments
from latex2mathml.converter import convert

root = Path(__file__).parents[1]
ini = ConfigParser(delimiters=['='])
ini.read(root/'settings.ini', encoding='utf-8')
project, author, release = (ini['DEFAULT'][k] for k in ('lib_name', 'author', 'version'))


def commit() -> str:
    "The commit that the site is made from, with `-dirty` where files differ from it; '' without git."
    command = ['git', 'describe', '--always', '--dirty', '--exclude', '*']
    try: return subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError): return ''


made_from = ', '.join(filter(None, [f'version {release}', f'commit {commit()}' if commit() else '']))
copyright = f'{ini["DEFAULT"]["copyright"]} · {made_from} ·'  # in the footer of each page

extensions = ['myst_nb', 'sphinx.ext.autodoc', 'sphinx.ext.viewcode']
nb_execution_mode = 'off'
nb_merge_streams = True
myst_enable_extensions = ['dollarmath', 'amsmath']
myst_heading_anchors = 3
nb_ipywidgets_js = {}  # no script from elsewhere
html_math_renderer = 'mathml'  # below: equations without a script
html_theme = 'furo'
html_static_path, html_css_files = ['static'], ['site.css']
html_title = f'{project} {release}'
html_show_sourcelink = html_copy_source = False
default_role = 'literal'  # docstrings mark names with single backticks, as the notebooks do
autodoc_member_order = 'bysource'
autodoc_typehints, autodoc_typehints_description_target = 'description', 'documented'
autodoc_preserve_defaults = True
autodoc_inherit_docstrings = False
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


def own_parameters(
    cls: type,
) -> set[str] | None:  # None: all of its signature
    "Names of the parameters that a class does not inherit from another library."
    if is_dataclass(cls): return set(vars(cls).get('__annotations__', {}))
    maker = next(base for base in cls.__mro__ if '__init__' in vars(base))
    if maker is object or maker.__module__.startswith(project): return None
    return set()


def short_signature(app, what, name, obj, options, signature, returns):
    "A class with its own parameters; `**kwargs` stands for those that it inherits."
    if what not in ('class', 'exception') or not signature: return
    own = own_parameters(obj)
    if own is None: return
    parameters = list(inspect.signature(obj).parameters.values())
    kept = [p.replace(annotation=p.empty) for p in parameters if p.name in own]
    if len(kept) < len(parameters): kept.append(inspect.Parameter('kwargs', inspect.Parameter.VAR_KEYWORD))
    return str(inspect.Signature(kept)), returns


def with_fields(
    lines: list[str],  # of a docstring
) -> list[str]:
    "Lines such as `Origin: …`, where a docstring has several, as a list of fields that may go on below."
    names = [line for line in lines if re.match(r'[A-Z][a-z]+: ', line)]
    if len(names) < 2: return lines
    return [re.sub(r'^([A-Z][a-z]+): ', r':\1: ', line) for line in lines]


def describe_parameters(app, what, name, obj, options, lines):
    "Append what the comments beside parameters and fields say: autodoc reads docstrings alone."
    lines[:] = with_fields([plain(line) for line in lines])
    if what not in ('class', 'function', 'method'): return
    try: comments = docments(obj, full=True)
    except (TypeError, ValueError, AttributeError, SyntaxError, OSError): return  # no source to read
    own = own_parameters(obj) if what == 'class' else None
    hidden = {'self'} if own is None else {'self', *comments} - own
    found = [(k, v.docment) for k, v in comments.items() if v.get('docment') and k not in hidden]
    if found and lines and lines[-1]: lines.append('')
    for key, text in found:
        text = plain(' '.join(str(text).split()))
        lines.append(f':returns: {text}' if key == 'return' else f':param {key}: {text}')


SPELLINGS = {r'\lVert': r'\|', r'\rVert': r'\|'}  # of what the converter does not know


def mathml(visitor, node):
    "Write an equation as MathML, which browsers draw."
    text = re.sub(r'\\[bB]igg?[lr]?(?![A-Za-z])', '', node.astext())  # MathML's fences grow by themselves
    for old, new in SPELLINGS.items(): text = text.replace(old, new)
    block = node.tagname != 'math'
    visitor.body.append(convert(text, display='block' if block else 'inline'))
    raise SkipNode


def no_icon(app, page, template, context, doctree):
    "Keep browsers from asking for an icon that is not there."
    context['metatags'] = context.get('metatags', '') + '<link rel="icon" href="data:,">'


def setup(app):
    app.add_html_math_renderer('mathml', (mathml, None), (mathml, None))
    app.connect('autodoc-process-docstring', describe_parameters)
    app.connect('autodoc-process-signature', short_signature)
    app.connect('html-page-context', no_icon)
