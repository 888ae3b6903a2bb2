"""Labelled captures of IoT devices that never existed, one of them infected: files for `trainer fit` and for the demo.

Knows what the traffic of cheap devices looks like on the wire (benign, per kind of device, by the hour of the day) and
what is publicly known of the traffic of Mirai and BASHLITE (gafgyt): ports, sizes, flags, rates, spoofing. Packets are
rows of numbers that become bytes in a pcap file. Nothing here can send a packet, payloads are zero or random bytes, and
there is neither malware nor an exploit in this package. `trainer.data.dataset` turns captures into data sets;
the manifest written here has its format.

Everything is generated and everything says so. Equal plans give equal bytes: all random numbers depend on the seed, the
device's name and the day. Another seed gives another home: other cloud hosts, addresses, periods, sizes and network
stacks.

Labels. In an attack capture every frame that the infected device's MAC sends between the attack's first and last packet
counts as the attack's. The device's benign traffic continues meanwhile, so that a few rows in a thousand of a flood
(more of a slow scan) are benign rows with the attack's label, as they are in N-BaIoT. Sources spoofed at the IP layer
keep the device's MAC, as on a real LAN.

Sources of the traffic's traits: Mirai's published source (bot/scanner.c, attack_udp.c, attack_tcp.c) and that of
BASHLITE (client.c) for header fields, ports, sizes and state machines; N-BaIoT (Meidan et al. 2018) for the rates that
real devices reach under both (its λ=1 weights are 250 to 850 packets/s, far below the rate the code aims at) and for
the floods that had spoofed sources; the captures of IoTEnsemble and IoT Sentinel for benign periods and sizes (studied,
not copied).
"""
