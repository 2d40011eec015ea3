"""A trained hypernetwork that predicts embeddings from the pieces of a token.

Minixhofer, Ponti and Vulić, "Zero-Shot Tokenizer Transfer", NeurIPS 2024.
https://arxiv.org/abs/2405.07883

Inference alone, from files on disk: the checkpoints' own code is not run, and nothing is fetched.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional

from mergepipe.errors import InputError, Problem

__all__ = ["Hypernetwork", "load_hypernetwork"]

_NEEDED = ("n_embd", "hn_hidden_size", "hn_intermediate_size", "hn_n_layers", "pad_token_id")
_ROBERTA_LAYER_NORM = 1e-5
_PROJECTOR_LAYER_NORM = 1e-6


@dataclass(frozen=True)
class Hypernetwork:
    """Surface forms and the base's rows -> rows of the input table, and of the output head."""

    config: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    tokenizer: Tokenizer
    encoder: Any  # a RobertaModel

    @property
    def columns(self) -> int:
        """Dimensions of the base that it is made for."""
        return int(self.config["n_embd"])

    @property
    def has_head(self) -> bool:
        """Whether it reads and predicts rows of an output head of its own."""
        return bool(self.config.get("separate_out_embeddings"))

    @property
    def original_rows(self) -> int:
        """Ids from this one on have embeddings of the hypernetwork's own."""
        return int(self.config["original_vocab_size"])

    @property
    def languages(self) -> int:
        """Languages that it knows apart; 0 if it does not ask for one."""
        named = self.config.get("hn_embed_lang_id")
        return len(self.tensors["lang_embeddings.weight"]) if named else 0

    @property
    def pad(self) -> int:
        """The id that fills surface forms up."""
        return int(self.config["pad_token_id"])

    @property
    def length(self) -> int:
        """Pieces of a token that it sees at most."""
        return int(self.config.get("hn_surface_maxlen", 16))

    @torch.inference_mode()
    def predict(
        self, forms: Tensor, sources: Tensor, language: int | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Give rows [n, columns] of both tables; None for the head where it has none.

        `forms` [n, length] are ids, filled with `pad`; `sources` [n, length, columns], or twice as
        many columns with a head, the base's rows of those ids (anything for ids of its own).
        """
        if self.config.get("hn_rescale_embeddings"):
            sources = self._scaled("in_scaler", sources)
        own = self.tensors["fallback_embeddings.weight"]
        extra = own[(forms - self.original_rows).clamp(min=0, max=len(own) - 1)]
        states = torch.where((forms >= self.original_rows)[..., None], extra, sources)
        states = self._block("input_projection.1", self._linear("input_projection.0", states))
        mask = forms != self.pad
        if language is not None:
            states, mask = self._with_language(states, mask, language)
        places = torch.arange(mask.shape[1], device=mask.device).expand(mask.shape)
        states = self.encoder(
            inputs_embeds=states, attention_mask=mask.long(), position_ids=places
        ).last_hidden_state
        concat = self.config.get("hn_concat_last_hidden_state")
        return self._heads(states.flatten(1) if concat else states[:, 0])

    def _heads(self, states: Tensor) -> tuple[Tensor, Tensor | None]:
        made = self._projected("output_projection", states)
        head = None
        if self.config.get("hn_single_head"):
            made, head = made[:, : self.columns], made[:, self.columns :]
        elif self.has_head:
            head = self._projected("output_projection_out", states)
        rescale = self.config.get("hn_rescale_embeddings")
        if rescale:
            made = self._scaled("scaler", made)
        if not self.has_head:
            return made, None
        assert head is not None
        return made, self._scaled("out_scaler", head) if rescale else head

    def _with_language(self, states: Tensor, mask: Tensor, language: int) -> tuple[Tensor, Tensor]:
        """Append the language; the encoder's position and type are taken off beforehand."""
        length = mask.shape[1]
        name = "model.embeddings."
        vector = self.tensors["lang_embeddings.weight"][language]
        vector = vector - self.tensors[name + "token_type_embeddings.weight"][0]
        vector = vector - self.tensors[name + "position_embeddings.weight"][length]
        states = torch.cat([states, vector.expand(len(states), 1, -1)], 1)
        return states, functional.pad(mask, (0, 1), value=True)

    def _projected(self, name: str, x: Tensor) -> Tensor:
        return self._linear(f"{name}.1", self._block(f"{name}.0", x))

    def _linear(self, name: str, x: Tensor) -> Tensor:
        return functional.linear(x, self.tensors[f"{name}.weight"], self.tensors[f"{name}.bias"])

    def _block(self, name: str, x: Tensor) -> Tensor:
        h = functional.gelu(self._linear(f"{name}.dense1", x), approximate="tanh")
        h = functional.gelu(self._linear(f"{name}.dense2", h), approximate="tanh")
        weight, bias = self.tensors[f"{name}.ln.weight"], self.tensors[f"{name}.ln.bias"]
        return functional.layer_norm(h + x, x.shape[-1:], weight, bias, _PROJECTOR_LAYER_NORM)

    def _scaled(self, name: str, x: Tensor) -> Tensor:
        return x * self.tensors[f"{name}.w"][0] + self.tensors[f"{name}.b"][0]


def load_hypernetwork(folder: Path, device: torch.device) -> Hypernetwork:
    """Load `config.json`, `*.safetensors` and `tokenizer.json` of a folder.

    Raises
    ------
    InputError
        if one is missing, or the network is of a kind that is not supported.

    """
    config = _config(folder)
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        what, fix = "no *.safetensors", "convert its weights to safetensors"
        raise InputError(Problem(str(folder), what, fix))
    tokenizer_file = folder / "tokenizer.json"
    if not tokenizer_file.is_file():
        fix = "put the hypernetwork's own tokenizer there"
        raise InputError(Problem(str(folder), "no tokenizer.json", fix))
    tensors: dict[str, Tensor] = {}
    try:
        for file in files:
            loaded = load_file(file, device=str(device))
            tensors |= {name: tensor.float() for name, tensor in loaded.items()}
        tokenizer = Tokenizer.from_str(tokenizer_file.read_text(encoding="utf-8"))
        return Hypernetwork(config, tensors, tokenizer, _encoder(config, tensors, device))
    except KeyError as error:
        raise InputError(Problem(str(folder), f"no tensor {error} in its weights")) from error
    except (OSError, SafetensorError, RuntimeError) as error:
        raise InputError(Problem(str(folder), f"cannot be read: {error}")) from error


def _config(folder: Path) -> dict[str, Any]:
    file = folder / "config.json"
    try:
        config: dict[str, Any] = json.loads(file.read_bytes())
    except FileNotFoundError as error:
        fix = "name the folder of a ZeTT hypernetwork"
        raise InputError(Problem(str(folder), "no config.json", fix)) from error
    except ValueError as error:
        raise InputError(Problem(str(file), f"not JSON: {error}")) from error
    lacking = [name for name in (*_NEEDED, "original_vocab_size") if name not in config]
    if lacking:
        fix = "name the folder of a ZeTT hypernetwork"
        raise InputError(Problem(str(file), f"has no {', '.join(lacking)}", fix))
    supported = {
        "hn_model_type": ("roberta", None),
        "hn_embed_using_source_embeddings": (True, None),
        "hn_add_inter_token_attention": (False, None),
        "hn_embed_target_priors": (False, None),
    }
    for name, values in supported.items():
        if config.get(name) not in values:
            raise InputError(Problem(str(file), f"{name}: {config[name]} is not supported"))
    return config


def _encoder(config: Mapping[str, Any], tensors: Mapping[str, Tensor], device: torch.device) -> Any:
    """Build the encoder by what the checkpoint says, not by a configuration from elsewhere."""
    from transformers import RobertaConfig, RobertaModel

    own = {n.removeprefix("model."): t for n, t in tensors.items() if n.startswith("model.")}
    hidden = int(config["hn_hidden_size"])
    made: Any = RobertaModel(
        RobertaConfig(
            vocab_size=len(own["embeddings.word_embeddings.weight"]),
            hidden_size=hidden,
            num_hidden_layers=int(config["hn_n_layers"]),
            num_attention_heads=int(config.get("hn_num_attention_heads") or hidden // 64),
            intermediate_size=int(config["hn_intermediate_size"]),
            max_position_embeddings=len(own["embeddings.position_embeddings.weight"]),
            type_vocab_size=len(own["embeddings.token_type_embeddings.weight"]),
            layer_norm_eps=_ROBERTA_LAYER_NORM,
            pad_token_id=0,
        ),
        add_pooling_layer=False,
    )
    # Buffers that older releases stored are no weights.
    stored = {n: t for n, t in own.items() if not n.endswith(("position_ids", "token_type_ids"))}
    made.load_state_dict({n: t for n, t in stored.items() if not n.startswith("pooler.")})
    return made.eval().to(device)
