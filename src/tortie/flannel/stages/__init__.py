"""The kinds of kernel objects that flannel has, a file each: observe, plan, apply."""
