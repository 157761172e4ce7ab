"""MkDocs hook: a notebook of docs/ is a page as it was last run, its pictures beside it.

It becomes Markdown, so that its equations, links and anchors are treated like those of any page.
"""

import base64
import json
import posixpath

from mkdocs.structure.files import File


def on_files(files, config):
  """The site's files, with a page for each notebook."""
  for file in [file for file in files if file.src_uri.endswith(".ipynb")]:
    stem = file.src_uri.removesuffix(".ipynb")
    cells = json.loads(file.content_string)["cells"]
    texts = []
    for number, cell in enumerate(cells):
      text, pictures = _cell(cell, f"{posixpath.basename(stem)}-{number}")
      texts.append(text)
      for name, data in pictures.items():
        uri = posixpath.join(posixpath.dirname(stem), name)
        files.append(File.generated(config, uri, content=data))
    files.append(File.generated(config, f"{stem}.md", content="\n\n".join(texts)))
  return files


def _cell(cell: dict, name: str) -> tuple[str, dict[str, bytes]]:
  """A cell as Markdown, and its pictures by file name."""
  source = "".join(cell["source"])
  if cell["cell_type"] == "markdown":
    return source, {}
  parts, pictures = [f"~~~~python\n{source}\n~~~~"], {}
  for output in cell["outputs"]:
    data = output.get("data", {})
    if "image/png" in data:
      picture = f"{name}-{len(pictures)}.png"
      pictures[picture] = base64.b64decode("".join(data["image/png"]))
      description = "".join(data["text/plain"]) if "text/plain" in data else ""
      parts.append(f"![{description.strip('<>')}]({picture})")
    else:
      text = "".join(output.get("text", data.get("text/plain", [])))
      parts.append(f"~~~~text\n{text.rstrip()}\n~~~~")
  return "\n\n".join(parts), pictures
