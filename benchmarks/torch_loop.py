"""The yardstick: a distillation step as a plain PyTorch program takes it, with PyTorch's defaults."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from benchmarks import torch_networks


class TorchStep:
    """Teacher and student forward, 0.1 * CE + 0.9 * KD at T = 4, backward, SGD, and the student's entropy.

    The batch lies ready in memory, normalised: loading, mixing and augmentation, which our step includes, cost nothing.
    """

    def __init__(self, teacher: str, student: str, batch: int, channels_last: bool):
        torch.manual_seed(0)
        layout = torch.channels_last if channels_last else torch.contiguous_format
        self.teacher = torch_networks.make(teacher).eval().to(memory_format=layout)
        self.student = torch_networks.make(student).train().to(memory_format=layout)
        self.optimizer = torch.optim.SGD(self.student.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
        self.image = torch.randn(batch, 3, 32, 32).contiguous(memory_format=layout)
        self.label = torch.randint(100, (batch,))

    def parameters(self) -> tuple[int, int]:
        """Trainable numbers of (teacher, student), to be compared with ours."""
        return tuple(sum(p.numel() for p in net.parameters()) for net in (self.teacher, self.student))

    def __call__(self) -> torch.Tensor:
        with torch.no_grad():
            teacher = self.teacher(self.image)
        student = self.student(self.image)
        soft = F.kl_div(F.log_softmax(student / 4, 1), F.softmax(teacher / 4, 1), reduction='batchmean') * 16
        loss = 0.1 * F.cross_entropy(student, self.label) + 0.9 * soft
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        with torch.no_grad():
            log_p = F.log_softmax(student, 1)
            return -(log_p.exp() * log_p).sum(1)
