"""A checkpoint on disk: written beside its place, put in place when it is whole."""

from mergepipe.write.faults import disk_faults
from mergepipe.write.files import (
    CHAT_TEMPLATES,
    tokenizer_files,
    write_companions,
    write_tokenizer,
)
from mergepipe.write.folder import STAGES, check_target, new_folder, partial_folder
from mergepipe.write.journal import JOURNAL_FILE, Journal, Record, read_journal
from mergepipe.write.replacing import replace_file
from mergepipe.write.resume import sound_records
from mergepipe.write.sink import FileSink

__all__ = [
    "CHAT_TEMPLATES",
    "JOURNAL_FILE",
    "STAGES",
    "FileSink",
    "Journal",
    "Record",
    "check_target",
    "disk_faults",
    "new_folder",
    "partial_folder",
    "read_journal",
    "replace_file",
    "sound_records",
    "tokenizer_files",
    "write_companions",
    "write_tokenizer",
]
