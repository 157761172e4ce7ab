"""Files of tokenizers on the Hugging Face hub."""

from pathlib import Path

# Seconds until the hub counts as out of reach.
_PATIENCE = 10.0


def read_from_hub(name: str, file: str, kind: str) -> str:
  """Downloads a text file, or takes it from the local cache.

  A hub that cannot be reached is asked once, without the library's retries.

  Args:
    name: of the repository.
    file: in it.
    kind: `gpt2` or `bert`, as `data.tokenizer` names a folder of such files; "" for any.

  Raises:
    ConnectionError: there is no network and the file is not in the cache, or the hub has no such
      file.
  """
  from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url

  fault = None
  try:
    get_hf_file_metadata(hf_hub_url(name, file), timeout=_PATIENCE)
  except Exception as error:
    fault = error
  try:
    path = hf_hub_download(name, file, local_files_only=fault is not None)
    return Path(path).read_text(encoding="utf-8")
  except Exception as error:
    folder = f"{kind}:/path/to/folder" if kind else "/path/to/folder"
    raise ConnectionError(
      f"cannot get {file} of {name!r} from the hub ({fault or error}). Without a network, give a "
      f"folder that holds it: --config.data.tokenizer={folder}"
    ) from error
