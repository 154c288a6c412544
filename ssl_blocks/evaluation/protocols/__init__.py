"""The protocols: one file each, listed here. Command line, help, tables and documentation walk over this list."""

from typing import Any

from ssl_blocks.evaluation.protocol import Protocol
from ssl_blocks.evaluation.protocols.attentive import Attentive
from ssl_blocks.evaluation.protocols.fewshot import Fewshot
from ssl_blocks.evaluation.protocols.finetune import Finetune
from ssl_blocks.evaluation.protocols.knn import Knn
from ssl_blocks.evaluation.protocols.probe import Probe
from ssl_blocks.evaluation.protocols.segment import Segment

PROTOCOLS: tuple[type[Protocol[Any, Any]], ...] = (Knn, Probe, Attentive, Fewshot, Finetune, Segment)
