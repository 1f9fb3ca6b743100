package vmimage

// earlyModules are in the initramfs: what reaches the root disk, the console of
// machines whose console is a virtio device, and what init loads while it waits
// for the disk.
var earlyModules = []string{"virtio_pci", "virtio_blk", "erofs", "virtio_console", "vmw_vsock_virtio_transport", "virtio_net"}

// rootModules are in the root, by what needs them. All that they need comes
// with them. Built-in ones may be named: another architecture may have them as
// modules.
var rootModules = [][]string{
	{"virtio_pci", "virtio_blk", "virtio_console", "virtio_balloon", "virtio_rng", "virtio_mem", "virtio_mmio"},
	{"erofs", "ext4", "overlay", "fuse", "virtiofs", "loop"},
	{"vsock", "vmw_vsock_virtio_transport", "vsock_loopback", "vsock_diag"},
	{"virtio_net", "tun", "veth", "dummy", "macvlan", "ipvlan", "vxlan", "bridge", "br_netfilter", "8021q", "wireguard", "ifb"},
	{
		"nf_tables", "nf_conntrack", "nf_conntrack_netlink", "nf_nat", "nfnetlink_log", "nfnetlink_queue",
		"nft_chain_nat", "nft_ct", "nft_nat", "nft_masq", "nft_redir", "nft_reject", "nft_reject_inet", "nft_reject_ipv4", "nft_reject_ipv6",
		"nft_fib", "nft_fib_inet", "nft_fib_ipv4", "nft_fib_ipv6", "nft_log", "nft_limit", "nft_quota", "nft_numgen", "nft_hash", "nft_objref",
		"nft_connlimit", "nft_socket", "nft_tproxy", "nft_flow_offload", "nft_meta_bridge", "nf_log_syslog",
	},
	{
		// The engine uses none of these; programs in containers bring an
		// iptables of either kind.
		"nft_compat", "ip_tables", "ip6_tables", "iptable_filter", "iptable_nat", "iptable_mangle", "ip6table_filter", "ip6table_nat",
		"xt_conntrack", "xt_addrtype", "xt_MASQUERADE", "xt_nat", "xt_REDIRECT", "xt_comment", "xt_mark", "xt_multiport", "xt_tcpudp",
		"xt_state", "xt_limit",
	},
	{"sch_htb", "sch_fq", "sch_fq_codel", "sch_tbf", "sch_netem", "sch_ingress", "cls_u32", "cls_bpf", "act_mirred"},
	{"algif_hash", "algif_skcipher"},
	{"hv_vmbus", "hv_storvsc", "hv_netvsc", "hv_sock", "hv_balloon", "hv_utils", "pci_hyperv", "sd_mod"},
}
