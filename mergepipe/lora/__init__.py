"""LoRA adapters made: out of a fine-tune and its base, or out of several adapters."""

from mergepipe.lora.combining import combine
from mergepipe.lora.extracting import Advance, Options, extract
from mergepipe.lora.report import Part, Result, Row, rows_of, share_held
from mergepipe.lora.sources import adapter_named, model_named

__all__ = [
    "Advance",
    "Options",
    "Part",
    "Result",
    "Row",
    "adapter_named",
    "combine",
    "extract",
    "model_named",
    "rows_of",
    "share_held",
]
