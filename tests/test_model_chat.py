"""Conversations: what a folder's chat template makes of them, and what a hostile one may do."""

from __future__ import annotations

import json

import pytest
from askable import askable
from transformers import PreTrainedTokenizerFast

from mergepipe.errors import InputError
from mergepipe.model.load import local_model

JINJA = (
    "{{ bos_token }}{% for m in messages %}{{ m.role[0] }} {{ m.content }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}a{% endif %}"
)
CHATS = [
    [{"role": "user", "content": "12+30="}],
    [
        {"role": "system", "content": "ä"},
        {"role": "user", "content": "the"},
        {"role": "assistant", "content": "was"},
        {"role": "user", "content": "word"},
    ],
]


def with_jinja(folder):
    (folder / "chat_template.jinja").write_text(JINJA, "utf-8")


def with_json(folder):
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": JINJA}))


def with_settings(folder, template=JINJA):
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"chat_template": template}))


def with_several(folder):
    named = {"tool_use": "tools", "default": JINJA}
    with_settings(folder, [{"name": name, "template": text} for name, text in named.items()])


@pytest.fixture
def folder(tmp_path):
    return askable("llama", tmp_path / "llama")


@pytest.mark.parametrize("place", [with_jinja, with_json, with_settings, with_several])
def test_a_conversation_is_what_transformers_makes_of_it(folder, place):
    place(folder)
    model = local_model(folder, "chat")
    assert "chat" in model.abilities
    theirs = PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"), bos_token="<s>", eos_token="</s>"
    )
    for chat in CHATS:
        expected = theirs.apply_chat_template(
            chat, chat_template=JINJA, add_generation_prompt=True, return_dict=False
        )
        [request] = model.requests([chat], 1)
        assert list(request.ids) == expected
        assert expected[0] == 0
        assert expected.count(0) == 1  # the template's BOS; no other is added


def test_conversations_and_texts_are_answered_side_by_side(folder):
    with_jinja(folder)
    model = local_model(folder, "chat")
    ask = {"stop": ["e"], "max_tokens": 6}
    together = model.generate([CHATS[0], "the word"], **ask)
    assert together == [model.generate([prompt], **ask)[0] for prompt in (CHATS[0], "the word")]


def test_a_folder_without_a_template_cannot_chat(folder):
    model = local_model(folder, "mute")
    assert "chat" not in model.abilities
    with pytest.raises(InputError, match=r"mute: .* without a chat template"):
        model.generate([CHATS[0]], stop=[], max_tokens=1)


HOSTILE = (
    "{{ raise_exception('roles must alternate') }}",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ messages.append(1) }}",
    "{% for i in range(10 ** 9) %}x{% endfor %}",
    "{% broken",
    "{{ 1 / 0 }}",
    "{{ messages[7].content.upper() }}",
)


@pytest.mark.parametrize("template", HOSTILE)
def test_a_template_that_fails_or_reaches_outside_is_an_error_in_words(folder, template):
    with_settings(folder, template)
    with pytest.raises(InputError, match="bad: its chat template cannot write"):
        local_model(folder, "bad").generate([CHATS[0]], stop=[], max_tokens=1)
