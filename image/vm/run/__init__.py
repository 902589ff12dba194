"""Boots a machine that was built here: QEMU, firmware, a TPM in software, and what the host may bring."""
