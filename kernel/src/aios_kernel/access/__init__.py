"""Who may read and write what, and the record of who did."""

from aios_kernel.access.audit import AuditEntry, AuditLog
from aios_kernel.access.manager import AccessManager
from aios_kernel.access.resource import Resource

__all__ = ["AccessManager", "AuditEntry", "AuditLog", "Resource"]
