// Package netlab lays out a small network in namespaces of the kernel it runs
// on: a LAN, cluster nodes with pods behind them, and clients outside the
// cluster. Tests, benchmarks and demonstrations send real packets through it.
//
// Everything happens in a world of its own (see Enter): a process with its own
// user, network and mount namespaces. An ordinary user can make one, nothing
// of the machine's network can be seen or changed from it, and the kernel
// takes all of it away when the process ends, however it ends.
//
//	world's own namespace: lan0, 172.18.0.1/24, fd00:172:18::1/64
//	  |- node1 eth0 172.18.0.11, fd00:172:18::11   pods 10.244.1.0/24, fd00:10:244:1::/64
//	  |- node2 eth0 172.18.0.12, fd00:172:18::12   pods 10.244.2.0/24, fd00:10:244:2::/64
//	  `- client eth0 172.18.0.101, fd00:172:18::101
//
// To look around in a running world, join it by the process id of the
// program or test that entered it (the child, not the one that was started):
//
//	nsenter -t PID -U --preserve-credentials -n -m
//	ip netns exec node1 nft list ruleset
//	nsenter --net=/run/netns/pod-a ip route
package netlab
