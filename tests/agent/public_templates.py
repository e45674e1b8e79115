# ruff: noqa: E501 (data: long lines)
"""Chat templates in the form of 40 public ones, as data. All of them are ours: written after the published formats
(special tokens, roles, where tools and calls stand), not copied, for no two of their licences agree on copying.

Of each: the models that it stands for, its source, the tokens that its tokenizer keeps whole, the one that ends a turn.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Public:
    models: str
    source: str
    end: str  # of the assistant's turn; "": none
    marks: tuple[str, ...]  # other tokens of the vocabulary that stand for themselves
    eos: str | None = None  # where it is another than `end`
    plain_end: bool = False  # the token that ends a turn is not "special"
    variables: tuple[tuple[str, object], ...] = ()


CHATML_MARKS = ("<|im_start|>", "<|im_end|>", "<|endoftext|>")
TURN = "{{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}"
SPEAK = "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
LOOP = "{%- for m in messages %}"
END = "{%- endfor %}"
NO_SYSTEM_ROLE = "{%- if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{%- endif %}"
ALTERNATE = (
    "{%- for m in messages if m.role != 'system' %}{%- if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{%- endif %}{%- endfor %}"
)
THOUGHTLESS = "{%- set said = m.content.split('</think>')[-1].lstrip('\\n') %}"

HERMES_TOOLS = (
    "{%- if tools %}{{- '<|im_start|>system\\n' + (messages[0].content + '\\n\\n' if messages[0].role == 'system' else '')"
    " + '# Tools\\n\\n<tools>' }}{%- for t in tools %}{{- '\\n' + (t | tojson) }}{%- endfor %}"
    '{{- \'\\n</tools>\\n\\nFor each call:\\n<tool_call>\\n{"name": <name>, "arguments": <object>}\\n</tool_call>'
    "<|im_end|>\\n' }}{%- elif messages[0].role == 'system' %}"
    "{{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}{%- endif %}"
)
TOOL_RESPONSE = (
    "{%- elif m.role == 'tool' %}{%- if loop.first or messages[loop.index0 - 1].role != 'tool' %}"
    "{{- '<|im_start|>user' }}{%- endif %}{{- '\\n<tool_response>\\n' + m.content + '\\n</tool_response>' }}"
    "{%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}{{- '<|im_end|>\\n' }}{%- endif %}"
)
HERMES_CALLS = (
    '{%- for c in m.tool_calls %}{{- \'\\n<tool_call>\\n{"name": "\' + c.function.name + \'", "arguments": \' '
    "+ (c.function.arguments | tojson) + '}\\n</tool_call>' }}{%- endfor %}"
)
HERMES = (
    HERMES_TOOLS + LOOP + "{%- if m.role == 'user' %}" + TURN
    + "{%- elif m.role == 'assistant' %}{{- '<|im_start|>assistant\\n' + m.content }}" + HERMES_CALLS
    + "{{- '<|im_end|>\\n' }}" + TOOL_RESPONSE + "{%- endif %}" + END + SPEAK
)  # fmt: skip
HIDES = HERMES.replace(
    "{{- '<|im_start|>assistant\\n' + m.content }}", THOUGHTLESS + "{{- '<|im_start|>assistant\\n' + said }}"
)
QWEN3 = HIDES.replace(
    SPEAK,
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- if enable_thinking is defined and not enable_thinking %}"
    "{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}{%- endif %}",
)
OPENS = SPEAK.replace("assistant\\n'", "assistant\\n<think>\\n'")
XML_CALLS = (
    "{%- for c in m.tool_calls %}{{- '\\n<tool_call>\\n<function=' + c.function.name + '>\\n' }}"
    "{%- for name, value in c.function.arguments.items() %}"
    "{{- '<parameter=' + name + '>\\n' + value + '\\n</parameter>\\n' }}{%- endfor %}"
    "{{- '</function>\\n</tool_call>' }}{%- endfor %}"
)
QWEN_CODER = HERMES.replace(HERMES_CALLS, XML_CALLS).replace(
    '<tool_call>\\n{\\"name\\": <name>, \\"arguments\\": <object>}\\n</tool_call>', ""
).replace(
    "<tool_call>\\n{\"name\": <name>, \"arguments\": <object>}\\n</tool_call>",
    "<tool_call>\\n<function=name>\\n<parameter=x>\\nvalue\\n</parameter>\\n</function>\\n</tool_call>",
)  # fmt: skip

LLAMA_HEAD = "'<|start_header_id|>' + {} + '<|end_header_id|>\\n\\n'"
LLAMA3 = (
    "{{- '<|begin_of_text|>' }}" + LOOP + "{{- " + LLAMA_HEAD.format("m.role") + " + (m.content | trim) + '<|eot_id|>' }}" + END
    + "{%- if add_generation_prompt %}{{- " + LLAMA_HEAD.format("'assistant'") + " }}{%- endif %}"
)  # fmt: skip
LLAMA31 = (
    "{%- if not date_string is defined %}{%- set date_string = strftime_now('%d %b %Y') %}{%- endif %}"
    "{{- '<|begin_of_text|>' }}{{- " + LLAMA_HEAD.format("'system'") + " }}"
    "{%- if tools %}{{- 'Environment: ipython\\n' }}{%- endif %}{{- 'Today Date: ' + date_string + '\\n\\n' }}"
    "{%- if messages[0].role == 'system' %}{{- messages[0].content | trim }}{%- set messages = messages[1:] %}{%- endif %}"
    "{{- '<|eot_id|>' }}"
    "{%- for m in messages %}{%- if loop.first and tools %}{{- " + LLAMA_HEAD.format("'user'") + " }}"
    "{{- 'Respond with JSON {\"name\": …, \"parameters\": …}.\\n\\n' }}{%- for t in tools %}{{- (t | tojson(indent=4)) + '\\n\\n' }}"
    "{%- endfor %}{{- (m.content | trim) + '<|eot_id|>' }}"
    "{%- elif m.tool_calls %}{{- " + LLAMA_HEAD.format("'assistant'") + " }}{%- set c = m.tool_calls[0].function %}"
    "{%- if builtin_tools is defined and c.name in builtin_tools %}{{- '<|python_tag|>' + c.name + '.call(' + ')<|eom_id|>' }}"
    "{%- else %}{{- '{\"name\": \"' + c.name + '\", \"parameters\": ' + (c.arguments | tojson) + '}<|eot_id|>' }}{%- endif %}"
    "{%- elif m.role in ('tool', 'ipython') %}{{- " + LLAMA_HEAD.format("'ipython'") + " + m.content + '<|eot_id|>' }}"
    "{%- else %}{{- " + LLAMA_HEAD.format("m.role") + " + (m.content | trim) + '<|eot_id|>' }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- " + LLAMA_HEAD.format("'assistant'") + " }}{%- endif %}"
)
LLAMA_MARKS = (
    "<|begin_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|python_tag|>",
)
LLAMA4 = (
    "{{- '<|begin_of_text|>' }}{%- if messages[0].role == 'system' or tools %}{{- '<|header_start|>system<|header_end|>\\n\\n' }}"
    "{%- if messages[0].role == 'system' %}{{- messages[0].content + '\\n' }}{%- endif %}{%- if tools %}"
    "{{- 'Call functions as [func_name1(params_name1=params_value1), func_name2(…)]\\n' }}"
    "{%- for t in tools %}{{- (t | tojson) + '\\n' }}{%- endfor %}{%- endif %}{{- '<|eot|>' }}{%- endif %}"
    "{%- for m in messages if m.role != 'system' %}"
    "{%- if m.role == 'tool' %}{{- '<|header_start|>ipython<|header_end|>\\n\\n' + (m.content | tojson) + '<|eot|>' }}"
    "{%- else %}{{- '<|header_start|>' + m.role + '<|header_end|>\\n\\n' + m.content }}{%- if m.tool_calls %}{{- '[' }}"
    "{%- for c in m.tool_calls %}{{- c.function.name + '(' }}{%- for k, v in c.function.arguments.items() %}"
    "{{- k + '=' + (v | tojson) }}{%- endfor %}{{- ')' }}{%- endfor %}{{- ']' }}{%- endif %}{{- '<|eot|>' }}{%- endif %}"
    "{%- endfor %}{%- if add_generation_prompt %}{{- '<|header_start|>assistant<|header_end|>\\n\\n' }}{%- endif %}"
)

MISTRAL1 = NO_SYSTEM_ROLE + ALTERNATE + (
    "{{- '<s>' }}" + LOOP + "{%- if m.role == 'user' %}{{- ' [INST] ' + m.content + ' [/INST]' }}"
    "{%- elif m.role == 'assistant' %}{{- ' ' + m.content + '</s>' }}"
    "{%- else %}{{ raise_exception('Only user and assistant roles are supported') }}{%- endif %}" + END
)  # fmt: skip
MISTRAL3 = (
    "{{- '<s>' }}{%- if tools %}{{- '[AVAILABLE_TOOLS] ' + (tools | tojson) + '[/AVAILABLE_TOOLS]' }}{%- endif %}" + LOOP
    + "{%- if m.role == 'system' %}{{- '[INST] ' + m.content + '[/INST]' }}"
    "{%- elif m.role == 'user' %}{{- '[INST] ' + m.content + '[/INST]' }}"
    "{%- elif m.tool_calls %}{{- '[TOOL_CALLS] [' }}{%- for c in m.tool_calls %}{{- '{\"name\": \"' + c.function.name + '\", "
    "\"arguments\": ' + (c.function.arguments | tojson) + ', \"id\": \"' + c.id + '\"}' }}{%- endfor %}{{- ']</s>' }}"
    "{%- elif m.role == 'assistant' %}{{- ' ' + m.content + '</s>' }}"
    "{%- elif m.role == 'tool' %}{%- if m.tool_call_id is not defined or m.tool_call_id | length != 9 %}"
    "{{ raise_exception('Tool call IDs should be alphanumeric strings with length 9!') }}{%- endif %}"
    "{{- '[TOOL_RESULTS] {\"content\": ' + m.content + ', \"call_id\": \"' + m.tool_call_id + '\"}[/TOOL_RESULTS]' }}"
    "{%- endif %}" + END
)  # fmt: skip
MISTRAL_MARKS = ("<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_CALLS]", "[TOOL_RESULTS]",
                 "[/TOOL_RESULTS]", "[ARGS]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[THINK]", "[/THINK]")  # fmt: skip
MISTRAL_SMALL = (
    "{%- set today = strftime_now('%Y-%m-%d') %}{{- '<s>[SYSTEM_PROMPT]' }}"
    "{%- if messages[0].role == 'system' %}{{- messages[0].content }}{%- else %}{{- 'The current date is ' + today + '.' }}{%- endif %}"
    "{{- '[/SYSTEM_PROMPT]' }}{%- if tools %}{{- '[AVAILABLE_TOOLS]' + (tools | tojson) + '[/AVAILABLE_TOOLS]' }}{%- endif %}"
    "{%- for m in messages if m.role != 'system' %}{%- if m.role == 'user' %}{{- '[INST]' + m.content + '[/INST]' }}"
    "{%- elif m.role == 'assistant' %}{{- m.content }}{%- for c in m.tool_calls %}"
    "{{- '[TOOL_CALLS]' + c.function.name + '[ARGS]' + (c.function.arguments | tojson) }}{%- endfor %}{{- '</s>' }}"
    "{%- elif m.role == 'tool' %}{{- '[TOOL_RESULTS]' + m.content + '[/TOOL_RESULTS]' }}{%- endif %}{%- endfor %}"
)

GEMMA_MARKS = ("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>")
GEMMA2 = "{{- '<bos>' }}" + NO_SYSTEM_ROLE + ALTERNATE + LOOP + (
    "{{- '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\\n' + (m.content | trim) + '<end_of_turn>\\n' }}"
) + END + "{%- if add_generation_prompt %}{{- '<start_of_turn>model\\n' }}{%- endif %}"  # fmt: skip
GEMMA3 = (
    "{{- '<bos>' }}{%- set first = messages[0].content + '\\n\\n' if messages[0].role == 'system' else '' %}"
    "{%- set rest = messages[1:] if messages[0].role == 'system' else messages %}"
    "{%- for m in rest %}{%- if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Conversation roles must alternate') }}"
    "{%- endif %}{{- '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\\n' + (first if loop.first else '')"
    " + (m.content | trim) + '<end_of_turn>\\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<start_of_turn>model\\n' }}{%- endif %}"
)

PHI3 = LOOP + "{{- '<|' + m.role + '|>\\n' + m.content + '<|end|>\\n' }}" + END + (
    "{%- if add_generation_prompt %}{{- '<|assistant|>\\n' }}{%- else %}{{- '<|endoftext|>' }}{%- endif %}"
)  # fmt: skip
PHI4 = LOOP + "{{- '<|im_start|>' + m.role + '<|im_sep|>' + m.content + '<|im_end|>' }}" + END + (
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant<|im_sep|>' }}{%- endif %}"
)  # fmt: skip
PHI4_MINI = LOOP + (
    "{%- if m.role == 'system' and tools %}{{- '<|system|>' + m.content + '<|tool|>' + (tools | tojson) + '<|/tool|><|end|>' }}"
    "{%- else %}{{- '<|' + m.role + '|>' + m.content + '<|end|>' }}{%- endif %}"
) + END + "{%- if add_generation_prompt %}{{- '<|assistant|>' }}{%- endif %}"  # fmt: skip

DS_MARKS = ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>", "<｜tool▁calls▁begin｜>",
            "<｜tool▁calls▁end｜>", "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>", "<｜tool▁sep｜>", "<｜tool▁outputs▁begin｜>",
            "<｜tool▁outputs▁end｜>", "<｜tool▁output▁begin｜>", "<｜tool▁output▁end｜>")  # fmt: skip
DS_SPEAK = "{%- if add_generation_prompt and messages[-1].role != 'tool' %}{{- '<｜Assistant｜>' }}{%- endif %}"
DEEPSEEK3 = (
    "{{- '<｜begin▁of▁sentence｜>' }}{%- if messages[0].role == 'system' %}{{- messages[0].content }}{%- endif %}" + LOOP
    + "{%- if m.role == 'user' %}{{- '<｜User｜>' + m.content }}"
    "{%- elif m.tool_calls %}{{- '<｜Assistant｜><｜tool▁calls▁begin｜>' }}{%- for c in m.tool_calls %}"
    "{{- '<｜tool▁call▁begin｜>function<｜tool▁sep｜>' + c.function.name + '\\n```json\\n' + (c.function.arguments | tojson) "
    "+ '\\n```<｜tool▁call▁end｜>' }}{%- endfor %}{{- '<｜tool▁calls▁end｜><｜end▁of▁sentence｜>' }}"
    "{%- elif m.role == 'assistant' %}{{- '<｜Assistant｜>' + m.content + '<｜end▁of▁sentence｜>' }}"
    "{%- elif m.role == 'tool' %}{{- '<｜tool▁outputs▁begin｜><｜tool▁output▁begin｜>' + m.content "
    "+ '<｜tool▁output▁end｜><｜tool▁outputs▁end｜>' }}{%- endif %}" + END + DS_SPEAK
)  # fmt: skip
R1 = DEEPSEEK3.replace("'<｜Assistant｜>' + m.content", "'<｜Assistant｜>' + m.content.split('</think>')[-1]").replace(
    DS_SPEAK, DS_SPEAK.replace("'<｜Assistant｜>'", "'<｜Assistant｜><think>\\n'")
)
DEEPSEEK31 = (
    "{{- '<｜begin▁of▁sentence｜>' }}{%- if messages[0].role == 'system' %}{{- messages[0].content }}{%- endif %}"
    "{%- if tools %}{{- '\\n\\n## Tools\\n' }}{%- for t in tools %}{{- '\\n### ' + t.function.name + '\\n' + (t.function | tojson) }}"
    "{%- endfor %}{{- '\\nCall: <｜tool▁calls▁begin｜><｜tool▁call▁begin｜>NAME<｜tool▁sep｜>{…}<｜tool▁call▁end｜><｜tool▁calls▁end｜>' }}"
    "{%- endif %}" + LOOP + "{%- if m.role == 'user' %}{{- '<｜User｜>' + m.content }}"
    "{%- elif m.role == 'assistant' %}{{- '<｜Assistant｜></think>' + m.content }}{%- if m.tool_calls %}{{- '<｜tool▁calls▁begin｜>' }}"
    "{%- for c in m.tool_calls %}{{- '<｜tool▁call▁begin｜>' + c.function.name + '<｜tool▁sep｜>' + (c.function.arguments | tojson) "
    "+ '<｜tool▁call▁end｜>' }}{%- endfor %}{{- '<｜tool▁calls▁end｜>' }}{%- endif %}{{- '<｜end▁of▁sentence｜>' }}"
    "{%- elif m.role == 'tool' %}{{- '<｜tool▁output▁begin｜>' + m.content + '<｜tool▁output▁end｜>' }}{%- endif %}" + END
    + "{%- if add_generation_prompt and messages[-1].role != 'tool' %}{{- '<｜Assistant｜>' }}"
    "{{- '<think>' if thinking is defined and thinking else '</think>' }}{%- endif %}"
)  # fmt: skip

GLM_MARKS = ("[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>", "<|endoftext|>")
GLM45 = (
    "{{- '[gMASK]<sop>' }}{%- if tools %}{{- '<|system|>\\n# Tools\\n<tools>\\n' }}{%- for t in tools %}{{- (t | tojson) + '\\n' }}"
    "{%- endfor %}{{- '</tools>\\nCall: <tool_call>{name}\\n<arg_key>{key}</arg_key>\\n<arg_value>{value}</arg_value>\\n</tool_call>' }}"
    "{%- endif %}" + LOOP + "{%- if m.role == 'tool' %}{{- '<|observation|>\\n<tool_response>\\n' + m.content + '\\n</tool_response>' }}"
    "{%- elif m.role == 'assistant' %}" + THOUGHTLESS + "{{- '<|assistant|>\\n' + said }}{%- for c in m.tool_calls %}"
    "{{- '\\n<tool_call>' + c.function.name + '\\n' }}{%- for k, v in c.function.arguments.items() %}"
    "{{- '<arg_key>' + k + '</arg_key>\\n<arg_value>' + v + '</arg_value>\\n' }}{%- endfor %}{{- '</tool_call>' }}{%- endfor %}"
    "{%- else %}{{- '<|' + m.role + '|>\\n' + m.content }}{%- endif %}" + END
    + "{%- if add_generation_prompt %}{{- '<|assistant|>' }}{%- if enable_thinking is defined and not enable_thinking %}"
    "{{- '\\n<think></think>' }}{%- endif %}{%- endif %}"
)  # fmt: skip
GLM4 = (
    "{{- '[gMASK]<sop>' }}{%- if tools %}{{- '<|system|>\\n' }}{%- for t in tools %}{{- '## ' + t.function.name + '\\n' "
    "+ (t.function | tojson) }}{%- endfor %}{%- endif %}" + LOOP
    + "{{- '<|' + ('observation' if m.role == 'tool' else m.role) + '|>\\n' + m.content }}" + END
    + "{%- if add_generation_prompt %}{{- '<|assistant|>' }}{%- endif %}"
)  # fmt: skip

HARMONY_MARKS = ("<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|constrain|>", "<|call|>", "<|return|>")
HARMONY = (
    "{{- '<|start|>system<|message|>You are ChatGPT.\\nCurrent date: ' + strftime_now('%Y-%m-%d') + '\\n\\nReasoning: ' "
    "+ (reasoning_effort if reasoning_effort is defined else 'medium') + '<|end|>' }}"
    "{%- if messages[0].role == 'system' or tools %}{{- '<|start|>developer<|message|>' }}"
    "{%- if messages[0].role == 'system' %}{{- '# Instructions\\n\\n' + messages[0].content + '\\n\\n' }}{%- endif %}"
    "{%- if tools %}{{- '# Tools\\n\\nnamespace functions {\\n' }}{%- for t in tools %}{{- 'type ' + t.function.name + ' = (_: '"
    " + (t.function.parameters | tojson) + ') => any;\\n' }}{%- endfor %}{{- '}' }}{%- endif %}{{- '<|end|>' }}{%- endif %}"
    "{%- set last = namespace(name=none) %}{%- for m in messages if m.role != 'system' %}"
    "{%- if m.role == 'user' %}{{- '<|start|>user<|message|>' + m.content + '<|end|>' }}"
    "{%- elif m.tool_calls %}{%- set c = m.tool_calls[0].function %}{%- set last.name = c.name %}"
    "{{- '<|start|>assistant<|channel|>commentary to=functions.' + c.name + ' <|constrain|>json<|message|>' + (c.arguments | tojson) "
    "+ '<|call|>' }}"
    "{%- elif m.role == 'assistant' %}{{- '<|start|>assistant<|channel|>final<|message|>' + m.content }}"
    "{{- '<|return|>' if loop.last and not add_generation_prompt else '<|end|>' }}"
    "{%- elif last.name is none %}"
    "{{ raise_exception('Message has tool role, but there was no previous assistant message with a tool call!') }}"
    "{%- else %}{{- '<|start|>functions.' + last.name + ' to=assistant<|channel|>commentary<|message|>' + (m.content | tojson) "
    "+ '<|end|>' }}{%- endif %}{%- endfor %}{%- if add_generation_prompt %}{{- '<|start|>assistant' }}{%- endif %}"
)

GRANITE_MARKS = ("<|start_of_role|>", "<|end_of_role|>", "<|end_of_text|>", "<|tool_call|>")
GRANITE = (
    "{%- if messages[0].role != 'system' %}{{- '<|start_of_role|>system<|end_of_role|>Today\\'s Date: ' "
    "+ strftime_now('%B %d, %Y') + '.<|end_of_text|>\\n' }}{%- endif %}"
    "{%- if tools %}{{- '<|start_of_role|>tools<|end_of_role|>' + (tools | tojson) + '<|end_of_text|>\\n' }}{%- endif %}" + LOOP
    + "{{- '<|start_of_role|>' + ('tool_response' if m.role == 'tool' else m.role) + '<|end_of_role|>' + m.content "
    "+ '<|end_of_text|>\\n' }}" + END
    + "{%- if add_generation_prompt %}{{- '<|start_of_role|>assistant<|end_of_role|>' }}{%- endif %}"
)  # fmt: skip
COHERE = (
    "{{- '<BOS_TOKEN>' }}{%- if messages[0].role == 'system' or tools %}{{- '<|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>' }}"
    "{%- if messages[0].role == 'system' %}{{- messages[0].content }}{%- endif %}"
    "{%- for t in tools or [] %}{{- '\\n' + (t | tojson) }}{%- endfor %}{{- '<|END_OF_TURN_TOKEN|>' }}{%- endif %}"
    "{%- for m in messages if m.role != 'system' %}{{- '<|START_OF_TURN_TOKEN|>' + ('<|CHATBOT_TOKEN|>' if m.role == 'assistant' else "
    "'<|SYSTEM_TOKEN|>' if m.role == 'tool' else '<|USER_TOKEN|>') + m.content + '<|END_OF_TURN_TOKEN|>' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>' }}{%- endif %}"
)
KIMI = (
    "{%- if tools %}{{- '<|im_system|>tool_declare<|im_middle|>' + (tools | tojson) + '<|im_end|>' }}{%- endif %}" + LOOP
    + "{{- '<|im_' + (m.role if m.role in ('user', 'assistant') else 'system') + '|>' + m.role + '<|im_middle|>' }}"
    "{%- if m.role == 'tool' %}{{- '## Return of ' + (m.tool_call_id or '') + '\\n' }}{%- endif %}{{- m.content + '<|im_end|>' }}" + END
    + "{%- if add_generation_prompt %}{{- '<|im_assistant|>assistant<|im_middle|>' }}{%- endif %}"
)  # fmt: skip
ZEPHYR = LOOP + "{{- '<|' + m.role + '|>\\n' + m.content + '</s>\\n' }}" + END + (
    "{%- if add_generation_prompt %}{{- '<|assistant|>\\n' }}{%- endif %}"
)  # fmt: skip
OLMO = "{{- '<|endoftext|>' }}" + LOOP + (
    "{%- if m.role == 'assistant' %}{{- '<|assistant|>\\n' + m.content + '<|endoftext|>' }}{%- if not loop.last %}{{- '\\n' }}{%- endif %}"
    "{%- elif m.role in ('user', 'system') %}{{- '<|' + m.role + '|>\\n' + m.content + '\\n' }}{%- endif %}"
) + END + "{%- if add_generation_prompt %}{{- '<|assistant|>\\n' }}{%- endif %}"  # fmt: skip
LLAMA2 = ALTERNATE + (
    "{%- set system = '<<SYS>>\\n' + messages[0].content + '\\n<</SYS>>\\n\\n' if messages[0].role == 'system' else '' %}"
    "{%- for m in messages if m.role != 'system' %}{%- if m.role == 'user' %}"
    "{{- '<s>[INST] ' + (system if loop.first else '') + (m.content | trim) + ' [/INST]' }}"
    "{%- else %}{{- ' ' + (m.content | trim) + ' </s>' }}{%- endif %}{%- endfor %}"
)  # fmt: skip
FALCON = LOOP + "{{- '<|' + m.role + '|>\\n' + m.content }}{%- if m.role == 'assistant' %}{{- '<|endoftext|>' }}{%- endif %}{{- '\\n' }}" + END + (
    "{%- if add_generation_prompt %}{{- '<|assistant|>\\n' }}{%- endif %}"
)  # fmt: skip
VICUNA = (
    "{%- if messages[0].role == 'system' %}{{- messages[0].content + ' ' }}{%- endif %}"
    "{%- for m in messages if m.role != 'system' %}{%- if m.role == 'user' %}{{- 'USER: ' + m.content + ' ' }}"
    "{%- elif m.role == 'assistant' %}{{- 'ASSISTANT: ' + m.content + '</s>' }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- 'ASSISTANT:' }}{%- endif %}"
)

IM, EOT = "<|im_end|>", "<|eot_id|>"
PUBLIC: dict[str, Public] = {
    "chatml": Public("Yi 1.5, OpenHermes 2.5", LOOP + TURN + END + SPEAK, IM, CHATML_MARKS),
    "smollm2": Public("SmolLM2", "{%- if messages[0].role != 'system' %}{{- '<|im_start|>system\\nYou are a helpful assistant<|im_end|>\\n' }}"
                      "{%- endif %}" + LOOP + TURN + END + SPEAK, IM, CHATML_MARKS),
    "smollm3": Public("SmolLM3", HIDES.replace("'# Tools", "'Today Date: ' + strftime_now('%d %B %Y') + '\\n# Tools"), IM, CHATML_MARKS),
    "qwen2.5": Public("Qwen 2.5 (also Coder, Math)", HERMES, IM, CHATML_MARKS, eos="<|endoftext|>"),
    "qwq": Public("QwQ 32B", HIDES.replace(SPEAK, OPENS), IM, CHATML_MARKS),
    "qwen3": Public("Qwen 3", QWEN3, IM, CHATML_MARKS),
    "qwen3, no thinking": Public("Qwen 3 with enable_thinking = false", QWEN3, IM, CHATML_MARKS, variables=(("enable_thinking", False),)),
    "qwen3-thinking": Public("Qwen 3 Thinking 2507", HIDES.replace(SPEAK, OPENS), IM, CHATML_MARKS),
    "qwen3-instruct": Public("Qwen 3 Instruct 2507", HERMES, IM, CHATML_MARKS),
    "qwen3-coder": Public("Qwen 3 Coder", QWEN_CODER, IM, CHATML_MARKS),
    "qwen3.5": Public("Qwen 3.5", QWEN_CODER.replace(SPEAK, OPENS), IM, CHATML_MARKS),
    "hermes3": Public("Hermes 2 Pro, Hermes 3", HERMES.replace("<|im_start|>user' }}", "<|im_start|>tool' }}"), IM, CHATML_MARKS),
    "internlm": Public("InternLM 2.5 and 3", "{{- '<s>' }}" + LOOP + TURN + END + SPEAK, IM, (*CHATML_MARKS, "<s>", "</s>"), eos="</s>"),
    "llama2": Public("Llama 2", LLAMA2, "</s>", ("<s>", "</s>", "[INST]", "[/INST]")),
    "llama3": Public("Llama 3", LLAMA3, EOT, LLAMA_MARKS),
    "llama3.1": Public("Llama 3.1, 3.2, 3.3", LLAMA31, EOT, LLAMA_MARKS),
    "llama4": Public("Llama 4", LLAMA4, "<|eot|>", ("<|begin_of_text|>", "<|header_start|>", "<|header_end|>", "<|eot|>", "<|eom|>")),
    "tulu3": Public("Tülu 3", OLMO.replace("{{- '<|endoftext|>' }}" + LOOP, LOOP), "<|endoftext|>", ("<|endoftext|>",)),
    "mistral-v1": Public("Mistral 7B v0.1 and v0.2, Mixtral", MISTRAL1, "</s>", MISTRAL_MARKS),
    "mistral-v3": Public("Mistral 7B v0.3, Nemo, Large 2407", MISTRAL3, "</s>", MISTRAL_MARKS),
    "mistral-small": Public("Mistral Small 3.1 and 3.2, Devstral", MISTRAL_SMALL, "</s>", MISTRAL_MARKS),
    "magistral": Public("Magistral", MISTRAL_SMALL.replace("{{- m.content }}", "{{- m.content.split('[/THINK]')[-1] }}"), "</s>",
                        MISTRAL_MARKS),
    "gemma2": Public("Gemma 1 and 2", GEMMA2, "<end_of_turn>", GEMMA_MARKS, eos="<eos>"),
    "gemma3": Public("Gemma 3", GEMMA3, "<end_of_turn>", GEMMA_MARKS, eos="<eos>", plain_end=True),
    "phi3": Public("Phi 3 and 3.5 mini", PHI3, "<|end|>", ("<|user|>", "<|assistant|>", "<|system|>", "<|end|>", "<|endoftext|>"),
                   eos="<|endoftext|>", plain_end=True),
    "phi4": Public("Phi 4", PHI4, IM, (*CHATML_MARKS, "<|im_sep|>")),
    "phi4-mini": Public("Phi 4 mini", PHI4_MINI, "<|end|>", ("<|user|>", "<|assistant|>", "<|system|>", "<|end|>", "<|tool|>", "<|/tool|>",
                        "<|endoftext|>"), eos="<|endoftext|>", plain_end=True),
    "deepseek-v3": Public("DeepSeek V3", DEEPSEEK3, "<｜end▁of▁sentence｜>", DS_MARKS),
    "deepseek-r1": Public("DeepSeek R1 and its distillations", R1, "<｜end▁of▁sentence｜>", DS_MARKS),
    "deepseek-v3.1": Public("DeepSeek V3.1", DEEPSEEK31, "<｜end▁of▁sentence｜>", DS_MARKS),
    "glm4": Public("GLM 4 9B", GLM4, "", GLM_MARKS, eos="<|endoftext|>"),
    "glm4.5": Public("GLM 4.5 to 4.7", GLM45, "", GLM_MARKS, eos="<|endoftext|>"),
    "gpt-oss": Public("gpt-oss 20B and 120B", HARMONY, "<|return|>", HARMONY_MARKS),
    "granite": Public("Granite 3", GRANITE, "<|end_of_text|>", GRANITE_MARKS),
    "command-r": Public("Command R", COHERE, "<|END_OF_TURN_TOKEN|>", ("<BOS_TOKEN>", "<|START_OF_TURN_TOKEN|>", "<|END_OF_TURN_TOKEN|>",
                        "<|SYSTEM_TOKEN|>", "<|USER_TOKEN|>", "<|CHATBOT_TOKEN|>")),
    "kimi-k2": Public("Kimi K2", KIMI, IM, ("<|im_system|>", "<|im_user|>", "<|im_assistant|>", "<|im_middle|>", IM)),
    "zephyr": Public("Zephyr, TinyLlama", ZEPHYR, "</s>", ("<s>", "</s>")),
    "olmo2": Public("OLMo 2", OLMO, "<|endoftext|>", ("<|endoftext|>",)),
    "falcon3": Public("Falcon 3", FALCON, "<|endoftext|>", ("<|endoftext|>",)),
    "vicuna": Public("Vicuna 1.5", VICUNA, "</s>", ("<s>", "</s>")),
}  # fmt: skip
