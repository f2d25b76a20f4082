"""Chat templates: the same text as transformers, and a closed sandbox."""

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from edge.errors import EdgeError
from edge.tokenizer import chat_template
from edge.tokenizer.chat_template import render_chat_template

INST = """{% if messages[0]['role'] == 'system' %}
    {% set loop_messages = messages[1:] %}{% set system = messages[0]['content'] %}
{% else %}{% set loop_messages = messages %}{% set system = false %}{% endif %}
{% for message in loop_messages %}
    {% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{ raise_exception('Roles must alternate user/assistant/user/assistant/...') }}
    {% endif %}
    {% if loop.index0 == 0 and system %}
        {% set content = '<<SYS>>\\n' + system + '\\n<</SYS>>\\n\\n' + message['content'] %}
    {% else %}{% set content = message['content'] %}{% endif %}
    {% if message['role'] == 'user' %}
        {{- bos_token + '[INST] ' + content.strip() + ' [/INST]' }}
    {% else %}{{- ' ' + content.strip() + ' ' + eos_token }}{% endif %}
{% endfor %}"""
EVERYTHING = """{%- set ns = namespace(turns=0, last='') -%}
Today is {{ strftime_now('%Y') }}.
{% for message in messages %}
    {%- if message.role == 'system' %}{% continue %}{% endif %}
    {% set ns.turns = ns.turns + 1 %}
    {% generation %}{{ message.content | trim | upper }}{% endgeneration %}
    {% if ns.turns == 2 %}{% break %}{% endif %}
{% endfor %}
{{ messages | tojson }} {{ messages[0] | tojson(indent=2) }} {{ '<é>' | tojson }}
{% if add_generation_prompt %}<|assistant|>{% endif %}
{{ dict(a=1).a }} {{ dict.fromkeys(['x'], 2)['x'] }} {{ nothing is defined }} {{ tools is none }}
{{ 'ab' ~ 3 ~ none ~ 'é' }} {{ 'a' + 'b' }} {{ '%5d' % 3 }} {{ 'a-b'.replace('-', '+') }}
{{ 'x' | center(9) }} {{ 'a\nb' | indent(2) }} {{ [1, 2] | join(', ') }} {{ 1700000000 | string }}
{{ [3, 1] | sort | first }} {{ messages | map(attribute='role') | list }} {{ '{:>4}'.format(1) }}
{{ messages | selectattr('role', 'equalto', 'user') | list | length }} {{ 7 + 1 }} {{ 7 % 4 }}
{{ 'ab' * 3 }} {{ 2 ** 5 }} {{ 3 * 4 }} {{ ns.turns }} {{ undefined_value }}"""

NESTED = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
DOUBLING = "{% for i in range(99) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}"
TALK = [
    {"role": "user", "content": "  What is <b> & 'é'?\n"},
    {"role": "assistant", "content": "{{ 7 * 7 }} {% raw %}"},
    {"role": "user", "content": "😀"},
]
SYSTEM = [{"role": "system", "content": "Be short."}, *TALK]
TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}


@pytest.mark.parametrize("template", [INST, EVERYTHING])
@pytest.mark.parametrize("messages", [SYSTEM, TALK])
@pytest.mark.parametrize("prompted", [True, False])
def test_the_text_matches_transformers(template, messages, prompted):
    variables = {"add_generation_prompt": prompted, **TOKENS}
    expected, _ = render_jinja_template([messages], chat_template=template, **variables)
    assert render_chat_template(template, messages, **variables) == expected[0]


@pytest.mark.parametrize(
    ("template", "words"),
    [
        (INST, r"does not take this conversation \(Roles must"),
        ("{% for", "unexpected"),
        ("{% include 'x' %}", "no loader"),
        ("{% for i in range(10**9) %}x{% endfor %}", "does not take"),
        ("{% for i in range(99999) %}{{ 'x' * 9999 }}{% endfor %}", "more than 10000000"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "does not take"),
        ("{{ " + "(" * 5000 + ")" * 5000 + " }}", "does not take"),
        ("{{ 'x' * 10**10 }}", "a product has more than 10000000"),
        ("{{ 10 ** (10 ** 10) }}", "a product has more than 10000000"),
        ("{{ messages * 10**8 }}", "a product has more than 10000000"),
        (NESTED, "takes more than 0.2 s or 200 MB"),
        ("{% set ns = namespace(s='xxxx') %}" + DOUBLING, "takes more than 0.2 s or 200 MB"),
    ],
    ids=lambda value: value[:30],
)
def test_an_invalid_template_is_refused(template, words, monkeypatch):
    monkeypatch.setattr(chat_template, "MAX_S", 0.2)
    with pytest.raises(EdgeError, match=words) as error:
        render_chat_template(template, [TALK[0], TALK[0]], add_generation_prompt=True, **TOKENS)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''['__class__'] }}",
        "{{ raise_exception.__globals__ }}",
        "{{ dict.__call__.__globals__ }}",
        "{{ '{0.__class__}'.format(messages) }}",
        "{{ messages.append(1) }}",
    ],
)
def test_a_template_cannot_reach_python_objects(template):
    try:
        text = render_chat_template(template, TALK)
    except EdgeError as error:
        assert "\n" not in str(error)
    else:  # undefined in jinja2's sandbox
        assert text == ""
