"""MkDocs hook: equations as on GitHub, `$...$` and fences of `math`, by the site's own MathJax.

The script is a file of a Python package and is copied into the site; pages without an equation do
not load it.
"""

import importlib.util
from pathlib import Path

from mkdocs.structure.files import File
from mkdocs.utils import get_relative_url
from pymdownx.arithmatex import arithmatex_fenced_format

SCRIPT = "site/tex-svg-full.js"  # One file: glyphs are paths, TeX extensions are in it.
SETTINGS = "site/mathjax.js"


def on_config(config):
  """The configuration with the fence."""
  superfences = config.mdx_configs.setdefault("pymdownx.superfences", {})
  fence = {
    "name": "math",
    "class": "arithmatex",
    "format": arithmatex_fenced_format(mode="generic"),
  }
  superfences.setdefault("custom_fences", []).append(fence)
  return config


def on_files(files, config):
  """The site's files, with MathJax."""
  package = importlib.util.find_spec("mathjax")  # Of django-static-mathjax, which needs no Django.
  if package is None or package.origin is None:
    raise ModuleNotFoundError("no MathJax: pip install -e '.[docs]'")
  script = Path(package.origin).parent / "static/mathjax/es5" / Path(SCRIPT).name
  files.append(File.generated(config, SCRIPT, abs_src_path=str(script)))
  return files


def on_post_page(output, page, config):
  """The page, with MathJax if it has equations."""
  del config
  if 'class="arithmatex"' not in output and not page.file.src_uri.endswith(".ipynb"):
    return output
  sources = [get_relative_url(path, page.url) for path in (SETTINGS, SCRIPT)]
  scripts = "".join(f'<script defer src="{source}"></script>' for source in sources)
  return output.replace("</head>", f"{scripts}</head>", 1)
