package usernet

import (
	"context"
	"net"
	"net/netip"
	"strconv"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/waiter"

	"dhow/host/splice"
)

const (
	// maxDialing is how many of the guest's connections may be in the making at
	// once; more SYNs are dropped, and the guest sends them again. It is large
	// enough that a scan of addresses that don't answer does not stall the rest.
	maxDialing = 1024
	// dialTimeout bounds each: a guest's kernel gives up later than this.
	dialTimeout = 60 * time.Second
)

// forwardTCP makes a connection of the guest anew from the host. The stack
// calls it in a goroutine of its own. The guest's handshake ends only when the
// host has connected, so a refusal is a refusal for the guest too.
func (n *Network) forwardTCP(r *tcp.ForwarderRequest) {
	n.mu.Lock()
	if n.ctx.Err() != nil {
		n.mu.Unlock()
		r.Complete(true)
		return
	}
	n.wg.Add(1)
	n.mu.Unlock()
	defer n.wg.Done()

	id := r.ID()
	to, ok := n.destination(netip.AddrFrom4(id.LocalAddress.As4()))
	if !ok {
		r.Complete(true)
		return
	}
	out, err := n.dial.DialContext(n.ctx, "tcp", net.JoinHostPort(to.String(), strconv.Itoa(int(id.LocalPort))))
	if err != nil {
		r.Complete(true)
		return
	}
	defer out.Close()
	var queue waiter.Queue
	ep, terr := r.CreateEndpoint(&queue)
	r.Complete(false)
	if terr != nil {
		return // the guest gave up meanwhile
	}
	in := gonet.NewTCPConn(&queue, ep)
	defer context.AfterFunc(n.ctx, func() { _, _ = in.Close(), out.Close() })()
	_ = splice.Join(in, out) // an end with an error is the stream's, not the network's
}

// destination says where a connection to an address goes, and whether it may.
func (n *Network) destination(to netip.Addr) (netip.Addr, bool) {
	switch {
	case to == netip.MustParseAddr(HostAddress):
		return netip.AddrFrom4([4]byte{127, 0, 0, 1}), n.config.HostLoopback
	case subnet.Contains(to), // the gateway's other ports, and nobody
		to.IsLoopback(), to.IsUnspecified(), to.As4()[0] == 0, to.IsMulticast(), to.IsLinkLocalUnicast(),
		to == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		return to, false
	}
	return to, true
}
