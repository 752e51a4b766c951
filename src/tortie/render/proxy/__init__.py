"""ProxyState to the nftables table `inet tortie-services`."""
