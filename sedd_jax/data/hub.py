"""Files of tokenizers on the Hugging Face hub."""

from pathlib import Path


def read_from_hub(name: str, file: str, kind: str) -> str:
  """Downloads a text file, or takes it from the local cache.

  Args:
    name: of the repository.
    file: in it.
    kind: of tokenizer, as `data.tokenizer` names it.

  Raises:
    ConnectionError: there is no network and the file is not in the cache.
  """
  from huggingface_hub import hf_hub_download

  try:
    return Path(hf_hub_download(name, file)).read_text(encoding="utf-8")
  except Exception as error:
    raise ConnectionError(
      f"cannot get {file} of {name!r} from the hub ({error}). Without a network, give a folder "
      f"that holds it: --config.data.tokenizer={kind}:/path/to/folder"
    ) from error
