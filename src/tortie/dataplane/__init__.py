"""Desired state into the kernel: observe, plan, apply; and the attachment of one pod."""
