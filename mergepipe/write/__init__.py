"""A checkpoint on disk: written beside its place, put in place when it is whole."""

from mergepipe.write.files import write_companions
from mergepipe.write.folder import check_target, new_folder
from mergepipe.write.sink import FileSink

__all__ = ["FileSink", "check_target", "new_folder", "write_companions"]
