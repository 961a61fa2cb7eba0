"""What can be asked for: the known targets, their captions and labels, and how a request's text becomes targets."""

from medclipsam.targets.prompt import (
    FINDING_LABELS,
    MAX_TEXT,
    TextTarget,
    assign_labels,
    check_text,
    joined_text,
    label_table,
    negatives,
    parse_prompt,
)
from medclipsam.targets.target import MAX_LABEL, SnomedCode, StructureCode, Target, TargetSet
from medclipsam.targets.vocabulary import Suggestion, suggest
from medclipsam.targets.wording import normalise

__all__ = [
    "FINDING_LABELS",
    "MAX_LABEL",
    "MAX_TEXT",
    "SnomedCode",
    "StructureCode",
    "Suggestion",
    "Target",
    "TargetSet",
    "TextTarget",
    "assign_labels",
    "check_text",
    "joined_text",
    "label_table",
    "negatives",
    "normalise",
    "parse_prompt",
    "suggest",
]
