"""`mergepipe init`: a commented recipe to start from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["TEMPLATE", "init"]

TEMPLATE = """\
# A mergepipe recipe. `mergepipe plan FILE` says what it would do, `mergepipe run FILE` does it.
mergepipe: 1                       # version of the recipe language

models:                            # labels are yours; paths are relative to this file
  base: ./base                     # the model that the others were fine-tuned from
  math: ./math                     # or org/name, or org/name@revision, on the Hugging Face hub
  french: ./french
  # chat: {path: ./base, adapter: ./lora}     # a PEFT LoRA adapter, applied exactly

merge:
  method: ties                     # `mergepipe methods` lists them all
  base: base
  models:                          # parameters per model; a list is a gradient over depth
    math: {weight: 0.6, density: 0.4}
    french: {weight: [0.2, 0.8], density: 0.4}
  lambda: 1.0                      # parameters of the whole merge
  where:                           # exceptions; the first rule that fits a tensor is used
    - {tensors: "*norm*", method: linear}
    # - {tensors: "model.vision_tower.*", take: base}
    # - {tensors: "*.mlp.*", math: {weight: 0.9}}

# tokenizer: math                  # whose tokenizer files; default: the base's
# seed: 0                          # for methods that draw random numbers

# evaluate:                        # score the inputs and the result
#   - {use: bits_per_byte, name: math, data: ./heldout/math.jsonl}

output:
  path: ./merged
  # dtype: bfloat16                # default: as in the base
  # max_shard_size: 5GB
"""


def init(
    file: Annotated[Path, typer.Argument(help="The file to write.")] = Path("recipe.yaml"),
) -> None:
    """Write a commented recipe to start from."""
    from mergepipe.errors import EnvironmentFault, InputError, Problem, printable

    try:
        with file.open("x", encoding="utf-8") as stream:
            stream.write(TEMPLATE)
    except FileExistsError as error:
        raise InputError(Problem(str(file), "exists", "choose another name")) from error
    except OSError as error:
        what = f"cannot be written: {error.strerror}"
        raise EnvironmentFault(Problem(str(file), what)) from error
    typer.echo(f"wrote {printable(file)}")
