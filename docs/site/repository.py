"""MkDocs hook: files outside docs/ that pages link to are pages of the site too.

The README is the front page. Markdown keeps its name, any other file is shown as code. The files
have the links that GitHub reads; only what MkDocs renders has others.
"""

import posixpath
import re
from pathlib import Path

from mkdocs.structure.files import File, Files

REPOSITORY = Path(__file__).resolve().parents[2]
FRONT = "README.md"

# A relative target of a Markdown link or picture, or of an HTML tag: what precedes, path, the rest.
_TARGET = re.compile(r'(\]\(|\bsrc="|\bhref=")(?![a-z]+:|[#/])([^)#"\s]+)')


def on_files(files, config):
  """The site's files, with those outside docs/ that a page links to."""
  docs = Path(config.docs_dir).name
  texts = [
    (f"{docs}/{file.src_uri}", file.content_string)
    for file in files.documentation_pages()
    if file.src_uri.endswith(".md")
  ]
  texts.append(_added(files, config, FRONT))
  for origin, text in texts:
    for _, target in _TARGET.findall(text):
      path = _path(origin, target)
      if path.startswith(f"{docs}/") or not (REPOSITORY / path).is_file():
        continue  # MkDocs checks links within docs/, and reports what does not exist.
      if files.get_file_from_path(_uri(path, docs)) is None:
        texts.append(_added(files, config, path))  # Its links are followed as well.
  return files


def on_page_markdown(markdown, page, config, files):
  """The page's text with links as they are on the site."""
  docs = Path(config.docs_dir).name
  uri = page.file.src_uri
  origin = getattr(page.file, "origin", f"{docs}/{uri}")

  def moved(match: re.Match) -> str:
    target = _uri(_path(origin, match[2]), docs)
    if files.get_file_from_path(target) is None:
      return match[0]
    return match[1] + posixpath.relpath(target, posixpath.dirname(uri) or ".")

  return _TARGET.sub(moved, markdown)


def _added(files: Files, config, path: str) -> tuple[str, str]:
  """Adds a file of the repository as a page; its path and the links in it, as text."""
  text = (REPOSITORY / path).read_text(encoding="utf-8")
  is_markdown = path.endswith(".md")
  language = posixpath.splitext(path)[1].removeprefix(".") or "text"
  content = text if is_markdown else f"# {path}\n\n~~~~~{language}\n{text}\n~~~~~\n"
  file = File.generated(config, _uri(path, Path(config.docs_dir).name), content=content)
  file.origin = path  # Where its links start from.
  files.append(file)
  return path, text if is_markdown else ""


def _path(origin: str, target: str) -> str:
  """The path in the repository that a link in the file `origin` points to."""
  return posixpath.normpath(posixpath.join(posixpath.dirname(origin), target))


def _uri(path: str, docs: str) -> str:
  """Where MkDocs has a file of the repository."""
  if path == FRONT:
    return "index.md"
  if path.startswith(f"{docs}/"):
    return re.sub(r"\.ipynb$", ".md", path.removeprefix(f"{docs}/"))  # notebook.py adds that page.
  return path if path.endswith(".md") else f"source/{path}.md"
