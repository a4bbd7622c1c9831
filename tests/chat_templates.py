"""Chat templates of the forms that Llama 2 and 3, Jais 2 and Granite have, and conversations."""

LLAMA2 = """\
{% if messages[0]['role'] == 'system' %}
    {% set loop_messages = messages[1:] %}
    {% set system = messages[0]['content'] %}
{% else %}
    {% set loop_messages = messages %}
    {% set system = false %}
{% endif %}
{% for message in loop_messages %}
    {% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{ raise_exception('Roles must alternate user/assistant/user/assistant!') }}
    {% endif %}
    {% if loop.index0 == 0 and system %}
        {% set content = '<<SYS>>\\n' + system + '\\n<</SYS>>\\n\\n' + message['content'] %}
    {% else %}
        {% set content = message['content'] %}
    {% endif %}
    {% if message['role'] == 'user' %}
{{- bos_token + '[INST] ' + content.strip() + ' [/INST]' -}}
    {% elif message['role'] == 'assistant' %}
{{- ' ' + content.strip() + ' ' + eos_token -}}
    {% endif %}
{% endfor %}
"""

LLAMA3 = """\
{{- bos_token }}
{%- if not tools is defined or tools is none %}
    {%- set tools = [] %}
{%- endif %}
{%- if date_string is not defined %}
    {%- set date_string = strftime_now("%d %b %Y") %}
{%- endif %}
{%- if messages[0]["role"] == "system" %}
    {%- set system = messages[0]["content"] | trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{{- "Today Date: " + date_string + "\\n\\n" + system }}
{%- for tool in tools %}
    {{- tool | tojson(indent=4) }}
    {{- "\\n\\n" }}
{%- endfor %}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {%- if "tool_calls" in message %}
        {{- message.tool_calls[0].function | tojson }}
        {%- continue %}
    {%- endif %}
    {{- "<|start_header_id|>" + message["role"] + "<|end_header_id|>\\n\\n" }}
    {{- message["content"] | trim + "<|eot_id|>" }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- "<|start_header_id|>assistant<|end_header_id|>\\n\\n" }}
{%- endif %}
"""

JAIS2 = (
    "{{ bos_token }}{% for message in messages %}"
    "{% set role = 'ai' if message['role'] == 'assistant' else message['role'] %}"
    "{{ '<|start_header_id|>' + role + '<|end_header_id|>' + message['content'] + '<|eot_id|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>ai<|end_header_id|>' }}{% endif %}"
)

GRANITE = """\
{%- if messages[0]['role'] == 'system' %}
    {%- set system = messages[0]['content'] %}
    {%- set rest = messages[1:] %}
{%- else %}
    {%- set system = "Today's Date: " + strftime_now('%B %d, %Y') + ". You are Granite." %}
    {%- if tools and documents %}
        {%- set system = system + " Use tools and documents." %}
    {%- elif tools %}
        {%- set system = system + " Use tools." %}
    {%- elif documents %}
        {%- set system = system + " Use documents." %}
    {%- elif thinking %}
        {%- set system = system + " Think first." %}
    {%- endif %}
    {%- set rest = messages %}
{%- endif %}
{{- '<|start_of_role|>system<|end_of_role|>' + system + '<|end_of_text|>\\n' }}
{%- if tools %}
    {{- '<|start_of_role|>tools<|end_of_role|>' + tools | tojson(indent=4) + '<|end_of_text|>\\n' }}
{%- endif %}
{%- for document in documents or [] %}
    {{- '<|start_of_role|>document ' + document['title'] | tojson + '<|end_of_role|>' }}
    {{- document['text'] + '<|end_of_text|>\\n' }}
{%- endfor %}
{%- for message in rest %}
    {{- '<|start_of_role|>' + message['role'] + '<|end_of_role|>' }}
    {{- message['content'] + '<|end_of_text|>\\n' }}
    {%- if loop.last and add_generation_prompt %}
        {{- '<|start_of_role|>assistant' }}
        {%- if controls %}{{- ' ' + controls | tojson }}{%- endif %}
        {{- '<|end_of_role|>' }}
    {%- endif %}
{%- endfor %}"""

#: what else templates do
OTHER = """\
{%- set found = namespace(count=0, last='') -%}
{%- macro say(text, end='.') %}{{ text }}{{ end }}{% endmacro -%}
{% for message in messages %}
    {% if message.role == 'tool' %}
        {% continue %}
    {% endif %}
    {% if message.content == 'stop' %}
        {% break %}
    {% endif %}
    {% generation %}
    {% set found.count = found.count + 1 %}
{{ say(message.content, end='!') }}
    {% endgeneration %}
{% endfor %}
{% generation %}
    {% set hidden = 'inside' %}
{% endgeneration %}
{{ found.count }} {{ hidden is defined }} {{ pad_token is defined }} {{ tools is none }}
{{ messages | tojson(sort_keys=true, separators=(',', ':')) }}
{{ messages[0] | tojson(ensure_ascii=true) }}
{{ dict(a=1)['a'] }} {{ messages | map(attribute='role') | join('/') }} {{ '<é>' | tojson }}
"""

TEMPLATES = {
    "llama2": LLAMA2,
    "llama3": LLAMA3,
    "jais2": JAIS2,
    "granite": GRANITE,
    "other": OTHER,
}

CHAT = [
    {"role": "user", "content": "  مرحبا، كيف حالك؟ "},
    {"role": "assistant", "content": 'Très bien & <vous> "même" ?\n\n'},
    {"role": "user", "content": "stop"},
]
SYSTEM_CHAT = [{"role": "system", "content": "Réponds en français."}, *CHAT]
CALL_CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "What is the weather?", "name": None},
    {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"function": {"name": "weather", "arguments": {"city": "باريس"}}}],
    },
    {"role": "user", "content": "Thanks <|eot_id|>"},
]
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "The weather's state — in °C",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
        },
    }
]
DOCUMENTS = [{"title": 'Le "guide"', "text": "Paris est <grand>."}]

GOLDEN_CHATS = {"system": SYSTEM_CHAT, "calls": CALL_CHAT}
#: none whose prompt holds the date of the day
GOLDEN_OPTIONS = (
    {"date_string": "1 Jan 2026"},
    {"date_string": "1 Jan 2026", "add_generation_prompt": True, "tools": TOOLS},
    {"date_string": "1 Jan 2026", "documents": DOCUMENTS, "controls": {"length": "long"}},
)

#: of Granite Speech: with role tokens, and as a dialogue
ROLES = (
    "{% for m in messages %}<|start_of_role|>{{ m['role'] }}<|end_of_role|>{{ m['content'] }}"
    "<|end_of_text|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start_of_role|>assistant<|end_of_role|>{% endif %}"
)
# as that of Granite 3.3, with a system message where none is given
DATED = (
    "{%- if messages[0]['role'] != 'system' %}<|start_of_role|>system<|end_of_role|>"
    "Today's Date: {{ strftime_now('%B %d, %Y') }}.<|end_of_text|>\n{% endif -%}" + ROLES
)
USER_ASSISTANT = (
    "{% for m in messages %}{% if m['role'] == 'user' %}USER: {{ m['content'] }}\n ASSISTANT:"
    "{% else %}{{ m['content'] }}{% endif %}{% endfor %}"
)
