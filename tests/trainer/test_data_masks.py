"""Masks, token by token, against literals written by hand."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from finetune_trainer.data.check import Checked
from finetune_trainer.data.encode import Encoder
from finetune_trainer.data.formats import BadRow, Conversation, Message, Pair
from finetune_trainer.data.mask import render, unrolled
from finetune_trainer.data.template import ChatTemplate, load_template

THREE_TURNS = (
    Message("user", "hi"),
    Message("assistant", "hello you"),
    Message("user", "who"),
    Message("assistant", "Otto"),
    Message("user", "bye"),
    Message("assistant", "see you"),
)
SYSTEM = (Message("system", "be kind"), *THREE_TURNS)

# Words of all families have the same small ids; control tokens start at 50.
WORDS = {
    "[UNK]": 0, " ": 1, "\n": 2, "hi": 3, "hello": 4, "you": 5, "who": 6, "Otto": 7, "bye": 8,
    "see": 9, "user": 10, "assistant": 11, "system": 12, "be": 13, "kind": 14, "model": 15,
    "[INST]": 16, "[/INST]": 17,
}  # fmt: skip

MARKED = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' }}"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] }}{{ '<|end|>' }}{% endgeneration %}"
    "{% else %}{{ message['content'] + '<|end|>' }}{% endif %}{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
"""With generation markers, and without a prefix-stable shape being needed."""


@dataclass(frozen=True)
class Family:
    chat_template: str
    control: dict[str, int]
    messages: tuple[Message, ...]
    ids: list[int]
    spans: list[tuple[int, int]]


def tokenizer_of(control: dict[str, int], **special: str):
    from tokenizers import AddedToken, Regex, Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = WORDS | {f"[unused{i}]": i for i in range(len(WORDS), 50)} | control
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"\s|\S+"), "isolated")
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in control])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", **special)


FAMILIES = {
    # <|im_start|>=50 <|im_end|>=51
    "chatml": Family(
        "chatml",
        {"<|im_start|>": 50, "<|im_end|>": 51},
        SYSTEM,
        [
            50, 12, 2, 13, 1, 14, 51, 2,  # <|im_start|>system\nbe kind<|im_end|>\n
            50, 10, 2, 3, 51, 2,  # <|im_start|>user\nhi<|im_end|>\n
            50, 11, 2, 4, 1, 5, 51, 2,  # <|im_start|>assistant\nhello you<|im_end|>\n
            50, 10, 2, 6, 51, 2,  # <|im_start|>user\nwho<|im_end|>\n
            50, 11, 2, 7, 51, 2,  # <|im_start|>assistant\nOtto<|im_end|>\n
            50, 10, 2, 8, 51, 2,  # <|im_start|>user\nbye<|im_end|>\n
            50, 11, 2, 9, 1, 5, 51, 2,  # <|im_start|>assistant\nsee you<|im_end|>\n
        ],
        # hello you <|im_end|>; Otto <|im_end|>; see you <|im_end|>: never the \n behind it
        [(17, 21), (31, 33), (43, 47)],
    ),
    # <|begin_of_text|>=50 <|start_header_id|>=51 <|end_header_id|>=52 <|eot_id|>=53
    "llama3": Family(
        "llama3",
        {
            "<|begin_of_text|>": 50,
            "<|start_header_id|>": 51,
            "<|end_header_id|>": 52,
            "<|eot_id|>": 53,
        },
        SYSTEM,
        [
            50, 51, 12, 52, 2, 2, 13, 1, 14, 53,
            51, 10, 52, 2, 2, 3, 53,
            51, 11, 52, 2, 2, 4, 1, 5, 53,
            51, 10, 52, 2, 2, 6, 53,
            51, 11, 52, 2, 2, 7, 53,
            51, 10, 52, 2, 2, 8, 53,
            51, 11, 52, 2, 2, 9, 1, 5, 53,
        ],
        [(22, 26), (38, 40), (52, 56)],
    ),
    # <s>=50 </s>=51; the space before an answer is what the model writes first
    "mistral": Family(
        "mistral",
        {"<s>": 50, "</s>": 51},
        THREE_TURNS,
        [
            50, 16, 1, 3, 1, 17, 1, 4, 1, 5, 51,  # <s>[INST] hi [/INST] hello you</s>
            16, 1, 6, 1, 17, 1, 7, 51,  # [INST] who [/INST] Otto</s>
            16, 1, 8, 1, 17, 1, 9, 1, 5, 51,  # [INST] bye [/INST] see you</s>
        ],
        [(6, 11), (16, 19), (24, 29)],
    ),
    # <bos>=50 <start_of_turn>=51 <end_of_turn>=52
    "gemma": Family(
        "gemma",
        {"<bos>": 50, "<start_of_turn>": 51, "<end_of_turn>": 52},
        THREE_TURNS,
        [
            50, 51, 10, 2, 3, 52, 2,
            51, 15, 2, 4, 1, 5, 52, 2,
            51, 10, 2, 6, 52, 2,
            51, 15, 2, 7, 52, 2,
            51, 10, 2, 8, 52, 2,
            51, 15, 2, 9, 1, 5, 52, 2,
        ],
        [(10, 14), (24, 26), (36, 40)],
    ),
    # <|system|>=50 <|user|>=51 <|assistant|>=52 <|end|>=53, with {% generation %}
    "marked": Family(
        MARKED,
        {"<|system|>": 50, "<|user|>": 51, "<|assistant|>": 52, "<|end|>": 53},
        SYSTEM,
        [
            50, 13, 1, 14, 53, 2,
            51, 3, 53, 2,
            52, 4, 1, 5, 53, 2,
            51, 6, 53, 2,
            52, 7, 53, 2,
            51, 8, 53, 2,
            52, 9, 1, 5, 53, 2,
        ],
        [(11, 15), (21, 23), (29, 33)],
    ),
}  # fmt: skip


def encoder_of(name: str, **options) -> Encoder:
    family = FAMILIES[name]
    tokenizer = tokenizer_of(family.control)
    template = load_template(family.chat_template, tokenizer)
    settings = {"max_length": 128, "overlong": "Truncate", "unroll": False} | options
    return Encoder(tokenizer=tokenizer, template=template, **settings)


def encoded(encoder: Encoder, messages, loss_on="Assistant"):
    (out,) = encoder.encode([Checked("train.jsonl", 7, Conversation(messages), loss_on)])
    return out


@pytest.mark.parametrize("name", FAMILIES)
def test_every_answer_with_its_end_of_turn_is_trained_and_nothing_else(name):
    family = FAMILIES[name]
    (document,) = encoded(encoder_of(name), family.messages).documents
    assert document.ids.tolist() == family.ids
    assert list(document.spans) == family.spans


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("loss_on", ["Completion", "LastAssistant"])
def test_the_last_answer_alone(name, loss_on):
    family = FAMILIES[name]
    (document,) = encoded(encoder_of(name), family.messages, loss_on).documents
    assert document.ids.tolist() == family.ids
    assert list(document.spans) == family.spans[-1:]


def test_all_tokens_but_the_first_that_nothing_predicts():
    family = FAMILIES["chatml"]
    (document,) = encoded(encoder_of("chatml"), family.messages, "All").documents
    assert list(document.spans) == [(1, 48)]
    assert len(family.ids) == 48


@pytest.mark.parametrize("name", FAMILIES)
def test_unrolled_turns_are_one_row_each_and_end_with_their_answer(name):
    family = FAMILIES[name]
    documents = encoded(encoder_of(name, unroll=True), family.messages).documents
    assert [list(d.spans) for d in documents] == [[span] for span in family.spans]
    for document, (_, stop) in zip(documents, family.spans, strict=True):
        end = len(document.ids)
        assert document.ids.tolist() == family.ids[:end]
        assert stop <= end <= stop + 1  # at most the line break behind the end-of-turn token


def test_markers_are_read_and_not_the_difference_of_prefixes():
    # This template rewrites earlier turns, which only markers can stand.
    shouting = MARKED.replace(
        "{{ '<|' + message['role'] + '|>' }}",
        "{{ '<|' + message['role'] + '|>' }}{% if not loop.last %}{{ 'hi' }}{% endif %}",
    )
    tokenizer = tokenizer_of(FAMILIES["marked"].control)
    template = load_template(shouting, tokenizer)
    rendered = render(template, THREE_TURNS[:4], "Assistant")
    assert [rendered.text[a:b] for a, b in rendered.trained] == ["hello you<|end|>", "Otto<|end|>"]


def test_a_marker_that_leaves_out_the_end_of_turn_still_gets_it():
    short = MARKED.replace(
        "{{ '<|end|>' }}{% endgeneration %}", "{% endgeneration %}{{ '<|end|>' }}"
    )
    assert short != MARKED
    template = load_template(short, tokenizer_of(FAMILIES["marked"].control))
    rendered = render(template, THREE_TURNS, "Assistant")
    assert [rendered.text[a:b] for a, b in rendered.trained] == [
        "hello you<|end|>",
        "Otto<|end|>",
        "see you<|end|>",
    ]


THINKING = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' }}"
    "{% if message['role'] == 'assistant' and loop.last %}{{ '<think></think>' }}{% endif %}"
    "{{ message['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
"""Like Qwen3: the last answer has an empty thought, the ones before have lost theirs."""


def test_a_template_that_rewrites_earlier_turns_is_refused_with_the_fix():
    out = encoded(
        Encoder(
            tokenizer=(tokenizer := tokenizer_of(FAMILIES["marked"].control)),
            template=load_template(THINKING, tokenizer),
            max_length=128,
            overlong="Truncate",
            unroll=False,
        ),
        THREE_TURNS,
    )
    assert out.documents == ()
    assert out.problem is not None
    assert (out.problem.place, out.problem.code) == ("train.jsonl:7", "template-not-prefix-stable")
    assert out.problem.fix == "set dataset.unrollTurns: true"


def test_that_template_works_unrolled():
    template = load_template(THINKING, tokenizer_of(FAMILIES["marked"].control))
    texts = []
    for turn in unrolled(THREE_TURNS):
        rendered = render(template, turn, "LastAssistant")
        texts += [rendered.text[a:b] for a, b in rendered.trained]
    assert texts == [
        "<think></think>hello you<|end|>",
        "<think></think>Otto<|end|>",
        "<think></think>see you<|end|>",
    ]


def test_a_template_that_drops_the_answer_is_refused():
    # Templates of vision models render a list of parts, and nothing of a plain string.
    parts = "{% for m in messages %}{{ '<|' + m['role'] + '|>' }}{{ '<|end|>' }}{% endfor %}"
    template = load_template(parts, tokenizer_of(FAMILIES["marked"].control))
    with pytest.raises(BadRow, match="does not render the text of an answer"):
        render(template, THREE_TURNS, "Assistant")


SPLIT = "{{ message['content'].split('</think>')[-1] + '<|end|>' }}"
WHOLE = "{{ message['content'] + '<|end|>' }}"
TURNS = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' }}"
    "{% if EARLIER %}SPLIT{% else %}WHOLE{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
MARKS = "{% generation %}TEXT{% endgeneration %}"


def reasoning_template(earlier: str, *, marked: bool) -> ChatTemplate:
    """Return a template that leaves out reasoning of the messages for which ``earlier`` holds."""
    text = TURNS.replace("EARLIER", earlier)
    for name, body in (("SPLIT", SPLIT), ("WHOLE", WHOLE)):
        one = "{% if message['role'] == 'assistant' %}MARKS{% else %}BODY{% endif %}"
        one = one.replace("MARKS", MARKS.replace("TEXT", body)) if marked else "BODY"
        text = text.replace(name, one.replace("BODY", body))
    return load_template(text, tokenizer_of(FAMILIES["marked"].control))


THOUGHT = (
    Message("user", "hi"),
    Message("assistant", "<think>\nwho see\n</think>\n\nhello you"),
    Message("user", "who"),
    Message("assistant", "<think>be kind</think>Otto"),
)


@pytest.mark.parametrize("marked", [False, True])
@pytest.mark.parametrize("loss_on", ["Assistant", "LastAssistant", "All"])
def test_a_template_that_drops_reasoning_of_what_is_trained_is_refused(loss_on, marked):
    always = reasoning_template("true", marked=marked)  # as those of DeepSeek-R1 do
    with pytest.raises(BadRow, match="leaves the reasoning of an answer out") as caught:
        render(always, THOUGHT[2:], loss_on)
    assert (caught.value.code, caught.value.fix) == (
        "template-drops-reasoning",
        "choose another dataset.chatTemplate; where this one drops that of earlier answers "
        "alone, set dataset.unrollTurns: true; or remove the reasoning from the row",
    )
    # What is not there, or says nothing, is not dropped.
    for text in ("Otto", "<think>\n\n</think>\n\nOtto", "</think>Otto"):
        rendered = render(always, (THOUGHT[2], Message("assistant", text)), loss_on)
        assert "Otto<|end|>" in "".join(rendered.text[a:b] for a, b in rendered.trained)


def test_a_template_that_drops_reasoning_of_earlier_answers_trains_the_last():
    rewriting = reasoning_template("not loop.last", marked=True)  # as those of Qwen3 do
    rendered = render(rewriting, THOUGHT, "LastAssistant")
    assert [rendered.text[a:b] for a, b in rendered.trained] == [
        "<think>be kind</think>Otto<|end|>"
    ]
    with pytest.raises(BadRow) as caught:
        render(rewriting, THOUGHT, "Assistant")
    assert caught.value.code == "template-drops-reasoning"
    texts = []
    for turn in unrolled(THOUGHT):
        rendered = render(rewriting, turn, "LastAssistant")
        texts += [rendered.text[a:b] for a, b in rendered.trained]
    assert texts == [
        "<think>\nwho see\n</think>\n\nhello you<|end|>",
        "<think>be kind</think>Otto<|end|>",
    ]


def test_reasoning_whose_first_tag_is_in_the_prompt_is_trained():
    # The newer ones of DeepSeek-R1 begin an answer with the tag and keep what follows.
    prompting = MARKED.replace("{% generation %}", "").replace("{% endgeneration %}", "")
    prompting = prompting.replace("{{ '<|assistant|>' }}", "{{ '<|assistant|><think>' }}")
    template = load_template(prompting, tokenizer_of(FAMILIES["marked"].control))
    rendered = render(template, THOUGHT[2:], "Assistant")
    assert [rendered.text[a:b] for a, b in rendered.trained] == ["be kind</think>Otto<|end|>"]


def test_a_template_that_refuses_a_row_names_the_row_and_its_reason():
    out = encoded(encoder_of("gemma"), SYSTEM)
    assert out.problem is not None
    assert out.problem.code == "template-refuses-row"
    assert out.problem.message == (
        "the chat template refuses this row: system messages are not supported"
    )
    assert out.problem.place == "train.jsonl:7"


@pytest.mark.parametrize(("overlong", "lengths"), [("Truncate", [20]), ("Split", [20, 20, 8])])
def test_overlong_rows_are_cut_by_tokens(overlong, lengths):
    encoder = encoder_of("chatml", max_length=20, overlong=overlong)
    out = encoded(encoder, SYSTEM)
    assert [len(d.ids) for d in out.documents] == lengths
    assert out.longest == 48
    spans = [list(d.spans) for d in out.documents]
    if overlong == "Truncate":
        assert (out.truncated, out.split) == (True, False)
        assert spans == [[(17, 20)]]
    else:
        assert (out.truncated, out.split) == (False, True)
        # 20: <|im_end|> of the first answer is the first token of a piece, so nothing predicts it
        assert spans == [[(17, 20)], [(11, 13)], [(3, 7)]]


def test_overlong_fail_and_drop():
    failed = encoded(encoder_of("chatml", max_length=20, overlong="Fail"), SYSTEM)
    assert failed.problem is not None
    assert failed.problem.code == "row-too-long"
    assert failed.problem.message == "48 tokens, more than dataset.maxLength 20"
    dropped = encoded(encoder_of("chatml", max_length=20, overlong="Drop"), SYSTEM)
    assert (dropped.documents, dropped.problem) == ((), None)


def test_nothing_left_to_train_after_truncation_is_a_problem():
    out = encoded(encoder_of("chatml", max_length=17), SYSTEM)
    assert out.problem is not None
    assert out.problem.code == "nothing-trained"
    assert out.problem.message == "no token to learn from within the first 17 tokens"


def test_stanford_prompts_train_the_answer_and_the_end_token():
    tokenizer = tokenizer_of({"<s>": 50, "</s>": 51}, bos_token="<s>", eos_token="</s>")
    encoder = Encoder(tokenizer, None, 128, "Truncate", False)
    row = Checked("train.jsonl", 1, Pair("hi\n", "hello you"), "Completion")
    (out,) = encoder.encode([row])
    (document,) = out.documents
    assert document.ids.tolist() == [3, 2, 4, 1, 5, 51]
    assert list(document.spans) == [(2, 6)]


def test_stanford_prompts_begin_with_what_the_tokenizer_adds():
    from tokenizers import processors

    tokenizer = tokenizer_of({"<s>": 50, "</s>": 51}, bos_token="<s>", eos_token="</s>")
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 50)]
    )
    encoder = Encoder(tokenizer, None, 128, "Truncate", False)
    for loss_on, spans in (("Completion", [(3, 7)]), ("All", [(1, 7)])):
        row = Checked("train.jsonl", 1, Pair("hi\n", "hello you"), loss_on)
        (out,) = encoder.encode([row])
        (document,) = out.documents
        assert document.ids.tolist() == [50, 3, 2, 4, 1, 5, 51]
        assert list(document.spans) == spans


def test_an_answer_without_end_of_turn_token_is_warned_about():
    plain = "{% for m in messages %}{{ m['role'] + '\\n' + m['content'] + '\\n' }}{% endfor %}{% if add_generation_prompt %}{{ 'assistant\\n' }}{% endif %}"
    tokenizer = tokenizer_of({"</s>": 50})
    encoder = Encoder(tokenizer, load_template(plain, tokenizer), 128, "Truncate", False)
    out = encoded(encoder, THREE_TURNS[:2])
    assert [w.code for w in out.warnings] == ["end-of-turn-not-trained"]
    (document,) = out.documents
    assert document.ids.tolist() == [10, 2, 3, 2, 11, 2, 4, 1, 5, 2]
    assert list(document.spans) == [(6, 10)]  # the line break is all that ends this turn


def test_control_tokens_in_the_text_are_warned_about():
    row = (Message("user", "hi"), Message("assistant", "hello <|im_end|> you"))
    out = encoded(encoder_of("chatml"), row)
    assert [w.code for w in out.warnings] == ["control-token-in-text"]


@pytest.mark.parametrize(("offset", "content"), [(0, "Otto"), (1, "  Otto"), (2, "Ünï 🙂 Otto")])
def test_byte_level_tokens_with_trimmed_offsets(tmp_path, offset, content):
    # A byte-level tokenizer reports " Otto" without its space and bytes of one letter as one.
    from transformers import AutoTokenizer

    from harness.tiny_model import make_tiny_model

    tokenizer = AutoTokenizer.from_pretrained(make_tiny_model(tmp_path / "model"))
    encoder = Encoder(tokenizer, load_template(None, tokenizer), 256, "Truncate", False)
    row = (
        Message("user", "What is your name?"),
        Message("assistant", content),
        Message("user", "Thanks!"),
        Message("assistant", f"{content}  "),
    )
    (document,) = encoded(encoder, row).documents
    trained = [tokenizer.decode(document.ids[a:b]) for a, b in document.spans]
    assert trained == [f"{content}<|im_end|>", f"{content}  <|im_end|>"]


def test_token_ids_are_those_of_the_library(tmp_path):
    from transformers import AutoTokenizer

    from harness.tiny_model import make_tiny_model

    tokenizer = AutoTokenizer.from_pretrained(make_tiny_model(tmp_path / "model"))
    tokenizer.backend_tokenizer.enable_truncation(5)
    tokenizer.backend_tokenizer.enable_padding(length=400)
    encoder = Encoder(tokenizer, load_template(None, tokenizer), 256, "Truncate", False)
    (document,) = encoded(encoder, SYSTEM).documents
    messages = [message.to_template() for message in SYSTEM]
    expected = tokenizer.apply_chat_template(messages, tokenize=True)["input_ids"]
    assert len(expected) > 50
    assert document.ids.tolist() == expected


def test_templates_of_many_models_agree_with_their_marked_variants():
    """TRL ships templates with markers beside the originals: both ways must find the same text."""
    from importlib.resources import files

    folder = files("trl") / "chat_templates"
    control = (
        "<|END_RESPONSE|>", "<|END_OF_TURN_TOKEN|>", "<end_of_turn>", "<|eot_id|>", "<|im_end|>",
        "<turn|>",
    )  # fmt: skip
    answers = [m.content for m in THREE_TURNS if m.role == "assistant"]
    agreed = 0
    for name in ("cohere", "cohere2", "gemma", "gemma3", "lfm2", "llama3", "qwen3_instruct_2507",
                 "qwen3_vl", "qwen2_5_vl", "diffusion_gemma"):  # fmt: skip
        found = []
        for file in (f"{name}.jinja", f"{name}_training.jinja"):
            text = (folder / file).read_text()
            template = ChatTemplate(text, file, {"bos_token": "<s>", "eos_token": "</s>"}, control)
            rendered = render(template, THREE_TURNS, "Assistant")
            assert rendered.ends_turns
            found.append([rendered.text[a:b] for a, b in rendered.trained])
        assert found[0] == found[1]
        assert all(a in b for a, b in zip(answers, found[0], strict=True))
        agreed += 1
    assert agreed == 10
