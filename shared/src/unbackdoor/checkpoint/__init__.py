"""Reading and writing weights without ever unpickling code.

- `kinds`: what a file is, told by its content; `files`: from a path, a folder or an index of shards to what it holds.
- `pickles`, `allowed`, `archives`: files of ``torch.save``, looked through before `torch.load` sees them.
- `layouts`: where in a file a model's weights lie; `fitting`: whether they are its weights; `loading`; `saving`.
"""

from unbackdoor.checkpoint.files import files_of, read_content
from unbackdoor.checkpoint.loading import load, metadata_of, read
from unbackdoor.checkpoint.saving import save

__all__ = ["files_of", "load", "metadata_of", "read", "read_content", "save"]
