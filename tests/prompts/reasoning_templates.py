"""Chat templates in the manner of those of reasoning models, reduced to what they do with it."""

_TURNS = """\
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' }}
    {%- if message.reasoning_content is defined %}
        {{- '<think>\\n' + message.reasoning_content + '\\n</think>\\n\\n' }}
    {%- endif %}
    {{- message.content + '<|im_end|>\\n' }}
{%- endfor %}
{{- '<|im_start|>assistant\\n' }}"""

SWITCHED = (
    _TURNS
    + """
{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}"""
)
"""Qwen 3: it reasons unless it is switched off, and writes the opening itself."""

SWITCHED_ON = _TURNS + "{{- '<think>\\n' if thinking is defined and thinking else '<think>\\n\\n</think>\\n' }}"
"""DeepSeek V3.1: it reasons if it is switched on."""

ALWAYS = _TURNS + "{{- '<think>\\n' }}{#- </think> #}"
"""DeepSeek R1: it always reasons, and the prompt ends with the opening."""

LEVELS = """\
{{- '<|start|>system<|message|>effort: ' + (reasoning_effort or 'medium') + '\\nchannels: analysis, final<|end|>' }}
{%- for message in messages %}
    {{- '<|start|>' + message.role + '<|message|>' + message.content + '<|end|>' }}
{%- endfor %}
{{- '<|start|>assistant' }}{#- <|channel|> #}"""
"""gpt-oss: levels, and channels in place of marks."""
