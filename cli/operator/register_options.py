"""The arguments and options of ``headrace register``."""

from pathlib import Path
from typing import Annotated

import typer

from headrace.store.registry.engine_spec import EngineKind

Source = Annotated[
    Path | None, typer.Argument(help="A folder in the Hugging Face layout, with safetensors.", show_default=False)
]
Dtype = Annotated[str, typer.Option(help="auto, bfloat16, float32, float16, or int8 if it is close enough.")]
Sampling = Annotated[
    str | None,
    typer.Option(
        metavar="NAME=VALUE,…",
        help="How tokens are chosen where a request does not say, such as temperature=0.2,top_p=0.9. For files "
        "that are registered already it replaces their defaults. By default: the model's generation_config.json.",
    ),
]
Golden = Annotated[
    Path | None,
    typer.Option(
        help='JSON, a list of {"prompt": "...", "tokens": [1, 2]}: prompts with the tokens that the model must answer.'
    ),
]
Engine = Annotated[EngineKind, typer.Option(help="What runs it: Headrace, or an inference server.")]
Task = Annotated[
    str | None, typer.Option(help="A task of an installed package, which SOURCE serves (docs/extending.md).")
]
Folder = Annotated[Path | None, typer.Option("--source", help="The same as SOURCE.")]
Hub = Annotated[
    str | None,
    typer.Option(metavar="ORG/NAME[@REVISION]", help="Instead of SOURCE: download this model of the Hugging Face hub."),
]
Base = Annotated[
    str | None, typer.Option(help="SOURCE is a LoRA adapter of this version; the workers of that version serve it.")
]
Url = Annotated[
    str | None,
    typer.Option(
        help="The server's address, such as http://host:8000. Without it each worker starts a server on SOURCE."
    ),
]
ServedModel = Annotated[str | None, typer.Option(help="The model's name in the server; by default NAME.")]
Tokenizer = Annotated[
    Path | None, typer.Option(help="The folder of the tokenizer's files; by default SOURCE. openai needs none.")
]
Adapter = Annotated[str | None, typer.Option(help="The server's LoRA adapter to which requests go.")]
Revision = Annotated[str | None, typer.Option(help="The revision that the server must have.")]
Quantization = Annotated[str | None, typer.Option(help="The quantization that the server must have.")]
ContextWindow = Annotated[
    int | None, typer.Option(min=1, help="Tokens that the server must take; by default those of config.json.")
]
BatchInvariant = Annotated[
    bool, typer.Option("--batch-invariant", help="The server must compute each answer as if it were alone.")
]
Accepts = Annotated[
    str | None, typer.Option(metavar="images", help="With the engine openai: its model takes images in messages.")
]
