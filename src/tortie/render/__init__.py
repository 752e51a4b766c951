"""What this node should be, as the text that other programs read: nft rulesets, bird.conf. Values in, text out."""
