// Package usernet is the user-mode network that a machine's network device is
// plugged into: a TCP/IP stack in this process that ends the guest's
// connections and makes them anew from the host. It needs no privilege and goes
// where the host's own programs go, VPNs included.
//
// The daemon opens one Network per boot, gives its socket to the driver and its
// addresses to the guest. The stack is gVisor's; its wiring, the switch
// and the link are those of gvisor-tap-vsock.
//
// # What the guest reaches
//
// The gateway answers DNS (UDP and TCP) by the host's resolver. TCP and UDP to
// other addresses go out from the host. The host's own loopback is out of
// reach, save by HostAddress and only where Config.HostLoopback says so;
// link-local addresses (cloud metadata services), loopback and unspecified
// addresses are refused whatever the guest puts into its packets.
//
// # Bounds
//
// The network serves any container, and the machine dies with this process: all
// that a guest can make it hold is bounded (maxStreams and what follows it,
// maxFlows, maxQuestions). Who is beyond is refused, or its packets are dropped.
package usernet
