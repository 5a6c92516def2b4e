"""The command of the voice Kokoro."""

from headrace.cli.groups import Node, VerbsPart

PART = VerbsPart(
    {
        "kokoro": Node(
            "Write the model folder of the voice Kokoro.",
            "headrace.features.speech.kokoro_folder:write_folder",
            panel="Models, queues, webhooks",
        )
    }
)
