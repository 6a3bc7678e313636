"""Ray's OpenAI ingress, on loopback if the cluster is. Only loaded by dotted name, in the ingress replica."""

from typing import Any

from ray.serve.llm.ingress import OpenAiIngress

from cpo_ray.cluster.loopback import keep_serve_on_loopback


class Ingress(OpenAiIngress):
    """The OpenAI-compatible API in front of all engines."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        keep_serve_on_loopback()
        super().__init__(*arguments, **options)
