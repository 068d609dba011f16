"""The public conformance kit: what every task, method and attack must satisfy, for your tests and for ours.

>>> def test_my_method_conforms():
...     for tiny in tiny_models().values():
...         check_purifier(MyMethod(steps=2), tiny.build(), tiny.batch(), ClassificationTask())

The checks raise ``AssertionError`` with what was expected, what was found and what to do.
"""

from unbackdoor.testing.architectures import TinyModel, tiny_models
from unbackdoor.testing.attacks import check_attack
from unbackdoor.testing.classification import ClassificationTask, SquareTrigger, TinyVictim, tiny_victim
from unbackdoor.testing.fuzz import check_reader, mutations
from unbackdoor.testing.purifiers import check_purifier
from unbackdoor.testing.tasks import check_task

__all__ = [
    "ClassificationTask",
    "SquareTrigger",
    "TinyModel",
    "TinyVictim",
    "check_attack",
    "check_purifier",
    "check_reader",
    "check_task",
    "mutations",
    "tiny_models",
    "tiny_victim",
]
