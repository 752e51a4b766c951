"""Tests that need a stock kernel: those in `inside` run on one, in a virtual machine."""
