"""The stand-alone CNI plugins, one file each. A plugin needs no agent and knows no other plugin."""
