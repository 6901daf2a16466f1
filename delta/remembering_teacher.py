"""A teacher that is asked once about each image, however many stores its answers go to."""

import hashlib

import torch
from jaxtyping import Float
from torch import Tensor

from delta.teacher import Teacher, TeacherOutput


class RememberingTeacher:
    """`teacher`, with every answer kept in memory: 2 to 10 MB an image, by taps and size."""

    def __init__(self, teacher: Teacher) -> None:
        self._teacher = teacher
        self._answers: dict[bytes, TeacherOutput] = {}
        self.identity, self.side_multiple, self.parameters = teacher.identity, teacher.side_multiple, teacher.parameters

    def __call__(self, image: Float[Tensor, "b 3 h w"]) -> TeacherOutput:
        """Answer as the teacher does, image by image."""
        answers = [self._answer(single) for single in image.split(1)]
        return TeacherOutput(
            disparity=torch.cat([answer.disparity for answer in answers]),
            features=_joined([answer.features for answer in answers]),
            attention=_joined([answer.attention for answer in answers]),
        )

    def _answer(self, image: Float[Tensor, "1 3 h w"]) -> TeacherOutput:
        key = hashlib.sha256(image.cpu().contiguous().numpy().tobytes()).digest()
        if key not in self._answers:
            self._answers[key] = self._teacher(image)
        return self._answers[key]


def _joined(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {tap: torch.cat([part[tap] for part in parts]) for tap in parts[0]}
