"""Who may read and write what, and the record of who did."""

from aios_kernel.access.audit import AuditLog
from aios_kernel.access.chain import AuditEntry
from aios_kernel.access.manager import AccessManager, denied
from aios_kernel.access.policy import Policy
from aios_kernel.access.resource import Resource
from aios_kernel.access.subject import Decision, Question, Subject
from aios_kernel.access.verify import Verdict

__all__ = [
    "AccessManager",
    "AuditEntry",
    "AuditLog",
    "Decision",
    "Policy",
    "Question",
    "Resource",
    "Subject",
    "Verdict",
    "denied",
]
